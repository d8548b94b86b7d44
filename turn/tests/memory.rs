//! What a shard takes from the heap while packets pass: nothing.
#![expect(
    unsafe_code,
    reason = "counting needs an allocator of our own, and its trait is unsafe"
)]

mod net;

use net::world::channel_data;
use net::{Net, receive, send_burst};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what threads take that have not said that they are the test's.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_OF_THE_TEST: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_OF_THE_TEST.try_with(Cell::get).unwrap_or(true) {
            TAKEN.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_packet_takes_from_the_heap() {
    IS_OF_THE_TEST.set(true);
    let net = Net::new(1);
    let (mut alice, mut bob, peer) = (net.caller(), net.caller(), net.host());
    let (ra, rb) = (alice.allocate(), bob.allocate());
    let address = peer.local_addr().unwrap();
    alice.bind(0x4001, address);
    alice.bind(0x4002, rb);
    bob.permit(ra);
    bob.permit(address);
    let payloads: Vec<_> = (0..16u8).map(|n| vec![n; 172]).collect();
    let framed = |number| -> Vec<_> { payloads.iter().map(|payload| channel_data(number, payload)).collect() };
    let indication = bob.send_indication(address, &[9; 172]);
    let mut round = || {
        alice.post_burst(&framed(0x4001));
        alice.post_burst(&framed(0x4002));
        bob.post(&indication);
        bob.post(b"nothing of ours");
        for _ in 0..17 {
            receive(&peer);
        }
        for _ in 0..16 {
            bob.next();
        }
        send_burst(&peer, ra, &payloads);
        send_burst(&peer, rb, &payloads);
        for _ in 0..16 {
            alice.next();
            bob.next();
        }
        // Binding and its answer are no packet, but take nothing either.
        alice.nothing_waits();
    };
    round();
    let before = TAKEN.load(Ordering::SeqCst);
    assert!(before > 0, "the shard's own start was not counted");
    for _ in 0..100 {
        round();
    }
    assert_eq!(TAKEN.load(Ordering::SeqCst) - before, 0);
    assert_eq!(net.report().counters.to_clients.packets, 101 * 32);
}
