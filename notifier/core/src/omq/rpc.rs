//! What OxenMQ's messages mean: HI and HELLO, requests and their replies, pushes.
//!
//! In: requests of the watcher, a node's messages, time. Out: replies, failures, pushes, and bytes for the node.
//! Never: serves a request of a node, or keeps more requests open than its limit.

use super::connection::{Connection, Event, Limits, Mechanism};
use super::curve::Identity;
use super::fault::LinkFault;
use bytes::Bytes;
use quietline_shared::redact::Secret;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Fresh random bytes for one connection.
pub struct Entropy {
    pub ephemeral_secret: Secret<[u8; 32]>,
    pub vouch_nonce: [u8; 16],
    /// Tells our tags from those of an earlier connection: a node may answer an old request on the new one, because
    /// both have the same name.
    pub tag_prefix: [u8; 7],
}

#[derive(Clone, Copy, Debug)]
pub struct RpcLimits {
    pub connection: Limits,
    /// HELLO must have come in this time from the start.
    pub hello_timeout: Duration,
    pub request_timeout: Duration,
    /// Requests without a reply at once.
    pub max_outstanding: usize,
    /// Largest data part of a push that is handed out, bytes. A larger one is dropped and counted.
    pub max_push: usize,
}

impl Default for RpcLimits {
    fn default() -> Self {
        Self {
            connection: Limits::default(),
            hello_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(15),
            max_outstanding: 64,
            max_push: 128 << 10,
        }
    }
}

#[derive(PartialEq, Eq)]
pub enum RpcEvent {
    /// The node said HELLO.
    Up,
    Reply {
        request: u64,
        result: Result<Vec<Bytes>, RequestFailure>,
    },
    /// One data part of a `notify.message`.
    Notify(Bytes),
    /// A new block; its height and hash are not needed.
    BlockNotify,
}

/// What a node sends is full of accounts: lengths only.
impl std::fmt::Debug for RpcEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Up => f.write_str("Up"),
            Self::Reply { request, result } => {
                let parts = result.as_ref().map(Vec::len);
                write!(f, "Reply {{ {request}, parts: {parts:?} }}")
            }
            Self::Notify(part) => write!(f, "Notify({} bytes)", part.len()),
            Self::BlockNotify => f.write_str("BlockNotify"),
        }
    }
}

/// Why a request has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RequestFailure {
    #[error("no reply came in time")]
    TimedOut,
    #[error("the node does not allow us this command")]
    Forbidden,
    #[error("the node allows this command to service nodes only")]
    ForbiddenServiceNode,
    #[error("the node is no active service node")]
    NotAServiceNode,
    #[error("the node does not know this command")]
    UnknownCommand,
    #[error("the node found no tag")]
    NoReplyTag,
}

impl RequestFailure {
    pub fn label(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Forbidden => "forbidden",
            Self::ForbiddenServiceNode => "forbidden_service_node",
            Self::NotAServiceNode => "not_a_service_node",
            Self::UnknownCommand => "unknown_command",
            Self::NoReplyTag => "no_reply_tag",
        }
    }

    fn of(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"FORBIDDEN" => Self::Forbidden,
            b"FORBIDDEN_SN" => Self::ForbiddenServiceNode,
            b"NOT_A_SERVICE_NODE" => Self::NotAServiceNode,
            b"UNKNOWNCOMMAND" => Self::UnknownCommand,
            b"NO_REPLY_TAG" => Self::NoReplyTag,
            _ => return None,
        })
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    #[error("the handshake is not over")]
    NotOpen,
    #[error("too many requests wait for their replies")]
    TooManyOutstanding,
}

pub struct Rpc {
    connection: Connection,
    limits: RpcLimits,
    tag_prefix: [u8; 7],
    next_number: u64,
    /// In the order they were sent, which is also the order of their deadlines.
    outstanding: VecDeque<Outstanding>,
    events: VecDeque<RpcEvent>,
    pushes_too_large: u64,
    hello_until: Option<Instant>,
    fault: Option<LinkFault>,
}

struct Outstanding {
    number: u64,
    request: u64,
    command: &'static str,
    until: Instant,
}

impl Rpc {
    pub fn new(
        mechanism: Mechanism,
        identity: Arc<Identity>,
        entropy: Entropy,
        limits: RpcLimits,
        now: Instant,
    ) -> Self {
        let Entropy {
            ephemeral_secret,
            vouch_nonce,
            tag_prefix,
        } = entropy;
        Self {
            connection: Connection::new(
                mechanism,
                identity,
                ephemeral_secret,
                vouch_nonce,
                limits.connection,
                now,
            ),
            limits,
            tag_prefix,
            next_number: 0,
            outstanding: VecDeque::new(),
            events: VecDeque::new(),
            pushes_too_large: 0,
            hello_until: Some(now + limits.hello_timeout),
            fault: None,
        }
    }

    /// Takes in what was read; `input` is spoilt afterwards. What was whole before a fault is still given out.
    pub fn handle_bytes(&mut self, input: &mut [u8], now: Instant) -> Result<(), LinkFault> {
        let taken = match self.fault {
            None => self.connection.handle_bytes(input, now),
            Some(fault) => return Err(fault),
        };
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::HandshakeDone => {
                    let _ = self.connection.send_message(&[b"HI"]);
                }
                Event::Message(parts) => self.take_message(parts)?,
            }
        }
        taken
    }

    pub fn poll_event(&mut self) -> Option<RpcEvent> {
        let event = self.events.pop_front();
        if self.events.is_empty() && self.events.capacity() > 16 {
            self.events = VecDeque::new();
        }
        event
    }

    /// Data parts dropped since the last call because they are beyond `max_push`.
    pub const fn take_pushes_too_large(&mut self) -> u64 {
        std::mem::replace(&mut self.pushes_too_large, 0)
    }

    /// Sends a request. It may go before HELLO has come: nodes serve it all the same.
    pub fn request(
        &mut self,
        request: u64,
        command: &'static str,
        body: Option<&[u8]>,
        now: Instant,
    ) -> Result<(), RequestRefused> {
        if !self.connection.is_open() {
            return Err(RequestRefused::NotOpen);
        }
        if self.outstanding.len() >= self.limits.max_outstanding {
            return Err(RequestRefused::TooManyOutstanding);
        }
        let number = self.next_number;
        self.next_number += 1;
        let tag = self.tag(number);
        let _ = match body {
            Some(body) => self.connection.send_message(&[command.as_bytes(), &tag, body]),
            None => self.connection.send_message(&[command.as_bytes(), &tag]),
        };
        self.outstanding.push_back(Outstanding {
            number,
            request,
            command,
            until: now + self.limits.request_timeout,
        });
        Ok(())
    }

    /// True while `request` would take one more.
    pub fn takes_requests(&self) -> bool {
        self.connection.is_open() && self.outstanding.len() < self.limits.max_outstanding
    }

    pub fn output(&self) -> &[u8] {
        self.connection.output()
    }

    pub fn output_written(&mut self, count: usize) {
        self.connection.output_written(count);
    }

    pub fn set_reading_paused(&mut self, paused: bool, now: Instant) {
        self.connection.set_reading_paused(paused, now);
    }

    pub fn next_deadline(&self) -> Instant {
        let oldest = self.outstanding.front().map(|oldest| oldest.until);
        [self.hello_until, oldest]
            .into_iter()
            .flatten()
            .fold(self.connection.next_deadline(), Instant::min)
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), LinkFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.connection.handle_timeout(now)?;
        while let Some(oldest) = self.outstanding.pop_front_if(|oldest| oldest.until <= now) {
            self.finish(oldest.request, Err(RequestFailure::TimedOut));
        }
        if self.hello_until.is_some_and(|until| until <= now) {
            return Err(self.fail(LinkFault::NoHello));
        }
        Ok(())
    }

    /// The peer closed its side.
    pub fn handle_end(&mut self) -> LinkFault {
        let fault = match self.connection.handle_end() {
            LinkFault::Closed if self.hello_until.is_some() => LinkFault::ClosedBeforeHello,
            fault => fault,
        };
        self.fail(fault)
    }

    pub fn held_bytes(&self) -> usize {
        self.connection.held_bytes()
    }

    fn take_message(&mut self, mut parts: Vec<Bytes>) -> Result<(), LinkFault> {
        let word = parts.first().map(Bytes::as_ref).unwrap_or_default();
        match word {
            b"notify.message" => {
                for part in parts.into_iter().skip(1) {
                    if part.len() <= self.limits.max_push {
                        self.events.push_back(RpcEvent::Notify(part));
                    } else {
                        self.pushes_too_large = self.pushes_too_large.saturating_add(1);
                    }
                }
            }
            b"notify.block" => self.events.push_back(RpcEvent::BlockNotify),
            b"REPLY" => {
                // A reply that came too late, or twice, has no request any more.
                if let Some(request) = parts.get(1).and_then(|tag| self.take_outstanding(tag)) {
                    parts.drain(..2);
                    self.finish(request, Ok(parts));
                }
            }
            b"HELLO" => {
                if self.hello_until.take().is_some() {
                    self.events.push_back(RpcEvent::Up);
                }
            }
            b"BYE" => return Err(self.fail(LinkFault::Bye)),
            b"HI" => {}
            word => match RequestFailure::of(word) {
                Some(failure) => {
                    if let Some(request) = self.take_refused(&parts) {
                        self.finish(request, Err(failure));
                    }
                }
                None if word.len() <= LONGEST_COMMAND => {
                    self.connection.send_answer(&[b"UNKNOWNCOMMAND", word]);
                }
                None => {}
            },
        }
        Ok(())
    }

    /// The request that an error word is about: `[word, REPLY, tag]`, or `[word, command]` without the tag, which
    /// then is the oldest of that command.
    fn take_refused(&mut self, parts: &[Bytes]) -> Option<u64> {
        match parts {
            [_, reply, tag, ..] if reply.as_ref() == b"REPLY" => self.take_outstanding(tag),
            [_, command, ..] => {
                let position = self
                    .outstanding
                    .iter()
                    .position(|each| each.command.as_bytes() == command.as_ref())?;
                self.outstanding.remove(position).map(|each| each.request)
            }
            _ => None,
        }
    }

    fn take_outstanding(&mut self, tag: &[u8]) -> Option<u64> {
        let (prefix, number) = tag.split_first_chunk::<7>()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        if *prefix != self.tag_prefix {
            return None;
        }
        let position = self
            .outstanding
            .binary_search_by_key(&number, |each| each.number)
            .ok()?;
        self.outstanding.remove(position).map(|each| each.request)
    }

    fn finish(&mut self, request: u64, result: Result<Vec<Bytes>, RequestFailure>) {
        if self.outstanding.is_empty() {
            self.outstanding = VecDeque::new();
        }
        self.events.push_back(RpcEvent::Reply { request, result });
    }

    /// 15 bytes, as long as those of OxenMQ itself; never empty, which would abort a debug build of a listener.
    fn tag(&self, number: u64) -> [u8; 15] {
        let mut tag = [0; 15];
        if let Some((prefix, counter)) = tag.split_first_chunk_mut::<7>() {
            *prefix = self.tag_prefix;
            counter.copy_from_slice(&number.to_be_bytes());
        }
        tag
    }

    fn fail(&mut self, fault: LinkFault) -> LinkFault {
        *self.fault.get_or_insert(fault)
    }
}

/// Longest command that is answered with UNKNOWNCOMMAND: a category of 50 and a name of 200 characters with the dot.
const LONGEST_COMMAND: usize = 251;

#[cfg(test)]
mod tests;
