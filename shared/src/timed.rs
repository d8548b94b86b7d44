//! Timed credentials: a name that says when it ends and names nobody, and the password that a shared secret makes of it.
//!
//! In: a secret that whoever hands out credentials shares with whoever checks them; a time; random bits. Out: names and passwords.
//! Never: draws randomness, reads a clock, or takes a secret that can be guessed.
//!
//! As the "TURN REST" scheme has them: username `expiry[:anything]`, password base64(HMAC(secret, username)).

use crate::crypto::{hmac_sha1, hmac_sha256};
use crate::redact::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroize;

/// A name that ends at `expiry`, seconds since 1970: nothing but the time and 128 random bits.
pub fn username(expiry: u64, random: &[u8; 16]) -> String {
    format!("{expiry}:{}", hex::encode(random))
}

/// The time that a name says: digits up to the end or the first colon.
pub fn expiry(username: &[u8]) -> Option<u64> {
    let digits = username.split(|byte| *byte == b':').next()?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The hash that makes passwords from names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "service", derive(serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum TimedAlgorithm {
    #[default]
    Sha1,
    Sha256,
}

/// A secret that two servers share. Several may be good at a time, for rollover.
pub struct TimedSecret {
    algorithm: TimedAlgorithm,
    secret: Secret<Vec<u8>>,
}

impl TimedSecret {
    /// One sniffed request is enough to guess a weak secret offline, so weak ones are refused.
    pub fn new(algorithm: TimedAlgorithm, secret: Secret<Vec<u8>>) -> Result<Self, TimedSecretFault> {
        if secret.expose().is_empty() {
            return Err(TimedSecretFault::Empty);
        }
        if is_placeholder(secret.expose()) {
            return Err(TimedSecretFault::Placeholder);
        }
        if secret.expose().len() < MIN_TIMED_SECRET {
            return Err(TimedSecretFault::Short);
        }
        Ok(Self { algorithm, secret })
    }

    pub fn password(&self, username: &[u8]) -> TimedPassword {
        let mut bytes = [0; LONGEST_PASSWORD];
        let secret = self.secret.expose();
        let written = match self.algorithm {
            TimedAlgorithm::Sha1 => STANDARD.encode_slice(hmac_sha1(secret, &[username]), &mut bytes),
            TimedAlgorithm::Sha256 => STANDARD.encode_slice(hmac_sha256(secret, &[username]), &mut bytes),
        };
        TimedPassword {
            bytes: Secret::new(bytes),
            length: written.unwrap_or_default(),
        }
    }
}

/// Text of 28 or 44 characters, gone when it is dropped.
pub struct TimedPassword {
    bytes: Secret<[u8; LONGEST_PASSWORD]>,
    length: usize,
}

impl TimedPassword {
    pub fn text(&self) -> &str {
        let bytes = self.bytes.expose().get(..self.length);
        bytes
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

/// Bytes of a timed secret, at least.
pub const MIN_TIMED_SECRET: usize = 32;
/// Characters of a password, at most: the base64 of 32 bytes.
pub const LONGEST_PASSWORD: usize = 44;

/// Why a secret is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimedSecretFault {
    #[error("the secret is empty")]
    Empty,
    #[error("the secret is shorter than 32 bytes")]
    Short,
    #[error("the secret is a placeholder")]
    Placeholder,
}

/// What documentation and examples contain, in any case, and one character over and over.
pub fn is_placeholder(secret: &[u8]) -> bool {
    const WHOLE: [&str; 5] = ["secret", "password", "admin", "test", "default"];
    const WITHIN: [&str; 9] = [
        "changeme",
        "change-me",
        "change_me",
        "change this",
        "replace",
        "placeholder",
        "example",
        "your-secret",
        "your_secret",
    ];
    let one_character = secret.len() > 1 && secret.windows(2).all(|pair| pair.first() == pair.last());
    let mut lower = secret.to_ascii_lowercase();
    let placeholder = WHOLE.iter().any(|word| lower == word.as_bytes())
        || WITHIN
            .iter()
            .any(|word| lower.windows(word.len()).any(|part| part == word.as_bytes()));
    lower.zeroize();
    one_character || placeholder
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0f1e2d3c4b5a69788796a5b4c3d2e1f0";

    fn fault(secret: &[u8]) -> Option<TimedSecretFault> {
        TimedSecret::new(TimedAlgorithm::Sha1, Secret::new(secret.to_vec())).err()
    }

    #[test]
    fn a_name_is_its_end_and_random_bits() {
        let name = username(1_800_000_000, &[0xab; 16]);
        assert_eq!(name, format!("1800000000:{}", "ab".repeat(16)));
        assert_eq!(expiry(name.as_bytes()), Some(1_800_000_000));
        assert_eq!(expiry(b"1800000000"), Some(1_800_000_000));
        for other in [
            &b""[..],
            b":ab",
            b"alice",
            b"-5:ab",
            b"1 :ab",
            b"99999999999999999999:ab",
        ] {
            assert_eq!(expiry(other), None);
        }
    }

    /// The expected values are OpenSSL's: `printf NAME | openssl dgst -sha1 -hmac SECRET -binary | base64`.
    #[test]
    fn passwords_are_those_of_other_implementations() {
        let password = |algorithm| {
            let secret = TimedSecret::new(algorithm, Secret::new(SECRET.to_vec())).unwrap();
            secret.password(b"1800000000:0123456789abcdef").text().to_owned()
        };
        assert_eq!(password(TimedAlgorithm::Sha1), "9zd2dCjY3mUQS+eSSfL01R8Is1Q=");
        assert_eq!(
            password(TimedAlgorithm::Sha256),
            "0AMsqI6y1ztHnT9Qj+zw2jGVimMa64ZYUtvz+wDJyxw="
        );
    }

    #[test]
    fn secrets_that_can_be_guessed_are_refused() {
        assert_eq!(fault(SECRET), None);
        assert_eq!(fault(b""), Some(TimedSecretFault::Empty));
        assert_eq!(fault(&SECRET[..31]), Some(TimedSecretFault::Short));
        assert_eq!(
            fault(b"Replace this by something that is long"),
            Some(TimedSecretFault::Placeholder)
        );
        assert_eq!(fault(&[b'x'; 64]), Some(TimedSecretFault::Placeholder));
    }
}
