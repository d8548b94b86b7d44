//! The CURVE mechanism, the client's half: HELLO, WELCOME, INITIATE, READY and the boxes of the messages.
//!
//! In: commands of a listener, keys and nonces given as bytes. Out: the commands that answer them, opened messages.
//! Never: makes a key, or hands out a byte of a box that did not open.

use super::fault::LinkFault;
use super::frames;
use bytes::{BufMut, BytesMut};
use quietline_shared::crypto::{CurveBox, x25519_public};
use quietline_shared::redact::Secret;
use std::fmt;
use std::sync::Arc;

/// The long-term key pair that the nodes know us by. Its public half is also the name of our connection.
pub struct Identity {
    secret: Secret<[u8; 32]>,
    public: [u8; 32],
}

impl Identity {
    pub fn new(secret: Secret<[u8; 32]>) -> Self {
        let public = x25519_public(&secret);
        Self { secret, public }
    }

    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The same for every node and every connection, so that a node that kept our subscriptions finds us again.
    pub(super) fn routing_id(&self) -> [u8; 33] {
        let mut id = [b'L'; 33];
        if let Some((_, key)) = id.split_first_mut() {
            key.copy_from_slice(&self.public);
        }
        id
    }
}

/// Neither half: the public one tells which relay this is.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// What is needed until INITIATE is sent; then the ephemeral secret is gone.
pub(super) struct Handshake {
    identity: Arc<Identity>,
    server_key: [u8; 32],
    ephemeral_secret: Secret<[u8; 32]>,
    ephemeral_public: [u8; 32],
    vouch_nonce: [u8; 16],
    with_server_key: CurveBox,
}

impl Handshake {
    pub fn new(
        identity: Arc<Identity>,
        server_key: [u8; 32],
        ephemeral_secret: Secret<[u8; 32]>,
        vouch_nonce: [u8; 16],
    ) -> Self {
        let ephemeral_public = x25519_public(&ephemeral_secret);
        let with_server_key = CurveBox::new(&server_key, &ephemeral_secret);
        Self {
            identity,
            server_key,
            ephemeral_secret,
            ephemeral_public,
            vouch_nonce,
            with_server_key,
        }
    }

    pub fn put_hello(&self, out: &mut BytesMut) {
        let mut zeros = [0; 64];
        let tag = self
            .with_server_key
            .seal_in_place(&short_nonce(b"CurveZMQHELLO---", 1), &mut zeros);
        let mut data = Vec::with_capacity(194);
        data.put_slice(&[1, 0]);
        data.put_bytes(0, 72);
        data.put_slice(&self.ephemeral_public);
        data.put_u64(1);
        data.put_slice(&tag);
        data.put_slice(&zeros);
        frames::put_command(out, b"HELLO", &data);
    }

    /// Opens WELCOME and answers it with INITIATE.
    pub fn initiate(&self, welcome: &[u8], out: &mut BytesMut) -> Result<Session, LinkFault> {
        let (nonce, rest) = welcome.split_first_chunk::<16>().ok_or(LinkFault::MalformedCommand)?;
        let (tag, ciphertext) = rest.split_first_chunk::<16>().ok_or(LinkFault::MalformedCommand)?;
        let mut plain: [u8; 128] = ciphertext.try_into().map_err(|_| LinkFault::MalformedCommand)?;
        if !self
            .with_server_key
            .open_in_place(&long_nonce(b"WELCOME-", nonce), &mut plain, tag)
        {
            return Err(LinkFault::HandshakeBoxNotOpened);
        }
        let (server_ephemeral, cookie) = plain.split_first_chunk::<32>().ok_or(LinkFault::MalformedCommand)?;
        let shared = CurveBox::new(server_ephemeral, &self.ephemeral_secret);

        let mut vouch = [0; 64];
        if let Some((ours, theirs)) = vouch.split_first_chunk_mut::<32>() {
            *ours = self.ephemeral_public;
            theirs.copy_from_slice(&self.server_key);
        }
        let vouch_tag = CurveBox::new(server_ephemeral, &self.identity.secret)
            .seal_in_place(&long_nonce(b"VOUCH---", &self.vouch_nonce), &mut vouch);

        let mut sealed = Vec::with_capacity(256);
        sealed.put_slice(&self.identity.public);
        sealed.put_slice(&self.vouch_nonce);
        sealed.put_slice(&vouch_tag);
        sealed.put_slice(&vouch);
        sealed.put_slice(&frames::metadata(b"DEALER", &self.identity.routing_id()));
        let tag = shared.seal_in_place(&short_nonce(b"CurveZMQINITIATE", 2), &mut sealed);

        let mut data = Vec::with_capacity(384);
        data.put_slice(cookie);
        data.put_u64(2);
        data.put_slice(&tag);
        data.put_slice(&sealed);
        frames::put_command(out, b"INITIATE", &data);
        Ok(Session {
            shared,
            next_nonce: 3,
            heard_nonce: 0,
        })
    }
}

/// The keys and counters of an open connection.
pub(super) struct Session {
    shared: CurveBox,
    next_nonce: u64,
    /// The highest nonce of the listener so far; the next must be above it.
    heard_nonce: u64,
}

impl Session {
    /// Opens READY and checks the metadata in it.
    pub fn ready(&mut self, data: &mut [u8]) -> Result<(), LinkFault> {
        let (nonce, rest) = data.split_first_chunk_mut::<8>().ok_or(LinkFault::MalformedCommand)?;
        let (tag, metadata) = rest.split_first_chunk_mut::<16>().ok_or(LinkFault::MalformedCommand)?;
        let nonce = u64::from_be_bytes(*nonce);
        if !self
            .shared
            .open_in_place(&short_nonce(b"CurveZMQREADY---", nonce), metadata, tag)
        {
            return Err(LinkFault::HandshakeBoxNotOpened);
        }
        self.heard_nonce = nonce;
        frames::check_metadata(metadata)
    }

    /// Seals one part. The frame is no command outside: a listener drops it silently if it is marked as one.
    pub fn put_message(&mut self, out: &mut BytesMut, inner_flags: u8, parts: &[&[u8]]) {
        let plain_length: usize = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        out.reserve(9 + MESSAGE_OVERHEAD + plain_length);
        frames::put_header(out, 0, MESSAGE_OVERHEAD - 1 + plain_length);
        out.put_slice(MESSAGE);
        out.put_u64(self.next_nonce);
        let nonce = short_nonce(b"CurveZMQMESSAGEC", self.next_nonce);
        self.next_nonce += 1;
        let sealed_at = out.len();
        out.put_bytes(0, 16);
        out.put_u8(inner_flags);
        parts.iter().for_each(|part| out.put_slice(part));
        if let Some((tag, plain)) = out
            .get_mut(sealed_at..)
            .and_then(|tail| tail.split_first_chunk_mut::<16>())
        {
            *tag = self.shared.seal_in_place(&nonce, plain);
        }
    }

    /// Opens one MESSAGE in place. Returns the inner flags; the payload is what follows `MESSAGE_OVERHEAD`.
    pub fn open_message(&mut self, body: &mut [u8]) -> Result<u8, LinkFault> {
        let (name, rest) = body.split_first_chunk_mut::<8>().ok_or(LinkFault::MalformedCommand)?;
        if name != MESSAGE {
            return Err(LinkFault::UnexpectedFrame);
        }
        let (nonce, rest) = rest.split_first_chunk_mut::<8>().ok_or(LinkFault::MalformedCommand)?;
        let (tag, plain) = rest.split_first_chunk_mut::<16>().ok_or(LinkFault::MalformedCommand)?;
        if plain.is_empty() {
            return Err(LinkFault::MalformedCommand);
        }
        let nonce = u64::from_be_bytes(*nonce);
        if nonce <= self.heard_nonce {
            return Err(LinkFault::NonceNotGrowing);
        }
        if !self
            .shared
            .open_in_place(&short_nonce(b"CurveZMQMESSAGES", nonce), plain, tag)
        {
            return Err(LinkFault::MessageBoxNotOpened);
        }
        self.heard_nonce = nonce;
        let flags = plain.first().copied().ok_or(LinkFault::MalformedCommand)?;
        if flags & !(INNER_MORE | INNER_COMMAND) != 0 || flags == INNER_MORE | INNER_COMMAND {
            return Err(LinkFault::ReservedFlags);
        }
        Ok(flags)
    }
}

/// Bytes of a MESSAGE body before the payload: name, nonce, tag, inner flags.
pub(super) const MESSAGE_OVERHEAD: usize = 33;
pub(super) const INNER_MORE: u8 = 1;
/// Inside of a box the command bit is another than outside.
pub(super) const INNER_COMMAND: u8 = 2;
const MESSAGE: &[u8; 8] = b"\x07MESSAGE";

pub(super) fn short_nonce(prefix: &[u8; 16], counter: u64) -> [u8; 24] {
    let mut nonce = [0; 24];
    if let Some((head, tail)) = nonce.split_first_chunk_mut::<16>() {
        *head = *prefix;
        tail.copy_from_slice(&counter.to_be_bytes());
    }
    nonce
}

pub(super) fn long_nonce(prefix: &[u8; 8], random: &[u8; 16]) -> [u8; 24] {
    let mut nonce = [0; 24];
    if let Some((head, tail)) = nonce.split_first_chunk_mut::<8>() {
        *head = *prefix;
        tail.copy_from_slice(random);
    }
    nonce
}
