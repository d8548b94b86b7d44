//! Which row keys a file is sealed under.
//!
//! In: a connection, a ring of keys. Out: whether the ring opens the file, and how many rows are under which key. Never: sees a key
//! itself, or changes a row.
//!
//! A key is entered in `sealing_key` before the first row under it, and leaves when no row is under it any more.

use super::{SqliteFault, Writer};
use crate::keyring::{KeyId, Sealer};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use std::path::Path;

/// How many rows of one file are under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// `None` = rows of an earlier version, in plain until the next start.
    pub key: Option<KeyId>,
    pub rows: u64,
}

/// Enters the newest key, unless rows may be under one that the ring does not hold; whether some may be under an older one.
pub async fn claim(writer: &mut Writer, sealer: &Sealer) -> Result<bool, SqliteFault> {
    let entered = entered(&mut writer.connection).await?;
    if !entered.iter().all(|id| sealer.has(*id)) {
        return Err(SqliteFault::ForeignRowKey);
    }
    if !entered.contains(&sealer.newest()) {
        writer.note_write();
        sqlx::query("INSERT INTO sealing_key (id) VALUES (?)")
            .bind(sealer.newest().column())
            .execute(&mut writer.connection)
            .await?;
    }
    Ok(entered.iter().any(|id| *id != sealer.newest()))
}

/// All rows that can be read are under the newest key.
pub async fn leave_others(writer: &mut Writer, newest: KeyId) -> Result<(), SqliteFault> {
    writer.note_write();
    sqlx::query("DELETE FROM sealing_key WHERE id != ?")
        .bind(newest.column())
        .execute(&mut writer.connection)
        .await?;
    Ok(())
}

/// The keys that rows of this file may be under; none for a file that does not exist or was not opened by this version yet. Can be asked
/// while a notifier runs.
pub async fn entered_in(path: &Path) -> Result<Vec<KeyId>, SqliteFault> {
    let Some(mut connection) = look_into(path).await? else {
        return Ok(Vec::new());
    };
    let found = match has_table(&mut connection, "sealing_key").await? {
        true => entered(&mut connection).await?,
        false => Vec::new(),
    };
    connection.close().await?;
    Ok(found)
}

/// How many rows are under which key, read from the whole file. Can be asked while a notifier runs.
pub async fn in_file(path: &Path) -> Result<Vec<KeyUse>, SqliteFault> {
    let Some(mut connection) = look_into(path).await? else {
        return Ok(Vec::new());
    };
    let mut found: Vec<KeyUse> = Vec::new();
    let is_sealed = has_table(&mut connection, "sealing_key").await?;
    for table in if is_sealed { SEALED } else { PLAIN } {
        if !has_table(&mut connection, table).await? {
            continue;
        }
        // Names of tables cannot be arguments; these are constants.
        let sql = AssertSqlSafe(format!("SELECT key_id, count(*) FROM {table} GROUP BY key_id"));
        let rows: Vec<(i64, i64)> = sqlx::query_as(sql).fetch_all(&mut connection).await?;
        for (key, rows) in rows {
            let (key, rows) = (KeyId::from_column(key), rows.unsigned_abs());
            match found.iter_mut().find(|known| known.key == key) {
                Some(known) => known.rows += rows,
                None => found.push(KeyUse { key, rows }),
            }
        }
    }
    connection.close().await?;
    found.sort_by_key(|known| known.key);
    Ok(found)
}

async fn entered(connection: &mut SqliteConnection) -> Result<Vec<KeyId>, SqliteFault> {
    let ids: Vec<(i64,)> = sqlx::query_as("SELECT id FROM sealing_key")
        .fetch_all(connection)
        .await?;
    let ids = ids.into_iter().map(|(id,)| KeyId::from_column(id));
    ids.collect::<Option<_>>().ok_or(SqliteFault::ForeignRowKey)
}

pub(super) async fn has_table(connection: &mut SqliteConnection, name: &str) -> Result<bool, SqliteFault> {
    let found: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

async fn look_into(path: &Path) -> Result<Option<SqliteConnection>, SqliteFault> {
    if !path.try_exists()? {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .disable_statement_logging();
    Ok(Some(options.connect().await?))
}

/// Tables with a column `key_id`, of either file.
const SEALED: &[&str] = &["subscription", "plain_subscription", "entry", "plain_entry", "marks"];

/// Those of a file that this version has not opened yet.
const PLAIN: &[&str] = &["subscription", "entry"];
