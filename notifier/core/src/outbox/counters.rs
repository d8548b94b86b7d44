//! What became of the entries, since the start.
//!
//! In: events. Out: numbers by enum. Never: a label that is data.

use super::class_of;
use crate::lane::{Refusal, RetryReason};
use crate::seal::Class;

/// Why an entry ended without being delivered. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Its deadline passed, or would pass before the next try.
    Deadline,
    /// Its token gets too many and a newer or more valuable wakeup took its place.
    Collapsed,
    /// The outbox was full.
    Shed,
    /// The token is dead and is deleted.
    Gone,
    /// The token is said to be dead, but a wrong credential would look the same: it is kept.
    GoneUnproven,
    OurFault,
    TooLarge,
    ForeignToken,
    /// The provider's review of contents refused it.
    Content,
    /// An answer the tables do not know.
    Unknown,
    /// Its row could not be read.
    Unreadable,
    /// Its row could not be written.
    Unwritten,
    /// Nobody subscribes the device any more.
    Unsubscribed,
}

impl DropReason {
    pub const ALL: [Self; 13] = [
        Self::Deadline,
        Self::Collapsed,
        Self::Shed,
        Self::Gone,
        Self::GoneUnproven,
        Self::OurFault,
        Self::TooLarge,
        Self::ForeignToken,
        Self::Content,
        Self::Unknown,
        Self::Unreadable,
        Self::Unwritten,
        Self::Unsubscribed,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Collapsed => "collapsed",
            Self::Shed => "shed",
            Self::Gone => "gone",
            Self::GoneUnproven => "gone_unproven",
            Self::OurFault => "our_fault",
            Self::TooLarge => "too_large",
            Self::ForeignToken => "foreign_token",
            Self::Content => "content",
            Self::Unknown => "unknown",
            Self::Unreadable => "unreadable",
            Self::Unwritten => "unwritten",
            Self::Unsubscribed => "unsubscribed",
        }
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::OurFault => Self::OurFault,
            Refusal::TooLarge => Self::TooLarge,
            Refusal::ForeignToken => Self::ForeignToken,
            Refusal::Content => Self::Content,
            Refusal::Unknown => Self::Unknown,
        }
    }
}

/// One lane's. accepted + restored = delivered + dropped + still there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneCounters {
    pub accepted: u64,
    pub restored: u64,
    pub delivered: u64,
    /// Sent again in the "too long" form.
    pub fallbacks: u64,
    /// Times the lane rested because the provider could not be reached.
    pub rests: u64,
    /// Times the credential was refused.
    pub stops: u64,
    /// Pushes sent to nobody: our own side could not.
    pub held: u64,
    /// Pushes taken back because no outcome came.
    pub stalls: u64,
    dropped: [u64; DropReason::ALL.len()],
    retried: [u64; RetryReason::ALL.len()],
    shed: [u64; Class::ALL.len()],
    refused: [u64; Class::ALL.len()],
}

impl LaneCounters {
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }

    pub fn retried(&self, reason: RetryReason) -> u64 {
        self.retried.get(reason as usize).copied().unwrap_or(0)
    }

    /// Dropped to make room. Also in [`dropped`](Self::dropped).
    pub fn shed(&self, class: Class) -> u64 {
        self.shed.get(class_of(class)).copied().unwrap_or(0)
    }

    /// Not taken because the outbox was full of what is worth more.
    pub fn refused(&self, class: Class) -> u64 {
        self.refused.get(class_of(class)).copied().unwrap_or(0)
    }

    pub(super) fn count_drop(&mut self, reason: DropReason, class: usize) {
        add(&mut self.dropped, reason as usize);
        if reason == DropReason::Shed {
            add(&mut self.shed, class);
        }
    }

    pub(super) fn count_retry(&mut self, reason: RetryReason) {
        add(&mut self.retried, reason as usize);
    }

    pub(super) fn count_refused(&mut self, class: Class) {
        add(&mut self.refused, class_of(class));
    }
}

fn add(counters: &mut [u64], place: usize) {
    if let Some(counter) = counters.get_mut(place) {
        *counter += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let mut counters = LaneCounters::default();
        for reason in DropReason::ALL {
            assert_eq!(counters.dropped(reason), 0);
            counters.count_drop(reason, 0);
            assert_eq!(counters.dropped(reason), 1);
        }
        for reason in RetryReason::ALL {
            assert_eq!(counters.retried(reason), 0);
            counters.count_retry(reason);
            assert_eq!(counters.retried(reason), 1);
        }
        assert_eq!(counters.shed(Class::Call), 1);
    }
}
