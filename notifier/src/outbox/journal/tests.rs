use super::super::sqlite::{OutboxReader, open};
use super::*;
use crate::keyring::Keyring;
use crate::sqlite::ERASE_AFTER;
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::PushId;
use notifier_core::seal::{Class, Priority, Sealed};
use quietline_shared::redact::Secret;
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
async fn many_removals_and_changes_go_a_part_with_each_commit() {
    let (mut journal, reader, _folder) = empty().await;
    let (few, many) = (GROUP_CHANGES as i64, 4 * GROUP_CHANGES as i64);
    commit_now(&mut journal, 1..=2 * many).await;
    let now = Instant::now();
    for id in 1..=many {
        journal.remove(EntryId(id), now);
        let change = Change {
            id: EntryId(many + id),
            attempt: 1,
            fallback: false,
        };
        journal.change(change, now);
    }
    let mut answer = add(&mut journal, 2 * many + 1..=2 * many + 1);
    journal.start(now, 0);
    assert_eq!(journal.finished().await, durable(&[2 * many + 1]));
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    let (count, changed) = counts(&reader).await;
    assert_eq!((count, changed), (2 * many - few + 1, few));
    // The rest has waited long enough already.
    while !journal.is_idle() {
        assert!(journal.poll_timeout(now).is_some_and(|due| due <= now + GATHER));
        journal.start(now + GATHER, 0);
        journal.finished().await;
    }
    assert_eq!(counts(&reader).await, (many + 1, many));
}

#[tokio::test]
async fn with_many_wakeups_twice_as_many_removals_go() {
    let (mut journal, reader, _folder) = empty().await;
    commit_now(&mut journal, 1..=2_000).await;
    for id in 1..=2_000 {
        journal.remove(EntryId(id), Instant::now());
    }
    let _answer = add(&mut journal, 2_001..=2_900);
    journal.start(Instant::now(), 0);
    journal.finished().await;
    assert_eq!(counts(&reader).await.0, 200 + 900);
}

#[tokio::test]
async fn on_a_full_disk_wakeups_and_marks_wait_and_are_durable_when_there_is_space() {
    let (mut journal, reader, _folder) = empty().await;
    limit_pages(&mut journal, 1).await;
    let mut first = add(&mut journal, 1..=GROUP_ENTRIES as i64 / 2);
    journal.start(Instant::now(), 0);
    let behind = GROUP_ENTRIES as i64 / 2 + 1;
    let mut second = add(&mut journal, behind..=GROUP_ENTRIES as i64);
    for _ in 0..3 {
        assert_eq!(journal.finished().await, Finished::default());
        // What is kept leaves no room for more.
        assert_eq!(journal.room(), 0);
        let retry = journal.poll_timeout(Instant::now()).unwrap();
        journal.start(retry, 0);
    }
    assert_eq!(journal.finished().await, Finished::default());
    assert_eq!(
        (first.try_recv(), second.try_recv()),
        (Err(TryRecvError::Empty), Err(TryRecvError::Empty))
    );
    assert!(!journal.is_idle());

    limit_pages(&mut journal, 100_000).await;
    let retry = journal.poll_timeout(Instant::now()).unwrap();
    journal.start(retry, 0);
    let all: Vec<i64> = (1..=GROUP_ENTRIES as i64).collect();
    assert_eq!(journal.finished().await, durable(&all));
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
    assert_eq!((journal.room(), stored(&reader).await), (GROUP_ENTRIES, all));
    let seen = reader.load_marks(0).await.unwrap();
    assert_eq!(seen.iter().map(|seen| seen.marks.len()).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_wakeup_that_went_while_the_disk_was_full_is_not_written() {
    let (mut journal, reader, _folder) = empty().await;
    limit_pages(&mut journal, 1).await;
    let answer = add(&mut journal, 1..=200);
    journal.start(Instant::now(), 0);
    journal.finished().await;
    journal.remove(EntryId(1), Instant::now());
    limit_pages(&mut journal, 100_000).await;
    // The removal goes first, alone.
    for _ in 0..2 {
        let due = journal.poll_timeout(Instant::now()).unwrap();
        journal.start(due, 0);
        journal.finished().await;
    }
    assert_eq!(answer.await, Ok(Ok(())));
    assert_eq!(stored(&reader).await, (2..=200).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_waits_for_space_is_refused_when_the_journal_closes() {
    let (mut journal, _reader, _folder) = empty().await;
    limit_pages(&mut journal, 1).await;
    let answer = add(&mut journal, 1..=200);
    journal.start(Instant::now(), 0);
    journal.finished().await;
    journal.close(0).await;
    assert_eq!(answer.await, Ok(Err(OutboxError::Closed)));
}

#[tokio::test]
async fn a_commit_that_can_never_succeed_refuses_its_wakeups_and_keeps_its_removals() {
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
async fn what_the_database_refuses_takes_no_wakeup_of_another_caller_with_it() {
    let (mut journal, reader, _folder) = empty().await;
    commit_now(&mut journal, 1..=1).await;
    let mut before: Vec<_> = (2..=20).map(|id| add(&mut journal, id..=id)).collect();
    // The number is there already.
    let mut bad = add(&mut journal, 1..=1);
    let mut behind: Vec<_> = (21..=40).map(|id| add(&mut journal, id..=id)).collect();
    assert_eq!(settle(&mut journal).await, [EntryId(1)]);
    assert!(matches!(bad.try_recv(), Ok(Err(OutboxError::Internal { .. }))));
    for answer in before.iter_mut().chain(&mut behind) {
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }
    assert_eq!(stored(&reader).await, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_disk_that_was_full_for_long_lets_the_row_be_found_that_the_database_refuses() {
    let (mut journal, reader, _folder) = empty().await;
    commit_now(&mut journal, 1..=1).await;
    limit_pages(&mut journal, 1).await;
    let mut before = add(&mut journal, 2..=500);
    // The number is there already.
    let mut bad = add(&mut journal, 1..=1);
    let mut behind = add(&mut journal, 501..=510);
    for _ in 0..=MOST_SPLITS {
        let due = journal.poll_timeout(Instant::now()).unwrap();
        journal.start(due, 0);
        assert_eq!(journal.finished().await, Finished::default());
    }
    limit_pages(&mut journal, 100_000).await;
    assert_eq!(settle(&mut journal).await, [EntryId(1)]);
    assert!(matches!(bad.try_recv(), Ok(Err(OutboxError::Internal { .. }))));
    assert_eq!((before.try_recv(), behind.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
    assert_eq!(stored(&reader).await, (1..=510).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_commit_takes_what_came_together_and_no_more_than_so_many_bytes() {
    let (mut journal, reader, _folder) = empty().await;
    let large = |id: i64| Entry {
        sealed: Arc::new(Sealed {
            body: vec![1; GROUP_BYTES / 3].into(),
            ..Sealed::clone(&entry(id).sealed)
        }),
        ..entry(id)
    };
    let mut answers = Vec::new();
    for parcel in [1..=2, 3..=4, 5..=8] {
        let (done, answer) = oneshot::channel();
        let refused = journal.add(parcel.map(large), vec![[1; 16]], done);
        assert_eq!(refused, []);
        answers.push(answer);
    }
    // The last is more than one commit should take, but it came as one.
    for ids in [vec![1, 2], vec![3, 4], vec![5, 6, 7, 8]] {
        journal.start(Instant::now(), 0);
        assert_eq!(journal.finished().await, durable(&ids));
    }
    assert!(answers.iter_mut().all(|answer| answer.try_recv() == Ok(Ok(()))));
    assert_eq!(stored(&reader).await, (1..=8).collect::<Vec<_>>());

    let (done, mut answer) = oneshot::channel();
    let refused = journal.add((9..=15).map(large), vec![], done);
    assert_eq!(refused, (9..=15).map(EntryId).collect::<Vec<_>>());
    assert_eq!(answer.try_recv(), Ok(Err(OutboxError::TooLarge)));
    assert!(journal.is_idle());
}

#[tokio::test]
async fn a_wakeup_that_went_before_its_commit_is_not_written() {
    let (mut journal, reader, _folder) = empty().await;
    let each = GROUP_ENTRIES as i64;
    let mut first = add(&mut journal, 1..=each);
    let mut second = add(&mut journal, each + 1..=each + 2);
    journal.remove(EntryId(1), Instant::now());
    journal.remove(EntryId(each + 1), Instant::now());
    while !journal.is_idle() {
        journal.start(Instant::now(), 0);
        journal.finished().await;
    }
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
    let expected: Vec<i64> = (2..=each).chain([each + 2]).collect();
    assert_eq!(stored(&reader).await, expected);
}

#[tokio::test]
async fn closing_commits_all_that_waits_however_many_commits_it_takes() {
    let (mut journal, _reader, folder) = empty().await;
    let each = GROUP_ENTRIES as i64;
    let answers: Vec<_> = (0..5)
        .map(|n| add(&mut journal, n * each + 1..=(n + 1) * each))
        .collect();
    journal.close(0).await;
    for answer in answers {
        assert_eq!(answer.await, Ok(Ok(())));
    }
    let keys = Keyring::new(vec![Secret::new([1; 32])]).unwrap();
    let (_writer, reader) = open(&folder.path().join("outbox.db"), &keys, ERASE_AFTER)
        .await
        .unwrap();
    assert_eq!(counts(&reader).await.0, 5 * each);
}

#[tokio::test]
async fn closing_commits_all_that_waits() {
    let (mut journal, reader, folder) = empty().await;
    let many = 4 * GROUP_CHANGES as i64;
    commit_now(&mut journal, 1..=many).await;
    let answer = add(&mut journal, many + 1..=many + 1);
    journal.start(Instant::now(), 0);
    for id in 1..=many {
        journal.remove(EntryId(id), Instant::now());
    }
    reader.close().await;
    journal.close(0).await;
    assert_eq!(answer.await, Ok(Ok(())));
    let keys = Keyring::new(vec![Secret::new([1; 32])]).unwrap();
    let (_writer, reader) = open(&folder.path().join("outbox.db"), &keys, ERASE_AFTER)
        .await
        .unwrap();
    assert_eq!(stored(&reader).await, [many + 1]);
}

/// SQLite keeps the pages that the file has.
async fn limit_pages(journal: &mut Journal, pages: u32) {
    let State::Idle(writer) = &mut journal.state else {
        panic!("a commit is on its way");
    };
    writer.limit_pages(pages).await;
}

async fn empty() -> (Journal, OutboxReader, TempDir) {
    let folder = TempDir::new().unwrap();
    let keys = Keyring::new(vec![Secret::new([1; 32])]).unwrap();
    let (writer, reader) = open(&folder.path().join("outbox.db"), &keys, ERASE_AFTER)
        .await
        .unwrap();
    (Journal::new(writer), reader, folder)
}

fn add(journal: &mut Journal, ids: std::ops::RangeInclusive<i64>) -> oneshot::Receiver<Result<(), OutboxError>> {
    let (done, answer) = oneshot::channel();
    assert_eq!(journal.add(ids.map(entry), vec![[1; 16]], done), []);
    answer
}

async fn commit_now(journal: &mut Journal, ids: std::ops::RangeInclusive<i64>) {
    let _answer = add(journal, ids);
    journal.start(Instant::now(), 0);
    journal.finished().await;
}

/// Commits until nothing waits; what was refused.
async fn settle(journal: &mut Journal) -> Vec<EntryId> {
    let mut refused = Vec::new();
    while !journal.is_idle() {
        let due = journal.poll_timeout(Instant::now()).unwrap();
        journal.start(due, 0);
        refused.extend(journal.finished().await.refused);
    }
    refused
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

/// How many there are, and how many of them were tried.
async fn counts(reader: &OutboxReader) -> (i64, i64) {
    let (mut count, mut tried, mut after) = (0, 0, EntryId(0));
    loop {
        let batch = reader.load_meta(after).await.unwrap();
        let Some(last) = batch.last() else {
            return (count, tried);
        };
        after = last.id;
        count += batch.len() as i64;
        tried += batch.iter().filter(|meta| meta.attempt > 0).count() as i64;
    }
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
