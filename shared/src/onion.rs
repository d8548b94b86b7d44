//! The last layer of a v4 onion request, and its reply.
//!
//! In: the body of `POST /oxen/v4/lsrpc`. Out: method, endpoint, body and a key for the reply. Never: knows what an endpoint
//! does, or which hops the request took.
//!
//! Layout: length N (4 bytes, little endian) ‖ N encrypted bytes ‖ JSON with `ephemeral_key` and `enc_type`. The text inside is
//! `l<metadata JSON>[<body>]e` in bt-encoding.

use crate::bencode;
use crate::crypto;
use crate::keytext::parse_key;
use crate::redact::Secret;
use serde_json::Value;
use zeroize::Zeroize;

/// Largest metadata string inside, bytes. Clients send about 100.
const MAX_METADATA: usize = 16 * 1024;

/// A decrypted request. It prints as nothing: a client may write anything where a method or an endpoint is expected.
pub struct OnionRequest {
    /// As the client wrote it; upstream's clients write `POST`.
    pub method: String,
    pub endpoint: String,
    pub body: Option<Body>,
    pub reply: ReplyKey,
}

impl std::fmt::Debug for OnionRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnionRequest(<private>)")
    }
}

/// The inner body. It holds accounts and tokens, so it prints as nothing.
pub struct Body(pub Vec<u8>);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body(<private>)")
    }
}

/// Why a request could not be read. After an inner fault the client can still be answered in secret.
#[derive(Debug, thiserror::Error)]
pub enum OnionError {
    #[error("the outer layer cannot be read: {0:?}")]
    Outer(OuterFault),
    #[error("the inner request cannot be read: {fault:?}")]
    Inner { fault: InnerFault, reply: ReplyKey },
}

/// The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterFault {
    TooShort,
    LengthBeyondEnd,
    BadJson,
    BadEphemeralKey,
    UnknownEncryption,
    Undecryptable,
}

impl OuterFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::LengthBeyondEnd => "length_beyond_end",
            Self::BadJson => "bad_json",
            Self::BadEphemeralKey => "bad_ephemeral_key",
            Self::UnknownEncryption => "unknown_encryption",
            Self::Undecryptable => "undecryptable",
        }
    }
}

/// The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerFault {
    NotAList,
    BadMetadata,
    BadBody,
}

impl InnerFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotAList => "not_a_list",
            Self::BadMetadata => "bad_metadata",
            Self::BadBody => "bad_body",
        }
    }
}

/// Opens the outer layer with the server's X25519 key and reads the request inside.
///
/// The caller bounds the size of `request`; nothing here allocates more than a small multiple of it.
pub fn open(request: &[u8], server_secret: &Secret<[u8; 32]>) -> Result<OnionRequest, OnionError> {
    let (reply, plaintext) = open_outer(request, server_secret).map_err(OnionError::Outer)?;
    match read_inner(&plaintext) {
        Ok((method, endpoint, body)) => Ok(OnionRequest {
            method,
            endpoint,
            body: body.map(Body),
            reply,
        }),
        Err(fault) => Err(OnionError::Inner { fault, reply }),
    }
}

fn open_outer(request: &[u8], server_secret: &Secret<[u8; 32]>) -> Result<(ReplyKey, Vec<u8>), OuterFault> {
    let (length, rest) = request.split_first_chunk::<4>().ok_or(OuterFault::TooShort)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| OuterFault::LengthBeyondEnd)?;
    let (sealed, json) = rest.split_at_checked(length).ok_or(OuterFault::LengthBeyondEnd)?;
    let json: Value = serde_json::from_slice(json).map_err(|_| OuterFault::BadJson)?;
    let cipher = match json.get("enc_type") {
        None => Cipher::AesGcm,
        Some(Value::String(name)) => match name.as_str() {
            "aes-gcm" | "gcm" => Cipher::AesGcm,
            "xchacha20" | "xchacha20-poly1305" => Cipher::XChaCha20,
            _ => return Err(OuterFault::UnknownEncryption),
        },
        Some(_) => return Err(OuterFault::UnknownEncryption),
    };
    let client_public = json
        .get("ephemeral_key")
        .and_then(Value::as_str)
        .and_then(parse_key)
        .ok_or(OuterFault::BadEphemeralKey)?;
    let key = ReplyKey::derive(cipher, server_secret, &client_public).ok_or(OuterFault::BadEphemeralKey)?;
    let plaintext = match key.cipher {
        Cipher::AesGcm => crypto::aes_gcm_open(key.key.expose(), sealed),
        Cipher::XChaCha20 => crypto::xchacha_open(key.key.expose(), sealed),
    };
    Ok((key, plaintext.ok_or(OuterFault::Undecryptable)?))
}

type Inner = (String, String, Option<Vec<u8>>);

fn read_inner(plaintext: &[u8]) -> Result<Inner, InnerFault> {
    let Some((b'l', rest)) = plaintext.split_first() else {
        return Err(InnerFault::NotAList);
    };
    let mut reader = bencode::Reader::new(rest);
    let metadata = reader.bytes().map_err(|_| InnerFault::BadMetadata)?;
    if metadata.len() > MAX_METADATA {
        return Err(InnerFault::BadMetadata);
    }
    let metadata: Value = serde_json::from_slice(metadata).map_err(|_| InnerFault::BadMetadata)?;
    let text = |name: &str| {
        metadata
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or(InnerFault::BadMetadata)
    };
    let (method, endpoint) = (text("method")?, text("endpoint")?);
    if metadata.get("headers").is_some_and(|headers| !headers.is_object()) {
        return Err(InnerFault::BadMetadata);
    }
    // Upstream looks for a second part only where more than one byte is left before the closing `e`: one stray byte passes.
    let body = match reader.rest() {
        [] | [_] | [_, b'e'] => None,
        _ => Some(reader.bytes().map_err(|_| InnerFault::BadBody)?.to_vec()),
    };
    Ok((method, endpoint, body))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cipher {
    AesGcm,
    XChaCha20,
}

/// What a reply to one request is sealed with: the same cipher and key as the request.
#[derive(Debug)]
pub struct ReplyKey {
    cipher: Cipher,
    key: Secret<[u8; 32]>,
}

impl ReplyKey {
    /// `None` for a client key of small order.
    fn derive(cipher: Cipher, server_secret: &Secret<[u8; 32]>, client_public: &[u8; 32]) -> Option<Self> {
        let shared = crypto::x25519_shared(server_secret, client_public)?;
        let mut key = match cipher {
            Cipher::AesGcm => crypto::hmac_sha256(b"LOKI", &[shared.expose()]),
            Cipher::XChaCha20 => {
                let server_public = crypto::x25519_public(server_secret);
                crypto::blake2b_256(&[shared.expose(), client_public, &server_public])
            }
        };
        let made = Self {
            cipher,
            key: Secret::new(key),
        };
        key.zeroize();
        Some(made)
    }

    /// The body of the HTTP reply: `l<metadata><body>e`, sealed. The metadata is spaced as upstream spaces it. `nonce` must be
    /// fresh; AES-GCM takes its first 12 bytes.
    pub fn seal(&self, code: u16, content_type: &str, body: &[u8], nonce: &[u8; 24]) -> Vec<u8> {
        let content_type = Value::from(content_type);
        let metadata = format!(r#"{{"code": {code}, "headers": {{"content-type": {content_type}}}}}"#);
        let mut text = Vec::with_capacity(metadata.len() + body.len() + 24);
        text.push(b'l');
        bencode::put_bytes(&mut text, metadata.as_bytes());
        bencode::put_bytes(&mut text, body);
        text.push(b'e');
        self.seal_raw(&text, nonce)
    }

    fn seal_raw(&self, text: &[u8], nonce: &[u8; 24]) -> Vec<u8> {
        match self.cipher {
            Cipher::XChaCha20 => crypto::xchacha_seal(self.key.expose(), nonce, text),
            Cipher::AesGcm => {
                let (short, _) = nonce.split_first_chunk::<12>().expect("24 bytes hold 12");
                crypto::aes_gcm_seal(self.key.expose(), short, text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/onion-v4.json")).unwrap()
    }

    fn bytes(value: &Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    fn secret(value: &Value) -> Secret<[u8; 32]> {
        Secret::new(bytes(value).try_into().unwrap())
    }

    #[test]
    fn every_request_of_the_upstream_client_opens_to_its_plaintext() {
        let vectors = vectors();
        let mut run = 0;
        for section in ["requests", "outer", "built"] {
            for case in vectors[section].as_array().unwrap() {
                let id = case["id"].as_str().unwrap();
                // Too large for a file: the HTTP tests build this one by its rule.
                if case["request_hex"].is_null() {
                    assert_eq!(id, "big-body-too-large/xchacha20");
                    continue;
                }
                let opened = open_outer(&bytes(&case["request_hex"]), &secret(&case["server_secret"]));
                if case["expect_decrypt"] == "fail" {
                    assert!(opened.is_err(), "{id}");
                } else {
                    let (_, plaintext) = opened.unwrap_or_else(|fault| panic!("{id}: {fault:?}"));
                    assert_eq!(plaintext, bytes(&case["plaintext_hex"]), "{id}");
                }
                run += 1;
            }
        }
        assert_eq!(run, 40 + 34 + 4);
    }

    #[test]
    fn what_upstream_could_not_read_inside_is_an_inner_fault_and_the_rest_is_read() {
        for case in vectors()["requests"].as_array().unwrap() {
            let id = case["id"].as_str().unwrap();
            if case["request_hex"].is_null() {
                continue;
            }
            let opened = open(&bytes(&case["request_hex"]), &secret(&case["server_secret"]));
            match (&opened, id.starts_with("bad-")) {
                (Err(OnionError::Inner { .. }), true) | (Ok(_), false) => {}
                _ => panic!("{id}: {opened:?}"),
            }
        }
    }

    #[test]
    fn replies_are_sealed_as_the_upstream_server_seals_them() {
        let vectors = vectors();
        let cases = vectors["replies"].as_array().unwrap();
        assert_eq!(cases.len(), 11);
        for case in cases {
            let cipher = if case["enc_type"] == "aes-gcm" {
                Cipher::AesGcm
            } else {
                Cipher::XChaCha20
            };
            let client_public: [u8; 32] = bytes(&case["client_ephemeral_public"]).try_into().unwrap();
            let key = ReplyKey::derive(cipher, &secret(&case["server_secret"]), &client_public).unwrap();
            let expected = bytes(&case["reply_encrypted_hex"]);
            let mut nonce = [0; 24];
            let length = if cipher == Cipher::AesGcm { 12 } else { 24 };
            nonce[..length].copy_from_slice(&expected[..length]);
            let sealed = key.seal_raw(&bytes(&case["reply_plaintext_hex"]), &nonce);
            assert_eq!(sealed, expected, "{}", case["id"]);
        }
    }

    #[test]
    fn derived_keys_are_those_of_the_upstream_code() {
        let vectors = vectors();
        let cases = vectors["derived_keys"].as_array().unwrap();
        assert_eq!(cases.len(), 2);
        for case in cases {
            let shared =
                crypto::x25519_shared(&secret(&case["client_secret"]), secret(&case["server_public"]).expose())
                    .unwrap();
            assert_eq!(shared.expose().as_slice(), bytes(&case["x25519_shared"]));
            assert_eq!(
                crypto::hmac_sha256(b"LOKI", &[shared.expose()]).as_slice(),
                bytes(&case["aes_gcm_key"])
            );
            let xchacha = crypto::blake2b_256(&[
                shared.expose(),
                &bytes(&case["client_public"]),
                &bytes(&case["server_public"]),
            ]);
            assert_eq!(xchacha.as_slice(), bytes(&case["xchacha20_key"]));
        }
    }

    #[test]
    fn a_reply_has_upstreams_metadata() {
        let case = &vectors()["replies"][1];
        let client_public: [u8; 32] = bytes(&case["client_ephemeral_public"]).try_into().unwrap();
        let key = ReplyKey::derive(Cipher::XChaCha20, &secret(&case["server_secret"]), &client_public).unwrap();
        let sealed = key.seal(200, "application/json", b"[]", &[7; 24]);
        let text = crypto::xchacha_open(key.key.expose(), &sealed).unwrap();
        assert_eq!(
            text,
            br#"l62:{"code": 200, "headers": {"content-type": "application/json"}}2:[]e"#
        );
    }

    proptest::proptest! {
        #[test]
        fn no_request_panics(request: Vec<u8>, inner: Vec<u8>) {
            let _ = open(&request, &Secret::new([1; 32]));
            let _ = read_inner(&inner);
        }
    }
}
