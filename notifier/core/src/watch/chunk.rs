//! The accounts of one swarm in chunks of at most one request each, and what each watched node holds of them.
//!
//! In: accounts to add, find and remove. Out: chunks in the order of their accounts. Never: knows a record.
//!
//! A chunk is a leaf of a one-level tree: sorted accounts, split when full. So an account costs about 33 to 66 bytes, and
//! what a node holds is one small value per (node, chunk).

use super::BatchId;
use crate::account::AccountId;
use bytes::Bytes;
use std::time::Instant;

/// One request's worth of accounts. Never empty.
pub(super) struct Chunk {
    pub accounts: Vec<AccountId>,
    /// By member of the swarm's watch, in its order.
    pub leases: Vec<Lease>,
    /// Shared by the nodes that answer at about the same time: one body serves them all.
    pub renewal: Renewal,
    pub body: Body,
}

/// A renewal time and the time from which it was drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renewal {
    pub since: Instant,
    pub at: Instant,
}

/// What one node holds of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// Acknowledged.
    Held { renew_at: Instant },
    /// To be sent as a whole.
    Due { at: Instant, attempt: u32 },
    /// Under way. `again`: something was added since.
    Sent { request: u64, attempt: u32, again: bool },
}

impl Lease {
    /// Since when it waits to be sent; `None` while it is under way.
    pub const fn due_at(self) -> Option<Instant> {
        match self {
            Self::Held { renew_at } => Some(renew_at),
            Self::Due { at, .. } => Some(at),
            Self::Sent { .. } => None,
        }
    }

    pub const fn attempt(self) -> u32 {
        match self {
            Self::Held { .. } => 0,
            Self::Due { attempt, .. } | Self::Sent { attempt, .. } => attempt,
        }
    }

    pub fn make_due(&mut self, now: Instant) {
        *self = match *self {
            Self::Held { .. } => Self::Due { at: now, attempt: 0 },
            Self::Due { at, attempt } => Self::Due {
                at: at.min(now),
                attempt,
            },
            Self::Sent { request, attempt, .. } => Self::Sent {
                request,
                attempt,
                again: true,
            },
        };
    }
}

/// The request body of a chunk, there only while a node needs it.
pub(super) enum Body {
    Absent,
    Loading(BatchId),
    Ready {
        bytes: Bytes,
        records: usize,
        until: Instant,
    },
}

impl Body {
    pub fn len(&self) -> usize {
        match self {
            Self::Ready { bytes, .. } => bytes.len(),
            Self::Absent | Self::Loading(_) => 0,
        }
    }
}

/// Chunks in ascending, disjoint ranges.
#[derive(Default)]
pub(super) struct Chunks {
    pub list: Vec<Chunk>,
    accounts: usize,
}

/// Whether an account was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Known,
    New,
}

impl Chunks {
    pub const fn accounts(&self) -> usize {
        self.accounts
    }

    /// The chunk that holds `account`.
    pub fn find(&self, account: &AccountId) -> Option<&Chunk> {
        let chunk = self.list.get(self.index_of(account)?)?;
        chunk.accounts.binary_search(account).is_ok().then_some(chunk)
    }

    pub fn contains(&self, account: &AccountId) -> bool {
        self.find(account).is_some()
    }

    /// The chunk whose range `account` falls in, whether it is there or not.
    pub fn range_of(&mut self, account: &AccountId) -> Option<&mut Chunk> {
        let index = self.index_of(account)?;
        self.list.get_mut(index)
    }

    /// Adds `account` to its chunk, which is split if it would hold more than `most`. `first` gives the leases of the
    /// very first chunk, `draw` a renewal time for one that is split off, drawn from the time it is given.
    pub fn insert(
        &mut self,
        account: AccountId,
        most: usize,
        first: impl FnOnce() -> (Vec<Lease>, Renewal),
        draw: impl FnOnce(Instant) -> Renewal,
    ) -> Placed {
        let Some(index) = self.index_of(&account) else {
            let (leases, renewal) = first();
            self.list.push(Chunk {
                accounts: vec![account],
                leases,
                renewal,
                body: Body::Absent,
            });
            self.accounts = 1;
            return Placed::New;
        };
        let Some(chunk) = self.list.get_mut(index) else {
            return Placed::Known;
        };
        let Err(place) = chunk.accounts.binary_search(&account) else {
            return Placed::Known;
        };
        chunk.accounts.insert(place, account);
        self.accounts += 1;
        if chunk.accounts.len() > most {
            // Both halves are written anew: `split_off` would leave the upper one behind the end of the lower.
            let whole = std::mem::replace(&mut chunk.accounts, Vec::with_capacity(most / 2 + most / 4));
            let (lower, upper) = whole.split_at(whole.len() / 2);
            chunk.accounts.extend_from_slice(lower);
            let upper = upper.to_vec();
            // Chunks that were one must not stay one in time, or all of a swarm would be renewed at once.
            let renewal = draw(chunk.renewal.since);
            let mut leases = chunk.leases.clone();
            for lease in &mut leases {
                if *lease
                    == (Lease::Held {
                        renew_at: chunk.renewal.at,
                    })
                {
                    *lease = Lease::Held { renew_at: renewal.at };
                }
            }
            self.list.insert(
                index + 1,
                Chunk {
                    accounts: upper,
                    leases,
                    renewal,
                    body: Body::Absent,
                },
            );
        }
        Placed::New
    }

    /// Whether it was there. An emptied chunk goes; two small neighbours that every node holds become one.
    pub fn remove(&mut self, account: &AccountId, most: usize) -> bool {
        let Some(index) = self.index_of(account) else {
            return false;
        };
        let Some(chunk) = self.list.get_mut(index) else {
            return false;
        };
        let Ok(place) = chunk.accounts.binary_search(account) else {
            return false;
        };
        take_without_trace(&mut chunk.accounts, place);
        self.accounts -= 1;
        if chunk.accounts.is_empty() {
            self.list.remove(index);
        } else if chunk.accounts.len() < most / 4 {
            self.merge(index, most);
        }
        true
    }

    fn merge(&mut self, index: usize, most: usize) {
        let Some([left, right]) = self.list.get_mut(index..index.saturating_add(2)) else {
            return;
        };
        let quiet = |chunk: &Chunk| {
            matches!(chunk.body, Body::Absent) && chunk.leases.iter().all(|lease| matches!(lease, Lease::Held { .. }))
        };
        if left.accounts.len() + right.accounts.len() > most / 2 || !quiet(left) || !quiet(right) {
            return;
        }
        left.accounts.append(&mut right.accounts);
        for (mine, theirs) in left.leases.iter_mut().zip(&right.leases) {
            if let (Lease::Held { renew_at }, Lease::Held { renew_at: other }) = (mine, theirs) {
                *renew_at = (*renew_at).min(*other);
            }
        }
        self.list.remove(index + 1);
    }

    /// Takes out every account that `leaves`. Bodies must have been dropped before.
    pub fn extract(&mut self, leaves: impl Fn(&AccountId) -> bool) -> Vec<AccountId> {
        let mut gone = Vec::new();
        for chunk in &mut self.list {
            if chunk.accounts.iter().any(&leaves) {
                let (leave, stay): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut chunk.accounts).into_iter().partition(&leaves);
                chunk.accounts = stay;
                gone.extend(leave);
            }
        }
        self.list.retain(|chunk| !chunk.accounts.is_empty());
        self.accounts -= gone.len();
        gone
    }

    /// Puts `parts` in the place of the chunk at `index`.
    pub fn replace(&mut self, index: usize, parts: Vec<Chunk>) {
        if index < self.list.len() {
            self.list.splice(index..=index, parts);
        }
    }

    fn index_of(&self, account: &AccountId) -> Option<usize> {
        if self.list.is_empty() {
            return None;
        }
        let after = self
            .list
            .partition_point(|chunk| chunk.accounts.first().is_some_and(|first| first <= account));
        Some(after.saturating_sub(1))
    }
}

/// As `Vec::remove`, which would leave the last account behind the end of the list as well, for as long as the list lives.
fn take_without_trace(accounts: &mut Vec<AccountId>, place: usize) {
    if let Some(from_there) = accounts.get_mut(place..) {
        from_there.rotate_left(1.min(from_there.len()));
    }
    if let Some(last) = accounts.last_mut() {
        *last = AccountId::new([0; 33]);
        // It is never read again, and must be written all the same.
        std::hint::black_box(last);
    }
    accounts.pop();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn account(number: u32) -> AccountId {
        let mut bytes = [0u8; 33];
        bytes[..4].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
        AccountId::new(bytes)
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn chunks_hold_what_a_set_holds_and_stay_within_their_size() {
        let now = Instant::now();
        let mut chunks = Chunks::default();
        let mut set = BTreeSet::new();
        for number in 0..5000 {
            let renewal = Renewal { since: now, at: now };
            let first = || (vec![Lease::Held { renew_at: now }], renewal);
            let placed = chunks.insert(account(number % 3000), 50, first, |_| renewal);
            assert_eq!(placed == Placed::New, set.insert(account(number % 3000)));
        }
        for number in 0..2900 {
            assert!(chunks.remove(&account(number), 50));
            assert!(!chunks.remove(&account(number), 50));
            set.remove(&account(number));
        }
        assert!(chunks.list.iter().all(|chunk| (1..=50).contains(&chunk.accounts.len())));
        let held: Vec<AccountId> = chunks.list.iter().flat_map(|chunk| chunk.accounts.clone()).collect();
        assert_eq!(held, set.iter().copied().collect::<Vec<_>>());
        assert_eq!(chunks.accounts(), set.len());
        assert!(
            chunks.list.len() < 40,
            "small neighbours are merged: {}",
            chunks.list.len()
        );
        assert!(set.iter().all(|account| chunks.contains(account)));
    }
}
