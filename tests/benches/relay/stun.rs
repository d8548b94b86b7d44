//! As much of STUN and TURN as a client needs that allocates and binds a channel (RFC 8489, RFC 8656; long-term credentials, MD5).
//!
//! In: what to ask, what a server answered. Out: bytes of requests; answers read. Never: checks the integrity of an answer: the tests of
//! the relay do.

#![allow(dead_code, reason = "each benchmark asks its part")]

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use std::net::{Ipv4Addr, SocketAddrV4};

pub const USER: &str = "user";
pub const PASSWORD: &str = "a-secret-of-the-benchmark";
pub const REALM: &str = "bench.example";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    Binding,
    Allocate,
    /// A permission for a peer.
    Permit(SocketAddrV4),
    /// A channel to a peer.
    Bind(u16, SocketAddrV4),
    /// So many seconds more; 0 ends the allocation.
    Refresh(u32),
}

pub type Transaction = [u8; 12];

/// A request; signed if there is a nonce.
pub fn request(ask: Ask, transaction: Transaction, key: &Key, nonce: Option<&[u8]>) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    message.extend(ask.method().to_be_bytes());
    message.extend([0, 0]);
    message.extend(COOKIE.to_be_bytes());
    message.extend(transaction);
    match ask {
        Ask::Binding => {}
        Ask::Allocate => put(&mut message, REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
        Ask::Permit(peer) => put_peer(&mut message, peer),
        Ask::Bind(channel, peer) => {
            let [a, b] = channel.to_be_bytes();
            put(&mut message, CHANNEL_NUMBER, &[a, b, 0, 0]);
            put_peer(&mut message, peer);
        }
        Ask::Refresh(seconds) => put(&mut message, LIFETIME, &seconds.to_be_bytes()),
    }
    if let Some(nonce) = nonce {
        put(&mut message, USERNAME, USER.as_bytes());
        put(&mut message, REALM_ATTRIBUTE, REALM.as_bytes());
        put(&mut message, NONCE, nonce);
        // The length that is signed already counts the integrity (RFC 8489 §14.5).
        set_length(&mut message, 24);
        let mut mac = key.0.clone();
        mac.update(&message);
        let mac = mac.finalize().into_bytes();
        put(&mut message, MESSAGE_INTEGRITY, &mac);
    }
    set_length(&mut message, 0);
    message
}

/// MD5 of user, realm and password, ready to sign with.
pub struct Key(Hmac<Sha1>);

impl Key {
    pub fn new() -> Self {
        let key = Md5::digest(format!("{USER}:{REALM}:{PASSWORD}"));
        Self(Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"))
    }
}

/// What a server answered.
#[derive(Debug)]
pub struct Response {
    pub transaction: Transaction,
    /// `None` for a success.
    pub error: Option<u16>,
    pub nonce: Option<Vec<u8>>,
    pub relayed: Option<SocketAddrV4>,
}

impl Response {
    pub fn read(message: &[u8]) -> Option<Self> {
        let kind = u16::from_be_bytes(message.get(..2)?.try_into().ok()?);
        let mut response = Self {
            transaction: message.get(8..20)?.try_into().ok()?,
            error: None,
            nonce: None,
            relayed: None,
        };
        let is_error = match kind & 0x0110 {
            0x0100 => false,
            0x0110 => true,
            _ => return None,
        };
        let mut rest = message.get(20..)?;
        while let Some((head, tail)) = rest.split_at_checked(4) {
            let kind = u16::from_be_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let value = tail.get(..length)?;
            match (kind, value) {
                (ERROR_CODE, [_, _, class, number, ..]) => {
                    response.error = Some(u16::from(*class) * 100 + u16::from(*number));
                }
                (NONCE, _) => response.nonce = Some(value.to_vec()),
                (XOR_RELAYED_ADDRESS, &[_, 1, high, low, a, b, c, d]) => {
                    let port = u16::from_be_bytes([high, low]) ^ (COOKIE >> 16) as u16;
                    let address = Ipv4Addr::from(u32::from_be_bytes([a, b, c, d]) ^ COOKIE);
                    response.relayed = Some(SocketAddrV4::new(address, port));
                }
                _ => {}
            }
            rest = tail.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        (is_error == response.error.is_some()).then_some(response)
    }
}

impl Ask {
    fn method(self) -> u16 {
        match self {
            Self::Binding => 0x0001,
            Self::Allocate => 0x0003,
            Self::Refresh(_) => 0x0004,
            Self::Permit(_) => 0x0008,
            Self::Bind(..) => 0x0009,
        }
    }
}

fn put_peer(message: &mut Vec<u8>, peer: SocketAddrV4) {
    let port = (peer.port() ^ (COOKIE >> 16) as u16).to_be_bytes();
    let [a, b, c, d] = (peer.ip().to_bits() ^ COOKIE).to_be_bytes();
    put(message, XOR_PEER_ADDRESS, &[0, 1, port[0], port[1], a, b, c, d]);
}

fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn set_length(message: &mut [u8], more: usize) {
    let length = ((message.len() - 20 + more) as u16).to_be_bytes();
    message[2..4].copy_from_slice(&length);
}

const COOKIE: u32 = 0x2112_A442;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const CHANNEL_NUMBER: u16 = 0x000C;
const LIFETIME: u16 = 0x000D;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const REALM_ATTRIBUTE: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;
