//! What a datagram or a stream frame is: STUN, ChannelData, or nothing of ours.
//!
//! In: bytes. Out: a [`Kind`], a borrowed [`Message`] or [`ChannelData`]; a [`Writer`] for answers. Never: allocates while reading,
//! indexes a slice, or decides what a message is worth.
//!
//! RFC 8489 §5 (header), §14 (attributes); RFC 8656 §12.4 (ChannelData).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use zeroize::Zeroize;

/// Header: type (2), length (2), magic cookie (4), transaction id (12).
pub const HEADER: usize = 20;
pub const MAGIC_COOKIE: u32 = 0x2112_A442;
/// ChannelData header: number (2), length (2).
pub const CHANNEL_HEADER: usize = 4;
/// Largest message we read: a UDP datagram. Streams use the same bound.
pub const MAX_MESSAGE: usize = 65_535;

/// What the first bytes say (RFC 8656 §12, RFC 7983).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stun,
    ChannelData,
    Other,
}

/// Told apart by the first byte: 0..=3 STUN, 64..=79 ChannelData.
pub fn demux(bytes: &[u8]) -> Kind {
    match bytes.first() {
        Some(0..=3) => Kind::Stun,
        Some(64..=79) => Kind::ChannelData,
        _ => Kind::Other,
    }
}

/// How a client reaches us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
}

impl Transport {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// On a stream every frame is padded to a multiple of 4 (RFC 8656 §12.5).
    pub const fn is_stream(self) -> bool {
        !matches!(self, Self::Udp)
    }
}

/// An address and port as plain numbers, so that forgetting it can mean overwriting it.
#[derive(Clone, Copy, PartialEq, Eq, Zeroize)]
struct Endpoint {
    /// Two halves rather than one number, whose alignment would cost every list of peers a third more.
    high: u64,
    low: u64,
    port: u16,
    is_v6: bool,
}

impl Endpoint {
    fn new(address: SocketAddr) -> Self {
        let (ip, is_v6) = match address.ip() {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), false),
            IpAddr::V6(ip) => (ip.to_bits(), true),
        };
        Self {
            high: (ip >> 64) as u64,
            low: ip as u64,
            port: address.port(),
            is_v6,
        }
    }

    fn ip(self) -> IpAddr {
        if self.is_v6 {
            IpAddr::V6(Ipv6Addr::from_bits(u128::from(self.high) << 64 | u128::from(self.low)))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(self.low as u32))
        }
    }

    const fn words(self) -> [u64; 3] {
        [self.high, self.low, self.port as u64 | (self.is_v6 as u64) << 16]
    }

    const fn from_words([high, low, rest]: [u64; 3]) -> Self {
        Self {
            high,
            low,
            port: rest as u16,
            is_v6: rest >> 16 & 1 == 1,
        }
    }
}

/// Who a client is to us: its address and port, the transport, and which of our listening addresses it came to (RFC 8656 §3.2:
/// the 5-tuple). Prints as nothing.
#[derive(Clone, Copy, PartialEq, Eq, Zeroize)]
pub struct FiveTuple {
    client: Endpoint,
    transport: u8,
    listener: u8,
}

impl FiveTuple {
    /// `listener` is the shell's number of the listening address.
    pub fn new(client: SocketAddr, transport: Transport, listener: u8) -> Self {
        Self {
            client: Endpoint::new(client),
            transport: transport as u8,
            listener,
        }
    }

    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.client.ip(), self.client.port)
    }

    /// The client's family.
    pub const fn is_v6(&self) -> bool {
        self.client.is_v6
    }

    pub const fn transport(&self) -> Transport {
        match self.transport {
            0 => Transport::Udp,
            1 => Transport::Tcp,
            _ => Transport::Tls,
        }
    }

    pub const fn listener(&self) -> u8 {
        self.listener
    }

    /// All of it in three numbers, the top 32 bits of the last unused.
    pub const fn words(&self) -> [u64; 3] {
        let [high, low, rest] = self.client.words();
        [
            high,
            low,
            rest | (self.transport as u64 & 3) << 17 | (self.listener as u64) << 24,
        ]
    }

    pub const fn from_words(words: [u64; 3]) -> Self {
        let [_, _, rest] = words;
        Self {
            client: Endpoint::from_words(words),
            transport: (rest >> 17 & 3) as u8,
            listener: (rest >> 24) as u8,
        }
    }
}

impl fmt::Debug for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FiveTuple(<private>)")
    }
}

/// The address and port of who is talked to through us. Prints as nothing.
#[derive(Clone, Copy, PartialEq, Eq, Zeroize)]
pub struct PeerAddr(Endpoint);

impl PeerAddr {
    pub fn new(peer: SocketAddr) -> Self {
        Self(Endpoint::new(peer))
    }

    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.0.ip(), self.0.port)
    }

    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    pub const fn port(&self) -> u16 {
        self.0.port
    }

    pub const fn is_v6(&self) -> bool {
        self.0.is_v6
    }

    /// Permissions know no ports (RFC 8656 §9).
    pub const fn same_ip(&self, other: &Self) -> bool {
        self.0.high == other.0.high && self.0.low == other.0.low && self.0.is_v6 == other.0.is_v6
    }

    /// The address alone: what a permission keeps.
    pub const fn without_port(mut self) -> Self {
        self.0.port = 0;
        self
    }
}

impl fmt::Debug for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerAddr(<private>)")
    }
}

/// A relayed transport address: which of our relay addresses, and the port. Prints as nothing: the port is one client's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Zeroize)]
pub struct RelayAddr {
    pub address: u8,
    pub port: u16,
}

impl fmt::Debug for RelayAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayAddr(<private>)")
    }
}

/// A TURN channel number, `0x4000..=0x4FFF` (RFC 8656 §12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    pub const fn new(raw: u16) -> Option<Self> {
        if matches!(raw, 0x4000..=0x4FFF) {
            Some(Self(raw))
        } else {
            None
        }
    }

    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// A borrowed ChannelData message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChannelData<'a> {
    pub number: ChannelNumber,
    pub data: &'a [u8],
}

impl<'a> ChannelData<'a> {
    /// `None` for a number out of range or a length beyond the end. Over UDP bytes behind the data are padding.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ([n0, n1, l0, l1], rest) = bytes.split_first_chunk::<CHANNEL_HEADER>()?;
        let number = ChannelNumber::new(u16::from_be_bytes([*n0, *n1]))?;
        let data = rest.get(..usize::from(u16::from_be_bytes([*l0, *l1])))?;
        Some(Self { number, data })
    }

    /// The four bytes to put in front of `length` bytes of data.
    pub const fn header(number: ChannelNumber, length: u16) -> [u8; CHANNEL_HEADER] {
        let ([n0, n1], [l0, l1]) = (number.0.to_be_bytes(), length.to_be_bytes());
        [n0, n1, l0, l1]
    }
}

/// RFC 8489 §5: two bits spread over the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// The methods of RFC 8489 and RFC 8656 that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Method {
    Binding = 0x001,
    Allocate = 0x003,
    Refresh = 0x004,
    Send = 0x006,
    Data = 0x007,
    CreatePermission = 0x008,
    ChannelBind = 0x009,
}

impl Method {
    const fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            0x001 => Self::Binding,
            0x003 => Self::Allocate,
            0x004 => Self::Refresh,
            0x006 => Self::Send,
            0x007 => Self::Data,
            0x008 => Self::CreatePermission,
            0x009 => Self::ChannelBind,
            _ => return None,
        })
    }
}

/// Class and method in their 14 bits.
pub const fn message_type(method: Method, class: Class) -> u16 {
    let method = method as u16;
    let class = match class {
        Class::Request => 0x000,
        Class::Indication => 0x010,
        Class::Success => 0x100,
        Class::Error => 0x110,
    };
    (method & 0xF80) << 2 | (method & 0x070) << 1 | (method & 0x00F) | class
}

/// The name of one exchange: 96 bits the client chose. It says who asks, so it prints as nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransactionId(<private>)")
    }
}

/// Why bytes are not a message we answer. All of them mean silence (RFC 8489 §6.3). The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    TooShort,
    TopBits,
    BadCookie,
    /// Not a multiple of 4, or not what the datagram holds.
    BadLength,
    /// An attribute reaches beyond the message, or its padding does.
    BadAttribute,
    UnknownMethod,
}

impl Malformed {
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::TopBits => "top_bits",
            Self::BadCookie => "bad_cookie",
            Self::BadLength => "bad_length",
            Self::BadAttribute => "bad_attribute",
            Self::UnknownMethod => "unknown_method",
        }
    }
}

/// A borrowed STUN message whose attributes are known to lie within it.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    pub method: Method,
    pub class: Class,
    pub transaction: TransactionId,
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The whole datagram or frame must be the message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, attributes) = bytes.split_first_chunk::<HEADER>().ok_or(Malformed::TooShort)?;
        let [t0, t1, l0, l1, c0, c1, c2, c3, transaction @ ..] = *header;
        let raw_type = u16::from_be_bytes([t0, t1]);
        if raw_type & 0xC000 != 0 {
            return Err(Malformed::TopBits);
        }
        if u32::from_be_bytes([c0, c1, c2, c3]) != MAGIC_COOKIE {
            return Err(Malformed::BadCookie);
        }
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if length % 4 != 0 || length != attributes.len() {
            return Err(Malformed::BadLength);
        }
        let class = match raw_type & 0x110 {
            0x000 => Class::Request,
            0x010 => Class::Indication,
            0x100 => Class::Success,
            _ => Class::Error,
        };
        let raw_method = (raw_type >> 2 & 0xF80) | (raw_type >> 1 & 0x070) | (raw_type & 0x00F);
        let method = Method::from_raw(raw_method).ok_or(Malformed::UnknownMethod)?;
        let message = Self {
            method,
            class,
            transaction: TransactionId(transaction),
            bytes,
        };
        let mut attributes = message.attributes();
        while attributes.next().is_some() {}
        if attributes.rest.is_empty() {
            Ok(message)
        } else {
            Err(Malformed::BadAttribute)
        }
    }

    /// All attributes in order, those behind the integrity too: which of them count is for `attributes` to say.
    pub fn attributes(&self) -> RawAttributes<'a> {
        RawAttributes {
            rest: self.bytes.get(HEADER..).unwrap_or_default(),
            at: HEADER,
        }
    }

    /// What an integrity attribute at `at` covers: the message before it, in three parts, the second being a length field that
    /// counts the attribute too (RFC 8489 §14.5).
    pub fn covered(&self, at: usize, value_length: usize) -> (&'a [u8], [u8; 2], &'a [u8]) {
        let length = (at + 4 + value_length).saturating_sub(HEADER) as u16;
        (
            self.bytes.get(..2).unwrap_or_default(),
            length.to_be_bytes(),
            self.bytes.get(4..at).unwrap_or_default(),
        )
    }

    /// The message up to `end`, which an attribute gave: what a fingerprint covers.
    pub fn up_to(&self, end: usize) -> &'a [u8] {
        self.bytes.get(..end).unwrap_or_default()
    }
}

/// One attribute as it stands.
#[derive(Clone, Copy)]
pub struct RawAttribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
    /// Where its own header begins, from the start of the message.
    pub at: usize,
}

/// Walks over attributes; stops at the first that does not fit.
#[derive(Clone, Copy)]
pub struct RawAttributes<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Iterator for RawAttributes<'a> {
    type Item = RawAttribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let ([k0, k1, l0, l1], after) = self.rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let value = after.get(..length)?;
        // Padding is up to 3 bytes and must be there: the message's length is a multiple of 4.
        let rest = after.get(length.next_multiple_of(4)..)?;
        let attribute = RawAttribute {
            kind: u16::from_be_bytes([*k0, *k1]),
            value,
            at: self.at,
        };
        self.at += 4 + length.next_multiple_of(4);
        self.rest = rest;
        Some(attribute)
    }
}

/// Writes one message into a fixed buffer; padding is zero. What does not fit is not written, and [`Writer::finish`] says so.
pub struct Writer<'b> {
    buffer: &'b mut [u8],
    length: usize,
    /// Bytes of a value that lie elsewhere, padding included.
    outside: usize,
    overflow: bool,
}

impl<'b> Writer<'b> {
    pub fn new(buffer: &'b mut [u8], method: Method, class: Class, transaction: TransactionId) -> Self {
        let mut writer = Self {
            buffer,
            length: 0,
            outside: 0,
            overflow: false,
        };
        writer.put(&message_type(method, class).to_be_bytes());
        writer.put(&[0, 0]);
        writer.put(&MAGIC_COOKIE.to_be_bytes());
        writer.put(&transaction.0);
        writer
    }

    /// Appends an attribute made of parts, padded with zeros.
    pub fn attribute(&mut self, kind: u16, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let Ok(short) = u16::try_from(length) else {
            self.overflow = true;
            return;
        };
        self.put(&kind.to_be_bytes());
        self.put(&short.to_be_bytes());
        for part in parts {
            self.put(part);
        }
        self.put([0u8; 3].get(..length.next_multiple_of(4) - length).unwrap_or_default());
        self.write_length(0);
    }

    /// The header of a last attribute whose value is not copied: who sends puts it, and its padding, behind what is written here.
    pub fn attribute_outside(&mut self, kind: u16, length: usize) {
        let Ok(short) = u16::try_from(length) else {
            self.overflow = true;
            return;
        };
        self.put(&kind.to_be_bytes());
        self.put(&short.to_be_bytes());
        self.outside = length.next_multiple_of(4);
    }

    /// What is written so far, its length field counting `more` further bytes: what an integrity covers.
    pub fn covered(&mut self, more: usize) -> &[u8] {
        self.write_length(more);
        self.buffer.get(..self.length).unwrap_or_default()
    }

    /// The message, or `None` if it did not fit.
    pub fn finish(mut self) -> Option<&'b [u8]> {
        self.write_length(0);
        if self.overflow {
            None
        } else {
            self.buffer.get(..self.length)
        }
    }

    fn write_length(&mut self, more: usize) {
        let length = (self.length + self.outside + more).saturating_sub(HEADER);
        if let (Some(field), Ok(length)) = (self.buffer.get_mut(2..4), u16::try_from(length)) {
            field.copy_from_slice(&length.to_be_bytes());
        } else {
            self.overflow = true;
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        match self.buffer.get_mut(self.length..end) {
            Some(place) if !self.overflow => {
                place.copy_from_slice(bytes);
                self.length = end;
            }
            _ => self.overflow = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRANSACTION: TransactionId = TransactionId(*b"twelve bytes");

    fn binding(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut buffer = [0xAA; 256];
        let mut writer = Writer::new(&mut buffer, Method::Binding, Class::Request, TRANSACTION);
        for (kind, value) in attributes {
            writer.attribute(*kind, &[value]);
        }
        writer.finish().unwrap().to_vec()
    }

    fn fault(bytes: &[u8]) -> Malformed {
        Message::parse(bytes).err().unwrap()
    }

    #[test]
    fn a_written_message_is_read_back_and_its_padding_is_zero() {
        let bytes = binding(&[(0x8022, b"abcde"), (0x0006, b"")]);
        assert_eq!(bytes.len(), 20 + 12 + 4);
        assert_eq!(&bytes[29..32], &[0, 0, 0]);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.method, message.class), (Method::Binding, Class::Request));
        let attributes: Vec<_> = message.attributes().map(|a| (a.kind, a.value.to_vec(), a.at)).collect();
        assert_eq!(attributes, [(0x8022, b"abcde".to_vec(), 20), (0x0006, vec![], 32)]);
    }

    #[test]
    fn types_are_those_of_the_registry() {
        assert_eq!(message_type(Method::Binding, Class::Success), 0x0101);
        assert_eq!(message_type(Method::Allocate, Class::Error), 0x0113);
        assert_eq!(message_type(Method::Data, Class::Indication), 0x0017);
        assert_eq!(message_type(Method::ChannelBind, Class::Request), 0x0009);
    }

    #[test]
    fn what_is_not_a_message_has_a_name() {
        let good = binding(&[(0x8022, b"abcd")]);
        assert_eq!(fault(&good[..19]), Malformed::TooShort);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert_eq!(fault(&with(0, 0x80)), Malformed::TopBits);
        assert_eq!(fault(&with(0, 0x40)), Malformed::TopBits);
        assert_eq!(fault(&with(4, 0)), Malformed::BadCookie);
        assert_eq!(fault(&with(3, 7)), Malformed::BadLength);
        assert_eq!(fault(&with(3, 4)), Malformed::BadLength);
        assert_eq!(fault(&with(1, 0x0E)), Malformed::UnknownMethod);
        assert_eq!(fault(&with(23, 5)), Malformed::BadAttribute);
        assert_eq!(fault(&with(22, 0xFF)), Malformed::BadAttribute);
        assert_eq!(fault(&[good.as_slice(), &[0; 4]].concat()), Malformed::BadLength);
    }

    #[test]
    fn channel_data_keeps_to_its_length_and_range() {
        assert_eq!(ChannelData::parse(&[0x40, 0, 0, 2, 1, 2, 0, 0]).unwrap().data, &[1, 2]);
        assert_eq!(ChannelData::parse(&[0x40, 0, 0, 0]).unwrap().data, b"");
        assert!(ChannelData::parse(&[0x40, 0, 0, 3, 1, 2]).is_none());
        assert!(ChannelData::parse(&[0x3F, 0xFF, 0, 0]).is_none());
        assert!(ChannelData::parse(&[0x50, 0, 0, 0]).is_none());
        assert!(ChannelData::parse(&[0x4F, 0xFF, 0, 0]).is_some());
        assert!(ChannelData::parse(&[0x40]).is_none());
    }

    #[test]
    fn a_writer_that_overflows_gives_nothing() {
        let mut buffer = [0; 24];
        let mut writer = Writer::new(&mut buffer, Method::Binding, Class::Request, TRANSACTION);
        writer.attribute(1, &[b"abcd"]);
        assert!(writer.finish().is_none());
    }

    proptest! {
        #[test]
        fn a_five_tuple_survives_being_numbers(ip: IpAddr, port: u16, transport in 0u8..3, listener: u8) {
            let transport = [Transport::Udp, Transport::Tcp, Transport::Tls][usize::from(transport)];
            let tuple = FiveTuple::new(SocketAddr::new(ip, port), transport, listener);
            prop_assert_eq!(FiveTuple::from_words(tuple.words()), tuple);
            prop_assert_eq!((tuple.client(), tuple.transport(), tuple.listener()), (SocketAddr::new(ip, port), transport, listener));
            prop_assert_eq!(format!("{tuple:?}"), "FiveTuple(<private>)");
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Message::parse(&bytes);
            let _ = ChannelData::parse(&bytes);
            let _ = demux(&bytes);
        }

        #[test]
        fn what_we_read_the_oracle_reads_the_same(kinds in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..9)), 0..6)) {
            let attributes: Vec<(u16, &[u8])> = kinds.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
            let bytes = binding(&attributes);
            let ours: Vec<_> = Message::parse(&bytes).unwrap().attributes().map(|a| (a.kind, a.value.to_vec())).collect();
            prop_assert_eq!(&ours, &kinds);
            // The oracle refuses an order of attributes that RFC 8489 forbids; what it takes, it reads as we do.
            use stun_types::attribute::Attribute as _;
            if let Ok(oracle) = stun_types::message::Message::from_bytes(&bytes) {
                let theirs: Vec<_> = oracle.iter_attributes().map(|(_, a)| (a.get_type().value(), a.value.to_vec())).collect();
                prop_assert_eq!(theirs, ours);
            }
        }
    }
}
