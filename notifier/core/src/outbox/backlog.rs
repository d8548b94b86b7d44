//! What waits for one lane.
//!
//! In: nothing. Out: lists by class. Never: decides when one may go; its [`Lane`] does.

use super::counters::LaneCounters;
use super::entries::List;
use crate::lane::{Lane, LaneSettings};
use crate::seal::Class;

pub struct Backlog {
    /// By class: entries with their bodies, older than those without.
    pub hot: [List; Class::ALL.len()],
    /// By class: entries whose bodies are only on disk.
    pub cold: [List; Class::ALL.len()],
    /// Entries, in whatever state.
    pub entries: usize,
    /// Bodies in memory or asked for.
    pub bytes: usize,
    /// Bodies asked for.
    pub loading: u32,
    /// Effects that nobody has taken.
    pub untold: u32,
    pub counters: LaneCounters,
    pub lane: Lane,
}

impl Backlog {
    pub fn new(settings: &LaneSettings) -> Self {
        Self {
            hot: [List::EMPTY; Class::ALL.len()],
            cold: [List::EMPTY; Class::ALL.len()],
            entries: 0,
            bytes: 0,
            loading: 0,
            untold: 0,
            counters: LaneCounters::default(),
            lane: Lane::new(settings),
        }
    }

    /// From when on one more may go; `None` = something else must come first. A lane whose dead tokens nobody takes makes no more of them.
    pub fn opens_at(&self) -> Option<i64> {
        self.lane.opens_at().filter(|_| self.untold < UNTOLD)
    }

    pub fn may_send(&self, now_ms: i64) -> bool {
        self.opens_at().is_some_and(|opens_at| opens_at <= now_ms)
    }

    pub fn has_hot(&self) -> bool {
        self.hot.iter().any(|list| list.first().is_some())
    }
}

/// Effects of one lane that may wait; what is under way then may add its own.
pub const UNTOLD: u32 = 1_024;
