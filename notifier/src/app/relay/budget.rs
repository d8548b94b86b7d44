//! How many wakeups one account may have before its messages gather.
//!
//! In: accounts, how many wakeups were made for each, the monotonic clock. Out: whether an account has spent its share. Never: refuses a
//! wakeup, or holds more accounts than [`MOST`].
//!
//! A lane is fair by class and age, not by account: one account with a thousand made-up tokens could fill it, with calls in front of everybody
//! else's messages.

use notifier_core::account::AccountId;
use notifier_core::fanout::MAX_DEVICES;
use notifier_core::seeded::Seed;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A token bucket for each account that was woken lately.
pub struct Budgets {
    /// When the bucket is full again.
    full_at_by_account: HashMap<AccountId, Instant, Seed>,
}

impl Budgets {
    pub fn new(seed: Seed) -> Self {
        Self {
            full_at_by_account: HashMap::with_hasher(seed),
        }
    }

    pub fn is_spent(&self, account: &AccountId, now: Instant) -> bool {
        self.full_at_by_account
            .get(account)
            .is_some_and(|full_at| full_at.saturating_duration_since(now) >= EACH * BURST)
    }

    /// The last message before a budget is spent may take as much as it needs: 4 s at most until there is one again. False if the account has
    /// no place: then nothing is noted.
    pub fn spend(&mut self, account: AccountId, wakeups: u32, now: Instant) -> bool {
        let has_room = self.full_at_by_account.len() < MOST;
        if !has_room && !self.full_at_by_account.contains_key(&account) {
            return false;
        }
        let full_at = self.full_at_by_account.entry(account).or_insert(now);
        let latest = now + EACH * (BURST + MAX_DEVICES as u32);
        *full_at = ((*full_at).max(now) + EACH.saturating_mul(wakeups)).min(latest);
        true
    }

    /// Forgets the accounts whose buckets are full again: most are within milliseconds.
    pub fn sweep(&mut self, now: Instant) {
        self.full_at_by_account.retain(|_, full_at| *full_at > now);
    }
}

/// One wakeup takes this much of a bucket, as time: 256 a second in the long run, a thirty-fifth of Google's default rate. A group of 100
/// members with two or three devices each may have a message a second.
const EACH: Duration = Duration::from_nanos(1_000_000_000 / 256);

/// Wakeups at once: eight messages for an account with as many devices as one may have.
const BURST: u32 = 8_192;

/// Accounts at most. One that was woken once is forgotten in the next round, so these are as many wakeups in 250 ms.
const MOST: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: AccountId = AccountId::new([5; 33]);

    #[test]
    fn an_account_has_its_burst_and_then_256_wakeups_a_second() {
        let (mut budgets, start) = (budgets(), Instant::now());
        let made = |budgets: &mut Budgets, now| {
            (0..20_000)
                .take_while(|_| !budgets.is_spent(&ACCOUNT, now) && budgets.spend(ACCOUNT, 1, now))
                .count()
        };
        assert_eq!(made(&mut budgets, start), BURST as usize);
        assert_eq!(made(&mut budgets, start + Duration::from_secs(2)), 512);
        let rested = start + Duration::from_secs(3_600);
        assert_eq!(made(&mut budgets, rested), BURST as usize);
        assert!(
            !budgets.is_spent(&AccountId::new([3; 33]), rested),
            "others have their own"
        );
    }

    #[test]
    fn the_last_message_may_take_more_than_is_left() {
        let (mut budgets, now) = (budgets(), Instant::now());
        budgets.spend(ACCOUNT, BURST - 1, now);
        assert!(!budgets.is_spent(&ACCOUNT, now));
        budgets.spend(ACCOUNT, 1_024, now);
        assert!(budgets.is_spent(&ACCOUNT, now + Duration::from_secs(3)));
        assert!(!budgets.is_spent(&ACCOUNT, now + Duration::from_secs(4)));
        for _ in 0..100 {
            budgets.spend(ACCOUNT, 1_024, now);
        }
        assert!(
            !budgets.is_spent(&ACCOUNT, now + Duration::from_secs(5)),
            "nobody waits longer"
        );
    }

    #[test]
    fn only_those_are_kept_who_were_woken_lately_and_only_so_many() {
        let (mut budgets, now) = (budgets(), Instant::now());
        for number in 0..=MOST {
            let mut bytes = [5; 33];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            assert_eq!(budgets.spend(AccountId::new(bytes), 1, now), number < MOST);
        }
        budgets.sweep(now + EACH);
        assert!(budgets.full_at_by_account.is_empty());
    }

    fn budgets() -> Budgets {
        Budgets::new(Seed::new([3; 16]))
    }
}
