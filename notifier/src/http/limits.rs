//! How often one source, or all together, may ask.
//!
//! In: where a request comes from, the time. Out: go on, or how long to wait. Never: grows, or remembers an address: a source
//! is one of 65,536 buckets, chosen by a keyed hash of its network.

use axum::http::HeaderMap;
use quietline_shared::service::server::SourceAddr;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long until a refused request would have been accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub Duration);

/// One bucket per source network. Two networks may share a bucket; an attacker cannot choose with whom, the hash is keyed.
pub struct SourceLimit {
    rate: Rate,
    start: Instant,
    key: RandomState,
    buckets: Box<[AtomicU64]>,
}

impl SourceLimit {
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32, start: Instant) -> Self {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self {
            rate: Rate::new(per_second, burst),
            start,
            key: RandomState::new(),
            buckets,
        }
    }

    /// For what may happen more seldom than once a second.
    pub fn every(interval: Duration, burst: NonZeroU32, start: Instant) -> Self {
        Self {
            rate: Rate::every(interval, burst),
            ..Self::new(NonZeroU32::MIN, burst, start)
        }
    }

    pub fn take(&self, source: Network, now: Instant) -> Result<(), Wait> {
        self.take_for(source.0, now)
    }

    /// As [`take`](Self::take), for a source of any kind.
    pub fn take_for(&self, source: impl std::hash::Hash, now: Instant) -> Result<(), Wait> {
        let hash = self.key.hash_one(source);
        let index = usize::try_from(hash % BUCKETS).unwrap_or_default();
        // The index is always inside; a bucket that did not exist would limit nobody.
        self.buckets
            .get(index)
            .map_or(Ok(()), |bucket| self.rate.take(bucket, since(self.start, now)))
    }
}

/// One bucket for everybody.
pub struct CommonLimit {
    rate: Rate,
    start: Instant,
    bucket: AtomicU64,
}

impl CommonLimit {
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32, start: Instant) -> Self {
        Self {
            rate: Rate::new(per_second, burst),
            start,
            bucket: AtomicU64::new(0),
        }
    }

    pub fn take(&self, now: Instant) -> Result<(), Wait> {
        self.rate.take(&self.bucket, since(self.start, now))
    }
}

/// A token bucket kept as one number: the time at which it will be full again, nanoseconds since the start.
struct Rate {
    /// Nanoseconds between two requests.
    interval: u64,
    /// How far ahead of now the full-again time may be before a request.
    tolerance: u64,
}

impl Rate {
    fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self::every(
            Duration::from_nanos((1_000_000_000 / u64::from(per_second.get())).max(1)),
            burst,
        )
    }

    fn every(interval: Duration, burst: NonZeroU32) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Self {
            interval,
            tolerance: interval.saturating_mul(u64::from(burst.get() - 1)),
        }
    }

    fn take(&self, bucket: &AtomicU64, now: u64) -> Result<(), Wait> {
        let latest = now.saturating_add(self.tolerance);
        let taken = bucket.fetch_update(Relaxed, Relaxed, |full_at| {
            (full_at <= latest).then(|| full_at.max(now).saturating_add(self.interval))
        });
        taken
            .map(drop)
            .map_err(|full_at| Wait(Duration::from_nanos(full_at.saturating_sub(latest))))
    }
}

fn since(start: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}

/// The network a source belongs to: /24, or /56. It prints as nothing and is not kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Network(u64);

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(u32::from(address) >> 8) | V4_MARK),
            IpAddr::V6(address) => Self(Self::first_56_bits(address)),
        }
    }

    fn first_56_bits(address: Ipv6Addr) -> u64 {
        u64::try_from(u128::from(address) >> 72).unwrap_or_default()
    }
}

/// Whom a request counts against. A connection from this machine comes from the proxy before us: it says in the last
/// entry of `X-Forwarded-For` for whom it asks. Nobody else is believed.
pub fn network_of(source: SourceAddr, headers: &HeaderMap) -> Network {
    let peer = source.0.into_exposed();
    let asked_for = || -> Option<IpAddr> {
        let header = headers.get_all("x-forwarded-for").iter().next_back()?;
        header.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
    };
    let address = if peer.to_canonical().is_loopback() {
        asked_for().unwrap_or(peer)
    } else {
        peer
    };
    Network::of(address)
}

/// 512 KiB, idle and under flood.
const BUCKETS: u64 = 65_536;
/// A bit above the 56 of an IPv6 network.
const V4_MARK: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::redact::Private;

    fn number(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap()
    }

    fn network(address: &str) -> Network {
        Network::of(address.parse().unwrap())
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let limit = SourceLimit::new(number(20), number(200), start);
        let source = network("192.0.2.7");
        for _ in 0..200 {
            assert_eq!(limit.take(source, start), Ok(()));
        }
        assert_eq!(limit.take(source, start), Err(Wait(Duration::from_millis(50))));
        let later = start + Duration::from_millis(50);
        assert_eq!(limit.take(source, later), Ok(()));
        assert!(limit.take(source, later).is_err());
        let rested = start + Duration::from_secs(3600);
        assert_eq!((0..300).filter(|_| limit.take(source, rested).is_ok()).count(), 200);
    }

    #[test]
    fn one_network_is_one_source() {
        assert!(network("192.0.2.7") == network("192.0.2.250"));
        assert!(network("192.0.2.7") == network("::ffff:192.0.2.9"));
        assert!(network("192.0.2.7") != network("192.0.3.7"));
        assert!(network("2001:db8:1:2f00::1") == network("2001:db8:1:2fff:1::"));
        assert!(network("2001:db8:1:2f00::1") != network("2001:db8:1:3000::1"));
    }

    #[test]
    fn a_flood_from_everywhere_leaves_the_table_as_large_as_it_was() {
        let start = Instant::now();
        let limit = SourceLimit::new(number(1), number(1), start);
        let accepted = (0..200_000u32).filter(|n| {
            limit
                .take(Network::of(IpAddr::from((n << 8).to_be_bytes())), start)
                .is_ok()
        });
        let accepted = accepted.count();
        assert!(accepted <= 65_536, "{accepted}");
        assert!(accepted > 60_000, "spread over the buckets: {accepted}");
        assert_eq!(limit.buckets.len(), 65_536);
    }

    #[test]
    fn the_common_limit_is_for_all() {
        let start = Instant::now();
        let limit = CommonLimit::new(number(20_000), number(3), start);
        assert_eq!((0..10).filter(|_| limit.take(start).is_ok()).count(), 3);
        assert!(limit.take(start + Duration::from_micros(50)).is_ok());
    }

    #[test]
    fn only_a_proxy_on_this_machine_is_believed() {
        let from = |peer: &str, forwarded: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            network_of(SourceAddr(Private::new(peer.parse().unwrap())), &headers)
        };
        assert!(from("127.0.0.1", &["198.51.100.1, 203.0.113.9"]) == network("203.0.113.1"));
        assert!(from("::1", &["198.51.100.1", "2001:db8::1"]) == network("2001:db8::2"));
        assert!(from("127.0.0.1", &[]) == network("127.0.0.1"));
        assert!(from("127.0.0.1", &["198.51.100.1, nonsense"]) == network("127.0.0.1"));
        assert!(from("192.0.2.7", &["203.0.113.9"]) == network("192.0.2.7"));
    }
}
