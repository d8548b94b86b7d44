//! OxenMQ as a client speaks it: ZMTP 3.1 frames, the CURVE or NULL mechanism, requests and pushes.
//!
//! In: bytes from a node, requests, time, and randomness as bytes. Out: bytes for the node, replies and pushes.
//! Never: touches a socket, reads a clock, or holds more of a peer's bytes than its limits say.
//!
//! `address` says where a listener is and who it is. `frames` cuts and builds what is on the wire, `curve` seals and
//! opens it, `connection` is the state machine of one ZMTP connection, and `rpc` gives its messages their meaning.

pub mod address;
mod connection;
mod curve;
mod fault;
mod frames;
#[cfg(test)]
mod listener;
mod rpc;
#[cfg(test)]
mod vectors;

pub use address::{Address, AddressError, Transport};
pub use connection::{Connection, Event, Limits, Mechanism};
pub use curve::Identity;
pub use fault::LinkFault;
pub use rpc::{Entropy, RequestFailure, RequestRefused, Rpc, RpcEvent, RpcLimits};

use quietline_shared::redact::Secret;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Feeds arbitrary bytes of a listener to a client, as a fuzzer does; `now` is any instant.
///
/// The first byte picks the mechanism, how far the handshake is already done, and the size of the chunks. Whatever
/// comes, the client must neither panic nor hold more than its limits allow.
pub fn fuzz_connection(bytes: &[u8], mut now: Instant) {
    let Some((&mode, bytes)) = bytes.split_first() else {
        return;
    };
    let mechanism = if mode & 1 == 0 {
        Mechanism::Null
    } else {
        Mechanism::Curve { server_key: [9; 32] }
    };
    let limits = RpcLimits {
        connection: Limits {
            max_frame: 4096,
            max_message: 8192,
            ..Limits::default()
        },
        ..RpcLimits::default()
    };
    let entropy = Entropy {
        ephemeral_secret: Secret::new([1; 32]),
        vouch_nonce: [2; 16],
        tag_prefix: [3; 7],
    };
    let mut rpc = Rpc::new(
        mechanism,
        Arc::new(Identity::new(Secret::new([4; 32]))),
        entropy,
        limits,
        now,
    );

    let mut stream = Vec::new();
    if mode & 2 != 0 {
        frames::put_greeting(&mut stream, mechanism.name(), 0);
    }
    if mode & 6 == 6 {
        let metadata = frames::metadata(b"ROUTER", b"");
        frames::put_command(&mut stream, b"READY", &metadata);
    }
    stream.extend_from_slice(bytes);
    let chunk_size = [1, 7, 64, 5000]
        .into_iter()
        .nth(usize::from(mode >> 3 & 3))
        .unwrap_or(64);
    for (number, chunk) in (0u64..).zip(stream.chunks_mut(chunk_size)) {
        if rpc.handle_bytes(chunk, now).is_err() {
            break;
        }
        let _ = rpc.request(number, "monitor.messages", Some(b"le"), now);
        while rpc.poll_event().is_some() {}
        assert!(
            rpc.held_bytes() <= 4096 + 8192 + 16,
            "the client holds more than its limits"
        );
        let sent = rpc.output().len();
        rpc.output_written(if mode & 32 == 0 { sent } else { sent / 2 });
        now += Duration::from_millis(u64::from(mode));
        if rpc.handle_timeout(now).is_err() {
            break;
        }
    }
}
