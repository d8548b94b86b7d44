//! Which storage nodes are watched, and what each is asked when.
//!
//! In: node lists, accounts, what became of links and requests, the time. Out: `Action`s and the next deadline.
//! Never: opens a link, reads a row, or keeps a record longer than a node needs it.
//!
//! The unit is the swarm: its first k reachable nodes (by rendezvous hash) are watched for all its accounts. Accounts lie
//! in chunks of one request each; what a node holds is one lease per (node, chunk), never anything per (node, account). What is
//! new goes out as a delta within a moment, and is renewed with its chunk from then on.

mod chunk;
mod delta;
mod reply;
mod swarm_watch;

pub use reply::RecordFault;

use crate::account::AccountId;
use crate::swarm::{Node, NodeKey, SwarmId, SwarmRing, rendezvous};
use bytes::Bytes;
use chunk::{Chunks, Placed, Renewal};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use swarm_watch::{RETRY, SwarmWatch};

#[derive(Clone, Debug)]
pub struct WatchSettings {
    /// k: how many nodes of each swarm are watched. At least 1.
    pub nodes_per_swarm: usize,
    /// Records in one request at most. At least 1.
    pub records_per_request: usize,
    /// A lease is renewed after a random time between these two.
    pub renew_after_min: Duration,
    pub renew_after_max: Duration,
    /// New links a second at most. At least 1.
    pub dials_per_second: u32,
    /// Bytes of new records that may wait for links; beyond that [`Watch::is_congested`]. As many again for renewals.
    pub pending_bytes: usize,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            nodes_per_swarm: 3,
            records_per_request: 500,
            renew_after_min: Duration::from_secs(45 * 60),
            renew_after_max: Duration::from_secs(55 * 60),
            dials_per_second: 400,
            pending_bytes: 64 << 20,
        }
    }
}

/// What the shell does next, in this order.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a link; answer with `handle_link_up` or `handle_link_down`.
    Dial(Node),
    /// Close the link or give up its dial. Nothing of it may be reported any more.
    Hang(NodeKey),
    /// Send `monitor.messages`; answer with `handle_reply` unless the link goes down.
    Request { node: NodeKey, request: u64, body: Bytes },
    /// Read the records of these accounts; answer with `handle_records` or `handle_records_failed`.
    NeedRecords { batch: BatchId, accounts: Vec<AccountId> },
}

/// A body is full of accounts: lengths only.
impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dial(_) => f.write_str("Dial(<private>)"),
            Self::Hang(_) => f.write_str("Hang(<private>)"),
            Self::Request { request, body, .. } => write!(f, "Request {{ {request}, {} bytes }}", body.len()),
            Self::NeedRecords { batch, accounts } => {
                write!(f, "NeedRecords {{ {}, {} accounts }}", batch.0, accounts.len())
            }
        }
    }
}

/// One reading of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchId(u64);

/// How a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// It never came up.
    DialFailed,
    Lost,
}

/// Why a request has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyFault {
    Timeout,
    /// FORBIDDEN, UNKNOWNCOMMAND and the like.
    Refused,
    /// It did not leave.
    NotSent,
}

impl ReplyFault {
    pub const ALL: [Self; 3] = [Self::Timeout, Self::Refused, Self::NotSent];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::NotSent => "not_sent",
        }
    }
}

/// How much of the watch stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub accounts: usize,
    /// Answered for by k nodes of their swarm (by all, where there are fewer) over links that are up. A record that they refuse
    /// again and again counts until its renewal: `records_refused` tells.
    pub covered: usize,
    pub swarms: usize,
    /// Swarms with k links up.
    pub swarms_linked: usize,
    pub links_up: usize,
    pub links_wanted: usize,
    pub requests_in_flight: usize,
    /// Bytes of records held, new ones and renewals.
    pub pending_bytes: usize,
}

/// Totals since the start, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub dials: u64,
    pub dials_failed: u64,
    pub links_lost: u64,
    /// Links given up because requests went unanswered.
    pub links_deaf: u64,
    pub requests: u64,
    pub records_sent: u64,
    pub records_accepted: u64,
    /// In the order of [`RecordFault::ALL`].
    pub records_refused: [u64; RecordFault::ALL.len()],
    /// In the order of [`ReplyFault::ALL`].
    pub requests_failed: [u64; ReplyFault::ALL.len()],
    pub replies_unreadable: u64,
    pub replies_unasked: u64,
    pub retries: u64,
    pub deltas_dropped: u64,
    pub loads: u64,
    pub loads_failed: u64,
}

impl Counters {
    fn count_fault(&mut self, fault: ReplyFault) {
        for (total, known) in self.requests_failed.iter_mut().zip(ReplyFault::ALL) {
            *total += u64::from(known == fault);
        }
    }

    /// Records that a node refused because it is not in charge: the node list is old.
    pub fn wrong_swarm(&self) -> u64 {
        let mut faults = self.records_refused.iter().zip(RecordFault::ALL);
        faults
            .find(|(_, fault)| *fault == RecordFault::WrongSwarm)
            .map_or(0, |(total, _)| *total)
    }
}

pub struct Watch {
    instance: [u8; 32],
    ring: Arc<SwarmRing>,
    swarms: BTreeMap<SwarmId, SwarmWatch>,
    /// Accounts for whom no node is known yet.
    homeless: Chunks,
    deadlines: BTreeSet<(Instant, SwarmId)>,
    /// Not before this a further dial, bursts apart.
    dial_at: Option<Instant>,
    shared: Shared,
}

impl Watch {
    /// `instance`: the public key of our links, so that two notifiers prefer different nodes.
    pub fn new(settings: WatchSettings, instance: [u8; 32], seed: u64) -> Self {
        let settings = WatchSettings {
            nodes_per_swarm: settings.nodes_per_swarm.max(1),
            records_per_request: settings.records_per_request.max(1),
            dials_per_second: settings.dials_per_second.max(1),
            renew_after_max: settings.renew_after_max.max(settings.renew_after_min),
            ..settings
        };
        Self {
            instance,
            ring: Arc::default(),
            swarms: BTreeMap::new(),
            homeless: Chunks::default(),
            deadlines: BTreeSet::new(),
            dial_at: None,
            shared: Shared::new(settings, seed),
        }
    }

    /// The swarms as they are now. Nodes that left are hung up before anybody new is asked.
    pub fn handle_nodes(&mut self, ring: Arc<SwarmRing>, now: Instant) {
        let mut moved = self.homeless.extract(|_| true);
        let known: BTreeSet<SwarmId> = ring.swarms().collect();
        let same_swarms = self.swarms.keys().eq(known.iter());
        let shared = &mut self.shared;
        self.swarms.retain(|id, swarm| {
            let stays = known.contains(id);
            if !stays {
                moved.extend(swarm.dissolve(now, shared));
                if let Some(wake) = swarm.wake {
                    self.deadlines.remove(&(wake, *id));
                }
            }
            stays
        });
        for id in known {
            let order = rendezvous(&self.instance, id, ring.nodes_of(id))
                .into_iter()
                .cloned()
                .collect();
            self.swarms
                .entry(id)
                .or_insert_with(|| SwarmWatch::new(id))
                .set_order(order, now, shared);
        }
        if !same_swarms {
            for (id, swarm) in &mut self.swarms {
                moved.extend(swarm.extract(|account| ring.swarm_of(account) != Some(*id), now, shared));
            }
        }
        self.ring = ring;
        for account in moved {
            let swarm = self.ring.swarm_of(&account).and_then(|id| self.swarms.get_mut(&id));
            match swarm {
                Some(swarm) => swarm.adopt(account, now, &mut self.shared),
                None => self.make_homeless(account, now),
            }
        }
        let all: Vec<SwarmId> = self.swarms.keys().copied().collect();
        for id in all {
            self.work(id, now);
        }
        self.after(now);
    }

    /// A new account, or one with a new record: out within a moment. Without `record` it is asked for.
    pub fn handle_account_changed(&mut self, account: AccountId, record: Option<Bytes>, now: Instant) {
        let Some(swarm) = self.ring.swarm_of(&account).and_then(|id| self.swarms.get_mut(&id)) else {
            self.make_homeless(account, now);
            return;
        };
        let before = swarm.wake;
        let _: Placed = swarm.change(account, record, now, &mut self.shared);
        let wake = match (swarm.wake, swarm.open_until()) {
            (Some(wake), Some(open)) => Some(wake.min(open)),
            (wake, open) => wake.or(open),
        };
        swarm.wake = wake;
        if before != wake {
            let id = swarm.id;
            self.reschedule(id, before, wake);
        }
        self.after(now);
    }

    /// The last device of the account is gone: nobody is asked about it again.
    pub fn handle_account_removed(&mut self, account: &AccountId) {
        match self.ring.swarm_of(account).and_then(|id| self.swarms.get_mut(&id)) {
            Some(swarm) => _ = swarm.remove(account, &mut self.shared),
            None => _ = self.homeless.remove(account, self.shared.settings.records_per_request),
        }
    }

    /// The records of a batch, by account; an account without any may be left out.
    pub fn handle_records(&mut self, batch: BatchId, records: Vec<(AccountId, Vec<Bytes>)>, now: Instant) {
        let Some(load) = self.shared.loads.remove(&batch) else {
            return;
        };
        if let Some(swarm) = self.swarms.get_mut(&load.swarm()) {
            match load {
                Load::Chunk { .. } => swarm.chunk_loaded(batch, records, now, &mut self.shared),
                Load::Delta { .. } => swarm.delta_loaded(records, now, &mut self.shared),
            }
            self.work(load.swarm(), now);
        }
        self.after(now);
    }

    pub fn handle_records_failed(&mut self, batch: BatchId, now: Instant) {
        let Some(load) = self.shared.loads.remove(&batch) else {
            return;
        };
        self.shared.counters.loads_failed += 1;
        let id = load.swarm();
        if let Some(swarm) = self.swarms.get_mut(&id) {
            let accounts = match &load {
                Load::Chunk { .. } => &[][..],
                Load::Delta { accounts, .. } => accounts,
            };
            swarm.load_failed(batch, accounts, now, &mut self.shared);
            self.work(id, now);
        }
        self.after(now);
    }

    pub fn handle_link_up(&mut self, node: NodeKey, now: Instant) {
        let Some(swarm) = self.swarm_of_member(&node) else {
            return;
        };
        if swarm.link_up(node, now) {
            let id = swarm.id;
            self.work(id, now);
            self.after(now);
        }
    }

    pub fn handle_link_down(&mut self, node: NodeKey, end: LinkEnd, now: Instant) {
        let Some(id) = self.shared.swarm_by_member.get(&node).copied() else {
            return;
        };
        if let Some(swarm) = self.swarms.get_mut(&id) {
            swarm.link_down(node, end, now, &mut self.shared);
            self.work(id, now);
            self.after(now);
        }
    }

    pub fn handle_reply(&mut self, node: NodeKey, request: u64, result: Result<&[Bytes], ReplyFault>, now: Instant) {
        let Some(id) = self.shared.swarm_by_member.get(&node).copied() else {
            return;
        };
        if let Some(swarm) = self.swarms.get_mut(&id) {
            swarm.reply(node, request, result, now, &mut self.shared);
            self.work(id, now);
            self.after(now);
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            if let Some(swarm) = self.swarms.get_mut(&id) {
                swarm.wake = None;
                self.work(id, now);
            }
        }
        self.after(now);
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.shared.actions.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let dial = if self.shared.dials.is_empty() {
            None
        } else {
            self.dial_at
        };
        match (deadline, dial) {
            (Some(deadline), Some(dial)) => Some(deadline.min(dial)),
            (deadline, dial) => deadline.or(dial),
        }
    }

    /// Too many bytes of records wait for links: whoever streams accounts in should pause.
    pub fn is_congested(&self) -> bool {
        self.shared.delta_bytes >= self.shared.settings.pending_bytes
    }

    pub fn coverage(&self) -> Coverage {
        let mut total = Coverage {
            accounts: self.homeless.accounts(),
            swarms: self.swarms.len(),
            pending_bytes: self.shared.delta_bytes + self.shared.body_bytes,
            ..Coverage::default()
        };
        for swarm in self.swarms.values() {
            let coverage = swarm.coverage(self.shared.settings.nodes_per_swarm);
            total.accounts += coverage.accounts;
            total.covered += coverage.covered;
            total.swarms_linked += usize::from(coverage.enough_links);
            total.links_up += coverage.links_up;
            total.links_wanted += coverage.links_wanted;
            total.requests_in_flight += swarm.in_flight();
        }
        total
    }

    /// Whether another node of the swarm could report a message too.
    pub fn swarm_has_second_link(&self, swarm: SwarmId, except: NodeKey) -> bool {
        self.swarms.get(&swarm).is_some_and(|swarm| swarm.other_link_up(except))
    }

    pub const fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn swarm_of_member(&mut self, node: &NodeKey) -> Option<&mut SwarmWatch> {
        self.shared
            .swarm_by_member
            .get(node)
            .and_then(|id| self.swarms.get_mut(id))
    }

    fn make_homeless(&mut self, account: AccountId, now: Instant) {
        let never = Renewal { since: now, at: now };
        self.homeless.insert(
            account,
            self.shared.settings.records_per_request,
            || (Vec::new(), never),
            |_| never,
        );
    }

    fn work(&mut self, id: SwarmId, now: Instant) {
        let Some(swarm) = self.swarms.get_mut(&id) else { return };
        let before = swarm.wake;
        swarm.work(now, &mut self.shared);
        let after = swarm.wake;
        self.reschedule(id, before, after);
    }

    fn reschedule(&mut self, id: SwarmId, before: Option<Instant>, after: Option<Instant>) {
        if let Some(before) = before {
            self.deadlines.remove(&(before, id));
        }
        if let Some(after) = after {
            self.deadlines.insert((after, id));
        }
    }

    /// What any event may have made room for.
    fn after(&mut self, now: Instant) {
        while self.shared.may_load()
            && let Some(id) = self.shared.starved.pop_front()
        {
            self.work(id, now);
        }
        let interval = Duration::from_secs(1) / self.shared.settings.dials_per_second;
        while self.dial_at.is_none_or(|at| at <= now)
            && let Some((id, key)) = self.shared.dials.pop_front()
        {
            let Some(node) = self.swarms.get_mut(&id).and_then(|swarm| swarm.take_dial(key)) else {
                continue;
            };
            self.shared.counters.dials += 1;
            self.shared.actions.push_back(Action::Dial(node));
            // A timer that comes late may catch up with what it missed, but no more.
            let missed = now.checked_sub(DIAL_BURST).unwrap_or(now);
            self.dial_at = Some(self.dial_at.unwrap_or(missed).max(missed) + interval);
        }
    }
}

/// What the swarms have in common.
struct Shared {
    settings: WatchSettings,
    random: Random,
    counters: Counters,
    actions: VecDeque<Action>,
    dials: VecDeque<(SwarmId, NodeKey)>,
    swarm_by_member: HashMap<NodeKey, SwarmId>,
    loads: HashMap<BatchId, Load>,
    /// Swarms that wait for room to load a body, each once.
    starved: VecDeque<SwarmId>,
    /// Bytes of chunk bodies.
    body_bytes: usize,
    /// The largest so far: what a load under way is taken to bring.
    largest_body: usize,
    /// Bytes of delta bodies.
    delta_bytes: usize,
    last_id: u64,
}

/// What a batch of records is read for.
enum Load {
    Chunk { swarm: SwarmId },
    Delta { swarm: SwarmId, accounts: Vec<AccountId> },
}

impl Load {
    const fn swarm(&self) -> SwarmId {
        match self {
            Self::Chunk { swarm } | Self::Delta { swarm, .. } => *swarm,
        }
    }
}

impl Shared {
    fn new(settings: WatchSettings, seed: u64) -> Self {
        Self {
            settings,
            random: Random(seed),
            counters: Counters::default(),
            actions: VecDeque::new(),
            dials: VecDeque::new(),
            swarm_by_member: HashMap::new(),
            loads: HashMap::new(),
            starved: VecDeque::new(),
            body_bytes: 0,
            largest_body: 64 << 10,
            delta_bytes: 0,
            last_id: 0,
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn request(&mut self, node: NodeKey, body: Bytes, records: usize) -> u64 {
        let request = self.next_id();
        self.counters.requests += 1;
        self.counters.records_sent += u64::try_from(records).unwrap_or(u64::MAX);
        self.actions.push_back(Action::Request { node, request, body });
        request
    }

    fn may_load(&self) -> bool {
        let expected = self.loads.len().saturating_add(1).saturating_mul(self.largest_body);
        self.loads.len() < MOST_LOADS
            && (self.body_bytes.saturating_add(expected) <= self.settings.pending_bytes
                || (self.loads.is_empty() && self.body_bytes == 0))
    }

    fn load(&mut self, load: Load, accounts: Vec<AccountId>) -> BatchId {
        let batch = BatchId(self.next_id());
        self.counters.loads += 1;
        self.loads.insert(batch, load);
        self.actions.push_back(Action::NeedRecords { batch, accounts });
        batch
    }

    fn starve(&mut self, swarm: SwarmId) {
        if !self.starved.contains(&swarm) {
            self.starved.push_back(swarm);
        }
    }

    fn retry_delay(&mut self, attempt: u32) -> Duration {
        RETRY.delay(attempt, self.random.next())
    }

    /// A renewal time. Its earliest tenth is left out, so that the nodes that answer a little later can share it.
    fn draw_renewal(&mut self, since: Instant) -> Renewal {
        let (min, max) = (self.settings.renew_after_min, self.settings.renew_after_max);
        let spread = max.saturating_sub(min);
        let part = u32::try_from(self.random.next() >> 33).unwrap_or(0);
        let drawn = (spread - spread / 10).mul_f64(f64::from(part) / f64::from(u32::MAX >> 1));
        Renewal {
            since,
            at: since + min + spread / 10 + drawn,
        }
    }

    /// Whether `at` is a renewal time for what was acknowledged at `now`.
    fn is_renewal(&self, at: Instant, now: Instant) -> bool {
        (now + self.settings.renew_after_min..=now + self.settings.renew_after_max).contains(&at)
    }
}

/// SplitMix64: only spreads timers.
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Batches of records being read at once.
const MOST_LOADS: usize = 16;
/// How far the pacing of dials may run ahead.
const DIAL_BURST: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests;
