//! Fake storage nodes: many OxenMQ listeners on libzmq, one thread for up to 900 of them.
//!
//! In: `monitor.messages` over CURVE; commands from the lab (store a message, misbehave, stop, start). Out: answers and
//! `notify.message` pushes. Never: stores messages, or checks which swarm it is in (neither does storage server 2.8.0).

pub mod monitor;
mod room;

use crate::bt;
use crate::doorbell::{Caller, doorbell};
use crate::sodium;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use room::{Node, Room};
pub(crate) use room::{oxenmq_options, receive, send_to};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Notify;
use zmq::Context;

/// Sockets of one libzmq context; its default limit is 1,023.
const NODES_PER_THREAD: usize = 900;

/// How all nodes of a fleet behave.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Check one signature in so many; 1 checks all, 0 none.
    pub verify_one_in: u32,
    /// libzmq heartbeats as OxenMQ sets them: interval, timeout.
    pub heartbeat: Duration,
    pub heartbeat_timeout: Duration,
    /// Messages that wait for one connection before a push is lost; OxenMQ leaves libzmq's default.
    pub send_queue: i32,
    /// A subscription that is not renewed ends after this time.
    pub subscription_lifetime: Duration,
    /// Of each libzmq context.
    pub io_threads: i32,
    /// For load: requests are read, answered and counted, but not remembered, so nothing is ever pushed.
    pub count_only: bool,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            verify_one_in: 1,
            heartbeat: Duration::from_secs(15),
            heartbeat_timeout: Duration::from_secs(30),
            send_queue: 1000,
            subscription_lifetime: Duration::from_secs(65 * 60),
            io_threads: 1,
            count_only: false,
        }
    }
}

/// An X25519 key pair, as CURVE and the node list use it.
#[derive(Clone)]
pub struct CurveKey {
    pub public: [u8; 32],
    pub secret: [u8; 32],
}

impl CurveKey {
    pub fn new() -> Self {
        let secret = sodium::random();
        Self {
            public: sodium::x25519_public(&secret),
            secret,
        }
    }
}

impl Default for CurveKey {
    fn default() -> Self {
        Self::new()
    }
}

/// What the node list says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    pub public_key: [u8; 32],
    pub port: u16,
}

/// How a node misbehaves when it is asked to watch accounts.
#[derive(Clone, Debug)]
pub enum Fault {
    /// One item of the request, the first is 0.
    RefuseItem {
        index: usize,
        code: i64,
    },
    RefuseAll {
        code: i64,
    },
    UnknownCommand,
    Forbidden,
    /// Takes the request and never answers.
    Silence,
    /// Answers with these bytes, and remembers nothing.
    Garbage(Vec<u8>),
    /// Remembers at once, answers later.
    Delay(Duration),
}

/// What one node did so far.
#[derive(Debug, Default)]
pub struct NodeCounters {
    pub greetings: AtomicU64,
    pub requests: AtomicU64,
    pub records: AtomicU64,
    pub refused: AtomicU64,
    pub verified: AtomicU64,
    /// Different accounts watched now, counted once for each connection.
    pub watched: AtomicU64,
    pub pushed: AtomicU64,
    /// Pushes lost because a connection's queue was full or the subscriber was gone.
    pub lost: AtomicU64,
}

/// The sum over a fleet at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetCounts {
    pub greetings: u64,
    pub requests: u64,
    pub records: u64,
    pub refused: u64,
    pub verified: u64,
    pub watched: u64,
    pub pushed: u64,
    pub lost: u64,
}

/// A message as a swarm stores it.
#[derive(Clone, Debug)]
pub struct SwarmMessage {
    pub account: [u8; 33],
    /// Of a person's account: the key that subscriptions name.
    pub session_ed25519: Option<[u8; 32]>,
    pub namespace: i16,
    pub timestamp_ms: i64,
    pub expiry_ms: i64,
    pub data: Vec<u8>,
}

impl SwarmMessage {
    pub fn hash(&self) -> String {
        message_hash(&self.account, self.namespace, &self.data)
    }

    /// The body of `notify.message`.
    pub fn notification(&self, with_data: bool) -> Vec<u8> {
        let mut body = Vec::with_capacity(160 + self.data.len());
        body.extend_from_slice(b"d1:@");
        bt::put_bytes(&mut body, &self.account);
        body.extend_from_slice(b"1:h");
        bt::put_bytes(&mut body, self.hash().as_bytes());
        let times = format!(
            "1:ni{}e1:ti{}e1:zi{}e",
            self.namespace, self.timestamp_ms, self.expiry_ms
        );
        body.extend_from_slice(times.as_bytes());
        if with_data {
            body.extend_from_slice(b"1:~");
            bt::put_bytes(&mut body, &self.data);
        }
        body.push(b'e');
        body
    }
}

/// Unpadded base64 of BLAKE2b-256 over account, namespace (nothing for 0) and data.
pub fn message_hash(account: &[u8; 33], namespace: i16, data: &[u8]) -> String {
    let namespace = if namespace == 0 {
        String::new()
    } else {
        namespace.to_string()
    };
    STANDARD_NO_PAD.encode(sodium::blake2b_256(&[account, namespace.as_bytes(), data].concat()))
}

/// What subscriptions are filed under; see [`monitor::Record`].
fn watched_key(account: &[u8; 33], session_ed25519: Option<&[u8; 32]>) -> [u8; 33] {
    let mut watched = *account;
    if let Some(key) = session_ed25519 {
        watched[1..].copy_from_slice(key);
    }
    watched
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("libzmq: {0}")]
    Zmq(#[from] zmq::Error),
    #[error("a node thread ended early")]
    ThreadGone,
}

/// All fake nodes of a lab. Dropping it stops them.
pub struct Fleet {
    threads: Vec<Thread>,
    addresses: Vec<NodeAddress>,
    counters: Vec<Arc<NodeCounters>>,
    changed: Arc<Notify>,
}

struct Thread {
    caller: Caller<Command>,
    join: Option<JoinHandle<()>>,
}

enum Command {
    Push(Arc<Prepared>, Vec<usize>),
    Raw(usize, Vec<Vec<u8>>),
    Inject(usize, Fault, u32),
    ClearFaults(usize),
    Mute(usize, bool),
    Stop(usize),
    Start(usize),
    Forget(usize),
    Watchers([u8; 33], mpsc::Sender<usize>),
    Sync(mpsc::Sender<()>),
    Quit,
}

struct Prepared {
    watched: [u8; 33],
    namespace: i16,
    with_data: Vec<u8>,
    without_data: Vec<u8>,
}

impl Fleet {
    pub fn start(count: usize, settings: &NodeSettings) -> Result<Self, NodeError> {
        let keys: Vec<_> = (0..count).map(|_| CurveKey::new()).collect();
        let counters: Vec<_> = (0..count).map(|_| Arc::new(NodeCounters::default())).collect();
        let changed = Arc::new(Notify::new());
        let (mut threads, mut addresses) = (Vec::new(), Vec::new());
        for (keys, counters) in keys.chunks(NODES_PER_THREAD).zip(counters.chunks(NODES_PER_THREAD)) {
            let context = Context::new();
            context.set_io_threads(settings.io_threads)?;
            let (caller, door) = doorbell(&context)?;
            let mut nodes = Vec::with_capacity(keys.len());
            for (key, counters) in keys.iter().zip(counters) {
                let node = Node::bind_anywhere(&context, settings, key.clone(), Arc::clone(counters))?;
                addresses.push(NodeAddress {
                    public_key: key.public,
                    port: node.port,
                });
                nodes.push(node);
            }
            let room = Room::new(context, settings, nodes, door, Arc::clone(&changed));
            let join = std::thread::Builder::new()
                .name("lab-nodes".into())
                .spawn(move || room.run())
                .map_err(|_| NodeError::ThreadGone)?;
            threads.push(Thread {
                caller,
                join: Some(join),
            });
        }
        Ok(Self {
            threads,
            addresses,
            counters,
            changed,
        })
    }

    pub fn addresses(&self) -> &[NodeAddress] {
        &self.addresses
    }

    /// Every given node reports `message` to whoever watches its account there.
    pub fn store(&self, nodes: impl IntoIterator<Item = usize>, message: &SwarmMessage) {
        let prepared = Arc::new(Prepared {
            watched: watched_key(&message.account, message.session_ed25519.as_ref()),
            namespace: message.namespace,
            with_data: message.notification(true),
            without_data: message.notification(false),
        });
        let mut by_thread: HashMap<usize, Vec<usize>> = HashMap::new();
        for node in nodes {
            by_thread
                .entry(node / NODES_PER_THREAD)
                .or_default()
                .push(node % NODES_PER_THREAD);
        }
        for (thread, nodes) in by_thread {
            self.tell(thread, Command::Push(Arc::clone(&prepared), nodes));
        }
    }

    /// Sends these frames to everybody who is connected to `node`, asked or not.
    pub fn push_raw(&self, node: usize, frames: Vec<Vec<u8>>) {
        self.tell_node(node, |node| Command::Raw(node, frames));
    }

    /// The next `times` requests of `node` meet this fault; faults wait in line.
    pub fn inject(&self, node: usize, fault: Fault, times: u32) {
        self.tell_node(node, |node| Command::Inject(node, fault, times));
    }

    pub fn clear_faults(&self, node: usize) {
        self.tell_node(node, Command::ClearFaults);
    }

    /// A mute node takes everything and says nothing; libzmq still answers its heartbeats.
    pub fn mute(&self, node: usize, mute: bool) {
        self.tell_node(node, |node| Command::Mute(node, mute));
    }

    /// Closes the listener and every connection. Subscriptions stay.
    pub fn stop(&self, node: usize) {
        self.tell_node(node, Command::Stop);
    }

    /// Listens again on the same port with the same key.
    pub fn resume(&self, node: usize) {
        self.tell_node(node, Command::Start);
    }

    /// As a restarted storage server: same key and port, all subscriptions lost.
    pub fn restart(&self, node: usize) {
        self.tell_node(node, Command::Stop);
        self.tell_node(node, Command::Forget);
        self.tell_node(node, Command::Start);
    }

    /// Returns when everything asked for before has been done.
    pub fn settle(&self) -> Result<(), NodeError> {
        for thread in 0..self.threads.len() {
            let (done, wait) = mpsc::channel();
            self.tell(thread, Command::Sync(done));
            wait.recv().map_err(|_| NodeError::ThreadGone)?;
        }
        Ok(())
    }

    /// Nodes at which somebody watches this account. Blocks until the threads have looked.
    pub fn watchers(&self, account: &[u8; 33], session_ed25519: Option<&[u8; 32]>) -> Vec<usize> {
        let watched = watched_key(account, session_ed25519);
        let mut nodes = Vec::new();
        for thread in 0..self.threads.len() {
            let (found, answers) = mpsc::channel();
            self.tell(thread, Command::Watchers(watched, found));
            nodes.extend(answers.iter().map(|index| thread * NODES_PER_THREAD + index));
        }
        nodes
    }

    /// Waits until at least `enough` nodes watch the account; `None` if that takes longer than `patience`.
    pub async fn wait_watched(
        &self,
        account: &[u8; 33],
        session_ed25519: Option<&[u8; 32]>,
        enough: usize,
        patience: Duration,
    ) -> Option<Vec<usize>> {
        let search = async {
            loop {
                let mut changed = pin!(self.changed.notified());
                // Before looking: a change in between wakes us all the same.
                changed.as_mut().enable();
                let nodes = self.watchers(account, session_ed25519);
                if nodes.len() >= enough {
                    return nodes;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, search).await.ok()
    }

    /// Waits until the sum over all nodes fulfils `wanted`; `None` if that takes longer than `patience`.
    pub async fn wait_counts(&self, patience: Duration, wanted: impl Fn(&FleetCounts) -> bool) -> Option<FleetCounts> {
        let search = async {
            loop {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                let counts = self.counts();
                if wanted(&counts) {
                    return counts;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, search).await.ok()
    }

    pub fn node_counters(&self, node: usize) -> &NodeCounters {
        &self.counters[node]
    }

    pub fn counts(&self) -> FleetCounts {
        let sum = |field: fn(&NodeCounters) -> &AtomicU64| {
            self.counters
                .iter()
                .map(|node| field(node).load(Ordering::Relaxed))
                .sum()
        };
        FleetCounts {
            greetings: sum(|node| &node.greetings),
            requests: sum(|node| &node.requests),
            records: sum(|node| &node.records),
            refused: sum(|node| &node.refused),
            verified: sum(|node| &node.verified),
            watched: sum(|node| &node.watched),
            pushed: sum(|node| &node.pushed),
            lost: sum(|node| &node.lost),
        }
    }

    fn tell_node(&self, node: usize, command: impl FnOnce(usize) -> Command) {
        self.tell(node / NODES_PER_THREAD, command(node % NODES_PER_THREAD));
    }

    fn tell(&self, thread: usize, command: Command) {
        // A thread that is gone shows in `settle`; a push to nobody is a lost push, as in life.
        self.threads[thread].caller.call(command);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for thread in 0..self.threads.len() {
            self.tell(thread, Command::Quit);
        }
        for thread in &mut self.threads {
            if let Some(join) = thread.join.take() {
                let _ = join.join();
            }
        }
    }
}
