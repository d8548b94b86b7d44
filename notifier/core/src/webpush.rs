//! A sealed wakeup as a Web Push message: encrypted for the reader (RFC 8291, RFC 8188), and who we are to a push server (RFC 8292).
//!
//! In: a `PushEndpoint`, sealed bytes, randomness, the clock. Out: a body of one of three lengths, the words of its headers, a VAPID
//! token. Never: sends, draws a key, or opens what is sealed.

mod guard;
mod origins;

pub use guard::{Guard, GuardRefusal};
pub use origins::{Admission, Death, OriginSettings, Origins, Ticket, Verdict};

use crate::endpoint::{Origin, PushEndpoint};
use crate::seal::Priority;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use quietline_shared::crypto::{P256Key, aes_128_gcm_seal_in_place, hkdf_sha256};
use quietline_shared::redact::Secret;

/// What the reader of a push opens.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// The client's usual map: `enc_payload` holds the sealed bytes, as at every other service.
    Wakeup(&'a [u8]),
    /// Asks the push server whether the endpoint lives. A client does nothing with it.
    Check,
}

/// Encrypts one message for one reader. `random`: a salt and a private key of this message alone.
///
/// `None` if the random key is no key (one of 2³² is none: draw again) or the message is longer than any that a push server takes.
pub fn encrypt(endpoint: &PushEndpoint, message: Message<'_>, random: &Secret<[u8; 48]>) -> Option<Vec<u8>> {
    let (salt, scalar) = random.expose().split_first_chunk::<SALT>()?;
    let key = P256Key::new(&Secret::new(scalar.try_into().ok()?))?;
    let text = text(message);
    let padded = CLASSES.into_iter().find(|class| text.len() <= *class)?;
    Some(encrypt_with(endpoint, text, padded, salt, &key)?.1)
}

/// The header with the ciphertext; and where the latter starts.
fn encrypt_with(
    endpoint: &PushEndpoint,
    mut text: Vec<u8>,
    padded: usize,
    salt: &[u8; SALT],
    key: &P256Key,
) -> Option<(usize, Vec<u8>)> {
    let theirs = endpoint.public.expose();
    let shared = key.agree(theirs)?;
    let info: [&[u8]; 3] = [b"WebPush: info\0", theirs, key.public()];
    let secret = hkdf_sha256::<32>(endpoint.auth.expose(), shared.expose(), &info);
    let content_key = hkdf_sha256::<16>(salt, secret.expose(), &[b"Content-Encoding: aes128gcm\0"]);
    let nonce = hkdf_sha256::<12>(salt, secret.expose(), &[b"Content-Encoding: nonce\0"]);
    // The last record's delimiter, and zeros behind it (RFC 8188 §2).
    text.push(2);
    text.resize(padded + 1, 0);
    aes_128_gcm_seal_in_place(&content_key, nonce.expose(), &mut text);
    let mut body = Vec::with_capacity(HEADER + text.len());
    body.extend_from_slice(salt);
    body.extend_from_slice(&RECORD_SIZE.to_be_bytes());
    body.push(KEY_ID);
    body.extend_from_slice(key.public());
    let start = body.len();
    body.extend_from_slice(&text);
    Some((start, body))
}

fn text(message: Message<'_>) -> Vec<u8> {
    match message {
        Message::Wakeup(sealed) => {
            let mut text = String::with_capacity(PREFIX.len() + sealed.len().div_ceil(3) * 4 + SUFFIX.len());
            text.push_str(PREFIX);
            STANDARD.encode_string(sealed, &mut text);
            text.push_str(SUFFIX);
            text.into_bytes()
        }
        Message::Check => CHECK.as_bytes().to_vec(),
    }
}

/// The word of `Urgency` (RFC 8030 §5.3).
pub const fn urgency(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Normal => "normal",
    }
}

/// The word of `Topic` (RFC 8030 §5.4) for wakeups of which the newest alone is worth something. It is the same for everybody.
pub const TOPIC: &str = "something-came";

/// Who we are to push servers: a key, and where an operator can be asked about us.
#[derive(Debug)]
pub struct Vapid {
    key: P256Key,
    contact: Box<str>,
}

impl Vapid {
    /// `contact`: `mailto:` or `https:`. `None` for any other, or one that does not fit into a header, or a secret that is no key.
    pub fn new(secret: &Secret<[u8; 32]>, contact: &str) -> Option<Self> {
        let is_uri = contact.starts_with("mailto:") || contact.starts_with("https://");
        let is_plain = contact
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte));
        if !is_uri || !is_plain || contact.len() > CONTACT_MAX {
            return None;
        }
        Some(Self {
            key: P256Key::new(secret)?,
            contact: contact.into(),
        })
    }

    /// The public key as clients give it to their push service: 87 characters.
    pub fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.key.public())
    }

    /// The value of `Authorization` for one origin (RFC 8292 §3), good until `expires_at` (Unix seconds).
    pub fn authorization(&self, origin: &Origin, expires_at: i64) -> Option<Secret<String>> {
        // Origin and contact hold nothing that JSON would have to escape.
        let claims = format!(
            r#"{{"aud":"{}","exp":{expires_at},"sub":"{}"}}"#,
            origin.ascii().expose(),
            self.contact
        );
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ES256"}"#),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes())?);
        Some(Secret::new(format!(
            "vapid t={signed}.{signature}, k={}",
            self.public_key()
        )))
    }
}

/// How long a VAPID token is good, and for how long it is used, seconds. A push server refuses more than a day.
pub const VAPID_LIFE: i64 = 12 * 3600;
pub const VAPID_USE: i64 = 6 * 3600;

const PREFIX: &str = r#"{"enc_payload":""#;
const SUFFIX: &str = r#"","spns":"1"}"#;
/// Without `enc_payload` and without `spns`: no client takes it for a wakeup.
const CHECK: &str = r#"{"check":"1"}"#;

/// Lengths of a text before encryption: a wakeup of the smaller and of the larger class of [`Padding`](crate::seal::Padding), and the
/// longest that fits. A check is as long as a small wakeup.
const CLASSES: [usize; 3] = [765, 3_837, BODY_MAX - HEADER - 1 - TAG];

/// What every push server takes (RFC 8030 §7.2), bytes.
pub const BODY_MAX: usize = 4_096;
const SALT: usize = 16;
const TAG: usize = 16;
/// Salt, record size, length of the key id, key id.
const HEADER: usize = SALT + 4 + 1 + 65;
/// One record holds any message; what it says is the same for all.
const RECORD_SIZE: u32 = 4_096;
const KEY_ID: u8 = 65;
const CONTACT_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn url_safe<const N: usize>(text: &str) -> [u8; N] {
        URL_SAFE_NO_PAD.decode(text).unwrap().try_into().unwrap()
    }

    fn endpoint(url: &str) -> PushEndpoint {
        PushEndpoint::parse(
            url,
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
        )
        .unwrap()
    }

    /// RFC 8291 §5 and Appendix A.
    #[test]
    fn the_example_of_rfc_8291_is_encrypted_byte_for_byte() {
        let key = P256Key::new(&Secret::new(url_safe("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"))).unwrap();
        let text = b"When I grow up, I want to be a watermelon".to_vec();
        let length = text.len();
        let salt = url_safe("DGv6ra1nlYgDCS1FRnbzlw");
        let (_, body) = encrypt_with(&endpoint("https://a.b/x"), text, length, &salt, &key).unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.encode(body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_\
             yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
        );
    }

    #[test]
    fn a_message_has_one_of_three_lengths_and_never_more_than_4096() {
        let length = |message: Message<'_>| {
            let made = encrypt(&endpoint("https://a.b/x"), message, &Secret::new([7; 48]));
            made.map(|body| body.len())
        };
        let wakeup = |sealed: usize| length(Message::Wakeup(&vec![0; sealed]));
        assert_eq!(wakeup(40 + 512), Some(868));
        assert_eq!(wakeup(40 + 2_816), Some(3_940));
        assert_eq!([wakeup(1), length(Message::Check)], [Some(868); 2]);
        assert_eq!([wakeup(40 + 513), wakeup(40 + 2_815)], [Some(3_940); 2]);
        assert_eq!([wakeup(2_857), wakeup(2_973)], [Some(BODY_MAX); 2]);
        assert_eq!(wakeup(2_974), None);
    }

    #[test]
    fn a_random_key_that_is_none_asks_for_another() {
        let mut random = [0; 48];
        assert!(encrypt(&endpoint("https://a.b/x"), Message::Check, &Secret::new(random)).is_none());
        random[16..].fill(0xFF);
        assert!(encrypt(&endpoint("https://a.b/x"), Message::Check, &Secret::new(random)).is_none());
    }

    #[test]
    fn the_topic_is_one_that_servers_take() {
        assert!(
            TOPIC.len() <= 32
                && TOPIC
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        );
    }

    #[test]
    fn a_vapid_token_names_the_origin_with_its_port() {
        let vapid = Vapid::new(&Secret::new([5; 32]), "mailto:push@example.org").unwrap();
        let header = vapid
            .authorization(endpoint("https://a.b:8443/x").origin(), 1_800_000_000)
            .unwrap();
        let (token, key) = header
            .expose()
            .strip_prefix("vapid t=")
            .unwrap()
            .split_once(", k=")
            .unwrap();
        assert_eq!(key, vapid.public_key());
        assert_eq!(key.len(), 87);
        let parts: Vec<_> = token
            .split('.')
            .map(|part| URL_SAFE_NO_PAD.decode(part).unwrap())
            .collect();
        assert_eq!(parts[0], br#"{"typ":"JWT","alg":"ES256"}"#);
        assert_eq!(
            std::str::from_utf8(&parts[1]).unwrap(),
            r#"{"aud":"https://a.b:8443","exp":1800000000,"sub":"mailto:push@example.org"}"#
        );
        assert_eq!(parts[2].len(), 64);
    }

    #[test]
    fn a_contact_is_a_plain_mail_or_web_address() {
        let vapid = |contact: &str| Vapid::new(&Secret::new([5; 32]), contact).is_some();
        assert!(vapid("mailto:a@b.c") && vapid("https://b.c/push"));
        for bad in [
            "",
            "a@b.c",
            "http://b.c",
            "mailto:a b",
            "mailto:\"",
            "mailto:\r\n",
            &format!("mailto:{}", "x".repeat(200)),
        ] {
            assert!(!vapid(bad), "{bad}");
        }
        assert!(Vapid::new(&Secret::new([0; 32]), "mailto:a@b.c").is_none());
    }
}
