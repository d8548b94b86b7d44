//! From a five-tuple to a place in a slab, without keeping the five-tuple.
//!
//! In: a keyed hash and a number. Out: the number again. Never: holds an address: what was removed leaves nothing behind, which no
//! table that stores its keys promises.

use crate::wire::FiveTuple;
use std::hash::{DefaultHasher, Hasher};

/// SipHash with a key the shell drew: who may choose addresses and ports cannot choose collisions.
#[derive(Clone)]
pub struct HashKey(DefaultHasher);

impl HashKey {
    /// The standard SipHash begins with a fixed key; a secret first block brings it to a state that nobody else knows.
    pub fn new(key: [u64; 2]) -> Self {
        let mut hasher = DefaultHasher::new();
        key.iter().for_each(|word| hasher.write_u64(*word));
        Self(hasher)
    }

    pub fn hash(&self, words: &[u64]) -> u64 {
        let mut hasher = self.0.clone();
        words.iter().for_each(|word| hasher.write_u64(*word));
        hasher.finish()
    }

    /// The first word of an IPv4 client is zero, and the last one says which family it is.
    pub fn of_client(&self, client: &FiveTuple) -> u64 {
        match client.words() {
            [0, low, rest] => self.hash(&[low, rest]),
            words => self.hash(&words),
        }
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(<secret>)")
    }
}

const EMPTY: u64 = u64::MAX;

/// Open addressing with linear probing over `u32` places, at most half full. Beside each place lies half of its hash, so that a
/// collision costs no look at the slab.
pub struct Places {
    cells: Vec<u64>,
    used: usize,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            cells: vec![EMPTY; 16],
            used: 0,
        }
    }
}

/// Upper half: of the hash; lower half: the place.
const fn cell(hash: u64, place: u32) -> u64 {
    hash & !0xFFFF_FFFF | place as u64
}

impl Places {
    pub fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = self.home(hash);
        loop {
            match self.cells.get(at) {
                Some(&found) if found != EMPTY => {
                    if found >> 32 == hash >> 32 && is_it(found as u32) {
                        return Some(found as u32);
                    }
                }
                _ => return None,
            }
            at = self.next(at);
        }
    }

    /// The caller knows that it is not in yet. `hash_of` gives the hash of any place in the table. `u32::MAX` is no place.
    pub fn insert(&mut self, hash: u64, place: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.used + 1) * 2 > self.cells.len() {
            let doubled = vec![EMPTY; self.cells.len() * 2];
            let old = std::mem::replace(&mut self.cells, doubled);
            for found in old.into_iter().filter(|found| *found != EMPTY) {
                self.put(hash_of(found as u32), found);
            }
        }
        self.put(hash, cell(hash, place));
        self.used += 1;
    }

    pub fn remove(&mut self, hash: u64, place: u32, hash_of: impl Fn(u32) -> u64) {
        let mut hole = self.home(hash);
        while let Some(&found) = self.cells.get(hole) {
            if found == cell(hash, place) {
                break;
            }
            if found == EMPTY {
                return;
            }
            hole = self.next(hole);
        }
        self.used -= 1;
        // Shift back what probed over the hole, so that no tombstone stays.
        let mut at = self.next(hole);
        while let Some(&moved) = self.cells.get(at) {
            if moved == EMPTY {
                break;
            }
            let home = self.home(hash_of(moved as u32));
            let mask = self.cells.len() - 1;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.set(hole, moved);
                hole = at;
            }
            at = self.next(at);
        }
        self.set(hole, EMPTY);
    }

    fn put(&mut self, hash: u64, cell: u64) {
        let mut at = self.home(hash);
        while self.cells.get(at).is_some_and(|found| *found != EMPTY) {
            at = self.next(at);
        }
        self.set(at, cell);
    }

    fn set(&mut self, at: usize, cell: u64) {
        if let Some(slot) = self.cells.get_mut(at) {
            *slot = cell;
        }
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.cells.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn the_table_agrees_with_a_set(steps in proptest::collection::vec((any::<bool>(), 0u32..64), 0..400)) {
            // A bad hash on purpose: most places collide.
            let hash_of = |place: u32| u64::from(place % 5);
            let mut table = Places::default();
            let mut set = BTreeSet::new();
            for (add, place) in steps {
                if add {
                    if set.insert(place) {
                        table.insert(hash_of(place), place, hash_of);
                    }
                } else {
                    set.remove(&place);
                    table.remove(hash_of(place), place, hash_of);
                }
                for place in 0..64 {
                    let found = table.find(hash_of(place), |other| other == place);
                    prop_assert_eq!(found, set.get(&place).copied());
                }
            }
        }
    }

    #[test]
    fn another_key_gives_another_hash() {
        assert_ne!(HashKey::new([1, 2]).hash(&[3]), HashKey::new([1, 3]).hash(&[3]));
        assert_eq!(format!("{:?}", HashKey::new([1, 2])), "HashKey(<secret>)");
    }
}
