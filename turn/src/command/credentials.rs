//! A timed credential, and the ICE servers that a browser takes.
//!
//! In: settings with a timed secret. Out: JSON. Never: names anybody: a username is a time and 128 random bits.

use super::read_settings;
use crate::machine::Machine;
use crate::offer::{NoTicket, Ticket, expiry, urls};
use clap::Args;
use humantime_serde::re::humantime::{format_duration, parse_duration};
use quietline_shared::service::command::Exit;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The settings, TOML.
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,
    /// How long new calls may begin with it, such as 2h. Default: half of what the settings allow.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub life: Option<Duration>,
}

pub fn credentials(
    wish: &Credentials,
    machine: &Machine,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> io::Result<Exit> {
    let settings = match read_settings(&wish.settings, machine, errors)? {
        Ok(settings) => settings,
        Err(exit) => return Ok(exit),
    };
    let longest = settings.limits.timed_max_life;
    let life = wish.life.unwrap_or(longest / 2);
    if life > longest || life.as_secs() == 0 {
        writeln!(
            errors,
            "--life is from 1s to limits.timed_max_life, here {}",
            format_duration(longest)
        )?;
        return Ok(Exit::Failed);
    }
    let ticket = match Ticket::new(&settings.credentials, expiry(life)) {
        Ok(ticket) => ticket,
        Err(NoTicket::NoTimedSecret) => {
            writeln!(
                errors,
                "these settings have users and no timed secret: clients use a user's name and password, with the URLs that check prints"
            )?;
            return Ok(Exit::Failed);
        }
        Err(fault) => {
            writeln!(errors, "{fault}")?;
            return Ok(Exit::Failed);
        }
    };
    let servers = [ticket.ice_server(&urls(&settings))];
    writeln!(out, "{}", serde_json::json!({ "iceServers": servers }))?;
    Ok(Exit::Done)
}
