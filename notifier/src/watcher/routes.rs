//! Which node is at the end of a link, for the stream of notifications.
//!
//! In: links as they come, go up and end. Out: the sender of a notification. Never: forgets a link whose last
//! notifications may still be on their way.

use super::link::LinkId;
use notifier_core::swarm::{NodeKey, SwarmId};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// How many links to nodes of one swarm are up.
#[derive(Default)]
pub(super) struct SwarmLinks(AtomicUsize);

pub(super) struct Sender {
    pub node: NodeKey,
    pub swarm: SwarmId,
    pub second_link_up: bool,
}

/// Written by the driver, a few times a second; read for each notification.
#[derive(Default)]
pub(super) struct Routes(RwLock<Table>);

#[derive(Default)]
struct Table {
    route_by_link: HashMap<LinkId, Route>,
    /// Ended links, the oldest first.
    retired: VecDeque<(Instant, LinkId)>,
}

struct Route {
    node: NodeKey,
    swarm: SwarmId,
    up: bool,
    links: Arc<SwarmLinks>,
}

impl Route {
    fn set_down(&mut self) {
        if std::mem::take(&mut self.up) {
            self.links.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Routes {
    /// `None` for a link that ended longer ago than [`REMEMBERED`].
    pub fn sender(&self, link: LinkId) -> Option<Sender> {
        let table = self.read();
        let route = table.route_by_link.get(&link)?;
        Some(Sender {
            node: route.node,
            swarm: route.swarm,
            second_link_up: route.links.0.load(Ordering::Relaxed) > usize::from(route.up),
        })
    }

    pub fn add(&self, link: LinkId, node: NodeKey, swarm: SwarmId, links: Arc<SwarmLinks>) {
        let route = Route {
            node,
            swarm,
            up: false,
            links,
        };
        self.write().route_by_link.insert(link, route);
    }

    pub fn set_up(&self, link: LinkId) {
        if let Some(route) = self.write().route_by_link.get_mut(&link)
            && !route.up
        {
            route.up = true;
            route.links.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The link ended, by itself or by us: what it had received still counts for a while. Whether its node had a say is decided by who knows
    /// the rings. Once for each link, so those that wait here are no more than were dialed or open within [`REMEMBERED`].
    pub fn retire(&self, link: LinkId, now: Instant) {
        let mut table = self.write();
        if let Some(route) = table.route_by_link.get_mut(&link) {
            route.set_down();
            table.retired.push_back((now, link));
        }
    }

    pub fn forget_retired(&self, now: Instant) {
        let mut table = self.write();
        while let Some((_, link)) = table
            .retired
            .pop_front_if(|(since, _)| now.saturating_duration_since(*since) >= REMEMBERED)
        {
            table.route_by_link.remove(&link);
        }
    }

    // Nothing panics while it holds the lock, so a poisoned table is a whole one.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longer than a notification waits in a channel while the app keeps up at all.
const REMEMBERED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_link_is_another_one_that_is_up() {
        let (routes, links) = (Routes::default(), Arc::<SwarmLinks>::default());
        for id in 1..=2 {
            routes.add(
                LinkId(id),
                NodeKey([u8::try_from(id).unwrap(); 32]),
                SwarmId(7),
                Arc::clone(&links),
            );
        }
        routes.set_up(LinkId(1));
        assert!(!routes.sender(LinkId(1)).unwrap().second_link_up);
        assert!(
            routes.sender(LinkId(2)).unwrap().second_link_up,
            "a push may come before HELLO"
        );
        routes.set_up(LinkId(2));
        routes.set_up(LinkId(2));
        assert!(routes.sender(LinkId(1)).unwrap().second_link_up);
        routes.retire(LinkId(2), Instant::now());
        assert!(!routes.sender(LinkId(1)).unwrap().second_link_up);
    }

    #[test]
    fn a_link_that_ended_is_known_for_two_minutes_and_then_leaves_nothing() {
        let (routes, now) = (Routes::default(), Instant::now());
        for id in 1..=2 {
            routes.add(LinkId(id), NodeKey([1; 32]), SwarmId(7), Arc::default());
        }
        routes.retire(LinkId(1), now);
        routes.forget_retired(now + REMEMBERED - Duration::from_secs(1));
        assert_eq!(routes.sender(LinkId(1)).unwrap().node, NodeKey([1; 32]));
        routes.forget_retired(now + REMEMBERED);
        assert!(routes.sender(LinkId(1)).is_none());
        assert!(routes.sender(LinkId(2)).is_some(), "it goes on");
        let table = routes.read();
        assert_eq!((table.route_by_link.len(), table.retired.len()), (1, 0));
    }
}
