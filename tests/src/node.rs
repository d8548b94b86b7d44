//! Fake storage nodes: many OxenMQ listeners on libzmq, one thread for up to 900 of them.
//!
//! In: `monitor.messages` over CURVE; commands from the lab (store a message, misbehave, stop, start). Out: answers and
//! `notify.message` pushes. Never: stores messages, or checks which swarm it is in (neither does storage server 2.8.0).

pub mod monitor;

use crate::bt;
use crate::doorbell::{Caller, Door, doorbell};
use crate::ports;
use crate::sodium;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use monitor::{Answers, Refusal};
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zmq::{Context, DONTWAIT, Message, POLLIN, SNDMORE, Socket};

/// Sockets of one libzmq context; its default limit is 1,023.
const NODES_PER_THREAD: usize = 900;
/// Messages taken from one socket, and commands carried out, before the others get their turn.
const TURN: usize = 500;

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
        Self { public: sodium::x25519_public(&secret), secret }
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
    RefuseItem { index: usize, code: i64 },
    RefuseAll { code: i64 },
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
        let times = format!("1:ni{}e1:ti{}e1:zi{}e", self.namespace, self.timestamp_ms, self.expiry_ms);
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
    let namespace = if namespace == 0 { String::new() } else { namespace.to_string() };
    STANDARD_NO_PAD.encode(sodium::blake2b_256(&[account, namespace.as_bytes(), data].concat()))
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
        let (mut threads, mut addresses) = (Vec::new(), Vec::new());
        for (keys, counters) in keys.chunks(NODES_PER_THREAD).zip(counters.chunks(NODES_PER_THREAD)) {
            let context = Context::new();
            context.set_io_threads(settings.io_threads)?;
            let (caller, door) = doorbell(&context)?;
            let mut nodes = Vec::with_capacity(keys.len());
            for (key, counters) in keys.iter().zip(counters) {
                let node = Node::bind_anywhere(&context, settings, key.clone(), Arc::clone(counters))?;
                addresses.push(NodeAddress { public_key: key.public, port: node.port });
                nodes.push(node);
            }
            let room = Room {
                context,
                settings: settings.clone(),
                nodes,
                door,
                namespace_sets: Vec::new(),
                namespace_set_ids: HashMap::new(),
                delayed: BinaryHeap::new(),
                since_verified: 0,
                started: Instant::now(),
            };
            let join = std::thread::Builder::new()
                .name("lab-nodes".into())
                .spawn(move || room.run())
                .map_err(|_| NodeError::ThreadGone)?;
            threads.push(Thread { caller, join: Some(join) });
        }
        Ok(Self { threads, addresses, counters })
    }

    pub fn addresses(&self) -> &[NodeAddress] {
        &self.addresses
    }

    /// Every given node reports `message` to whoever watches its account there.
    pub fn store(&self, nodes: impl IntoIterator<Item = usize>, message: &SwarmMessage) {
        let mut watched = message.account;
        if let Some(key) = &message.session_ed25519 {
            watched[1..].copy_from_slice(key);
        }
        let prepared = Arc::new(Prepared {
            watched,
            namespace: message.namespace,
            with_data: message.notification(true),
            without_data: message.notification(false),
        });
        let mut by_thread: HashMap<usize, Vec<usize>> = HashMap::new();
        for node in nodes {
            by_thread.entry(node / NODES_PER_THREAD).or_default().push(node % NODES_PER_THREAD);
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

    pub fn node_counters(&self, node: usize) -> &NodeCounters {
        &self.counters[node]
    }

    pub fn counts(&self) -> FleetCounts {
        let sum = |field: fn(&NodeCounters) -> &AtomicU64| {
            self.counters.iter().map(|node| field(node).load(Ordering::Relaxed)).sum()
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

/// What one thread owns.
struct Room {
    context: Context,
    settings: NodeSettings,
    nodes: Vec<Node>,
    door: Door<Command>,
    /// A million subscriptions share a handful of namespace lists.
    namespace_sets: Vec<Vec<i16>>,
    namespace_set_ids: HashMap<Vec<i16>, u32>,
    delayed: BinaryHeap<Delayed>,
    since_verified: u32,
    started: Instant,
}

struct Node {
    key: CurveKey,
    port: u16,
    /// `None` while stopped.
    socket: Option<Socket>,
    /// Routing ids in order of appearance; the position is the connection's number.
    connections: Vec<Vec<u8>>,
    watches: HashMap<(u16, [u8; 33]), Watch>,
    faults: VecDeque<(Fault, u32)>,
    mute: bool,
    counters: Arc<NodeCounters>,
}

#[derive(Clone, Copy)]
struct Watch {
    namespaces: u32,
    want_data: bool,
    /// Seconds since the room was opened.
    ends: u32,
}

/// How far a thread came with its commands.
enum Obeyed {
    All,
    Some,
    Quit,
}

/// An answer that waits. Ordered so that the earliest is the greatest.
struct Delayed {
    due: Instant,
    node: usize,
    frames: Vec<Vec<u8>>,
}

impl Room {
    fn run(mut self) {
        let mut commands_wait = false;
        loop {
            let mut items = Vec::with_capacity(self.nodes.len() + 1);
            items.push(self.door.poll_item());
            let mut owners = Vec::with_capacity(self.nodes.len());
            for (index, node) in self.nodes.iter().enumerate() {
                if let Some(socket) = &node.socket {
                    items.push(socket.as_poll_item(POLLIN));
                    owners.push(index);
                }
            }
            let patience = if commands_wait { 0 } else { self.patience() };
            if zmq::poll(&mut items, patience).is_err() {
                continue;
            }
            let readable: Vec<_> =
                items.iter().skip(1).zip(owners).filter(|(item, _)| item.is_readable()).map(|(_, index)| index).collect();
            drop(items);
            self.door.hush();
            for index in readable {
                self.serve(index);
            }
            self.send_delayed();
            match self.obey() {
                Obeyed::All => commands_wait = false,
                Obeyed::Some => commands_wait = true,
                Obeyed::Quit => return,
            }
        }
    }

    /// Milliseconds until the next delayed answer.
    fn patience(&self) -> i64 {
        self.delayed.peek().map_or(1000, |next| {
            let wait = next.due.saturating_duration_since(Instant::now());
            i64::try_from(wait.as_millis() + 1).unwrap_or(1000).min(1000)
        })
    }

    fn obey(&mut self) -> Obeyed {
        for _ in 0..TURN {
            let Some(command) = self.door.next() else { return Obeyed::All };
            match command {
                Command::Push(message, nodes) => {
                    for index in nodes {
                        self.push(index, &message);
                    }
                }
                Command::Raw(index, frames) => {
                    let node = &mut self.nodes[index];
                    for connection in 0..node.connections.len() {
                        let frames: Vec<_> = frames.iter().map(Vec::as_slice).collect();
                        let sent = node.send(connection, &frames);
                        node.counters.count_push(sent);
                    }
                }
                Command::Inject(index, fault, times) => self.nodes[index].faults.push_back((fault, times)),
                Command::ClearFaults(index) => self.nodes[index].faults.clear(),
                Command::Mute(index, mute) => self.nodes[index].mute = mute,
                Command::Stop(index) => self.nodes[index].stop(),
                Command::Forget(index) => self.nodes[index].forget(),
                Command::Start(index) => {
                    let node = &mut self.nodes[index];
                    if node.socket.is_none() {
                        node.socket = bind_patiently(&self.context, &self.settings, &node.key, node.port);
                    }
                }
                Command::Sync(done) => {
                    let _ = done.send(());
                }
                Command::Quit => return Obeyed::Quit,
            }
        }
        Obeyed::Some
    }

    fn push(&mut self, index: usize, message: &Prepared) {
        let now = self.seconds();
        let node = &mut self.nodes[index];
        for connection in 0..node.connections.len() {
            let Ok(number) = u16::try_from(connection) else { break };
            let Some(watch) = node.watches.get(&(number, message.watched)) else { continue };
            if watch.ends <= now {
                node.watches.remove(&(number, message.watched));
                node.counters.watched.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let wanted = self.namespace_sets[watch.namespaces as usize].contains(&message.namespace);
            if wanted {
                let body = if watch.want_data { &message.with_data } else { &message.without_data };
                let sent = node.send(connection, &[b"notify.message", body]);
                node.counters.count_push(sent);
            }
        }
    }

    /// Takes what has arrived at one node.
    fn serve(&mut self, index: usize) {
        for _ in 0..TURN {
            let Some(socket) = &self.nodes[index].socket else { return };
            let Some(frames) = receive(socket) else { return };
            let parts: Vec<&[u8]> = frames.iter().map(|frame| &**frame).collect();
            if self.nodes[index].mute {
                continue;
            }
            match parts.as_slice() {
                [from, b"HI", ..] => {
                    let node = &mut self.nodes[index];
                    node.counters.greetings.fetch_add(1, Ordering::Relaxed);
                    let connection = node.connection(from);
                    node.send(connection, &[b"HELLO"]);
                }
                [from, b"monitor.messages", tag, body @ ..] => self.monitor(index, from, tag, body),
                [from, b"monitor.messages"] => self.answer(index, from, &[b"NO_REPLY_TAG", b"monitor.messages"]),
                [_, b"HELLO" | b"BYE" | b"REPLY" | b"FORBIDDEN" | b"UNKNOWNCOMMAND", ..] => {}
                [from, command, ..] => self.answer(index, from, &[b"UNKNOWNCOMMAND", command]),
                _ => {}
            }
        }
    }

    fn answer(&mut self, index: usize, from: &[u8], frames: &[&[u8]]) {
        let node = &mut self.nodes[index];
        let connection = node.connection(from);
        node.send(connection, frames);
    }

    fn monitor(&mut self, index: usize, from: &[u8], tag: &[u8], body: &[&[u8]]) {
        let fault = self.nodes[index].next_fault();
        match &fault {
            Some(Fault::UnknownCommand) => {
                return self.answer(index, from, &[b"UNKNOWNCOMMAND", b"monitor.messages"]);
            }
            Some(Fault::Forbidden) => return self.answer(index, from, &[b"FORBIDDEN", b"REPLY", tag]),
            Some(Fault::Garbage(bytes)) => return self.answer(index, from, &[b"REPLY", tag, bytes]),
            Some(Fault::Silence) => return,
            _ => {}
        }
        let one_in = self.settings.verify_one_in;
        let since = &mut self.since_verified;
        let mut verified = 0;
        let mut answers = monitor::read(body, crate::phone::unix_seconds(), || {
            *since += 1;
            let verify = one_in != 0 && *since >= one_in;
            if verify {
                *since = 0;
                verified += 1;
            }
            verify
        });
        match fault {
            Some(Fault::RefuseItem { index, code }) => {
                if let Some(answer) = answers.items_mut().get_mut(index) {
                    *answer = Err(Refusal { code, text: "refused by the lab".into() });
                }
            }
            Some(Fault::RefuseAll { code }) => {
                answers.items_mut().fill(Err(Refusal { code, text: "refused by the lab".into() }));
            }
            _ => {}
        }
        self.remember(index, from, &answers, verified);
        let reply = answers.write();
        if let Some(Fault::Delay(delay)) = fault {
            let frames = vec![from.to_vec(), b"REPLY".to_vec(), tag.to_vec(), reply];
            self.delayed.push(Delayed { due: Instant::now() + delay, node: index, frames });
        } else {
            self.answer(index, from, &[b"REPLY", tag, &reply]);
        }
    }

    fn remember(&mut self, index: usize, from: &[u8], answers: &Answers, verified: u64) {
        let ends = self.seconds().saturating_add(self.settings.subscription_lifetime.as_secs() as u32);
        let connection = self.nodes[index].connection(from);
        let mut refused = 0;
        for answer in answers.items() {
            let Ok(record) = answer else {
                refused += 1;
                continue;
            };
            let mut namespaces = self.namespace_set(&record.namespaces);
            let mut want_data = record.want_data;
            let key = (connection as u16, record.watched);
            // A live subscription is never narrowed: namespaces are joined, data stays on (storage server 2.8.0).
            if let Some(before) = self.nodes[index].watches.get(&key).copied() {
                want_data |= before.want_data;
                if before.namespaces != namespaces {
                    let mut joined = self.namespace_sets[before.namespaces as usize].clone();
                    joined.extend_from_slice(&record.namespaces);
                    joined.sort_unstable();
                    joined.dedup();
                    namespaces = self.namespace_set(&joined);
                }
            }
            self.nodes[index].watches.insert(key, Watch { namespaces, want_data, ends });
        }
        let node = &self.nodes[index];
        node.counters.requests.fetch_add(1, Ordering::Relaxed);
        node.counters.records.fetch_add(answers.items().len() as u64, Ordering::Relaxed);
        node.counters.refused.fetch_add(refused, Ordering::Relaxed);
        node.counters.verified.fetch_add(verified, Ordering::Relaxed);
        node.counters.watched.store(node.watches.len() as u64, Ordering::Relaxed);
    }

    fn namespace_set(&mut self, namespaces: &[i16]) -> u32 {
        if let Some(id) = self.namespace_set_ids.get(namespaces) {
            return *id;
        }
        let id = self.namespace_sets.len() as u32;
        self.namespace_sets.push(namespaces.to_vec());
        self.namespace_set_ids.insert(namespaces.to_vec(), id);
        id
    }

    fn send_delayed(&mut self) {
        let now = Instant::now();
        while self.delayed.peek().is_some_and(|next| next.due <= now) {
            let Some(Delayed { node, frames, .. }) = self.delayed.pop() else { return };
            if let Some((from, frames)) = frames.split_first() {
                let frames: Vec<_> = frames.iter().map(Vec::as_slice).collect();
                self.answer(node, from, &frames);
            }
        }
    }

    fn seconds(&self) -> u32 {
        self.started.elapsed().as_secs() as u32
    }
}

impl Node {
    fn bind_anywhere(
        context: &Context,
        settings: &NodeSettings,
        key: CurveKey,
        counters: Arc<NodeCounters>,
    ) -> Result<Self, NodeError> {
        let socket = listener(context, settings, &key)?;
        let port = loop {
            let port = ports::candidate();
            match socket.bind(&format!("tcp://127.0.0.1:{port}")) {
                Ok(()) => break port,
                Err(zmq::Error::EADDRINUSE) => {}
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Self {
            key,
            port,
            socket: Some(socket),
            connections: Vec::new(),
            watches: HashMap::new(),
            faults: VecDeque::new(),
            mute: false,
            counters,
        })
    }

    /// The number of a connection; one with a known routing id is the same again.
    fn connection(&mut self, routing_id: &[u8]) -> usize {
        match self.connections.iter().position(|known| known == routing_id) {
            Some(number) => number,
            None => {
                self.connections.push(routing_id.to_vec());
                self.connections.len() - 1
            }
        }
    }

    fn send(&mut self, connection: usize, frames: &[&[u8]]) -> bool {
        let (Some(socket), Some(routing_id)) = (&self.socket, self.connections.get(connection)) else { return false };
        send_to(socket, routing_id, frames)
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let (fault, times) = self.faults.front_mut()?;
        let fault = fault.clone();
        *times = times.saturating_sub(1);
        if *times == 0 {
            self.faults.pop_front();
        }
        Some(fault)
    }

    fn stop(&mut self) {
        if let Some(socket) = self.socket.take() {
            let _ = socket.unbind(&format!("tcp://127.0.0.1:{}", self.port));
        }
    }

    fn forget(&mut self) {
        self.connections.clear();
        self.watches.clear();
        self.counters.watched.store(0, Ordering::Relaxed);
    }
}

impl NodeCounters {
    fn count_push(&self, sent: bool) {
        let counter = if sent { &self.pushed } else { &self.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn listener(context: &Context, settings: &NodeSettings, key: &CurveKey) -> Result<Socket, zmq::Error> {
    let socket = context.socket(zmq::ROUTER)?;
    oxenmq_options(&socket, settings.heartbeat, settings.heartbeat_timeout)?;
    socket.set_sndhwm(settings.send_queue)?;
    socket.set_rcvhwm(settings.send_queue)?;
    socket.set_curve_server(true)?;
    socket.set_curve_secretkey(&key.secret)?;
    Ok(socket)
}

/// The options of an OxenMQ listener.
pub(crate) fn oxenmq_options(
    socket: &Socket,
    heartbeat: Duration,
    heartbeat_timeout: Duration,
) -> Result<(), zmq::Error> {
    let milliseconds = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    socket.set_router_handover(true)?;
    socket.set_router_mandatory(true)?;
    socket.set_linger(0)?;
    socket.set_maxmsgsize(10 * 1024 * 1024)?;
    socket.set_handshake_ivl(10_000)?;
    socket.set_backlog(1000)?;
    socket.set_heartbeat_ivl(milliseconds(heartbeat))?;
    socket.set_heartbeat_timeout(milliseconds(heartbeat_timeout))?;
    socket.set_heartbeat_ttl(0)
}

/// libzmq closes a listener in the background: its port is free a little later.
fn bind_patiently(context: &Context, settings: &NodeSettings, key: &CurveKey, port: u16) -> Option<Socket> {
    for _ in 0..500 {
        let socket = listener(context, settings, key).ok()?;
        if socket.bind(&format!("tcp://127.0.0.1:{port}")).is_ok() {
            return Some(socket);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// One multipart message, if one has arrived.
pub(crate) fn receive(socket: &Socket) -> Option<Vec<Message>> {
    let mut frames = Vec::with_capacity(4);
    loop {
        let frame = socket.recv_msg(DONTWAIT).ok()?;
        let more = frame.get_more();
        frames.push(frame);
        if !more {
            return Some(frames);
        }
    }
}

/// `false` if the peer is gone or its queue is full.
pub(crate) fn send_to(socket: &Socket, routing_id: &[u8], frames: &[&[u8]]) -> bool {
    if socket.send(routing_id, DONTWAIT | SNDMORE).is_err() {
        return false;
    }
    let last = frames.len().saturating_sub(1);
    frames.iter().enumerate().all(|(at, frame)| {
        let flags = if at == last { DONTWAIT } else { DONTWAIT | SNDMORE };
        socket.send(*frame, flags).is_ok()
    })
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}
