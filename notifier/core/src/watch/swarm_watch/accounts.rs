//! Which accounts a swarm is watched for, and the deltas that carry what is new.
//!
//! In: accounts that come, change, move and go. Out: chunks and deltas. Never: sends.

use super::super::chunk::{Body, Lease, Placed};
use super::super::delta::{Claim, Delta, Open};
use super::super::{Load, Shared};
use super::{Member, SwarmWatch};
use crate::account::AccountId;
use bytes::Bytes;
use std::time::{Duration, Instant};

impl SwarmWatch {
    /// New, or its record is new. Goes out with the open delta.
    pub(in crate::watch) fn change(
        &mut self,
        account: AccountId,
        record: Option<Bytes>,
        now: Instant,
        shared: &mut Shared,
    ) -> Placed {
        let placed = self.place(account, now, shared);
        self.open.seal_at.get_or_insert(now + DELTA_DELAY);
        match record {
            Some(record) => self.open.records.push((account, record)),
            None => self.open.unread.push(account),
        }
        let most = shared.settings.records_per_request;
        if self.open.records.len() >= most || self.open.unread.len() >= most {
            self.work_sealed(now, shared);
        }
        placed
    }

    fn work_sealed(&mut self, now: Instant, shared: &mut Shared) {
        self.seal(now, shared);
        self.work(now, shared);
    }

    pub const fn open_until(&self) -> Option<Instant> {
        self.open.seal_at
    }

    /// Came from another swarm: its chunk is sent as a whole.
    pub(in crate::watch) fn adopt(&mut self, account: AccountId, now: Instant, shared: &mut Shared) {
        self.place(account, now, shared);
        self.make_due(&account, None, now);
    }

    fn place(&mut self, account: AccountId, now: Instant, shared: &mut Shared) -> Placed {
        self.drop_body_of(&account, shared);
        let members = &self.members;
        let renewal = shared.draw_renewal(now);
        let first = || {
            let held = Lease::Held { renew_at: renewal.at };
            let lease = |member: &Member| {
                if member.is_live() {
                    held
                } else {
                    Lease::Due { at: now, attempt: 0 }
                }
            };
            (members.iter().map(lease).collect(), renewal)
        };
        self.chunks
            .insert(account, shared.settings.records_per_request, first, |since| {
                shared.draw_renewal(since)
            })
    }

    pub(in crate::watch) fn remove(&mut self, account: &AccountId, shared: &mut Shared) -> bool {
        self.drop_body_of(account, shared);
        self.open.remove(account);
        self.deltas.retain_mut(|delta| {
            shared.delta_bytes -= delta.body.len();
            delta.cut(account);
            let keep = !delta.accounts.is_empty();
            shared.delta_bytes += if keep { delta.body.len() } else { 0 };
            keep
        });
        self.chunks.remove(account, shared.settings.records_per_request)
    }

    /// Takes out the accounts that belong elsewhere now. Deltas may hold some of them, so their accounts are sent by chunk.
    pub(in crate::watch) fn extract(
        &mut self,
        leaves: impl Fn(&AccountId) -> bool,
        now: Instant,
        shared: &mut Shared,
    ) -> Vec<AccountId> {
        if !self.chunks.list.iter().any(|chunk| chunk.accounts.iter().any(&leaves)) {
            return Vec::new();
        }
        let mut changed: Vec<AccountId> = self.open.take_accounts();
        for delta in std::mem::take(&mut self.deltas) {
            shared.delta_bytes -= delta.body.len();
            changed.extend(delta.accounts.iter().map(|(account, _)| *account));
        }
        for account in &changed {
            self.make_due(account, None, now);
        }
        for chunk in &mut self.chunks.list {
            shared.body_bytes -= chunk.body.len();
            chunk.body = Body::Absent;
        }
        self.chunks.extract(leaves)
    }

    /// Nobody is in charge any more: everything is let go.
    pub(in crate::watch) fn dissolve(&mut self, now: Instant, shared: &mut Shared) -> Vec<AccountId> {
        self.set_order(Vec::new(), now, shared);
        let accounts = self.extract(|_| true, now, shared);
        self.open = Open::default();
        accounts
    }

    pub(super) fn make_due(&mut self, account: &AccountId, member: Option<usize>, at: Instant) {
        let Some(chunk) = self.chunks.range_of(account) else {
            return;
        };
        for (index, lease) in chunk.leases.iter_mut().enumerate() {
            if member.is_none_or(|wanted| wanted == index) {
                lease.make_due(at);
            }
        }
    }

    /// What was collected becomes a request body for every live member.
    pub(super) fn seal(&mut self, now: Instant, shared: &mut Shared) {
        let open = std::mem::take(&mut self.open);
        if !open.records.is_empty() {
            self.add_delta(open.records, now, shared);
        }
        if open.unread.is_empty() || !self.members.iter().any(Member::is_live) {
            // A member that is not live gets all chunks when it is up.
            return;
        }
        if shared.may_load() {
            shared.load(
                Load::Delta {
                    swarm: self.id,
                    accounts: open.unread.clone(),
                },
                open.unread,
            );
        } else {
            for account in &open.unread {
                self.make_due(account, None, now);
            }
        }
    }

    pub(super) fn add_delta(&mut self, records: Vec<(AccountId, Bytes)>, now: Instant, shared: &mut Shared) {
        let claim = |index: usize, member: &Member| {
            // A link that is not up yet takes the chunks it still misses as a whole, so it needs no delta for them.
            let missing = |(account, _): &(AccountId, Bytes)| {
                self.chunks
                    .find(account)
                    .is_none_or(|chunk| matches!(chunk.leases.get(index), Some(Lease::Due { .. })))
            };
            if !member.is_live() || (!member.is_up() && records.iter().all(missing)) {
                Claim::Done
            } else {
                Claim::Due { at: now, attempt: 0 }
            }
        };
        let claims: Vec<Claim> = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| claim(index, member))
            .collect();
        if claims.iter().all(|claim| matches!(claim, Claim::Done)) {
            return;
        }
        if self.deltas.len() >= MOST_DELTAS || shared.delta_bytes >= shared.settings.pending_bytes.saturating_mul(2) {
            shared.counters.deltas_dropped += 1;
            for (account, _) in &records {
                self.make_due(account, None, now);
            }
            return;
        }
        let delta = Delta::new(shared.next_id(), &records, claims);
        shared.delta_bytes += delta.body.len();
        self.deltas.push(delta);
    }

    pub(super) fn drop_finished_deltas(&mut self, shared: &mut Shared) {
        self.deltas.retain(|delta| {
            let keep = delta.claims.iter().any(|claim| !matches!(claim, Claim::Done));
            if !keep {
                shared.delta_bytes -= delta.body.len();
            }
            keep
        });
    }
}

/// New and changed accounts are collected this long.
const DELTA_DELAY: Duration = Duration::from_millis(100);
/// Deltas of one swarm not yet acknowledged; beyond that their chunks are sent as a whole.
const MOST_DELTAS: usize = 1024;
