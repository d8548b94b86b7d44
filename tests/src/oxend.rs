//! A fake oxend on libzmq: gives the node list, takes block subscriptions, announces blocks.
//!
//! In: `ping.ping`, `rpc.get_service_nodes`, `sub.block`; lists and blocks from the lab. Out: answers and `notify.block`.
//! Never: knows a chain; a block is a number.

use crate::doorbell::{Caller, Door, doorbell};
use crate::node::{CurveKey, oxenmq_options, receive, send_to};
use crate::ports;
use crate::swarms::NodeList;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zmq::{Context, POLLIN, Socket};

/// oxend forgets a block subscription after this time.
const SUBSCRIPTION_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Where a fake oxend listens.
#[derive(Clone, Debug)]
pub enum OxendTransport {
    /// A Unix socket; its path has at most 107 bytes.
    Ipc(PathBuf),
    Tcp,
    Curve,
}

/// How it answers `rpc.get_service_nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OxendMood {
    #[default]
    Helpful,
    /// `["500", text]`
    Failing,
    Silent,
    /// `["200", these bytes]`
    Lying(String),
}

#[derive(Debug, Default)]
pub struct OxendCounters {
    pub pings: AtomicU64,
    pub lists: AtomicU64,
    pub block_subscriptions: AtomicU64,
    pub blocks: AtomicU64,
}

/// Dropping it ends it.
pub struct Oxend {
    address: String,
    list: Arc<Mutex<NodeList>>,
    mood: Arc<Mutex<OxendMood>>,
    counters: Arc<OxendCounters>,
    caller: Caller<Command>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    AnnounceBlock,
    Quit,
}

struct Room {
    socket: Socket,
    door: Door<Command>,
    list: Arc<Mutex<NodeList>>,
    mood: Arc<Mutex<OxendMood>>,
    counters: Arc<OxendCounters>,
    block_subscribers: HashMap<Vec<u8>, Instant>,
}

impl Oxend {
    pub fn start(transport: &OxendTransport, list: Arc<Mutex<NodeList>>) -> Result<Self, zmq::Error> {
        let context = Context::new();
        let socket = context.socket(zmq::ROUTER)?;
        oxenmq_options(&socket, Duration::from_secs(15), Duration::from_secs(30))?;
        let address = match transport {
            OxendTransport::Ipc(path) => {
                let address = format!("ipc://{}", path.display());
                socket.bind(&address)?;
                address
            }
            OxendTransport::Tcp => bind_tcp(&socket)?,
            OxendTransport::Curve => {
                let key = CurveKey::new();
                socket.set_curve_server(true)?;
                socket.set_curve_secretkey(&key.secret)?;
                let address = bind_tcp(&socket)?;
                format!(
                    "{}/{}",
                    address.replacen("tcp://", "curve://", 1),
                    hex::encode(key.public)
                )
            }
        };
        let (caller, door) = doorbell(&context)?;
        let mood = Arc::new(Mutex::new(OxendMood::Helpful));
        let counters = Arc::new(OxendCounters::default());
        let room = Room {
            socket,
            door,
            list: Arc::clone(&list),
            mood: Arc::clone(&mood),
            counters: Arc::clone(&counters),
            block_subscribers: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("lab-oxend".into())
            .spawn(move || room.run());
        let thread = Some(thread.map_err(|_| zmq::Error::ENOMEM)?);
        Ok(Self {
            address,
            list,
            mood,
            counters,
            caller,
            thread,
        })
    }

    /// As the notifier's settings want it.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn counters(&self) -> &OxendCounters {
        &self.counters
    }

    pub fn set_mood(&self, mood: OxendMood) {
        *self.mood.lock().expect("nobody panics while holding the mood") = mood;
    }

    /// Changes the list, counts one block, and tells everybody who subscribed to blocks.
    pub fn change(&self, change: impl FnOnce(&mut NodeList)) {
        {
            let mut list = locked(&self.list);
            change(&mut list);
            list.height += 1;
        }
        self.announce_block();
    }

    pub fn announce_block(&self) {
        self.caller.call(Command::AnnounceBlock);
    }
}

impl Drop for Oxend {
    fn drop(&mut self) {
        self.caller.call(Command::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Room {
    fn run(mut self) {
        loop {
            let mut items = [self.door.poll_item(), self.socket.as_poll_item(POLLIN)];
            let _ = zmq::poll(&mut items, 1000);
            self.door.hush();
            while let Some(frames) = receive(&self.socket) {
                let parts: Vec<&[u8]> = frames.iter().map(|frame| &**frame).collect();
                self.answer(&parts);
            }
            while let Some(command) = self.door.next() {
                match command {
                    Command::AnnounceBlock => self.announce_block(),
                    Command::Quit => return,
                }
            }
        }
    }

    fn answer(&mut self, parts: &[&[u8]]) {
        match parts {
            [from, b"HI", ..] => {
                send_to(&self.socket, from, &[b"HELLO"]);
            }
            [from, b"ping.ping", tag, ..] => {
                self.counters.pings.fetch_add(1, Ordering::Relaxed);
                send_to(&self.socket, from, &[b"REPLY", tag, b"pong"]);
            }
            [from, b"rpc.get_service_nodes", tag, ..] => {
                self.counters.lists.fetch_add(1, Ordering::Relaxed);
                let mood = self.mood.lock().expect("nobody panics while holding the mood").clone();
                let (code, text) = match mood {
                    OxendMood::Helpful => ("200", locked(&self.list).to_json().to_string()),
                    OxendMood::Failing => ("500", "the lab says no".into()),
                    OxendMood::Lying(text) => ("200", text),
                    OxendMood::Silent => return,
                };
                send_to(&self.socket, from, &[b"REPLY", tag, code.as_bytes(), text.as_bytes()]);
            }
            [from, b"sub.block", tag, ..] => {
                self.counters.block_subscriptions.fetch_add(1, Ordering::Relaxed);
                let before = self.block_subscribers.insert(from.to_vec(), Instant::now());
                let known = before.is_some_and(|since| since.elapsed() < SUBSCRIPTION_LIFETIME);
                send_to(
                    &self.socket,
                    from,
                    &[b"REPLY", tag, if known { b"ALREADY" } else { b"OK" }],
                );
            }
            [_, b"HELLO" | b"BYE" | b"REPLY" | b"FORBIDDEN" | b"UNKNOWNCOMMAND", ..] => {}
            [from, command, ..] => {
                send_to(&self.socket, from, &[b"UNKNOWNCOMMAND", command]);
            }
            _ => {}
        }
    }

    fn announce_block(&mut self) {
        self.counters.blocks.fetch_add(1, Ordering::Relaxed);
        let (height, hash) = {
            let list = locked(&self.list);
            (list.height.to_string(), list.block_hash())
        };
        self.block_subscribers
            .retain(|_, since| since.elapsed() < SUBSCRIPTION_LIFETIME);
        for subscriber in self.block_subscribers.keys() {
            send_to(&self.socket, subscriber, &[b"notify.block", height.as_bytes(), &hash]);
        }
    }
}

fn bind_tcp(socket: &Socket) -> Result<String, zmq::Error> {
    loop {
        let address = format!("tcp://127.0.0.1:{}", ports::candidate());
        match socket.bind(&address) {
            Ok(()) => return Ok(address),
            Err(zmq::Error::EADDRINUSE) => {}
            Err(error) => return Err(error),
        }
    }
}

fn locked(list: &Mutex<NodeList>) -> MutexGuard<'_, NodeList> {
    list.lock().expect("nobody panics while holding the list")
}
