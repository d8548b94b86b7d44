//! Checks JSON Web Tokens the way Apple, Google and Huawei would.
//!
//! In: a token and a public key. Out: its header and claims if the signature holds. Never: decides whether they are right.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

pub(super) struct Token {
    pub header: Value,
    pub claims: Value,
}

pub(super) fn verify_es256(token: &str, public_point: &[u8]) -> Option<Token> {
    verify(token, "ES256", &signature::ECDSA_P256_SHA256_FIXED, public_point)
}

pub(super) fn verify_rs256(token: &str, public_pkcs1: &[u8]) -> Option<Token> {
    verify(token, "RS256", &signature::RSA_PKCS1_2048_8192_SHA256, public_pkcs1)
}

pub(super) fn verify_ps256(token: &str, public_pkcs1: &[u8]) -> Option<Token> {
    verify(token, "PS256", &signature::RSA_PSS_2048_8192_SHA256, public_pkcs1)
}

fn verify(
    token: &str,
    algorithm_name: &str,
    algorithm: &'static dyn VerificationAlgorithm,
    public: &[u8],
) -> Option<Token> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    let (header, claims) = (json(header)?, json(claims)?);
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    UnparsedPublicKey::new(algorithm, public)
        .verify(signed.as_bytes(), &signature)
        .ok()?;
    (header["alg"] == algorithm_name).then_some(Token { header, claims })
}
