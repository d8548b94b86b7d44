//! The load: paced packets through one server, and what came of them.
//!
//! In: crowds, a pattern, a rate. Out: packets that came, processor time of the server, latencies, losses. Never: measures while it is
//! behind its own schedule without saying so.
//!
//! Each thread plays its own crowd on its own processor and never sleeps. The schedule is absolute: packet n is due at a time that no
//! earlier packet can move. A packet carries its flow, number and the time when it was sent, and bytes that are all compared.

use crate::batch::{self, BATCH};
use crate::clients::{CHANNEL, Crowd};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    ToPeer,
    ToClient,
    Within,
}

/// What goes through a server.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub direction: Direction,
    /// Bytes between the two ends.
    pub payload: usize,
    /// Packets that one sender sends at once.
    pub burst: usize,
    /// Packets a second, of all senders.
    pub rate: f64,
    /// What is due leaves together, so often.
    pub tick: Duration,
    /// And so often one looks for what came.
    pub look: Duration,
    /// Not measured.
    pub warm: Duration,
    pub measured: Duration,
}

/// What came of it.
#[derive(Clone, Default)]
pub struct Outcome {
    pub sent: u64,
    pub received: u64,
    /// Came, but not as it was sent, or not where or whence it should.
    pub wrong: u64,
    /// Packets that came while the processor time was measured.
    pub measured: u64,
    pub time: Duration,
    pub processor: Duration,
    pub latency: Histogram,
    /// p99 of each part, where this is several.
    pub p99s: Vec<Duration>,
    /// The most by which a sender was behind its schedule.
    pub late: Duration,
}

impl Outcome {
    /// Of the same server, pattern and pace.
    pub fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.wrong += other.wrong;
        self.measured += other.measured;
        self.time += other.time;
        self.processor += other.processor;
        self.latency.add_all(&other.latency);
        self.p99s.push(other.latency.at(0.99));
        self.late = self.late.max(other.late);
    }

    /// The share of the time in which one processor of the server worked.
    pub fn busy(&self) -> f64 {
        self.processor.as_secs_f64() / self.time.as_secs_f64()
    }

    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }

    pub fn per_second(&self) -> f64 {
        self.measured as f64 / self.time.as_secs_f64()
    }

    pub fn per_processor_second(&self) -> f64 {
        self.measured as f64 / self.processor.as_secs_f64()
    }
}

/// Lets all crowds of one server play, each on one of `processors`, and measures the process.
pub fn run(crowds: &mut [Crowd], process: u32, processors: &[usize], load: &Load) -> Outcome {
    static RUN: AtomicU32 = AtomicU32::new(1);
    let number = RUN.fetch_add(1, Ordering::Relaxed);
    let share = crowds.len();
    let ready = Barrier::new(share);
    std::thread::scope(|scope| {
        let playing: Vec<_> = crowds
            .iter_mut()
            .enumerate()
            .map(|(place, crowd)| {
                let ready = &ready;
                let processor = processors[place % processors.len()];
                let mut player = Player {
                    load,
                    run: number,
                    // The schedules of the crowds interleave.
                    phase: place as f64 / share as f64,
                    events_per_second: load.rate / load.burst as f64 / share as f64,
                    process: (place == 0).then_some(process),
                    flows: flows(crowd, load.direction),
                    outcome: Outcome::default(),
                };
                scope.spawn(move || {
                    batch::pin(&[processor]);
                    ready.wait();
                    player.play(crowd);
                    player.outcome
                })
            })
            .collect();
        playing.into_iter().fold(Outcome::default(), |mut all, thread| {
            let one = thread.join().expect("a player does not panic");
            all.sent += one.sent;
            all.received += one.received;
            all.wrong += one.wrong;
            all.measured += one.measured;
            all.time = all.time.max(one.time);
            all.processor += one.processor;
            all.latency.add_all(&one.latency);
            all.late = all.late.max(one.late);
            all
        })
    })
}

/// One sender and its receiver.
struct Flow {
    from: Ipv4Addr,
    to: SocketAddrV4,
    /// What the receiver sees.
    source: SocketAddrV4,
    destination: Ipv4Addr,
    sent: u64,
    /// The number after the highest that came.
    expected: u64,
}

fn flows(crowd: &Crowd, direction: Direction) -> Vec<Flow> {
    let clients = crowd.clients.iter().enumerate();
    let flow = |(place, client): (usize, &crate::clients::Client)| {
        let (from, to, source, destination) = match direction {
            Direction::ToPeer => (client.address, crowd.server, client.relayed, *client.peer.ip()),
            Direction::ToClient => (*client.peer.ip(), client.relayed, crowd.server, client.address),
            Direction::Within => (
                client.address,
                crowd.server,
                crowd.server,
                crowd.clients[place ^ 1].address,
            ),
        };
        Flow {
            from,
            to,
            source,
            destination,
            sent: 0,
            expected: 0,
        }
    };
    clients.map(flow).collect()
}

struct Player<'load> {
    load: &'load Load,
    run: u32,
    phase: f64,
    events_per_second: f64,
    /// The process to measure, for one of the players.
    process: Option<u32>,
    flows: Vec<Flow>,
    outcome: Outcome,
}

impl Player<'_> {
    fn play(&mut self, crowd: &mut Crowd) {
        let Load { warm, measured, .. } = *self.load;
        let filling: Vec<u8> = (0..FILLING as u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let mut heads = vec![[0; HEAD]; BATCH * self.load.burst];
        let is_fast = self.load.burst > 1;
        let at_once = if is_fast { BATCH / 16 } else { BATCH / 2 };
        let (mut next, mut due) = (0, 0);
        let (mut tick, mut look) = (self.load.tick.mul_f64(self.phase), Duration::ZERO);
        let (mut began, mut ended) = (None, None);
        let start = Instant::now();
        let mut last = Duration::ZERO;
        loop {
            let now = start.elapsed();
            if began.is_none() && now >= warm {
                began = Some(self.reading(now));
            }
            if ended.is_none() && now >= warm + measured {
                ended = Some(self.reading(now));
            }
            if now >= tick && ended.is_none() {
                self.outcome.late = self.outcome.late.max(now - tick);
                tick += self.load.tick;
                due = (tick.as_secs_f64() * self.events_per_second) as u64;
            }
            let has_more = next < due && ended.is_none();
            if has_more {
                let count = (due - next).min(at_once as u64);
                self.send(crowd, next, count, &mut heads, &filling);
                next += count;
                last = now;
            }
            if now >= look {
                let count = self.receive(crowd, &filling);
                if count > 0 {
                    last = now;
                }
                if count < BATCH {
                    look = now + self.load.look;
                }
            }
            let is_quiet = self.outcome.received + self.outcome.wrong >= self.outcome.sent || now > last + QUIET;
            if ended.is_some() && is_quiet {
                break;
            }
            if !has_more {
                (0..20).for_each(|_| std::hint::spin_loop());
            }
        }
        if let (Some(began), Some(ended)) = (began, ended) {
            self.outcome.time = ended.at - began.at;
            self.outcome.processor = ended.processor - began.processor;
            self.outcome.measured = ended.received - began.received;
        }
    }

    fn reading(&self, now: Duration) -> Reading {
        Reading {
            at: now,
            processor: self.process.map(batch::processor_time).unwrap_or_default(),
            received: self.outcome.received,
        }
    }

    /// The events from `next` on: each the burst of one flow.
    fn send(&mut self, crowd: &mut Crowd, next: u64, count: u64, heads: &mut [[u8; HEAD]], filling: &[u8]) {
        let Load {
            direction,
            payload,
            burst,
            ..
        } = *self.load;
        let length = (payload as u16).to_be_bytes();
        let channel = CHANNEL.to_be_bytes();
        let skipped = if direction == Direction::ToClient {
            CHANNEL_HEADER
        } else {
            0
        };
        let flows = self.flows.len() as u64;
        let now = since_epoch(SystemTime::now());
        for (event, heads) in (next..next + count).zip(heads.chunks_mut(burst)) {
            let number = event % flows;
            let flow = &mut self.flows[number as usize];
            for head in heads {
                head[..2].copy_from_slice(&channel);
                head[2..4].copy_from_slice(&length);
                head[4..8].copy_from_slice(&self.run.to_be_bytes());
                head[8..12].copy_from_slice(&(number as u32).to_be_bytes());
                head[12..20].copy_from_slice(&flow.sent.to_be_bytes());
                head[20..28].copy_from_slice(&now.to_be_bytes());
                flow.sent += 1;
            }
        }
        let mut batch = crowd.outbox.batch();
        for (event, heads) in (next..next + count).zip(heads.chunks(burst)) {
            let flow = &self.flows[(event % flows) as usize];
            batch.begin(flow.to, Some(flow.from));
            for (place, head) in heads.iter().enumerate() {
                let number = flow.sent - (burst - place) as u64;
                batch.part(&head[skipped..]);
                batch.part(body(filling, number, payload));
            }
            // What a client sends at once, its kernel may send in one piece; a network card merges it again.
            if burst > 1 {
                batch.split(payload + CHANNEL_HEADER - skipped);
            }
        }
        let socket = match direction {
            Direction::ToClient => &crowd.peer_socket,
            _ => &crowd.client_socket,
        };
        self.outcome.sent += (batch.send(socket) * burst) as u64;
    }

    fn receive(&mut self, crowd: &mut Crowd, filling: &[u8]) -> usize {
        let Load { direction, payload, .. } = *self.load;
        let (socket, skipped) = match direction {
            Direction::ToPeer => (&crowd.peer_socket, 0),
            _ => (&crowd.client_socket, CHANNEL_HEADER),
        };
        let count = crowd.inbox.receive(socket, 0);
        if count == 0 {
            return 0;
        }
        for place in 0..count {
            let datagram = crowd.inbox.datagram(place);
            let now = since_epoch(datagram.arrived);
            for segment in datagram.segments() {
                let (header, inner) = segment.split_at(skipped.min(segment.len()));
                let Some(stamp) = Stamp::read(inner) else {
                    self.outcome.wrong += 1;
                    continue;
                };
                // Of an earlier run that was given up too early.
                if stamp.run != self.run {
                    continue;
                }
                let flow = self.flows.get_mut(stamp.flow as usize).filter(|flow| {
                    let is_header = skipped == 0 || {
                        let ([a, b], [c, d]) = (CHANNEL.to_be_bytes(), (payload as u16).to_be_bytes());
                        header == [a, b, c, d]
                    };
                    is_header
                        // Each once, and in order.
                        && (flow.expected..flow.sent).contains(&stamp.number)
                        && flow.source == datagram.source
                        && flow.destination == datagram.destination
                        && inner[STAMP..] == *body(filling, stamp.number, payload)
                });
                match flow {
                    Some(flow) => {
                        flow.expected = stamp.number + 1;
                        self.outcome.received += 1;
                        self.outcome.latency.add(now.saturating_sub(stamp.sent));
                    }
                    None => self.outcome.wrong += 1,
                }
            }
        }
        count
    }
}

fn since_epoch(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}

struct Reading {
    at: Duration,
    processor: Duration,
    received: u64,
}

/// The first bytes of each payload.
struct Stamp {
    run: u32,
    flow: u32,
    number: u64,
    /// Nanoseconds since the epoch.
    sent: u64,
}

impl Stamp {
    fn read(payload: &[u8]) -> Option<Self> {
        let four = |at: usize| Some(u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?));
        let eight = |at: usize| Some(u64::from_be_bytes(payload.get(at..at + 8)?.try_into().ok()?));
        Some(Self {
            run: four(0)?,
            flow: four(4)?,
            number: eight(8)?,
            sent: eight(16)?,
        })
    }
}

/// What follows the stamp: other bytes for each number.
fn body(filling: &[u8], number: u64, payload: usize) -> &[u8] {
    let at = (number as usize * 7) % (FILLING - 1_500);
    &filling[at..at + payload - STAMP]
}

/// Times by their length, to a hundredth.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; (64 - FINENESS as usize) << FINENESS],
        }
    }
}

impl Histogram {
    pub fn add(&mut self, nanoseconds: u64) {
        let exponent = 63 - (nanoseconds | 1).leading_zeros();
        let place = match exponent.checked_sub(FINENESS) {
            None => nanoseconds as usize,
            Some(shift) => ((shift as usize) << FINENESS) + (nanoseconds >> shift) as usize,
        };
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
    }

    pub fn add_all(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The time that this share of all did not exceed.
    pub fn at(&self, share: f64) -> Duration {
        let wanted = (self.counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                let shift = (place >> FINENESS).saturating_sub(1);
                return Duration::from_nanos(((place - (shift << FINENESS)) as u64) << shift);
            }
        }
        Duration::ZERO
    }
}

/// Steps within a doubling: 2^7.
const FINENESS: u32 = 7;
const CHANNEL_HEADER: usize = 4;
const STAMP: usize = 24;
const HEAD: usize = CHANNEL_HEADER + STAMP;
const FILLING: usize = 8_192;
/// Nothing came for so long: what is missing is lost.
const QUIET: Duration = Duration::from_millis(40);
