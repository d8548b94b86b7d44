//! One answer in twenty is a fault, at every provider but one, under load: each wakeup arrives at least once or is dropped for a stated
//! reason, twice only where the answer was lost, and then under its own name; the provider without faults notices nothing.
//!
//! `FAULTS_SECONDS` (default 20) is how long the faults last. From 100 on (`make soak`) times with and without faults take turns, so that
//! both meet the same machine, and the untouched lane's latency with faults is held to that without; in a short run on a busy
//! machine it says nothing, and is only told.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]
#![expect(clippy::print_stdout, reason = "figures for whoever runs this with --nocapture")]

use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::node::message_hash;
use quietline_lab::phone::{Phone, PushService};
use quietline_lab::provider::{Answer, Delivery};
use quietline_lab::trial::{DAY, PATIENCE, figure, until_figure};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Wakeups a second, all providers together.
const RATE: f64 = 2_000.0;
const PHONES: usize = 40;
const SERVICES: [PushService; 5] = [
    PushService::Apns,
    PushService::ApnsSandbox,
    PushService::Firebase,
    PushService::Huawei,
    PushService::Webpush,
];
const UNTOUCHED: PushService = PushService::Apns;
/// Messages to the untouched provider that may be on their way before a slow machine gets less to do.
const MOST_WAITING: usize = 200;
/// From here on the latencies are compared.
const LONG_RUN: Duration = Duration::from_secs(100);
/// Times with faults in a long run.
const ROUNDS: u32 = 5;
/// Longest time one push may take. A machine that stops for so long makes the notifier send again what was accepted meanwhile.
const TIMEOUT: Duration = Duration::from_secs(15);
/// What was held back by faults goes on for so long after them; this counts as a time with faults.
const AFTERMATH: Duration = TIMEOUT.saturating_add(Duration::from_secs(3));

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_twenty_loses_nothing_repeats_nothing_and_spares_the_other_lanes() {
    let seconds = std::env::var("FAULTS_SECONDS").map_or(20, |text| text.parse().unwrap());
    let faulty = Duration::from_secs(seconds);
    let rounds = if faulty >= LONG_RUN { ROUNDS } else { 1 };
    let calm = (faulty / rounds / 2).max(Duration::from_secs(5));
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path())
        .with("dispatch.timeout", format!("{}s", TIMEOUT.as_secs()))
        .with("dispatch.firebase.ramp", "0s")
        .with("dispatch.huawei.ramp", "0s");
    settings.ready_within = PATIENCE;
    settings.keep_deliveries = 1;
    let lab = Lab::start(settings).await.unwrap();
    let mut phones = Vec::new();
    for number in 0..PHONES {
        let phone = lab.phone(SERVICES[number % SERVICES.len()]);
        assert!(lab.subscribe(&phone).await.unwrap().is_success());
        phones.push(phone);
    }
    for phone in &phones {
        lab.wait_watched(phone, 3, PATIENCE).await.unwrap();
    }
    let books = Arc::new(Books::new(&phones));
    let noting = Arc::clone(&books);
    assert!(lab.deliveries.observe(move |delivery| noting.note(delivery)));

    let (mut sent_calmly, mut sent) = (0, 0);
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        sent_calmly += load(&lab, &phones, &books, calm).await;
        before.append(&mut books.take_latencies());
        for service in SERVICES.into_iter().filter(|service| *service != UNTOUCHED) {
            set_faults(&lab, service);
        }
        sent += load(&lab, &phones, &books, faulty / rounds).await;
        SERVICES.into_iter().for_each(|service| lab.script(service).clear());
        sent += load(&lab, &phones, &books, AFTERMATH).await;
        during.append(&mut books.take_latencies());
    }
    let (before, during) = (p99(before), p99(during));
    println!(
        "{sent_calmly} wakeups without faults, {sent} with, {:.0} a second; the untouched lane's p99: {before:.1?}, then {during:.1?}",
        sent as f64 / (faulty + AFTERMATH * rounds).as_secs_f64()
    );

    until_figure(&lab, "outbox_accepted_total", "", |count| {
        count >= (sent_calmly + sent) as f64
    })
    .await;
    until_figure(&lab, "outbox_entries", "", |entries| entries == 0.0).await;
    let told_drops = figure(&lab, "outbox_dropped_total", "").await;
    let held = figure(&lab, "outbox_held_total", "").await;
    let retried = figure(&lab, "outbox_retried_total", "").await;
    println!("{retried} tried again, {held} held, {told_drops} dropped");
    assert!(retried > 0.0 && told_drops > 0.0, "there were faults");
    books.check(told_drops as usize);
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
    if faulty >= LONG_RUN {
        assert!(
            during <= before.mul_f64(1.5),
            "faults elsewhere took the untouched lane's p99 from {before:.1?} to {during:.1?}"
        );
    }
}

/// One in twenty, of five kinds, and a connection that breaks now and then.
fn set_faults(lab: &Lab, service: PushService) {
    let script = lab.script(service);
    let answers = match service {
        PushService::Apns | PushService::ApnsSandbox => [
            Answer::apns(500, "InternalServerError"),
            Answer::html(400),
            Answer::apns(400, "PayloadEmpty"),
        ],
        PushService::Firebase => [
            Answer::fcm(503, "UNAVAILABLE", Some("UNAVAILABLE"), None).with_retry_after("1"),
            Answer::html(502).with_retry_after("1"),
            Answer::fcm(400, "INVALID_ARGUMENT", None, Some("message.android.ttl")),
        ],
        PushService::Huawei => [
            Answer::huawei(200, "81000001", "an inner fault"),
            Answer::html(200),
            Answer::huawei(400, "80100001", "a bad parameter"),
        ],
        PushService::Webpush => [
            Answer::html(500).with_retry_after("1"),
            Answer::html(502).with_retry_after("1"),
            Answer::html(400),
        ],
    };
    for answer in answers {
        script.sometimes(0.01, answer);
    }
    script.sometimes(0.01, Answer::Reset);
    script.sometimes(0.0075, Answer::RefuseStream);
    script.sometimes(0.0025, Answer::Stall);
    script.sometimes(0.0002, Answer::Cut);
}

/// Answers after which a wakeup is not sent again.
fn drops(service: PushService, answer: &Answer) -> bool {
    let Answer::Refuse { status, body, .. } = answer else {
        return false;
    };
    if service == PushService::Webpush {
        // Nobody looks at what a push server says beyond its status.
        return *status == 400;
    }
    let text = String::from_utf8_lossy(body);
    ["PayloadEmpty", "message.android.ttl", "80100001"]
        .iter()
        .any(|word| text.contains(word))
}

/// Messages at an even pace; how many.
async fn load(lab: &Lab, phones: &[Phone], books: &Books, length: Duration) -> usize {
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let start = Instant::now();
    let mut last = start;
    let (mut due, mut rate, mut sent) = (0.0, RATE, 0);
    while start.elapsed() < length {
        pace.tick().await;
        // What a stalled machine did not send in time is not made up for.
        due = f64::min(due + last.elapsed().as_secs_f64() * rate, 100.0);
        last = Instant::now();
        // A machine that is too slow for the whole rate gets less of it: what waits for a processor is not what is tested here.
        rate = match books.waiting() {
            waiting if waiting > MOST_WAITING => f64::max(rate * 0.98, RATE / 20.0),
            _ => f64::min(rate * 1.005, RATE),
        };
        while due >= 1.0 {
            due -= 1.0;
            let phone = &phones[sent % phones.len()];
            let data = books.next_message(phone);
            lab.send(phone, 0, &data, DAY);
            sent += 1;
        }
    }
    sent
}

fn p99(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort_unstable();
    latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default()
}

/// The first bytes of a ciphertext: random, so they name it.
type Nonce = [u8; 24];

/// What was sent, and what became of it.
struct Books {
    phones: HashMap<String, Phone>,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    number: u64,
    sent_at: HashMap<String, Instant>,
    /// The one wakeup of each message.
    nonces: HashMap<String, HashSet<Nonce>>,
    arrivals: HashMap<Nonce, Vec<Arrival>>,
    cuts: Vec<(PushService, Instant)>,
    waiting: usize,
    latencies: Vec<Duration>,
    strange: usize,
}

struct Arrival {
    service: PushService,
    at: Instant,
    id: Option<String>,
    accepted: bool,
    dropped: bool,
}

impl Books {
    fn new(phones: &[Phone]) -> Self {
        Self {
            phones: phones
                .iter()
                .map(|phone| (phone.token.clone(), phone.clone()))
                .collect(),
            pages: Mutex::default(),
        }
    }

    /// The body of a message that is noted as sent now.
    fn next_message(&self, phone: &Phone) -> Vec<u8> {
        let mut pages = self.locked();
        pages.number += 1;
        let mut data = vec![b'x'; 100];
        data[..8].copy_from_slice(&pages.number.to_le_bytes());
        pages.waiting += usize::from(phone.service == UNTOUCHED);
        let hash = message_hash(phone.account(), 0, &data);
        pages.sent_at.insert(hash, Instant::now());
        data
    }

    fn note(&self, delivery: &Delivery) {
        let opened = self
            .phones
            .get(&delivery.token)
            .and_then(|phone| phone.open(&delivery.enc_payload).ok());
        let mut pages = self.locked();
        let pages = &mut *pages;
        let sent_at = opened.as_ref().and_then(|message| pages.sent_at.get(&message.hash));
        let (Some(message), Some(sent_at), Some(nonce)) = (&opened, sent_at, delivery.enc_payload.first_chunk()) else {
            pages.strange += 1;
            return;
        };
        if matches!(delivery.answer, Answer::Cut) {
            pages.cuts.push((delivery.service, delivery.at));
        }
        pages.nonces.entry(message.hash.clone()).or_default().insert(*nonce);
        let arrivals = pages.arrivals.entry(*nonce).or_default();
        if arrivals.is_empty() && delivery.service == UNTOUCHED {
            pages.waiting -= 1;
            pages.latencies.push(delivery.at.saturating_duration_since(*sent_at));
        }
        arrivals.push(Arrival {
            service: delivery.service,
            at: delivery.at,
            id: delivery.id.clone(),
            accepted: delivery.accepted,
            dropped: drops(delivery.service, &delivery.answer),
        });
    }

    fn waiting(&self) -> usize {
        self.locked().waiting
    }

    /// Of the untouched lane since the last call.
    fn take_latencies(&self) -> Vec<Duration> {
        std::mem::take(&mut self.locked().latencies)
    }

    fn check(&self, told_drops: usize) {
        let pages = self.locked();
        assert_eq!(pages.strange, 0);
        assert_eq!(
            pages.nonces.len(),
            pages.sent_at.len(),
            "each message reached its provider"
        );
        assert!(
            pages.nonces.values().all(|nonces| nonces.len() == 1),
            "and was sealed once"
        );
        let (mut dropped, mut twice) = (0, 0);
        for arrivals in pages.arrivals.values() {
            let end = arrivals.last().unwrap();
            assert!(end.accepted || end.dropped, "neither delivered nor dropped");
            dropped += usize::from(end.dropped);
            for pair in arrivals.windows(2) {
                let [one, next] = pair else { unreachable!() };
                let is_cut = |(service, at): &(PushService, Instant)| {
                    *service == one.service && one.at <= *at + Duration::from_secs(1) && *at <= next.at
                };
                let answer_was_lost = pages.cuts.iter().any(is_cut);
                assert!(!one.dropped || answer_was_lost, "what was dropped is not sent again");
                assert!(!one.accepted || answer_was_lost, "sent again although it was accepted");
                twice += usize::from(one.accepted);
                if matches!(one.service, PushService::Apns | PushService::ApnsSandbox) {
                    assert_eq!(one.id, next.id, "under its own name");
                }
            }
        }
        assert_eq!(dropped, told_drops, "each drop is counted");
        println!(
            "{} wakeups, {twice} accepted twice after {} broken connections",
            pages.arrivals.len(),
            pages.cuts.len()
        );
    }

    fn locked(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("nobody panics while holding the books")
    }
}
