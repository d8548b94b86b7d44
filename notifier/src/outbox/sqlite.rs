//! The outbox in one SQLite file.
//!
//! In: a [`Commit`]: what comes, what was seen, what goes, in one transaction. Out: the same after a restart. Never: decides
//! what is sent, or when.

use crate::sqlite::{Packed, SqliteFault, SqliteFile, Writer, json_list, json_numbers};
use notifier_core::account::Service;
use notifier_core::outbox::{Entry, EntryId, PushId, Restored};
use notifier_core::seal::{Class, Sealed};
use notifier_core::subscription::RowError;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqlitePool;
use std::path::Path;
use tokio::time::Instant;

/// Opens or makes the file: the half that writes and the half that reads.
pub async fn open(path: &Path) -> Result<(OutboxWriter, OutboxReader), SqliteFault> {
    let file = SqliteFile::claim(path, WAL_PAGES)?;
    let writer = file.writer(&MIGRATIONS).await?;
    let reader = OutboxReader {
        readers: file.readers(READERS),
    };
    Ok((OutboxWriter { writer, _file: file }, reader))
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
    _file: SqliteFile,
}

impl OutboxWriter {
    /// All of it, durable, or nothing.
    pub async fn commit(&mut self, commit: &Commit) -> Result<(), SqliteFault> {
        if commit.is_empty() {
            return Ok(());
        }
        let (table, blob) = pack(&commit.add);
        let script = sqlx::query(COMMIT)
            .bind(blob)
            .bind(table)
            .bind(commit.at_ms)
            .bind(commit.marks.concat())
            .bind(json_numbers(commit.remove.iter().map(|id| id.0)))
            .bind(json_list(commit.change.iter(), |json, change| {
                json.push_str(&json_numbers(
                    [change.id.0, i64::from(change.attempt), i64::from(change.fallback)].into_iter(),
                ));
            }))
            .bind(if commit.forget_marks_before_ms.is_some() {
                FORGET_BATCH
            } else {
                0
            })
            .bind(commit.forget_marks_before_ms.unwrap_or(i64::MIN));
        self.writer.note_write();
        if let Err(error) = script.execute(&mut self.writer.connection).await {
            return Err(self.writer.recover(error).await);
        }
        Ok(())
    }

    /// The smallest number that no wakeup ever had.
    pub async fn next_id(&mut self) -> Result<EntryId, SqliteFault> {
        let last: Option<(i64,)> = sqlx::query_as(LAST_ID)
            .fetch_optional(&mut self.writer.connection)
            .await?;
        Ok(EntryId(last.map_or(1, |(last,)| last.saturating_add(1))))
    }

    /// Removes what expired while nobody was running; how many.
    pub async fn remove_expired(&mut self, now_ms: i64) -> Result<u64, SqliteFault> {
        self.writer.note_write();
        let removed = sqlx::query("DELETE FROM entry WHERE deadline_ms <= ?").bind(now_ms);
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
}

impl OutboxReader {
    /// The next wakeups after `after`, by number, at most [`LOAD_BATCH`]; none = all have come.
    ///
    /// A row that cannot be understood is counted and stays until its deadline.
    pub async fn load_meta(&self, after: EntryId) -> Result<Vec<Restored>, SqliteFault> {
        let mut after = after.0;
        loop {
            let rows: Vec<MetaRow> = sqlx::query_as(LOAD_META)
                .bind(after)
                .bind(LOAD_BATCH)
                .fetch_all(&self.readers)
                .await?;
            let Some(last) = rows.last() else { return Ok(Vec::new()) };
            after = last.0;
            let known: Vec<Restored> = rows
                .into_iter()
                .filter_map(|row| counted(meta(row).ok_or(RowError::Malformed)))
                .collect();
            // An empty answer means the end, so a batch without anything readable is passed over.
            if !known.is_empty() {
                return Ok(known);
            }
        }
    }

    /// The wakeups themselves, by number; one that is damaged is `None`, one that is gone is missing.
    pub async fn load_bodies(&self, ids: &[EntryId]) -> Result<Vec<(EntryId, Option<Sealed>)>, SqliteFault> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(LOAD_BODIES)
            .bind(json_numbers(ids.iter().map(|id| id.0)))
            .fetch_all(&self.readers)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(id, row)| (EntryId(id), counted(Sealed::decode_row(&row))))
            .collect())
    }

    /// The next marks seen at or after `since_ms`, the oldest first, after the commit `after` (0 = from the start), and the
    /// last commit they come from; `None` = all have come.
    pub async fn load_marks(&self, after: i64, since_ms: i64) -> Result<Option<(i64, Vec<SeenMark>)>, SqliteFault> {
        let rows: Vec<(i64, i64, Vec<u8>)> = sqlx::query_as(LOAD_MARKS)
            .bind(after)
            .bind(LOAD_BATCH)
            .fetch_all(&self.readers)
            .await?;
        let Some(last) = rows.last() else { return Ok(None) };
        let last = last.0;
        let recent = rows.iter().filter(|(_, at_ms, _)| *at_ms >= since_ms);
        let marks = recent.flat_map(|(_, at_ms, marks)| {
            let (marks, _) = marks.as_chunks::<16>();
            marks.iter().map(|mark| SeenMark {
                mark: *mark,
                at_ms: *at_ms,
            })
        });
        Ok(Some((last, marks.collect())))
    }

    pub async fn close(&self) {
        self.readers.close().await;
    }
}

/// A mark and when it was seen: Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenMark {
    pub mark: Mark,
    pub at_ms: i64,
}

type MetaRow = (i64, i64, i64, i64, i64, Vec<u8>, bool, i64);

fn meta((id, service, class, deadline_ms, attempt, push_id, fallback, size): MetaRow) -> Option<Restored> {
    Some(Restored {
        id: EntryId(id),
        service: Service::from_code(service.try_into().ok()?)?,
        class: Class::from_code(class.try_into().ok()?)?,
        deadline_ms,
        attempt: attempt.try_into().ok()?,
        push_id: PushId(push_id.try_into().ok()?),
        fallback,
        size: size.try_into().ok()?,
    })
}

fn counted<T>(row: Result<T, RowError>) -> Option<T> {
    let count =
        |error: RowError| metrics::counter!("outbox_damaged_rows_total", "reason" => error.label()).increment(1);
    row.inspect_err(|error| count(*error)).ok()
}

fn pack(entries: &[Entry]) -> (String, Vec<u8>) {
    let mut rows = Packed::default();
    for entry in entries {
        let numbers = [
            entry.id.0,
            i64::from(entry.sealed.service.code()),
            i64::from(entry.sealed.class.code()),
            entry.deadline_ms,
            i64::from(entry.attempt),
        ];
        rows.push(&numbers, &entry.push_id.0, &entry.sealed.encode_row());
    }
    rows.finish()
}

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite/outbox");

/// One round trip to the connection's thread. A part without anything to do costs a few microseconds.
const COMMIT: &str = "BEGIN IMMEDIATE;
    INSERT INTO entry (row, id, service, class, deadline_ms, attempt, push_id, fallback, key_id)
    SELECT substr(?, value->>6, value->>7), value->>0, value->>1, value->>2, value->>3, value->>4, unhex(value->>5), 0, 0
    FROM json_each(?);
    INSERT INTO marks (at_ms, marks) SELECT ?, marks FROM (SELECT ? AS marks) WHERE length(marks) > 0;
    DELETE FROM entry WHERE id IN (SELECT value FROM json_each(?));
    UPDATE entry SET attempt = changed.value->>1, fallback = changed.value->>2
    FROM json_each(?) AS changed WHERE entry.id = changed.value->>0;
    DELETE FROM marks WHERE id IN (SELECT id FROM marks ORDER BY id LIMIT ?) AND at_ms < ?;
    COMMIT";

const LAST_ID: &str = "SELECT seq FROM sqlite_sequence WHERE name = 'entry'";

const LOAD_META: &str = "SELECT id, service, class, deadline_ms, attempt, push_id, fallback, length(row)
    FROM entry WHERE id > ? ORDER BY id LIMIT ?";

const LOAD_BODIES: &str = "SELECT id, row FROM entry WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id";

const LOAD_MARKS: &str = "SELECT id, at_ms, marks FROM marks WHERE id > ? ORDER BY id LIMIT ?";

/// Rows of one read at a start.
pub const LOAD_BATCH: i64 = 4_096;

/// Rows of marks removed by one commit at most, the oldest first.
pub const FORGET_BATCH: i64 = 4_096;

/// 16 MiB: pages of wakeups that went are used again at once, so a checkpoint has little to write.
const WAL_PAGES: u32 = 4_096;

const READERS: u32 = 1;

#[cfg(test)]
mod tests;
