//! The lab's cryptography: libsodium, a foreign implementation to the product.
//!
//! In: keys and bytes. Out: signatures, shared secrets, sealed and opened bytes. Never: shares a line with the product's
//! `crypto.rs`, so that an error made twice the same way is unlikely.
#![expect(
    unsafe_code,
    reason = "libsodium is C; every call below passes a length or a fixed-size array"
)]

use libsodium_sys as ffi;
use std::ptr;
use std::sync::Once;

/// An Ed25519 key pair made from a 32-byte seed.
#[derive(Clone)]
pub struct SigningKey {
    public: [u8; 32],
    secret: [u8; 64],
}

impl SigningKey {
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        ready();
        let (mut public, mut secret) = ([0; 32], [0; 64]);
        // SAFETY: the three arrays have the sizes of crypto_sign_{PUBLICKEY,SECRETKEY,SEED}BYTES.
        let code = unsafe { ffi::crypto_sign_seed_keypair(public.as_mut_ptr(), secret.as_mut_ptr(), seed.as_ptr()) };
        assert_eq!(code, 0, "libsodium makes a key pair from every seed");
        Self { public, secret }
    }

    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        // SAFETY: `signature` has crypto_sign_BYTES; a null length pointer is allowed; `message` is given with its length.
        let code = unsafe {
            ffi::crypto_sign_detached(
                signature.as_mut_ptr(),
                ptr::null_mut(),
                message.as_ptr(),
                message.len() as u64,
                self.secret.as_ptr(),
            )
        };
        assert_eq!(code, 0, "libsodium signs every message");
        signature
    }
}

/// Whether `signature` is one of `public` over `message`, by libsodium's rules.
pub fn verify_ed25519(public: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    ready();
    // SAFETY: fixed-size arrays of the sizes libsodium asks for; `message` is given with its length.
    unsafe {
        ffi::crypto_sign_verify_detached(
            signature.as_ptr(),
            message.as_ptr(),
            message.len() as u64,
            public.as_ptr(),
        ) == 0
    }
}

/// The X25519 key of an Ed25519 key; `None` for keys of small order and points that are none.
pub fn ed25519_to_x25519(public: &[u8; 32]) -> Option<[u8; 32]> {
    ready();
    let mut converted = [0; 32];
    // SAFETY: both arrays have 32 bytes.
    let code = unsafe { ffi::crypto_sign_ed25519_pk_to_curve25519(converted.as_mut_ptr(), public.as_ptr()) };
    (code == 0).then_some(converted)
}

pub fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
    ready();
    let mut public = [0; 32];
    // SAFETY: both arrays have 32 bytes.
    let code = unsafe { ffi::crypto_scalarmult_base(public.as_mut_ptr(), secret.as_ptr()) };
    assert_eq!(code, 0, "every secret has a public half");
    public
}

/// `None` if the other key is of small order.
pub fn x25519_shared(secret: &[u8; 32], their_public: &[u8; 32]) -> Option<[u8; 32]> {
    ready();
    let mut shared = [0; 32];
    // SAFETY: the three arrays have 32 bytes.
    let code = unsafe { ffi::crypto_scalarmult(shared.as_mut_ptr(), secret.as_ptr(), their_public.as_ptr()) };
    (code == 0).then_some(shared)
}

/// Ciphertext ‖ tag; the nonce is not in front.
pub fn xchacha20_seal(key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8]) -> Vec<u8> {
    ready();
    let mut sealed = vec![0; plaintext.len() + 16];
    let mut written = 0;
    // SAFETY: `sealed` has room for the plaintext and the tag; there is no additional data.
    let code = unsafe {
        ffi::crypto_aead_xchacha20poly1305_ietf_encrypt(
            sealed.as_mut_ptr(),
            &mut written,
            plaintext.as_ptr(),
            plaintext.len() as u64,
            ptr::null(),
            0,
            ptr::null(),
            nonce.as_ptr(),
            key.as_ptr(),
        )
    };
    assert_eq!(code, 0, "libsodium seals every plaintext");
    sealed.truncate(written as usize);
    sealed
}

/// `sealed` is ciphertext ‖ tag. `None` if it does not open.
pub fn xchacha20_open(key: &[u8; 32], nonce: &[u8; 24], sealed: &[u8]) -> Option<Vec<u8>> {
    ready();
    let mut plaintext = vec![0; sealed.len().checked_sub(16)?];
    let mut written = 0;
    // SAFETY: `plaintext` has room for what is left without the tag; there is no additional data.
    let code = unsafe {
        ffi::crypto_aead_xchacha20poly1305_ietf_decrypt(
            plaintext.as_mut_ptr(),
            &mut written,
            ptr::null_mut(),
            sealed.as_ptr(),
            sealed.len() as u64,
            ptr::null(),
            0,
            nonce.as_ptr(),
            key.as_ptr(),
        )
    };
    plaintext.truncate(written as usize);
    (code == 0).then_some(plaintext)
}

/// BLAKE2b of 32 bytes, without a key.
pub fn blake2b_256(message: &[u8]) -> [u8; 32] {
    ready();
    let mut hash = [0; 32];
    // SAFETY: `hash` is given with its length, `message` too; a null key of length 0 means no key.
    let code = unsafe {
        ffi::crypto_generichash_blake2b(
            hash.as_mut_ptr(),
            hash.len(),
            message.as_ptr(),
            message.len() as u64,
            ptr::null(),
            0,
        )
    };
    assert_eq!(code, 0, "32 bytes is a length BLAKE2b has");
    hash
}

pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    ready();
    let mut state = std::mem::MaybeUninit::uninit();
    let mut tag = [0; 32];
    // SAFETY: init fills the whole state before update and final read it; key and message are given with their lengths.
    unsafe {
        ffi::crypto_auth_hmacsha256_init(state.as_mut_ptr(), key.as_ptr(), key.len());
        ffi::crypto_auth_hmacsha256_update(state.as_mut_ptr(), message.as_ptr(), message.len() as u64);
        ffi::crypto_auth_hmacsha256_final(state.as_mut_ptr(), tag.as_mut_ptr());
    }
    tag
}

pub fn random<const N: usize>() -> [u8; N] {
    ready();
    let mut bytes = [0; N];
    // SAFETY: the buffer is given with its length.
    unsafe { ffi::randombytes_buf(bytes.as_mut_ptr().cast(), N) };
    bytes
}

fn ready() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: may be called any number of times, from any thread.
        let code = unsafe { ffi::sodium_init() };
        assert!(code >= 0, "libsodium starts");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_and_a_changed_byte_does_not() {
        let (key, nonce) = (random::<32>(), random::<24>());
        let mut sealed = xchacha20_seal(&key, &nonce, b"hello");
        assert_eq!(xchacha20_open(&key, &nonce, &sealed).as_deref(), Some(&b"hello"[..]));
        sealed[0] ^= 1;
        assert_eq!(xchacha20_open(&key, &nonce, &sealed), None);
        assert_eq!(xchacha20_open(&key, &nonce, &[0; 15]), None);
    }
}
