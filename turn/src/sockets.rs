//! The UDP sockets of one shard: listeners and relayed addresses; datagrams in, datagrams out, many at a time.
//!
//! In: datagrams into slots of one memory. Out: what is queued here, each socket's in one call. Never: copies a payload, or knows who
//! may talk to whom.
//!
//! What is queued points into the slots, so a slot may be used again only after [`Sockets::flush`].

use crate::sys::{self, Epoll, Interest, Message, Outgoing, Piece, Received, Slots};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use turn_core::control::HEADROOM;
use turn_core::forwarding::Run;

/// Which socket a datagram leaves through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The number of a listener.
    Listener(u8),
    /// The place of a relayed address, as `RelayTable::place` gives it.
    Relay(u32),
}

/// One datagram that waits to be sent, or several of one size to one place.
#[derive(Clone, Copy)]
pub struct Datagram {
    pub through: Through,
    pub to: SocketAddr,
    /// Up to three: what stands in front, the payload, what pads it. Empty ones do not count.
    pub pieces: [Piece; 3],
    /// How many: all have the same front and padding, and their payloads begin `stride` bytes one after the other.
    pub count: u16,
    pub stride: u32,
    /// ECN bits.
    pub ecn: u8,
    pub dont_fragment: bool,
}

impl Datagram {
    /// All pieces in order. What lies without a gap is one piece.
    fn lay_out(&self, pieces: &mut Vec<Piece>) {
        let [front, payload, padding] = self.pieces;
        let count = self.count.max(1);
        if count > 1 && front.length == 0 && padding.length == 0 && payload.length == self.stride {
            pieces.push(Piece {
                start: payload.start,
                length: payload.length * u32::from(count),
            });
            return;
        }
        for at in 0..u32::from(count) {
            let payload = Piece {
                start: payload.start + at * self.stride,
                length: payload.length,
            };
            pieces.extend([front, payload, padding].into_iter().filter(|piece| piece.length > 0));
        }
    }
}

/// Why a datagram that should have gone out did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The socket's send buffer is full.
    WouldBlock,
    /// The system refused: no route, too big, a filter.
    Refused,
    /// The relayed address was closed meanwhile.
    Closed,
}

/// How sockets are made; fixed from start to stop.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Bytes asked for each listener; the system gives at most `net.core.rmem_max` and `wmem_max`.
    pub receive: usize,
    pub send: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            receive: 4 << 20,
            send: 4 << 20,
        }
    }
}

/// Datagrams of one receive, and messages of one send, at most.
pub const BATCH: usize = 64;
/// Datagrams that wait, at most, those of one run counting one by one.
const QUEUE: usize = 1_024;
/// Room for what is not in a slot: prefixes, answers, frames of streams.
const AREA: usize = 256 << 10;
/// The longest prefix, answer or frame of a stream goes in.
const LEAST_AREA: usize = 66 << 10;
/// IPv4, with some room for options.
const MOST_TOGETHER: usize = 65_000;
/// Segments of one call that all kernels take.
const MOST_SEGMENTS: usize = 64;
/// A segment that fits a usual link; what does not fit would be refused.
const LONGEST_SEGMENT: usize = 1_432;

/// A UDP socket for one listening address. Each shard binds one of its own.
pub fn listen_udp(address: SocketAddr, buffers: Buffers, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    // Less room than asked for is no fault.
    let _ = socket.set_recv_buffer_size(buffers.receive);
    let _ = socket.set_send_buffer_size(buffers.send);
    prepare(socket.as_fd(), address.is_ipv6())?;
    // An older kernel gives datagrams one by one.
    let _ = sys::set_option(socket.as_fd(), libc::SOL_UDP, sys::UDP_GRO, 1);
    Ok(socket)
}

/// A relayed address. Nobody else can have its port, so that no packet ever comes to the wrong one.
fn open_relay(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    prepare(socket.as_fd(), address.is_ipv6())?;
    let _ = sys::set_option(socket.as_fd(), libc::SOL_UDP, sys::UDP_GRO, 1);
    let (level, name) = if address.is_ipv6() {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    } else {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    };
    sys::set_option(socket.as_fd(), level, name, 1)?;
    Ok(socket.into())
}

/// ECN comes with each datagram.
fn prepare(socket: BorrowedFd<'_>, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    } else {
        sys::set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    }
    set_fragmenting(socket, is_v6, true)
}

/// What is longer than its way goes in fragments (RFC 8656 §13, §14: DF only where asked). Over IPv4 routers cut it, so OMIT: no DF, and nobody's
/// ICMP can shrink what we send. Over IPv6 nobody but the sender may, and it knows from ICMP alone that it must: DONT believes that, down to
/// the 1,280 bytes that every link takes.
fn set_fragmenting(socket: BorrowedFd<'_>, is_v6: bool, may: bool) -> io::Result<()> {
    let (level, name, fragments, whole) = if is_v6 {
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
            libc::IPV6_PMTUDISC_DO,
        )
    } else {
        (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_OMIT,
            libc::IP_PMTUDISC_DO,
        )
    };
    sys::set_option(socket, level, name, if may { fragments } else { whole })
}

/// Ends of the list of datagrams that wait for one socket.
#[derive(Clone, Copy)]
struct Chain {
    head: u16,
    tail: u16,
}

const NONE: u16 = u16::MAX;
const EMPTY: Chain = Chain { head: NONE, tail: NONE };

struct Listener {
    socket: OwnedFd,
    chain: Chain,
    /// How many datagrams to ask for next time.
    appetite: u8,
    overflowed: u32,
}

/// What a relayed address costs us beside its socket, for each that could be.
struct Relay {
    socket: Option<OwnedFd>,
    chain: Chain,
    appetite: u8,
    /// It stands in the list of those that may have more.
    is_unfinished: bool,
}

struct Waiting {
    datagram: Datagram,
    next: u16,
}

/// All UDP sockets of one shard, and their datagrams.
pub struct Sockets {
    epoll: Epoll,
    listeners: Vec<Listener>,
    relays: Vec<Relay>,
    /// Places of relayed addresses that may have more; no event tells them again.
    unfinished: VecDeque<u32>,
    slots: Slots,
    /// Slots that hold something, from the first.
    used: usize,
    area_used: usize,
    queue: Vec<Waiting>,
    /// Datagrams in the queue.
    queued: usize,
    /// Sockets with something in the queue, in order.
    touched: Vec<Through>,
    outgoing: Outgoing,
    messages: Vec<Message>,
    pieces: Vec<Piece>,
    /// The system takes segments.
    segments: bool,
    unsent: Vec<Unsent>,
}

impl Sockets {
    /// `relays` is how many relayed addresses there can be. `token` names listeners in the epoll.
    pub fn new(epoll: Epoll, listeners: Vec<OwnedFd>, relays: usize, token: impl Fn(u8) -> u64) -> io::Result<Self> {
        for (number, socket) in (0u8..).zip(&listeners) {
            epoll.add(socket.as_fd(), token(number), Interest::Read)?;
        }
        let mut relay_list = Vec::new();
        relay_list.resize_with(relays, || Relay {
            socket: None,
            chain: EMPTY,
            appetite: LEAST_APPETITE,
            is_unfinished: false,
        });
        let listeners = listeners.into_iter().map(|socket| Listener {
            socket,
            chain: EMPTY,
            appetite: LEAST_APPETITE,
            overflowed: 0,
        });
        Ok(Self {
            epoll,
            listeners: listeners.collect(),
            relays: relay_list,
            unfinished: VecDeque::with_capacity(relays),
            slots: Slots::new(BATCH, HEADROOM, AREA),
            used: 0,
            area_used: ZEROS,
            queue: Vec::with_capacity(QUEUE),
            queued: 0,
            touched: Vec::with_capacity(QUEUE),
            outgoing: Outgoing::new(BATCH, 3 * QUEUE),
            messages: Vec::with_capacity(QUEUE),
            pieces: Vec::with_capacity(3 * QUEUE),
            segments: true,
            unsent: Vec::with_capacity(QUEUE),
        })
    }

    pub const fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Binds a relayed address and listens to it.
    pub fn open(&mut self, place: usize, address: SocketAddr, token: u64) -> io::Result<()> {
        let relay = self.relays.get_mut(place).ok_or(io::ErrorKind::InvalidInput)?;
        let socket = open_relay(address)?;
        self.epoll.add(socket.as_fd(), token, Interest::ReadOnce)?;
        relay.socket = Some(socket);
        relay.appetite = LEAST_APPETITE;
        Ok(())
    }

    /// Returns how many datagrams the socket had no room for.
    pub fn close(&mut self, place: usize) -> u32 {
        let socket = self.relays.get_mut(place).and_then(|relay| relay.socket.take());
        socket.map_or(0, |socket| sys::overflowed(socket.as_fd()))
    }

    pub fn relay(&self, place: usize) -> Option<BorrowedFd<'_>> {
        self.relays.get(place)?.socket.as_ref().map(AsFd::as_fd)
    }

    /// Datagrams that the listeners had no room for since this was last asked.
    pub fn newly_overflowed(&mut self) -> u32 {
        let mut sum = 0;
        for listener in &mut self.listeners {
            let now = sys::overflowed(listener.socket.as_fd());
            sum += now.wrapping_sub(listener.overflowed);
            listener.overflowed = now;
        }
        sum
    }

    /// Slots that can still take a datagram.
    pub const fn free(&self) -> usize {
        BATCH - self.used
    }

    /// Takes what a listener has: the range of slots, and whether there may be more.
    pub fn receive_clients(&mut self, number: u8) -> (Range<usize>, bool) {
        let Some(listener) = self.listeners.get_mut(usize::from(number)) else {
            return (0..0, false);
        };
        let most = usize::from(listener.appetite).min(BATCH - self.used);
        let received = self.slots.receive(listener.socket.as_fd(), self.used, most);
        let (count, has_more) = outcome(received, most);
        listener.appetite = appetite(count, most);
        let from = self.used;
        self.used += count;
        (from..self.used, has_more)
    }

    /// Whether as many slots are free as a relayed address is likely to need.
    pub fn has_slots_for(&self, place: usize) -> bool {
        let appetite = self.relays.get(place).map_or(0, |relay| relay.appetite);
        usize::from(appetite.min(FEW)) <= BATCH - self.used
    }

    /// Takes what a relayed address has: the range of slots. One that may have more is in the list of the unfinished.
    pub fn receive_peers(&mut self, place: u32) -> Range<usize> {
        let Some(relay) = self.relays.get_mut(place as usize) else {
            return 0..0;
        };
        let Some(socket) = &relay.socket else {
            return 0..0;
        };
        let most = usize::from(relay.appetite).min(BATCH - self.used);
        let received = self.slots.receive(socket.as_fd(), self.used, most);
        let (count, has_more) = outcome(received, most);
        relay.appetite = appetite(count, most);
        if has_more && !relay.is_unfinished {
            relay.is_unfinished = true;
            self.unfinished.push_back(place);
        }
        let from = self.used;
        self.used += count;
        from..self.used
    }

    /// How many relayed addresses may have more.
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    pub fn next_unfinished(&mut self) -> Option<u32> {
        let place = self.unfinished.pop_front()?;
        if let Some(relay) = self.relays.get_mut(place as usize) {
            relay.is_unfinished = false;
        }
        Some(place)
    }

    /// What came into a slot, and where it begins in the memory. To be asked once.
    pub fn take(&mut self, slot: usize) -> Option<(Received, usize)> {
        Some((self.slots.take(slot)?, self.slots.start(slot)))
    }

    pub fn memory(&self) -> &[u8] {
        self.slots.memory()
    }

    /// Whether one more datagram, with a prefix or an answer of its own, can be queued; if not, it is time to flush.
    pub fn has_room(&self) -> bool {
        self.queued + usize::from(Run::MOST) <= QUEUE && self.area_used + LEAST_AREA <= AREA
    }

    /// Copies bytes to where the next flush still finds them.
    pub fn keep(&mut self, bytes: &[u8]) -> Piece {
        let start = self.slots.area().start + self.area_used;
        let Some(place) = self.slots.memory_mut().get_mut(start..start + bytes.len()) else {
            return Piece::default();
        };
        place.copy_from_slice(bytes);
        self.area_used += bytes.len();
        Piece {
            start: start as u32,
            length: bytes.len() as u32,
        }
    }

    /// Writes bytes directly in front of `at`, which nobody needs any more, back to `floor`.
    pub fn put_before(&mut self, at: usize, floor: usize, bytes: &[u8]) -> bool {
        let Some(start) = at.checked_sub(bytes.len()).filter(|start| *start >= floor) else {
            return false;
        };
        match self.slots.memory_mut().get_mut(start..at) {
            Some(place) => {
                place.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// Up to three zero bytes.
    pub fn zeros(&self, length: usize) -> Piece {
        Piece {
            start: self.slots.area().start as u32,
            length: length.min(ZEROS) as u32,
        }
    }

    /// Puts one at the end of its socket's list. The caller has seen [`Sockets::has_room`].
    pub fn push(&mut self, datagram: Datagram) {
        let at = self.queue.len() as u16;
        let through = datagram.through;
        let chain = match through {
            Through::Listener(number) => self.listeners.get_mut(usize::from(number)).map(|one| &mut one.chain),
            Through::Relay(place) => self.relays.get_mut(place as usize).map(|one| &mut one.chain),
        };
        let count = usize::from(datagram.count.max(1));
        let Some(chain) = chain.filter(|_| self.queued + count <= QUEUE) else {
            return;
        };
        self.queued += count;
        if chain.head == NONE {
            chain.head = at;
            self.touched.push(through);
        } else if let Some(last) = self.queue.get_mut(usize::from(chain.tail)) {
            last.next = at;
        }
        chain.tail = at;
        self.queue.push(Waiting { datagram, next: NONE });
    }

    /// Sends all that waits. Slots are free again if `done` with them.
    pub fn flush(&mut self, done: bool) {
        for at in 0..self.touched.len() {
            if let Some(through) = self.touched.get(at).copied() {
                self.send_chain(through);
            }
        }
        self.touched.clear();
        self.queue.clear();
        self.queued = 0;
        self.area_used = ZEROS;
        if done {
            self.used = 0;
        }
    }

    /// What did not go out since this was last asked.
    pub fn unsent(&mut self) -> impl Iterator<Item = Unsent> + '_ {
        self.unsent.drain(..)
    }

    fn send_chain(&mut self, through: Through) {
        let (socket, chain) = match through {
            Through::Listener(number) => match self.listeners.get_mut(usize::from(number)) {
                Some(one) => (Some(&one.socket), &mut one.chain),
                None => return,
            },
            Through::Relay(place) => match self.relays.get_mut(place as usize) {
                Some(one) => (one.socket.as_ref(), &mut one.chain),
                None => return,
            },
        };
        let mut at = std::mem::replace(chain, EMPTY).head;
        self.messages.clear();
        self.pieces.clear();
        let mut joined = Joined::default();
        while let Some(waiting) = self.queue.get(usize::from(at)) {
            let datagram = &waiting.datagram;
            at = waiting.next;
            let Some(socket) = socket else {
                note(&mut self.unsent, Unsent::Closed);
                continue;
            };
            if datagram.dont_fragment {
                send_unfragmented(
                    socket.as_fd(),
                    &self.slots,
                    &mut self.outgoing,
                    datagram,
                    &mut self.unsent,
                );
                continue;
            }
            let from = self.pieces.len();
            datagram.lay_out(&mut self.pieces);
            let size = datagram.pieces.iter().map(|piece| piece.length as usize).sum();
            let count = usize::from(datagram.count.max(1));
            if self.segments
                && let Some(last) = self.messages.last_mut()
                && joined.takes(last, datagram, size, count)
            {
                last.segment = joined.segment as u16;
                last.pieces.end = self.pieces.len() as u32;
                continue;
            }
            joined = Joined::first(size, count);
            let segment = if count > 1 { size as u16 } else { 0 };
            self.messages.push(Message {
                to: datagram.to,
                pieces: from as u32..self.pieces.len() as u32,
                segment,
                ecn: datagram.ecn,
            });
        }
        let Some(socket) = socket else {
            return;
        };
        let mut sending = Sending {
            socket: socket.as_fd(),
            memory: self.slots.memory(),
            pieces: &self.pieces,
            outgoing: &mut self.outgoing,
            unsent: &mut self.unsent,
            segments: &mut self.segments,
        };
        for messages in self.messages.chunks(BATCH) {
            sending.send(messages);
        }
    }
}

/// Zero bytes at the start of the area.
const ZEROS: usize = 8;

/// One more than the usual one datagram, so that one call also learns that there is no other.
const LEAST_APPETITE: u8 = 2;
/// A socket that wants more slots than this gets what is free.
const FEW: u8 = 16;

/// As much as came and a little more; much more after a full hand.
fn appetite(count: usize, most: usize) -> u8 {
    let next = if count == most { most * 4 } else { count + count / 4 + 1 };
    next.clamp(usize::from(LEAST_APPETITE), BATCH) as u8
}

/// How many came, and whether there may be more. An error of an earlier datagram comes first and says nothing about what waits.
fn outcome(received: io::Result<usize>, most: usize) -> (usize, bool) {
    match received {
        Ok(count) => (count, count == most),
        Err(error) => (0, error.kind() != io::ErrorKind::WouldBlock),
    }
}

/// The segments of the last message.
#[derive(Default)]
struct Joined {
    segment: usize,
    together: usize,
    count: usize,
    is_closed: bool,
}

impl Joined {
    const fn first(size: usize, count: usize) -> Self {
        Self {
            segment: size,
            together: size * count,
            count,
            is_closed: size == 0 || size > LONGEST_SEGMENT,
        }
    }

    /// Whether so many more go to the same place in equal parts; a shorter one is the last.
    fn takes(&mut self, last: &Message, datagram: &Datagram, size: usize, count: usize) -> bool {
        let fits = !self.is_closed
            && size > 0
            && (size == self.segment || size < self.segment && count == 1)
            && self.together + size * count <= MOST_TOGETHER
            && self.count + count <= MOST_SEGMENTS
            && last.to == datagram.to
            && last.ecn == datagram.ecn;
        if fits {
            self.together += size * count;
            self.count += count;
            self.is_closed = size < self.segment;
        }
        fits
    }
}

struct Sending<'a> {
    socket: BorrowedFd<'a>,
    memory: &'a [u8],
    pieces: &'a [Piece],
    outgoing: &'a mut Outgoing,
    unsent: &'a mut Vec<Unsent>,
    segments: &'a mut bool,
}

impl Sending<'_> {
    fn send(&mut self, mut messages: &[Message]) {
        let mut has_failed = false;
        while let Some(message) = messages.first() {
            if message.segment != 0 && !*self.segments {
                self.send_singly(message);
                messages = messages.get(1..).unwrap_or_default();
                continue;
            }
            match self.outgoing.send(self.socket, self.memory, self.pieces, messages) {
                Ok(0) => return,
                Ok(sent) => {
                    messages = messages.get(sent..).unwrap_or_default();
                    has_failed = false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    messages.iter().for_each(|_| note(self.unsent, Unsent::WouldBlock));
                    return;
                }
                // An error of an earlier datagram, which ICMP brought, is told to the next call, whose datagram is still here.
                Err(_) if !has_failed => has_failed = true,
                Err(error) => {
                    if message.segment == 0 {
                        note(self.unsent, Unsent::Refused);
                    } else {
                        // A link that cannot sum up segments, or not so long ones.
                        if error.raw_os_error() == Some(libc::EIO) {
                            *self.segments = false;
                        }
                        self.send_singly(message);
                    }
                    messages = messages.get(1..).unwrap_or_default();
                    has_failed = false;
                }
            }
        }
    }

    /// The segments of one message, each on its own. A piece is never a part of two segments, but may be several whole ones.
    fn send_singly(&mut self, message: &Message) {
        let segment = u32::from(message.segment);
        let pieces = self
            .pieces
            .get(message.pieces.start as usize..message.pieces.end as usize);
        let mut single = [Piece::default(); 3];
        let (mut used, mut length) = (0, 0);
        for piece in pieces.unwrap_or_default() {
            let mut rest = *piece;
            while rest.length > 0 {
                let part = Piece {
                    start: rest.start,
                    length: rest.length.min(segment - length),
                };
                rest.start += part.length;
                rest.length -= part.length;
                length += part.length;
                if let Some(place) = single.get_mut(used) {
                    *place = part;
                }
                used += 1;
                if length == segment {
                    self.send_pieces(message, single.get(..used).unwrap_or_default());
                    (used, length) = (0, 0);
                }
            }
        }
        if length > 0 {
            self.send_pieces(message, single.get(..used).unwrap_or_default());
        }
    }

    fn send_pieces(&mut self, message: &Message, pieces: &[Piece]) {
        let single = Message {
            pieces: 0..pieces.len() as u32,
            segment: 0,
            ..message.clone()
        };
        let single = std::slice::from_ref(&single);
        if self.outgoing.send(self.socket, self.memory, pieces, single).is_err() {
            note(self.unsent, Unsent::Refused);
        }
    }
}

/// DF is an option of the socket, not of a datagram.
fn send_unfragmented(
    socket: BorrowedFd<'_>,
    slots: &Slots,
    outgoing: &mut Outgoing,
    datagram: &Datagram,
    unsent: &mut Vec<Unsent>,
) {
    let is_v6 = datagram.to.is_ipv6();
    let message = Message {
        to: datagram.to,
        pieces: 0..3,
        segment: 0,
        ecn: datagram.ecn,
    };
    let mut is_sent = false;
    if set_fragmenting(socket, is_v6, false).is_ok() {
        // The first call may only bring the error of an earlier datagram.
        is_sent = (0..2).any(|_| {
            let message = std::slice::from_ref(&message);
            outgoing.send(socket, slots.memory(), &datagram.pieces, message).is_ok()
        });
    }
    let _ = set_fragmenting(socket, is_v6, true);
    if !is_sent {
        note(unsent, Unsent::Refused);
    }
}

fn note(unsent: &mut Vec<Unsent>, what: Unsent) {
    if unsent.len() < unsent.capacity() {
        unsent.push(what);
    }
}
