//! Namespace sets, each kept once: a million devices ask for a handful of different ones.
//!
//! In: sets. Out: a number for each. Never: keeps a set that no device has.

use crate::account::NamespaceSet;
use crate::seeded::Seed;
use hashbrown::HashTable;
use std::hash::BuildHasher;

pub type Interned = u32;

pub struct Namespaces {
    seed: Seed,
    /// Sets with the number of their devices; `None` = the number is free.
    sets: Vec<Option<(NamespaceSet, u32)>>,
    free: Vec<Interned>,
    numbers: HashTable<Interned>,
}

impl Namespaces {
    pub const fn new(seed: Seed) -> Self {
        Self {
            seed,
            sets: Vec::new(),
            free: Vec::new(),
            numbers: HashTable::new(),
        }
    }

    /// The set's number, for one device more.
    pub fn take(&mut self, set: &NamespaceSet) -> Interned {
        let (seed, sets) = (self.seed, &self.sets);
        let hash = seed.hash_one(set);
        if let Some(number) = self
            .numbers
            .find(hash, |number| held(sets, *number) == Some(set))
            .copied()
        {
            if let Some(Some((_, devices))) = self.sets.get_mut(number as usize) {
                *devices += 1;
            }
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.sets.push(None);
            Interned::try_from(self.sets.len() - 1).expect("there are fewer sets than devices")
        });
        if let Some(free) = self.sets.get_mut(number as usize) {
            *free = Some((set.clone(), 1));
        }
        let sets = &self.sets;
        self.numbers.insert_unique(hash, number, |number| {
            held(sets, *number).map_or(0, |set| seed.hash_one(set))
        });
        number
    }

    /// One device fewer.
    pub fn give_back(&mut self, number: Interned) {
        let Some(place) = self.sets.get_mut(number as usize) else {
            return;
        };
        let Some((set, devices)) = place else { return };
        *devices -= 1;
        if *devices == 0 {
            let hash = self.seed.hash_one(&*set);
            if let Ok(entry) = self.numbers.find_entry(hash, |other| *other == number) {
                entry.remove();
            }
            *place = None;
            self.free.push(number);
        }
    }

    pub fn set(&self, number: Interned) -> &NamespaceSet {
        held(&self.sets, number).expect("a device's number is taken until the device gives it back")
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        assert_eq!(self.numbers.len() + self.free.len(), self.sets.len());
        self.numbers.len()
    }
}

fn held(sets: &[Option<(NamespaceSet, u32)>], number: Interned) -> Option<&NamespaceSet> {
    sets.get(number as usize).and_then(Option::as_ref).map(|(set, _)| set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Namespace;

    #[test]
    fn equal_sets_have_one_number_until_the_last_device_is_gone() {
        let mut namespaces = Namespaces::new(Seed::new([1; 16]));
        let set = |raw: &[i16]| NamespaceSet::new(raw.iter().map(|n| Namespace(*n)).collect::<Vec<_>>()).unwrap();
        let first = namespaces.take(&set(&[0, 1]));
        assert_eq!(namespaces.take(&set(&[0, 1])), first);
        let second = namespaces.take(&set(&[0]));
        assert_ne!(first, second);
        namespaces.give_back(first);
        assert_eq!(namespaces.set(first), &set(&[0, 1]));
        namespaces.give_back(first);
        assert_eq!(namespaces.len(), 1);
        assert_eq!(namespaces.take(&set(&[7])), first);
        assert_eq!(
            (namespaces.set(first), namespaces.set(second)),
            (&set(&[7]), &set(&[0]))
        );
    }

    #[test]
    fn many_sets_are_told_apart_while_the_table_grows() {
        let mut namespaces = Namespaces::new(Seed::new([1; 16]));
        let set = |number: i16| NamespaceSet::new(vec![Namespace(number)]).unwrap();
        let numbers: Vec<_> = (0..1000).map(|number| namespaces.take(&set(number))).collect();
        for (number, interned) in (0..1000).zip(numbers) {
            assert_eq!(namespaces.take(&set(number)), interned);
        }
        assert_eq!(namespaces.len(), 1000);
    }
}
