use super::*;
use crate::keyring::Keyring;
use crate::outbox::{Lane, OutboxFile, OutboxSettings};
use notifier_core::account::{MessageHash, Namespace, NamespaceSet, Service};
use notifier_core::event::Body;
use notifier_core::lane::LaneSettings;
use notifier_core::seal::Class;
use notifier_core::subscription::SIGNATURE_LIFETIME_SECONDS;
use notifier_core::swarm::{Node, NodeList, SwarmId};
use quietline_shared::bencode::{put_bytes, put_int};
use std::net::Ipv4Addr;

const ACCOUNT: AccountId = AccountId::new([5; 33]);

fn relay() -> Relay {
    let settings = RelaySettings {
        node_rate: NonZeroU32::MIN,
        node_burst: NonZeroU32::MIN,
        confirm: ConfirmSettings::default(),
        dedupe: DedupeSettings::default(),
        seal: SealSettings::default(),
        devices: Arc::default(),
    };
    Relay::new(
        settings,
        Secret::new([1; 32]),
        Vec::new(),
        watch::channel(Arc::default()).1,
    )
}

fn subscription() -> Subscription {
    Subscription {
        device: DeviceId {
            account: ACCOUNT,
            service: Service::Firebase,
            token: DeviceToken::new(*b"token"),
        },
        session_ed25519: Some([1; 32]),
        subaccount: None,
        namespaces: NamespaceSet::new(vec![Namespace(0)]).unwrap(),
        want_data: true,
        sig_ts: unix_ms() / 1000,
        signature: [2; 64],
        enc_key: Secret::new([3; 32]),
        is_bound: false,
    }
}

fn load(relay: &mut Relay) -> usize {
    load_row(relay, subscription())
}

fn load_row(relay: &mut Relay, row: Subscription) -> usize {
    let (done, mut standing) = oneshot::channel();
    relay.obey(Command::Load {
        subscriptions: vec![(row, Bytes::new())],
        expired: Vec::new(),
        done,
    });
    standing.try_recv().unwrap().len()
}

#[test]
fn a_device_removed_while_the_store_is_read_stays_removed() {
    let mut relay = relay();
    let (done, _removed) = oneshot::channel();
    relay.obey(Command::Remove {
        device: Box::new(subscription().device),
        done,
    });
    assert_eq!(load(&mut relay), 0);
    assert!(!relay.index.contains(&ACCOUNT));
}

#[test]
fn a_device_that_subscribed_again_while_the_store_is_read_stays() {
    let mut relay = relay();
    let (done, _removed) = oneshot::channel();
    relay.obey(Command::Remove {
        device: Box::new(subscription().device),
        done,
    });
    let (done, _upserted) = oneshot::channel();
    relay.obey(Command::Put {
        subscription: Box::new(subscription()),
        done,
    });
    load(&mut relay);
    assert!(relay.index.contains(&ACCOUNT));
}

#[test]
fn a_row_read_before_it_was_written_over_within_its_second_changes_nothing() {
    let mut relay = relay();
    let (old, mut new) = (subscription(), subscription());
    new.sig_ts = old.sig_ts;
    new.enc_key = Secret::new([4; 32]);
    new.want_data = false;
    let (done, _upserted) = oneshot::channel();
    relay.obey(Command::Put {
        subscription: Box::new(new),
        done,
    });
    assert_eq!(load_row(&mut relay, old), 0);
    let message = event(0, unix_ms() + 3_600_000, b'a');
    let woken: Vec<_> = relay.index.fan_out(&message).collect();
    let keys: Vec<_> = woken.iter().map(|device| (*device.enc_key, device.want_data)).collect();
    assert_eq!(keys, [([4; 32], false)]);
}

#[test]
fn what_waits_for_a_device_whose_signature_ran_out_is_withdrawn() {
    let mut relay = relay();
    relay.obey(Command::LoadEnded);
    let mut old = subscription();
    old.sig_ts -= SIGNATURE_LIFETIME_SECONDS;
    relay.index.upsert(&old);
    let (told, mut heard) = mpsc::channel(4 * SWEEP);
    relay.sweep(&told, Instant::now(), unix_ms());
    assert!(matches!(heard.try_recv(), Ok(Told::AccountGone(account)) if *account == ACCOUNT));
    assert_eq!(relay.withdrawn(), [target()]);
    assert_eq!(relay.withdrawn(), []);
}

#[test]
fn a_wall_clock_that_jumps_ahead_for_a_moment_takes_no_device() {
    let mut relay = relay();
    relay.obey(Command::LoadEnded);
    relay.index.upsert(&subscription());
    let (told, mut heard) = mpsc::channel(4 * SWEEP);
    let (now, now_ms) = (Instant::now(), unix_ms());
    let ahead_ms = (SIGNATURE_LIFETIME_SECONDS + 60) * 1000;
    for second in 0..60 {
        let passed = Duration::from_secs(second);
        let wall_ms = now_ms + ahead_ms + i64::try_from(passed.as_millis()).unwrap();
        relay.sweep(&told, now + passed, wall_ms);
    }
    assert!(relay.index.contains(&ACCOUNT) && heard.try_recv().is_err());
    // It is right after all.
    let hour = Duration::from_secs(3_600);
    relay.sweep(&told, now + hour, now_ms + ahead_ms + 3_600_000);
    assert!(!relay.index.contains(&ACCOUNT));
}

#[test]
fn what_waits_for_a_device_that_ran_out_between_two_runs_is_withdrawn_unless_it_came_back() {
    let mut relay = relay();
    for came_back in [false, true] {
        let (done, _standing) = oneshot::channel();
        relay.obey(Command::Load {
            subscriptions: Vec::new(),
            expired: vec![subscription().device],
            done,
        });
        if came_back {
            relay.index.upsert(&subscription());
        }
        relay.obey(Command::LoadEnded);
        let expected = if came_back { vec![] } else { vec![target()] };
        assert_eq!(relay.withdrawn(), expected);
    }
}

fn target() -> Target {
    Target {
        service: Service::Firebase,
        token: DeviceToken::new(*b"token"),
    }
}

fn event(namespace: i16, expiry_ms: i64, hash: u8) -> MessageEvent {
    MessageEvent {
        account: ACCOUNT,
        hash: MessageHash::from_slice(&[hash; 43]).unwrap(),
        namespace: Namespace(namespace),
        timestamp_ms: unix_ms(),
        expiry_ms,
        body: None,
    }
}

#[test]
fn a_copy_that_wakes_nobody_does_not_silence_a_true_one() {
    let mut relay = relay();
    load(&mut relay);
    let (now_ms, hour) = (unix_ms(), 3_600_000);
    let lies = [
        event(7, now_ms + hour, b'a'),
        event(0, now_ms - 1, b'a'),
        event(0, now_ms + 20_000, b'a'),
    ];
    let mut turn = Turn::default();
    for lie in lies {
        let mark = Mark::new(&relay.mark_key, &lie);
        relay.wake(lie, mark, Instant::now(), now_ms, &mut turn);
        assert!(turn.wakeups.is_empty() && turn.marks.is_empty());
    }
    for _ in 0..2 {
        let truth = event(0, now_ms + hour, b'a');
        let mark = Mark::new(&relay.mark_key, &truth);
        relay.wake(truth, mark, Instant::now(), now_ms, &mut turn);
    }
    assert_eq!((turn.wakeups.len(), turn.marks.len()), (1, 1));
}

#[test]
fn a_dead_token_is_found_at_every_account_it_belongs_to() {
    let mut relay = relay();
    load(&mut relay);
    let mut group = subscription();
    group.device.account = AccountId::new([3; 33]);
    relay.index.upsert(&group);
    relay.dead.add(target(), Some(7));
    let found = relay.dead.find(&relay.index, SWEEP);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|(_, since)| *since == Some(7)));
    assert!(relay.dead.find(&relay.index, SWEEP).is_empty());
}

#[test]
fn a_turn_makes_few_wakeups_however_many_devices_an_account_has() {
    let mut relay = crowded();
    let mut batch: VecDeque<Incoming> = (0..5).map(message).collect();
    let turns: Vec<(usize, usize)> = std::iter::from_fn(|| {
        let Turn { wakeups, marks } = relay.turn_into_wakeups(&mut batch);
        (!wakeups.is_empty()).then_some((wakeups.len(), marks.len()))
    })
    .collect();
    assert_eq!(turns, [(MAX_DEVICES, 1); 5]);
}

#[tokio::test]
async fn what_one_turn_leaves_of_a_batch_goes_out_with_the_next_ones() {
    let folder = tempfile::TempDir::new().unwrap();
    let settings = OutboxSettings {
        path: folder.path().join("outbox.db"),
        ..OutboxSettings::default()
    };
    let keys = Keyring::new(vec![Secret::new([1; 32])]).unwrap();
    let file = OutboxFile::open(&settings, &keys).await.unwrap();
    let (pushes, _lane) = mpsc::channel(1);
    let lanes = vec![Lane {
        service: Service::Firebase,
        settings: LaneSettings::with_concurrency(1),
        pushes,
    }];
    let (effects, _heard) = mpsc::channel(1);
    let outbox = file.start(lanes, effects, Duration::from_secs(3_600)).await.unwrap();
    let (notifications, incoming) = mpsc::channel(BATCH);
    let (_commands, commands) = mpsc::channel(1);
    let (_dead, dead) = mpsc::channel(1);
    let (told, _told) = mpsc::channel(1);
    let ends = Ends {
        incoming,
        commands,
        dead,
        outbox: outbox.handle.clone(),
        told,
    };
    // The account's budget ends with the eighth; what gathers then goes out at the end.
    for number in 0..12 {
        notifications.try_send(message(number)).unwrap();
    }
    drop(notifications);
    crowded().run(ends).await;
    outbox.shutdown(tokio::time::Instant::now()).await;
    let mut seen = 0;
    let mut file = OutboxFile::open(&settings, &keys).await.unwrap();
    file.load_marks(0, |_| seen += 1).await.unwrap();
    assert_eq!(seen, 12);
}

/// A relay with an account that has as many devices as one may have.
fn crowded() -> Relay {
    let node = Node {
        key: NODE,
        ip: Ipv4Addr::LOCALHOST,
        port: 1,
        swarm: SWARM,
    };
    let ring = SwarmRing::new(&NodeList {
        nodes: vec![node],
        height: 1,
        block_hash: [0; 32],
    });
    let mut relay = relay();
    (relay.settings.node_rate, relay.settings.node_burst) = (NonZeroU32::MAX, NonZeroU32::MAX);
    relay.swarms = Swarms::new(watch::channel(Arc::new(ring)).1);
    for number in 0..MAX_DEVICES {
        let mut one = subscription();
        one.device.token = DeviceToken::new(number.to_be_bytes());
        assert_eq!(relay.index.upsert(&one), Upserted::Added);
    }
    relay
}

const NODE: NodeKey = NodeKey([1; 32]);
const SWARM: SwarmId = SwarmId(1);

/// As its node tells it.
fn message(number: u8) -> Incoming {
    let now_ms = unix_ms();
    let mut body = b"d".to_vec();
    put_bytes(&mut body, b"@");
    put_bytes(&mut body, ACCOUNT.expose());
    put_bytes(&mut body, b"h");
    put_bytes(&mut body, &[b'a' + number; 43]);
    for (key, value) in [(b"n", 0), (b"t", now_ms), (b"z", now_ms + 3_600_000)] {
        put_bytes(&mut body, key);
        put_int(&mut body, value);
    }
    body.push(b'e');
    Incoming::alone(NODE, SWARM, body.into())
}

/// A call, with what it says.
fn call(namespace: i16, number: u8, now_ms: i64) -> MessageEvent {
    MessageEvent {
        body: Some(Body(Bytes::from_static(b"it rings"))),
        ..event(namespace, now_ms + 200_000, number)
    }
}

fn woken(relay: &mut Relay, event: MessageEvent, now: Instant, now_ms: i64) -> Turn {
    let mut turn = Turn::default();
    let mark = Mark::new(&relay.mark_key, &event);
    relay.wake(event, mark, now, now_ms, &mut turn);
    turn
}

/// What comes out of one turn that takes nothing in.
fn gathered(relay: &mut Relay, now: Instant) -> Turn {
    relay.sweep(&mpsc::channel(1).0, now, unix_ms());
    relay.turn_into_wakeups(&mut VecDeque::new())
}

#[test]
fn beyond_its_budget_an_account_hears_once_of_all_that_gathered() {
    let mut relay = crowded();
    let (now, now_ms) = (Instant::now(), unix_ms());
    for number in b'a'..=b'h' {
        let turn = woken(&mut relay, call(0, number, now_ms), now, now_ms);
        assert_eq!((turn.wakeups.len(), turn.marks.len()), (MAX_DEVICES, 1));
        assert!(
            turn.wakeups
                .iter()
                .all(|each| each.class == Class::Call && each.fallback.is_some())
        );
    }
    for number in b'i'..=b'z' {
        let turn = woken(&mut relay, call(0, number, now_ms), now, now_ms);
        assert!(turn.wakeups.is_empty() && turn.marks.is_empty());
    }
    let mark = Mark::new(&relay.mark_key, &call(0, b'i', now_ms));
    assert_eq!(
        relay.dedupe.check(&mark, now_ms),
        MarkState::Pending,
        "a copy of what waits is a copy"
    );
    assert!(gathered(&mut relay, now).wakeups.is_empty());

    let rested = now + Duration::from_millis(100);
    let turn = gathered(&mut relay, rested);
    assert_eq!((turn.wakeups.len(), turn.marks.len()), (MAX_DEVICES, 18));
    assert!(
        turn.wakeups
            .iter()
            .all(|each| each.class == Class::TooLong && each.fallback.is_none())
    );
    // That was the budget of four seconds.
    assert!(
        woken(&mut relay, call(0, b'A', now_ms), rested, now_ms)
            .wakeups
            .is_empty()
    );
    assert!(gathered(&mut relay, rested + Duration::from_secs(3)).wakeups.is_empty());
    // What comes once there is a budget again waits for those that came before it.
    let rested = rested + Duration::from_secs(4);
    assert!(
        woken(&mut relay, call(0, b'B', now_ms), rested, now_ms)
            .wakeups
            .is_empty()
    );
    assert_eq!(gathered(&mut relay, rested).marks.len(), 2);
    let rested = rested + Duration::from_secs(4);
    let turn = woken(&mut relay, call(0, b'C', now_ms), rested, now_ms);
    assert!(turn.wakeups.len() == MAX_DEVICES && turn.wakeups.iter().all(|each| each.class == Class::Call));
}

#[test]
fn what_gathered_reaches_each_device_that_wants_some_of_it() {
    let mut relay = crowded();
    let mut other = subscription();
    other.device.token = DeviceToken::new(0_usize.to_be_bytes());
    other.namespaces = NamespaceSet::new(vec![Namespace(5)]).unwrap();
    assert!(matches!(relay.index.upsert(&other), Upserted::Changed { .. }));
    let (now, now_ms) = (Instant::now(), unix_ms());
    for number in b'a'..=b'j' {
        woken(&mut relay, call(0, number, now_ms), now, now_ms);
    }
    let mut gather = |event| woken(&mut relay, event, now, now_ms).wakeups.len();
    assert_eq!(gather(call(5, b'k', now_ms)), 0);
    assert_eq!(gather(event(0, now_ms + 20_000, b'l')), 0, "somebody types");
    assert_eq!(gather(call(7, b'm', now_ms)), 0, "nobody asked for these");
    let turn = gathered(&mut relay, now + Duration::from_secs(4));
    assert_eq!((turn.wakeups.len(), turn.marks.len()), (MAX_DEVICES, 2));
    let tokens: HashSet<_> = turn.wakeups.iter().map(|wakeup| &wakeup.token).collect();
    assert_eq!(tokens.len(), MAX_DEVICES);
}

#[test]
fn an_account_whose_messages_are_many_is_woken_before_its_budget_is_back() {
    let mut relay = crowded();
    let (now, now_ms) = (Instant::now(), unix_ms());
    let made: Vec<_> = (0..8 + 2 * 256)
        .map(|number: u16| {
            let mut event = call(0, 0, now_ms);
            event.hash = MessageHash::from_slice(format!("{number:043}").as_bytes()).unwrap();
            woken(&mut relay, event, now, now_ms)
        })
        .filter(|turn| !turn.wakeups.is_empty())
        .map(|turn| (turn.wakeups.len(), turn.marks.len()))
        .collect();
    assert_eq!(made[..8], [(MAX_DEVICES, 1); 8]);
    assert_eq!(made[8..], [(MAX_DEVICES, 256); 2]);
    assert!(relay.gathered.is_empty());
}

#[test]
fn what_gathered_for_devices_that_are_gone_silences_nobody() {
    let mut relay = crowded();
    let (now, now_ms) = (Instant::now(), unix_ms());
    for number in b'a'..=b'i' {
        woken(&mut relay, call(0, number, now_ms), now, now_ms);
    }
    for device in relay.index.devices(&ACCOUNT).collect::<Vec<_>>() {
        relay.index.remove(&device);
    }
    let turn = gathered(&mut relay, now + Duration::from_secs(4));
    assert!(turn.wakeups.is_empty() && turn.marks.is_empty() && relay.gathered.is_empty());
    let mark = Mark::new(&relay.mark_key, &call(0, b'i', now_ms));
    assert_eq!(relay.dedupe.check(&mark, now_ms), MarkState::New);
}
