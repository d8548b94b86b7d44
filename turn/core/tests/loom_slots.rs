//! All orders in which one writer and its readers can meet on a slot of the forwarding index.

#[path = "../src/forwarding/slot.rs"]
mod slot;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, fence};
use slot::{Slot, Word};
use std::sync::atomic::Ordering;

struct Modelled(AtomicU64);

impl Word for Modelled {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }

    fn fence(order: Ordering) {
        fence(order);
    }

    fn pause() {
        loom::thread::yield_now();
    }
}

/// Every order with at most two switches that no thread asked for: without a bound the orders of fences are endless.
fn model(orders: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(orders);
}

#[test]
fn a_reader_never_sees_half_of_two_writes() {
    model(|| {
        let slot = Arc::new(Slot::<Modelled, 2>::default());
        let writer = {
            let slot = slot.clone();
            loom::thread::spawn(move || {
                slot.write(&[1, 1]);
                slot.write(&[2, 2]);
            })
        };
        if let Some([first, second]) = slot.read(1) {
            assert_eq!(first, second);
        }
        writer.join().unwrap();
        assert_eq!(slot.read(1), Some([2, 2]));
    });
}

#[test]
fn what_was_read_once_never_goes_back() {
    model(|| {
        let slot = Arc::new(Slot::<Modelled, 1>::default());
        let writer = {
            let slot = slot.clone();
            loom::thread::spawn(move || {
                slot.write(&[1]);
                slot.write(&[2]);
            })
        };
        let (first, second) = (slot.read(1), slot.read(1));
        if let (Some(first), Some(second)) = (first, second) {
            assert!(first <= second);
        }
        writer.join().unwrap();
    });
}

#[test]
fn two_readers_each_see_whole_writes() {
    model(|| {
        let slot = Arc::new(Slot::<Modelled, 2>::default());
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let slot = slot.clone();
                loom::thread::spawn(move || {
                    if let Some([first, second]) = slot.read(1) {
                        assert_eq!(first, second);
                    }
                })
            })
            .collect();
        slot.write(&[7, 7]);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
