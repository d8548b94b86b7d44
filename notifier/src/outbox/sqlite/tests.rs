use super::*;
use notifier_core::account::DeviceToken;
use notifier_core::seal::Priority;
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

    let (_writer, reader) = open(&path(folder.path())).await.unwrap();
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
    assert_eq!(all_marks(&reader, 50).await, [[1; 16], [2; 16]]);
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

    let (mut writer, _reader) = open(&path(folder.path())).await.unwrap();
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
    for at_ms in [10, 20, 30] {
        let marks = vec![[at_ms as u8; 16]];
        writer
            .commit(&Commit {
                marks,
                at_ms,
                ..Commit::default()
            })
            .await
            .unwrap();
    }
    assert_eq!(all_marks(&reader, 20).await, [[20; 16], [30; 16]]);
    writer
        .commit(&Commit {
            forget_marks_before_ms: Some(30),
            ..Commit::default()
        })
        .await
        .unwrap();
    assert_eq!(all_marks(&reader, 0).await, [[30; 16]]);
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
    assert_eq!(all_marks(&reader, 0).await.len(), 0);
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
    let (mut writer, reader) = open(&path(crashed.path())).await.unwrap();
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
        "UPDATE entry SET class = 99 WHERE id = 2",
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
async fn what_expired_meanwhile_goes_at_the_start() {
    let (mut writer, reader, _folder) = empty().await;
    writer.commit(&adding([entry(1, 40), entry(2, 40)])).await.unwrap();
    assert_eq!(writer.remove_expired(1_001).await, Ok(1));
    assert_eq!(reader.load_meta(EntryId(0)).await.unwrap().len(), 1);
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

async fn empty() -> (OutboxWriter, OutboxReader, TempDir) {
    let folder = TempDir::new().unwrap();
    let (writer, reader) = open(&path(folder.path())).await.unwrap();
    (writer, reader, folder)
}

fn adding<const N: usize>(entries: [Entry; N]) -> Commit {
    Commit {
        add: entries.into(),
        ..Commit::default()
    }
}

async fn all_marks(reader: &OutboxReader, since_ms: i64) -> Vec<Mark> {
    let (mut found, mut after) = (Vec::new(), 0);
    while let Some((last, marks)) = reader.load_marks(after, since_ms).await.unwrap() {
        found.extend(marks.iter().map(|seen| seen.mark));
        after = last;
    }
    found
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
