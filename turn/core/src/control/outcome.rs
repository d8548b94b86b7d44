//! What the shell is to do: values, nothing done yet.

use super::early::LONGEST;
use crate::attributes::{Family, fingerprint, kind, xor_address};
use crate::auth::{IntegrityKind, Key, sign};
use crate::forwarding::Recipient;
use crate::time::Random;
use crate::wire::{
    ChannelData, ChannelNumber, Class, FiveTuple, Message, Method, PeerAddr, RelayAddr, TransactionId, Writer,
};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use zeroize::Zeroize;

/// A packet's next step. Its payload is a range of the bytes that came in and is not copied: what goes before it is written into
/// the room in front, or gathered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hop {
    /// Out of the socket of a relayed address.
    Peer {
        relay: RelayAddr,
        peer: PeerAddr,
        payload: Range<usize>,
        /// With the DF bit set.
        dont_fragment: bool,
    },
    /// To a client. Over UDP any shard may send it.
    Client {
        recipient: Recipient,
        prefix: Prefix,
        payload: Range<usize>,
        /// Zero bytes behind the payload.
        padding: usize,
    },
}

/// Room that a shell leaves in front of what it receives, if it writes prefixes in place.
pub const HEADROOM: usize = 56;

/// What stands before a payload: a ChannelData header, or a Data indication up to its data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    bytes: [u8; HEADROOM],
    length: u8,
}

impl Prefix {
    pub(super) const NONE: Self = Self {
        bytes: [0; HEADROOM],
        length: 0,
    };

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    fn channel(number: ChannelNumber, length: usize) -> Self {
        let mut prefix = Self::NONE;
        let header = ChannelData::header(number, length as u16);
        if let Some(place) = prefix.bytes.first_chunk_mut() {
            *place = header;
            prefix.length = header.len() as u8;
        }
        prefix
    }

    /// A Data indication (RFC 8656 §11.3): the peer, and the data or what ICMP said instead.
    fn indication(source: PeerAddr, content: Content, random: Random<'_>) -> Self {
        let mut prefix = Self::NONE;
        let mut transaction = TransactionId([0; 12]);
        random(&mut transaction.0);
        let mut writer = Writer::new(&mut prefix.bytes, Method::Data, Class::Indication, transaction);
        put_address(&mut writer, kind::XOR_PEER_ADDRESS, source.socket(), &transaction);
        match content {
            Content::Data(length) => writer.attribute_outside(kind::DATA, length),
            Content::Icmp(icmp) => writer.attribute(kind::ICMP, &[&[0, 0, icmp.kind, icmp.code], &icmp.data()]),
        }
        let length = writer.finish().map_or(0, <[u8]>::len);
        prefix.length = length as u8;
        prefix
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prefix(<private>)")
    }
}

#[derive(Clone, Copy)]
enum Content {
    Data(usize),
    Icmp(Icmp),
}

/// What the network said about a packet that we sent for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    /// Of the next hop, where the message is about size.
    pub mtu: u32,
    pub is_v6: bool,
}

impl Icmp {
    /// RFC 8656 §11.5: 3 and 11 of ICMPv4, 1 to 3 of ICMPv6.
    pub(super) const fn is_relayed(&self) -> bool {
        match self.is_v6 {
            false => matches!(self.kind, 3 | 11),
            true => matches!(self.kind, 1..=3),
        }
    }

    /// RFC 8656 §18.13: the MTU where the packet was too big, otherwise zero.
    fn data(&self) -> [u8; 4] {
        match (self.is_v6, self.kind, self.code) {
            (false, 3, 4) | (true, 2, _) => self.mtu.to_be_bytes(),
            _ => [0; 4],
        }
    }
}

impl Hop {
    pub(super) fn to_client(
        recipient: Recipient,
        channel: Option<ChannelNumber>,
        source: PeerAddr,
        payload: Range<usize>,
        random: Random<'_>,
    ) -> Self {
        let length = payload.len();
        let to_four = length.next_multiple_of(4) - length;
        let (prefix, padding) = match channel {
            // Over UDP the datagram says where ChannelData ends (RFC 8656 §12.5).
            Some(number) if recipient.client.transport().is_stream() => (Prefix::channel(number, length), to_four),
            Some(number) => (Prefix::channel(number, length), 0),
            None => (Prefix::indication(source, Content::Data(length), random), to_four),
        };
        Self::Client {
            recipient,
            prefix,
            payload,
            padding,
        }
    }

    pub(super) fn icmp(recipient: Recipient, peer: PeerAddr, icmp: Icmp, random: Random<'_>) -> Self {
        Self::Client {
            recipient,
            prefix: Prefix::indication(peer, Content::Icmp(icmp), random),
            payload: 0..0,
            padding: 0,
        }
    }
}

/// What control wants done, in this order.
#[expect(
    clippy::large_enum_variant,
    reason = "an answer in place needs no allocation, and few outputs wait at a time"
)]
#[derive(Clone, Debug)]
pub enum Output {
    /// An answer, or a check that waited for its permission, from the listener that the request came to.
    Send {
        to: FiveTuple,
        answer: Answer,
    },
    /// Bind the relayed address. If that fails, `Server::handle_relay_failed` comes before the next output.
    OpenRelay(RelayAddr),
    CloseRelay(RelayAddr),
}

impl Zeroize for Output {
    fn zeroize(&mut self) {
        match self {
            Self::Send { to, answer } => {
                to.zeroize();
                answer.bytes.zeroize();
            }
            Self::OpenRelay(relay) | Self::CloseRelay(relay) => relay.zeroize(),
        }
    }
}

/// The longest answers take less: a dual allocation with a token over SHA-256 152 bytes, a challenge with the longest realm 156.
const MAX_ANSWER: usize = HEADROOM + LONGEST;

/// One answer, held without allocation.
#[derive(Clone)]
pub struct Answer {
    bytes: [u8; MAX_ANSWER],
    length: usize,
}

impl Answer {
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Integrity and fingerprint come last, in this order.
    pub(super) fn write(
        method: Method,
        class: Class,
        transaction: TransactionId,
        signature: Option<(IntegrityKind, &Key)>,
        with_fingerprint: bool,
        content: impl FnOnce(&mut Writer<'_>),
    ) -> Self {
        let mut answer = Self {
            bytes: [0; MAX_ANSWER],
            length: 0,
        };
        let mut writer = Writer::new(&mut answer.bytes, method, class, transaction);
        content(&mut writer);
        if let Some((kind, key)) = signature {
            sign(&mut writer, kind, key);
        }
        if with_fingerprint {
            let crc = fingerprint(writer.covered(8));
            writer.attribute(kind::FINGERPRINT, &[&crc]);
        }
        answer.length = writer.finish().map_or(0, <[u8]>::len);
        answer
    }

    /// A packet of another client, with what stands before it.
    pub(super) fn carry(prefix: &Prefix, packet: &[u8], padding: usize) -> Self {
        let mut answer = Self {
            bytes: [0; MAX_ANSWER],
            length: 0,
        };
        let bytes = prefix.as_bytes().iter().chain(packet);
        answer.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        answer.length = prefix.as_bytes().len() + packet.len() + padding;
        answer
    }

    /// True for a message of this transaction.
    pub(super) fn answers(&self, transaction: &TransactionId) -> bool {
        Message::parse(self.as_bytes()).is_ok_and(|message| message.transaction == *transaction)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer(<private>)")
    }
}

pub(super) fn put_address(writer: &mut Writer<'_>, kind: u16, address: SocketAddr, transaction: &TransactionId) {
    let (value, length) = xor_address(address, transaction);
    writer.attribute(kind, &[value.get(..length).unwrap_or_default()]);
}

/// No reason phrase: it would be for nobody (RFC 8489 §14.8 lets it be empty).
pub(super) fn put_error(writer: &mut Writer<'_>, code: u16) {
    writer.attribute(kind::ERROR_CODE, &[&[0, 0, (code / 100) as u8, (code % 100) as u8]]);
}

/// Why the other address of a dual allocation is missing.
pub(super) fn put_address_error(writer: &mut Writer<'_>, family: Family, code: u16) {
    let value = [family.code(), 0, (code / 100) as u8, (code % 100) as u8];
    writer.attribute(kind::ADDRESS_ERROR_CODE, &[&value]);
}
