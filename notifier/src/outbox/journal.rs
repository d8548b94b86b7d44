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
use std::collections::{BTreeMap, HashSet};
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
    add: Vec<Entry>,
    marks: Vec<Mark>,
    answers: Vec<Done>,
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
            keys: Keys::Settled,
            moved_last: false,
        }
    }

    /// A change that has not come to its end is given up: its rows go over with this one.
    pub fn use_keys(&mut self, change: KeyChange) {
        self.keys = Keys::Asked(change);
    }

    /// How many more wakeups the next commit may take. What a failed commit left counts.
    pub fn room(&self) -> usize {
        let Group {
            add, marks, answers, ..
        } = &self.forming;
        GROUP_ENTRIES.saturating_sub(add.len().max(marks.len()).max(answers.len()))
    }

    /// Both or neither become durable, then `done` hears it.
    pub fn add(&mut self, entries: impl IntoIterator<Item = Entry>, marks: Vec<Mark>, done: Done) {
        self.forming.add.extend(entries);
        self.forming.marks.extend(marks);
        self.forming.answers.push(done);
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
        let commit = match self.forming.answers.is_empty() {
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
        metrics::histogram!("outbox_group_entries").record(group.add.len() as f64);
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
                for done in group.answers {
                    let _ = done.send(Ok(()));
                }
                Finished {
                    durable: ids(&group.add),
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

    /// Commits what waits, a few times if need be, and closes the file.
    pub async fn close(mut self, now_ms: i64) {
        for _ in 0..CLOSING_ATTEMPTS {
            self.finished_if_busy().await;
            self.retry_at = None;
            if self.forming.is_empty() {
                break;
            }
            if let State::Idle(writer) = std::mem::replace(&mut self.state, State::Between) {
                let group = self.take_group();
                self.state = State::Busy(Box::pin(commit(writer, group, now_ms)));
            }
        }
        self.finished_if_busy().await;
        for done in self.forming.answers.drain(..) {
            let _ = done.send(Err(OutboxError::Closed));
        }
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
        let most = GROUP_CHANGES.max(self.forming.add.len().saturating_mul(2));
        let since = self.waiting_since;
        let mut group = self.take_group();
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
        if self.failures > 0 && !group.remove.is_empty() {
            let gone: HashSet<EntryId> = group.remove.iter().copied().collect();
            self.forming.add = std::mem::take(&mut group.add);
            self.forming.add.retain(|entry| !gone.contains(&entry.id));
            self.forming.marks = std::mem::take(&mut group.marks);
            self.forming.answers = std::mem::take(&mut group.answers);
        }
        group
    }

    /// Keeps a failed commit for the next try; only if it would fail again its wakeups are refused.
    fn take_back(&mut self, mut group: Group, fault: SqliteFault) -> Vec<EntryId> {
        metrics::counter!("outbox_faults_total", "reason" => fault.label()).increment(1);
        let forming = &mut self.forming;
        let mut refused = Vec::new();
        if fault.is_retryable() {
            // The copies of these messages have come and gone meanwhile: a refusal would lose them. They stay in front, as
            // ids ascend.
            group.add.append(&mut forming.add);
            group.marks.append(&mut forming.marks);
            group.answers.append(&mut forming.answers);
            forming.add = group.add;
            forming.marks = group.marks;
            forming.answers = group.answers;
        } else {
            refused = ids(&group.add);
            for done in group.answers {
                let _ = done.send(Err(fault.into()));
            }
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
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + RETRY.saturating_mul(self.failures.min(4)));
        refused
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        self.answers.is_empty()
            && self.remove.is_empty()
            && self.change.is_empty()
            && self.forget_marks_before_ms.is_none()
    }
}

fn ids(entries: &[Entry]) -> Vec<EntryId> {
    entries.iter().map(|entry| entry.id).collect()
}

async fn commit(mut writer: Box<OutboxWriter>, mut group: Group, now_ms: i64) -> Flown {
    let began = Instant::now();
    let commit = Commit {
        add: std::mem::take(&mut group.add),
        marks: std::mem::take(&mut group.marks),
        at_ms: now_ms,
        remove: std::mem::take(&mut group.remove),
        change: group.change.values().copied().collect(),
        forget_marks_before_ms: group.forget_marks_before_ms,
    };
    let outcome = writer.commit(&commit).await;
    let group = Group {
        add: commit.add,
        marks: commit.marks,
        remove: commit.remove,
        ..group
    };
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

/// Wakeups in one commit: with all of them at their longest a commit is about 4 MiB.
const GROUP_ENTRIES: usize = 1_024;

/// Removals, and changes, in one commit while there are few wakeups: about a millisecond.
const GROUP_CHANGES: usize = 256;

/// Removals and changes wait this long for company.
const GATHER: Duration = Duration::from_millis(20);

/// Pause after a failed commit, times the failures in a row, four at most.
const RETRY: Duration = Duration::from_millis(250);

const CLOSING_ATTEMPTS: u32 = 3;

#[cfg(test)]
mod tests;
