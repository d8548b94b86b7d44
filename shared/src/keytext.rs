//! A 32-byte key as people and JSON write it: hex, base32z or base64.
//!
//! In: text. Out: 32 bytes or nothing. Never: says what was wrong, since the text may be a secret.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Standard base64, padded or not.
pub const BASE64_LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// 64 hex digits, 52 characters of base32z, or 43 of base64 with an optional `=`; nothing may follow.
pub fn parse_key(text: &str) -> Option<[u8; 32]> {
    match text.len() {
        64 => hex::decode(text).ok()?.try_into().ok(),
        52 => base32z(text),
        43 | 44 => BASE64_LENIENT.decode(text).ok()?.try_into().ok(),
        _ => None,
    }
}

/// 52 characters carry 260 bits; the last four are not used and must be zero.
fn base32z(text: &str) -> Option<[u8; 32]> {
    const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";
    let mut key = [0u8; 32];
    let mut out = key.iter_mut();
    let (mut bits, mut held) = (0u32, 0u32);
    for character in text.bytes() {
        let value = ALPHABET
            .iter()
            .position(|letter| *letter == character.to_ascii_lowercase())? as u32;
        bits = (bits << 5 | value) & 0xFFFF;
        held += 5;
        if held >= 8 {
            held -= 8;
            *out.next()? = (bits >> held & 0xFF) as u8;
        }
    }
    (out.next().is_none() && bits & ((1 << held) - 1) == 0).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_of_one_key_agree() {
        let hex = "cea49f25247801e444dc64b3e41537aad9fbb137bf7fbbc60449147183934062";
        let key = parse_key(hex);
        assert!(key.is_some());
        assert_eq!(parse_key(&hex.to_uppercase()), key);
        assert_eq!(parse_key("341j6jjrxyy6etghc136efjzimc9zcjzz795ztorjrk8dyhuebty"), key);
        assert_eq!(parse_key("zqSfJSR4AeRE3GSz5BU3qtn7sTe/f7vGBEkUcYOTQGI"), key);
        assert_eq!(parse_key("zqSfJSR4AeRE3GSz5BU3qtn7sTe/f7vGBEkUcYOTQGI="), key);
    }

    #[test]
    fn anything_else_is_no_key() {
        for text in [
            "",
            "00",
            "cea4",
            "zqSfJSR4AeRE3GSz5BU3qtn7sTe/f7vGBEkUcYOTQGI==",
            &"l".repeat(52),
            &"y".repeat(53),
        ] {
            assert_eq!(parse_key(text), None, "{text}");
        }
        assert_eq!(
            parse_key("341j6jjrxyy6etghc136efjzimc9zcjzz795ztorjrk8dyhuebt9"),
            None,
            "unused bits are zero"
        );
    }
}
