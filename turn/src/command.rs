//! What is asked on the command line, and the commands that need no running relay.
//!
//! In: arguments, a settings file, a folder. Out: what to run, or a report and an exit code. Never: writes over a file, or prints a
//! secret that is not asked for.

mod check;
mod credentials;
mod setup;

use crate::machine::Machine;
use crate::settings::{self, Settings};
pub use check::{Check, check};
use clap::{Args, Parser, Subcommand};
pub use credentials::{Credentials, credentials};
use quietline_shared::service::command::{Exit, report_audit, report_faults, report_warnings};
pub use setup::{Setup, setup};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Reads the arguments, the program's name first. The error prints itself and knows its exit code; help is such an error.
pub fn parse<A: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = A>) -> Result<Command, clap::Error> {
    CommandLine::try_parse_from(arguments).map(|line| line.command)
}

#[derive(Debug, Parser)]
#[command(name = "quietline-turn", version, about = "STUN and TURN relay for calls")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the relay until SIGTERM.
    Run(File),
    /// Read everything that run would read, look at the machine, and call through the relay: what is wrong, and what to do.
    Check(Check),
    /// Say what is held on this machine, how it is kept, and who would learn what. Changes nothing.
    Audit(Audit),
    /// Print ICE servers with a fresh timed credential, as a browser takes them.
    Credentials(Credentials),
    /// Make a settings file and a secret where there are none.
    Setup(Setup),
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The settings, TOML.
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The settings, TOML.
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,
    /// JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// What `run` starts with; faults are reported.
pub fn read_settings(path: &Path, machine: &Machine, errors: &mut dyn Write) -> io::Result<Result<Settings, Exit>> {
    match settings::read(path, machine) {
        Ok((settings, warnings)) => {
            report_warnings(&warnings, errors)?;
            Ok(Ok(settings))
        }
        Err(faults) => report_faults(&faults, errors).map(Err),
    }
}

/// Looks up what is held, by the relay that runs too.
pub async fn audit(wish: &Audit, machine: &Machine, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    match settings::read(&wish.settings, machine) {
        Ok((settings, _)) => {
            let view = crate::audit::View::of(&settings, &wish.settings);
            report_audit(&crate::audit::audit_now(&view).await, wish.json, out)
        }
        Err(faults) => report_faults(&faults, errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_a_command_and_its_files() {
        let parsed = |line: &str| parse(std::iter::once("quietline-turn").chain(line.split(' '))).ok();
        let file = |settings: &str| File {
            settings: settings.into(),
        };
        assert_eq!(parsed("run --settings a.toml"), Some(Command::Run(file("a.toml"))));
        let check = Check {
            settings: Some("a.toml".into()),
            settings_only: false,
            url: Vec::new(),
            stun: None,
            credentials: None,
        };
        assert_eq!(parsed("check --settings a.toml"), Some(Command::Check(check.clone())));
        let elsewhere = Check {
            url: vec!["turns:a.example:443".parse().unwrap()],
            ..check.clone()
        };
        assert_eq!(
            parsed("check --settings a.toml --url turns:a.example:443"),
            Some(Command::Check(elsewhere))
        );
        let seen = Check {
            stun: Some("b.example:3478".to_owned()),
            ..check.clone()
        };
        assert_eq!(
            parsed("check --settings a.toml --stun b.example:3478"),
            Some(Command::Check(seen))
        );
        let given = Check {
            settings: None,
            credentials: Some("answer.json".into()),
            ..check.clone()
        };
        assert_eq!(parsed("check --credentials answer.json"), Some(Command::Check(given)));
        let known = Check {
            credentials: Some("-".into()),
            ..check
        };
        assert_eq!(
            parsed("check --settings a.toml --credentials -"),
            Some(Command::Check(known))
        );
        let wish = Setup { folder: "etc".into() };
        assert_eq!(parsed("setup --folder etc"), Some(Command::Setup(wish)));
        let wish = |life| Credentials {
            settings: "a.toml".into(),
            life,
        };
        assert_eq!(
            parsed("credentials --settings a.toml"),
            Some(Command::Credentials(wish(None)))
        );
        let hour = std::time::Duration::from_secs(3_600);
        assert_eq!(
            parsed("credentials --settings a.toml --life 1h"),
            Some(Command::Credentials(wish(Some(hour))))
        );
        for wrong in [
            "",
            "run",
            "check",
            "check --settings a --url turn",
            "check --settings a --settings-only --stun b:1",
            "check --settings a --url turn:a.example --stun b:1",
            "check --credentials b --settings-only",
            "check --credentials b --url turn:a.example",
            "setup",
            "credentials",
            "credentials --settings a --life soon",
            "walk",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
        assert_eq!(parse(["quietline-turn", "run"]).unwrap_err().exit_code(), 2);
        assert_eq!(parse(["quietline-turn", "--help"]).unwrap_err().exit_code(), 0);
    }
}
