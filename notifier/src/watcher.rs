//! Drives the watch: links to the storage nodes, the node list, the records that renewals need.
//!
//! In: changed accounts, records on request. Out: `Incoming` notifications with the node that sent them, the swarm ring.
//! Never: reads a notification, drops one of a node in charge, or waits for a store.

pub mod link;
pub mod nodes;
#[cfg(test)]
mod fakes;
mod routes;
mod settings;

pub use nodes::offered_groups;
pub use settings::{OxendSettings, SeedSettings, Settings};

use crate::keyring::Keyring;
use bytes::Bytes;
use link::{FromLink, LinkHandle, LinkId, LinkSettings, Notify};
use nodes::{Nodes, NodesSettings, SeedSource};
use notifier_core::account::AccountId;
use notifier_core::omq::{Address, Identity, RequestFailure};
use notifier_core::swarm::{Node, NodeKey, SwarmId, SwarmRing};
use notifier_core::watch::{Action, BatchId, Coverage, LinkEnd, RecordFault, ReplyFault, Watch, WatchSettings};
use routes::{Routes, SwarmLinks};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

/// What the app tells the watcher.
pub enum Command {
    /// A new account, or one with a new record. Without `record` it is read from the source.
    AccountChanged {
        account: Box<AccountId>,
        record: Option<Bytes>,
    },
    /// Its last device is gone.
    AccountRemoved { account: Box<AccountId> },
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AccountChanged { record, .. } => {
                write!(f, "AccountChanged({:?} bytes)", record.as_ref().map(Bytes::len))
            }
            Self::AccountRemoved { .. } => f.write_str("AccountRemoved(<private>)"),
        }
    }
}

/// One notification of a node that is watched for this swarm.
pub struct Incoming {
    pub node: NodeKey,
    pub swarm: SwarmId,
    /// Whether another node of the swarm could report the same message.
    pub second_link_up: bool,
    /// Not parsed.
    pub body: Bytes,
    /// Its share of [`MOST_BYTES`], given back when the notification is dropped.
    _room: OwnedSemaphorePermit,
}

#[cfg(test)]
impl Incoming {
    /// One that waits alone.
    pub fn alone(node: NodeKey, swarm: SwarmId, body: Bytes) -> Self {
        Self {
            node,
            swarm,
            second_link_up: false,
            body,
            _room: Arc::new(Semaphore::new(1)).try_acquire_owned().expect("it has a place"),
        }
    }
}

/// Where the records of accounts are read when they are renewed.
pub trait RecordSource: Send + Sync + 'static {
    /// Every record of each account, as dicts for `monitor.messages`. An account without one may be left out.
    fn records(
        &self,
        accounts: Vec<AccountId>,
    ) -> impl Future<Output = Result<Vec<(AccountId, Vec<Bytes>)>, RecordsUnavailable>> + Send;
}

/// The store cannot be read now; it is asked again in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the records cannot be read now")]
pub struct RecordsUnavailable;

/// What the watcher runs with.
pub struct Parts<S> {
    pub watch: WatchSettings,
    pub link: LinkSettings,
    /// The key of all links. Two notifiers must never share one.
    pub identity: Arc<Identity>,
    pub oxends: Vec<Address>,
    pub seeds: Vec<SeedSource>,
    pub node_list_file: std::path::PathBuf,
    /// What the kept node list is sealed under.
    pub keys: watch::Receiver<Arc<Keyring>>,
    pub refresh_interval: Duration,
    pub max_list_change: f64,
    pub records: S,
    /// Where notifications go. While it is full the nodes wait.
    pub incoming: mpsc::Sender<Incoming>,
}

/// The running watcher. It stops, and hangs up, when this is dropped.
pub struct Watcher {
    pub commands: mpsc::Sender<Command>,
    /// The newest ring; empty until there is a node list.
    pub ring: watch::Receiver<Arc<SwarmRing>>,
    /// Renewed every second.
    pub coverage: watch::Receiver<Coverage>,
    _tasks: JoinSet<()>,
}

/// For the start: accounts with their record, streamed. It is not read while too much waits for links, and not before there is a node
/// list, so the stream waits by itself. It must end: until then the watcher remembers who was removed.
pub type Stream = mpsc::Sender<(AccountId, Bytes)>;

pub fn spawn<S: RecordSource>(parts: Parts<S>) -> (Watcher, Stream) {
    let (commands, command_inbox) = mpsc::channel(4096);
    let (stream, stream_inbox) = mpsc::channel(4096);
    let (publish_ring, ring) = watch::channel(Arc::default());
    let (publish_coverage, coverage) = watch::channel(Coverage::default());
    let (events, event_inbox) = mpsc::channel(4096);
    let (notifies, notify_inbox) = mpsc::channel(1024);
    let (loaded, loaded_inbox) = mpsc::channel(64);
    let nodes = Nodes::spawn(NodesSettings {
        oxends: parts.oxends,
        seeds: parts.seeds,
        file: parts.node_list_file,
        keys: parts.keys,
        refresh_interval: parts.refresh_interval,
        max_list_change: parts.max_list_change,
        link: Arc::new(LinkSettings {
            max_frame: NODE_LIST_FRAME,
            ..parts.link
        }),
        identity: Arc::clone(&parts.identity),
    });
    let routes = Arc::new(Routes::default());
    let driver = Driver {
        watch: Watch::new(parts.watch, *parts.identity.public(), nodes::random()),
        link: Arc::new(parts.link),
        identity: parts.identity,
        links: HashMap::new(),
        link_by_node: HashMap::new(),
        swarm_links: HashMap::new(),
        last_link: 0,
        routes: Arc::clone(&routes),
        events,
        notifies,
        records: Arc::new(parts.records),
        loaded,
        loads: JoinSet::new(),
        publish_ring,
        publish_coverage,
        has_nodes: false,
        removed_while_streaming: Some(HashSet::new()),
        complaints: Complaints::default(),
    };
    let inboxes = Inboxes {
        commands: command_inbox,
        stream: stream_inbox,
        events: event_inbox,
        loaded: loaded_inbox,
    };
    let mut tasks = JoinSet::new();
    // Not among the tasks that end with the watcher: what links gave before they were hung up still goes on.
    tokio::spawn(forward(notify_inbox, routes, parts.incoming));
    tasks.spawn(driver.run(nodes, inboxes));
    let watcher = Watcher {
        commands,
        ring,
        coverage,
        _tasks: tasks,
    };
    (watcher, stream)
}

/// Gives each notification its sender's name. One hop for all links, so that the app needs no map of them.
async fn forward(mut inbox: mpsc::Receiver<Notify>, routes: Arc<Routes>, incoming: mpsc::Sender<Incoming>) {
    let mut batch = Vec::with_capacity(BATCH);
    let room = Arc::new(Semaphore::new(MOST_BYTES as usize));
    while inbox.recv_many(&mut batch, BATCH).await > 0 {
        for Notify { link, body } in batch.drain(..) {
            let Some(sender) = routes.sender(link) else {
                metrics::counter!("watch_notifications_unrouted_total").increment(1);
                continue;
            };
            let bytes = u32::try_from(body.len()).unwrap_or(MOST_BYTES).clamp(1, MOST_BYTES);
            // Nobody closes it.
            let Ok(room) = Arc::clone(&room).acquire_many_owned(bytes).await else {
                return;
            };
            let notification = Incoming {
                node: sender.node,
                swarm: sender.swarm,
                second_link_up: sender.second_link_up,
                body,
                _room: room,
            };
            if incoming.send(notification).await.is_err() {
                return;
            }
        }
    }
}

type Loaded = (BatchId, Result<Vec<(AccountId, Vec<Bytes>)>, RecordsUnavailable>);

struct Inboxes {
    commands: mpsc::Receiver<Command>,
    stream: mpsc::Receiver<(AccountId, Bytes)>,
    events: mpsc::Receiver<(LinkId, FromLink)>,
    loaded: mpsc::Receiver<Loaded>,
}

struct Driver<S> {
    watch: Watch,
    link: Arc<LinkSettings>,
    identity: Arc<Identity>,
    links: HashMap<LinkId, Link>,
    link_by_node: HashMap<NodeKey, LinkId>,
    swarm_links: HashMap<SwarmId, Arc<SwarmLinks>>,
    last_link: u64,
    routes: Arc<Routes>,
    events: mpsc::Sender<(LinkId, FromLink)>,
    notifies: mpsc::Sender<Notify>,
    records: Arc<S>,
    loaded: mpsc::Sender<Loaded>,
    loads: JoinSet<()>,
    publish_ring: watch::Sender<Arc<SwarmRing>>,
    publish_coverage: watch::Sender<Coverage>,
    has_nodes: bool,
    /// Accounts removed while the stream may still bring them. `None` = it has ended.
    removed_while_streaming: Option<HashSet<AccountId>>,
    complaints: Complaints,
}

struct Link {
    node: NodeKey,
    handle: LinkHandle,
    up: bool,
}

impl<S: RecordSource> Driver<S> {
    async fn run(mut self, mut nodes: Nodes, mut inboxes: Inboxes) {
        let mut report = interval(REPORT_EVERY);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut commands, mut stream, mut events, mut loaded) = (vec![], vec![], vec![], vec![]);
        let mut streaming = true;
        loop {
            self.act();
            let deadline = self.watch.poll_timeout();
            let may_stream = streaming && self.has_nodes && !self.watch.is_congested();
            tokio::select! {
                count = inboxes.events.recv_many(&mut events, BATCH) => {
                    // Never 0: a sender is ours.
                    debug_assert!(count > 0);
                    let now = Instant::now();
                    events.drain(..).for_each(|(link, event)| self.handle_link(link, event, now));
                }
                count = inboxes.commands.recv_many(&mut commands, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    let now = Instant::now();
                    commands.drain(..).for_each(|command| self.handle_command(command, now));
                }
                count = inboxes.stream.recv_many(&mut stream, BATCH), if may_stream => {
                    streaming = count > 0;
                    if !streaming {
                        self.removed_while_streaming = None;
                        // Accounts that passed through stay in both until others do, and none will.
                        (stream, inboxes.stream) = (Vec::new(), mpsc::channel(1).1);
                    }
                    let now = Instant::now();
                    for (account, record) in stream.drain(..) {
                        if self.removed_while_streaming.as_ref().is_some_and(|removed| removed.contains(&account)) {
                            continue;
                        }
                        self.watch.handle_account_changed(account, Some(record), now);
                    }
                }
                _ = inboxes.loaded.recv_many(&mut loaded, BATCH) => {
                    let now = Instant::now();
                    for (batch, records) in loaded.drain(..) {
                        match records {
                            Ok(records) => self.watch.handle_records(batch, records, now),
                            Err(RecordsUnavailable) => self.watch.handle_records_failed(batch, now),
                        }
                    }
                }
                changed = nodes.lists.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_list(&mut nodes);
                }
                () = sleep_until(deadline.unwrap_or_else(|| Instant::now() + REPORT_EVERY).into()) => {
                    self.watch.handle_timeout(Instant::now());
                }
                _ = report.tick() => self.report(&nodes),
            }
            while self.loads.try_join_next().is_some() {}
        }
    }

    fn take_list(&mut self, nodes: &mut Nodes) {
        let Some(list) = nodes.lists.borrow_and_update().clone() else {
            return;
        };
        let ring = Arc::new(SwarmRing::new(&list));
        metrics::gauge!("watch_nodes").set(count(list.nodes.len()));
        self.has_nodes = true;
        self.publish_ring.send_replace(Arc::clone(&ring));
        self.watch.handle_nodes(ring, Instant::now());
        self.swarm_links.retain(|_, links| Arc::strong_count(links) > 1);
    }

    fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::AccountChanged { account, record } => {
                if let Some(removed) = &mut self.removed_while_streaming {
                    removed.remove(&account);
                }
                self.watch.handle_account_changed(*account, record, now);
            }
            Command::AccountRemoved { account } => {
                if let Some(removed) = &mut self.removed_while_streaming {
                    removed.insert(*account);
                }
                self.watch.handle_account_removed(&account);
            }
        }
    }

    fn handle_link(&mut self, id: LinkId, event: FromLink, now: Instant) {
        // A link that was hung up has nothing more to say.
        let Some(link) = self.links.get_mut(&id) else { return };
        let node = link.node;
        match event {
            FromLink::Up => {
                link.up = true;
                self.routes.set_up(id);
                self.watch.handle_link_up(node, now);
            }
            FromLink::Down(reason) => {
                let end = if link.up { LinkEnd::Lost } else { LinkEnd::DialFailed };
                metrics::counter!("watch_link_ends_total", "reason" => reason.label()).increment(1);
                self.links.remove(&id);
                self.link_by_node.remove(&node);
                self.routes.retire(id, now);
                self.watch.handle_link_down(node, end, now);
            }
            FromLink::Reply { request, result } => {
                let result = result.as_deref().map_err(|failure| match failure {
                    RequestFailure::TimedOut => ReplyFault::Timeout,
                    _ => ReplyFault::Refused,
                });
                self.watch.handle_reply(node, request, result, now);
            }
            // Blocks are an oxend's business.
            FromLink::BlockNotify => {}
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.watch.poll_action() {
            match action {
                Action::Dial(node) => self.dial(&node),
                Action::Hang(node) => {
                    if let Some(id) = self.link_by_node.remove(&node) {
                        self.links.remove(&id);
                        self.routes.retire(id, Instant::now());
                    }
                }
                Action::Request { node, request, body } => {
                    let link = self.link_by_node.get(&node).and_then(|id| self.links.get(id));
                    let sent =
                        link.is_some_and(|link| link.handle.request(request, "monitor.messages", Some(body)).is_ok());
                    if !sent {
                        self.watch
                            .handle_reply(node, request, Err(ReplyFault::NotSent), Instant::now());
                    }
                }
                Action::NeedRecords { batch, accounts } => self.load(batch, accounts),
            }
        }
    }

    fn dial(&mut self, node: &Node) {
        self.last_link += 1;
        let id = LinkId(self.last_link);
        let links = Arc::clone(self.swarm_links.entry(node.swarm).or_default());
        self.routes.add(id, node.key, node.swarm, links);
        let handle = link::spawn(
            id,
            Address::curve(node.ip.into(), node.port, node.key.0),
            Arc::clone(&self.link),
            Arc::clone(&self.identity),
            self.events.clone(),
            self.notifies.clone(),
        );
        let link = Link {
            node: node.key,
            handle,
            up: false,
        };
        self.links.insert(id, link);
        self.link_by_node.insert(node.key, id);
    }

    /// At most as many at once as the watch asks for.
    fn load(&mut self, batch: BatchId, accounts: Vec<AccountId>) {
        let (source, loaded) = (Arc::clone(&self.records), self.loaded.clone());
        self.loads.spawn(async move {
            let mut answer = Answer {
                batch,
                loaded,
                records: Err(RecordsUnavailable),
            };
            if let Ok(records) = timeout(LOAD_TIMEOUT, source.records(accounts)).await {
                answer.records = records;
            }
        });
    }

    fn report(&mut self, nodes: &Nodes) {
        self.routes.forget_retired(Instant::now());
        if self
            .complaints
            .are_due(self.watch.counters().wrong_swarm(), Instant::now())
        {
            nodes.refresh();
        }
        let coverage = self.watch.coverage();
        self.publish_coverage
            .send_if_modified(|old| std::mem::replace(old, coverage) != coverage);
        metrics::gauge!("watch_accounts").set(count(coverage.accounts));
        metrics::gauge!("watch_accounts_covered").set(count(coverage.covered));
        metrics::gauge!("watch_swarms").set(count(coverage.swarms));
        metrics::gauge!("watch_swarms_linked").set(count(coverage.swarms_linked));
        metrics::gauge!("watch_links").set(count(coverage.links_up));
        metrics::gauge!("watch_links_wanted").set(count(coverage.links_wanted));
        metrics::gauge!("watch_requests_under_way").set(count(coverage.requests_in_flight));
        metrics::gauge!("watch_pending_bytes").set(count(coverage.pending_bytes));
        let totals = self.watch.counters();
        metrics::counter!("watch_dials_total").absolute(totals.dials);
        metrics::counter!("watch_dials_failed_total").absolute(totals.dials_failed);
        metrics::counter!("watch_links_lost_total").absolute(totals.links_lost);
        metrics::counter!("watch_links_deaf_total").absolute(totals.links_deaf);
        metrics::counter!("watch_requests_total").absolute(totals.requests);
        metrics::counter!("watch_records_sent_total").absolute(totals.records_sent);
        metrics::counter!("watch_records_accepted_total").absolute(totals.records_accepted);
        for (fault, total) in RecordFault::ALL.into_iter().zip(totals.records_refused) {
            metrics::counter!("watch_records_refused_total", "reason" => fault.label()).absolute(total);
        }
        for (fault, total) in ReplyFault::ALL.into_iter().zip(totals.requests_failed) {
            metrics::counter!("watch_requests_failed_total", "reason" => fault.label()).absolute(total);
        }
        metrics::counter!("watch_replies_unreadable_total").absolute(totals.replies_unreadable);
        metrics::counter!("watch_replies_unasked_total").absolute(totals.replies_unasked);
        metrics::counter!("watch_retries_total").absolute(totals.retries);
        metrics::counter!("watch_deltas_dropped_total").absolute(totals.deltas_dropped);
        metrics::counter!("watch_loads_total").absolute(totals.loads);
        metrics::counter!("watch_loads_failed_total").absolute(totals.loads_failed);
    }
}

/// Records refused for the wrong swarm: a reason to ask for a new node list, but not at a node's pleasure.
#[derive(Default)]
struct Complaints {
    /// How many there were when the list was last asked for because of them.
    heard: u64,
    heard_at: Option<Instant>,
}

impl Complaints {
    /// `total`: since the start.
    fn are_due(&mut self, total: u64, now: Instant) -> bool {
        let rested = self
            .heard_at
            .is_none_or(|heard_at| now.saturating_duration_since(heard_at) >= COMPLAINTS_EVERY);
        let due = rested && total > self.heard;
        if due {
            self.heard = total;
            self.heard_at = Some(now);
        }
        due
    }
}

/// The answer to one reading, given even if the reading panics or is cut off: the watch waits for each.
struct Answer {
    batch: BatchId,
    loaded: mpsc::Sender<Loaded>,
    records: Result<Vec<(AccountId, Vec<Bytes>)>, RecordsUnavailable>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let records = std::mem::replace(&mut self.records, Err(RecordsUnavailable));
        // Room for more than are ever under way.
        let _ = self.loaded.try_send((self.batch, records));
    }
}

/// For a gauge: exact up to 2^53.
fn count(value: usize) -> f64 {
    value as f64
}

/// Events taken at once.
const BATCH: usize = 256;
/// Of notifications that wait for the app, bytes: some 100,000 of an ordinary size.
const MOST_BYTES: u32 = 64 << 20;
const REPORT_EVERY: Duration = Duration::from_secs(1);
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);
const COMPLAINTS_EVERY: Duration = Duration::from_secs(60);
/// Largest frame of an oxend, bytes: the list of a network five times as large.
const NODE_LIST_FRAME: usize = 10 << 20;

#[cfg(test)]
mod tests;
