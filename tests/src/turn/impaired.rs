//! A link that loses, delays, reorders and shortens: what netem does, for kernels that are built without it.
//!
//! Two TUN interfaces in two networks, and between them a thread for each direction. In: packets of the kernel. Out: the same packets, later,
//! in another order, or not at all, and counts of that. Never: changes a packet, or holds more than [`MOST_HELD`] of them.

use super::net::Network;
use crate::system;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a link does to each packet, in either direction.
#[derive(Clone, Copy, Debug)]
pub struct Impairment {
    /// Share of packets that are lost, each for itself: 0 to 1.
    pub loss: f64,
    /// How long each packet is under way.
    pub delay: Duration,
    /// Share of packets that take `detour` more, so that later ones overtake them.
    pub reordered: f64,
    pub detour: Duration,
    /// Bytes; what is longer vanishes, and nobody is told.
    pub longest: usize,
}

impl Impairment {
    /// A good line: ten milliseconds each way, everything arrives in order.
    pub const NONE: Self = Self {
        loss: 0.0,
        delay: Duration::from_millis(10),
        reordered: 0.0,
        detour: Duration::ZERO,
        longest: usize::MAX,
    };
}

/// What one direction has done so far, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    pub passed: u64,
    pub lost: u64,
    /// Left after one that had come later.
    pub overtaken: u64,
    pub too_long: u64,
    /// Bytes of the longest that passed.
    pub longest: u64,
}

/// Gone with its owner, and the interfaces with it.
pub struct ImpairedLink {
    directions: [Arc<Direction>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl ImpairedLink {
    /// Joins two networks. Each end is the name of its interface, and its address with the length of its prefix.
    ///
    /// # Panics
    /// If this process may not make interfaces.
    pub fn join(one: (&Network, &str, &str), other: (&Network, &str, &str), impairment: Impairment) -> Self {
        let ends = [one, other].map(|(network, name, address)| {
            let file = network.run(|| system::new_tun(name)).unwrap_or_else(|fault| {
                panic!("this test makes interfaces (/dev/net/tun), so it must run as root: {fault}")
            });
            // Nothing but what is sent on purpose shall pass and be counted.
            network.set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
            network.ip(&format!("addr add {address} dev {name}"));
            network.ip(&format!("link set {name} up"));
            Arc::new(file)
        });
        let [near, far] = ends;
        let directions = [SEED, SEED + 1].map(|seed| Arc::new(Direction::new(impairment, seed)));
        let threads = [(&near, &far), (&far, &near)]
            .into_iter()
            .zip(&directions)
            .map(|((from, to), direction)| {
                let (from, to, direction) = (Arc::clone(from), Arc::clone(to), Arc::clone(direction));
                std::thread::spawn(move || direction.carry(&from, &to))
            })
            .collect();
        Self { directions, threads }
    }

    /// From now on.
    pub fn set(&self, impairment: Impairment) {
        for direction in &self.directions {
            *direction.impairment.lock().unwrap_or_else(PoisonError::into_inner) = impairment;
        }
    }

    /// From the first network to the second, and back.
    pub fn passages(&self) -> [Passage; 2] {
        self.directions.each_ref().map(|direction| direction.counts.read())
    }
}

impl Drop for ImpairedLink {
    fn drop(&mut self) {
        for direction in &self.directions {
            direction.is_over.store(true, Ordering::Release);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Packets under way at most, in each direction: a quarter of a second of a fast line. What comes then is lost.
const MOST_HELD: usize = 4_096;
/// How long the end of a link is waited for at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The same packets in the same order have the same fate in each run.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

struct Direction {
    impairment: Mutex<Impairment>,
    counts: Counts,
    is_over: AtomicBool,
    seed: u64,
}

#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    lost: AtomicU64,
    overtaken: AtomicU64,
    too_long: AtomicU64,
    longest: AtomicU64,
}

impl Counts {
    fn read(&self) -> Passage {
        let [passed, lost, overtaken, too_long, longest] =
            [&self.passed, &self.lost, &self.overtaken, &self.too_long, &self.longest]
                .map(|count| count.load(Ordering::Relaxed));
        Passage {
            passed,
            lost,
            overtaken,
            too_long,
            longest,
        }
    }
}

impl Direction {
    fn new(impairment: Impairment, seed: u64) -> Self {
        Self {
            impairment: Mutex::new(impairment),
            counts: Counts::default(),
            is_over: AtomicBool::new(false),
            seed,
        }
    }

    fn carry(&self, mut from: &File, mut to: &File) {
        let mut chance = Chance(self.seed);
        let mut room = vec![0; 70_000];
        // By the moment they leave, then by the order in which they came.
        let mut held: BTreeMap<(Instant, u64), Vec<u8>> = BTreeMap::new();
        let (mut number, mut newest_out) = (0_u64, 0_u64);
        while !self.is_over.load(Ordering::Acquire) {
            while let Ok(length) = from.read(&mut room) {
                let Some(packet) = room.get(..length) else { break };
                number += 1;
                if let Some(delay) = self.delay_of(packet, &mut chance, held.len()) {
                    held.insert((Instant::now() + delay, number), packet.to_vec());
                }
            }
            let now = Instant::now();
            while let Some(entry) = held.first_entry().filter(|entry| entry.key().0 <= now) {
                let ((_, number), packet) = entry.remove_entry();
                // The other end may be down: then it is as lost as on any other line.
                let count = match to.write(&packet) {
                    Ok(_) => &self.counts.passed,
                    Err(_) => &self.counts.lost,
                };
                count.fetch_add(1, Ordering::Relaxed);
                self.counts.longest.fetch_max(packet.len() as u64, Ordering::Relaxed);
                if number < newest_out {
                    self.counts.overtaken.fetch_add(1, Ordering::Relaxed);
                }
                newest_out = newest_out.max(number);
            }
            let next = held
                .first_key_value()
                .map(|((due, _), _)| due.saturating_duration_since(Instant::now()));
            system::wait_readable(from, next.unwrap_or(LOOK_EVERY).min(LOOK_EVERY));
        }
    }

    /// `None` if this packet does not arrive.
    fn delay_of(&self, packet: &[u8], chance: &mut Chance, held: usize) -> Option<Duration> {
        let impairment = *self.impairment.lock().unwrap_or_else(PoisonError::into_inner);
        // Both are drawn for each packet, so that one impairment does not move the other.
        let (is_lost, is_reordered) = (chance.is(impairment.loss), chance.is(impairment.reordered));
        if packet.len() > impairment.longest {
            self.counts.too_long.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if is_lost || held >= MOST_HELD {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let detour = if is_reordered {
            impairment.detour
        } else {
            Duration::ZERO
        };
        Some(impairment.delay + detour)
    }
}

/// splitmix64: no library for one number a packet.
struct Chance(u64);

impl Chance {
    fn is(&mut self, share: f64) -> bool {
        self.0 = self.0.wrapping_add(SEED);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        // 53 bits are what a double holds exactly.
        ((bits >> 11) as f64) < share * (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::client::PATIENCE;
    use std::collections::BTreeSet;

    const SENT: u32 = 3_000;

    /// Numbers that arrive through a link, in the order in which they do, and what the link says of them.
    fn through(impairment: Impairment, length: usize) -> (Vec<u32>, Passage) {
        let [near, far] = [0, 1].map(|_| Network::new(&[]));
        let link = ImpairedLink::join((&near, "one", "1.3.0.1/24"), (&far, "other", "1.3.0.2/24"), impairment);
        let (sender, receiver) = (near.udp([1, 3, 0, 1], 4_000), far.udp([1, 3, 0, 2], 4_000));
        receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let mut arrived = Vec::new();
        let mut room = [0; 2_000];
        let mut receive = |arrived: &mut Vec<u32>| {
            let length = receiver.recv(&mut room).expect("something arrives in time");
            let number = room.get(..length).and_then(|packet| packet.first_chunk());
            arrived.push(u32::from_be_bytes(*number.expect("a packet begins with its number")));
        };
        for number in 0..SENT {
            let mut packet = number.to_be_bytes().to_vec();
            packet.resize(length, 0);
            sender.send_to(&packet, ("1.3.0.2", 4_000)).expect("it is sent");
            // Fewer are under way, or wait at their end, than any queue holds.
            while u64::from(number) > gone(&link) + 16 {
                std::thread::yield_now();
            }
            while (arrived.len() as u64) + 16 < link.passages()[0].passed {
                receive(&mut arrived);
            }
        }
        while gone(&link) < SENT.into() {
            std::thread::yield_now();
        }
        let there = link.passages()[0];
        while (arrived.len() as u64) < there.passed {
            receive(&mut arrived);
        }
        (arrived, there)
    }

    fn gone(link: &ImpairedLink) -> u64 {
        let Passage {
            passed, lost, too_long, ..
        } = link.passages()[0];
        passed + lost + too_long
    }

    fn sorted(arrived: &[u32]) -> Vec<u32> {
        arrived.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    const AT_ONCE: Impairment = Impairment {
        delay: Duration::ZERO,
        ..Impairment::NONE
    };

    #[test]
    fn a_good_link_loses_and_reorders_nothing() {
        let (arrived, passage) = through(AT_ONCE, 100);
        assert_eq!(arrived, (0..SENT).collect::<Vec<_>>());
        assert_eq!((passage.lost, passage.overtaken, passage.longest), (0, 0, 128));
    }

    #[test]
    fn a_lossy_link_loses_the_share_it_is_told_to() {
        let loss = 0.05;
        let (arrived, passage) = through(Impairment { loss, ..AT_ONCE }, 100);
        assert_eq!(arrived, sorted(&arrived));
        assert_eq!(passage.lost + arrived.len() as u64, u64::from(SENT));
        assert!((110..190).contains(&passage.lost), "{passage:?}");
    }

    #[test]
    fn a_reordering_link_loses_nothing() {
        let reordering = Impairment {
            reordered: 0.1,
            detour: Duration::from_millis(2),
            ..AT_ONCE
        };
        let (arrived, passage) = through(reordering, 100);
        assert_ne!(arrived, sorted(&arrived));
        assert_eq!(sorted(&arrived), (0..SENT).collect::<Vec<_>>());
        assert!(passage.overtaken > 100, "{passage:?}");
    }

    #[test]
    fn a_short_link_takes_what_fits_and_nothing_else() {
        let longest = 1_280;
        let short = Impairment { longest, ..AT_ONCE };
        // 20 and 8 bytes are headers.
        assert_eq!(through(short, longest - 28).0.len(), SENT as usize);
        let (arrived, passage) = through(short, longest - 27);
        assert_eq!((arrived.len(), passage.too_long), (0, u64::from(SENT)));
    }
}
