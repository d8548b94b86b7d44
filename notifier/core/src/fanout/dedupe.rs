//! Which messages went out already.
//!
//! In: marks, the clock (Unix milliseconds). Out: new, on its way, or seen. Never: knows what a mark stands for.
//!
//! A message counts as seen when its wakeups are in the outbox and not before: until then its mark is pending, and `abort` makes the
//! next copy new again. About 31 bytes a mark.

use crate::event::MessageEvent;
use hashbrown::HashTable;
use quietline_shared::crypto::keyed_hash_16;
use quietline_shared::redact::Secret;
use std::collections::VecDeque;
use std::time::Duration;

/// Stands for one message of one account; says nothing without the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark([u8; 16]);

impl Mark {
    /// The namespace is left out, as upstream does: the message hash covers it, and the same hash in another namespace is the same
    /// message told wrongly.
    pub fn new(key: &Secret<[u8; 32]>, event: &MessageEvent) -> Self {
        Self(keyed_hash_16(
            key,
            &[event.account.expose(), event.hash.expose().as_bytes()],
        ))
    }

    /// As read from a row.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// For a row.
    pub const fn expose(&self) -> &[u8; 16] {
        &self.0
    }

    /// A mark is the output of a keyed hash already.
    fn hash(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mark(<private>)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkState {
    New,
    /// Its wakeups are on their way to the outbox.
    Pending,
    /// Its wakeups are or were in the outbox.
    Seen,
}

#[derive(Clone, Copy, Debug)]
pub struct DedupeSettings {
    /// How long a message is the same message.
    pub window: Duration,
    /// Marks at most; beyond that the oldest go.
    pub max: usize,
}

impl Default for DedupeSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(3600),
            max: 4_000_000,
        }
    }
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DedupeCounters {
    /// Forgotten before their time because there were too many.
    pub evicted: u64,
}

pub struct Dedupe {
    settings: DedupeSettings,
    numbers: HashTable<u32>,
    /// In the order of `begin`, which is nearly that of their end.
    entries: Entries,
    counters: DedupeCounters,
}

impl Dedupe {
    pub fn new(settings: DedupeSettings) -> Self {
        let settings = DedupeSettings {
            max: settings.max.clamp(1, MOST),
            ..settings
        };
        Self {
            settings,
            numbers: HashTable::new(),
            entries: Entries::new(),
            counters: DedupeCounters::default(),
        }
    }

    pub fn check(&self, mark: &Mark, now_ms: i64) -> MarkState {
        match self.find(mark) {
            Some((_, entry)) if !self.is_over(entry, now_ms) => match entry.state() {
                State::Pending => MarkState::Pending,
                State::Seen => MarkState::Seen,
                State::Void => MarkState::New,
            },
            _ => MarkState::New,
        }
    }

    /// The message's wakeups are made now. False if the mark is not new.
    pub fn begin(&mut self, mark: Mark, now_ms: i64) -> bool {
        self.insert(mark, State::Pending, now_ms, now_ms)
    }

    /// The wakeups and the mark are in the outbox.
    pub fn commit(&mut self, mark: &Mark, now_ms: i64) {
        if let Some((number, entry)) = self.find(mark) {
            let entry = Entry::new(entry.mark, State::Seen, now_ms);
            self.entries.set(number, entry);
        }
    }

    /// The wakeups did not get into the outbox: the next copy is new.
    pub fn abort(&mut self, mark: &Mark) {
        if let Some((number, entry)) = self.find(mark)
            && entry.state() == State::Pending
        {
            self.void(number, entry.mark);
            self.entries.drop_void_end();
        }
    }

    /// A mark from disk, at the start; the oldest first.
    pub fn load(&mut self, mark: Mark, seen_at_ms: i64, now_ms: i64) {
        if !self.is_over(Entry::new(mark, State::Seen, seen_at_ms), now_ms) {
            self.insert(mark, State::Seen, seen_at_ms, now_ms);
        }
    }

    /// Forgets up to `most` marks whose time is over. `begin` does a little of it each time; this is for quiet times.
    pub fn expire(&mut self, now_ms: i64, most: usize) {
        for _ in 0..most {
            match self.entries.first() {
                Some(entry) if entry.state() == State::Void || self.is_over(entry, now_ms) => self.drop_first(),
                _ => break,
            }
        }
    }

    /// Marks kept now.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    pub const fn counters(&self) -> &DedupeCounters {
        &self.counters
    }

    /// What is taken on the heap, bytes.
    pub fn memory(&self) -> usize {
        self.numbers.allocation_size() + self.entries.segments.len() * SEGMENT * size_of::<Entry>()
    }

    fn insert(&mut self, mark: Mark, state: State, at_ms: i64, now_ms: i64) -> bool {
        if let Some((number, entry)) = self.find(&mark) {
            if !self.is_over(entry, now_ms) {
                return false;
            }
            self.void(number, mark);
        }
        self.expire(now_ms, TRIM);
        while self.entries.len() >= self.settings.max {
            if self.entries.first().is_some_and(|entry| entry.state() != State::Void) {
                self.counters.evicted += 1;
            }
            self.drop_first();
        }
        let number = self.entries.push(Entry::new(mark, state, at_ms));
        let entries = &self.entries;
        self.numbers
            .insert_unique(mark.hash(), number, |number| entries.at(*number).mark.hash());
        true
    }

    fn find(&self, mark: &Mark) -> Option<(u32, Entry)> {
        let number = *self
            .numbers
            .find(mark.hash(), |number| self.entries.at(*number).mark == *mark)?;
        Some((number, self.entries.at(number)))
    }

    fn is_over(&self, entry: Entry, now_ms: i64) -> bool {
        let window = u32::try_from(self.settings.window.as_millis() / TICK_MS as u128).unwrap_or(u32::MAX);
        // More than the window by up to one tick, never less. A clock set back makes nothing old.
        tick(now_ms).saturating_sub(entry.tick()) > window
    }

    fn void(&mut self, number: u32, mark: Mark) {
        self.forget(number, mark);
        self.entries.set(number, Entry::new(mark, State::Void, 0));
    }

    fn drop_first(&mut self) {
        if let Some((number, entry)) = self.entries.pop()
            && entry.state() != State::Void
        {
            self.forget(number, entry.mark);
        }
    }

    fn forget(&mut self, number: u32, mark: Mark) {
        if let Ok(entry) = self.numbers.find_entry(mark.hash(), |other| *other == number) {
            entry.remove();
        }
    }
}

impl std::fmt::Debug for Dedupe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dedupe")
            .field("marks", &self.len())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    Seen,
    /// Given up; waits for its turn to be dropped.
    Void,
}

/// 20 bytes: the time in ticks and the state share four.
#[derive(Clone, Copy)]
struct Entry {
    mark: Mark,
    tick_and_state: u32,
}

impl Entry {
    fn new(mark: Mark, state: State, at_ms: i64) -> Self {
        let state = match state {
            State::Pending => 0,
            State::Seen => 1,
            State::Void => 2,
        };
        Self {
            mark,
            tick_and_state: (tick(at_ms) << 2) | state,
        }
    }

    const fn state(self) -> State {
        match self.tick_and_state & 3 {
            0 => State::Pending,
            1 => State::Seen,
            _ => State::Void,
        }
    }

    const fn tick(self) -> u32 {
        self.tick_and_state >> 2
    }
}

/// Thirty bits of ticks reach the year 2106.
const TICK_MS: i64 = 4000;

fn tick(unix_ms: i64) -> u32 {
    u32::try_from(unix_ms.max(0) / TICK_MS)
        .unwrap_or(u32::MAX)
        .min(u32::MAX >> 2)
}

/// How many old marks each new one drops at most.
const TRIM: usize = 8;

/// Numbers must not come round.
const MOST: usize = 1 << 31;

const SEGMENT: usize = 4096;

/// A queue with lasting numbers that grows without copying.
struct Entries {
    segments: VecDeque<Vec<Entry>>,
    /// Number of the first entry of the first segment; a multiple of [`SEGMENT`].
    base: u32,
    /// Entries of the first segment that are gone.
    gone: usize,
}

impl Entries {
    const fn new() -> Self {
        Self {
            segments: VecDeque::new(),
            base: 0,
            gone: 0,
        }
    }

    fn len(&self) -> usize {
        let last = self.segments.back().map_or(0, Vec::len);
        self.segments.len().saturating_sub(1) * SEGMENT + last - self.gone
    }

    fn push(&mut self, entry: Entry) -> u32 {
        if self.segments.back().is_none_or(|segment| segment.len() == SEGMENT) {
            self.segments.push_back(Vec::with_capacity(SEGMENT));
        }
        let number = self.base.wrapping_add((self.gone + self.len()) as u32);
        if let Some(segment) = self.segments.back_mut() {
            segment.push(entry);
        }
        number
    }

    fn first(&self) -> Option<Entry> {
        self.segments.front()?.get(self.gone).copied()
    }

    fn pop(&mut self) -> Option<(u32, Entry)> {
        let entry = self.first()?;
        let number = self.base.wrapping_add(self.gone as u32);
        self.gone += 1;
        if self.gone == SEGMENT {
            self.segments.pop_front();
            self.base = self.base.wrapping_add(SEGMENT as u32);
            self.gone = 0;
        }
        Some((number, entry))
    }

    /// Void entries at the end are given back at once, so that failing and failing again takes no room.
    fn drop_void_end(&mut self) {
        while self.len() > 0
            && let Some(segment) = self.segments.back_mut()
            && segment.last().is_some_and(|entry| entry.state() == State::Void)
        {
            segment.pop();
            if segment.is_empty() && self.segments.len() > 1 {
                self.segments.pop_back();
            }
        }
    }

    fn at(&self, number: u32) -> Entry {
        let place = number.wrapping_sub(self.base) as usize;
        self.segments[place / SEGMENT][place % SEGMENT]
    }

    fn set(&mut self, number: u32, entry: Entry) {
        let place = number.wrapping_sub(self.base) as usize;
        self.segments[place / SEGMENT][place % SEGMENT] = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{AccountId, MessageHash, Namespace};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const NOW: i64 = 1_800_000_000_000;
    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_message_is_seen_only_when_its_wakeups_are_in_the_outbox() {
        let mut dedupe = dedupe(100);
        assert_eq!(dedupe.check(&mark(1), NOW), MarkState::New);
        assert!(dedupe.begin(mark(1), NOW));
        assert!(!dedupe.begin(mark(1), NOW));
        assert_eq!(dedupe.check(&mark(1), NOW), MarkState::Pending);
        dedupe.commit(&mark(1), NOW);
        assert_eq!(dedupe.check(&mark(1), NOW), MarkState::Seen);
        dedupe.abort(&mark(1));
        assert_eq!(dedupe.check(&mark(1), NOW), MarkState::Seen);
    }

    #[test]
    fn after_an_abort_the_next_copy_is_new() {
        let mut dedupe = dedupe(100);
        dedupe.begin(mark(1), NOW);
        dedupe.begin(mark(2), NOW);
        dedupe.abort(&mark(1));
        assert_eq!(dedupe.check(&mark(1), NOW), MarkState::New);
        assert_eq!(dedupe.check(&mark(2), NOW), MarkState::Pending);
        assert!(dedupe.begin(mark(1), NOW));
        assert_eq!(dedupe.len(), 2);
    }

    #[test]
    fn a_message_is_the_same_for_an_hour() {
        let mut dedupe = dedupe(100);
        dedupe.begin(mark(1), NOW);
        dedupe.commit(&mark(1), NOW);
        assert_eq!(dedupe.check(&mark(1), NOW + HOUR), MarkState::Seen);
        assert_eq!(dedupe.check(&mark(1), NOW + HOUR + 2 * TICK_MS), MarkState::New);
        assert!(dedupe.begin(mark(1), NOW + HOUR + 2 * TICK_MS));
        assert_eq!(dedupe.check(&mark(1), NOW + HOUR + 2 * TICK_MS), MarkState::Pending);
        assert_eq!(dedupe.len(), 1);
    }

    #[test]
    fn a_clock_set_back_forgets_nothing() {
        let mut dedupe = dedupe(100);
        dedupe.begin(mark(1), NOW);
        dedupe.commit(&mark(1), NOW);
        assert_eq!(dedupe.check(&mark(1), NOW - 24 * HOUR), MarkState::Seen);
    }

    #[test]
    fn too_many_marks_push_out_the_oldest_and_are_counted() {
        let mut dedupe = dedupe(5000);
        for number in 0..6000 {
            assert!(dedupe.begin(mark(number), NOW));
        }
        assert_eq!((dedupe.len(), dedupe.counters().evicted), (5000, 1000));
        assert_eq!(dedupe.check(&mark(999), NOW), MarkState::New);
        assert_eq!(dedupe.check(&mark(1000), NOW), MarkState::Pending);
        dedupe.commit(&mark(999), NOW);
        assert_eq!(dedupe.check(&mark(999), NOW), MarkState::New);
    }

    #[test]
    fn marks_whose_time_is_over_go_and_are_not_counted() {
        let mut dedupe = dedupe(100_000);
        for number in 0..20_000 {
            dedupe.begin(mark(number), NOW);
            dedupe.commit(&mark(number), NOW);
        }
        let full = dedupe.memory();
        dedupe.expire(NOW + 2 * HOUR, 15_000);
        assert_eq!(dedupe.len(), 5000);
        dedupe.expire(NOW + 2 * HOUR, 15_000);
        assert_eq!((dedupe.len(), dedupe.counters().evicted), (0, 0));
        assert!(dedupe.memory() < full);
    }

    #[test]
    fn failing_again_and_again_takes_no_room() {
        let mut dedupe = dedupe(100);
        dedupe.begin(mark(7), NOW);
        for _ in 0..10_000 {
            assert!(dedupe.begin(mark(1), NOW));
            dedupe.abort(&mark(1));
        }
        assert_eq!((dedupe.entries.len(), dedupe.counters().evicted), (1, 0));
        dedupe.abort(&mark(7));
        assert_eq!(dedupe.entries.len(), 0);
    }

    #[test]
    fn marks_from_disk_count_for_the_rest_of_their_hour() {
        let mut dedupe = dedupe(100);
        dedupe.load(mark(1), NOW - 2 * HOUR, NOW);
        dedupe.load(mark(2), NOW - HOUR / 2, NOW);
        assert_eq!(dedupe.check(&mark(1), NOW), MarkState::New);
        assert_eq!(dedupe.check(&mark(2), NOW), MarkState::Seen);
        assert_eq!(dedupe.check(&mark(2), NOW + HOUR), MarkState::New);
    }

    #[test]
    fn a_mark_takes_at_most_40_bytes() {
        // The table is least full just after it grew: 7/16.
        let mut dedupe = dedupe(1_000_000);
        for number in 0..230_000 {
            dedupe.begin(mark(number), NOW);
        }
        assert!(
            dedupe.memory() / dedupe.len() <= 40,
            "{}",
            dedupe.memory() / dedupe.len()
        );
    }

    #[test]
    fn a_mark_depends_on_account_and_hash_but_not_on_the_namespace() {
        let key = Secret::new([1; 32]);
        let event = MessageEvent {
            account: AccountId::new([5; 33]),
            hash: MessageHash::from_slice(&[b'h'; 43]).unwrap(),
            namespace: Namespace(0),
            timestamp_ms: 0,
            expiry_ms: 0,
            body: None,
        };
        let first = Mark::new(&key, &event);
        assert_eq!(
            Mark::new(
                &key,
                &MessageEvent {
                    namespace: Namespace(1),
                    ..event.clone()
                }
            ),
            first
        );
        assert_ne!(
            Mark::new(
                &key,
                &MessageEvent {
                    account: AccountId::new([3; 33]),
                    ..event.clone()
                }
            ),
            first
        );
        let hash = MessageHash::from_slice(&[b'H'; 43]).unwrap();
        assert_ne!(Mark::new(&key, &MessageEvent { hash, ..event.clone() }), first);
        assert_ne!(Mark::new(&Secret::new([2; 32]), &event), first);
    }

    proptest! {
        #[test]
        fn marks_behave_as_in_a_plain_map(steps in prop::collection::vec((0u32..12, 0u8..5), 1..400)) {
            let mut dedupe = dedupe(1000);
            let mut plain: BTreeMap<u32, MarkState> = BTreeMap::new();
            for (number, action) in steps {
                match action {
                    0 | 1 => {
                        let new = !plain.contains_key(&number);
                        prop_assert_eq!(dedupe.begin(mark(number), NOW), new);
                        plain.entry(number).or_insert(MarkState::Pending);
                    }
                    2 => {
                        dedupe.commit(&mark(number), NOW);
                        plain.entry(number).and_modify(|state| *state = MarkState::Seen);
                    }
                    3 => {
                        dedupe.abort(&mark(number));
                        if plain.get(&number) == Some(&MarkState::Pending) {
                            plain.remove(&number);
                        }
                    }
                    _ => {
                        let state = plain.get(&number).copied().unwrap_or(MarkState::New);
                        prop_assert_eq!(dedupe.check(&mark(number), NOW), state);
                    }
                }
                prop_assert_eq!(dedupe.len(), plain.len());
            }
        }
    }

    fn dedupe(max: usize) -> Dedupe {
        Dedupe::new(DedupeSettings {
            max,
            ..DedupeSettings::default()
        })
    }

    fn mark(number: u32) -> Mark {
        Mark(quietline_shared::crypto::keyed_hash_16(
            &Secret::new([1; 32]),
            &[&number.to_le_bytes()],
        ))
    }
}
