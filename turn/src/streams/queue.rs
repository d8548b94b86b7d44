//! Bytes that wait for one client.
//!
//! In: bytes. Out: as many as the socket takes. Never: holds room while it is empty, or frees room without overwriting it.

use std::io::{self, Write};
use zeroize::Zeroize;

/// A queue of bytes in one piece, so that one write takes all of it.
#[derive(Default)]
pub struct WriteQueue {
    buffer: Vec<u8>,
    /// Before it everything is written.
    start: usize,
}

impl WriteQueue {
    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.make_room(bytes.len());
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Until it is empty or the socket takes no more. Whether it took anything.
    pub fn write_to(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        let mut has_written = false;
        while let Some(waiting) = self.buffer.get(self.start..).filter(|waiting| !waiting.is_empty()) {
            match socket.write(waiting) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.start += written.min(waiting.len());
                    has_written = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(has_written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Thousands of streams are silent most of the time.
        self.buffer.zeroize();
        *self = Self::default();
        Ok(has_written)
    }

    /// A vector that grew on its own would leave a copy behind.
    fn make_room(&mut self, more: usize) {
        let wanted = (self.len() + more).next_power_of_two().max(SMALLEST);
        let mut larger = Vec::with_capacity(wanted);
        larger.extend_from_slice(self.buffer.get(self.start..).unwrap_or_default());
        self.buffer.zeroize();
        (self.buffer, self.start) = (larger, 0);
    }
}

const SMALLEST: usize = 2_048;

/// TLS writes its records into it.
impl Write for WriteQueue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for WriteQueue {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes this many bytes at a time, then none, and so on.
    struct Narrow {
        taken: Vec<u8>,
        most: usize,
        is_closed: bool,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.is_closed = !self.is_closed;
            if !self.is_closed {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let length = bytes.len().min(self.most);
            self.taken.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_goes_in_comes_out_in_order_and_nothing_is_held_for_nothing() {
        for most in [1, 7, 5_000, 1_000_000] {
            let (mut queue, mut sent) = (WriteQueue::default(), Vec::new());
            let mut socket = Narrow {
                taken: Vec::new(),
                most,
                is_closed: false,
            };
            for round in 0..100u32 {
                let bytes: Vec<u8> = (0..round * 13).map(|at| (at ^ round) as u8).collect();
                queue.push(&bytes);
                sent.extend_from_slice(&bytes);
                let before = queue.len();
                let has_written = queue.write_to(&mut socket).unwrap();
                assert_eq!(has_written, queue.len() < before);
            }
            while !queue.is_empty() {
                queue.write_to(&mut socket).unwrap();
            }
            assert_eq!(socket.taken, sent);
            assert_eq!(queue.buffer.capacity(), 0);
        }
    }

    #[test]
    fn room_stays_within_twice_what_waits() {
        let mut queue = WriteQueue::default();
        let mut socket = Narrow {
            taken: Vec::new(),
            most: 1_000,
            is_closed: false,
        };
        // A client that is always a little behind: the written part must not pile up.
        queue.push(&[1; 60_000]);
        for _ in 0..1_000 {
            queue.push(&[2; 1_000]);
            queue.write_to(&mut socket).unwrap();
        }
        assert_eq!(queue.len(), 60_000);
        assert!(queue.buffer.capacity() <= 131_072, "{}", queue.buffer.capacity());
    }
}
