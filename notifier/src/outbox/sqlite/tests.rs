use super::*;
use crate::sqlite::ERASE_AFTER;
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::PushId;
use notifier_core::seal::{Class, Priority};
use quietline_shared::redact::Secret;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

#[tokio::test]
async fn entries_and_marks_are_there_after_a_restart() {
    let (mut writer, reader, folder) = empty().await;
    let commit = Commit {
        add: vec![entry(1, 40), entry(2, 3_000)],
        marks: vec![[1; 16], [2; 16]],
        at_ms: 50,
        ..Commit::default()
    };
    writer.commit(&commit).await.unwrap();
    reader.close().await;
    writer.close().await;

    let (_writer, reader) = reopen(folder.path(), &ring(&[1])).await;
    let metas = reader.load_meta(EntryId(0)).await.unwrap();
    assert_eq!(
        metas.iter().map(|meta| meta.id).collect::<Vec<_>>(),
        [EntryId(1), EntryId(2)]
    );
    let first = metas[0];
    assert_eq!(
        (
            first.service,
            first.class,
            first.deadline_ms,
            first.attempt,
            first.push_id,
            first.fallback
        ),
        (Service::Apns, Class::Visible, 1_001, 0, PushId([1; 16]), false)
    );
    assert_eq!(reader.load_meta(EntryId(2)).await.unwrap(), []);
    let bodies = reader.load_bodies(&[EntryId(2), EntryId(1), EntryId(9)]).await.unwrap();
    assert_eq!(
        bodies,
        [
            (EntryId(1), Some(entry(1, 40).sealed.as_ref().clone())),
            (EntryId(2), Some(entry(2, 3_000).sealed.as_ref().clone()))
        ]
    );
    assert_eq!(all_marks(&reader).await, [[1; 16], [2; 16]]);
}

#[tokio::test]
async fn a_removed_entry_is_gone_and_its_number_is_never_used_again() {
    let (mut writer, reader, folder) = empty().await;
    assert_eq!(writer.next_id().await, Ok(EntryId(1)));
    writer.commit(&adding([entry(1, 40), entry(7, 40)])).await.unwrap();
    writer
        .commit(&Commit {
            remove: vec![EntryId(1), EntryId(7)],
            ..Commit::default()
        })
        .await
        .unwrap();
    assert_eq!(reader.load_meta(EntryId(0)).await.unwrap(), []);
    reader.close().await;
    writer.close().await;

    let (mut writer, _reader) = reopen(folder.path(), &ring(&[1])).await;
    assert_eq!(writer.next_id().await, Ok(EntryId(8)));
    let file = std::fs::read(path(folder.path())).unwrap();
    assert!(
        !file.windows(20).any(|bytes| bytes == [0xB0; 20]),
        "a removed wakeup is still in the file"
    );
}

#[tokio::test]
async fn a_retry_keeps_its_attempt_and_form_over_a_restart() {
    let (mut writer, reader, _folder) = empty().await;
    writer.commit(&adding([entry(1, 40), entry(2, 40)])).await.unwrap();
    let change = vec![
        Change {
            id: EntryId(1),
            attempt: 3,
            fallback: true,
        },
        Change {
            id: EntryId(99),
            attempt: 1,
            fallback: false,
        },
    ];
    writer
        .commit(&Commit {
            change,
            ..Commit::default()
        })
        .await
        .unwrap();
    let metas = reader.load_meta(EntryId(0)).await.unwrap();
    assert_eq!(
        metas
            .iter()
            .map(|meta| (meta.attempt, meta.fallback))
            .collect::<Vec<_>>(),
        [(3, true), (0, false)]
    );
}

#[tokio::test]
async fn marks_go_when_they_are_too_old() {
    let (mut writer, reader, _folder) = empty().await;
    for at_ms in [10_000, 20_000, 30_000] {
        let marks = vec![[(at_ms / 1_000) as u8; 16]];
        writer
            .commit(&Commit {
                marks,
                at_ms,
                ..Commit::default()
            })
            .await
            .unwrap();
    }
    let times: Vec<_> = reader
        .load_marks(1)
        .await
        .unwrap()
        .iter()
        .map(|seen| seen.at_ms)
        .collect();
    assert_eq!(times, [Some(20_000), Some(30_000)]);
    let forget = Commit {
        forget_marks_before_ms: Some(30_000),
        ..Commit::default()
    };
    writer.commit(&forget).await.unwrap();
    assert_eq!(all_marks(&reader).await, [[30; 16]]);
    // What cannot be read goes with its day.
    sqlx::query("UPDATE marks SET marks = x'00'")
        .execute(&mut writer.writer.connection)
        .await
        .unwrap();
    assert_eq!(all_marks(&reader).await, [[0; 16]; 0]);
    writer.remove_expired(0, 86_400_000).await.unwrap();
    assert_eq!(reader.load_marks(0).await.unwrap(), []);
}

#[tokio::test]
async fn a_commit_is_whole_or_not_there() {
    let (mut writer, reader, _folder) = empty().await;
    writer.commit(&adding([entry(1, 40)])).await.unwrap();
    let half_wrong = Commit {
        add: vec![entry(2, 40), entry(1, 40)],
        marks: vec![[1; 16]],
        remove: vec![EntryId(1)],
        ..Commit::default()
    };
    assert!(matches!(
        writer.commit(&half_wrong).await,
        Err(SqliteFault::Internal { .. })
    ));
    assert_eq!(reader.load_meta(EntryId(0)).await.unwrap().len(), 1);
    assert_eq!(all_marks(&reader).await.len(), 0);
    // No transaction is left open.
    writer.commit(&adding([entry(2, 40)])).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_ends_when_there_is_space() {
    let (mut writer, reader, _folder) = empty().await;
    sqlx::query("PRAGMA max_page_count = 40")
        .execute(&mut writer.writer.connection)
        .await
        .unwrap();
    let mut stored = 0;
    let fault = loop {
        match writer.commit(&adding([entry(stored + 1, 3_000)])).await {
            Ok(()) => stored += 1,
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault, SqliteFault::DiskFull);
    assert!(fault.is_retryable());
    assert_eq!(reader.load_meta(EntryId(0)).await.unwrap().len() as i64, stored);
    writer
        .commit(&Commit {
            remove: vec![EntryId(1)],
            ..Commit::default()
        })
        .await
        .unwrap();
    writer.commit(&adding([entry(stored + 1, 3_000)])).await.unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_crash() {
    let (mut writer, _reader, folder) = empty().await;
    writer.commit(&adding([entry(1, 3_000)])).await.unwrap();
    writer.commit(&adding([entry(2, 3_000)])).await.unwrap();
    let crashed = TempDir::new().unwrap();
    std::fs::copy(path(folder.path()), path(crashed.path())).unwrap();
    let wal = std::fs::read(folder.path().join("outbox.db-wal")).unwrap();
    std::fs::write(crashed.path().join("outbox.db-wal"), &wal[..wal.len() - 5_000]).unwrap();
    let (mut writer, reader) = reopen(crashed.path(), &ring(&[1])).await;
    assert_eq!(reader.load_meta(EntryId(0)).await.unwrap().len(), 1);
    assert_eq!(writer.next_id().await, Ok(EntryId(2)));
}

#[tokio::test]
async fn a_damaged_row_is_named_and_hides_no_other() {
    let (mut writer, reader, _folder) = empty().await;
    writer
        .commit(&adding([entry(1, 40), entry(2, 40), entry(3, 40)]))
        .await
        .unwrap();
    for sql in [
        "UPDATE entry SET row = x'00' WHERE id = 1",
        // In the place of another.
        "UPDATE entry SET head = (SELECT head FROM entry WHERE id = 3) WHERE id = 2",
    ] {
        sqlx::query(sql).execute(&mut writer.writer.connection).await.unwrap();
    }
    let metas = reader.load_meta(EntryId(0)).await.unwrap();
    assert_eq!(metas.iter().map(|meta| meta.id.0).collect::<Vec<_>>(), [1, 3]);
    let bodies = reader.load_bodies(&[EntryId(1), EntryId(3)]).await.unwrap();
    assert_eq!(
        bodies,
        [
            (EntryId(1), None),
            (EntryId(3), Some(entry(3, 40).sealed.as_ref().clone()))
        ]
    );
}

#[tokio::test]
async fn what_expired_on_an_earlier_day_goes_at_the_start() {
    let (mut writer, reader, _folder) = empty().await;
    let mut tomorrow = entry(2, 40);
    tomorrow.deadline_ms = 86_400_000;
    writer.commit(&adding([entry(1, 40), tomorrow])).await.unwrap();
    assert_eq!(writer.remove_expired(86_399_999, 0).await, Ok(0));
    assert_eq!(writer.remove_expired(86_400_000, 0).await, Ok(1));
    assert_eq!(reader.load_meta(EntryId(0)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_file_shows_numbers_days_and_keys_and_nothing_else() {
    let (mut writer, _reader, folder) = empty().await;
    let marks: Vec<Mark> = (0..100)
        .map(|n: u8| std::array::from_fn(|place| n ^ (place as u8 + 77)))
        .collect();
    for (id, size) in [(1, 552), (2, 600), (3, 2_856)] {
        let mut commit = adding([entry(id, size)]);
        commit.marks = marks.clone();
        writer.commit(&commit).await.unwrap();
    }
    let lengths: Vec<(i64, i64)> = sqlx::query_as("SELECT length(head), length(row) FROM entry ORDER BY id")
        .fetch_all(&mut writer.writer.connection)
        .await
        .unwrap();
    assert_eq!(lengths, [(104, 908), (104, 908), (104, 3_820)]);
    let file = files(folder.path());
    for secret in [&[0xB0; 20][..], &[7; 20], &[1; 16], &marks[50]] {
        assert!(!file.windows(secret.len()).any(|bytes| bytes == secret), "{secret:?}");
    }
}

#[tokio::test]
async fn a_retry_during_a_change_of_keys_keeps_head_and_row_together() {
    let (mut writer, reader, folder) = empty().await;
    let many: Vec<Entry> = (1..=300).map(|id| entry(id, 40)).collect();
    let commit = Commit {
        add: many,
        marks: vec![[1; 16]],
        ..Commit::default()
    };
    writer.commit(&commit).await.unwrap();
    let both = ring(&[2, 1]);
    writer.use_keys(Arc::new(sealer(&both))).await.unwrap();
    assert!(writer.has_older());
    // Some have gone over, some have not; the next start needs both keys.
    assert_eq!(writer.move_rows().await, Ok(256));
    let change = |id| Change {
        id: EntryId(id),
        attempt: 3,
        fallback: true,
    };
    let retried = Commit {
        add: vec![entry(301, 40)],
        change: vec![change(1), change(300)],
        ..Commit::default()
    };
    writer.commit(&retried).await.unwrap();
    let crashed = copy_of(folder.path());
    for alone in [ring(&[1]), ring(&[2])] {
        let refused = open(&path(crashed.path()), &alone, ERASE_AFTER).await.err();
        assert_eq!(refused, Some(SqliteFault::ForeignRowKey));
    }
    let (mut again, its_reader) = reopen(crashed.path(), &both).await;
    for (writer, reader) in [(&mut writer, &reader), (&mut again, &its_reader)] {
        while writer.has_older() {
            writer.move_rows().await.unwrap();
        }
        let metas = reader.load_meta(EntryId(0)).await.unwrap();
        let retried: Vec<i64> = metas
            .iter()
            .filter(|meta| meta.attempt == 3)
            .map(|meta| meta.id.0)
            .collect();
        assert_eq!((metas.len(), retried), (301, vec![1, 300]));
        let ids: Vec<EntryId> = metas.iter().map(|meta| meta.id).collect();
        assert!(
            reader
                .load_bodies(&ids)
                .await
                .unwrap()
                .iter()
                .all(|(_, body)| body.is_some())
        );
        assert_eq!(all_marks(reader).await, [[1; 16]]);
    }
    reader.close().await;
    writer.close().await;
    let (_writer, reader) = reopen(folder.path(), &ring(&[2])).await;
    assert_eq!(reader.load_meta(EntryId(0)).await.unwrap().len(), 301);
}

#[tokio::test]
async fn what_an_earlier_version_left_in_plain_is_sealed_and_gone() {
    let folder = TempDir::new().unwrap();
    let file = SqliteFile::claim(&path(folder.path()), WAL_PAGES, ERASE_AFTER).unwrap();
    let first = Migrator::with_migrations(vec![MIGRATIONS.iter().next().unwrap().clone()]);
    let mut writer = file.writer(&first).await.unwrap();
    for id in 1..=600 {
        let entry = entry(id, 700);
        sqlx::query("INSERT INTO entry VALUES (?, 1, 2, ?, 1, ?, ?, 0, ?)")
            .bind(id)
            .bind(entry.deadline_ms)
            .bind(entry.push_id.0.to_vec())
            .bind(id == 5)
            .bind(entry.sealed.encode_row())
            .execute(&mut writer.connection)
            .await
            .unwrap();
    }
    for sql in [
        "INSERT INTO marks (at_ms, marks) VALUES (77000, x'01010101010101010101010101010101')",
        // The highest number went, and one row is damaged.
        "DELETE FROM entry WHERE id = 600",
        "UPDATE entry SET class = 99 WHERE id = 599",
    ] {
        sqlx::query(sql).execute(&mut writer.connection).await.unwrap();
    }
    let plain = copy_of(folder.path());
    assert!(files(plain.path()).windows(20).any(|bytes| bytes == [0xB0; 20]));

    let (mut writer, reader) = reopen(plain.path(), &ring(&[1])).await;
    assert_eq!(writer.next_id().await, Ok(EntryId(601)));
    let metas = reader.load_meta(EntryId(0)).await.unwrap();
    assert_eq!(metas.len(), 598);
    let fifth = metas[4];
    assert_eq!(
        (fifth.id, fifth.fallback, fifth.attempt, fifth.deadline_ms),
        (EntryId(5), true, 1, 1_005)
    );
    let bodies = reader.load_bodies(&[EntryId(300)]).await.unwrap();
    assert_eq!(bodies, [(EntryId(300), Some(entry(300, 700).sealed.as_ref().clone()))]);
    assert_eq!(all_marks(&reader).await, [[1; 16]]);
    let file = files(plain.path());
    for secret in [[0xB0; 16], [7; 16], [1; 16]] {
        assert!(!file.windows(16).any(|bytes| bytes == secret), "{secret:?}");
    }
}

#[tokio::test]
async fn the_files_do_not_grow_while_as_much_goes_as_comes() {
    let (mut writer, _reader, folder) = empty().await;
    let mut id = 0;
    let mut turn_over = async |rounds| {
        for _ in 0..rounds {
            let remove = (id - 9..=id).filter(|id| *id > 0).map(EntryId).collect();
            let add = (id + 1..=id + 10).map(|id| entry(id, 2_800)).collect();
            id += 10;
            writer
                .commit(&Commit {
                    add,
                    remove,
                    ..Commit::default()
                })
                .await
                .unwrap();
        }
    };
    let size = || {
        let of = |name| std::fs::metadata(folder.path().join(name)).map_or(0, |file| file.len());
        (of("outbox.db"), of("outbox.db-wal"))
    };
    // Beyond the first checkpoint.
    turn_over(400).await;
    let before = size();
    turn_over(800).await;
    assert!(before.0 < 1 << 20, "{before:?}");
    assert!(size().0 <= before.0, "{before:?} became {:?}", size());
    assert!(size().1 < 24 << 20, "{:?}", size());
    writer.truncate().await;
    assert_eq!(size().1, 0);
}

fn path(folder: &Path) -> std::path::PathBuf {
    folder.join("outbox.db")
}

fn ring(keys: &[u8]) -> Keyring {
    Keyring::new(keys.iter().map(|key| Secret::new([*key; 32])).collect()).unwrap()
}

async fn reopen(folder: &Path, keys: &Keyring) -> (OutboxWriter, OutboxReader) {
    open(&path(folder), keys, ERASE_AFTER).await.unwrap()
}

async fn empty() -> (OutboxWriter, OutboxReader, TempDir) {
    let folder = TempDir::new().unwrap();
    let (writer, reader) = reopen(folder.path(), &ring(&[1])).await;
    (writer, reader, folder)
}

/// What a crash leaves: the files as they are.
fn copy_of(folder: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in ["outbox.db", "outbox.db-wal"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    copy
}

fn files(folder: &Path) -> Vec<u8> {
    let files = ["outbox.db", "outbox.db-wal", "outbox.db-shm"];
    files
        .iter()
        .flat_map(|name| std::fs::read(folder.join(name)).unwrap_or_default())
        .collect()
}

fn adding<const N: usize>(entries: [Entry; N]) -> Commit {
    Commit {
        add: entries.into(),
        ..Commit::default()
    }
}

async fn all_marks(reader: &OutboxReader) -> Vec<Mark> {
    let seen = reader.load_marks(0).await.unwrap();
    seen.into_iter().flat_map(|seen| seen.marks).collect()
}

fn entry(id: i64, size: usize) -> Entry {
    Entry {
        id: EntryId(id),
        push_id: PushId([id as u8; 16]),
        sealed: Arc::new(Sealed {
            service: Service::Apns,
            token: DeviceToken::new([7; 32]),
            body: vec![0xB0; size].into(),
            fallback: None,
            class: Class::Visible,
            priority: Priority::High,
            expires_at_ms: 9_000,
        }),
        deadline_ms: 1_000 + id,
        attempt: 0,
    }
}
