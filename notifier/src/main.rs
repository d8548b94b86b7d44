//! The program: arguments, exit code, and the runtime that everything else lives in.
#![forbid(unsafe_code)]

use quietline_notifier::command::{self, Command, Exit};
use quietline_notifier::{app, settings};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match command::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(help) => help.exit(),
    };
    let (mut out, mut errors) = (io::stdout(), io::stderr());
    let end = match command {
        Command::Run { settings } => run(&settings, &mut errors),
        Command::Check { settings } => command::check(&settings, settings::read, &mut out, &mut errors),
        Command::Keygen(wish) => command::keygen(&wish, &mut out, &mut errors),
    };
    // An output that is closed leaves nobody to tell.
    end.unwrap_or(Exit::Failed).into()
}

fn run(path: &Path, errors: &mut dyn Write) -> io::Result<Exit> {
    let settings = match settings::read(path) {
        Ok((settings, warnings)) => {
            command::report_warnings(&warnings, errors)?;
            settings
        }
        Err(faults) => return command::report_faults(&faults, errors),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match runtime.block_on(app::run(settings)) {
        Ok(()) => Ok(Exit::Done),
        Err(fault) => {
            writeln!(errors, "quietline-notifier does not start: {fault}")?;
            Ok(Exit::Failed)
        }
    }
}
