//! One connection attempt to one OxenMQ listener with its whole life, as one task.
//!
//! In: an address, requests. Out: `Up`, replies, pushes, and exactly one `Down`, after which the task has ended.
//! Never: dials a second time, drops a push, or blocks who asks.
//!
//! Pushes go to one channel that all links share. While it is full a link does not read, so the node waits in TCP; it
//! is still pinged, so that it keeps us.

use bytes::Bytes;
use notifier_core::event::MAX_NOTIFICATION;
use notifier_core::omq::{
    Address, Entropy, Identity, Limits, LinkFault, Mechanism, RequestFailure, Rpc, RpcEvent, RpcLimits, Transport,
};
use quietline_shared::redact::Secret;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time;

/// Names a link for as long as the process runs; never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

#[derive(Clone, Copy, Debug)]
pub struct LinkSettings {
    /// A ping goes out after this time without a byte from the node.
    pub ping_after: Duration,
    /// The node is dead after this further time without a byte.
    pub dead_after: Duration,
    /// From the start of the dial to HELLO.
    pub dial_timeout: Duration,
    pub request_timeout: Duration,
    /// Largest frame and largest message of the node, bytes. The longest reply of a storage node, to 500 records, has 60 KB.
    pub max_frame: usize,
    /// Requests that may wait for their replies, as many again that may wait to be sent, and as many in the inbox before them.
    pub max_outstanding: usize,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(15),
            max_frame: 1 << 20,
            max_outstanding: 16,
        }
    }
}

/// What a link tells the watcher.
pub enum FromLink {
    Up,
    /// The link is gone, and with it every request that has no `Reply` yet.
    Down(DownReason),
    Reply {
        request: u64,
        result: Result<Vec<Bytes>, RequestFailure>,
    },
    BlockNotify,
}

/// What a node sends is full of accounts: lengths only.
impl std::fmt::Debug for FromLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Up => f.write_str("Up"),
            Self::Down(reason) => write!(f, "Down({reason:?})"),
            Self::Reply { request, result } => {
                let parts = result.as_ref().map(Vec::len);
                write!(f, "Reply {{ {request}, parts: {parts:?} }}")
            }
            Self::BlockNotify => f.write_str("BlockNotify"),
        }
    }
}

/// One data part of a `notify.message`. It has no `Debug`: everything in it is private.
pub struct Notify {
    pub link: LinkId,
    pub body: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// Refused, unreachable, or no such socket.
    #[error("the connection could not be made: {0}")]
    DialFailed(io::ErrorKind),
    #[error("the connection was not made in time")]
    DialTimeout,
    #[error("the connection broke: {0}")]
    Broken(io::ErrorKind),
    #[error(transparent)]
    Fault(#[from] LinkFault),
    /// The handle was closed or dropped.
    #[error("closed by us")]
    ClosedByUs,
    #[error("the system gave no random bytes")]
    NoRandomness,
}

impl DownReason {
    pub fn label(self) -> &'static str {
        match self {
            Self::DialFailed(_) => "dial_failed",
            Self::DialTimeout => "dial_timeout",
            Self::Broken(_) => "broken",
            Self::Fault(fault) => fault.label(),
            Self::ClosedByUs => "closed_by_us",
            Self::NoRandomness => "no_randomness",
        }
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkClosed {
    /// Too many requests wait; ask again after a reply.
    #[error("too many requests wait")]
    Full,
    #[error("the link is down")]
    Closed,
}

/// Dials, and keeps the link until it breaks or the handle goes.
pub fn spawn(
    id: LinkId,
    address: Address,
    settings: Arc<LinkSettings>,
    identity: Arc<Identity>,
    events: mpsc::Sender<(LinkId, FromLink)>,
    notifies: mpsc::Sender<Notify>,
) -> LinkHandle {
    let (requests, inbox) = mpsc::channel(settings.max_outstanding.max(1));
    let request_timeout = settings.request_timeout;
    let (close, closing) = oneshot::channel();
    tokio::spawn(async move {
        let outlets = Outlets { id, events, notifies };
        let reason = live(address, &settings, identity, inbox, closing, &outlets).await;
        // Nobody listens any more when the process ends.
        let _ = outlets.events.send((id, FromLink::Down(reason))).await;
    });
    LinkHandle {
        requests,
        request_timeout,
        _close: close,
    }
}

/// The way to one link. Dropping it closes the link.
pub struct LinkHandle {
    requests: mpsc::Sender<Request>,
    request_timeout: Duration,
    _close: oneshot::Sender<()>,
}

impl LinkHandle {
    /// Never waits. Requests may be made at any time, also before `Up`; they are sent once the handshake is over. One that cannot be
    /// sent in `request_timeout` fails like one that is not answered.
    pub fn request(&self, request: u64, command: &'static str, body: Option<Bytes>) -> Result<(), LinkClosed> {
        self.requests
            .try_send(Request {
                request,
                command,
                body,
                until: Instant::now() + self.request_timeout,
            })
            .map_err(|error| match error {
                TrySendError::Full(_) => LinkClosed::Full,
                TrySendError::Closed(_) => LinkClosed::Closed,
            })
    }

    /// Resolves when the task takes no request any more.
    pub async fn ended(&self) {
        self.requests.closed().await;
    }

    /// `Down(ClosedByUs)` follows.
    pub fn close(self) {}
}

struct Request {
    request: u64,
    command: &'static str,
    body: Option<Bytes>,
    /// Sent before, or never: a node that does not read would keep it waiting for ever.
    until: Instant,
}

struct Outlets {
    id: LinkId,
    events: mpsc::Sender<(LinkId, FromLink)>,
    notifies: mpsc::Sender<Notify>,
}

async fn live(
    address: Address,
    settings: &LinkSettings,
    identity: Arc<Identity>,
    inbox: mpsc::Receiver<Request>,
    mut closing: oneshot::Receiver<()>,
    outlets: &Outlets,
) -> DownReason {
    let started = Instant::now();
    let mechanism = match address.server_key {
        Some(server_key) => Mechanism::Curve { server_key },
        None => Mechanism::Null,
    };
    let dialed = tokio::select! {
        dialed = time::timeout(settings.dial_timeout, Stream::dial(address.transport)) => dialed,
        _ = &mut closing => return DownReason::ClosedByUs,
    };
    let stream = match dialed {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return DownReason::DialFailed(error.kind()),
        Err(_) => return DownReason::DialTimeout,
    };
    let Some(entropy) = fresh_entropy() else {
        return DownReason::NoRandomness;
    };
    // The dial was a part of the time that the node has.
    let rpc = Rpc::new(mechanism, identity, entropy, rpc_limits(settings), started);
    let mut link = Link {
        rpc,
        waiting: VecDeque::new(),
        unsent: VecDeque::new(),
        most_waiting: settings.max_outstanding.max(1),
        held: None,
        paused: false,
        read_since_yield: 0,
    };
    let reason = link.run(&stream, inbox, closing, outlets).await;
    // Pushes and replies that were whole before the end still count.
    link.deliver_rest(outlets).await;
    reason
}

struct Link {
    rpc: Rpc,
    /// Requests to be sent, in the order of their ends.
    waiting: VecDeque<Request>,
    /// Those whose time was over first. Together with `waiting` at most `most_waiting`.
    unsent: VecDeque<u64>,
    most_waiting: usize,
    /// What its channel had no room for. While it is here nothing is read.
    held: Option<RpcEvent>,
    paused: bool,
    read_since_yield: usize,
}

impl Link {
    async fn run(
        &mut self,
        stream: &Stream,
        mut inbox: mpsc::Receiver<Request>,
        mut closing: oneshot::Receiver<()>,
        outlets: &Outlets,
    ) -> DownReason {
        let mut armed = self.next_deadline();
        let mut timer = pin!(time::sleep_until(armed.into()));
        loop {
            // A node that floods keeps this task ready for ever: the others on this thread need their turn, and the
            // time is looked at here because the timer could come late.
            if self.read_since_yield >= READ_SIZE {
                self.read_since_yield = 0;
                tokio::task::yield_now().await;
            }
            let now = Instant::now();
            if now >= self.rpc.next_deadline()
                && let Err(fault) = self.rpc.handle_timeout(now)
            {
                return fault.into();
            }
            self.send_waiting(now);
            if self.deliver(outlets).is_break() {
                return DownReason::ClosedByUs;
            }
            // A deadline that moves away lets the timer fire once in vain, which is cheaper than to move it with each
            // read; only one that comes nearer needs it.
            let deadline = self.next_deadline();
            if deadline < armed || armed <= now {
                armed = deadline;
                timer.as_mut().reset(armed.into());
            }
            let output_waits = self.rpc.output().len();
            tokio::select! {
                _ = &mut closing => return DownReason::ClosedByUs,
                ready = stream.readable(), if self.held.is_none() => {
                    if let Err(reason) = ready.map_err(broken).and_then(|()| self.read(stream)) {
                        return reason;
                    }
                }
                ready = stream.writable(), if output_waits > 0 => {
                    if let Err(error) = ready.and_then(|()| self.write(stream)) {
                        // A listener that refuses us says so and closes; what it said counts more than our failed write.
                        return self.read(stream).err().unwrap_or(broken(error));
                    }
                }
                request = inbox.recv(), if self.waiting.len() + self.unsent.len() < self.most_waiting => {
                    let Some(request) = request else { return DownReason::ClosedByUs };
                    self.waiting.push_back(request);
                }
                () = self.room(outlets) , if self.held.is_some() => {}
                () = &mut timer => {}
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        let oldest = self.waiting.front().map(|oldest| oldest.until);
        oldest.into_iter().fold(self.rpc.next_deadline(), Instant::min)
    }

    /// Seals what there is room for, and gives up what has waited for it too long.
    fn send_waiting(&mut self, now: Instant) {
        while let Some(late) = self.waiting.pop_front_if(|oldest| oldest.until <= now) {
            self.unsent.push_back(late.request);
        }
        while self.rpc.output().len() < OUTPUT_HIGH
            && self.rpc.takes_requests()
            && let Some(Request {
                request, command, body, ..
            }) = self.waiting.pop_front()
        {
            let _ = self.rpc.request(request, command, body.as_deref(), now);
        }
    }

    fn poll_event(&mut self) -> Option<RpcEvent> {
        self.rpc.poll_event().or_else(|| {
            let request = self.unsent.pop_front()?;
            let result = Err(RequestFailure::TimedOut);
            Some(RpcEvent::Reply { request, result })
        })
    }

    /// Takes what the socket has, into a buffer that all links of a thread share: a link that waits has none.
    fn read(&mut self, stream: &Stream) -> Result<(), DownReason> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(READ_SIZE, 0);
            match stream.try_read(scratch) {
                Ok(0) => Err(self.rpc.handle_end().into()),
                Ok(count) => {
                    self.read_since_yield += count;
                    let input = scratch.get_mut(..count).unwrap_or_default();
                    let taken = self.rpc.handle_bytes(input, Instant::now());
                    let too_large = self.rpc.take_pushes_too_large();
                    if too_large > 0 {
                        metrics::counter!("watch_notifications_too_large_total").increment(too_large);
                    }
                    Ok(taken?)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                // Some listeners reset a connection that they end; how far it had come says more than the reset.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(self.rpc.handle_end().into()),
                Err(error) => Err(broken(error)),
            }
        })
    }

    fn write(&mut self, stream: &Stream) -> io::Result<()> {
        match stream.try_write(self.rpc.output()) {
            Ok(count) => {
                self.rpc.output_written(count);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives out what there is until a channel is full. Breaks when nobody listens any more.
    fn deliver(&mut self, outlets: &Outlets) -> ControlFlow<()> {
        while let Some(event) = self.held.take().or_else(|| self.poll_event()) {
            let (full, closed) = match event {
                RpcEvent::Notify(body) => match outlets.notifies.try_send(Notify { link: outlets.id, body }) {
                    Ok(()) => continue,
                    Err(TrySendError::Full(notify)) => (Some(RpcEvent::Notify(notify.body)), false),
                    Err(TrySendError::Closed(_)) => (None, true),
                },
                event => match outlets.events.try_reserve() {
                    Ok(permit) => {
                        permit.send((outlets.id, from_link(event)));
                        continue;
                    }
                    Err(TrySendError::Full(())) => (Some(event), false),
                    Err(TrySendError::Closed(())) => (None, true),
                },
            };
            if closed {
                return ControlFlow::Break(());
            }
            self.held = full;
            break;
        }
        if self.paused != self.held.is_some() {
            self.paused = self.held.is_some();
            self.rpc.set_reading_paused(self.paused, Instant::now());
        }
        ControlFlow::Continue(())
    }

    /// Waits until the channel of the held event has room, or is closed, and gives the event out.
    async fn room(&mut self, outlets: &Outlets) {
        match &self.held {
            Some(RpcEvent::Notify(_)) => {
                if let Ok(permit) = outlets.notifies.reserve().await
                    && let Some(RpcEvent::Notify(body)) = self.held.take()
                {
                    permit.send(Notify { link: outlets.id, body });
                }
            }
            Some(_) => {
                if let Ok(permit) = outlets.events.reserve().await
                    && let Some(event) = self.held.take()
                {
                    permit.send((outlets.id, from_link(event)));
                }
            }
            None => {}
        }
    }

    async fn deliver_rest(&mut self, outlets: &Outlets) {
        while self.deliver(outlets).is_continue() && self.held.is_some() {
            self.room(outlets).await;
        }
    }
}

fn from_link(event: RpcEvent) -> FromLink {
    match event {
        RpcEvent::Up => FromLink::Up,
        RpcEvent::Reply { request, result } => FromLink::Reply { request, result },
        RpcEvent::BlockNotify | RpcEvent::Notify(_) => FromLink::BlockNotify,
    }
}

fn broken(error: io::Error) -> DownReason {
    DownReason::Broken(error.kind())
}

fn rpc_limits(settings: &LinkSettings) -> RpcLimits {
    RpcLimits {
        connection: Limits {
            max_frame: settings.max_frame,
            max_message: settings.max_frame,
            handshake_timeout: settings.dial_timeout,
            ping_after: settings.ping_after,
            dead_after: settings.dead_after,
            ..Limits::default()
        },
        hello_timeout: settings.dial_timeout,
        request_timeout: settings.request_timeout,
        max_outstanding: settings.max_outstanding.max(1),
        max_push: MAX_NOTIFICATION,
    }
}

fn fresh_entropy() -> Option<Entropy> {
    let (mut ephemeral_secret, mut vouch_nonce, mut tag_prefix) = ([0; 32], [0; 16], [0; 7]);
    getrandom::fill(&mut ephemeral_secret).ok()?;
    getrandom::fill(&mut vouch_nonce).ok()?;
    getrandom::fill(&mut tag_prefix).ok()?;
    Some(Entropy {
        ephemeral_secret: Secret::new(ephemeral_secret),
        vouch_nonce,
        tag_prefix,
    })
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    async fn dial(transport: Transport) -> io::Result<Self> {
        match transport {
            Transport::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                // Requests are few and whole when they are written; a delay could only hurt.
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Transport::Ipc(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
        }
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Unix(stream) => stream.try_read(buffer),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes taken from a socket at once.
const READ_SIZE: usize = 64 << 10;
/// No further request is sealed while so much output waits for the socket, bytes.
const OUTPUT_HIGH: usize = 64 << 10;
