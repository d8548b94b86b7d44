//! The outbox in one SQLite file.
//!
//! In: a [`Commit`]: what comes, what was seen, what goes, in one transaction. Out: the same after a restart. Never: decides
//! what is sent, or when.

mod marks;
mod plain;
mod sealed;

use crate::keyring::{Keyring, Sealer};
use crate::sqlite::{Packed, SqliteFault, SqliteFile, Writer, json_list, json_numbers, keys};
use marks::MarkTimes;
use notifier_core::outbox::{Entry, EntryId, Restored};
use notifier_core::seal::Sealed;
use sealed::{EntryColumns, HeadColumns, PURPOSE, RowColumns};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqlitePool;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Opens or makes the file and seals what an earlier version left in plain: the half that writes and the half that reads.
pub async fn open(
    path: &Path,
    keys: &Keyring,
    erase_after: Duration,
) -> Result<(OutboxWriter, OutboxReader), SqliteFault> {
    let file = SqliteFile::claim(path, WAL_PAGES, erase_after)?;
    let mut writer = file.writer(&MIGRATIONS).await?;
    let sealer = Arc::new(sealer(keys));
    let has_older = keys::claim(&mut writer, &sealer).await?;
    let sealed = plain::seal_plain_rows(&mut writer, &sealer).await?;
    if sealed > 0 {
        tracing::info!(rows = sealed, "the outbox of an earlier version is sealed now");
    }
    let (last_mark,): (Option<i64>,) = sqlx::query_as("SELECT max(id) FROM marks")
        .fetch_one(&mut writer.connection)
        .await?;
    let (publish, current) = watch::channel(sealer);
    let reader = OutboxReader {
        readers: file.readers(READERS),
        sealer: current,
    };
    let writer = OutboxWriter {
        writer,
        sealer: publish,
        has_older,
        moved_to: 0,
        marks_moved_to: 0,
        next_mark: last_mark.map_or(1, |last| last.saturating_add(1)),
        mark_times: MarkTimes::default(),
        _file: file,
    };
    Ok((writer, reader))
}

/// The keys of this file.
pub fn sealer(keys: &Keyring) -> Sealer {
    keys.sealer(PURPOSE)
}

/// A mark says that one message was seen for one device.
pub type Mark = [u8; 16];

/// Everything that becomes durable together.
#[derive(Debug, Default)]
pub struct Commit {
    /// Ids are given by the caller and ascend.
    pub add: Vec<Entry>,
    pub marks: Vec<Mark>,
    /// When the marks were seen: Unix milliseconds.
    pub at_ms: i64,
    pub remove: Vec<EntryId>,
    pub change: Vec<Change>,
    /// Marks older than this go, some at a time: [`FORGET_BATCH`] rows. Unix milliseconds.
    pub forget_marks_before_ms: Option<i64>,
}

/// A wakeup that is to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub id: EntryId,
    pub attempt: u32,
    /// Only the short form is sent from now on.
    pub fallback: bool,
}

impl Commit {
    pub fn is_empty(&self) -> bool {
        self.add.is_empty()
            && self.marks.is_empty()
            && self.remove.is_empty()
            && self.change.is_empty()
            && self.forget_marks_before_ms.is_none()
    }
}

/// The half that writes. There is one, so that commits are in order.
#[derive(Debug)]
pub struct OutboxWriter {
    writer: Writer,
    /// Here the reading half hears of a new ring.
    sealer: watch::Sender<Arc<Sealer>>,
    /// Rows may be under an older key.
    has_older: bool,
    /// Entries up to this number are under the newest key.
    moved_to: i64,
    /// And marks up to this commit.
    marks_moved_to: i64,
    next_mark: i64,
    mark_times: MarkTimes,
    _file: SqliteFile,
}

impl OutboxWriter {
    /// All of it, durable, or nothing.
    pub async fn commit(&mut self, commit: &Commit) -> Result<(), SqliteFault> {
        if commit.is_empty() {
            return Ok(());
        }
        let sealer = Arc::clone(&self.sealer.borrow());
        let changed = self.changed_heads(&sealer, &commit.change).await?;
        let (table, blob) = pack(&sealer, &commit.add)?;
        let mark_day = sealed::day_of(commit.at_ms);
        let marks = match commit.marks.is_empty() {
            true => Vec::new(),
            false => sealed::seal_marks(&sealer, mark_day, commit.at_ms, &commit.marks)?,
        };
        let forget = commit.forget_marks_before_ms;
        let script = sqlx::query(COMMIT)
            .bind(blob)
            .bind(table)
            .bind(self.next_mark)
            .bind(mark_day)
            .bind(sealer.newest().column())
            .bind(marks)
            .bind(json_numbers(commit.remove.iter().map(|id| id.0)))
            .bind(json_list(changed.iter(), |json, (id, head)| {
                json.push_str(&format!("[{id},\"{}\"]", hex::encode(head)));
            }))
            .bind(forget.map_or(0, |before_ms| self.mark_times.last_before(before_ms)))
            .bind(FORGET_BATCH);
        self.writer.note_write();
        if let Err(error) = script.execute(&mut self.writer.connection).await {
            return Err(self.writer.recover(error).await);
        }
        if !commit.marks.is_empty() {
            self.mark_times.note(self.next_mark, commit.at_ms);
            self.next_mark = self.next_mark.saturating_add(1);
        }
        Ok(())
    }

    /// The heads of entries that are to be tried again, as they are to be. One that went meanwhile, or cannot be read, is left out.
    async fn changed_heads(&mut self, sealer: &Sealer, change: &[Change]) -> Result<Vec<(i64, Vec<u8>)>, SqliteFault> {
        if change.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<HeadColumns> = sqlx::query_as(READ_HEADS)
            .bind(json_numbers(change.iter().map(|change| change.id.0)))
            .fetch_all(&mut self.writer.connection)
            .await?;
        let wanted_by_id: HashMap<i64, &Change> = change.iter().map(|change| (change.id.0, change)).collect();
        let mut changed = Vec::with_capacity(rows.len());
        for row in rows {
            let (id, expires_day, key_id, ..) = row;
            let (Some(wanted), Some(mut head)) = (wanted_by_id.get(&id), sealed::open_head(sealer, row)) else {
                continue;
            };
            head.attempt = wanted.attempt;
            head.fallback = wanted.fallback;
            // Under the key of its row, which may be older: both go over together.
            let head = sealed::seal_head(sealer, key_id, expires_day, &head)?;
            changed.extend(head.map(|head| (id, head)));
        }
        Ok(changed)
    }

    /// Where the marks of an earlier run lie, as they are read: without it they stay until their day is over.
    pub fn note_marks(&mut self, commit: i64, at_ms: i64) {
        self.mark_times.note(commit, at_ms);
    }

    /// Seals under the newest of these keys from now on. The rest follows with [`Self::move_rows`].
    pub async fn use_keys(&mut self, sealer: Arc<Sealer>) -> Result<(), SqliteFault> {
        self.has_older = keys::claim(&mut self.writer, &sealer).await?;
        self.moved_to = 0;
        self.marks_moved_to = 0;
        self.sealer.send_replace(sealer);
        Ok(())
    }

    /// Whether rows may be under an older key.
    pub fn has_older(&self) -> bool {
        self.has_older
    }

    /// Moves some rows to the newest key; how many. When the last one has gone over, nothing of what was under an older key is left.
    pub async fn move_rows(&mut self) -> Result<u64, SqliteFault> {
        let sealer = Arc::clone(&self.sealer.borrow());
        let newest = sealer.newest().column();
        let rows: Vec<EntryColumns> = sqlx::query_as(READ_OLDER)
            .bind(self.moved_to)
            .bind(newest)
            .bind(MOVE_BATCH)
            .fetch_all(&mut self.writer.connection)
            .await?;
        let last = rows.last().map(|(id, ..)| *id);
        let (mut packed, mut moved) = (Packed::default(), 0);
        for (id, expires_day, key_id, head, row) in rows {
            let head = sealed::open_head(&sealer, (id, expires_day, key_id, head, 0));
            let row = sealed::open_row(&sealer, (id, expires_day, key_id, row));
            // What cannot be read stays, and goes with its day.
            let (Some(head), Some(row)) = (head, row) else { continue };
            let row = sealed::seal_row(&sealer, id, expires_day, row.content())?;
            let head = sealed::seal_head(&sealer, newest, expires_day, &head)?.unwrap_or_default();
            packed.push(&[id], &head, &row);
            moved += 1;
        }
        let (mut packed_marks, mut last_marks) = (Packed::default(), None);
        if last.is_none() {
            let marks: Vec<RowColumns> = sqlx::query_as(READ_OLDER_MARKS)
                .bind(self.marks_moved_to)
                .bind(newest)
                .bind(MOVE_BATCH)
                .fetch_all(&mut self.writer.connection)
                .await?;
            last_marks = marks.last().map(|(id, ..)| *id);
            for (id, expires_day, key_id, marks) in marks {
                let Some((at_ms, marks)) = sealed::open_marks(&sealer, expires_day, key_id, marks) else {
                    continue;
                };
                let marks = sealed::seal_marks(&sealer, expires_day, at_ms, &marks)?;
                packed_marks.push(&[id], &[], &marks);
                moved += 1;
            }
        }
        let ((table, blob), (marks_table, marks_blob)) = (packed.finish(), packed_marks.finish());
        if moved > 0 {
            self.writer.note_write();
            let script = sqlx::query(MOVE)
                .bind(newest)
                .bind(blob)
                .bind(table)
                .bind(newest)
                .bind(marks_blob)
                .bind(marks_table);
            if let Err(error) = script.execute(&mut self.writer.connection).await {
                return Err(self.writer.recover(error).await);
            }
        }
        match (last, last_marks) {
            (Some(last), _) => self.moved_to = last,
            (None, Some(last)) => self.marks_moved_to = last,
            (None, None) => {
                // `rotate-key` takes the list of keys for leave to destroy the old one: nothing under it may be in the WAL then.
                self.writer.erase().await?;
                keys::leave_others(&mut self.writer, sealer.newest()).await?;
                self.has_older = false;
            }
        }
        Ok(moved)
    }

    /// The smallest number that no wakeup ever had.
    pub async fn next_id(&mut self) -> Result<EntryId, SqliteFault> {
        let last: Option<(i64,)> = sqlx::query_as(LAST_ID)
            .fetch_optional(&mut self.writer.connection)
            .await?;
        Ok(EntryId(last.map_or(1, |(last,)| last.saturating_add(1))))
    }

    /// Removes what the day has passed of, the marks of before `marks_since_ms` among it: what is too old today is told when it is read.
    /// How many wakeups.
    pub async fn remove_expired(&mut self, now_ms: i64, marks_since_ms: i64) -> Result<u64, SqliteFault> {
        self.writer.note_write();
        sqlx::query("DELETE FROM marks WHERE expires_day < ?")
            .bind(sealed::day_of(marks_since_ms))
            .execute(&mut self.writer.connection)
            .await?;
        let removed = sqlx::query("DELETE FROM entry WHERE expires_day < ?").bind(sealed::day_of(now_ms));
        Ok(removed.execute(&mut self.writer.connection).await?.rows_affected())
    }

    /// When [`Self::truncate`] should be called.
    pub fn truncate_at(&self) -> Option<Instant> {
        self.writer.truncate_at()
    }

    /// Empties the WAL, which holds what was deleted.
    pub async fn truncate(&mut self) {
        self.writer.truncate().await;
    }

    /// A disk with room for so many pages.
    #[cfg(test)]
    pub async fn limit_pages(&mut self, pages: u32) {
        let sql = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(sql).execute(&mut self.writer.connection).await.unwrap();
    }

    pub async fn close(self) {
        self.writer.close().await;
    }
}

/// The half that reads; it never waits for the writer.
#[derive(Clone, Debug)]
pub struct OutboxReader {
    readers: SqlitePool,
    sealer: watch::Receiver<Arc<Sealer>>,
}

impl OutboxReader {
    /// To be asked after a read: a row under a new key is written only when the new ring is here.
    fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.sealer.borrow())
    }

    /// The next wakeups after `after`, by number, at most [`LOAD_BATCH`]; none = all have come.
    ///
    /// A row that cannot be understood is counted and stays until its day is over.
    pub async fn load_meta(&self, after: EntryId) -> Result<Vec<Restored>, SqliteFault> {
        let mut after = after.0;
        loop {
            let rows: Vec<HeadColumns> = sqlx::query_as(LOAD_META)
                .bind(after)
                .bind(LOAD_BATCH)
                .fetch_all(&self.readers)
                .await?;
            let Some(last) = rows.last() else { return Ok(Vec::new()) };
            after = last.0;
            let sealer = self.sealer();
            let known: Vec<Restored> = rows
                .into_iter()
                .filter_map(|row| sealed::open_head(&sealer, row))
                .collect();
            // An empty answer means the end, so a batch without anything readable is passed over.
            if !known.is_empty() {
                return Ok(known);
            }
        }
    }

    /// The wakeups themselves, by number; one that is damaged is `None`, one that is gone is missing.
    pub async fn load_bodies(&self, ids: &[EntryId]) -> Result<Vec<(EntryId, Option<Sealed>)>, SqliteFault> {
        let rows: Vec<RowColumns> = sqlx::query_as(LOAD_BODIES)
            .bind(json_numbers(ids.iter().map(|id| id.0)))
            .fetch_all(&self.readers)
            .await?;
        let sealer = self.sealer();
        Ok(rows
            .into_iter()
            .map(|row| (EntryId(row.0), sealed::open_wakeup(&sealer, row)))
            .collect())
    }

    /// The next marks, those of each commit with its number and time, the oldest first, after the commit `after` (0 = from the start);
    /// none = all have come. A commit that cannot be read is counted and has none.
    pub async fn load_marks(&self, after: i64) -> Result<Vec<SeenMarks>, SqliteFault> {
        let rows: Vec<(i64, i64, i64, Vec<u8>)> = sqlx::query_as(LOAD_MARKS)
            .bind(after)
            .bind(LOAD_BATCH)
            .fetch_all(&self.readers)
            .await?;
        let sealer = self.sealer();
        let seen = |(commit, expires_day, key_id, marks)| {
            let opened = sealed::open_marks(&sealer, expires_day, key_id, marks);
            let (at_ms, marks) = opened.map_or((None, Vec::new()), |(at_ms, marks)| (Some(at_ms), marks));
            SeenMarks { commit, at_ms, marks }
        };
        Ok(rows.into_iter().map(seen).collect())
    }

    pub async fn close(&self) {
        self.readers.close().await;
    }
}

/// The marks of one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenMarks {
    pub commit: i64,
    /// Unix milliseconds; `None` if it cannot be read.
    pub at_ms: Option<i64>,
    pub marks: Vec<Mark>,
}

/// A mark and when it was seen: Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenMark {
    pub mark: Mark,
    pub at_ms: i64,
}

fn pack(sealer: &Sealer, entries: &[Entry]) -> Result<(String, Vec<u8>), SqliteFault> {
    let mut rows = Packed::default();
    for entry in entries {
        let (expires_day, head, row) = sealed::seal_entry(sealer, entry)?;
        rows.push(&[entry.id.0, expires_day, sealer.newest().column()], &head, &row);
    }
    Ok(rows.finish())
}

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite/outbox");

/// One round trip to the connection's thread. A part without anything to do costs a few microseconds.
const COMMIT: &str = "BEGIN IMMEDIATE;
    INSERT INTO entry (row, id, expires_day, key_id, head)
    SELECT substr(?, value->>4, value->>5), value->>0, value->>1, value->>2, unhex(value->>3) FROM json_each(?);
    INSERT INTO marks (id, expires_day, key_id, marks)
    SELECT ?, ?, ?, marks FROM (SELECT ? AS marks) WHERE length(marks) > 0;
    DELETE FROM entry WHERE id IN (SELECT value FROM json_each(?));
    UPDATE entry SET head = unhex(changed.value->>1)
    FROM json_each(?) AS changed WHERE entry.id = changed.value->>0;
    DELETE FROM marks WHERE id IN (SELECT id FROM marks WHERE id <= ? ORDER BY id LIMIT ?);
    COMMIT";

const MOVE: &str = "BEGIN IMMEDIATE;
    UPDATE entry SET key_id = ?, head = moved.head, row = moved.row
    FROM (SELECT value->>0 AS id, unhex(value->>1) AS head, substr(?, value->>2, value->>3) AS row FROM json_each(?))
    AS moved WHERE entry.id = moved.id;
    UPDATE marks SET key_id = ?, marks = moved.marks
    FROM (SELECT value->>0 AS id, substr(?, value->>2, value->>3) AS marks FROM json_each(?))
    AS moved WHERE marks.id = moved.id;
    COMMIT";

const LAST_ID: &str = "SELECT seq FROM sqlite_sequence WHERE name = 'entry'";

const LOAD_META: &str = "SELECT id, expires_day, key_id, head, length(row)
    FROM entry WHERE id > ? ORDER BY id LIMIT ?";

const READ_HEADS: &str = "SELECT id, expires_day, key_id, head, length(row)
    FROM entry WHERE id IN (SELECT value FROM json_each(?))";

const READ_OLDER: &str = "SELECT id, expires_day, key_id, head, row
    FROM entry WHERE id > ? AND key_id != ? ORDER BY id LIMIT ?";

const READ_OLDER_MARKS: &str = "SELECT id, expires_day, key_id, marks FROM marks
    WHERE id > ? AND key_id != ? ORDER BY id LIMIT ?";

const LOAD_BODIES: &str =
    "SELECT id, expires_day, key_id, row FROM entry WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id";

const LOAD_MARKS: &str = "SELECT id, expires_day, key_id, marks FROM marks WHERE id > ? ORDER BY id LIMIT ?";

/// Rows that go over to a new key in one step: wakeups under way wait for it.
const MOVE_BATCH: i64 = 256;

/// Rows of one read at a start.
pub const LOAD_BATCH: i64 = 4_096;

/// Rows of marks removed by one commit at most, the oldest first.
pub const FORGET_BATCH: i64 = 4_096;

/// 16 MiB: pages of wakeups that went are used again at once, so a checkpoint has little to write.
const WAL_PAGES: u32 = 4_096;

const READERS: u32 = 1;

#[cfg(test)]
mod tests;
