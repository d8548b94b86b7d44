//! A timed credential, and the ICE servers that a browser takes.
//!
//! In: settings with a timed secret. Out: JSON. Never: names anybody: a username is a time and 128 random bits.

use super::read_settings;
use crate::machine::Machine;
use crate::settings::Settings;
use clap::Args;
use humantime_serde::re::humantime::{format_duration, parse_duration};
use quietline_shared::service::command::Exit;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

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
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        writeln!(errors, "the operating system gives no random bytes")?;
        return Ok(Exit::Failed);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let expiry = now.unwrap_or_default().saturating_add(life).as_secs();
    let username = format!("{expiry}:{}", hex::encode(random));
    let Some(password) = settings.credentials.timed_password(username.as_bytes()) else {
        writeln!(
            errors,
            "these settings have users and no timed secret: clients use a user's name and password, with the URLs that check prints"
        )?;
        return Ok(Exit::Failed);
    };
    let servers = serde_json::json!([{
        "urls": urls(&settings),
        "username": username,
        "credential": password.expose(),
    }]);
    writeln!(out, "{}", serde_json::json!({ "iceServers": servers }))?;
    Ok(Exit::Done)
}

/// Where clients find us, the fastest way first.
pub fn urls(settings: &Settings) -> Vec<String> {
    let ports = &settings.fixed.listen.ports;
    let Some(port) = ports.first() else {
        return Vec::new();
    };
    let hosts = hosts(settings);
    let mut urls = Vec::new();
    for transport in ["udp", "tcp"] {
        urls.extend(
            hosts
                .iter()
                .map(|host| format!("turn:{host}:{port}?transport={transport}")),
        );
    }
    if settings.certificate.is_some() {
        // What firewalls let through, if it is there.
        let port = [443, 5349].iter().find(|known| ports.contains(known)).unwrap_or(port);
        urls.extend(hosts.iter().map(|host| format!("turns:{host}:{port}?transport=tcp")));
    }
    urls
}

/// The name; without one the addresses by which the world knows those that we listen and relay on; or all that we listen on.
fn hosts(settings: &Settings) -> Vec<String> {
    if let Some(name) = &settings.fixed.listen.name {
        return vec![name.clone()];
    }
    let relays = || (0..).map_while(|number| settings.place.relays.get(number));
    let is_listened_on = |address: IpAddr| settings.place.listeners.iter().any(|listener| listener.ip() == address);
    let mut addresses: Vec<IpAddr> = relays()
        .filter(|relay| is_listened_on(relay.bind))
        .map(|relay| relay.advertised)
        .collect();
    if addresses.is_empty() {
        addresses = settings.place.listeners.iter().map(|listener| listener.ip()).collect();
        addresses.dedup();
    }
    let host = |address: &IpAddr| match address {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    addresses.iter().map(host).collect()
}
