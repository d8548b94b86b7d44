//! The lab: everything around a notifier and a relay, on foreign implementations.
//!
//! Fake oxend and storage nodes on libzmq, fake APNs and FCM behind real TLS, phones on libsodium; TURN clients in networks of their
//! own. It shares no code with the product, so that an error made in the product is not repeated by what checks it; the vectors check
//! the lab.
//!
//! Modules in the order in which they may import each other.
#![deny(unsafe_code)]

pub mod bt;
pub mod doorbell;
pub mod http;
pub mod ports;
pub mod sodium;
pub mod system;

pub mod onion;
pub mod phone;

pub mod node;
pub mod swarms;

pub mod oxend;

pub mod keys;

pub mod provider;
pub mod seed;

pub mod ledger;
pub mod notifier;
pub mod settings;

pub mod lab;
pub mod trial;

pub mod turn;
