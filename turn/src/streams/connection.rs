//! One TCP connection: what it is, what is half read, what waits to be written, and by when something must happen.
//!
//! In: a socket that is ready, bytes to send. Out: bytes in the framer of the shard, why it must end. Never: blocks, or decides about TURN.

use super::counters::StreamEvent;
use super::queue::WriteQueue;
use super::seats::Seat;
use super::settings::StreamSettings;
use crate::sys::Interest;
use rustls::{ServerConfig, ServerConnection};
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use turn_core::framing::{Framer, Half, MAX_FRAME, STRANGER_FRAME};
use turn_core::wire::{FiveTuple, Kind, Transport, demux};
use zeroize::Zeroize;

pub struct Connection {
    pub socket: TcpStream,
    /// Over TCP until the first byte says TLS.
    pub client: FiveTuple,
    /// It has an allocation, or had one when it was last looked at.
    pub is_member: bool,
    /// What is registered with epoll.
    pub interest: Interest,
    /// The time under which it stands in the list of its shard.
    pub due: Duration,
    /// Since when it has had no allocation, as it stands in the list of its shard's strangers; a member is not there.
    pub stranger_since: Option<Duration>,
    /// It stands in its shard's list of those to write to.
    pub is_dirty: bool,
    /// Why it is to be ended, as soon as nobody has its frames in hand.
    pub doom: Option<StreamEvent>,
    layer: Layer,
    queue: WriteQueue,
    half: Half,
    wait: Wait,
    /// When this wait began.
    since: Duration,
    /// Since when it has taken nothing, or has more waiting than it may.
    blocked_since: Option<Duration>,
    _seat: Seat,
}

/// What lies between TCP and frames.
enum Layer {
    /// The first byte will say.
    Unknown,
    Plain,
    Tls {
        session: Box<ServerConnection>,
        /// Bytes read before the handshake was complete.
        handshake: usize,
    },
}

/// What the client must do next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Send a first byte, and complete TLS.
    Handshake,
    /// Send a STUN request.
    FirstMessage,
    /// Send another, or have an allocation.
    Message,
}

/// One read takes this much at most: what the framer has room for.
pub const READ: usize = turn_core::framing::ROOM;
/// TLS begins with a record of this type (RFC 8446 §5.1); no STUN message and no ChannelData does.
const TLS_HANDSHAKE: u8 = 22;
/// All that a client may send before its handshake is complete; a hello with a post-quantum key share takes 2 KiB.
const LONGEST_HANDSHAKE: usize = 16_384;
/// What is read of a stranger at a time, and what may wait for it before we read on: answers to nobody must not pile up.
const STRANGER_READ: usize = 4_096;
const STRANGER_QUEUE: usize = 8_192;
/// What TLS adds to a record, and more.
const RECORD_OVERHEAD: usize = 64;
const RECORD: usize = 16_384;

impl Connection {
    pub fn new(socket: TcpStream, client: FiveTuple, seat: Seat, now: Duration) -> Self {
        Self {
            socket,
            client,
            is_member: false,
            interest: Interest::Read,
            due: Duration::MAX,
            stranger_since: None,
            is_dirty: false,
            doom: None,
            layer: Layer::Unknown,
            queue: WriteQueue::default(),
            half: Half::default(),
            wait: Wait::Handshake,
            since: now,
            blocked_since: None,
            _seat: seat,
        }
    }

    /// No byte has come yet.
    pub const fn is_unknown(&self) -> bool {
        matches!(self.layer, Layer::Unknown)
    }

    /// The socket took less than there was: epoll says when it takes more.
    pub const fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// Bytes that wait for the client, beside those in the kernel.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub fn is_handshaking(&self) -> bool {
        self.wait == Wait::Handshake
    }

    pub const fn is_tls(&self) -> bool {
        matches!(self.layer, Layer::Tls { .. })
    }

    /// Reads once. What came stands in the framer, behind what was left of the last time.
    pub fn read(&mut self, framer: &mut Framer, scratch: &mut [u8], tls: Option<&Arc<ServerConfig>>, now: Duration) {
        framer.begin(if self.is_member { MAX_FRAME } else { STRANGER_FRAME });
        self.read_into(framer, scratch, tls, now);
        framer.join(&mut self.half);
    }

    fn read_into(&mut self, framer: &mut Framer, scratch: &mut [u8], tls: Option<&Arc<ServerConfig>>, now: Duration) {
        let most = if self.is_member { READ } else { STRANGER_READ };
        if let Layer::Plain = self.layer {
            let place = framer.space().get_mut(..most).unwrap_or_default();
            if let Some(length) = self.read_socket(place) {
                framer.filled(length);
            }
            return;
        }
        let scratch = scratch.get_mut(..most).unwrap_or_default();
        let Some(length) = self.read_socket(scratch) else {
            return;
        };
        let bytes = scratch.get_mut(..length).unwrap_or_default();
        if self.is_unknown() {
            self.begin_layer(bytes, tls);
        }
        match self.layer {
            Layer::Unknown => {}
            Layer::Plain => {
                if let Some(place) = framer.space().get_mut(..length) {
                    place.copy_from_slice(bytes);
                    framer.filled(length);
                }
            }
            Layer::Tls { .. } => self.decrypt(bytes, framer, now),
        }
        bytes.zeroize();
    }

    /// What is left in the framer after the last whole frame.
    pub fn keep(&mut self, framer: &Framer) {
        framer.leave(&mut self.half);
    }

    /// It has sent a STUN request.
    pub fn has_asked(&mut self, now: Duration) {
        (self.wait, self.since) = (Wait::Message, now);
    }

    /// Whether a packet of this length may still wait for the client.
    pub fn has_room(&self, length: usize, settings: &StreamSettings) -> bool {
        let overhead = if self.is_tls() {
            RECORD_OVERHEAD * (1 + length / RECORD)
        } else {
            0
        };
        self.queue.len() + length + overhead <= settings.queue
    }

    /// Queues a frame, over TLS as records of its own.
    pub fn push(&mut self, frame: &[u8]) {
        match &mut self.layer {
            Layer::Unknown | Layer::Plain => self.queue.push(frame),
            Layer::Tls { session, .. } => {
                let written = session.writer().write(frame);
                if written.ok() != Some(frame.len()) {
                    self.doom = Some(StreamEvent::TlsFault);
                }
                take_records(session, &mut self.queue);
            }
        }
    }

    /// Writes what the socket takes.
    pub fn write(&mut self, settings: &StreamSettings, now: Duration) {
        let Ok(has_written) = self.queue.write_to(&mut self.socket) else {
            self.doom = Some(StreamEvent::Reset);
            return;
        };
        // Who takes a byte now and then does not hold more than its queue for long.
        let is_within = self.queue.len() <= self.bound(settings);
        self.blocked_since = match self.blocked_since {
            _ if self.queue.is_empty() => None,
            Some(since) if !(has_written && is_within) => Some(since),
            _ => Some(now),
        };
    }

    /// What epoll should say from now on. Nothing is read while more waits than may: only answers bring it there.
    pub fn wanted(&self, settings: &StreamSettings) -> Interest {
        if self.queue.is_empty() {
            Interest::Read
        } else if self.queue.len() <= self.bound(settings) {
            Interest::Both
        } else {
            Interest::Write
        }
    }

    /// When it is to be looked at.
    pub fn deadline(&self, settings: &StreamSettings) -> Duration {
        let limit = match self.wait {
            Wait::Handshake => settings.handshake,
            Wait::FirstMessage => settings.first_message,
            Wait::Message => settings.idle,
        };
        let stalled = self
            .blocked_since
            .map_or(Duration::MAX, |since| since.saturating_add(settings.stall));
        self.since.saturating_add(limit).min(stalled)
    }

    /// Why it must end, if its time is over.
    pub fn overdue(&mut self, settings: &StreamSettings, has_allocation: bool, now: Duration) -> Option<StreamEvent> {
        let was_member = std::mem::replace(&mut self.is_member, has_allocation);
        if self
            .blocked_since
            .is_some_and(|since| since.saturating_add(settings.stall) <= now)
        {
            return Some(StreamEvent::Stalled);
        }
        if self.deadline(settings) > now {
            return None;
        }
        match self.wait {
            Wait::Handshake => Some(StreamEvent::NoHandshake),
            Wait::FirstMessage => Some(StreamEvent::NoMessage),
            // Who had one until now has the whole time for the next.
            Wait::Message if has_allocation || was_member => {
                self.since = now;
                None
            }
            Wait::Message => Some(StreamEvent::Idle),
        }
    }

    /// Says goodbye, as far as that can be said at once.
    pub fn close(&mut self, event: StreamEvent) {
        if matches!(event, StreamEvent::Stalled | StreamEvent::Displaced) {
            // The kernel would hold what nobody reads, or the goodbyes to a flood, until its own timer ends it.
            let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
            return;
        }
        if let Layer::Tls { session, .. } = &mut self.layer {
            session.send_close_notify();
            take_records(session, &mut self.queue);
        }
        let _ = self.queue.write_to(&mut self.socket);
    }

    const fn bound(&self, settings: &StreamSettings) -> usize {
        if self.is_member { settings.queue } else { STRANGER_QUEUE }
    }

    fn read_socket(&mut self, place: &mut [u8]) -> Option<usize> {
        loop {
            match self.socket.read(place) {
                Ok(0) => self.doom = Some(StreamEvent::ClosedByClient),
                Ok(length) => return Some(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.doom = Some(StreamEvent::Reset),
            }
            return None;
        }
    }

    /// By the first byte.
    fn begin_layer(&mut self, bytes: &[u8], tls: Option<&Arc<ServerConfig>>) {
        if bytes.first() != Some(&TLS_HANDSHAKE) {
            // Nobody has a channel yet, and the letter G of HTTP would be one.
            if demux(bytes) == Kind::Stun {
                self.layer = Layer::Plain;
                // The time runs from the connection: one byte shows nothing.
                self.wait = Wait::FirstMessage;
            } else {
                self.doom = Some(StreamEvent::NotOurs);
            }
            return;
        }
        let session = tls.map(|config| ServerConnection::new(config.clone()));
        match session {
            None => self.doom = Some(StreamEvent::TlsOff),
            Some(Err(_)) => self.doom = Some(StreamEvent::TlsFault),
            Some(Ok(mut session)) => {
                // Ours is the bound: a packet waits whole or not at all.
                session.set_buffer_limit(None);
                self.client = FiveTuple::new(self.client.client(), Transport::Tls, self.client.listener());
                self.layer = Layer::Tls {
                    session: Box::new(session),
                    handshake: 0,
                };
            }
        }
    }

    fn decrypt(&mut self, bytes: &[u8], framer: &mut Framer, now: Duration) {
        let Layer::Tls { session, handshake } = &mut self.layer else {
            return;
        };
        let result = decrypt(session, bytes, framer);
        take_records(session, &mut self.queue);
        if let Err(event) = result {
            self.doom = Some(event);
        } else if self.wait != Wait::Handshake {
        } else if session.is_handshaking() {
            *handshake += bytes.len();
            if *handshake > LONGEST_HANDSHAKE {
                self.doom = Some(StreamEvent::TlsFault);
            }
        } else {
            (self.wait, self.since) = (Wait::FirstMessage, now);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.client.zeroize();
    }
}

/// Records in, plaintext into the framer.
fn decrypt(session: &mut ServerConnection, mut bytes: &[u8], framer: &mut Framer) -> Result<(), StreamEvent> {
    while !bytes.is_empty() {
        // It takes a part at a time, and nothing after the client has said goodbye.
        if session.read_tls(&mut bytes).map_err(|_| StreamEvent::TlsFault)? == 0 {
            return Err(StreamEvent::ClosedByClient);
        }
        session.process_new_packets().map_err(|_| StreamEvent::TlsFault)?;
        loop {
            match session.reader().read(framer.space()) {
                Ok(0) => return Err(StreamEvent::ClosedByClient),
                Ok(length) => framer.filled(length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(StreamEvent::TlsFault),
            }
        }
    }
    Ok(())
}

fn take_records(session: &mut ServerConnection, queue: &mut WriteQueue) {
    // A queue in memory takes everything.
    while session.wants_write() && session.write_tls(queue).is_ok_and(|written| written > 0) {}
}
