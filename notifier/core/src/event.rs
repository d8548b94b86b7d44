//! One swarm notification, parsed and bounded.
//!
//! In: the body of `notify.message`. Out: `MessageEvent` or a named refusal. Never: knows who is subscribed.

use crate::account::{AccountId, MessageHash, Namespace};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use quietline_shared::bencode::{BencodeError, Reader};
use quietline_shared::crypto::blake2b_256;
use std::io::Write;

/// A new message in a swarm, as one storage node reports it.
#[derive(Clone, Debug)]
pub struct MessageEvent {
    pub account: AccountId,
    pub hash: MessageHash,
    pub namespace: Namespace,
    /// Unix milliseconds; may be negative.
    pub timestamp_ms: i64,
    /// Unix milliseconds.
    pub expiry_ms: i64,
    /// Private by what carries it: never in a log; at most [`MAX_BODY`] bytes.
    pub body: Option<Body>,
}

/// Reads a bt-dict with the keys `@` account, `h` hash, `n` namespace, `t` time, `z` expiry and, if asked for, `~` body.
///
/// Keys we do not know are skipped and bytes after the dict are not looked at, as upstream: a later storage server may add to both.
pub fn parse(notification: Bytes) -> Result<MessageEvent, EventRefusal> {
    if notification.len() > MAX_NOTIFICATION {
        return Err(EventRefusal::TooLarge);
    }
    let (mut account, mut hash, mut namespace, mut timestamp_ms, mut expiry_ms, mut body) = Default::default();
    let mut reader = Reader::new(&notification);
    let mut dict = reader.dict()?;
    while let Some(key) = dict.next_key()? {
        let value = dict.value();
        match key {
            b"@" => account = Some(value.bytes()?),
            b"h" => hash = Some(value.bytes()?),
            b"n" => namespace = Some(value.int()?),
            b"t" => timestamp_ms = Some(value.int()?),
            b"z" => expiry_ms = Some(value.int()?),
            b"~" => body = Some(value.bytes()?),
            _ => value.skip()?,
        }
    }
    if body.is_some_and(|body| body.len() > MAX_BODY) {
        return Err(EventRefusal::BodyTooLarge);
    }
    let namespace = i16::try_from(namespace.ok_or(EventRefusal::MissingNamespace)?);
    Ok(MessageEvent {
        account: AccountId::from_slice(account.ok_or(EventRefusal::MissingAccount)?).ok_or(EventRefusal::BadAccount)?,
        hash: MessageHash::from_slice(hash.ok_or(EventRefusal::MissingHash)?).ok_or(EventRefusal::BadHash)?,
        namespace: namespace.map(Namespace).map_err(|_| EventRefusal::BadNamespace)?,
        timestamp_ms: timestamp_ms.ok_or(EventRefusal::MissingTimestamp)?,
        expiry_ms: expiry_ms.ok_or(EventRefusal::MissingExpiry)?,
        body: body.map(|body| Body(notification.slice_ref(body))),
    })
}

impl MessageEvent {
    /// Whether the hash is what storage servers compute for this body: base64 without padding of BLAKE2b-256(account ‖ namespace
    /// as decimal text, nothing for 0 ‖ body). False without a body, and for a formula of a later storage server.
    pub fn hash_verifies(&self) -> bool {
        let Some(Body(body)) = &self.body else { return false };
        // The longest is "-32768".
        let mut decimal = [0u8; 6];
        let mut unwritten = decimal.as_mut_slice();
        if self.namespace != Namespace(0) && write!(unwritten, "{}", self.namespace.0).is_err() {
            return false;
        }
        let unused = unwritten.len();
        let (namespace, _) = decimal.split_at(decimal.len() - unused);
        let digest = blake2b_256(&[self.account.expose(), namespace, body]);
        let mut text = [0u8; 43];
        STANDARD_NO_PAD.encode_slice(digest, &mut text) == Ok(text.len()) && text == self.hash.expose().as_bytes()
    }
}

/// The encrypted message itself.
#[derive(Clone)]
pub struct Body(pub Bytes);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body(<private>)")
    }
}

/// Largest body a storage server keeps: 76,800 bytes.
pub const MAX_BODY: usize = 76_800;

/// Largest notification that is looked at, bytes: the largest body and ample room for keys that are not known yet.
pub const MAX_NOTIFICATION: usize = 128 * 1024;

/// Why a notification is not an event. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventRefusal {
    #[error("larger than {MAX_NOTIFICATION} bytes")]
    TooLarge,
    #[error("not a bt-dict: {0}")]
    Malformed(#[from] BencodeError),
    #[error("no account")]
    MissingAccount,
    #[error("no hash")]
    MissingHash,
    #[error("no namespace")]
    MissingNamespace,
    #[error("no timestamp")]
    MissingTimestamp,
    #[error("no expiry")]
    MissingExpiry,
    #[error("the account is not of 33 bytes")]
    BadAccount,
    #[error("the hash is not a text of {} to {} bytes", MessageHash::MIN, MessageHash::MAX)]
    BadHash,
    #[error("the namespace does not fit in 16 bits")]
    BadNamespace,
    #[error("the body is larger than {MAX_BODY} bytes")]
    BodyTooLarge,
}

impl EventRefusal {
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed(fault) => fault.label(),
            Self::MissingAccount => "missing_account",
            Self::MissingHash => "missing_hash",
            Self::MissingNamespace => "missing_namespace",
            Self::MissingTimestamp => "missing_timestamp",
            Self::MissingExpiry => "missing_expiry",
            Self::BadAccount => "bad_account",
            Self::BadHash => "bad_hash",
            Self::BadNamespace => "bad_namespace",
            Self::BodyTooLarge => "body_too_large",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quietline_shared::bencode::{put_bytes, put_int};

    #[test]
    fn every_key_but_the_body_is_needed() {
        for (left_out, refusal) in [
            (b'@', EventRefusal::MissingAccount),
            (b'h', EventRefusal::MissingHash),
            (b'n', EventRefusal::MissingNamespace),
            (b't', EventRefusal::MissingTimestamp),
            (b'z', EventRefusal::MissingExpiry),
        ] {
            assert_eq!(parse(notification(|key| key != left_out)).unwrap_err(), refusal);
        }
        assert!(parse(notification(|key| key != b'~')).unwrap().body.is_none());
        assert_eq!(parse(notification(|_| true)).unwrap().body.unwrap().0, "hello");
    }

    #[test]
    fn values_of_the_wrong_kind_or_size_are_refused_by_name() {
        let with = |key: u8, value: &[u8]| {
            let mut out = b"d".to_vec();
            for (each, usual) in parts() {
                put_bytes(&mut out, &[each]);
                out.extend_from_slice(if each == key { value } else { &usual });
            }
            out.push(b'e');
            parse(out.into()).map(drop)
        };
        let text = |length: usize| {
            let mut out = Vec::new();
            put_bytes(&mut out, &vec![b'a'; length]);
            out
        };
        assert_eq!(with(b'@', &text(32)), Err(EventRefusal::BadAccount));
        assert_eq!(
            with(b'@', b"i5e"),
            Err(EventRefusal::Malformed(BencodeError::UnexpectedByte))
        );
        assert_eq!(with(b'h', &text(31)), Err(EventRefusal::BadHash));
        assert_eq!(with(b'h', &text(32)), Ok(()));
        assert_eq!(with(b'h', &text(99)), Ok(()));
        assert_eq!(with(b'h', &text(100)), Err(EventRefusal::BadHash));
        assert_eq!(with(b'n', b"i32768e"), Err(EventRefusal::BadNamespace));
        assert_eq!(with(b'n', b"i-32768e"), Ok(()));
        assert_eq!(
            with(b'n', b"1:0"),
            Err(EventRefusal::Malformed(BencodeError::UnexpectedByte))
        );
        assert_eq!(
            with(b'z', b"i9223372036854775808e"),
            Err(EventRefusal::Malformed(BencodeError::BadInteger))
        );
        assert_eq!(with(b'~', &text(MAX_BODY)), Ok(()));
        assert_eq!(with(b'~', &text(MAX_BODY + 1)), Err(EventRefusal::BodyTooLarge));
        assert_eq!(with(b'~', &text(MAX_NOTIFICATION)), Err(EventRefusal::TooLarge));
    }

    #[test]
    fn a_hash_counts_only_for_its_account_namespace_and_body() {
        let event = |namespace: i16, body: &str| {
            let text = if namespace == 0 {
                String::new()
            } else {
                namespace.to_string()
            };
            let digest = blake2b_256(&[&[5; 33], text.as_bytes(), body.as_bytes()]);
            MessageEvent {
                account: AccountId::new([5; 33]),
                hash: MessageHash::from_slice(STANDARD_NO_PAD.encode(digest).as_bytes()).unwrap(),
                namespace: Namespace(namespace),
                timestamp_ms: 0,
                expiry_ms: 0,
                body: Some(Body(body.to_owned().into())),
            }
        };
        for namespace in [0, 1, -11, i16::MIN, i16::MAX] {
            let right = event(namespace, "body");
            assert!(right.hash_verifies());
            assert!(
                !MessageEvent {
                    namespace: Namespace(7),
                    ..right.clone()
                }
                .hash_verifies()
            );
            assert!(
                !MessageEvent {
                    account: AccountId::new([3; 33]),
                    ..right.clone()
                }
                .hash_verifies()
            );
            assert!(
                !MessageEvent {
                    body: Some(Body("Body".into())),
                    ..right.clone()
                }
                .hash_verifies()
            );
            assert!(!MessageEvent { body: None, ..right }.hash_verifies());
        }
    }

    #[test]
    fn an_event_prints_nothing_private() {
        let event = parse(notification(|_| true)).unwrap();
        let printed = format!("{event:?}");
        assert!(
            !printed.contains("hello") && !printed.contains("hhhh") && !printed.contains("5, 5"),
            "{printed}"
        );
    }

    proptest! {
        #[test]
        fn no_notification_panics(bytes: Vec<u8>) {
            let _ = parse(bytes.into()).map(|event| event.hash_verifies());
        }

        #[test]
        fn a_damaged_notification_is_an_event_or_a_refusal(place in 0usize..130, byte: u8, cut in 0usize..140) {
            let mut bytes = notification(|_| true).to_vec();
            if let Some(target) = bytes.get_mut(place) {
                *target = byte;
            }
            bytes.truncate(cut);
            let _ = parse(bytes.into()).map(|event| event.hash_verifies());
        }
    }

    fn notification(keep: impl Fn(u8) -> bool) -> Bytes {
        let mut out = b"d".to_vec();
        for (key, value) in parts().into_iter().filter(|(key, _)| keep(*key)) {
            put_bytes(&mut out, &[key]);
            out.extend_from_slice(&value);
        }
        out.push(b'e');
        out.into()
    }

    fn parts() -> [(u8, Vec<u8>); 6] {
        let text = |bytes: &[u8]| {
            let mut out = Vec::new();
            put_bytes(&mut out, bytes);
            out
        };
        let number = |value: i64| {
            let mut out = Vec::new();
            put_int(&mut out, value);
            out
        };
        [
            (b'@', text(&[5; 33])),
            (b'h', text(&[b'h'; 43])),
            (b'n', number(0)),
            (b't', number(1_700_000_000_123)),
            (b'z', number(1_701_209_600_123)),
            (b'~', text(b"hello")),
        ]
    }
}
