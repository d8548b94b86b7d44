//! One row of the file: what it shows and what is sealed in it.
//!
//! In: a name, a day, a content; or the columns of a row. Out: the other one. Never: gives a row out that stands in another's place.
//!
//! Sealed together: name(32) ‖ content, which is a subscription as notifier-core writes it, or the mark of a signer. The place it is
//! bound to: lookup(8) ‖ expires_day(8), big-endian.

use crate::keyring::{KeyId, NoRandomness, OpenFault, Opened, Sealer};
use crate::store::Name;
use notifier_core::subscription::{BINDING_MARK, RowError, Subscription};

/// What the key is derived for.
pub const PURPOSE: &str = "subscriptions";

/// lookup, expires_day, key_id, row.
pub type Columns = (i64, i64, i64, Vec<u8>);

/// What of a name the file shows.
pub fn lookup(name: &Name) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *name;
    // 63 bits are never negative.
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1).cast_signed()
}

/// The column `row`, under the newest key.
pub fn seal(sealer: &Sealer, name: &Name, expires_day: i64, content: &[u8]) -> Result<Vec<u8>, NoRandomness> {
    let text = zeroize::Zeroizing::new([name.as_slice(), content].concat());
    sealer.seal(&place(lookup(name), expires_day), &text, LENGTHS)
}

/// What a row holds; one that cannot be read is counted and hides no other.
pub fn open(sealer: &Sealer, (lookup, expires_day, key_id, row): Columns) -> Option<Open> {
    let opened = sealer.open(KeyId::from_column(key_id), &place(lookup, expires_day), row);
    match opened {
        Ok(opened) if opened.content().len() >= size_of::<Name>() => Some(Open(opened)),
        Ok(_) => count_damaged(OpenFault::Malformed.label()),
        Err(fault) => count_damaged(fault.label()),
    }
}

/// A row that was opened; wiped when it is dropped.
pub struct Open(Opened);

impl Open {
    pub fn name(&self) -> Name {
        self.0.content().first_chunk().copied().unwrap_or_default()
    }

    pub fn content(&self) -> &[u8] {
        self.0.content().get(size_of::<Name>()..).unwrap_or_default()
    }

    /// `None` for a mark, and for what cannot be read, which is counted.
    pub fn subscription(&self) -> Option<Subscription> {
        decode(self.content())
    }
}

/// A damaged row is counted and passed over: one must not hide the others. A mark is no subscription.
pub fn decode(content: &[u8]) -> Option<Subscription> {
    if content == BINDING_MARK {
        return None;
    }
    match Subscription::decode_row(content) {
        Ok(subscription) => Some(subscription),
        Err(fault) => count_damaged(RowError::label(fault)),
    }
}

fn count_damaged<T>(reason: &'static str) -> Option<T> {
    metrics::counter!("store_damaged_rows_total", "reason" => reason).increment(1);
    None
}

fn place(lookup: i64, expires_day: i64) -> [u8; 16] {
    let mut place = [0; 16];
    let (first, second) = place.split_at_mut(8);
    first.copy_from_slice(&lookup.to_be_bytes());
    second.copy_from_slice(&expires_day.to_be_bytes());
    place
}

/// What a content with its name may take. Nearly all subscriptions and every mark are of the first length: seven of them fill a page.
/// Web Push takes the second.
const LENGTHS: &[usize] = &[512, 1_024, 2_048];
