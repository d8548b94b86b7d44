//! Messages of accounts beyond their budget: they gather, and each device hears once for all of them.
//!
//! In: notices of messages, their marks, which accounts may be woken again. Out: an account's gathered messages. Never: holds the text of a
//! message, more than [`MOST_MESSAGES`] of an account, or more than [`MOST_ACCOUNTS`] accounts: what finds no room goes at once.

use notifier_core::account::AccountId;
use notifier_core::fanout::Mark;
use notifier_core::seal::Notice;
use notifier_core::seeded::Seed;
use std::collections::{HashMap, VecDeque};

pub struct Gathered {
    by_account: HashMap<AccountId, Messages, Seed>,
    /// Accounts that may be woken, in the order in which that was seen.
    due: VecDeque<AccountId>,
}

#[derive(Default)]
pub struct Messages {
    /// One for each namespace: the one that is worth something longest. What ends last is first.
    pub notices: Vec<Notice>,
    /// Of all that gathered.
    pub marks: Vec<Mark>,
    is_due: bool,
}

impl Gathered {
    pub fn new(seed: Seed) -> Self {
        Self {
            by_account: HashMap::with_hasher(seed),
            due: VecDeque::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.by_account.is_empty()
    }

    /// Whether what comes for this account must wait behind what is here, so that nothing here waits for ever.
    pub fn holds(&self, account: &AccountId) -> bool {
        self.by_account.contains_key(account)
    }

    /// Gives back what gathered, with this one, if it has no room to wait.
    #[must_use]
    pub fn add(&mut self, notice: Notice, mark: Mark) -> Option<Messages> {
        let account = notice.event().account;
        if self.by_account.len() >= MOST_ACCOUNTS && !self.holds(&account) {
            let mut alone = Messages::default();
            alone.add(notice, mark);
            return Some(alone);
        }
        let messages = self.by_account.entry(account).or_default();
        messages.add(notice, mark);
        if messages.marks.len() < MOST_MESSAGES {
            return None;
        }
        self.by_account.remove(&account)
    }

    /// Notes the accounts that may be woken now.
    pub fn ripen(&mut self, may_be_woken: impl Fn(&AccountId) -> bool) {
        for (account, messages) in &mut self.by_account {
            if !messages.is_due && may_be_woken(account) {
                messages.is_due = true;
                self.due.push_back(*account);
            }
        }
    }

    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub fn take_due(&mut self) -> Option<(AccountId, Messages)> {
        loop {
            let account = self.due.pop_front()?;
            // What had no more room to wait has gone before.
            if let Some(messages) = self.by_account.remove(&account) {
                return Some((account, messages));
            }
        }
    }
}

impl Messages {
    fn add(&mut self, notice: Notice, mark: Mark) {
        self.marks.push(mark);
        let (namespace, ends) = (notice.event().namespace, notice.event().expiry_ms);
        let known = self
            .notices
            .iter()
            .position(|known| known.event().namespace == namespace);
        match known.map(|place| (place, self.notices.get(place))) {
            Some((_, Some(known))) if known.event().expiry_ms > ends => return,
            Some((place, _)) => drop(self.notices.remove(place)),
            None => {}
        }
        let place = self.notices.partition_point(|known| known.event().expiry_ms > ends);
        self.notices.insert(place, notice);
    }
}

/// Messages of one account that wait. A node that tells 256 of them in less time than the account's budget takes to recover wakes its
/// devices sooner.
const MOST_MESSAGES: usize = 256;

/// Accounts at once. To be beyond its budget one must have had 8,192 wakeups, so that this many are half an hour of all that the relay can send.
const MOST_ACCOUNTS: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use notifier_core::account::{MessageHash, Namespace};
    use notifier_core::event::MessageEvent;

    #[test]
    fn of_each_namespace_the_message_that_lives_longest_is_told() {
        let mut gathered = gathered();
        for (namespace, ends) in [(0, 300), (0, 900), (0, 100), (5, 950), (2, 950), (0, 900)] {
            assert!(gathered.add(notice(1, namespace, ends), mark(1)).is_none());
        }
        gathered.ripen(|_| true);
        let (_, messages) = gathered.take_due().unwrap();
        let told: Vec<_> = messages
            .notices
            .iter()
            .map(|notice| (notice.event().namespace.0, notice.event().expiry_ms))
            .collect();
        assert_eq!(told, [(2, 950), (5, 950), (0, 900)]);
        assert_eq!(messages.marks.len(), 6);
    }

    #[test]
    fn an_account_waits_until_it_may_be_woken_and_is_woken_once() {
        let mut gathered = gathered();
        for account in [1, 2] {
            assert!(gathered.add(notice(account, 0, 1), mark(account)).is_none());
        }
        for _ in 0..2 {
            gathered.ripen(|account| *account == AccountId::new([2; 33]));
        }
        assert!(gathered.has_due());
        assert_eq!(
            gathered.take_due().map(|(account, _)| account),
            Some(AccountId::new([2; 33]))
        );
        assert!(gathered.take_due().is_none() && !gathered.has_due() && !gathered.is_empty());
        assert!(gathered.holds(&AccountId::new([1; 33])) && !gathered.holds(&AccountId::new([2; 33])));
    }

    #[test]
    fn what_has_no_room_to_wait_goes_at_once() {
        let mut gathered = gathered();
        for _ in 1..MOST_MESSAGES {
            assert!(gathered.add(notice(1, 0, 1), mark(1)).is_none());
        }
        gathered.ripen(|_| true);
        let all = gathered.add(notice(1, 0, 1), mark(1)).unwrap();
        assert_eq!((all.notices.len(), all.marks.len()), (1, MOST_MESSAGES));
        assert!(gathered.is_empty() && gathered.take_due().is_none());

        for number in 0..=MOST_ACCOUNTS {
            let mut account = [9; 33];
            account[..8].copy_from_slice(&number.to_be_bytes());
            let notice = Notice::of(event(AccountId::new(account), 0, 1));
            assert_eq!(gathered.add(notice, mark(1)).is_some(), number == MOST_ACCOUNTS);
        }
    }

    fn gathered() -> Gathered {
        Gathered::new(Seed::new([3; 16]))
    }

    fn mark(number: u8) -> Mark {
        Mark::from_bytes([number; 16])
    }

    fn notice(account: u8, namespace: i16, expiry_ms: i64) -> Notice {
        Notice::of(event(AccountId::new([account; 33]), namespace, expiry_ms))
    }

    fn event(account: AccountId, namespace: i16, expiry_ms: i64) -> MessageEvent {
        MessageEvent {
            account,
            hash: MessageHash::from_slice(&[b'h'; 43]).unwrap(),
            namespace: Namespace(namespace),
            timestamp_ms: 0,
            expiry_ms,
            body: None,
        }
    }
}
