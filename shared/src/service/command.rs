//! What the commands of both servers have in common: how they end, what they report, how they make a secret.
//!
//! In: faults, warnings, the place of a secret. Out: lines for the operator, an exit code, a new file. Never: prints a secret, or writes
//! over a file.

use super::audit::Audit;
use super::audit::process::Process;
use super::config::{Faults, Warnings};
use super::hygiene;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

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

pub fn report_audit(audit: &Audit, json: bool, out: &mut dyn Write) -> io::Result<Exit> {
    if json {
        serde_json::to_writer_pretty(&mut *out, audit)?;
        writeln!(out)?;
    } else {
        write!(out, "{audit}")?;
    }
    Ok(Exit::Done)
}

/// Says what of the memory of a process that is started as this one was could reach a disk or other eyes.
pub fn report_memory(out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<()> {
    let process = Process::of(std::process::id(), hygiene::is_dumpable());
    process.facts().into_iter().try_for_each(|fact| match fact.good {
        Some(true) => writeln!(out, "{}: {}", fact.what, fact.says),
        Some(false) | None => writeln!(errors, "warning: {}: {}", fact.what, fact.says),
    })
}

/// Makes a file that only its owner reads, and the folder it is in; `false` if it exists and was left as it is.
pub fn make_secret_file(path: &Path, contents: &[u8]) -> io::Result<bool> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Not asked first whether it exists: between the question and the writing somebody else could make it.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => write_whole(&file, contents, path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts a file that only its owner reads in the place of one, at once and whole: whoever reads sees the old one or the new one. The new
/// one has the owner of the old one, whose bytes are overwritten; a disk may keep copies of its own. Of several who do it at once each waits
/// for the one before.
pub fn replace_secret_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let file = begin_alone(&new)?;
    let replaced = replace_by(&file, &new, path, contents);
    if replaced.is_err() && is_at(&file, &new) {
        let _ = std::fs::remove_file(&new);
    }
    replaced
}

/// A new file that nobody else writes as long as it is open.
fn begin_alone(new: &Path) -> io::Result<File> {
    let mut refused = 0;
    loop {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(new) {
            Ok(file) => {
                file.lock()?;
                // Between the making and the locking somebody else may have taken it for one that was left.
                if is_at(&file, new) {
                    return Ok(file);
                }
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        match File::open(new) {
            Ok(other) => {
                other.lock()?;
                // Nobody writes it any more: an attempt was cut off. What it left may be shorter, or have other rights.
                if is_at(&other, new) {
                    std::fs::remove_file(new)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Another user's, who is at it or was cut off.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && refused < ANOTHERS_TURN => {
                refused += 1;
                std::thread::sleep(ASK_EVERY);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => std::fs::remove_file(new)?,
            Err(error) => return Err(error),
        }
    }
}

/// How often, and how long after each other, a file is asked for that another user may still be writing.
const ANOTHERS_TURN: u32 = 100;
const ASK_EVERY: Duration = Duration::from_millis(10);

fn is_at(file: &File, path: &Path) -> bool {
    let place = |data: Metadata| (data.dev(), data.ino());
    file.metadata().ok().map(place) == std::fs::symlink_metadata(path).ok().map(place)
}

fn replace_by(file: &File, new: &Path, path: &Path, contents: &[u8]) -> io::Result<()> {
    let old = match OpenOptions::new().write(true).open(path) {
        Ok(old) => Some(old),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(old) = &old {
        let (owner, ours) = (old.metadata()?, file.metadata()?);
        if (owner.uid(), owner.gid()) != (ours.uid(), ours.gid()) {
            fchown(file, Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    write_whole(file, contents, new)?;
    std::fs::rename(new, path)?;
    File::open(folder_of(path))?.sync_all()?;
    if let Some(mut old) = old {
        let length = usize::try_from(old.metadata()?.len()).unwrap_or(0).min(LONGEST_WIPED);
        old.write_all(&vec![0; length])?;
        old.sync_all()?;
    }
    Ok(())
}

fn write_whole(mut file: &File, contents: &[u8], path: &Path) -> io::Result<()> {
    let written = file
        .write_all(contents)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(folder_of(path))?.sync_all());
    if written.is_err() {
        // Half a secret in the place of one would be taken for an existing one by the next attempt.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Longer than anything that is replaced.
const LONGEST_WIPED: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::config::Fault;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_file_is_its_owners_and_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/keys/secret");
        assert!(make_secret_file(&path, b"first").unwrap());
        assert!(!make_secret_file(&path, b"second").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(make_secret_file(&path.join("under a file"), b"x").is_err());
    }

    #[test]
    fn a_replaced_secret_is_whole_its_owners_and_leaves_nothing_of_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        replace_secret_file(&path, b"the first, and longer").unwrap();
        let mut first = File::open(&path).unwrap();
        // Left by an attempt that was cut off, with rights for everybody.
        std::fs::write(folder.path().join("secret.new"), "half").unwrap();
        replace_secret_file(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        let mut left = Vec::new();
        first.read_to_end(&mut left).unwrap();
        assert_eq!(left, [0; 21], "the old file is overwritten");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn several_who_replace_a_secret_at_once_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::thread::scope(|scope| {
            for number in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..25 {
                        replace_secret_file(path, &vec![b'a' + number; 10_000 * usize::from(number + 1)]).unwrap();
                    }
                });
            }
        });
        // Whole, whoever was the last.
        let last = std::fs::read(&path).unwrap();
        let first = *last.first().unwrap();
        assert_eq!(last, vec![first; 10_000 * usize::from(first - b'a' + 1)]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn faults_are_counted_and_named() {
        let fault = |place: &str| Fault::new(place, "is missing", "a value");
        let report = |faults: Vec<Fault>| {
            let mut errors = Vec::new();
            let exit = report_faults(&Faults(faults), &mut errors).unwrap();
            assert_eq!(exit, Exit::BadSettings);
            String::from_utf8(errors).unwrap()
        };
        assert_eq!(
            report(vec![fault("a.b")]),
            "1 fault in the settings:\n  a.b: is missing (expected: a value)\n"
        );
        assert!(report(vec![fault("a.b"), fault("c.d")]).starts_with("2 faults in the settings:\n"));
    }
}
