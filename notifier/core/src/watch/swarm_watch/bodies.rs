//! The request bodies of chunks: made of records as they are read, gone when no node needs them.
//!
//! In: records by account. Out: bodies in chunks. Never: keeps a body longer than a moment.

use super::super::chunk::{Body, Chunk, Lease};
use super::super::{BatchId, Shared};
use super::SwarmWatch;
use crate::account::AccountId;
use bytes::Bytes;
use std::time::{Duration, Instant};

impl SwarmWatch {
    /// The records of a chunk came. A chunk with more records than one request may have becomes several.
    pub(in crate::watch) fn chunk_loaded(
        &mut self,
        batch: BatchId,
        mut records: Vec<(AccountId, Vec<Bytes>)>,
        now: Instant,
        shared: &mut Shared,
    ) {
        let Some(place) = self
            .chunks
            .list
            .iter()
            .position(|chunk| matches!(chunk.body, Body::Loading(loading) if loading == batch))
        else {
            return;
        };
        let Some(chunk) = self.chunks.list.get(place) else {
            return;
        };
        records.sort_unstable_by_key(|(account, _)| *account);
        let most = shared.settings.records_per_request;
        let mut parts: Vec<(Vec<AccountId>, Vec<u8>, usize)> = Vec::new();
        for account in &chunk.accounts {
            let found = records.binary_search_by_key(account, |(account, _)| *account);
            let found = found
                .ok()
                .and_then(|index| records.get(index))
                .map_or(&[][..], |(_, records)| records);
            let found = found.get(..most).unwrap_or(found);
            if parts.last().is_none_or(|(_, _, count)| count + found.len() > most) {
                parts.push((Vec::new(), vec![b'l'], 0));
            }
            if let Some((accounts, body, count)) = parts.last_mut() {
                accounts.push(*account);
                found.iter().for_each(|record| body.extend_from_slice(record));
                *count += found.len();
            }
        }
        let (leases, renewal) = (chunk.leases.clone(), chunk.renewal);
        let mut chunks = Vec::with_capacity(parts.len());
        for (accounts, mut body, records) in parts {
            body.push(b'e');
            let mut leases = leases.clone();
            let mut kept = Body::Absent;
            if records > 0 {
                shared.body_bytes += body.len();
                shared.largest_body = shared.largest_body.max(body.len());
                kept = Body::Ready {
                    bytes: body.into(),
                    records,
                    until: now + BODY_LIFE,
                };
            } else {
                // Nothing is on record: there is nothing to ask for, and the store will say when it is gone.
                // A link that is down still owes all of its chunks: what comes later would rely on that.
                let held = Lease::Held {
                    renew_at: shared.draw_renewal(now).at,
                };
                for (lease, member) in leases.iter_mut().zip(&self.members) {
                    if member.is_up() && lease.due_at().is_some_and(|at| at <= now) {
                        *lease = held;
                    }
                }
            }
            chunks.push(Chunk {
                accounts,
                leases,
                renewal,
                body: kept,
            });
        }
        self.chunks.replace(place, chunks);
    }

    /// The records of changed accounts came.
    pub(in crate::watch) fn delta_loaded(
        &mut self,
        records: Vec<(AccountId, Vec<Bytes>)>,
        now: Instant,
        shared: &mut Shared,
    ) {
        let most = shared.settings.records_per_request;
        let mut delta = Vec::new();
        for (account, records) in records {
            if !self.chunks.contains(&account) {
                continue;
            }
            for record in records.into_iter().take(most) {
                delta.push((account, record));
                if delta.len() >= most {
                    self.add_delta(std::mem::take(&mut delta), now, shared);
                }
            }
        }
        if !delta.is_empty() {
            self.add_delta(delta, now, shared);
        }
    }

    /// The store could not be read: asked again by chunk, in a moment.
    pub(in crate::watch) fn load_failed(
        &mut self,
        batch: BatchId,
        accounts: &[AccountId],
        now: Instant,
        shared: &mut Shared,
    ) {
        for chunk in &mut self.chunks.list {
            if matches!(chunk.body, Body::Loading(loading) if loading == batch) {
                chunk.body = Body::Absent;
                for lease in chunk
                    .leases
                    .iter_mut()
                    .filter(|lease| lease.due_at().is_some_and(|at| at <= now))
                {
                    let attempt = lease.attempt();
                    let at = now + shared.retry_delay(attempt);
                    *lease = Lease::Due {
                        at,
                        attempt: attempt.saturating_add(1),
                    };
                }
            }
        }
        let at = now + shared.retry_delay(0);
        for account in accounts {
            self.make_due(account, None, at);
        }
    }

    pub(super) fn drop_body_of(&mut self, account: &AccountId, shared: &mut Shared) {
        if let Some(chunk) = self.chunks.range_of(account) {
            shared.body_bytes -= chunk.body.len();
            chunk.body = Body::Absent;
        }
    }

    /// A body that a slow node keeps waiting for must not keep its place from others.
    pub(super) fn drop_old_bodies(&mut self, now: Instant, shared: &mut Shared) {
        for chunk in &mut self.chunks.list {
            if matches!(chunk.body, Body::Ready { until, .. } if until <= now) {
                shared.body_bytes -= chunk.body.len();
                chunk.body = Body::Absent;
            }
        }
    }

    pub(super) fn drop_unneeded_bodies(&mut self, shared: &mut Shared) {
        let members = &self.members;
        for chunk in &mut self.chunks.list {
            let Body::Ready { until, .. } = chunk.body else {
                continue;
            };
            let needed = members
                .iter()
                .zip(&chunk.leases)
                .any(|(member, lease)| member.is_up() && lease.due_at().is_some_and(|at| at <= until));
            if !needed {
                shared.body_bytes -= chunk.body.len();
                chunk.body = Body::Absent;
            }
        }
    }
}

/// A body is kept this long for the other nodes of the swarm.
const BODY_LIFE: Duration = Duration::from_secs(10);
