//! The few operations both servers need, each with one name and no choices.
//!
//! In: keys, bytes, nonces. Out: bytes, or a plain "no". Never: makes randomness, logs, or says why a seal did not open.

mod p256;

pub use p256::{P256Key, is_p256_point};

use crate::redact::Secret;
use aes_gcm::Aes256Gcm;
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use blake2::Blake2bMac;
use blake2::digest::consts::{U16, U32};
use blake2::digest::{Digest, FixedOutput, KeyInit, Mac, Update};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{Aead, AeadInOut};
use crypto_box::aead::AeadInPlace;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::Hmac;
use sha1::Sha1;
use sha2::Sha256;

/// Poly1305 and GCM tags are 16 bytes.
pub const TAG: usize = 16;
/// XChaCha20 nonces and CurveZMQ nonces are 24 bytes.
pub const NONCE: usize = 24;

/// Ed25519 with libsodium's rules: no small-order keys, no signatures beyond the group order.
pub fn verify_ed25519(public: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(public)
        .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
}

/// The X25519 key of an Ed25519 key, `None` where libsodium's `crypto_sign_ed25519_pk_to_curve25519` refuses it: not on the
/// curve, written in a non-canonical way, of small order, or outside the main subgroup.
pub fn ed25519_to_x25519(public: &[u8; 32]) -> Option<[u8; 32]> {
    let point = CompressedEdwardsY(*public).decompress()?;
    // A sign of zero can be written in two ways too, but only the points of small order have one.
    (is_below_p(public) && !point.is_small_order() && is_torsion_free(&point)).then(|| point.to_montgomery().to_bytes())
}

/// Whether the y of an Ed25519 key is written as the one number below p = 2^255 - 19.
fn is_below_p(public: &[u8; 32]) -> bool {
    let [lowest, middle @ .., highest] = public;
    // The top bit is the sign of x.
    *lowest < 0xed || highest & 0x7f != 0x7f || middle.iter().any(|byte| *byte != 0xff)
}

/// Whether ℓ·P is the neutral element, ℓ being the prime order of the main subgroup: as (ℓ - 1)·P = -P, which is a quarter quicker than
/// the library's own way. In variable time: the key is public.
fn is_torsion_free(point: &EdwardsPoint) -> bool {
    EdwardsPoint::vartime_double_scalar_mul_basepoint(&-Scalar::ONE, point, &Scalar::ZERO) == -point
}

/// The public half of an X25519 key.
pub fn x25519_public(secret: &Secret<[u8; 32]>) -> [u8; 32] {
    let public = x25519_key(secret)
        .compute_public_key()
        .expect("an X25519 key has a public half");
    public.as_ref().try_into().expect("which is of 32 bytes")
}

/// The shared secret; `None` if the other side's key has small order, which would make it the same for everybody.
pub fn x25519_shared(secret: &Secret<[u8; 32]>, their_public: &[u8; 32]) -> Option<Secret<[u8; 32]>> {
    let peer = UnparsedPublicKey::new(&X25519, their_public);
    agree(&x25519_key(secret), peer, (), |shared| {
        shared.try_into().map(Secret::new).map_err(|_| ())
    })
    .ok()
}

/// The library wipes it when it is dropped.
fn x25519_key(secret: &Secret<[u8; 32]>) -> PrivateKey {
    PrivateKey::from_private_key(&X25519, secret.expose()).expect("any 32 bytes are an X25519 key")
}

/// Keyed BLAKE2b-256 over length-prefixed parts: no two lists of parts have the same input.
pub fn keyed_hash_32(key: &Secret<[u8; 32]>, parts: &[&[u8]]) -> [u8; 32] {
    // BLAKE2b takes any key up to 64 bytes; the length is fixed by the type.
    let mut mac = Blake2bMac::<U32>::new_from_slice(key.expose()).expect("32 bytes are a valid BLAKE2b key");
    feed_parts(&mut mac, parts);
    mac.finalize_fixed().into()
}

/// As [`keyed_hash_32`], 16 bytes.
pub fn keyed_hash_16(key: &Secret<[u8; 32]>, parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Blake2bMac::<U16>::new_from_slice(key.expose()).expect("32 bytes are a valid BLAKE2b key");
    feed_parts(&mut mac, parts);
    mac.finalize_fixed().into()
}

fn feed_parts(mac: &mut impl Update, parts: &[&[u8]]) {
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
}

/// Plain BLAKE2b-256 over the parts one after the other.
pub fn blake2b_256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = blake2::Blake2b::<U32>::new();
    for part in parts {
        Digest::update(&mut hash, part);
    }
    hash.finalize().into()
}

/// Over the parts one after the other.
pub fn hmac_sha1(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| Mac::update(&mut mac, part));
    mac.finalize().into_bytes().into()
}

/// As [`hmac_sha1`].
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| Mac::update(&mut mac, part));
    mac.finalize().into_bytes().into()
}

/// nonce ‖ ciphertext ‖ tag.
pub fn xchacha_seal(key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(NONCE + plaintext.len() + TAG);
    out.extend_from_slice(nonce);
    out.extend_from_slice(plaintext);
    let cipher = XChaCha20Poly1305::new(key.into());
    let (_, text) = out.split_at_mut(NONCE);
    let tag = cipher
        .encrypt_inout_detached(nonce.into(), &[], text.into())
        .expect("the text is far below the cipher's 256 GiB");
    out.extend_from_slice(&tag);
    out
}

/// Opens nonce ‖ ciphertext ‖ tag.
pub fn xchacha_open(key: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
    XChaCha20Poly1305::new(key.into()).decrypt(nonce.into(), sealed).ok()
}

/// Encrypts in place. The tag holds `context` too: what was sealed in one place does not open in another.
pub fn xchacha_seal_in_place(
    key: &Secret<[u8; 32]>,
    nonce: &[u8; NONCE],
    context: &[u8],
    text: &mut [u8],
) -> [u8; TAG] {
    XChaCha20Poly1305::new(key.expose().into())
        .encrypt_inout_detached(nonce.into(), context, text.into())
        .expect("the text is far below the cipher's 256 GiB")
        .into()
}

/// Decrypts in place; false leaves the bytes as they were.
pub fn xchacha_open_in_place(
    key: &Secret<[u8; 32]>,
    nonce: &[u8; NONCE],
    context: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG],
) -> bool {
    XChaCha20Poly1305::new(key.expose().into())
        .decrypt_inout_detached(nonce.into(), context, text.into(), tag.into())
        .is_ok()
}

/// nonce (12) ‖ ciphertext ‖ tag.
pub fn aes_gcm_seal(key: &[u8; 32], nonce: &[u8; 12], plaintext: &[u8]) -> Vec<u8> {
    let sealed = Aes256Gcm::new(key.into())
        .encrypt(nonce.into(), plaintext)
        .expect("the text is far below the cipher's 64 GiB");
    [nonce.as_slice(), &sealed].concat()
}

/// Opens nonce (12) ‖ ciphertext ‖ tag.
pub fn aes_gcm_open(key: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_first_chunk::<12>()?;
    Aes256Gcm::new(key.into()).decrypt(nonce.into(), sealed).ok()
}

/// `text` in place, with the tag appended.
pub fn aes_128_gcm_seal_in_place(key: &Secret<[u8; 16]>, nonce: &[u8; 12], text: &mut Vec<u8>) {
    let key = UnboundKey::new(&AES_128_GCM, key.expose()).expect("16 bytes are a key of AES-128");
    LessSafeKey::new(key)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(*nonce), Aad::empty(), text)
        .expect("the text is far below the cipher's 64 GiB");
}

/// HKDF with SHA-256 (RFC 5869), for at most one block of output. `info` is taken as one text.
pub fn hkdf_sha256<const N: usize>(salt: &[u8], secret: &[u8], info: &[&[u8]]) -> Secret<[u8; N]> {
    const { assert!(N <= 32, "one block") };
    let extracted = Secret::new(hmac_sha256(salt, &[secret]));
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(extracted.expose()).expect("HMAC takes keys of any length");
    for part in info {
        Mac::update(&mut mac, part);
    }
    Mac::update(&mut mac, &[1]);
    let block = Secret::new(<[u8; 32]>::from(mac.finalize().into_bytes()));
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(block.expose()) {
        *to = *from;
    }
    Secret::new(out)
}

/// NaCl's `crypto_box` between two fixed keys, the shared key computed once: CurveZMQ's box.
pub struct CurveBox(crypto_box::SalsaBox);

impl CurveBox {
    pub fn new(their_public: &[u8; 32], my_secret: &Secret<[u8; 32]>) -> Self {
        let secret = crypto_box::SecretKey::from_bytes(*my_secret.expose());
        Self(crypto_box::SalsaBox::new(
            &crypto_box::PublicKey::from_bytes(*their_public),
            &secret,
        ))
    }

    /// Encrypts in place; on the wire the tag comes first.
    pub fn seal_in_place(&self, nonce: &[u8; 24], text: &mut [u8]) -> [u8; TAG] {
        self.0
            .encrypt_in_place_detached(nonce.into(), &[], text)
            .expect("the text is far below the cipher's limit")
            .into()
    }

    /// Decrypts in place; false leaves the bytes unusable.
    pub fn open_in_place(&self, nonce: &[u8; 24], text: &mut [u8], tag: &[u8; TAG]) -> bool {
        self.0
            .decrypt_in_place_detached(nonce.into(), &[], text, tag.into())
            .is_ok()
    }
}

impl std::fmt::Debug for CurveBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CurveBox(<secret>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_opens_only_with_the_other_half_and_the_same_nonce() {
        let (alice, bob) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let sender = CurveBox::new(&x25519_public(&bob), &alice);
        let receiver = CurveBox::new(&x25519_public(&alice), &bob);
        let mut text = *b"message";
        let tag = sender.seal_in_place(&[3; 24], &mut text);
        let mut copy = text;
        assert!(!receiver.open_in_place(&[4; 24], &mut copy, &tag));
        assert!(receiver.open_in_place(&[3; 24], &mut text, &tag));
        assert_eq!(&text, b"message");
    }

    #[test]
    fn what_is_sealed_in_place_opens_in_its_own_context_only() {
        let (key, nonce) = (Secret::new([1; 32]), [2; 24]);
        let mut text = *b"a row";
        let tag = xchacha_seal_in_place(&key, &nonce, b"here", &mut text);
        let sealed = text;
        assert!(!xchacha_open_in_place(&key, &nonce, b"there", &mut text, &tag));
        assert_eq!(text, sealed, "a refused text is as it was");
        assert!(xchacha_open_in_place(&key, &nonce, b"here", &mut text, &tag));
        assert_eq!(&text, b"a row");
        // Without a context it is what `xchacha_seal` makes.
        let tag = xchacha_seal_in_place(&key, &nonce, b"", &mut text);
        assert_eq!(
            [&nonce[..], &text, &tag].concat(),
            xchacha_seal(&[1; 32], &nonce, b"a row")
        );
    }

    #[test]
    fn keyed_hashes_tell_apart_what_concatenation_would_not() {
        let key = Secret::new([9; 32]);
        assert_ne!(keyed_hash_32(&key, &[b"ab", b"c"]), keyed_hash_32(&key, &[b"a", b"bc"]));
        assert_ne!(keyed_hash_16(&key, &[b"ab", b"c"]), keyed_hash_16(&key, &[b"a", b"bc"]));
    }

    #[test]
    fn a_key_outside_the_main_subgroup_or_written_oddly_does_not_convert() {
        use curve25519_dalek::constants::EIGHT_TORSION;
        let main = EdwardsPoint::mul_base(&Scalar::from(7u8));
        assert!(ed25519_to_x25519(&main.compress().to_bytes()).is_some());
        for (place, torsion) in EIGHT_TORSION.iter().enumerate() {
            let moved = main + torsion;
            assert_eq!(is_torsion_free(&moved), moved.is_torsion_free(), "{place}");
            assert_eq!(
                ed25519_to_x25519(&moved.compress().to_bytes()).is_some(),
                place == 0,
                "{place}"
            );
            assert_eq!(ed25519_to_x25519(&torsion.compress().to_bytes()), None, "{place}");
        }
        // Numbers from p up stand for those from 0 up; some of them are on the curve.
        let mut on_the_curve = 0;
        for low in 0xe0..=0xff_u8 {
            for sign in [0x7f, 0xff] {
                let mut odd = [0xff; 32];
                (odd[0], odd[31]) = (low, sign);
                let Some(point) = CompressedEdwardsY(odd).decompress() else {
                    continue;
                };
                on_the_curve += 1;
                let canonical = point.compress().to_bytes() == odd;
                assert!(canonical == is_below_p(&odd) || point.is_small_order(), "{low}");
                assert!(canonical || ed25519_to_x25519(&odd).is_none(), "{low}");
            }
        }
        assert!(on_the_curve > 8);
    }

    #[test]
    fn x25519_is_that_of_rfc_7748_and_refuses_keys_of_small_order() {
        // RFC 7748 §5.2, one iteration and a thousand.
        let (mut scalar, mut point) = ([0; 32], [0; 32]);
        (scalar[0], point[0]) = (9, 9);
        for (until, expected) in [
            (1, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
            (
                1_000,
                "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
            ),
        ] {
            for _ in if until == 1 { 0..1 } else { 1..until } {
                let next = x25519_shared(&Secret::new(scalar), &point).unwrap();
                (scalar, point) = (*next.expose(), scalar);
            }
            assert_eq!(hex::encode(scalar), expected);
        }
        let (alice, bob) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let shared = |mine: &Secret<[u8; 32]>, theirs: &Secret<[u8; 32]>| {
            x25519_shared(mine, &x25519_public(theirs)).map(|shared| *shared.expose())
        };
        assert_eq!(shared(&alice, &bob), shared(&bob, &alice));
        let mut of_small_order = [0; 32];
        assert!(x25519_shared(&alice, &of_small_order).is_none());
        of_small_order[0] = 1;
        assert!(x25519_shared(&alice, &of_small_order).is_none());
    }

    #[test]
    fn hkdf_gives_what_rfc_5869_says() {
        // RFC 5869 A.1: the first 32 bytes of its 42.
        let salt = hex::decode("000102030405060708090a0b0c").unwrap();
        let info = hex::decode("f0f1f2f3f4f5f6f7f8f9").unwrap();
        let (head, tail) = info.split_at(3);
        let made = hkdf_sha256::<32>(&salt, &[0x0b; 22], &[head, tail]);
        assert_eq!(
            hex::encode(made.expose()),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
    }

    #[test]
    fn a_seal_opens_and_a_flipped_bit_does_not() {
        let mut sealed = xchacha_seal(&[1; 32], &[2; 24], b"text");
        assert_eq!(xchacha_open(&[1; 32], &sealed).as_deref(), Some(b"text".as_slice()));
        let mut gcm = aes_gcm_seal(&[1; 32], &[2; 12], b"text");
        assert_eq!(aes_gcm_open(&[1; 32], &gcm).as_deref(), Some(b"text".as_slice()));
        for byte in [0, 25, sealed.len() - 1] {
            sealed[byte] ^= 1;
            assert_eq!(xchacha_open(&[1; 32], &sealed), None);
            sealed[byte] ^= 1;
        }
        gcm[13] ^= 1;
        assert_eq!(aes_gcm_open(&[1; 32], &gcm), None);
        assert_eq!(xchacha_open(&[1; 32], &[0; 5]), None);
    }
}
