//! Subscriptions in one SQLite file.
//!
//! In: what the trait says. Out: rows; each group of waiting changes is one commit. Never: holds a transaction open while
//! it waits for anybody.
//!
//! One task writes: it takes everything that waits, reads the rows concerned, decides in memory, and writes the outcome
//! with one statement. So a change alone is committed at once, and under load many share one sync of the disk. Readers have
//! their own connections and never wait for the writer. The writing task seals too: when it takes up a new key, nothing
//! sealed under the old one is still on its way.

mod plain;
pub(crate) mod sealed;
mod slot;

use super::{
    LOAD_BATCH, LookupKey, Name, Put, SCAN_BATCH, StoreError, StoreSettings, SubscriptionStore, Unsubscribed, day_of,
    expires_day,
};
use crate::keyring::{Keyring, Sealer};
use crate::sqlite::keys::{self, KeyUse};
use crate::sqlite::{Packed, SqliteFault, SqliteFile, Writer, json_numbers};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use notifier_core::subscription::{DeviceId, Subscription, Unsubscription};
use sealed::{Columns, PURPOSE, lookup};
use slot::{Row, Slot};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqlitePool;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

pub struct SqliteStore {
    key: LookupKey,
    jobs: mpsc::Sender<Job>,
    readers: SqlitePool,
    /// Changed by the writing task only.
    sealer: watch::Receiver<Arc<Sealer>>,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens or makes the file, seals what an earlier version left in plain, and starts the writing task.
    pub async fn open(settings: &StoreSettings, key: LookupKey, keys: &Keyring) -> Result<Self, StoreError> {
        let (file, writer) = claim(settings).await?;
        Self::start(file, writer, key, keys, settings.path.clone()).await
    }

    async fn start(
        file: SqliteFile,
        mut writer: Writer,
        key: LookupKey,
        keys: &Keyring,
        path: PathBuf,
    ) -> Result<Self, StoreError> {
        let sealer = Arc::new(keys.sealer(PURPOSE));
        take_up(&mut writer, &sealer).await?;
        let readers = file.readers(READERS);
        refuse_foreign_key(&readers, &key, &sealer).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (publish, sealer) = watch::channel(sealer);
        writer.copy_beside(&file);
        tokio::spawn(write(file, writer, publish, queue));
        Ok(Self {
            key,
            jobs,
            readers,
            sealer,
            path,
        })
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn remove_signed_before(&self, device: &DeviceId, before_ms: Option<i64>) -> Result<bool, StoreError> {
        let name = self.key.name(device);
        self.ask(|done| Job::Remove { name, before_ms, done }).await
    }
}

/// Moves every row of a file that no notifier uses to the newest of these keys; how many were moved.
pub async fn change_keys(settings: &StoreSettings, keys: &Keyring) -> Result<u64, StoreError> {
    let (file, mut writer) = claim(settings).await?;
    let sealer = keys.sealer(PURPOSE);
    let mut moved = 0;
    if take_up(&mut writer, &sealer).await? {
        let readers = file.readers(1);
        let mut start = 0;
        while let Some(end) = end_of_step(&readers, start).await? {
            moved += reseal(&mut writer, &sealer, start, end).await?;
            let Some(next) = end.checked_add(1) else { break };
            start = next;
        }
        readers.close().await;
        writer.erase().await?;
        keys::leave_others(&mut writer, sealer.newest()).await?;
    }
    writer.close().await;
    Ok(moved)
}

async fn claim(settings: &StoreSettings) -> Result<(SqliteFile, Writer), SqliteFault> {
    let file = SqliteFile::claim(&settings.path, WAL_PAGES, settings.erase_after)?;
    let writer = file.writer(&MIGRATIONS).await?;
    Ok((file, writer))
}

/// Whether rows may be under an older key.
async fn take_up(writer: &mut Writer, sealer: &Sealer) -> Result<bool, SqliteFault> {
    let has_older = keys::claim(writer, sealer).await?;
    let sealed = plain::seal_plain_rows(writer, sealer).await?;
    if sealed > 0 {
        tracing::info!(rows = sealed, "subscriptions of an earlier version are sealed now");
    }
    Ok(has_older)
}

impl SubscriptionStore for SqliteStore {
    fn put(&self, subscription: &Subscription, now: i64) -> BoxFuture<'_, Result<Put, StoreError>> {
        let name = self.key.name(&subscription.device);
        let mark = self.key.binding_mark(subscription);
        let is_bound = subscription.is_bound;
        let row = Row {
            sig_ts: subscription.sig_ts,
            expires_day: expires_day(subscription),
            content: Zeroizing::new(subscription.encode_row()),
        };
        self.ask(move |done| Job::Put {
            name,
            mark,
            is_bound,
            row,
            now,
            done,
        })
        .boxed()
    }

    fn unsubscribe<'a>(
        &'a self,
        wish: &'a Unsubscription,
        now: i64,
    ) -> BoxFuture<'a, Result<Unsubscribed, StoreError>> {
        let (name, sig_ts) = (self.key.name(&wish.device), wish.sig_ts);
        self.ask(move |done| Job::Unsubscribe {
            name,
            sig_ts,
            now,
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
        let names: Vec<Name> = devices.iter().map(|device| self.key.name(device)).collect();
        async move {
            let mut found = Vec::with_capacity(names.len());
            for some in names.chunks(LOAD_BATCH) {
                let rows: Vec<Columns> = sqlx::query_as(READ)
                    .bind(json_numbers(some.iter().map(lookup)))
                    .fetch_all(&self.readers)
                    .await?;
                let wanted: HashSet<&Name> = some.iter().collect();
                // The ring of after the read: a row under a new key is written only when the new ring is here.
                let sealer = Arc::clone(&self.sealer.borrow());
                let opened = rows.into_iter().filter_map(|row| sealed::open(&sealer, row));
                let ours = opened.filter(|row| wanted.contains(&row.name()));
                found.extend(ours.filter_map(|row| row.subscription()));
            }
            Ok(found)
        }
        .boxed()
    }

    fn scan(&self) -> mpsc::Receiver<Result<Vec<Subscription>, StoreError>> {
        let (batches, receiver) = mpsc::channel(2 * READERS as usize);
        let next = Arc::new(AtomicI64::new(0));
        for _ in 0..READERS {
            let sealer = self.sealer.clone();
            tokio::spawn(scan_spans(self.readers.clone(), sealer, next.clone(), batches.clone()));
        }
        receiver
    }

    fn remove_expired(&self, now: i64) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move {
            let before_day = day_of(now);
            let (mut removed, mut start) = (0, 0);
            while let Some(end) = end_of_step(&self.readers, start).await? {
                removed += self
                    .ask(|done| Job::RemoveExpired {
                        start,
                        end,
                        before_day,
                        done,
                    })
                    .await?;
                let Some(next) = end.checked_add(1) else { break };
                start = next;
            }
            Ok(removed)
        }
        .boxed()
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        let mut batches = self.scan();
        async move {
            let mut count = 0;
            while let Some(batch) = batches.recv().await {
                count += batch?.len() as u64;
            }
            Ok(count)
        }
        .boxed()
    }

    fn use_keys<'a>(&'a self, keys: &'a Keyring) -> BoxFuture<'a, Result<u64, StoreError>> {
        let sealer = Arc::new(keys.sealer(PURPOSE));
        async move {
            if !self.ask(|done| Job::UseKeys { sealer, done }).await? {
                return Ok(0);
            }
            let (mut moved, mut start) = (0, 0);
            while let Some(end) = end_of_step(&self.readers, start).await? {
                moved += self.ask(|done| Job::Reseal { start, end, done }).await?;
                let Some(next) = end.checked_add(1) else { break };
                start = next;
            }
            self.ask(|done| Job::LeaveOldKeys { done }).await?;
            Ok(moved)
        }
        .boxed()
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyUse>, StoreError>> {
        async move { Ok(keys::in_file(&self.path).await?) }.boxed()
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
        name: Name,
        /// Where it stands if the signer's subscriptions need a binding.
        mark: Name,
        is_bound: bool,
        row: Row,
        /// Unix seconds.
        now: i64,
        done: oneshot::Sender<Result<Put, StoreError>>,
    },
    Unsubscribe {
        name: Name,
        sig_ts: i64,
        now: i64,
        done: oneshot::Sender<Result<Unsubscribed, StoreError>>,
    },
    Remove {
        name: Name,
        before_ms: Option<i64>,
        done: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// Looks at the rows from `start` to `end`, one step of them.
    RemoveExpired {
        start: i64,
        end: i64,
        before_day: i64,
        done: oneshot::Sender<Result<u64, StoreError>>,
    },
    /// Seals under the newest of these from now on; whether rows may be under an older one.
    UseKeys {
        sealer: Arc<Sealer>,
        done: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// Moves the rows from `start` to `end` to the newest key.
    Reseal {
        start: i64,
        end: i64,
        done: oneshot::Sender<Result<u64, StoreError>>,
    },
    /// All rows have been moved.
    LeaveOldKeys {
        done: oneshot::Sender<Result<(), StoreError>>,
    },
    Close {
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// The writing task. Ends, and gives the file free, when it is told to close or nobody can send any more.
async fn write(file: SqliteFile, mut writer: Writer, keys: watch::Sender<Arc<Sealer>>, mut queue: mpsc::Receiver<Job>) {
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
        let mut changes = 0;
        for job in jobs.drain(..) {
            changes += job.most_rows();
            match job {
                Job::Put { .. } | Job::Unsubscribe { .. } | Job::Remove { .. } => group.push(job),
                Job::RemoveExpired {
                    start,
                    end,
                    before_day,
                    done,
                } => {
                    let removed = remove_expired(&mut writer, start, end, before_day).await;
                    let _ = done.send(removed.map_err(refused));
                }
                Job::Reseal { start, end, done } => {
                    let sealer = Arc::clone(&keys.borrow());
                    let moved = reseal(&mut writer, &sealer, start, end).await;
                    let _ = done.send(moved.map_err(refused));
                }
                // What came before is written under the ring it came under; nothing waits across a change of keys.
                Job::UseKeys { sealer, done } => {
                    let before = Arc::clone(&keys.borrow());
                    commit(&mut writer, &before, std::mem::take(&mut group)).await;
                    let has_older = keys::claim(&mut writer, &sealer).await;
                    if has_older.is_ok() {
                        keys.send_replace(sealer);
                    }
                    let _ = done.send(has_older.map_err(refused));
                }
                Job::LeaveOldKeys { done } => {
                    let newest = keys.borrow().newest();
                    // Who exchanges keys waits for nothing but the list of keys in the file, and destroys the old one. So what stood under
                    // it is gone from the WAL before.
                    let left = match writer.erase().await {
                        Ok(()) => keys::leave_others(&mut writer, newest).await,
                        Err(fault) => Err(fault),
                    };
                    let _ = done.send(left.map_err(refused));
                }
                Job::Close { done } => {
                    queue.close();
                    closers.push(done);
                }
            }
        }
        let sealer = Arc::clone(&keys.borrow());
        commit(&mut writer, &sealer, group).await;
        writer.tidy(changes).await;
    }
    writer.close().await;
    drop(file);
    for done in closers {
        let _ = done.send(Ok(()));
    }
}

/// Changes that share one commit.
async fn commit(writer: &mut Writer, sealer: &Sealer, group: Vec<Job>) {
    if group.is_empty() {
        return;
    }
    let began = Instant::now();
    metrics::histogram!("store_group_changes").record(group.len() as f64);
    let mut slots = match read_slots(writer, sealer, &group).await {
        Ok(slots) => slots,
        Err(fault) => return fail(group, refused(fault)),
    };
    // Nobody hears of a decision before the commit stands.
    let answers: Vec<Answer> = group.into_iter().filter_map(|job| job.decide(&mut slots)).collect();
    let outcome = write_slots(writer, sealer, &slots).await.map_err(refused);
    answers.into_iter().for_each(|answer| answer.send(outcome));
    metrics::histogram!("store_commit_seconds").record(began.elapsed());
}

impl Job {
    /// How many rows it may change.
    const fn most_rows(&self) -> usize {
        match self {
            Self::RemoveExpired { .. } | Self::Reseal { .. } => STEP as usize,
            _ => 1,
        }
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        let (row, mark) = match self {
            Self::Put { name, mark, .. } => (Some(name), Some(mark)),
            Self::Unsubscribe { name, .. } | Self::Remove { name, .. } => (Some(name), None),
            _ => (None, None),
        };
        row.into_iter().chain(mark)
    }

    fn decide(self, slots: &mut HashMap<i64, Slot>) -> Option<Answer> {
        match self {
            Self::Put {
                name,
                mark,
                is_bound,
                row,
                now,
                done,
            } => {
                let marked = slots.get(&lookup(&mark)).filter(|slot| !slot.is_anothers(&mark));
                if !is_bound && marked.is_some_and(|slot| slot.row.is_some()) {
                    return Some(Answer::Put(Ok(Put::BindingRequired), done));
                }
                if is_bound {
                    slots.entry(lookup(&mark)).or_default().mark(mark, row.expires_day);
                }
                let put = slots.entry(lookup(&name)).or_default().put(name, row, now);
                Some(Answer::Put(put, done))
            }
            Self::Unsubscribe {
                name,
                sig_ts,
                now,
                done,
            } => {
                let slot = slots.entry(lookup(&name)).or_default();
                let outcome = slot.unsubscribe(&name, sig_ts, now);
                Some(Answer::Unsubscribed(outcome, done))
            }
            Self::Remove { name, before_ms, done } => {
                let removed = slots.entry(lookup(&name)).or_default().remove(&name, before_ms);
                Some(Answer::Removed(removed, done))
            }
            _ => None,
        }
    }
}

/// A decision on its way to who asked.
enum Answer {
    Put(Result<Put, StoreError>, oneshot::Sender<Result<Put, StoreError>>),
    Unsubscribed(Unsubscribed, oneshot::Sender<Result<Unsubscribed, StoreError>>),
    Removed(bool, oneshot::Sender<Result<bool, StoreError>>),
}

impl Answer {
    fn send(self, outcome: Result<(), StoreError>) {
        // Who asked may have given up; the change stands.
        match self {
            Self::Put(put, done) => drop(done.send(outcome.and(put))),
            Self::Unsubscribed(what, done) => drop(done.send(outcome.map(|()| what))),
            Self::Removed(removed, done) => drop(done.send(outcome.map(|()| removed))),
        }
    }
}

fn fail(group: Vec<Job>, error: StoreError) {
    for job in group {
        match job {
            Job::Put { done, .. } => drop(done.send(Err(error))),
            Job::Unsubscribe { done, .. } => drop(done.send(Err(error))),
            Job::Remove { done, .. } => drop(done.send(Err(error))),
            // Nothing else is in a group.
            _ => {}
        }
    }
}

async fn read_slots(writer: &mut Writer, sealer: &Sealer, group: &[Job]) -> Result<HashMap<i64, Slot>, SqliteFault> {
    let rows: Vec<Columns> = sqlx::query_as(READ)
        .bind(json_numbers(group.iter().flat_map(Job::names).map(lookup)))
        .fetch_all(&mut writer.connection)
        .await?;
    let slot = |columns: Columns| {
        let (lookup, expires_day, ..) = columns;
        let open = sealed::open(sealer, columns);
        // A damaged row gives way to any signature.
        let subscription = open.as_ref().and_then(sealed::Open::subscription);
        let slot = Slot {
            stored: true,
            name: open.as_ref().map(sealed::Open::name),
            row: Some(Row {
                sig_ts: subscription.map_or(i64::MIN, |subscription| subscription.sig_ts),
                expires_day,
                content: Zeroizing::new(open.map_or_else(Vec::new, |open| open.content().to_vec())),
            }),
            changed: false,
        };
        (lookup, slot)
    };
    Ok(rows.into_iter().map(slot).collect())
}

async fn write_slots(writer: &mut Writer, sealer: &Sealer, slots: &HashMap<i64, Slot>) -> Result<(), SqliteFault> {
    let mut rows = Packed::default();
    let (mut writes, mut gone) = (0_u32, Vec::new());
    for (lookup, slot) in slots.iter().filter(|(_, slot)| slot.changed) {
        match (&slot.row, &slot.name) {
            (Some(row), Some(name)) => {
                let sealed = sealed::seal(sealer, name, row.expires_day, &row.content)?;
                rows.push(&[*lookup, row.expires_day, sealer.newest().column()], &[], &sealed);
                writes += 1;
            }
            _ if slot.stored => gone.push(*lookup),
            _ => {}
        }
    }
    let (table, blob) = rows.finish();
    let gone_numbers = json_numbers(gone.iter().copied());
    let script = match (writes > 0, !gone.is_empty()) {
        (false, false) => return Ok(()),
        // A statement alone is a transaction.
        (true, false) => sqlx::query(UPSERT).bind(blob).bind(table),
        (false, true) => sqlx::query(DELETE).bind(gone_numbers),
        (true, true) => sqlx::query(DELETE_AND_UPSERT).bind(gone_numbers).bind(blob).bind(table),
    };
    writer.note_write();
    if let Err(error) = script.execute(&mut writer.connection).await {
        return Err(writer.recover(error).await);
    }
    Ok(())
}

async fn remove_expired(writer: &mut Writer, start: i64, end: i64, before_day: i64) -> Result<u64, SqliteFault> {
    let range = sqlx::query(DELETE_EXPIRED).bind(start).bind(end).bind(before_day);
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

/// Moves one step of rows to the newest key; how many. What cannot be read stays, and goes with its day.
async fn reseal(writer: &mut Writer, sealer: &Sealer, start: i64, end: i64) -> Result<u64, SqliteFault> {
    let newest = sealer.newest().column();
    let rows: Vec<Columns> = sqlx::query_as(READ_OLDER)
        .bind(start)
        .bind(end)
        .bind(newest)
        .fetch_all(&mut writer.connection)
        .await?;
    let (mut packed, mut moved) = (Packed::default(), 0);
    for row in rows {
        let (lookup, expires_day, ..) = row;
        if let Some(open) = sealed::open(sealer, row) {
            let row = sealed::seal(sealer, &open.name(), expires_day, open.content())?;
            packed.push(&[lookup, expires_day, newest], &[], &row);
            moved += 1;
        }
    }
    if moved == 0 {
        return Ok(0);
    }
    let (table, blob) = packed.finish();
    writer.note_write();
    let script = sqlx::query(UPSERT).bind(blob).bind(table);
    if let Err(error) = script.execute(&mut writer.connection).await {
        return Err(writer.recover(error).await);
    }
    metrics::counter!("store_resealed_rows_total").increment(moved);
    Ok(moved)
}

/// One of the scanning tasks: each takes the next span of lookups that nobody has taken, and reads it a batch at a time.
async fn scan_spans(
    readers: SqlitePool,
    sealer: watch::Receiver<Arc<Sealer>>,
    next: Arc<AtomicI64>,
    batches: mpsc::Sender<Result<Vec<Subscription>, StoreError>>,
) {
    loop {
        let span = next.fetch_add(1, Ordering::Relaxed);
        if span >= SPANS {
            return;
        }
        let mut start = span * SPAN;
        let end = start + (SPAN - 1);
        loop {
            let read: Result<Vec<Columns>, sqlx::Error> = sqlx::query_as(SCAN)
                .bind(start)
                .bind(end)
                .bind(SCAN_BATCH)
                .fetch_all(&readers)
                .await;
            let (batch, last) = match read {
                Ok(rows) => {
                    let last = rows.last().map(|(lookup, ..)| *lookup);
                    // The ring of after the read, as in `load`.
                    let sealer = Arc::clone(&sealer.borrow());
                    let opened = rows.into_iter().filter_map(|row| sealed::open(&sealer, row));
                    (
                        Ok(opened.filter_map(|row| row.subscription()).collect::<Vec<_>>()),
                        last,
                    )
                }
                Err(error) => {
                    // The others stop too: a scan with a hole is no scan.
                    next.store(SPANS, Ordering::Relaxed);
                    (Err(refused(error.into())), None)
                }
            };
            let is_worth_telling = batch.as_ref().map_or(true, |batch| !batch.is_empty());
            if is_worth_telling && batches.send(batch).await.is_err() {
                return;
            }
            match last {
                Some(last) if last < end => start = last + 1,
                _ => break,
            }
        }
    }
}

/// The last row of the step that begins at `start`; `None` = no more rows.
async fn end_of_step(readers: &SqlitePool, start: i64) -> Result<Option<i64>, StoreError> {
    let (last,): (Option<i64>,) = sqlx::query_as(END_OF_STEP)
        .bind(start)
        .bind(STEP)
        .fetch_one(readers)
        .await?;
    Ok(last)
}

/// With another key every renewal would become a second row and no removal would find its own.
async fn refuse_foreign_key(readers: &SqlitePool, key: &LookupKey, sealer: &Sealer) -> Result<(), StoreError> {
    let rows: Vec<Columns> = sqlx::query_as(SCAN)
        .bind(0)
        .bind(i64::MAX)
        .bind(16)
        .fetch_all(readers)
        .await?;
    let opened = rows.into_iter().filter_map(|row| sealed::open(sealer, row));
    let fits = |row: sealed::Open| Some(key.name(&row.subscription()?.device) == row.name());
    let verdicts: Vec<bool> = opened.filter_map(fits).collect();
    if !verdicts.is_empty() && !verdicts.contains(&true) {
        return Err(StoreError::ForeignLookupKey);
    }
    Ok(())
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
            SqliteFault::ForeignRowKey => Self::ForeignRowKey,
            SqliteFault::NoRandomness => Self::NoRandomness,
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

const READ: &str = "SELECT lookup, expires_day, key_id, row FROM subscription
    WHERE lookup IN (SELECT value FROM json_each(?))";

const READ_OLDER: &str = "SELECT lookup, expires_day, key_id, row FROM subscription
    WHERE lookup >= ? AND lookup <= ? AND key_id != ?";

const SCAN: &str = "SELECT lookup, expires_day, key_id, row FROM subscription
    WHERE lookup >= ? AND lookup <= ? ORDER BY lookup LIMIT ?";

const END_OF_STEP: &str = "SELECT max(lookup)
    FROM (SELECT lookup FROM subscription WHERE lookup >= ? ORDER BY lookup LIMIT ?)";

const DELETE: &str = "DELETE FROM subscription WHERE lookup IN (SELECT value FROM json_each(?))";

const UPSERT: &str = "INSERT INTO subscription (row, lookup, expires_day, key_id)
    SELECT substr(?, value->>4, value->>5), value->>0, value->>1, value->>2 FROM json_each(?) WHERE true
    ON CONFLICT (lookup) DO UPDATE
    SET row = excluded.row, expires_day = excluded.expires_day, key_id = excluded.key_id";

const DELETE_AND_UPSERT: &str = "BEGIN IMMEDIATE;
    DELETE FROM subscription WHERE lookup IN (SELECT value FROM json_each(?));
    INSERT INTO subscription (row, lookup, expires_day, key_id)
    SELECT substr(?, value->>4, value->>5), value->>0, value->>1, value->>2 FROM json_each(?) WHERE true
    ON CONFLICT (lookup) DO UPDATE
    SET row = excluded.row, expires_day = excluded.expires_day, key_id = excluded.key_id;
    COMMIT";

const DELETE_EXPIRED: &str = "DELETE FROM subscription WHERE lookup >= ? AND lookup <= ? AND expires_day < ?";

/// Changes waiting for the writing task; beyond that `put` waits.
const QUEUE: usize = 1_024;

/// Changes in one commit at most.
const GROUP: usize = 512;

/// 64 MiB, which are reached only if the task that copies the WAL is gone or cannot keep up.
const WAL_PAGES: u32 = 16_384;

/// Reading connections: a scan uses all of them at once.
const READERS: u32 = 2;

/// Rows looked at in one step of the expiry or of a change of keys, so that a `put` never waits long.
const STEP: i64 = 512;

/// Parts of the lookups that a scan deals out to its tasks. Hashes fill them evenly.
const SPANS: i64 = 256;

/// Lookups of one of them.
const SPAN: i64 = i64::MAX / SPANS + 1;

#[cfg(test)]
mod tests;
