//! Overwrites a log of changes that is about to be emptied: the file system frees its blocks as they are.
//!
//! In: the path of a database whose log has gone into it, down to the disk, and which nobody writes meanwhile. Out: a log of zeros. Never:
//! leaves a beginning of the log that counts without its end.
//!
//! SQLite has no lock on this file, so that closing it takes none away. Where a disk keeps copies of what is written over (flash, file
//! systems that copy on write), they stay; they are sealed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Blocks.
pub fn overwrite(database: &Path) -> io::Result<()> {
    let log = match OpenOptions::new()
        .write(true)
        .open(super::with_suffix(database, "-wal"))
    {
        Ok(log) => log,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(fault) => return Err(fault),
    };
    let length = log.metadata()?.len();
    if length == 0 {
        return Ok(());
    }
    // After a power cut the log would be played from its beginning up to the first frame that is not whole: a part of it over what is newer.
    // Without its header it is empty. Where there is none, nothing follows.
    fill(&log, 0, length.min(HEADER))?;
    log.sync_data()?;
    fill(&log, HEADER, length)?;
    log.sync_data()
}

fn fill(log: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = [0; STEP];
    let mut at = from;
    while at < to {
        let step = usize::try_from(to - at).unwrap_or(STEP).min(STEP);
        let written = log.write_at(zeros.get(..step).unwrap_or_default(), at)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += written as u64;
    }
    Ok(())
}

/// Bytes before the first frame: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
const HEADER: u64 = 32;
const STEP: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
    use sqlx::{ConnectOptions, Connection, SqliteConnection};
    use std::fs;

    async fn open(path: &Path) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let options = options
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", "0");
        options.connect().await.unwrap()
    }

    /// What a machine finds that starts again with these two files.
    async fn after_power_cut(path: &Path, log: &[u8]) -> (i64, String) {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("a.db");
        fs::copy(path, &copy).unwrap();
        fs::write(super::super::with_suffix(&copy, "-wal"), log).unwrap();
        let mut file = open(&copy).await;
        let (sum,) = sqlx::query_as("SELECT sum(a) FROM t")
            .fetch_one(&mut file)
            .await
            .unwrap();
        let (sound,) = sqlx::query_as("PRAGMA integrity_check")
            .fetch_one(&mut file)
            .await
            .unwrap();
        file.close().await.unwrap();
        (sum, sound)
    }

    #[tokio::test]
    async fn a_log_of_zeros_up_to_any_place_loses_and_revives_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut file = open(&path).await;
        sqlx::raw_sql("CREATE TABLE t (a INTEGER, b BLOB)")
            .execute(&mut file)
            .await
            .unwrap();
        for number in 0..40 {
            sqlx::query("INSERT INTO t VALUES (?, randomblob(2000))")
                .bind(number)
                .execute(&mut file)
                .await
                .unwrap();
        }
        // The log has older and newer states of the same pages.
        sqlx::raw_sql("DELETE FROM t WHERE a < 20; UPDATE t SET a = a + 100")
            .execute(&mut file)
            .await
            .unwrap();
        let (busy, _, _): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(RESTART)")
            .fetch_one(&mut file)
            .await
            .unwrap();
        assert_eq!(busy, 0);
        let whole = (20..40).map(|number| number + 100).sum::<i64>();
        let log = fs::read(super::super::with_suffix(&path, "-wal")).unwrap();
        assert!(log.len() > 100_000);
        let mut torn = log.clone();
        torn[..32].fill(0);
        // Any of the blocks behind may be on the disk, or not yet.
        for first in [32, 4_096, 65_536, log.len()] {
            let mut some = torn.clone();
            some[32..first].fill(0);
            assert_eq!(after_power_cut(&path, &some).await, (whole, "ok".to_owned()), "{first}");
            let mut others = torn.clone();
            others[first..].fill(0);
            assert_eq!(
                after_power_cut(&path, &others).await,
                (whole, "ok".to_owned()),
                "{first}"
            );
        }

        overwrite(&path).unwrap();
        let zeros = fs::read(super::super::with_suffix(&path, "-wal")).unwrap();
        assert!(zeros.len() == log.len() && zeros.iter().all(|byte| *byte == 0));
        // Who has it open goes on, and so does who comes.
        let mut reader = open(&path).await;
        sqlx::raw_sql("INSERT INTO t VALUES (1, x'00')")
            .execute(&mut file)
            .await
            .unwrap();
        let (sum,): (i64,) = sqlx::query_as("SELECT sum(a) FROM t")
            .fetch_one(&mut reader)
            .await
            .unwrap();
        assert_eq!(sum, whole + 1);
        sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut file)
            .await
            .unwrap();
        assert_eq!(after_power_cut(&path, &[]).await, (whole + 1, "ok".to_owned()));
    }

    #[test]
    fn a_log_that_is_empty_or_not_there_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        overwrite(&path).unwrap();
        let log = super::super::with_suffix(&path, "-wal");
        assert!(!log.exists());
        for length in [0, 7, 32, 33, STEP + 33] {
            fs::write(&log, vec![7; length]).unwrap();
            overwrite(&path).unwrap();
            assert_eq!(fs::read(&log).unwrap(), vec![0; length]);
        }
    }
}
