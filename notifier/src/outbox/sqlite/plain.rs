//! Seals what a version of before sealed rows has left in plain.
//!
//! In: the writing connection of a file just opened. Out: the same wakeups and marks, sealed, and nothing of the plain ones: not in the
//! file, its free pages or its WAL. Never: loses one when it is killed: each batch goes over in one transaction.

use super::{Mark, sealed};
use crate::keyring::Sealer;
use crate::sqlite::{Packed, SqliteFault, Writer};
use notifier_core::account::Service;
use notifier_core::outbox::{EntryId, PushId, Restored};
use notifier_core::seal::Class;

/// How many wakeups went over.
pub async fn seal_plain_rows(writer: &mut Writer, sealer: &Sealer) -> Result<u64, SqliteFault> {
    if !writer.has_table("plain_entry").await? {
        return Ok(0);
    }
    let mut moved = 0;
    loop {
        let rows: Vec<PlainEntry> = sqlx::query_as(READ_ENTRIES)
            .bind(BATCH)
            .fetch_all(&mut writer.connection)
            .await?;
        let Some((last, ..)) = rows.last() else { break };
        let (last, newest) = (*last, sealer.newest().column());
        let mut packed = Packed::default();
        for row in rows {
            let Some((head, content)) = head(row) else {
                // Nothing of it says until when it should be kept.
                sealed::count_damaged("malformed");
                continue;
            };
            let day = sealed::day_of(head.deadline_ms);
            let row = sealed::seal_row(sealer, head.id.0, day, &content)?;
            let sealed_head = sealed::seal_head(sealer, newest, day, &head)?.unwrap_or_default();
            packed.push(&[head.id.0, day, newest], &sealed_head, &row);
            moved += 1;
        }
        let (table, blob) = packed.finish();
        writer.note_write();
        let script = sqlx::query(MOVE_ENTRIES).bind(blob).bind(table).bind(last);
        if let Err(error) = script.execute(&mut writer.connection).await {
            return Err(writer.recover(error).await);
        }
    }
    move_marks(writer, sealer).await?;
    writer.vacuum().await?;
    writer.truncate().await;
    writer.run("DROP TABLE plain_marks").await?;
    writer.run("DROP TABLE plain_entry").await?;
    writer.note_write();
    Ok(moved)
}

async fn move_marks(writer: &mut Writer, sealer: &Sealer) -> Result<(), SqliteFault> {
    loop {
        let rows: Vec<(i64, i64, Vec<u8>)> = sqlx::query_as(READ_MARKS)
            .bind(BATCH)
            .fetch_all(&mut writer.connection)
            .await?;
        let Some((last, ..)) = rows.last() else { return Ok(()) };
        let last = *last;
        let mut packed = Packed::default();
        for (id, at_ms, marks) in &rows {
            let (marks, _): (&[Mark], _) = marks.as_chunks();
            let day = sealed::day_of(*at_ms);
            let sealed = sealed::seal_marks(sealer, day, *at_ms, marks)?;
            packed.push(&[*id, day, sealer.newest().column()], &[], &sealed);
        }
        let (table, blob) = packed.finish();
        writer.note_write();
        let script = sqlx::query(MOVE_MARKS).bind(blob).bind(table).bind(last);
        if let Err(error) = script.execute(&mut writer.connection).await {
            return Err(writer.recover(error).await);
        }
    }
}

/// id, service, class, deadline_ms, attempt, push_id, fallback, row.
type PlainEntry = (i64, i64, i64, i64, i64, Vec<u8>, bool, Vec<u8>);

fn head((id, service, class, deadline_ms, attempt, push_id, fallback, row): PlainEntry) -> Option<(Restored, Vec<u8>)> {
    let head = Restored {
        id: EntryId(id),
        service: Service::from_code(service.try_into().ok()?)?,
        class: Class::from_code(class.try_into().ok()?)?,
        deadline_ms,
        attempt: attempt.try_into().ok()?,
        push_id: PushId(push_id.try_into().ok()?),
        fallback,
        size: 0,
    };
    Some((head, row))
}

const READ_ENTRIES: &str = "SELECT id, service, class, deadline_ms, attempt, push_id, fallback, row
    FROM plain_entry ORDER BY id LIMIT ?";

const MOVE_ENTRIES: &str = "BEGIN IMMEDIATE;
    INSERT INTO entry (row, id, expires_day, key_id, head)
    SELECT substr(?, value->>4, value->>5), value->>0, value->>1, value->>2, unhex(value->>3) FROM json_each(?);
    DELETE FROM plain_entry WHERE id <= ?;
    COMMIT";

const READ_MARKS: &str = "SELECT id, at_ms, marks FROM plain_marks ORDER BY id LIMIT ?";

const MOVE_MARKS: &str = "BEGIN IMMEDIATE;
    INSERT INTO marks (marks, id, expires_day, key_id)
    SELECT substr(?, value->>4, value->>5), value->>0, value->>1, value->>2 FROM json_each(?);
    DELETE FROM plain_marks WHERE id <= ?;
    COMMIT";

/// Rows of one transaction.
const BATCH: i64 = 256;
