//! The push relay: everything that does I/O. What it decides is in notifier-core.
#![forbid(unsafe_code)]

pub mod sqlite;
pub mod store;
pub mod outbox;
