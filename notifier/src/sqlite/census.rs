//! How many rows a file holds, and how they are kept, whoever has it open.
//!
//! In: a path, a way to try whether a row can be read without a key. Out: each table with its rows by key. Never: writes, or gives a row
//! away.

use super::SqliteFault;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub groups: Vec<Rows>,
}

/// Rows of one table under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// As the column says it: 0 = none. A table without that column has `None`.
    pub key_id: Option<i64>,
    pub count: u64,
    /// Whether one of those that were tried could be read without a key, whatever the column says.
    pub is_readable: bool,
}

/// Every table of the file; `None` if there is no file.
pub async fn take(path: &Path, is_readable: fn(&[u8]) -> bool) -> Result<Option<Vec<Table>>, SqliteFault> {
    if !path.exists() {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = options.disable_statement_logging().connect().await?;
    let names: Vec<(String,)> = sqlx::query_as(TABLES).fetch_all(&mut connection).await?;
    let mut tables = Vec::new();
    // A name of ours is a word; of another table nothing can be asked but that it is there.
    for (name,) in names {
        let groups = if name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            rows_of(&mut connection, &name, is_readable).await?
        } else {
            vec![]
        };
        tables.push(Table { name, groups });
    }
    let _ = connection.close().await;
    Ok(Some(tables))
}

async fn rows_of(
    connection: &mut SqliteConnection,
    table: &str,
    is_readable: fn(&[u8]) -> bool,
) -> Result<Vec<Rows>, SqliteFault> {
    let columns: Vec<(String,)> = sqlx::query_as(COLUMNS).bind(table).fetch_all(&mut *connection).await?;
    let has = |column: &str| columns.iter().any(|(name,)| name == column);
    let counts: Vec<(Option<i64>, i64)> = if has("key_id") {
        let sql = format!("SELECT key_id, count(*) FROM {table} GROUP BY key_id ORDER BY key_id");
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?
    } else {
        let sql = format!("SELECT NULL, count(*) FROM {table}");
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?
    };
    let mut groups = Vec::new();
    for (key_id, count) in counts {
        let tried: Vec<(Vec<u8>,)> = if has("row") {
            let sql = format!("SELECT row FROM {table} WHERE key_id IS ? LIMIT {TRIED}");
            let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(key_id);
            rows.fetch_all(&mut *connection).await?
        } else {
            vec![]
        };
        groups.push(Rows {
            key_id,
            count: u64::try_from(count).unwrap_or(0),
            is_readable: tried.iter().any(|(row,)| is_readable(row)),
        });
    }
    Ok(groups)
}

const TABLES: &str =
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '_sqlx_%'
    ORDER BY name";
const COLUMNS: &str = "SELECT name FROM pragma_table_info(?)";
/// Rows of a group that are tried.
const TRIED: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_are_counted_by_key_and_tried() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        assert_eq!(take(&path, |_| true).await.unwrap(), None);
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut writer = options
            .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
            .connect()
            .await
            .unwrap();
        sqlx::raw_sql(
            "CREATE TABLE subscription (key_id INTEGER, row BLOB);
             INSERT INTO subscription VALUES (0, x'01'), (0, x'01'), (7, x'02'), (9, x'01');
             CREATE TABLE marks (marks BLOB);
             CREATE TABLE \"Odd; name\" (a);",
        )
        .execute(&mut writer)
        .await
        .unwrap();
        // While another connection has it open, and before its WAL is emptied.
        let tables = take(&path, |row| row == [1]).await.unwrap().unwrap();
        let group = |key_id, count, is_readable| Rows {
            key_id,
            count,
            is_readable,
        };
        let table = |name: &str, groups| Table {
            name: name.to_owned(),
            groups,
        };
        assert_eq!(
            tables,
            [
                table("Odd; name", vec![]),
                table("marks", vec![group(None, 0, false)]),
                table(
                    "subscription",
                    vec![
                        group(Some(0), 2, true),
                        group(Some(7), 1, false),
                        group(Some(9), 1, true)
                    ]
                ),
            ]
        );
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        std::fs::write(&path, [7; 4096]).unwrap();
        assert_eq!(take(&path, |_| true).await.unwrap_err(), SqliteFault::Damaged);
    }
}
