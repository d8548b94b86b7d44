//! What happens to entries: in, out, and round again.
//!
//! In: calls of the shell. Out: pushes, writes, effects. Never: decides what an answer means for the lane.

use super::backlog::Backlog;
use super::counters::DropReason;
use super::entries::{Place, Slot, Stage};
use super::{
    Effect, Entry, EntryId, Outbox, Push, PushId, Rejected, Restored, Target, Write, class_of, lifetime, millis,
};
use crate::account::Service;
use crate::lane::{Flight, LONGEST_PAUSE, Outcome, RetryReason, Scope, Sign, Turn};
use crate::seal::{Class, Sealed};
use quietline_shared::backoff::Backoff;
use std::sync::Arc;
use std::time::Duration;

/// A token that gets too many: until when, and the one entry that is kept for it.
pub struct Resting {
    until_ms: i64,
    kept: Option<Place>,
}

impl Resting {
    #[cfg(test)]
    pub const fn is_vacant(&self) -> bool {
        self.kept.is_none()
    }
}

impl Outbox {
    /// Takes a wakeup: the entry must be written and then reported with [`handle_written`](Self::handle_written). When full, the
    /// oldest of the least valuable class gives way.
    ///
    /// It lives for [`SHORTEST_LIFE`] at least, whatever its message's expiry: that is the word of one node, which no hash proves.
    pub fn accept(&mut self, mut sealed: Sealed, push_id: PushId, now_ms: i64) -> Result<Entry, Rejected> {
        let (service, class) = (sealed.service, sealed.class);
        let lane = service.place();
        if !self.lanes[lane].lane.exists() {
            return Err(Rejected::NoLane);
        }
        let shortest_ms = now_ms.saturating_add(millis(SHORTEST_LIFE));
        sealed.expires_at_ms = sealed.expires_at_ms.max(self.to_wall_time(shortest_ms));
        let longest_ms = now_ms.saturating_add(millis(lifetime(service)));
        let deadline_ms = self.to_own_time(sealed.expires_at_ms).clamp(shortest_ms, longest_ms);
        if !self.make_place(lane, class) {
            self.lanes[lane].counters.count_refused(class);
            return Err(Rejected::Full);
        }
        let id = EntryId(self.next_id);
        self.next_id += 1;
        let mut slot = Slot::new(
            id,
            push_id,
            Stage::Unwritten,
            lane as u8,
            class_of(class) as u8,
            deadline_ms,
        );
        slot.size = size_of_body(&sealed);
        slot.token = self.token_of(&sealed);
        slot.due_ms = self.first_turn(lane, class, push_id, now_ms, deadline_ms);
        let sealed = Arc::new(sealed);
        // Behind entries that wait on disk it waits on disk as well, or it would overtake them.
        let size = slot.size as usize;
        if self.lanes[lane].cold[class_of(class)].first().is_none() && self.make_memory(size, lane, class_of(class)) {
            slot.body = Some(Arc::clone(&sealed));
            slot.counted = true;
            self.lanes[lane].bytes += size;
        }
        self.entries.insert(slot);
        self.lanes[lane].entries += 1;
        self.lanes[lane].counters.accepted += 1;
        Ok(Entry {
            id,
            push_id,
            sealed,
            deadline_ms: self.to_wall_time(deadline_ms),
            attempt: 0,
        })
    }

    /// These entries are durable: they may go.
    pub fn handle_written(&mut self, ids: impl IntoIterator<Item = EntryId>) {
        for id in ids {
            if let Some(place) = self.find(id, Stage::Unwritten)
                && !self.take_place_of_older(place)
            {
                let due_ms = self.entries.at(place).due_ms;
                if due_ms > 0 {
                    self.wait_until(place, due_ms);
                } else {
                    self.enqueue(place, End::Back);
                }
            }
        }
    }

    /// These entries will not become durable. Their messages must not count as seen.
    pub fn handle_write_failed(&mut self, ids: impl IntoIterator<Item = EntryId>) {
        for id in ids {
            if let Some(place) = self.find(id, Stage::Unwritten) {
                self.end(place, Some(DropReason::Unwritten));
            }
        }
    }

    /// An entry that the file holds at the start; in the order of their ids.
    pub fn restore(&mut self, entry: Restored, now_ms: i64) {
        let (lane, class) = (entry.service.place(), class_of(entry.class));
        self.next_id = self.next_id.max(entry.id.0.saturating_add(1));
        if self.entries.find(entry.id).is_some() {
            return;
        }
        self.lanes[lane].counters.restored += 1;
        let deadline_ms = self
            .to_own_time(entry.deadline_ms)
            .min(now_ms.saturating_add(millis(lifetime(entry.service))));
        let refused = if deadline_ms <= now_ms {
            Some(DropReason::Deadline)
        } else if !self.make_place(lane, entry.class) {
            Some(DropReason::Shed)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.lanes[lane].counters.count_drop(reason, class);
            self.writes.push_back(Write::Remove(entry.id));
            return;
        }
        let mut slot = Slot::new(
            entry.id,
            entry.push_id,
            Stage::Cold,
            lane as u8,
            class as u8,
            deadline_ms,
        );
        slot.attempt = entry.attempt;
        slot.fallback = entry.fallback;
        slot.size = u32::try_from(entry.size).unwrap_or(u32::MAX);
        let place = self.entries.insert(slot);
        self.lanes[lane].entries += 1;
        self.enqueue(place, End::Back);
    }

    /// The next wakeup to send, if one may go now. The shell answers each with [`handle_outcome`](Self::handle_outcome), once.
    pub fn poll_send(&mut self, now_ms: i64) -> Option<Push> {
        // Entries that are dropped on the way cost time; beyond this many the shell is asked to come back at once.
        let mut patience = 4096u32;
        for _ in 0..self.lanes.len() {
            let lane = self.turn;
            self.turn = (self.turn + 1) % self.lanes.len();
            while patience > 0
                && self.lanes[lane].may_send(now_ms)
                && let Some(place) = self.lanes[lane].hot.iter().find_map(|list| list.first())
            {
                patience -= 1;
                if let Some(push) = self.send(place, now_ms) {
                    return Some(push);
                }
            }
        }
        None
    }

    /// Which bodies are to be read from the file: at most `most`, the most valuable first. Each is answered with
    /// [`handle_loaded`](Self::handle_loaded) or [`handle_unreadable`](Self::handle_unreadable).
    pub fn poll_load(&mut self, most: usize, now_ms: i64) -> Vec<EntryId> {
        let mut ids = Vec::new();
        for class in 0..Class::ALL.len() {
            for lane in 0..self.lanes.len() {
                while ids.len() < most
                    && let Some(place) = self.lanes[lane].cold[class].first()
                    && self.may_load(lane, class, self.entries.at(place).size as usize, now_ms)
                {
                    self.take_out(place);
                    let slot = self.entries.at_mut(place);
                    slot.stage = Stage::Loading;
                    slot.counted = true;
                    ids.push(slot.id);
                    self.lanes[lane].bytes += slot.size as usize;
                    self.lanes[lane].loading += 1;
                }
            }
        }
        ids
    }

    pub fn handle_loaded(&mut self, id: EntryId, sealed: Sealed) {
        let Some(place) = self.find(id, Stage::Loading) else {
            return;
        };
        let token = self.token_of(&sealed);
        if self.withdrawn.concerns(token, id) {
            return self.end(place, Some(DropReason::Unsubscribed));
        }
        self.take_out(place);
        let slot = self.entries.at_mut(place);
        let lane = &mut self.lanes[usize::from(slot.lane)];
        lane.bytes -= slot.size as usize;
        slot.size = size_of_body(&sealed);
        lane.bytes += slot.size as usize;
        slot.token = token;
        slot.body = Some(Arc::new(sealed));
        if !self.take_place_of_older(place) {
            self.enqueue(place, End::Back);
        }
    }

    /// The file has no such row, or one that is not a wakeup.
    pub fn handle_unreadable(&mut self, id: EntryId) {
        if let Some(place) = self.find(id, Stage::Loading) {
            self.end(place, Some(DropReason::Unreadable));
        }
    }

    /// What the provider said to a push. An outcome of an entry that is not under way changes nothing.
    pub fn handle_outcome(&mut self, id: EntryId, outcome: Outcome, now_ms: i64, random: u64) {
        let Some(place) = self.find(id, Stage::InFlight) else {
            return;
        };
        let slot = self.entries.at(place);
        let lane = usize::from(slot.lane);
        let service = Service::ALL[lane];
        let stall_ms = millis(self.stall_after(lane));
        let flight = Flight {
            push: id.0,
            target: slot.token,
            sent_at_ms: slot.due_ms.saturating_sub(stall_ms),
        };
        self.entries.untime(place);
        let backlog = &mut self.lanes[lane];
        match backlog
            .lane
            .note_answer(flight, Sign::of(&outcome, now_ms), now_ms, random)
        {
            Some(Turn::Rests) => backlog.counters.rests += 1,
            Some(Turn::Stopped) => {
                backlog.counters.stops += 1;
                self.tell(Effect::LaneStopped(service));
            }
            Some(Turn::Resumed) => self.tell(Effect::LaneResumed(service)),
            None => {}
        }
        match outcome {
            Outcome::Delivered => {
                self.lanes[lane].lane.note_delivered(now_ms);
                self.lanes[lane].counters.delivered += 1;
                self.end(place, None);
            }
            Outcome::Retry { after, reason } => self.retry(place, after, reason, now_ms, random),
            Outcome::Later { after } => self.postpone(place, after, now_ms),
            Outcome::Held { .. } => {
                self.lanes[lane].counters.held += 1;
                self.entries.time(place);
                self.put_back(place);
            }
            Outcome::Expired => self.end(place, Some(DropReason::Deadline)),
            Outcome::TryFallback => self.fall_back(place, now_ms),
            Outcome::Gone {
                provider_time_ms,
                certain,
            } => {
                if self.lanes[lane].lane.believes_gone(certain, now_ms) {
                    let gone = self.entries.at(place).body.as_deref().map(|sealed| Effect::TokenGone {
                        target: Target {
                            service,
                            token: sealed.token.clone(),
                        },
                        provider_time_ms,
                    });
                    if let Some(gone) = gone {
                        self.tell(gone);
                    }
                    self.end(place, Some(DropReason::Gone));
                } else {
                    self.end(place, Some(DropReason::GoneUnproven));
                }
            }
            Outcome::Refused(refusal) => self.end(place, Some(refusal.into())),
        }
    }

    /// The credential was exchanged: what was learnt with the old one is forgotten, and a stopped lane tries at once.
    pub fn handle_credential_changed(&mut self, service: Service, now_ms: i64) {
        self.lanes[service.place()].lane.forget_health(now_ms);
    }

    /// Drops what is too late and queues what is due. Bounded: [`next_deadline`](Self::next_deadline) is in the past if more is left.
    pub fn handle_timeout(&mut self, now_ms: i64) {
        self.withdrawn.expire(now_ms);
        for place in self.entries.overdue(now_ms, TIMEOUT_STEPS) {
            match self.entries.at(place).stage {
                Stage::InFlight => self.take_back(place, now_ms),
                _ => self.end(place, Some(DropReason::Deadline)),
            }
        }
        for _ in 0..TIMEOUT_STEPS {
            match self.retries.first() {
                Some((due_ms, place)) if *due_ms <= now_ms => {
                    let place = *place;
                    self.take_out(place);
                    self.enqueue(place, End::Front);
                }
                _ => break,
            }
        }
        for _ in 0..TIMEOUT_STEPS {
            match self.token_ends.first() {
                Some((until_ms, token)) if *until_ms <= now_ms => {
                    let end = (*until_ms, *token);
                    self.token_ends.remove(&end);
                    if let Some(Resting { kept: Some(place), .. }) = self.resting_tokens.remove(&end.1) {
                        self.enqueue(place, End::Front);
                    }
                }
                _ => break,
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) and then `poll_send` have something to do. `poll_load` has something to do
    /// only after another call.
    pub fn next_deadline(&self) -> Option<i64> {
        let retry = self.retries.first().map(|(due_ms, _)| *due_ms);
        let token = self.token_ends.first().map(|(until_ms, _)| *until_ms);
        let waiting = self.lanes.iter().filter(|backlog| backlog.has_hot());
        let lane = waiting.filter_map(Backlog::opens_at).min();
        [retry, token, lane, self.entries.first_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes the entry for sending; `None` if it is dropped or put aside instead.
    fn send(&mut self, place: Place, now_ms: i64) -> Option<Push> {
        let slot = self.entries.at(place);
        if slot.deadline_ms <= now_ms {
            self.end(place, Some(DropReason::Deadline));
            return None;
        }
        // It was being written, or under way, when its device was withdrawn.
        if self.withdrawn.concerns(slot.token, slot.id) {
            self.end(place, Some(DropReason::Unsubscribed));
            return None;
        }
        if self
            .resting_tokens
            .get(&slot.token)
            .is_some_and(|resting| now_ms < resting.until_ms)
        {
            self.take_out(place);
            self.rest_with_token(place);
            return None;
        }
        self.take_out(place);
        self.forget_too_long(place);
        let lane = usize::from(self.entries.at(place).lane);
        let due_ms = now_ms.saturating_add(millis(self.stall_after(lane)));
        self.entries.time_by_due(place, due_ms);
        let slot = self.entries.at_mut(place);
        slot.stage = Stage::InFlight;
        self.lanes[lane].lane.note_sent(slot.id.0, now_ms);
        let sealed = slot.body.clone();
        debug_assert!(sealed.is_some(), "a hot entry has its body");
        Some(Push {
            id: slot.id,
            push_id: slot.push_id,
            sealed: sealed?,
            fallback: slot.fallback,
            deadline_ms: slot.deadline_ms.saturating_add(self.wall_ahead_ms),
            attempt: slot.attempt,
        })
    }

    fn retry(&mut self, place: Place, after: Option<Duration>, reason: RetryReason, now_ms: i64, random: u64) {
        if self.is_outdated(place) {
            let lane = usize::from(self.entries.at(place).lane);
            self.lanes[lane].counters.count_retry(reason);
            return self.end(place, Some(DropReason::Collapsed));
        }
        let slot = self.entries.at_mut(place);
        let lane = usize::from(slot.lane);
        let service = Service::ALL[lane];
        let own = reason.pause(service, slot.attempt, random);
        slot.attempt = slot.attempt.saturating_add(1);
        self.lanes[lane].counters.count_retry(reason);
        let after = after.map(|after| asked_pause(after, reason, random));
        let pause = match after {
            Some(asked) if reason.is_from_provider() => Some(asked),
            // Our own side asks for it: the pause between tries grows nevertheless.
            Some(asked) => Some(asked.max(own.unwrap_or_default())),
            None => own,
        };
        let Some(pause) = pause else {
            self.note_change(place);
            self.entries.time(place);
            return self.put_back(place);
        };
        let until_ms = now_ms.saturating_add(millis(pause));
        let deadline_ms = slot.deadline_ms;
        let too_late = |time_ms: i64| time_ms >= deadline_ms;
        self.entries.time(place);
        match reason.scope() {
            Scope::Entry if too_late(until_ms) => self.end(place, Some(DropReason::Deadline)),
            Scope::Entry => {
                self.note_change(place);
                let slot = self.entries.at_mut(place);
                slot.stage = Stage::Retrying;
                slot.due_ms = until_ms;
                self.retries.insert((until_ms, place));
                self.note_too_long(place);
                self.cool_down(place);
            }
            Scope::Token => {
                if self.resting_tokens.len() >= MAX_RESTING_TOKENS {
                    return self.end(place, Some(DropReason::Collapsed));
                }
                self.note_change(place);
                let token = self.entries.at(place).token;
                let before = self.resting_tokens.remove(&token);
                if let Some(before) = &before {
                    self.token_ends.remove(&(before.until_ms, token));
                }
                self.resting_tokens.insert(
                    token,
                    Resting {
                        until_ms,
                        kept: before.and_then(|before| before.kept),
                    },
                );
                self.token_ends.insert((until_ms, token));
                self.rest_with_token(place);
            }
            Scope::Lane => {
                let whole = after.unwrap_or_else(|| LANE_PAUSE.delay(0, random));
                self.lanes[lane].lane.slow_down(whole, now_ms);
                self.note_change(place);
                self.put_back(place);
            }
            Scope::LaneStopped => {
                self.note_change(place);
                // To the back: should it be this one entry that is refused, the next probe is another.
                self.enqueue(place, End::Back);
            }
        }
    }

    fn postpone(&mut self, place: Place, after: Duration, now_ms: i64) {
        let due_ms = now_ms.saturating_add(millis(after.clamp(SHORTEST_TURN, LONGEST_PAUSE)));
        self.entries.time(place);
        let slot = self.entries.at_mut(place);
        if due_ms >= slot.deadline_ms {
            return self.end(place, Some(DropReason::Deadline));
        }
        // Nothing the file knows has changed: after a restart it is simply sent.
        self.wait_until(place, due_ms);
    }

    /// Puts an entry that is in no list aside until this moment.
    fn wait_until(&mut self, place: Place, due_ms: i64) {
        let slot = self.entries.at_mut(place);
        slot.stage = Stage::Retrying;
        slot.due_ms = due_ms;
        self.retries.insert((due_ms, place));
        self.cool_down(place);
    }

    fn fall_back(&mut self, place: Place, now_ms: i64) {
        let slot = self.entries.at_mut(place);
        let has_short_form = slot.body.as_deref().is_some_and(|sealed| sealed.fallback.is_some());
        if slot.fallback || !has_short_form {
            return self.end(place, Some(DropReason::TooLarge));
        }
        if slot.deadline_ms <= now_ms {
            return self.end(place, Some(DropReason::Deadline));
        }
        slot.fallback = true;
        slot.attempt = slot.attempt.saturating_add(1);
        let lane = usize::from(slot.lane);
        self.lanes[lane].counters.fallbacks += 1;
        self.note_change(place);
        self.entries.time(place);
        self.enqueue(place, End::Front);
    }

    /// Keeps one entry for a resting token: the most valuable, of equals the newest.
    fn rest_with_token(&mut self, place: Place) {
        let slot = self.entries.at_mut(place);
        slot.stage = Stage::TokenResting;
        let (token, newcomer) = (slot.token, (std::cmp::Reverse(slot.class), slot.id));
        let kept = self.resting_tokens.get(&token).and_then(|resting| resting.kept);
        let loser = match kept {
            Some(kept) if kept != place => {
                let old = self.entries.at(kept);
                if newcomer > (std::cmp::Reverse(old.class), old.id) {
                    Some(kept)
                } else {
                    Some(place)
                }
            }
            _ => None,
        };
        if loser != Some(place) {
            if let Some(resting) = self.resting_tokens.get_mut(&token) {
                resting.kept = Some(place);
            }
            self.cool_down(place);
        }
        if let Some(loser) = loser {
            self.end(loser, Some(DropReason::Collapsed));
        }
    }

    /// Queues an entry that is in no list.
    pub(super) fn enqueue(&mut self, place: Place, end: End) {
        let slot = self.entries.at_mut(place);
        let (lane, class) = (usize::from(slot.lane), usize::from(slot.class));
        let list = if slot.body.is_some() {
            slot.stage = Stage::Hot;
            &mut self.lanes[lane].hot[class]
        } else {
            slot.stage = Stage::Cold;
            &mut self.lanes[lane].cold[class]
        };
        match end {
            End::Front => self.entries.push_front(list, place),
            End::Back => self.entries.push_back(list, place),
        }
    }

    /// A wakeup without a body takes the place of an older one for the same token that still waits: true if it did. The token must
    /// be known, and the newer one must not end before the older.
    fn take_place_of_older(&mut self, place: Place) -> bool {
        let Some(older) = self.waiting_too_long(place) else {
            self.note_too_long(place);
            return false;
        };
        let (slot, other) = (self.entries.at(place), self.entries.at(older));
        if other.id > slot.id || slot.deadline_ms < other.deadline_ms {
            return false;
        }
        let (lane, class) = (usize::from(slot.lane), usize::from(slot.class));
        let has_body = slot.body.is_some();
        let stage = other.stage;
        let took = match (stage, has_body) {
            (Stage::Hot, true) => {
                self.entries.replace(&mut self.lanes[lane].hot[class], older, place);
                true
            }
            (Stage::Cold, false) => {
                self.entries.replace(&mut self.lanes[lane].cold[class], older, place);
                true
            }
            _ => false,
        };
        if took {
            self.entries.at_mut(place).stage = stage;
            // It is in no list any more.
            self.entries.at_mut(older).stage = Stage::InFlight;
        }
        self.end(older, Some(DropReason::Collapsed));
        self.note_too_long(place);
        took
    }

    /// Whether a newer one of its kind waits for the same token, as long as it or longer.
    fn is_outdated(&self, place: Place) -> bool {
        self.waiting_too_long(place).is_some_and(|newer| {
            let (slot, other) = (self.entries.at(place), self.entries.at(newer));
            other.id > slot.id && other.deadline_ms >= slot.deadline_ms
        })
    }

    /// Another wakeup without a body that waits for the same token.
    fn waiting_too_long(&self, place: Place) -> Option<Place> {
        let slot = self.entries.at(place);
        let is_same = |other: &Place| *other != place && self.entries.at(*other).token == slot.token;
        let found = self.too_long.find(slot.token, is_same)?;
        is_too_long(slot).then_some(*found)
    }

    fn note_too_long(&mut self, place: Place) {
        let slot = self.entries.at(place);
        let token = slot.token;
        if !is_too_long(slot)
            || self
                .too_long
                .find(token, |other| self.entries.at(*other).token == token)
                .is_some()
        {
            return;
        }
        let entries = &self.entries;
        self.too_long
            .insert_unique(token, place, |place| entries.at(*place).token);
    }

    fn forget_too_long(&mut self, place: Place) {
        let slot = self.entries.at(place);
        if is_too_long(slot)
            && let Ok(found) = self.too_long.find_entry(slot.token, |other| *other == place)
        {
            found.remove();
        }
    }

    /// Queues an entry that is in no list where it stood: what had its turn once has it again before what is younger.
    fn put_back(&mut self, place: Place) {
        let slot = self.entries.at_mut(place);
        if slot.body.is_none() {
            return self.enqueue(place, End::Front);
        }
        slot.stage = Stage::Hot;
        let (lane, class) = (usize::from(slot.lane), usize::from(slot.class));
        self.note_too_long(place);
        self.entries.put_back(&mut self.lanes[lane].hot[class], place);
    }

    /// No outcome came for too long: the push may or may not have arrived.
    fn take_back(&mut self, place: Place, now_ms: i64) {
        let slot = self.entries.at(place);
        let (id, lane) = (slot.id, usize::from(slot.lane));
        self.lanes[lane].counters.stalls += 1;
        self.tell(Effect::LaneStalled(Service::ALL[lane]));
        let lost = Outcome::Retry {
            after: None,
            reason: RetryReason::Timeout,
        };
        self.handle_outcome(id, lost, now_ms, id.0.unsigned_abs());
    }

    /// Takes an entry out of whatever holds it. Its stage is set by who puts it elsewhere.
    pub(super) fn take_out(&mut self, place: Place) {
        let slot = self.entries.at(place);
        let (lane, class) = (usize::from(slot.lane), usize::from(slot.class));
        match slot.stage {
            Stage::Hot => self.entries.unlink(&mut self.lanes[lane].hot[class], place),
            Stage::Cold => self.entries.unlink(&mut self.lanes[lane].cold[class], place),
            Stage::Loading => self.lanes[lane].loading = self.lanes[lane].loading.saturating_sub(1),
            Stage::Retrying => {
                self.retries.remove(&(slot.due_ms, place));
            }
            Stage::TokenResting => {
                if let Some(resting) = self.resting_tokens.get_mut(&slot.token)
                    && resting.kept == Some(place)
                {
                    resting.kept = None;
                }
            }
            // The lane counted it back when the outcome came.
            Stage::Unwritten | Stage::InFlight => {}
        }
    }

    /// The entry is over: delivered, or dropped for a reason.
    pub(super) fn end(&mut self, place: Place, reason: Option<DropReason>) {
        self.take_out(place);
        self.forget_too_long(place);
        self.release_body(place);
        if let Some(slot) = self.entries.remove(place) {
            self.lanes[usize::from(slot.lane)].entries -= 1;
            if let Some(reason) = reason {
                self.lanes[usize::from(slot.lane)]
                    .counters
                    .count_drop(reason, usize::from(slot.class));
            }
            if reason != Some(DropReason::Unwritten) {
                self.writes.push_back(Write::Remove(slot.id));
            }
        }
    }

    pub(super) fn release_body(&mut self, place: Place) {
        let slot = self.entries.at_mut(place);
        slot.body = None;
        if std::mem::take(&mut slot.counted) {
            self.lanes[usize::from(slot.lane)].bytes -= slot.size as usize;
        }
    }

    /// A body whose turn is some time away gives its memory up when memory is short.
    fn cool_down(&mut self, place: Place) {
        let waits = matches!(self.entries.at(place).stage, Stage::Retrying | Stage::TokenResting);
        if waits && self.memory() > self.settings.memory / 4 * 3 {
            self.release_body(place);
        }
    }

    fn tell(&mut self, effect: Effect) {
        self.lanes[effect.service().place()].untold += 1;
        self.effects.push_back(effect);
    }

    fn note_change(&mut self, place: Place) {
        let slot = self.entries.at(place);
        self.writes.push_back(Write::Change {
            id: slot.id,
            attempt: slot.attempt,
            fallback: slot.fallback,
        });
    }

    fn find(&self, id: EntryId, stage: Stage) -> Option<Place> {
        self.entries
            .find(id)
            .filter(|place| self.entries.at(*place).stage == stage)
    }
}

pub enum End {
    Front,
    Back,
}

/// What is asked for is bounded, so that one odd header can neither silence a lane for a day nor make it spin. What a provider
/// asks for is spread a little: it tells many the same.
fn asked_pause(after: Duration, reason: RetryReason, random: u64) -> Duration {
    if !reason.is_from_provider() {
        return after.min(LONGEST_PAUSE);
    }
    let after = after.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    let spread_ms = millis(after).unsigned_abs() / 16;
    (after + Duration::from_millis(random % (spread_ms + 1))).min(LONGEST_PAUSE)
}

/// Whether it carries no body, and for whom is known.
fn is_too_long(slot: &Slot) -> bool {
    usize::from(slot.class) == class_of(Class::TooLong) && slot.token != 0
}

/// With what the boxes and the shared count take.
fn size_of_body(sealed: &Sealed) -> u32 {
    let fallback = sealed.fallback.as_deref().map_or(0, <[u8]>::len);
    let bytes = sealed.body.len() + fallback + sealed.token.expose().len() + size_of::<Sealed>() + 64;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A provider is asked to keep a wakeup for 300 s at least (`time_to_live`), so a minute makes none arrive later than it might anyway.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);

/// At least 60 s where the provider does not say how long.
const LANE_PAUSE: Backoff = Backoff {
    base: Duration::from_secs(120),
    cap: Duration::from_secs(120),
};

/// Before the next turn of a push that had to wait for its own; so short that nobody spins.
const SHORTEST_TURN: Duration = Duration::from_millis(10);

/// The shortest one.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Tokens that rest at once; beyond that their wakeups are dropped.
const MAX_RESTING_TOKENS: usize = 100_000;

/// What one `handle_timeout` does of each kind at most.
const TIMEOUT_STEPS: usize = 4096;
