//! What is asked on the command line, and the commands that need no running service.
//!
//! In: arguments, a settings file, a folder for keys. Out: what to run, or a report and an exit code. Never: prints a secret key,
//! or writes over a file.

use clap::{Args, Parser, Subcommand};
use quietline_shared::crypto::x25519_public;
use quietline_shared::service::config::{Faults, FileFault, SettingsFile, Warnings, read_key_32};
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Reads the arguments, the program's name first. The error prints itself and knows its exit code; help is such an error.
pub fn parse<A: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = A>) -> Result<Command, clap::Error> {
    CommandLine::try_parse_from(arguments).map(|line| line.command)
}

#[derive(Debug, Parser)]
#[command(
    name = "quietline-notifier",
    version,
    about = "Push relay for fast-mode notifications"
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the service until SIGTERM.
    Run {
        /// The settings, TOML.
        #[arg(long, value_name = "FILE")]
        settings: PathBuf,
    },
    /// Read everything that run would read, name every fault, start nothing.
    Check {
        /// The settings, TOML.
        #[arg(long, value_name = "FILE")]
        settings: PathBuf,
    },
    /// Make the keys that do not exist yet and print the public ones.
    Keygen(Keygen),
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Keygen {
    /// Make the keys at the places these settings name.
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// Make the keys onion, link and lookup in this folder.
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// How a command ended. Usage errors are clap's: 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    /// Starting again would change nothing (EX_CONFIG of sysexits.h).
    BadSettings,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::FAILURE,
            Exit::BadSettings => Self::from(78),
        }
    }
}

/// Reports what `load`, the reading that `run` starts with, finds.
pub fn check<T>(
    settings: &Path,
    load: impl FnOnce(&Path) -> Result<(T, Warnings), Faults>,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> io::Result<Exit> {
    match load(settings) {
        Ok((_, warnings)) => {
            report_warnings(&warnings, errors)?;
            writeln!(out, "settings are good")?;
            Ok(Exit::Done)
        }
        Err(faults) => report_faults(&faults, errors),
    }
}

pub fn report_warnings(warnings: &Warnings, errors: &mut dyn Write) -> io::Result<()> {
    warnings
        .0
        .iter()
        .try_for_each(|warning| writeln!(errors, "warning: {warning}"))
}

pub fn report_faults(faults: &Faults, errors: &mut dyn Write) -> io::Result<Exit> {
    let count = faults.0.len();
    writeln!(
        errors,
        "{count} {} in the settings:",
        if count == 1 { "fault" } else { "faults" }
    )?;
    faults.0.iter().try_for_each(|fault| writeln!(errors, "  {fault}"))?;
    Ok(Exit::BadSettings)
}

/// Makes each key that does not exist; one that exists is kept and must be a good one.
pub fn keygen(wish: &Keygen, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    let places = match Places::of(wish) {
        Ok(places) => places,
        Err(faults) => return report_faults(&faults, errors),
    };
    let mut exit = Exit::Done;
    for (key, path) in places.all() {
        match make_key(path) {
            Ok(Made { public, new }) => {
                let done = if new { "made" } else { "kept" };
                writeln!(out, "{} key {done}: {}", key.name(), path.display())?;
                if key.has_public_half() {
                    writeln!(out, "{} public key: {}", key.name(), hex::encode(public))?;
                }
            }
            Err(fault) => {
                writeln!(errors, "{} key: {} {fault}", key.name(), path.display())?;
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

#[derive(Clone, Copy)]
enum Key {
    Onion,
    Link,
    Lookup,
}

impl Key {
    const fn name(self) -> &'static str {
        match self {
            Self::Onion => "onion",
            Self::Link => "link",
            Self::Lookup => "lookup",
        }
    }

    const fn has_public_half(self) -> bool {
        match self {
            Self::Onion | Self::Link => true,
            Self::Lookup => false,
        }
    }
}

/// Where the three keys belong: three different files.
struct Places {
    onion: PathBuf,
    link: PathBuf,
    lookup: PathBuf,
}

impl Places {
    fn of(wish: &Keygen) -> Result<Self, Faults> {
        match (&wish.settings, &wish.folder) {
            (Some(settings), _) => Self::named_by(settings),
            (None, folder) => {
                let folder = folder.clone().unwrap_or_default();
                let at = |key: Key| folder.join(key.name());
                Ok(Self {
                    onion: at(Key::Onion),
                    link: at(Key::Link),
                    lookup: at(Key::Lookup),
                })
            }
        }
    }

    /// Reads only the three settings: keys are made before the rest of the settings is right.
    fn named_by(settings: &Path) -> Result<Self, Faults> {
        #[derive(Deserialize)]
        struct Http {
            onion_key_file: PathBuf,
        }
        #[derive(Deserialize)]
        struct Watcher {
            key_file: PathBuf,
        }
        #[derive(Deserialize)]
        struct Store {
            lookup_key_file: PathBuf,
        }
        let mut file = SettingsFile::read(settings)?;
        let http = file.section::<Http>("http");
        let watcher = file.section::<Watcher>("watcher");
        let store = file.section::<Store>("store");
        let places = match (http, watcher, store) {
            (Some(http), Some(watcher), Some(store)) => {
                let places = Self {
                    onion: http.onion_key_file,
                    link: watcher.key_file,
                    lookup: store.lookup_key_file,
                };
                if places.link == places.onion {
                    file.fault(
                        "watcher.key_file",
                        "is the file of http.onion_key_file",
                        "a file of its own",
                    );
                }
                if places.lookup == places.onion || places.lookup == places.link {
                    file.fault(
                        "store.lookup_key_file",
                        "is the file of another key",
                        "a file of its own",
                    );
                }
                Some(places)
            }
            _ => None,
        };
        let faults = file.finish_partly();
        // Each section that is not there has left a fault.
        faults.and_then(|_| places.ok_or_else(|| Faults(vec![])))
    }

    fn all(&self) -> [(Key, &Path); 3] {
        [
            (Key::Onion, &self.onion),
            (Key::Link, &self.link),
            (Key::Lookup, &self.lookup),
        ]
    }
}

struct Made {
    public: [u8; 32],
    new: bool,
}

#[derive(Debug, thiserror::Error)]
enum KeyFault {
    #[error("exists and {0}; it is left as it is")]
    Existing(FileFault),
    #[error("cannot be written ({0})")]
    Unwritable(io::ErrorKind),
    #[error("cannot be made: the operating system gives no random bytes")]
    NoRandomness,
}

fn make_key(path: &Path) -> Result<Made, KeyFault> {
    let unwritable = |error: io::Error| KeyFault::Unwritable(error.kind());
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|_| KeyFault::NoRandomness)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(unwritable)?;
    }
    // Not asked first whether it exists: between the question and the writing somebody else could make it.
    let new = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            write_key(file, &key, path).map_err(unwritable)?;
            true
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(unwritable(error)),
    };
    // Read back in either case: what is printed is what the service will use.
    let key = read_key_32(path).map_err(KeyFault::Existing)?;
    Ok(Made {
        public: x25519_public(&key),
        new,
    })
}

fn write_key(mut file: File, key: &[u8; 32], path: &Path) -> io::Result<()> {
    let written = file
        .write_all(format!("{}\n", hex::encode(key)).as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(folder_of(path))?.sync_all());
    if written.is_err() {
        // Half a key in the place of one would be taken for an existing key by the next attempt.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::service::config::Fault;
    use std::os::unix::fs::PermissionsExt;

    fn run_keygen(wish: &Keygen) -> (Exit, String, String) {
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let exit = keygen(wish, &mut out, &mut errors).unwrap();
        (
            exit,
            String::from_utf8(out).unwrap(),
            String::from_utf8(errors).unwrap(),
        )
    }

    fn in_folder(folder: &Path) -> Keygen {
        Keygen {
            settings: None,
            folder: Some(folder.into()),
        }
    }

    fn named_by(settings: &Path) -> Keygen {
        Keygen {
            settings: Some(settings.into()),
            folder: None,
        }
    }

    #[test]
    fn arguments_name_a_command_and_its_files() {
        let parsed = |line: &str| parse(std::iter::once("quietline-notifier").chain(line.split(' '))).ok();
        assert_eq!(
            parsed("run --settings a.toml"),
            Some(Command::Run {
                settings: "a.toml".into()
            })
        );
        assert_eq!(
            parsed("check --settings a.toml"),
            Some(Command::Check {
                settings: "a.toml".into()
            })
        );
        assert_eq!(
            parsed("keygen --folder keys"),
            Some(Command::Keygen(in_folder("keys".as_ref())))
        );
        assert_eq!(
            parsed("keygen --settings a.toml"),
            Some(Command::Keygen(named_by("a.toml".as_ref())))
        );
        for wrong in [
            "",
            "run",
            "check",
            "keygen",
            "keygen --folder a --settings b",
            "walk",
            "run --settings a b",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
        assert_eq!(parse(["quietline-notifier", "run"]).unwrap_err().exit_code(), 2);
        assert_eq!(parse(["quietline-notifier", "--help"]).unwrap_err().exit_code(), 0);
    }

    #[test]
    fn keygen_makes_three_different_keys_that_only_their_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("new/keys");
        let (exit, out, errors) = run_keygen(&in_folder(&keys));
        assert_eq!((exit, errors.as_str()), (Exit::Done, ""));
        let mut all = Vec::new();
        for name in ["onion", "link", "lookup"] {
            let path = keys.join(name);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
            let key = read_key_32(&path).unwrap();
            assert!(out.contains(&format!("{name} key made: ")), "{out}");
            assert!(
                !out.contains(&hex::encode(key.expose())),
                "the secret stays in its file"
            );
            let public = hex::encode(x25519_public(&key));
            assert_eq!(
                out.contains(&format!("{name} public key: {public}\n")),
                name != "lookup",
                "{out}"
            );
            all.push(*key.expose());
        }
        assert_eq!(keys.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    }

    #[test]
    fn keygen_keeps_what_exists_and_says_the_same_public_key() {
        let folder = tempfile::tempdir().unwrap();
        let (_, first, _) = run_keygen(&in_folder(folder.path()));
        let before = std::fs::read(folder.path().join("onion")).unwrap();
        std::fs::remove_file(folder.path().join("link")).unwrap();
        let (exit, second, errors) = run_keygen(&in_folder(folder.path()));
        assert_eq!((exit, errors.as_str()), (Exit::Done, ""));
        assert_eq!(std::fs::read(folder.path().join("onion")).unwrap(), before);
        let public = |text: &str| {
            text.lines()
                .find(|line| line.starts_with("onion public"))
                .unwrap()
                .to_owned()
        };
        assert_eq!(public(&first), public(&second));
        assert!(
            second.contains("onion key kept") && second.contains("link key made"),
            "{second}"
        );
    }

    #[test]
    fn keygen_reports_a_bad_key_and_a_place_it_cannot_write_to_and_makes_the_others() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("onion"), "put the key here").unwrap();
        std::fs::create_dir(folder.path().join("link")).unwrap();
        let (exit, out, errors) = run_keygen(&in_folder(folder.path()));
        assert_eq!(exit, Exit::Failed);
        assert!(
            errors.contains("onion key: ") && errors.contains("link key: "),
            "{errors}"
        );
        assert!(!errors.contains("put the key"), "{errors}");
        assert!(out.contains("lookup key made") && !out.contains("public"), "{out}");
        assert_eq!(std::fs::read(folder.path().join("onion")).unwrap(), b"put the key here");
    }

    #[test]
    fn keygen_finds_the_places_in_the_example_settings() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("notifier.toml");
        std::fs::write(&settings, include_str!("../../deploy/notifier.toml")).unwrap();
        let (exit, _, errors) = run_keygen(&named_by(&settings));
        assert_eq!((exit, errors.as_str()), (Exit::Done, ""));
        for name in ["onion", "link", "lookup"] {
            assert!(read_key_32(&folder.path().join("keys").join(name)).is_ok(), "{name}");
        }
    }

    #[test]
    fn keygen_refuses_settings_without_places_or_with_one_place_for_two_keys() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("notifier.toml");
        let faults_of = |text: &str| {
            std::fs::write(&settings, text).unwrap();
            let (exit, out, errors) = run_keygen(&named_by(&settings));
            assert_eq!((exit, out.as_str()), (Exit::BadSettings, ""));
            errors
        };
        let errors = faults_of("[http]\nlisten = 5\n");
        for place in ["http.onion_key_file", "watcher.key_file", "store.lookup_key_file"] {
            assert!(errors.contains(&format!("  {place}: is missing")), "{errors}");
        }
        assert!(errors.starts_with("3 faults"), "{errors}");
        let errors = faults_of("http.onion_key_file = 'a'\nwatcher.key_file = 'a'\nstore.lookup_key_file = 'a'");
        assert!(errors.starts_with("2 faults"), "{errors}");
        assert!(!folder.path().join("a").exists());
    }

    #[test]
    fn check_names_every_fault_or_says_that_all_is_good() {
        let run = |load: Result<((), Warnings), Faults>| {
            let (mut out, mut errors) = (Vec::new(), Vec::new());
            let exit = check("a.toml".as_ref(), |_| load, &mut out, &mut errors).unwrap();
            (
                exit,
                String::from_utf8(out).unwrap(),
                String::from_utf8(errors).unwrap(),
            )
        };
        let fault = |place: &str| Fault::new(place, "is missing", "a value");
        let (exit, out, errors) = run(Err(Faults(vec![fault("http.listen"), fault("log.level")])));
        assert_eq!((exit, out.as_str()), (Exit::BadSettings, ""));
        let expected = "2 faults in the settings:\n  http.listen: is missing (expected: a value)\n";
        assert!(errors.starts_with(expected) && errors.contains("log.level"), "{errors}");
        let (exit, out, errors) = run(Ok(((), Warnings(vec![fault("http.onion_key_file")]))));
        assert_eq!((exit, out.as_str()), (Exit::Done, "settings are good\n"));
        assert!(errors.starts_with("warning: http.onion_key_file: "), "{errors}");
    }
}
