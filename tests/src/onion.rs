//! The client's side of a v4 onion request, as the last hop hands it to the server.
//!
//! In: a server key, an endpoint, a body. Out: the bytes to POST to `/oxen/v4/lsrpc`, and the key that opens the reply.
//! Never: the hops before the last one; they are the storage servers' business.

use crate::bt;
use crate::sodium;
use aws_lc_rs::aead;
use serde_json::Value;

/// Where the storage servers forward onion requests to.
pub const PATH: &str = "/oxen/v4/lsrpc";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    AesGcm,
    XChaCha20,
}

impl Cipher {
    pub const BOTH: [Self; 2] = [Self::AesGcm, Self::XChaCha20];

    pub fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aes-gcm",
            Self::XChaCha20 => "xchacha20",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|cipher| cipher.name() == name)
    }

    fn nonce_length(self) -> usize {
        match self {
            Self::AesGcm => 12,
            Self::XChaCha20 => 24,
        }
    }
}

/// What both ends of one onion request share.
#[derive(Clone)]
pub struct OnionKey {
    cipher: Cipher,
    key: [u8; 32],
}

/// An answer out of its onion layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnionReply {
    /// What would have been the HTTP status.
    pub code: u64,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

/// The bytes to POST for one request to `endpoint`, and the key of its reply. Everything random is drawn here.
pub fn request(cipher: Cipher, server_public: &[u8; 32], endpoint: &str, body: &[u8]) -> (Vec<u8>, OnionKey) {
    let ephemeral = sodium::random();
    let nonce = sodium::random::<24>();
    let plaintext = inner(endpoint, body);
    build(
        cipher,
        &ephemeral,
        server_public,
        &nonce[..cipher.nonce_length()],
        &plaintext,
    )
    .expect("a server key made by the lab is not of small order")
}

/// `l` metadata body `e`, as clients write it.
pub fn inner(endpoint: &str, body: &[u8]) -> Vec<u8> {
    let metadata =
        format!(r#"{{"method":"POST","endpoint":"{endpoint}","headers":{{"Content-Type":"application/json"}}}}"#);
    let mut plaintext = vec![b'l'];
    bt::put_bytes(&mut plaintext, metadata.as_bytes());
    bt::put_bytes(&mut plaintext, body);
    plaintext.push(b'e');
    plaintext
}

/// With every choice given: `None` if the server key is of small order.
pub fn build(
    cipher: Cipher,
    ephemeral_secret: &[u8; 32],
    server_public: &[u8; 32],
    nonce: &[u8],
    plaintext: &[u8],
) -> Option<(Vec<u8>, OnionKey)> {
    let key = OnionKey::derive(cipher, ephemeral_secret, server_public)?;
    let sealed = key.seal(nonce, plaintext);
    let routing = format!(
        concat!(
            r#"{{"enc_type":"{}","ephemeral_key":"{}","host":"push.getsession.org","method":"POST","port":443,"#,
            r#""protocol":"https","target":"/oxen/v4/lsrpc"}}"#
        ),
        cipher.name(),
        hex::encode(sodium::x25519_public(ephemeral_secret)),
    );
    let mut request = (sealed.len() as u32).to_le_bytes().to_vec();
    request.extend_from_slice(&sealed);
    request.extend_from_slice(routing.as_bytes());
    Some((request, key))
}

impl OnionKey {
    pub fn derive(cipher: Cipher, client_secret: &[u8; 32], server_public: &[u8; 32]) -> Option<Self> {
        let shared = sodium::x25519_shared(client_secret, server_public)?;
        let key = match cipher {
            Cipher::AesGcm => sodium::hmac_sha256(b"LOKI", &shared),
            Cipher::XChaCha20 => {
                let client_public = sodium::x25519_public(client_secret);
                sodium::blake2b_256(&[shared, client_public, *server_public].concat())
            }
        };
        Some(Self { cipher, key })
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// nonce ‖ ciphertext ‖ tag.
    pub fn seal(&self, nonce: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut sealed = nonce.to_vec();
        match self.cipher {
            Cipher::AesGcm => {
                let mut text = plaintext.to_vec();
                let nonce = aead::Nonce::try_assume_unique_for_key(nonce).expect("the caller gives 12 bytes");
                self.aes()
                    .seal_in_place_append_tag(nonce, aead::Aad::empty(), &mut text)
                    .expect("the text is far below the limit of AES-GCM");
                sealed.extend_from_slice(&text);
            }
            Cipher::XChaCha20 => {
                let nonce = nonce.try_into().expect("the caller gives 24 bytes");
                sealed.extend_from_slice(&sodium::xchacha20_seal(&self.key, nonce, plaintext));
            }
        }
        sealed
    }

    pub fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(self.cipher.nonce_length())?;
        match self.cipher {
            Cipher::AesGcm => {
                let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
                let mut text = sealed.to_vec();
                let length = self
                    .aes()
                    .open_in_place(nonce, aead::Aad::empty(), &mut text)
                    .ok()?
                    .len();
                text.truncate(length);
                Some(text)
            }
            Cipher::XChaCha20 => sodium::xchacha20_open(&self.key, nonce.try_into().ok()?, sealed),
        }
    }

    /// `None` if the bytes do not open or are no v4 reply.
    pub fn open_reply(&self, sealed: &[u8]) -> Option<OnionReply> {
        let plaintext = self.open(sealed)?;
        let (metadata, rest) = bt::take_bytes(plaintext.strip_prefix(b"l")?)?;
        let (body, rest) = if rest == b"e" {
            (&[][..], rest)
        } else {
            bt::take_bytes(rest)?
        };
        let metadata: Value = serde_json::from_slice(metadata).ok()?;
        (rest == b"e").then_some(OnionReply {
            code: metadata.get("code")?.as_u64()?,
            content_type: metadata["headers"]["content-type"].as_str().map(str::to_owned),
            body: body.to_vec(),
        })
    }

    // AES-GCM is aws-lc's: libsodium's needs a processor with AES instructions and 1.0.18 has none for ARM.
    fn aes(&self) -> aead::LessSafeKey {
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &self.key).expect("32 bytes are an AES-256 key");
        aead::LessSafeKey::new(key)
    }
}
