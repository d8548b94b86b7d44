//! The world around a TURN relay: clients that write every byte themselves, networks of their own, and relays as child processes.
//!
//! Nothing here knows our relay's code: what it says is compared with the RFCs, and with another relay.

pub mod stun;

pub mod net;

pub mod impaired;

pub mod household;

pub mod client;

pub mod server;

pub mod relay;

pub mod call;
