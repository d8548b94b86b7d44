//! What one lane has too much of is no other's trouble.

use super::super::backlog::UNTOLD;
use super::*;

#[test]
fn when_full_a_lane_with_more_than_its_share_gives_way_to_the_others() {
    let mut outbox = with(|settings| settings.max_entries = 10);
    let google = |class| Sealed {
        service: Service::Firebase,
        ..wakeup(b"g", class)
    };
    // Google is in trouble: most of it waits for another try, the rest stands in the queue.
    let ids: Vec<_> = (0..10).map(|_| queue(&mut outbox, google(Class::Visible))).collect();
    for seconds in 0..8 {
        let push = send(&mut outbox, NOW);
        let later = Some(Duration::from_secs(60 + seconds));
        outbox.handle_outcome(push.id, retry(RetryReason::Unavailable, later), NOW, 0);
    }
    writes(&mut outbox);
    for expected in [8, 9, 7, 6] {
        queue(&mut outbox, wakeup(b"a", Class::Quiet));
        assert_eq!(writes(&mut outbox), [Write::Remove(ids[expected])]);
    }
    assert_eq!(outbox.counters(Service::Firebase).shed(Class::Visible), 4);
    // Its own newcomers find only what is worth less.
    let refused = outbox.accept(google(Class::TooLong), push_id(1), NOW);
    assert_eq!(refused.map(drop), Err(Rejected::Full));
    queue(&mut outbox, google(Class::Visible));
    assert_eq!(outbox.counters(Service::Apns).shed(Class::Quiet), 1);
}

#[test]
fn a_lane_whose_dead_tokens_nobody_hears_of_sends_no_more_and_the_others_do() {
    let mut outbox = outbox();
    let id = queue(&mut outbox, wakeup(b"alive", Class::Visible));
    send(&mut outbox, NOW);
    outbox.handle_outcome(id, Outcome::Delivered, NOW, 0);
    for number in 0..UNTOLD {
        let id = queue(&mut outbox, wakeup(&number.to_le_bytes(), Class::Visible));
        send(&mut outbox, NOW);
        let gone = Outcome::Gone {
            provider_time_ms: None,
            certain: true,
        };
        outbox.handle_outcome(id, gone, NOW, 0);
    }
    let apple = queue(&mut outbox, wakeup(b"a", Class::Call));
    let google = Sealed {
        service: Service::Firebase,
        ..wakeup(b"g", Class::Quiet)
    };
    let google = queue(&mut outbox, google);
    assert_eq!(send(&mut outbox, NOW).id, google);
    assert!(outbox.poll_send(NOW).is_none());
    assert!(outbox.next_deadline() > Some(NOW), "nobody spins meanwhile");
    assert!(outbox.poll_effect().is_some() && outbox.has_effects());
    assert_eq!(send(&mut outbox, NOW).id, apple);
    assert_eq!(effects(&mut outbox).len(), UNTOLD as usize - 1);
}
