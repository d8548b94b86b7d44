//! What a database file still has of rows that are gone: in its free pages, and in its log of changes.
//!
//! In: the path of a file, whoever has it open. Out: counts. Never: closes a file: a process that does loses the locks that SQLite has on
//! it (https://www.sqlite.org/howtocorrupt.html#posix_close_bug).
//!
//! The layout of the file: https://www.sqlite.org/fileformat2.html. A page that was freed with `secure_delete` is of zeros, or it is a trunk
//! of the list of free pages and has nothing but numbers of pages.

use crate::sqlite::with_suffix;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

/// Of one database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// `None`: it could not be looked at, or was written over again and again meanwhile.
    pub free: Option<FreePages>,
    /// Bytes of the log of changes, which has pages as they were before and after each change.
    pub log_bytes: u64,
    /// How long ago it was written. `None`: it is empty, or nobody can tell.
    pub log_age: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreePages {
    pub pages: u64,
    /// Those of them that hold more than zeros and numbers of pages.
    pub holding: u64,
}

/// Blocks. A file that is not there has nothing.
pub fn look(path: &Path) -> Remains {
    let log = fs::metadata(with_suffix(path, "-wal")).ok().filter(|log| log.len() > 0);
    let log_age = log.as_ref().and_then(|log| {
        let written = log.modified().ok()?;
        Some(SystemTime::now().duration_since(written).unwrap_or_default())
    });
    Remains {
        free: free_pages(path),
        log_bytes: log.map_or(0, |log| log.len()),
        log_age,
    }
}

/// A page may be taken again and written while it is looked at; then it is looked at once more.
fn free_pages(path: &Path) -> Option<FreePages> {
    if !path.exists() {
        return Some(FreePages::default());
    }
    let file = never_closed(path).ok()?;
    let mut found = None;
    for _ in 0..LOOKS {
        found = count(file).ok();
        if found.is_some_and(|free| free.holding == 0) {
            break;
        }
        thread::sleep(LOOK_AGAIN);
    }
    found
}

/// One handle for each file, for as long as the process lives.
fn never_closed(path: &Path) -> io::Result<&'static File> {
    static HANDLES: Mutex<BTreeMap<(PathBuf, u64), &'static File>> = Mutex::new(BTreeMap::new());
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    // Another file may stand there since.
    let place = (path.to_owned(), fs::metadata(path)?.ino());
    if let Some(file) = handles.get(&place) {
        return Ok(file);
    }
    let file: &'static File = Box::leak(Box::new(File::open(path)?));
    handles.insert(place, file);
    Ok(file)
}

fn count(file: &File) -> io::Result<FreePages> {
    let mut found = FreePages::default();
    let length = file.metadata()?.len();
    if length == 0 {
        // All that was written so far is in the log.
        return Ok(found);
    }
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0)?;
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    if !head.starts_with(MAGIC) {
        return Err(damaged());
    }
    let page_bytes = match u16::from_be_bytes([head[16], head[17]]) {
        1 => 65_536,
        bytes => u64::from(bytes),
    };
    if page_bytes < 512 {
        return Err(damaged());
    }
    let pages = length / page_bytes;
    let mut page = vec![0; usize::try_from(page_bytes).map_err(|_| damaged())?];
    let read = |number: u32, page: &mut [u8]| match u64::from(number).checked_sub(1) {
        Some(before) if before < pages => file.read_exact_at(page, before * page_bytes),
        _ => Err(damaged()),
    };
    let mut trunk = u32::from_be_bytes([head[32], head[33], head[34], head[35]]);
    let mut trunk_page = page.clone();
    while trunk != 0 {
        // A list that bites its tail has no end.
        if found.pages > pages {
            return Err(damaged());
        }
        read(trunk, &mut trunk_page)?;
        let (words, _) = trunk_page.as_chunks::<4>();
        let numbers: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
        let [next, leaves, numbers @ ..] = numbers.as_slice() else {
            return Err(damaged());
        };
        found.pages += 1;
        found.holding += u64::from(numbers.iter().any(|number| u64::from(*number) > pages));
        let leaves = usize::try_from(*leaves).map_err(|_| damaged())?;
        for leaf in numbers.get(..leaves).ok_or_else(damaged)? {
            read(*leaf, &mut page)?;
            found.pages += 1;
            found.holding += u64::from(page.iter().any(|byte| *byte != 0));
        }
        trunk = *next;
    }
    Ok(found)
}

const MAGIC: &[u8] = b"SQLite format 3\0";
const HEAD: usize = 100;
/// A checkpoint writes for some milliseconds.
const LOOKS: u32 = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Connection, SqliteConnection};

    async fn emptied(path: &Path, secure: &'static str) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut file = options.pragma("secure_delete", secure).connect().await.unwrap();
        // 4,000 free pages: more than one trunk can name.
        sqlx::raw_sql(
            "CREATE TABLE t (a BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
             INSERT INTO t SELECT randomblob(3500) FROM n;
             DELETE FROM t;",
        )
        .execute(&mut file)
        .await
        .unwrap();
        file
    }

    #[tokio::test]
    async fn free_pages_that_were_overwritten_hold_nothing_and_others_do() {
        let folder = tempfile::tempdir().unwrap();
        for (secure, holds) in [("ON", false), ("OFF", true)] {
            let path = folder.path().join(secure);
            let file = emptied(&path, secure).await;
            let found = look(&path).free.unwrap();
            let (free,): (i64,) = sqlx::query_as("PRAGMA freelist_count")
                .fetch_one(&mut { file })
                .await
                .unwrap();
            assert_eq!(found.pages, u64::try_from(free).unwrap());
            assert!(found.pages > 3_900, "{found:?}");
            assert_eq!(found.holding > 3_000, holds, "{secure}: {found:?}");
            assert_eq!(found.holding == 0, !holds, "{secure}: {found:?}");
        }
    }

    #[tokio::test]
    async fn one_byte_in_one_free_page_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        emptied(&path, "ON").await.close().await.unwrap();
        let bytes = fs::read(&path).unwrap();
        let trunk = u32::from_be_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]) as usize;
        let words = &bytes[(trunk - 1) * 4_096..];
        let leaf = u32::from_be_bytes([words[8], words[9], words[10], words[11]]) as usize;
        for place in [leaf * 4_096 - 1, trunk * 4_096 - 4] {
            let mut changed = bytes.clone();
            changed[place] = 1;
            fs::write(&path, &changed).unwrap();
            assert_eq!(look(&path).free.unwrap().holding, 1, "{place}");
        }
        fs::write(&path, &bytes).unwrap();
        assert_eq!(look(&path).free.unwrap().holding, 0);
        // A list that comes back to its beginning, and a file that is none.
        let mut round = bytes.clone();
        let first = (trunk - 1) * 4_096;
        round[first..first + 4].copy_from_slice(&(trunk as u32).to_be_bytes());
        fs::write(&path, &round).unwrap();
        assert_eq!(look(&path).free, None);
        fs::write(&path, [7; 5_000]).unwrap();
        assert_eq!(look(&path).free, None);
    }

    #[test]
    fn the_log_is_measured_and_a_file_that_is_not_there_has_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let nothing = Remains {
            free: Some(FreePages::default()),
            ..Remains::default()
        };
        assert_eq!(look(&path), nothing);
        fs::write(&path, "").unwrap();
        fs::write(with_suffix(&path, "-wal"), "").unwrap();
        assert_eq!(look(&path), nothing);
        let hour_ago = SystemTime::now() - Duration::from_secs(3_600);
        fs::write(with_suffix(&path, "-wal"), [0; 4_128]).unwrap();
        File::options()
            .write(true)
            .open(with_suffix(&path, "-wal"))
            .unwrap()
            .set_modified(hour_ago)
            .unwrap();
        let found = look(&path);
        assert_eq!(found.log_bytes, 4_128);
        assert!(found.log_age >= Some(Duration::from_secs(3_600)), "{found:?}");
    }
}
