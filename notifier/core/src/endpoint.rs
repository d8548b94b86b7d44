//! Where a Web Push subscription leads, and who can read what is sent there (RFC 8030, RFC 8291 §3.1).
//!
//! In: the three texts of a subscription. Out: [`PushEndpoint`], parsed once. Never: resolves a name, or judges an address: that is
//! done when a connection is made.

use crate::account::DeviceToken;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use quietline_shared::crypto::is_p256_point;
use quietline_shared::redact::{Private, Secret};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A push resource on a push server, and the keys of the one who reads there.
pub struct PushEndpoint {
    origin: Origin,
    /// From the first slash on; visible ASCII.
    path: Private<Box<str>>,
    /// The reader's P-256 point, uncompressed (`p256dh`).
    pub public: Private<[u8; 65]>,
    /// The secret shared with the reader (`auth`).
    pub auth: Secret<[u8; 16]>,
}

/// Scheme, host and port of an endpoint: one server, with one lane and one VAPID audience. The scheme is `https`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    host: Private<Host>,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Lower case; ASCII, so a name of other letters stands in its `xn--` form.
    Name(Box<str>),
    Address(IpAddr),
}

/// Why an endpoint or its keys are none. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointFault {
    TooLong,
    NotHttps,
    /// `user@` or `user:password@`: a URL that carries somebody's credentials is not ours to use.
    Credentials,
    Host,
    Port,
    Path,
    PublicKey,
    Auth,
    /// A good one, but not one that is contacted from here.
    NotAllowed,
}

impl EndpointFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLong => "endpoint_too_long",
            Self::NotHttps => "endpoint_not_https",
            Self::Credentials => "endpoint_credentials",
            Self::Host => "endpoint_host",
            Self::Port => "endpoint_port",
            Self::Path => "endpoint_path",
            Self::PublicKey => "endpoint_p256dh",
            Self::Auth => "endpoint_auth",
            Self::NotAllowed => "endpoint_not_allowed",
        }
    }
}

impl PushEndpoint {
    /// `p256dh` and `auth` in base64url, with padding or without.
    pub fn parse(endpoint: &str, p256dh: &str, auth: &str) -> Result<Self, EndpointFault> {
        let (origin, path) = split(endpoint)?;
        let public = decode(p256dh).filter(is_p256_point).ok_or(EndpointFault::PublicKey)?;
        let auth = decode(auth).ok_or(EndpointFault::Auth)?;
        Ok(Self {
            origin,
            path: Private::new(path.into()),
            public: Private::new(public),
            auth: Secret::new(auth),
        })
    }

    /// As rows and queues hold it: public(65) auth(16) endpoint.
    pub fn token(&self) -> DeviceToken {
        let mut bytes = Vec::with_capacity(DeviceToken::WEB_PUSH_KEYS + ENDPOINT_MAX);
        bytes.extend_from_slice(self.public.expose());
        bytes.extend_from_slice(self.auth.expose());
        bytes.extend_from_slice(self.to_url().expose().as_bytes());
        DeviceToken::new(bytes)
    }

    /// The way back. `None` if the token is not one of Web Push.
    pub fn of_token(token: &DeviceToken) -> Option<Self> {
        let (public, rest) = token.expose().split_first_chunk()?;
        let (auth, url) = rest.split_first_chunk()?;
        let (origin, path) = split(std::str::from_utf8(url).ok()?).ok()?;
        Some(Self {
            origin,
            path: Private::new(path.into()),
            public: Private::new(*public),
            auth: Secret::new(*auth),
        })
    }

    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Path and query.
    pub fn path(&self) -> &str {
        self.path.expose()
    }

    /// Its one form: scheme and host in lower case, no port where it is 443.
    pub fn to_url(&self) -> Private<String> {
        Private::new(format!("{}{}", self.origin.ascii().expose(), self.path.expose()))
    }
}

impl fmt::Debug for PushEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushEndpoint(<private>)")
    }
}

impl Origin {
    pub const fn host(&self) -> &Host {
        self.host.expose()
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `https://host` or `https://host:port` (RFC 6454 §6.2): the audience of a VAPID token.
    pub fn ascii(&self) -> Private<String> {
        Private::new(format!("https://{}", self.authority().expose()))
    }

    /// `host` or `host:port`.
    pub fn authority(&self) -> Private<String> {
        let host = match self.host() {
            Host::Name(name) => name.to_string(),
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
        };
        Private::new(match self.port {
            HTTPS => host,
            port => format!("{host}:{port}"),
        })
    }
}

fn split(endpoint: &str) -> Result<(Origin, &str), EndpointFault> {
    if endpoint.len() > ENDPOINT_MAX {
        return Err(EndpointFault::TooLong);
    }
    let rest = endpoint
        .split_at_checked(SCHEME.len())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME));
    let (_, rest) = rest.ok_or(EndpointFault::NotHttps)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(EndpointFault::Credentials);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (address, after) = bracketed.split_once(']').ok_or(EndpointFault::Host)?;
            let address: Ipv6Addr = address.parse().map_err(|_| EndpointFault::Host)?;
            (Host::Address(address.into()), after)
        }
        None => {
            let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (host(name).ok_or(EndpointFault::Host)?, port)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => HTTPS,
        Some(digits) if (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(EndpointFault::Port)?,
        _ => return Err(EndpointFault::Port),
    };
    let in_path = |byte: u8| byte.is_ascii_graphic() && !b"#\\\"<>^`{|}".contains(&byte);
    if !path.starts_with('/') || !path.bytes().all(in_path) {
        return Err(EndpointFault::Path);
    }
    let host = Private::new(host);
    Ok((Origin { host, port }, path))
}

/// A name of at least two labels, or an IPv4 address in its usual form. What only some software takes for an address (`127.1`,
/// `0x7f.0.0.1`, `2130706433`) is neither.
fn host(text: &str) -> Option<Host> {
    let name = text.to_ascii_lowercase();
    let is_label = |label: &str| {
        let plain = label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte));
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return None;
    }
    let (_, last) = name.rsplit_once('.')?;
    if last.starts_with(|first: char| first.is_ascii_digit()) {
        return name
            .parse::<Ipv4Addr>()
            .ok()
            .map(|address| Host::Address(address.into()));
    }
    Some(Host::Name(name.into()))
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Padded base64 is never longer than this; what is longer is not even copied.
    if text.len() > N.div_ceil(3) * 4 {
        return None;
    }
    BASE64_URL.decode(text).ok()?.try_into().ok()
}

const BASE64_URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Longest endpoint, bytes: what UnifiedPush allows.
pub const ENDPOINT_MAX: usize = 1_000;
const SCHEME: &str = "https://";
const HTTPS: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use quietline_shared::crypto::P256Key;

    fn keys() -> (String, String) {
        let key = P256Key::new(&Secret::new([7; 32])).unwrap();
        (URL_SAFE_NO_PAD.encode(key.public()), URL_SAFE_NO_PAD.encode([9; 16]))
    }

    fn parse(endpoint: &str) -> Result<PushEndpoint, EndpointFault> {
        let (p256dh, auth) = keys();
        PushEndpoint::parse(endpoint, &p256dh, &auth)
    }

    fn fault(endpoint: &str) -> EndpointFault {
        parse(endpoint).map(|_| ()).unwrap_err()
    }

    #[test]
    fn an_endpoint_has_one_form_and_one_origin() {
        for (given, url, origin, port) in [
            (
                "https://push.example.org/upX?up=1",
                "https://push.example.org/upX?up=1",
                "https://push.example.org",
                443,
            ),
            (
                "HTTPS://Push.Example.ORG:443/a",
                "https://push.example.org/a",
                "https://push.example.org",
                443,
            ),
            ("https://a.b:8443/", "https://a.b:8443/", "https://a.b:8443", 8443),
            ("https://a.b:08443/", "https://a.b:8443/", "https://a.b:8443", 8443),
            ("https://9.9.9.9/x", "https://9.9.9.9/x", "https://9.9.9.9", 443),
            (
                "https://[2A00:0::1]:444/x",
                "https://[2a00::1]:444/x",
                "https://[2a00::1]:444",
                444,
            ),
            (
                "https://xn--mnchen-3ya.de/x",
                "https://xn--mnchen-3ya.de/x",
                "https://xn--mnchen-3ya.de",
                443,
            ),
        ] {
            let made = parse(given).unwrap();
            assert_eq!(made.to_url().expose(), url);
            assert_eq!(made.origin().ascii().expose(), origin);
            assert_eq!(made.origin().port(), port);
            let again = PushEndpoint::of_token(&made.token()).unwrap();
            assert_eq!(again.token(), made.token());
        }
    }

    #[test]
    fn what_is_no_plain_https_url_is_refused_by_name() {
        use EndpointFault::{Credentials, Host, NotHttps, Path, Port, TooLong};
        for (given, expected) in [
            ("", NotHttps),
            ("http://push.example.org/x", NotHttps),
            ("ftp://push.example.org/x", NotHttps),
            ("https:/push.example.org/x", NotHttps),
            (" https://push.example.org/x", NotHttps),
            ("https://user@push.example.org/x", Credentials),
            ("https://user:word@push.example.org/x", Credentials),
            ("https://push.example.org:443@127.0.0.1/x", Credentials),
            ("https:///x", Host),
            ("https://localhost/x", Host),
            ("https://münchen.de/x", Host),
            ("https://push.example.org./x", Host),
            ("https://push..example.org/x", Host),
            ("https://-push.example.org/x", Host),
            ("https://push.exa mple.org/x", Host),
            ("https://push.example.org%2f@evil/x", Credentials),
            ("https://push%2eexample.org/x", Host),
            ("https://127.1/x", Host),
            ("https://0x7f.0.0.1/x", Host),
            ("https://0177.0.0.1/x", Host),
            ("https://2130706433/x", Host),
            ("https://1.2.3.4.5/x", Host),
            ("https://127.0.0.0x1/x", Host),
            ("https://[::1/x", Host),
            ("https://[fe80::1%25eth0]/x", Host),
            ("https://[::ffff:127.0.0.1%lo]/x", Host),
            ("https://::1/x", Host),
            ("https://a.b:0/x", Port),
            ("https://a.b:65536/x", Port),
            ("https://a.b:/x", Port),
            ("https://a.b:+443/x", Port),
            ("https://a.b:4 43/x", Port),
            ("https://[2a00::1]443/x", Port),
            ("https://a.b", Path),
            ("https://a.b?x", Path),
            ("https://a.b\\@c.d/x", Path),
            ("https://a.b/x#y", Path),
            ("https://a.b/x y", Path),
            ("https://a.b/x\r\nHost: c.d", Path),
            ("https://a.b/\u{0}", Path),
            ("https://a.b/ü", Path),
        ] {
            assert_eq!(fault(given), expected, "{given:?}");
        }
        assert_eq!(fault(&format!("https://a.b/{}", "x".repeat(10_240))), TooLong);
        let name = format!("https://{}.de/x", vec!["a".repeat(60); 5].join("."));
        assert_eq!(fault(&name), Host, "a name has at most 253 characters");
        let longest = format!("https://a.b/{}", "x".repeat(ENDPOINT_MAX - 12));
        assert!(parse(&longest).is_ok());
        assert_eq!(fault(&format!("{longest}x")), TooLong);
    }

    #[test]
    fn keys_are_a_point_and_16_bytes() {
        let (p256dh, auth) = keys();
        let fault = |p256dh: &str, auth: &str| PushEndpoint::parse("https://a.b/x", p256dh, auth).map(|_| ());
        assert_eq!(fault(&p256dh, &auth), Ok(()));
        assert_eq!(fault(&format!("{p256dh}="), &format!("{auth}==")), Ok(()));
        let compressed = URL_SAFE_NO_PAD.encode([[2; 1].as_slice(), &[7; 32]].concat());
        let off_curve = URL_SAFE_NO_PAD.encode([4; 65]);
        for bad in ["", "AAAA", "not base64!", &compressed, &off_curve, &"A".repeat(10_240)] {
            assert_eq!(fault(bad, &auth), Err(EndpointFault::PublicKey), "{bad}");
        }
        for bad in [
            "",
            "AAAA",
            &"A".repeat(23),
            &"A".repeat(10_240),
            "+/+/+/+/+/+/+/+/+/+/+/",
        ] {
            assert_eq!(fault(&p256dh, bad), Err(EndpointFault::Auth), "{bad}");
        }
    }

    #[test]
    fn nothing_of_it_prints() {
        let made = parse("https://canary.example.org:444/canary").unwrap();
        let printed = format!("{made:?} {:?} {:?} {:?}", made.origin(), made.token(), made.to_url());
        assert!(!printed.contains("canary"), "{printed}");
    }

    proptest! {
        #[test]
        fn any_text_is_an_endpoint_or_a_refusal(tail in "(https://)?[\\[\\]:@/.a-z0-9%#?\\\\-]{0,40}", junk in ".{0,40}") {
            for text in [&tail, &junk, &format!("https://{junk}"), &format!("https://a.b/{junk}")] {
                if let Ok(made) = parse(text) {
                    let url = made.to_url();
                    prop_assert_eq!(parse(url.expose()).unwrap().to_url(), url, "one form");
                }
            }
        }

        #[test]
        fn any_token_is_one_of_web_push_or_not(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = PushEndpoint::of_token(&DeviceToken::new(bytes));
        }
    }
}
