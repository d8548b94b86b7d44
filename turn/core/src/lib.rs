//! The relay's decisions, without any I/O: no sockets, no clock, no randomness of its own, no logging.
//!
//! A module imports only modules listed above it.
#![forbid(unsafe_code)]

pub mod time;
pub mod table;
pub mod wire;
pub mod framing;
pub mod attributes;
pub mod auth;
pub mod peers;
pub mod allocation;
pub mod forwarding;
pub mod control;

pub use control::Server;
