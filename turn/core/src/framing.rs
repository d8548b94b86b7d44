//! Frames out of a byte stream: TCP and TLS clients.
//!
//! In: what a stream left last time and its next bytes, split anywhere. Out: one STUN message or ChannelData frame at a time, and
//! what is left. Never: holds more than one bounded buffer, or looks for the next frame behind bytes that are none.
//!
//! One [`Framer`] serves all streams of a shard, one after the other: what a stream keeps between two reads is half a frame at most.
//!
//! RFC 8656 §12.5: over streams ChannelData is padded to a multiple of 4; the padding is not in its length.

use crate::wire::{CHANNEL_HEADER, HEADER, Kind, MAGIC_COOKIE, demux};
use zeroize::Zeroize;

/// Largest frame of all: ChannelData with 65,535 bytes and one of padding.
pub const MAX_FRAME: usize = 65_540;
/// What a client may send before it has an allocation.
pub const STRANGER_FRAME: usize = 2_048;
/// Room for the next read: a whole TLS record.
pub const ROOM: usize = 16_384;

/// Why a stream must be closed. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingFault {
    /// Neither STUN nor ChannelData: there is no next frame to find.
    NotOurs,
    /// A frame above the limit.
    TooLong,
}

impl FramingFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotOurs => "not_ours",
            Self::TooLong => "frame_too_long",
        }
    }
}

/// The buffer that streams are read into.
pub struct Framer {
    buffer: Vec<u8>,
    /// Where the frames not yet taken begin, and where the bytes end.
    start: usize,
    end: usize,
    /// Where the buffer was never written.
    clean: usize,
    limit: usize,
}

impl Framer {
    /// `limit` is the largest frame; see [`STRANGER_FRAME`].
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            clean: 0,
            limit: limit.clamp(HEADER, MAX_FRAME),
        }
    }

    /// The stream in hand is another one, which left this half of a frame.
    pub fn begin(&mut self, rest: &[u8], limit: usize) {
        self.clear();
        self.set_limit(limit);
        // A rest is less than a frame, so that this runs a few times at most.
        let mut rest = rest;
        while !rest.is_empty() {
            let space = self.space();
            let (now, later) = rest.split_at(rest.len().min(space.len()));
            if let Some(place) = space.get_mut(..now.len()) {
                place.copy_from_slice(now);
            }
            self.filled(now.len());
            rest = later;
        }
    }

    /// Forgets what it holds, and overwrites it.
    pub fn clear(&mut self) {
        self.buffer.get_mut(..self.clean).unwrap_or_default().zeroize();
        (self.start, self.end, self.clean) = (0, 0, 0);
    }

    /// Once the client has shown who it is, longer frames are good.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.clamp(HEADER, MAX_FRAME);
    }

    /// Where the next bytes of the stream go: [`ROOM`] at least. Grows only if [`Framer::next_frame`] is not called until it gives nothing.
    pub fn space(&mut self) -> &mut [u8] {
        self.compact();
        let wanted = self.end + ROOM;
        if self.buffer.len() < wanted {
            let mut larger = vec![0; wanted.next_multiple_of(ROOM)];
            if let Some((place, bytes)) = larger.get_mut(..self.end).zip(self.buffer.get(..self.end)) {
                place.copy_from_slice(bytes);
            }
            self.buffer.zeroize();
            self.buffer = larger;
            self.clean = self.end;
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were written into [`Framer::space`].
    pub fn filled(&mut self, length: usize) {
        self.end = (self.end + length).min(self.buffer.len());
        self.clean = self.clean.max(self.end);
    }

    /// Whether [`Framer::next_frame`] has one.
    pub fn has_frame(&self) -> Result<bool, FramingFault> {
        Ok(self.needed()?.is_some_and(|length| self.end - self.start >= length))
    }

    /// The next whole frame, its padding included. A fault stays: the stream is to be closed.
    pub fn next_frame(&mut self) -> Result<Option<&mut [u8]>, FramingFault> {
        let Some(length) = self.needed()? else {
            return Ok(None);
        };
        if self.end - self.start < length {
            return Ok(None);
        }
        let start = self.start;
        self.start += length;
        Ok(self.buffer.get_mut(start..start + length))
    }

    /// What is in hand and no whole frame yet.
    pub fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Length of the frame that begins at `start`, as soon as its header says it.
    fn needed(&self) -> Result<Option<usize>, FramingFault> {
        let waiting = self.rest();
        if waiting.is_empty() {
            return Ok(None);
        }
        let kind = demux(waiting);
        if kind == Kind::Other {
            return Err(FramingFault::NotOurs);
        }
        let Some([_, _, l0, l1]) = waiting.first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let whole = match kind {
            Kind::Stun => {
                let cookie = waiting.get(4..8);
                if length % 4 != 0 || cookie.is_some_and(|cookie| cookie != MAGIC_COOKIE.to_be_bytes()) {
                    return Err(FramingFault::NotOurs);
                }
                HEADER + length
            }
            _ => CHANNEL_HEADER + length.next_multiple_of(4),
        };
        if whole > self.limit {
            return Err(FramingFault::TooLong);
        }
        Ok(Some(whole))
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

impl Drop for Framer {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ChannelData, ChannelNumber, Class, Method, TransactionId, Writer};
    use proptest::prelude::*;

    fn stun(attribute_length: usize) -> Vec<u8> {
        let mut buffer = vec![0; 65_600];
        let mut writer = Writer::new(&mut buffer, Method::Binding, Class::Request, TransactionId([7; 12]));
        writer.attribute(0x8022, &[&vec![1; attribute_length]]);
        writer.finish().unwrap().to_vec()
    }

    fn channel_data(length: usize) -> Vec<u8> {
        let header = ChannelData::header(ChannelNumber::new(0x4001).unwrap(), length as u16);
        let mut frame = [header.as_slice(), &vec![2; length]].concat();
        frame.resize(frame.len().next_multiple_of(4), 0);
        frame
    }

    /// Feeds the stream in the given pieces and returns the frames.
    fn frames(framer: &mut Framer, mut stream: &[u8], mut piece: impl FnMut() -> usize) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !stream.is_empty() {
            let space = framer.space();
            let length = piece().clamp(1, space.len()).min(stream.len());
            space[..length].copy_from_slice(&stream[..length]);
            framer.filled(length);
            stream = &stream[length..];
            while let Some(frame) = framer.next_frame().unwrap() {
                found.push(frame.to_vec());
            }
        }
        found
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_were_split(
            lengths in proptest::collection::vec((any::<bool>(), 0usize..3000), 1..20),
            pieces in proptest::collection::vec(1usize..4000, 1..50),
        ) {
            let sent: Vec<Vec<u8>> = lengths
                .iter()
                .map(|(is_stun, length)| if *is_stun { stun(*length) } else { channel_data(*length) })
                .collect();
            let mut pieces = pieces.iter().cycle();
            let got = frames(&mut Framer::new(MAX_FRAME), &sent.concat(), || *pieces.next().unwrap());
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn no_stream_panics_or_grows_beyond_its_bound(bytes: Vec<u8>) {
            let mut framer = Framer::new(MAX_FRAME);
            for byte in bytes {
                framer.space()[0] = byte;
                framer.filled(1);
                if framer.next_frame().is_err() {
                    break;
                }
                prop_assert!(framer.buffer.len() <= (MAX_FRAME + ROOM).next_multiple_of(ROOM));
            }
        }

        #[test]
        fn streams_that_take_turns_do_not_meet(
            lengths in proptest::collection::vec(0usize..3000, 2..12),
            pieces in proptest::collection::vec(1usize..2000, 1..50),
        ) {
            // Each stream has one frame after the other; one framer serves them by turns, and each keeps its own rest.
            let mut framer = Framer::new(MAX_FRAME);
            let sent: Vec<Vec<u8>> = lengths.iter().map(|length| [stun(*length), channel_data(*length)].concat()).collect();
            let mut streams: Vec<(&[u8], Vec<u8>, Vec<u8>)> =
                sent.iter().map(|bytes| (bytes.as_slice(), Vec::new(), Vec::new())).collect();
            let mut pieces = pieces.iter().cycle();
            while streams.iter().any(|(todo, ..)| !todo.is_empty()) {
                for (todo, rest, got) in &mut streams {
                    framer.begin(rest, MAX_FRAME);
                    let piece = (*pieces.next().unwrap()).min(todo.len());
                    framer.space()[..piece].copy_from_slice(&todo[..piece]);
                    framer.filled(piece);
                    *todo = &todo[piece..];
                    while let Some(frame) = framer.next_frame().unwrap() {
                        got.extend_from_slice(frame);
                    }
                    *rest = framer.rest().to_vec();
                }
            }
            for ((_, rest, got), sent) in streams.iter().zip(&sent) {
                prop_assert!(rest.is_empty());
                prop_assert_eq!(got, sent);
            }
            framer.clear();
            prop_assert!(framer.buffer.iter().all(|byte| *byte == 0), "something of a stream stays");
        }
    }

    #[test]
    fn the_longest_frames_pass() {
        let sent = [channel_data(65_535), stun(65_500), channel_data(0)];
        assert_eq!(frames(&mut Framer::new(MAX_FRAME), &sent.concat(), || 9_000), sent);
    }

    #[test]
    fn a_stranger_may_not_make_us_hold_long_frames() {
        let mut framer = Framer::new(STRANGER_FRAME);
        framer.space()[..4].copy_from_slice(&channel_data(60_000)[..4]);
        framer.filled(4);
        assert_eq!(framer.next_frame(), Err(FramingFault::TooLong));
        framer.set_limit(MAX_FRAME);
        assert_eq!(framer.next_frame(), Ok(None));
    }

    #[test]
    fn what_is_no_frame_ends_the_stream() {
        for bytes in [
            b"POST / HTTP/1.1\r\n".as_slice(),
            &[0x16, 3, 1, 0],
            &[0, 1, 0, 3],
            &[0, 1, 0, 0, 1, 2, 3, 4],
        ] {
            let mut framer = Framer::new(MAX_FRAME);
            framer.space()[..bytes.len()].copy_from_slice(bytes);
            framer.filled(bytes.len());
            assert_eq!(framer.next_frame(), Err(FramingFault::NotOurs));
        }
    }
}
