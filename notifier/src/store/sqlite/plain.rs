//! Seals what a version of before sealed rows has left in plain.
//!
//! In: the writing connection of a file just opened. Out: the same rows, sealed, and nothing of the plain ones: not in the file, its
//! free pages or its WAL. Never: loses a row when it is killed; the next start goes on.
//!
//! Rows go over in the order of their lookup hash, which is that of both tables, so the last one that arrived tells where to go on.
//! The plain table goes when all have arrived, and after the file was written anew.

use super::sealed;
use crate::keyring::Sealer;
use crate::sqlite::{Packed, SqliteFault, Writer};
use crate::store::Name;

/// How many rows went over.
pub async fn seal_plain_rows(writer: &mut Writer, sealer: &Sealer) -> Result<u64, SqliteFault> {
    if !writer.has_table("plain_subscription").await? {
        return Ok(0);
    }
    let (last,): (Option<i64>,) = sqlx::query_as("SELECT max(lookup) FROM subscription")
        .fetch_one(&mut writer.connection)
        .await?;
    // 63 bits of the last name, as a blob that is less than each name that begins with them.
    let mut after = last.map_or_else(Vec::new, |last| (last.unsigned_abs() << 1).to_be_bytes().to_vec());
    let mut moved = 0;
    loop {
        let rows: Vec<(Vec<u8>, i64, Vec<u8>)> = sqlx::query_as(READ_PLAIN)
            .bind(&after)
            .bind(BATCH)
            .fetch_all(&mut writer.connection)
            .await?;
        let Some((last, ..)) = rows.last() else { break };
        after.clone_from(last);
        let mut packed = Packed::default();
        for (name, expires_day, content) in &rows {
            // The schema of the plain table allows no other length.
            let Ok(name) = Name::try_from(name.as_slice()) else {
                continue;
            };
            let row = sealed::seal(sealer, &name, *expires_day, content)?;
            packed.push(
                &[sealed::lookup(&name), *expires_day, sealer.newest().column()],
                &[],
                &row,
            );
        }
        let (table, blob) = packed.finish();
        writer.note_write();
        let insert = sqlx::query(INSERT_SEALED).bind(blob).bind(table);
        moved += insert.execute(&mut writer.connection).await?.rows_affected();
    }
    writer.note_write();
    // secure_delete writes zeros over them.
    writer.run("DELETE FROM plain_subscription").await?;
    writer.vacuum().await?;
    writer.truncate().await;
    writer.run("DROP TABLE plain_subscription").await?;
    writer.note_write();
    Ok(moved)
}

const READ_PLAIN: &str = "SELECT lookup, expires_day, row FROM plain_subscription
    WHERE lookup > ? ORDER BY lookup LIMIT ?";

/// A row that arrived before a kill stays as it is.
const INSERT_SEALED: &str = "INSERT OR IGNORE INTO subscription (row, lookup, expires_day, key_id)
    SELECT substr(?, value->>4, value->>5), value->>0, value->>1, value->>2 FROM json_each(?)";

/// Rows of one transaction.
const BATCH: i64 = 1_024;
