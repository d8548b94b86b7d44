//! Devices that nobody subscribes any more while wakeups for them may still wait.
//!
//! In: keyed hashes of tokens, entry ids, the clock. Out: whether an entry wakes nobody. Never: holds a token.

use super::entries::Stage;
use super::{DropReason, EntryId, Outbox, Target, lifetime, millis};
use crate::account::{DeviceToken, Service};
use crate::seal::Sealed;
use crate::seeded::Seed;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

impl Outbox {
    /// Nobody subscribes these devices any more: what waits for them is dropped, what is on disk when it is read. A push under way may
    /// arrive, and is not tried again.
    pub fn withdraw(&mut self, targets: &[Target], now_ms: i64) {
        self.withdrawn.expire(now_ms);
        for target in targets {
            let token = self.hash_of(target.service, &target.token);
            let until_ms = now_ms.saturating_add(millis(lifetime(target.service)));
            self.withdrawn.add(token, self.next_id, until_ms);
        }
        if self.withdrawn.is_empty() {
            return;
        }
        let withdrawn = &self.withdrawn;
        let waiting = self.entries.places_where(|slot| {
            let waits = matches!(
                slot.stage,
                Stage::Hot | Stage::Cold | Stage::Retrying | Stage::TokenResting
            );
            waits && withdrawn.concerns(slot.token, slot.id)
        });
        for place in waiting {
            self.end(place, Some(DropReason::Unsubscribed));
        }
    }

    pub(super) fn token_of(&self, sealed: &Sealed) -> u64 {
        self.hash_of(sealed.service, &sealed.token)
    }

    fn hash_of(&self, service: Service, token: &DeviceToken) -> u64 {
        self.seed.hash_one((service, token.identity(service))).max(1)
    }
}

/// Bounded: the oldest are forgotten, and what then still waits for them is sent.
pub struct Withdrawn {
    /// Entries with an id below are for nobody. Later ones are of a subscription that came back.
    end_by_token: HashMap<u64, i64, Seed>,
    /// Until when an entry of that time could wait, in order.
    until: VecDeque<(i64, u64)>,
}

impl Withdrawn {
    pub fn new(seed: Seed) -> Self {
        Self {
            end_by_token: HashMap::with_hasher(seed),
            until: VecDeque::new(),
        }
    }

    /// `end`: the id of the next entry. `until_ms`: when the last of the earlier ones has passed its deadline.
    pub fn add(&mut self, token: u64, end: i64, until_ms: i64) {
        if self.until.len() >= MOST
            && let Some((_, oldest)) = self.until.pop_front()
        {
            self.end_by_token.remove(&oldest);
        }
        self.end_by_token.insert(token, end);
        self.until.push_back((until_ms, token));
    }

    pub fn concerns(&self, token: u64, id: EntryId) -> bool {
        !self.until.is_empty() && self.end_by_token.get(&token).is_some_and(|end| id.0 < *end)
    }

    /// Forgets those for whom nothing can wait any more.
    pub fn expire(&mut self, now_ms: i64) {
        while let Some((_, token)) = self.until.pop_front_if(|(until_ms, _)| *until_ms <= now_ms) {
            // One that was withdrawn again since goes a little early: its newest entries are then sent.
            self.end_by_token.remove(&token);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.until.len()
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }
}

/// Of each kind 24 bytes: 2 MB.
const MOST: usize = 65_536;
