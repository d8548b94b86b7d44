//! What is asked on the command line, and the commands that need no running service.
//!
//! In: arguments, a settings file, a folder for keys. Out: what to run, or a report and an exit code. Never: prints a secret key,
//! or writes over a file.

use crate::keyring::file::MOST_KEYS;
use crate::store::row_key_beside;
use crate::{dispatch, watcher};
use clap::{Args, Parser, Subcommand};
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::Outcome;
use notifier_core::subscription;
use notifier_core::webpush::Vapid;
use quietline_shared::crypto::x25519_public;
use quietline_shared::redact::Secret;
pub use quietline_shared::service::command::{Exit, report_audit, report_faults, report_warnings};
use quietline_shared::service::command::{make_secret_file, report_memory};
use quietline_shared::service::config::{
    Faults, FileFault, SettingsFile, Warnings, is_missing_credential, read_keys_32,
};
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

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
    /// Say what is held on this machine, how it is kept, and who would learn what. Changes nothing.
    Audit {
        /// The settings, TOML.
        #[arg(long, value_name = "FILE")]
        settings: PathBuf,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Make the keys that do not exist yet and print the public ones.
    Keygen(Keygen),
    /// Seal everything under a new row key and destroy the old one, beside a running service or without one. Goes on where it was cut off.
    RotateKey(RotateKey),
    /// Send one test notification to one device and say what its push service answers. Starts nothing, changes nothing.
    Push(PushOnce),
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PushOnce {
    /// The settings, TOML.
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,
    /// apns, apns-sandbox, firebase, huawei or webpush.
    #[arg(long, value_name = "NAME", value_parser = service)]
    pub service: Service,
    /// A file with the device's token, "-" for standard input. For webpush: JSON with endpoint, p256dh and auth.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct RotateKey {
    /// The settings, TOML.
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,
    /// The file of the row keys, where the settings name a credential of systemd.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

fn service(name: &str) -> Result<Service, String> {
    Service::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Service::ALL.into_iter().map(Service::name).collect();
        format!("one of {}", names.join(", "))
    })
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Keygen {
    /// Make the keys at the places these settings name.
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// Make the keys onion, link, lookup, rows and vapid in this folder.
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
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
            for (what, groups) in [
                ("push services", dispatch::offered_groups()),
                ("seeds", watcher::offered_groups()),
            ] {
                writeln!(out, "TLS to {what} offers {}", groups.join(", "))?;
            }
            report_memory(out, errors)?;
            writeln!(out, "settings are good")?;
            Ok(Exit::Done)
        }
        Err(faults) => report_faults(&faults, errors),
    }
}

/// The token that `push` is asked to try. Not an argument: those are seen by everybody on the machine.
pub fn read_token(wish: &PushOnce, input: &mut dyn Read) -> io::Result<Option<DeviceToken>> {
    let mut text = String::new();
    if wish.token_file == Path::new("-") {
        input.take(TOKEN_FILE_MAX).read_to_string(&mut text)?;
    } else {
        File::open(&wish.token_file)?
            .take(TOKEN_FILE_MAX)
            .read_to_string(&mut text)?;
    }
    Ok(subscription::token_of_text(wish.service, text.trim()).ok())
}

/// Says what a push service answered.
pub fn report_push(service: Service, outcome: &Outcome, out: &mut dyn Write) -> io::Result<Exit> {
    let name = service.name();
    let after = |after: Option<std::time::Duration>| {
        after.map_or_else(String::new, |after| format!(", not before {} s", after.as_secs()))
    };
    match outcome {
        Outcome::Delivered => writeln!(out, "{name} accepted the notification")?,
        Outcome::Gone { .. } => writeln!(out, "{name} says that the token is dead")?,
        Outcome::TryFallback => writeln!(out, "{name} says that the notification is too large")?,
        Outcome::Refused(refusal) => writeln!(out, "{name} refused the notification: {refusal:?}")?,
        Outcome::Retry { after: pause, reason } => {
            writeln!(
                out,
                "{name} did not take the notification: {}{}",
                reason.label(),
                after(*pause)
            )?;
        }
        Outcome::Later { after: pause } | Outcome::Held { pause } => {
            writeln!(out, "{name} cannot be reached{}", after(Some(*pause)))?;
        }
        Outcome::Expired => writeln!(out, "{name} did not answer in time")?,
    }
    Ok(if *outcome == Outcome::Delivered {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Longer than any token.
const TOKEN_FILE_MAX: u64 = 16 * 1024;

/// Makes each key that does not exist; one that exists is kept and must be a good one.
pub fn keygen(wish: &Keygen, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    let places = match Places::of(wish) {
        Ok(places) => places,
        Err(faults) => return report_faults(&faults, errors),
    };
    let mut exit = Exit::Done;
    for (key, path) in places.all() {
        let most = if matches!(key, Key::Rows) { MOST_KEYS } else { 1 };
        match make_key(path, most) {
            Ok(Made { secret, new }) => {
                let done = if new { "made" } else { "kept" };
                writeln!(out, "{} key {done}: {}", key.name(), path.display())?;
                if let Some(public) = key.public_half(&secret) {
                    writeln!(out, "{} public key: {public}", key.name())?;
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
    Rows,
    Vapid,
}

impl Key {
    const fn name(self) -> &'static str {
        match self {
            Self::Onion => "onion",
            Self::Link => "link",
            Self::Lookup => "lookup",
            Self::Rows => "rows",
            Self::Vapid => "vapid",
        }
    }

    /// As clients and others are told it.
    fn public_half(self, secret: &Secret<[u8; 32]>) -> Option<String> {
        match self {
            Self::Onion | Self::Link => Some(hex::encode(x25519_public(secret))),
            Self::Lookup | Self::Rows => None,
            Self::Vapid => Vapid::new(secret, "mailto:").map(|vapid| vapid.public_key()),
        }
    }
}

/// Where the keys belong: a file for each.
struct Places {
    onion: PathBuf,
    link: PathBuf,
    lookup: PathBuf,
    rows: PathBuf,
    /// Only where Web Push is on offer.
    vapid: Option<PathBuf>,
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
                    rows: at(Key::Rows),
                    vapid: Some(at(Key::Vapid)),
                })
            }
        }
    }

    /// Reads only these settings: keys are made before the rest of the settings is right.
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
            row_key_file: Option<PathBuf>,
        }
        #[derive(Deserialize)]
        struct Dispatch {
            webpush: Option<Webpush>,
        }
        #[derive(Deserialize)]
        struct Webpush {
            key_file: PathBuf,
        }
        let mut file = SettingsFile::read(settings)?;
        let http = file.section::<Http>("http");
        let watcher = file.section::<Watcher>("watcher");
        let store = file.section::<Store>("store");
        let webpush = file
            .optional_section::<Dispatch>("dispatch")
            .and_then(|dispatch| dispatch.webpush);
        let places = match (http, watcher, store) {
            (Some(http), Some(watcher), Some(store)) => {
                let places = Self {
                    onion: http.onion_key_file,
                    link: watcher.key_file,
                    rows: store
                        .row_key_file
                        .unwrap_or_else(|| row_key_beside(&store.lookup_key_file)),
                    lookup: store.lookup_key_file,
                    vapid: webpush.map(|webpush| webpush.key_file),
                };
                for (name, path) in [
                    ("http.onion_key_file", Some(&places.onion)),
                    ("watcher.key_file", Some(&places.link)),
                    ("store.lookup_key_file", Some(&places.lookup)),
                    ("store.row_key_file", Some(&places.rows)),
                    ("dispatch.webpush.key_file", places.vapid.as_ref()),
                ] {
                    // A key made there would be one that the service never reads.
                    if path.is_some_and(|path| is_missing_credential(path)) {
                        file.fault(
                            name,
                            "is a credential that systemd hands over",
                            "keygen --folder with the folder that LoadCredential= names",
                        );
                    }
                }
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
                if [&places.onion, &places.link, &places.lookup].contains(&&places.rows) {
                    file.fault("store.row_key_file", "is the file of another key", "a file of its own");
                }
                let others = [&places.onion, &places.link, &places.lookup, &places.rows];
                if places.vapid.as_ref().is_some_and(|vapid| others.contains(&vapid)) {
                    file.fault(
                        "dispatch.webpush.key_file",
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

    fn all(&self) -> impl Iterator<Item = (Key, &Path)> {
        [
            (Key::Onion, Some(&self.onion)),
            (Key::Link, Some(&self.link)),
            (Key::Lookup, Some(&self.lookup)),
            (Key::Rows, Some(&self.rows)),
            (Key::Vapid, self.vapid.as_ref()),
        ]
        .into_iter()
        .filter_map(|(key, path)| Some((key, path?.as_path())))
    }
}

struct Made {
    secret: Secret<[u8; 32]>,
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

fn make_key(path: &Path, most: usize) -> Result<Made, KeyFault> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|_| KeyFault::NoRandomness)?;
    let text = format!("{}\n", hex::encode(key));
    let new = make_secret_file(path, text.as_bytes()).map_err(|error| KeyFault::Unwritable(error.kind()))?;
    // Read back in either case: what is printed is what the service will use.
    let mut secrets = read_keys_32(path, most).map_err(KeyFault::Existing)?;
    // There is one at least, the newest first.
    let secret = secrets.swap_remove(0);
    Ok(Made { secret, new })
}

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::service::config::{Fault, read_key_32};
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
        assert_eq!(
            parsed("rotate-key --settings a.toml --key-file keys/rows"),
            Some(Command::RotateKey(RotateKey {
                settings: "a.toml".into(),
                key_file: Some("keys/rows".into()),
            }))
        );
        for wrong in [
            "",
            "run",
            "check",
            "keygen",
            "keygen --folder a --settings b",
            "rotate-key",
            "rotate-key --key-file b",
            "walk",
            "run --settings a b",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
        assert_eq!(parse(["quietline-notifier", "run"]).unwrap_err().exit_code(), 2);
        assert_eq!(parse(["quietline-notifier", "--help"]).unwrap_err().exit_code(), 0);
    }

    #[test]
    fn keygen_makes_different_keys_that_only_their_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("new/keys");
        let (exit, out, errors) = run_keygen(&in_folder(&keys));
        assert_eq!((exit, errors.as_str()), (Exit::Done, ""));
        let mut all = Vec::new();
        for name in ["onion", "link", "lookup", "rows"] {
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
                !["lookup", "rows"].contains(&name),
                "{out}"
            );
            all.push(*key.expose());
        }
        assert_eq!(keys.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let vapid = out
            .lines()
            .find_map(|line| line.strip_prefix("vapid public key: "))
            .unwrap();
        let secret = read_key_32(&keys.join("vapid")).unwrap();
        assert_eq!(Vapid::new(&secret, "mailto:").unwrap().public_key(), vapid);
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
        assert!(out.contains("lookup key made"), "{out}");
        assert!(!out.contains("onion public") && !out.contains("link public"), "{out}");
        assert_eq!(std::fs::read(folder.path().join("onion")).unwrap(), b"put the key here");
    }

    #[test]
    fn keygen_finds_the_places_in_the_example_settings() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("notifier.toml");
        std::fs::write(&settings, include_str!("../../deploy/notifier.toml")).unwrap();
        let (exit, _, errors) = run_keygen(&named_by(&settings));
        assert_eq!((exit, errors.as_str()), (Exit::Done, ""));
        for name in ["onion", "link", "lookup", "rows"] {
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
    fn keygen_makes_no_key_where_systemd_would_hand_one_over() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("notifier.toml");
        let example = include_str!("../../deploy/notifier.toml");
        let handed_over = example.replace("\"keys/", "\"$CREDENTIALS_DIRECTORY/keys_");
        std::fs::write(&settings, handed_over).unwrap();
        let (exit, out, errors) = run_keygen(&named_by(&settings));
        assert_eq!((exit, out.as_str()), (Exit::BadSettings, ""));
        for place in [
            "http.onion_key_file",
            "watcher.key_file",
            "store.lookup_key_file",
            "store.row_key_file",
        ] {
            assert!(errors.contains(&format!("  {place}: is a credential")), "{errors}");
        }
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "the settings alone"
        );
    }

    #[test]
    fn push_reads_its_token_from_a_file_or_standard_input_and_never_from_the_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, " token:1\n").unwrap();
        let parsed = parse([
            "x",
            "push",
            "--settings",
            "a",
            "--service",
            "firebase",
            "--token-file",
            "-",
        ]);
        let Command::Push(mut wish) = parsed.unwrap() else {
            panic!("another command");
        };
        let token = read_token(&wish, &mut &b"token:2\n"[..]).unwrap().unwrap();
        assert_eq!(token, DeviceToken::new(*b"token:2"));
        wish.token_file = file;
        let token = read_token(&wish, &mut io::empty()).unwrap().unwrap();
        assert_eq!(token, DeviceToken::new(*b"token:1"));
        wish.service = Service::Webpush;
        assert_eq!(read_token(&wish, &mut io::empty()).unwrap(), None);
        assert!(
            parse([
                "x",
                "push",
                "--settings",
                "a",
                "--service",
                "pigeon",
                "--token-file",
                "-"
            ])
            .is_err()
        );
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
        assert_eq!(exit, Exit::Done);
        let post_quantum = crate::tls::POST_QUANTUM;
        for line in [
            &format!("TLS to push services offers {post_quantum}, "),
            &format!("TLS to seeds offers {post_quantum}, "),
            "settings are good",
        ] {
            assert!(out.lines().any(|said| said.starts_with(line)), "{line}: {out}");
        }
        assert!(format!("{out}{errors}").contains("core dumps: "), "{out}");
        assert!(errors.starts_with("warning: http.onion_key_file: "), "{errors}");
    }
}
