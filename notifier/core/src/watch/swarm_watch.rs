//! The watch over one swarm: which of its nodes, which requests to each, and when next.
//!
//! In: what happened, and `now`. Out: actions in `Shared`, the time of the next work. Never: sends to a node that is not
//! in `order`.

mod accounts;
mod bodies;
mod requests;

use super::chunk::{Body, Chunks, Lease};
use super::delta::{Claim, Delta, Open};
use super::{Action, LinkEnd, Shared};
use crate::swarm::{Node, NodeKey, SwarmId};
use quietline_shared::backoff::Backoff;
use std::time::{Duration, Instant};

pub(super) struct SwarmWatch {
    pub id: SwarmId,
    /// Who is in charge, in the order of preference of this instance.
    order: Vec<Node>,
    members: Vec<Member>,
    pub chunks: Chunks,
    open: Open,
    deltas: Vec<Delta>,
    /// Where this swarm stands in the deadlines.
    pub wake: Option<Instant>,
}

/// A node that is watched or about to be.
struct Member {
    node: Node,
    link: Link,
    /// Failed dials in a row. Not 0 = unreachable, another node stands in.
    failures: u32,
    /// Links in a row that were lost and of which none after the first lived [`STABLE_LINK`].
    short_lives: u32,
    /// The first of the unanswered requests since the last answer.
    silent_since: Option<Instant>,
    in_flight: Vec<InFlight>,
}

/// Only a member that is `Up` is ever sent a request.
enum Link {
    /// Cooling down.
    Waiting {
        until: Instant,
    },
    /// In the queue of dials.
    Queued,
    Dialing,
    Up {
        since: Instant,
    },
}

struct InFlight {
    request: u64,
    records: usize,
    /// `None`: a chunk.
    delta: Option<u64>,
}

impl Member {
    const fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Another node stands in: it cannot be dialed, or it drops every link.
    const fn needs_stand_in(&self) -> bool {
        self.failures > 0 || self.short_lives >= FLAPPING
    }

    /// Up, or expected to be up soon: worth keeping a delta for.
    const fn is_live(&self) -> bool {
        match self.link {
            Link::Up { .. } => true,
            Link::Queued | Link::Dialing => self.failures == 0,
            Link::Waiting { .. } => false,
        }
    }
}

/// What one swarm adds to [`super::Coverage`].
pub(super) struct SwarmCoverage {
    pub accounts: usize,
    pub covered: usize,
    pub links_up: usize,
    pub links_wanted: usize,
    pub enough_links: bool,
}

impl SwarmWatch {
    pub fn new(id: SwarmId) -> Self {
        Self {
            id,
            order: Vec::new(),
            members: Vec::new(),
            chunks: Chunks::default(),
            open: Open::default(),
            deltas: Vec::new(),
            wake: None,
        }
    }

    /// Everything that is due now. Sets `wake`.
    pub fn work(&mut self, now: Instant, shared: &mut Shared) {
        if self.open.seal_at.is_some_and(|at| at <= now) {
            self.seal(now, shared);
        }
        for member in &mut self.members {
            match member.link {
                Link::Waiting { until } if until <= now => {
                    member.link = Link::Queued;
                    shared.dials.push_back((self.id, member.node.key));
                }
                Link::Up { since } if now.saturating_duration_since(since) >= STABLE_LINK => member.short_lives = 0,
                _ => {}
            }
        }
        self.select(now, shared);
        self.drop_old_bodies(now, shared);
        for index in 0..self.members.len() {
            self.fill(index, now, shared);
        }
        self.drop_unneeded_bodies(shared);
        self.wake = self.next_wake(now);
    }

    // ---- which nodes -------------------------------------------------------------------------------------------------

    /// A new list: nodes that left, or moved to another address, are hung up. `work` picks new ones.
    pub fn set_order(&mut self, order: Vec<Node>, now: Instant, shared: &mut Shared) {
        let stays = |member: &Member| order.contains(&member.node);
        while let Some(index) = self.members.iter().position(|member| !stays(member)) {
            self.remove_member(index, now, shared);
        }
        self.order = order;
    }

    /// The first k of the order that can be reached, and those that cannot before them.
    fn select(&mut self, now: Instant, shared: &mut Shared) {
        let mut wanted: Vec<NodeKey> = Vec::with_capacity(shared.settings.nodes_per_swarm);
        let mut reachable = 0;
        for node in &self.order {
            if reachable >= shared.settings.nodes_per_swarm {
                break;
            }
            wanted.push(node.key);
            let failing = self
                .members
                .iter()
                .any(|member| member.node.key == node.key && member.needs_stand_in());
            reachable += usize::from(!failing);
        }
        let missing: Vec<Node> = self
            .order
            .iter()
            .filter(|node| wanted.contains(&node.key) && !self.members.iter().any(|member| member.node.key == node.key))
            .cloned()
            .collect();
        for node in missing {
            self.add_member(node, now, shared);
        }
        if self.members.len() == wanted.len() {
            return;
        }
        // A stand-in goes only when those it stands in for hold everything.
        let settled = (0..self.members.len()).all(|index| {
            let Some(member) = self.members.get(index) else {
                return true;
            };
            !wanted.contains(&member.node.key) || member.needs_stand_in() || self.is_settled(index)
        });
        while let Some(index) = self
            .members
            .iter()
            .position(|member| !wanted.contains(&member.node.key) && (settled || !member.is_up()))
        {
            self.remove_member(index, now, shared);
        }
    }

    fn is_settled(&self, index: usize) -> bool {
        self.members.get(index).is_some_and(Member::is_up)
            && self
                .chunks
                .list
                .iter()
                .all(|chunk| matches!(chunk.leases.get(index), Some(Lease::Held { .. })))
    }

    fn add_member(&mut self, node: Node, now: Instant, shared: &mut Shared) {
        // A node is watched for one swarm only, whatever a list says.
        if shared.swarm_by_member.contains_key(&node.key) {
            return;
        }
        shared.swarm_by_member.insert(node.key, self.id);
        shared.dials.push_back((self.id, node.key));
        for chunk in &mut self.chunks.list {
            chunk.leases.push(Lease::Due { at: now, attempt: 0 });
        }
        for delta in &mut self.deltas {
            delta.claims.push(Claim::Done);
        }
        self.members.push(Member {
            node,
            link: Link::Queued,
            failures: 0,
            short_lives: 0,
            silent_since: None,
            in_flight: Vec::new(),
        });
    }

    fn remove_member(&mut self, index: usize, now: Instant, shared: &mut Shared) {
        self.forget_leases(index, now, shared);
        let member = self.members.remove(index);
        shared.swarm_by_member.remove(&member.node.key);
        if matches!(member.link, Link::Dialing | Link::Up { .. }) {
            shared.actions.push_back(Action::Hang(member.node.key));
        }
        for chunk in &mut self.chunks.list {
            chunk.leases.remove(index);
        }
        for delta in &mut self.deltas {
            delta.claims.remove(index);
        }
    }

    /// What a node held is gone with its link: all is due, nothing is under way, no delta waits for it.
    fn forget_leases(&mut self, index: usize, now: Instant, shared: &mut Shared) {
        if let Some(member) = self.members.get_mut(index) {
            member.in_flight.clear();
            member.silent_since = None;
        }
        for chunk in &mut self.chunks.list {
            if let Some(lease) = chunk.leases.get_mut(index) {
                *lease = Lease::Due { at: now, attempt: 0 };
            }
        }
        for delta in &mut self.deltas {
            if let Some(claim) = delta.claims.get_mut(index) {
                *claim = Claim::Done;
            }
        }
        self.drop_finished_deltas(shared);
    }

    /// Its turn in the queue of dials. `None` if it is not waiting for one.
    pub fn take_dial(&mut self, key: NodeKey) -> Option<Node> {
        let member = self.members.iter_mut().find(|member| member.node.key == key)?;
        if !matches!(member.link, Link::Queued) {
            return None;
        }
        member.link = Link::Dialing;
        Some(member.node.clone())
    }

    /// `false` if no link to this node was expected.
    pub fn link_up(&mut self, key: NodeKey, now: Instant) -> bool {
        let Some(member) = self.members.iter_mut().find(|member| member.node.key == key) else {
            return false;
        };
        if !matches!(member.link, Link::Dialing) {
            return false;
        }
        member.link = Link::Up { since: now };
        member.failures = 0;
        true
    }

    pub fn link_down(&mut self, key: NodeKey, end: LinkEnd, now: Instant, shared: &mut Shared) {
        let Some(index) = self.members.iter().position(|member| member.node.key == key) else {
            return;
        };
        let Some(member) = self.members.get_mut(index) else {
            return;
        };
        let lived = match member.link {
            Link::Up { since } => now.saturating_duration_since(since),
            Link::Dialing => Duration::ZERO,
            Link::Waiting { .. } | Link::Queued => return,
        };
        if lived >= STABLE_LINK {
            member.short_lives = 0;
        }
        let pause = match end {
            LinkEnd::DialFailed => {
                shared.counters.dials_failed += 1;
                member.failures = member.failures.saturating_add(1);
                Some(cool_down(member.failures))
            }
            LinkEnd::Lost => {
                shared.counters.links_lost += 1;
                let young_before = member.short_lives;
                member.short_lives = young_before.saturating_add(1);
                // The first is dialed again at once. Who can be dialed is not left to cool down: messages would be missed.
                young_before
                    .checked_sub(1)
                    .map(|attempt| REDIAL.delay(attempt, shared.random.next()))
            }
        };
        match pause {
            Some(pause) => member.link = Link::Waiting { until: now + pause },
            None => {
                member.link = Link::Queued;
                shared.dials.push_back((self.id, key));
            }
        }
        self.forget_leases(index, now, shared);
    }

    pub fn other_link_up(&self, except: NodeKey) -> bool {
        self.members
            .iter()
            .any(|member| member.is_up() && member.node.key != except)
    }

    // ---- asking ------------------------------------------------------------------------------------------------------

    fn next_wake(&self, now: Instant) -> Option<Instant> {
        let mut wake = self.open.seal_at;
        let mut at_least = |at: Instant| {
            // What is due already waits for an event, not for the time.
            if at > now {
                wake = Some(wake.map_or(at, |wake| wake.min(at)));
            }
        };
        for member in &self.members {
            match member.link {
                Link::Waiting { until } => at_least(until),
                // The stand-in may go.
                Link::Up { since } if member.short_lives >= FLAPPING => at_least(since + STABLE_LINK),
                _ => {}
            }
        }
        let up: Vec<bool> = self.members.iter().map(Member::is_up).collect();
        for chunk in &self.chunks.list {
            if let Body::Ready { until, .. } = chunk.body {
                at_least(until);
            }
            for (lease, _) in chunk.leases.iter().zip(&up).filter(|(_, up)| **up) {
                if let Some(at) = lease.due_at() {
                    at_least(at);
                }
            }
        }
        for delta in &self.deltas {
            for (claim, _) in delta.claims.iter().zip(&up).filter(|(_, up)| **up) {
                if let Claim::Due { at, .. } = claim {
                    at_least(*at);
                }
            }
        }
        wake
    }

    pub fn coverage(&self, nodes_per_swarm: usize) -> SwarmCoverage {
        let wanted = nodes_per_swarm.min(self.order.len());
        let enough = |held: usize| wanted > 0 && held >= wanted;
        let up: Vec<bool> = self.members.iter().map(Member::is_up).collect();
        let mut covered = 0usize;
        for chunk in &self.chunks.list {
            let held = chunk
                .leases
                .iter()
                .zip(&up)
                .filter(|(lease, up)| **up && matches!(lease, Lease::Held { .. }))
                .count();
            if enough(held) {
                covered += chunk.accounts.len();
            }
        }
        let mut outside = self.open.len();
        for delta in &self.deltas {
            let held = delta
                .claims
                .iter()
                .zip(&up)
                .filter(|(claim, up)| **up && matches!(claim, Claim::Done))
                .count();
            if !enough(held) {
                outside += delta.accounts.len();
            }
        }
        let links_up = up.iter().filter(|up| **up).count();
        SwarmCoverage {
            accounts: self.chunks.accounts(),
            covered: covered.saturating_sub(outside),
            links_up,
            links_wanted: wanted,
            enough_links: enough(links_up),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.members.iter().map(|member| member.in_flight.len()).sum()
    }
}

/// Pause after a failed dial: 10, 30, 60, then 120 s.
fn cool_down(failures: u32) -> Duration {
    Duration::from_secs(match failures {
        0 | 1 => 10,
        2 => 30,
        3 => 60,
        _ => 120,
    })
}

/// A link that lived this long was a good one.
const STABLE_LINK: Duration = Duration::from_secs(60);
/// Pauses before the redial of a link that was lost young, after the first: 1 s, then 2 s, at least half of it.
const REDIAL: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(2),
};
/// After so many links lost young in a row another node stands in until one lives.
const FLAPPING: u32 = 5;
/// Pauses after a failed or partly refused request.
pub(super) const RETRY: Backoff = Backoff {
    base: Duration::from_secs(2),
    cap: Duration::from_secs(60),
};
