//! What we offer to others over TLS. A tool, not a stage.
//!
//! In: a client's settings. Out: the groups of its key exchange, as they stand in its first message. Never: connects.

use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, NamedGroup};
use std::sync::Arc;

/// The hybrid of ML-KEM and X25519: what is recorded today is not read by a quantum computer of tomorrow.
pub const POST_QUANTUM: &str = "X25519MLKEM768";

/// In the order of preference; empty if no first message can be made.
pub fn offered_groups(config: Arc<ClientConfig>) -> Vec<String> {
    let groups = || {
        // The name does not matter: nobody is asked.
        let name = ServerName::try_from("push.example.org").ok()?;
        let mut client = ClientConnection::new(config, name).ok()?;
        let mut hello = Vec::new();
        client.write_tls(&mut hello).ok()?;
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut hello.as_slice()).ok()?;
        let accepted = acceptor.accept().ok()??;
        let groups = accepted.client_hello().named_groups()?.iter().map(name_of).collect();
        Some(groups)
    };
    groups().unwrap_or_default()
}

fn name_of(group: &NamedGroup) -> String {
    group
        .as_str()
        .map_or_else(|| format!("group {}", u16::from(*group)), str::to_owned)
}
