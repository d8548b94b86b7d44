//! The entries themselves: found by id, linked into lists, ordered by deadline.
//!
//! In: entries. Out: places. Never: decides anything.

use super::{EntryId, PushId};
use crate::seal::Sealed;
use hashbrown::HashTable;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where an entry is in the segments.
pub type Place = u32;

pub const NOWHERE: Place = Place::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not on disk yet.
    Unwritten,
    /// In a lane's queue, with its body.
    Hot,
    /// In a lane's queue; its body is only on disk.
    Cold,
    /// Its body is asked for.
    Loading,
    InFlight,
    /// Until its time comes.
    Retrying,
    /// Until its token may get another one.
    TokenResting,
}

#[derive(Debug)]
pub struct Slot {
    pub id: EntryId,
    pub push_id: PushId,
    pub deadline_ms: i64,
    /// While `Retrying`: Unix milliseconds.
    pub due_ms: i64,
    /// Keyed hash of service and token, 0 = not known before the body was read.
    pub token: u64,
    pub body: Option<Arc<Sealed>>,
    pub attempt: u32,
    /// Bytes of the body.
    pub size: u32,
    pub stage: Stage,
    pub lane: u8,
    pub class: u8,
    pub fallback: bool,
    /// Whether `size` is in the lane's bytes.
    pub counted: bool,
    timed: bool,
    links: Links,
    same_deadline: Links,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    before: Place,
    after: Place,
}

const UNLINKED: Links = Links {
    before: NOWHERE,
    after: NOWHERE,
};

impl Slot {
    pub const fn new(id: EntryId, push_id: PushId, stage: Stage, lane: u8, class: u8, deadline_ms: i64) -> Self {
        Self {
            id,
            push_id,
            deadline_ms,
            due_ms: 0,
            token: 0,
            body: None,
            attempt: 0,
            size: 0,
            stage,
            lane,
            class,
            fallback: false,
            counted: false,
            timed: false,
            links: UNLINKED,
            same_deadline: UNLINKED,
        }
    }
}

/// A queue through the entries' own links.
#[derive(Clone, Copy, Debug)]
pub struct List {
    first: Place,
    last: Place,
    len: usize,
}

impl List {
    pub const EMPTY: Self = Self {
        first: NOWHERE,
        last: NOWHERE,
        len: 0,
    };

    pub const fn first(&self) -> Option<Place> {
        if self.first == NOWHERE { None } else { Some(self.first) }
    }

    pub const fn last(&self) -> Option<Place> {
        if self.last == NOWHERE { None } else { Some(self.last) }
    }

    pub const fn len(&self) -> usize {
        self.len
    }
}

pub struct Entries {
    segments: Vec<Vec<Option<Slot>>>,
    free: Vec<Place>,
    by_id: HashTable<Place>,
    /// The first entry of each second in which deadlines pass.
    by_deadline: BTreeMap<i64, Place>,
}

impl Entries {
    pub const fn new() -> Self {
        Self {
            segments: Vec::new(),
            free: Vec::new(),
            by_id: HashTable::new(),
            by_deadline: BTreeMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn memory(&self) -> usize {
        self.segments.len() * SEGMENT * size_of::<Option<Slot>>()
            + self.by_id.allocation_size()
            + self.free.capacity() * size_of::<Place>()
    }

    pub fn insert(&mut self, mut slot: Slot) -> Place {
        let id = slot.id;
        slot.timed = false;
        slot.same_deadline = UNLINKED;
        let place = self.free.pop().unwrap_or_else(|| self.grow());
        *self.cell(place) = Some(slot);
        let segments = &self.segments;
        self.by_id
            .insert_unique(hash(id), place, |place| hash(slot_at(segments, *place).id));
        self.time(place);
        place
    }

    /// The entry must be in no list.
    pub fn remove(&mut self, place: Place) -> Option<Slot> {
        self.untime(place);
        let slot = self.cell(place).take()?;
        if let Ok(found) = self.by_id.find_entry(hash(slot.id), |other| *other == place) {
            found.remove();
        }
        if self.by_id.is_empty() {
            // A backlog that is over gives its memory back.
            *self = Self::new();
        } else {
            self.free.push(place);
        }
        Some(slot)
    }

    pub fn find(&self, id: EntryId) -> Option<Place> {
        self.by_id.find(hash(id), |place| self.at(*place).id == id).copied()
    }

    pub fn at(&self, place: Place) -> &Slot {
        slot_at(&self.segments, place)
    }

    pub fn at_mut(&mut self, place: Place) -> &mut Slot {
        self.cell(place).as_mut().expect(TAKEN)
    }

    /// When the earliest deadlines have passed for certain, Unix milliseconds.
    pub fn first_deadline(&self) -> Option<i64> {
        self.by_deadline
            .keys()
            .next()
            .map(|second| second.saturating_add(1).saturating_mul(1000))
    }

    /// The places of at most `most` entries whose deadlines have passed.
    pub fn overdue(&self, now_ms: i64, most: usize) -> Vec<Place> {
        let mut places = Vec::new();
        for (_, first) in self.by_deadline.range(..second_of(now_ms)) {
            let mut place = *first;
            while place != NOWHERE {
                if places.len() == most {
                    return places;
                }
                places.push(place);
                place = self.at(place).same_deadline.after;
            }
        }
        places
    }

    /// Takes the entry out of the order of deadlines: while it is under way it is not dropped.
    pub fn untime(&mut self, place: Place) {
        let slot = self.at_mut(place);
        if !std::mem::take(&mut slot.timed) {
            return;
        }
        let second = second_of(slot.deadline_ms);
        let Links { before, after } = std::mem::replace(&mut slot.same_deadline, UNLINKED);
        if after != NOWHERE {
            self.at_mut(after).same_deadline.before = before;
        }
        if before != NOWHERE {
            self.at_mut(before).same_deadline.after = after;
        } else if after != NOWHERE {
            self.by_deadline.insert(second, after);
        } else {
            self.by_deadline.remove(&second);
        }
    }

    /// Puts the entry back into the order of deadlines.
    pub fn time(&mut self, place: Place) {
        let slot = self.at_mut(place);
        if std::mem::replace(&mut slot.timed, true) {
            return;
        }
        let second = second_of(slot.deadline_ms);
        if let Some(first) = self.by_deadline.insert(second, place) {
            self.at_mut(place).same_deadline.after = first;
            self.at_mut(first).same_deadline.before = place;
        }
    }

    pub fn push_back(&mut self, list: &mut List, place: Place) {
        self.at_mut(place).links = Links {
            before: list.last,
            after: NOWHERE,
        };
        if list.last == NOWHERE {
            list.first = place;
        } else {
            self.at_mut(list.last).links.after = place;
        }
        list.last = place;
        list.len += 1;
    }

    pub fn push_front(&mut self, list: &mut List, place: Place) {
        self.at_mut(place).links = Links {
            before: NOWHERE,
            after: list.first,
        };
        if list.first == NOWHERE {
            list.last = place;
        } else {
            self.at_mut(list.first).links.before = place;
        }
        list.first = place;
        list.len += 1;
    }

    /// The entry must be in this list.
    pub fn unlink(&mut self, list: &mut List, place: Place) {
        let Links { before, after } = std::mem::replace(&mut self.at_mut(place).links, UNLINKED);
        if before == NOWHERE {
            list.first = after;
        } else {
            self.at_mut(before).links.after = after;
        }
        if after == NOWHERE {
            list.last = before;
        } else {
            self.at_mut(after).links.before = before;
        }
        list.len -= 1;
    }

    fn grow(&mut self) -> Place {
        if self.segments.last().is_none_or(|segment| segment.len() == SEGMENT) {
            self.segments.push(Vec::with_capacity(SEGMENT));
        }
        let full = (self.segments.len() - 1) * SEGMENT;
        let within = self.segments.last_mut().map_or(0, |segment| {
            segment.push(None);
            segment.len() - 1
        });
        Place::try_from(full + within).expect("the number of entries is bounded far below")
    }

    fn cell(&mut self, place: Place) -> &mut Option<Slot> {
        let place = place as usize;
        &mut self.segments[place / SEGMENT][place % SEGMENT]
    }
}

const SEGMENT: usize = 1024;

const TAKEN: &str = "a place in a list or table is taken until the entry is removed";

fn slot_at(segments: &[Vec<Option<Slot>>], place: Place) -> &Slot {
    let place = place as usize;
    segments[place / SEGMENT][place % SEGMENT].as_ref().expect(TAKEN)
}

const fn second_of(unix_ms: i64) -> i64 {
    unix_ms.div_euclid(1000)
}

/// Ids are given one after the other: an odd factor spreads them.
const fn hash(id: EntryId) -> u64 {
    id.0.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_at_most_100_bytes_altogether() {
        let mut entries = Entries::new();
        // The table is least full just after it grew.
        for id in 0..230_000 {
            entries.insert(slot(id, id));
        }
        assert!(size_of::<Option<Slot>>() <= 96, "{}", size_of::<Option<Slot>>());
        assert!(
            entries.memory() / entries.len() <= 104,
            "{}",
            entries.memory() / entries.len()
        );
    }

    #[test]
    fn entries_are_overdue_in_the_order_of_their_deadlines_a_second_late_at_most() {
        let mut entries = Entries::new();
        for id in 0..10 {
            entries.insert(slot(id, 10_000 - id * 1000));
        }
        assert_eq!(entries.first_deadline(), Some(2000));
        let ids = |entries: &Entries, now, most| -> Vec<i64> {
            entries
                .overdue(now, most)
                .into_iter()
                .map(|place| entries.at(place).id.0)
                .collect()
        };
        assert!(ids(&entries, 1999, 10).is_empty());
        assert_eq!(ids(&entries, 3000, 10), [9, 8]);
        assert_eq!(ids(&entries, 100_000, 3), [9, 8, 7]);
    }

    #[test]
    fn entries_of_one_second_are_all_found_whichever_goes_first() {
        for removed in 0..3 {
            let mut entries = Entries::new();
            let places: Vec<_> = (0..3).map(|id| entries.insert(slot(id, 1000 + id))).collect();
            entries.remove(places[removed]);
            assert_eq!(entries.overdue(9000, 10).len(), 2);
            assert!(entries.find(EntryId(removed as i64)).is_none());
        }
    }

    #[test]
    fn an_entry_under_way_is_never_overdue() {
        let mut entries = Entries::new();
        let places: Vec<_> = (0..3).map(|id| entries.insert(slot(id, 1000 + id))).collect();
        entries.untime(places[1]);
        entries.untime(places[1]);
        assert_eq!(entries.overdue(9000, 10), [places[2], places[0]]);
        entries.time(places[1]);
        entries.time(places[1]);
        assert_eq!(entries.overdue(9000, 10).len(), 3);
        for place in places {
            entries.untime(place);
        }
        assert_eq!(entries.first_deadline(), None);
    }

    #[test]
    fn a_list_keeps_its_order_when_its_middle_and_ends_go() {
        let mut entries = Entries::new();
        let mut list = List::EMPTY;
        let places: Vec<_> = (0..5).map(|id| entries.insert(slot(id, id))).collect();
        for place in &places[1..] {
            entries.push_back(&mut list, *place);
        }
        entries.push_front(&mut list, places[0]);
        entries.unlink(&mut list, places[2]);
        entries.unlink(&mut list, places[4]);
        let mut order = Vec::new();
        while let Some(place) = list.first() {
            order.push(entries.at(place).id.0);
            entries.unlink(&mut list, place);
        }
        assert_eq!(order, [0, 1, 3]);
        assert_eq!((list.len(), list.last()), (0, None));
    }

    #[test]
    fn an_empty_outbox_gives_its_memory_back() {
        let mut entries = Entries::new();
        let places: Vec<_> = (0..5000).map(|id| entries.insert(slot(id, id))).collect();
        for place in places {
            entries.remove(place);
        }
        assert_eq!(entries.memory(), 0);
    }

    fn slot(id: i64, deadline_ms: i64) -> Slot {
        Slot::new(EntryId(id), PushId([0; 16]), Stage::Cold, 0, 0, deadline_ms)
    }
}
