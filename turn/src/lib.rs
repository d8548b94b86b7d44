//! The relay: what does what `turn_core` decided.
//!
//! A module imports only modules listed above it.
#![deny(unsafe_code)]

pub mod sys;
pub mod sockets;
pub mod plane;
pub mod streams;
pub mod shard;

pub mod machine;
pub mod settings;
pub mod offer;
pub mod hazards;
pub mod page;
pub mod audit;
pub mod app;
pub mod command;
