//! How the datagrams of one socket go out in few calls.
//!
//! In: messages, each of one datagram or of several equal ones to one place. Out: as many as the system takes. Never: waits, or sends twice
//! what went out.

use super::{Datagram, Unsent, is_of_room, set_fragmenting};
use crate::sys::{Message, Outgoing, Piece, Slots};
use socket2::SockRef;
use std::io;
use std::os::fd::BorrowedFd;

/// The segments of the last message.
#[derive(Default)]
pub struct Joined {
    pub segment: usize,
    together: usize,
    count: usize,
    is_closed: bool,
}

impl Joined {
    pub const fn first(size: usize, count: usize) -> Self {
        Self {
            segment: size,
            together: size * count,
            count,
            is_closed: size == 0 || size > LONGEST_SEGMENT,
        }
    }

    /// Whether so many more go to the same place in equal parts; a shorter one is the last.
    pub fn takes(&mut self, last: &Message, datagram: &Datagram, size: usize, count: usize) -> bool {
        let fits = !self.is_closed
            && size > 0
            && (size == self.segment || size < self.segment && count == 1)
            && self.together + size * count <= MOST_TOGETHER
            && self.count + count <= MOST_SEGMENTS
            && last.to == datagram.to
            && last.ecn == datagram.ecn;
        if fits {
            self.together += size * count;
            self.count += count;
            self.is_closed = size < self.segment;
        }
        fits
    }
}

pub struct Sending<'a> {
    pub socket: BorrowedFd<'a>,
    pub memory: &'a [u8],
    pub pieces: &'a [Piece],
    pub outgoing: &'a mut Outgoing,
    pub unsent: &'a mut Unsent,
    pub segments: &'a mut bool,
}

impl Sending<'_> {
    pub fn send(&mut self, mut messages: &[Message]) {
        let mut has_failed = false;
        while let Some(message) = messages.first() {
            if message.segment != 0 && !*self.segments {
                self.send_singly(message);
                messages = messages.get(1..).unwrap_or_default();
                continue;
            }
            match self.outgoing.send(self.socket, self.memory, self.pieces, messages) {
                Ok(0) => return,
                Ok(sent) => {
                    messages = messages.get(sent..).unwrap_or_default();
                    has_failed = false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let count = messages.iter().map(|message| datagrams_of(message, self.pieces)).sum();
                    self.unsent.note(&error, count);
                    return;
                }
                // It speaks of this message alone.
                Err(error) if is_of_room(&error) => {
                    self.unsent.note(&error, datagrams_of(message, self.pieces));
                    messages = messages.get(1..).unwrap_or_default();
                    has_failed = false;
                }
                // An error of an earlier datagram, which ICMP brought, is told to the next call, whose datagram is still here.
                Err(_) if !has_failed => has_failed = true,
                Err(error) => {
                    if message.segment == 0 {
                        self.unsent.note(&error, 1);
                    } else {
                        // A link that cannot sum up segments, or not so long ones.
                        if error.raw_os_error() == Some(libc::EIO) {
                            *self.segments = false;
                        }
                        self.send_singly(message);
                    }
                    messages = messages.get(1..).unwrap_or_default();
                    has_failed = false;
                }
            }
        }
    }

    /// The segments of one message, each on its own. A piece is never a part of two segments, but may be several whole ones.
    fn send_singly(&mut self, message: &Message) {
        let segment = u32::from(message.segment);
        let pieces = self
            .pieces
            .get(message.pieces.start as usize..message.pieces.end as usize);
        let mut single = [Piece::default(); 3];
        let (mut used, mut length) = (0, 0);
        for piece in pieces.unwrap_or_default() {
            let mut rest = *piece;
            while rest.length > 0 {
                let part = Piece {
                    start: rest.start,
                    length: rest.length.min(segment - length),
                };
                rest.start += part.length;
                rest.length -= part.length;
                length += part.length;
                if let Some(place) = single.get_mut(used) {
                    *place = part;
                }
                used += 1;
                if length == segment {
                    self.send_pieces(message, single.get(..used).unwrap_or_default());
                    (used, length) = (0, 0);
                }
            }
        }
        if length > 0 {
            self.send_pieces(message, single.get(..used).unwrap_or_default());
        }
    }

    fn send_pieces(&mut self, message: &Message, pieces: &[Piece]) {
        let single = Message {
            pieces: 0..pieces.len() as u32,
            segment: 0,
            ..message.clone()
        };
        if let Err(error) = send_alone(self.outgoing, self.socket, self.memory, pieces, &single) {
            self.unsent.note(&error, 1);
        }
    }
}

/// How many a message is, those of a run one by one.
fn datagrams_of(message: &Message, pieces: &[Piece]) -> u64 {
    let pieces = pieces.get(message.pieces.start as usize..message.pieces.end as usize);
    let length: u64 = pieces
        .unwrap_or_default()
        .iter()
        .map(|piece| u64::from(piece.length))
        .sum();
    match u64::from(message.segment) {
        0 => 1,
        segment => length.div_ceil(segment),
    }
}

/// One datagram. The first call may only bring the error of an earlier one.
fn send_alone(
    outgoing: &mut Outgoing,
    socket: BorrowedFd<'_>,
    memory: &[u8],
    pieces: &[Piece],
    message: &Message,
) -> io::Result<()> {
    let messages = std::slice::from_ref(message);
    match outgoing.send(socket, memory, pieces, messages) {
        Err(error) if !is_of_room(&error) => outgoing.send(socket, memory, pieces, messages),
        result => result,
    }
    .map(|_| ())
}

/// DF is an option of the socket, not of a datagram.
pub fn send_unfragmented(
    socket: BorrowedFd<'_>,
    slots: &Slots,
    outgoing: &mut Outgoing,
    datagram: &Datagram,
    unsent: &mut Unsent,
) {
    let is_v6 = datagram.to.is_ipv6();
    let message = Message {
        to: datagram.to,
        pieces: 0..3,
        segment: 0,
        ecn: datagram.ecn,
    };
    // An error of an earlier datagram goes first: for one that is too long each attempt would be told to the client as an ICMP error of its own.
    let _ = SockRef::from(&socket).take_error();
    let sent = set_fragmenting(socket, is_v6, false)
        .and_then(|()| outgoing.send(socket, slots.memory(), &datagram.pieces, std::slice::from_ref(&message)));
    let _ = set_fragmenting(socket, is_v6, true);
    if let Err(error) = sent {
        unsent.note(&error, 1);
    }
}

/// IPv4, with some room for options.
const MOST_TOGETHER: usize = 65_000;
/// Segments of one call that all kernels take.
const MOST_SEGMENTS: usize = 64;
/// A segment that fits a usual link; what does not fit would be refused.
const LONGEST_SEGMENT: usize = 1_432;
