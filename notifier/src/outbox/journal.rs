//! Groups what waits into commits: one is on its way to the disk while the next one forms.
//!
//! In: wakeups with the marks of their messages, removals, changes. Out: what became durable, and an answer to everybody who
//! waits for it. Never: looks into a wakeup, or refuses one because of a fault that may pass: it waits, and so does who brings more.

use super::OutboxError;
use super::sqlite::{Change, Commit, Mark, OutboxWriter};
use crate::keyring::Sealer;
use crate::sqlite::SqliteFault;
use futures_util::future::BoxFuture;
use notifier_core::outbox::{Entry, EntryId};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Who waits to hear that a wakeup is durable.
pub type Done = oneshot::Sender<Result<(), OutboxError>>;

/// From now on everything is sealed under the newest of these keys, and what is there goes over to it.
#[derive(Debug)]
pub struct KeyChange {
    pub sealer: Arc<Sealer>,
    /// Hears when all has gone over, and how many rows that were.
    pub done: oneshot::Sender<Result<u64, OutboxError>>,
}

pub struct Journal {
    /// Where the writing half is. It is `Busy` for as long as a commit takes.
    state: State,
    forming: Group,
    /// Since when removals or changes wait.
    waiting_since: Option<Instant>,
    /// Not before this time after a failure.
    retry_at: Option<Instant>,
    failures: u32,
    /// Commits that were split up since wakeups became durable.
    splits: u32,
    /// The next commit takes no more parcels than this: fewer while one is looked for that the database refuses.
    most_parcels: usize,
    keys: Keys,
    /// A step of the way to a new key was the last thing done: a commit that waits goes first.
    moved_last: bool,
}

/// A change of keys on its way.
enum Keys {
    Settled,
    /// Waits for the writing half.
    Asked(KeyChange),
    /// The new key is in use, and rows go over to it.
    Moving {
        change: KeyChange,
        moved: u64,
    },
}

enum State {
    Idle(Box<OutboxWriter>),
    Busy(BoxFuture<'static, Flown>),
    /// Only while the state changes.
    Between,
}

/// A commit that ended, and the writer with it.
struct Flown {
    writer: Box<OutboxWriter>,
    group: Group,
    /// `None` = nothing was to be committed: the WAL was emptied, or rows went over to a new key.
    outcome: Option<Result<(), SqliteFault>>,
    keys: Option<Keys>,
    took: Duration,
}

#[derive(Default)]
struct Group {
    parcels: Parcels,
    remove: Vec<EntryId>,
    change: BTreeMap<EntryId, Change>,
    forget_marks_before_ms: Option<i64>,
}

/// What became of the wakeups of one commit.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Finished {
    pub durable: Vec<EntryId>,
    pub refused: Vec<EntryId>,
}

impl Journal {
    pub fn new(writer: OutboxWriter) -> Self {
        Self {
            state: State::Idle(Box::new(writer)),
            forming: Group::default(),
            waiting_since: None,
            retry_at: None,
            failures: 0,
            splits: 0,
            most_parcels: usize::MAX,
            keys: Keys::Settled,
            moved_last: false,
        }
    }

    /// A change that has not come to its end is given up: its rows go over with this one.
    pub fn use_keys(&mut self, change: KeyChange) {
        self.keys = Keys::Asked(change);
    }

    /// How many more wakeups may wait for the next commit. What a failed commit left counts.
    pub fn room(&self) -> usize {
        GROUP_ENTRIES.saturating_sub(self.forming.parcels.len())
    }

    /// Both or neither become durable, then `done` hears it. What is too large for one commit is refused at once: these entries, all of them,
    /// will not become durable.
    #[must_use]
    pub fn add(&mut self, entries: impl IntoIterator<Item = Entry>, marks: Vec<Mark>, done: Done) -> Vec<EntryId> {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let parcel = Parcel { entries, marks, done };
        if parcel.bytes() > PARCEL_BYTES {
            let fault = OutboxError::TooLarge;
            metrics::counter!("outbox_faults_total", "reason" => fault.label()).increment(1);
            let refused = parcel.ids().collect();
            let _ = parcel.done.send(Err(fault));
            return refused;
        }
        self.forming.parcels.push_back(parcel);
        Vec::new()
    }

    pub fn remove(&mut self, id: EntryId, now: Instant) {
        // What is removed needs no change any more.
        self.forming.change.remove(&id);
        self.forming.remove.push(id);
        self.waiting_since.get_or_insert(now);
    }

    pub fn change(&mut self, change: Change, now: Instant) {
        self.forming.change.insert(change.id, change);
        self.waiting_since.get_or_insert(now);
    }

    pub fn forget_marks_before(&mut self, at_ms: i64, now: Instant) {
        self.forming.forget_marks_before_ms = Some(at_ms);
        self.waiting_since.get_or_insert(now);
    }

    /// When [`Self::start`] has something to do that nothing else announces; `None` while a commit is on its way.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let State::Idle(writer) = &self.state else { return None };
        if !matches!(self.keys, Keys::Settled) {
            return Some(now);
        }
        [self.commit_at(now), writer.truncate_at()].into_iter().flatten().min()
    }

    fn commit_at(&self, now: Instant) -> Option<Instant> {
        let commit = match self.forming.parcels.is_empty() {
            true => self.waiting_since.map(|since| since + GATHER),
            false => Some(now),
        };
        match (commit, self.retry_at) {
            (Some(commit), Some(retry)) => Some(commit.max(retry)),
            (commit, _) => commit,
        }
    }

    /// Starts a commit if one is due: at once for wakeups, after [`GATHER`] for removals and changes alone.
    pub fn start(&mut self, now: Instant, now_ms: i64) {
        if self.poll_timeout(now).is_none_or(|due| due > now) {
            return;
        }
        let State::Idle(writer) = std::mem::replace(&mut self.state, State::Between) else {
            return;
        };
        if writer.truncate_at().is_some_and(|due| due <= now) {
            self.state = State::Busy(Box::pin(truncate(writer)));
            return;
        }
        let commit_goes_first = self.moved_last && self.commit_at(now).is_some_and(|due| due <= now);
        if !commit_goes_first && !matches!(self.keys, Keys::Settled) {
            self.moved_last = true;
            let keys = std::mem::replace(&mut self.keys, Keys::Settled);
            self.state = State::Busy(Box::pin(move_on(writer, keys)));
            return;
        }
        self.moved_last = false;
        let group = self.take_part();
        metrics::histogram!("outbox_group_entries").record(group.parcels.entries as f64);
        self.state = State::Busy(Box::pin(commit(writer, group, now_ms)));
    }

    /// Waits for the commit that is on its way, forever if there is none. May be dropped and called again.
    ///
    /// Who waited for the wakeups has been told when it returns.
    pub async fn finished(&mut self) -> Finished {
        let State::Busy(flight) = &mut self.state else {
            return std::future::pending().await;
        };
        let Flown {
            writer,
            group,
            outcome,
            keys,
            took,
        } = flight.await;
        self.state = State::Idle(writer);
        // One that was asked for meanwhile goes first.
        if let (Some(keys), Keys::Settled) = (keys, &self.keys) {
            self.keys = keys;
        }
        let Some(outcome) = outcome else {
            return Finished::default();
        };
        metrics::histogram!("outbox_commit_seconds").record(took);
        match outcome {
            Ok(()) => {
                self.failures = 0;
                self.retry_at = None;
                if !group.parcels.is_empty() {
                    self.most_parcels = usize::MAX;
                    self.splits = 0;
                }
                Finished {
                    durable: group.parcels.answer(Ok(())),
                    refused: Vec::new(),
                }
            }
            Err(fault) => Finished {
                durable: Vec::new(),
                refused: self.take_back(group, fault),
            },
        }
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.forming.is_empty() && matches!(self.state, State::Idle(_))
    }

    /// Commits what waits, again a few times if need be, and closes the file.
    pub async fn close(mut self, now_ms: i64) {
        let mut failed = 0;
        loop {
            self.finished_if_busy().await;
            // A commit that was only split up has no pause to wait for.
            failed += u32::from(self.retry_at.take().is_some());
            if self.forming.is_empty() || failed >= CLOSING_ATTEMPTS {
                break;
            }
            if let State::Idle(writer) = std::mem::replace(&mut self.state, State::Between) {
                let group = self.take_group();
                self.state = State::Busy(Box::pin(commit(writer, group, now_ms)));
            }
        }
        self.forming.parcels.answer(Err(OutboxError::Closed));
        if let State::Idle(writer) = self.state {
            writer.close().await;
        }
    }

    async fn finished_if_busy(&mut self) {
        if matches!(self.state, State::Busy(_)) {
            self.finished().await;
        }
    }

    /// What waits, as far as it goes into one commit. Of removals and changes that is about as much as of wakeups: those of a
    /// lane with much to do may not make the wakeups of all others wait for a long commit.
    fn take_part(&mut self) -> Group {
        let since = self.waiting_since;
        let mut group = self.take_group();
        let wakeups = group
            .parcels
            .entries
            .max(self.forming.parcels.entries.min(GROUP_ENTRIES));
        let most = GROUP_CHANGES.max(wakeups.saturating_mul(2));
        if group.remove.len() > most {
            self.forming.remove = group.remove.split_off(most);
        }
        if let Some(id) = group.change.keys().nth(most).copied() {
            self.forming.change = group.change.split_off(&id);
        }
        if !self.forming.remove.is_empty() || !self.forming.change.is_empty() {
            self.waiting_since = since;
        }
        group
    }

    /// After a failure what frees space goes first: on a full disk it may be the only thing that works.
    fn take_group(&mut self) -> Group {
        self.waiting_since = None;
        let mut group = std::mem::take(&mut self.forming);
        self.forming.parcels = if self.failures > 0 && !group.remove.is_empty() {
            std::mem::take(&mut group.parcels)
        } else {
            group.parcels.split_off(self.most_parcels)
        };
        if !self.forming.parcels.is_empty() && !group.remove.is_empty() {
            // A removal that goes before what it removes would remove nothing.
            let gone: HashSet<EntryId> = group.remove.iter().copied().collect();
            self.forming.parcels.leave_out(&gone);
        }
        group
    }

    /// Keeps a failed commit for the next try; only if it would fail again its wakeups are refused.
    fn take_back(&mut self, mut group: Group, fault: SqliteFault) -> Vec<EntryId> {
        metrics::counter!("outbox_faults_total", "reason" => fault.label()).increment(1);
        self.failures = self.failures.saturating_add(1);
        let (parcels, mut refused) = (std::mem::take(&mut group.parcels), Vec::new());
        // What the database refuses may be one parcel of many, and nobody's wakeups may go with another's.
        let is_split = fault.may_be_of_one_row() && parcels.queue.len() > 1 && self.splits < MOST_SPLITS;
        if is_split {
            self.splits += 1;
            self.most_parcels = parcels.queue.len().div_ceil(2);
        }
        let forming = &mut self.forming;
        if is_split || fault.is_retryable() {
            // The copies of these messages have come and gone meanwhile: a refusal would lose them. They stay in front, as
            // ids ascend.
            forming.parcels.put_back(parcels);
        } else {
            refused = parcels.answer(Err(fault.into()));
        }
        forming.remove.extend(group.remove);
        for (id, change) in group.change {
            forming.change.entry(id).or_insert(change);
        }
        for id in &forming.remove {
            forming.change.remove(id);
        }
        forming.forget_marks_before_ms = forming.forget_marks_before_ms.or(group.forget_marks_before_ms);
        let now = Instant::now();
        if !forming.remove.is_empty() || !forming.change.is_empty() || forming.forget_marks_before_ms.is_some() {
            self.waiting_since.get_or_insert(now);
        }
        self.retry_at = (!is_split).then(|| now + RETRY.saturating_mul(self.failures.min(4)));
        refused
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        self.parcels.is_empty()
            && self.remove.is_empty()
            && self.change.is_empty()
            && self.forget_marks_before_ms.is_none()
    }
}

/// What one caller brought: it becomes durable or is refused as one.
struct Parcel {
    entries: Vec<Entry>,
    marks: Vec<Mark>,
    done: Done,
}

impl Parcel {
    fn ids(&self) -> impl Iterator<Item = EntryId> {
        self.entries.iter().map(|entry| entry.id)
    }

    /// What it takes of a commit, nearly: bytes.
    fn bytes(&self) -> usize {
        let wakeups: usize = self
            .entries
            .iter()
            .map(|entry| entry.sealed.row_len() + ROW_OVERHEAD)
            .sum();
        wakeups + size_of_val(self.marks.as_slice())
    }
}

/// Parcels in the order of their ids, and what is in them.
#[derive(Default)]
struct Parcels {
    queue: VecDeque<Parcel>,
    entries: usize,
    marks: usize,
}

impl Parcels {
    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// As far as it counts for a commit: what there is most of.
    fn len(&self) -> usize {
        self.entries.max(self.marks).max(self.queue.len())
    }

    fn push_back(&mut self, parcel: Parcel) {
        self.entries += parcel.entries.len();
        self.marks += parcel.marks.len();
        self.queue.push_back(parcel);
    }

    /// Puts these in front.
    fn put_back(&mut self, mut older: Self) {
        for parcel in self.queue.drain(..) {
            older.push_back(parcel);
        }
        *self = older;
    }

    /// Keeps the first: at most so many, and no more than goes into one commit, but one at least. Gives the rest.
    fn split_off(&mut self, most: usize) -> Self {
        let (mut first, mut bytes) = (Self::default(), 0);
        let mut rest = std::mem::take(self);
        while let Some(parcel) = rest.queue.pop_front() {
            bytes += parcel.bytes();
            let is_full = first.queue.len() >= most
                || first.entries + parcel.entries.len() > GROUP_ENTRIES
                || bytes > GROUP_BYTES;
            if is_full && !first.is_empty() {
                rest.queue.push_front(parcel);
                break;
            }
            first.push_back(parcel);
        }
        rest.entries -= first.entries;
        rest.marks -= first.marks;
        *self = first;
        rest
    }

    fn leave_out(&mut self, gone: &HashSet<EntryId>) {
        for parcel in &mut self.queue {
            parcel.entries.retain(|entry| !gone.contains(&entry.id));
        }
        self.entries = self.queue.iter().map(|parcel| parcel.entries.len()).sum();
    }

    /// Tells everybody who waits, and gives the ids.
    fn answer(self, outcome: Result<(), OutboxError>) -> Vec<EntryId> {
        let mut ids = Vec::with_capacity(self.entries);
        for parcel in self.queue {
            ids.extend(parcel.ids());
            let _ = parcel.done.send(outcome);
        }
        ids
    }
}

async fn commit(mut writer: Box<OutboxWriter>, mut group: Group, now_ms: i64) -> Flown {
    let began = Instant::now();
    let parcels = &group.parcels.queue;
    let commit = Commit {
        add: parcels.iter().flat_map(|parcel| &parcel.entries).cloned().collect(),
        marks: parcels.iter().flat_map(|parcel| &parcel.marks).copied().collect(),
        at_ms: now_ms,
        remove: std::mem::take(&mut group.remove),
        change: group.change.values().copied().collect(),
        forget_marks_before_ms: group.forget_marks_before_ms,
    };
    let outcome = writer.commit(&commit).await;
    group.remove = commit.remove;
    Flown {
        writer,
        group,
        outcome: Some(outcome),
        keys: None,
        took: began.elapsed(),
    }
}

async fn truncate(mut writer: Box<OutboxWriter>) -> Flown {
    let began = Instant::now();
    writer.truncate().await;
    Flown {
        writer,
        group: Group::default(),
        outcome: None,
        keys: None,
        took: began.elapsed(),
    }
}

/// One step of a change of keys. A fault ends it: who asked hears it and asks again.
async fn move_on(mut writer: Box<OutboxWriter>, keys: Keys) -> Flown {
    let began = Instant::now();
    let (change, moved, stepped) = match keys {
        Keys::Asked(change) => {
            let stepped = writer.use_keys(Arc::clone(&change.sealer)).await;
            (Some(change), 0, stepped.map(|()| 0))
        }
        Keys::Moving { change, moved } => (Some(change), moved, writer.move_rows().await),
        Keys::Settled => (None, 0, Ok(0)),
    };
    let moved = stepped.map(|step| moved.saturating_add(step));
    let keys = match (change, moved) {
        (Some(change), Ok(moved)) if writer.has_older() => Keys::Moving { change, moved },
        (Some(change), moved) => {
            let _ = change.done.send(moved.map_err(OutboxError::from));
            Keys::Settled
        }
        (None, _) => Keys::Settled,
    };
    Flown {
        writer,
        group: Group::default(),
        outcome: None,
        keys: Some(keys),
        took: began.elapsed(),
    }
}

/// Wakeups in one commit, or what one caller brought if that is more: at their longest so many are about 5 MiB.
const GROUP_ENTRIES: usize = 1_024;

/// The same in bytes.
const GROUP_BYTES: usize = 8 << 20;

/// The most that one caller may bring, bytes: what the relay makes in one turn is below 10 MiB. So no commit comes near SQLite's limit of
/// 10^9 bytes, which would refuse all of it.
const PARCEL_BYTES: usize = 16 << 20;

/// What a row has beside the wakeup: its head, its seal, its line in the table. Bytes.
const ROW_OVERHEAD: usize = 384;

/// So often a commit is split up that the database refuses, while nothing becomes durable: then it is not one row of it.
const MOST_SPLITS: u32 = 16;

/// Removals, and changes, in one commit while there are few wakeups: about a millisecond.
const GROUP_CHANGES: usize = 256;

/// Removals and changes wait this long for company.
const GATHER: Duration = Duration::from_millis(20);

/// Pause after a failed commit, times the failures in a row, four at most.
const RETRY: Duration = Duration::from_millis(250);

const CLOSING_ATTEMPTS: u32 = 3;

#[cfg(test)]
mod tests;
