//! The notifier's decisions, without any I/O: no sockets, no SQL, no clock, no randomness of its own, no logging.
//!
//! The pipeline, in the order of the data. A module imports only modules listed above it.
#![forbid(unsafe_code)]

pub mod seeded;
pub mod account;
pub mod endpoint;
pub mod subscription;
pub mod swarm;
pub mod omq;
pub mod watch;
pub mod event;
pub mod confirm;
pub mod fanout;
pub mod seal;
pub mod lane;
pub mod outbox;
pub mod webpush;
pub mod turn;
