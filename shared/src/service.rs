//! What a running process needs and a core must not have: settings, commands, telemetry, lifecycle, a bounded HTTP server, pages.
//!
//! In: a settings file, signals, a listener. Out: checked settings, exit codes, log lines, metrics, readiness, a stop that drains.
//! Never: prints data about a person or a key.

pub mod access;
pub mod audit;
pub mod command;
pub mod config;
pub mod heap;
pub mod hygiene;
pub mod lifecycle;
pub mod page;
pub mod published;
pub mod server;
pub mod telemetry;
