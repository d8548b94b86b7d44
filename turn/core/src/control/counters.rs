//! What happened, as numbers under names that are fixed at compile time. No address, user or port can be a name.

use crate::allocation::QuotaFault;
use crate::attributes::Fault;
use crate::auth::Denied;
use crate::forwarding::{Dropped, Traffic};
use crate::peers::PeerRefusal;
use crate::wire::{Malformed, Method};

/// Why something was not done. Two names make its metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Silence: neither STUN nor ChannelData.
    NotOurs,
    /// Silence.
    Malformed(Malformed),
    /// Silence for a fingerprint, otherwise 400 or 508.
    Fault(Fault),
    /// Silence: a response or an indication that asks for nothing, or a method without such a class.
    NothingAsked,
    /// Silence: it came from one of our own listeners.
    OwnEcho,
    /// Silence: Binding from a port below 1024 and without an allocation.
    LowPort,
    /// Silence: too many from that prefix without a valid integrity.
    ChallengeLimit,
    /// Silence: too many Binding requests from that prefix.
    BindingLimit,
    /// Silence: a Send indication without what it needs.
    BadIndication,
    /// A packet that went nowhere.
    Dropped(Dropped),
    /// 400, 401 or 438.
    Denied(Denied),
    /// 401: a timed username whose time is over.
    TimedOver,
    /// 401: a timed username too far in the future.
    TimedTooFar,
    /// 403, or silence for a Send indication.
    Peer(PeerRefusal),
    /// 400.
    BadRequest,
    /// 420.
    UnknownAttribute,
    /// 437.
    Mismatch,
    /// 440.
    Family,
    /// 441.
    OtherUser,
    /// 442.
    Transport,
    /// 443.
    PeerFamily,
    /// 486.
    Quota(QuotaFault),
    /// 508: no port is free.
    NoPort,
    /// 508: nothing is reserved under that token for that user.
    BadToken,
    /// 508: the shell could not open a port, several times.
    PortsDoNotOpen,
    /// 508: the server finishes what it has.
    Draining,
    /// 508.
    TooManyPermissions,
    /// 508.
    TooManyChannels,
    /// 400: number or peer is bound to another.
    ChannelConflict,
}

impl Refusal {
    /// The error code that says so, if anything is said.
    pub const fn code(self) -> Option<u16> {
        Some(match self {
            Self::NotOurs
            | Self::Malformed(_)
            | Self::Fault(Fault::BadFingerprint)
            | Self::NothingAsked
            | Self::OwnEcho
            | Self::LowPort
            | Self::ChallengeLimit
            | Self::BindingLimit
            | Self::BadIndication
            | Self::Dropped(_) => return None,
            Self::Denied(Denied::NoIntegrity | Denied::Credential) | Self::TimedOver | Self::TimedTooFar => 401,
            Self::Denied(Denied::Incomplete | Denied::Algorithms)
            | Self::BadRequest
            | Self::ChannelConflict
            | Self::Fault(Fault::BadValue) => 400,
            Self::Denied(Denied::StaleNonce) => 438,
            Self::Peer(_) => 403,
            Self::UnknownAttribute => 420,
            Self::Mismatch => 437,
            Self::Family => 440,
            Self::OtherUser => 441,
            Self::Transport => 442,
            Self::PeerFamily => 443,
            Self::Quota(_) => 486,
            Self::Fault(Fault::TooManyPeers)
            | Self::NoPort
            | Self::BadToken
            | Self::PortsDoNotOpen
            | Self::Draining
            | Self::TooManyPermissions
            | Self::TooManyChannels => 508,
        })
    }

    /// Which part of the server says no.
    pub const fn stage(self) -> &'static str {
        match self {
            Self::NotOurs | Self::Malformed(_) | Self::Fault(_) => "wire",
            Self::Denied(_) | Self::TimedOver | Self::TimedTooFar => "auth",
            Self::Peer(_) => "peers",
            Self::Quota(_) | Self::NoPort | Self::BadToken | Self::PortsDoNotOpen => "allocation",
            Self::TooManyPermissions | Self::TooManyChannels | Self::ChannelConflict => "allocation",
            Self::Dropped(_) => "forwarding",
            _ => "control",
        }
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::NotOurs => "not_ours",
            Self::Malformed(malformed) => malformed.label(),
            Self::Fault(fault) => fault.label(),
            Self::NothingAsked => "nothing_asked",
            Self::OwnEcho => "own_echo",
            Self::LowPort => "low_port",
            Self::ChallengeLimit => "challenge_limit",
            Self::BindingLimit => "binding_limit",
            Self::BadIndication => "bad_indication",
            Self::Dropped(dropped) => dropped.label(),
            Self::Denied(denied) => denied.label(),
            Self::TimedOver => "timed_over",
            Self::TimedTooFar => "timed_too_far",
            Self::Peer(refusal) => refusal.label(),
            Self::BadRequest => "bad_request",
            Self::UnknownAttribute => "unknown_attribute",
            Self::Mismatch => "mismatch",
            Self::Family => "family",
            Self::OtherUser => "other_user",
            Self::Transport => "transport",
            Self::PeerFamily => "peer_family",
            Self::Quota(QuotaFault::Total) => "quota_total",
            Self::Quota(QuotaFault::Prefix) => "quota_prefix",
            Self::NoPort => "no_port",
            Self::BadToken => "bad_token",
            Self::PortsDoNotOpen => "ports_do_not_open",
            Self::Draining => "draining",
            Self::TooManyPermissions => "too_many_permissions",
            Self::TooManyChannels => "too_many_channels",
            Self::ChannelConflict => "channel_conflict",
        }
    }
}

/// Counts by a small set of names, with room for all of them from the start: counting never allocates.
#[derive(Clone, Debug)]
pub struct Tally<T>(Vec<(T, u64)>);

impl<T> Default for Tally<T> {
    fn default() -> Self {
        // More than any of our enums has members.
        Self(Vec::with_capacity(96))
    }
}

impl<T: Copy + PartialEq> Tally<T> {
    pub fn add(&mut self, name: T) {
        self.add_many(name, 1);
    }

    pub fn add_many(&mut self, name: T, more: u64) {
        if let Some((_, count)) = self.0.iter_mut().find(|(other, _)| *other == name) {
            *count += more;
        } else if self.0.len() < self.0.capacity() {
            self.0.push((name, more));
        }
    }

    /// One of those that were added was none.
    pub fn take_back(&mut self, name: T) {
        if let Some((_, count)) = self.0.iter_mut().find(|(other, _)| *other == name) {
            *count = count.saturating_sub(1);
        }
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(name, count)| self.add_many(name, count));
    }

    pub fn count(&self, name: T) -> u64 {
        self.0
            .iter()
            .find(|(other, _)| *other == name)
            .map_or(0, |(_, count)| *count)
    }

    pub fn iter(&self) -> impl Iterator<Item = (T, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// What one shard has counted since its start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub refusals: Tally<Refusal>,
    /// Requests with a success answer.
    pub successes: Tally<Method>,
    pub to_peers: Traffic,
    pub to_clients: Traffic,
    pub within: Traffic,
    /// Now, not since the start.
    pub allocations: usize,
}

impl Counters {
    /// Adds what another shard has counted.
    pub fn merge(&mut self, other: &Self) {
        self.refusals.merge(&other.refusals);
        self.successes.merge(&other.successes);
        self.to_peers.merge(other.to_peers);
        self.to_clients.merge(other.to_clients);
        self.within.merge(other.within);
        self.allocations += other.allocations;
    }
}
