//! The push relay: what does what the core decided.
#![forbid(unsafe_code)]

pub mod command;
pub mod http;
