//! What the commands of both servers have in common: how they end, what they report, how they make a secret.
//!
//! In: faults, warnings, the place of a secret. Out: lines for the operator, an exit code, a new file. Never: prints a secret, or writes
//! over a file.

use super::audit::Audit;
use super::audit::process::Process;
use super::config::{Faults, Warnings};
use super::hygiene;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;

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
        Ok(file) => write_whole(file, contents, path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_whole(mut file: File, contents: &[u8], path: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::config::Fault;
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
