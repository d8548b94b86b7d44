//! Lanes that hide the moment of a wakeup.

use super::*;

#[test]
fn jitter_delays_what_is_no_call_by_a_random_time_and_no_longer() {
    let jitter = Duration::from_secs(10);
    let mut outbox = with(|settings| {
        let lane = LaneSettings {
            jitter,
            ..LaneSettings::with_concurrency(1_000)
        };
        settings.set_lane(Service::Apns, lane);
    });
    let mut accept = |number: u8, class| {
        let entry = outbox.accept(wakeup(&[number], class), push_id(number), NOW).unwrap();
        outbox.handle_written([entry.id]);
        entry.id
    };
    let call = accept(1, Class::Call);
    let others: Vec<EntryId> = (2..200).map(|number| accept(number, Class::Visible)).collect();
    assert_eq!(send(&mut outbox, NOW).id, call);
    assert!(outbox.poll_send(NOW).is_none(), "a call alone waits for nothing");
    let mut times = Vec::new();
    while times.len() < others.len() {
        let now = outbox.next_deadline().unwrap();
        outbox.handle_timeout(now);
        times.extend(std::iter::from_fn(|| outbox.poll_send(now)).map(|_| now - NOW));
    }
    assert!(times.iter().all(|time| (0..=10_000).contains(time)), "{times:?}");
    let (first, last) = (times[0], times[times.len() - 1]);
    assert!(first < 1_000 && last > 9_000, "{first} {last}");
}

#[test]
fn jitter_ends_with_the_message() {
    let mut outbox = with(|settings| {
        let lane = LaneSettings {
            jitter: Duration::from_secs(60),
            ..LaneSettings::with_concurrency(1_000)
        };
        settings.set_lane(Service::Apns, lane);
    });
    let sealed = Sealed {
        expires_at_ms: NOW + MINUTE,
        ..wakeup(b"a", Class::Visible)
    };
    let entry = outbox.accept(sealed, push_id(250), NOW).unwrap();
    outbox.handle_written([entry.id]);
    let due = outbox.next_deadline().unwrap();
    assert!(due <= NOW + MINUTE / 2, "it goes while somebody may still want it");
    outbox.handle_timeout(due);
    assert_eq!(send(&mut outbox, due).id, entry.id);
}
