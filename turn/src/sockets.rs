//! The UDP sockets of one shard: listeners and relayed addresses; datagrams in, datagrams out, many at a time.
//!
//! In: datagrams into slots of one memory. Out: what is queued here, each socket's in one call. Never: takes a payload out of its slot, or
//! knows who may talk to whom.
//!
//! What is queued points into the slots, so a slot may be used again only after [`Sockets::flush`].

mod runs;
mod sending;

use crate::sys::{self, Epoll, Events, Interest, Message, Outgoing, Piece, Received, Slots, Watch};
use sending::{Joined, Sending, send_unfragmented};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use turn_core::control::HEADROOM;
use turn_core::forwarding::Run;
use turn_core::wire::CHANNEL_HEADER;
use zeroize::Zeroize;

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

/// Datagrams that should have gone out and did not, by why. Those that go in one message count one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsent {
    /// The socket's send buffer was full, or the queue of the link.
    pub would_block: u64,
    /// The system refused: no route, too big, a filter.
    pub refused: u64,
    /// The relayed address was closed meanwhile.
    pub closed: u64,
}

impl Unsent {
    pub fn note(&mut self, error: &io::Error, count: u64) {
        if is_of_room(error) {
            self.would_block += count;
        } else {
            self.refused += count;
        }
    }
}

/// Whether there was no room for what was sent, in the socket or in the queue of the link (which a socket that asks for ICMP errors is told, too).
fn is_of_room(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
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
/// Bytes in front of each slot: the longest prefix, or those of a whole run of ChannelData.
pub const ROOM: usize = 256;
const _: () = assert!(ROOM >= HEADROOM && ROOM >= CHANNEL_HEADER * Run::MOST as usize);
/// Room for what is not in a slot: prefixes, answers, frames of streams.
const AREA: usize = 256 << 10;
/// The longest prefix, answer or frame of a stream goes in.
const LEAST_AREA: usize = 66 << 10;

/// Of a socket that might wait, the kernel takes apart what is there each time it is asked whether something is.
const DATAGRAMS: Type = Type::DGRAM.nonblocking();

/// A UDP socket for one listening address. Each shard binds one of its own.
pub fn listen_udp(address: SocketAddr, buffers: Buffers, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), DATAGRAMS, Some(Protocol::UDP))?;
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
    let socket = Socket::new(Domain::for_address(address), DATAGRAMS, Some(Protocol::UDP))?;
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
    appetite: Appetite,
    overflowed: u32,
}

/// What a relayed address costs us beside its socket, for each that could be.
struct Relay {
    socket: Option<OwnedFd>,
    chain: Chain,
    appetite: Appetite,
}

struct Waiting {
    datagram: Datagram,
    next: u16,
}

/// All UDP sockets of one shard, and their datagrams.
pub struct Sockets {
    /// Watches the relayed addresses, and what else the shard puts there.
    epoll: Epoll,
    /// The epoll, then the listeners.
    watch: Watch,
    /// Counts waits.
    round: u32,
    /// Counts waits that told of all that was ready, not only of as much as there is room for.
    sweep: u32,
    /// The last look did not give all that was ready.
    is_amid_sweep: bool,
    listeners: Vec<Listener>,
    relays: Vec<Relay>,
    /// By relayed address, what of its overflow has been told. Not within [`Relay`], which is looked at for each packet.
    overflow_told: Vec<u32>,
    /// Where the next look for overflow begins.
    overflow_looked: usize,
    slots: Slots,
    /// Slots that hold something, from the first.
    used: usize,
    area_used: usize,
    /// As much of the area as was used at once since the last wipe.
    most_area_used: usize,
    queue: Vec<Waiting>,
    /// Datagrams in the queue.
    queued: usize,
    /// As many as there were at once since the last wipe.
    most_queued: usize,
    /// Sockets with something in the queue, in order.
    touched: Vec<Through>,
    outgoing: Outgoing,
    messages: Vec<Message>,
    pieces: Vec<Piece>,
    /// The system takes segments.
    segments: bool,
    unsent: Unsent,
}

impl Sockets {
    /// `relays` is how many relayed addresses there can be.
    pub fn new(epoll: Epoll, listeners: Vec<OwnedFd>, relays: usize) -> Self {
        let watched = std::iter::once(epoll.as_fd()).chain(listeners.iter().map(AsFd::as_fd));
        let watch = Watch::new(watched);
        let mut relay_list = Vec::new();
        relay_list.resize_with(relays, || Relay {
            socket: None,
            chain: EMPTY,
            appetite: Appetite::SMALL,
        });
        let listeners = listeners.into_iter().map(|socket| Listener {
            socket,
            chain: EMPTY,
            appetite: Appetite::LARGE,
            overflowed: 0,
        });
        Self {
            epoll,
            watch,
            round: 0,
            sweep: 0,
            is_amid_sweep: false,
            listeners: listeners.collect(),
            relays: relay_list,
            overflow_told: vec![0; relays],
            overflow_looked: 0,
            slots: Slots::new(BATCH, ROOM, AREA),
            used: 0,
            area_used: ZEROS,
            most_area_used: 0,
            queue: Vec::with_capacity(QUEUE),
            queued: 0,
            most_queued: 0,
            touched: Vec::with_capacity(QUEUE),
            outgoing: Outgoing::new(BATCH, 3 * QUEUE),
            messages: Vec::with_capacity(QUEUE),
            pieces: Vec::with_capacity(3 * QUEUE),
            segments: true,
            unsent: Unsent::default(),
        }
    }

    pub const fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Until there is something on any socket, or elsewhere in the epoll. Or only looks, and does not wait. Events are those of the epoll.
    pub fn wait(&mut self, events: &mut Events, only_looks: bool) -> io::Result<()> {
        self.round = self.round.wrapping_add(1);
        if !self.is_amid_sweep {
            self.sweep = self.sweep.wrapping_add(1);
        }
        self.watch.wait(only_looks)?;
        if self.watch.is_ready(0) {
            self.epoll.look(events)?;
        } else {
            events.clear();
        }
        self.is_amid_sweep = events.is_full();
        Ok(())
    }

    /// How many listeners there are.
    pub fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// Whether a listener had something at the last wait.
    pub fn is_ready(&self, number: u8) -> bool {
        self.watch.is_ready(usize::from(number) + 1)
    }

    /// Binds a relayed address and listens to it.
    pub fn open(&mut self, place: usize, address: SocketAddr, token: u64) -> io::Result<()> {
        let relay = self.relays.get_mut(place).ok_or(io::ErrorKind::InvalidInput)?;
        let socket = open_relay(address)?;
        self.epoll.add(socket.as_fd(), token, Interest::Read)?;
        relay.socket = Some(socket);
        relay.appetite = Appetite::SMALL;
        if let Some(told) = self.overflow_told.get_mut(place) {
            *told = 0;
        }
        Ok(())
    }

    /// Returns how many datagrams the socket had no room for, beside those that [`Sockets::newly_overflowed_relays`] told.
    pub fn close(&mut self, place: usize) -> u32 {
        let overflowed = self.newly_overflowed_at(place);
        if let Some(relay) = self.relays.get_mut(place) {
            relay.socket = None;
        }
        overflowed
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

    /// The same for some of the relayed addresses: asked often enough, it tells of all.
    pub fn newly_overflowed_relays(&mut self) -> u64 {
        let (mut sum, mut asked) = (0, 0);
        for _ in 0..self.relays.len().min(PLACES_AT_ONCE) {
            let place = self.overflow_looked;
            self.overflow_looked = (place + 1) % self.relays.len();
            if self.relay(place).is_none() {
                continue;
            }
            sum += u64::from(self.newly_overflowed_at(place));
            asked += 1;
            if asked == RELAYS_ASKED_AT_ONCE {
                break;
            }
        }
        sum
    }

    fn newly_overflowed_at(&mut self, place: usize) -> u32 {
        let now = self.relay(place).map(sys::overflowed);
        let told = self.overflow_told.get_mut(place);
        now.zip(told)
            .map_or(0, |(now, told)| now.wrapping_sub(std::mem::replace(told, now)))
    }

    /// Slots that can still take a datagram.
    pub const fn free(&self) -> usize {
        BATCH - self.used
    }

    /// Takes what a listener has: the range of slots, and whether it filled them. If there is more, the next wait ends at once.
    pub fn receive_clients(&mut self, number: u8) -> (Range<usize>, bool) {
        let Some(listener) = self.listeners.get_mut(usize::from(number)) else {
            return (0..0, false);
        };
        let most = listener.appetite.most().min(BATCH - self.used);
        // An error of an earlier datagram comes first and says nothing about what waits.
        let count = self
            .slots
            .receive(listener.socket.as_fd(), self.used, most)
            .unwrap_or(0);
        listener.appetite.learn(count, self.round);
        let from = self.used;
        self.used += count;
        (from..self.used, self.used == BATCH)
    }

    /// Whether as many slots are free as a relayed address is likely to need.
    pub fn has_slots_for(&self, place: usize) -> bool {
        let most = self.relays.get(place).map_or(0, |relay| relay.appetite.most());
        most.min(FEW) <= BATCH - self.used
    }

    /// Takes what a relayed address has: the range of slots. If there is more, the next wait ends at once.
    pub fn receive_peers(&mut self, place: u32) -> Range<usize> {
        let Some(relay) = self.relays.get_mut(place as usize) else {
            return 0..0;
        };
        let Some(socket) = &relay.socket else {
            return 0..0;
        };
        let most = relay.appetite.most().min(BATCH - self.used);
        let count = self.slots.receive(socket.as_fd(), self.used, most).unwrap_or(0);
        relay.appetite.learn(count, self.sweep);
        let from = self.used;
        self.used += count;
        from..self.used
    }

    /// A relayed address gave several datagrams in one piece.
    pub fn had_run(&mut self, place: u32) {
        if let Some(relay) = self.relays.get_mut(place as usize) {
            relay.appetite = Appetite {
                is_large: true,
                doubts: 0,
                ..relay.appetite
            };
        }
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

    /// As [`runs::put_between`].
    pub fn put_between(
        &mut self,
        at: usize,
        floor: usize,
        length: usize,
        count: usize,
        header: &[u8],
    ) -> Option<usize> {
        runs::put_between(self.slots.memory_mut(), at, floor, length, count, header)
    }

    /// As [`runs::close_up`].
    pub fn close_up(&mut self, at: usize, length: usize, stride: usize, count: usize) -> bool {
        runs::close_up(self.slots.memory_mut(), at, length, stride, count)
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
        self.most_queued = self.most_queued.max(self.queued);
        self.queued = 0;
        self.most_area_used = self.most_area_used.max(self.area_used);
        self.area_used = ZEROS;
        if done {
            self.used = 0;
        }
    }

    /// Overwrites what datagrams left that have gone: their bytes, where they came from and where they went. Only after [`Sockets::flush`],
    /// as what waits lies in the same memory. Without a datagram since the last time nothing is done.
    pub fn wipe(&mut self) {
        let datagrams = std::mem::take(&mut self.most_queued);
        // Each datagram is three pieces at most, and a message at most.
        let pieces = 3 * datagrams;
        self.slots.wipe(std::mem::take(&mut self.most_area_used));
        self.outgoing.wipe(datagrams, pieces);
        wipe_room(&mut self.queue, datagrams);
        wipe_room(&mut self.touched, datagrams);
        wipe_room(&mut self.messages, datagrams);
        wipe_room(&mut self.pieces, pieces);
    }

    /// What did not go out since this was last asked.
    pub fn unsent(&mut self) -> Unsent {
        std::mem::take(&mut self.unsent)
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
                self.unsent.closed += u64::from(datagram.count.max(1));
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

/// Empties a list of which no more than so many items were in use.
fn wipe_room<T>(list: &mut Vec<T>, most: usize) {
    list.clear();
    let room = list.spare_capacity_mut();
    let most = most.min(room.len());
    room.get_mut(..most).unwrap_or_default().zeroize();
}

/// Places for relayed addresses that one look for overflow passes, and sockets that it asks, at some 300 ns each. Where all of 16,384 are
/// open and there are four looks a second, each is asked in 16 seconds.
const PLACES_AT_ONCE: usize = 4_096;
const RELAYS_ASKED_AT_ONCE: usize = 256;

/// Zero bytes at the start of the area.
const ZEROS: usize = 8;

/// A socket that wants more slots than this gets what is free.
const FEW: usize = 16;

/// How many datagrams to ask a socket for: one, or all. A receive that does not also learn that there is no other costs half as much, and
/// most sockets have one at a time; if there is another, the next wait ends at once. A socket that is ready again before all others were
/// asked once has more: then the shard is behind, and all in one receive is cheaper, and goes on in one piece. Beside a burst that came in one piece
/// the second look costs little, and what waits behind it may go on with it.
#[derive(Clone, Copy)]
struct Appetite {
    is_large: bool,
    /// Receives one after the other that spoke for a change.
    doubts: u8,
    /// The wait, or the sweep, before the last receive.
    turn: u32,
}

impl Appetite {
    const LARGE: Self = Self {
        is_large: true,
        doubts: 0,
        turn: u32::MAX,
    };
    const SMALL: Self = Self {
        is_large: false,
        ..Self::LARGE
    };
    /// A steady trickle, too, has one datagram in each of some rounds.
    const PATIENCE: u8 = 16;
    /// The first datagram of many often comes alone.
    const LONELY: u8 = 2;

    const fn most(self) -> usize {
        if self.is_large { BATCH } else { 1 }
    }

    fn learn(&mut self, count: usize, turn: u32) {
        let since = turn.wrapping_sub(self.turn);
        self.turn = turn;
        let (is_doubt, most) = match (self.is_large, since) {
            (true, _) => (count <= 1, Self::LONELY),
            (false, 0) => (count == 1, 1),
            (false, _) => (count == 1 && since == 1, Self::PATIENCE),
        };
        self.doubts = if is_doubt { self.doubts + 1 } else { 0 };
        if self.doubts >= most {
            self.is_large = !self.is_large;
            self.doubts = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_with_one_datagram_now_and_then_is_asked_for_one() {
        let mut appetite = Appetite::LARGE;
        for round in 0..2 {
            assert_eq!(appetite.most(), BATCH);
            appetite.learn(1, round);
        }
        for round in 1..1_000 {
            assert_eq!(appetite.most(), 1);
            // Not at each wait.
            appetite.learn(1, round * 2);
        }
    }

    #[test]
    fn a_socket_that_is_ready_again_before_all_others_were_asked_is_asked_for_all() {
        let mut appetite = Appetite::SMALL;
        appetite.learn(1, 7);
        assert_eq!(appetite.most(), 1);
        appetite.learn(1, 7);
        assert_eq!(appetite.most(), BATCH);
        appetite.learn(1, 8);
        appetite.learn(1, 9);
        assert_eq!(appetite.most(), 1);
    }

    #[test]
    fn a_socket_that_always_has_more_is_soon_asked_for_all() {
        let mut appetite = Appetite::SMALL;
        let small = (1..1_000)
            .take_while(|round| {
                appetite.learn(1, *round);
                appetite.most() == 1
            })
            .count();
        assert!(small < 20, "{small}");
        // The first of many comes alone.
        for round in 1_000..1_100 {
            appetite.learn(if round % 2 == 0 { 1 } else { 15 }, round);
            assert_eq!(appetite.most(), BATCH);
        }
    }

    #[test]
    fn a_link_without_room_counts_as_a_socket_without_room_and_nothing_else_does() {
        let mut unsent = Unsent::default();
        for (error, count) in [
            (libc::ENOBUFS, 16),
            (libc::EAGAIN, 4),
            (libc::ENETUNREACH, 2),
            (libc::EMSGSIZE, 1),
        ] {
            unsent.note(&io::Error::from_raw_os_error(error), count);
        }
        assert_eq!((unsent.would_block, unsent.refused), (20, 3));
    }

    /// A listener whose send buffer is full, and what keeps it so. No datagram stays in a socket on loopback, but bytes of a stream do,
    /// and where they go and in what segments a stream does not ask.
    fn full_sockets() -> (Sockets, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reader, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        for length in [65_536, 1] {
            while std::io::Write::write(&mut &stream, &vec![0; length]).is_ok() {}
        }
        (Sockets::new(Epoll::new().unwrap(), vec![stream.into()], 1), reader)
    }

    fn run_of(count: u16, through: Through) -> Datagram {
        Datagram {
            through,
            to: "127.0.0.1:9".parse().unwrap(),
            pieces: [Piece::default(), Piece { start: 0, length: 100 }, Piece::default()],
            count,
            stride: 100,
            ecn: 0,
            dont_fragment: false,
        }
    }

    #[test]
    fn each_datagram_that_a_full_socket_does_not_take_counts() {
        let would_block = |would_block| Unsent {
            would_block,
            ..Unsent::default()
        };
        let (mut sockets, _reader) = full_sockets();
        let run = run_of(16, Through::Listener(0));
        // Of two places in turn, so that no two are joined.
        for port in 0..10 {
            let to = SocketAddr::new(run.to.ip(), 9 + port % 2);
            sockets.push(Datagram { to, ..run });
        }
        sockets.flush(true);
        assert_eq!(sockets.unsent(), would_block(160));
        // Of which the last is shorter.
        let mut last = run_of(1, Through::Listener(0));
        last.pieces = [Piece::default(), Piece { start: 0, length: 7 }, Piece::default()];
        [run, last].into_iter().for_each(|datagram| sockets.push(datagram));
        sockets.flush(true);
        assert_eq!(sockets.unsent(), would_block(17));
        // Where the link takes no segments.
        sockets.segments = false;
        sockets.push(run);
        sockets.flush(true);
        assert_eq!(sockets.unsent(), would_block(16));
        // With DF.
        sockets.push(Datagram {
            dont_fragment: true,
            ..run_of(1, Through::Listener(0))
        });
        sockets.flush(true);
        assert_eq!(sockets.unsent(), would_block(1));
        assert_eq!(sockets.unsent(), Unsent::default());
    }

    /// A list as it lies in memory, with the room that it does not use.
    fn room_of<T>(list: &Vec<T>) -> Vec<u8> {
        let mut bytes = vec![0; list.capacity() * size_of::<T>()];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, list.as_ptr().addr() as u64).unwrap();
        bytes
    }

    fn has(bytes: &[u8], needle: &[u8]) -> bool {
        bytes.windows(needle.len()).any(|window| window == needle)
    }

    #[test]
    fn after_a_wipe_no_buffer_has_a_packet_or_an_address() {
        let listener = listen_udp("127.0.0.1:0".parse().unwrap(), Buffers::default(), false).unwrap();
        let at = listener.local_addr().unwrap().as_socket().unwrap();
        let client = std::net::UdpSocket::bind("127.71.83.97:0").unwrap();
        let mut sockets = Sockets::new(Epoll::new().unwrap(), vec![listener.into()], 1);
        let from = [127, 71, 83, 97];
        // Two rounds, the second with less: what the first left is known as well.
        for (packet, answers) in [(b"a long name and its text".as_slice(), 5), (b"short", 2)] {
            client.send_to(packet, at).unwrap();
            let mut events = Events::new(4);
            sockets.wait(&mut events, false).unwrap();
            let (slots, _) = sockets.receive_clients(0);
            let (received, start) = slots.map(|slot| sockets.take(slot).unwrap()).next().unwrap();
            assert_eq!(received.source, client.local_addr().unwrap());
            assert!(sockets.put_before(start, start - ROOM, b"what stands before it"));
            for _ in 0..answers {
                let answer = sockets.keep(b"an answer to a request");
                let to = client.local_addr().unwrap();
                let pieces = [Piece::default(), answer, Piece::default()];
                // With ECN bits, so that it does not go the shorter way.
                let alone = run_of(1, Through::Listener(0));
                sockets.push(Datagram {
                    to,
                    pieces,
                    ecn: 1,
                    ..alone
                });
                sockets.push(Datagram {
                    to,
                    pieces,
                    ecn: 2,
                    ..alone
                });
            }
            sockets.flush(true);
        }
        let private: [&[u8]; 4] = [b"name and its text", b"what stands before", b"an answer to", b"short"];
        assert!(private.iter().all(|text| has(sockets.memory(), text)));
        assert!(has(&room_of(&sockets.queue), &from) && has(&room_of(&sockets.messages), &from));
        sockets.wipe();
        assert!(sockets.memory().iter().all(|byte| *byte == 0));
        assert!(!has(&room_of(&sockets.queue), &from) && !has(&room_of(&sockets.messages), &from));
        let unused = (sockets.most_queued, sockets.most_area_used);
        assert_eq!((unused, sockets.unsent()), ((0, 0), Unsent::default()));
    }

    #[test]
    fn overflow_of_a_relayed_address_is_told_while_it_is_open_and_once() {
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sockets = Sockets::new(Epoll::new().unwrap(), Vec::new(), 3 * PLACES_AT_ONCE);
        let flooded = |sockets: &mut Sockets, place: usize| {
            let socket = sockets.relay(place).unwrap();
            let socket = socket2::SockRef::from(&socket)
                .local_addr()
                .unwrap()
                .as_socket()
                .unwrap();
            (0..2_000).for_each(|_| assert_eq!(peer.send_to(&[1; 1_000], socket).unwrap(), 1_000));
        };
        let open = |sockets: &mut Sockets, place| sockets.open(place, "127.0.0.1:0".parse().unwrap(), 0).unwrap();
        let (near, far) = (7, 2 * PLACES_AT_ONCE + 7);
        [near, far].into_iter().for_each(|place| open(&mut sockets, place));
        assert_eq!(sockets.newly_overflowed_relays(), 0);
        flooded(&mut sockets, far);
        // It is passed in the third look of each three.
        let told: Vec<u64> = (0..6).map(|_| sockets.newly_overflowed_relays()).collect();
        let all: u64 = told.iter().sum();
        assert!(
            all > 100 && told.iter().filter(|count| **count > 0).count() == 1,
            "{told:?}"
        );
        flooded(&mut sockets, far);
        // It is full.
        let rest = sockets.close(far);
        assert!((1_900..=2_000).contains(&rest), "{rest}");
        assert_eq!(sockets.close(far), 0);
        // Who has the place next begins at nothing.
        open(&mut sockets, far);
        assert_eq!(sockets.close(far) + sockets.close(near), 0);
    }

    #[test]
    fn one_look_for_overflow_asks_a_bounded_number_of_relayed_addresses_and_a_few_looks_ask_all() {
        let mut sockets = Sockets::new(Epoll::new().unwrap(), Vec::new(), 600);
        for place in 0..600 {
            sockets.open(place, "127.0.0.1:0".parse().unwrap(), 0).unwrap();
        }
        let looked: Vec<usize> = (0..3)
            .map(|_| {
                sockets.newly_overflowed_relays();
                sockets.overflow_looked
            })
            .collect();
        assert_eq!(looked, [256, 512, 168]);
        assert_eq!(
            Sockets::new(Epoll::new().unwrap(), Vec::new(), 0).newly_overflowed_relays(),
            0
        );
    }

    #[test]
    fn each_datagram_to_a_relayed_address_that_was_closed_counts() {
        let (mut sockets, _reader) = full_sockets();
        sockets.push(run_of(16, Through::Relay(0)));
        sockets.push(run_of(1, Through::Relay(0)));
        sockets.flush(true);
        let closed = Unsent {
            closed: 17,
            ..Unsent::default()
        };
        assert_eq!(sockets.unsent(), closed);
    }
}
