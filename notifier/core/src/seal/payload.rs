//! The text that a client opens: metadata and body in the form its decoder knows, padded with zero bytes.
//!
//! In: a `MessageEvent`. Out: `Payload`. Never: encrypts.

use crate::event::MessageEvent;
use quietline_shared::bencode::{put_bytes, put_int, put_uint};
use std::fmt::Write;

/// Both forms (push.md §3 Q1). With a body: a list of JSON text and body. Without: a list of one **dict**, because clients
/// tell the two apart by it.
pub fn payload(event: &MessageEvent, want_data: bool, limits: Limits) -> Payload {
    let body = event
        .body
        .as_ref()
        .map(|body| &*body.0)
        .filter(|body| want_data && !body.is_empty());
    let with_body = body
        .filter(|body| body.len() <= limits.body)
        .map(|body| text_with_body(event, body))
        .filter(|text| text.len() <= limits.text);
    let too_long = body.is_some() && with_body.is_none();
    Payload {
        with_body,
        without_body: text_without_body(event, body.map(<[u8]>::len)),
        too_long,
    }
}

/// The forms of one wakeup, not padded yet.
#[derive(PartialEq, Eq)]
pub struct Payload {
    /// `None` if there is no body, the device wants none, or it is too long.
    pub with_body: Option<Vec<u8>>,
    pub without_body: Vec<u8>,
    /// There is a body for the device, but it is too long to be carried.
    pub too_long: bool,
}

/// What a wakeup can carry, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub body: usize,
    /// Metadata and body together. The escapes of JSON can make a hash of 99 bytes six times as long.
    pub text: usize,
}

impl Limits {
    /// Upstream's limit for the body (push.md §3 Q3); what follows from the two fits every provider.
    pub const OF_PROVIDERS: Self = Self {
        body: 2_500,
        text: LARGE,
    };
}

/// How much the length of a wakeup tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Two sizes only: 512 or 2,816 bytes.
    TwoClasses,
    /// The next multiple of 256, as the incumbent.
    Upstream,
}

impl Padding {
    /// Clients cut zero bytes off the end (push.md §0.14). What ends exactly on a size gets none.
    pub fn pad(self, mut text: Vec<u8>) -> Vec<u8> {
        let size = match self {
            Self::TwoClasses if text.len() <= SMALL => SMALL,
            Self::TwoClasses if text.len() <= LARGE => LARGE,
            Self::TwoClasses | Self::Upstream => text.len().next_multiple_of(STEP),
        };
        text.resize(size, 0);
        text
    }
}

fn text_with_body(event: &MessageEvent, body: &[u8]) -> Vec<u8> {
    let metadata = format!(
        "{{\"@\": \"{account}\", \"#\": {hash}, \"n\": {namespace}, \"t\": {timestamp}, \"z\": {expiry}, \"l\": {length}}}",
        account = hex::encode(event.account.expose()),
        hash = json_text(event.hash.expose()),
        namespace = event.namespace.0,
        timestamp = event.timestamp_ms,
        expiry = event.expiry_ms,
        length = body.len(),
    );
    let mut text = Vec::with_capacity(LARGE);
    text.push(b'l');
    put_bytes(&mut text, metadata.as_bytes());
    put_bytes(&mut text, body);
    text.push(b'e');
    text
}

/// `length`: of the body that is left out, if the device asked for one.
pub(super) fn text_without_body(event: &MessageEvent, length: Option<usize>) -> Vec<u8> {
    let mut text = Vec::with_capacity(SMALL);
    // Keys ascend: # @ B l n t z.
    text.extend_from_slice(b"ld");
    put_bytes(&mut text, b"#");
    put_bytes(&mut text, event.hash.expose().as_bytes());
    put_bytes(&mut text, b"@");
    put_bytes(&mut text, hex::encode(event.account.expose()).as_bytes());
    if let Some(length) = length {
        // iOS reads this as a number; the JSON `true` would mean "not too long" to it.
        put_bytes(&mut text, b"B");
        put_int(&mut text, 1);
        put_bytes(&mut text, b"l");
        put_uint(&mut text, u64::try_from(length).unwrap_or(u64::MAX));
    }
    put_bytes(&mut text, b"n");
    put_int(&mut text, i64::from(event.namespace.0));
    put_bytes(&mut text, b"t");
    put_int(&mut text, event.timestamp_ms);
    put_bytes(&mut text, b"z");
    put_int(&mut text, event.expiry_ms);
    text.extend_from_slice(b"ee");
    text
}

/// A JSON string in ASCII, with the escapes that Python's `json.dumps` chooses, as upstream's payloads have them.
fn json_text(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            ' '..='~' => json.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(json, "\\u{unit:04x}");
                }
            }
        }
    }
    json.push('"');
    json
}

/// The two sizes. The larger holds the longest body with the longest usual metadata; sealed and in base64 it is 3,808
/// characters, and providers take 4,096.
const SMALL: usize = 512;
const LARGE: usize = 2_816;
const STEP: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_text_escapes_as_python_does() {
        assert_eq!(json_text("a\"\\/\n\r\t\u{8}\u{c}"), r#""a\"\\/\n\r\t\b\f""#);
        assert_eq!(
            json_text("\u{1}\u{1f}\u{7f}é€😀"),
            r#""\u0001\u001f\u007f\u00e9\u20ac\ud83d\ude00""#
        );
    }

    #[test]
    fn two_classes_leave_two_lengths() {
        let padded = |length| Padding::TwoClasses.pad(vec![1; length]).len();
        assert_eq!([1, 512].map(padded), [512; 2]);
        assert_eq!([513, 2_816].map(padded), [2_816; 2]);
    }

    #[test]
    fn upstreams_padding_is_the_next_multiple_of_256() {
        let padded = |length| Padding::Upstream.pad(vec![1; length]).len();
        assert_eq!([1, 256, 257, 512, 2_561].map(padded), [256, 256, 512, 512, 2_816]);
    }
}
