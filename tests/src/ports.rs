//! Ports of 127.0.0.1 below the ephemeral range, so that no outgoing connection takes one while its owner restarts.
//!
//! In: nothing. Out: ports that were free a moment ago. Never: holds one.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
/// The default ephemeral range of Linux starts at 32,768.
const END: u32 = 32_700;

/// The next port to try; each process starts elsewhere, so that tests side by side seldom meet.
pub fn candidate() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(397);
    let step = NEXT.fetch_add(1, Ordering::Relaxed);
    u16::try_from(FIRST + start.wrapping_add(step) % (END - FIRST)).expect("the range is below 65,536")
}

/// A port on which nobody listens.
pub fn free() -> u16 {
    listener().local_addr().expect("a bound socket has an address").port()
}

/// A listener on a port of the range.
pub fn listener() -> TcpListener {
    (0..END - FIRST)
        .find_map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, candidate())).ok())
        .expect("a machine has a free port among 22,700")
}
