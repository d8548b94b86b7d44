//! Packets from other shards for the stream clients of one shard.
//!
//! In: a packet, at the shard that has it. Out: the same, at the shard that has the client. Never: waits, or takes a lock: what does not
//! fit is dropped by the sender, who counts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use turn_core::wire::FiveTuple;
use zeroize::Zeroize;

/// Packets that may wait for one shard.
const PACKETS: usize = 4_096;
/// Their bytes: what a shard of TLS clients encrypts in some ten milliseconds.
const BYTES: usize = 4 << 20;

/// A frame as the client gets it, behind the client's name: all in one place, which is overwritten at the end.
pub struct Arrival(Vec<u8>);

/// A 5-tuple as three numbers.
const NAME: usize = 24;

impl Arrival {
    fn new(to: &FiveTuple, frame: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(NAME + frame.len());
        to.words()
            .iter()
            .for_each(|word| bytes.extend_from_slice(&word.to_ne_bytes()));
        bytes.extend_from_slice(frame);
        Self(bytes)
    }

    pub fn to(&self) -> FiveTuple {
        let mut words = [0; 3];
        for (word, bytes) in words.iter_mut().zip(self.0.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        FiveTuple::from_words(words)
    }

    pub fn frame(&self) -> &[u8] {
        self.0.get(NAME..).unwrap_or_default()
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The way to one shard. All the others hold one.
#[derive(Clone)]
pub struct Departures {
    sender: SyncSender<Arrival>,
    shared: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    bytes: AtomicUsize,
    /// Somebody has woken the shard, and it has not looked since.
    is_woken: AtomicBool,
}

/// What came for this shard.
pub struct Arrivals {
    receiver: Receiver<Arrival>,
    shared: Arc<Waiting>,
}

/// The two ends of the way to one shard.
pub fn arrivals() -> (Departures, Arrivals) {
    let (sender, receiver) = sync_channel(PACKETS);
    let shared = Arc::new(Waiting::default());
    let departures = Departures {
        sender,
        shared: shared.clone(),
    };
    (departures, Arrivals { receiver, shared })
}

/// As much waits for that shard as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrivalsFull;

impl Departures {
    /// `Ok(true)`: the shard sleeps, and this caller is to wake it.
    pub fn send(&self, to: &FiveTuple, frame: &[u8]) -> Result<bool, ArrivalsFull> {
        let length = frame.len();
        if self.shared.bytes.fetch_add(length, Ordering::Relaxed) + length > BYTES {
            self.shared.bytes.fetch_sub(length, Ordering::Relaxed);
            return Err(ArrivalsFull);
        }
        if self.sender.try_send(Arrival::new(to, frame)).is_err() {
            self.shared.bytes.fetch_sub(length, Ordering::Relaxed);
            return Err(ArrivalsFull);
        }
        Ok(!self.shared.is_woken.swap(true, Ordering::AcqRel))
    }
}

impl Arrivals {
    /// To be called before the first [`Arrivals::take`] after a wake-up: what comes from here on wakes again.
    pub fn begin(&self) {
        // A sender's swap either comes before this one, and then its packet is seen, or after, and then it wakes.
        self.shared.is_woken.swap(false, Ordering::AcqRel);
    }

    pub fn take(&self) -> Option<Arrival> {
        let arrival = self.receiver.try_recv().ok()?;
        self.shared.bytes.fetch_sub(arrival.frame().len(), Ordering::Relaxed);
        Some(arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use turn_core::wire::Transport;

    fn client(port: u16) -> FiveTuple {
        FiveTuple::new(SocketAddr::from(([1, 2, 3, 4], port)), Transport::Tcp, 0)
    }

    #[test]
    fn packets_arrive_in_order_and_only_the_first_wakes() {
        let (departures, arrivals) = arrivals();
        assert_eq!(departures.send(&client(1), b"abc\0"), Ok(true));
        assert_eq!(departures.send(&client(2), b"defg"), Ok(false));
        arrivals.begin();
        let first = arrivals.take().unwrap();
        assert_eq!((first.to(), first.frame()), (client(1), b"abc\0".as_slice()));
        assert_eq!(departures.send(&client(3), b""), Ok(true));
        assert_eq!(arrivals.take().unwrap().frame(), b"defg");
        assert_eq!(arrivals.take().unwrap().frame(), b"");
        assert!(arrivals.take().is_none());
        assert_eq!(arrivals.shared.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_waits_is_bounded_in_packets_and_in_bytes() {
        let (departures, arrivals) = arrivals();
        let sent = (0..2 * PACKETS).filter(|_| departures.send(&client(1), b"x").is_ok());
        assert_eq!(sent.count(), PACKETS);
        while arrivals.take().is_some() {}
        let long = vec![0; 65_000];
        let sent = (0..PACKETS).filter(|_| departures.send(&client(1), &long).is_ok());
        assert_eq!(sent.count(), BYTES / 65_000);
        while arrivals.take().is_some() {}
        assert!(departures.send(&client(1), &long).is_ok());
    }

    #[test]
    fn no_packet_sleeps_in_the_queue() {
        // The sender wakes by a channel that stands for the eventfd; the receiver sleeps until then.
        let (departures, arrivals) = arrivals();
        let (wake, woken) = std::sync::mpsc::channel();
        let sender = std::thread::spawn(move || {
            let mut sent = 0u32;
            while sent < 50_000 {
                match departures.send(&client(1), &sent.to_be_bytes()) {
                    Ok(true) => {
                        wake.send(()).unwrap();
                        sent += 1;
                    }
                    Ok(false) => sent += 1,
                    Err(ArrivalsFull) => std::thread::yield_now(),
                }
            }
        });
        let mut expected = 0u32;
        while expected < 50_000 {
            woken.recv().unwrap();
            arrivals.begin();
            while let Some(arrival) = arrivals.take() {
                assert_eq!(arrival.frame(), expected.to_be_bytes());
                expected += 1;
            }
        }
        sender.join().unwrap();
    }
}
