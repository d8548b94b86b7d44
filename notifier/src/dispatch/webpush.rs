//! Web Push: as many push servers as people chose, each with a lane of its own.
//!
//! In: a `Push` whose token is an endpoint with its reader's keys. Out: its `Outcome`. Never: lets one server delay another, contacts what the
//! guard refuses, or tells who is woken.

pub mod answer;
mod connections;
mod resolve;

pub use resolve::{Resolve, SystemResolver};

use super::answer::Answer;
use super::credential::{roots, tls};
use super::exchange::Meter;
use super::lane::Deliver;
use super::settings::{Fault, SettingsFault, WebpushSettings, in_range};
use super::{Push, unix_ms};
use crate::clock::SteadyClock;
use answer::{Reading, origin, parked, read};
use bytes::Bytes;
use connections::{Connections, Form};
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use notifier_core::account::{DeviceToken, Service};
use notifier_core::endpoint::{Origin, PushEndpoint};
use notifier_core::outbox::{Outcome, Refusal};
use notifier_core::seal::time_to_live;
use notifier_core::seeded::Seed;
use notifier_core::webpush::{
    Admission, Death, Message, OriginSettings, Origins, TOPIC, Ticket, VAPID_LIFE, VAPID_USE, Vapid, Verdict, encrypt,
    urgency,
};
use quietline_shared::redact::Secret;
use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The lane to all push servers.
pub struct Webpush {
    connections: Arc<Connections>,
    vapid: Vapid,
    /// By which origins live: their pauses are kept as times. Tokens and expiries are told to others and go by the wall clock.
    clock: SteadyClock,
    state: Mutex<State>,
    meter: Meter,
}

struct State {
    origins: Origins,
    /// Our tokens by origin, with the Unix second until which each is used.
    tokens: HashMap<Origin, (HeaderValue, i64), RandomState>,
    /// Bad requests in a row, by a hash of the endpoint.
    bad: HashMap<u64, u8>,
    most: usize,
    seed: Seed,
}

impl Webpush {
    /// Reads and checks the key; connects with the first push to each server.
    pub fn new(settings: &WebpushSettings) -> Result<Self, SettingsFault> {
        Self::open(settings, Arc::new(SystemResolver::default()))
    }

    pub fn open(settings: &WebpushSettings, resolver: Arc<dyn Resolve>) -> Result<Self, SettingsFault> {
        let named = |(setting, fault)| SettingsFault {
            service: Service::Webpush,
            setting,
            fault,
        };
        in_range(
            settings.concurrency,
            settings.connections,
            settings.rate,
            settings.jitter,
        )
        .map_err(named)?;
        let origin_lane = settings.origin_lane().map_err(named)?;
        let vapid = settings.vapid().map_err(named)?;
        let guard = settings.guard().map_err(named)?;
        let roots = roots(settings.ca_file.as_deref()).map_err(named)?;
        let tls = tls(roots, None, &[b"h2", b"http/1.1"]).map_err(|fault| named(("ca_file", fault)))?;
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).map_err(|_| named(("key_file", Fault::Unreadable)))?;
        let seed = Seed::new(seed);
        Ok(Self {
            connections: Connections::new(guard, resolver, tls, settings.connections),
            vapid,
            clock: SteadyClock::new(Instant::now(), unix_ms()),
            state: Mutex::new(State {
                origins: Origins::new(
                    OriginSettings {
                        origins: settings.origins,
                        lane: origin_lane,
                    },
                    seed,
                ),
                tokens: HashMap::default(),
                bad: HashMap::new(),
                most: settings.origins,
                seed,
            }),
            meter: Meter::new(Service::Webpush),
        })
    }

    /// Asks a push server whether an endpoint lives; nobody is woken.
    pub async fn check(&self, token: &DeviceToken, deadline: Instant) -> Outcome {
        let headers = Headers {
            ttl: 0,
            urgency: "very-low",
            topic: false,
        };
        let answer = self.bring(token, Message::Check, headers, deadline).await;
        metrics::counter!("dispatch_checks_total", "service" => "webpush", "reason" => answer.label).increment(1);
        answer.outcome
    }

    async fn bring(&self, token: &DeviceToken, message: Message<'_>, headers: Headers, deadline: Instant) -> Answer {
        let Some(endpoint) = PushEndpoint::of_token(token) else {
            return Answer::fault_of_ours("token-no-endpoint");
        };
        if let Err(refusal) = self.connections.guard().check(endpoint.origin()) {
            return Answer::refused(Refusal::Unknown, refusal.label());
        }
        let hash = {
            let state = self.state();
            let hash = state.seed.hash_bytes(token.identity(Service::Webpush));
            if state.bad.get(&hash).is_some_and(|count| *count >= BAD_MAX) {
                drop(state);
                self.state().bad.remove(&hash);
                return parked("parked-bad");
            }
            hash
        };
        let ticket = match self.admit(endpoint.origin(), Instant::now()) {
            Ok(lease) => lease,
            Err(after) => return Answer::new(Outcome::Later { after }, "origin-busy"),
        };
        let Some(body) = body(&endpoint, message) else {
            return Answer::fault_of_ours("not-encrypted");
        };
        let mut form = Form {
            endpoint,
            headers: headers.map(),
            body,
        };
        let began = Instant::now();
        let answered = timeout_at(deadline, self.ask(&mut form)).await;
        let (answer, verdict) = match answered {
            // A wakeup that had little time left says nothing about the server.
            Err(_) if began.elapsed() < SLOW => (origin(None, "timeout"), Verdict::Unknown),
            Err(_) => (origin(None, "timeout"), Verdict::Outage(None)),
            Ok(Err(fault @ connections::Fault::Exchange(_))) => (origin(None, fault.label()), Verdict::Broken),
            Ok(Err(fault)) => (origin(None, fault.label()), Verdict::Outage(None)),
            Ok(Ok(Reading::Answer(answer, verdict))) => (answer, verdict),
            Ok(Ok(Reading::Forbidden)) => (parked("forbidden"), Verdict::Answered),
            Ok(Ok(Reading::Dead(death))) => (self.bury(&ticket, death, Instant::now()), Verdict::Answered),
        };
        self.note_bad(hash, &answer);
        ticket.settle(verdict);
        answer
    }

    /// Until an answer stands: a token that is refused is replaced once.
    async fn ask(&self, form: &mut Form) -> Result<Reading, connections::Fault> {
        let mut is_renewed = false;
        loop {
            match self.authorization(form.endpoint.origin(), is_renewed) {
                Some(value) => form.headers.insert(AUTHORIZATION, value),
                None => form.headers.remove(AUTHORIZATION),
            };
            let said = self.connections.exchange(form).await?;
            match read(said.status, said.retry_after) {
                Reading::Forbidden if !is_renewed => is_renewed = true,
                reading => return Ok(reading),
            }
        }
    }

    /// `anew`: the one in use is refused.
    fn authorization(&self, origin: &Origin, anew: bool) -> Option<HeaderValue> {
        let now = unix_ms() / 1000;
        {
            let mut state = self.state();
            match state.tokens.get(origin) {
                Some((value, until)) if *until > now && !anew => return Some(value.clone()),
                _ => {}
            }
            if state.tokens.len() >= state.most {
                state.tokens.retain(|_, (_, until)| *until > now);
            }
            if state.tokens.len() >= state.most {
                state.tokens.clear();
            }
        }
        let value = self.vapid.authorization(origin, now + VAPID_LIFE)?;
        let mut value = HeaderValue::from_str(value.expose()).ok()?;
        value.set_sensitive(true);
        let mut state = self.state();
        state.tokens.insert(origin.clone(), (value.clone(), now + VAPID_USE));
        Some(value)
    }

    fn admit(&self, origin: &Origin, now: Instant) -> Result<Lease<'_>, Duration> {
        let now_ms = self.clock.now_ms(now);
        match self.state().origins.admit(origin, now_ms, random()) {
            Admission::Go(ticket) => Ok(Lease {
                lane: self,
                ticket: Some(ticket),
            }),
            Admission::Later(after) => Err(after),
        }
    }

    fn bury(&self, lease: &Lease<'_>, death: Death, now: Instant) -> Answer {
        let now_ms = self.clock.now_ms(now);
        let is_believed = lease
            .ticket
            .as_ref()
            .is_some_and(|ticket| self.state().origins.believes_dead(ticket, death, now_ms));
        let label = match death {
            Death::Gone => "gone",
            Death::NotFound => "not-found",
        };
        if !is_believed {
            return parked("dead-unproven");
        }
        let outcome = Outcome::Gone {
            provider_time_ms: None,
            certain: true,
        };
        Answer::new(outcome, label)
    }

    /// An endpoint that refuses what others take is not asked with every wakeup.
    fn note_bad(&self, hash: u64, answer: &Answer) {
        let mut state = self.state();
        match answer.outcome {
            Outcome::Refused(Refusal::OurFault) => {
                if state.bad.len() >= state.most {
                    state.bad.clear();
                }
                let count = state.bad.entry(hash).or_default();
                *count = count.saturating_add(1);
            }
            Outcome::Delivered => drop(state.bad.remove(&hash)),
            _ => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, the state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deliver for Webpush {
    fn service(&self) -> Service {
        Service::Webpush
    }

    async fn push(&self, push: &Push, deadline: Instant) -> Outcome {
        let headers = Headers {
            ttl: time_to_live(push.expires_at_ms, unix_ms()),
            urgency: urgency(push.priority),
            topic: push.too_long,
        };
        let answer = self
            .bring(&push.token, Message::Wakeup(&push.payload), headers, deadline)
            .await;
        self.meter.record(push, answer)
    }
}

/// A push under way to its origin.
struct Lease<'a> {
    lane: &'a Webpush,
    ticket: Option<Ticket>,
}

impl Lease<'_> {
    fn settle(mut self, verdict: Verdict) {
        self.end(verdict, Instant::now());
    }

    fn end(&mut self, verdict: Verdict, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            let now_ms = self.lane.clock.now_ms(now);
            self.lane.state().origins.settle(ticket, verdict, now_ms, random());
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.end(Verdict::Unknown, Instant::now());
    }
}

struct Headers {
    ttl: i64,
    urgency: &'static str,
    topic: bool,
}

impl Headers {
    fn map(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(6);
        map.insert(TTL, HeaderValue::from(self.ttl));
        map.insert(CONTENT_ENCODING, HeaderValue::from_static("aes128gcm"));
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        map.insert(URGENCY, HeaderValue::from_static(self.urgency));
        if self.topic {
            map.insert(TOPIC_NAME, HeaderValue::from_static(TOPIC));
        }
        map
    }
}

fn body(endpoint: &PushEndpoint, message: Message<'_>) -> Option<Bytes> {
    // A random scalar is no key once in four thousand million times.
    for _ in 0..2 {
        let mut random = [0; 48];
        getrandom::fill(&mut random).ok()?;
        if let Some(body) = encrypt(endpoint, message, &Secret::new(random)) {
            return Some(body.into());
        }
    }
    None
}

fn random() -> u64 {
    getrandom::u64().unwrap_or(u64::MAX)
}

const TTL: HeaderName = HeaderName::from_static("ttl");
const URGENCY: HeaderName = HeaderName::from_static("urgency");
const TOPIC_NAME: HeaderName = HeaderName::from_static("topic");

/// Who was given this long and did not answer is slow.
const SLOW: Duration = Duration::from_secs(5);

/// Bad requests in a row before an endpoint is set aside.
const BAD_MAX: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::fake::Files;

    #[test]
    fn a_wall_clock_that_is_set_back_makes_no_push_wait() {
        let (files, start) = (Files::new(), Instant::now());
        let settings = WebpushSettings {
            origin_rate: 1,
            ..files.webpush(443)
        };
        let hour_ms = 3_600_000;
        let lane = Webpush {
            // Since the lane began, the wall clock has been set back by an hour.
            clock: SteadyClock::new(start, unix_ms() + hour_ms),
            ..Webpush::new(&settings).unwrap()
        };
        let origin = origin();
        let mut first = lane.admit(&origin, start).unwrap();
        first.end(Verdict::Delivered, start);
        let Err(after) = lane.admit(&origin, start) else {
            panic!("one a second, and two went");
        };
        assert!(after <= Duration::from_secs(4), "{after:?}");
        let second = start + Duration::from_secs(1);
        let next = lane.admit(&origin, second).expect("its second is over");
        let Outcome::Gone { .. } = lane.bury(&next, Death::NotFound, second).outcome else {
            panic!("it delivered a second ago");
        };
    }

    fn origin() -> Origin {
        let public = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
        let endpoint = PushEndpoint::parse("https://push.example/x", public, "BTBZMqHH6r4Tts7J_aSIgg");
        endpoint.unwrap().origin().clone()
    }
}
