//! The settings file: one section a stage, all faults at once.
//!
//! In: a path. Out: [`Settings`] with every key read, or every fault. Never: prints what a secret file holds.

use crate::dispatch::{Apns, ApnsSettings, DispatchSettings, Fcm, Huawei, SettingsFault, Webpush};
use crate::keyring::Keyring;
use crate::keyring::file::MOST_KEYS;
use crate::outbox::OutboxSettings;
use crate::store::StoreSettings;
use crate::watcher::nodes::SeedSource;
use crate::{http, store, watcher};
use notifier_core::account::{Namespace, Service};
use notifier_core::confirm::ConfirmSettings;
use notifier_core::fanout::DedupeSettings;
use notifier_core::seal::{Padding, SealSettings};
use quietline_shared::redact::Secret;
use quietline_shared::service::audit::PublicationSettings;
use quietline_shared::service::config::{Faults, SettingsFile, Warnings};
use quietline_shared::service::lifecycle;
use quietline_shared::service::telemetry::{LogSettings, OpsSettings};
use serde::Deserialize;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything `run` needs, checked.
pub struct Settings {
    pub http: http::Settings,
    /// `None`: no relays are told to anybody.
    pub turn: Option<http::TurnOffer>,
    pub onion_key: Secret<[u8; 32]>,
    pub store: StoreSettings,
    pub lookup_key: store::LookupKey,
    pub row_key_file: PathBuf,
    pub row_keys: Keyring,
    pub watcher: watcher::Settings,
    pub seeds: Vec<SeedSource>,
    pub link_key: Secret<[u8; 32]>,
    pub event: EventSettings,
    pub fanout: DedupeSettings,
    pub max_devices: usize,
    pub seal: SealSettings,
    pub outbox: OutboxSettings,
    pub dispatch: DispatchSettings,
    pub ops: OpsSettings,
    pub transparency: PublicationSettings,
    pub log: LogSettings,
    pub lifecycle: lifecycle::Settings,
}

/// `[event]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventSettings {
    /// Notifications a second that one node may send. Default 20,000.
    pub node_rate: NonZeroU32,
    /// And at once. Default 60,000.
    pub node_burst: NonZeroU32,
    /// How long a message that does not prove itself waits for a second node. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub hold_for: Duration,
    /// How many may wait. Default 10,000.
    pub hold_max: usize,
}

impl Default for EventSettings {
    fn default() -> Self {
        let confirm = ConfirmSettings::default();
        Self {
            node_rate: NonZeroU32::new(20_000).expect("not zero"),
            node_burst: NonZeroU32::new(60_000).expect("not zero"),
            hold_for: confirm.hold_for,
            hold_max: confirm.hold_max,
        }
    }
}

impl EventSettings {
    pub fn confirm(&self) -> ConfirmSettings {
        ConfirmSettings {
            hold_for: self.hold_for,
            hold_max: self.hold_max,
            ..ConfirmSettings::default()
        }
    }
}

/// `[fanout]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FanoutSettings {
    #[serde(with = "humantime_serde")]
    dedupe_window: Duration,
    dedupe_max: usize,
    max_devices: usize,
}

impl Default for FanoutSettings {
    fn default() -> Self {
        let dedupe = DedupeSettings::default();
        Self {
            dedupe_window: dedupe.window,
            dedupe_max: dedupe.max,
            max_devices: 12_000_000,
        }
    }
}

/// `[seal]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SealSection {
    padding: PaddingName,
    high_priority_namespaces: Vec<i16>,
    calls_first: bool,
    skip_typing: bool,
    skip_too_long_config: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PaddingName {
    TwoClasses,
    Upstream,
}

impl Default for SealSection {
    fn default() -> Self {
        Self {
            padding: PaddingName::TwoClasses,
            high_priority_namespaces: vec![0, 11],
            calls_first: true,
            skip_typing: true,
            skip_too_long_config: true,
        }
    }
}

/// Reads the file and every key and certificate it names.
pub fn read(path: &Path) -> Result<(Settings, Warnings), Faults> {
    let mut file = SettingsFile::read(path)?;
    let http = file.section::<http::Settings>("http");
    let onion_key = key(&mut file, "http.onion_key_file");
    let turn = http::read_turn(&mut file);
    let store = file.section::<StoreSettings>("store");
    let lookup_key = key(&mut file, "store.lookup_key_file");
    let row_keys = row_keys(&mut file);
    let watcher = file.section::<watcher::Settings>("watcher");
    let link_key = key(&mut file, "watcher.key_file");
    let event = file.section::<EventSettings>("event");
    let fanout = file.section::<FanoutSettings>("fanout");
    let seal = file.section::<SealSection>("seal");
    let outbox = file.section::<OutboxSettings>("outbox");
    let dispatch = file.section::<DispatchSettings>("dispatch");
    let ops = OpsSettings::read(&mut file);
    let transparency = PublicationSettings::read(&mut file);
    let log = file.section::<LogSettings>("log");
    let lifecycle = file.section::<lifecycle::Settings>("lifecycle");
    let mut seeds = Vec::new();
    if let Some(watcher) = &watcher {
        for (setting, expected) in watcher.faults() {
            file.fault(&format!("watcher.{setting}"), "cannot work", expected);
        }
        for seed in &watcher.seed {
            match open_seed(seed) {
                Ok(seed) => seeds.push(seed),
                Err(problem) => file.fault(
                    "watcher.seed",
                    problem,
                    "an https:// URL, and a PEM file if it is pinned",
                ),
            }
        }
    }
    if let Some(dispatch) = &dispatch {
        for fault in provider_faults(dispatch) {
            let place = format!("dispatch.{}.{}", fault.service.name(), fault.setting);
            file.fault(&place, fault.fault.to_string(), "what deploy/notifier.toml shows");
        }
    }
    for (place, is_in_time) in [
        (
            "store.erase_after",
            store.as_ref().is_none_or(StoreSettings::is_erased_in_time),
        ),
        (
            "outbox.erase_after",
            outbox.as_ref().is_none_or(OutboxSettings::is_erased_in_time),
        ),
    ] {
        if !is_in_time {
            file.fault(
                place,
                "is too long",
                "at most \"50s\": what is deleted is gone within a minute",
            );
        }
    }
    let warnings = file.finish()?;
    // `finish` reports a fault for each section and key that is missing, so from here on all are there.
    let all = (|| {
        let (fanout, seal) = (fanout?, seal?);
        let (row_key_file, row_keys) = row_keys?;
        Some(Settings {
            http: http?,
            turn,
            onion_key: onion_key?,
            store: store?,
            lookup_key: store::LookupKey::new(lookup_key?),
            row_key_file,
            row_keys,
            watcher: watcher?,
            seeds,
            link_key: link_key?,
            event: event?,
            max_devices: fanout.max_devices,
            fanout: DedupeSettings {
                window: fanout.dedupe_window,
                max: fanout.dedupe_max,
            },
            seal: SealSettings {
                padding: match seal.padding {
                    PaddingName::TwoClasses => Padding::TwoClasses,
                    PaddingName::Upstream => Padding::Upstream,
                },
                high_priority_namespaces: seal.high_priority_namespaces.into_iter().map(Namespace).collect(),
                calls_first: seal.calls_first,
                skip_typing: seal.skip_typing,
                skip_too_long_config: seal.skip_too_long_config,
            },
            outbox: outbox?,
            dispatch: dispatch?,
            ops: ops?,
            transparency: transparency?,
            log: log?,
            lifecycle: lifecycle?,
        })
    })();
    Ok((all.expect("a section that is missing is a fault"), warnings))
}

/// Read even if something else is wrong with its section, so that one reading names all faults. A setting that is missing is
/// its section's fault.
fn key(file: &mut SettingsFile, place: &str) -> Option<Secret<[u8; 32]>> {
    let path = file.path(place)?;
    file.key_32(place, &path)
}

/// The file and the ring in it. Without the setting the file stands beside that of the lookup key.
fn row_keys(file: &mut SettingsFile) -> Option<(PathBuf, Keyring)> {
    let place = "store.row_key_file";
    let beside = |file: &SettingsFile| Some(store::row_key_beside(&file.path("store.lookup_key_file")?));
    let path = file.path(place).or_else(|| beside(file))?;
    let keys = file.keys_32(place, &path, MOST_KEYS)?;
    let ring = Keyring::new(keys);
    if ring.is_none() {
        file.fault(place, "holds a key twice", "each key once");
    }
    Some((path, ring?))
}

fn open_seed(seed: &watcher::SeedSettings) -> Result<SeedSource, String> {
    let pinned = match &seed.certificate_file {
        Some(path) => Some(std::fs::read(path).map_err(|_| "its certificate_file cannot be read".to_owned())?),
        None => None,
    };
    SeedSource::new(&seed.url, pinned.as_deref()).map_err(|fault| fault.to_string())
}

/// Makes every provider once, so that a key that cannot be used is told before anything starts.
fn provider_faults(dispatch: &DispatchSettings) -> Vec<SettingsFault> {
    let apns = |service, section: &Option<ApnsSettings>| {
        section
            .as_ref()
            .and_then(|section| Apns::new(service, section, dispatch.timeout).err())
    };
    let firebase = dispatch
        .firebase
        .as_ref()
        .and_then(|section| Fcm::new(section, dispatch.timeout).err());
    let huawei = dispatch
        .huawei
        .as_ref()
        .and_then(|section| Huawei::new(section, dispatch.timeout).err());
    let webpush = dispatch
        .webpush
        .as_ref()
        .and_then(|section| Webpush::new(section).err());
    [
        apns(Service::Apns, &dispatch.apns),
        apns(Service::ApnsSandbox, &dispatch.apns_sandbox),
        firebase,
        huawei,
        webpush,
    ]
    .into_iter()
    .flatten()
    .collect()
}
