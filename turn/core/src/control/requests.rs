//! One handler per method. Each returns its refusal, or has queued its answer.

use super::outcome::{put_address, put_address_error, put_error};
use super::{Answer, Output, Refusal, Server, Stranger};
use crate::allocation::pool::{PortWish, Taken};
use crate::allocation::{Beginning, ChannelFault, ChannelLimits, PermissionsFull};
use crate::attributes::{AskedFamily, Attributes, Family, kind};
use crate::auth::{Denied, IntegrityKind, Key, PASSWORD_ALGORITHMS, UserId, Verified, authenticate};
use crate::forwarding::LOCAL_CHANNELS;
use crate::time::{Now, Random};
use crate::wire::{Class, FiveTuple, Message, Method, PeerAddr, RelayAddr, Writer};
use std::net::SocketAddr;
use std::time::Duration;

/// REQUESTED-TRANSPORT: the protocol number of UDP.
const UDP: u8 = 17;
/// Below this Binding is not answered to strangers: services that answer anything live there.
const LOW_PORTS: u16 = 1024;
/// How many more ports are tried for one address when the shell cannot open the first. Other programs of the machine use ports of our
/// range, for Linux gives them away as ephemeral ones: with a sixth of them gone, one of 7,000 allocations found five taken ports in a
/// row; seventeen are one of 10^13, and one of 130,000 with half of them gone.
const OPEN_TRIES: u8 = 16;
/// Slack between our clock and that of who names timed users.
const CLOCK_SLACK: u64 = 300;

/// One request, read.
pub(super) struct Request<'a> {
    pub from: FiveTuple,
    pub message: Message<'a>,
    pub attributes: Attributes<'a>,
    pub now: Now,
}

impl Server {
    pub(super) fn handle_request(&mut self, request: &Request<'_>, random: Random<'_>) -> Result<(), Refusal> {
        if request.message.method == Method::Binding {
            return self.binding(request);
        }
        let place = self.allocations.find(&request.from, request.now.seconds());
        let allocation = place.and_then(|place| self.allocations.get(place));
        let verified = authenticate(
            &request.message,
            &request.attributes,
            &request.from,
            &self.settings.credentials,
            &self.shared.nonces,
            allocation.map(|allocation| (allocation.user(), allocation.key())),
            request.now,
        );
        let verified = match verified {
            Ok(verified) => verified,
            Err(denied) => return self.deny(request, denied),
        };
        let handled = self.handle_verified(request, &verified, place, random);
        if let Err(refusal) = handled {
            self.refuse(request, &verified, refusal);
        }
        handled
    }

    fn handle_verified(
        &mut self,
        request: &Request<'_>,
        verified: &Verified,
        place: Option<u32>,
        random: Random<'_>,
    ) -> Result<(), Refusal> {
        if !request.attributes.unknown.is_empty() || self.is_unsupported(request) {
            return Err(Refusal::UnknownAttribute);
        }
        let method = request.message.method;
        if method == Method::Allocate {
            return self.allocate(request, verified, place, random);
        }
        let place = place.ok_or(Refusal::Mismatch)?;
        let owner = self.allocations.get(place).map(|allocation| allocation.user());
        if owner != Some(verified.user) {
            return Err(Refusal::OtherUser);
        }
        if let Some(fault) = request.attributes.fault {
            return Err(Refusal::Fault(fault));
        }
        match method {
            Method::Refresh => self.refresh(request, verified, place),
            Method::CreatePermission => {
                self.create_permission(request, verified, place)?;
                self.release_early(place, request.now, random);
                Ok(())
            }
            Method::ChannelBind => {
                self.channel_bind(request, verified, place)?;
                self.release_early(place, request.now, random);
                Ok(())
            }
            _ => Err(Refusal::NothingAsked),
        }
    }

    /// RFC 8656 §7.2: DF that we cannot set is an attribute that we do not know.
    fn is_unsupported(&self, request: &Request<'_>) -> bool {
        request.attributes.dont_fragment && !self.settings.dont_fragment
    }

    /// RFC 8489 §6.3.1: XOR-MAPPED-ADDRESS and nothing else.
    fn binding(&mut self, request: &Request<'_>) -> Result<(), Refusal> {
        let (source, now) = (request.from.client(), request.now);
        if source.port() < LOW_PORTS && self.allocations.find(&request.from, now.seconds()).is_none() {
            return Err(Refusal::LowPort);
        }
        if !self
            .shared
            .admits(Stranger::Binding, source.ip(), &self.strangers, now.steady)
        {
            return Err(Refusal::BindingLimit);
        }
        if !request.attributes.unknown.is_empty() {
            self.answer(request, Class::Error, None, |writer| {
                put_error(writer, 420);
                put_unknown(writer, request.attributes.unknown.iter());
            });
            return Err(Refusal::UnknownAttribute);
        }
        self.succeed(request, None, |writer| {
            put_address(writer, kind::XOR_MAPPED_ADDRESS, source, &request.message.transaction);
        });
        Ok(())
    }

    /// 400, 401 or 438 before any rights, and silence when it is too much.
    fn deny(&mut self, request: &Request<'_>, denied: Denied) -> Result<(), Refusal> {
        // A stale nonce comes with a valid integrity, which is never limited: clients behind one NAT share its address.
        let is_stranger = denied != Denied::StaleNonce;
        let (client, steady) = (request.from.client().ip(), request.now.steady);
        if is_stranger && !self.shared.admits(Stranger::Challenge, client, &self.strangers, steady) {
            return Err(Refusal::ChallengeLimit);
        }
        let refusal = Refusal::Denied(denied);
        match refusal.code() {
            Some(400) => self.answer(request, Class::Error, None, |writer| put_error(writer, 400)),
            Some(code) => self.challenge(request, code),
            None => {}
        }
        Err(refusal)
    }

    fn challenge(&mut self, request: &Request<'_>, code: u16) {
        let settings = self.settings.clone();
        let credentials = &settings.credentials;
        let nonce = self
            .shared
            .nonces
            .make(&request.from, credentials.features(), request.now);
        self.answer(request, Class::Error, None, |writer| {
            put_error(writer, code);
            writer.attribute(kind::REALM, &[credentials.realm().as_bytes()]);
            writer.attribute(kind::NONCE, &[&nonce]);
            writer.attribute(kind::PASSWORD_ALGORITHMS, &[&PASSWORD_ALGORITHMS]);
        });
    }

    fn refuse(&mut self, request: &Request<'_>, verified: &Verified, refusal: Refusal) {
        match refusal.code() {
            // To who watches, an expired name looks like an unknown one.
            Some(401) => self.challenge(request, 401),
            Some(420) => {
                let unsupported = self.is_unsupported(request).then_some(kind::DONT_FRAGMENT);
                self.answer(request, Class::Error, Some(verified), |writer| {
                    put_error(writer, 420);
                    put_unknown(writer, request.attributes.unknown.iter().chain(unsupported));
                });
            }
            Some(code) => self.answer(request, Class::Error, Some(verified), |writer| put_error(writer, code)),
            None => {}
        }
    }

    /// RFC 8656 §7.2, in its order.
    fn allocate(
        &mut self,
        request: &Request<'_>,
        verified: &Verified,
        place: Option<u32>,
        random: Random<'_>,
    ) -> Result<(), Refusal> {
        if let Some(place) = place {
            let is_again = self.allocations.get(place).is_some_and(|allocation| {
                allocation.transaction() == request.message.transaction && allocation.user() == verified.user
            });
            if !is_again {
                return Err(Refusal::Mismatch);
            }
            self.answer_allocated(place, request.now);
            self.counters.successes.add(Method::Allocate);
            return Ok(());
        }
        if let Some(until) = verified.timed_until {
            let now = request.now.unix_seconds;
            if until <= now {
                return Err(Refusal::TimedOver);
            }
            let most = self
                .settings
                .limits
                .timed_max_life
                .as_secs()
                .saturating_add(CLOCK_SLACK);
            if until - now > most {
                return Err(Refusal::TimedTooFar);
            }
        }
        match request.attributes.requested_transport {
            None => return Err(Refusal::BadRequest),
            Some(UDP) => {}
            Some(_) => return Err(Refusal::Transport),
        }
        if let Some(fault) = request.attributes.fault {
            return Err(Refusal::Fault(fault));
        }
        let wish = self.wish(&request.attributes)?;
        if self.is_draining {
            return Err(Refusal::Draining);
        }
        // One that has ended, but whose timer has not come yet.
        if let Some(ended) = self.allocations.place_of(&request.from) {
            self.end(ended, request.now);
        }
        let prefix = self.shared.prefix(request.from.client().ip());
        let limits = &self.settings.limits;
        self.shared
            .pool
            .enter(prefix, limits.allocations, limits.allocations_per_prefix)
            .map_err(Refusal::Quota)?;
        let given = match self.give(wish, verified.user, request.now, random) {
            Ok(given) => given,
            Err(refusal) => {
                self.shared.pool.leave(prefix);
                return Err(refusal);
            }
        };
        let lifetime = self.settings.limits.lifetime(request.attributes.lifetime);
        let place = self.allocations.insert(Beginning {
            client: request.from,
            user: verified.user,
            key: verified.key.duplicate(),
            transaction: request.message.transaction,
            answer: verified.answer,
            has_fingerprint: request.attributes.has_fingerprint,
            relays: given.relays,
            token: given.token,
            refused_second: given.refused_second,
            wish: wish.port(),
            prefix,
            expires: request.now.after(lifetime),
        });
        self.derive(place);
        for relay in given.relays.into_iter().flatten() {
            self.outputs.push_back(Output::OpenRelay(relay));
        }
        self.answer_allocated(place, request.now);
        self.counters.successes.add(Method::Allocate);
        Ok(())
    }

    /// What addresses a request wants.
    fn wish(&self, attributes: &Attributes<'_>) -> Result<Wish, Refusal> {
        let (requested, additional) = (attributes.requested_family, attributes.additional_family);
        if let Some(token) = attributes.reservation_token {
            return match (attributes.even_port, requested, additional) {
                (None, None, None) => Ok(Wish::Reserved(token)),
                _ => Err(Refusal::BadRequest),
            };
        }
        let port = match attributes.even_port {
            None => PortWish::Any,
            Some(false) => PortWish::Even,
            Some(true) => PortWish::Pair,
        };
        match (requested, additional) {
            (Some(_), Some(_)) => Err(Refusal::BadRequest),
            (None, Some(_)) if port == PortWish::Pair => Err(Refusal::BadRequest),
            (None, Some(AskedFamily::Known(Family::V6))) => Ok(Wish::Both(port)),
            (None, Some(_)) => Err(Refusal::BadRequest),
            (Some(AskedFamily::Unknown(_)), None) => Err(Refusal::Family),
            (Some(AskedFamily::Known(family)), None) => self.one(family, port),
            // Over IPv6 too (RFC 8656 §7.2, point 7).
            (None, None) => self.one(Family::V4, port),
        }
    }

    fn one(&self, family: Family, port: PortWish) -> Result<Wish, Refusal> {
        if self.relays_on(family) {
            Ok(Wish::One(family, port))
        } else {
            Err(Refusal::Family)
        }
    }

    fn relays_on(&self, family: Family) -> bool {
        self.shared.relays().of_family(family == Family::V6).next().is_some()
    }

    fn give(&self, wish: Wish, user: UserId, now: Now, random: Random<'_>) -> Result<Given, Refusal> {
        let pool = &self.shared.pool;
        let mut take = |family: Family, port| pool.take(family == Family::V6, port, user, now, random);
        match wish {
            Wish::Reserved(token) => {
                let relay = pool.claim(&token, user, now).ok_or(Refusal::BadToken)?;
                Ok(Given::one(Taken { relay, token: None }))
            }
            Wish::One(family, port) => take(family, port).map(Given::one).ok_or(Refusal::NoPort),
            Wish::Both(port) => {
                let (v4, v6) = (take(Family::V4, port), take(Family::V6, port));
                let missing = match (&v4, &v6) {
                    (Some(_), Some(_)) => None,
                    (None, None) => return Err(Refusal::NoPort),
                    (None, Some(_)) => Some(Family::V4),
                    (Some(_), None) => Some(Family::V6),
                };
                Ok(Given {
                    relays: [v4.map(|taken| taken.relay), v6.map(|taken| taken.relay)],
                    token: None,
                    refused_second: missing.map(|family| if self.relays_on(family) { 508 } else { 440 }),
                })
            }
        }
    }

    /// The answer that made an allocation known, with the time it has left.
    fn answer_allocated(&mut self, place: u32, now: Now) {
        let Some(allocation) = self.allocations.get(place) else {
            return;
        };
        let relays = self.shared.relays();
        let (client, transaction) = (allocation.client(), allocation.transaction());
        let left = self.time_left(place, now).as_secs().max(1);
        let signature = Some((allocation.answer(), allocation.key()));
        let answer = Answer::write(
            Method::Allocate,
            Class::Success,
            transaction,
            signature,
            allocation.has_fingerprint(),
            |writer| {
                let mut family = None;
                for address in allocation.relays().into_iter().flatten() {
                    if let Some(address) = relays.advertised(address) {
                        put_address(writer, kind::XOR_RELAYED_ADDRESS, address, &transaction);
                        family = Some(Family::of(address.ip()));
                    }
                }
                if let (Some(code), Some(given)) = (allocation.refused_second(), family) {
                    let missing = match given {
                        Family::V4 => Family::V6,
                        Family::V6 => Family::V4,
                    };
                    put_address_error(writer, missing, code);
                }
                put_lifetime(writer, u32::try_from(left).unwrap_or(u32::MAX));
                if let Some(token) = allocation.token() {
                    writer.attribute(kind::RESERVATION_TOKEN, &[&token]);
                }
                put_address(writer, kind::XOR_MAPPED_ADDRESS, client.client(), &transaction);
            },
        );
        self.outputs.push_back(Output::Send { to: client, answer });
    }

    /// The shell could not bind this relayed address: another one takes its place, before the client has heard of either.
    pub fn handle_relay_failed(&mut self, relay: RelayAddr, now: Now, random: Random<'_>) {
        let Some(place) = self.forwarding.place_of(relay) else {
            return;
        };
        let Some(allocation) = self.allocations.get(place) else {
            return;
        };
        let (client, user, wish) = (allocation.client(), allocation.user(), allocation.wish());
        let (transaction, answer) = (allocation.transaction(), allocation.answer());
        let (key, token, has_fingerprint) = (
            allocation.key().duplicate(),
            allocation.token(),
            allocation.has_fingerprint(),
        );
        self.outputs.retain(|output| match output {
            Output::Send { to, answer } => *to != client || !answer.answers(&transaction),
            Output::OpenRelay(_) | Output::CloseRelay(_) => true,
        });
        let neighbour = token.and_then(|token| self.shared.pool.claim(&token, user, now));
        let is_v6 = self
            .shared
            .relays()
            .get(relay.address)
            .is_some_and(|one| one.bind.is_ipv6());
        let tries = self
            .allocations
            .change(place, |allocation| allocation.count_failed_open());
        let taken = match (tries, wish) {
            (Some(tries), Some(wish)) if tries <= OPEN_TRIES => self.shared.pool.take(is_v6, wish, user, now, random),
            _ => None,
        };
        self.allocations.change(place, |allocation| {
            allocation.set_token(taken.and_then(|taken| taken.token));
            allocation.replace_relay(relay, taken.map(|taken| taken.relay));
            // One address of two is better than none.
            if taken.is_none() {
                allocation.refuse_second(508);
            }
        });
        let has_relay = self
            .allocations
            .get(place)
            .is_some_and(|allocation| allocation.relays().iter().any(Option::is_some));
        if has_relay {
            self.derive(place);
            if let Some(taken) = taken {
                self.outputs.push_back(Output::OpenRelay(taken.relay));
            }
            self.answer_allocated(place, now);
        } else {
            self.end(place, now);
            self.counters.successes.take_back(Method::Allocate);
            self.counters.refusals.add(Refusal::PortsDoNotOpen);
            let signature = Some((answer, &key));
            let answer = Answer::write(
                Method::Allocate,
                Class::Error,
                transaction,
                signature,
                has_fingerprint,
                |writer| {
                    put_error(writer, 508);
                },
            );
            self.outputs.push_back(Output::Send { to: client, answer });
        }
        // Somebody else has the port: it rests as if it had been ours. Not before the index has forgotten it: whoever gets it next writes there.
        let rested = now.after(self.settings.limits.port_cool_down);
        for relay in [Some(relay), neighbour].into_iter().flatten() {
            self.shared.pool.give_back(relay, rested);
        }
    }

    /// RFC 8656 §8.2.
    fn refresh(&mut self, request: &Request<'_>, verified: &Verified, place: u32) -> Result<(), Refusal> {
        let named = match request.attributes.requested_family {
            None => None,
            Some(AskedFamily::Known(family)) => Some(self.relay_of(place, family).ok_or(Refusal::PeerFamily)?),
            Some(AskedFamily::Unknown(_)) => return Err(Refusal::PeerFamily),
        };
        let one_of_two = named.filter(|_| self.is_dual(place));
        let lifetime = match (request.attributes.lifetime, one_of_two) {
            (Some(0), Some(relay)) => {
                self.end_one(place, relay, request.now);
                0
            }
            (Some(0), None) => {
                self.end(place, request.now);
                0
            }
            (asked, _) => {
                let mut lifetime = self.settings.limits.lifetime(asked);
                // Two addresses share one timer: who refreshes one of them may lengthen the life of the other, and must not shorten it.
                if one_of_two.is_some() {
                    lifetime = lifetime.max(self.time_left(place, request.now));
                }
                self.allocations.set_expiry(place, request.now.after(lifetime));
                self.derive(place);
                lifetime.as_secs()
            }
        };
        self.succeed(request, Some(verified), |writer| {
            put_lifetime(writer, u32::try_from(lifetime).unwrap_or(u32::MAX));
        });
        Ok(())
    }

    /// RFC 8656 §10.2: all of them, or none.
    fn create_permission(&mut self, request: &Request<'_>, verified: &Verified, place: u32) -> Result<(), Refusal> {
        let peers = &request.attributes.peers;
        if peers.is_empty() {
            return Err(Refusal::BadRequest);
        }
        for peer in peers.iter() {
            self.check_family(place, peer)?;
        }
        for peer in peers.iter() {
            self.settings.policy.check_address(peer.ip()).map_err(Refusal::Peer)?;
        }
        let relays = self.shared.relays();
        let peers = peers.iter().map(|peer| PeerAddr::new(relays.as_advertised(peer)));
        let most = self.settings.limits.permissions_per_allocation;
        // The iterator is walked more than once, so it must be one that can be.
        let peers: Vec<PeerAddr> = peers.collect();
        let permitted = self.allocations.change(place, |allocation| {
            allocation.permit(peers.iter().copied(), most, request.now)
        });
        if let Some(Err(PermissionsFull)) = permitted {
            return Err(Refusal::TooManyPermissions);
        }
        self.derive(place);
        self.succeed(request, Some(verified), |_| {});
        Ok(())
    }

    /// RFC 8656 §12.2.
    fn channel_bind(&mut self, request: &Request<'_>, verified: &Verified, place: u32) -> Result<(), Refusal> {
        let attributes = &request.attributes;
        let (Some(number), Some(peer)) = (attributes.channel(), attributes.peers.iter().next()) else {
            return Err(Refusal::BadRequest);
        };
        if peer.port() == 0 {
            return Err(Refusal::BadRequest);
        }
        self.check_family(place, peer)?;
        let relays = self.shared.relays();
        let peer = relays.as_advertised(peer);
        self.settings.policy.check(peer).map_err(Refusal::Peer)?;
        let limits = ChannelLimits {
            channels: self.settings.limits.channels_per_allocation,
            local_channels: LOCAL_CHANNELS,
            permissions: self.settings.limits.permissions_per_allocation,
        };
        let is_local = |peer: &PeerAddr| relays.relay_of(peer.socket()).is_some();
        let bound = self.allocations.change(place, |allocation| {
            allocation.bind(number, PeerAddr::new(peer), limits, is_local, request.now)
        });
        match bound {
            Some(Err(ChannelFault::Conflict)) => return Err(Refusal::ChannelConflict),
            Some(Err(ChannelFault::Full)) => return Err(Refusal::TooManyChannels),
            Some(Ok(())) | None => {}
        }
        self.derive(place);
        self.succeed(request, Some(verified), |_| {});
        Ok(())
    }

    /// By the family byte of the wire: what IPv6 carries within does not count here.
    fn check_family(&self, place: u32, peer: SocketAddr) -> Result<(), Refusal> {
        if self.has_family(place, Family::of(peer.ip())) {
            Ok(())
        } else {
            Err(Refusal::PeerFamily)
        }
    }

    fn has_family(&self, place: u32, family: Family) -> bool {
        self.relay_of(place, family).is_some()
    }

    fn relay_of(&self, place: u32, family: Family) -> Option<RelayAddr> {
        let mut relays = self.allocations.get(place)?.relays().into_iter().flatten();
        relays.find(|relay| {
            let address = self.shared.relays().get(relay.address);
            address.is_some_and(|address| Family::of(address.bind) == family)
        })
    }

    fn is_dual(&self, place: u32) -> bool {
        let allocation = self.allocations.get(place);
        allocation.is_some_and(|allocation| allocation.relays().iter().all(Option::is_some))
    }

    fn time_left(&self, place: u32, now: Now) -> Duration {
        let expires = self.allocations.get(place).map(|allocation| allocation.expires());
        expires.unwrap_or_default().steady().saturating_sub(now.steady)
    }

    fn succeed(&mut self, request: &Request<'_>, verified: Option<&Verified>, content: impl FnOnce(&mut Writer<'_>)) {
        self.counters.successes.add(request.message.method);
        self.answer(request, Class::Success, verified, content);
    }

    fn answer(
        &mut self,
        request: &Request<'_>,
        class: Class,
        verified: Option<&Verified>,
        content: impl FnOnce(&mut Writer<'_>),
    ) {
        let signature: Option<(IntegrityKind, &Key)> = verified.map(|verified| (verified.answer, &verified.key));
        let answer = Answer::write(
            request.message.method,
            class,
            request.message.transaction,
            signature,
            request.attributes.has_fingerprint,
            content,
        );
        // All answers fit; one that did not would be empty.
        if !answer.as_bytes().is_empty() {
            self.outputs.push_back(Output::Send {
                to: request.from,
                answer,
            });
        }
    }
}

#[derive(Clone, Copy)]
enum Wish {
    One(Family, PortWish),
    Both(PortWish),
    Reserved([u8; 8]),
}

impl Wish {
    /// `None`: no other port will do.
    const fn port(self) -> Option<PortWish> {
        match self {
            Self::One(_, port) | Self::Both(port) => Some(port),
            Self::Reserved(_) => None,
        }
    }
}

struct Given {
    relays: [Option<RelayAddr>; 2],
    token: Option<[u8; 8]>,
    refused_second: Option<u16>,
}

impl Given {
    const fn one(taken: Taken) -> Self {
        Self {
            relays: [Some(taken.relay), None],
            token: taken.token,
            refused_second: None,
        }
    }
}

fn put_lifetime(writer: &mut Writer<'_>, seconds: u32) {
    writer.attribute(kind::LIFETIME, &[&seconds.to_be_bytes()]);
}

fn put_unknown(writer: &mut Writer<'_>, kinds: impl Iterator<Item = u16>) {
    let mut list = [0; 2 * (crate::attributes::MAX_UNKNOWN + 1)];
    let mut length = 0;
    for (place, kind) in list.chunks_exact_mut(2).zip(kinds) {
        place.copy_from_slice(&kind.to_be_bytes());
        length += 2;
    }
    writer.attribute(kind::UNKNOWN_ATTRIBUTES, &[list.get(..length).unwrap_or_default()]);
}
