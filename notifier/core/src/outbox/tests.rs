use super::*;
use crate::seal::Priority;

mod clocks;
mod crowd;
mod jitter;
mod lives;
mod withdrawn;

const NOW: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;
const MINUTE: i64 = 60_000;

#[test]
fn nothing_is_sent_before_it_is_on_disk() {
    let mut outbox = outbox();
    let entry = outbox.accept(wakeup(b"a", Class::Visible), push_id(1), NOW).unwrap();
    assert!(outbox.poll_send(NOW).is_none());
    outbox.handle_written([entry.id]);
    let push = outbox.poll_send(NOW).unwrap();
    assert_eq!((push.id, push.push_id, push.attempt), (entry.id, push_id(1), 0));
    assert!(outbox.poll_send(NOW).is_none());
}

#[test]
fn a_delivered_entry_is_removed_and_forgotten() {
    let mut outbox = outbox();
    let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, Outcome::Delivered, NOW, 0);
    assert_eq!(writes(&mut outbox), [Write::Remove(id)]);
    assert_eq!(
        (outbox.len(), outbox.memory(), outbox.counters(Service::Apns).delivered),
        (0, 0, 1)
    );
    outbox.handle_outcome(id, Outcome::Delivered, NOW, 0);
    assert_eq!(outbox.counters(Service::Apns).delivered, 1);
}

#[test]
fn the_deadline_is_the_messages_expiry_within_a_minute_and_the_services_cap() {
    let mut outbox = outbox();
    let mut deadline = |service, expires_at_ms| {
        let sealed = Sealed {
            service,
            expires_at_ms,
            ..wakeup(b"a", Class::Visible)
        };
        outbox.accept(sealed, push_id(1), NOW).map(|entry| entry.deadline_ms)
    };
    assert_eq!(deadline(Service::Apns, NOW + MINUTE), Ok(NOW + MINUTE));
    assert_eq!(deadline(Service::Apns, NOW + 2 * MINUTE), Ok(NOW + 2 * MINUTE));
    assert_eq!(deadline(Service::Apns, NOW + 100 * HOUR), Ok(NOW + HOUR));
    assert_eq!(deadline(Service::Firebase, NOW + 100 * HOUR), Ok(NOW + 24 * HOUR));
    for lie in [NOW + 20, NOW, i64::MIN] {
        assert_eq!(deadline(Service::Apns, lie), Ok(NOW + MINUTE));
    }
}

#[test]
fn a_service_that_is_not_on_offer_takes_nothing() {
    let mut settings = OutboxSettings::default();
    settings.set_lane(Service::Firebase, LaneSettings::ABSENT);
    let mut outbox = Outbox::new(settings, Seed::new([1; 16]), EntryId(1));
    let sealed = Sealed {
        service: Service::Firebase,
        ..wakeup(b"a", Class::Call)
    };
    assert_eq!(outbox.accept(sealed, push_id(1), NOW).map(drop), Err(Rejected::NoLane));
    assert_eq!(outbox.lane_state(Service::Firebase, NOW), LaneState::Absent);
}

#[test]
fn the_more_valuable_class_goes_first_and_within_it_the_older() {
    let mut outbox = outbox();
    let ids = [
        Class::TooLong,
        Class::Quiet,
        Class::Visible,
        Class::Call,
        Class::Visible,
        Class::Call,
    ]
    .map(|class| queue(&mut outbox, wakeup(b"a", class)));
    let order: Vec<_> = (0..6).map(|_| send(&mut outbox, NOW).id).collect();
    assert_eq!(order, [ids[3], ids[5], ids[2], ids[4], ids[1], ids[0]]);
}

#[test]
fn lanes_take_turns_and_none_blocks_another() {
    let mut outbox = outbox();
    for _ in 0..3 {
        queue(&mut outbox, wakeup(b"a", Class::Visible));
        queue(
            &mut outbox,
            Sealed {
                service: Service::Firebase,
                ..wakeup(b"b", Class::Visible)
            },
        );
    }
    let first = send(&mut outbox, NOW).sealed.service;
    assert_ne!(send(&mut outbox, NOW).sealed.service, first);
    let id = send(&mut outbox, NOW).id;
    let refused = retry(RetryReason::CredentialRefused, None);
    outbox.handle_outcome(id, refused, NOW, 0);
    let stopped = effects(&mut outbox);
    assert_eq!(stopped, [Effect::LaneStopped(first)]);
    let rest: Vec<_> = std::iter::from_fn(|| outbox.poll_send(NOW))
        .map(|push| push.sealed.service)
        .collect();
    assert!(!rest.is_empty() && rest.iter().all(|service| *service != first));
}

#[test]
fn no_more_pushes_are_under_way_than_the_lane_allows() {
    let mut outbox = with(|settings| settings.set_lane(Service::Apns, LaneSettings::with_concurrency(3)));
    for _ in 0..5 {
        queue(&mut outbox, wakeup(b"a", Class::Visible));
    }
    let sent: Vec<_> = std::iter::from_fn(|| outbox.poll_send(NOW)).collect();
    assert_eq!((sent.len(), outbox.in_flight(Service::Apns)), (3, 3));
    outbox.handle_outcome(sent[0].id, Outcome::Delivered, NOW, 0);
    assert!(outbox.poll_send(NOW).is_some() && outbox.poll_send(NOW).is_none());
}

#[test]
fn a_provider_in_trouble_is_tried_again_after_a_pause_that_grows() {
    let mut outbox = outbox();
    let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
    let mut now = NOW;
    for (attempt, pause) in [(1, 1000), (2, 2000), (3, 4000), (4, 8000)] {
        send(&mut outbox, now);
        outbox.handle_outcome(id, retry(RetryReason::Unavailable, None), now, 0);
        assert_eq!(
            writes(&mut outbox),
            [Write::Change {
                id,
                attempt,
                fallback: false
            }]
        );
        assert_eq!(outbox.next_deadline(), Some(now + pause));
        outbox.handle_timeout(now + pause - 1);
        assert!(outbox.poll_send(now + pause - 1).is_none());
        now += pause;
        outbox.handle_timeout(now);
    }
    assert_eq!(send(&mut outbox, now).attempt, 4);
    assert_eq!(outbox.counters(Service::Apns).retried(RetryReason::Unavailable), 4);
}

#[test]
fn the_provider_may_ask_for_a_longer_pause_but_not_for_a_day() {
    let mut outbox = outbox();
    let firebase = || Sealed {
        service: Service::Firebase,
        ..wakeup(b"a", Class::Visible)
    };
    let id = queue(&mut outbox, firebase());
    send(&mut outbox, NOW);
    outbox.handle_outcome(
        id,
        retry(RetryReason::Unavailable, Some(Duration::from_secs(77))),
        NOW,
        0,
    );
    assert_eq!(outbox.next_deadline(), Some(NOW + 77_000));
    outbox.handle_timeout(NOW + 77_000);
    send(&mut outbox, NOW + 77_000);
    outbox.handle_outcome(
        id,
        retry(RetryReason::Unavailable, Some(Duration::from_secs(86_400))),
        NOW + 77_000,
        0,
    );
    assert_eq!(outbox.next_deadline(), Some(NOW + 77_000 + HOUR));
}

#[test]
fn the_provider_may_ask_for_a_shorter_pause_than_ours_and_each_gets_a_little_more() {
    for (reason, asked, random, pause) in [
        (RetryReason::Unavailable, 2, 0, 2000),
        (RetryReason::Unavailable, 2, 125, 2125),
        (RetryReason::Unavailable, 2, 126, 2000),
        (RetryReason::Unavailable, 0, 0, 1000),
        (RetryReason::Unavailable, 3600, 999, HOUR),
        (RetryReason::TokenRate, 5, 0, 5000),
        // This one is our own.
        (RetryReason::CredentialExpired, 0, 0, 1000),
        (RetryReason::CredentialExpired, 2, 0, 2000),
    ] {
        let mut outbox = outbox();
        let sealed = Sealed {
            service: Service::Firebase,
            ..wakeup(b"a", Class::Visible)
        };
        let id = queue(&mut outbox, sealed);
        send(&mut outbox, NOW);
        outbox.handle_outcome(id, retry(reason, Some(Duration::from_secs(asked))), NOW, random);
        assert_eq!(outbox.next_deadline(), Some(NOW + pause), "{reason:?} {asked}");
    }
}

#[test]
fn an_entry_whose_next_try_would_come_too_late_is_dropped_at_once() {
    let mut outbox = outbox();
    let id = queue(
        &mut outbox,
        Sealed {
            expires_at_ms: NOW + MINUTE,
            ..wakeup(b"a", Class::Call)
        },
    );
    let late = NOW + MINUTE - 100;
    send(&mut outbox, late);
    outbox.handle_outcome(id, retry(RetryReason::Timeout, None), late, 0);
    assert_eq!(writes(&mut outbox), [Write::Remove(id)]);
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Deadline), 1);
}

#[test]
fn pushes_that_had_no_time_for_an_answer_stop_no_lane() {
    let mut outbox = outbox();
    for _ in 0..100 {
        let id = queue(&mut outbox, wakeup(b"a", Class::Call));
        send(&mut outbox, NOW);
        outbox.handle_outcome(id, Outcome::Expired, NOW, 0);
        assert_eq!(writes(&mut outbox), [Write::Remove(id)]);
    }
    assert_eq!(outbox.lane_state(Service::Apns, NOW), LaneState::Open);
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Deadline), 100);
}

#[test]
fn nothing_is_sent_at_or_after_its_deadline() {
    let mut outbox = outbox();
    let id = queue(
        &mut outbox,
        Sealed {
            expires_at_ms: NOW + MINUTE,
            ..wakeup(b"a", Class::Call)
        },
    );
    assert!(outbox.poll_send(NOW + MINUTE).is_none());
    assert_eq!(writes(&mut outbox), [Write::Remove(id)]);
    let id = queue(
        &mut outbox,
        Sealed {
            expires_at_ms: NOW + MINUTE,
            ..wakeup(b"a", Class::Call)
        },
    );
    outbox.handle_timeout(NOW + MINUTE + 1000);
    assert_eq!(writes(&mut outbox), [Write::Remove(id)]);
    assert_eq!(
        (
            outbox.counters(Service::Apns).dropped(DropReason::Deadline),
            outbox.len()
        ),
        (2, 0)
    );
}

#[test]
fn an_entry_under_way_survives_its_deadline_until_the_answer() {
    let mut outbox = outbox();
    let id = queue(
        &mut outbox,
        Sealed {
            expires_at_ms: NOW + MINUTE,
            ..wakeup(b"a", Class::Call)
        },
    );
    let sent = NOW + MINUTE - 500;
    send(&mut outbox, sent);
    outbox.handle_timeout(sent + 59_000);
    assert_eq!(outbox.len(), 1);
    outbox.handle_outcome(id, Outcome::Delivered, sent + 59_000, 0);
    assert_eq!(outbox.counters(Service::Apns).delivered, 1);
}

#[test]
fn too_large_is_sent_once_more_in_its_short_form() {
    let mut outbox = outbox();
    let sealed = Sealed {
        fallback: Some(b"short".as_slice().into()),
        ..wakeup(b"a", Class::Visible)
    };
    let id = queue(&mut outbox, sealed);
    assert_eq!(send(&mut outbox, NOW).body(), [7; 100]);
    outbox.handle_outcome(id, Outcome::TryFallback, NOW, 0);
    assert_eq!(
        writes(&mut outbox),
        [Write::Change {
            id,
            attempt: 1,
            fallback: true
        }]
    );
    assert_eq!(send(&mut outbox, NOW).body(), b"short");
    outbox.handle_outcome(id, Outcome::TryFallback, NOW, 0);
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::TooLarge), 1);
    let id = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, Outcome::TryFallback, NOW, 0);
    assert_eq!(
        (
            outbox.counters(Service::Apns).dropped(DropReason::TooLarge),
            outbox.len()
        ),
        (2, 0)
    );
}

#[test]
fn a_certain_answer_deletes_the_token_once_the_credential_has_delivered() {
    let mut outbox = outbox();
    let gone = || Outcome::Gone {
        provider_time_ms: Some(5),
        certain: true,
    };
    let id = queue(&mut outbox, wakeup(b"dead", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, gone(), NOW, 0);
    assert!(effects(&mut outbox).is_empty());
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::GoneUnproven), 1);
    let id = queue(&mut outbox, wakeup(b"alive", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, Outcome::Delivered, NOW, 0);
    let id = queue(&mut outbox, wakeup(b"dead", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, gone(), NOW, 0);
    let target = Target {
        service: Service::Apns,
        token: DeviceToken::new(b"dead".as_slice()),
    };
    assert_eq!(
        effects(&mut outbox),
        [Effect::TokenGone {
            target,
            provider_time_ms: Some(5)
        }]
    );
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Gone), 1);
}

#[test]
fn an_uncertain_answer_deletes_only_while_the_credential_is_healthy() {
    let mut outbox = outbox();
    let gone = || Outcome::Gone {
        provider_time_ms: None,
        certain: false,
    };
    let mut answer = |outcome: Outcome| {
        let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
        send(&mut outbox, NOW);
        outbox.handle_outcome(id, outcome, NOW, 0);
        effects(&mut outbox).len()
    };
    assert_eq!(answer(gone()), 0);
    for _ in 0..20 {
        answer(Outcome::Delivered);
    }
    assert_eq!(answer(gone()), 1);
    let deleted: usize = (0..1000).map(|_| answer(gone())).sum();
    assert!(deleted < 10, "{deleted}");
    assert_eq!(
        outbox.counters(Service::Apns).dropped(DropReason::GoneUnproven),
        1001 - deleted as u64
    );
    outbox.handle_credential_changed(Service::Apns, NOW);
    for _ in 0..20 {
        let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
        send(&mut outbox, NOW);
        outbox.handle_outcome(id, Outcome::Delivered, NOW, 0);
    }
    let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, gone(), NOW, 0);
    assert_eq!(effects(&mut outbox).len(), 1);
}

#[test]
fn a_refused_entry_is_dropped_under_its_name_and_the_token_stays() {
    for (refusal, reason) in [
        (Refusal::OurFault, DropReason::OurFault),
        (Refusal::TooLarge, DropReason::TooLarge),
        (Refusal::ForeignToken, DropReason::ForeignToken),
        (Refusal::Content, DropReason::Content),
        (Refusal::Unknown, DropReason::Unknown),
    ] {
        let mut outbox = outbox();
        let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
        send(&mut outbox, NOW);
        outbox.handle_outcome(id, Outcome::Refused(refusal), NOW, 0);
        assert_eq!((outbox.counters(Service::Apns).dropped(reason), outbox.len()), (1, 0));
        assert!(effects(&mut outbox).is_empty());
    }
}

#[test]
fn a_token_that_gets_too_many_keeps_only_the_newest_and_slows_no_other() {
    let mut outbox = outbox();
    let first = queue(&mut outbox, wakeup(b"busy", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(first, retry(RetryReason::TokenRate, None), NOW, 0);
    let second = queue(&mut outbox, wakeup(b"busy", Class::Visible));
    let other = queue(&mut outbox, wakeup(b"other", Class::Visible));
    let third = queue(&mut outbox, wakeup(b"busy", Class::Visible));
    assert_eq!(send(&mut outbox, NOW).id, other);
    assert!(outbox.poll_send(NOW).is_none());
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Collapsed), 2);
    assert_eq!(outbox.next_deadline(), Some(NOW + 30_000));
    outbox.handle_timeout(NOW + 30_000);
    assert_eq!(send(&mut outbox, NOW + 30_000).id, third);
    let removed: Vec<_> = writes(&mut outbox)
        .into_iter()
        .filter(|write| matches!(write, Write::Remove(_)))
        .collect();
    assert_eq!(removed, [Write::Remove(first), Write::Remove(second)]);
}

#[test]
fn a_newer_wakeup_without_a_body_takes_the_place_of_one_that_waits_for_the_same_token() {
    let mut outbox = outbox();
    let old = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    let other = queue(&mut outbox, wakeup(b"b", Class::TooLong));
    let visible = queue(&mut outbox, wakeup(b"a", Class::Visible));
    let new = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    assert_eq!(writes(&mut outbox), [Write::Remove(old)]);
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Collapsed), 1);
    let order: Vec<_> = std::iter::from_fn(|| outbox.poll_send(NOW))
        .map(|push| push.id)
        .collect();
    assert_eq!(order, [visible, new, other]);
    // What is under way is none that waits.
    let next = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    assert_eq!(send(&mut outbox, NOW).id, next);
}

#[test]
fn a_wakeup_gives_way_only_to_one_that_is_on_disk_and_ends_no_earlier() {
    let mut outbox = outbox();
    let old = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    let unwritten = outbox.accept(wakeup(b"a", Class::TooLong), push_id(1), NOW).unwrap().id;
    outbox.handle_write_failed([unwritten]);
    let short = Sealed {
        expires_at_ms: NOW + MINUTE,
        ..wakeup(b"a", Class::TooLong)
    };
    let short = queue(&mut outbox, short);
    let order: Vec<_> = std::iter::from_fn(|| outbox.poll_send(NOW))
        .map(|push| push.id)
        .collect();
    assert_eq!(order, [old, short]);
    assert!(writes(&mut outbox).is_empty());
}

#[test]
fn a_wakeup_without_a_body_that_comes_back_is_dropped_if_a_newer_one_waits() {
    for reason in [RetryReason::Unavailable, RetryReason::Connection, RetryReason::LaneRate] {
        let mut outbox = outbox();
        let old = queue(&mut outbox, wakeup(b"a", Class::TooLong));
        send(&mut outbox, NOW);
        let new = queue(&mut outbox, wakeup(b"a", Class::TooLong));
        outbox.handle_outcome(old, retry(reason, None), NOW, 0);
        assert_eq!(writes(&mut outbox), [Write::Remove(old)]);
        let opens_at = outbox.next_deadline().unwrap_or(NOW).max(NOW);
        assert_eq!(send(&mut outbox, opens_at).id, new);
    }
}

#[test]
fn one_that_waits_to_be_tried_again_gives_way_too() {
    let mut outbox = outbox();
    let old = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    send(&mut outbox, NOW);
    outbox.handle_outcome(old, retry(RetryReason::Unavailable, None), NOW, 0);
    writes(&mut outbox);
    let new = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    assert_eq!(writes(&mut outbox), [Write::Remove(old)]);
    assert_eq!(send(&mut outbox, NOW).id, new);
    assert_eq!(outbox.len(), 1);
}

#[test]
fn wakeups_without_a_body_that_wait_on_disk_give_way_where_their_token_is_known() {
    let mut outbox = with(|settings| settings.memory = 0);
    let ids = [0, 1, 2].map(|_| queue(&mut outbox, wakeup(b"a", Class::TooLong)));
    assert_eq!(writes(&mut outbox), [Write::Remove(ids[0]), Write::Remove(ids[1])]);
    assert_eq!(outbox.poll_load(10, NOW), [ids[2]]);
}

#[test]
fn a_call_is_not_replaced_by_what_is_worth_less() {
    let mut outbox = outbox();
    let call = queue(&mut outbox, wakeup(b"busy", Class::Call));
    send(&mut outbox, NOW);
    outbox.handle_outcome(call, retry(RetryReason::TokenRate, None), NOW, 0);
    queue(&mut outbox, wakeup(b"busy", Class::Quiet));
    assert!(outbox.poll_send(NOW).is_none());
    outbox.handle_timeout(NOW + 30_000);
    assert_eq!(send(&mut outbox, NOW + 30_000).id, call);
}

#[test]
fn two_pushes_to_one_busy_token_leave_one_entry() {
    let mut outbox = outbox();
    let ids = [0, 1].map(|_| queue(&mut outbox, wakeup(b"busy", Class::Visible)));
    send(&mut outbox, NOW);
    send(&mut outbox, NOW);
    for id in [ids[1], ids[0]] {
        outbox.handle_outcome(id, retry(RetryReason::TokenRate, None), NOW, 0);
    }
    assert_eq!(outbox.len(), 1);
    outbox.handle_timeout(NOW + MINUTE);
    assert_eq!(send(&mut outbox, NOW + MINUTE).id, ids[1]);
}

#[test]
fn a_quota_pauses_the_whole_lane_a_minute_or_as_long_as_asked() {
    for (after, pause) in [(None, MINUTE), (Some(Duration::from_secs(5)), 5000)] {
        let mut outbox = outbox();
        let first = queue(&mut outbox, wakeup(b"a", Class::Visible));
        queue(&mut outbox, wakeup(b"b", Class::Visible));
        send(&mut outbox, NOW);
        outbox.handle_outcome(first, retry(RetryReason::LaneRate, after), NOW, 0);
        assert_eq!(outbox.lane_state(Service::Apns, NOW), LaneState::Paused);
        assert!(outbox.poll_send(NOW + pause - 1).is_none());
        assert_eq!(outbox.next_deadline(), Some(NOW + pause));
        assert_eq!(outbox.limit(Service::Apns), 500);
        assert_eq!(send(&mut outbox, NOW + pause).id, first);
    }
}

#[test]
fn an_outage_costs_one_probe_at_a_time_and_loses_nothing() {
    let mut outbox = outbox();
    for token in 0..100 {
        queue(&mut outbox, wakeup(&[token], Class::Visible));
    }
    for _ in 0..8 {
        let id = send(&mut outbox, NOW).id;
        outbox.handle_outcome(id, retry(RetryReason::Unavailable, None), NOW, 0);
    }
    assert_eq!(outbox.lane_state(Service::Apns, NOW), LaneState::Resting);
    assert!(outbox.poll_send(NOW).is_none());
    let probe = send(&mut outbox, NOW + 1000);
    assert!(outbox.poll_send(NOW + 1000).is_none());
    outbox.handle_outcome(probe.id, Outcome::Delivered, NOW + 1000, 0);
    outbox.handle_timeout(NOW + HOUR / 2);
    assert_eq!(std::iter::from_fn(|| outbox.poll_send(NOW + HOUR / 2)).count(), 99);
}

#[test]
fn one_token_whose_pushes_always_fail_delays_no_neighbour() {
    let mut outbox = outbox();
    let mut now = NOW;
    let bad = queue(&mut outbox, wakeup(b"bad", Class::Call));
    for neighbour in 0..12 {
        outbox.handle_timeout(now);
        let push = send(&mut outbox, now);
        assert_eq!(push.id, bad);
        let reason = [RetryReason::Timeout, RetryReason::Connection, RetryReason::Unavailable][neighbour % 3];
        outbox.handle_outcome(bad, retry(reason, None), now, 0);
        assert_eq!(outbox.lane_state(Service::Apns, now), LaneState::Open);
        now = outbox.next_deadline().unwrap_or(now).max(now + 1);
    }
    let good = queue(&mut outbox, wakeup(b"good", Class::Quiet));
    assert!(std::iter::from_fn(|| outbox.poll_send(now)).any(|push| push.id == good));
}

#[test]
fn after_a_broken_connection_calls_still_go_first_and_the_older_before_the_younger() {
    let mut outbox = outbox();
    let quiet = [0, 1].map(|token| queue(&mut outbox, wakeup(&[token], Class::Quiet)));
    let calls = [2, 3].map(|token| queue(&mut outbox, wakeup(&[token], Class::Call)));
    let under_way: Vec<_> = std::iter::from_fn(|| outbox.poll_send(NOW))
        .map(|push| push.id)
        .collect();
    let late_call = queue(&mut outbox, wakeup(&[4], Class::Call));
    for id in under_way {
        outbox.handle_outcome(id, retry(RetryReason::Connection, None), NOW, 0);
    }
    let order: Vec<_> = std::iter::from_fn(|| outbox.poll_send(NOW))
        .map(|push| push.id)
        .collect();
    assert_eq!(order, [calls[0], calls[1], late_call, quiet[0], quiet[1]]);
    // The second time it may be the push that breaks connections.
    outbox.handle_outcome(calls[0], retry(RetryReason::Connection, None), NOW, 0);
    assert!(outbox.poll_send(NOW).is_none());
    assert_eq!(outbox.next_deadline(), Some(NOW + 1000));
}

#[test]
fn a_push_that_must_wait_for_its_turn_delays_no_other_and_counts_as_no_try() {
    let mut outbox = outbox();
    let [first, second] = [0, 1].map(|token| queue(&mut outbox, wakeup(&[token], Class::Quiet)));
    send(&mut outbox, NOW);
    let after = Duration::from_millis(300);
    outbox.handle_outcome(first, Outcome::Later { after }, NOW, 0);
    assert_eq!(send(&mut outbox, NOW).id, second);
    assert_eq!(writes(&mut outbox), []);
    assert_eq!(outbox.next_deadline(), Some(NOW + 300));
    outbox.handle_timeout(NOW + 300);
    let again = send(&mut outbox, NOW + 300);
    assert_eq!((again.id, again.attempt), (first, 0));
    // Beyond its deadline there is no turn.
    outbox.handle_outcome(
        first,
        Outcome::Later {
            after: Duration::from_secs(3_599),
        },
        NOW + 10_000,
        0,
    );
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Deadline), 1);
}

#[test]
fn a_lane_that_cannot_send_is_held_as_a_whole_and_keeps_its_order_and_attempts() {
    let mut outbox = outbox();
    let quiet = [0, 1, 2].map(|token| queue(&mut outbox, wakeup(&[token], Class::Quiet)));
    for _ in 0..3 {
        send(&mut outbox, NOW);
    }
    let held = Outcome::Held {
        pause: Duration::from_millis(700),
    };
    for id in [quiet[1], quiet[2], quiet[0]] {
        outbox.handle_outcome(id, held.clone(), NOW, 0);
    }
    let call = queue(&mut outbox, wakeup(&[3], Class::Call));
    assert_eq!(outbox.lane_state(Service::Apns, NOW), LaneState::Resting);
    assert!(outbox.poll_send(NOW + 699).is_none());
    assert_eq!(outbox.next_deadline(), Some(NOW + 700));
    assert_eq!(writes(&mut outbox), []);
    let probe = send(&mut outbox, NOW + 700);
    assert_eq!((probe.id, probe.attempt), (call, 0));
    assert!(outbox.poll_send(NOW + 700).is_none(), "one finds out");
    outbox.handle_outcome(call, Outcome::Delivered, NOW + 720, 0);
    let order: Vec<_> = std::iter::from_fn(|| outbox.poll_send(NOW + 720))
        .map(|push| (push.id, push.attempt))
        .collect();
    assert_eq!(order, quiet.map(|id| (id, 0)));
    assert_eq!(outbox.counters(Service::Apns).held, 3);
}

#[test]
fn a_push_that_comes_to_no_outcome_is_taken_back_and_sent_again_under_its_name() {
    let mut outbox = outbox();
    let sealed = wakeup(b"a", Class::Visible);
    let id = outbox.accept(sealed, push_id(7), NOW).unwrap().id;
    outbox.handle_written([id]);
    send(&mut outbox, NOW);
    assert_eq!(outbox.next_deadline(), Some(NOW + 61_000));
    outbox.handle_timeout(NOW + 61_000);
    assert_eq!(effects(&mut outbox), [Effect::LaneStalled(Service::Apns)]);
    assert_eq!(
        (outbox.in_flight(Service::Apns), outbox.counters(Service::Apns).stalls),
        (0, 1)
    );
    let now = outbox.next_deadline().unwrap();
    outbox.handle_timeout(now);
    let again = send(&mut outbox, now);
    assert_eq!((again.push_id, again.attempt), (push_id(7), 1));
    // Whoever had it comes to an end after all.
    outbox.handle_outcome(id, Outcome::Delivered, now, 0);
    outbox.handle_outcome(id, Outcome::Delivered, now, 0);
    assert_eq!((outbox.len(), outbox.in_flight(Service::Apns)), (0, 0));
}

#[test]
fn no_more_goes_in_a_second_than_the_rate_and_calls_go_first() {
    let mut outbox = with(|settings| {
        let lane = LaneSettings {
            rate: 20,
            ..LaneSettings::with_concurrency(1_000)
        };
        settings.set_lane(Service::Apns, lane);
    });
    for token in 0..50 {
        queue(&mut outbox, wakeup(&[token], Class::Quiet));
    }
    assert_eq!(std::iter::from_fn(|| outbox.poll_send(NOW)).count(), 2);
    let call = queue(&mut outbox, wakeup(b"call", Class::Call));
    assert_eq!(outbox.next_deadline(), Some(NOW + 50));
    assert_eq!(send(&mut outbox, NOW + 50).id, call);
    assert!(outbox.poll_send(NOW + 50).is_none());
}

#[test]
fn a_refused_credential_stops_the_lane_until_a_probe_succeeds() {
    let mut outbox = outbox();
    let ids = [0; 5].map(|_| queue(&mut outbox, wakeup(b"a", Class::Visible)));
    send(&mut outbox, NOW);
    send(&mut outbox, NOW);
    outbox.handle_outcome(ids[0], retry(RetryReason::CredentialRefused, None), NOW, 0);
    outbox.handle_outcome(ids[1], retry(RetryReason::CredentialRefused, None), NOW, 0);
    assert_eq!(effects(&mut outbox), [Effect::LaneStopped(Service::Apns)]);
    assert!(outbox.poll_send(NOW + 29_999).is_none());
    assert_eq!(outbox.next_deadline(), Some(NOW + 30_000));
    let probe = send(&mut outbox, NOW + 30_000).id;
    assert!(outbox.poll_send(NOW + 30_000).is_none());
    outbox.handle_outcome(probe, retry(RetryReason::CredentialRefused, None), NOW + 30_000, 0);
    let other = send(&mut outbox, NOW + 60_000).id;
    assert_ne!(other, probe);
    outbox.handle_outcome(other, Outcome::Delivered, NOW + 60_000, 0);
    assert_eq!(effects(&mut outbox), [Effect::LaneResumed(Service::Apns)]);
    assert_eq!(std::iter::from_fn(|| outbox.poll_send(NOW + 60_000)).count(), 4);
}

#[test]
fn a_new_credential_is_tried_at_once() {
    let mut outbox = outbox();
    let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, retry(RetryReason::CredentialRefused, None), NOW, 0);
    assert!(outbox.poll_send(NOW).is_none());
    outbox.handle_credential_changed(Service::Apns, NOW);
    assert_eq!(send(&mut outbox, NOW).id, id);
}

#[test]
fn when_full_the_oldest_of_the_least_valuable_class_gives_way() {
    let mut outbox = with(|settings| settings.max_entries = 3);
    let quiet = queue(&mut outbox, wakeup(b"a", Class::Quiet));
    let old = queue(&mut outbox, wakeup(b"a", Class::TooLong));
    let new = queue(
        &mut outbox,
        Sealed {
            service: Service::Firebase,
            ..wakeup(b"a", Class::TooLong)
        },
    );
    for expected in [old, new, quiet] {
        queue(&mut outbox, wakeup(b"a", Class::Visible));
        assert_eq!(writes(&mut outbox), [Write::Remove(expected)]);
    }
    let refused = outbox.accept(wakeup(b"a", Class::Quiet), push_id(1), NOW);
    assert_eq!(refused.map(drop), Err(Rejected::Full));
    let counters = outbox.counters(Service::Apns);
    assert_eq!((counters.shed(Class::TooLong), counters.shed(Class::Quiet)), (1, 1));
    assert_eq!(
        (
            counters.refused(Class::Quiet),
            outbox.counters(Service::Firebase).shed(Class::TooLong)
        ),
        (1, 1)
    );
    queue(&mut outbox, wakeup(b"a", Class::Visible));
    assert_eq!(
        (outbox.len(), outbox.counters(Service::Apns).shed(Class::Visible)),
        (3, 1)
    );
}

#[test]
fn what_is_under_way_is_not_shed() {
    let mut outbox = with(|settings| settings.max_entries = 1);
    queue(&mut outbox, wakeup(b"a", Class::TooLong));
    send(&mut outbox, NOW);
    assert_eq!(
        outbox.accept(wakeup(b"a", Class::Call), push_id(1), NOW).map(drop),
        Err(Rejected::Full)
    );
}

#[test]
fn an_entry_that_could_not_be_written_is_gone() {
    let mut outbox = outbox();
    let entry = outbox.accept(wakeup(b"a", Class::Visible), push_id(1), NOW).unwrap();
    outbox.handle_write_failed([entry.id]);
    outbox.handle_written([entry.id]);
    assert!(outbox.is_empty() && outbox.poll_send(NOW).is_none() && writes(&mut outbox).is_empty());
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Unwritten), 1);
}

#[test]
fn bodies_beyond_the_memory_wait_on_disk_and_keep_their_order() {
    let one = size(&wakeup(b"a", Class::Visible));
    let mut outbox = with(|settings| settings.memory = 3 * one);
    let mut disk = std::collections::BTreeMap::new();
    let ids: Vec<_> = (0..10)
        .map(|_| {
            let sealed = wakeup(b"a", Class::Visible);
            let id = queue(&mut outbox, sealed.clone());
            disk.insert(id, sealed);
            id
        })
        .collect();
    assert_eq!(outbox.memory(), 3 * one);
    let mut order = Vec::new();
    while !outbox.is_empty() {
        for id in outbox.poll_load(100, NOW) {
            outbox.handle_loaded(id, disk[&id].clone());
        }
        assert!(outbox.memory() <= 3 * one);
        let push = send(&mut outbox, NOW);
        order.push(push.id);
        outbox.handle_outcome(push.id, Outcome::Delivered, NOW, 0);
    }
    assert_eq!(order, ids);
}

#[test]
fn a_call_takes_the_memory_of_what_is_worth_less() {
    let one = size(&wakeup(b"a", Class::Visible));
    let mut outbox = with(|settings| settings.memory = 3 * one);
    let quiet = [0; 3].map(|_| queue(&mut outbox, wakeup(b"a", Class::Quiet)));
    let call = queue(&mut outbox, wakeup(b"a", Class::Call));
    assert_eq!(send(&mut outbox, NOW).id, call);
    assert_eq!(
        (send(&mut outbox, NOW).id, send(&mut outbox, NOW).id),
        (quiet[0], quiet[1])
    );
    assert!(outbox.poll_send(NOW).is_none());
    assert_eq!(outbox.poll_load(100, NOW), [quiet[2]]);
}

#[test]
fn a_stopped_lane_does_not_keep_the_memory_from_others() {
    let one = size(&wakeup(b"a", Class::Visible));
    let mut outbox = with(|settings| settings.memory = 9 * one);
    for _ in 0..20 {
        queue(
            &mut outbox,
            Sealed {
                service: Service::Firebase,
                ..wakeup(b"a", Class::Visible)
            },
        );
    }
    assert_eq!(outbox.memory(), 9 * one);
    for _ in 0..6 {
        queue(&mut outbox, wakeup(b"a", Class::Visible));
    }
    let apns = std::iter::from_fn(|| outbox.poll_send(NOW))
        .filter(|push| push.sealed.service == Service::Apns)
        .count();
    assert_eq!(apns, 6);
}

#[test]
fn after_a_restart_entries_go_in_their_old_order_with_their_names_and_attempts() {
    let mut outbox = outbox();
    for (id, class, deadline_ms) in [
        (7, Class::Visible, NOW),
        (8, Class::Visible, NOW + 5),
        (9, Class::Call, NOW + 5),
    ] {
        let restored = Restored {
            id: EntryId(id),
            push_id: push_id(id as u8),
            service: Service::Apns,
            class,
            deadline_ms,
            attempt: 3,
            fallback: true,
            size: 100,
        };
        outbox.restore(restored, NOW);
    }
    assert_eq!(writes(&mut outbox), [Write::Remove(EntryId(7))]);
    assert!(outbox.poll_send(NOW).is_none());
    for id in outbox.poll_load(10, NOW) {
        let fallback = Some(b"short".as_slice().into());
        outbox.handle_loaded(
            id,
            Sealed {
                fallback,
                ..wakeup(b"a", Class::Visible)
            },
        );
    }
    let push = send(&mut outbox, NOW);
    assert_eq!(
        (push.id, push.push_id, push.attempt, push.body()),
        (EntryId(9), push_id(9), 3, b"short".as_slice())
    );
    assert_eq!(send(&mut outbox, NOW).id, EntryId(8));
    assert_eq!(
        outbox.accept(wakeup(b"a", Class::Call), push_id(1), NOW).unwrap().id,
        EntryId(10)
    );
}

#[test]
fn a_row_that_cannot_be_read_is_dropped() {
    let mut outbox = with(|settings| settings.memory = 0);
    let id = queue(&mut outbox, wakeup(b"a", Class::Visible));
    assert_eq!(outbox.poll_load(10, NOW), [id]);
    outbox.handle_unreadable(id);
    assert_eq!((writes(&mut outbox), outbox.memory()), (vec![Write::Remove(id)], 0));
    assert_eq!(outbox.counters(Service::Apns).dropped(DropReason::Unreadable), 1);
}

#[test]
fn without_any_memory_each_lane_still_goes_on_one_by_one() {
    let mut outbox = with(|settings| settings.memory = 0);
    for _ in 0..3 {
        queue(&mut outbox, wakeup(b"a", Class::Visible));
    }
    for _ in 0..3 {
        let ids = outbox.poll_load(10, NOW);
        assert_eq!(ids.len(), 1);
        outbox.handle_loaded(ids[0], wakeup(b"a", Class::Visible));
        let id = send(&mut outbox, NOW).id;
        outbox.handle_outcome(id, Outcome::Delivered, NOW, 0);
    }
    assert!(outbox.is_empty());
}

#[test]
fn an_outbox_prints_nothing_private() {
    let mut outbox = outbox();
    queue(&mut outbox, wakeup(b"a", Class::Visible));
    assert_eq!(
        format!("{outbox:?} {:?}", push_id(1)),
        "Outbox { entries: 1, .. } PushId(<private>)"
    );
}

fn outbox() -> Outbox {
    with(|_| {})
}

fn with(change: impl FnOnce(&mut OutboxSettings)) -> Outbox {
    let mut settings = OutboxSettings::default();
    change(&mut settings);
    Outbox::new(settings, Seed::new([1; 16]), EntryId(1))
}

fn wakeup(token: &[u8], class: Class) -> Sealed {
    Sealed {
        service: Service::Apns,
        token: DeviceToken::new(token),
        body: Box::new([7; 100]),
        fallback: None,
        class,
        priority: Priority::High,
        expires_at_ms: NOW + 100 * HOUR,
    }
}

fn size(sealed: &Sealed) -> usize {
    let mut outbox = outbox();
    outbox.accept(sealed.clone(), push_id(0), NOW).unwrap();
    outbox.memory()
}

fn push_id(number: u8) -> PushId {
    PushId([number; 16])
}

fn queue(outbox: &mut Outbox, sealed: Sealed) -> EntryId {
    let id = outbox.accept(sealed, push_id(0), NOW).unwrap().id;
    outbox.handle_written([id]);
    id
}

fn send(outbox: &mut Outbox, now_ms: i64) -> Push {
    outbox.poll_send(now_ms).unwrap()
}

fn retry(reason: RetryReason, after: Option<Duration>) -> Outcome {
    Outcome::Retry { after, reason }
}

fn writes(outbox: &mut Outbox) -> Vec<Write> {
    std::iter::from_fn(|| outbox.poll_write()).collect()
}

fn effects(outbox: &mut Outbox) -> Vec<Effect> {
    std::iter::from_fn(|| outbox.poll_effect()).collect()
}
