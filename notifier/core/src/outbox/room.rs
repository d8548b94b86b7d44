//! Room for one more: an entry, or its body.
//!
//! In: what comes. Out: whether there is room, after what is worth less has given way. Never: lets the backlog of one lane keep the wakeups of
//! another out.

use super::backlog::Backlog;
use super::counters::DropReason;
use super::entries::Place;
use super::queue::End;
use super::{Outbox, class_of};
use crate::seal::Class;

impl Outbox {
    /// Room for one more entry: true unless everything that could go is worth more. Where one lane has more than its share and more than
    /// any other, that lane gives way; otherwise the least valuable class does, of it the oldest.
    pub(super) fn make_place(&mut self, lane: usize, newcomer: Class) -> bool {
        if self.entries.len() < self.settings.max_entries {
            return true;
        }
        let victim = self
            .crowding_lane(lane)
            .and_then(|crowding| self.least_of(crowding))
            .or_else(|| {
                let classes = class_of(newcomer)..Class::ALL.len();
                classes.rev().find_map(|class| {
                    let lanes = 0..self.lanes.len();
                    lanes
                        .filter_map(|lane| self.oldest_queued(lane, class))
                        .min_by_key(|place| self.entries.at(*place).id)
                })
            });
        if let Some(place) = victim {
            self.end(place, Some(DropReason::Shed));
        }
        victim.is_some()
    }

    /// The lane with the most entries, if they are more than its share and it is not the newcomer's own.
    fn crowding_lane(&self, newcomer: usize) -> Option<usize> {
        let offered = self.lanes.iter().filter(|lane| lane.lane.exists()).count();
        let share = self.settings.max_entries / offered.max(1);
        let (fullest, backlog) = self.lanes.iter().enumerate().max_by_key(|(_, lane)| lane.entries)?;
        (fullest != newcomer && backlog.entries > share).then_some(fullest)
    }

    /// What this lane can best do without: the oldest of its least valuable class, or what waits longest for another try.
    fn least_of(&self, lane: usize) -> Option<Place> {
        let queued = (0..Class::ALL.len())
            .rev()
            .find_map(|class| self.oldest_queued(lane, class));
        queued.or_else(|| {
            let mut latest = self.retries.iter().rev().take(SEARCHED).map(|(_, place)| *place);
            latest.find(|place| usize::from(self.entries.at(*place).lane) == lane)
        })
    }

    fn oldest_queued(&self, lane: usize, class: usize) -> Option<Place> {
        let backlog = &self.lanes[lane];
        [&backlog.hot[class], &backlog.cold[class]]
            .into_iter()
            .filter_map(|list| list.first())
            .min_by_key(|place| self.entries.at(*place).id)
    }

    pub(super) fn may_load(&mut self, lane: usize, class: usize, size: usize, now_ms: i64) -> bool {
        let backlog = &self.lanes[lane];
        let Backlog { hot, loading, .. } = backlog;
        // Bodies of less worth do not count: they must not stand before this one.
        let ahead = hot.iter().take(class + 1).map(|list| list.len()).sum::<usize>() + *loading as usize;
        let starving = *loading == 0 && !backlog.has_hot() && backlog.lane.exists();
        starving || (ahead < backlog.lane.window(now_ms) && self.make_memory(size, lane, class))
    }

    /// Memory for a body: true if it fits, after less valuable bodies, or those of a lane beyond its share, went to wait on disk.
    pub(super) fn make_memory(&mut self, size: usize, lane: usize, class: usize) -> bool {
        while self.memory().saturating_add(size) > self.settings.memory {
            let share = self.settings.memory / self.lanes.len();
            let candidates = self.lanes.iter().enumerate().filter_map(|(other, candidate)| {
                let least = (0..Class::ALL.len())
                    .rev()
                    .find(|class| candidate.hot[*class].len() > 1)?;
                let gives_way = if other == lane {
                    least > class
                } else {
                    candidate.bytes > share
                };
                gives_way.then_some((least, candidate.bytes, other))
            });
            let Some((least, _, other)) = candidates.max() else {
                return false;
            };
            let Some(place) = self.lanes[other].hot[least].last() else {
                return false;
            };
            self.take_out(place);
            self.release_body(place);
            self.enqueue(place, End::Front);
        }
        true
    }
}

/// Retries looked at for one of a lane.
const SEARCHED: usize = 64;
