//! The relay's decisions, without any I/O: no sockets, no clock, no randomness of its own, no logging.
//!
//! A shell owns the sockets and one [`Server`] per shard, and calls:
//!
//! | it has | it calls | it gets |
//! |---|---|---|
//! | a datagram or a stream's frame of a client | [`Server::handle_client`] | a [`control::Hop`] for this very packet, or outputs |
//! | a datagram at a relayed address | [`Server::handle_peer`] | a hop |
//! | an ICMP error about a relayed packet | [`Server::handle_icmp`] | a hop |
//! | a relayed address that it could not bind | [`Server::handle_relay_failed`] | outputs |
//! | a stream that ended | [`Server::handle_stream_closed`] | outputs |
//! | reached [`Server::next_deadline`] | [`Server::handle_timeout`] | outputs |
//!
//! After each call it takes outputs from [`Server::poll_output`] until there are none, and does each before it takes the next. Time is
//! [`time::Now`]: steady time since a start that all shards share must not go back. Until a timer came, what has ended does nothing all
//! the same. All datagrams of one client address come to one shard; what one shard must know of the others' clients lies in
//! [`control::Shared`].
//!
//! A module imports only modules listed above it.
#![forbid(unsafe_code)]

pub mod time;
pub mod wire;
pub mod table;
pub mod framing;
pub mod attributes;
pub mod auth;
pub mod peers;
pub mod allocation;
pub mod forwarding;
pub mod control;

pub use control::Server;
