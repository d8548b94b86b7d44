//! Subscriptions in one SQLite file.
//!
//! In: what the trait says. Out: rows; each group of waiting changes is one commit. Never: holds a transaction open while
//! it waits for anybody.
//!
//! One task writes: it takes everything that waits, reads the rows concerned, decides in memory, and writes the outcome
//! with one statement. So a change alone is committed at once, and under load many share one sync of the disk. Readers have
//! their own connections and never wait for the writer.

use super::{
    LOAD_BATCH, Lookup, LookupKey, Put, SCAN_BATCH, StoreError, StoreSettings, SubscriptionStore, day_of, expires_day,
};
use crate::sqlite::{Packed, SqliteFault, SqliteFile, Writer, json_hex};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use notifier_core::subscription::{BINDING_MARK, DeviceId, RowError, Subscription};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqlitePool;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

pub struct SqliteStore {
    key: LookupKey,
    jobs: mpsc::Sender<Job>,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens or makes the file and starts the writing task.
    pub async fn open(settings: &StoreSettings, key: LookupKey) -> Result<Self, StoreError> {
        let file = SqliteFile::claim(&settings.path, WAL_PAGES)?;
        let writer = file.writer(&MIGRATIONS).await?;
        Self::start(file, writer, key).await
    }

    async fn start(file: SqliteFile, writer: Writer, key: LookupKey) -> Result<Self, StoreError> {
        let readers = file.readers(READERS);
        refuse_foreign_key(&readers, &key).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(write(file, writer, queue));
        Ok(Self { key, jobs, readers })
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn remove_signed_before(&self, device: &DeviceId, before_ms: Option<i64>) -> Result<bool, StoreError> {
        let lookup = self.key.lookup(device);
        self.ask(|done| Job::Remove {
            lookup,
            before_ms,
            done,
        })
        .await
    }
}

impl SubscriptionStore for SqliteStore {
    fn put(&self, subscription: &Subscription) -> BoxFuture<'_, Result<Put, StoreError>> {
        let lookup = self.key.lookup(&subscription.device);
        let mark = self.key.binding_mark(subscription);
        let is_bound = subscription.is_bound;
        let row = Row {
            sig_ts: subscription.sig_ts,
            expires_day: expires_day(subscription),
            content: subscription.encode_row(),
        };
        self.ask(move |done| Job::Put {
            lookup,
            mark,
            is_bound,
            row,
            done,
        })
        .boxed()
    }

    fn remove<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.remove_signed_before(device, None).boxed()
    }

    fn remove_if_older<'a>(
        &'a self,
        device: &'a DeviceId,
        provider_time_ms: i64,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.remove_signed_before(device, Some(provider_time_ms)).boxed()
    }

    fn load(&self, devices: Vec<DeviceId>) -> BoxFuture<'_, Result<Vec<Subscription>, StoreError>> {
        let lookups: Vec<Lookup> = devices.iter().map(|device| self.key.lookup(device)).collect();
        async move {
            let mut found = Vec::with_capacity(lookups.len());
            for some in lookups.chunks(LOAD_BATCH) {
                let rows: Vec<(Vec<u8>,)> = sqlx::query_as(LOAD)
                    .bind(json_hex(some.iter().map(Lookup::as_slice)))
                    .fetch_all(&self.readers)
                    .await?;
                found.extend(decode_all(rows));
            }
            Ok(found)
        }
        .boxed()
    }

    fn scan(&self) -> mpsc::Receiver<Result<Vec<Subscription>, StoreError>> {
        let (batches, receiver) = mpsc::channel(2 * READERS as usize);
        let next = Arc::new(AtomicI64::new(0));
        for _ in 0..READERS {
            tokio::spawn(scan_shares(self.readers.clone(), next.clone(), batches.clone()));
        }
        receiver
    }

    fn remove_expired(&self, now: i64) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move {
            let before_day = day_of(now);
            let end = end_of_rows(&self.readers).await?;
            let mut removed = 0;
            for start in (0..end).step_by(EXPIRE_BATCH as usize) {
                removed += self
                    .ask(|done| Job::RemoveExpired {
                        start,
                        before_day,
                        done,
                    })
                    .await?;
            }
            Ok(removed)
        }
        .boxed()
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move {
            let (rows,): (i64,) = sqlx::query_as(COUNT)
                .bind(BINDING_MARK)
                .fetch_one(&self.readers)
                .await?;
            Ok(rows.unsigned_abs())
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            // Readers first: the writer empties the WAL as the last one.
            self.readers.close().await;
            let _ = self.ask(|done| Job::Close { done }).await;
        }
        .boxed()
    }
}

enum Job {
    Put {
        lookup: Lookup,
        /// Where it stands if the signer's subscriptions need a binding.
        mark: Lookup,
        is_bound: bool,
        row: Row,
        done: oneshot::Sender<Result<Put, StoreError>>,
    },
    Remove {
        lookup: Lookup,
        before_ms: Option<i64>,
        done: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// Looks at the rows from `start` on, [`EXPIRE_BATCH`] numbers.
    RemoveExpired {
        start: i64,
        before_day: i64,
        done: oneshot::Sender<Result<u64, StoreError>>,
    },
    Close {
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

struct Row {
    sig_ts: i64,
    expires_day: i64,
    content: Vec<u8>,
}

/// The writing task. Ends, and gives the file free, when it is told to close or nobody can send any more.
async fn write(file: SqliteFile, mut writer: Writer, mut queue: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(GROUP);
    let mut closers = Vec::new();
    loop {
        let due = writer.truncate_at();
        let taken = tokio::select! {
            biased;
            taken = queue.recv_many(&mut jobs, GROUP) => taken,
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                writer.truncate().await;
                continue;
            }
        };
        if taken == 0 {
            break;
        }
        let mut group = Vec::with_capacity(taken);
        for job in jobs.drain(..) {
            match job {
                Job::Put { .. } | Job::Remove { .. } => group.push(job),
                Job::RemoveExpired {
                    start,
                    before_day,
                    done,
                } => {
                    let _ = done.send(remove_expired(&mut writer, start, before_day).await.map_err(refused));
                }
                Job::Close { done } => {
                    queue.close();
                    closers.push(done);
                }
            }
        }
        commit(&mut writer, group).await;
        if writer
            .truncate_at()
            .is_some_and(|due| due <= tokio::time::Instant::now())
        {
            writer.truncate().await;
        }
    }
    writer.close().await;
    drop(file);
    for done in closers {
        let _ = done.send(Ok(()));
    }
}

/// Changes that share one commit.
async fn commit(writer: &mut Writer, group: Vec<Job>) {
    if group.is_empty() {
        return;
    }
    let began = Instant::now();
    metrics::histogram!("store_group_changes").record(group.len() as f64);
    let mut slots = match read_slots(writer, &group).await {
        Ok(slots) => slots,
        Err(fault) => return fail(group, refused(fault)),
    };
    // Nobody hears of a decision before the commit stands.
    let answers: Vec<Answer> = group.into_iter().filter_map(|job| job.decide(&mut slots)).collect();
    let outcome = write_slots(writer, &slots).await.map_err(refused);
    answers.into_iter().for_each(|answer| answer.send(outcome));
    metrics::histogram!("store_commit_seconds").record(began.elapsed());
}

/// What is known of one row while a group is decided.
#[derive(Default)]
struct Slot {
    /// Whether the file has the row.
    stored: bool,
    /// The row after the changes so far.
    row: Option<Row>,
    changed: bool,
}

impl Job {
    fn lookups(&self) -> impl Iterator<Item = &Lookup> {
        let (row, mark) = match self {
            Self::Put { lookup, mark, .. } => (Some(lookup), Some(mark)),
            Self::Remove { lookup, .. } => (Some(lookup), None),
            Self::RemoveExpired { .. } | Self::Close { .. } => (None, None),
        };
        row.into_iter().chain(mark)
    }

    fn decide(self, slots: &mut HashMap<Lookup, Slot>) -> Option<Answer> {
        match self {
            Self::Put {
                lookup,
                mark,
                is_bound,
                row,
                done,
            } => {
                let is_required = || slots.get(&mark).is_some_and(|slot| slot.row.is_some());
                if !is_bound && is_required() {
                    return Some(Answer::Put(Put::BindingRequired, done));
                }
                if is_bound {
                    slots.entry(mark).or_default().mark(row.expires_day);
                }
                Some(Answer::Put(slots.entry(lookup).or_default().put(row), done))
            }
            Self::Remove {
                lookup,
                before_ms,
                done,
            } => Some(Answer::Removed(
                slots.entry(lookup).or_default().remove(before_ms),
                done,
            )),
            Self::RemoveExpired { .. } | Self::Close { .. } => None,
        }
    }
}

impl Slot {
    /// A renewal never loses a newer signature; of two with the same time the later request wins.
    fn put(&mut self, new: Row) -> Put {
        let answer = match &self.row {
            None => Put::New,
            Some(old) if old.sig_ts > new.sig_ts => return Put::KeptNewer,
            Some(old) if old.content == new.content => return Put::Unchanged,
            Some(_) => Put::Renewed,
        };
        self.row = Some(new);
        self.changed = true;
        answer
    }

    /// The mark stays until the last signature that came with a binding is void: no stolen one outlives it.
    fn mark(&mut self, expires_day: i64) {
        if self.row.as_ref().is_none_or(|row| row.expires_day < expires_day) {
            self.row = Some(Row {
                sig_ts: i64::MIN,
                expires_day,
                content: BINDING_MARK.to_vec(),
            });
            self.changed = true;
        }
    }

    fn remove(&mut self, before_ms: Option<i64>) -> bool {
        let goes = match (&self.row, before_ms) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(row), Some(before_ms)) => row.sig_ts.saturating_mul(1_000) < before_ms,
        };
        if goes {
            self.row = None;
            self.changed = true;
        }
        goes
    }
}

/// A decision on its way to who asked.
enum Answer {
    Put(Put, oneshot::Sender<Result<Put, StoreError>>),
    Removed(bool, oneshot::Sender<Result<bool, StoreError>>),
}

impl Answer {
    fn send(self, outcome: Result<(), StoreError>) {
        // Who asked may have given up; the change stands.
        match self {
            Self::Put(put, done) => drop(done.send(outcome.map(|()| put))),
            Self::Removed(removed, done) => drop(done.send(outcome.map(|()| removed))),
        }
    }
}

fn fail(group: Vec<Job>, error: StoreError) {
    for job in group {
        match job {
            Job::Put { done, .. } => drop(done.send(Err(error))),
            Job::Remove { done, .. } => drop(done.send(Err(error))),
            Job::RemoveExpired { done, .. } => drop(done.send(Err(error))),
            Job::Close { done } => drop(done.send(Err(error))),
        }
    }
}

async fn read_slots(writer: &mut Writer, group: &[Job]) -> Result<HashMap<Lookup, Slot>, SqliteFault> {
    let lookups = json_hex(group.iter().flat_map(Job::lookups).map(Lookup::as_slice));
    let rows: Vec<(Vec<u8>, i64, Vec<u8>)> = sqlx::query_as(READ)
        .bind(lookups)
        .fetch_all(&mut writer.connection)
        .await?;
    let slot = |(lookup, expires_day, content): (Vec<u8>, i64, Vec<u8>)| {
        // A damaged row gives way to any signature.
        let sig_ts = decode(&content).map_or(i64::MIN, |subscription| subscription.sig_ts);
        let slot = Slot {
            stored: true,
            row: Some(Row {
                sig_ts,
                expires_day,
                content,
            }),
            changed: false,
        };
        Some((Lookup::try_from(lookup).ok()?, slot))
    };
    Ok(rows.into_iter().filter_map(slot).collect())
}

async fn write_slots(writer: &mut Writer, slots: &HashMap<Lookup, Slot>) -> Result<(), SqliteFault> {
    let mut rows = Packed::default();
    let (mut writes, mut gone) = (0_u32, Vec::new());
    for (lookup, slot) in slots.iter().filter(|(_, slot)| slot.changed) {
        match &slot.row {
            Some(row) => {
                rows.push(&[row.expires_day], lookup, &row.content);
                writes += 1;
            }
            None if slot.stored => gone.push(lookup.as_slice()),
            None => {}
        }
    }
    let (table, blob) = rows.finish();
    let names = json_hex(gone.iter().copied());
    let script = match (writes > 0, !gone.is_empty()) {
        (false, false) => return Ok(()),
        // A statement alone is a transaction.
        (true, false) => sqlx::query(UPSERT).bind(blob).bind(table),
        (false, true) => sqlx::query(DELETE).bind(names),
        (true, true) => sqlx::query(DELETE_AND_UPSERT).bind(names).bind(blob).bind(table),
    };
    writer.note_write();
    if let Err(error) = script.execute(&mut writer.connection).await {
        return Err(writer.recover(error).await);
    }
    Ok(())
}

async fn remove_expired(writer: &mut Writer, start: i64, before_day: i64) -> Result<u64, SqliteFault> {
    let range = sqlx::query(DELETE_EXPIRED)
        .bind(start)
        .bind(start.saturating_add(EXPIRE_BATCH))
        .bind(before_day);
    let removed = match range.execute(&mut writer.connection).await {
        Ok(done) => done.rows_affected(),
        Err(error) => return Err(writer.recover(error).await),
    };
    if removed > 0 {
        writer.note_write();
        metrics::counter!("store_expired_rows_total").increment(removed);
    }
    Ok(removed)
}

/// One of the scanning tasks: each takes the next share of row numbers that nobody has taken.
async fn scan_shares(
    readers: SqlitePool,
    next: Arc<AtomicI64>,
    batches: mpsc::Sender<Result<Vec<Subscription>, StoreError>>,
) {
    let share = async |start: i64| -> Result<Vec<Subscription>, sqlx::Error> {
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as(SCAN)
            .bind(start)
            .bind(start.saturating_add(SCAN_BATCH))
            .fetch_all(&readers)
            .await?;
        Ok(decode_all(rows))
    };
    let end = match end_of_rows(&readers).await {
        Ok(end) => end,
        Err(error) => return drop(batches.send(Err(error)).await),
    };
    loop {
        let start = next.fetch_add(SCAN_BATCH, Ordering::Relaxed);
        if start >= end {
            return;
        }
        let batch = match share(start).await {
            Ok(batch) if batch.is_empty() => continue,
            Ok(batch) => Ok(batch),
            Err(error) => {
                // The others stop too: a scan with a hole is no scan.
                next.store(i64::MAX / 2, Ordering::Relaxed);
                Err(refused(error.into()))
            }
        };
        if batches.send(batch).await.is_err() {
            return;
        }
    }
}

/// One more than the highest row number.
async fn end_of_rows(readers: &SqlitePool) -> Result<i64, StoreError> {
    let (last,): (Option<i64>,) = sqlx::query_as("SELECT max(rowid) FROM subscription")
        .fetch_one(readers)
        .await?;
    Ok(last.map_or(0, |last| last.saturating_add(1)))
}

/// With another key every renewal would become a second row and no removal would find its own.
async fn refuse_foreign_key(readers: &SqlitePool, key: &LookupKey) -> Result<(), StoreError> {
    let rows: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as("SELECT lookup, row FROM subscription LIMIT 16")
        .fetch_all(readers)
        .await?;
    let fits = |(lookup, content): &(Vec<u8>, Vec<u8>)| {
        decode(content).map(|subscription| key.lookup(&subscription.device).as_slice() == lookup)
    };
    let verdicts: Vec<bool> = rows.iter().filter_map(fits).collect();
    if !verdicts.is_empty() && !verdicts.contains(&true) {
        return Err(StoreError::ForeignLookupKey);
    }
    Ok(())
}

fn decode_all(rows: Vec<(Vec<u8>,)>) -> Vec<Subscription> {
    rows.iter().filter_map(|(content,)| decode(content)).collect()
}

/// A damaged row is counted and passed over: one must not hide the others. A mark is no subscription.
fn decode(content: &[u8]) -> Option<Subscription> {
    if content == BINDING_MARK {
        return None;
    }
    let count = |error: RowError| metrics::counter!("store_damaged_rows_total", "reason" => error.label()).increment(1);
    Subscription::decode_row(content)
        .inspect_err(|error| count(*error))
        .ok()
}

fn refused(fault: SqliteFault) -> StoreError {
    metrics::counter!("store_faults_total", "reason" => fault.label()).increment(1);
    fault.into()
}

impl From<SqliteFault> for StoreError {
    fn from(fault: SqliteFault) -> Self {
        match fault {
            SqliteFault::DiskFull => Self::DiskFull,
            SqliteFault::Io | SqliteFault::Busy => Self::Unavailable,
            SqliteFault::InUse => Self::InUse,
            SqliteFault::Damaged => Self::Damaged,
            SqliteFault::Version => Self::Version,
            SqliteFault::Closed => Self::Closed,
            SqliteFault::Internal { code } => Self::Internal { code },
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        SqliteFault::from(error).into()
    }
}

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite/store");

const READ: &str = "SELECT lookup, expires_day, row FROM subscription
    WHERE lookup IN (SELECT unhex(value) FROM json_each(?))";

const COUNT: &str = "SELECT count(*) FROM subscription WHERE row != ?";

const LOAD: &str = "SELECT row FROM subscription WHERE lookup IN (SELECT unhex(value) FROM json_each(?))";

const SCAN: &str = "SELECT row FROM subscription WHERE rowid >= ? AND rowid < ?";

const DELETE: &str = "DELETE FROM subscription WHERE lookup IN (SELECT unhex(value) FROM json_each(?))";

const UPSERT: &str = "INSERT INTO subscription (row, lookup, expires_day, key_id)
    SELECT substr(?, value->>2, value->>3), unhex(value->>1), value->>0, 0 FROM json_each(?) WHERE true
    ON CONFLICT (lookup) DO UPDATE
    SET row = excluded.row, expires_day = excluded.expires_day, key_id = excluded.key_id";

const DELETE_AND_UPSERT: &str = "BEGIN IMMEDIATE;
    DELETE FROM subscription WHERE lookup IN (SELECT unhex(value) FROM json_each(?));
    INSERT INTO subscription (row, lookup, expires_day, key_id)
    SELECT substr(?, value->>2, value->>3), unhex(value->>1), value->>0, 0 FROM json_each(?) WHERE true
    ON CONFLICT (lookup) DO UPDATE
    SET row = excluded.row, expires_day = excluded.expires_day, key_id = excluded.key_id;
    COMMIT";

const DELETE_EXPIRED: &str = "DELETE FROM subscription WHERE rowid >= ? AND rowid < ? AND expires_day < ?";

/// Changes waiting for the writing task; beyond that `put` waits.
const QUEUE: usize = 1_024;

/// Changes in one commit at most.
const GROUP: usize = 512;

/// 4 MiB: renewals touch pages all over the file, and a checkpoint writes each of them.
const WAL_PAGES: u32 = 1_000;

/// Reading connections: a scan uses all of them at once.
const READERS: u32 = 2;

/// Row numbers looked at in one step of the expiry, so that a `put` never waits long.
const EXPIRE_BATCH: i64 = 1_024;

#[cfg(test)]
mod tests;
