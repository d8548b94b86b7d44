//! What was sent and what arrived: latency, loss, duplicates.
//!
//! In: messages sent, pushes that reached a provider. Out: counts. Never: believes a push that the phone cannot open.

use crate::phone::{Phone, PhoneBody};
use crate::provider::Delivery;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Known phones, and their messages on the way. Fits as observer of `Deliveries`.
#[derive(Default)]
pub struct Ledger(Mutex<Books>);

#[derive(Default)]
struct Books {
    phones: HashMap<String, Phone>,
    /// Token and hash of what has not arrived yet.
    on_the_way: HashMap<(String, String), Instant>,
    arrived: Arrived,
    totals: Totals,
    /// Microseconds, since the last `take_latency`.
    latencies: Vec<u32>,
    /// Microseconds, the first [`ALL_KEPT`].
    all_latencies: Vec<u32>,
}

/// The last arrivals, in two generations: enough to know a duplicate, and bounded.
#[derive(Default)]
struct Arrived {
    young: HashSet<(String, String)>,
    old: HashSet<(String, String)>,
}

const GENERATION: usize = 100_000;
const ALL_KEPT: usize = 1_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub sent: u64,
    pub delivered: u64,
    /// Arrived once more.
    pub duplicates: u64,
    /// Did not open, or was never sent.
    pub strange: u64,
    /// Arrived without their body, to be fetched by the phone.
    pub too_long: u64,
}

/// Of the deliveries of one stretch of time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    pub count: usize,
    pub median: Duration,
    pub p99: Duration,
    pub longest: Duration,
}

impl Ledger {
    pub fn know(&self, phone: &Phone) {
        self.books(|books| books.phones.insert(phone.token.clone(), phone.clone()));
    }

    /// Call before the message is stored: it may arrive before this would return.
    pub fn note_sent(&self, phone: &Phone, hash: String) {
        self.books(|books| {
            books.totals.sent += 1;
            books.on_the_way.insert((phone.token.clone(), hash), Instant::now());
        });
    }

    pub fn note_delivery(&self, delivery: &Delivery) {
        if !delivery.accepted {
            return;
        }
        let Some(phone) = self.books(|books| books.phones.get(&delivery.token).cloned()) else {
            return self.books(|books| books.totals.strange += 1);
        };
        let opened = phone.open(&delivery.enc_payload);
        self.books(|books| {
            let Ok(message) = opened else {
                books.totals.strange += 1;
                return;
            };
            let key = (phone.token.clone(), message.hash);
            match books.on_the_way.remove(&key) {
                Some(sent_at) => {
                    books.totals.delivered += 1;
                    books.totals.too_long += u64::from(message.body == PhoneBody::TooLong);
                    let micros = delivery.at.saturating_duration_since(sent_at).as_micros();
                    let micros = u32::try_from(micros).unwrap_or(u32::MAX);
                    books.latencies.push(micros);
                    if books.all_latencies.len() < ALL_KEPT {
                        books.all_latencies.push(micros);
                    }
                    books.arrived.insert(key);
                }
                None if books.arrived.contains(&key) => books.totals.duplicates += 1,
                None => books.totals.strange += 1,
            }
        });
    }

    pub fn totals(&self) -> Totals {
        self.books(|books| books.totals)
    }

    pub fn on_the_way(&self) -> usize {
        self.books(|books| books.on_the_way.len())
    }

    /// Messages that have been on the way for longer than `patience`.
    pub fn overdue(&self, patience: Duration) -> usize {
        self.books(|books| {
            books
                .on_the_way
                .values()
                .filter(|sent_at| sent_at.elapsed() > patience)
                .count()
        })
    }

    /// Since the last call.
    pub fn take_latency(&self) -> Latency {
        Latency::of(self.books(|books| std::mem::take(&mut books.latencies)))
    }

    /// Since the beginning.
    pub fn whole_latency(&self) -> Latency {
        Latency::of(self.books(|books| books.all_latencies.clone()))
    }

    fn books<T>(&self, with: impl FnOnce(&mut Books) -> T) -> T {
        with(&mut self.0.lock().expect("nobody panics while holding the books"))
    }
}

impl Arrived {
    fn insert(&mut self, key: (String, String)) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key);
    }

    fn contains(&self, key: &(String, String)) -> bool {
        self.young.contains(key) || self.old.contains(key)
    }
}

impl Latency {
    fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let at = |share: f64| {
            let place = (micros.len().saturating_sub(1) as f64 * share).round() as usize;
            Duration::from_micros(micros.get(place).copied().unwrap_or(0).into())
        };
        Self {
            count: micros.len(),
            median: at(0.5),
            p99: at(0.99),
            longest: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phone::PushService;
    use crate::sodium;

    #[test]
    fn a_message_counts_once_and_a_second_copy_as_a_duplicate() {
        let (ledger, phone) = (Ledger::default(), Phone::new(PushService::Apns));
        ledger.know(&phone);
        ledger.note_sent(&phone, "first".into());
        ledger.note_sent(&phone, "second".into());
        ledger.note_delivery(&push(&phone, "first", true));
        ledger.note_delivery(&push(&phone, "first", true));
        let totals = Totals {
            sent: 2,
            delivered: 1,
            duplicates: 1,
            ..Totals::default()
        };
        assert_eq!((ledger.totals(), ledger.on_the_way()), (totals, 1));
        assert_eq!(ledger.overdue(Duration::ZERO), 1);
        assert_eq!(ledger.take_latency().count, 1);
        assert_eq!(ledger.take_latency().count, 0);
        assert_eq!(ledger.whole_latency().count, 1);
    }

    #[test]
    fn a_refused_push_counts_nothing_and_an_unreadable_one_is_strange() {
        let (ledger, phone) = (Ledger::default(), Phone::new(PushService::Firebase));
        ledger.know(&phone);
        ledger.note_sent(&phone, "first".into());
        ledger.note_delivery(&push(&phone, "first", false));
        assert_eq!(ledger.totals().delivered, 0);
        let mut other = phone.clone();
        other.enc_key = sodium::random();
        ledger.note_delivery(&push(&other, "first", true));
        ledger.note_delivery(&push(&phone, "never sent", true));
        ledger.note_delivery(&push(&Phone::new(PushService::Apns), "first", true));
        assert_eq!(
            ledger.totals(),
            Totals {
                sent: 1,
                strange: 3,
                ..Totals::default()
            }
        );
    }

    /// As a notifier would seal it.
    fn push(phone: &Phone, hash: &str, accepted: bool) -> Delivery {
        let metadata = serde_json::json!({ "@": phone.account_hex(), "#": hash, "n": 0, "t": 1, "z": 2, "l": 1 });
        let metadata = metadata.to_string();
        let plaintext = format!("l{}:{metadata}1:xe\0\0\0", metadata.len());
        let nonce = sodium::random::<24>();
        let sealed = sodium::xchacha20_seal(&phone.enc_key, &nonce, plaintext.as_bytes());
        Delivery {
            service: phone.service,
            token: phone.token.clone(),
            id: None,
            enc_payload: [nonce.as_slice(), &sealed].concat(),
            headers: Vec::new(),
            body: serde_json::Value::Null,
            at: Instant::now(),
            answer: crate::provider::Answer::Accept,
            accepted,
            answered: Default::default(),
        }
    }
}
