//! The payloads of a run, moved within their slot until the kernel can read all of it in one piece.
//!
//! In: where payloads of one length lie, with gaps or without. Out: the same one after the other, with headers between or not. Never:
//! moves what follows them, or needs more room than there is.
//!
//! To move them costs less than it saves: a piece of its own for each payload and each header is a copy of its own in the kernel
//! (docs/benchmarks.md has the figures).

use std::iter;
use turn_core::wire::CHANNEL_HEADER;

/// Writes the same header in front of each of `count` payloads of `length` bytes, which lie without a gap from `at` on and move down as far
/// as is needed. Where the first header begins; `None`, with nothing moved, for another kind of prefix, or without room down to `floor`.
pub fn put_between(
    memory: &mut [u8],
    at: usize,
    floor: usize,
    length: usize,
    count: usize,
    header: &[u8],
) -> Option<usize> {
    let header: [u8; CHANNEL_HEADER] = header.try_into().ok()?;
    let room = count * CHANNEL_HEADER;
    let begin = at.checked_sub(room).filter(|begin| *begin >= floor)?;
    let run = memory.get_mut(begin..at + count * length)?;
    let places = iter::successors(Some((0, room)), |(to, from)| {
        Some((to + CHANNEL_HEADER + length, from + length))
    });
    for (to, from) in places.take(count) {
        if let Some(place) = run.get_mut(to..).and_then(<[u8]>::first_chunk_mut) {
            *place = header;
        }
        run.copy_within(from..from + length, to + CHANNEL_HEADER);
    }
    Some(begin)
}

/// Moves `count` payloads of `length` bytes down that begin `stride` bytes one after the other, the first at `at`, until no gap is between
/// them. Whether they lie so now; if not, nothing was moved.
pub fn close_up(memory: &mut [u8], at: usize, length: usize, stride: usize, count: usize) -> bool {
    let whole = stride * count.saturating_sub(1) + length;
    let Some(run) = memory.get_mut(at..at + whole).filter(|_| length <= stride) else {
        return false;
    };
    for number in 1..count {
        let from = number * stride;
        run.copy_within(from..from + length, number * length);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_between_payloads_that_moved_down_and_what_follows_stays() {
        let mut memory = *b"........aabbccZZ";
        assert_eq!(put_between(&mut memory[..], 8, 0, 2, 2, b"1234"), Some(0));
        assert_eq!(&memory, b"1234aa1234bbccZZ");
        let mut memory = *b"............aaabbbcccd";
        assert_eq!(put_between(&mut memory, 12, 0, 3, 3, b"head"), Some(0));
        assert_eq!(&memory, b"headaaaheadbbbheadcccd");
        let mut memory = *b"_____empty";
        assert_eq!(put_between(&mut memory, 5, 1, 0, 1, b"none"), Some(1));
        assert_eq!(&memory, b"_noneempty");
    }

    #[test]
    fn nothing_moves_without_room_in_front_or_for_a_prefix_of_another_length() {
        let original = *b"........aabbcc";
        let mut memory = original;
        assert_eq!(put_between(&mut memory, 8, 1, 2, 2, b"1234"), None);
        assert_eq!(put_between(&mut memory, 8, 0, 2, 3, b"1234"), None);
        assert_eq!(put_between(&mut memory, 8, 0, 2, 2, b"12345"), None);
        assert_eq!(put_between(&mut memory, 8, 0, 4, 2, b"1234"), None);
        assert_eq!(memory, original);
    }

    #[test]
    fn payloads_close_up_to_the_first_and_what_follows_stays() {
        let mut memory = *b"..aa__bb__cc__dd";
        assert!(close_up(&mut memory, 2, 2, 4, 3));
        assert_eq!(&memory, b"..aabbcc__cc__dd");
        assert!(close_up(&mut memory, 2, 6, 6, 1));
        assert!(!close_up(&mut memory, 2, 3, 2, 2), "they overlap");
        assert!(!close_up(&mut memory, 12, 2, 4, 2), "beyond the end");
        assert_eq!(&memory, b"..aabbcc__cc__dd");
    }
}
