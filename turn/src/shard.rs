//! One thread for each shard: it waits, gives what is ready to the plane or the streams, and sends what they queued.
//!
//! In: a [`Plan`], and orders later. Out: a [`Report`], and word of a thread that ended. Never: touches a packet.
//!
//! # How streams hook in
//!
//! A shard has one [`Plane`] and one [`Streams`]; both live on its thread, nothing is shared between them. `streams` is listed above
//! `shard` and below `plane`: it calls the plane, the shard calls it.
//!
//! | when | the shard calls |
//! |---|---|
//! | all addresses are bound, before any thread | [`Streams::of_all_shards`]: one value for each shard, and what lets them reach each other |
//! | on the shard's thread, first | [`Streams::begin`]: `plane.epoll().add(fd, token::STREAM \| …, Interest::Read)` |
//! | an event whose token has [`token::STREAM`] | [`Streams::handle_event`], which serves a few streams |
//! | after each event that left posts, and within one that leaves many | [`Streams::handle_posts`] with frames for stream clients of any shard |
//! | after all events of a round | [`Streams::flush`] |
//! | four times a second | [`Streams::handle_tick`] |
//! | orders | [`Streams::reload`], [`Streams::drain`], [`Streams::counters`] |
//!
//! | for | streams calls |
//! |---|---|
//! | one whole frame of a client | [`Plane::handle_frame`]; its answers and hops are queued, those for streams come back as posts |
//! | a stream that ended | [`Plane::handle_stream_closed`] |
//! | a longer frame | [`Plane::has_allocation`] |
//! | the time of this round | [`Plane::now`] |
//!
//! A post is a whole frame as it goes on the wire, and its [`turn_core::forwarding::Recipient`]: `recipient.shard == plane.shard()` is a
//! client of this shard, found by `recipient.client`; any other is for the queue of that shard, whose waker is one more descriptor in its
//! epoll.

use crate::plane::{Clock, Loss, Parts, Plane, token};
use crate::sockets::{Buffers, listen_udp};
use crate::streams::{StreamCounters, StreamSettings, Streams};
use crate::sys::{self, Epoll, Events, Interest, Ticker, Waker};
use quietline_shared::service::hygiene;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use turn_core::control::{Counters, Settings, Shared, Tally};

/// One address that clients reach us at: bound for UDP and for TCP in each shard.
#[derive(Clone, Copy)]
pub struct Listener {
    /// Never the unspecified address: an answer must come from where the request went. Port 0 takes any that is free.
    pub address: SocketAddr,
}

/// What [`start`] needs. Shards and addresses are fixed from start to stop.
pub struct Plan {
    /// Threads, at least 1.
    pub shards: u16,
    /// At most 256; the place of one is the `listener` of its clients' `FiveTuple`.
    pub listeners: Vec<Listener>,
    pub buffers: Buffers,
    pub shared: Arc<Shared>,
    pub settings: Arc<Settings>,
    pub streams: StreamSettings,
    /// Without it, TLS is not spoken.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// Binds all addresses, then starts the threads. An error names the place of a listener in the plan, never its address.
pub fn start(plan: Plan) -> io::Result<Shards> {
    let _ = rlimit::increase_nofile_limit(MOST_DESCRIPTORS);
    let shards = usize::from(plan.shards.max(1));
    if plan.listeners.is_empty() || plan.listeners.len() > 256 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "1 to 256 listeners are possible",
        ));
    }
    let mut udp: Vec<Vec<OwnedFd>> = Vec::new();
    let mut tcp: Vec<Vec<TcpListener>> = Vec::new();
    udp.resize_with(shards, Vec::new);
    tcp.resize_with(shards, Vec::new);
    let mut addresses = Vec::new();
    for (number, listener) in plan.listeners.iter().enumerate() {
        let bound = Bound::new(listener.address, shards, plan.buffers);
        let bound =
            bound.map_err(|error| io::Error::new(error.kind(), format!("listener {number}: {}", error.kind())))?;
        addresses.push(bound.address);
        udp.iter_mut()
            .zip(bound.udp)
            .for_each(|(list, socket)| list.push(socket));
        tcp.iter_mut()
            .zip(bound.tcp)
            .for_each(|(list, socket)| list.push(socket));
    }
    if let Some(socket) = udp.first().and_then(|list| list.first()) {
        let relays = plan.shared.relays().len() * plan.shared.relays().ports_per_address();
        let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(0);
        sys::reserve_descriptors(socket.as_fd(), limit.min(relays as u64 + 1_024));
    }
    let streams = Streams::of_all_shards(tcp, &plan.streams, plan.tls.as_ref())?;
    let began = Clock::new(Instant::now());
    let ended = Arc::new(Ended::default());
    let mut handles = Vec::new();
    for ((number, listeners), streams) in (0u16..).zip(udp).zip(streams) {
        let (orders, waiting) = mpsc::sync_channel(ORDERS);
        let word = Arc::new(Word::new()?);
        let epoll = Epoll::new()?;
        let ticker = Ticker::new(TICK)?;
        epoll.add(word.waker.as_fd(), token::ORDERS, Interest::Read)?;
        epoll.add(ticker.as_fd(), token::TICK, Interest::Read)?;
        let parts = Parts {
            shard: number,
            shared: plan.shared.clone(),
            settings: plan.settings.clone(),
            epoll,
            listeners,
            clock: began.clone(),
        };
        let inbox = Inbox {
            orders: waiting,
            word: word.clone(),
        };
        let ended = ended.clone();
        let thread = thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
            let run = || Shard::new(parts, streams, inbox, ticker)?.run();
            let result = catch_unwind(AssertUnwindSafe(run));
            if !matches!(result, Ok(Ok(()))) {
                ended.tell();
            }
        })?;
        handles.push(Handle {
            orders,
            word,
            thread: Some(thread),
        });
    }
    Ok(Shards {
        handles,
        shared: plan.shared,
        addresses,
        ended,
    })
}

/// All shards, while they run. Dropping this stops them.
pub struct Shards {
    handles: Vec<Handle>,
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    ended: Arc<Ended>,
}

struct Handle {
    orders: mpsc::SyncSender<Order>,
    word: Arc<Word>,
    thread: Option<JoinHandle<()>>,
}

/// Word of a thread that ended on its own.
#[derive(Default)]
struct Ended {
    has: AtomicBool,
    notify: Notify,
}

impl Ended {
    fn tell(&self) {
        self.has.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

/// What a shard takes from its inbox.
enum Order {
    Reload(Arc<Settings>, StreamSettings, Option<Arc<rustls::ServerConfig>>),
    Report(mpsc::SyncSender<Report>),
    #[cfg(test)]
    Trial(Box<dyn FnOnce() + Send>),
}

/// What a shard is told beside its inbox: a shard that hangs takes nothing from there, and still nobody who orders may wait for room.
struct Word {
    stop: AtomicBool,
    drain: AtomicBool,
    /// A report waits in the inbox: there is one at most.
    is_asked: AtomicBool,
    waker: Waker,
}

impl Word {
    fn new() -> io::Result<Self> {
        Ok(Self {
            stop: AtomicBool::new(false),
            drain: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            waker: Waker::new()?,
        })
    }

    fn tell(&self, what: &AtomicBool) {
        what.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Handle {
    /// False if there is no room: the shard hangs, or is gone, which [`Shards::failed`] tells.
    fn order(&self, order: Order) -> bool {
        let is_taken = self.orders.try_send(order).is_ok();
        self.word.waker.wake();
        is_taken
    }
}

/// The shard's end.
struct Inbox {
    orders: mpsc::Receiver<Order>,
    word: Arc<Word>,
}

/// What all shards have counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub counters: Counters,
    pub losses: Tally<Loss>,
    pub streams: StreamCounters,
    /// Shards that answered: one that did not within [`PATIENCE`] is not in the sums.
    pub shards: usize,
}

impl Shards {
    /// Other users, policy, limits, certificates. Live calls go on.
    pub fn reload(&self, settings: &Arc<Settings>, streams: &StreamSettings, tls: Option<&Arc<rustls::ServerConfig>>) {
        for handle in &self.handles {
            let order = Order::Reload(settings.clone(), streams.clone(), tls.cloned());
            if !handle.order(order) {
                tracing::error!("a shard does not answer, and keeps the settings that it has");
            }
        }
    }

    /// No new allocations from here on.
    pub fn drain(&self) {
        self.handles
            .iter()
            .for_each(|handle| handle.word.tell(&handle.word.drain));
    }

    /// Live allocations of all shards.
    pub fn allocations(&self) -> u32 {
        self.shared.allocations()
    }

    /// The addresses as they were bound, in the order of the plan.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Asks all shards, and waits for their answers, [`PATIENCE`] at most: not to be called from a thread that may not wait.
    pub fn report(&self) -> Report {
        let (answers, inbox) = mpsc::sync_channel(self.handles.len());
        for handle in &self.handles {
            let is_asked = &handle.word.is_asked;
            if !is_asked.swap(true, Ordering::AcqRel) && !handle.order(Order::Report(answers.clone())) {
                is_asked.store(false, Ordering::Release);
            }
        }
        drop(answers);
        let deadline = Instant::now() + PATIENCE;
        let mut sum = Report::default();
        while sum.shards < self.handles.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(one) = inbox.recv_timeout(left) else {
                break;
            };
            sum.counters.merge(&one.counters);
            sum.losses.merge(&one.losses);
            sum.streams.merge(&one.streams);
            sum.shards += 1;
        }
        sum
    }

    /// Returns as soon as a shard ended on its own, by a panic or a fault of the system: then the process must end too, for the clients
    /// of that shard are left alone.
    pub async fn failed(&self) {
        while !self.has_failed() {
            self.ended.notify.notified().await;
        }
    }

    pub fn has_failed(&self) -> bool {
        self.ended.has.load(Ordering::Acquire)
    }

    /// Ends all threads and closes all sockets. A shard that does not end within [`STOP_PATIENCE`] is left to the end of the process.
    pub fn stop(mut self) {
        self.end(STOP_PATIENCE);
    }

    fn end(&mut self, patience: Duration) {
        self.handles
            .iter()
            .for_each(|handle| handle.word.tell(&handle.word.stop));
        let deadline = Instant::now() + patience;
        for thread in self.handles.iter_mut().filter_map(|handle| handle.thread.take()) {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(LOOK_EVERY);
            }
            if thread.is_finished() {
                // A panic was told already.
                let _ = thread.join();
            } else {
                tracing::error!("a shard does not end: the process ends without it");
            }
        }
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        self.end(STOP_PATIENCE);
    }
}

/// Orders that wait for one shard, at most: reloads, and a report.
const ORDERS: usize = 16;
/// How long a report waits for the shards, and whoever asked for it with it: no order waits for a shard to take it.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How long a stop waits for the shards: one that closes all the sockets it can have takes a second or two.
pub const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether a thread has ended.
const LOOK_EVERY: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(250);
/// Events of one round, at most. Streams have a bound of their own.
const EVENTS: usize = 512;
/// As many descriptors as the system lets us have, and not more than that.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// What the thread of one shard has.
struct Shard {
    plane: Plane,
    streams: Streams,
    events: Events,
    inbox: Inbox,
    ticker: Ticker,
}

impl Shard {
    fn new(parts: Parts, mut streams: Streams, inbox: Inbox, ticker: Ticker) -> io::Result<Self> {
        let mut plane = Plane::new(parts);
        streams.begin(&mut plane)?;
        Ok(Self {
            plane,
            streams,
            events: Events::new(EVENTS),
            inbox,
            ticker,
        })
    }

    fn run(mut self) -> io::Result<()> {
        while self.round()? {}
        Ok(())
    }

    /// Waits, and does what is to be done. False when it is time to end.
    fn round(&mut self) -> io::Result<bool> {
        let Self { plane, streams, .. } = self;
        plane.wait(&mut self.events)?;
        for number in 0..plane.listeners() {
            plane.handle_listener(number as u8, &mut |plane| deliver(plane, streams));
            deliver(plane, streams);
        }
        for at in 0..self.events.len() {
            let Some((event, ready)) = self.events.get(at) else {
                break;
            };
            if event & token::STREAM != 0 {
                streams.handle_event(event, plane)?;
            } else {
                match event & token::KIND {
                    token::RELAY => plane.handle_relay(event as u32, ready, &mut |plane| deliver(plane, streams)),
                    token::TICK => {
                        self.ticker.clear();
                        plane.handle_tick();
                        streams.handle_tick(plane);
                    }
                    _ => {
                        if !obey(&self.inbox, plane, streams) {
                            return Ok(false);
                        }
                    }
                }
            }
            deliver(plane, streams);
        }
        plane.end_some();
        deliver(plane, streams);
        streams.flush(plane);
        plane.flush();
        Ok(true)
    }
}

fn deliver(plane: &mut Plane, streams: &mut Streams) {
    while let Some(posts) = plane.take_posts() {
        streams.handle_posts(&posts, plane);
        plane.give_back(posts);
    }
}

/// False when it is time to end.
fn obey(inbox: &Inbox, plane: &mut Plane, streams: &mut Streams) -> bool {
    let Inbox { orders, word } = inbox;
    word.waker.clear();
    loop {
        // What was told before an order was sent is done before it.
        let order = orders.try_recv();
        if word.stop.load(Ordering::Acquire) {
            return false;
        }
        if word.drain.swap(false, Ordering::AcqRel) {
            plane.drain();
            streams.drain();
        }
        match order {
            Ok(Order::Reload(settings, stream_settings, tls)) => {
                plane.reload(settings);
                streams.reload(&stream_settings, tls.as_ref(), plane);
            }
            Ok(Order::Report(answers)) => {
                word.is_asked.store(false, Ordering::Release);
                // Once a second.
                plane.wipe();
                hygiene::wipe_stack();
                // Who asked may have stopped waiting.
                let _ = answers.try_send(Report {
                    counters: plane.counters(),
                    losses: plane.losses().clone(),
                    streams: streams.counters(),
                    shards: 1,
                });
            }
            #[cfg(test)]
            Ok(Order::Trial(trial)) => trial(),
            Err(_) => return true,
        }
    }
}

/// The sockets of one listening address, one of each kind for each shard.
struct Bound {
    address: SocketAddr,
    udp: Vec<OwnedFd>,
    tcp: Vec<TcpListener>,
}

impl Bound {
    fn new(address: SocketAddr, shards: usize, buffers: Buffers) -> io::Result<Self> {
        if address.ip().is_unspecified() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // With any port, the one that UDP got may be taken for TCP.
        let tries = if address.port() == 0 { 32 } else { 1 };
        let mut result = Err(io::ErrorKind::AddrInUse.into());
        for _ in 0..tries {
            result = Self::once(address, shards, buffers);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn once(address: SocketAddr, shards: usize, buffers: Buffers) -> io::Result<Self> {
        // Sockets that share a port let others of the same user in, who would take half of all packets: the first bind shares with nobody.
        let alone = listen_udp(address, buffers, false)?;
        let address = alone.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        drop((alone, listen_tcp(address, false)?));
        let mut bound = Self {
            address,
            udp: Vec::new(),
            tcp: Vec::new(),
        };
        for _ in 0..shards {
            bound.udp.push(listen_udp(address, buffers, true)?.into());
            bound.tcp.push(listen_tcp(address, true)?);
        }
        Ok(bound)
    }
}

fn listen_tcp(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier process linger on the port.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    if shared {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// Connections that wait to be accepted, in each shard.
const BACKLOG: i32 = 1_024;

#[cfg(test)]
mod tests;
