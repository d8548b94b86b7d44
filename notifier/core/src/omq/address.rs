//! Where a listener is, and which key it must prove.
//!
//! In: an address as oxend and its tools write it. Out: an `Address`. Never: resolves a name.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A listener. With a key the link is CURVE, without one it is NULL: in clear, for this machine only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    pub transport: Transport,
    /// X25519 public key of the listener.
    pub server_key: Option<[u8; 32]>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A host name or an IP address, without the brackets of an IPv6 address.
    Tcp { host: String, port: u16 },
    /// The path of a Unix socket.
    Ipc(String),
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("there is no protocol:// at the start")]
    NoProtocol,
    #[error("the protocol is none of tcp, curve, tcp+curve, ipc, ipc+curve, TCP, CURVE")]
    UnknownProtocol,
    #[error("there is nothing after the protocol")]
    NothingAfterProtocol,
    #[error("an upper-case address has a character other than A-Z 0-9 $ : / . -")]
    NotQrAlphabet,
    #[error("there is no :PORT after the host")]
    NoPort,
    #[error("the host is empty")]
    EmptyHost,
    #[error("the port is not between 1 and 65535")]
    PortOutOfRange,
    #[error("there is something after the port")]
    TrailingAfterPort,
    #[error("there is something after the key")]
    TrailingAfterKey,
    #[error("the path is empty")]
    EmptyPath,
    #[error("there is no /KEY at the end")]
    NoKey,
    #[error("the key is not 64 hex, 52 base32z or 43 base64 characters")]
    BadKey,
    #[error("the address is longer than 1024 bytes")]
    TooLong,
}

impl Address {
    /// A storage node, as the node list names it.
    pub fn curve(host: IpAddr, port: u16, server_key: [u8; 32]) -> Self {
        Self {
            transport: Transport::Tcp {
                host: host.to_string(),
                port,
            },
            server_key: Some(server_key),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > LONGEST {
            return Err(AddressError::TooLong);
        }
        let (protocol, rest) = text.split_once("://").ok_or(AddressError::NoProtocol)?;
        let kind = Kind::of(protocol).ok_or(AddressError::UnknownProtocol)?;
        if rest.is_empty() {
            return Err(AddressError::NothingAfterProtocol);
        }
        if kind.qr && !rest.bytes().all(is_qr) {
            return Err(AddressError::NotQrAlphabet);
        }
        if kind.ipc {
            ipc_address(rest, kind.key)
        } else {
            tcp_address(rest, kind)
        }
    }
}

/// Kind of transport and mechanism only: where a link goes is not for logs.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (&self.transport, self.server_key.is_some()) {
            (Transport::Tcp { .. }, false) => "Address(tcp)",
            (Transport::Tcp { .. }, true) => "Address(curve)",
            (Transport::Ipc(_), false) => "Address(ipc)",
            (Transport::Ipc(_), true) => "Address(ipc+curve)",
        })
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp { .. } => "Transport(tcp)",
            Self::Ipc(_) => "Transport(ipc)",
        })
    }
}

#[derive(Clone, Copy)]
struct Kind {
    ipc: bool,
    key: bool,
    qr: bool,
}

impl Kind {
    fn of(protocol: &str) -> Option<Self> {
        let (ipc, key, qr) = match protocol {
            "tcp" => (false, false, false),
            "curve" | "tcp+curve" => (false, true, false),
            "ipc" => (true, false, false),
            "ipc+curve" => (true, true, false),
            "TCP" => (false, false, true),
            "CURVE" => (false, true, true),
            _ => return None,
        };
        Some(Self { ipc, key, qr })
    }
}

fn tcp_address(rest: &str, kind: Kind) -> Result<Address, AddressError> {
    // In QR codes the brackets of an IPv6 address are not available; "$" stands for both.
    let (opening, closing) = if kind.qr { ('$', '$') } else { ('[', ']') };
    let (host, after_host) = match rest.strip_prefix(opening) {
        Some(inner) => {
            let (host, after) = inner.split_once(closing).ok_or(AddressError::NoPort)?;
            (host, after.strip_prefix(':').ok_or(AddressError::NoPort)?)
        }
        None => rest.split_once(':').ok_or(AddressError::NoPort)?,
    };
    if host.is_empty() {
        return Err(AddressError::EmptyHost);
    }
    let digits = after_host.bytes().take_while(u8::is_ascii_digit).count();
    let (port, after_port) = after_host.split_at_checked(digits).ok_or(AddressError::NoPort)?;
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or(AddressError::PortOutOfRange)?;
    let server_key = if kind.key {
        Some(server_key(after_port.strip_prefix('/').ok_or(AddressError::NoKey)?)?)
    } else if after_port.is_empty() {
        None
    } else {
        return Err(AddressError::TrailingAfterPort);
    };
    let host = if kind.qr {
        host.to_ascii_lowercase()
    } else {
        host.to_owned()
    };
    Ok(Address {
        transport: Transport::Tcp { host, port },
        server_key,
    })
}

fn ipc_address(rest: &str, has_key: bool) -> Result<Address, AddressError> {
    let (path, server_key) = if has_key {
        let (path, key) = path_and_key(rest).ok_or(AddressError::NoKey)?;
        (path, Some(key))
    } else {
        (rest, None)
    };
    if path.is_empty() {
        return Err(AddressError::EmptyPath);
    }
    Ok(Address {
        transport: Transport::Ipc(path.to_owned()),
        server_key,
    })
}

/// A base64 key may hold a "/" itself, so the key is counted from the end.
fn path_and_key(rest: &str) -> Option<(&str, [u8; 32])> {
    [64, 52, 44, 43].into_iter().find_map(|length| {
        let (path, key) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
        Some((path.strip_suffix('/')?, server_key(key).ok()?))
    })
}

/// The key at the end of an address: hex is tried first, then base32z, then base64, as oxend's tools do.
fn server_key(text: &str) -> Result<[u8; 32], AddressError> {
    let mut key = [0; 32];
    if let Some((digits, rest)) = text.split_at_checked(64)
        && hex::decode_to_slice(digits, &mut key).is_ok()
    {
        return if rest.is_empty() {
            Ok(key)
        } else {
            Err(AddressError::TrailingAfterKey)
        };
    }
    if let Some((digits, rest)) = text.split_at_checked(52)
        && let Some(key) = from_base32z(digits)
    {
        return if rest.is_empty() {
            Ok(key)
        } else {
            Err(AddressError::TrailingAfterKey)
        };
    }
    if let Some((digits, rest)) = text.split_at_checked(43)
        && let Ok(bytes) = BASE64.decode(digits)
        && let Ok(key) = <[u8; 32]>::try_from(bytes)
    {
        return if matches!(rest, "" | "=") {
            Ok(key)
        } else {
            Err(AddressError::TrailingAfterKey)
        };
    }
    Err(AddressError::BadKey)
}

/// 52 characters hold 260 bits: the last four are padding.
fn from_base32z(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = Vec::with_capacity(33);
    let (mut bits, mut count) = (0u32, 0);
    for digit in digits.bytes() {
        let value = BASE32Z
            .iter()
            .position(|letter| *letter == digit.to_ascii_lowercase())?;
        bits = (bits << 5 | u32::try_from(value).ok()?) & 0xfff;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    <[u8; 32]>::try_from(bytes).ok()
}

fn is_qr(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"$:/.-".contains(&byte)
}

const LONGEST: usize = 1024;
const BASE32Z: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";
/// The two padding bits of the last character may be anything, as they may for oxend's tools.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_host_nor_path_nor_key() {
        let address = Address::curve(IpAddr::from([203, 0, 113, 7]), 22020, [7; 32]);
        assert_eq!(
            format!("{address:?} {:?}", address.transport),
            "Address(curve) Transport(tcp)"
        );
    }

    #[test]
    fn an_ipv6_node_is_dialled_without_brackets() {
        let written: Address =
            "curve://[2001:db8::1]:22020/0707070707070707070707070707070707070707070707070707070707070707"
                .parse()
                .unwrap();
        assert_eq!(written, Address::curve("2001:db8::1".parse().unwrap(), 22020, [7; 32]));
    }

    #[test]
    fn text_of_any_kind_is_refused_without_a_panic() {
        for text in [
            "://",
            "tcp://[",
            "tcp://[::1",
            "tcp://[::1]",
            "tcp://[]:1",
            "tcp://h:",
            "tcp://h:0",
            "curve://h:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert_eq!(
            format!("curve://h:1/{}", "é".repeat(40)).parse::<Address>(),
            Err(AddressError::BadKey)
        );
        assert_eq!("tcp://é:1é".parse::<Address>(), Err(AddressError::TrailingAfterPort));
        assert_eq!(
            format!("ipc://{}", "x".repeat(2000)).parse::<Address>(),
            Err(AddressError::TooLong)
        );
        assert_eq!("ipc+curve:///".parse::<Address>(), Err(AddressError::NoKey));
    }
}
