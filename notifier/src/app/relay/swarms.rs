//! Which swarm may speak for an account.
//!
//! In: the newest ring, the clock. Out: whether a notification's sender was in charge. Never: takes a node for a liar because it was
//! heard late.
//!
//! What a node sent while it was in charge may stand in our own queues when the next list is taken. So the rings of before count for a
//! while too: only who was in charge in none of them speaks for what is not its own.

use notifier_core::account::AccountId;
use notifier_core::swarm::{SwarmId, SwarmRing};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

pub struct Swarms {
    newest: watch::Receiver<Arc<SwarmRing>>,
    current: Arc<SwarmRing>,
    /// Until when each counts, the oldest first; at most [`MOST`].
    before: VecDeque<(Instant, Arc<SwarmRing>)>,
}

impl Swarms {
    pub fn new(newest: watch::Receiver<Arc<SwarmRing>>) -> Self {
        let current = Arc::clone(&newest.borrow());
        Self {
            newest,
            current,
            before: VecDeque::new(),
        }
    }

    /// Takes the newest ring, and forgets those whose time is over.
    pub fn refresh(&mut self, now: Instant) {
        while self.before.pop_front_if(|(until, _)| *until <= now).is_some() {}
        let newest = Arc::clone(&self.newest.borrow());
        if !Arc::ptr_eq(&newest, &self.current) {
            let before = std::mem::replace(&mut self.current, newest);
            if self.before.len() >= MOST {
                self.before.pop_front();
            }
            self.before.push_back((now + KEPT, before));
        }
    }

    /// In the newest ring.
    pub fn nodes(&self) -> usize {
        self.newest.borrow().nodes().len()
    }

    /// Whether the swarm is in charge of the account, or was a moment ago.
    pub fn has_say(&self, swarm: SwarmId, account: &AccountId) -> bool {
        let before = self.before.iter().map(|(_, ring)| ring);
        let mut rings = std::iter::once(&self.current).chain(before);
        rings.any(|ring| ring.swarm_of(account) == Some(swarm))
    }
}

/// Longer than what waits here can wait while the outbox stalls and goes on: the queues of the nodes fill before.
const KEPT: Duration = Duration::from_secs(120);

/// A list changes with a block, each two minutes.
const MOST: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use notifier_core::swarm::{Node, NodeKey, NodeList};
    use std::net::Ipv4Addr;

    const ACCOUNT: AccountId = AccountId::new([5; 33]);

    /// All of it belongs to the one swarm.
    fn ring(swarm: u64) -> Arc<SwarmRing> {
        let node = Node {
            key: NodeKey([1; 32]),
            ip: Ipv4Addr::LOCALHOST,
            port: 22020,
            swarm: SwarmId(swarm),
        };
        Arc::new(SwarmRing::new(&NodeList {
            nodes: vec![node],
            height: 1,
            block_hash: [0; 32],
        }))
    }

    #[test]
    fn who_was_in_charge_before_the_list_changed_has_a_say_for_two_minutes() {
        let (publish, newest) = watch::channel(ring(1));
        let mut swarms = Swarms::new(newest);
        let start = Instant::now();
        publish.send_replace(ring(2));
        swarms.refresh(start);
        let mut say = |seconds| {
            swarms.refresh(start + Duration::from_secs(seconds));
            [1, 2, 3].map(|swarm| swarms.has_say(SwarmId(swarm), &ACCOUNT))
        };
        assert_eq!(say(119), [true, true, false]);
        assert_eq!(say(120), [false, true, false]);
    }

    #[test]
    fn many_lists_in_a_row_take_no_more_room_than_a_few() {
        let (publish, newest) = watch::channel(ring(0));
        let mut swarms = Swarms::new(newest);
        let now = Instant::now();
        for swarm in 1..20 {
            publish.send_replace(ring(swarm));
            swarms.refresh(now);
        }
        assert_eq!(swarms.before.len(), MOST);
        assert!(swarms.has_say(SwarmId(15), &ACCOUNT) && !swarms.has_say(SwarmId(14), &ACCOUNT));
    }
}
