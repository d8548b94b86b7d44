//! What the server takes from the heap: nothing for a packet or a stranger, little for an allocation.
#![expect(
    unsafe_code,
    reason = "counting needs an allocator of our own, and its trait is unsafe"
)]

mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;
use turn_core::control::Limits;
use turn_core::wire::{PeerAddr, Transport};
use world::*;

struct Counting;

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counters are plain cells of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = TAKEN.try_with(|taken| taken.set(taken.get() + 1));
        let _ = HELD.try_with(|held| held.set(held.get() + layout.size() as isize));
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = HELD.try_with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often the heap was asked during this.
fn taken(work: impl FnOnce()) -> usize {
    let before = TAKEN.get();
    work();
    TAKEN.get() - before
}

#[test]
fn no_packet_takes_from_the_heap() {
    let mut world = World::new();
    let mut alice = Client::new("8.8.4.4:40000");
    let mut bob = Client::over("8.8.4.5:40000", Transport::Tcp).named("bob", "the builder");
    let (ra, rb) = (alice.allocate(&mut world), bob.allocate(&mut world));
    alice.bind(&mut world, 0x4000, "1.2.3.4:5000");
    alice.bind(&mut world, 0x4001, &rb.to_string());
    bob.permit(&mut world, &[&ra.to_string()]);
    let (now, relay) = (world.now(), world.relay(ra));
    let random = &mut |bytes: &mut [u8]| bytes.fill(1);
    let send = alice
        .draft(SEND)
        .address(PEER, address("1.2.3.4:77"))
        .with(PAYLOAD, &[1; 900])
        .0;
    let packets = [
        channel_data(0x4000, &[1; 900]),
        channel_data(0x4001, &[1; 900]),
        channel_data(0x4002, b"no channel"),
        send,
        b"nothing of ours".to_vec(),
    ];
    let peers = ["1.2.3.4:5000", "1.2.3.4:6000", "1.2.3.5:5000"].map(|peer| PeerAddr::new(peer.parse().unwrap()));
    let mut forwarded = 0;
    let count = taken(|| {
        for bytes in &packets {
            forwarded += usize::from(world.server.handle_client(&alice.tuple, bytes, now, random).is_some());
        }
        for peer in peers {
            forwarded += usize::from(world.server.handle_peer(relay, peer, 900, now, random).is_some());
        }
    });
    assert_eq!((count, forwarded), (0, 5));
}

#[test]
fn no_stranger_takes_from_the_heap() {
    let mut world = World::new();
    // The queue of outputs grows once.
    Client::new("8.8.4.4:40000").greet(&mut world);
    let now = world.now();
    let mut strangers: Vec<_> = (0..500u16)
        .map(|n| Client::new(&format!("8.{}.{}.4:40000", n / 250, n % 250)))
        .collect();
    let requests: Vec<_> = strangers
        .iter_mut()
        .flat_map(|client| {
            let forged = client.draft(ALLOCATE).with(UDP.0, UDP.1);
            let forged = client.clone().named("alice", "wrong").sign(forged);
            [client.draft(ALLOCATE), client.draft(BINDING), forged].map(|draft| (client.tuple, draft.0))
        })
        .collect();
    let mut answers = 0;
    let count = taken(|| {
        for (from, bytes) in &requests {
            world.server.handle_client(from, bytes, now, &mut |_| {});
            while world.server.poll_output().is_some() {
                answers += 1;
            }
        }
    });
    assert_eq!((count, answers), (0, 1500));
}

#[test]
fn an_idle_allocation_takes_less_than_a_kibibyte_and_gives_it_back() {
    const COUNT: u16 = 4_000;
    let limits = Limits {
        default_lifetime: Duration::from_secs(600),
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let mut clients: Vec<Client> = (0..COUNT)
        .map(|n| Client::new(&format!("8.{}.{}.4:40000", n / 250, n % 250)))
        .collect();
    for client in &mut clients {
        client.greet(&mut world);
    }
    let before = HELD.get();
    for client in &mut clients {
        client.allocate(&mut world);
        client.bind(&mut world, 0x4000, "1.2.3.4:5000");
    }
    let each = (HELD.get() - before) / COUNT as isize;
    println!("{each} bytes for an allocation with a permission and a channel");
    assert!(each <= 1024 - SLOT, "{each}");
    world.pass(700);
    assert_eq!(world.server.counters().allocations, 0);
    let left = (HELD.get() - before) / COUNT as isize;
    println!("{left} bytes are left in tables");
    assert!(left <= 100, "{left}");
}

/// Its place in the index that all shards share is there from the start.
const SLOT: isize = 136;
