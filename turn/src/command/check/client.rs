//! A TURN client for one trial: blocking, over UDP, TCP or TLS, with a deadline on everything.
//!
//! In: where a server is, a name and its password. Out: relayed addresses, and packets through them. Never: waits longer than it was told,
//! believes an answer that is not signed, or trusts a length that it was sent.

use super::link::{Link, LinkFault};
use crate::offer::Ticket;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use turn_core::attributes::{self, kind, read_xor_address, xor_address};
use turn_core::auth::{IntegrityKind, Key, is_signed, sign};
use turn_core::wire::{ChannelData, ChannelNumber, Class, Message, Method, TransactionId, Writer};

/// What keeps a client from what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientFault {
    #[error("no answer in time")]
    Silence,
    #[error("the connection was refused or ended")]
    Closed,
    #[error("what answers does not speak TURN")]
    NotTurn,
    /// The number of ERROR-CODE.
    #[error("refused with {0}")]
    Refused(u16),
    #[error("an answer is not signed with the password: something on the way changes packets")]
    Unsigned,
    #[error("the operating system gives no random bytes")]
    NoRandomness,
}

impl From<LinkFault> for ClientFault {
    fn from(fault: LinkFault) -> Self {
        match fault {
            LinkFault::Silence => Self::Silence,
            LinkFault::Closed => Self::Closed,
            LinkFault::NotOurs => Self::NotTurn,
        }
    }
}

pub struct Client {
    link: Link,
    username: String,
    password: Vec<u8>,
    pub realm: String,
    nonce: Vec<u8>,
    key: Option<Key>,
    patience: Duration,
}

/// What a success says.
struct Answer {
    class: Class,
    transaction: TransactionId,
    attributes: Vec<(u16, Vec<u8>)>,
    is_signed: bool,
}

impl Answer {
    fn read(bytes: &[u8], key: Option<&Key>) -> Option<Self> {
        let message = Message::parse(bytes).ok()?;
        let counted = attributes::read(&message).ok()?;
        Some(Self {
            class: message.class,
            transaction: message.transaction,
            is_signed: key.is_some_and(|key| is_signed(&message, &counted, key)),
            attributes: message
                .attributes()
                .map(|attribute| (attribute.kind, attribute.value.to_vec()))
                .collect(),
        })
    }

    fn get(&self, kind: u16) -> Option<&[u8]> {
        let (_, value) = self.attributes.iter().find(|(other, _)| *other == kind)?;
        Some(value)
    }

    fn address(&self, kind: u16) -> Option<SocketAddr> {
        read_xor_address(self.get(kind)?, &self.transaction)
    }

    fn error(&self) -> Option<u16> {
        let [_, _, class, number, ..] = self.get(kind::ERROR_CODE)? else {
            return None;
        };
        Some(u16::from(class & 7) * 100 + u16::from(*number))
    }
}

impl Client {
    pub fn new(link: Link, ticket: &Ticket, patience: Duration) -> Self {
        Self {
            username: ticket.username.clone(),
            password: ticket.password().as_bytes().to_vec(),
            ..Self::stranger(link, patience)
        }
    }

    /// Who has no name: for what everybody may ask.
    pub fn stranger(link: Link, patience: Duration) -> Self {
        Self {
            link,
            username: String::new(),
            password: Vec::new(),
            realm: String::new(),
            nonce: Vec::new(),
            key: None,
            patience,
        }
    }

    /// What the server sees us as.
    pub fn mapped(&mut self) -> Result<SocketAddr, ClientFault> {
        let answer = self.exchange(Method::Binding, |_, _| {}, false)?;
        answer.address(kind::XOR_MAPPED_ADDRESS).ok_or(ClientFault::NotTurn)
    }

    /// A relayed address of the server's.
    pub fn allocate(&mut self) -> Result<SocketAddr, ClientFault> {
        let udp = |writer: &mut Writer<'_>, _: &TransactionId| {
            writer.attribute(kind::REQUESTED_TRANSPORT, &[&[UDP, 0, 0, 0]]);
        };
        match self.exchange(Method::Allocate, udp, false) {
            Err(ClientFault::Refused(401)) if !self.nonce.is_empty() => {}
            Ok(_) => return Err(ClientFault::NotTurn),
            Err(fault) => return Err(fault),
        }
        let answer = self.asked(Method::Allocate, udp)?;
        answer.address(kind::XOR_RELAYED_ADDRESS).ok_or(ClientFault::NotTurn)
    }

    pub fn permit(&mut self, peer: SocketAddr) -> Result<(), ClientFault> {
        self.asked(Method::CreatePermission, |writer, transaction| {
            put_peer(writer, transaction, peer);
        })
        .map(|_| ())
    }

    pub fn bind(&mut self, channel: ChannelNumber, peer: SocketAddr) -> Result<(), ClientFault> {
        self.asked(Method::ChannelBind, |writer, transaction| {
            let [n0, n1] = channel.raw().to_be_bytes();
            writer.attribute(kind::CHANNEL_NUMBER, &[&[n0, n1, 0, 0]]);
            put_peer(writer, transaction, peer);
        })
        .map(|_| ())
    }

    /// Gives the relayed address back.
    pub fn release(&mut self) {
        let over = |writer: &mut Writer<'_>, _: &TransactionId| writer.attribute(kind::LIFETIME, &[&[0; 4]]);
        // The relay ends it by itself if this does not arrive.
        let _ = self.asked(Method::Refresh, over);
    }

    pub fn send(&mut self, channel: ChannelNumber, data: &[u8]) -> Result<(), ClientFault> {
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
        let mut frame = ChannelData::header(channel, length).to_vec();
        frame.extend_from_slice(data);
        // Over streams it must be; over UDP it may.
        frame.resize(frame.len().next_multiple_of(4), 0);
        Ok(self.link.send(&frame)?)
    }

    /// The data of the next packet that comes through the relayed address.
    pub fn arrival(&mut self, patience: Duration) -> Result<Vec<u8>, ClientFault> {
        let deadline = Instant::now() + patience;
        loop {
            let bytes = self.link.receive(deadline)?;
            if let Some(packet) = ChannelData::parse(&bytes) {
                return Ok(packet.data.to_vec());
            }
            let data = Message::parse(&bytes)
                .ok()
                .filter(|message| message.method == Method::Data);
            let data = data.and_then(|message| message.attributes().find(|attribute| attribute.kind == kind::DATA));
            if let Some(data) = data {
                return Ok(data.value.to_vec());
            }
        }
    }

    /// A signed request; once more if the nonce was over.
    fn asked(&mut self, method: Method, body: impl Fn(&mut Writer<'_>, &TransactionId)) -> Result<Answer, ClientFault> {
        match self.exchange(method, &body, true) {
            Err(ClientFault::Refused(438)) => self.exchange(method, &body, true),
            other => other,
        }
    }

    fn exchange(
        &mut self,
        method: Method,
        body: impl Fn(&mut Writer<'_>, &TransactionId),
        signed: bool,
    ) -> Result<Answer, ClientFault> {
        let mut transaction = TransactionId([0; 12]);
        getrandom::fill(&mut transaction.0).map_err(|_| ClientFault::NoRandomness)?;
        let mut buffer = [0; 1024];
        let mut writer = Writer::new(&mut buffer, method, Class::Request, transaction);
        body(&mut writer, &transaction);
        if signed {
            writer.attribute(kind::USERNAME, &[self.username.as_bytes()]);
            writer.attribute(kind::REALM, &[self.realm.as_bytes()]);
            writer.attribute(kind::NONCE, &[&self.nonce]);
            if let Some(key) = &self.key {
                sign(&mut writer, IntegrityKind::Sha1, key);
            }
        }
        let request = writer.finish().ok_or(ClientFault::NotTurn)?.to_vec();
        let answer = self.answer(&request, &transaction)?;
        if let (Some(realm), Some(nonce)) = (answer.get(kind::REALM), answer.get(kind::NONCE)) {
            self.nonce = nonce.to_vec();
            self.realm = String::from_utf8_lossy(realm).into_owned();
            let key = Key::of_client(self.username.as_bytes(), realm, &self.password);
            self.key = Some(key);
        }
        match (answer.class, answer.error()) {
            (Class::Success, _) if signed && !answer.is_signed => Err(ClientFault::Unsigned),
            (Class::Success, _) => Ok(answer),
            (Class::Error, Some(code)) => Err(ClientFault::Refused(code)),
            _ => Err(ClientFault::NotTurn),
        }
    }

    /// Sends, over UDP again and again (RFC 8489 §6.2.1), until its answer comes.
    fn answer(&mut self, request: &[u8], transaction: &TransactionId) -> Result<Answer, ClientFault> {
        let deadline = Instant::now() + self.patience;
        let mut pause = FIRST_PAUSE;
        loop {
            self.link.send(request)?;
            let next = match self.link.is_stream() {
                true => deadline,
                false => deadline.min(Instant::now() + pause),
            };
            pause *= 2;
            loop {
                match self.link.receive(next) {
                    Ok(bytes) => {
                        let answer = Answer::read(&bytes, self.key.as_ref());
                        // Anything else is an answer to what was asked before, or a packet.
                        if let Some(answer) = answer.filter(|answer| answer.transaction == *transaction) {
                            return Ok(answer);
                        }
                    }
                    Err(LinkFault::Silence) if next < deadline => break,
                    // Who speaks something else may wait for more of ours.
                    Err(LinkFault::Silence) if self.link.holds_half() => return Err(ClientFault::NotTurn),
                    Err(fault) => return Err(fault.into()),
                }
            }
        }
    }
}

fn put_peer(writer: &mut Writer<'_>, transaction: &TransactionId, peer: SocketAddr) {
    let (value, length) = xor_address(peer, transaction);
    writer.attribute(kind::XOR_PEER_ADDRESS, &[value.get(..length).unwrap_or_default()]);
}

/// Of the protocol registry.
const UDP: u8 = 17;
/// Before a request is sent again, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
