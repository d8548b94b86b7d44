//! The data plane of one shard: one `turn_core::Server`, its UDP sockets, and what carries the server's word out.
//!
//! In: sockets that are ready, frames of streams, time that passed. Out: datagrams; frames for clients of streams, which `streams` takes
//! with [`Plane::take_posts`]. Never: waits, locks, allocates for a packet, or decides who may talk to whom.

use crate::sockets::{Datagram, ROOM, Sockets, Through};
use crate::sys::{self, Epoll, Events, Piece, Ready, Received};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use turn_core::Server;
use turn_core::control::{Answer, Counters, Hop, Icmp, Output, Prefix, Settings, Shared, Tally};
use turn_core::forwarding::{Recipient, Run};
use turn_core::time::Now;
use turn_core::wire::{CHANNEL_HEADER, FiveTuple, PeerAddr, RelayAddr, Transport};
use zeroize::Zeroize;

/// What the shell could not do. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A datagram, because the socket's send buffer was full.
    SendWouldBlock,
    /// A datagram: no route, too big for the link, a filter.
    SendRefused,
    /// A datagram to a relayed address that was closed meanwhile.
    RelayClosed,
    /// Datagrams that a listener had no room for: more receive buffer, or more shards.
    ListenerOverflow,
    /// Datagrams that a relayed address had no room for.
    RelayOverflow,
    /// A datagram that was longer than it can be, or from no IP address.
    BadDatagram,
    /// Frames for streams for which there was no room although others were handed out in time: it is a bug.
    StreamQueueFull,
}

impl Loss {
    pub const fn label(self) -> &'static str {
        match self {
            Self::SendWouldBlock => "send_would_block",
            Self::SendRefused => "send_refused",
            Self::RelayClosed => "relay_closed",
            Self::ListenerOverflow => "listener_overflow",
            Self::RelayOverflow => "relay_overflow",
            Self::BadDatagram => "bad_datagram",
            Self::StreamQueueFull => "stream_queue_full",
        }
    }
}

/// The start that all shards share, and this shard's view of the clocks.
#[derive(Clone)]
pub struct Clock {
    start: Instant,
    unix_seconds: u64,
    /// When the system's time was last looked at.
    looked_at: Duration,
}

impl Clock {
    /// Steady time begins at `start`, the same for all shards.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            unix_seconds: unix_seconds(),
            looked_at: Duration::ZERO,
        }
    }

    fn read(&mut self) -> Now {
        let steady = self.start.elapsed();
        if steady.saturating_sub(self.looked_at) > Duration::from_millis(250) {
            self.looked_at = steady;
            self.unix_seconds = unix_seconds();
        }
        Now {
            steady,
            unix_seconds: self.unix_seconds,
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The system's randomness, a page at a time: a system call for each Data indication would be too dear.
struct Randomness {
    page: [u8; 4096],
    used: usize,
}

impl Randomness {
    const fn new() -> Self {
        Self {
            page: [0; 4096],
            used: 4096,
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(256) {
            if self.used + piece.len() > self.page.len() {
                // A system that has none now has had some at the start, and this is where keys come from: there is no going on.
                getrandom::fill(&mut self.page).expect("the system gives randomness");
                self.used = 0;
            }
            if let Some(given) = self.page.get_mut(self.used..self.used + piece.len()) {
                piece.copy_from_slice(given);
                given.zeroize();
            }
            self.used += piece.len();
        }
    }
}

/// Frames for clients of streams, copied one behind the other.
pub struct Posts {
    bytes: Vec<u8>,
    list: Vec<(Recipient, Range<usize>)>,
}

impl Drop for Posts {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Frames that wait, and their bytes, at most: the streams take them between two events, and within one when half of the room is used.
const POSTS: usize = 1_024;
const POST_BYTES: usize = 1 << 20;
/// The other half holds what one packet leads to: the longest frame, and a few answers.
const _: () = assert!(POST_BYTES / 2 > 2 * 65_535);

impl Posts {
    fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(POST_BYTES),
            list: Vec::with_capacity(POSTS),
        }
    }

    /// Whole frames as they go on the wire, padding included, with who gets them and which shard has that client.
    pub fn iter(&self) -> impl Iterator<Item = (Recipient, &[u8])> {
        self.list
            .iter()
            .map(|(to, range)| (*to, self.bytes.get(range.clone()).unwrap_or_default()))
    }

    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    const fn is_half_full(&self) -> bool {
        self.list.len() >= POSTS / 2 || self.bytes.len() >= POST_BYTES / 2
    }

    fn forget(&mut self) {
        // Not the vectors themselves, which would overwrite all their room, a mebibyte, each time.
        self.bytes.as_mut_slice().zeroize();
        self.list.iter_mut().for_each(|(to, _)| to.zeroize());
        self.bytes.clear();
        self.list.clear();
    }

    /// False if there is no room.
    fn push(&mut self, to: Recipient, parts: [&[u8]; 3]) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.list.len() == POSTS || self.bytes.len() + length > POST_BYTES {
            return false;
        }
        let start = self.bytes.len();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.list.push((to, start..self.bytes.len()));
        true
    }
}

/// What tells events apart: the upper half of a token says whose it is, the lower half which.
pub mod token {
    /// All tokens with this bit are the streams'; the other 63 bits are theirs to use.
    pub const STREAM: u64 = 1 << 63;
    pub const RELAY: u64 = 2 << 32;
    pub const ORDERS: u64 = 3 << 32;
    pub const TICK: u64 = 4 << 32;
    /// Which kind a token is of.
    pub const KIND: u64 = !0xFFFF_FFFF;
}

/// One shard's server and sockets.
pub struct Plane {
    shard: u16,
    shared: Arc<Shared>,
    server: Server,
    sockets: Sockets,
    clock: Clock,
    now: Now,
    random: Randomness,
    posts: Posts,
    spare_posts: Option<Posts>,
    losses: Tally<Loss>,
    /// Something has ended that is not closed yet.
    is_behind: bool,
}

/// What a plane is made of.
pub struct Parts {
    pub shard: u16,
    pub shared: Arc<Shared>,
    pub settings: Arc<Settings>,
    pub epoll: Epoll,
    /// UDP sockets by the number of their listener.
    pub listeners: Vec<OwnedFd>,
    pub clock: Clock,
}

/// Where bytes that came in lie, and what may be overwritten in front of them.
#[derive(Clone, Copy)]
struct Origin {
    start: usize,
    floor: usize,
    ecn: u8,
}

impl Plane {
    pub fn new(parts: Parts) -> Self {
        let Parts {
            shard,
            shared,
            settings,
            epoll,
            listeners,
            mut clock,
        } = parts;
        let relays = shared.relays().len() * shared.relays().ports_per_address();
        Self {
            shard,
            server: Server::new(shared.clone(), settings, shard),
            shared,
            sockets: Sockets::new(epoll, listeners, relays),
            now: clock.read(),
            clock,
            random: Randomness::new(),
            posts: Posts::new(),
            spare_posts: Some(Posts::new()),
            losses: Tally::default(),
            is_behind: false,
        }
    }

    /// The number of this shard: a [`Recipient`] of another one is for another shard's streams.
    pub const fn shard(&self) -> u16 {
        self.shard
    }

    /// When this round of events began.
    pub const fn now(&self) -> Now {
        self.now
    }

    /// What this shard waits with. Streams add their descriptors with tokens that have [`token::STREAM`].
    pub const fn epoll(&self) -> &Epoll {
        self.sockets.epoll()
    }

    pub const fn losses(&self) -> &Tally<Loss> {
        &self.losses
    }

    pub fn counters(&self) -> Counters {
        self.server.counters()
    }

    /// Waits until a round of events begins, and reads the clocks once for all of it. It begins at once while [`Plane::end_some`] has
    /// something to do.
    pub fn wait(&mut self, events: &mut Events) -> std::io::Result<()> {
        self.sockets.wait(events, self.is_behind)?;
        self.now = self.clock.read();
        Ok(())
    }

    /// How many listeners there are.
    pub fn listeners(&self) -> usize {
        self.sockets.listeners()
    }

    /// What a listener had at the last wait. One receive can bring more frames for streams than there is room for: `hand_out` takes the
    /// posts, here and in [`Plane::handle_relay`], when it is time.
    pub fn handle_listener(&mut self, number: u8, hand_out: &mut dyn FnMut(&mut Self)) {
        if !self.sockets.is_ready(number) {
            return;
        }
        // A few full hands, and then the others' turn.
        for _ in 0..4 {
            if self.sockets.free() == 0 {
                self.flush();
            }
            let (slots, has_more) = self.sockets.receive_clients(number);
            for slot in slots {
                let Some((received, start)) = self.take(slot) else {
                    continue;
                };
                let from = FiveTuple::new(received.source, Transport::Udp, number);
                let done = match self.run_of_client(&received, start) {
                    Some((run, first, origin)) => self.handle_client_run(&from, first, origin, run, &received),
                    None => 0,
                };
                for (bytes, origin) in segments(&received, start).skip(done) {
                    self.make_room_for_posts(hand_out);
                    self.handle_client(&from, bytes, origin);
                }
            }
            if !has_more {
                return;
            }
        }
    }

    /// A relayed address is ready, or has an error to tell.
    pub fn handle_relay(&mut self, place: u32, ready: Ready, hand_out: &mut dyn FnMut(&mut Self)) {
        let Some(relay) = self.shared.relays().at(place as usize) else {
            return;
        };
        if ready.has_error() {
            self.handle_unreached(relay, place);
        }
        // An error that found no room in the socket's list of them stays until a receive takes it, and would be told for ever.
        if ready.is_readable() || ready.has_error() {
            self.receive_from_peers(relay, place, hand_out);
        }
    }

    fn receive_from_peers(&mut self, relay: RelayAddr, place: u32, hand_out: &mut dyn FnMut(&mut Self)) {
        if !self.sockets.has_slots_for(place as usize) {
            self.flush();
        }
        let slots = self.sockets.receive_peers(place);
        for slot in slots {
            let Some((received, start)) = self.take(slot) else {
                continue;
            };
            if received.length > received.segment {
                self.sockets.had_run(place);
            }
            let peer = PeerAddr::new(received.source);
            let done = self.handle_peer_run(relay, peer, &received, start);
            for (bytes, origin) in segments(&received, start).skip(done) {
                self.make_room_for_posts(hand_out);
                let random = &mut |bytes: &mut [u8]| self.random.fill(bytes);
                let hop = self.server.handle_peer(relay, peer, bytes.len(), self.now, random);
                if let Some(hop) = hop {
                    self.make_room();
                    self.carry_out(hop, origin, Several::ONE);
                }
            }
        }
    }

    /// One whole frame of a stream's client, as [`turn_core::framing::Framer`] gives it. What it leads to is done or queued on return.
    pub fn handle_frame(&mut self, from: &FiveTuple, frame: &[u8]) {
        self.make_room();
        let hop = self
            .server
            .handle_client(from, frame, self.now, &mut |bytes| self.random.fill(bytes));
        if let Some(hop) = hop {
            match hop {
                // The frame's own buffer is used again before the next flush.
                Hop::Peer { .. } => {
                    let kept = self.sockets.keep(frame);
                    let origin = Origin {
                        start: kept.start as usize,
                        floor: kept.start as usize,
                        ecn: 0,
                    };
                    self.carry_out(hop, origin, Several::ONE);
                }
                Hop::Client {
                    recipient,
                    prefix,
                    payload,
                    padding,
                } => {
                    let payload = frame.get(payload).unwrap_or_default();
                    if recipient.client.transport().is_stream() {
                        self.post(recipient, [prefix.as_bytes(), payload, zeros(padding)]);
                    } else {
                        let kept = [self.sockets.keep(prefix.as_bytes()), self.sockets.keep(payload)];
                        let [prefix, payload] = kept;
                        self.push_to_client(
                            &recipient.client,
                            [prefix, payload, self.sockets.zeros(padding)],
                            0,
                            Several::ONE,
                        );
                    }
                }
            }
        }
        self.do_outputs();
    }

    /// The stream of a client is gone.
    pub fn handle_stream_closed(&mut self, from: &FiveTuple) {
        self.server.handle_stream_closed(from, self.now);
        self.do_outputs();
    }

    /// Whether the client of a stream has shown who it is: then longer frames are good.
    pub fn has_allocation(&self, from: &FiveTuple) -> bool {
        self.server.has_allocation(from, self.now)
    }

    /// Frames for clients of streams since this was last asked, to be given back with [`Plane::give_back`]. `None` if there are none, or
    /// if some are out already.
    pub fn take_posts(&mut self) -> Option<Posts> {
        if self.posts.is_empty() {
            return None;
        }
        let spare = self.spare_posts.take()?;
        Some(std::mem::replace(&mut self.posts, spare))
    }

    /// Their room serves again, and says nothing of who had it.
    pub fn give_back(&mut self, mut posts: Posts) {
        posts.forget();
        self.spare_posts = Some(posts);
    }

    /// Time passed: what has ended is for [`Plane::end_some`], and what the sockets had no room for is counted.
    pub fn handle_tick(&mut self) {
        self.is_behind = self.has_ended();
        let overflowed = self.sockets.newly_overflowed();
        if overflowed > 0 {
            self.losses.add_many(Loss::ListenerOverflow, u64::from(overflowed));
        }
        let overflowed = self.sockets.newly_overflowed_relays();
        if overflowed > 0 {
            self.losses.add_many(Loss::RelayOverflow, overflowed);
        }
    }

    /// Once in each round: closes some of what had ended at the last tick. The rest is for the next rounds, so that packets move in between.
    pub fn end_some(&mut self) {
        if !self.is_behind {
            return;
        }
        self.server.handle_timeout(self.now);
        self.do_outputs();
        self.is_behind = self.has_ended();
    }

    fn has_ended(&self) -> bool {
        let next = self.server.next_deadline();
        next.is_some_and(|deadline| deadline <= self.now.steady)
    }

    pub fn reload(&mut self, settings: Arc<Settings>) {
        self.server.reload(settings);
        self.do_outputs();
    }

    pub fn drain(&mut self) {
        self.server.drain();
    }

    /// Sends all that waits; what came in may be forgotten afterwards.
    pub fn flush(&mut self) {
        self.send_all(true);
    }

    /// Overwrites what packets left that have gone. Not between a receive and the end of what it brought.
    pub fn wipe(&mut self) {
        self.flush();
        self.sockets.wipe();
    }

    fn send_all(&mut self, done: bool) {
        self.sockets.flush(done);
        let unsent = self.sockets.unsent();
        for (loss, count) in [
            (Loss::SendWouldBlock, unsent.would_block),
            (Loss::SendRefused, unsent.refused),
            (Loss::RelayClosed, unsent.closed),
        ] {
            if count > 0 {
                self.losses.add_many(loss, count);
            }
        }
    }

    /// What is queued goes out when there is no room for one more; slots in hand stay.
    fn make_room(&mut self) {
        if !self.sockets.has_room() {
            self.send_all(false);
        }
    }

    fn make_room_for_posts(&mut self, hand_out: &mut dyn FnMut(&mut Self)) {
        if self.posts.is_half_full() {
            hand_out(self);
        }
    }

    fn take(&mut self, slot: usize) -> Option<(Received, usize)> {
        let taken = self.sockets.take(slot);
        if taken.is_none() {
            self.losses.add(Loss::BadDatagram);
        }
        taken
    }

    /// Whole segments that begin with the same four bytes, one channel and one length: how many, and the first of them.
    fn run_of_client(&self, received: &Received, start: usize) -> Option<(Run, Range<usize>, Origin)> {
        let run = whole_segments(received)?;
        let (bytes, origin) = segments(received, start).next()?;
        let memory = self.sockets.memory().get(start..start + received.length)?;
        let header = memory.first_chunk::<CHANNEL_HEADER>()?;
        let mut whole = memory.chunks_exact(received.segment);
        let is_run = whole.all(|segment| segment.first_chunk() == Some(header));
        is_run.then_some((run, bytes, origin))
    }

    /// Returns how many segments are done with.
    fn handle_client_run(
        &mut self,
        from: &FiveTuple,
        first: Range<usize>,
        origin: Origin,
        run: Run,
        received: &Received,
    ) -> usize {
        let bytes = self.sockets.memory().get(first).unwrap_or_default();
        let Some(hop) = self.server.handle_client_run(from, bytes, run, self.now) else {
            return 0;
        };
        self.make_room();
        self.carry_out(hop, origin, Several::new(run, received));
        usize::from(run.count())
    }

    fn handle_peer_run(&mut self, relay: RelayAddr, peer: PeerAddr, received: &Received, start: usize) -> usize {
        let run = whole_segments(received).zip(segments(received, start).next());
        let Some((run, (_, origin))) = run else {
            return 0;
        };
        let hop = self
            .server
            .handle_peer_run(relay, peer, received.segment, run, self.now);
        let Some(hop) = hop else {
            return 0;
        };
        self.make_room();
        self.carry_out(hop, origin, Several::new(run, received));
        usize::from(run.count())
    }

    fn handle_client(&mut self, from: &FiveTuple, bytes: Range<usize>, origin: Origin) {
        let bytes = self.sockets.memory().get(bytes).unwrap_or_default();
        let random = &mut |bytes: &mut [u8]| self.random.fill(bytes);
        match self.server.handle_client(from, bytes, self.now, random) {
            Some(hop) => {
                self.make_room();
                self.carry_out(hop, origin, Several::ONE);
            }
            None => self.do_outputs(),
        }
    }

    fn handle_unreached(&mut self, relay: RelayAddr, place: u32) {
        // What is left is taken with the next one.
        for _ in 0..64 {
            let Some(socket) = self.sockets.relay(place as usize) else {
                return;
            };
            let unreached = match sys::next_unreached(socket) {
                None => return,
                Some(None) => continue,
                Some(Some(unreached)) => unreached,
            };
            let icmp = Icmp {
                kind: unreached.kind,
                code: unreached.code,
                mtu: unreached.mtu,
                is_v6: unreached.is_v6,
            };
            let (peer, random) = (PeerAddr::new(unreached.to), &mut |bytes: &mut [u8]| {
                self.random.fill(bytes);
            });
            if let Some(hop) = self.server.handle_icmp(relay, peer, icmp, self.now, random) {
                let nowhere = Origin {
                    start: 0,
                    floor: 0,
                    ecn: 0,
                };
                self.make_room();
                self.carry_out(hop, nowhere, Several::ONE);
            }
        }
    }

    /// The payload lies in a slot or in the area. The caller has made room.
    fn carry_out(&mut self, hop: Hop, origin: Origin, several: Several) {
        match hop {
            Hop::Peer {
                relay,
                peer,
                payload,
                dont_fragment,
            } => {
                let Some(place) = self.shared.relays().place(relay) else {
                    return;
                };
                let payload = piece(origin, &payload);
                let (start, length, count) = (
                    payload.start as usize,
                    payload.length as usize,
                    usize::from(several.count),
                );
                let is_closed_up = count > 1 && self.sockets.close_up(start, length, several.stride as usize, count);
                self.sockets.push(Datagram {
                    through: Through::Relay(place as u32),
                    to: peer.socket(),
                    pieces: [Piece::default(), payload, Piece::default()],
                    count: several.count,
                    stride: if is_closed_up { payload.length } else { several.stride },
                    ecn: origin.ecn,
                    dont_fragment,
                });
            }
            Hop::Client {
                recipient,
                prefix,
                payload,
                padding,
            } => {
                let payload = piece(origin, &payload);
                if recipient.client.transport().is_stream() {
                    let start = payload.start as usize;
                    let bytes = self.sockets.memory().get(start..start + payload.length as usize);
                    let parts = [prefix.as_bytes(), bytes.unwrap_or_default(), zeros(padding)];
                    if !self.posts.push(recipient, parts) {
                        self.losses.add(Loss::StreamQueueFull);
                    }
                    return;
                }
                let (pieces, several) = self.with_prefix(&prefix, payload, padding, origin.floor, several);
                self.push_to_client(&recipient.client, pieces, origin.ecn, several);
            }
        }
    }

    /// In front of the payload where there is room, so that both are one piece. In a run, the room in front of the second payload is
    /// that of all but the first; where there is none, the payloads make it.
    fn with_prefix(
        &mut self,
        prefix: &Prefix,
        payload: Piece,
        padding: usize,
        floor: usize,
        several: Several,
    ) -> ([Piece; 3], Several) {
        let bytes = prefix.as_bytes();
        let padding = self.sockets.zeros(padding);
        let gap = (several.stride as usize).saturating_sub(payload.length as usize);
        if several.count == 1 || bytes.len() <= gap {
            let mut starts = (0..u32::from(several.count)).map(|at| payload.start + at * several.stride);
            let mut floor = floor;
            let is_written = starts.all(|start| {
                let is_written = self.sockets.put_before(start as usize, floor, bytes);
                floor = start as usize + payload.length as usize;
                is_written
            });
            if is_written {
                let both = Piece {
                    start: payload.start - bytes.len() as u32,
                    length: payload.length + bytes.len() as u32,
                };
                return ([Piece::default(), both, padding], several);
            }
        }
        let (start, length, count) = (
            payload.start as usize,
            payload.length as usize,
            usize::from(several.count),
        );
        if gap == 0
            && padding.length == 0
            && let Some(begin) = self.sockets.put_between(start, floor, length, count, bytes)
        {
            let both = Piece {
                start: begin as u32,
                length: payload.length + bytes.len() as u32,
            };
            let several = Several {
                stride: both.length,
                ..several
            };
            return ([Piece::default(), both, padding], several);
        }
        ([self.sockets.keep(bytes), payload, padding], several)
    }

    /// From the listener that the client came to: all shards have a socket for each.
    fn push_to_client(&mut self, client: &FiveTuple, pieces: [Piece; 3], ecn: u8, several: Several) {
        self.sockets.push(Datagram {
            through: Through::Listener(client.listener()),
            to: client.client(),
            pieces,
            count: several.count,
            stride: several.stride,
            ecn,
            dont_fragment: false,
        });
    }

    fn post(&mut self, to: Recipient, parts: [&[u8]; 3]) {
        if !self.posts.push(to, parts) {
            self.losses.add(Loss::StreamQueueFull);
        }
    }

    fn do_outputs(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Send { to, answer } => self.answer(&to, &answer),
                Output::OpenRelay(relay) => self.open(relay),
                Output::CloseRelay(relay) => {
                    if let Some(place) = self.shared.relays().place(relay) {
                        // What its client sent before goes out before.
                        self.send_all(false);
                        let overflowed = self.sockets.close(place);
                        if overflowed > 0 {
                            self.losses.add_many(Loss::RelayOverflow, u64::from(overflowed));
                        }
                    }
                }
            }
        }
    }

    fn answer(&mut self, to: &FiveTuple, answer: &Answer) {
        if to.transport().is_stream() {
            let recipient = Recipient {
                client: *to,
                shard: self.shard,
            };
            self.post(recipient, [answer.as_bytes(), &[], &[]]);
            return;
        }
        self.make_room();
        let piece = self.sockets.keep(answer.as_bytes());
        self.push_to_client(to, [piece, Piece::default(), Piece::default()], 0, Several::ONE);
    }

    fn open(&mut self, relay: RelayAddr) {
        let relays = self.shared.relays();
        let place: Option<(usize, SocketAddr)> = relays.place(relay).zip(relays.bind(relay));
        let opened = place.is_some_and(|(place, address)| {
            let token = token::RELAY | place as u64;
            self.sockets.open(place, address, token).is_ok()
        });
        if !opened {
            let random = &mut |bytes: &mut [u8]| self.random.fill(bytes);
            self.server.handle_relay_failed(relay, self.now, random);
        }
    }
}

/// A run as the sockets take it.
#[derive(Clone, Copy)]
struct Several {
    count: u16,
    stride: u32,
}

impl Several {
    const ONE: Self = Self { count: 1, stride: 0 };

    const fn new(run: Run, received: &Received) -> Self {
        Self {
            count: run.count(),
            stride: received.segment as u32,
        }
    }
}

/// How many segments of full length came together, if that is more than one and not too many.
fn whole_segments(received: &Received) -> Option<Run> {
    let count = received.length / received.segment.max(1);
    Run::new(u16::try_from(count).ok()?).filter(|_| count > 1)
}

/// Each datagram of a slot, and where it lies: GRO puts several of one source into one.
fn segments(received: &Received, start: usize) -> impl Iterator<Item = (Range<usize>, Origin)> + use<> {
    let (end, segment, ecn) = (start + received.length, received.segment.max(1), received.tos & 3);
    let count = received.length.div_ceil(segment).max(1);
    (0..count).map(move |number| {
        let at = start + number * segment;
        let origin = Origin {
            start: at,
            // In front of the first one there is room of ours, in front of the others the end of the one before.
            floor: if number == 0 { start.saturating_sub(ROOM) } else { at },
            ecn,
        };
        (at..end.min(at + segment), origin)
    })
}

fn piece(origin: Origin, payload: &Range<usize>) -> Piece {
    Piece {
        start: (origin.start + payload.start) as u32,
        length: payload.len() as u32,
    }
}

fn zeros(count: usize) -> &'static [u8] {
    [0; 4].get(..count).map_or(&[], |_| match count {
        1 => &[0],
        2 => &[0; 2],
        3 => &[0; 3],
        _ => &[],
    })
}
