//! The relay: one task that owns who is woken, and turns notifications into sealed wakeups.
//!
//! In: notifications of the watched nodes, changes of subscriptions. Out: wakeups and marks for the outbox. Never: reads a store,
//! sends, or keeps the text of a message longer than it takes to seal it.
//!
//! The order for one message: bounded parsing, the sender's rate, its swarm, was it seen, does it prove itself, whom does it concern,
//! seal, outbox. The mark is pending until the outbox has committed it.

mod budget;
mod gathered;
mod released;
mod swarms;

use super::settled::SettledClock;
use crate::outbox::{Accept, OutboxError, OutboxHandle};
use crate::watcher::Incoming;
use budget::Budgets;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use gathered::{Gathered, Messages};
use notifier_core::account::{AccountId, DeviceToken};
use notifier_core::confirm::{Confirm, ConfirmSettings, Verdict};
use notifier_core::event::{self, MessageEvent};
use notifier_core::fanout::{self, Dedupe, DedupeSettings, Index, MAX_DEVICES, Mark, MarkState, Removed, Upserted};
use notifier_core::outbox::Target;
use notifier_core::seal::{DeviceView, Notice, SealSettings, Sealed, Suppressed, seal};
use notifier_core::seeded::{RateLimit, Seed};
use notifier_core::subscription::{DeviceId, Subscription};
use notifier_core::swarm::{NodeKey, SwarmRing};
use quietline_shared::redact::Secret;
use released::Released;
use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use swarms::Swarms;
use tokio::sync::{mpsc, oneshot, watch};

/// Notifications taken at once. Large enough that one commit carries many, small enough that the first does not wait long.
const BATCH: usize = 256;

/// Wakeups on their way to the outbox at which the relay stops making more. With what one turn makes beyond it these are 18,431 at most: 20 to 60
/// MB, and 85 MB with all of them at their longest.
const MOST_UNDER_WAY: usize = 16_384;

/// A turn ends once so many wakeups are made, or messages marked: the message that reaches it makes [`MAX_DEVICES`] wakeups more at most, so a
/// commit never has more than 2,047 of one turn. What is left of the batch is the next turn's.
const TURN: usize = 1_024;
const _: () = assert!(TURN + MAX_DEVICES <= 2_048);

/// How often time-driven work is looked at.
const TICK: Duration = Duration::from_millis(250);

/// Places of the index looked at for expired or dead devices each tick.
const SWEEP: usize = 4_096;

/// Places of the index searched each tick for tokens that lost a subscription: a million devices in 8 s.
const SEARCH: usize = 32_768;

/// Dead tokens looked for in one round through the index; more wait for the next.
const MOST_DEAD: usize = 65_536;

pub struct RelaySettings {
    pub node_rate: NonZeroU32,
    pub node_burst: NonZeroU32,
    pub confirm: ConfirmSettings,
    pub dedupe: DedupeSettings,
    pub seal: SealSettings,
    /// Where the number of devices is shown to who lets further ones in.
    pub devices: Arc<AtomicUsize>,
}

/// What others may ask of the relay. What is private is in a box, which is overwritten when it ends; a place in a channel's queue keeps what
/// passed through it until something else does.
pub enum Command {
    /// A stored subscription.
    Put {
        subscription: Box<Subscription>,
        done: oneshot::Sender<Upserted>,
    },
    /// Stored subscriptions at the start, with the records of their renewal. Those that still stand come back.
    Load {
        subscriptions: Vec<(Subscription, Bytes)>,
        /// Those whose signature ran out since the last run.
        expired: Vec<DeviceId>,
        done: oneshot::Sender<Vec<(AccountId, Bytes)>>,
    },
    /// All stored subscriptions have come.
    LoadEnded,
    /// A device that is stored no more.
    Remove {
        device: Box<DeviceId>,
        done: oneshot::Sender<Removed>,
    },
    /// The devices of accounts, for their renewal.
    Devices {
        accounts: Vec<AccountId>,
        done: oneshot::Sender<Vec<DeviceId>>,
    },
}

/// What the relay tells.
pub enum Told {
    /// The last device of an account expired.
    AccountGone(Box<AccountId>),
    /// A device whose token its provider calls dead, since this time (Unix ms) where it said so.
    Dead {
        device: Box<DeviceId>,
        provider_time_ms: Option<i64>,
    },
}

pub struct Relay {
    settings: RelaySettings,
    index: Index,
    dedupe: Dedupe,
    confirm: Confirm,
    mark_key: Secret<[u8; 32]>,
    rate_by_node: HashMap<NodeKey, RateLimit>,
    swarms: Swarms,
    random: Random,
    dead: DeadTokens,
    released: Released,
    budgets: Budgets,
    /// What waits until its account has a budget again.
    gathered: Gathered,
    /// By which signatures run out.
    clock: SettledClock,
    /// Devices that were removed while the store is being read. `None` = it has been.
    removed_while_loading: Option<HashSet<DeviceId>>,
    counters: Counters,
}

/// Looked up once: these are counted for each copy or message.
struct Counters {
    notifications: metrics::Counter,
    copies: metrics::Counter,
    held: metrics::Counter,
    messages: metrics::Counter,
    over_budget: metrics::Counter,
    unbudgeted: metrics::Counter,
    unwanted: metrics::Counter,
}

impl Counters {
    fn new() -> Self {
        Self {
            notifications: metrics::counter!("event_notifications_total"),
            copies: metrics::counter!("fanout_copies_total"),
            held: metrics::counter!("confirm_held_total"),
            messages: metrics::counter!("fanout_messages_total"),
            over_budget: metrics::counter!("fanout_over_budget_total"),
            unbudgeted: metrics::counter!("fanout_unbudgeted_total"),
            unwanted: metrics::counter!("fanout_unwanted_total"),
        }
    }
}

/// The ends that the relay works between.
pub struct Ends {
    pub incoming: mpsc::Receiver<Incoming>,
    pub commands: mpsc::Receiver<Command>,
    pub dead: mpsc::Receiver<(Target, Option<i64>)>,
    pub outbox: OutboxHandle,
    pub told: mpsc::Sender<Told>,
}

type Committed = (Vec<Mark>, Result<(), OutboxError>);

impl Relay {
    pub fn new(
        settings: RelaySettings,
        mark_key: Secret<[u8; 32]>,
        seen: Vec<(Mark, i64)>,
        ring: watch::Receiver<Arc<SwarmRing>>,
    ) -> Self {
        let mut random = Random::new();
        let seed = Seed::new(random.take());
        let mut dedupe = Dedupe::new(settings.dedupe);
        let now_ms = unix_ms();
        for (mark, at_ms) in seen {
            dedupe.load(mark, at_ms, now_ms);
        }
        Self {
            index: Index::new(seed),
            dedupe,
            confirm: Confirm::new(settings.confirm, seed),
            mark_key,
            rate_by_node: HashMap::new(),
            swarms: Swarms::new(ring),
            random,
            dead: DeadTokens::default(),
            released: Released::default(),
            budgets: Budgets::new(seed),
            gathered: Gathered::new(seed),
            clock: SettledClock::new(Instant::now(), now_ms / 1000),
            removed_while_loading: Some(HashSet::new()),
            counters: Counters::new(),
            settings,
        }
    }

    /// Ends when the notifications' channel is closed and everything taken is committed.
    pub async fn run(mut self, mut ends: Ends) {
        let mut taken = Vec::with_capacity(BATCH);
        let mut batch = VecDeque::with_capacity(BATCH);
        let mut commits = FuturesUnordered::new();
        let mut under_way = 0;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut incoming_open = true;
        while incoming_open || !batch.is_empty() || !commits.is_empty() || !self.gathered.is_empty() {
            let has_room = under_way < MOST_UNDER_WAY;
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    self.sweep(&ends.told, Instant::now(), unix_ms());
                    let withdrawn = self.withdrawn();
                    if !withdrawn.is_empty() {
                        // The outbox is gone only when everything ends.
                        let _ = ends.outbox.withdraw(withdrawn).await;
                    }
                }
                Some((count, marks, result)) = commits.next() => {
                    let _: usize = count;
                    under_way -= count;
                    self.committed((marks, result));
                }
                Some(command) = ends.commands.recv() => self.obey(command),
                Some((target, since)) = ends.dead.recv(), if self.dead.has_room() => self.dead.add(target, since),
                count = ends.incoming.recv_many(&mut taken, BATCH), if incoming_open && batch.is_empty() && has_room => {
                    incoming_open = count > 0;
                    batch.extend(taken.drain(..));
                    if !incoming_open {
                        self.gathered.ripen(|_| true);
                    }
                }
                () = std::future::ready(()), if (!batch.is_empty() || self.gathered.has_due()) && has_room => {
                    let Turn { wakeups, marks } = self.turn_into_wakeups(&mut batch);
                    if wakeups.is_empty() {
                        continue;
                    }
                    let count = wakeups.len();
                    under_way += count;
                    let (done, answer) = oneshot::channel();
                    let names = marks.iter().map(|mark| *mark.expose()).collect();
                    // A full outbox makes the relay wait, the relay the links, the links the nodes.
                    let sent = ends.outbox.send(Accept { wakeups, marks: names, done }).await;
                    commits.push(async move {
                        let result = match sent {
                            Ok(()) => answer.await.unwrap_or(Err(OutboxError::Closed)),
                            Err(fault) => Err(fault),
                        };
                        (count, marks, result)
                    });
                }
            }
        }
    }

    /// Takes what gathered and may go, and from the batch, until nothing is left or the wakeups are as many as one turn makes.
    fn turn_into_wakeups(&mut self, batch: &mut VecDeque<Incoming>) -> Turn {
        let (now, now_ms) = (Instant::now(), unix_ms());
        self.swarms.refresh(now);
        let mut turn = Turn::default();
        while turn.has_room()
            && let Some((account, messages)) = self.gathered.take_due()
        {
            self.wake_once(account, messages, now, now_ms, &mut turn);
        }
        while turn.has_room()
            && let Some(incoming) = batch.pop_front()
        {
            self.counters.notifications.increment(1);
            let (rate, burst) = (self.settings.node_rate, self.settings.node_burst);
            let limit = self
                .rate_by_node
                .entry(incoming.node)
                .or_insert_with(|| RateLimit::new(rate, burst, now));
            if !limit.allow(now) {
                refuse("node_rate");
                continue;
            }
            let event = match event::parse(incoming.body) {
                Ok(event) => event,
                Err(refusal) => {
                    refuse(refusal.label());
                    continue;
                }
            };
            let mark = Mark::new(&self.mark_key, &event);
            if self.dedupe.check(&mark, now_ms) != MarkState::New {
                self.counters.copies.increment(1);
                continue;
            }
            let foreign = !self.swarms.has_say(incoming.swarm, &event.account);
            match self
                .confirm
                .handle(incoming.node, foreign, event, incoming.second_link_up, now)
            {
                Verdict::Release(event) => self.wake(event, mark, now, now_ms, &mut turn),
                Verdict::Held => self.counters.held.increment(1),
                Verdict::Refused(refusal) => refuse(refusal.label()),
            }
        }
        turn
    }

    fn wake(&mut self, event: MessageEvent, mark: Mark, now: Instant, now_ms: i64, turn: &mut Turn) {
        // What a message's time says is not proven by its hash, so an expired copy is not the message: another may be true.
        if event.expiry_ms <= now_ms {
            metrics::counter!("fanout_expired_total").increment(1);
            return;
        }
        if !self.dedupe.begin(mark, now_ms) {
            return;
        }
        if self.budgets.is_spent(&event.account, now) || self.gathered.holds(&event.account) {
            self.gather(event, mark, now, now_ms, turn);
            return;
        }
        let before = turn.wakeups.len();
        for device in self.index.fan_out(&event) {
            let token = DeviceToken::new(device.token);
            let sealed = seal(
                &event,
                sealing_view(&device, &token),
                &self.settings.seal,
                self.random.take(),
            );
            turn.wakeups.extend(sealed.inspect_err(count_suppressed));
        }
        let made = turn.wakeups.len().saturating_sub(before);
        if made == 0 {
            self.was_unwanted(&[mark]);
            return;
        }
        self.counters.messages.increment(1);
        turn.marks.push(mark);
        self.spend(event.account, made, now);
    }

    /// Beyond its budget an account's messages wait until it has one again. Then its devices hear, once for all of them, that something came.
    fn gather(&mut self, event: MessageEvent, mark: Mark, now: Instant, now_ms: i64, turn: &mut Turn) {
        let notice = Notice::of(event);
        let MessageEvent { account, namespace, .. } = *notice.event();
        let wakes_somebody = self.index.subscribed(&account).any(|(device, namespaces)| {
            namespaces.contains(namespace) && notice.suppressed(device.want_data, &self.settings.seal).is_none()
        });
        if !wakes_somebody {
            self.was_unwanted(&[mark]);
            return;
        }
        self.counters.messages.increment(1);
        self.counters.over_budget.increment(1);
        if let Some(messages) = self.gathered.add(notice, mark) {
            self.wake_once(account, messages, now, now_ms, turn);
        }
    }

    /// Each device hears of the message that is worth something longest of those that it wants.
    fn wake_once(&mut self, account: AccountId, messages: Messages, now: Instant, now_ms: i64, turn: &mut Turn) {
        let before = turn.wakeups.len();
        for (device, namespaces) in self.index.subscribed(&account) {
            let token = DeviceToken::new(device.token);
            let view = sealing_view(&device, &token);
            let sealed = messages
                .notices
                .iter()
                .filter(|notice| notice.event().expiry_ms > now_ms && namespaces.contains(notice.event().namespace))
                .find_map(|notice| {
                    let sealed = notice.seal(view, &self.settings.seal, self.random.take());
                    sealed.inspect_err(count_suppressed).ok()
                });
            turn.wakeups.extend(sealed);
        }
        let made = turn.wakeups.len().saturating_sub(before);
        if made == 0 {
            self.was_unwanted(&messages.marks);
            return;
        }
        turn.marks.extend(messages.marks);
        self.spend(account, made, now);
    }

    /// Nobody was woken by these copies. Namespace and times are their node's word, so another node's may be worth a wakeup.
    fn was_unwanted(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.counters.unwanted.increment(1);
            self.dedupe.abort(mark);
        }
    }

    fn spend(&mut self, account: AccountId, wakeups: usize, now: Instant) {
        let wakeups = u32::try_from(wakeups).unwrap_or(u32::MAX);
        if !self.budgets.spend(account, wakeups, now) {
            self.counters.unbudgeted.increment(1);
        }
    }

    fn committed(&mut self, (marks, result): Committed) {
        let now_ms = unix_ms();
        for mark in &marks {
            match result {
                Ok(()) => self.dedupe.commit(mark, now_ms),
                // The next node's copy, or a repetition of this one, is new again.
                Err(_) => self.dedupe.abort(mark),
            }
        }
        if result.is_err() {
            metrics::counter!("fanout_uncommitted_total").increment(marks.len() as u64);
        }
    }

    fn obey(&mut self, command: Command) {
        // Who asked may be gone; then nobody needs the answer.
        match command {
            Command::Put { subscription, done } => {
                if let Some(removed) = &mut self.removed_while_loading {
                    removed.remove(&subscription.device);
                }
                let device = &subscription.device;
                self.released.keep(device.service, &device.token);
                let _ = done.send(self.index.upsert(&subscription));
            }
            Command::Load {
                subscriptions,
                expired,
                done,
            } => {
                expired.into_iter().for_each(|device| self.released.add(device));
                let removed = self.removed_while_loading.get_or_insert_default();
                let mut standing = Vec::with_capacity(subscriptions.len());
                for (subscription, record) in subscriptions {
                    // A row may have been read before it was removed, or written over. Who wrote it over has told the watcher.
                    if !removed.contains(&subscription.device) && self.index.load(&subscription) != Upserted::Kept {
                        standing.push((subscription.device.account, record));
                    }
                }
                drop(done.send(standing));
            }
            Command::LoadEnded => self.removed_while_loading = None,
            Command::Remove { device, done } => {
                let found = self.index.remove(&device);
                if let Some(removed) = &mut self.removed_while_loading {
                    removed.insert((*device).clone());
                }
                self.released.add(*device);
                let _ = done.send(found);
            }
            Command::Devices { accounts, done } => {
                let devices = accounts
                    .iter()
                    .flat_map(|account| self.index.devices(account))
                    .collect();
                drop(done.send(devices));
            }
        }
    }

    /// Devices that nobody subscribes any more. While the store is being read nobody knows.
    fn withdrawn(&mut self) -> Vec<Target> {
        match self.removed_while_loading {
            Some(_) => Vec::new(),
            None => self.released.search(&self.index, SEARCH),
        }
    }

    /// Time-driven work, a bounded piece of it.
    fn sweep(&mut self, told: &mpsc::Sender<Told>, now: Instant, now_ms: i64) {
        self.confirm.handle_timeout(now);
        self.gathered.ripen(|account| !self.budgets.is_spent(account, now));
        self.budgets.sweep(now);
        self.dedupe.expire(now_ms, SWEEP);
        if self.rate_by_node.len() > self.swarms.nodes().saturating_mul(2) {
            self.rate_by_node.clear();
        }
        // What the channel has no room for is found again in the next round.
        let room = told.capacity();
        let settled_s = self.clock.now_s(now, now_ms / 1000);
        if room >= 2 * SWEEP {
            for (device, removed) in self.index.expire(settled_s, SWEEP) {
                if removed == Removed::LastDevice {
                    drop(told.try_send(Told::AccountGone(Box::new(device.account))));
                }
                self.released.add(device);
            }
            for (device, provider_time_ms) in self.dead.find(&self.index, SWEEP) {
                drop(told.try_send(Told::Dead {
                    device: Box::new(device),
                    provider_time_ms,
                }));
            }
        }
        self.settings.devices.store(self.index.len(), Ordering::Relaxed);
        metrics::gauge!("fanout_accounts").set(self.index.account_count() as f64);
        metrics::gauge!("fanout_devices").set(self.index.len() as f64);
        metrics::gauge!("fanout_marks").set(self.dedupe.len() as f64);
        metrics::gauge!("confirm_waiting").set(self.confirm.waiting() as f64);
        let confirm = self.confirm.counters();
        for (outcome, count) in [
            ("verified", confirm.verified),
            ("trusted", confirm.trusted),
            ("confirmed", confirm.confirmed),
            ("contested", confirm.contested),
            ("unconfirmed", confirm.unconfirmed),
            ("expired", confirm.expired),
        ] {
            metrics::counter!("confirm_messages_total", "outcome" => outcome).absolute(count);
        }
        metrics::counter!("confirm_failed_hashes_total").absolute(confirm.failed_hashes);
        metrics::counter!("fanout_evicted_marks_total").absolute(self.dedupe.counters().evicted);
    }
}

/// What one turn makes.
#[derive(Default)]
struct Turn {
    wakeups: Vec<Sealed>,
    marks: Vec<Mark>,
}

impl Turn {
    fn has_room(&self) -> bool {
        self.wakeups.len() < TURN && self.marks.len() < TURN
    }
}

fn sealing_view<'a>(device: &fanout::DeviceView<'a>, token: &'a DeviceToken) -> DeviceView<'a> {
    DeviceView {
        service: device.service,
        token,
        enc_key: device.enc_key,
        want_data: device.want_data,
    }
}

fn count_suppressed(reason: &Suppressed) {
    metrics::counter!("seal_suppressed_total", "reason" => reason.label()).increment(1);
}

fn refuse(reason: &'static str) {
    metrics::counter!("event_refused_total", "reason" => reason).increment(1);
}

/// Tokens that a provider called dead. An outbox entry does not know whose it was, so the index is searched, a piece at a time:
/// one round finds every account that the token belongs to.
#[derive(Default)]
struct DeadTokens {
    searched: HashMap<Target, Option<i64>>,
    waiting: HashMap<Target, Option<i64>>,
    /// Where the round goes on; `None` = no round.
    cursor: Option<usize>,
}

impl DeadTokens {
    fn has_room(&self) -> bool {
        self.waiting.len() < MOST_DEAD
    }

    fn add(&mut self, target: Target, since: Option<i64>) {
        self.waiting.insert(target, since);
    }

    fn find(&mut self, index: &Index, places: usize) -> Vec<(DeviceId, Option<i64>)> {
        if self.cursor.is_none() {
            if self.waiting.is_empty() {
                return Vec::new();
            }
            self.searched = std::mem::take(&mut self.waiting);
            self.cursor = Some(0);
        }
        let from = self.cursor.unwrap_or_default();
        let (found, next) = index.devices_from(from, places, |service, token| {
            self.searched.contains_key(&Target {
                service,
                token: DeviceToken::new(token),
            })
        });
        self.cursor = next;
        let found = found
            .into_iter()
            .map(|device| {
                let target = Target {
                    service: device.service,
                    token: device.token.clone(),
                };
                let since = self.searched.get(&target).copied().flatten();
                (device, since)
            })
            .collect();
        if next.is_none() {
            self.searched = HashMap::new();
        }
        found
    }
}

/// Nonces from the system, fetched a page at a time.
struct Random {
    page: Box<[u8; 4080]>,
    used: usize,
}

impl Random {
    fn new() -> Self {
        Self {
            page: Box::new([0; 4080]),
            used: 4080,
        }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > self.page.len() {
            // Without randomness nothing can be sealed, and going on would be worse than ending.
            getrandom::fill(self.page.as_mut_slice()).expect("the system gives randomness");
            self.used = 0;
        }
        let mut taken = [0; N];
        let piece = self.page.get_mut(self.used..self.used + N).expect("checked above");
        taken.copy_from_slice(piece);
        piece.fill(0);
        self.used += N;
        taken
    }
}

fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
