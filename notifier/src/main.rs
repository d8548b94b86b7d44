//! The program: arguments, exit code, and the runtime that everything else lives in.
#![forbid(unsafe_code)]

use quietline_notifier::app::keys::{self, KeyPlaces};
use quietline_notifier::command::{self, Command, Exit, PushOnce, RotateKey};
use quietline_notifier::{app, settings};
use quietline_shared::service::{heap, hygiene};
use std::alloc::System;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use zeroizing_alloc::ZeroAlloc;

/// What is given back is overwritten first: no buffer, no request, no entry of an index outlives its use.
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    heap::give_back_large_blocks();
    let command = match command::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(help) => help.exit(),
    };
    let (mut out, mut errors) = (io::stdout(), io::stderr());
    if let Err(fault) = hygiene::keep_memory_private() {
        let _ = writeln!(errors, "warning: memory cannot be kept private: {fault}");
    }
    let end = match command {
        Command::Run { settings } => run(&settings, &mut errors),
        Command::Check { settings } => check(&settings, &mut out, &mut errors),
        Command::Keygen(wish) => command::keygen(&wish, &mut out, &mut errors),
        Command::Audit { settings, json } => audit(&settings, json, &mut out, &mut errors),
        Command::RotateKey(wish) => rotate_key(&wish, &mut out, &mut errors),
        Command::Push(wish) => push(&wish, &mut out, &mut errors),
    };
    // An output that is closed leaves nobody to tell.
    end.unwrap_or(Exit::Failed).into()
}

fn audit(path: &Path, json: bool, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    let view = match settings::read(path) {
        Ok((settings, _)) => app::View::of(&settings),
        Err(faults) => return command::report_faults(&faults, errors),
    };
    let audit = runtime()?.block_on(app::audit_now(&view));
    command::report_audit(&audit, json, out)
}

fn check(settings: &Path, out: &mut (dyn Write + Send), errors: &mut dyn Write) -> io::Result<Exit> {
    let exit = command::check(settings, settings::read, out, errors)?;
    if exit == Exit::Done
        && let Ok(places) = KeyPlaces::read(settings, None)
    {
        runtime()?.block_on(keys::report(&places, out))?;
    }
    Ok(exit)
}

fn rotate_key(wish: &RotateKey, out: &mut (dyn Write + Send), errors: &mut dyn Write) -> io::Result<Exit> {
    let places = match KeyPlaces::read(&wish.settings, wish.key_file.clone()) {
        Ok(places) => places,
        Err(faults) => return command::report_faults(&faults, errors),
    };
    match runtime()?.block_on(keys::rotate(&places, out)) {
        Ok(()) => Ok(Exit::Done),
        Err(fault) => {
            writeln!(errors, "the exchange has not ended: {fault}")?;
            Ok(if fault.is_of_settings() {
                Exit::BadSettings
            } else {
                Exit::Failed
            })
        }
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn push(wish: &PushOnce, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    let dispatch = match settings::read(&wish.settings) {
        Ok((settings, _)) => settings.dispatch,
        Err(faults) => return command::report_faults(&faults, errors),
    };
    let token = match command::read_token(wish, &mut io::stdin()) {
        Ok(Some(token)) => token,
        Ok(None) => {
            writeln!(errors, "the token is none of {}", wish.service.name())?;
            return Ok(Exit::Failed);
        }
        Err(fault) => {
            writeln!(errors, "the token cannot be read: {}", fault.kind())?;
            return Ok(Exit::Failed);
        }
    };
    match runtime()?.block_on(app::push_once(&dispatch, wish.service, &token)) {
        Ok(outcome) => command::report_push(wish.service, &outcome, out),
        Err(fault) => {
            writeln!(errors, "{fault}")?;
            Ok(Exit::BadSettings)
        }
    }
}

fn run(path: &Path, errors: &mut dyn Write) -> io::Result<Exit> {
    let settings = match settings::read(path) {
        Ok((settings, warnings)) => {
            command::report_warnings(&warnings, errors)?;
            settings
        }
        Err(faults) => return command::report_faults(&faults, errors),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(hygiene::wipe_stack)
        .build()?;
    match runtime.block_on(app::run(settings, path)) {
        Ok(()) => Ok(Exit::Done),
        Err(fault) => {
            writeln!(errors, "quietline-notifier does not start: {fault}")?;
            Ok(if fault.is_of_settings() {
                Exit::BadSettings
            } else {
                Exit::Failed
            })
        }
    }
}
