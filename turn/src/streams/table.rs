//! All streams of one shard: who they are, when they are looked at, what each is told.
//!
//! In: listening sockets and streams that are ready, packets and answers for stream clients, the time. Out: the frames of one stream at a
//! time; which streams have ended. Never: blocks, takes a lock, or holds more of a client than its bounds.

use super::connection::{Connection, READ};
use super::counters::{StreamCounters, StreamEvent};
use super::seats::{Seat, Seats};
use super::settings::StreamSettings;
use crate::sys::{Epoll, Interest, Ready};
use rustls::ServerConfig;
use slab::Slab;
use socket2::SockRef;
use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use turn_core::framing::{Framer, FramingFault, MAX_FRAME, STRANGER_FRAME};
use turn_core::table::{HashKey, Places};
use turn_core::wire::{Class, FiveTuple, Kind, Message, Transport, demux};
use zeroize::Zeroize;

pub struct Table {
    settings: StreamSettings,
    /// What new streams are served with.
    tls: Option<Arc<ServerConfig>>,
    tokens: Tokens,
    seats: Arc<Seats>,
    doors: Vec<Door>,
    /// Each in a place of its own, which is overwritten when it ends.
    connections: Slab<Box<Connection>>,
    by_client: Places,
    hash_key: HashKey,
    /// When each is to be looked at. An entry may be early, never late.
    due: BTreeSet<(Duration, u32)>,
    /// Those without an allocation, who has been so longest first.
    strangers: BTreeSet<(Duration, u32)>,
    /// Those with something to write.
    dirty: Vec<u32>,
    ended: VecDeque<FiveTuple>,
    framer: Option<Framer>,
    scratch: Vec<u8>,
    counters: StreamCounters,
}

/// How epoll names our sockets: the number of a listener or stream is added to these.
#[derive(Clone, Copy)]
pub struct Tokens {
    pub listeners: u64,
    pub streams: u64,
}

/// A listening socket.
struct Door {
    socket: TcpListener,
    /// The system has no room for a stream until then.
    shut_until: Option<Duration>,
}

/// Connections accepted before packets have their turn again.
const ACCEPTS_AT_ONCE: usize = 64;
/// Streams looked at in one call because of their time.
const TIMEOUTS_AT_ONCE: usize = 256;
/// How long nothing is accepted if the system has no descriptor or no memory.
const SHUT: Duration = Duration::from_secs(1);

/// The frames of one read of one stream. It has the shard's buffer in hand, so that [`Table`] is free for answers.
pub struct Received {
    stream: u32,
    from: FiveTuple,
    framer: Framer,
    is_member: bool,
    has_asked: bool,
    fault: Option<FramingFault>,
}

impl Received {
    pub const fn from(&self) -> FiveTuple {
        self.from
    }

    /// The next frame, without anything around it. `has_allocation` is asked only if that decides.
    pub fn next_frame(&mut self, has_allocation: impl FnOnce(&FiveTuple) -> bool) -> Option<&mut [u8]> {
        if self.framer.has_frame() == Err(FramingFault::TooLong) && !self.is_member && has_allocation(&self.from) {
            self.is_member = true;
            self.framer.set_limit(MAX_FRAME);
        }
        match self.framer.next_frame() {
            Ok(frame) => {
                let frame = frame?;
                if !self.is_member && demux(frame) == Kind::Stun {
                    // Nothing else is answered.
                    self.has_asked |= Message::parse(frame).is_ok_and(|message| message.class == Class::Request);
                }
                Some(frame)
            }
            Err(fault) => {
                self.fault = Some(fault);
                None
            }
        }
    }
}

impl Table {
    /// The key is random. The place of a socket among the listeners is the `listener` of its clients' 5-tuples.
    pub fn new(
        listeners: Vec<TcpListener>,
        tokens: Tokens,
        settings: StreamSettings,
        tls: Option<Arc<ServerConfig>>,
        seats: Arc<Seats>,
        hash_key: [u64; 2],
    ) -> Self {
        Self {
            settings,
            tls,
            tokens,
            seats,
            doors: listeners
                .into_iter()
                .map(|socket| Door {
                    socket,
                    shut_until: None,
                })
                .collect(),
            connections: Slab::new(),
            by_client: Places::default(),
            hash_key: HashKey::new(hash_key),
            due: BTreeSet::new(),
            strangers: BTreeSet::new(),
            dirty: Vec::new(),
            ended: VecDeque::new(),
            framer: None,
            scratch: vec![0; READ],
            counters: StreamCounters::default(),
        }
    }

    /// From now on epoll speaks of the listeners.
    pub fn register(&self, epoll: &Epoll) -> io::Result<()> {
        for (token, door) in (self.tokens.listeners..).zip(&self.doors) {
            epoll.add(door.socket.as_fd(), token, Interest::Read)?;
        }
        Ok(())
    }

    /// Takes waiting connections of one listener.
    pub fn accept(&mut self, listener: u8, epoll: &Epoll, now: Duration) {
        for _ in 0..ACCEPTS_AT_ONCE {
            let Some(door) = self.doors.get_mut(usize::from(listener)) else {
                return;
            };
            let accepted = door.socket.accept();
            match accepted {
                Ok((socket, from)) => {
                    if let Err(event) = self.admit(socket, from, listener, epoll, now) {
                        self.counters.add(event);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_out_of_room(&error) => {
                    // The listener stays ready: it would wake us for nothing until there is room.
                    door.shut_until = Some(now + SHUT);
                    let token = self.tokens.listeners + u64::from(listener);
                    let _ = epoll.change(door.socket.as_fd(), token, Interest::Write);
                    self.counters.add(StreamEvent::AcceptFailed);
                    return;
                }
                // Of a connection that has ended before it was accepted.
                Err(_) => {}
            }
        }
    }

    /// Reads from a stream that is ready, and writes to it if it can be written to. What is given must be put back.
    pub fn receive(&mut self, stream: u32, ready: Ready, epoll: &Epoll, now: Duration) -> Option<Received> {
        let connection = self.connections.get_mut(stream as usize)?;
        if ready.is_writable() {
            connection.write(&self.settings, now);
        }
        let is_reading = !matches!(connection.interest, Interest::Write);
        let is_over = ready.is_ended() || ready.has_error();
        if !is_reading && is_over {
            connection.doom = Some(StreamEvent::Reset);
        }
        if connection.doom.is_some() || !is_reading || !(ready.is_readable() || is_over) {
            self.settle(stream, epoll, now);
            return None;
        }
        let mut framer = self.framer.take().unwrap_or_else(|| Framer::new(STRANGER_FRAME));
        let (was_unknown, was_handshaking) = (connection.is_unknown(), connection.is_handshaking());
        connection.read(&mut framer, &mut self.scratch, self.tls.as_ref(), now);
        if connection.is_tls() {
            self.counters.handshakes += u64::from(was_handshaking && !connection.is_handshaking());
            if was_unknown {
                self.counters.open_tcp -= 1;
                self.counters.open_tls += 1;
            }
        }
        let received = Received {
            stream,
            from: connection.client,
            framer,
            is_member: connection.is_member,
            has_asked: false,
            fault: None,
        };
        if was_unknown && !connection.is_unknown() && !self.name(stream) {
            self.put_back(received, |_| false, epoll, now);
            return None;
        }
        Some(received)
    }

    /// After the frames of one read: keeps half a frame, or ends the stream.
    pub fn put_back(
        &mut self,
        received: Received,
        has_allocation: impl FnOnce(&FiveTuple) -> bool,
        epoll: &Epoll,
        now: Duration,
    ) {
        let Received {
            stream,
            from,
            mut framer,
            is_member,
            has_asked,
            fault,
        } = received;
        if let Some(connection) = self.connections.get_mut(stream as usize) {
            connection.keep(&framer);
            connection.is_member = is_member;
            if has_asked {
                connection.has_asked(now);
                connection.is_member = has_allocation(&from);
            }
            if let Some(fault) = fault {
                connection.doom = connection.doom.or(Some(match fault {
                    FramingFault::NotOurs => StreamEvent::NotOurs,
                    FramingFault::TooLong => StreamEvent::FrameTooLong,
                }));
            }
        }
        framer.clear();
        self.framer = Some(framer);
        self.settle(stream, epoll, now);
    }

    /// One frame for a client, as it goes on the wire. A packet that does not fit is dropped and counted; an answer never is: while more
    /// waits than may, the client is not read.
    pub fn deliver(&mut self, to: &FiveTuple, frame: &[u8]) {
        let found = self.find(to);
        let Some((stream, connection)) =
            found.and_then(|stream| Some((stream, self.connections.get_mut(stream as usize)?)))
        else {
            self.counters.add(StreamEvent::StreamGone);
            return;
        };
        if !is_answer(frame) && !connection.has_room(frame.len(), &self.settings) {
            self.counters.add(StreamEvent::QueueFull);
            return;
        }
        connection.push(frame);
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(stream);
        }
    }

    /// Writes what this round has queued, one write for each stream.
    pub fn flush(&mut self, epoll: &Epoll, now: Duration) {
        while let Some(stream) = self.dirty.pop() {
            if let Some(connection) = self.connections.get_mut(stream as usize) {
                connection.is_dirty = false;
                if !connection.is_blocked() {
                    connection.write(&self.settings, now);
                }
                self.settle(stream, epoll, now);
            }
        }
    }

    /// The client of a stream that has ended: its allocation ends with it.
    pub fn poll_ended(&mut self) -> Option<FiveTuple> {
        let place = self.ended.front_mut()?;
        let client = *place;
        place.zeroize();
        self.ended.pop_front();
        Some(client)
    }

    /// Ends what has had its time, a bounded number at once.
    pub fn handle_timeout(&mut self, has_allocation: impl Fn(&FiveTuple) -> bool, epoll: &Epoll, now: Duration) {
        for _ in 0..TIMEOUTS_AT_ONCE {
            let Some(&(due, stream)) = self.due.first().filter(|(due, _)| *due <= now) else {
                break;
            };
            self.due.remove(&(due, stream));
            if let Some(connection) = self.connections.get_mut(stream as usize) {
                connection.due = Duration::MAX;
                let overdue = connection.overdue(&self.settings, has_allocation(&connection.client), now);
                connection.doom = connection.doom.or(overdue);
                self.settle(stream, epoll, now);
            }
        }
        for (token, door) in (self.tokens.listeners..).zip(&mut self.doors) {
            if door.shut_until.is_some_and(|until| until <= now) {
                door.shut_until = None;
                let _ = epoll.change(door.socket.as_fd(), token, Interest::Read);
            }
        }
    }

    /// Other limits, for all streams, and another certificate, for new ones.
    pub fn reload(&mut self, settings: StreamSettings, tls: Option<Arc<ServerConfig>>, epoll: &Epoll, now: Duration) {
        (self.settings, self.tls) = (settings, tls);
        let streams: Vec<u32> = self.connections.iter().map(|(stream, _)| stream as u32).collect();
        for stream in streams {
            self.settle(stream, epoll, now);
        }
    }

    pub fn count(&mut self, event: StreamEvent) {
        self.counters.add(event);
    }

    /// Nobody new: who tries is told by the system at once, and goes elsewhere.
    pub fn shut(&mut self) {
        self.doors.clear();
    }

    pub const fn counters(&self) -> StreamCounters {
        self.counters
    }

    fn admit(
        &mut self,
        socket: TcpStream,
        from: SocketAddr,
        listener: u8,
        epoll: &Epoll,
        now: Duration,
    ) -> Result<(), StreamEvent> {
        // Who comes by a mapped address is the same client.
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let options = SockRef::from(&socket);
        let seat = self.seat(from.ip(), now).inspect_err(|_| {
            // No goodbye that the kernel would have to keep.
            let _ = options.set_linger(Some(Duration::ZERO));
        })?;
        let prepared = socket
            .set_nonblocking(true)
            .and_then(|()| socket.set_nodelay(true))
            .and_then(|()| options.set_send_buffer_size(self.settings.send_buffer))
            .and_then(|()| options.set_tcp_user_timeout(Some(self.settings.stall)));
        prepared.map_err(|_| StreamEvent::AcceptFailed)?;
        let entry = self.connections.vacant_entry();
        let stream = u32::try_from(entry.key()).map_err(|_| StreamEvent::TooMany)?;
        epoll
            .add(socket.as_fd(), self.tokens.streams + u64::from(stream), Interest::Read)
            .map_err(|_| StreamEvent::AcceptFailed)?;
        let client = FiveTuple::new(from, Transport::Tcp, listener);
        let connection = entry.insert(Box::new(Connection::new(socket, client, seat, now)));
        connection.due = connection.deadline(&self.settings);
        self.due.insert((connection.due, stream));
        connection.stranger_since = Some(now);
        self.strangers.insert((now, stream));
        self.counters.accepted += 1;
        self.counters.open_tcp += 1;
        Ok(())
    }

    /// A seat for one more, if need be that of a stranger of this shard.
    fn seat(&mut self, client: IpAddr, now: Duration) -> Result<Seat, StreamEvent> {
        let claim = self.seats.claim(client, &self.settings, now)?;
        let seat = claim.seat(&self.settings).or_else(|claim| {
            // By how long they have been strangers, not by when they sent something last: a few bytes a second would keep their seats, and
            // it would be those who wait for an answer from us that have to go.
            if let Some(&(_, stream)) = self.strangers.first() {
                self.end(stream, StreamEvent::Displaced);
            }
            claim.seat(&self.settings)
        });
        seat.map_err(|_| StreamEvent::TooMany)
    }

    /// It is known how the client speaks, and so who it is. False if there is one of this name.
    fn name(&mut self, stream: u32) -> bool {
        let Some(client) = self
            .connections
            .get(stream as usize)
            .map(|connection| connection.client)
        else {
            return false;
        };
        if self.find(&client).is_some() {
            // The system has forgotten the first, or there would be no second; its end is still to be told. The client tries again.
            if let Some(connection) = self.connections.get_mut(stream as usize) {
                connection.doom = Some(StreamEvent::Twin);
            }
            return false;
        }
        let (key, connections) = (&self.hash_key, &self.connections);
        let hash = key.of_client(&client);
        self.by_client
            .insert(hash, stream, |place| hash_of(key, connections, place));
        true
    }

    fn find(&self, client: &FiveTuple) -> Option<u32> {
        self.by_client.find(self.hash_key.of_client(client), |place| {
            let found = self.connections.get(place as usize);
            found.is_some_and(|connection| connection.client == *client)
        })
    }

    /// After anything happened to a stream: ends it, or tells epoll and the list of deadlines what it waits for now.
    fn settle(&mut self, stream: u32, epoll: &Epoll, now: Duration) {
        let Some(connection) = self.connections.get_mut(stream as usize) else {
            return;
        };
        if let Some(event) = connection.doom {
            self.end(stream, event);
            return;
        }
        match connection.stranger_since {
            Some(since) if connection.is_member => {
                self.strangers.remove(&(since, stream));
                connection.stranger_since = None;
            }
            None if !connection.is_member => {
                self.strangers.insert((now, stream));
                connection.stranger_since = Some(now);
            }
            _ => {}
        }
        // Handshakes and key updates are answered without anybody asking.
        if connection.waiting() > 0 && !connection.is_blocked() && !connection.is_dirty {
            connection.write(&self.settings, now);
            if let Some(event) = connection.doom {
                self.end(stream, event);
                return;
            }
        }
        let wanted = connection.wanted(&self.settings);
        if wanted != connection.interest {
            let token = self.tokens.streams + u64::from(stream);
            if epoll.change(connection.socket.as_fd(), token, wanted).is_err() {
                self.end(stream, StreamEvent::Reset);
                return;
            }
            connection.interest = wanted;
        }
        let deadline = connection.deadline(&self.settings);
        if deadline < connection.due {
            self.due.remove(&(connection.due, stream));
            connection.due = deadline;
            self.due.insert((deadline, stream));
        }
    }

    fn end(&mut self, stream: u32, event: StreamEvent) {
        self.counters.add(event);
        let Some(client) = self
            .connections
            .get(stream as usize)
            .map(|connection| connection.client)
        else {
            return;
        };
        // A twin has no name of its own.
        if self.find(&client) == Some(stream) {
            let (key, connections) = (&self.hash_key, &self.connections);
            self.by_client
                .remove(key.of_client(&client), stream, |place| hash_of(key, connections, place));
            self.ended.push_back(client);
        }
        let mut connection = self.connections.remove(stream as usize);
        if connection.is_tls() {
            self.counters.open_tls -= 1;
        } else {
            self.counters.open_tcp -= 1;
        }
        self.due.remove(&(connection.due, stream));
        if let Some(since) = connection.stranger_since {
            self.strangers.remove(&(since, stream));
        }
        connection.close(event);
    }
}

fn hash_of(key: &HashKey, connections: &Slab<Box<Connection>>, place: u32) -> u64 {
    connections
        .get(place as usize)
        .map_or(0, |connection| key.of_client(&connection.client))
}

/// A success or an error answer (RFC 8489 §5: the class bit above the first byte); a relayed packet is an indication or ChannelData.
fn is_answer(frame: &[u8]) -> bool {
    frame.first() == Some(&1)
}

/// What the system lacks, not what the connection did.
fn is_out_of_room(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests;
