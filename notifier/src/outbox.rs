//! Keeps wakeups until a provider has answered.
//!
//! In: sealed wakeups with the marks of their messages, and the providers' outcomes. Out: pushes to the lanes, tokens that
//! are gone. Never: talks to a provider, or says "accepted" before the disk has it.
//!
//! One task owns the decisions (`notifier_core::outbox`) and the file. Wakeups that wait become one commit; while it is on its
//! way to the disk the next one forms.

pub mod journal;
mod load;
mod report;
pub mod sqlite;

use crate::clock::SteadyClock;
use crate::keyring::Keyring;
use crate::sqlite::{ERASE_AFTER, LONGEST_ERASE_AFTER, SqliteFault};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use journal::{Done, Finished, Journal, KeyChange};
use load::{Loaded, load};
use notifier_core::account::Service;
use notifier_core::lane::LaneSettings;
use notifier_core::outbox::{self as core, Effect, EntryId, Outbox, Outcome, Push, PushId, Target, Write};
use notifier_core::seal::Sealed;
use notifier_core::seeded::Seed;
use serde::Deserialize;
use sqlite::{Change, Mark, OutboxReader, OutboxWriter, SeenMark};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

/// The file, open, before anything is sent.
#[derive(Debug)]
pub struct OutboxFile {
    settings: OutboxSettings,
    writer: OutboxWriter,
    reader: OutboxReader,
}

impl OutboxFile {
    pub async fn open(settings: &OutboxSettings, keys: &Keyring) -> Result<Self, OutboxError> {
        let (writer, reader) = sqlite::open(&settings.path, keys, settings.erase_after).await?;
        Ok(Self {
            settings: settings.clone(),
            writer,
            reader,
        })
    }

    /// The marks seen at or after `since_ms` (Unix ms), the oldest first, through `take`. Those of a wall clock that was ahead count as seen
    /// now: they would stay until it is there again.
    pub async fn load_marks(&mut self, since_ms: i64, mut take: impl FnMut(SeenMark)) -> Result<(), OutboxError> {
        let (now_ms, mut after) = (unix_ms(), 0);
        loop {
            let batch = self.reader.load_marks(after).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.commit;
            for seen in batch {
                let Some(at_ms) = seen.at_ms.map(|at_ms| at_ms.min(now_ms)) else {
                    continue;
                };
                self.writer.note_marks(seen.commit, at_ms);
                if at_ms >= since_ms {
                    seen.marks.into_iter().for_each(|mark| take(SeenMark { mark, at_ms }));
                }
            }
        }
    }

    /// Moves everything to the newest of the keys it was opened with, while no notifier runs; how many rows.
    pub async fn change_keys(mut self) -> Result<u64, OutboxError> {
        let mut moved = 0;
        while self.writer.has_older() {
            moved += self.writer.move_rows().await?;
        }
        self.reader.close().await;
        self.writer.close().await;
        Ok(moved)
    }

    /// Takes up what the last run left and starts the task.
    ///
    /// `effects` hears of dead tokens and stopped lanes; a lane with many that nobody reads sends nothing.
    /// `marks_kept` is how long a message counts as the same.
    pub async fn start(
        mut self,
        lanes: Vec<Lane>,
        effects: mpsc::Sender<Effect>,
        marks_kept: Duration,
    ) -> Result<Running, OutboxError> {
        let mut random = Random::new()?;
        let mut settings = core::OutboxSettings {
            max_entries: self.settings.max_entries,
            memory: self.settings.memory,
            lanes: [LaneSettings::ABSENT; Service::COUNT],
        };
        for lane in &lanes {
            settings.set_lane(lane.service, lane.settings);
        }
        let now_ms = unix_ms();
        let clock = SteadyClock::new(Instant::now(), now_ms);
        let marks_since_ms = now_ms.saturating_sub(millis(marks_kept));
        let expired = self.writer.remove_expired(now_ms, marks_since_ms).await?;
        metrics::counter!("outbox_expired_at_start_total").increment(expired);
        let mut machine = Outbox::new(settings, Seed::new(random.take()), self.writer.next_id().await?);
        let mut after = EntryId(0);
        loop {
            let batch = self.reader.load_meta(after).await?;
            let Some(last) = batch.last() else { break };
            after = last.id;
            for entry in batch {
                machine.restore(entry, now_ms);
            }
        }

        let (orders, order_queue) = mpsc::channel(ACCEPTS);
        // There is a place for each push under way: no lane waits for the outcomes of another.
        let under_way: usize = lanes.iter().map(|lane| lane.settings.concurrency as usize).sum();
        let (outcomes, outcome_queue) = mpsc::channel(under_way.max(1));
        let (credentials, credential_queue) = mpsc::channel(CREDENTIALS);
        let (keys, key_queue) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        let driver = Driver {
            machine,
            clock,
            journal: Journal::new(self.writer),
            reader: self.reader,
            lanes,
            effects_out: effects,
            loading: None,
            random,
            marks_kept,
            stop_at: None,
            is_sending: false,
        };
        let queues = Queues {
            orders: order_queue,
            outcomes: outcome_queue,
            credentials: credential_queue,
            keys: key_queue,
        };
        let task = tokio::spawn(driver.run(queues, stopped));
        Ok(Running {
            handle: OutboxHandle {
                orders,
                outcomes,
                credentials,
                keys,
            },
            stop,
            task,
        })
    }
}

/// The queue of one service's dispatch.
#[derive(Debug)]
pub struct Lane {
    pub service: Service,
    /// The channel must hold as many pushes as may be under way at once.
    pub settings: LaneSettings,
    pub pushes: mpsc::Sender<Push>,
}

/// The running task.
#[derive(Debug)]
pub struct Running {
    pub handle: OutboxHandle,
    stop: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

impl Running {
    /// Takes nothing new, sends what can be sent now, waits for it until `deadline`, and closes the file. What is left is in
    /// it: retries, and the queues of lanes that rest.
    pub async fn shutdown(self, deadline: Instant) {
        let _ = self.stop.send(deadline);
        // An error is a panic of the task, which has been reported where it happened; the file holds.
        let _ = self.task.await;
    }
}

/// How others reach the task.
#[derive(Clone, Debug)]
pub struct OutboxHandle {
    /// One queue, so that what is accepted later is never withdrawn.
    orders: mpsc::Sender<Order>,
    /// Every push that went to a lane must come back here, once.
    pub outcomes: mpsc::Sender<(EntryId, Outcome)>,
    /// Services whose credential was exchanged: a stopped lane tries again at once.
    pub credentials: mpsc::Sender<Service>,
    keys: mpsc::Sender<KeyChange>,
}

impl OutboxHandle {
    /// Seals from now on under the newest of these keys, and moves everything to it, a little at a time; how many rows were moved.
    pub async fn use_keys(&self, keys: &Keyring) -> Result<u64, OutboxError> {
        let (done, moved) = oneshot::channel();
        let change = KeyChange {
            sealer: Arc::new(sqlite::sealer(keys)),
            done,
        };
        self.keys.send(change).await.map_err(|_| OutboxError::Closed)?;
        moved.await.map_err(|_| OutboxError::Closed)?
    }

    /// Waits until the wakeups and the marks are on disk, both, or refused, both. While the disk is full or fails it waits for
    /// better times. A wakeup that finds no room or no lane is dropped and counted; its mark stays.
    pub async fn accept(&self, wakeups: Vec<Sealed>, marks: Vec<Mark>) -> Result<(), OutboxError> {
        let (done, answer) = oneshot::channel();
        self.send(Accept { wakeups, marks, done }).await?;
        answer.await.map_err(|_| OutboxError::Closed)?
    }

    /// As [`Self::accept`] for those who wait elsewhere; waits only for a place in the queue.
    pub async fn send(&self, accept: Accept) -> Result<(), OutboxError> {
        self.order(Order::Accept(accept)).await
    }

    /// Nobody subscribes these devices any more: what was accepted for them before is dropped.
    pub async fn withdraw(&self, devices: Vec<Target>) -> Result<(), OutboxError> {
        self.order(Order::Withdraw(devices)).await
    }

    async fn order(&self, order: Order) -> Result<(), OutboxError> {
        self.orders.send(order).await.map_err(|_| OutboxError::Closed)
    }
}

/// The wakeups of some messages and the marks of these messages.
#[derive(Debug)]
pub struct Accept {
    pub wakeups: Vec<Sealed>,
    pub marks: Vec<Mark>,
    pub done: Done,
}

enum Order {
    Accept(Accept),
    Withdraw(Vec<Target>),
}

struct Driver {
    machine: Outbox,
    /// The machine's own time. Marks bear that of the wall clock, by which they are read at the next start.
    clock: SteadyClock,
    journal: Journal,
    reader: OutboxReader,
    lanes: Vec<Lane>,
    effects_out: mpsc::Sender<Effect>,
    loading: Option<BoxFuture<'static, Loaded>>,
    random: Random,
    marks_kept: Duration,
    /// Once set, nothing new is taken; from then on nothing is sent either.
    stop_at: Option<Instant>,
    /// More may be sent than one turn of the task does.
    is_sending: bool,
}

/// What others bring to the task.
struct Queues {
    orders: mpsc::Receiver<Order>,
    outcomes: mpsc::Receiver<(EntryId, Outcome)>,
    credentials: mpsc::Receiver<Service>,
    keys: mpsc::Receiver<KeyChange>,
}

enum Event {
    Finished(Finished),
    Outcomes,
    Orders,
    Loaded(Loaded),
    CredentialChanged(Service),
    KeysChanged(KeyChange),
    Stop(Option<Instant>),
    Tick,
    /// Its time has come, there is room for an effect, or more to do than one turn does.
    Time,
}

impl Driver {
    async fn run(mut self, queues: Queues, mut stopped: oneshot::Receiver<Instant>) {
        let Queues {
            orders: mut order_queue,
            outcomes: mut outcome_queue,
            credentials: mut credential_queue,
            keys: mut key_queue,
        } = queues;
        let mut orders = Vec::with_capacity(ACCEPTS_AT_ONCE);
        let mut outcomes = Vec::with_capacity(OUTCOMES_AT_ONCE);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.pump();
            if self.is_done(&order_queue) {
                break;
            }
            let wake_at = self.wake_at();
            let event = tokio::select! {
                finished = self.journal.finished() => Event::Finished(finished),
                _ = outcome_queue.recv_many(&mut outcomes, OUTCOMES_AT_ONCE), if is_open(&outcome_queue) => Event::Outcomes,
                _ = order_queue.recv_many(&mut orders, ACCEPTS_AT_ONCE), if self.takes(&order_queue) => Event::Orders,
                loaded = next_loaded(&mut self.loading) => Event::Loaded(loaded),
                Some(service) = credential_queue.recv() => Event::CredentialChanged(service),
                Some(change) = key_queue.recv() => Event::KeysChanged(change),
                _ = self.effects_out.reserve(), if self.machine.has_effects() => Event::Time,
                deadline = &mut stopped, if self.stop_at.is_none() => Event::Stop(deadline.ok()),
                _ = tick.tick() => Event::Tick,
                () = std::future::ready(()), if self.is_sending => Event::Time,
                () = tokio::time::sleep_until(wake_at) => Event::Time,
            };
            let now_ms = self.now_ms();
            match event {
                Event::Finished(finished) => {
                    self.machine.handle_written(finished.durable);
                    self.machine.handle_write_failed(finished.refused);
                }
                Event::Outcomes => {
                    for (id, outcome) in outcomes.drain(..) {
                        self.machine.handle_outcome(id, outcome, now_ms, self.random.number());
                    }
                }
                Event::Orders => orders.drain(..).for_each(|order| match order {
                    Order::Accept(accept) => self.accept(accept, now_ms),
                    Order::Withdraw(devices) => self.machine.withdraw(&devices, now_ms),
                }),
                Event::Loaded(loaded) => loaded.into_iter().for_each(|(id, sealed)| match sealed {
                    Some(sealed) => self.machine.handle_loaded(id, sealed),
                    None => self.machine.handle_unreadable(id),
                }),
                Event::CredentialChanged(service) => self.machine.handle_credential_changed(service, now_ms),
                Event::KeysChanged(change) => self.journal.use_keys(change),
                Event::Stop(deadline) => {
                    // Without a deadline whoever ran this is gone.
                    self.stop_at = Some(deadline.unwrap_or_else(Instant::now));
                    order_queue.close();
                }
                Event::Tick => self.tick(now_ms),
                Event::Time => {}
            }
        }
        // A read that nobody waits for would keep its connection.
        self.loading = None;
        self.reader.close().await;
        let now_ms = self.now_ms();
        report::report(&self.machine, now_ms);
        self.journal.close(unix_ms()).await;
    }

    /// Carries what the machine decided to the file, the lanes and the others.
    fn pump(&mut self) {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        if self.machine.next_deadline().is_some_and(|deadline| deadline <= now_ms) {
            self.machine.handle_timeout(now_ms);
        }
        // Before anything is sent, which may depend on it.
        self.hand_over_effects();
        self.is_sending = false;
        if self.stop_at.is_none_or(|stop_at| now < stop_at) {
            self.is_sending = true;
            for _ in 0..SENDS_AT_ONCE {
                let Some(push) = self.machine.poll_send(now_ms) else {
                    self.is_sending = false;
                    break;
                };
                self.send(push, now_ms);
            }
            if self.loading.is_none() {
                let ids = self.machine.poll_load(LOAD_AT_ONCE, now_ms);
                let reader = self.reader.clone();
                let read = move |ids: Vec<EntryId>| {
                    let reader = reader.clone();
                    async move { reader.load_bodies(&ids).await }
                };
                self.loading = (!ids.is_empty()).then(|| load(ids, read, LOAD_PAUSE).boxed());
            }
        }
        while let Some(write) = self.machine.poll_write() {
            match write {
                Write::Remove(id) => self.journal.remove(id, now),
                Write::Change { id, attempt, fallback } => self.journal.change(Change { id, attempt, fallback }, now),
            }
        }
        self.journal.start(now, unix_ms());
    }

    fn send(&mut self, push: Push, now_ms: i64) {
        let id = push.id;
        let lane = self.lanes.iter().find(|lane| lane.service == push.sealed.service);
        if lane.is_none_or(|lane| lane.pushes.try_send(push).is_err()) {
            // The channel holds as many as may be under way: its dispatch has ended before us, or is stuck.
            let outcome = Outcome::Held { pause: HELD };
            self.machine.handle_outcome(id, outcome, now_ms, self.random.number());
        }
    }

    fn accept(&mut self, accept: Accept, now_ms: i64) {
        let Accept { wakeups, marks, done } = accept;
        let mut entries = Vec::with_capacity(wakeups.len());
        for sealed in wakeups {
            match self.machine.accept(sealed, PushId(self.random.take()), now_ms) {
                Ok(entry) => entries.push(entry),
                Err(rejected) => metrics::counter!("outbox_rejected_total", "reason" => rejected.label()).increment(1),
            }
        }
        let refused = self.journal.add(entries, marks, done);
        self.machine.handle_write_failed(refused);
    }

    /// As far as there is room: what waits stays with the machine, which lets its lane wait.
    fn hand_over_effects(&mut self) {
        while self.machine.has_effects() {
            match self.effects_out.try_reserve() {
                Ok(place) => {
                    if let Some(effect) = self.machine.poll_effect() {
                        place.send(effect);
                    }
                }
                Err(TrySendError::Full(())) => return,
                // Nobody listens any more.
                Err(TrySendError::Closed(())) => drop(self.machine.poll_effect()),
            }
        }
    }

    fn tick(&mut self, now_ms: i64) {
        report::report(&self.machine, now_ms);
        let since_ms = unix_ms().saturating_sub(millis(self.marks_kept));
        self.journal.forget_marks_before(since_ms, Instant::now());
    }

    fn now_ms(&mut self) -> i64 {
        let now_ms = self.clock.now_ms(Instant::now());
        self.machine.note_wall_clock(now_ms, unix_ms());
        now_ms
    }

    fn takes(&self, queue: &mpsc::Receiver<Order>) -> bool {
        self.journal.room() > 0 && is_open(queue)
    }

    fn is_done(&mut self, queue: &mpsc::Receiver<Order>) -> bool {
        let Some(stop_at) = self.stop_at else { return false };
        let under_way = Service::ALL
            .into_iter()
            .any(|service| self.machine.in_flight(service) > 0);
        let now_ms = self.now_ms();
        // Bounded steps may have left something that is due.
        let is_due = self.machine.next_deadline().is_some_and(|due_ms| due_ms <= now_ms);
        let sends = under_way || self.loading.is_some() || is_due;
        let finished = !sends && queue.is_empty() && self.journal.is_idle() && !self.machine.has_effects();
        finished || stop_at <= Instant::now()
    }

    /// When there is something to do although nothing happens.
    fn wake_at(&mut self) -> Instant {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        // What is due already waits for something else that is announced: a body, or the end of a commit.
        let soon = now + SOON;
        let machine = self.machine.next_deadline().map(|deadline_ms| {
            let wait_ms = deadline_ms.saturating_sub(now_ms).clamp(0, LONGEST_WAIT_MS);
            (now + Duration::from_millis(wait_ms.unsigned_abs())).max(soon)
        });
        let journal = self.journal.poll_timeout(now);
        [machine, journal, self.stop_at]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + TICK)
    }
}

/// Whether something may come, or has.
fn is_open<T>(queue: &mpsc::Receiver<T>) -> bool {
    !(queue.is_closed() && queue.is_empty())
}

async fn next_loaded(loading: &mut Option<BoxFuture<'static, Loaded>>) -> Loaded {
    let Some(load) = loading else {
        return std::future::pending().await;
    };
    let loaded = load.await;
    *loading = None;
    loaded
}

/// Random bytes from the system, fetched many at a time.
struct Random {
    buffer: [u8; 4_096],
    taken: usize,
}

impl Random {
    fn new() -> Result<Self, OutboxError> {
        let mut random = Self {
            buffer: [0; 4_096],
            taken: 0,
        };
        getrandom::fill(&mut random.buffer).map_err(|_| OutboxError::NoRandomness)?;
        Ok(random)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        if let Some(bytes) = self.buffer.get(self.taken..).and_then(|rest| rest.first_chunk()) {
            self.taken += N;
            return *bytes;
        }
        // It worked at the start. Should it fail now, bytes repeat: providers see one name twice, retries lose their spread.
        let _ = getrandom::fill(&mut self.buffer);
        self.taken = 0;
        self.buffer.first_chunk().copied().unwrap_or([0; N])
    }

    fn number(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxSettings {
    pub path: PathBuf,
    /// Wakeups kept at most; beyond that the least valuable goes first, of these the oldest, from the lane that has
    /// more than its share if there is one.
    pub max_entries: usize,
    /// Wakeup bodies kept in memory, bytes; the rest waits on disk.
    pub memory: usize,
    /// What is answered or written over is gone from the WAL too after this time. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub erase_after: Duration,
}

impl OutboxSettings {
    pub fn is_erased_in_time(&self) -> bool {
        self.erase_after <= LONGEST_ERASE_AFTER
    }
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self {
            path: "data/outbox.db".into(),
            max_entries: 1_000_000,
            memory: 64 << 20,
            erase_after: ERASE_AFTER,
        }
    }
}

/// Why a wakeup was not accepted. Its message does not count as seen. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    #[error("the disk of the outbox is full")]
    DiskFull,
    #[error("the outbox cannot be read or written now")]
    Unavailable,
    #[error("another notifier uses this file")]
    InUse,
    #[error("the file of the outbox is damaged or no database")]
    Damaged,
    #[error("the file of the outbox was written by another version of the notifier")]
    Version,
    #[error("the file of the outbox is sealed under a key that row_key_file does not hold: put that key back")]
    ForeignRowKey,
    #[error("the outbox is closed")]
    Closed,
    #[error("more wakeups at once than one commit may take")]
    TooLarge,
    #[error("the system gives no random numbers")]
    NoRandomness,
    #[error("the database refused a statement (code {code})")]
    Internal { code: i32 },
}

impl OutboxError {
    pub const fn label(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::Unavailable => "unavailable",
            Self::InUse => "in_use",
            Self::Damaged => "damaged",
            Self::Version => "version",
            Self::ForeignRowKey => "foreign_row_key",
            Self::Closed => "closed",
            Self::TooLarge => "too_large",
            Self::NoRandomness => "no_randomness",
            Self::Internal { .. } => "internal",
        }
    }

    /// Whether the same wakeups can be accepted later.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::DiskFull | Self::Unavailable)
    }

    /// Whether it stays until somebody changes a setting or a key file.
    pub const fn is_of_settings(self) -> bool {
        matches!(self, Self::ForeignRowKey)
    }
}

impl From<SqliteFault> for OutboxError {
    fn from(fault: SqliteFault) -> Self {
        match fault {
            SqliteFault::DiskFull => Self::DiskFull,
            SqliteFault::Io | SqliteFault::Busy => Self::Unavailable,
            SqliteFault::InUse => Self::InUse,
            SqliteFault::Damaged => Self::Damaged,
            SqliteFault::Version => Self::Version,
            SqliteFault::ForeignRowKey => Self::ForeignRowKey,
            SqliteFault::NoRandomness => Self::NoRandomness,
            SqliteFault::Closed => Self::Closed,
            SqliteFault::Internal { code } => Self::Internal { code },
        }
    }
}

/// Groups of wakeups waiting for the task; beyond that `accept` waits.
const ACCEPTS: usize = 4_096;

const ACCEPTS_AT_ONCE: usize = 256;

/// What the task does of each kind before it looks at the others: a lane with much to do keeps no wakeup of another for long.
const OUTCOMES_AT_ONCE: usize = 256;
const SENDS_AT_ONCE: usize = 256;

const CREDENTIALS: usize = 8;

/// Bodies in one read.
const LOAD_AT_ONCE: usize = 256;

/// Metrics, and marks that are too old. A commit of marks takes at most 4,096 rows: 2,000 a second can go.
const TICK: Duration = Duration::from_secs(2);

/// Before a failed read is tried again.
const LOAD_PAUSE: Duration = Duration::from_secs(1);

/// Before a lane whose dispatch takes nothing is asked again.
const HELD: Duration = Duration::from_secs(1);

const SOON: Duration = Duration::from_millis(2);

const LONGEST_WAIT_MS: i64 = 60_000;

#[cfg(test)]
mod tests;
