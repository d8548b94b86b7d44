//! P-256: the curve of Web Push, for agreeing on a key and for signing.
//!
//! In: scalars, points, texts. Out: points, shared secrets, signatures. Never: says why a key is none.

use crate::redact::Secret;
use aws_lc_rs::agreement::{ECDH_P256, ParsedPublicKey, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

/// Whether these 65 bytes are an uncompressed point of the curve (SEC 1 §2.3.3).
pub fn is_p256_point(point: &[u8; 65]) -> bool {
    let [form, ..] = point;
    *form == UNCOMPRESSED && ParsedPublicKey::try_from(UnparsedPublicKey::new(&ECDH_P256, point.as_slice())).is_ok()
}

/// A private key and its public half.
pub struct P256Key {
    private: PrivateKey,
    scalar: Secret<[u8; 32]>,
    public: [u8; 65],
}

impl P256Key {
    /// `None` for zero and for what is not below the group's order: of random scalars one in 2³².
    pub fn new(scalar: &Secret<[u8; 32]>) -> Option<Self> {
        let private = PrivateKey::from_private_key(&ECDH_P256, scalar.expose()).ok()?;
        let public = private.compute_public_key().ok()?.as_ref().try_into().ok()?;
        Some(Self {
            private,
            scalar: Secret::new(*scalar.expose()),
            public,
        })
    }

    /// Uncompressed.
    pub const fn public(&self) -> &[u8; 65] {
        &self.public
    }

    /// The shared point's x; `None` if `their_public` is no point.
    pub fn agree(&self, their_public: &[u8; 65]) -> Option<Secret<[u8; 32]>> {
        let theirs = UnparsedPublicKey::new(&ECDH_P256, their_public.as_slice());
        agree(&self.private, theirs, (), |shared| {
            shared.try_into().map(Secret::new).map_err(drop)
        })
        .ok()
    }

    /// ECDSA with SHA-256: r ‖ s (RFC 7518 §3.4). The library draws the nonce itself, mixed with the key and the text.
    pub fn sign(&self, text: &[u8]) -> Option<[u8; 64]> {
        let key = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            self.scalar.expose(),
            &self.public,
        );
        let signature = key.ok()?.sign(&SystemRandom::new(), text).ok()?;
        signature.as_ref().try_into().ok()
    }
}

impl std::fmt::Debug for P256Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("P256Key(<secret>)")
    }
}

const UNCOMPRESSED: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED;

    fn key(byte: u8) -> P256Key {
        P256Key::new(&Secret::new([byte; 32])).unwrap()
    }

    #[test]
    fn two_sides_agree_and_a_third_does_not() {
        let [alice, bob, eve] = [1, 2, 3].map(key);
        let shared = |mine: &P256Key, theirs: &P256Key| *mine.agree(theirs.public()).unwrap().expose();
        assert_eq!(shared(&alice, &bob), shared(&bob, &alice));
        assert_ne!(shared(&alice, &bob), shared(&eve, &bob));
    }

    #[test]
    fn what_is_not_on_the_curve_is_no_point() {
        let good = *key(1).public();
        assert!(is_p256_point(&good));
        let mut off = good;
        off[64] ^= 1;
        let mut other_form = good;
        other_form[0] = 6;
        for bad in [off, other_form, [0; 65], [4; 65]] {
            assert!(!is_p256_point(&bad));
            assert!(key(2).agree(&bad).is_none() || bad == other_form);
        }
    }

    #[test]
    fn zero_and_the_order_are_no_keys() {
        let order = hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
        for scalar in [[0; 32], [0xFF; 32], order.try_into().unwrap()] {
            assert!(P256Key::new(&Secret::new(scalar)).is_none());
        }
    }

    #[test]
    fn a_signature_holds_for_its_text_only() {
        let key = key(5);
        let signature = key.sign(b"text").unwrap();
        let public = aws_lc_rs::signature::UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public());
        assert!(public.verify(b"text", &signature).is_ok());
        assert!(public.verify(b"texts", &signature).is_err());
    }
}
