//! What an operator decides, in one value that can be exchanged while calls run.

use crate::auth::Credentials;
use crate::peers::{PeerPolicy, RelayTable};
use crate::time::Rate;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Bounds of everything a client may have. The defaults are those of the documented settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocations of all shards together.
    pub allocations: u32,
    /// Allocations of one source prefix, /24 or /56. Not of one user: a messenger's users may share one name.
    pub allocations_per_prefix: u32,
    pub permissions_per_allocation: usize,
    pub channels_per_allocation: usize,
    /// Bytes a second, each direction for itself.
    pub bandwidth_per_allocation: u64,
    /// Bytes a second of all shards together.
    pub bandwidth: u64,
    /// Answers a second to one source prefix before any valid integrity, and Binding answers likewise.
    pub challenges_per_second: u64,
    pub challenge_burst: u64,
    pub default_lifetime: Duration,
    pub max_lifetime: Duration,
    /// How long the port of an ended allocation rests.
    pub port_cool_down: Duration,
    /// How far in the future a timed username may end.
    pub timed_max_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            allocations: 10_000,
            allocations_per_prefix: 1_024,
            permissions_per_allocation: 64,
            channels_per_allocation: 64,
            bandwidth_per_allocation: 1_000_000,
            bandwidth: 1_250_000_000,
            challenges_per_second: 50,
            challenge_burst: 200,
            default_lifetime: Duration::from_secs(600),
            max_lifetime: Duration::from_secs(3_600),
            port_cool_down: Duration::from_secs(60),
            timed_max_life: Duration::from_secs(86_400),
        }
    }
}

impl Limits {
    /// One second's worth may come at once, and always one datagram.
    fn bandwidth_rate(bytes_per_second: u64) -> Rate {
        Rate::new(bytes_per_second, bytes_per_second.max(131_072))
    }

    pub(super) fn per_allocation(&self) -> Rate {
        Self::bandwidth_rate(self.bandwidth_per_allocation)
    }

    pub(super) fn total(&self) -> Rate {
        Self::bandwidth_rate(self.bandwidth)
    }

    pub(super) fn challenges(&self) -> Rate {
        Rate::new(self.challenges_per_second, self.challenge_burst)
    }

    /// RFC 8656 §7.2 and §8.2: what was asked for, between the default and the most; 0 has been looked at before.
    pub(super) fn lifetime(&self, asked: Option<u32>) -> Duration {
        let asked = Duration::from_secs(u64::from(asked.unwrap_or(0)));
        asked.min(self.max_lifetime).max(self.default_lifetime)
    }
}

/// Everything that a reload may change.
pub struct Settings {
    pub(super) credentials: Arc<Credentials>,
    pub(super) limits: Limits,
    pub(super) policy: PeerPolicy,
    /// Where we listen: what comes from there is our own echo.
    pub(super) listeners: Vec<SocketAddr>,
    /// Whether the shell can send with the DF bit.
    pub(super) dont_fragment: bool,
}

impl Settings {
    /// The policy learns here what is ours: relayed ports are good peers, every other port of ours is none.
    pub fn new(
        credentials: Credentials,
        limits: Limits,
        policy: PeerPolicy,
        listeners: Vec<SocketAddr>,
        relays: &RelayTable,
        dont_fragment: bool,
    ) -> Self {
        let settings = Self {
            credentials: Arc::new(credentials),
            limits,
            policy: PeerPolicy::default(),
            listeners,
            dont_fragment,
        };
        settings.with_policy(policy, relays)
    }

    /// The same with other peers.
    #[must_use]
    pub fn with_policy(&self, mut policy: PeerPolicy, relays: &RelayTable) -> Self {
        let ours = relays.all().chain(self.listeners.iter().map(SocketAddr::ip));
        for address in ours.filter(|address| !address.is_unspecified()) {
            if !policy.own_addresses.contains(&address) {
                policy.own_addresses.push(address);
            }
        }
        policy.relay_ports = Some(relays.ports());
        Self {
            credentials: Arc::clone(&self.credentials),
            limits: self.limits.clone(),
            policy,
            listeners: self.listeners.clone(),
            dont_fragment: self.dont_fragment,
        }
    }

    /// Whoever may ask: with them new names can be made.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }
}
