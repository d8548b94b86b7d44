//! Greetings, frame headers, commands and metadata of ZMTP 3.1.
//!
//! In: bytes as they came, whole or not. Out: where the next frame ends and what it is. Never: buffers.

use super::fault::LinkFault;
use bytes::BufMut;

pub(super) const MORE: u8 = 1;
pub(super) const LONG: u8 = 2;
pub(super) const COMMAND: u8 = 4;
pub(super) const GREETING_LENGTH: usize = 64;

/// The mechanism as the greeting names it, padded with zeros.
pub(super) type MechanismName = [u8; 20];
pub(super) const NULL_NAME: MechanismName = *b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
pub(super) const CURVE_NAME: MechanismName = *b"CURVE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[derive(Clone, Copy)]
pub(super) struct Header {
    pub more: bool,
    pub command: bool,
    /// Bytes of the header itself: 2, or 9 for a long frame.
    pub length: usize,
    /// Bytes of the body as announced; not yet held against any limit.
    pub body_length: u64,
}

pub(super) enum HeaderRead {
    Whole(Header),
    /// The header is not complete with fewer bytes than this.
    Needs(usize),
}

pub(super) fn read_header(bytes: &[u8]) -> Result<HeaderRead, LinkFault> {
    let Some((&flags, rest)) = bytes.split_first() else {
        return Ok(HeaderRead::Needs(2));
    };
    if flags & !(MORE | LONG | COMMAND) != 0 {
        return Err(LinkFault::ReservedFlags);
    }
    let (more, command) = (flags & MORE != 0, flags & COMMAND != 0);
    if more && command {
        return Err(LinkFault::ReservedFlags);
    }
    if flags & LONG != 0 {
        let Some(length) = rest.first_chunk::<8>() else {
            return Ok(HeaderRead::Needs(9));
        };
        return Ok(HeaderRead::Whole(Header {
            more,
            command,
            length: 9,
            body_length: u64::from_be_bytes(*length),
        }));
    }
    let Some(&length) = rest.first() else {
        return Ok(HeaderRead::Needs(2));
    };
    Ok(HeaderRead::Whole(Header {
        more,
        command,
        length: 2,
        body_length: u64::from(length),
    }))
}

pub(super) fn put_header(out: &mut impl BufMut, flags: u8, body_length: usize) {
    match u8::try_from(body_length) {
        Ok(short) => {
            out.put_u8(flags);
            out.put_u8(short);
        }
        Err(_) => {
            out.put_u8(flags | LONG);
            out.put_u64(body_length as u64);
        }
    }
}

/// The signature carries the length of the routing id plus one, as libzmq's does; peers ignore it.
pub(super) fn put_greeting(out: &mut impl BufMut, mechanism: MechanismName, routing_id_length: u8) {
    out.put_u8(0xff);
    out.put_u64(u64::from(routing_id_length) + 1);
    out.put_slice(&[0x7f, 3, 1]);
    out.put_slice(&mechanism);
    out.put_bytes(0, 32);
}

/// Checks as much of a greeting as has come, so that a peer of another kind is known by its first bytes.
///
/// The eight bytes inside the signature, the minor version, as-server and the filler may be anything: libzmq sends
/// zero for as-server even from a CURVE server.
pub(super) fn check_greeting(bytes: &[u8], mechanism: &MechanismName) -> Result<(), LinkFault> {
    for (position, &byte) in bytes.iter().take(GREETING_LENGTH).enumerate() {
        match position {
            0 if byte != 0xff => return Err(LinkFault::NotZmtp),
            9 if byte != 0x7f => return Err(LinkFault::NotZmtp),
            10 if byte < 3 => return Err(LinkFault::OldVersion { major: byte }),
            12..32 if mechanism.get(position - 12) != Some(&byte) => return Err(LinkFault::MechanismMismatch),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn put_command(out: &mut impl BufMut, name: &[u8], data: &[u8]) {
    put_header(out, COMMAND, 1 + name.len() + data.len());
    put_command_body(out, name, data);
}

/// `name` is one of the names below, far shorter than 255 bytes.
pub(super) fn put_command_body(out: &mut impl BufMut, name: &[u8], data: &[u8]) {
    out.put_u8(name.len() as u8);
    out.put_slice(name);
    out.put_slice(data);
}

/// Name and data of a command's body.
pub(super) fn split_command(body: &[u8]) -> Result<(&[u8], &[u8]), LinkFault> {
    body.split_first()
        .and_then(|(&length, rest)| rest.split_at_checked(usize::from(length)))
        .filter(|(name, _)| !name.is_empty())
        .ok_or(LinkFault::MalformedCommand)
}

/// The status in an ERROR command: `"400"` says that our key was refused. 0 = no number.
pub(super) fn error_status(data: &[u8]) -> Result<u16, LinkFault> {
    let (&length, text) = data.split_first().ok_or(LinkFault::MalformedCommand)?;
    if text.len() != usize::from(length) {
        return Err(LinkFault::MalformedCommand);
    }
    Ok(std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0))
}

/// What a socket says of itself. The peer of a DEALER is a ROUTER, a DEALER or a REP.
pub(super) fn metadata(socket_type: &[u8], routing_id: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    for (name, value) in [(&b"Socket-Type"[..], socket_type), (b"Identity", routing_id)] {
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value);
    }
    out
}

pub(super) fn check_metadata(mut bytes: &[u8]) -> Result<(), LinkFault> {
    let mut socket_type = None;
    while let Some((&name_length, rest)) = bytes.split_first() {
        let (name, rest) = rest
            .split_at_checked(usize::from(name_length))
            .ok_or(LinkFault::MalformedMetadata)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or(LinkFault::MalformedMetadata)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| LinkFault::MalformedMetadata)?;
        let (value, rest) = rest.split_at_checked(length).ok_or(LinkFault::MalformedMetadata)?;
        if name.is_empty() {
            return Err(LinkFault::MalformedMetadata);
        }
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = Some(value);
        }
        bytes = rest;
    }
    match socket_type {
        Some(b"ROUTER" | b"DEALER" | b"REP") => Ok(()),
        Some(_) => Err(LinkFault::WrongSocketType),
        None => Err(LinkFault::MalformedMetadata),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_255_bytes_is_short_and_of_256_is_long() {
        let (mut short, mut long) = (Vec::new(), Vec::new());
        put_header(&mut short, 0, 255);
        put_header(&mut long, COMMAND, 256);
        assert_eq!(short, [0, 255]);
        assert_eq!(long, [6, 0, 0, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn a_header_is_read_from_as_few_bytes_as_it_has() {
        assert!(matches!(read_header(&[]), Ok(HeaderRead::Needs(2))));
        assert!(matches!(read_header(&[1]), Ok(HeaderRead::Needs(2))));
        assert!(matches!(
            read_header(&[2, 0, 0, 0, 0, 0, 0, 0]),
            Ok(HeaderRead::Needs(9))
        ));
        assert!(matches!(
            read_header(&[2, 255, 255, 255, 255, 255, 255, 255, 255]),
            Ok(HeaderRead::Whole(Header {
                body_length: u64::MAX,
                ..
            }))
        ));
        // A long frame may be a small one.
        assert!(matches!(
            read_header(&[3, 0, 0, 0, 0, 0, 0, 0, 5]),
            Ok(HeaderRead::Whole(Header {
                body_length: 5,
                more: true,
                ..
            }))
        ));
        assert!(matches!(read_header(&[8]), Err(LinkFault::ReservedFlags)));
        assert!(matches!(read_header(&[5, 0]), Err(LinkFault::ReservedFlags)));
    }

    #[test]
    fn a_foreign_greeting_is_known_by_its_first_bytes() {
        assert_eq!(check_greeting(b"HTTP", &NULL_NAME), Err(LinkFault::NotZmtp));
        assert_eq!(check_greeting(b"\xff12345678", &NULL_NAME), Ok(()));
        assert_eq!(check_greeting(b"\xff12345678\x7e", &NULL_NAME), Err(LinkFault::NotZmtp));
        assert_eq!(
            check_greeting(b"\xff12345678\x7f\x01", &NULL_NAME),
            Err(LinkFault::OldVersion { major: 1 })
        );
        assert_eq!(
            check_greeting(b"\xff12345678\x7f\x03\x01NULLX", &NULL_NAME),
            Err(LinkFault::MechanismMismatch)
        );
        assert_eq!(check_greeting(b"\xff12345678\x7f\x09\x09CURVE", &CURVE_NAME), Ok(()));
    }

    #[test]
    fn metadata_needs_a_socket_type_that_fits() {
        assert_eq!(check_metadata(&metadata(b"ROUTER", b"")), Ok(()));
        assert_eq!(check_metadata(&metadata(b"PUB", b"")), Err(LinkFault::WrongSocketType));
        assert_eq!(check_metadata(b""), Err(LinkFault::MalformedMetadata));
        assert_eq!(check_metadata(b"\x0bsocket-TYPE\0\0\0\x03REP"), Ok(()));
        for cut in 1..metadata(b"ROUTER", b"").len() {
            let whole = metadata(b"ROUTER", b"");
            // After 21 bytes the first property is complete.
            assert_eq!(check_metadata(whole.get(..cut).unwrap()).is_ok(), cut == 22, "{cut}");
        }
        assert_eq!(
            check_metadata(b"\x01a\xff\xff\xff\xffx"),
            Err(LinkFault::MalformedMetadata)
        );
    }

    #[test]
    fn commands_and_errors_are_cut_exactly() {
        assert_eq!(split_command(b"\x04PINGxy"), Ok((&b"PING"[..], &b"xy"[..])));
        for bad in [&b""[..], b"\0", b"\x05PING"] {
            assert_eq!(split_command(bad), Err(LinkFault::MalformedCommand));
        }
        assert_eq!(error_status(b"\x03400"), Ok(400));
        assert_eq!(error_status(b"\x03no!"), Ok(0));
        assert_eq!(error_status(b"\x0340"), Err(LinkFault::MalformedCommand));
        assert_eq!(error_status(b""), Err(LinkFault::MalformedCommand));
    }
}
