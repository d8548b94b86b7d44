use super::*;
use notifier_core::account::DeviceToken;
use notifier_core::outbox::{Entry, Target};
use notifier_core::seal::{Class, Priority};
use quietline_shared::redact::Secret;
use std::collections::HashSet;
use std::sync::Arc;
use tempfile::TempDir;

#[tokio::test]
async fn an_accepted_wakeup_is_sent_and_gone_when_the_provider_has_it() {
    let mut outbox = start(TempDir::new().unwrap()).await;
    outbox
        .handle()
        .accept(vec![wakeup(1, 600)], vec![[1; 16]])
        .await
        .unwrap();
    let push = outbox.pushes.recv().await.unwrap();
    assert_eq!(*push.sealed, wakeup(1, 600));
    assert_eq!((push.attempt, push.fallback), (0, false));
    outbox.answer(&push, Outcome::Delivered).await;
    let folder = outbox.shut_down().await;
    assert_eq!(stored(&folder).await, (0, vec![[1; 16]]));
}

#[tokio::test]
async fn what_nobody_answered_is_sent_again_after_a_restart_under_the_same_name() {
    let mut outbox = start(TempDir::new().unwrap()).await;
    outbox
        .handle()
        .accept(vec![wakeup(1, 600), wakeup(2, 600)], vec![])
        .await
        .unwrap();
    let (first, second) = (outbox.pushes.recv().await.unwrap(), outbox.pushes.recv().await.unwrap());
    outbox.answer(&first, Outcome::Delivered).await;
    let folder = outbox.shut_down_now().await;

    let mut outbox = start(folder).await;
    let again = outbox.pushes.recv().await.unwrap();
    assert_eq!(
        (again.id, again.push_id, &again.sealed),
        (second.id, second.push_id, &second.sealed)
    );
    // A number is never used twice.
    outbox.handle().accept(vec![wakeup(3, 600)], vec![]).await.unwrap();
    assert_eq!(outbox.pushes.recv().await.unwrap().id, EntryId(second.id.0 + 1));
}

#[tokio::test]
async fn a_wakeup_that_was_too_large_goes_in_its_short_form_also_after_a_restart() {
    let mut outbox = start(TempDir::new().unwrap()).await;
    outbox.handle().accept(vec![wakeup(1, 2_800)], vec![]).await.unwrap();
    let push = outbox.pushes.recv().await.unwrap();
    outbox.answer(&push, Outcome::TryFallback).await;
    let short = outbox.pushes.recv().await.unwrap();
    assert_eq!((short.id, short.attempt, short.body()), (push.id, 1, &[9; 552][..]));
    let folder = outbox.shut_down_now().await;

    let mut outbox = start(folder).await;
    let short = outbox.pushes.recv().await.unwrap();
    assert_eq!((short.id, short.attempt, short.body()), (push.id, 1, &[9; 552][..]));
}

#[tokio::test]
async fn a_dead_token_is_reported() {
    let mut outbox = start(TempDir::new().unwrap()).await;
    outbox.deliver_one().await;
    outbox.handle().accept(vec![wakeup(1, 600)], vec![]).await.unwrap();
    let push = outbox.pushes.recv().await.unwrap();
    outbox
        .answer(
            &push,
            Outcome::Gone {
                provider_time_ms: Some(5),
                certain: true,
            },
        )
        .await;
    let target = Target {
        service: Service::Firebase,
        token: push.sealed.token.clone(),
    };
    assert_eq!(
        outbox.effects.recv().await,
        Some(Effect::TokenGone {
            target,
            provider_time_ms: Some(5)
        })
    );
    assert_eq!(stored(&outbox.shut_down().await).await.0, 0);
}

#[tokio::test]
async fn no_dead_token_is_lost_while_nobody_takes_them() {
    let mut outbox = start(TempDir::new().unwrap()).await;
    outbox.deliver_one().await;
    let count = 2_048;
    let many = (0..count).map(|n| wakeup(n, 60)).collect();
    outbox.handle().accept(many, vec![]).await.unwrap();
    let answering = async {
        for _ in 0..count {
            let push = outbox.pushes.recv().await.unwrap();
            let gone = Outcome::Gone {
                provider_time_ms: None,
                certain: true,
            };
            outbox.running.handle.outcomes.send((push.id, gone)).await.unwrap();
        }
    };
    let hearing = async {
        for _ in 0..count {
            assert!(matches!(outbox.effects.recv().await, Some(Effect::TokenGone { .. })));
        }
    };
    tokio::join!(answering, hearing);
}

#[tokio::test]
async fn shutting_down_waits_for_what_is_under_way_and_takes_nothing_new() {
    let mut outbox = start(TempDir::new().unwrap()).await;
    let handle = outbox.handle();
    handle.accept(vec![wakeup(1, 600)], vec![]).await.unwrap();
    let push = outbox.pushes.recv().await.unwrap();
    let answering = async {
        // The task has heard of the stop when the queue is closed.
        handle.orders.closed().await;
        assert_eq!(
            handle.accept(vec![wakeup(2, 600)], vec![]).await,
            Err(OutboxError::Closed)
        );
        handle.outcomes.send((push.id, Outcome::Delivered)).await.unwrap();
    };
    let far = Instant::now() + Duration::from_secs(600);
    tokio::join!(outbox.running.shutdown(far), answering);
    assert_eq!(stored(&outbox.folder).await.0, 0);
}

#[tokio::test]
async fn shutting_down_sends_the_queue_first_and_does_not_wait_for_a_lane_that_is_down() {
    let folder = TempDir::new().unwrap();
    let small = OutboxSettings {
        memory: 100_000,
        ..settings(&folder)
    };
    let file = OutboxFile::open(&small, &keys(1)).await.unwrap();
    let (slow_out, mut slow) = mpsc::channel(2);
    let (down_out, mut down) = mpsc::channel(100);
    let (effects_out, _effects) = mpsc::channel(1);
    let lane = |service, concurrency, pushes| Lane {
        service,
        settings: LaneSettings::with_concurrency(concurrency),
        pushes,
    };
    let lanes = vec![lane(Service::Firebase, 2, slow_out), lane(Service::Apns, 100, down_out)];
    let kept = Duration::from_secs(3_600);
    let running = file.start(lanes, effects_out, kept).await.unwrap();
    let apns = |n| Sealed {
        service: Service::Apns,
        ..wakeup(n, 600)
    };
    let many = (0..300).map(|n| wakeup(n, 600)).chain((0..50).map(apns)).collect();
    running.handle.accept(many, vec![]).await.unwrap();

    let handle = running.handle.clone();
    let delivered = async {
        handle.orders.closed().await;
        let mut delivered = 0;
        while let Some(push) = slow.recv().await {
            // Slower than the task: it finds nothing to do between two answers.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            handle.outcomes.send((push.id, Outcome::Delivered)).await.unwrap();
            delivered += 1;
        }
        delivered
    };
    let refusing = async {
        while let Some(push) = down.recv().await {
            let outcome = Outcome::Held {
                pause: Duration::from_secs(1_200),
            };
            handle.outcomes.send((push.id, outcome)).await.unwrap();
        }
    };
    let far = Instant::now() + Duration::from_secs(600);
    let ((), delivered, ()) = tokio::join!(running.shutdown(far), delivered, refusing);
    assert_eq!(delivered, 300);
    assert!(Instant::now() < far);
    assert_eq!(stored(&folder).await.0, 50);
}

#[tokio::test]
async fn on_a_full_disk_wakeups_wait_until_those_before_make_room() {
    let folder = TempDir::new().unwrap();
    let mut file = OutboxFile::open(&settings(&folder), &keys(1)).await.unwrap();
    file.writer.limit_pages(60).await;
    let mut before = 0;
    let full = loop {
        let commit = sqlite::Commit {
            add: vec![stored_entry(before + 1)],
            ..sqlite::Commit::default()
        };
        match file.writer.commit(&commit).await {
            Ok(()) => before += 1,
            Err(fault) => break fault,
        }
    };
    assert_eq!(full, SqliteFault::DiskFull);

    let mut outbox = start_file(file, folder).await;
    let handle = outbox.handle();
    let (done, waiting) = oneshot::channel();
    let (wakeups, marks) = (vec![wakeup(0, 3_000)], vec![mark(0)]);
    handle.send(Accept { wakeups, marks, done }).await.unwrap();
    // Once the task has taken it, its commit is on its way, before any of those that make room.
    while handle.orders.capacity() < ACCEPTS {
        tokio::task::yield_now().await;
    }
    for _ in 0..before {
        let push = outbox.pushes.recv().await.unwrap();
        assert_ne!(*push.sealed, wakeup(0, 3_000));
        outbox.answer(&push, Outcome::Delivered).await;
    }
    assert_eq!(waiting.await, Ok(Ok(())));
    let push = outbox.pushes.recv().await.unwrap();
    assert_eq!(*push.sealed, wakeup(0, 3_000));
    assert_eq!(stored(&outbox.shut_down_now().await).await, (1, vec![mark(0)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_each_is_sent_once() {
    let outbox = start(TempDir::new().unwrap()).await;
    let Started {
        running,
        mut pushes,
        folder,
        ..
    } = outbox;
    let outcomes = running.handle.outcomes.clone();
    let lane = tokio::spawn(async move {
        let mut tokens = HashSet::new();
        while tokens.len() < 5_000 {
            let push = pushes.recv().await.unwrap();
            assert!(tokens.insert(push.sealed.token.clone()));
            outcomes.send((push.id, Outcome::Delivered)).await.unwrap();
        }
    });
    let accepts = (0..5_000).map(|n| running.handle.accept(vec![wakeup(n, 600)], vec![mark(n)]));
    for answer in futures_util::future::join_all(accepts).await {
        answer.unwrap();
    }
    lane.await.unwrap();
    running.shutdown(Instant::now() + Duration::from_secs(600)).await;
    let (entries, marks) = stored(&folder).await;
    assert_eq!((entries, marks.len()), (0, 5_000));
}

#[tokio::test]
async fn bodies_beyond_the_memory_are_sent_from_the_disk() {
    let folder = TempDir::new().unwrap();
    let small = OutboxSettings {
        memory: 20_000,
        ..settings(&folder)
    };
    let mut outbox = start_file(OutboxFile::open(&small, &keys(1)).await.unwrap(), folder).await;
    outbox
        .handle()
        .accept((0..100).map(|n| wakeup(n, 2_800)).collect(), vec![])
        .await
        .unwrap();
    let mut sent = HashSet::new();
    for _ in 0..100 {
        let push = outbox.pushes.recv().await.unwrap();
        assert_eq!(push.body().len(), 2_800);
        sent.insert(push.id);
        outbox.answer(&push, Outcome::Delivered).await;
    }
    assert_eq!(sent.len(), 100);
    assert_eq!(stored(&outbox.shut_down().await).await.0, 0);
}

#[tokio::test]
async fn a_message_without_wakeups_leaves_its_mark() {
    let outbox = start(TempDir::new().unwrap()).await;
    outbox.handle().accept(vec![], vec![mark(1)]).await.unwrap();
    assert_eq!(stored(&outbox.shut_down().await).await, (0, vec![mark(1)]));
}

#[tokio::test]
async fn a_second_notifier_on_the_same_file_is_refused() {
    let outbox = start(TempDir::new().unwrap()).await;
    assert_eq!(
        OutboxFile::open(&settings(&outbox.folder), &keys(1)).await.err(),
        Some(OutboxError::InUse)
    );
}

#[tokio::test]
async fn keys_change_while_wakeups_come_and_go() {
    let mut outbox = start(TempDir::new().unwrap()).await;
    let handle = outbox.handle();
    handle
        .accept((0..700).map(|n| wakeup(n, 60)).collect(), vec![mark(1)])
        .await
        .unwrap();
    let both = Keyring::new([2, 1].map(|key| Secret::new([key; 32])).into()).unwrap();
    let serving = async {
        for _ in 0..350 {
            let push = outbox.pushes.recv().await.unwrap();
            outbox.answer(&push, Outcome::Delivered).await;
        }
        for n in 700..720 {
            handle.accept(vec![wakeup(n, 60)], vec![mark(n)]).await.unwrap();
        }
    };
    let (moved, ()) = tokio::join!(handle.use_keys(&both), serving);
    assert!((1..=701).contains(&moved.unwrap()));
    assert_eq!(handle.use_keys(&both).await, Ok(0));
    assert_eq!(handle.use_keys(&keys(9)).await, Err(OutboxError::ForeignRowKey));
    let folder = outbox.shut_down_now().await;
    let refused = OutboxFile::open(&settings(&folder), &keys(1)).await.err();
    assert_eq!(refused, Some(OutboxError::ForeignRowKey));
    let mut file = OutboxFile::open(&settings(&folder), &keys(2)).await.unwrap();
    let mut marks = 0;
    file.load_marks(0, |_| marks += 1).await.unwrap();
    assert_eq!(marks, 21);
    assert_eq!(file.reader.load_meta(EntryId(0)).await.unwrap().len(), 370);
}

#[tokio::test]
async fn marks_of_a_wall_clock_that_was_ahead_count_as_seen_at_the_start_and_go_with_all_others() {
    let folder = TempDir::new().unwrap();
    let mut file = OutboxFile::open(&settings(&folder), &keys(1)).await.unwrap();
    let ahead = sqlite::Commit {
        marks: vec![mark(1)],
        at_ms: unix_ms() + 365 * 86_400_000,
        ..sqlite::Commit::default()
    };
    file.writer.commit(&ahead).await.unwrap();
    file.reader.close().await;
    file.writer.close().await;

    let mut file = OutboxFile::open(&settings(&folder), &keys(1)).await.unwrap();
    let (start_ms, mut seen) = (unix_ms(), Vec::new());
    file.load_marks(0, |mark| seen.push(mark)).await.unwrap();
    let loaded_ms = unix_ms();
    assert_eq!(seen.len(), 1);
    assert!((start_ms..=loaded_ms).contains(&seen[0].at_ms), "{seen:?}");
    let forget = sqlite::Commit {
        forget_marks_before_ms: Some(loaded_ms + 1),
        ..sqlite::Commit::default()
    };
    file.writer.commit(&forget).await.unwrap();
    assert_eq!(file.reader.load_marks(0).await.unwrap(), []);
}

#[test]
fn settings_have_defaults_and_refuse_unknown_keys() {
    let read = serde_json::from_str::<OutboxSettings>;
    let settings = read(r#"{"max_entries": 5}"#).unwrap();
    assert_eq!(
        (settings.path, settings.max_entries, settings.memory),
        ("data/outbox.db".into(), 5, 67_108_864)
    );
    assert!(read(r#"{"max_entrys": 5}"#).is_err());
}

struct Started {
    running: Running,
    pushes: mpsc::Receiver<Push>,
    effects: mpsc::Receiver<Effect>,
    folder: TempDir,
}

impl Started {
    fn handle(&self) -> OutboxHandle {
        self.running.handle.clone()
    }

    async fn answer(&self, push: &Push, outcome: Outcome) {
        self.running.handle.outcomes.send((push.id, outcome)).await.unwrap();
    }

    /// The credential is healthy from now on.
    async fn deliver_one(&mut self) {
        self.handle().accept(vec![wakeup(0, 60)], vec![]).await.unwrap();
        let push = self.pushes.recv().await.unwrap();
        self.answer(&push, Outcome::Delivered).await;
    }

    /// Everything that was sent has been answered.
    async fn shut_down(self) -> TempDir {
        self.running.shutdown(Instant::now() + Duration::from_secs(600)).await;
        self.folder
    }

    /// Something that was sent has no answer.
    async fn shut_down_now(self) -> TempDir {
        // Outcomes sent before are read before the task hears of the stop only if it runs in between.
        let outcomes = &self.running.handle.outcomes;
        while outcomes.capacity() < outcomes.max_capacity() {
            tokio::task::yield_now().await;
        }
        self.running.shutdown(Instant::now()).await;
        self.folder
    }
}

async fn start(folder: TempDir) -> Started {
    let file = OutboxFile::open(&settings(&folder), &keys(1)).await.unwrap();
    start_file(file, folder).await
}

async fn start_file(file: OutboxFile, folder: TempDir) -> Started {
    let (pushes, lane) = mpsc::channel(500);
    let (effects_out, effects) = mpsc::channel(1);
    let lanes = vec![Lane {
        service: Service::Firebase,
        settings: LaneSettings::with_concurrency(500),
        pushes,
    }];
    let running = file
        .start(lanes, effects_out, Duration::from_secs(3_600))
        .await
        .unwrap();
    Started {
        running,
        pushes: lane,
        effects,
        folder,
    }
}

fn keys(number: u8) -> Keyring {
    Keyring::new(vec![Secret::new([number; 32])]).unwrap()
}

fn settings(folder: &TempDir) -> OutboxSettings {
    OutboxSettings {
        path: folder.path().join("outbox.db"),
        ..OutboxSettings::default()
    }
}

/// How many wakeups the file holds, and its marks.
async fn stored(folder: &TempDir) -> (usize, Vec<Mark>) {
    let mut file = OutboxFile::open(&settings(folder), &keys(1)).await.unwrap();
    let mut marks = Vec::new();
    file.load_marks(0, |seen| marks.push(seen.mark)).await.unwrap();
    (file.reader.load_meta(EntryId(0)).await.unwrap().len(), marks)
}

fn stored_entry(id: i64) -> Entry {
    Entry {
        id: EntryId(id),
        push_id: PushId([1; 16]),
        sealed: Arc::new(wakeup(id.unsigned_abs(), 3_000)),
        deadline_ms: i64::MAX,
        attempt: 0,
    }
}

fn mark(n: u64) -> Mark {
    u128::from(n).to_le_bytes()
}

fn wakeup(n: u64, size: usize) -> Sealed {
    Sealed {
        service: Service::Firebase,
        token: DeviceToken::new(format!("token-{n}").into_bytes()),
        body: vec![n as u8; size].into(),
        fallback: (size > 600).then(|| vec![9; 552].into()),
        class: Class::Visible,
        priority: Priority::High,
        expires_at_ms: i64::MAX,
    }
}
