//! TLS as this server speaks it.
//!
//! In: a certificate chain and its key. Out: what each new stream is served with. Never: lets a client resume: a ticket or session id that
//! comes back from another address says who moved.

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, ServerConfig};
use std::sync::Arc;

/// RFC 7443. A client without ALPN is served, one with other protocols only is not.
const STUN_TURN: &[u8] = b"stun.turn";

/// TLS 1.3 and 1.2, X25519MLKEM768 first.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![STUN_TURN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    Ok(Arc::new(config))
}
