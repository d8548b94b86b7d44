//! The section `[watcher]`.
//!
//! In: settings as written. Out: `Settings`, each within its bounds. Never: reads the files it names.

use super::link::LinkSettings;
use notifier_core::omq::Address;
use notifier_core::watch::WatchSettings;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// X25519 key of the links to oxend and the storage nodes.
    pub key_file: PathBuf,
    /// 1 to 100, default 3.
    #[serde(default = "three", deserialize_with = "nodes_per_swarm")]
    pub nodes_per_swarm: usize,
    /// The last good node list, sealed under `store.row_key_file`.
    pub node_list_file: PathBuf,
    /// At least 10 s, default 10 min.
    #[serde(default = "ten_minutes", deserialize_with = "refresh_interval")]
    pub refresh_interval: Duration,
    /// Share of the nodes, 0 to 1, default 0.2.
    #[serde(default = "a_fifth", deserialize_with = "share")]
    pub max_list_change: f64,
    /// 1 s to 60 min: a storage server forgets after 65. Default 45 min.
    #[serde(default = "minutes_45", deserialize_with = "renewal")]
    pub renew_after_min: Duration,
    /// As `renew_after_min`; default 55 min.
    #[serde(default = "minutes_55", deserialize_with = "renewal")]
    pub renew_after_max: Duration,
    /// 1 to 500, default 500.
    #[serde(default = "five_hundred", deserialize_with = "records_per_request")]
    pub records_per_request: usize,
    /// 100 ms to 10 min, default 10 s.
    #[serde(default = "ten_seconds", deserialize_with = "patience")]
    pub ping_after: Duration,
    /// 100 ms to 10 min, default 10 s.
    #[serde(default = "ten_seconds", deserialize_with = "patience")]
    pub dead_after: Duration,
    /// 100 ms to 10 min, default 10 s.
    #[serde(default = "ten_seconds", deserialize_with = "patience")]
    pub dial_timeout: Duration,
    /// Default 400.
    #[serde(default = "four_hundred")]
    pub dials_per_second: NonZeroU32,
    #[serde(default)]
    pub oxend: Vec<OxendSettings>,
    #[serde(default)]
    pub seed: Vec<SeedSettings>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OxendSettings {
    /// `ipc://PATH`, `tcp://HOST:PORT`, `curve://HOST:PORT/KEY` or `ipc+curve://PATH/KEY`.
    #[serde(deserialize_with = "address")]
    pub address: Address,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedSettings {
    /// `https://HOST[:PORT][/PATH]`; the path is `/json_rpc` if it is left out.
    pub url: String,
    /// PEM; only this certificate is accepted. Without it the public roots decide.
    pub certificate_file: Option<PathBuf>,
}

impl Settings {
    /// What no single setting shows: pairs of a setting's name and what is expected.
    pub fn faults(&self) -> Vec<(&'static str, &'static str)> {
        let mut faults = Vec::new();
        if self.renew_after_max < self.renew_after_min {
            faults.push(("renew_after_max", "at least renew_after_min"));
        }
        if self.oxend.is_empty() && self.seed.is_empty() {
            faults.push(("oxend", "at least one [[watcher.oxend]] or [[watcher.seed]]"));
        }
        faults
    }

    pub fn watch(&self) -> WatchSettings {
        WatchSettings {
            nodes_per_swarm: self.nodes_per_swarm,
            records_per_request: self.records_per_request,
            renew_after_min: self.renew_after_min,
            renew_after_max: self.renew_after_max,
            dials_per_second: self.dials_per_second.get(),
            ..WatchSettings::default()
        }
    }

    pub fn link(&self) -> LinkSettings {
        LinkSettings {
            ping_after: self.ping_after,
            dead_after: self.dead_after,
            dial_timeout: self.dial_timeout,
            ..LinkSettings::default()
        }
    }
}

fn within<'de, D, T>(deserializer: D, from: T, to: T, expected: &str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + PartialOrd,
{
    let value = T::deserialize(deserializer)?;
    if value >= from && value <= to {
        Ok(value)
    } else {
        Err(D::Error::custom(format_args!("expected {expected}")))
    }
}

fn duration<'de, D: Deserializer<'de>>(
    deserializer: D,
    from: Duration,
    to: Duration,
    expected: &str,
) -> Result<Duration, D::Error> {
    let value: Duration = humantime_serde::deserialize(deserializer)?;
    if (from..=to).contains(&value) {
        Ok(value)
    } else {
        Err(D::Error::custom(format_args!("expected {expected}")))
    }
}

fn nodes_per_swarm<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    within(deserializer, 1, 100, "a number from 1 to 100")
}

fn records_per_request<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    within(deserializer, 1, 500, "a number from 1 to 500")
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    within(deserializer, 0.0, 1.0, "a number from 0 to 1")
}

fn refresh_interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    duration(
        deserializer,
        Duration::from_secs(10),
        Duration::from_secs(86_400),
        "10 s to a day",
    )
}

fn renewal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    duration(
        deserializer,
        Duration::from_secs(1),
        Duration::from_secs(3600),
        "1 s to 60 min",
    )
}

fn patience<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    duration(
        deserializer,
        Duration::from_millis(100),
        Duration::from_secs(600),
        "100 ms to 10 min",
    )
}

/// The text may hold a host name, so an error shows only what is wrong with it.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

const fn three() -> usize {
    3
}

const fn five_hundred() -> usize {
    500
}

const fn four_hundred() -> NonZeroU32 {
    NonZeroU32::new(400).expect("400 is not 0")
}

const fn a_fifth() -> f64 {
    0.2
}

const fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

const fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

const fn minutes_45() -> Duration {
    Duration::from_secs(45 * 60)
}

const fn minutes_55() -> Duration {
    Duration::from_secs(55 * 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::service::config::SettingsFile;

    fn read(text: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notifier.toml");
        std::fs::write(&path, text).unwrap();
        let mut file = SettingsFile::read(&path).unwrap();
        let settings = file.section::<Settings>("watcher");
        settings.ok_or_else(|| file.finish().unwrap_err().to_string())
    }

    #[test]
    fn the_example_settings_are_the_defaults() {
        let example = include_str!("../../../deploy/notifier.toml");
        let example = read(example).unwrap();
        let least = read(concat!(
            "[watcher]\nkey_file = \"k\"\nnode_list_file = \"n\"\n",
            "[[watcher.oxend]]\naddress = \"ipc:///x\"\n"
        ))
        .unwrap();
        assert_eq!(example.faults(), []);
        let shown = |settings: &Settings| {
            (
                (
                    settings.nodes_per_swarm,
                    settings.refresh_interval,
                    settings.max_list_change,
                ),
                (
                    settings.renew_after_min,
                    settings.renew_after_max,
                    settings.records_per_request,
                ),
                (
                    settings.ping_after,
                    settings.dead_after,
                    settings.dial_timeout,
                    settings.dials_per_second,
                ),
            )
        };
        assert_eq!(shown(&example), shown(&least));
        assert_eq!(example.oxend.len(), 1);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let head = "[watcher]\nkey_file = \"k\"\nnode_list_file = \"n\"\n";
        for line in [
            "nodes_per_swarm = 0",
            "records_per_request = 501",
            "max_list_change = 1.5",
            "renew_after_max = \"61m\"",
            "dials_per_second = 0",
            "dial_timeout = \"1ms\"",
            "unknown = 1",
            "[[watcher.oxend]]\naddress = \"http://x\"",
        ] {
            assert!(read(&format!("{head}{line}\n")).is_err(), "{line}");
        }
        assert_eq!(read(head).unwrap().faults().len(), 1);
    }
}
