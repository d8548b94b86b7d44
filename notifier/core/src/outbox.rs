//! Wakeups not yet delivered: their order, retries, deadlines, and why one is dropped.
//!
//! In: `Sealed` wakeups, provider outcomes, two clocks. Out: what to send now, what to write, what to forget. Never: sends, or
//! touches a disk.
//!
//! `now_ms` is a clock of the outbox's own: milliseconds that nobody sets, forward or back. Pauses and lives are measured by it. What others
//! tell and are told is Unix time: a message's expiry, the deadline of an [`Entry`], a [`Restored`] or a [`Push`].
//! [`Outbox::note_wall_clock`] says how far the two are apart.
//!
//! The life of an entry: [`Outbox::accept`] → on disk ([`handle_written`](Outbox::handle_written)) → its turn
//! ([`poll_send`](Outbox::poll_send)) → [`handle_outcome`](Outbox::handle_outcome): done, dropped with a reason, or back in the queue. After each call
//! the shell takes what [`poll_write`](Outbox::poll_write), [`poll_effect`](Outbox::poll_effect), [`poll_load`](Outbox::poll_load) and `poll_send` give,
//! and calls [`handle_timeout`](Outbox::handle_timeout) at [`next_deadline`](Outbox::next_deadline).
//!
//! - A service has a lane of its own: what one provider does slows no other.
//! - Within a lane the more valuable class goes first, within a class the older entry.
//! - Nothing is sent before it is on disk, nor at or after its deadline.
//! - Of wakeups without a body one is as good as another: a newer one takes the place of one that waits for the same token.
//! - What waits for a device that is subscribed no more is dropped.
//! - Bodies beyond `memory` wait on disk and are asked for shortly before their turn.

mod backlog;
mod counters;
mod entries;
mod queue;
mod room;
mod withdrawn;

pub use crate::lane::{LaneSettings, LaneState, Outcome, Refusal, RetryReason, Scope};
pub use counters::{DropReason, LaneCounters};

use crate::account::{DeviceToken, Service};
use crate::seal::{Class, Sealed};
use crate::seeded::Seed;
use backlog::Backlog;
use entries::Entries;
use hashbrown::HashTable;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use withdrawn::Withdrawn;

/// An entry's row number in the outbox file. Grows, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub i64);

/// The name a provider sees for one wakeup, the same on each retry (APNs `apns-id`). 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PushId(pub [u8; 16]);

impl std::fmt::Debug for PushId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PushId(<private>)")
    }
}

/// A wakeup as the outbox file holds it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: EntryId,
    pub push_id: PushId,
    /// Shared with the outbox, so that the body exists once while it is written.
    pub sealed: Arc<Sealed>,
    /// Unix milliseconds: the message's expiry, but at least a minute after it was accepted and at most the service's cap.
    pub deadline_ms: i64,
    /// How many times a provider was asked.
    pub attempt: u32,
}

/// What a start must know of an entry; the wakeup itself stays on disk until it is its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    pub id: EntryId,
    pub push_id: PushId,
    pub service: Service,
    pub class: Class,
    /// Unix milliseconds.
    pub deadline_ms: i64,
    pub attempt: u32,
    /// Only the short form is sent from now on.
    pub fallback: bool,
    /// Bytes that the wakeup takes in memory, nearly.
    pub size: usize,
}

/// A wakeup to be sent now.
#[derive(Clone, Debug)]
pub struct Push {
    pub id: EntryId,
    pub push_id: PushId,
    pub sealed: Arc<Sealed>,
    /// Send the "too long" form.
    pub fallback: bool,
    /// Unix milliseconds: the provider should not keep it longer either.
    pub deadline_ms: i64,
    /// How many times a provider was asked before.
    pub attempt: u32,
}

impl Push {
    /// The form to send.
    pub fn body(&self) -> &[u8] {
        self.sealed
            .fallback
            .as_deref()
            .filter(|_| self.fallback)
            .unwrap_or(&self.sealed.body)
    }
}

/// Which device a lane waits for or forgets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub service: Service,
    pub token: DeviceToken,
}

/// What the outbox file must learn. The order counts: a `Remove` may concern an entry that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Remove(EntryId),
    Change { id: EntryId, attempt: u32, fallback: bool },
}

/// What others must learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Delete the token, unless it was registered after `provider_time_ms` (Unix milliseconds).
    TokenGone {
        target: Target,
        provider_time_ms: Option<i64>,
    },
    /// The credential is refused; an operator must act.
    LaneStopped(Service),
    /// The credential works again.
    LaneResumed(Service),
    /// A push came to no outcome: whoever had it is stuck. It is sent again.
    LaneStalled(Service),
}

impl Effect {
    const fn service(&self) -> Service {
        match self {
            Self::TokenGone { target, .. } => target.service,
            Self::LaneStopped(service) | Self::LaneResumed(service) | Self::LaneStalled(service) => *service,
        }
    }
}

/// Why a wakeup is not taken. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The outbox is full of what is worth more.
    Full,
    /// The service is not on offer.
    NoLane,
}

impl Rejected {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::NoLane => "no_lane",
        }
    }
}

#[derive(Clone, Debug)]
pub struct OutboxSettings {
    /// Entries at most, wherever their bodies are.
    pub max_entries: usize,
    /// Bytes of wakeup bodies kept in memory.
    pub memory: usize,
    /// By [`Service::place`].
    pub lanes: [LaneSettings; Service::COUNT],
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            memory: 64 << 20,
            lanes: [LaneSettings::with_concurrency(1_000); Service::COUNT],
        }
    }
}

impl OutboxSettings {
    pub fn set_lane(&mut self, service: Service, settings: LaneSettings) {
        if let Some(lane) = self.lanes.get_mut(service.place()) {
            *lane = settings;
        }
    }
}

/// How long a wakeup may be tried at most. Apple keeps only the newest for a sleeping phone anyway.
pub const fn lifetime(service: Service) -> Duration {
    match service {
        Service::Apns | Service::ApnsSandbox => Duration::from_secs(3600),
        Service::Firebase | Service::Webpush | Service::Huawei => Duration::from_secs(24 * 3600),
    }
}

/// Entries take 88 bytes each, about 10 more for finding them, and their bodies as far as `memory` goes.
pub struct Outbox {
    settings: OutboxSettings,
    seed: Seed,
    next_id: i64,
    entries: Entries,
    lanes: [Backlog; Service::COUNT],
    /// Entries that are tried again at a time of their own.
    retries: BTreeSet<(i64, entries::Place)>,
    /// Tokens that get too many, and the one entry of each that is kept.
    resting_tokens: HashMap<u64, queue::Resting, Seed>,
    token_ends: BTreeSet<(i64, u64)>,
    withdrawn: Withdrawn,
    /// Of each token the one wakeup of [`Class::TooLong`] that waits: a newer one takes its place. By the tokens' hash.
    too_long: HashTable<entries::Place>,
    /// Whose turn it is among the lanes.
    turn: usize,
    /// Unix time less the outbox's own: milliseconds, negative where Unix time is behind.
    wall_ahead_ms: i64,
    writes: VecDeque<Write>,
    effects: VecDeque<Effect>,
}

impl Outbox {
    /// `next_id`: beyond every id that the file ever had.
    pub fn new(settings: OutboxSettings, seed: Seed, next_id: EntryId) -> Self {
        let lanes =
            std::array::from_fn(|place| Backlog::new(settings.lanes.get(place).unwrap_or(&LaneSettings::ABSENT)));
        Self {
            settings,
            seed,
            next_id: next_id.0,
            entries: Entries::new(),
            lanes,
            retries: BTreeSet::new(),
            resting_tokens: HashMap::with_hasher(seed),
            token_ends: BTreeSet::new(),
            withdrawn: Withdrawn::new(seed),
            too_long: HashTable::new(),
            turn: 0,
            wall_ahead_ms: 0,
            writes: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// What the wall clock says at `now_ms`. One that was set right makes no wakeup too old, and none wait longer.
    pub const fn note_wall_clock(&mut self, now_ms: i64, wall_ms: i64) {
        self.wall_ahead_ms = wall_ms.saturating_sub(now_ms);
    }

    const fn to_own_time(&self, wall_ms: i64) -> i64 {
        wall_ms.saturating_sub(self.wall_ahead_ms)
    }

    const fn to_wall_time(&self, own_ms: i64) -> i64 {
        own_ms.saturating_add(self.wall_ahead_ms)
    }

    pub fn poll_write(&mut self) -> Option<Write> {
        self.writes.pop_front()
    }

    /// To be taken soon: a lane with many that nobody took sends nothing.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front()?;
        self.lanes[effect.service().place()].untold -= 1;
        Some(effect)
    }

    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Entries, in whatever state.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of bodies in memory or asked for.
    pub fn memory(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }

    /// Pushes under way.
    pub fn in_flight(&self, service: Service) -> u32 {
        self.backlog(service).lane.in_flight()
    }

    /// Pushes that may be under way at once; falls below the setting while the provider complains.
    pub fn limit(&self, service: Service) -> u32 {
        self.backlog(service).lane.limit()
    }

    /// Pushes a second that may go now; falls below the setting while the provider complains.
    pub fn rate(&self, service: Service) -> u32 {
        self.backlog(service).lane.rate()
    }

    pub fn lane_state(&self, service: Service, now_ms: i64) -> LaneState {
        self.backlog(service).lane.state(now_ms)
    }

    /// Entries that wait for their turn. Those under way or waiting to be tried again are not in it.
    pub fn queued(&self, service: Service, class: Class) -> usize {
        let backlog = self.backlog(service);
        let count = |lists: &[entries::List]| lists.get(class_of(class)).map_or(0, entries::List::len);
        count(&backlog.hot) + count(&backlog.cold)
    }

    pub fn counters(&self, service: Service) -> &LaneCounters {
        &self.backlog(service).counters
    }

    /// Bytes on the heap for keeping the entries, without bodies.
    pub fn overhead(&self) -> usize {
        self.entries.memory()
    }

    /// When a new entry may go at first; 0 = at once. Its own name at the provider is random, and good for a second use: it is not known
    /// before the wakeup arrives.
    fn first_turn(&self, lane: usize, class: Class, push_id: PushId, now_ms: i64, deadline_ms: i64) -> i64 {
        let jitter_ms = self.settings.lanes.get(lane).map_or(0, |lane| millis(lane.jitter));
        // Of a message that is soon over it takes no more than half the time that is left.
        let jitter_ms = jitter_ms.min(deadline_ms.saturating_sub(now_ms) / 2);
        if jitter_ms <= 0 || class == Class::Call {
            return 0;
        }
        let [a, b, c, d, ..] = push_id.0;
        now_ms.saturating_add(i64::from(u32::from_be_bytes([a, b, c, d])) % (jitter_ms + 1))
    }

    fn stall_after(&self, lane: usize) -> Duration {
        self.settings
            .lanes
            .get(lane)
            .map_or(Duration::MAX, |lane| lane.stall_after)
    }

    fn backlog(&self, service: Service) -> &Backlog {
        &self.lanes[service.place()]
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox")
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

const fn class_of(class: Class) -> usize {
    match class {
        Class::Call => 0,
        Class::Visible => 1,
        Class::Quiet => 2,
        Class::TooLong => 3,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
