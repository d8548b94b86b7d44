//! One ZMTP connection, from the greeting to its end: a client's DEALER, CURVE or NULL.
//!
//! In: the listener's bytes, messages to send, time. Out: bytes for the listener, whole messages, at most one fault.
//! Never: reads a clock, or buffers a frame whose announced length is beyond the limit.
//!
//! A connection that waits holds no buffer: frames that come whole are opened where they were read, and what has been
//! written is freed.

use super::curve::{Handshake, INNER_COMMAND, INNER_MORE, Identity, MESSAGE_OVERHEAD, Session};
use super::fault::LinkFault;
use super::frames::{self, GREETING_LENGTH, HeaderRead, MORE, MechanismName};
use bytes::{Buf, Bytes, BytesMut};
use quietline_shared::redact::Secret;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How the link is protected.
#[derive(Clone, Copy)]
pub enum Mechanism {
    /// In clear: for a Unix socket or the loopback.
    Null,
    Curve {
        server_key: [u8; 32],
    },
}

impl Mechanism {
    pub(super) fn name(&self) -> MechanismName {
        match self {
            Self::Null => frames::NULL_NAME,
            Self::Curve { .. } => frames::CURVE_NAME,
        }
    }
}

/// What a peer may make us hold or wait for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest frame body as received, bytes; under CURVE a payload is 33 bytes smaller.
    pub max_frame: usize,
    /// Largest message, all parts together, bytes.
    pub max_message: usize,
    pub max_parts: usize,
    /// Greeting and handshake must be over in this time.
    pub handshake_timeout: Duration,
    /// Our own PING goes out after this time without a byte from the peer.
    pub ping_after: Duration,
    /// The peer is dead after this further time without a byte.
    pub dead_after: Duration,
    /// A frame that was begun must be whole in this time, or a trickle of bytes would pass for life.
    pub frame_timeout: Duration,
    /// As `frame_timeout`, for all parts of a message from the end of its first.
    pub message_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_frame: 10 << 20,
            max_message: 10 << 20,
            max_parts: 16,
            handshake_timeout: Duration::from_secs(10),
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(60),
            message_timeout: Duration::from_secs(60),
        }
    }
}

#[derive(PartialEq, Eq)]
pub enum Event {
    /// Messages can be sent from now on.
    HandshakeDone,
    /// The parts of one message, at least one.
    Message(Vec<Bytes>),
}

/// A message is full of accounts: the number of its parts only.
impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::HandshakeDone => f.write_str("HandshakeDone"),
            Self::Message(parts) => write!(f, "Message({} parts)", parts.len()),
        }
    }
}

pub struct Connection {
    stage: Stage,
    limits: Limits,
    /// The begun greeting or frame; empty between frames.
    partial: Vec<u8>,
    /// The parts of the begun message.
    parts: Vec<Bytes>,
    parts_size: usize,
    output: BytesMut,
    /// Answers that the peer made us write since it last took all our output.
    answers: u8,
    events: VecDeque<Event>,
    handshake_until: Instant,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    partial_since: Instant,
    parts_since: Instant,
    paused: bool,
    fault: Option<LinkFault>,
}

enum Stage {
    Greeting(Box<Opening>),
    Welcome(Box<Handshake>),
    CurveReady(Box<Session>),
    NullReady,
    Open(Option<Box<Session>>),
}

/// What the handshake will need.
struct Opening {
    mechanism: MechanismName,
    routing_id: [u8; 33],
    curve: Option<Handshake>,
}

/// What a frame amounted to.
enum Taken {
    Nothing,
    /// A part of a message starts here in the frame and reaches to its end.
    Part {
        from: usize,
        more: bool,
    },
}

impl Connection {
    /// `ephemeral_secret` and `vouch_nonce` are fresh random bytes; NULL does not use them.
    pub fn new(
        mechanism: Mechanism,
        identity: Arc<Identity>,
        ephemeral_secret: Secret<[u8; 32]>,
        vouch_nonce: [u8; 16],
        limits: Limits,
        now: Instant,
    ) -> Self {
        let routing_id = identity.routing_id();
        let name = mechanism.name();
        let curve = match mechanism {
            Mechanism::Null => None,
            Mechanism::Curve { server_key } => {
                Some(Handshake::new(identity, server_key, ephemeral_secret, vouch_nonce))
            }
        };
        let mut output = BytesMut::with_capacity(GREETING_LENGTH);
        frames::put_greeting(&mut output, name, routing_id.len() as u8);
        Self {
            stage: Stage::Greeting(Box::new(Opening {
                mechanism: name,
                routing_id,
                curve,
            })),
            limits,
            partial: Vec::new(),
            parts: Vec::new(),
            parts_size: 0,
            output,
            answers: 0,
            events: VecDeque::new(),
            handshake_until: now + limits.handshake_timeout,
            heard_at: now,
            pinged_at: None,
            partial_since: now,
            parts_since: now,
            paused: false,
            fault: None,
        }
    }

    /// Takes in what was read, in pieces of any size. Boxes are opened in place: `input` is spoilt afterwards.
    ///
    /// After a fault nothing is taken in any more; what was whole before it is still given out.
    pub fn handle_bytes(&mut self, input: &mut [u8], now: Instant) -> Result<(), LinkFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if !input.is_empty() {
            self.heard_at = now;
            self.pinged_at = None;
        }
        self.take_in(input, now).map_err(|fault| self.fail(fault))
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() && self.events.capacity() > 16 {
            self.events = VecDeque::new();
        }
        event
    }

    /// Sends one message once the handshake is done; false before.
    #[must_use]
    pub fn send_message(&mut self, parts: &[&[u8]]) -> bool {
        let Stage::Open(session) = &mut self.stage else {
            return false;
        };
        let last = parts.len().saturating_sub(1);
        for (number, part) in parts.iter().enumerate() {
            let more = number < last;
            match session {
                Some(session) => session.put_message(&mut self.output, if more { INNER_MORE } else { 0 }, &[part]),
                None => {
                    self.output.reserve(9 + part.len());
                    frames::put_header(&mut self.output, if more { MORE } else { 0 }, part.len());
                    self.output.extend_from_slice(part);
                }
            }
        }
        true
    }

    /// Like `send_message`, for what answers the peer. A peer that asks and does not read is not answered for ever.
    pub(super) fn send_answer(&mut self, parts: &[&[u8]]) {
        if self.may_answer() {
            let _ = self.send_message(parts);
        }
    }

    /// What is to be written, in order.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The first `count` bytes of the output were written.
    pub fn output_written(&mut self, count: usize) {
        self.output.advance(count.min(self.output.len()));
        if self.output.is_empty() {
            self.answers = 0;
            self.output = BytesMut::new();
        }
    }

    /// While reading is paused the peer's silence is our own doing: it is pinged so that it keeps us, and cannot die.
    pub fn set_reading_paused(&mut self, paused: bool, now: Instant) {
        if self.paused && !paused {
            self.heard_at = now;
            self.pinged_at = None;
            self.partial_since = now;
            self.parts_since = now;
        }
        self.paused = paused;
    }

    pub fn next_deadline(&self) -> Instant {
        if !self.is_open() {
            return self.handshake_until;
        }
        let life = match self.pinged_at {
            None => self.heard_at + self.limits.ping_after,
            Some(pinged_at) if self.paused => pinged_at + self.limits.ping_after,
            Some(pinged_at) => pinged_at + self.limits.dead_after,
        };
        [self.frame_until(), self.message_until()]
            .into_iter()
            .flatten()
            .fold(life, Instant::min)
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), LinkFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if !self.is_open() {
            let late = now >= self.handshake_until;
            return if late {
                Err(self.fail(LinkFault::HandshakeTimeout))
            } else {
                Ok(())
            };
        }
        if self.frame_until().is_some_and(|until| now >= until) {
            return Err(self.fail(LinkFault::FrameStalled));
        }
        if self.message_until().is_some_and(|until| now >= until) {
            return Err(self.fail(LinkFault::MessageStalled));
        }
        match self.pinged_at {
            Some(pinged_at) if !self.paused => {
                if now >= pinged_at + self.limits.dead_after {
                    return Err(self.fail(LinkFault::PeerSilent));
                }
            }
            last => {
                if now >= last.unwrap_or(self.heard_at) + self.limits.ping_after {
                    self.pinged_at = Some(now);
                    // Time to live 0 and no context, as libzmq's own.
                    self.put_command(b"PING", &[0, 0]);
                }
            }
        }
        Ok(())
    }

    /// The peer closed its side: what that means depends on how far it came.
    pub fn handle_end(&mut self) -> LinkFault {
        let fault = match self.stage {
            Stage::Greeting(_) => LinkFault::ClosedInGreeting,
            Stage::Welcome(_) | Stage::CurveReady(_) | Stage::NullReady => LinkFault::ClosedInHandshake,
            Stage::Open(_) => LinkFault::Closed,
        };
        self.fail(fault)
    }

    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Bytes of the peer that wait for their frame or message to be whole.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity() + self.parts_size
    }

    fn take_in(&mut self, mut input: &mut [u8], now: Instant) -> Result<(), LinkFault> {
        while !input.is_empty() {
            if self.partial.is_empty() {
                let needed = self.needed(input)?;
                if let Need::Whole(length) = needed
                    && input.len() >= length
                    && let Some((unit, rest)) = std::mem::take(&mut input).split_at_mut_checked(length)
                {
                    if let Taken::Part { from, more } = self.take_unit(unit)? {
                        self.take_part(Bytes::copy_from_slice(unit.get(from..).unwrap_or_default()), more, now);
                    }
                    input = rest;
                    continue;
                }
                self.partial_since = now;
            }
            input = self.take_piece(input, now)?;
        }
        Ok(())
    }

    /// Adds to the begun unit what it lacks, and takes it when it is whole. Returns the rest.
    fn take_piece<'a>(&mut self, input: &'a mut [u8], now: Instant) -> Result<&'a mut [u8], LinkFault> {
        let needed = self.needed(&self.partial)?;
        let missing = needed.length().saturating_sub(self.partial.len());
        let count = missing.min(input.len());
        let (piece, rest) = input.split_at_mut_checked(count).unwrap_or_default();
        self.grow_partial(count, needed.length());
        self.partial.extend_from_slice(piece);
        // The header may have become whole with this piece, so the question is asked anew.
        if let Need::Whole(length) = self.needed(&self.partial)?
            && self.partial.len() == length
        {
            let mut unit = std::mem::take(&mut self.partial);
            if let Taken::Part { from, more } = self.take_unit(&mut unit)? {
                // The buffer is as large as the frame, so it can become the part as it is.
                let mut part = Bytes::from(unit);
                part.advance(from.min(part.len()));
                self.take_part(part, more, now);
            }
        }
        Ok(rest)
    }

    /// Memory follows what came, not what was announced, and never exceeds the unit.
    fn grow_partial(&mut self, count: usize, unit_length: usize) {
        let wanted = self.partial.len() + count;
        if wanted > self.partial.capacity() {
            let target = wanted.max(2 * self.partial.len()).min(unit_length).max(wanted);
            self.partial.reserve_exact(target - self.partial.len());
        }
    }

    /// How long the unit is that starts with these bytes; all refusals that need only its header happen here.
    fn needed(&self, bytes: &[u8]) -> Result<Need, LinkFault> {
        if let Stage::Greeting(opening) = &self.stage {
            frames::check_greeting(bytes, &opening.mechanism)?;
            return Ok(Need::Whole(GREETING_LENGTH));
        }
        let header = match frames::read_header(bytes)? {
            HeaderRead::Whole(header) => header,
            HeaderRead::Needs(length) => return Ok(Need::Header(length)),
        };
        let limit = if self.is_open() {
            self.limits.max_frame
        } else {
            self.limits.max_frame.min(HANDSHAKE_FRAME)
        };
        let too_large = LinkFault::FrameTooLarge {
            length: header.body_length,
            limit,
        };
        let body_length = usize::try_from(header.body_length).map_err(|_| too_large)?;
        if body_length > limit {
            return Err(too_large);
        }
        if self.parts_size + body_length.saturating_sub(MESSAGE_OVERHEAD) > self.limits.max_message {
            return Err(LinkFault::MessageTooLarge {
                limit: self.limits.max_message,
            });
        }
        Ok(Need::Whole(header.length + body_length))
    }

    /// Takes a whole greeting or frame.
    fn take_unit(&mut self, unit: &mut [u8]) -> Result<Taken, LinkFault> {
        if let Stage::Greeting(opening) = &mut self.stage {
            // The mechanism was compared while the greeting came in.
            self.stage = match opening.curve.take() {
                Some(handshake) => {
                    handshake.put_hello(&mut self.output);
                    Stage::Welcome(Box::new(handshake))
                }
                None => {
                    let metadata = frames::metadata(b"DEALER", &opening.routing_id);
                    frames::put_command(&mut self.output, b"READY", &metadata);
                    Stage::NullReady
                }
            };
            return Ok(Taken::Nothing);
        }
        let HeaderRead::Whole(header) = frames::read_header(unit)? else {
            return Err(LinkFault::MalformedCommand);
        };
        let body = unit.get_mut(header.length..).ok_or(LinkFault::MalformedCommand)?;
        match &mut self.stage {
            Stage::Open(Some(session)) => {
                if header.command || header.more {
                    return Err(LinkFault::UnexpectedFrame);
                }
                let flags = session.open_message(body)?;
                let payload = body.get(MESSAGE_OVERHEAD..).ok_or(LinkFault::MalformedCommand)?;
                if flags & INNER_COMMAND != 0 {
                    return self.take_command(payload);
                }
                self.check_part(payload.len())?;
                Ok(Taken::Part {
                    from: header.length + MESSAGE_OVERHEAD,
                    more: flags & INNER_MORE != 0,
                })
            }
            Stage::Open(None) if header.command => self.take_command(body),
            Stage::Open(None) => {
                let length = body.len();
                self.check_part(length)?;
                Ok(Taken::Part {
                    from: header.length,
                    more: header.more,
                })
            }
            _ if !header.command => Err(LinkFault::UnexpectedFrame),
            _ => self.take_handshake(body),
        }
    }

    fn take_handshake(&mut self, body: &mut [u8]) -> Result<Taken, LinkFault> {
        let (name, data) = frames::split_command(body)?;
        if name == b"ERROR" {
            return Err(LinkFault::RefusedByPeer {
                status: frames::error_status(data)?,
            });
        }
        match &mut self.stage {
            Stage::Welcome(handshake) if name == b"WELCOME" => {
                let session = handshake.initiate(data, &mut self.output)?;
                self.stage = Stage::CurveReady(Box::new(session));
                return Ok(Taken::Nothing);
            }
            Stage::NullReady if name == b"READY" => {
                frames::check_metadata(data)?;
                self.stage = Stage::Open(None);
            }
            Stage::CurveReady(_) if name == b"READY" => {
                let data_at = 1 + name.len();
                let data = body.get_mut(data_at..).unwrap_or_default();
                let Stage::CurveReady(mut session) = std::mem::replace(&mut self.stage, Stage::NullReady) else {
                    return Err(LinkFault::UnexpectedFrame);
                };
                session.ready(data)?;
                self.stage = Stage::Open(Some(session));
            }
            _ => return Err(LinkFault::UnexpectedFrame),
        }
        self.events.push_back(Event::HandshakeDone);
        Ok(Taken::Nothing)
    }

    /// A command may stand between the parts of a message. Those that we do not know are for others.
    fn take_command(&mut self, body: &[u8]) -> Result<Taken, LinkFault> {
        match frames::split_command(body)? {
            (b"PING", data) => {
                let (_time_to_live, context) = data.split_first_chunk::<2>().ok_or(LinkFault::MalformedCommand)?;
                if context.len() > PING_CONTEXT {
                    return Err(LinkFault::MalformedCommand);
                }
                if self.may_answer() {
                    self.put_command(b"PONG", context);
                }
            }
            (b"ERROR", data) => {
                return Err(LinkFault::RefusedByPeer {
                    status: frames::error_status(data)?,
                });
            }
            _ => {}
        }
        Ok(Taken::Nothing)
    }

    fn check_part(&self, length: usize) -> Result<(), LinkFault> {
        if self.parts.len() >= self.limits.max_parts {
            return Err(LinkFault::TooManyParts {
                limit: self.limits.max_parts,
            });
        }
        if self.parts_size + length > self.limits.max_message {
            return Err(LinkFault::MessageTooLarge {
                limit: self.limits.max_message,
            });
        }
        Ok(())
    }

    fn take_part(&mut self, part: Bytes, more: bool, now: Instant) {
        self.parts_size += part.len();
        if self.parts.is_empty() {
            self.parts_since = now;
            self.parts.reserve_exact(2);
        }
        self.parts.push(part);
        if !more {
            self.parts_size = 0;
            self.events.push_back(Event::Message(std::mem::take(&mut self.parts)));
        }
    }

    fn put_command(&mut self, name: &[u8], data: &[u8]) {
        match &mut self.stage {
            Stage::Open(Some(session)) => {
                session.put_message(&mut self.output, INNER_COMMAND, &[&[name.len() as u8], name, data]);
            }
            Stage::Open(None) => frames::put_command(&mut self.output, name, data),
            _ => {}
        }
    }

    fn may_answer(&mut self) -> bool {
        self.answers = self.answers.saturating_add(1);
        self.answers <= ANSWERS_UNREAD
    }

    fn frame_until(&self) -> Option<Instant> {
        (!self.paused && !self.partial.is_empty()).then(|| self.partial_since + self.limits.frame_timeout)
    }

    fn message_until(&self) -> Option<Instant> {
        (!self.paused && !self.parts.is_empty()).then(|| self.parts_since + self.limits.message_timeout)
    }

    /// The first fault stays the fault.
    fn fail(&mut self, fault: LinkFault) -> LinkFault {
        self.partial = Vec::new();
        self.parts = Vec::new();
        self.parts_size = 0;
        *self.fault.get_or_insert(fault)
    }
}

#[derive(Clone, Copy)]
enum Need {
    Header(usize),
    Whole(usize),
}

impl Need {
    fn length(self) -> usize {
        match self {
            Self::Header(length) | Self::Whole(length) => length,
        }
    }
}

/// Largest frame before the handshake is over, bytes. WELCOME is 168, READY as long as the peer's metadata.
const HANDSHAKE_FRAME: usize = 4096;
/// Longest context of a PING (RFC 37).
const PING_CONTEXT: usize = 16;
/// Answers (PONG, UNKNOWNCOMMAND) that may wait for a peer that does not read.
const ANSWERS_UNREAD: u8 = 64;

#[cfg(test)]
mod tests;
