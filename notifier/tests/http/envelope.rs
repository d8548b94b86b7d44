//! The client's side of a v4 onion request, written from the layout and not from our server's code.

use quietline_shared::crypto;
use quietline_shared::redact::Secret;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug)]
pub enum Cipher {
    AesGcm,
    XChaCha20,
}

pub struct Client {
    server_public: [u8; 32],
    secret: [u8; 32],
}

impl Client {
    pub fn new(server_public: [u8; 32]) -> Self {
        Self {
            server_public,
            secret: [0x37; 32],
        }
    }

    pub fn with_secret(server_public: [u8; 32], secret: [u8; 32]) -> Self {
        Self { server_public, secret }
    }

    pub fn seal(&self, cipher: Cipher, method: &str, endpoint: &str, body: Option<&[u8]>) -> (Vec<u8>, Key) {
        let metadata = json!({"method": method, "endpoint": endpoint, "headers": {"Content-Type": "application/json"}});
        let metadata = metadata.to_string();
        let mut text = format!("l{}:{metadata}", metadata.len()).into_bytes();
        if let Some(body) = body {
            text.extend(format!("{}:", body.len()).into_bytes());
            text.extend_from_slice(body);
        }
        text.push(b'e');
        self.seal_text(cipher, &text)
    }

    pub fn seal_text(&self, cipher: Cipher, text: &[u8]) -> (Vec<u8>, Key) {
        let key = self.key(cipher);
        let (sealed, name) = match cipher {
            Cipher::AesGcm => (crypto::aes_gcm_seal(&key.key, &[9; 12], text), "aes-gcm"),
            Cipher::XChaCha20 => (crypto::xchacha_seal(&key.key, &[9; 24], text), "xchacha20"),
        };
        let public = crypto::x25519_public(&Secret::new(self.secret));
        let outer = json!({"ephemeral_key": hex::encode(public), "enc_type": name}).to_string();
        let mut request = u32::try_from(sealed.len()).unwrap().to_le_bytes().to_vec();
        request.extend(sealed);
        request.extend(outer.into_bytes());
        (request, key)
    }

    pub fn key(&self, cipher: Cipher) -> Key {
        let secret = Secret::new(self.secret);
        let shared = crypto::x25519_shared(&secret, &self.server_public).unwrap();
        let key = match cipher {
            Cipher::AesGcm => crypto::hmac_sha256(b"LOKI", &[shared.expose()]),
            Cipher::XChaCha20 => {
                crypto::blake2b_256(&[shared.expose(), &crypto::x25519_public(&secret), &self.server_public])
            }
        };
        Key { cipher, key }
    }
}

pub struct Key {
    cipher: Cipher,
    key: [u8; 32],
}

/// A reply as the client sees it.
pub struct Inner {
    pub code: u16,
    pub content_type: String,
    pub metadata: Value,
    pub body: Vec<u8>,
}

impl Key {
    pub fn open(&self, sealed: &[u8]) -> Inner {
        let text = match self.cipher {
            Cipher::AesGcm => crypto::aes_gcm_open(&self.key, sealed),
            Cipher::XChaCha20 => crypto::xchacha_open(&self.key, sealed),
        };
        let text = text.expect("the reply opens with the key of the request");
        let rest = text.strip_prefix(b"l").unwrap().strip_suffix(b"e").unwrap();
        let (metadata, rest) = string(rest);
        let (body, rest) = string(rest);
        assert!(rest.is_empty());
        let metadata: Value = serde_json::from_slice(metadata).unwrap();
        Inner {
            code: metadata["code"].as_u64().unwrap().try_into().unwrap(),
            content_type: metadata["headers"]["content-type"].as_str().unwrap().to_owned(),
            metadata,
            body: body.to_vec(),
        }
    }
}

fn string(text: &[u8]) -> (&[u8], &[u8]) {
    let colon = text.iter().position(|byte| *byte == b':').unwrap();
    let length: usize = std::str::from_utf8(&text[..colon]).unwrap().parse().unwrap();
    text[colon + 1..].split_at(length)
}
