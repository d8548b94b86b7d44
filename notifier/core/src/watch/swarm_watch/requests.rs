//! What each node of a swarm is asked, and what its answers mean.
//!
//! In: what is due, replies. Out: requests, at most a few at once. Never: asks a node whose link is down.

use super::super::chunk::{Body, Lease};
use super::super::delta::Claim;
use super::super::reply::{Retry, read_reply};
use super::super::{Action, Load, ReplyFault, Shared};
use super::{InFlight, Link, SwarmWatch, cool_down};
use crate::account::AccountId;
use crate::swarm::NodeKey;
use bytes::Bytes;
use std::time::{Duration, Instant};

impl SwarmWatch {
    /// Sends one member what it may be sent now, deltas first.
    pub(super) fn fill(&mut self, index: usize, now: Instant, shared: &mut Shared) {
        let Self {
            id,
            members,
            chunks,
            deltas,
            ..
        } = self;
        let Some(member) = members.get_mut(index) else { return };
        if !member.is_up() {
            return;
        }
        for delta in deltas {
            if member.in_flight.len() >= MOST_IN_FLIGHT {
                return;
            }
            let Some(claim) = delta.claims.get_mut(index) else {
                continue;
            };
            let Claim::Due { at, attempt } = *claim else { continue };
            if at > now {
                continue;
            }
            let request = shared.request(member.node.key, delta.body.clone(), delta.accounts.len());
            *claim = Claim::Sent { request, attempt };
            member.in_flight.push(InFlight {
                request,
                records: delta.accounts.len(),
                delta: Some(delta.id),
            });
        }
        let mut free = MOST_CHUNKS_IN_FLIGHT.saturating_sub(member.in_flight.len());
        for chunk in &mut chunks.list {
            if free == 0 {
                return;
            }
            let Some(lease) = chunk.leases.get_mut(index) else {
                continue;
            };
            if lease.due_at().is_none_or(|at| at > now) {
                continue;
            }
            match &chunk.body {
                Body::Ready { bytes, records, .. } => {
                    let request = shared.request(member.node.key, bytes.clone(), *records);
                    *lease = Lease::Sent {
                        request,
                        attempt: lease.attempt(),
                        again: false,
                    };
                    member.in_flight.push(InFlight {
                        request,
                        records: *records,
                        delta: None,
                    });
                }
                Body::Loading(_) => {}
                Body::Absent if shared.may_load() => {
                    let batch = shared.load(Load::Chunk { swarm: *id }, chunk.accounts.clone());
                    chunk.body = Body::Loading(batch);
                }
                Body::Absent => {
                    shared.starve(*id);
                    return;
                }
            }
            free -= 1;
        }
    }

    pub(in crate::watch) fn reply(
        &mut self,
        key: NodeKey,
        request: u64,
        result: Result<&[Bytes], ReplyFault>,
        now: Instant,
        shared: &mut Shared,
    ) {
        let Some(index) = self.members.iter().position(|member| member.node.key == key) else {
            return;
        };
        let Some(member) = self.members.get_mut(index) else {
            return;
        };
        let Some(place) = member.in_flight.iter().position(|flight| flight.request == request) else {
            shared.counters.replies_unasked += 1;
            return;
        };
        let flight = member.in_flight.swap_remove(place);
        let verdict = match result {
            Ok(parts) => {
                member.silent_since = None;
                let verdict = read_reply(parts, flight.records);
                if verdict.is_none() {
                    shared.counters.replies_unreadable += 1;
                }
                verdict
            }
            Err(fault) => {
                shared.counters.count_fault(fault);
                if fault == ReplyFault::Timeout {
                    let since = *member.silent_since.get_or_insert(now);
                    if now.saturating_duration_since(since) >= DEAF_AFTER {
                        self.give_up(index, now, shared);
                        return;
                    }
                }
                None
            }
        };
        if let Some(verdict) = verdict {
            shared.counters.records_accepted += verdict.accepted;
            for (total, refused) in shared.counters.records_refused.iter_mut().zip(verdict.refused) {
                *total += refused;
            }
        }
        let retry = verdict.map_or(Retry::UntilTaken, |verdict| verdict.retry);
        match flight.delta {
            None => self.chunk_answered(index, request, retry, now, shared),
            Some(delta) => self.delta_answered(index, delta, retry, now, shared),
        }
    }

    fn chunk_answered(&mut self, index: usize, request: u64, retry: Retry, now: Instant, shared: &mut Shared) {
        // More than one if the chunk was split meanwhile.
        for chunk in &mut self.chunks.list {
            let Some(lease) = chunk.leases.get_mut(index) else {
                continue;
            };
            let Lease::Sent {
                request: sent,
                attempt,
                again,
            } = *lease
            else {
                continue;
            };
            if sent != request {
                continue;
            }
            *lease = if retry.is_due(attempt) {
                shared.counters.retries += 1;
                Lease::Due {
                    at: now + shared.retry_delay(attempt),
                    attempt: attempt.saturating_add(1),
                }
            } else if again {
                Lease::Due { at: now, attempt: 0 }
            } else {
                if !shared.is_renewal(chunk.renewal.at, now) {
                    chunk.renewal = shared.draw_renewal(now);
                }
                Lease::Held {
                    renew_at: chunk.renewal.at,
                }
            };
        }
    }

    fn delta_answered(&mut self, index: usize, id: u64, retry: Retry, now: Instant, shared: &mut Shared) {
        let Some(delta) = self.deltas.iter_mut().find(|delta| delta.id == id) else {
            return;
        };
        let Some(claim) = delta.claims.get_mut(index) else {
            return;
        };
        let Claim::Sent { attempt, .. } = *claim else { return };
        *claim = Claim::Done;
        if retry.is_due(attempt) {
            shared.counters.retries += 1;
            let at = now + shared.retry_delay(attempt);
            if attempt < DELTA_ATTEMPTS {
                *claim = Claim::Due {
                    at,
                    attempt: attempt + 1,
                };
            } else {
                let accounts: Vec<AccountId> = delta.accounts.iter().map(|(account, _)| *account).collect();
                for account in &accounts {
                    self.make_due(account, Some(index), at);
                }
            }
        }
        self.drop_finished_deltas(shared);
    }

    /// A link that carries bytes but no answers: a new one may do better, another node stands in meanwhile.
    fn give_up(&mut self, index: usize, now: Instant, shared: &mut Shared) {
        let Some(member) = self.members.get_mut(index) else {
            return;
        };
        shared.counters.links_deaf += 1;
        shared.actions.push_back(Action::Hang(member.node.key));
        member.failures = 1;
        member.link = Link::Waiting {
            until: now + cool_down(1),
        };
        self.forget_leases(index, now, shared);
    }
}

/// Requests under way at one node; one place is kept for deltas, which must not wait for a renewal.
const MOST_IN_FLIGHT: usize = 4;
const MOST_CHUNKS_IN_FLIGHT: usize = 3;
/// Retries of a delta before its accounts are sent by chunk.
const DELTA_ATTEMPTS: u32 = 4;
/// So long after the first unanswered request, with none answered since, the link is given up.
const DEAF_AFTER: Duration = Duration::from_secs(30);
