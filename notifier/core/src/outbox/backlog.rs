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
    /// Bodies in memory or asked for.
    pub bytes: usize,
    /// Bodies asked for.
    pub loading: u32,
    pub counters: LaneCounters,
    pub lane: Lane,
}

impl Backlog {
    pub fn new(settings: &LaneSettings) -> Self {
        Self {
            hot: [List::EMPTY; Class::ALL.len()],
            cold: [List::EMPTY; Class::ALL.len()],
            bytes: 0,
            loading: 0,
            counters: LaneCounters::default(),
            lane: Lane::new(settings),
        }
    }

    pub fn has_hot(&self) -> bool {
        self.hot.iter().any(|list| list.first().is_some())
    }
}
