//! The program: arguments, exit code, and the runtime in which its operator is served. Packets have threads of their own.
#![forbid(unsafe_code)]

use quietline_shared::service::command::Exit;
use quietline_shared::service::{heap, hygiene};
use quietline_turn::app;
use quietline_turn::command::{self, Command};
use quietline_turn::machine::Machine;
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
    // An output that is closed leaves nobody to tell.
    obey(command, &mut out, &mut errors).unwrap_or(Exit::Failed).into()
}

fn obey(command: Command, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    if let Err(fault) = hygiene::keep_memory_private() {
        writeln!(errors, "warning: memory cannot be kept private: {fault}")?;
    }
    let machine = match Machine::look() {
        Ok(machine) => machine,
        Err(fault) => {
            writeln!(
                errors,
                "warning: the addresses of this machine cannot be found: {fault}"
            )?;
            Machine::default()
        }
    };
    match command {
        Command::Run(file) => run(&file.settings, machine, errors),
        Command::Check(wish) => command::check(&wish, &machine, out, errors),
        Command::Audit(wish) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(command::audit(&wish, &machine, out, errors))
        }
        Command::Credentials(wish) => command::credentials(&wish, &machine, out, errors),
        Command::Setup(wish) => command::setup(&wish, out, errors),
    }
}

fn run(path: &Path, machine: Machine, errors: &mut dyn Write) -> io::Result<Exit> {
    let settings = match command::read_settings(path, &machine, errors)? {
        Ok(settings) => settings,
        Err(exit) => return Ok(exit),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(app::run(settings, path, machine)) {
        Ok(()) => Ok(Exit::Done),
        Err(fault) => {
            writeln!(errors, "quietline-turn: {fault}")?;
            Ok(Exit::Failed)
        }
    }
}
