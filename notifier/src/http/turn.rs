//! `POST /turn/credentials`: relays for one call, with credentials that name nobody.
//!
//! In: a body, the time. Out: an [`Answer`], as long for everybody. Never: knows who asks, keeps what it gave, or makes more than the
//! settings allow, however many ask.

use super::limits::{CommonLimit, Wait};
use super::subscribe::{Answer, BAD_INPUT, Operation, SERVICE_NOT_AVAILABLE, count};
use axum::http::StatusCode;
use notifier_core::turn::{Chance, Epochs, Offer, OfferFault, Relay, RelayUrl, RequestFault, request_fault};
use quietline_shared::service::config::SettingsFile;
use quietline_shared::timed::{MIN_TIMED_SECRET, TimedAlgorithm, TimedSecret};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// `[turn]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnSettings {
    /// Credentials given out within one epoch end at the same second. 1 min to 1 day, default 1 h.
    #[serde(default = "one_hour", deserialize_with = "minute_to_day")]
    pub epoch: Duration,
    /// Requests of one epoch that get credentials. Default 500,000.
    #[serde(default = "default_per_epoch")]
    pub per_epoch: NonZeroU64,
    /// Requests a second of all sources. Default 500.
    #[serde(default = "default_rate")]
    pub rate: NonZeroU32,
    /// Requests at once. Default 2,000.
    #[serde(default = "default_burst")]
    pub burst: NonZeroU32,
    #[serde(default)]
    pub server: Vec<RelaySettings>,
}

/// `[[turn.server]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelaySettings {
    /// Whose relay it is: callers get relays of two operators where there are two, and are told these names. At most 64 bytes.
    pub operator: String,
    /// One to eight, as browsers take them.
    pub urls: Vec<String>,
    /// The secret that the relay shares with us, text of at least 32 bytes.
    pub secret_file: PathBuf,
    /// As in the relay's `[[auth.timed]]`. Default "sha1".
    #[serde(default)]
    pub algorithm: TimedAlgorithm,
    /// How long new calls may begin with a credential, at least; the rest of its epoch comes to it. With that less than the relay's
    /// `timed_max_life`. 1 min to 7 days, default 6 h.
    #[serde(default = "six_hours", deserialize_with = "minute_to_week")]
    pub lifetime: Duration,
}

/// What callers are told, and how many of them.
pub struct TurnOffer {
    relays: Offer,
    per_epoch: u64,
    limit: CommonLimit,
}

/// The section `[turn]` with its secrets. `None` if there is none, or if it has faults, which are collected.
pub fn read(file: &mut SettingsFile) -> Option<TurnOffer> {
    let secrets: Vec<_> = file
        .paths("turn.server", "secret_file")
        .into_iter()
        .map(|(place, path)| file.secret_text(&place, &path?, SECRET_LIMIT))
        .collect();
    let settings = file.optional_section::<TurnSettings>("turn")?;
    let mut relays = Vec::new();
    for (number, (server, secret)) in settings.server.iter().zip(secrets).enumerate() {
        let place = |key: &str| format!("turn.server[{number}].{key}");
        if server.operator.is_empty() || server.operator.len() > LONGEST_OPERATOR {
            file.fault(&place("operator"), "is too short or too long", "1 to 64 bytes");
        }
        let mut urls = Vec::new();
        for (number, url) in server.urls.iter().enumerate() {
            match RelayUrl::parse(url) {
                Ok(url) => urls.push(url),
                Err(fault) => file.fault(
                    &format!("{}[{number}]", place("urls")),
                    fault.to_string(),
                    "such as turn:turn.example.org:3478?transport=udp",
                ),
            }
        }
        let Some(secret) = secret else { continue };
        match TimedSecret::new(server.algorithm, secret) {
            Ok(secret) => relays.push(Relay {
                operator: server.operator.clone(),
                urls,
                secret,
                lifetime: server.lifetime,
            }),
            Err(fault) => file.fault(
                &place("secret_file"),
                fault.to_string(),
                format!("at least {MIN_TIMED_SECRET} random bytes, as the relay's setup makes them"),
            ),
        }
    }
    if relays.len() < settings.server.len() {
        return None;
    }
    match Offer::new(relays, settings.epoch) {
        Ok(relays) => Some(TurnOffer {
            relays,
            per_epoch: settings.per_epoch.get(),
            limit: CommonLimit::new(settings.rate, settings.burst, Instant::now()),
        }),
        Err(fault) => {
            let expected = match fault {
                OfferFault::Urls => "1 to 8 URLs each",
                OfferFault::NoRelay | OfferFault::TooManyRelays => "1 to 64 [[turn.server]], or no [turn]",
            };
            file.fault("turn.server", fault.to_string(), expected);
            None
        }
    }
}

/// Where requests for credentials are answered. The offer may change while we run.
pub struct TurnDesk {
    offer: watch::Receiver<Option<Arc<TurnOffer>>>,
    epochs: Mutex<Epochs>,
}

impl TurnDesk {
    pub fn new(offer: watch::Receiver<Option<Arc<TurnOffer>>>) -> Self {
        Self {
            offer,
            epochs: Mutex::default(),
        }
    }

    pub fn is_offered(&self) -> bool {
        self.offer.borrow().is_some()
    }

    pub fn answer(&self, body: &[u8], unix_seconds: u64) -> Answer {
        let offer = self.offer.borrow().clone();
        let given = offer.as_ref().ok_or(Refused::Withdrawn);
        match given.and_then(|offer| self.given(offer, body, unix_seconds)) {
            Ok(json) => {
                count(Operation::Credentials, "given");
                Answer {
                    code: StatusCode::OK,
                    json,
                }
            }
            Err(refused) => refused.answer(offer.as_deref()),
        }
    }

    /// A body that is longer than any request.
    pub fn refuse_too_large(&self) -> Answer {
        Refused::TooLarge.answer(self.offer.borrow().as_deref())
    }

    fn given(&self, offer: &TurnOffer, body: &[u8], unix_seconds: u64) -> Result<String, Refused> {
        request_fault(body).map_or(Ok(()), |fault| Err(Refused::Request(fault)))?;
        offer.limit.take(Instant::now()).map_err(Refused::TooMany)?;
        let mut chance = Chance {
            choice: [0; 8],
            names: [[0; 16]; 2],
        };
        getrandom::fill(&mut chance.choice).map_err(|_| Refused::NoRandomness)?;
        getrandom::fill(chance.names.as_flattened_mut()).map_err(|_| Refused::NoRandomness)?;
        let epoch = offer.relays.epoch_at(unix_seconds);
        // Two numbers are whole even if a thread ended while it held them.
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if !epochs.take(epoch, offer.per_epoch) {
            return Err(Refused::EpochFull(offer.relays.epoch_left(unix_seconds)));
        }
        drop(epochs);
        Ok(offer.relays.answer(unix_seconds, &chance))
    }
}

/// Why a request got no credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Request(RequestFault),
    TooLarge,
    TooMany(Wait),
    /// Seconds until the next one.
    EpochFull(u64),
    NoRandomness,
    /// The section was taken out of the settings a moment ago.
    Withdrawn,
}

impl Refused {
    fn answer(self, offer: Option<&TurnOffer>) -> Answer {
        let busy = "No credentials at the moment: come again later";
        let (label, message, wait) = match self {
            Self::Request(RequestFault::NoBody) => ("no_body", "Invalid request: request body missing", None),
            Self::Request(RequestFault::OtherBody) => ("other_body", "Invalid request: the body is not {}", None),
            Self::TooLarge => ("too_large", "Invalid request: request too large", None),
            Self::TooMany(Wait(wait)) => ("too_many", busy, Some(wait.as_secs().saturating_add(1))),
            Self::EpochFull(seconds) => ("epoch_full", busy, Some(seconds)),
            Self::NoRandomness => ("no_randomness", busy, Some(1)),
            Self::Withdrawn => ("withdrawn", "No credentials are given out here", Some(3_600)),
        };
        count(Operation::Credentials, label);
        let (code, json) = match wait {
            None => (StatusCode::BAD_REQUEST, json!({"error": BAD_INPUT, "message": message})),
            Some(seconds) => (
                StatusCode::SERVICE_UNAVAILABLE,
                json!({"error": SERVICE_NOT_AVAILABLE, "message": message, "retry_after": seconds}),
            ),
        };
        let json = json.to_string();
        Answer {
            code,
            json: match offer {
                Some(offer) => offer.relays.padded(json),
                None => json,
            },
        }
    }
}

fn between<'de, D: Deserializer<'de>>(deserializer: D, longest: Duration, bounds: &str) -> Result<Duration, D::Error> {
    let time: Duration = humantime_serde::deserialize(deserializer)?;
    let allowed = MINUTE..=longest;
    allowed
        .contains(&time)
        .then_some(time)
        .ok_or_else(|| serde::de::Error::custom(bounds))
}

fn minute_to_day<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    between(deserializer, DAY, "from \"1m\" to \"1d\"")
}

fn minute_to_week<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    between(deserializer, 7 * DAY, "from \"1m\" to \"7d\"")
}

const fn one_hour() -> Duration {
    Duration::from_secs(3_600)
}

const fn six_hours() -> Duration {
    Duration::from_secs(6 * 3_600)
}

const fn default_per_epoch() -> NonZeroU64 {
    NonZeroU64::new(500_000).expect("500,000 is not zero")
}

const fn default_rate() -> NonZeroU32 {
    NonZeroU32::new(500).expect("500 is not zero")
}

const fn default_burst() -> NonZeroU32 {
    NonZeroU32::new(2_000).expect("2,000 is not zero")
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Bytes of an operator's name.
const LONGEST_OPERATOR: usize = 64;
/// Bytes of a secret file.
const SECRET_LIMIT: usize = 4_096;

#[cfg(test)]
#[path = "turn/tests.rs"]
mod tests;
