//! A few numbers that one thread writes and all read, without a lock.
//!
//! In: a whole set of words, from the one owner. Out: a whole set, never half of two. Never: waits for a writer.
//!
//! The sequence is odd while words are written, and another one afterwards: it is the generation that a read is checked against.
//! Generic over the atomic, so that a model checker can put its own in place.

use std::sync::atomic::Ordering;

/// A 64-bit atomic and the fence that goes with it.
pub trait Word {
    fn new(value: u64) -> Self;
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn fence(order: Ordering);
    /// Between two tries of a reader.
    fn pause();
}

/// `N` words that belong together.
pub struct Slot<W, const N: usize> {
    sequence: W,
    words: [W; N],
}

impl<W: Word, const N: usize> Default for Slot<W, N> {
    fn default() -> Self {
        Self {
            sequence: W::new(0),
            words: std::array::from_fn(|_| W::new(0)),
        }
    }
}

impl<W: Word, const N: usize> Slot<W, N> {
    /// The words of one write. `None` if the owner wrote at every try; a packet is then lost, as it would be a moment later.
    pub fn read(&self, tries: usize) -> Option<[u64; N]> {
        for _ in 0..tries {
            let before = self.sequence.load(Ordering::Acquire);
            if before & 1 == 0 {
                let words = std::array::from_fn(|at| self.words.get(at).map_or(0, |word| word.load(Ordering::Relaxed)));
                // No load above may sink below the second look at the sequence.
                W::fence(Ordering::Acquire);
                if self.sequence.load(Ordering::Relaxed) == before {
                    return Some(words);
                }
            }
            W::pause();
        }
        None
    }

    /// Only the owner calls this; who owns a slot changes only under the lock of the ports.
    pub fn write(&self, words: &[u64; N]) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        // The odd sequence is seen by whoever sees any of the words below.
        W::fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
        self.sequence.store(before.wrapping_add(2), Ordering::Release);
    }
}
