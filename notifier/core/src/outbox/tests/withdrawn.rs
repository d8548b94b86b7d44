//! What waits for a device that nobody subscribes any more.

use super::*;

fn target(token: &[u8]) -> Target {
    Target {
        service: Service::Apns,
        token: DeviceToken::new(token),
    }
}

fn dropped(outbox: &Outbox) -> u64 {
    outbox.counters(Service::Apns).dropped(DropReason::Unsubscribed)
}

#[test]
fn what_waits_for_a_withdrawn_device_is_dropped_and_counted_at_once() {
    let mut outbox = outbox();
    let gone = [0, 1].map(|_| queue(&mut outbox, wakeup(b"gone", Class::Visible)));
    let stays = queue(&mut outbox, wakeup(b"stays", Class::Visible));
    let other_service = queue(
        &mut outbox,
        Sealed {
            service: Service::Firebase,
            ..wakeup(b"gone", Class::Visible)
        },
    );
    outbox.withdraw(&[target(b"gone")], NOW);
    assert_eq!((outbox.len(), dropped(&outbox)), (2, 2));
    let mut removed = writes(&mut outbox);
    removed.sort_by_key(|write| match write {
        Write::Remove(id) | Write::Change { id, .. } => *id,
    });
    assert_eq!(removed, gone.map(Write::Remove));
    let mut sent = [send(&mut outbox, NOW).id, send(&mut outbox, NOW).id];
    sent.sort();
    assert_eq!(sent, [stays, other_service]);
}

#[test]
fn what_is_written_read_or_under_way_meanwhile_is_dropped_at_its_next_turn() {
    let mut outbox = with(|settings| settings.memory = 0);
    let under_way = queue(&mut outbox, wakeup(b"gone", Class::Call));
    let load = |outbox: &mut Outbox| {
        for id in outbox.poll_load(1, NOW) {
            outbox.handle_loaded(id, wakeup(b"gone", Class::Call));
        }
    };
    load(&mut outbox);
    assert_eq!(send(&mut outbox, NOW).id, under_way);
    let _on_disk = queue(&mut outbox, wakeup(b"gone", Class::Call));
    let unwritten = outbox.accept(wakeup(b"gone", Class::Call), push_id(3), NOW).unwrap().id;
    outbox.withdraw(&[target(b"gone")], NOW);
    outbox.handle_written([unwritten]);
    outbox.handle_outcome(under_way, retry(RetryReason::Timeout, None), NOW, 0);
    for step in 0..100 {
        let now_ms = NOW + step * MINUTE;
        outbox.handle_timeout(now_ms);
        load(&mut outbox);
        assert!(outbox.poll_send(now_ms).is_none(), "nothing is sent");
    }
    assert_eq!((outbox.len(), outbox.memory(), dropped(&outbox)), (0, 0, 3));
}

#[test]
fn a_device_that_subscribes_again_gets_what_comes_after() {
    let mut outbox = outbox();
    queue(&mut outbox, wakeup(b"back", Class::Visible));
    outbox.withdraw(&[target(b"back")], NOW);
    let later = queue(&mut outbox, wakeup(b"back", Class::Visible));
    assert_eq!(send(&mut outbox, NOW).id, later);
    assert!(outbox.poll_send(NOW).is_none());
}

#[test]
fn devices_are_remembered_only_as_long_as_something_could_wait_and_only_so_many() {
    let mut outbox = outbox();
    outbox.withdraw(&[target(b"a")], NOW);
    assert!(!outbox.withdrawn.is_empty());
    outbox.handle_timeout(NOW + HOUR);
    assert!(outbox.withdrawn.is_empty());
    let many: Vec<_> = (0..70_000u32).map(|number| target(&number.to_be_bytes())).collect();
    outbox.withdraw(&many, NOW);
    assert_eq!(outbox.withdrawn.len(), 65_536);
}
