//! Kills (-9) under load: what is in the outbox file goes out after the restart, what had time to get there is not lost, and
//! only what was in flight comes twice.
//!
//! `KILLS` says how many (10), `SEED` repeats the choices of an earlier run.
//!
//! The rules speak of milliseconds, and a machine that many share stalls now and then. So a probe beside the notifier sleeps,
//! writes and syncs, again and again; by as much as that was late in the last second before a kill, the rules wait longer. They also wait for as
//! long as this disk takes to empty the outbox's log, which every commit may have to wait for. And a message that still waits in a
//! socket or in a thread of the lab was not the notifier's to keep.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use notifier_core::account::Service;
use notifier_core::outbox::{EntryId, Restored};
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::node::message_hash;
use quietline_lab::notifier::Notifier;
use quietline_lab::phone::{Phone, PushService};
use quietline_lab::provider::{Answer, Delivery};
use quietline_notifier::{keyring, outbox};
use std::collections::{HashMap, VecDeque};
use std::fmt::Arguments;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Wakeups a second.
const RATE: f64 = 1_000.0;
const PHONES: usize = 60;
/// The notifier runs for a random time between these two before it is killed.
const SHORTEST_LIFE: Duration = Duration::from_secs(2);
const LONGEST_LIFE: Duration = Duration::from_secs(5);
/// A message sent earlier than this before a kill must not be lost.
const SAFE_AFTER: Duration = Duration::from_millis(200);
/// A push answered earlier than this before a kill must not be repeated.
const SETTLED_AFTER: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);
const FORTNIGHT: Duration = Duration::from_secs(14 * 24 * 3600);
/// While providers answer at once, no more messages than this should be on the way.
const MOST_WAITING: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_that_was_accepted_and_repeat_only_what_was_in_flight() {
    let kills = number_from("KILLS").unwrap_or(10);
    let seed = number_from("SEED").unwrap_or_else(|| u64::from_le_bytes(quietline_lab::sodium::random()));
    say(format_args!("{kills} kills, SEED={seed}"));
    let folder = tempfile::tempdir().unwrap();
    // The logs are overwritten and emptied more often than once in half a minute, so that kills come in the middle of that too. Not all
    // the time: what is answered meanwhile is written a moment later, and comes again if a kill is quicker.
    let settings = LabSettings::in_folder(folder.path().join("lab"))
        .with("store.erase_after", "100ms")
        .with("outbox.erase_after", "3s");
    let lab = Lab::surround(LabSettings {
        swarms: 4,
        nodes_per_swarm: 3,
        ..settings
    })
    .unwrap();
    let mut notifier = Notifier::spawn(
        &Notifier::find_binary(None).unwrap(),
        &lab.settings_file(),
        &lab.settings.folder.join("notifier.log"),
        lab.ops_address(),
    )
    .unwrap();
    notifier.wait_ready(PATIENCE).await.unwrap();
    let phones = subscribed_phones(&lab).await;

    let books = Arc::new(Books::new(&phones));
    let observer = Arc::clone(&books);
    lab.deliveries.observe(move |delivery| observer.note(delivery));
    lab.deliveries.count_only(true);
    let probe = Probe::start(folder.path(), lab.settings.folder.join("data/outbox.db-wal"));

    let mut random = Random(seed);
    let load_random = Random(random.next());
    let lives = tokio::select! {
        lives = kill_again_and_again(&lab, &mut notifier, kills, &mut random, &probe, &books) => lives,
        () = load(&lab, &phones, &books, load_random) => unreachable!("the load has no end"),
    };
    // The last life gets no further messages and ends by itself.
    let done = tokio::time::timeout(PATIENCE, async {
        while !books.overdue(&lives).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let done = done.await;
    let verdict = books.judge(&lives);
    verdict.print();
    assert_eq!(verdict.faults, Vec::<String>::new(), "SEED={seed}");
    assert!(done.is_ok());
    assert!(
        verdict.safe * 4 > verdict.sent,
        "the rule about loss concerned most messages"
    );
    let status = notifier.stop(PATIENCE).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    let left = read_outbox(&lab.settings.folder, folder.path()).await;
    assert_eq!(
        left.len(),
        0,
        "everything has been answered, so nothing is left in the file"
    );
    assert_eq!(lab.deliveries.complaints(), Vec::<String>::new());
}

async fn subscribed_phones(lab: &Lab) -> Vec<Phone> {
    let mut phones = Vec::new();
    for number in 0..PHONES {
        let phone = lab.phone(PushService::ALL[number % PushService::ALL.len()]);
        assert!(lab.subscribe(&phone).await.unwrap().is_success());
        phones.push(phone);
    }
    for phone in &phones {
        lab.wait_watched(phone, 3, PATIENCE).await.unwrap();
    }
    phones
}

/// One run of the notifier.
struct Life {
    ready_at: Instant,
    end: Option<Kill>,
}

/// How a life ended, and what it left.
struct Kill {
    at: Instant,
    /// What was sent earlier in this life must not be lost.
    safe_until: Instant,
    /// From here on the next life can send.
    spawned_at: Instant,
    entries: Vec<Entry>,
    /// How late the probe was in the last second, and what emptying the log takes.
    stall: Duration,
}

/// A wakeup in the outbox file.
struct Entry {
    nonce: Nonce,
    /// As the provider hears it, of Apple's services.
    apns_id: Option<String>,
}

/// The first bytes of a ciphertext: random, so they name it.
type Nonce = [u8; 24];

async fn kill_again_and_again(
    lab: &Lab,
    notifier: &mut Notifier,
    kills: u64,
    random: &mut Random,
    probe: &Probe,
    books: &Books,
) -> Vec<Life> {
    let scratch = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    let mut ready_at = Instant::now();
    let mut taken_before = taken_messages(notifier).await;
    for number in 1..=kills {
        let life = SHORTEST_LIFE + (LONGEST_LIFE - SHORTEST_LIFE).mul_f64(random.share());
        let mood = Mood::by_chance(random);
        let trouble = life.min(Duration::from_secs(1));
        books.set_calm(true);
        tokio::time::sleep(life - trouble).await;
        books.set_calm(false);
        mood.set(lab);
        tokio::time::sleep(trouble).await;

        let taken = taken_messages(notifier).await - taken_before;
        notifier.kill().await.unwrap();
        let at = Instant::now();
        // What an operator would find on the disk, before the next start touches it.
        let entries = read_outbox(&lab.settings.folder, scratch.path()).await;
        let stall = probe.latest_before(at).await;
        let safe_until = books.safe_until(ready_at, at - SAFE_AFTER - stall, taken);
        for script in PushService::ALL.map(|service| lab.script(service)) {
            script.clear();
        }
        let spawned_at = Instant::now();
        notifier.restart(PATIENCE).await.unwrap();
        let (sent, delivered) = books.counts();
        say(format_args!(
            "kill {number}: after {life:.1?} with {mood:?} providers, {} in the file, {} sent, {} delivered, ready after {:.1?}, stall {stall:.0?}",
            entries.len(),
            sent,
            delivered,
            spawned_at.elapsed(),
        ));
        let end = Some(Kill {
            at,
            safe_until,
            spawned_at,
            entries,
            stall,
        });
        lives.push(Life { ready_at, end });
        ready_at = Instant::now();
        taken_before = taken_messages(notifier).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    lives.push(Life { ready_at, end: None });
    lives
}

/// Messages that this notifier has taken from its links so far and that somebody is to be woken for.
async fn taken_messages(notifier: &Notifier) -> usize {
    let metrics = notifier.metrics().await.unwrap();
    metrics.sum("fanout_messages_total").unwrap_or_default() as usize
}

/// What the outbox file holds, read from a copy of it and its WAL.
async fn read_outbox(lab_folder: &Path, scratch: &Path) -> Vec<Entry> {
    let copy = scratch.join("copy.db");
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(scratch.join(format!("copy.db{suffix}")));
    }
    std::fs::copy(lab_folder.join("data/outbox.db"), &copy).unwrap();
    let wal = lab_folder.join("data/outbox.db-wal");
    if wal.exists() {
        std::fs::copy(wal, scratch.join("copy.db-wal")).unwrap();
    }
    let keys = keyring::file::read(&lab_folder.join("keys/rows")).unwrap();
    let (writer, reader) = outbox::sqlite::open(&copy, &keys, Duration::ZERO).await.unwrap();
    let mut left: Vec<Restored> = Vec::new();
    loop {
        let after = left.last().map_or(EntryId(0), |entry| entry.id);
        let batch = reader.load_meta(after).await.unwrap();
        if batch.is_empty() {
            break;
        }
        left.extend(batch);
    }
    let ids: Vec<EntryId> = left.iter().map(|entry| entry.id).collect();
    let bodies = reader.load_bodies(&ids).await.unwrap();
    reader.close().await;
    writer.close().await;
    left.into_iter()
        .zip(bodies)
        .map(|(entry, (id, body))| {
            let (sealed, is_apple) = (
                body.unwrap(),
                matches!(entry.service, Service::Apns | Service::ApnsSandbox),
            );
            assert_eq!(entry.id, id);
            Entry {
                nonce: *sealed.body.first_chunk().unwrap(),
                apns_id: is_apple.then(|| uuid(&entry.push_id.0)),
            }
        })
        .collect()
}

fn uuid(bytes: &[u8]) -> String {
    let hex = hex::encode(bytes);
    let group = |from: usize, to: usize| hex.get(from..to).unwrap();
    [group(0, 8), group(8, 12), group(12, 16), group(16, 20), group(20, 32)].join("-")
}

/// How the providers answer in the last second before a kill.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Quick,
    Slow,
    Shaky,
    Failing,
}

impl Mood {
    fn by_chance(random: &mut Random) -> Self {
        [Self::Quick, Self::Slow, Self::Shaky, Self::Failing][random.below(4)]
    }

    fn set(self, lab: &Lab) {
        let apns_down = Answer::apns(503, "ServiceUnavailable");
        let fcm_down = Answer::fcm(503, "UNAVAILABLE", Some("UNAVAILABLE"), None);
        let huawei_down = Answer::huawei(500, "81000001", "internal error");
        for (script, down) in [
            (lab.apns.script(), &apns_down),
            (lab.apns_sandbox.script(), &apns_down),
            (lab.fcm.script(), &fcm_down),
            (lab.huawei.script(), &huawei_down),
        ] {
            match self {
                Self::Quick => {}
                Self::Slow => script.everyone(Answer::Late(Duration::from_millis(120), Box::new(Answer::Accept))),
                Self::Shaky => script.sometimes(0.2, down.clone()),
                Self::Failing => script.everyone(down.clone()),
            }
        }
    }
}

/// Messages at an even pace, whether anybody watches or not.
async fn load(lab: &Lab, phones: &[Phone], books: &Books, mut random: Random) {
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut last = Instant::now();
    let (mut due, mut rate) = (0.0, RATE);
    let mut number = 0_u64;
    loop {
        pace.tick().await;
        // What a stalled machine did not send in time is not made up for: it would be a burst that no swarm makes.
        due = f64::min(due + last.elapsed().as_secs_f64() * rate, 100.0);
        last = Instant::now();
        // A machine that is too slow for the whole rate gets less of it: what waits for a processor is not what is tested here.
        rate = match books.backlog() {
            Some(backlog) if backlog > MOST_WAITING => f64::max(rate * 0.98, RATE / 20.0),
            Some(_) => f64::min(rate * 1.005, RATE),
            None => rate,
        };
        while due >= 1.0 {
            due -= 1.0;
            number += 1;
            let phone = &phones[random.below(phones.len())];
            let mut data = vec![b'x'; 40 + random.below(1_500)];
            data[..8].copy_from_slice(&number.to_le_bytes());
            books.note_sent(message_hash(phone.account(), 0, &data));
            lab.send(phone, 0, &data, FORTNIGHT);
        }
    }
}

/// Every message with its moment and its arrivals.
struct Books {
    phones: HashMap<String, Phone>,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    messages: HashMap<String, Message>,
    /// Each accepted arrival of each ciphertext.
    arrivals: HashMap<Nonce, Vec<(Instant, Option<String>)>>,
    delivered: usize,
    strange: usize,
    /// While links are up and providers answer at once: how many of the messages sent before had not arrived.
    calm_since: Option<usize>,
}

struct Message {
    sent_at: Instant,
    arrivals: Vec<Arrival>,
}

struct Arrival {
    at: Instant,
    answered: Arc<OnceLock<Instant>>,
}

impl Books {
    fn new(phones: &[Phone]) -> Self {
        let phones = phones.iter().map(|phone| (phone.token.clone(), phone.clone()));
        Self {
            phones: phones.collect(),
            pages: Mutex::default(),
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap()
    }

    /// Call before the message is stored: it may arrive before this would return.
    fn note_sent(&self, hash: String) {
        let message = Message {
            sent_at: Instant::now(),
            arrivals: Vec::new(),
        };
        self.locked().messages.insert(hash, message);
    }

    fn note(&self, delivery: &Delivery) {
        if !delivery.accepted {
            return;
        }
        let phone = self.phones.get(&delivery.token);
        let opened = phone.and_then(|phone| phone.open(&delivery.enc_payload).ok());
        let mut pages = self.locked();
        let pages = &mut *pages;
        let message = opened.and_then(|opened| pages.messages.get_mut(&opened.hash));
        let (Some(message), Some(nonce)) = (message, delivery.enc_payload.first_chunk()) else {
            pages.strange += 1;
            return;
        };
        pages.delivered += usize::from(message.arrivals.is_empty());
        message.arrivals.push(Arrival {
            at: delivery.at,
            answered: Arc::clone(&delivery.answered),
        });
        let apns_id = delivery
            .id
            .clone()
            .filter(|_| matches!(delivery.service, PushService::Apns | PushService::ApnsSandbox));
        pages.arrivals.entry(*nonce).or_default().push((delivery.at, apns_id));
    }

    /// Sent and delivered.
    fn counts(&self) -> (usize, usize) {
        let pages = self.locked();
        (pages.messages.len(), pages.delivered)
    }

    /// What still has to arrive.
    fn overdue(&self, lives: &[Life]) -> Vec<String> {
        let pages = self.locked();
        let lost = pages.messages.values().filter(|message| message.arrivals.is_empty());
        let lost = lost.filter_map(|message| {
            let before_kill = safe_for(message.sent_at, lives)?;
            Some(format!("a message sent {before_kill} was lost"))
        });
        let stuck = lives.iter().zip(1..).flat_map(|(life, number)| {
            let kill = life.end.as_ref();
            let stuck = kill.into_iter().flat_map(|kill| {
                let redelivered = |entry: &&Entry| {
                    let arrivals = pages.arrivals.get(&entry.nonce);
                    arrivals
                        .into_iter()
                        .flatten()
                        .any(|(at, apns_id)| *at >= kill.spawned_at && *apns_id == entry.apns_id)
                };
                kill.entries.iter().filter(move |entry| !redelivered(entry))
            });
            stuck.map(move |_| format!("an entry in the file at kill {number} was not delivered after it"))
        });
        lost.chain(stuck).collect()
    }

    /// Links are up and providers answer at once, or no longer.
    fn set_calm(&self, calm: bool) {
        let mut pages = self.locked();
        let missing = pages.messages.len() - pages.delivered;
        pages.calm_since = calm.then_some(missing);
    }

    /// Messages on the way, of a calm time.
    fn backlog(&self) -> Option<usize> {
        let pages = self.locked();
        Some((pages.messages.len() - pages.delivered).saturating_sub(pages.calm_since?))
    }

    /// The end of the time whose messages must not be lost: `latest`, but no message beyond the first `taken` of this life. The
    /// rest still waited in sockets and threads of the lab: a machine that is too slow, and no fault of the notifier's.
    fn safe_until(&self, ready_at: Instant, latest: Instant, taken: usize) -> Instant {
        let pages = self.locked();
        let sent = pages.messages.values().map(|message| message.sent_at);
        let mut sent: Vec<_> = sent.filter(|sent_at| (ready_at..latest).contains(sent_at)).collect();
        sent.sort_unstable();
        sent.get(taken).copied().unwrap_or(latest)
    }

    fn judge(&self, lives: &[Life]) -> Verdict {
        let mut faults = self.overdue(lives);
        let pages = self.locked();
        if pages.strange > 0 {
            faults.push(format!(
                "{} pushes that no phone can open or nobody sent",
                pages.strange
            ));
        }
        let (mut twice, mut twice_by_stall) = (0, 0);
        for message in pages.messages.values() {
            for pair in message.arrivals.windows(2) {
                let [first, second] = pair else { continue };
                twice += 1;
                let in_flight = |slack: fn(&Kill) -> Duration| {
                    lives
                        .iter()
                        .filter_map(|life| life.end.as_ref())
                        .any(|kill| in_flight_at(first, second, kill, slack(kill)))
                };
                if !in_flight(|kill| kill.stall) {
                    faults.push(format!(
                        "a push that no kill interrupted came again after {:?}",
                        second.at - first.at
                    ));
                } else if !in_flight(|_| Duration::ZERO) {
                    twice_by_stall += 1;
                }
            }
        }
        let kills = lives.iter().filter_map(|life| life.end.as_ref());
        Verdict {
            kills: kills.clone().count(),
            sent: pages.messages.len(),
            safe: pages
                .messages
                .values()
                .filter(|message| safe_for(message.sent_at, lives).is_some())
                .count(),
            delivered: pages.delivered,
            twice,
            twice_by_stall,
            in_file: kills.clone().map(|kill| kill.entries.len()).collect(),
            longest_stall: kills.map(|kill| kill.stall).max().unwrap_or_default(),
            faults,
        }
    }
}

/// How far from the end of its life a message was sent that must not be lost; `None` for one that may be.
fn safe_for(sent_at: Instant, lives: &[Life]) -> Option<String> {
    let life = lives.iter().rfind(|life| life.ready_at <= sent_at)?;
    match &life.end {
        None => Some("in the last life".into()),
        Some(kill) => (sent_at < kill.safe_until).then(|| format!("{:.0?} before a kill", kill.at - sent_at)),
    }
}

/// Whether `first` was under way, or answered a moment ago, at this kill, and `second` came from a later life.
fn in_flight_at(first: &Arrival, second: &Arrival, kill: &Kill, slack: Duration) -> bool {
    // The provider may still read what the killed notifier had written.
    let sent_before = first.at <= kill.spawned_at + slack;
    let unsettled = first
        .answered
        .get()
        .is_none_or(|answered| *answered + SETTLED_AFTER + slack >= kill.at);
    sent_before && unsettled && second.at >= kill.spawned_at
}

struct Verdict {
    kills: usize,
    sent: usize,
    /// Of these: sent while links were up and long enough before a kill.
    safe: usize,
    delivered: usize,
    twice: usize,
    /// Excused only because the machine stalled.
    twice_by_stall: usize,
    in_file: Vec<usize>,
    longest_stall: Duration,
    faults: Vec<String>,
}

impl Verdict {
    fn print(&self) {
        let Self {
            kills,
            sent,
            safe,
            delivered,
            twice,
            twice_by_stall,
            in_file,
            longest_stall,
            faults,
        } = self;
        say(format_args!(
            "{kills} kills: {sent} sent, {safe} of them must not be lost; {delivered} delivered, {twice} twice ({twice_by_stall} \
             of them for a stall of the machine, the longest {longest_stall:.0?}); in the file at each kill: {in_file:?}; {} faults",
            faults.len()
        ));
    }
}

/// Sleeps, writes and syncs beside the notifier, and remembers how long that took; now and then it also does what emptying a log takes.
struct Probe {
    beats: Arc<Mutex<VecDeque<Beat>>>,
    stop: Arc<AtomicBool>,
}

struct Beat {
    began: Instant,
    ended: Instant,
    /// What it took beyond its sleep, and what emptying a log took lately.
    late: Duration,
}

impl Probe {
    fn start(folder: &Path, log: PathBuf) -> Self {
        const SLEEP: Duration = Duration::from_millis(20);
        // A second: more often it would itself be what keeps the disk busy.
        const BEATS_BETWEEN_EMPTYINGS: usize = 50;
        let (beats, stop) = (Arc::new(Mutex::new(VecDeque::new())), Arc::new(AtomicBool::new(false)));
        let mut file = File::create(folder.join("probe")).unwrap();
        let like_log = File::create(folder.join("probe-log")).unwrap();
        let (record, stopped) = (Arc::clone(&beats), Arc::clone(&stop));
        std::thread::spawn(move || {
            let (mut longest, mut emptyings) = (0, [Duration::ZERO; 2]);
            for number in 0_usize.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                longest = longest.max(log.metadata().map_or(0, |log| log.len()));
                if number.is_multiple_of(BEATS_BETWEEN_EMPTYINGS) {
                    let began = Instant::now();
                    empty(&like_log, longest).unwrap();
                    emptyings = [began.elapsed(), emptyings[0]];
                }
                let began = Instant::now();
                std::thread::sleep(SLEEP);
                let written = file.write_all(&[0; 512]).and_then(|()| file.sync_data());
                written.unwrap();
                let late = began.elapsed().saturating_sub(SLEEP) + emptyings[0].max(emptyings[1]);
                let mut beats = record.lock().unwrap();
                beats.push_back(Beat {
                    began,
                    ended: Instant::now(),
                    late,
                });
                if beats.len() > 1_000 {
                    beats.pop_front();
                }
            }
        });
        Self { beats, stop }
    }

    /// The worst beat of the last second. What was under way at that moment is waited for: it may be the stall that matters.
    async fn latest_before(&self, at: Instant) -> Duration {
        loop {
            if let Some(worst) = worst_before(&self.beats.lock().unwrap(), at) {
                return worst;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// `None` until a beat that began afterwards has ended.
fn worst_before(beats: &VecDeque<Beat>, at: Instant) -> Option<Duration> {
    beats.back().filter(|last| last.began >= at)?;
    let recent = beats
        .iter()
        .filter(|beat| beat.ended + Duration::from_secs(1) + beat.late >= at);
    recent.map(|beat| beat.late).max()
}

/// What it costs to move a log of this length into its database, which mostly has it already, to write over it, and to cut it off.
fn empty(log: &File, length: u64) -> io::Result<()> {
    const STEP: usize = 64 << 10;
    for _ in 0..3 {
        log.write_all_at(&[0; 512], 0)?;
        log.sync_data()?;
    }
    for at in (0..length).step_by(STEP) {
        log.write_all_at(&[0; STEP], at)?;
    }
    log.sync_data()?;
    log.write_all_at(&[0; 512], 0)?;
    log.sync_data()
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// SplitMix64: the same seed, the same choices.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number: {text}")),
    )
}

/// Straight to the terminal: figures are wanted of a run that passes too.
fn say(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
