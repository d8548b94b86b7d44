//! Bursts of allocations against a fresh server: what one costs of a processor, and of memory while it is idle.
//!
//! In: coturn and ours, by turns. Out: allocations a processor second and bytes for each, a value per round.

use crate::batch;
use crate::clients::Crowd;
use crate::servers::{Kind, Place};
use std::time::Duration;

/// Allocations in one burst.
const BURST: usize = 8_000;
/// Requests under way at once: what every server's receive buffer holds.
const AT_ONCE: usize = 256;
/// So that what a server does after its answer is counted too.
const SETTLE: Duration = Duration::from_millis(300);

#[derive(Clone)]
pub struct Readings {
    pub kind: Kind,
    /// A processor second.
    pub allocations: Vec<f64>,
    /// Each, beside the kernel's socket.
    pub bytes: Vec<f64>,
    /// Each, with a permission and a channel.
    pub bytes_bound: Vec<f64>,
}

pub fn measure(place: &Place, kinds: &[Kind], rounds: usize, processor: usize) -> Vec<Readings> {
    let mut readings: Vec<Readings> = kinds
        .iter()
        .map(|kind| Readings {
            kind: *kind,
            allocations: Vec::new(),
            bytes: Vec::new(),
            bytes_bound: Vec::new(),
        })
        .collect();
    for round in 0..rounds {
        for step in 0..kinds.len() {
            let at = (round + step) % kinds.len();
            let reading = one(place, kinds[at], processor);
            if round == 0 && rounds > 1 {
                continue;
            }
            readings[at].allocations.push(reading.0);
            readings[at].bytes.push(reading.1);
            readings[at].bytes_bound.push(reading.2);
        }
    }
    readings
}

fn one(place: &Place, kind: Kind, processor: usize) -> (f64, f64, f64) {
    let server = place.start(kind);
    // The player must not run where the server does.
    std::thread::scope(|scope| {
        let playing = scope.spawn(|| {
            batch::pin(&[processor]);
            let mut crowd = Crowd::new(&server, 0, BURST);
            std::thread::sleep(SETTLE);
            let (time, memory) = (server.processor_time(), server.resident_bytes());
            crowd.allocate(AT_ONCE);
            std::thread::sleep(SETTLE);
            let took = server.processor_time().saturating_sub(time);
            let each = |bytes: u64| bytes.saturating_sub(memory) as f64 / BURST as f64;
            let idle = each(server.resident_bytes());
            crowd.bind(AT_ONCE);
            let bound = each(server.resident_bytes());
            (BURST as f64 / took.as_secs_f64(), idle, bound)
        });
        playing.join().expect("a player does not panic")
    })
}
