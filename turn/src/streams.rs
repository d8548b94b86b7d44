//! TCP and TLS clients of one shard.
//!
//! In: listening sockets and streams that are ready, frames for stream clients of all shards, the time. Out: whole frames, given to the
//! [`Plane`]. Never: waits, takes a lock, or holds more of a client than its bounds, which are settings.
//!
//! TLS and plain STUN come to the same ports and are told apart by their first byte (RFC 7983). A stream ends its allocation with it.

mod arrivals;
mod connection;
mod counters;
mod queue;
mod seats;
mod settings;
mod table;
mod tls;

pub use counters::{StreamCounters, StreamEvent, StreamEventKind};
pub use settings::{StreamSettings, StreamSettingsFault};
pub use tls::server_config;

use crate::plane::{Plane, Posts, token};
use crate::sys::{Epoll, Events, Interest, Ready, Waker};
use arrivals::{Arrivals, Departures, arrivals};
use rustls::ServerConfig;
use seats::Seats;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use table::{Table, Tokens};

/// The streams of one shard.
pub struct Streams {
    /// Watches streams and their listeners, and is itself one descriptor in the epoll of the plane: that one is asked for all that is
    /// ready, and this one for as many as may have a turn. The system gives those first who waited longest, so that each has its turn.
    epoll: Epoll,
    events: Events,
    table: Table,
    arrivals: Arrivals,
    /// To every shard, this one included; by number.
    ways: Arc<[Way]>,
    /// Streams of our own that are woken by the others.
    waker: Arc<Waker>,
}

/// The way to the streams of one shard.
struct Way {
    departures: Departures,
    waker: Arc<Waker>,
}

/// A stream's token is [`token::STREAM`] and its number.
const TOKENS: Tokens = Tokens {
    listeners: token::STREAM | 1 << 32,
    streams: token::STREAM,
};
const ARRIVALS: u64 = token::STREAM | 2 << 32;
/// Some of the streams and listeners are ready.
const TURN: u64 = token::STREAM | 3 << 32;
/// Streams served before datagrams have their turn again: each may want a handshake, which takes as long as hundreds of packets.
const STREAMS_AT_ONCE: usize = 16;
/// Packets of other shards that are taken before our own sockets have their turn.
const ARRIVALS_AT_ONCE: usize = 512;

impl Streams {
    /// One for each shard, with what lets them reach each other. `listeners[shard]` are bound and listen.
    pub fn of_all_shards(
        listeners: Vec<Vec<TcpListener>>,
        settings: &StreamSettings,
        tls: Option<&Arc<ServerConfig>>,
    ) -> io::Result<Vec<Self>> {
        let mut keys = [[0; 8]; 4];
        for key in &mut keys {
            getrandom::fill(key).map_err(io::Error::other)?;
        }
        let [key, other, prefix_key, other_prefix_key] = keys.map(u64::from_ne_bytes);
        let seats = Seats::new([prefix_key, other_prefix_key]);
        let mut ways = Vec::new();
        let mut ends = Vec::new();
        for _ in &listeners {
            let (departures, arrivals) = arrivals();
            let waker = Arc::new(Waker::new()?);
            ways.push(Way {
                departures,
                waker: waker.clone(),
            });
            ends.push((arrivals, waker));
        }
        let ways: Arc<[Way]> = ways.into();
        let streams = listeners.into_iter().zip(ends).map(|(listeners, (arrivals, waker))| {
            let table = Table::new(
                listeners,
                TOKENS,
                settings.clone(),
                tls.cloned(),
                seats.clone(),
                [key, other],
            );
            Ok(Self {
                epoll: Epoll::new()?,
                events: Events::new(STREAMS_AT_ONCE),
                table,
                arrivals,
                ways: ways.clone(),
                waker,
            })
        });
        streams.collect()
    }

    /// On the shard's own thread, before its first event: our epoll and the waker join the epoll of the plane.
    pub fn begin(&mut self, plane: &mut Plane) -> io::Result<()> {
        plane.epoll().add(self.waker.as_fd(), ARRIVALS, Interest::Read)?;
        plane.epoll().add(self.epoll.as_fd(), TURN, Interest::Read)?;
        self.table.register(&self.epoll)
    }

    /// An event with one of our tokens.
    pub fn handle_event(&mut self, event: u64, plane: &mut Plane) -> io::Result<()> {
        if event == ARRIVALS {
            self.take_arrivals();
            return Ok(());
        }
        self.epoll.look(&mut self.events)?;
        for at in 0..self.events.len() {
            let Some((event, ready)) = self.events.get(at) else {
                break;
            };
            if event & token::KIND == TOKENS.listeners {
                self.table.accept(event as u8, &self.epoll, plane.now().steady);
                self.close_ended(plane);
            } else {
                self.handle_stream(event as u32, ready, plane);
            }
        }
        Ok(())
    }

    /// Frames for clients of this shard, and of others.
    pub fn handle_posts(&mut self, posts: &Posts, plane: &mut Plane) {
        for (recipient, frame) in posts.iter() {
            if recipient.shard == plane.shard() {
                self.table.deliver(&recipient.client, frame);
                continue;
            }
            let Some(way) = self.ways.get(usize::from(recipient.shard)) else {
                continue;
            };
            match way.departures.send(&recipient.client, frame) {
                Ok(sleeps) if sleeps => way.waker.wake(),
                Ok(_) => {}
                Err(_) => self.table.count(StreamEvent::ArrivalsFull),
            }
        }
    }

    /// The end of a round: each stream is written to once.
    pub fn flush(&mut self, plane: &mut Plane) {
        self.table.flush(&self.epoll, plane.now().steady);
        self.close_ended(plane);
    }

    /// Four times a second: limits of time.
    pub fn handle_tick(&mut self, plane: &mut Plane) {
        let now = plane.now().steady;
        self.table
            .handle_timeout(|client| plane.has_allocation(client), &self.epoll, now);
        self.close_ended(plane);
    }

    /// Other limits for all streams, another certificate for new ones.
    pub fn reload(&mut self, settings: &StreamSettings, tls: Option<&Arc<ServerConfig>>, plane: &mut Plane) {
        let now = plane.now().steady;
        self.table.reload(settings.clone(), tls.cloned(), &self.epoll, now);
        self.close_ended(plane);
    }

    /// No new streams; those that are open go on.
    pub fn drain(&mut self) {
        self.table.shut();
    }

    pub const fn counters(&self) -> StreamCounters {
        self.table.counters()
    }

    fn handle_stream(&mut self, stream: u32, ready: Ready, plane: &mut Plane) {
        let now = plane.now().steady;
        if let Some(mut received) = self.table.receive(stream, ready, &self.epoll, now) {
            let from = received.from();
            while let Some(frame) = received.next_frame(|from| plane.has_allocation(from)) {
                plane.handle_frame(&from, frame);
                // Here rather than after the event: a read can hold more frames than the plane has room for.
                while let Some(posts) = plane.take_posts() {
                    self.handle_posts(&posts, plane);
                    plane.give_back(posts);
                }
            }
            self.table
                .put_back(received, |from| plane.has_allocation(from), &self.epoll, now);
        }
        self.close_ended(plane);
    }

    fn take_arrivals(&mut self) {
        self.waker.clear();
        self.arrivals.begin();
        for _ in 0..ARRIVALS_AT_ONCE {
            let Some(arrival) = self.arrivals.take() else {
                return;
            };
            self.table.deliver(&arrival.to(), arrival.frame());
        }
        self.waker.wake();
    }

    fn close_ended(&mut self, plane: &mut Plane) {
        while let Some(client) = self.table.poll_ended() {
            plane.handle_stream_closed(&client);
        }
    }
}
