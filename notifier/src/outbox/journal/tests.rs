use super::super::sqlite::{OutboxReader, open};
use super::*;
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::PushId;
use notifier_core::seal::{Class, Priority, Sealed};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::oneshot::error::TryRecvError;

#[tokio::test]
async fn wakeups_are_answered_when_they_are_durable_and_not_before() {
    let (mut journal, reader, _folder) = empty().await;
    let mut answer = add(&mut journal, 1..=2);
    journal.start(Instant::now(), 0);
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(journal.finished().await, durable(&[1, 2]));
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert_eq!(stored(&reader).await, [1, 2]);
}

#[tokio::test]
async fn what_comes_during_a_commit_shares_the_next_one() {
    let (mut journal, _reader, _folder) = empty().await;
    let _first = add(&mut journal, 1..=1);
    journal.start(Instant::now(), 0);
    let _second = add(&mut journal, 2..=2);
    let _third = add(&mut journal, 3..=3);
    journal.start(Instant::now(), 0);
    assert_eq!(journal.finished().await, durable(&[1]));
    journal.start(Instant::now(), 0);
    assert_eq!(journal.finished().await, durable(&[2, 3]));
}

#[tokio::test]
async fn removals_alone_wait_a_moment_for_company() {
    let (mut journal, reader, _folder) = empty().await;
    commit_now(&mut journal, 1..=3).await;
    let now = Instant::now();
    journal.remove(EntryId(1), now);
    assert_eq!(journal.poll_timeout(now), Some(now + GATHER));
    journal.start(now, 0);
    journal.remove(EntryId(2), now + GATHER / 2);
    journal.start(now + GATHER, 0);
    journal.finished().await;
    assert_eq!(stored(&reader).await, [3]);
}

#[tokio::test]
async fn a_failed_commit_refuses_its_wakeups_and_keeps_its_removals() {
    let (mut journal, reader, _folder) = empty().await;
    commit_now(&mut journal, 1..=2).await;
    let now = Instant::now();
    // A number that is there already fails the whole commit.
    let mut answer = add(&mut journal, 2..=3);
    journal.remove(EntryId(1), now);
    journal.change(
        Change {
            id: EntryId(2),
            attempt: 4,
            fallback: true,
        },
        now,
    );
    journal.start(now, 0);
    let refused = vec![EntryId(2), EntryId(3)];
    assert_eq!(
        journal.finished().await,
        Finished {
            durable: Vec::new(),
            refused
        }
    );
    assert!(matches!(answer.try_recv(), Ok(Err(OutboxError::Internal { .. }))));
    assert_eq!(stored(&reader).await, [1, 2]);

    // After the pause the removals go first, alone, then what came meanwhile.
    let mut later = add(&mut journal, 4..=4);
    let retry = journal.poll_timeout(now).unwrap();
    assert!(retry > now);
    journal.start(retry, 0);
    assert_eq!(journal.finished().await.durable, []);
    assert_eq!(later.try_recv(), Err(TryRecvError::Empty));
    journal.start(Instant::now(), 0);
    assert_eq!(journal.finished().await, durable(&[4]));
    let metas = reader.load_meta(EntryId(0)).await.unwrap();
    assert_eq!(
        metas.iter().map(|meta| (meta.id.0, meta.attempt)).collect::<Vec<_>>(),
        [(2, 4), (4, 0)]
    );
}

#[tokio::test]
async fn closing_commits_what_waits() {
    let (mut journal, reader, folder) = empty().await;
    commit_now(&mut journal, 1..=1).await;
    let answer = add(&mut journal, 2..=2);
    journal.start(Instant::now(), 0);
    journal.remove(EntryId(1), Instant::now());
    reader.close().await;
    journal.close(0).await;
    assert_eq!(answer.await, Ok(Ok(())));
    let (_writer, reader) = open(&folder.path().join("outbox.db")).await.unwrap();
    assert_eq!(stored(&reader).await, [2]);
}

async fn empty() -> (Journal, OutboxReader, TempDir) {
    let folder = TempDir::new().unwrap();
    let (writer, reader) = open(&folder.path().join("outbox.db")).await.unwrap();
    (Journal::new(writer), reader, folder)
}

fn add(journal: &mut Journal, ids: std::ops::RangeInclusive<i64>) -> oneshot::Receiver<Result<(), OutboxError>> {
    let (done, answer) = oneshot::channel();
    journal.add(ids.map(entry), vec![[1; 16]], done);
    answer
}

async fn commit_now(journal: &mut Journal, ids: std::ops::RangeInclusive<i64>) {
    let _answer = add(journal, ids);
    journal.start(Instant::now(), 0);
    journal.finished().await;
}

async fn stored(reader: &OutboxReader) -> Vec<i64> {
    reader
        .load_meta(EntryId(0))
        .await
        .unwrap()
        .iter()
        .map(|meta| meta.id.0)
        .collect()
}

fn durable(ids: &[i64]) -> Finished {
    Finished {
        durable: ids.iter().copied().map(EntryId).collect(),
        refused: Vec::new(),
    }
}

fn entry(id: i64) -> Entry {
    Entry {
        id: EntryId(id),
        push_id: PushId([0; 16]),
        sealed: Arc::new(Sealed {
            service: Service::Firebase,
            token: DeviceToken::new(*b"token"),
            body: vec![1; 600].into(),
            fallback: None,
            class: Class::Visible,
            priority: Priority::High,
            expires_at_ms: i64::MAX,
        }),
        deadline_ms: i64::MAX,
        attempt: 0,
    }
}
