//! Small requests with what is new: collected for a moment, then sent to every watched node of the swarm.
//!
//! In: accounts with a record each. Out: one body, and which node still needs it. Never: outlives the need.

use crate::account::AccountId;
use bytes::Bytes;
use std::time::Instant;

/// What is being collected.
#[derive(Default)]
pub(super) struct Open {
    pub records: Vec<(AccountId, Bytes)>,
    /// Changed, but the record must be read first.
    pub unread: Vec<AccountId>,
    pub seal_at: Option<Instant>,
}

impl Open {
    pub const fn len(&self) -> usize {
        self.records.len() + self.unread.len()
    }

    pub fn remove(&mut self, account: &AccountId) {
        self.records.retain(|(other, _)| other != account);
        self.unread.retain(|other| other != account);
        if self.len() == 0 {
            self.seal_at = None;
        }
    }

    pub fn take_accounts(&mut self) -> Vec<AccountId> {
        let open = std::mem::take(self);
        open.records
            .iter()
            .map(|(account, _)| *account)
            .chain(open.unread.iter().copied())
            .collect()
    }
}

/// Whether one node still needs a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Done,
    Due { at: Instant, attempt: u32 },
    Sent { request: u64, attempt: u32 },
}

pub(super) struct Delta {
    pub id: u64,
    /// In the order of the body, with the length of each record.
    pub accounts: Vec<(AccountId, usize)>,
    pub body: Bytes,
    /// By member of the swarm's watch, in its order.
    pub claims: Vec<Claim>,
}

impl Delta {
    pub fn new(id: u64, records: &[(AccountId, Bytes)], claims: Vec<Claim>) -> Self {
        let mut body = Vec::with_capacity(2 + records.iter().map(|(_, record)| record.len()).sum::<usize>());
        body.push(b'l');
        records.iter().for_each(|(_, record)| body.extend_from_slice(record));
        body.push(b'e');
        let accounts = records
            .iter()
            .map(|(account, record)| (*account, record.len()))
            .collect();
        Self {
            id,
            accounts,
            body: body.into(),
            claims,
        }
    }

    /// Takes an account out: a node that was not asked yet is never asked.
    pub fn cut(&mut self, account: &AccountId) {
        if !self.accounts.iter().any(|(other, _)| other == account) {
            return;
        }
        let mut body = Vec::with_capacity(self.body.len());
        body.push(b'l');
        let mut rest = self.body.slice(1..);
        for (other, length) in &self.accounts {
            let record = rest.split_to((*length).min(rest.len()));
            if other != account {
                body.extend_from_slice(&record);
            }
        }
        body.push(b'e');
        self.body = body.into();
        self.accounts.retain(|(other, _)| other != account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_account_leaves_no_byte_in_the_body() {
        let account = |n: u8| AccountId::new([n; 33]);
        let records = [
            (account(1), Bytes::from("d1:xe")),
            (account(2), Bytes::from("3:abc")),
            (account(1), Bytes::from("de")),
        ];
        let mut delta = Delta::new(1, &records, Vec::new());
        assert_eq!(&delta.body[..], b"ld1:xe3:abcdee");
        delta.cut(&account(1));
        assert_eq!(&delta.body[..], b"l3:abce");
        assert_eq!(delta.accounts.len(), 1);
    }
}
