//! What waits to be done, first in, first out.
//!
//! In: outputs. Out: the same, in order. Never: keeps anything of one that went, though it keeps the room.

use super::outcome::Output;
use std::collections::VecDeque;
use zeroize::Zeroize;

#[derive(Default)]
pub(super) struct Outputs(VecDeque<Output>);

impl Outputs {
    pub fn push_back(&mut self, output: Output) {
        if self.0.len() == self.0.capacity() {
            self.grow();
        }
        self.0.push_back(output);
    }

    pub fn pop_front(&mut self) -> Option<Output> {
        let place = self.0.front_mut()?;
        let output = place.clone();
        place.zeroize();
        self.0.pop_front();
        Some(output)
    }

    pub fn retain(&mut self, stays: impl Fn(&Output) -> bool) {
        self.0.retain_mut(|output| {
            let stays = stays(output);
            if !stays {
                output.zeroize();
            }
            stays
        });
    }

    /// A queue that grew on its own would leave copies behind.
    fn grow(&mut self) {
        let mut larger = VecDeque::with_capacity((2 * self.0.len()).max(FEW));
        while let Some(output) = self.pop_front() {
            larger.push_back(output);
        }
        self.0 = larger;
    }
}

const FEW: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Answer, Prefix};
    use crate::wire::{FiveTuple, Transport};
    use std::net::SocketAddr;
    use std::os::unix::fs::FileExt;

    const PACKET: [u8; 20] = *b"a packet to a client";
    /// Half of the client's address, as it lies in a [`FiveTuple`].
    const CLIENT: u64 = 0x2001_0DB8_A5A6_A7A8;

    fn answer() -> Output {
        let client = std::net::Ipv6Addr::from_bits(u128::from(CLIENT) << 64 | 1);
        Output::Send {
            to: FiveTuple::new(SocketAddr::from((client, 4_000)), Transport::Udp, 0),
            answer: Answer::carry(&Prefix::NONE, &PACKET, 0),
        }
    }

    /// The room of a queue that was just made, or has just grown.
    struct Room {
        start: u64,
        length: usize,
    }

    impl Room {
        fn of(outputs: &Outputs) -> Self {
            let (first, _) = outputs.0.as_slices();
            Self {
                start: first.as_ptr().addr() as u64,
                length: outputs.0.capacity() * size_of::<Output>(),
            }
        }

        /// How often an address or a packet lies in it.
        #[expect(
            clippy::disallowed_methods,
            reason = "the memory of a queue that was left is nobody's to borrow"
        )]
        fn found(&self) -> usize {
            let mut bytes = vec![0; self.length];
            let memory = std::fs::File::open("/proc/self/mem").unwrap();
            memory.read_exact_at(&mut bytes, self.start).unwrap();
            let count = |needle: &[u8]| bytes.windows(needle.len()).filter(|window| *window == needle).count();
            let found = count(&PACKET) + count(&CLIENT.to_ne_bytes());
            // Its room may be the next queue's.
            bytes.zeroize();
            found
        }
    }

    #[test]
    fn what_went_leaves_nothing_in_the_room_of_the_queue() {
        let mut outputs = Outputs::default();
        outputs.push_back(answer());
        let room = Room::of(&outputs);
        assert_eq!(room.found(), 2, "the search finds what is there");
        // Once around.
        for _ in 0..6 {
            outputs.push_back(answer());
            assert!(matches!(outputs.pop_front(), Some(Output::Send { .. })));
        }
        assert_eq!(room.found(), 2);
        assert!(outputs.pop_front().is_some() && outputs.pop_front().is_none());
        assert_eq!(room.found(), 0);
    }

    #[test]
    fn a_queue_that_grows_where_it_wraps_has_nothing_twice() {
        let mut outputs = Outputs::default();
        (0..FEW).for_each(|_| outputs.push_back(answer()));
        (0..2).for_each(|_| assert!(outputs.pop_front().is_some()));
        (0..3).for_each(|_| outputs.push_back(answer()));
        let room = Room::of(&outputs);
        assert_eq!(room.found(), 2 * 5);
        let mut number = 0;
        while outputs.pop_front().is_some() {
            number += 1;
        }
        assert_eq!((number, room.found()), (5, 0));
    }

    #[test]
    fn what_is_thrown_out_leaves_nothing_either() {
        let mut outputs = Outputs::default();
        (0..FEW).for_each(|_| outputs.push_back(answer()));
        let room = Room::of(&outputs);
        let seen = std::cell::Cell::new(0);
        outputs.retain(|_| {
            seen.set(seen.get() + 1);
            seen.get() == 3
        });
        assert_eq!(room.found(), 2, "one of four stays");
        assert!(outputs.pop_front().is_some() && outputs.pop_front().is_none());
        assert_eq!(room.found(), 0);
    }
}
