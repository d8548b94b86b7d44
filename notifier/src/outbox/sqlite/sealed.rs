//! Rows of the outbox file: what they show and what is sealed in them.
//!
//! In: wakeups, marks; or the columns of a row. Out: the other one. Never: gives out what stands in another's place.
//!
//! Integers big-endian. A head: service(1) class(1) deadline_ms(8) attempt(4) push_id(16) fallback(1). A row: the wakeup, as notifier-core
//! writes it. Marks: at_ms(8), then 16 bytes each. A head and a row are bound to: which of both(1) ‖ id(8) ‖ expires_day(8); marks
//! to: which(1) ‖ expires_day(8).

use super::Mark;
use crate::keyring::{KeyId, NoRandomness, OpenFault, Opened, Sealer};
use notifier_core::account::Service;
use notifier_core::outbox::{Entry, EntryId, PushId, Restored};
use notifier_core::seal::{Class, Sealed};
use zeroize::Zeroizing;

/// What the key is derived for.
pub const PURPOSE: &str = "outbox";

/// id, expires_day, key_id, head, length of the row.
pub type HeadColumns = (i64, i64, i64, Vec<u8>, i64);

/// id, expires_day, key_id, head, row.
pub type EntryColumns = (i64, i64, i64, Vec<u8>, Vec<u8>);

/// id, expires_day, key_id, row or marks.
pub type RowColumns = (i64, i64, i64, Vec<u8>);

pub fn day_of(unix_ms: i64) -> i64 {
    unix_ms.div_euclid(86_400_000)
}

/// expires_day, head and row.
pub fn seal_entry(sealer: &Sealer, entry: &Entry) -> Result<(i64, Vec<u8>, Vec<u8>), NoRandomness> {
    let expires_day = day_of(entry.deadline_ms);
    let head = Restored {
        id: entry.id,
        push_id: entry.push_id,
        service: entry.sealed.service,
        class: entry.sealed.class,
        deadline_ms: entry.deadline_ms,
        attempt: entry.attempt,
        fallback: false,
        size: 0,
    };
    let head = sealer.seal(&place(HEAD, entry.id.0, expires_day), &head_bytes(&head), HEAD_LENGTHS)?;
    let content = Zeroizing::new(entry.sealed.encode_row());
    let row = seal_row(sealer, entry.id.0, expires_day, &content)?;
    Ok((expires_day, head, row))
}

pub fn seal_row(sealer: &Sealer, id: i64, expires_day: i64, content: &[u8]) -> Result<Vec<u8>, NoRandomness> {
    sealer.seal(&place(ROW, id, expires_day), content, ROW_LENGTHS)
}

/// Under the key of this column; `None` if that key is not there.
pub fn seal_head(
    sealer: &Sealer,
    key_id: i64,
    expires_day: i64,
    head: &Restored,
) -> Result<Option<Vec<u8>>, NoRandomness> {
    let Some(key) = KeyId::from_column(key_id) else {
        return Ok(None);
    };
    let place = place(HEAD, head.id.0, expires_day);
    sealer.seal_under(key, &place, &head_bytes(head), HEAD_LENGTHS)
}

pub fn open_head(sealer: &Sealer, (id, expires_day, key_id, head, size): HeadColumns) -> Option<Restored> {
    let opened = counted(sealer.open(KeyId::from_column(key_id), &place(HEAD, id, expires_day), head))?;
    let head = parse_head(opened.content()).ok_or(OpenFault::Malformed);
    let (service, class, deadline_ms, attempt, push_id, fallback) = counted(head)?;
    Some(Restored {
        id: EntryId(id),
        push_id,
        service,
        class,
        deadline_ms,
        attempt,
        fallback,
        size: size.try_into().unwrap_or(0),
    })
}

pub fn open_row(sealer: &Sealer, (id, expires_day, key_id, row): RowColumns) -> Option<Opened> {
    counted(sealer.open(KeyId::from_column(key_id), &place(ROW, id, expires_day), row))
}

pub fn open_wakeup(sealer: &Sealer, columns: RowColumns) -> Option<Sealed> {
    let row = open_row(sealer, columns)?;
    let wakeup = Sealed::decode_row(row.content());
    wakeup.inspect_err(|fault| count_damaged(fault.label())).ok()
}

pub fn seal_marks(sealer: &Sealer, expires_day: i64, at_ms: i64, marks: &[Mark]) -> Result<Vec<u8>, NoRandomness> {
    let content = [&at_ms.to_be_bytes(), marks.as_flattened()].concat();
    sealer.seal(&marks_place(expires_day), &content, MARKS_LENGTHS)
}

/// When they were seen, and the marks.
pub fn open_marks(sealer: &Sealer, expires_day: i64, key_id: i64, marks: Vec<u8>) -> Option<(i64, Vec<Mark>)> {
    let opened = counted(sealer.open(KeyId::from_column(key_id), &marks_place(expires_day), marks))?;
    let (at_ms, marks) = counted(opened.content().split_first_chunk().ok_or(OpenFault::Malformed))?;
    let (marks, _) = marks.as_chunks::<16>();
    Some((i64::from_be_bytes(*at_ms), marks.to_vec()))
}

fn head_bytes(head: &Restored) -> Zeroizing<Vec<u8>> {
    let bytes = [
        &[head.service.code(), head.class.code()][..],
        &head.deadline_ms.to_be_bytes(),
        &head.attempt.to_be_bytes(),
        &head.push_id.0,
        &[u8::from(head.fallback)],
    ];
    Zeroizing::new(bytes.concat())
}

fn parse_head(bytes: &[u8]) -> Option<(Service, Class, i64, u32, PushId, bool)> {
    let ([service, class], rest) = bytes.split_first_chunk()?;
    let (deadline_ms, rest) = rest.split_first_chunk()?;
    let (attempt, rest) = rest.split_first_chunk()?;
    let (push_id, rest) = rest.split_first_chunk()?;
    let [fallback @ (0 | 1)] = rest else { return None };
    Some((
        Service::from_code(*service)?,
        Class::from_code(*class)?,
        i64::from_be_bytes(*deadline_ms),
        u32::from_be_bytes(*attempt),
        PushId(*push_id),
        *fallback == 1,
    ))
}

fn place(which: u8, id: i64, expires_day: i64) -> Vec<u8> {
    [&[which][..], &id.to_be_bytes(), &expires_day.to_be_bytes()].concat()
}

fn marks_place(expires_day: i64) -> Vec<u8> {
    [&[MARKS][..], &expires_day.to_be_bytes()].concat()
}

/// A damaged row is counted and passed over: one must not hide the others.
fn counted<T>(opened: Result<T, OpenFault>) -> Option<T> {
    opened.inspect_err(|fault| count_damaged(fault.label())).ok()
}

pub fn count_damaged(reason: &'static str) {
    metrics::counter!("outbox_damaged_rows_total", "reason" => reason).increment(1);
}

const HEAD: u8 = b'h';
const ROW: u8 = b'r';
const MARKS: u8 = b'm';

/// All heads.
const HEAD_LENGTHS: &[usize] = &[60];
/// Four wakeups of the short form fill a page, one of the long form does. What Web Push makes of long endpoints takes the third.
const ROW_LENGTHS: &[usize] = &[864, 3_776, 8_192];
/// 3, 15, 63, 255 and 1,023 marks and their time.
const MARKS_LENGTHS: &[usize] = &[60, 252, 1_020, 4_092, 16_380];
