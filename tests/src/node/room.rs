//! One thread of fake nodes: their sockets, who watches what, and how they misbehave.
//!
//! In: commands of the fleet, requests of subscribers. Out: answers, pushes, counts. Never: sleeps while something waits.

use super::monitor::{self, Answers, Refusal};
use super::{Command, CurveKey, Fault, NodeCounters, NodeError, NodeSettings, Prepared};
use crate::doorbell::Door;
use crate::ports;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use zmq::{Context, DONTWAIT, Message, POLLIN, SNDMORE, Socket};

/// Messages taken from one socket, and commands carried out, before the others get their turn.
const TURN: usize = 500;

/// What one thread owns.
pub(super) struct Room {
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
    /// Rung after every request.
    changed: Arc<Notify>,
}

pub(super) struct Node {
    key: CurveKey,
    pub(super) port: u16,
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
    pub(super) fn new(
        context: Context,
        settings: &NodeSettings,
        nodes: Vec<Node>,
        door: Door<Command>,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            context,
            settings: settings.clone(),
            nodes,
            door,
            namespace_sets: Vec::new(),
            namespace_set_ids: HashMap::new(),
            delayed: BinaryHeap::new(),
            since_verified: 0,
            started: Instant::now(),
            changed,
        }
    }

    pub(super) fn run(mut self) {
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
            let readable: Vec<_> = items
                .iter()
                .skip(1)
                .zip(owners)
                .filter(|(item, _)| item.is_readable())
                .map(|(_, index)| index)
                .collect();
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
            let Some(command) = self.door.next() else {
                return Obeyed::All;
            };
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
                Command::Watchers(watched, found) => {
                    for (index, node) in self.nodes.iter().enumerate() {
                        let connections = 0..u16::try_from(node.connections.len()).unwrap_or(u16::MAX);
                        if connections
                            .into_iter()
                            .any(|number| node.watches.contains_key(&(number, watched)))
                        {
                            let _ = found.send(index);
                        }
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
            let Some(watch) = node.watches.get(&(number, message.watched)) else {
                continue;
            };
            if watch.ends <= now {
                node.watches.remove(&(number, message.watched));
                node.counters.watched.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let wanted = self.namespace_sets[watch.namespaces as usize].contains(&message.namespace);
            if wanted {
                let body = if watch.want_data {
                    &message.with_data
                } else {
                    &message.without_data
                };
                let sent = node.send(connection, &[b"notify.message", body]);
                node.counters.count_push(sent);
            }
        }
    }

    /// Takes what has arrived at one node.
    fn serve(&mut self, index: usize) {
        for _ in 0..TURN {
            let Some(socket) = &self.nodes[index].socket else {
                return;
            };
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
                    *answer = Err(Refusal {
                        code,
                        text: "refused by the lab".into(),
                    });
                }
            }
            Some(Fault::RefuseAll { code }) => {
                answers.items_mut().fill(Err(Refusal {
                    code,
                    text: "refused by the lab".into(),
                }));
            }
            _ => {}
        }
        self.remember(index, from, &answers, verified);
        let reply = answers.write();
        if let Some(Fault::Delay(delay)) = fault {
            let frames = vec![from.to_vec(), b"REPLY".to_vec(), tag.to_vec(), reply];
            self.delayed.push(Delayed {
                due: Instant::now() + delay,
                node: index,
                frames,
            });
        } else {
            self.answer(index, from, &[b"REPLY", tag, &reply]);
        }
    }

    fn remember(&mut self, index: usize, from: &[u8], answers: &Answers, verified: u64) {
        let ends = self
            .seconds()
            .saturating_add(self.settings.subscription_lifetime.as_secs() as u32);
        let connection = self.nodes[index].connection(from);
        let mut refused = 0;
        for answer in answers.items() {
            let Ok(record) = answer else {
                refused += 1;
                continue;
            };
            if self.settings.count_only {
                continue;
            }
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
            self.nodes[index].watches.insert(
                key,
                Watch {
                    namespaces,
                    want_data,
                    ends,
                },
            );
        }
        let node = &self.nodes[index];
        node.counters.requests.fetch_add(1, Ordering::Relaxed);
        node.counters
            .records
            .fetch_add(answers.items().len() as u64, Ordering::Relaxed);
        node.counters.refused.fetch_add(refused, Ordering::Relaxed);
        node.counters.verified.fetch_add(verified, Ordering::Relaxed);
        node.counters
            .watched
            .store(node.watches.len() as u64, Ordering::Relaxed);
        self.changed.notify_waiters();
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
            let Some(Delayed { node, frames, .. }) = self.delayed.pop() else {
                return;
            };
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
    pub(super) fn bind_anywhere(
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
        let (Some(socket), Some(routing_id)) = (&self.socket, self.connections.get(connection)) else {
            return false;
        };
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
