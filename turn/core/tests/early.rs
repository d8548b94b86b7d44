//! A check from client to client that came before its permission waits for it, a moment and no longer.

mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use turn_core::control::early::{HELD, LONGEST};
use turn_core::control::{Limits, Refusal};
use turn_core::forwarding::Dropped;
use turn_core::wire::Transport;
use world::*;

const ALICE: &str = "8.8.4.4:40000";
const BOB: &str = "8.8.4.5:40000";
const SUCCESS: u16 = 0x100;

/// An ICE check as a browser makes it, of so many bytes.
fn check(length: usize) -> Vec<u8> {
    let draft = Draft::new(BINDING, *b"as ICE makes").with(USERNAME, &vec![b'x'; length - 24 - 8]);
    let check = draft.fingerprint().0;
    assert_eq!(check.len(), length);
    check
}

/// Both with allocations; one has permitted the other, whose permission is to come.
struct Call {
    world: World,
    alice: Client,
    bob: Client,
    at_alice: SocketAddr,
    at_bob: SocketAddr,
}

fn call(bob: Client) -> Call {
    call_with(bob, Options::default())
}

fn call_with(mut bob: Client, options: Options) -> Call {
    let (mut world, mut alice) = (World::with(options), Client::new(ALICE));
    let (at_alice, at_bob) = (alice.allocate(&mut world), bob.allocate(&mut world));
    alice.permit(&mut world, &[&at_bob.ip().to_string()]);
    Call {
        world,
        alice,
        bob,
        at_alice,
        at_bob,
    }
}

impl Call {
    fn new() -> Self {
        call(Client::new(BOB))
    }

    /// It goes nowhere now.
    fn alice_sends(&mut self, packet: &[u8]) {
        let sent = self.alice.send(&mut self.world, &self.at_bob.to_string(), packet);
        assert_eq!(sent, None);
    }

    /// What bob gets: the answer first.
    fn bob_permits(&mut self, ip: &str) -> Vec<Vec<u8>> {
        let draft = self.bob.draft(PERMIT).address(PEER, address(ip));
        self.bob_asks(draft)
    }

    /// Packets that went nowhere for want of a permission.
    fn given_up(&self) -> u64 {
        self.world.refused(Refusal::Dropped(Dropped::NoPermission))
    }

    fn bob_permits_alice(&mut self) -> Vec<Vec<u8>> {
        self.bob_permits(&self.at_alice.ip().to_string())
    }

    fn bob_asks(&mut self, draft: Draft) -> Vec<Vec<u8>> {
        let request = self.bob.sign(draft).0;
        assert_eq!(self.world.packet(&self.bob.tuple, &request), None);
        let replies = std::mem::take(&mut self.world.replies);
        assert!(replies.iter().all(|(to, _)| *to == self.bob.tuple.client()));
        replies.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

/// The packet that a Data indication brings, and from whom.
fn data(bytes: &[u8]) -> (SocketAddr, Vec<u8>) {
    let indication = Reply::read(bytes);
    assert_eq!(indication.kind, DATA);
    let data = indication.get(PAYLOAD).expect("a Data indication has data").to_vec();
    (indication.addresses(PEER)[0], data)
}

#[test]
fn a_check_that_came_before_its_permission_follows_the_answer_to_it_once() {
    for length in [100, LONGEST] {
        let mut call = Call::new();
        let check = check(length);
        call.alice_sends(&check);
        let got = call.bob_permits_alice();
        assert_eq!(got.len(), 2);
        assert_eq!(Reply::read(&got[0]).kind, PERMIT | SUCCESS);
        assert_eq!(data(&got[1]), (call.at_alice, check));
        assert_eq!(call.bob_permits_alice().len(), 1);
        assert_eq!(call.given_up(), 0);
    }
}

#[test]
fn it_comes_over_the_channel_whose_binding_it_waited_for() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut call = call(Client::over(BOB, transport));
        let (check, at_bob) = (check(100), call.at_bob.to_string());
        call.alice.bind(&mut call.world, 0x4001, &at_bob);
        assert_eq!(call.alice.channel_data(&mut call.world, 0x4001, &check), None);
        let draft = call.bob.draft(BIND).with(CHANNEL, &[0x40, 0x02, 0, 0]);
        let draft = draft.address(PEER, call.at_alice);
        let got = call.bob_asks(draft);
        assert_eq!(got.len(), 2);
        assert_eq!(Reply::read(&got[0]).kind, BIND | SUCCESS);
        assert_eq!(got[1], channel_data(0x4002, &check));
    }
}

#[test]
fn it_finds_a_client_of_another_shard() {
    let mut call = Call::new();
    let settings = Options::default().settings(USERS, call.world.shared.relays());
    let mut other = World::shard(Arc::clone(&call.world.shared), settings, 1);
    let mut carol = Client::new("8.8.4.6:40000");
    let at_carol = carol.allocate(&mut other);
    let check = check(100);
    assert_eq!(call.alice.send(&mut call.world, &at_carol.to_string(), &check), None);
    let draft = carol.draft(PERMIT).address(PEER, call.at_alice);
    assert_eq!(other.packet(&carol.tuple, &carol.sign(draft).0), None);
    assert_eq!(other.replies.len(), 2);
    assert_eq!(data(&other.replies[1].1), (call.at_alice, check));
}

/// One shard looks for the permission and lays the check aside, the other writes the permission and looks for checks.
#[test]
fn a_check_that_meets_its_permission_on_another_shard_comes_once() {
    const ROUNDS: u32 = 400;
    let limits = Limits {
        allocations_per_prefix: ROUNDS + 2,
        challenges_per_second: 1_000_000,
        challenge_burst: 1_000_000,
        ..Limits::default()
    };
    let mut call = call_with(
        Client::new(BOB),
        Options {
            limits: limits.clone(),
            ..Options::default()
        },
    );
    let options = Options {
        limits,
        ..Options::default()
    };
    let settings = options.settings(USERS, call.world.shared.relays());
    let mut other = World::shard(Arc::clone(&call.world.shared), settings, 1);
    let check = check(100);
    for round in 0..ROUNDS {
        // Nobody has permitted anybody for a new one.
        let mut carol = Client::new(&format!("8.8.4.6:{}", 40_000 + round));
        let at_carol = carol.allocate(&mut other);
        let draft = call.alice.draft(SEND).address(PEER, at_carol);
        let (indication, alice) = (draft.with(PAYLOAD, &check).0, call.alice.tuple);
        let draft = carol.draft(PERMIT).address(PEER, call.at_alice);
        let request = carol.sign(draft).0;
        let (here, ready) = (&mut call.world, &AtomicU32::new(0));
        let meet = move || {
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < 2 {
                std::hint::spin_loop();
            }
        };
        let passed = std::thread::scope(|scope| {
            let sent = scope.spawn(|| {
                meet();
                // A signature takes its time to check: somewhere here the two meet.
                (0..round).for_each(|_| std::hint::spin_loop());
                here.packet(&alice, &indication)
            });
            meet();
            assert_eq!(other.packet(&carol.tuple, &request), None);
            sent.join().expect("the other shard lives")
        });
        let released = other.replies.len() - 1;
        assert_eq!(usize::from(passed.is_some()) + released, 1, "round {round}");
        other.replies.clear();
    }
}

#[test]
fn the_newest_check_waits_and_none_waits_longer_than_half_a_second() {
    let mut call = Call::new();
    call.alice_sends(&check(100));
    let held_at = call.world.steady;
    assert_eq!(call.world.server.next_deadline(), Some(held_at + HELD));
    call.world.steady += HELD - Duration::from_millis(1);
    assert_eq!(call.given_up(), 0);
    call.alice_sends(&check(104));
    assert_eq!(call.given_up(), 1);
    assert_eq!(data(&call.bob_permits_alice()[1]).1, check(104));
    assert_eq!(call.given_up(), 1);

    // Without a timer.
    let mut call = Call::new();
    call.alice_sends(&check(100));
    call.world.steady += HELD;
    assert_eq!(call.bob_permits_alice().len(), 1);

    // With one nothing is left of it.
    let mut call = Call::new();
    let before = call.world.server.next_deadline();
    call.alice_sends(&check(100));
    call.world.pass(1);
    assert_eq!(call.world.server.next_deadline(), before);
    assert_eq!(call.given_up(), 1);
}

#[test]
fn nothing_but_a_check_waits() {
    let mut call = Call::new();
    let answer = Draft::new(BINDING | SUCCESS, [1; 12]).0;
    let indication = Draft::new(0x011, [1; 12]).0;
    let request = Draft::new(ALLOCATE, [1; 12]).0;
    let mut cut = check(100);
    cut.truncate(96);
    for packet in [
        b"sound".to_vec(),
        Vec::new(),
        answer,
        indication,
        request,
        cut,
        check(LONGEST + 4),
    ] {
        call.alice_sends(&packet);
        assert_eq!(
            call.world.server.next_deadline(),
            Call::new().world.server.next_deadline()
        );
    }
    assert_eq!(call.bob_permits_alice().len(), 1);
}

#[test]
fn nothing_waits_from_outside_or_from_who_has_not_permitted_its_receiver() {
    let mut call = Call::new();
    let at_bob = call.at_bob;
    assert_eq!(call.world.peer_packet(at_bob, "1.2.3.4:5000", &check(100)), None);
    assert_eq!(call.bob_permits("1.2.3.4").len(), 1);
    let (mut mallory, at_bob) = (Client::new("8.8.4.7:40000"), at_bob.to_string());
    mallory.allocate(&mut call.world);
    assert_eq!(mallory.send(&mut call.world, &at_bob, &check(100)), None);
    assert_eq!(call.bob_permits_alice().len(), 1);
}

#[test]
fn a_permission_for_somebody_else_brings_nothing_and_takes_nothing_away() {
    let mut call = Call::new();
    call.alice_sends(&check(100));
    assert_eq!(call.bob_permits("1.2.3.4").len(), 1);
    assert_eq!(call.bob_permits_alice().len(), 2);
}

#[test]
fn who_has_the_port_next_gets_nothing_of_it() {
    let limits = Limits {
        port_cool_down: Duration::ZERO,
        ..Limits::default()
    };
    let mut call = call_with(
        Client::new(BOB),
        Options {
            ports: (50_000, 50_001),
            limits,
            ..Options::default()
        },
    );
    call.alice_sends(&check(100));
    call.bob.refresh(&mut call.world, 0);
    assert_eq!(call.bob.allocate(&mut call.world), call.at_bob);
    assert_eq!(call.bob_permits_alice().len(), 1);
}

#[test]
fn it_is_given_up_with_the_one_address_of_two_that_it_waits_for() {
    let (mut world, mut alice, mut bob) = (World::new(), Client::new(ALICE), Client::new(BOB));
    let both: (u16, &[u8]) = (ADDITIONAL, &[2, 0, 0, 0]);
    alice.ask_with(&mut world, ALLOCATE, &[UDP, both]);
    let at_bob = bob.ask_with(&mut world, ALLOCATE, &[UDP, both]).addresses(RELAYED);
    for address in &at_bob {
        alice.permit(&mut world, &[&address.ip().to_string()]);
        assert_eq!(alice.send(&mut world, &address.to_string(), &check(100)), None);
    }
    let given_up = |world: &World| world.refused(Refusal::Dropped(Dropped::NoPermission));
    assert_eq!(given_up(&world), 0);
    bob.ask_with(&mut world, REFRESH, &[(LIFETIME, &[0; 4]), (FAMILY, &[2, 0, 0, 0])]);
    assert_eq!(given_up(&world), 1);
    world.pass(1);
    assert_eq!(given_up(&world), 2);
}
