//! Whether one node's word is enough for a message to go out.
//!
//! In: `MessageEvent`s with the node that sent each, the clock. Out: events that may go on. Never: knows swarms or links; the
//! caller says whether the node is of the account's swarm and whether a second node of it could confirm.
//!
//! - A node speaks only for the accounts of its swarm.
//! - A body whose hash verifies proves itself and goes on at once, whoever sent it.
//! - Without a body a node of good record is believed. A record is bad for an hour after a foreign account or a hash that failed.
//! - Everything else waits for a second node that reports the same account, hash and namespace. What goes on then is what both
//!   agree on: the body only if both sent the same, otherwise none (the device learns that something came, and asks). The
//!   later of two expiries counts, so that a liar cannot make a true message worthless.
//! - Where no second node could speak, the first is believed and counted as unconfirmed: a lonely link must not mean silence.
//!
//! What waits is a digest and not the message: the second copy brings the body. So a held message takes about 150 bytes,
//! whatever a node sends.

use crate::event::{Body, MessageEvent};
use crate::seeded::Seed;
use crate::swarm::NodeKey;
use quietline_shared::crypto::blake2b_256;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Confirm {
    settings: ConfirmSettings,
    seed: Seed,
    held_by_name: HashMap<u128, Held, Seed>,
    /// Names in the order of their end: all are held equally long.
    ends: VecDeque<(Instant, u128)>,
    /// How many of `held_by_name` still wait for a second node.
    waiting: usize,
    /// Only of nodes that lied or whose messages wait; at most one for each node of the list.
    record_by_node: HashMap<NodeKey, Record, Seed>,
    records_swept_at: Option<Instant>,
    counters: ConfirmCounters,
}

#[derive(Clone, Copy, Debug)]
pub struct ConfirmSettings {
    /// How long a message waits for a second node.
    pub hold_for: Duration,
    /// How many messages may wait at once. Once it is half full no node may use more than an eighth of it.
    pub hold_max: usize,
    /// How long a lie counts.
    pub record_for: Duration,
}

impl Default for ConfirmSettings {
    fn default() -> Self {
        Self {
            hold_for: Duration::from_secs(10),
            hold_max: 10_000,
            record_for: Duration::from_secs(3600),
        }
    }
}

/// What happens to one copy of a message.
#[derive(Debug)]
pub enum Verdict {
    Release(MessageEvent),
    /// Goes out if a second node reports it in time.
    Held,
    Refused(ConfirmRefusal),
}

/// The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfirmRefusal {
    /// The account is not of the node's swarm.
    ForeignAccount,
    /// Too many messages wait, or too many of this node.
    TooManyHeld,
}

impl ConfirmRefusal {
    pub const fn label(self) -> &'static str {
        match self {
            Self::ForeignAccount => "foreign_account",
            Self::TooManyHeld => "too_many_held",
        }
    }
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfirmCounters {
    /// Released because the hash proves the body.
    pub verified: u64,
    /// Released without a body on the word of a node of good record.
    pub trusted: u64,
    /// Released because a second node agreed.
    pub confirmed: u64,
    /// Of the confirmed: released without the body because the two copies differed.
    pub contested: u64,
    /// Released although nobody could confirm.
    pub unconfirmed: u64,
    /// Began to wait.
    pub held: u64,
    /// Waited in vain.
    pub expired: u64,
    /// Refused as foreign.
    pub foreign_account: u64,
    /// Refused because too many wait.
    pub too_many_held: u64,
    /// Bodies whose hash failed.
    pub failed_hashes: u64,
}

/// A message that one node reported.
struct Held {
    node: NodeKey,
    body: Option<[u8; 32]>,
    expiry_ms: i64,
    /// Further copies go on at once. Fanout drops them, unless the first release came to nothing.
    confirmed: bool,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held(<private>)")
    }
}

#[derive(Debug, Default)]
struct Record {
    lied_at: Option<Instant>,
    waiting: usize,
}

impl Confirm {
    pub fn new(settings: ConfirmSettings, seed: Seed) -> Self {
        Self {
            settings,
            seed,
            held_by_name: HashMap::with_hasher(seed),
            ends: VecDeque::new(),
            waiting: 0,
            record_by_node: HashMap::with_hasher(seed),
            records_swept_at: None,
            counters: ConfirmCounters::default(),
        }
    }

    /// `foreign`: the account is not of `node`'s swarm. `second_link_up`: another watched node of that swarm is connected.
    pub fn handle(
        &mut self,
        node: NodeKey,
        foreign: bool,
        event: MessageEvent,
        second_link_up: bool,
        now: Instant,
    ) -> Verdict {
        if foreign {
            self.note_lie(node, now);
            self.counters.foreign_account += 1;
            return Verdict::Refused(ConfirmRefusal::ForeignAccount);
        }
        if event.body.is_some() {
            if event.hash_verifies() {
                return self.release_verified(event);
            }
            self.counters.failed_hashes += 1;
            self.note_lie(node, now);
        } else if !self.has_bad_record(node, now) {
            self.counters.trusted += 1;
            return Verdict::Release(event);
        }
        self.ask_for_second(node, event, second_link_up, now)
    }

    /// Forgets what waited too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((end, _)) = self.ends.front()
            && *end <= now
        {
            self.forget_oldest();
        }
        if self
            .records_swept_at
            .is_none_or(|swept| now.saturating_duration_since(swept) >= self.settings.record_for)
        {
            self.records_swept_at = Some(now);
            let record_for = self.settings.record_for;
            self.record_by_node
                .retain(|_, record| record.waiting > 0 || record.is_bad(record_for, now));
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to forget. Records are swept along with it.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.ends.front().map(|(end, _)| *end)
    }

    /// A failed hash or a foreign account within the last hour.
    pub fn has_bad_record(&self, node: NodeKey, now: Instant) -> bool {
        self.record_by_node
            .get(&node)
            .is_some_and(|record| record.is_bad(self.settings.record_for, now))
    }

    /// Messages that wait for a second node now.
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    pub const fn counters(&self) -> &ConfirmCounters {
        &self.counters
    }

    fn release_verified(&mut self, event: MessageEvent) -> Verdict {
        self.counters.verified += 1;
        // Almost always nothing waits, and the name need not be computed.
        if self.waiting > 0 {
            let name = self.name_of(&event);
            self.settle(name);
        }
        Verdict::Release(event)
    }

    fn ask_for_second(
        &mut self,
        node: NodeKey,
        mut event: MessageEvent,
        second_link_up: bool,
        now: Instant,
    ) -> Verdict {
        let name = self.name_of(&event);
        let body = event.body.as_ref().map(|Body(body)| blake2b_256(&[body]));
        match self.held_by_name.get(&name) {
            Some(held) if held.confirmed || held.node != node => {
                event.expiry_ms = event.expiry_ms.max(held.expiry_ms);
                if body != held.body {
                    event.body = None;
                    self.counters.contested += 1;
                }
                self.counters.confirmed += 1;
                self.settle(name);
                return Verdict::Release(event);
            }
            held if !second_link_up => {
                if held.is_some() {
                    self.settle(name);
                }
                self.counters.unconfirmed += 1;
                return Verdict::Release(event);
            }
            Some(_) => return Verdict::Held,
            None => {}
        }
        self.make_room();
        let full = self.waiting >= self.settings.hold_max || self.ends.len() >= self.remembered_max();
        // While there is room for others a node of a busy swarm may use it.
        let crowded = self.waiting > self.settings.hold_max / 2;
        let share = (self.settings.hold_max / NODE_SHARE).max(1);
        let record = self.record_by_node.entry(node).or_default();
        if full || (crowded && record.waiting >= share) {
            self.counters.too_many_held += 1;
            return Verdict::Refused(ConfirmRefusal::TooManyHeld);
        }
        record.waiting += 1;
        self.waiting += 1;
        self.counters.held += 1;
        self.held_by_name.insert(
            name,
            Held {
                node,
                body,
                expiry_ms: event.expiry_ms,
                confirmed: false,
            },
        );
        self.ends.push_back((now + self.settings.hold_for, name));
        Verdict::Held
    }

    /// The message is out: whoever reported it keeps no place for it any longer.
    fn settle(&mut self, name: u128) {
        if let Some(held) = self.held_by_name.get_mut(&name)
            && !held.confirmed
        {
            held.confirmed = true;
            let node = held.node;
            self.end_wait(node);
        }
    }

    fn end_wait(&mut self, node: NodeKey) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(record) = self.record_by_node.get_mut(&node) {
            record.waiting = record.waiting.saturating_sub(1);
        }
    }

    /// Confirmed messages are remembered only while there is room.
    fn make_room(&mut self) {
        if self.ends.len() >= self.remembered_max()
            && let Some((_, name)) = self.ends.front()
            && self.held_by_name.get(name).is_some_and(|held| held.confirmed)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, name)) = self.ends.pop_front()
            && let Some(held) = self.held_by_name.remove(&name)
            && !held.confirmed
        {
            self.counters.expired += 1;
            self.end_wait(held.node);
        }
    }

    const fn remembered_max(&self) -> usize {
        self.settings.hold_max.saturating_mul(REMEMBERED)
    }

    fn note_lie(&mut self, node: NodeKey, now: Instant) {
        self.record_by_node.entry(node).or_default().lied_at = Some(now);
    }

    fn name_of(&self, event: &MessageEvent) -> u128 {
        let namespace = event.namespace.0.to_le_bytes();
        self.seed
            .name_of(&[event.account.expose(), event.hash.expose().as_bytes(), &namespace])
    }
}

impl Record {
    fn is_bad(&self, record_for: Duration, now: Instant) -> bool {
        self.lied_at
            .is_some_and(|lied_at| now.saturating_duration_since(lied_at) < record_for)
    }
}

/// One node may fill this part of the waiting room once it is more than half full: a liar leaves room for others.
const NODE_SHARE: usize = 8;

/// Confirmed messages are remembered until their time is over, as long as no more than this many times `hold_max` are kept
/// altogether: without that a third copy would wait anew.
const REMEMBERED: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{AccountId, MessageHash, Namespace};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD_NO_PAD;

    const A: NodeKey = NodeKey([1; 32]);
    const B: NodeKey = NodeKey([2; 32]);
    const C: NodeKey = NodeKey([3; 32]);

    #[test]
    fn a_body_that_proves_itself_goes_out_at_once_even_from_a_liar() {
        let (mut confirm, now) = confirm();
        confirm.handle(A, true, unproven(1, None), true, now);
        assert!(released(confirm.handle(A, false, proven(), true, now)).is_some());
        assert_eq!(confirm.counters().verified, 1);
    }

    #[test]
    fn a_foreign_account_is_refused_and_remembered_for_an_hour() {
        let (mut confirm, now) = confirm();
        let verdict = confirm.handle(A, true, proven(), true, now);
        assert!(matches!(verdict, Verdict::Refused(ConfirmRefusal::ForeignAccount)));
        let almost = now + Duration::from_secs(3599);
        assert!(matches!(
            confirm.handle(A, false, unproven(1, None), true, almost),
            Verdict::Held
        ));
        let later = now + Duration::from_secs(3600);
        assert!(released(confirm.handle(A, false, unproven(2, None), true, later)).is_some());
    }

    #[test]
    fn a_node_of_good_record_is_believed_without_a_body() {
        let (mut confirm, now) = confirm();
        assert!(released(confirm.handle(A, false, unproven(1, None), true, now)).is_some());
        assert_eq!(confirm.counters().trusted, 1);
    }

    #[test]
    fn a_failed_hash_waits_for_a_second_node_and_spoils_the_record() {
        let (mut confirm, now) = confirm();
        assert!(matches!(
            confirm.handle(A, false, unproven(1, Some("x")), true, now),
            Verdict::Held
        ));
        assert!(confirm.has_bad_record(A, now));
        assert!(matches!(
            confirm.handle(A, false, unproven(1, Some("x")), true, now),
            Verdict::Held
        ));
        let out = released(confirm.handle(B, false, unproven(1, Some("x")), true, now)).unwrap();
        assert_eq!(out.body.unwrap().0, "x");
        assert_eq!(
            (confirm.counters().confirmed, confirm.counters().held, confirm.waiting()),
            (1, 1, 0)
        );
    }

    #[test]
    fn two_nodes_must_agree_on_account_hash_and_namespace() {
        let (mut confirm, now) = confirm();
        assert!(matches!(
            confirm.handle(A, false, unproven(1, Some("x")), true, now),
            Verdict::Held
        ));
        let other_hash = unproven(2, Some("x"));
        assert!(matches!(confirm.handle(B, false, other_hash, true, now), Verdict::Held));
        let other_namespace = MessageEvent {
            namespace: Namespace(3),
            ..unproven(1, Some("x"))
        };
        assert!(matches!(
            confirm.handle(B, false, other_namespace, true, now),
            Verdict::Held
        ));
        let other_account = MessageEvent {
            account: AccountId::new([3; 33]),
            ..unproven(1, Some("x"))
        };
        assert!(matches!(
            confirm.handle(B, false, other_account, true, now),
            Verdict::Held
        ));
        assert_eq!(confirm.waiting(), 4);
    }

    #[test]
    fn what_two_nodes_disagree_on_does_not_go_out() {
        let (mut confirm, now) = confirm();
        let early = MessageEvent {
            expiry_ms: 10,
            ..unproven(1, Some("true"))
        };
        let late = MessageEvent {
            expiry_ms: 20,
            ..unproven(1, Some("false"))
        };
        assert!(matches!(confirm.handle(A, false, late, true, now), Verdict::Held));
        let out = released(confirm.handle(B, false, early, true, now)).unwrap();
        assert!(out.body.is_none());
        assert_eq!(out.expiry_ms, 20);
        assert_eq!(confirm.counters().contested, 1);
    }

    #[test]
    fn without_a_second_link_the_first_node_is_believed_and_counted() {
        let (mut confirm, now) = confirm();
        assert!(released(confirm.handle(A, false, unproven(1, Some("x")), false, now)).is_some());
        assert_eq!(confirm.counters().unconfirmed, 1);
    }

    #[test]
    fn a_message_that_nobody_confirms_is_forgotten_after_ten_seconds() {
        let (mut confirm, now) = confirm();
        confirm.handle(A, false, unproven(1, Some("x")), true, now);
        let end = now + Duration::from_secs(10);
        assert_eq!(confirm.next_deadline(), Some(end));
        confirm.handle_timeout(end - Duration::from_millis(1));
        assert_eq!(confirm.waiting(), 1);
        confirm.handle_timeout(end);
        assert_eq!(
            (confirm.waiting(), confirm.counters().expired, confirm.next_deadline()),
            (0, 1, None)
        );
        assert!(matches!(
            confirm.handle(B, false, unproven(1, Some("x")), true, end),
            Verdict::Held
        ));
    }

    #[test]
    fn a_third_copy_goes_on_and_does_not_wait_anew() {
        let (mut confirm, now) = confirm();
        confirm.handle(A, false, unproven(1, Some("x")), true, now);
        confirm.handle(B, false, unproven(1, Some("x")), true, now);
        assert!(released(confirm.handle(C, false, unproven(1, Some("x")), true, now)).is_some());
        confirm.handle_timeout(now + Duration::from_secs(10));
        assert_eq!(confirm.counters().expired, 0);
    }

    #[test]
    fn a_proven_copy_ends_the_wait_of_a_false_one() {
        let (mut confirm, now) = confirm();
        let bare = MessageEvent { body: None, ..proven() };
        confirm.handle(A, true, unproven(9, None), true, now);
        assert!(matches!(confirm.handle(A, false, bare, true, now), Verdict::Held));
        assert!(released(confirm.handle(B, false, proven(), true, now)).is_some());
        confirm.handle_timeout(now + Duration::from_secs(10));
        assert_eq!((confirm.counters().expired, confirm.waiting()), (0, 0));
    }

    #[test]
    fn one_node_may_use_half_of_the_waiting_room_then_an_eighth_and_the_room_has_an_end() {
        let (mut confirm, now) = confirm();
        let fill = |confirm: &mut Confirm, node: u8| {
            (0..200u32)
                .filter(|number| {
                    let event = unproven(u32::from(node) * 1000 + number, Some("x"));
                    matches!(
                        confirm.handle(NodeKey([node; 32]), false, event, true, now),
                        Verdict::Held
                    )
                })
                .count()
        };
        assert_eq!(fill(&mut confirm, 1), 41, "one more than half");
        let rest: Vec<usize> = (2..12).map(|node| fill(&mut confirm, node)).collect();
        assert_eq!(rest, [10, 10, 10, 9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(confirm.waiting(), 80);
        confirm.handle_timeout(now + Duration::from_secs(10));
        assert_eq!(confirm.waiting(), 0);
        assert_eq!(fill(&mut confirm, 1), 41);
    }

    #[test]
    fn confirmed_messages_make_room_when_too_many_are_remembered() {
        let (mut confirm, now) = confirm();
        for number in 0..10_000 {
            assert!(matches!(
                confirm.handle(A, false, unproven(number, Some("x")), true, now),
                Verdict::Held
            ));
            assert!(released(confirm.handle(B, false, unproven(number, Some("x")), true, now)).is_some());
        }
        assert!(confirm.ends.len() <= 320 && confirm.held_by_name.len() <= 320);
    }

    #[test]
    fn records_of_the_past_are_forgotten() {
        let (mut confirm, now) = confirm();
        for node in 0..100 {
            confirm.handle(NodeKey([node; 32]), true, unproven(1, None), true, now);
        }
        confirm.handle_timeout(now);
        assert_eq!(confirm.record_by_node.len(), 100);
        confirm.handle_timeout(now + Duration::from_secs(3600));
        assert!(confirm.record_by_node.is_empty());
    }

    fn released(verdict: Verdict) -> Option<MessageEvent> {
        match verdict {
            Verdict::Release(event) => Some(event),
            Verdict::Held | Verdict::Refused(_) => None,
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "any instant will do as the beginning of a test"
    )]
    fn confirm() -> (Confirm, Instant) {
        let settings = ConfirmSettings {
            hold_max: 80,
            ..ConfirmSettings::default()
        };
        (Confirm::new(settings, Seed::new([7; 16])), Instant::now())
    }

    fn unproven(number: u32, body: Option<&str>) -> MessageEvent {
        MessageEvent {
            account: AccountId::new([5; 33]),
            hash: MessageHash::from_slice(format!("{number:043}").as_bytes()).unwrap(),
            namespace: Namespace(0),
            timestamp_ms: 0,
            expiry_ms: 1,
            body: body.map(|body| Body(body.to_owned().into())),
        }
    }

    fn proven() -> MessageEvent {
        let hash = STANDARD_NO_PAD.encode(blake2b_256(&[&[5; 33], b"yes"]));
        let hash = MessageHash::from_slice(hash.as_bytes()).unwrap();
        MessageEvent {
            hash,
            ..unproven(0, Some("yes"))
        }
    }
}
