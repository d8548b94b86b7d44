//! One oxend: a link that is kept, a list on request, a word when there is a new block.
//!
//! In: an address. Out: node lists; `refresh` is rung at each block. Never: trusts it more than its text allows.

use super::super::link::{self, FromLink, LinkHandle, LinkId};
use super::{SourceFault, parse, random};
use crate::watcher::link::LinkSettings;
use bytes::Bytes;
use notifier_core::omq::{Address, Identity};
use notifier_core::swarm::NodeList;
use quietline_shared::backoff::Backoff;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep, timeout};

pub(super) struct OxendContext {
    pub link: Arc<LinkSettings>,
    pub identity: Arc<Identity>,
    pub refresh: Arc<Notify>,
}

type Answer = oneshot::Sender<Result<Bytes, SourceFault>>;

pub(super) struct Oxend {
    questions: mpsc::Sender<Answer>,
    _task: JoinSet<()>,
}

impl Oxend {
    pub fn spawn(address: Address, context: &Arc<OxendContext>) -> Self {
        let (questions, inbox) = mpsc::channel(4);
        let mut task = JoinSet::new();
        task.spawn(keep(address, Arc::clone(context), inbox));
        Self { questions, _task: task }
    }

    pub async fn list(&self) -> Result<NodeList, SourceFault> {
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(answer).map_err(|_| SourceFault::Unreachable)?;
        let text = timeout(PATIENCE, answered)
            .await
            .map_err(|_| SourceFault::Timeout)?
            .map_err(|_| SourceFault::Unreachable)??;
        parse(text).await
    }
}

/// One link after the other, for ever.
async fn keep(address: Address, context: Arc<OxendContext>, mut questions: mpsc::Receiver<Answer>) {
    let mut failures = 0u32;
    for number in 0.. {
        let (events, mut inbox) = mpsc::channel(64);
        let (notifies, mut ignored) = mpsc::channel(1);
        let handle = link::spawn(
            LinkId(number),
            address.clone(),
            Arc::clone(&context.link),
            Arc::clone(&context.identity),
            events,
            notifies,
        );
        let started = Instant::now();
        let worked = tokio::select! {
            worked = talk(&handle, &mut inbox, &mut questions, &context.refresh) => worked,
            // Nobody asked an oxend for messages. How the link ends is heard in `talk` alone.
            worked = async {
                while ignored.recv().await.is_some() {}
                std::future::pending().await
            } => worked,
        };
        drop(handle);
        failures = failures_after(failures, worked, started.elapsed());
        if failures == 1 {
            tracing::info!("an oxend cannot be reached");
        }
        if failures == 0 {
            continue;
        }
        let mut pause = std::pin::pin!(sleep(REDIAL.delay(failures - 1, random())));
        loop {
            tokio::select! {
                () = &mut pause => break,
                question = questions.recv() => match question {
                    Some(answer) => _ = answer.send(Err(SourceFault::Unreachable)),
                    None => return,
                },
            }
        }
    }
}

/// One that answers and hangs up at once is no better than one that cannot be reached.
fn failures_after(failures: u32, worked: bool, lived: Duration) -> u32 {
    if worked && lived >= GOOD_LIFE {
        0
    } else {
        failures.saturating_add(1)
    }
}

/// The life of one link. Whether it ever worked.
async fn talk(
    handle: &LinkHandle,
    events: &mut mpsc::Receiver<(LinkId, FromLink)>,
    questions: &mut mpsc::Receiver<Answer>,
    refresh: &Notify,
) -> bool {
    let mut works = false;
    let mut asked: Option<(u64, Answer)> = None;
    let mut last_request = PING;
    let mut subscribe = interval_at(Instant::now() + SUBSCRIBE_EVERY, SUBSCRIBE_EVERY);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some((_, FromLink::Up)) => {
                    if handle.request(PING, "ping.ping", None).is_err() {
                        return works;
                    }
                }
                Some((_, FromLink::Reply { request: PING, result })) => {
                    if result.is_err() {
                        return works;
                    }
                    works = true;
                    let _ = handle.request(SUBSCRIBE, "sub.block", None);
                    // Blocks that came while there was no link are not announced again.
                    refresh.notify_one();
                }
                // OK and ALREADY mean the same; without either the refresh interval remains.
                Some((_, FromLink::Reply { request: SUBSCRIBE, result })) => {
                    if result.is_err() {
                        metrics::counter!("watch_block_subscription_failures_total").increment(1);
                    }
                }
                Some((_, FromLink::Reply { request, result })) => {
                    if let Some((_, answer)) = asked.take_if(|(id, _)| *id == request) {
                        let text = match result.as_deref() {
                            Ok([code, text]) if code.as_ref() == b"200" => Ok(text.clone()),
                            Ok(_) | Err(_) => Err(SourceFault::Refused),
                        };
                        let _ = answer.send(text);
                    }
                }
                Some((_, FromLink::BlockNotify)) => refresh.notify_one(),
                Some((_, FromLink::Down(_))) | None => return works,
            },
            // Before the ping is answered a question waits; its asker has a deadline.
            question = questions.recv(), if works && asked.is_none() => {
                let Some(answer) = question else { return works };
                last_request = if last_request < FIRST_LIST { FIRST_LIST } else { last_request + 1 };
                let request = handle.request(last_request, "rpc.get_service_nodes", Some(Bytes::from_static(QUESTION)));
                if request.is_err() {
                    let _ = answer.send(Err(SourceFault::Unreachable));
                } else {
                    asked = Some((last_request, answer));
                }
            },
            _ = subscribe.tick(), if works => {
                let _ = handle.request(SUBSCRIBE, "sub.block", None);
            }
        }
        // Who asked may have lost patience.
        if asked.as_ref().is_some_and(|(_, answer)| answer.is_closed()) {
            asked = None;
        }
    }
}

const PING: u64 = 0;
const SUBSCRIBE: u64 = 1;
const FIRST_LIST: u64 = 2;

/// Asked for active nodes and the six fields that are used.
const QUESTION: &[u8] = br#"{"active_only":true,"fields":{"pubkey_x25519":true,"public_ip":true,"storage_lmq_port":true,"swarm_id":true,"block_hash":true,"height":true}}"#;
/// As the incumbent; oxend forgets after 30 minutes, or when it restarts.
const SUBSCRIBE_EVERY: Duration = Duration::from_secs(30);
/// A dial and a request.
const PATIENCE: Duration = Duration::from_secs(20);
/// A link that worked and lived this long ended by chance: the next is dialed at once.
const GOOD_LIFE: Duration = Duration::from_secs(30);
const REDIAL: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(30),
};

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::redact::Secret;
    use tokio::net::UnixListener;

    #[test]
    fn only_a_link_that_worked_and_lived_ends_a_row_of_failures() {
        assert_eq!(failures_after(3, true, GOOD_LIFE), 0);
        assert_eq!(failures_after(3, true, Duration::from_secs(29)), 4);
        assert_eq!(failures_after(3, false, Duration::from_secs(3600)), 4);
        assert_eq!(failures_after(0, true, Duration::ZERO), 1);
    }

    #[tokio::test]
    async fn an_oxend_that_hangs_up_is_dialed_with_growing_pauses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("oxend");
        let listener = UnixListener::bind(&path).unwrap();
        let context = Arc::new(OxendContext {
            link: Arc::default(),
            identity: Arc::new(Identity::new(Secret::new([7; 32]))),
            refresh: Arc::new(Notify::new()),
        });
        let started = Instant::now();
        let _oxend = Oxend::spawn(format!("ipc://{}", path.display()).parse().unwrap(), &context);
        for _ in 0..4 {
            drop(
                timeout(Duration::from_secs(60), listener.accept())
                    .await
                    .unwrap()
                    .unwrap(),
            );
        }
        // Busy machines make pauses longer, never shorter.
        let least: Duration = (0..3).map(|attempt| REDIAL.delay(attempt, 0)).sum();
        assert_eq!(least, Duration::from_millis(3500));
        assert!(started.elapsed() >= least, "{:?}", started.elapsed());
    }
}
