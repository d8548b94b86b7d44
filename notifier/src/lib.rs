//! The push relay: everything that does I/O. What it decides is in notifier-core.
//!
//! Stages in the order of the data, then the tools and the wiring.
#![forbid(unsafe_code)]

pub mod dispatch;
