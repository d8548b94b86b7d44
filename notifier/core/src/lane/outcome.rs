//! What a provider's answer means for its entry, its token and its lane.
//!
//! In: nothing. Out: the words that dispatch answers with. Never: an HTTP status.

use crate::account::Service;
use quietline_shared::backoff::Backoff;
use std::time::Duration;

/// What a provider's answer means. Each variant says what happens to the entry; what happens beyond it is [`RetryReason::scope`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// `after`: what the provider asked for (Retry-After), if it did.
    Retry {
        after: Option<Duration>,
        reason: RetryReason,
    },
    /// Nothing was sent: it is not this one push's turn before `after` has passed. Others go on; it counts as no try.
    Later {
        after: Duration,
    },
    /// Nothing was sent: our own side cannot before `pause` has passed. The lane waits as a whole, its entries keep their order.
    Held {
        pause: Duration,
    },
    /// Its own deadline passed before an answer came. It had less time than others, so this says nothing about the provider.
    Expired,
    /// Too large for the provider: send the "too long" form, once.
    TryFallback,
    /// The token is dead. `provider_time_ms` (Unix ms): since when, where the provider says so.
    /// It deletes only while the credential delivers; unless it is `certain` = an answer that a wrong credential or topic cannot
    /// cause, also only while such answers are few.
    Gone {
        provider_time_ms: Option<i64>,
        certain: bool,
    },
    /// The entry is dropped, the token kept.
    Refused(Refusal),
}

/// Why an entry is tried again. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryReason {
    /// The connection or the stream ended, with or without this push. Once this is the connection's fault and the push takes its
    /// place in the queue again; from the second time on it may be the push's, and it waits on its own.
    Connection,
    Timeout,
    /// 500, 502, 503, Shutdown.
    Unavailable,
    /// This one token gets too many.
    TokenRate,
    /// The whole project or lane is over its quota.
    LaneRate,
    /// The push server of this one, of the many that the lane serves, cannot be reached, cannot work, or wants less.
    Origin,
    /// The provider token had expired; a new one is minted.
    CredentialExpired,
    /// The credential is refused: the lane stops, its queue stays, an operator must act.
    CredentialRefused,
}

/// Whom a retry slows down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Entry,
    Token,
    Lane,
    /// Nothing more is sent until the credential works again (probed with one entry at a time).
    LaneStopped,
}

impl RetryReason {
    pub const ALL: [Self; 8] = [
        Self::Connection,
        Self::Timeout,
        Self::Unavailable,
        Self::TokenRate,
        Self::LaneRate,
        Self::Origin,
        Self::CredentialExpired,
        Self::CredentialRefused,
    ];

    pub const fn scope(self) -> Scope {
        match self {
            Self::Connection | Self::Timeout | Self::Unavailable | Self::Origin | Self::CredentialExpired => {
                Scope::Entry
            }
            Self::TokenRate => Scope::Token,
            Self::LaneRate => Scope::Lane,
            Self::CredentialRefused => Scope::LaneStopped,
        }
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::TokenRate => "token_rate",
            Self::LaneRate => "lane_rate",
            Self::Origin => "origin",
            Self::CredentialExpired => "credential_expired",
            Self::CredentialRefused => "credential_refused",
        }
    }

    /// Whether a pause that comes with it was asked for by the provider, not by our own side.
    pub const fn is_from_provider(self) -> bool {
        matches!(
            self,
            Self::Unavailable | Self::TokenRate | Self::LaneRate | Self::Origin
        )
    }

    /// How long an entry waits before it is tried again where the provider does not say; `attempt` = how many times it was
    /// tried before. `None` = it takes its place in the queue again at once.
    pub fn pause(self, service: Service, attempt: u32, random: u64) -> Option<Duration> {
        match self {
            Self::Connection => Some(self.backoff(service).delay(attempt.checked_sub(1)?, random)),
            _ => Some(self.backoff(service).delay(attempt, random)),
        }
    }

    /// The first pause is at least half of `base`. Google asks for ten seconds after an internal error, everybody else for one.
    const fn backoff(self, service: Service) -> Backoff {
        match (self, service) {
            (Self::Unavailable, Service::Firebase) => seconds(20, 600),
            (Self::TokenRate, _) => seconds(60, 1800),
            (Self::CredentialExpired, _) => seconds(2, 60),
            _ => seconds(2, 300),
        }
    }
}

pub(super) const fn seconds(base: u64, cap: u64) -> Backoff {
    Backoff {
        base: Duration::from_secs(base),
        cap: Duration::from_secs(cap),
    }
}

/// Why an entry is dropped although its token is fine. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A 4xx that says the request is malformed: ours to mend.
    OurFault,
    /// Said to be too large even in its "too long" form.
    TooLarge,
    /// A token of another app or project while the credential is not known to be healthy.
    ForeignToken,
    /// The provider does not like what it cannot even read.
    Content,
    /// An answer the tables do not know.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pause_is_a_second_for_apple_and_ten_for_googles_inner_faults() {
        let least = |service| RetryReason::Unavailable.pause(service, 0, 0);
        assert_eq!(least(Service::ApnsSandbox), Some(Duration::from_secs(1)));
        assert_eq!(least(Service::Firebase), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_push_is_blamed_for_a_broken_connection_only_the_second_time() {
        let pause = |attempt| RetryReason::Connection.pause(Service::Apns, attempt, 0);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!([0, 1, 2, 3].map(pause), [None, seconds(1), seconds(2), seconds(4)]);
    }
}
