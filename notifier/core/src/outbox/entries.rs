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
    /// Unix milliseconds. While `Retrying`: when it is tried again; while `InFlight`: when it is taken back.
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
    timed: Timed,
    links: Links,
    same_deadline: Links,
}

/// Which of its times an entry is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timed {
    No,
    Deadline,
    Due,
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
            timed: Timed::No,
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
        slot.timed = Timed::No;
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

    /// A look at each entry.
    pub fn places_where(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<Place> {
        let slots = self.segments.iter().flatten();
        (0..)
            .zip(slots)
            .filter(|(_, slot)| slot.as_ref().is_some_and(&wanted))
            .map(|(place, _)| place)
            .collect()
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

    /// Takes the entry out of the order of deadlines.
    pub fn untime(&mut self, place: Place) {
        let slot = self.at_mut(place);
        let time_ms = match std::mem::replace(&mut slot.timed, Timed::No) {
            Timed::No => return,
            Timed::Deadline => slot.deadline_ms,
            Timed::Due => slot.due_ms,
        };
        let second = second_of(time_ms);
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

    /// Puts the entry into the order of deadlines by its own.
    pub fn time(&mut self, place: Place) {
        self.untime(place);
        self.put_in_order(place, Timed::Deadline);
    }

    /// Puts the entry into the order of deadlines by the time at which it is taken back: while it is under way its own does not count.
    pub fn time_by_due(&mut self, place: Place, due_ms: i64) {
        self.untime(place);
        self.at_mut(place).due_ms = due_ms;
        self.put_in_order(place, Timed::Due);
    }

    fn put_in_order(&mut self, place: Place, timed: Timed) {
        let slot = self.at_mut(place);
        slot.timed = timed;
        let second = second_of(if timed == Timed::Due {
            slot.due_ms
        } else {
            slot.deadline_ms
        });
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

    /// Puts an entry back among the first of the list, before those that are younger.
    pub fn put_back(&mut self, list: &mut List, place: Place) {
        let id = self.at(place).id;
        let (mut before, mut after) = (NOWHERE, list.first);
        for _ in 0..PUT_BACK_STEPS {
            if after == NOWHERE || self.at(after).id > id {
                break;
            }
            (before, after) = (after, self.at(after).links.after);
        }
        self.at_mut(place).links = Links { before, after };
        match before {
            NOWHERE => list.first = place,
            before => self.at_mut(before).links.after = place,
        }
        match after {
            NOWHERE => list.last = place,
            after => self.at_mut(after).links.before = place,
        }
        list.len += 1;
    }

    /// `newcomer`, which is in no list, stands where `place` stood.
    pub fn replace(&mut self, list: &mut List, place: Place, newcomer: Place) {
        let links = std::mem::replace(&mut self.at_mut(place).links, UNLINKED);
        self.at_mut(newcomer).links = links;
        match links.before {
            NOWHERE => list.first = newcomer,
            before => self.at_mut(before).links.after = newcomer,
        }
        match links.after {
            NOWHERE => list.last = newcomer,
            after => self.at_mut(after).links.before = newcomer,
        }
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

/// How far an entry that comes back looks for its old place. What was under way comes back in about the order it went.
const PUT_BACK_STEPS: usize = 256;

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
    fn an_entry_out_of_the_order_is_never_overdue() {
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
    fn entries_that_come_back_stand_in_their_old_order() {
        let mut entries = Entries::new();
        let mut list = List::EMPTY;
        let places: Vec<_> = (0..8).map(|id| entries.insert(slot(id, id))).collect();
        for place in &places[5..] {
            entries.push_back(&mut list, *place);
        }
        for returned in [3, 1, 4, 0, 2] {
            entries.put_back(&mut list, places[returned]);
        }
        let mut order = Vec::new();
        while let Some(place) = list.last() {
            order.push(entries.at(place).id.0);
            entries.unlink(&mut list, place);
        }
        assert_eq!(order, [7, 6, 5, 4, 3, 2, 1, 0]);
        entries.put_back(&mut list, places[3]);
        assert_eq!(
            (list.first(), list.last(), list.len()),
            (Some(places[3]), Some(places[3]), 1)
        );
    }

    #[test]
    fn a_newcomer_stands_where_another_stood() {
        let mut entries = Entries::new();
        for replaced in 0..3 {
            let mut list = List::EMPTY;
            let places: Vec<_> = (0..4)
                .map(|id| entries.insert(slot(10 * replaced as i64 + id, id)))
                .collect();
            for place in &places[..3] {
                entries.push_back(&mut list, *place);
            }
            entries.replace(&mut list, places[replaced], places[3]);
            let mut expected = places[..3].to_vec();
            expected[replaced] = places[3];
            let (mut forth, mut order) = (list, Vec::new());
            while let Some(place) = forth.first() {
                order.push(place);
                entries.unlink(&mut forth, place);
            }
            assert_eq!(order, expected);
        }
    }

    #[test]
    fn an_entry_under_way_is_overdue_when_it_is_taken_back_whatever_its_deadline() {
        let mut entries = Entries::new();
        let place = entries.insert(slot(1, 1_000));
        entries.time_by_due(place, 60_000);
        assert!(entries.overdue(60_000, 10).is_empty());
        assert_eq!(entries.overdue(61_000, 10), [place]);
        entries.time(place);
        assert_eq!(entries.overdue(2_000, 10), [place]);
        entries.remove(place);
        assert_eq!(entries.first_deadline(), None);
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
