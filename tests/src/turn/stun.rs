//! STUN messages, written attribute by attribute and read strictly.
//!
//! In: types, values, keys. Out: bytes, good or deliberately bad; or an [`Answer`] whose form has been checked. Never: repairs what
//! it reads. RFC 8489; its HMACs come from aws-lc, MD5 from RustCrypto, the CRC is our own.

use aws_lc_rs::{digest, hmac};
use md5::{Digest, Md5};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// Message types: method and class in one number, as they stand on the wire.
pub mod kind {
    pub const BINDING: u16 = 0x0001;
    pub const ALLOCATE: u16 = 0x0003;
    pub const REFRESH: u16 = 0x0004;
    pub const CREATE_PERMISSION: u16 = 0x0008;
    pub const CHANNEL_BIND: u16 = 0x0009;
    /// RFC 6062.
    pub const CONNECT: u16 = 0x000A;
    pub const SEND_INDICATION: u16 = 0x0016;
    pub const DATA_INDICATION: u16 = 0x0017;
    pub const BINDING_INDICATION: u16 = 0x0011;
    /// What turns a request into its answers.
    pub const SUCCESS: u16 = 0x0100;
    pub const ERROR: u16 = 0x0110;
}

/// Attribute types.
pub mod attribute {
    pub const CHANGE_REQUEST: u16 = 0x0003;
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
    /// RFC 7635.
    pub const ACCESS_TOKEN: u16 = 0x001B;
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
    pub const PASSWORD_ALGORITHM: u16 = 0x001D;
    pub const USERHASH: u16 = 0x001E;
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    /// RFC 5780.
    pub const PADDING: u16 = 0x0026;
    pub const RESPONSE_PORT: u16 = 0x0027;
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    pub const ICMP: u16 = 0x8004;
    pub const SOFTWARE: u16 = 0x8022;
    pub const FINGERPRINT: u16 = 0x8028;
    /// RFC 7635.
    pub const THIRD_PARTY_AUTHORIZATION: u16 = 0x802E;
    /// RFC 8016.
    pub const MOBILITY_TICKET: u16 = 0x8030;
}

/// One message as it is being written. Nothing stops its writer from writing nonsense.
#[derive(Clone, Debug)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// A message with a transaction id that nobody can guess.
    pub fn new(message_type: u16) -> Self {
        Self::with_transaction(message_type, random())
    }

    pub fn with_transaction(message_type: u16, transaction: [u8; 12]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(message_type.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(MAGIC_COOKIE.to_be_bytes());
        bytes.extend(transaction);
        Self { bytes }
    }

    pub fn transaction(&self) -> [u8; 12] {
        *self.bytes[8..].first_chunk().expect("the header is there")
    }

    pub fn attribute(mut self, kind: u16, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.bytes.extend(kind.to_be_bytes());
        self.bytes
            .extend(u16::try_from(value.len()).expect("a value is short").to_be_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.set_length(0);
        self
    }

    /// An address hidden under the cookie and the transaction id (RFC 8489 §14.2).
    pub fn address(self, kind: u16, address: SocketAddr) -> Self {
        let value = xor_address(address, self.transaction());
        self.attribute(kind, value)
    }

    /// Bytes behind everything so far, counted in the length.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.set_length(0);
        self
    }

    pub fn integrity(self, key: &Key) -> Self {
        self.integrity_with(key, Integrity::Sha1)
    }

    pub fn integrity_with(mut self, key: &Key, integrity: Integrity) -> Self {
        self.set_length(4 + integrity.length());
        let mac = integrity.mac(key, &self.bytes);
        self.attribute(integrity.attribute(), mac)
    }

    pub fn fingerprint(mut self) -> Self {
        self.set_length(8);
        let crc = crc32(&self.bytes) ^ 0x5354_554E;
        self.attribute(attribute::FINGERPRINT, crc.to_be_bytes())
    }

    pub fn build(self) -> Vec<u8> {
        self.bytes
    }

    fn set_length(&mut self, more: usize) {
        let length = u16::try_from(self.bytes.len() - 20 + more).unwrap_or(u16::MAX);
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
    }
}

/// A long-term key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// MD5(user:realm:password), RFC 8489 §18.5.1.1.
    pub fn md5(user: &str, realm: &str, password: &str) -> Self {
        Self(Md5::digest(format!("{user}:{realm}:{password}")).to_vec())
    }

    /// SHA-256 of the same, §18.5.1.2.
    pub fn sha256(user: &str, realm: &str, password: &str) -> Self {
        Self(sha256(format!("{user}:{realm}:{password}").as_bytes()).to_vec())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    Sha1,
    Sha256,
}

impl Integrity {
    const fn length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    pub const fn attribute(self) -> u16 {
        match self {
            Self::Sha1 => attribute::MESSAGE_INTEGRITY,
            Self::Sha256 => attribute::MESSAGE_INTEGRITY_SHA256,
        }
    }

    fn mac(self, key: &Key, bytes: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
        };
        hmac::sign(&hmac::Key::new(algorithm, &key.0), bytes).as_ref().to_vec()
    }
}

/// HMAC-SHA1 with a secret, as timed passwords are made.
pub fn hmac_sha1(secret: &[u8], text: &[u8]) -> Vec<u8> {
    Integrity::Sha1.mac(&Key(secret.to_vec()), text)
}

/// HMAC-SHA256 with a secret.
pub fn hmac_sha256(secret: &[u8], text: &[u8]) -> Vec<u8> {
    Integrity::Sha256.mac(&Key(secret.to_vec()), text)
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    *digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

/// A message from a relay, whose form has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub message_type: u16,
    pub transaction: [u8; 12],
    pub attributes: Vec<(u16, Vec<u8>)>,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    #[error("shorter than a header")]
    Short,
    #[error("the first two bits are not zero")]
    TopBits,
    #[error("the cookie is wrong")]
    Cookie,
    #[error("the length field is not what came")]
    Length,
    #[error("an attribute reaches beyond the end")]
    Attribute,
    #[error("padding that is not zero: memory may leak through it")]
    Padding,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Result<Self, BadAnswer> {
        let header: &[u8; 20] = bytes.first_chunk().ok_or(BadAnswer::Short)?;
        let message_type = u16::from_be_bytes([header[0], header[1]]);
        if message_type & 0xC000 != 0 {
            return Err(BadAnswer::TopBits);
        }
        if header[4..8] != MAGIC_COOKIE.to_be_bytes() {
            return Err(BadAnswer::Cookie);
        }
        if usize::from(u16::from_be_bytes([header[2], header[3]])) != bytes.len() - 20 || !bytes.len().is_multiple_of(4)
        {
            return Err(BadAnswer::Length);
        }
        let mut attributes = Vec::new();
        let mut rest = &bytes[20..];
        while let Some(([k0, k1, l0, l1], after)) = rest.split_first_chunk::<4>() {
            let length = usize::from(u16::from_be_bytes([*l0, *l1]));
            let (value, after) = after
                .split_at_checked(length.next_multiple_of(4))
                .ok_or(BadAnswer::Attribute)?;
            if value[length..].iter().any(|byte| *byte != 0) {
                return Err(BadAnswer::Padding);
            }
            attributes.push((u16::from_be_bytes([*k0, *k1]), value[..length].to_vec()));
            rest = after;
        }
        Ok(Self {
            message_type,
            transaction: *header[8..].first_chunk().ok_or(BadAnswer::Short)?,
            attributes,
            bytes: bytes.to_vec(),
        })
    }

    pub fn is_success(&self) -> bool {
        self.message_type & 0x0110 == kind::SUCCESS
    }

    /// The attribute of this type, the first if there are several.
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        let (_, value) = self.attributes.iter().find(|(other, _)| *other == kind)?;
        Some(value)
    }

    pub fn all(&self, kind: u16) -> impl Iterator<Item = &[u8]> {
        self.attributes
            .iter()
            .filter(move |(other, _)| *other == kind)
            .map(|(_, value)| value.as_slice())
    }

    pub fn has(&self, kind: u16) -> bool {
        self.get(kind).is_some()
    }

    /// The number in ERROR-CODE; `None` for a success.
    pub fn code(&self) -> Option<u16> {
        match (self.message_type & 0x0110, self.get(attribute::ERROR_CODE)?) {
            (kind::ERROR, [_, _, class, number, ..]) => Some(u16::from(*class & 7) * 100 + u16::from(*number)),
            _ => None,
        }
    }

    /// Code 0 is success; what is neither is 1.
    pub fn outcome(&self) -> u16 {
        if self.is_success() { 0 } else { self.code().unwrap_or(1) }
    }

    pub fn address(&self, kind: u16) -> Option<SocketAddr> {
        read_xor_address(self.get(kind)?, self.transaction)
    }

    pub fn addresses(&self, kind: u16) -> Vec<SocketAddr> {
        self.all(kind)
            .filter_map(|value| read_xor_address(value, self.transaction))
            .collect()
    }

    pub fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(*self.get(kind)?.first_chunk()?))
    }

    /// The attribute types, in order.
    pub fn kinds(&self) -> Vec<u16> {
        self.attributes.iter().map(|(kind, _)| *kind).collect()
    }

    /// Whether the integrity is there and made with this key.
    pub fn is_signed(&self, key: &Key, integrity: Integrity) -> bool {
        let mut at = 20;
        for (kind, value) in &self.attributes {
            if *kind == integrity.attribute() {
                let mut covered = self.bytes[..at].to_vec();
                let length = u16::try_from(at - 20 + 4 + integrity.length()).unwrap_or(u16::MAX);
                covered[2..4].copy_from_slice(&length.to_be_bytes());
                return *value == integrity.mac(key, &covered);
            }
            at += 4 + value.len().next_multiple_of(4);
        }
        false
    }

    /// Whether FINGERPRINT is there, last, and right.
    pub fn is_fingerprinted(&self) -> bool {
        let end = self.bytes.len() - 8;
        let crc = crc32(&self.bytes[..end]) ^ 0x5354_554E;
        self.attributes.last() == Some(&(attribute::FINGERPRINT, crc.to_be_bytes().to_vec()))
    }
}

/// ChannelData with the padding that streams need.
pub fn channel_data(channel: u16, data: &[u8], is_padded: bool) -> Vec<u8> {
    let mut bytes = channel.to_be_bytes().to_vec();
    bytes.extend(u16::try_from(data.len()).expect("a packet is short").to_be_bytes());
    bytes.extend(data);
    if is_padded {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Channel and payload, if these bytes are ChannelData; what is behind the payload is padding.
pub fn read_channel_data(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let ([n0, n1, l0, l1], rest) = bytes.split_first_chunk::<4>()?;
    let channel = u16::from_be_bytes([*n0, *n1]);
    let data = rest.get(..usize::from(u16::from_be_bytes([*l0, *l1])))?;
    (0x4000..0x8000).contains(&channel).then_some((channel, data))
}

pub fn xor_address(address: SocketAddr, transaction: [u8; 12]) -> Vec<u8> {
    let [c0, c1, c2, c3] = MAGIC_COOKIE.to_be_bytes();
    let mut mask = vec![c0, c1, c2, c3];
    mask.extend(transaction);
    let (family, octets) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend((address.port() ^ 0x2112).to_be_bytes());
    value.extend(octets.iter().zip(mask).map(|(octet, mask)| octet ^ mask));
    value
}

fn read_xor_address(value: &[u8], transaction: [u8; 12]) -> Option<SocketAddr> {
    let ([_, family, p0, p1], octets) = value.split_first_chunk::<4>()?;
    let mut mask = MAGIC_COOKIE.to_be_bytes().to_vec();
    mask.extend(transaction);
    let plain: Vec<u8> = octets.iter().zip(mask).map(|(octet, mask)| octet ^ mask).collect();
    let ip = match (family, octets.len()) {
        (1, 4) => IpAddr::V4(Ipv4Addr::from(*plain.first_chunk::<4>()?)),
        (2, 16) => IpAddr::V6(Ipv6Addr::from(*plain.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([*p0, *p1]) ^ 0x2112))
}

pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 §2.2: a response with integrity and fingerprint.
    const SAMPLE_RESPONSE: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
        002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";

    #[test]
    fn the_sample_response_of_rfc_5769_is_read_but_for_its_padding() {
        let mut bytes = hex::decode(SAMPLE_RESPONSE).unwrap();
        // The sample pads with a space, which RFC 8489 no longer allows.
        assert_eq!(Answer::parse(&bytes), Err(BadAnswer::Padding));
        let key = Key(b"VOkJxbRl1RmTxUk/WvJxBt".to_vec());
        let answer = Answer {
            message_type: 0x0101,
            transaction: *bytes[8..].first_chunk().unwrap(),
            attributes: vec![
                (attribute::SOFTWARE, b"test vector".to_vec()),
                (attribute::XOR_MAPPED_ADDRESS, bytes[40..48].to_vec()),
                (attribute::MESSAGE_INTEGRITY, bytes[52..72].to_vec()),
                (attribute::FINGERPRINT, bytes[76..80].to_vec()),
            ],
            bytes: bytes.clone(),
        };
        assert!(answer.is_signed(&key, Integrity::Sha1));
        assert!(answer.is_fingerprinted());
        let mapped = answer.address(attribute::XOR_MAPPED_ADDRESS);
        assert_eq!(mapped, Some("192.0.2.1:32853".parse().unwrap()));
        bytes[30] ^= 1;
        let changed = Answer { bytes, ..answer };
        assert!(!changed.is_signed(&key, Integrity::Sha1));
        assert!(!changed.is_fingerprinted());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let key = Key::sha256("user", "realm", "secret");
        let peer: SocketAddr = "[2a00::5]:4242".parse().unwrap();
        let builder = Builder::new(kind::REFRESH | kind::ERROR)
            .attribute(attribute::ERROR_CODE, [0, 0, 4, 37])
            .address(attribute::XOR_PEER_ADDRESS, peer)
            .attribute(attribute::REALM, "seven b")
            .integrity_with(&key, Integrity::Sha256)
            .fingerprint();
        let transaction = builder.transaction();
        let answer = Answer::parse(&builder.build()).unwrap();
        assert_eq!((answer.code(), answer.transaction), (Some(437), transaction));
        assert_eq!(answer.address(attribute::XOR_PEER_ADDRESS), Some(peer));
        assert!(answer.is_signed(&key, Integrity::Sha256) && answer.is_fingerprinted());
        assert!(!answer.is_signed(&Key::md5("user", "realm", "secret"), Integrity::Sha256));
        let framed = channel_data(0x4001, b"abcde", true);
        assert_eq!(framed.len(), 12);
        assert_eq!(read_channel_data(&framed), Some((0x4001, &b"abcde"[..])));
    }

    /// RFC 5389 §15.4 shows this key.
    #[test]
    fn keys_are_those_of_the_rfcs() {
        let key = Key::md5("user", "realm", "pass");
        assert_eq!(hex::encode(key.as_bytes()), "8493fbc53ba582fb4c044c456bdc40eb");
    }
}
