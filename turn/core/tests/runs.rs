//! Packets that came together and are decided together: as each for itself would be, or not at all.

mod world;

use turn_core::control::{Limits, Refusal};
use turn_core::forwarding::{Dropped, Run};
use turn_core::wire::{PeerAddr, Transport};
use world::*;

fn run(count: u16) -> Run {
    Run::new(count).expect("not zero")
}

fn peer(text: &str) -> PeerAddr {
    PeerAddr::new(text.parse().expect("an address"))
}

#[test]
fn a_run_goes_where_each_of_it_would_and_counts_as_many() {
    let mut world = World::new();
    let (mut alice, mut bob) = (Client::new("8.8.4.4:40000"), Client::new("8.8.4.5:40000"));
    let (ra, rb) = (alice.allocate(&mut world), bob.allocate(&mut world));
    alice.bind(&mut world, 0x4000, "1.2.3.4:5000");
    alice.bind(&mut world, 0x4001, &rb.to_string());
    bob.bind(&mut world, 0x4002, &ra.to_string());
    let (now, relay) = (world.now(), world.relay(ra));
    for number in [0x4000, 0x4001] {
        let bytes = channel_data(number, &[1; 100]);
        let together = world.server.handle_client_run(&alice.tuple, &bytes, run(16), now);
        let alone = world.server.handle_client(&alice.tuple, &bytes, now, &mut |_| {});
        assert!(together.is_some());
        assert_eq!(together, alone);
    }
    let from = peer("1.2.3.4:5000");
    let together = world.server.handle_peer_run(relay, from, 100, run(16), now);
    let alone = world.server.handle_peer(relay, from, 100, now, &mut |_| {});
    assert!(together.is_some());
    assert_eq!(together, alone);
    let counters = world.server.counters();
    for traffic in [counters.to_peers, counters.within, counters.to_clients] {
        assert_eq!((traffic.packets, traffic.bytes), (17, 1_700));
    }
}

#[test]
fn what_must_be_decided_one_by_one_is_no_run_and_counts_nothing() {
    let mut world = World::new();
    let (mut alice, mut bob) = (
        Client::new("8.8.4.4:40000"),
        Client::over("8.8.4.5:40000", Transport::Tcp),
    );
    let (ra, rb) = (alice.allocate(&mut world), bob.allocate(&mut world));
    alice.permit(&mut world, &["1.2.3.4"]);
    alice.bind(&mut world, 0x4001, &rb.to_string());
    bob.bind(&mut world, 0x4002, &ra.to_string());
    let now = world.now();
    let first = format!("{:?}", world.server.counters());
    // A Data indication has a transaction of its own, a stream takes frame by frame.
    let from = peer("1.2.3.4:5000");
    assert_eq!(
        world.server.handle_peer_run(world.relay(ra), from, 100, run(2), now),
        None
    );
    let bytes = channel_data(0x4001, &[1; 100]);
    assert_eq!(world.server.handle_client_run(&alice.tuple, &bytes, run(2), now), None);
    assert_eq!(format!("{:?}", world.server.counters()), first);
    // Nothing has no length by which one is told from the next.
    alice.bind(&mut world, 0x4000, "1.2.3.4:5000");
    let before = format!("{:?}", world.server.counters());
    let bytes = channel_data(0x4000, &[]);
    assert_eq!(world.server.handle_client_run(&alice.tuple, &bytes, run(2), now), None);
    assert_eq!(
        world.server.handle_peer_run(world.relay(ra), from, 0, run(2), now),
        None
    );
    // Nobody's channel, nobody's permission, no ChannelData.
    let bytes = channel_data(0x4007, &[1; 100]);
    assert_eq!(world.server.handle_client_run(&alice.tuple, &bytes, run(2), now), None);
    let stranger = peer("1.2.3.5:5000");
    assert_eq!(
        world
            .server
            .handle_peer_run(world.relay(ra), stranger, 100, run(2), now),
        None
    );
    let request = alice.draft(BINDING).0;
    assert_eq!(
        world.server.handle_client_run(&alice.tuple, &request, run(2), now),
        None
    );
    assert_eq!(format!("{:?}", world.server.counters()), before);
    assert!(world.server.poll_output().is_none());
    assert!(Run::new(0).is_none() && Run::new(Run::MOST + 1).is_none());
}

#[test]
fn a_run_that_is_too_much_is_paid_packet_by_packet() {
    let limits = Limits {
        bandwidth_per_allocation: 1_000,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let mut alice = Client::new("8.8.4.4:40000");
    alice.allocate(&mut world);
    alice.bind(&mut world, 0x4000, "1.2.3.4:5000");
    let (now, bytes) = (world.now(), channel_data(0x4000, &[1; 1_000]));
    let mut together = 0;
    while world
        .server
        .handle_client_run(&alice.tuple, &bytes, run(50), now)
        .is_some()
    {
        together += 50;
    }
    // 131,072 bytes may come at once.
    assert_eq!(together, 100);
    let passed = (0..50)
        .filter(|_| {
            world
                .server
                .handle_client(&alice.tuple, &bytes, now, &mut |_| {})
                .is_some()
        })
        .count();
    assert_eq!(passed, 31);
    assert_eq!(world.refused(Refusal::Dropped(Dropped::AllocationBandwidth)), 19);
    assert_eq!(world.server.counters().to_peers.packets, 131);
}
