//! One SQLite file, the way both stages that keep one need it. A tool, not a stage.
//!
//! In: a path. Out: one writing connection, a few reading ones, faults with a name. Never: knows what the rows mean.
//!
//! Durable when a commit returns (WAL, synchronous=FULL), nothing left of what was deleted (secure_delete, a WAL that is
//! overwritten and emptied `erase_after` the first write into it), one process at a time, readable by its owner only.

pub mod census;
mod copier;
pub mod keys;
mod log;

use crate::keyring::NoRandomness;
use copier::Copier;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use std::fmt::Write;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// A file that this process alone uses, for as long as this value lives.
#[derive(Debug)]
pub struct SqliteFile {
    path: PathBuf,
    options: SqliteConnectOptions,
    erase_after: Duration,
    _lock: File,
}

impl SqliteFile {
    /// Makes the file if it is missing, and claims it. A checkpoint runs each `wal_pages` of WAL and makes that one commit
    /// slow: few pages for short waits, many where the same pages are written again and again. What is written over or deleted is
    /// gone from the WAL too after `erase_after`.
    ///
    /// The lock is a file of its own: SQLite's locks would be lost if this process closed another handle of the database.
    pub fn claim(path: &Path, wal_pages: u32, erase_after: Duration) -> Result<Self, SqliteFault> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut owner_only = OpenOptions::new();
        owner_only
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let lock = owner_only.open(with_suffix(path, ".lock"))?;
        lock.try_lock().map_err(|refused| match refused {
            TryLockError::WouldBlock => SqliteFault::InUse,
            TryLockError::Error(error) => error.into(),
        })?;
        // SQLite gives its "-wal" and "-shm" files the mode of this one.
        owner_only.open(path)?;

        let options = SqliteConnectOptions::new()
            .filename(path)
            .page_size(PAGE_BYTES)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY")
            .pragma("cache_size", "-16384")
            .pragma("wal_autocheckpoint", wal_pages.to_string())
            .pragma(
                "journal_size_limit",
                (u64::from(wal_pages) * u64::from(PAGE_BYTES)).to_string(),
            )
            .row_buffer_size(1_024)
            .disable_statement_logging();
        Ok(Self {
            path: path.to_owned(),
            options,
            erase_after,
            _lock: lock,
        })
    }

    /// The only connection that writes, with the schema brought up to date.
    pub async fn writer(&self, migrator: &Migrator) -> Result<Writer, SqliteFault> {
        // Nobody else writes. Only a reader can be in the way, and only of a checkpoint, which may fail.
        let options = self.options.clone().busy_timeout(Duration::from_millis(50));
        let mut connection = options.connect().await?;
        migrator.run(&mut connection).await?;
        Ok(Writer {
            connection,
            path: self.path.clone(),
            erase_after: self.erase_after,
            truncate_at: None,
            copier: None,
        })
    }

    /// Connections that only read; a writer never blocks them.
    pub fn readers(&self, connections: u32) -> SqlitePool {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .test_before_acquire(false)
            .connect_lazy_with(self.options.clone().pragma("query_only", "ON"))
    }
}

/// The writing connection and how long its WAL may already hold deleted content.
#[derive(Debug)]
pub struct Writer {
    pub connection: SqliteConnection,
    path: PathBuf,
    erase_after: Duration,
    truncate_at: Option<Instant>,
    /// Who moves the WAL into the file meanwhile, if anybody does.
    copier: Option<Copier>,
}

impl Writer {
    /// From now on a task of its own moves the WAL into the file, as long as [`Self::tidy`] is called after commits: a checkpoint makes no
    /// commit slow.
    pub fn copy_beside(&mut self, file: &SqliteFile) {
        self.copier = Some(Copier::start(file.options.clone()));
    }

    /// After a commit of so many rows. Starts a copy of the WAL where it has grown, and ends one that has been made, which takes a moment:
    /// then the next commit begins the WAL anew.
    pub async fn tidy(&mut self, changes: usize) {
        let is_due = self.truncate_at.is_some_and(|due| due <= Instant::now());
        let Some(copier) = &mut self.copier else {
            if is_due {
                self.truncate().await;
            }
            return;
        };
        match copier.step(changes, is_due) {
            copier::Step::Wait => {}
            copier::Step::End if is_due => self.truncate().await,
            // As with SQLite's own checkpoints, one that fails is made up for by the next.
            copier::Step::End => drop(self.run("PRAGMA wal_checkpoint(PASSIVE)").await),
        }
    }

    /// Says that something was written, so that a truncation becomes due.
    pub fn note_write(&mut self) {
        self.truncate_at
            .get_or_insert_with(|| Instant::now() + self.erase_after);
    }

    /// When [`Self::truncate`] should be called.
    pub fn truncate_at(&self) -> Option<Instant> {
        self.truncate_at
    }

    #[cfg(test)]
    fn is_being_copied(&self) -> bool {
        self.copier.as_ref().is_some_and(Copier::is_running)
    }

    /// Moves the WAL into the file, overwrites and empties it. Harmless to fail, as it does beside a reader: it is due again a moment later.
    pub async fn truncate(&mut self) {
        // Once everybody reads the file alone, nobody needs what is in the WAL: only this connection writes, and to a copier nothing is left.
        let mut is_empty = self.checkpoint("PRAGMA wal_checkpoint(RESTART)").await;
        if is_empty {
            let path = self.path.clone();
            let overwritten = tokio::task::spawn_blocking(move || log::overwrite(&path)).await;
            if !matches!(overwritten, Ok(Ok(()))) {
                metrics::counter!("sqlite_logs_not_overwritten_total").increment(1);
            }
            is_empty = self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)").await;
        }
        self.truncate_at = (!is_empty).then(|| Instant::now() + TRUNCATE_AGAIN);
    }

    /// As [`Self::truncate`], for who may go on only when nothing of before is in the WAL: the copier or a reader in the way is waited for.
    pub async fn erase(&mut self) -> Result<(), SqliteFault> {
        let until = Instant::now() + ERASE_PATIENCE;
        loop {
            self.truncate().await;
            if self.truncate_at.is_none() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(SqliteFault::Busy);
            }
            tokio::time::sleep(ERASE_AGAIN).await;
        }
    }

    /// Whether all of it was done. Somebody may have been in the way; that is no error.
    async fn checkpoint(&mut self, how: &'static str) -> bool {
        let done: Result<(i64, i64, i64), _> = sqlx::query_as(how).fetch_one(&mut self.connection).await;
        matches!(done, Ok((0, _, _)))
    }

    /// Writes the whole file anew, without anything that was free in it.
    pub async fn vacuum(&mut self) -> Result<(), SqliteFault> {
        self.note_write();
        // The copy is as large as the file: it belongs on the disk, not into memory.
        self.run("PRAGMA temp_store = FILE").await?;
        let done = self.run("VACUUM").await;
        self.run("PRAGMA temp_store = MEMORY").await?;
        done
    }

    pub async fn has_table(&mut self, name: &str) -> Result<bool, SqliteFault> {
        keys::has_table(&mut self.connection, name).await
    }

    /// Cleans up after a failed script, and names the fault.
    pub async fn recover(&mut self, error: sqlx::Error) -> SqliteFault {
        // No transaction may stay open. It fails if SQLite has rolled back by itself, which is as good.
        let _ = self.run("ROLLBACK").await;
        let fault = error.into();
        if fault == SqliteFault::DiskFull {
            // The WAL can be most of what fills the disk, and even a removal has to be appended to it.
            self.truncate().await;
        }
        fault
    }

    pub async fn close(mut self) {
        if let Some(copier) = self.copier.take() {
            copier.close().await;
        }
        self.truncate().await;
        let _ = self.connection.close().await;
    }

    pub async fn run(&mut self, sql: &'static str) -> Result<(), SqliteFault> {
        sqlx::query(sql).execute(&mut self.connection).await?;
        Ok(())
    }
}

/// Many rows as two arguments of one fixed statement: a JSON table for `json_each`, and one blob for `substr`. A statement
/// whose text depends on the number of rows would be compiled anew for most groups.
///
/// Each argument must stand once in the statement, as a plain `?`: sqlx counts the arguments of a script that way.
#[derive(Debug, Default)]
pub struct Packed {
    table: String,
    blob: Vec<u8>,
}

impl Packed {
    /// Adds a line `[number, …, "hex of name", place of content in the blob, its length]`; places count from 1.
    pub fn push(&mut self, numbers: &[i64], name: &[u8], content: &[u8]) {
        self.table.push_str(if self.table.is_empty() { "[[" } else { ",[" });
        for number in numbers {
            push_number(&mut self.table, *number);
            self.table.push(',');
        }
        push_hex(&mut self.table, name);
        self.table.push(',');
        // SQLite refuses a blob of more than 10^9 bytes. Who packs bounds what goes into one statement: the outbox in bytes (16 MiB), all others in
        // rows.
        push_number(&mut self.table, self.blob.len() as i64 + 1);
        self.table.push(',');
        push_number(&mut self.table, content.len() as i64);
        self.table.push(']');
        self.blob.extend_from_slice(content);
    }

    /// (the table, the blob).
    pub fn finish(mut self) -> (String, Vec<u8>) {
        self.table.push_str(if self.table.is_empty() { "[]" } else { "]" });
        (self.table, self.blob)
    }
}

/// `[1,2,3]` for `json_each`.
pub fn json_numbers(numbers: impl Iterator<Item = i64>) -> String {
    json_list(numbers, push_number)
}

/// `["00ff","0100"]` for `unhex(value)` over `json_each`.
pub fn json_hex<'a>(names: impl Iterator<Item = &'a [u8]>) -> String {
    json_list(names, push_hex)
}

/// `[item,item]`, each as `push` writes it.
pub fn json_list<T>(items: impl Iterator<Item = T>, push: impl Fn(&mut String, T)) -> String {
    let mut json = String::from("[");
    for item in items {
        if json.len() > 1 {
            json.push(',');
        }
        push(&mut json, item);
    }
    json.push(']');
    json
}

fn push_number(json: &mut String, number: i64) {
    // Writing to a String cannot fail.
    let _ = write!(json, "{number}");
}

fn push_hex(json: &mut String, name: &[u8]) {
    json.push('"');
    json.push_str(&hex::encode(name));
    json.push('"');
}

/// Why the file did not do what it should. Carries nothing of what is in it. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SqliteFault {
    #[error("another notifier uses this file")]
    InUse,
    #[error("the disk is full")]
    DiskFull,
    #[error("the file cannot be read or written")]
    Io,
    #[error("the file is busy")]
    Busy,
    #[error("the file is damaged or no database")]
    Damaged,
    #[error("the file was written by another version of the notifier")]
    Version,
    #[error("the file is sealed under a key that row_key_file does not hold: put that key back")]
    ForeignRowKey,
    #[error("the system gives no random numbers")]
    NoRandomness,
    #[error("the file is being closed")]
    Closed,
    #[error("SQLite refused a statement (code {code})")]
    Internal { code: i32 },
}

impl SqliteFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::DiskFull => "disk_full",
            Self::Io => "io",
            Self::Busy => "busy",
            Self::Damaged => "damaged",
            Self::Version => "version",
            Self::ForeignRowKey => "foreign_row_key",
            Self::NoRandomness => "no_randomness",
            Self::Closed => "closed",
            Self::Internal { .. } => "internal",
        }
    }

    /// Whether the same call can succeed later without anybody changing the program or its settings.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::DiskFull | Self::Io | Self::Busy)
    }

    /// Whether it may concern one row of many: a limit, a number that is there already.
    pub const fn may_be_of_one_row(self) -> bool {
        matches!(self, Self::Internal { .. })
    }
}

impl From<NoRandomness> for SqliteFault {
    fn from(_: NoRandomness) -> Self {
        Self::NoRandomness
    }
}

impl From<std::io::Error> for SqliteFault {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io,
        }
    }
}

impl From<sqlx::Error> for SqliteFault {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(error) => error.into(),
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Self::Closed,
            sqlx::Error::PoolTimedOut => Self::Busy,
            sqlx::Error::Migrate(error) => (*error).into(),
            sqlx::Error::Database(error) => {
                let code = error.code().and_then(|code| code.parse().ok()).unwrap_or(1);
                // The low byte of an extended result code is the primary one: https://www.sqlite.org/rescode.html
                match code & 0xff {
                    5 | 6 => Self::Busy,
                    8 | 10 | 14 => Self::Io,
                    11 | 26 => Self::Damaged,
                    13 => Self::DiskFull,
                    _ => Self::Internal { code },
                }
            }
            _ => Self::Internal { code: 1 },
        }
    }
}

impl From<MigrateError> for SqliteFault {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            _ => Self::Version,
        }
    }
}

/// The path of a file beside the database: `-wal` or `.lock` behind its name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The default of `erase_after`: the WAL holds pages of deleted rows until it is emptied.
pub const ERASE_AFTER: Duration = Duration::from_secs(30);

/// What is deleted is gone within a minute, and emptying the WAL may need a second try.
pub const LONGEST_ERASE_AFTER: Duration = Duration::from_secs(50);

/// Readers are in the way for milliseconds.
const TRUNCATE_AGAIN: Duration = Duration::from_millis(500);

/// How long a writer waits for an empty WAL. Meanwhile nothing is written; who asked asks again later.
const ERASE_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two tries of that.
const ERASE_AGAIN: Duration = Duration::from_millis(20);

const PAGE_BYTES: u32 = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_of_the_same_file_is_refused_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/a.db");
        let first = SqliteFile::claim(&path, 1_000, ERASE_AFTER).unwrap();
        assert_eq!(
            SqliteFile::claim(&path, 1_000, ERASE_AFTER).unwrap_err(),
            SqliteFault::InUse
        );
        drop(first);
        assert!(SqliteFile::claim(&path, 1_000, ERASE_AFTER).is_ok());
    }

    #[test]
    fn only_the_owner_can_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let _file = SqliteFile::claim(&path, 1_000, ERASE_AFTER).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_wal_that_somebody_reads_is_emptied_when_that_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = SqliteFile::claim(&folder.path().join("a.db"), 1_000, Duration::ZERO).unwrap();
        let mut writer = file.writer(&Migrator::DEFAULT).await.unwrap();
        writer.run("CREATE TABLE t (a)").await.unwrap();
        let mut reader = file.readers(1).acquire().await.unwrap();
        sqlx::query("BEGIN").execute(&mut *reader).await.unwrap();
        sqlx::query("SELECT count(*) FROM t")
            .fetch_one(&mut *reader)
            .await
            .unwrap();
        writer.note_write();
        writer.run("INSERT INTO t VALUES (1)").await.unwrap();
        writer.truncate().await;
        assert!(writer.truncate_at().is_some(), "it is due again");
        sqlx::query("COMMIT").execute(&mut *reader).await.unwrap();
        writer.truncate().await;
        assert_eq!(writer.truncate_at(), None);
        assert_eq!(std::fs::metadata(folder.path().join("a.db-wal")).unwrap().len(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_wal_that_is_copied_beside_begins_anew_and_is_emptied_when_due() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let file = SqliteFile::claim(&path, 1 << 20, Duration::ZERO).unwrap();
        let mut writer = file.writer(&Migrator::DEFAULT).await.unwrap();
        writer.run("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").await.unwrap();
        writer.copy_beside(&file);
        let fill = "INSERT INTO t SELECT NULL, zeroblob(500) FROM generate";
        let fill = format!(
            "WITH RECURSIVE generate(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM generate WHERE n < 2048) {fill}"
        );
        let wal = || std::fs::metadata(with_suffix(&path, "-wal")).unwrap().len();
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sqlx::query(sqlx::AssertSqlSafe(fill.clone()))
                .execute(&mut writer.connection)
                .await
                .unwrap();
            writer.tidy(2_048).await;
            assert!(writer.is_being_copied());
            // Commits go on meanwhile.
            while writer.is_being_copied() {
                writer.run("INSERT INTO t VALUES (NULL, 1)").await.unwrap();
                writer.tidy(1).await;
            }
            sizes.push(wal());
        }
        assert!(sizes[2] < 2 * sizes[0], "it began anew each time: {sizes:?}");
        writer.note_write();
        writer.tidy(1).await;
        while writer.truncate_at().is_some() {
            writer.tidy(0).await;
        }
        assert_eq!(wal(), 0);
        let (rows,): (i64,) = sqlx::query_as("SELECT count(*) FROM t WHERE b != 1")
            .fetch_one(&mut writer.connection)
            .await
            .unwrap();
        assert_eq!(rows, 3 * 2_048);
        writer.close().await;
        assert!(!with_suffix(&path, "-wal").exists(), "the writer was the last one");
    }

    /// From 3.7.0 to 3.51.2 a checkpoint beside a connection that writes could damage the file (<https://www.sqlite.org/wal.html#walresetbug>),
    /// and that is what the copier makes.
    #[tokio::test]
    async fn the_sqlite_that_is_built_in_lets_a_copier_run_beside_a_writer() {
        let mut memory = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        let (version,): (String,) = sqlx::query_as("SELECT sqlite_version()")
            .fetch_one(&mut memory)
            .await
            .unwrap();
        let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap()).collect();
        assert!(numbers >= vec![3, 51, 3], "SQLite {version}");
    }

    #[test]
    fn packed_rows_carry_numbers_names_and_places_in_the_blob() {
        let mut packed = Packed::default();
        packed.push(&[7, -1], &[0, 255], b"abc");
        packed.push(&[8, 0], &[1], b"de");
        assert_eq!(
            packed.finish(),
            (r#"[[7,-1,"00ff",1,3],[8,0,"01",4,2]]"#.into(), b"abcde".to_vec())
        );
        assert_eq!(Packed::default().finish(), ("[]".into(), Vec::new()));
        assert_eq!(json_numbers([1, 2].into_iter()), "[1,2]");
        assert_eq!(json_hex([[0, 255]].iter().map(|name| name.as_slice())), r#"["00ff"]"#);
    }
}
