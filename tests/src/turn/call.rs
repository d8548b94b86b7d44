//! A call that lasts: two clients of one relay, packets both ways at an even pace, counted.
//!
//! In: two clients with allocations. Out: how many packets came through, and how many did not. Never: sends a packet before the one
//! before it came or was given up.

use super::client::{Client, PATIENCE, Packet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const CHANNEL: u16 = 0x4000;
/// As often as an audio call sends.
const EVERY: Duration = Duration::from_millis(20);
/// Channels and permissions are refreshed well before their 300 s are over, as browsers do it.
const REFRESH_EVERY: Duration = Duration::from_secs(240);
/// Bytes of a packet, as an audio call has them.
const LENGTH: usize = 172;

/// Two clients, each with a channel to the other.
pub struct Ends {
    pub clients: [Client; 2],
    pub relayed: [SocketAddr; 2],
}

impl Ends {
    /// `None` if the relay refuses a channel.
    pub fn join(clients: [Client; 2], relayed: [SocketAddr; 2]) -> Option<Self> {
        let mut ends = Self { clients, relayed };
        ends.bind().then_some(ends)
    }

    fn bind(&mut self) -> bool {
        let [one, other] = self.relayed;
        let [first, second] = &mut self.clients;
        first.bind(CHANNEL, other) == 0 && second.bind(CHANNEL, one) == 0
    }

    /// One packet from the first or second client to the other, and how long it took; `None` if it did not come. One that is only late is
    /// not lost: a busy machine holds packets up, and that says nothing about the relay.
    pub fn pass(&mut self, from_second: bool, data: &[u8]) -> Option<Duration> {
        let [first, second] = &mut self.clients;
        let (from, to) = if from_second { (second, first) } else { (first, second) };
        let began = Instant::now();
        from.send_on(CHANNEL, data);
        while let Some(left) = PATIENCE.checked_sub(began.elapsed()) {
            match to.next_within(left)? {
                Packet::Channel(CHANNEL, came) if came == data => return Some(began.elapsed()),
                // One that was given up, or an answer.
                _ => {}
            }
        }
        None
    }

    fn refresh(&mut self) -> bool {
        let lives = |client: &mut Client| client.refresh(600).is_some_and(|answer| answer.is_success());
        self.clients.iter_mut().all(lives) && self.bind()
    }

    pub fn hang_up(&mut self) {
        for client in &mut self.clients {
            let _ = client.refresh(0);
        }
    }
}

/// A call on a thread of its own.
pub struct Call {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    arrived: AtomicU64,
    lost: AtomicU64,
    is_over: AtomicBool,
}

impl Call {
    pub fn begin(mut ends: Ends) -> Self {
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let thread = std::thread::spawn(move || {
            let (mut number, mut refreshed) = (0_u64, Instant::now());
            let mut next = Instant::now();
            while !shared.is_over.load(Ordering::Acquire) {
                for from_second in [false, true] {
                    number += 1;
                    let mut data = number.to_be_bytes().to_vec();
                    data.resize(LENGTH, 7);
                    let count = match ends.pass(from_second, &data) {
                        Some(_) => &shared.arrived,
                        None => &shared.lost,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
                if refreshed.elapsed() > REFRESH_EVERY {
                    refreshed = Instant::now();
                    if !ends.refresh() {
                        shared.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
                next += EVERY;
                // What was late is not made up for.
                next = next.max(Instant::now());
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            ends.hang_up();
        });
        Self {
            counts,
            thread: Some(thread),
        }
    }

    pub fn arrived(&self) -> u64 {
        self.counts.arrived.load(Ordering::Relaxed)
    }

    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    /// Hangs up: both clients give their allocations back. How many packets arrived, and how many were lost, the last one among them.
    pub fn end(mut self) -> (u64, u64) {
        self.stop();
        (self.arrived(), self.lost())
    }

    fn stop(&mut self) {
        self.counts.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.stop();
    }
}
