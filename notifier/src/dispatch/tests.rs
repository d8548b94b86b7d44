//! This stage against fakes on real sockets: TLS, HTTP/2, and what can go wrong with them.

mod apns;
mod bad_input;
mod connections;
mod fcm;
mod huawei;
mod table;
mod webpush;

use super::fake::server::{Handler, Received, Replied, Server, reply};
use super::fake::{Files, eager, push};
use super::*;
use futures_util::FutureExt;
use notifier_core::outbox::RetryReason;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Long enough for anything that should happen.
const LONG: Duration = Duration::from_secs(60);

type Log = Arc<Mutex<Vec<Received>>>;

/// Answers with what `answer` makes of the request and of how many came before it.
fn handler(answer: impl Fn(&Received, usize) -> Replied + Send + Sync + 'static) -> (Handler, Log) {
    let log = Log::default();
    let kept = Arc::clone(&log);
    let handler: Handler = Arc::new(move |received| {
        let mut log = kept.lock().unwrap();
        let answer = answer(&received, log.len());
        log.push(received);
        async { answer }.boxed()
    });
    (handler, log)
}

fn ok(_: &Received, _: usize) -> Replied {
    reply(200, "")
}

/// Never answers.
fn silent() -> Handler {
    Arc::new(|_| std::future::pending().boxed())
}

fn apns(settings: &ApnsSettings, timeout: Duration) -> Exchange<Apns> {
    Apns::open(Service::Apns, settings, timeout, eager).unwrap()
}

fn one() -> Push {
    push(1, Service::Apns, &[0xAB; 32])
}

async fn send<D: Deliver>(provider: &D, push: &Push, timeout: Duration) -> Outcome {
    provider.push(push, Instant::now() + timeout).await
}

fn reason(outcome: &Outcome) -> Option<RetryReason> {
    match outcome {
        Outcome::Retry { reason, .. } => Some(*reason),
        _ => None,
    }
}

/// There was no connection, or not for long enough.
fn is_unreached(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Held { .. }) || reason(outcome) == Some(RetryReason::Connection)
}

/// Sends all and returns the outcomes in the order of the entries.
async fn through_lane<D: Deliver>(provider: Arc<D>, pushes: Vec<Push>, concurrency: usize) -> Vec<(EntryId, Outcome)> {
    let (jobs, taken) = mpsc::channel(8);
    let (outcomes, mut answered) = mpsc::channel(8);
    let feed = async move {
        for push in pushes {
            jobs.send(push).await.unwrap();
        }
    };
    let lane = run_lane(provider, taken, outcomes, concurrency, LONG, std::future::pending());
    let collect = async {
        let mut found = Vec::new();
        while let Some(one) = answered.recv().await {
            found.push(one);
        }
        found.sort_by_key(|(entry, _)| *entry);
        found
    };
    let ((), (), found) = tokio::join!(feed, lane, collect);
    found
}

#[tokio::test]
async fn a_lane_ends_what_is_under_way_and_takes_nothing_new_after_shutdown() {
    struct Gate(tokio::sync::Semaphore, tokio::sync::Notify);
    impl Deliver for Gate {
        fn service(&self) -> Service {
            Service::Apns
        }

        async fn push(&self, _: &Push, _: Instant) -> Outcome {
            self.1.notify_one();
            self.0.acquire().await.unwrap().forget();
            Outcome::Delivered
        }
    }
    let gate = Arc::new(Gate(tokio::sync::Semaphore::new(0), tokio::sync::Notify::new()));
    let (jobs, taken) = mpsc::channel(8);
    let (outcomes, mut answered) = mpsc::channel(8);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let lane = tokio::spawn(run_lane(Arc::clone(&gate), taken, outcomes, 1, LONG, shutdown));
    for entry in 1..=3 {
        jobs.send(push(entry, Service::Apns, b"t")).await.unwrap();
    }
    gate.1.notified().await;
    stop.send(()).unwrap();
    gate.0.add_permits(3);
    lane.await.unwrap();
    // The first was under way; with one at a time, the others at most followed before the lane heard of the shutdown.
    assert_eq!(answered.recv().await, Some((EntryId(1), Outcome::Delivered)));
    assert!(jobs.is_closed());
}

#[tokio::test]
async fn a_lane_never_has_more_under_way_than_its_limit() {
    #[derive(Default)]
    struct Count {
        now: std::sync::atomic::AtomicUsize,
        most: std::sync::atomic::AtomicUsize,
    }
    impl Deliver for Count {
        fn service(&self) -> Service {
            Service::Apns
        }

        async fn push(&self, _: &Push, _: Instant) -> Outcome {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            self.now.fetch_sub(1, Ordering::SeqCst);
            Outcome::Delivered
        }
    }
    let count = Arc::new(Count::default());
    let pushes = (0..500).map(|entry| push(entry, Service::Apns, b"t")).collect();
    let found = through_lane(Arc::clone(&count), pushes, 7).await;
    assert_eq!(found.len(), 500);
    assert_eq!(count.most.load(Ordering::SeqCst), 7);
}

#[tokio::test]
async fn a_push_after_its_deadline_is_not_sent() {
    let files = Files::new();
    let (handler, log) = handler(ok);
    let server = fake::server::Server::start(files.root.server(2090, &["h2"], false), 100, handler).await;
    let provider = Arc::new(apns(&files.apns(server.port), LONG));
    let late = Push {
        deadline_ms: 1,
        ..one()
    };
    let found = through_lane(provider, vec![late], 1).await;
    assert_eq!(found[0].1, Outcome::Expired);
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_a_push_that_had_all_its_time_blames_the_provider() {
    let files = Files::new();
    let server = fake::server::Server::start(files.root.server(2090, &["h2"], false), 100, silent()).await;
    let provider = Arc::new(apns(&files.apns(server.port), LONG));
    for (left_ms, timeout, expected) in [
        (50, LONG, Outcome::Expired),
        (
            3_600_000,
            Duration::from_millis(50),
            Outcome::Retry {
                after: None,
                reason: RetryReason::Timeout,
            },
        ),
    ] {
        let push = Push {
            deadline_ms: unix_ms() + left_ms,
            ..one()
        };
        let (jobs, taken) = mpsc::channel(1);
        let (outcomes, mut answered) = mpsc::channel(1);
        jobs.send(push).await.unwrap();
        drop(jobs);
        run_lane(
            Arc::clone(&provider),
            taken,
            outcomes,
            1,
            timeout,
            std::future::pending(),
        )
        .await;
        assert_eq!(answered.recv().await.unwrap().1, expected);
    }
}
