//! One service's lane: takes jobs, keeps so many under way, gives back outcomes.
//!
//! In: `Push`es of one service. Out: one `Outcome` for each, in the order of the answers. Never: decides when to try again, or lets one
//! push wait for another.

use super::{Push, unix_ms};
use futures_util::stream::{FuturesUnordered, StreamExt};
use notifier_core::account::Service;
use notifier_core::outbox::{EntryId, Outcome, RetryReason};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Brings pushes to one service.
pub trait Deliver: Send + Sync {
    fn service(&self) -> Service;

    /// Sends one push and tells what the answer means, not later than at `deadline`.
    fn push(&self, push: &Push, deadline: Instant) -> impl Future<Output = Outcome> + Send;
}

/// Sends the jobs of one service until `shutdown` or the end of `jobs`, and then ends what is under way.
///
/// At most `concurrency` pushes are under way; each takes at most `timeout`, and less if its deadline is nearer.
pub async fn run_lane<D: Deliver, J: Into<Push> + Send>(
    sender: Arc<D>,
    mut jobs: mpsc::Receiver<J>,
    outcomes: mpsc::Sender<(EntryId, Outcome)>,
    concurrency: usize,
    timeout: Duration,
    shutdown: impl Future<Output = ()> + Send,
) {
    let service = sender.service().name();
    let seconds = metrics::histogram!("dispatch_push_seconds", "service" => service);
    let in_flight = metrics::gauge!("dispatch_in_flight", "service" => service);
    let mut under_way = FuturesUnordered::new();
    let mut shutdown = pin!(shutdown);
    let mut is_open = true;
    loop {
        tokio::select! {
            biased;
            Some(done) = under_way.next(), if !under_way.is_empty() => {
                in_flight.decrement(1.0);
                if outcomes.send(done).await.is_err() {
                    return;
                }
            }
            () = &mut shutdown, if is_open => is_open = false,
            job = jobs.recv(), if is_open && under_way.len() < concurrency => match job {
                None => is_open = false,
                Some(job) => {
                    let push: Push = job.into();
                    in_flight.increment(1.0);
                    let (sender, seconds) = (&sender, &seconds);
                    under_way.push(async move {
                        let start = Instant::now();
                        let patience = push.patience(timeout, unix_ms());
                        let outcome = match sender.push(&push, start + patience).await {
                            Outcome::Retry {
                                reason: RetryReason::Timeout,
                                ..
                            } if patience < timeout => Outcome::Expired,
                            outcome => outcome,
                        };
                        seconds.record(start.elapsed().as_secs_f64());
                        (push.entry, outcome)
                    });
                }
            },
            else => return,
        }
    }
}
