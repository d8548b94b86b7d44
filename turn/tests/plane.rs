//! Packets through real sockets.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod net;

use net::world::{self, Reply, channel_data};
use net::{Net, receive, send_burst, settings};
use quietline_turn::plane::Loss;
use quietline_turn::sys::{self, Slots};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use turn_core::control::{Limits, Refusal};
use turn_core::forwarding::Dropped;

fn packets(count: u8, length: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| vec![n; length]).collect()
}

#[test]
fn a_client_and_a_peer_talk_by_indications_and_by_channel() {
    let net = Net::new(1);
    let (mut alice, peer) = (net.caller(), net.host());
    let relayed = alice.allocate();
    let address = peer.local_addr().unwrap();
    alice.permit(address);

    let indication = alice.send_indication(address, b"hello");
    alice.post(&indication);
    assert_eq!(receive(&peer), (b"hello".to_vec(), relayed));
    peer.send_to(b"who is there?", relayed).unwrap();
    let data = Reply::read(&alice.next());
    assert_eq!(data.kind, world::DATA);
    assert_eq!(data.addresses(world::PEER), [address]);
    assert_eq!(data.get(world::PAYLOAD).unwrap(), b"who is there?");

    alice.bind(0x4001, address);
    alice.post(&channel_data(0x4001, b"me"));
    assert_eq!(receive(&peer), (b"me".to_vec(), relayed));
    peer.send_to(b"ah", relayed).unwrap();
    assert_eq!(alice.next(), channel_data(0x4001, b"ah"));

    // Empty datagrams are datagrams.
    alice.post(&channel_data(0x4001, b""));
    assert_eq!(receive(&peer), (vec![], relayed));
    peer.send_to(b"", relayed).unwrap();
    assert_eq!(alice.next(), channel_data(0x4001, b""));

    let report = net.report();
    assert_eq!(report.counters.to_peers.packets, 3);
    assert_eq!(report.counters.to_clients.packets, 3);
    assert_eq!((report.counters.allocations, net.shards().allocations()), (1, 1));
    assert_eq!(report.losses.iter().count(), 0);
}

#[test]
fn the_longest_datagrams_pass() {
    let net = Net::new(1);
    let (mut alice, peer) = (net.caller(), net.host());
    let relayed = alice.allocate();
    let address = peer.local_addr().unwrap();
    alice.bind(0x4001, address);
    // What still is a datagram with a ChannelData header in front of it.
    let long = vec![7; 65_507 - 4];
    alice.post(&channel_data(0x4001, &long));
    assert_eq!(receive(&peer), (long.clone(), relayed));
    peer.send_to(&long, relayed).unwrap();
    assert_eq!(alice.next(), channel_data(0x4001, &long));
    // With a byte more it is none, and the next one passes.
    peer.send_to(&[7; 65_504], relayed).unwrap();
    peer.send_to(b"short", relayed).unwrap();
    assert_eq!(alice.next(), channel_data(0x4001, b"short"));
    assert_eq!(
        net.report().counters.refusals.count(Refusal::Dropped(Dropped::TooLong)),
        1
    );
}

#[test]
fn bursts_pass_whole_and_in_order_both_ways() {
    let net = Net::new(1);
    let (mut alice, peer) = (net.caller(), net.host());
    let relayed = alice.allocate();
    let address = peer.local_addr().unwrap();
    alice.bind(0x4001, address);
    let mut sent = packets(40, 172);
    sent.last_mut().unwrap().truncate(60);

    let framed: Vec<_> = sent.iter().map(|payload| channel_data(0x4001, payload)).collect();
    alice.post_burst(&framed);
    for payload in &sent {
        assert_eq!(receive(&peer), (payload.clone(), relayed));
    }
    send_burst(&peer, relayed, &sent);
    for frame in &framed {
        assert_eq!(alice.next(), *frame);
    }

    // As many as go together, and as much as a client may pad.
    let longest = packets(64, 333);
    let padded = |payload: &Vec<u8>| [channel_data(0x4001, payload), vec![0; 3]].concat();
    let padded: Vec<_> = longest.iter().map(padded).collect();
    alice.post_burst(&padded);
    for payload in &longest {
        assert_eq!(receive(&peer), (payload.clone(), relayed));
    }
    send_burst(&peer, relayed, &longest);
    for payload in &longest {
        assert_eq!(alice.next(), channel_data(0x4001, payload));
    }

    // The same without a channel on the way to the client: prefixes are longer than the gaps between segments.
    let mut bob = net.caller_named("bob", "the builder");
    let relayed = bob.allocate();
    bob.permit(address);
    let framed: Vec<_> = sent
        .iter()
        .map(|payload| bob.send_indication(address, payload))
        .collect();
    bob.post_burst(&framed);
    for payload in &sent {
        assert_eq!(receive(&peer), (payload.clone(), relayed));
    }
    send_burst(&peer, relayed, &sent);
    for payload in &sent {
        let data = Reply::read(&bob.next());
        assert_eq!(data.get(world::PAYLOAD).unwrap(), payload);
        assert_eq!(data.addresses(world::PEER), [address]);
    }
    assert_eq!(net.report().losses.iter().count(), 0);
}

#[test]
fn a_burst_over_two_channels_parts_and_one_between_clients_stays_whole() {
    let net = Net::new(1);
    let (mut alice, mut bob, peer) = (net.caller(), net.caller(), net.host());
    let (ra, rb) = (alice.allocate(), bob.allocate());
    alice.bind(0x4001, peer.local_addr().unwrap());
    alice.bind(0x4002, rb);
    bob.bind(0x4003, ra);
    let sent = packets(30, 200);
    let mixed: Vec<_> = (sent.iter().zip([0x4001, 0x4002].into_iter().cycle()))
        .map(|(payload, number)| channel_data(number, payload))
        .collect();
    alice.post_burst(&mixed);
    for pair in sent.chunks(2) {
        assert_eq!(receive(&peer), (pair[0].clone(), ra));
        assert_eq!(bob.next(), channel_data(0x4003, &pair[1]));
    }
    let mut sent = packets(64, 333);
    sent.push(vec![65; 5]);
    alice.post_burst(&sent.iter().map(|p| channel_data(0x4002, p)).collect::<Vec<_>>());
    for payload in &sent {
        assert_eq!(bob.next(), channel_data(0x4003, payload));
    }
    // Of a length that is no multiple of 4, and padded nevertheless.
    let padded: Vec<_> = packets(9, 101)
        .iter()
        .map(|p| [channel_data(0x4002, p), vec![0; 3]].concat())
        .collect();
    alice.post_burst(&padded);
    for payload in packets(9, 101) {
        assert_eq!(bob.next(), channel_data(0x4003, &payload));
    }
    let report = net.report();
    assert_eq!(
        (report.counters.to_peers.packets, report.counters.within.packets),
        (15, 15 + 65 + 9)
    );
    assert_eq!(report.losses.iter().count(), 0);
}

#[test]
fn empty_datagrams_that_came_together_leave_one_by_one() {
    let net = Net::new(1);
    let (mut alice, mut bob, peer) = (net.caller(), net.caller(), net.host());
    let (ra, rb) = (alice.allocate(), bob.allocate());
    alice.bind(0x4001, peer.local_addr().unwrap());
    alice.bind(0x4002, rb);
    bob.bind(0x4003, ra);
    for number in [0x4001, 0x4002] {
        alice.post_burst(&vec![channel_data(number, b""); 9]);
    }
    for _ in 0..9 {
        assert_eq!(receive(&peer), (vec![], ra));
        assert_eq!(bob.next(), channel_data(0x4003, b""));
    }
    let report = net.report();
    assert_eq!(
        (report.counters.to_peers.packets, report.counters.within.packets),
        (9, 9)
    );
}

#[test]
fn bursts_of_many_clients_at_once_do_not_mix() {
    let net = Net::new(1);
    let peer = net.host();
    let address = peer.local_addr().unwrap();
    let mut callers: Vec<_> = (0..12).map(|_| net.caller()).collect();
    let relayed: Vec<_> = callers.iter_mut().map(|caller| caller.allocate()).collect();
    callers.iter_mut().for_each(|caller| caller.bind(0x4001, address));
    for round in 0..20u8 {
        for (n, caller) in callers.iter().enumerate() {
            let burst: Vec<_> = (0..8u8)
                .map(|k| channel_data(0x4001, &[n as u8, round, k].repeat(20)))
                .collect();
            caller.post_burst(&burst);
        }
        let mut next = vec![0u8; callers.len()];
        for _ in 0..callers.len() * 8 {
            let (bytes, from) = receive(&peer);
            let n = relayed.iter().position(|other| *other == from).unwrap();
            assert_eq!(bytes, [n as u8, round, next[n]].repeat(20));
            next[n] += 1;
            peer.send_to(&bytes, from).unwrap();
        }
        for (n, caller) in callers.iter().enumerate() {
            for k in 0..8 {
                assert_eq!(caller.next(), channel_data(0x4001, &[n as u8, round, k].repeat(20)));
            }
        }
    }
    assert_eq!(net.report().losses.iter().count(), 0);
}

#[test]
fn two_allocations_talk_within_the_server_whichever_shards_they_are_on() {
    let net = Net::new(2);
    // With so many it would be odd if all of them met one shard.
    let mut callers: Vec<_> = (0..12).map(|_| net.caller()).collect();
    let relayed: Vec<_> = callers.iter_mut().map(|caller| caller.allocate()).collect();
    let at = |n: usize| relayed[n % relayed.len()];
    let count = callers.len();
    for (n, caller) in callers.iter_mut().enumerate() {
        caller.bind(0x4001, at(n + 1));
        caller.permit(at(n + count - 1));
    }
    for (n, caller) in callers.iter().enumerate() {
        caller.post_burst(
            &packets(9, 100)
                .iter()
                .map(|p| channel_data(0x4001, p))
                .collect::<Vec<_>>(),
        );
        let next = &callers[(n + 1) % count];
        for payload in packets(9, 100) {
            let data = Reply::read(&next.next());
            assert_eq!(data.addresses(world::PEER), [at(n)]);
            assert_eq!(data.get(world::PAYLOAD).unwrap(), payload);
        }
    }
    let report = net.report();
    assert_eq!(report.counters.within.packets, 9 * count as u64);
    assert_eq!((report.counters.allocations, report.shards), (count, 2));
}

#[test]
fn a_client_is_told_by_icmp_that_nobody_listens() {
    let net = Net::new(1);
    let mut alice = net.caller();
    alice.allocate();
    let closed = {
        let gone = net.host();
        gone.local_addr().unwrap()
    };
    alice.bind(0x4001, closed);
    alice.post(&channel_data(0x4001, b"anybody?"));
    let data = Reply::read(&alice.next());
    assert_eq!((data.kind, data.has(world::PAYLOAD)), (world::DATA, false));
    assert_eq!(data.addresses(world::PEER), [closed]);
    assert_eq!(data.get(world::ICMP).unwrap(), [0, 0, 3, 3, 0, 0, 0, 0]);

    // An error that waits for the socket costs no later packet.
    let peer = net.host();
    alice.bind(0x4002, peer.local_addr().unwrap());
    for _ in 0..20 {
        alice.post(&channel_data(0x4001, b"anybody?"));
        alice.post(&channel_data(0x4002, b"you"));
        assert_eq!(receive(&peer).0, b"you");
        assert!(Reply::read(&alice.next()).has(world::ICMP));
    }
}

#[test]
fn a_peer_without_permission_is_not_heard_and_is_counted() {
    let net = Net::new(1);
    let (mut alice, stranger) = (net.caller(), net.host());
    let relayed = alice.allocate();
    for _ in 0..5 {
        stranger.send_to(b"buy now", relayed).unwrap();
    }
    // Which of two sockets is looked at first is nobody's promise.
    let unheard = Refusal::Dropped(Dropped::NoPermission);
    net.until(|report| report.counters.refusals.count(unheard) == 5);
    alice.permit(stranger.local_addr().unwrap());
    stranger.send_to(b"still there?", relayed).unwrap();
    assert_eq!(Reply::read(&alice.next()).get(world::PAYLOAD).unwrap(), b"still there?");
    alice.post(&channel_data(0x4001, b"no such channel"));
    alice.post(b"nothing of ours");
    alice.nothing_waits();
    let refusals = net.report().counters.refusals;
    let count = |refusal| refusals.count(refusal);
    assert_eq!(count(unheard), 5);
    assert_eq!(count(Refusal::Dropped(Dropped::NoChannel)), 1);
    assert_eq!(count(Refusal::NotOurs), 1);
}

/// The next datagram and the ECN bits it came with.
fn with_ecn(socket: &std::net::UdpSocket) -> (usize, u8) {
    let mut slots = Slots::new(1, 0, 0);
    let deadline = Instant::now() + net::PATIENCE;
    // The socket's own waiting has no control messages.
    socket.peek_from(&mut [0; 1]).unwrap();
    while Instant::now() < deadline {
        if slots.receive(socket.as_fd(), 0, 1).is_ok() {
            let received = slots.take(0).unwrap();
            return (received.length, received.tos & 3);
        }
    }
    panic!("nothing came");
}

fn hears_ecn(socket: &std::net::UdpSocket) {
    sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTOS, 1).unwrap();
}

fn speaks_ecn(socket: &std::net::UdpSocket, tos: i32) {
    sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_TOS, tos).unwrap();
}

#[test]
fn ecn_is_copied_and_dscp_is_not() {
    let net = Net::new(1);
    let (mut alice, mut bob, peer) = (net.caller(), net.caller(), net.host());
    let relayed = alice.allocate();
    let address = peer.local_addr().unwrap();
    alice.bind(0x4001, address);
    let other = bob.allocate();
    alice.bind(0x4002, other);
    bob.bind(0x4002, relayed);
    [&peer, &alice.socket, &bob.socket].into_iter().for_each(hears_ecn);
    // Expedited forwarding, with each of the ECN bits.
    for ecn in [1, 2, 3, 0] {
        speaks_ecn(&alice.socket, 0xB8 | ecn);
        speaks_ecn(&peer, 0xB8 | ecn);
        alice.post(&channel_data(0x4001, b"hello"));
        assert_eq!(with_ecn(&peer), (5, ecn as u8));
        alice.post(&channel_data(0x4002, b"hello"));
        assert_eq!(with_ecn(&bob.socket), (9, ecn as u8));
        peer.send_to(b"hello", relayed).unwrap();
        assert_eq!(with_ecn(&alice.socket), (9, ecn as u8));
    }
}

/// From now on the socket hears only what came with the DF bit, or only what came without.
fn hears_only(socket: &std::net::UdpSocket, dont_fragment: bool) {
    // Classic BPF: the flags of the IPv4 header, relative to the network header.
    const LOAD_HALF: u16 = 0x28;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const NETWORK_HEADER: u32 = 0xFFF0_0000;
    let step = socket2::SockFilter::new;
    let (set, unset) = if dont_fragment { (u32::MAX, 0) } else { (0, u32::MAX) };
    let program = [
        step(LOAD_HALF, 0, 0, NETWORK_HEADER + 6),
        step(JUMP_IF_SET, 0, 1, 0x4000),
        step(RETURN, 0, 0, set),
        step(RETURN, 0, 0, unset),
    ];
    socket2::SockRef::from(socket).attach_filter(&program).unwrap();
}

#[test]
fn df_is_set_only_where_a_client_asks_for_it() {
    let net = Net::new(1);
    let (mut alice, with, without) = (net.caller(), net.host(), net.host());
    let relayed = alice.allocate();
    hears_only(&with, true);
    hears_only(&without, false);
    for (peer, heard) in [(&with, b"asked for"), (&without, b"by itself")] {
        let address = peer.local_addr().unwrap();
        alice.permit(address);
        let unasked = alice.send_indication(address, b"by itself");
        let draft = alice.client.draft(world::SEND).address(world::PEER, address);
        let asked = draft
            .with(world::DONT_FRAGMENT, b"")
            .with(world::PAYLOAD, b"asked for")
            .0;
        [&unasked, &asked, &unasked]
            .into_iter()
            .for_each(|bytes| alice.post(bytes));
        assert_eq!(receive(peer), (heard.to_vec(), relayed));
    }
    assert_eq!(receive(&without), (b"by itself".to_vec(), relayed));
}

#[test]
fn what_does_not_go_out_is_counted() {
    let net = Net::new(1);
    let mut alice = net.caller();
    alice.allocate();
    // No socket of ours may send to a broadcast address.
    let everybody = "127.255.255.255:5000".parse().unwrap();
    alice.bind(0x4001, everybody);
    let frames: Vec<_> = packets(5, 100).iter().map(|p| channel_data(0x4001, p)).collect();
    alice.post_burst(&frames);
    net.until(|report| report.losses.count(Loss::SendRefused) == 5);
    alice.nothing_waits();
}

#[test]
fn what_a_listener_has_no_room_for_is_counted() {
    let net = Net::planned(1, Limits::default(), |plan| plan.buffers.receive = 1);
    let stranger = net.host();
    net.until(|report| {
        (0..50).for_each(|_| send_burst(&stranger, net.server, &packets(40, 1_000)));
        report.losses.count(Loss::ListenerOverflow) > 0
    });
}

#[test]
fn an_allocation_that_ends_frees_its_port() {
    let net = Net::new(1);
    let mut alice = net.caller();
    let relayed = alice.allocate();
    assert!(std::net::UdpSocket::bind(relayed).is_err());
    assert_eq!(alice.refresh(0).code(), 0);
    assert_eq!(net.shards().allocations(), 0);
    // The answer is on its way when the socket is closed already.
    std::net::UdpSocket::bind(relayed).unwrap();
}

#[test]
fn a_port_that_somebody_has_is_not_given_away() {
    let limits = Limits {
        port_cool_down: Duration::ZERO,
        ..Limits::default()
    };
    // As many files as that are open at once; root may have them.
    let (_, hard) = rlimit::Resource::NOFILE.get().unwrap();
    let _ = rlimit::Resource::NOFILE.set(hard.max(20_000), hard.max(20_000));
    let net = Net::with(1, limits);
    let own = net.server.ip();
    // Three of four ports of the range are somebody else's.
    let (first, last) = net.relays.ports();
    let taken: Vec<_> = (first..=last)
        .filter(|port| port % 4 != 0)
        .filter_map(|port| std::net::UdpSocket::bind(SocketAddr::new(own, port)).ok())
        .collect();
    assert!(taken.len() > 10_000, "{}", taken.len());
    let (mut got, mut tries) = (0, 0);
    while got < 10 && tries < 400 {
        tries += 1;
        let mut caller = net.caller_of_host(tries as u16);
        let reply = caller.try_allocate();
        match reply.code() {
            0 => {
                assert_eq!(reply.relayed().port() % 4, 0);
                got += 1;
            }
            508 => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(got, 10);
}

#[test]
fn a_reload_changes_who_may_come_and_drops_no_call() {
    let net = Net::new(2);
    let (mut alice, peer) = (net.caller(), net.host());
    let relayed = alice.allocate();
    alice.bind(0x4001, peer.local_addr().unwrap());
    let others = settings(&[("carol", "of the bells")], Limits::default(), &net.relays);
    net.shards().reload(&others, &Default::default(), None);
    assert_eq!(net.report().shards, 2);
    let mut carol = net.caller_named("carol", "of the bells");
    carol.allocate();
    let mut late = net.caller();
    let draft = late.client.draft(world::ALLOCATE).with(world::UDP.0, world::UDP.1);
    let challenge = late.exchange(&draft.0);
    late.client.learn(&challenge);
    let draft = late.client.draft(world::ALLOCATE).with(world::UDP.0, world::UDP.1);
    let signed = late.client.sign(draft);
    assert_eq!(late.exchange(&signed.0).code(), 401);
    alice.post(&channel_data(0x4001, b"still here"));
    assert_eq!(receive(&peer), (b"still here".to_vec(), relayed));
    assert_eq!(alice.refresh(600).code(), 0);
}

#[test]
fn a_drain_refuses_new_allocations_and_keeps_those_that_are() {
    let net = Net::new(2);
    let (mut alice, peer) = (net.caller(), net.host());
    let relayed = alice.allocate();
    net.shards().drain();
    assert_eq!(net.report().shards, 2);
    assert_eq!(net.caller().try_allocate().code(), 508);
    alice.bind(0x4001, peer.local_addr().unwrap());
    alice.post(&channel_data(0x4001, b"still here"));
    assert_eq!(receive(&peer), (b"still here".to_vec(), relayed));
    assert_eq!(alice.refresh(0).code(), 0);
    assert_eq!(net.shards().allocations(), 0);
}

#[test]
fn what_has_ended_is_closed_by_time_alone() {
    let limits = Limits {
        default_lifetime: Duration::from_secs(1),
        max_lifetime: Duration::from_secs(1),
        ..Limits::default()
    };
    let net = Net::with(1, limits);
    net.caller().allocate();
    let deadline = Instant::now() + net::PATIENCE;
    while net.shards().allocations() > 0 {
        assert!(Instant::now() < deadline, "it never ended");
        std::thread::yield_now();
    }
}
