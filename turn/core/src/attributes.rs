//! The attributes of one message that count, read once.
//!
//! In: a [`Message`]. Out: [`Attributes`], borrowed, or a [`Fault`]. Never: checks a credential, allocates, or keeps anything.
//!
//! What stands behind MESSAGE-INTEGRITY does not count (RFC 8489 §14.5), except MESSAGE-INTEGRITY-SHA256 and FINGERPRINT. The first of several
//! equal attributes counts, except XOR-PEER-ADDRESS in CreatePermission (RFC 8656 §10.1), where all do.

use crate::wire::{ChannelNumber, MAGIC_COOKIE, Message, TransactionId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Numbers of the registry (RFC 8489 §18.3, RFC 8656 §18).
pub mod kind {
    pub const USERNAME: u16 = 0x0006;
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub const ERROR_CODE: u16 = 0x0009;
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
    pub const CHANNEL_NUMBER: u16 = 0x000C;
    pub const LIFETIME: u16 = 0x000D;
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub const DATA: u16 = 0x0013;
    pub const REALM: u16 = 0x0014;
    pub const NONCE: u16 = 0x0015;
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub const EVEN_PORT: u16 = 0x0018;
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub const DONT_FRAGMENT: u16 = 0x001A;
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
    pub const PASSWORD_ALGORITHM: u16 = 0x001D;
    pub const USERHASH: u16 = 0x001E;
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    pub const ICMP: u16 = 0x8004;
    pub const FINGERPRINT: u16 = 0x8028;
}

/// Most XOR-PEER-ADDRESS attributes that one CreatePermission may carry.
pub const MAX_PEERS: usize = 16;
/// Most unknown attributes that a 420 lists.
pub const MAX_UNKNOWN: usize = 8;
/// RFC 8489 §14.3.
pub const MAX_USERNAME: usize = 508;
/// RFC 8489 §14.9, §14.10.
pub const MAX_REALM_OR_NONCE: usize = 763;

const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// IPv4 or IPv6 as TURN counts them (RFC 8656 §18.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn code(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }

    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A family as asked for: one of ours, or a number that means 440.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedFamily {
    Known(Family),
    Unknown(u8),
}

/// Which integrity a message carries and what it covers.
#[derive(Clone, Copy)]
pub struct Integrity<'a> {
    pub mac: &'a [u8],
    /// Offset of the attribute: the message up to here is covered, with a length field that includes the attribute.
    pub at: usize,
}

/// The DATA attribute of a Send indication.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    pub value: &'a [u8],
    /// Offset of the value from the start of the message.
    pub start: usize,
}

/// Why a message with well-formed frames still means silence or 400. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The CRC is wrong or FINGERPRINT is not last: silence (RFC 8489 §14.7).
    BadFingerprint,
    /// An attribute has a length or content it cannot have: 400.
    BadValue,
    /// More XOR-PEER-ADDRESS than [`MAX_PEERS`]: 508.
    TooManyPeers,
}

impl Fault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadFingerprint => "bad_fingerprint",
            Self::BadValue => "bad_value",
            Self::TooManyPeers => "too_many_peers",
        }
    }
}

/// A small list without allocation.
#[derive(Clone, Copy)]
pub struct Few<T: Copy, const N: usize> {
    items: [Option<T>; N],
    length: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    const fn new() -> Self {
        Self {
            items: [None; N],
            length: 0,
        }
    }

    fn push(&mut self, item: T) -> bool {
        match self.items.get_mut(self.length) {
            Some(place) => {
                *place = Some(item);
                self.length += 1;
                true
            }
            None => false,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.items.iter().take(self.length).filter_map(|item| *item)
    }

    pub const fn len(&self) -> usize {
        self.length
    }

    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// What one message says, as far as it counts.
pub struct Attributes<'a> {
    pub username: Option<&'a [u8]>,
    pub userhash: Option<&'a [u8; 32]>,
    pub realm: Option<&'a [u8]>,
    pub nonce: Option<&'a [u8]>,
    /// Algorithm number; parameters must be empty for those we know.
    pub password_algorithm: Option<u16>,
    /// The raw list, to be compared byte for byte with ours.
    pub password_algorithms: Option<&'a [u8]>,
    pub integrity_sha1: Option<Integrity<'a>>,
    pub integrity_sha256: Option<Integrity<'a>>,
    pub has_fingerprint: bool,
    /// Seconds.
    pub lifetime: Option<u32>,
    /// Protocol number: 17 is UDP.
    pub requested_transport: Option<u8>,
    pub requested_family: Option<AskedFamily>,
    pub additional_family: Option<AskedFamily>,
    /// The R bit: reserve the next port too.
    pub even_port: Option<bool>,
    pub reservation_token: Option<[u8; 8]>,
    pub dont_fragment: bool,
    /// Raw, since out of range is an answer of its own.
    pub channel_number: Option<u16>,
    pub peers: Few<SocketAddr, MAX_PEERS>,
    pub data: Option<Data<'a>>,
    /// Comprehension-required attributes we do not know, for a 420.
    pub unknown: Few<u16, MAX_UNKNOWN>,
    /// The first attribute that had a length or content it cannot have, or too many peers.
    pub fault: Option<Fault>,
}

impl Attributes<'_> {
    pub fn channel(&self) -> Option<ChannelNumber> {
        self.channel_number.and_then(ChannelNumber::new)
    }
}

/// Reads what counts. Faults of value do not stop the reading, since authentication is answered first; a bad fingerprint does.
pub fn read<'a>(message: &Message<'a>) -> Result<Attributes<'a>, Fault> {
    let mut found = Attributes {
        username: None,
        userhash: None,
        realm: None,
        nonce: None,
        password_algorithm: None,
        password_algorithms: None,
        integrity_sha1: None,
        integrity_sha256: None,
        has_fingerprint: false,
        lifetime: None,
        requested_transport: None,
        requested_family: None,
        additional_family: None,
        even_port: None,
        reservation_token: None,
        dont_fragment: false,
        channel_number: None,
        peers: Few::new(),
        data: None,
        unknown: Few::new(),
        fault: None,
    };
    for attribute in message.attributes() {
        let (kind, value) = (attribute.kind, attribute.value);
        if found.has_fingerprint {
            return Err(Fault::BadFingerprint);
        }
        match kind {
            kind::FINGERPRINT => {
                if value != fingerprint(message.up_to(attribute.at)) {
                    return Err(Fault::BadFingerprint);
                }
                found.has_fingerprint = true;
                continue;
            }
            kind::MESSAGE_INTEGRITY_SHA256 if found.integrity_sha256.is_none() => {
                // RFC 8489 §14.6: 16 to 32 bytes, a multiple of 4.
                if (16..=32).contains(&value.len()) && value.len() % 4 == 0 {
                    found.integrity_sha256 = Some(Integrity {
                        mac: value,
                        at: attribute.at,
                    });
                } else {
                    found.fault.get_or_insert(Fault::BadValue);
                }
                continue;
            }
            _ => {}
        }
        if found.integrity_sha1.is_some() || found.integrity_sha256.is_some() {
            continue;
        }
        if !found.take(kind, value, attribute.at, &message.transaction) {
            found.fault.get_or_insert(Fault::BadValue);
        }
    }
    Ok(found)
}

impl<'a> Attributes<'a> {
    /// False if the value is not of its kind.
    fn take(&mut self, kind: u16, value: &'a [u8], at: usize, transaction: &TransactionId) -> bool {
        match kind {
            kind::USERNAME => keep(
                &mut self.username,
                ((1..=MAX_USERNAME).contains(&value.len()) && std::str::from_utf8(value).is_ok()).then_some(value),
            ),
            kind::USERHASH => keep(&mut self.userhash, value.as_array()),
            kind::REALM => keep(&mut self.realm, (value.len() <= MAX_REALM_OR_NONCE).then_some(value)),
            kind::NONCE => keep(&mut self.nonce, (value.len() <= MAX_REALM_OR_NONCE).then_some(value)),
            kind::PASSWORD_ALGORITHM => keep(&mut self.password_algorithm, password_algorithm(value)),
            kind::PASSWORD_ALGORITHMS => keep(&mut self.password_algorithms, Some(value)),
            kind::MESSAGE_INTEGRITY => keep(
                &mut self.integrity_sha1,
                (value.len() == 20).then_some(Integrity { mac: value, at }),
            ),
            kind::LIFETIME => keep(
                &mut self.lifetime,
                value.as_array().map(|bytes| u32::from_be_bytes(*bytes)),
            ),
            kind::REQUESTED_TRANSPORT => keep(
                &mut self.requested_transport,
                value.as_array().map(|[protocol, _, _, _]| *protocol),
            ),
            kind::REQUESTED_ADDRESS_FAMILY => keep(&mut self.requested_family, asked_family(value)),
            kind::ADDITIONAL_ADDRESS_FAMILY => keep(&mut self.additional_family, asked_family(value)),
            kind::EVEN_PORT => keep(&mut self.even_port, value.as_array().map(|[flags]| flags & 0x80 != 0)),
            kind::RESERVATION_TOKEN => keep(&mut self.reservation_token, value.as_array().copied()),
            kind::DONT_FRAGMENT => {
                self.dont_fragment = true;
                value.is_empty()
            }
            kind::CHANNEL_NUMBER => keep(
                &mut self.channel_number,
                value.as_array().map(|[n0, n1, _, _]| u16::from_be_bytes([*n0, *n1])),
            ),
            kind::XOR_PEER_ADDRESS => match read_xor_address(value, transaction) {
                Some(peer) => {
                    if !self.peers.push(peer) {
                        self.fault.get_or_insert(Fault::TooManyPeers);
                    }
                    true
                }
                None => false,
            },
            kind::DATA => keep(&mut self.data, Some(Data { value, start: at + 4 })),
            // Comprehension-optional attributes may be passed over (RFC 8489 §14).
            optional if optional >= 0x8000 => true,
            unknown => {
                let _ = self.unknown.push(unknown);
                true
            }
        }
    }
}

fn keep<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    let good = value.is_some();
    if place.is_none() {
        *place = value;
    }
    good
}

fn password_algorithm(value: &[u8]) -> Option<u16> {
    match value {
        [a0, a1, 0, 0] => Some(u16::from_be_bytes([*a0, *a1])),
        _ => None,
    }
}

fn asked_family(value: &[u8]) -> Option<AskedFamily> {
    value.as_array().map(|[family, _, _, _]| match family {
        1 => AskedFamily::Known(Family::V4),
        2 => AskedFamily::Known(Family::V6),
        other => AskedFamily::Unknown(*other),
    })
}

/// CRC-32 of what precedes, xored with "STUN" (RFC 8489 §14.7). The length field already counts the attribute.
pub fn fingerprint(covered: &[u8]) -> [u8; 4] {
    (crc32fast::hash(covered) ^ FINGERPRINT_XOR).to_be_bytes()
}

/// RFC 8489 §14.2. `None` for an unknown family or a wrong length.
pub fn read_xor_address(value: &[u8], transaction: &TransactionId) -> Option<SocketAddr> {
    let ([_, family, p0, p1], address) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([*p0, *p1]) ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match family {
        1 => IpAddr::V4(Ipv4Addr::from_bits(
            u32::from_be_bytes(*address.as_array()?) ^ MAGIC_COOKIE,
        )),
        2 => IpAddr::V6(Ipv6Addr::from_bits(
            u128::from_be_bytes(*address.as_array()?) ^ v6_mask(transaction),
        )),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The value of an XOR address attribute: 8 or 20 bytes.
pub fn xor_address(address: SocketAddr, transaction: &TransactionId) -> ([u8; 20], usize) {
    let mut value = [0u8; 20];
    let port = (address.port() ^ (MAGIC_COOKIE >> 16) as u16).to_be_bytes();
    let (head, tail) = value.split_at_mut(4);
    head.copy_from_slice(&[0, Family::of(address.ip()).code(), port[0], port[1]]);
    match address.ip() {
        IpAddr::V4(ip) => {
            for (place, byte) in tail.iter_mut().zip((ip.to_bits() ^ MAGIC_COOKIE).to_be_bytes()) {
                *place = byte;
            }
            (value, 8)
        }
        IpAddr::V6(ip) => {
            for (place, byte) in tail.iter_mut().zip((ip.to_bits() ^ v6_mask(transaction)).to_be_bytes()) {
                *place = byte;
            }
            (value, 20)
        }
    }
}

fn v6_mask(transaction: &TransactionId) -> u128 {
    let mut mask = [0u8; 16];
    let (cookie, rest) = mask.split_at_mut(4);
    cookie.copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    rest.copy_from_slice(&transaction.0);
    u128::from_be_bytes(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Class, Method, Writer};
    use proptest::prelude::*;

    const TRANSACTION: TransactionId = TransactionId(*b"twelve bytes");

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut buffer = vec![0; 4096];
        let mut writer = Writer::new(&mut buffer, Method::Allocate, Class::Request, TRANSACTION);
        for (kind, value) in attributes {
            writer.attribute(*kind, &[value]);
        }
        writer.finish().unwrap().to_vec()
    }

    #[test]
    fn what_stands_behind_the_integrity_does_not_count() {
        let bytes = message(&[
            (kind::MESSAGE_INTEGRITY, &[0; 20]),
            (kind::LIFETIME, &[0, 0, 14, 16]),
            (0x7FFF, b""),
        ]);
        let found = read(&Message::parse(&bytes).unwrap()).unwrap();
        assert!(found.integrity_sha1.is_some_and(|integrity| integrity.at == 20));
        assert_eq!(found.lifetime, None);
        assert!(found.unknown.is_empty());
    }

    #[test]
    fn sha256_integrity_behind_sha1_counts() {
        let bytes = message(&[
            (kind::MESSAGE_INTEGRITY, &[0; 20]),
            (kind::MESSAGE_INTEGRITY_SHA256, &[0; 32]),
        ]);
        let found = read(&Message::parse(&bytes).unwrap()).unwrap();
        assert!(found.integrity_sha256.is_some_and(|integrity| integrity.at == 44));
    }

    #[test]
    fn unknown_required_attributes_are_listed_and_optional_ones_passed_over() {
        let bytes = message(&[(0x7FFF, b"x"), (0xFFFE, b"y"), (0xFF05, b"log"), (0x0025, b"")]);
        let found = read(&Message::parse(&bytes).unwrap()).unwrap();
        assert_eq!(found.unknown.iter().collect::<Vec<_>>(), [0x7FFF, 0x0025]);
        assert_eq!(found.fault, None);
    }

    #[test]
    fn a_wrong_or_early_fingerprint_means_silence() {
        let bytes = message(&[(kind::FINGERPRINT, &[0; 4])]);
        assert_eq!(
            read(&Message::parse(&bytes).unwrap()).err(),
            Some(Fault::BadFingerprint)
        );
        let mut buffer = vec![0; 256];
        let mut writer = Writer::new(&mut buffer, Method::Binding, Class::Request, TRANSACTION);
        let crc = fingerprint(writer.covered(8));
        writer.attribute(kind::FINGERPRINT, &[&crc]);
        let good = writer.finish().unwrap().to_vec();
        assert!(read(&Message::parse(&good).unwrap()).unwrap().has_fingerprint);
    }

    #[test]
    fn values_of_the_wrong_length_are_a_fault_that_does_not_hide_the_rest() {
        let bytes = message(&[(kind::LIFETIME, b"abc"), (kind::USERNAME, b"user")]);
        let found = read(&Message::parse(&bytes).unwrap()).unwrap();
        assert_eq!(found.fault, Some(Fault::BadValue));
        assert_eq!(found.username, Some(b"user".as_slice()));
    }

    proptest! {
        #[test]
        fn addresses_survive_the_xor(ip: IpAddr, port: u16, transaction: [u8; 12]) {
            let transaction = TransactionId(transaction);
            let address = SocketAddr::new(ip, port);
            let (value, length) = xor_address(address, &transaction);
            prop_assert_eq!(read_xor_address(&value[..length], &transaction), Some(address));
        }

        #[test]
        fn no_attributes_panic(kinds in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..30)) {
            let attributes: Vec<(u16, &[u8])> = kinds.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
            let bytes = message(&attributes);
            let _ = read(&Message::parse(&bytes).unwrap());
        }
    }
}
