//! Frames out of a byte stream: TCP and TLS clients.
//!
//! In: what a stream left last time and its next bytes, split anywhere. Out: one STUN message or ChannelData frame at a time, and
//! what is left. Never: holds more than one bounded buffer, or looks for the next frame behind bytes that are none.
//!
//! One [`Framer`] serves all streams of a shard, one after the other: what a stream keeps between two reads is half a frame at most, a
//! [`Half`]. However small the pieces in which a frame comes, each of its bytes is copied a few times and no more.
//!
//! RFC 8656 §12.5: over streams ChannelData is padded to a multiple of 4; the padding is not in its length.

use crate::wire::{CHANNEL_HEADER, HEADER, Kind, MAGIC_COOKIE, demux};
use zeroize::{Zeroize, Zeroizing};

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

    /// The stream in hand is another one.
    pub fn begin(&mut self, limit: usize) {
        self.clear();
        self.set_limit(limit);
    }

    /// After a read: the half that this stream left is in front of what came. While its frame is not whole, it takes what came instead.
    pub fn join(&mut self, half: &mut Half) {
        if half.bytes.is_empty() {
            return;
        }
        let came = self.end - self.start;
        // As much as says the length, or that it is no frame of ours: then it is not waited for.
        let (mut head, mut known) = ([0; HEAD], 0);
        for (to, from) in head.iter_mut().zip(half.bytes.iter().chain(self.rest())) {
            *to = *from;
            known += 1;
        }
        let whole = needed(head.get(..known).unwrap_or_default()).ok().flatten();
        let is_waiting = |whole: &usize| *whole <= self.limit && half.bytes.len() + came < *whole;
        if let Some(whole) = whole.filter(is_waiting) {
            half.push(self.rest(), whole);
            self.start = self.end;
            return;
        }
        let more = half.bytes.len();
        self.compact();
        self.grow(self.end + more);
        self.buffer.copy_within(..self.end, more);
        if let Some(place) = self.buffer.get_mut(..more) {
            place.copy_from_slice(&half.bytes);
        }
        self.filled(more);
        *half = Half::default();
    }

    /// After the last whole frame: what is left is the stream's own until its next read.
    pub fn leave(&self, half: &mut Half) {
        if !self.rest().is_empty() {
            *half = Half {
                bytes: Zeroizing::new(self.rest().to_vec()),
            };
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
        self.grow(self.end + ROOM);
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    fn grow(&mut self, wanted: usize) {
        if self.buffer.len() < wanted {
            let mut larger = vec![0; wanted.next_multiple_of(ROOM)];
            if let Some((place, bytes)) = larger.get_mut(..self.end).zip(self.buffer.get(..self.end)) {
                place.copy_from_slice(bytes);
            }
            self.buffer.zeroize();
            self.buffer = larger;
            self.clean = self.end;
        }
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
        match needed(self.rest())? {
            Some(whole) if whole > self.limit => Err(FramingFault::TooLong),
            whole => Ok(whole),
        }
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

/// What a stream keeps between two reads: half a frame, overwritten when it is done with.
#[derive(Default)]
pub struct Half {
    bytes: Zeroizing<Vec<u8>>,
}

impl Half {
    /// More of a frame that will have `whole` bytes. A vector that grew on its own would leave a copy behind.
    fn push(&mut self, more: &[u8], whole: usize) {
        let wanted = self.bytes.len() + more.len();
        if self.bytes.capacity() < wanted {
            let mut larger = Zeroizing::new(Vec::with_capacity((wanted * 2).min(whole)));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(more);
    }
}

/// Bytes that [`needed`] looks at: type, length and cookie.
const HEAD: usize = 8;

/// Length of the frame that these bytes begin, as soon as they say it.
fn needed(waiting: &[u8]) -> Result<Option<usize>, FramingFault> {
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
    match kind {
        Kind::Stun => {
            let cookie = waiting.get(4..8);
            if length % 4 != 0 || cookie.is_some_and(|cookie| cookie != MAGIC_COOKIE.to_be_bytes()) {
                return Err(FramingFault::NotOurs);
            }
            Ok(Some(HEADER + length))
        }
        _ => Ok(Some(CHANNEL_HEADER + length.next_multiple_of(4))),
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
            let mut streams: Vec<(&[u8], Half, Vec<u8>)> =
                sent.iter().map(|bytes| (bytes.as_slice(), Half::default(), Vec::new())).collect();
            let mut pieces = pieces.iter().cycle();
            while streams.iter().any(|(todo, ..)| !todo.is_empty()) {
                for (todo, rest, got) in &mut streams {
                    framer.begin(MAX_FRAME);
                    let piece = (*pieces.next().unwrap()).min(todo.len());
                    framer.space()[..piece].copy_from_slice(&todo[..piece]);
                    framer.filled(piece);
                    *todo = &todo[piece..];
                    framer.join(rest);
                    while let Some(frame) = framer.next_frame().unwrap() {
                        got.extend_from_slice(frame);
                    }
                    framer.leave(rest);
                }
            }
            for ((_, rest, got), sent) in streams.iter().zip(&sent) {
                prop_assert!(rest.bytes.is_empty());
                prop_assert_eq!(got, sent);
            }
            framer.clear();
            prop_assert!(framer.buffer.iter().all(|byte| *byte == 0), "something of a stream stays");
        }
    }

    #[test]
    fn half_a_frame_of_something_else_is_refused_as_soon_as_it_shows() {
        let (mut framer, mut half) = (Framer::new(STRANGER_FRAME), Half::default());
        let mut refused = None;
        // A STUN header with another cookie, byte by byte; a whole frame of it would have 32.
        for (number, byte) in [0, 1, 0, 12, 0x21, 0x12, 0xA4, 0x43, 7].into_iter().enumerate() {
            framer.begin(STRANGER_FRAME);
            framer.space()[0] = byte;
            framer.filled(1);
            framer.join(&mut half);
            if framer.next_frame().is_err() {
                refused = Some(number);
                break;
            }
            framer.leave(&mut half);
        }
        assert_eq!(refused, Some(7), "with the last byte of the cookie");
    }

    #[test]
    fn the_longest_frames_pass() {
        let sent = [channel_data(65_535), stun(65_500), channel_data(0)];
        assert_eq!(frames(&mut Framer::new(MAX_FRAME), &sent.concat(), || 9_000), sent);
    }

    #[test]
    fn a_frame_that_comes_byte_by_byte_is_not_copied_with_each_of_them() {
        let mut framer = Framer::new(MAX_FRAME);
        let (sent, mut half) = (channel_data(65_535), Half::default());
        let (mut moves, mut place) = (0, half.bytes.as_ptr());
        for (number, byte) in sent.iter().enumerate() {
            framer.begin(MAX_FRAME);
            framer.space()[0] = *byte;
            framer.filled(1);
            framer.join(&mut half);
            let is_last = number + 1 == sent.len();
            // Nothing is in the framer while the half grows in its own place.
            assert!(is_last || half.bytes.len() < 8 || framer.rest().is_empty());
            let frame = framer.next_frame().unwrap().map(|frame| frame.to_vec());
            assert_eq!(frame, is_last.then(|| sent.clone()));
            framer.leave(&mut half);
            moves += u32::from(half.bytes.as_ptr() != place);
            place = half.bytes.as_ptr();
        }
        assert!(half.bytes.is_empty());
        assert!(moves <= 24, "{moves}");
    }

    #[test]
    fn a_half_that_became_too_long_is_a_fault() {
        let mut framer = Framer::new(MAX_FRAME);
        let mut half = Half::default();
        for (limit, fault) in [(MAX_FRAME, None), (STRANGER_FRAME, Some(FramingFault::TooLong))] {
            framer.begin(limit);
            framer.space()[..30].copy_from_slice(&channel_data(60_000)[..30]);
            framer.filled(30);
            framer.join(&mut half);
            assert_eq!(framer.next_frame().err(), fault);
            framer.leave(&mut half);
        }
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
