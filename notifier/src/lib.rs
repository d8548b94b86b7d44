//! The push relay: what does what the core decided.
//!
//! Stages in the order of the data, then the tools and the wiring.
#![forbid(unsafe_code)]

pub mod http;
pub mod store;
pub mod watcher;
pub mod outbox;
pub mod dispatch;

pub mod clock;
pub mod keyring;
pub mod sqlite;
pub mod tls;
pub mod settings;
pub mod command;
pub mod app;
