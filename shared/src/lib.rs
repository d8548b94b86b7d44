//! What both servers need and neither may own: it knows nothing of push and nothing of TURN.
//!
//! Without features it is silent and does no I/O, so that the cores may use it. The feature `service` adds what a
//! running process needs: settings, telemetry, lifecycle.
#![deny(unsafe_code)]

pub mod address;
pub mod backoff;
pub mod bencode;
pub mod crypto;
pub mod keytext;
pub mod onion;
pub mod redact;
#[cfg(feature = "service")]
pub mod service;
pub mod timed;
