//! The listener's half of a CURVE or NULL connection, for tests: keys, boxes and frames, without a state machine.

use super::curve::{long_nonce, short_nonce};
use super::frames;
use quietline_shared::crypto::{CurveBox, x25519_public};
use quietline_shared::redact::Secret;

pub(super) const LONG_TERM: [u8; 32] = [21; 32];
const EPHEMERAL: [u8; 32] = [22; 32];

/// Answers one client, one call for each step.
pub(super) struct Listener {
    shared: Option<CurveBox>,
    pub next_nonce: u64,
}

impl Listener {
    pub fn public() -> [u8; 32] {
        x25519_public(&Secret::new(LONG_TERM))
    }

    pub fn new() -> Self {
        Self {
            shared: None,
            next_nonce: 1,
        }
    }

    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::new();
        frames::put_greeting(&mut out, frames::CURVE_NAME, 0);
        out
    }

    /// WELCOME for a HELLO frame, header included.
    pub fn welcome(&mut self, hello: &[u8]) -> Vec<u8> {
        let client_ephemeral: [u8; 32] = hello[2 + 80..][..32].try_into().unwrap();
        let with_client = CurveBox::new(&client_ephemeral, &Secret::new(LONG_TERM));
        let mut proof: [u8; 64] = hello[2 + 136..].try_into().unwrap();
        let tag: [u8; 16] = hello[2 + 120..][..16].try_into().unwrap();
        assert!(with_client.open_in_place(&short_nonce(b"CurveZMQHELLO---", 1), &mut proof, &tag));
        assert_eq!(proof, [0; 64]);

        let mut plain = x25519_public(&Secret::new(EPHEMERAL)).to_vec();
        plain.extend([0xc0; 96]);
        let tag = with_client.seal_in_place(&long_nonce(b"WELCOME-", &[5; 16]), &mut plain);
        self.shared = Some(CurveBox::new(&client_ephemeral, &Secret::new(EPHEMERAL)));
        let mut out = Vec::new();
        frames::put_command(&mut out, b"WELCOME", &[&[5; 16][..], &tag, &plain].concat());
        out
    }

    pub fn ready(&mut self, metadata: &[u8]) -> Vec<u8> {
        let nonce = self.take_nonce();
        let mut plain = metadata.to_vec();
        let tag = self
            .shared
            .as_ref()
            .unwrap()
            .seal_in_place(&short_nonce(b"CurveZMQREADY---", nonce), &mut plain);
        let mut out = Vec::new();
        frames::put_command(&mut out, b"READY", &[&nonce.to_be_bytes()[..], &tag, &plain].concat());
        out
    }

    pub fn frame(&mut self, inner_flags: u8, payload: &[u8]) -> Vec<u8> {
        self.frame_with(0, inner_flags, payload)
    }

    pub fn frame_with(&mut self, outer_flags: u8, inner_flags: u8, payload: &[u8]) -> Vec<u8> {
        let nonce = self.take_nonce();
        let mut plain = [&[inner_flags][..], payload].concat();
        let tag = self
            .shared
            .as_ref()
            .unwrap()
            .seal_in_place(&short_nonce(b"CurveZMQMESSAGES", nonce), &mut plain);
        let mut out = Vec::new();
        frames::put_header(&mut out, outer_flags, 32 + plain.len());
        out.extend([&b"\x07MESSAGE"[..], &nonce.to_be_bytes(), &tag, &plain].concat());
        out
    }

    pub fn message(&mut self, parts: &[&[u8]]) -> Vec<u8> {
        let last = parts.len() - 1;
        parts
            .iter()
            .enumerate()
            .flat_map(|(number, part)| self.frame(u8::from(number < last), part))
            .collect()
    }

    /// Opens what the client sent: inner flags and payload of each MESSAGE frame.
    pub fn open(&self, mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut opened = Vec::new();
        while !bytes.is_empty() {
            let Ok(frames::HeaderRead::Whole(header)) = frames::read_header(bytes) else {
                panic!("a cut header")
            };
            assert!(!header.command && !header.more, "MESSAGE is no command outside");
            let (frame, rest) = bytes.split_at(header.length + header.body_length as usize);
            let body = &frame[header.length..];
            assert_eq!(&body[..8], b"\x07MESSAGE");
            let nonce = u64::from_be_bytes(body[8..16].try_into().unwrap());
            let mut plain = body[32..].to_vec();
            let tag = body[16..32].try_into().unwrap();
            let shared = self.shared.as_ref().unwrap();
            assert!(shared.open_in_place(&short_nonce(b"CurveZMQMESSAGEC", nonce), &mut plain, &tag));
            opened.push((plain[0], plain[1..].to_vec()));
            bytes = rest;
        }
        opened
    }

    fn take_nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce - 1
    }
}
