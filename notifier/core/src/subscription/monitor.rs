//! What the storage nodes are asked for a set of subscriptions: as few records as possible.
//!
//! In: `Subscription`s. Out: records of `monitor.messages`. Never: sends.

use super::Subscription;
use quietline_shared::bencode::{put_bytes, put_int};
use std::cmp::Reverse;

impl Subscription {
    /// Appends this subscription's dict of a `monitor.messages` request (wire.md §6).
    pub fn monitor_record(&self, out: &mut Vec<u8>) {
        // Keys ascend: P S T d n p s t.
        out.push(b'd');
        if let Some(session_ed25519) = &self.session_ed25519 {
            put_bytes(out, b"P");
            put_bytes(out, session_ed25519);
        }
        if let Some(subaccount) = &self.subaccount {
            put_bytes(out, b"S");
            put_bytes(out, &subaccount.signature);
            put_bytes(out, b"T");
            put_bytes(out, &subaccount.tag);
        }
        if self.want_data {
            put_bytes(out, b"d");
            put_int(out, 1);
        }
        put_bytes(out, b"n");
        out.push(b'l');
        for namespace in self.namespaces.as_slice() {
            put_int(out, i64::from(namespace.0));
        }
        out.push(b'e');
        if self.session_ed25519.is_none() {
            put_bytes(out, b"p");
            put_bytes(out, self.device.account.expose());
        }
        put_bytes(out, b"s");
        put_bytes(out, &self.signature);
        put_bytes(out, b"t");
        put_int(out, self.sig_ts);
        out.push(b'e');
    }

    /// Whether a node that holds this subscription's record reports all that `other` asks for.
    ///
    /// Delegates count apart: what one may read can be taken from it without the others.
    pub fn covers(&self, other: &Self) -> bool {
        self.device.account == other.device.account
            && self.subaccount.as_ref().map(|own| own.tag) == other.subaccount.as_ref().map(|own| own.tag)
            && self.want_data >= other.want_data
            && self.namespaces.is_superset(&other.namespaces)
    }
}

/// The fewest of `subs` that together cover each of them; of equals the one with the newest signature.
///
/// The result is in the order of accounts and does not depend on the order of `subs`, except between twins.
pub fn minimal_cover(subs: &[Subscription]) -> Vec<&Subscription> {
    let mut by_rank: Vec<&Subscription> = subs.iter().collect();
    // Whatever covers another strictly comes before it, so one pass finds exactly the maximal ones.
    by_rank.sort_by_key(|sub| {
        let breadth = sub.namespaces.as_slice().len();
        (sub.device.account, Reverse((sub.want_data, breadth, sub.sig_ts)))
    });
    let mut cover: Vec<&Subscription> = Vec::new();
    let mut account_starts = 0;
    for sub in by_rank {
        if cover
            .last()
            .is_some_and(|last| last.device.account != sub.device.account)
        {
            account_starts = cover.len();
        }
        if !cover.iter().skip(account_starts).any(|kept| kept.covers(sub)) {
            cover.push(sub);
        }
    }
    cover
}
