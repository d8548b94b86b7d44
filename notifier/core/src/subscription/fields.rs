//! The fields of one JSON item, each parsed once into what it means.
//!
//! In: a JSON object. Out: bytes, numbers, namespaces, a device token. Never: checks a signature or a time.

use super::ItemError;
use crate::account::{DeviceToken, Namespace, NamespaceSet, Service};
use crate::endpoint::PushEndpoint;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

pub(super) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub fn of(item: &'a Value) -> Result<Self, ItemError> {
        item.as_object().map(Self).ok_or(ItemError::NotAnObject)
    }

    pub fn required(&self, key: &str) -> Result<&'a Value, ItemError> {
        self.0.get(key).ok_or(ItemError::MissingParameter)
    }

    /// `null` is as good as absent (push.md §3 Q23).
    pub fn optional(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub fn text(&self, key: &str) -> Result<&'a str, ItemError> {
        self.required(key)?.as_str().ok_or(ItemError::WrongType)
    }

    pub fn bytes<const N: usize>(&self, key: &str) -> Result<[u8; N], ItemError> {
        decode(self.text(key)?).ok_or(ItemError::InvalidBytes)
    }

    /// Unix seconds; a fraction is cut off, and what exceeds 64 bits is as far as 64 bits go.
    pub fn timestamp(&self, key: &str) -> Result<i64, ItemError> {
        let value = self.required(key)?;
        value
            .as_i64()
            .or_else(|| value.as_f64().map(|seconds| seconds as i64))
            .ok_or(ItemError::WrongType)
    }

    /// Absent means false.
    pub fn flag(&self, key: &str) -> Result<bool, ItemError> {
        self.optional(key)
            .map_or(Ok(false), |value| value.as_bool().ok_or(ItemError::WrongType))
    }

    /// In the order given. Upstream cuts 70000 to 16 bits and 1.5 to 1; both are refused here (Q24).
    pub fn namespaces(&self, key: &str) -> Result<Vec<Namespace>, ItemError> {
        let list = self.required(key)?.as_array().ok_or(ItemError::WrongType)?;
        if list.len() > NamespaceSet::MAX {
            return Err(ItemError::TooManyNamespaces);
        }
        list.iter().map(namespace).collect()
    }
}

fn namespace(value: &Value) -> Result<Namespace, ItemError> {
    match value {
        Value::Number(number) => {
            let raw = number.as_i64().and_then(|raw| i16::try_from(raw).ok());
            raw.map(Namespace).ok_or(ItemError::InvalidNamespace)
        }
        Value::Bool(_) => Err(ItemError::InvalidNamespace),
        _ => Err(ItemError::WrongType),
    }
}

pub(super) fn sorted(namespaces: Vec<Namespace>) -> Result<NamespaceSet, ItemError> {
    if namespaces.is_empty() {
        Err(ItemError::NoNamespaces)
    } else if !namespaces.is_sorted() {
        Err(ItemError::UnsortedNamespaces)
    } else {
        // Not empty, not too long and ascending: only a repetition is left to refuse.
        NamespaceSet::new(namespaces).ok_or(ItemError::DuplicateNamespaces)
    }
}

/// What a provider calls the device: `token` of `service_info` (push.md §3 Q28), or the endpoint and keys of a Web Push subscription.
pub(super) fn device_token(service: Service, service_info: &Value) -> Result<DeviceToken, ItemError> {
    let info = service_info.as_object().ok_or(ItemError::InvalidToken)?;
    let bytes = match service {
        Service::Webpush => {
            // A browser's own JSON of a subscription has its keys one level deeper.
            let keys = info.get("keys").and_then(Value::as_object).unwrap_or(info);
            let endpoint = PushEndpoint::parse(
                token_text(info, "endpoint")?,
                token_text(keys, "p256dh")?,
                token_text(keys, "auth")?,
            );
            return endpoint
                .map(|endpoint| endpoint.token())
                .map_err(ItemError::InvalidEndpoint);
        }
        Service::Apns | Service::ApnsSandbox => {
            let text = token_text(info, "token")?;
            APNS_TOKEN_DIGITS
                .contains(&text.len())
                .then(|| hex::decode(text).ok())
                .flatten()
        }
        Service::Firebase => {
            let text = token_text(info, "token")?;
            let plain = text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_:.-".contains(&byte));
            (plain && FIREBASE_TOKEN_CHARACTERS.contains(&text.len())).then(|| text.as_bytes().to_vec())
        }
        Service::Huawei => {
            let text = token_text(info, "token")?;
            let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
            (plain && HUAWEI_TOKEN_CHARACTERS.contains(&text.len())).then(|| text.as_bytes().to_vec())
        }
    };
    bytes.map(DeviceToken::new).ok_or(ItemError::InvalidToken)
}

fn token_text<'a>(info: &'a Map<String, Value>, key: &str) -> Result<&'a str, ItemError> {
    let value = info.get(key).ok_or(ItemError::MissingParameter)?;
    value.as_str().ok_or(ItemError::InvalidToken)
}

/// `N` bytes as hex of any case, as base64 of either alphabet with or without padding, or as a text of just `N` bytes (Q21).
/// The three differ in length for every `N` in use (32, 33, 36, 64).
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() == N {
        return text.as_bytes().try_into().ok();
    }
    if text.len() == 2 * N {
        let mut bytes = [0; N];
        return hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes);
    }
    // Padded base64 is never longer than this; what is longer is not even copied.
    if text.len() > N.div_ceil(3) * 4 {
        return None;
    }
    let standard = text.replace('-', "+").replace('_', "/");
    BASE64.decode(standard).ok()?.try_into().ok()
}

/// Upstream's decoder takes padding or leaves it, and does not look at the bits left over.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Apple's tokens have 64 today, and no length is promised.
const APNS_TOKEN_DIGITS: std::ops::RangeInclusive<usize> = 64..=200;
/// FCM's tokens have about 150 to 300.
const FIREBASE_TOKEN_CHARACTERS: std::ops::RangeInclusive<usize> = 1..=1_000;
/// Push Kit's tokens have about 130, of an alphabet that is nowhere promised.
const HUAWEI_TOKEN_CHARACTERS: std::ops::RangeInclusive<usize> = 1..=1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::EndpointFault;
    use serde_json::json;

    #[test]
    fn bytes_are_read_from_hex_and_both_base64_alphabets_and_raw_text() {
        let bytes: [u8; 32] = std::array::from_fn(|at| 251u8.wrapping_add(at as u8));
        let standard = base64::engine::general_purpose::STANDARD.encode(bytes);
        let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        assert!(standard.contains('+') && url_safe.contains('-'));
        for text in [hex::encode(bytes), hex::encode_upper(bytes), standard.clone(), url_safe] {
            assert_eq!(decode::<32>(&text), Some(bytes));
        }
        assert_eq!(decode::<32>(standard.trim_end_matches('=')), Some(bytes));
        assert_eq!(
            decode::<32>("0123456789abcdef0123456789abcdef"),
            Some(*b"0123456789abcdef0123456789abcdef")
        );
    }

    #[test]
    fn bytes_of_another_length_or_alphabet_are_refused() {
        for text in [
            "",
            "00",
            "zz",
            &"0".repeat(63),
            &"z".repeat(64),
            &"0".repeat(66),
            &"*".repeat(43),
            &"A".repeat(42),
        ] {
            assert_eq!(decode::<32>(text), None);
        }
        assert_eq!(decode::<32>(&"A".repeat(1_000_000)), None);
    }

    #[test]
    fn an_apns_token_is_hex_and_is_kept_as_bytes() {
        let token = |text: &str| device_token(Service::Apns, &json!({ "token": text }));
        assert_eq!(token(&"aB".repeat(32)).unwrap().expose(), [0xab; 32]);
        assert!(token(&"ab".repeat(100)).is_ok());
        for text in ["", &"a".repeat(63), &"a".repeat(65), &"ab".repeat(101), &"z".repeat(64)] {
            assert_eq!(token(text), Err(ItemError::InvalidToken));
        }
    }

    #[test]
    fn a_firebase_token_is_plain_text_of_bounded_length() {
        let token = |text: &str| device_token(Service::Firebase, &json!({ "token": text }));
        assert_eq!(token("c-Ok_1:APA91b.x").unwrap().expose(), b"c-Ok_1:APA91b.x");
        for text in ["", "with space", "line\nbreak", "a/b", "ü", &"a".repeat(1_001)] {
            assert_eq!(token(text), Err(ItemError::InvalidToken));
        }
    }

    #[test]
    fn a_huawei_token_is_any_printable_text_of_bounded_length() {
        let token = |text: &str| device_token(Service::Huawei, &json!({ "token": text }));
        assert_eq!(token("IQAA+/=_-.").unwrap().expose(), b"IQAA+/=_-.");
        for text in ["", "with space", "line\nbreak", "ü", &"a".repeat(1_001)] {
            assert_eq!(token(text), Err(ItemError::InvalidToken));
        }
    }

    #[test]
    fn service_info_must_be_an_object_with_a_token() {
        let token = |info: Value| device_token(Service::Firebase, &info);
        assert_eq!(token(json!("text")), Err(ItemError::InvalidToken));
        assert_eq!(token(json!({})), Err(ItemError::MissingParameter));
        assert_eq!(token(json!({ "token": 5 })), Err(ItemError::InvalidToken));
    }

    #[test]
    fn a_web_push_subscription_is_an_endpoint_with_the_readers_keys() {
        let key = quietline_shared::crypto::P256Key::new(&quietline_shared::redact::Secret::new([7; 32])).unwrap();
        let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let (p256dh, auth) = (url_safe.encode(key.public()), url_safe.encode([9; 16]));
        let token = |info: Value| device_token(Service::Webpush, &info);
        let endpoint = "https://push.example.org/up1";
        let flat = token(json!({ "endpoint": endpoint, "p256dh": p256dh, "auth": auth })).unwrap();
        assert_eq!(
            flat.expose(),
            [key.public().as_slice(), &[9; 16], endpoint.as_bytes()].concat()
        );
        assert_eq!(flat.identity(Service::Webpush), endpoint.as_bytes());
        let browsers =
            json!({ "endpoint": endpoint, "expirationTime": null, "keys": { "p256dh": p256dh, "auth": auth } });
        assert_eq!(token(browsers), Ok(flat));
        for missing in [
            json!({ "p256dh": p256dh, "auth": auth }),
            json!({ "endpoint": endpoint, "auth": auth }),
            json!({ "endpoint": endpoint, "keys": {} }),
        ] {
            assert_eq!(token(missing), Err(ItemError::MissingParameter));
        }
        assert_eq!(
            token(json!({ "endpoint": 5, "p256dh": p256dh, "auth": auth })),
            Err(ItemError::InvalidToken)
        );
        assert_eq!(
            token(json!({ "endpoint": "http://push.example.org/", "p256dh": p256dh, "auth": auth })),
            Err(ItemError::InvalidEndpoint(EndpointFault::NotHttps))
        );
    }

    #[test]
    fn a_namespace_is_an_integer_of_16_bits() {
        let parse = |list: Value| Fields::of(&json!({ "n": list })).unwrap().namespaces("n");
        assert_eq!(
            parse(json!([-32768, 32767])),
            Ok(vec![Namespace(-32768), Namespace(32767)])
        );
        for list in [
            json!([70000]),
            json!([-32769]),
            json!([1.5]),
            json!([1.0]),
            json!([true]),
            json!([u64::MAX]),
        ] {
            assert_eq!(parse(list), Err(ItemError::InvalidNamespace));
        }
        assert_eq!(
            parse(json!((0..257).collect::<Vec<_>>())),
            Err(ItemError::TooManyNamespaces)
        );
        assert_eq!(parse(json!(["0"])), Err(ItemError::WrongType));
    }
}
