//! Nanoseconds per hop, beside what one lookup in a hash table of the same size costs on the same machine.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::collections::HashMap;
use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Instant;
use turn_core::control::Limits;
use turn_core::wire::{FiveTuple, PeerAddr, RelayAddr};
use world::{Client, Options, World, channel_data};

const CLIENTS: usize = 4_000;
const ROUNDS: usize = 250;
const PAYLOAD: usize = 172;

struct Session {
    tuple: FiveTuple,
    relay: RelayAddr,
}

fn main() {
    let limits = Limits {
        bandwidth_per_allocation: 1_000_000_000_000,
        bandwidth: 1_000_000_000_000,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let peer = "1.2.3.4:5000";
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|n| Client::new(&format!("8.{}.{}.4:40000", n / 250, n % 250)))
        .collect();
    let relayed: Vec<SocketAddr> = clients.iter_mut().map(|client| client.allocate(&mut world)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.bind(&mut world, 0x4000, peer);
        // In pairs, each to the other.
        client.bind(&mut world, 0x4001, &relayed[number ^ 1].to_string());
    }
    let sessions: Vec<Session> = clients
        .iter()
        .zip(&relayed)
        .map(|(client, relayed)| Session {
            tuple: client.tuple,
            relay: world.relay(*relayed),
        })
        .collect();
    // Neighbours in memory are no neighbours in traffic.
    let order: Vec<usize> = (0..CLIENTS).map(|n| n * 1_237 % CLIENTS).collect();
    let (now, peer) = (world.now(), PeerAddr::new(world::address(peer)));
    let (out, across) = (channel_data(0x4000, &[7; PAYLOAD]), channel_data(0x4001, &[7; PAYLOAD]));
    let random = &mut |bytes: &mut [u8]| bytes.fill(1);

    let table: HashMap<SocketAddr, usize> = clients.iter().map(|client| client.tuple.client()).zip(0..).collect();
    let addresses: Vec<SocketAddr> = clients.iter().map(|client| client.tuple.client()).collect();
    measure("bare lookup in a std HashMap", &order, |at| {
        table.contains_key(&addresses[at])
    });
    measure("client to peer", &order, |at| {
        world
            .server
            .handle_client(&sessions[at].tuple, &out, now, random)
            .is_some()
    });
    measure("peer to client", &order, |at| {
        world
            .server
            .handle_peer(sessions[at].relay, peer, PAYLOAD, now, random)
            .is_some()
    });
    measure("client to client", &order, |at| {
        world
            .server
            .handle_client(&sessions[at].tuple, &across, now, random)
            .is_some()
    });
    let refused = world
        .server
        .counters()
        .refusals
        .iter()
        .map(|(_, count)| count)
        .sum::<u64>();
    assert!(refused <= CLIENTS as u64 * 2, "the benchmark measured refusals");
}

/// The median of several passes over all clients.
fn measure(name: &str, order: &[usize], mut hop: impl FnMut(usize) -> bool) {
    let mut passes: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for at in order {
                assert!(black_box(hop(*at)), "no hop");
            }
            start.elapsed().as_nanos() as f64 / order.len() as f64
        })
        .collect();
    passes.sort_by(f64::total_cmp);
    println!("{name:<32}{:>8.1} ns", passes[passes.len() / 2]);
}
