//! Wall clocks that are set, and what nodes say of a message's end.

use super::*;

#[test]
fn a_wall_clock_that_was_ahead_and_is_set_right_makes_no_wakeup_too_old() {
    let mut outbox = outbox();
    // At the start it was an hour ahead; the outbox's own clock still is.
    let own = NOW + HOUR;
    outbox.note_wall_clock(own, NOW);
    let sealed = Sealed {
        expires_at_ms: NOW + 5 * MINUTE,
        ..wakeup(b"a", Class::Call)
    };
    let entry = outbox.accept(sealed, push_id(1), own).unwrap();
    assert_eq!(entry.deadline_ms, NOW + 5 * MINUTE);
    outbox.handle_written([entry.id]);
    outbox.handle_timeout(own + 5 * MINUTE - 1);
    let push = send(&mut outbox, own + 5 * MINUTE - 1);
    assert_eq!((push.id, push.deadline_ms), (entry.id, NOW + 5 * MINUTE));
}

#[test]
fn a_wall_clock_that_is_set_forward_makes_no_restored_wakeup_too_old() {
    let mut outbox = outbox();
    // It is a year behind until the network is there.
    let (own, year) = (NOW - 365 * 24 * HOUR, 365 * 24 * HOUR);
    outbox.note_wall_clock(own, own);
    let ids: Vec<EntryId> = (1..=3).map(EntryId).collect();
    for id in &ids {
        outbox.restore(
            Restored {
                id: *id,
                push_id: push_id(1),
                service: Service::Apns,
                class: Class::Visible,
                deadline_ms: NOW + HOUR,
                attempt: 0,
                fallback: false,
                size: 100,
            },
            own,
        );
    }
    let later = own + MINUTE;
    outbox.note_wall_clock(later, later + year);
    outbox.handle_timeout(later);
    assert_eq!(outbox.poll_load(10, later), ids);
    outbox.handle_loaded(ids[0], wakeup(b"a", Class::Visible));
    assert_eq!(send(&mut outbox, later).deadline_ms, NOW + HOUR);
    // None is kept longer than its service's wakeups are.
    outbox.handle_timeout(own + HOUR + 1_000);
    assert!(outbox.is_empty());
}

#[test]
fn a_message_said_to_expire_at_once_still_has_a_minute_and_its_provider_is_told_so() {
    let mut outbox = outbox();
    let said = Sealed {
        expires_at_ms: NOW + 20,
        ..wakeup(b"a", Class::Visible)
    };
    let id = queue(&mut outbox, said);
    outbox.handle_timeout(NOW + 50_000);
    let push = send(&mut outbox, NOW + 50_000);
    assert_eq!(
        (push.id, push.deadline_ms, push.sealed.expires_at_ms),
        (id, NOW + MINUTE, NOW + MINUTE)
    );
}
