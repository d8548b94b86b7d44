//! The push relay: what does what the core decided.
//!
//! Stages in the order of the data, then the tools and the wiring.
#![forbid(unsafe_code)]

pub mod http;
pub mod watcher;
//! The push relay: everything that does I/O. What it decides is in notifier-core.
pub mod sqlite;
pub mod store;
pub mod outbox;
