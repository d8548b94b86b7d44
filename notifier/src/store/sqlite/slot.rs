//! One row of the file while a group of changes is decided.
//!
//! In: what the file has, changes in their order. Out: what the file is to have, and an answer for each. Never: reads or writes anything.

use crate::store::{CLOCKS_DIFFER_SECONDS, Name, Put, StoreError, Unsubscribed};
use notifier_core::subscription::BINDING_MARK;
use zeroize::Zeroizing;

pub(super) struct Row {
    pub sig_ts: i64,
    /// The last day on which its signature can count: days since 1970-01-01.
    pub expires_day: i64,
    pub content: Zeroizing<Vec<u8>>,
}

/// What is known of one row while a group is decided.
#[derive(Default)]
pub(super) struct Slot {
    /// Whether the file has the row.
    pub stored: bool,
    /// Whose row it is; `None` where there is none, and where it cannot be read.
    pub name: Option<Name>,
    /// The row after the changes so far.
    pub row: Option<Row>,
    pub changed: bool,
}

impl Slot {
    /// Two names share 63 bits about once in 2^63 pairs. Whoever comes second is refused: no row is ever taken for another's.
    pub fn is_anothers(&self, name: &Name) -> bool {
        self.row.is_some() && self.name.is_some_and(|known| known != *name)
    }

    /// A renewal never loses a newer signature; of two with the same time the later request wins. `now`: Unix seconds.
    pub fn put(&mut self, name: Name, new: Row, now: i64) -> Result<Put, StoreError> {
        if self.is_anothers(&name) {
            return Err(StoreError::LookupTaken);
        }
        let answer = match &self.row {
            None => Put::New,
            Some(_) if self.is_newer_than(new.sig_ts, now) => return Ok(Put::KeptNewer),
            Some(old) if old.content == new.content => return Ok(Put::Unchanged),
            Some(_) => Put::Renewed,
        };
        self.name = Some(name);
        self.row = Some(new);
        self.changed = true;
        Ok(answer)
    }

    /// The mark stays until the last signature that came with a binding is void: no stolen one outlives it.
    pub fn mark(&mut self, name: Name, expires_day: i64) {
        if self.is_anothers(&name) {
            return;
        }
        if self.row.as_ref().is_none_or(|row| row.expires_day < expires_day) {
            self.name = Some(name);
            self.row = Some(Row {
                sig_ts: i64::MIN,
                expires_day,
                content: Zeroizing::new(BINDING_MARK.to_vec()),
            });
            self.changed = true;
        }
    }

    /// Of two with the same time the later request wins, as with a renewal. `now`: Unix seconds.
    pub fn unsubscribe(&mut self, name: &Name, sig_ts: i64, now: i64) -> Unsubscribed {
        if self.is_newer_than(sig_ts, now) && !self.is_anothers(name) {
            return Unsubscribed::KeptNewer;
        }
        match self.remove(name, None) {
            true => Unsubscribed::Removed,
            false => Unsubscribed::NotThere,
        }
    }

    /// Whether what is here counts as signed after `sig_ts`. A time in the future is no proof of being later: the phone's clock may have been set
    /// right since. But only who signs by a clock that is right may say so, else an old request could be repeated, and one that comes late from
    /// a phone that is still fast would count.
    fn is_newer_than(&self, sig_ts: i64, now: i64) -> bool {
        let is_of_now = now.abs_diff(sig_ts) <= CLOCKS_DIFFER_SECONDS.unsigned_abs();
        self.row.as_ref().is_some_and(|row| {
            let is_ahead = row.sig_ts > now.saturating_add(CLOCKS_DIFFER_SECONDS);
            row.sig_ts > sig_ts && !(is_ahead && is_of_now)
        })
    }

    pub fn remove(&mut self, name: &Name, before_ms: Option<i64>) -> bool {
        let goes = match (&self.row, before_ms) {
            (Some(_), _) if self.is_anothers(name) => false,
            (None, _) => false,
            (Some(_), None) => true,
            (Some(row), Some(before_ms)) => row.sig_ts.saturating_mul(1_000) < before_ms,
        };
        if goes {
            self.row = None;
            self.changed = true;
        }
        goes
    }
}
