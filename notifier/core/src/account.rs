//! Who is woken and by whom: ids parsed once and private by type.
//!
//! In: bytes. Out: `AccountId`, `Namespace`, `NamespaceSet`, `MessageHash`, `Service`, `DeviceToken`. Never: text for a log.

use quietline_shared::redact::Private;
use std::sync::Arc;

/// An account: one prefix byte (05 for a person, others for groups) and a 32-byte public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(Private<[u8; 33]>);

/// The prefix of a person's account; its key is X25519, all other prefixes carry an Ed25519 key.
pub const SESSION_PREFIX: u8 = 0x05;

impl AccountId {
    pub const fn new(bytes: [u8; 33]) -> Self {
        Self(Private::new(bytes))
    }

    /// `None` unless `bytes` are exactly 33.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::new)
    }

    pub const fn expose(&self) -> &[u8; 33] {
        self.0.expose()
    }

    pub fn prefix(&self) -> u8 {
        let [prefix, ..] = *self.expose();
        prefix
    }

    pub fn is_session(&self) -> bool {
        self.prefix() == SESSION_PREFIX
    }

    /// The 32 bytes after the prefix.
    pub fn key(&self) -> &[u8; 32] {
        let [_, key @ ..] = self.expose();
        key
    }
}

/// A message namespace of the storage network; negative ones exist (-11 = revoked group messages).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(pub i16);

/// The namespaces one device asked for: at least one, strictly ascending, at most [`NamespaceSet::MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceSet(Arc<[Namespace]>);

impl NamespaceSet {
    /// More than any client asks for (they ask for 1 to 5); the golden data has 100.
    pub const MAX: usize = 256;

    /// `None` if empty, unsorted, repeated or longer than [`Self::MAX`].
    pub fn new(namespaces: impl Into<Arc<[Namespace]>>) -> Option<Self> {
        let namespaces = namespaces.into();
        let ascending = namespaces.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
        (!namespaces.is_empty() && namespaces.len() <= Self::MAX && ascending).then_some(Self(namespaces))
    }

    pub fn as_slice(&self) -> &[Namespace] {
        &self.0
    }

    pub fn contains(&self, namespace: Namespace) -> bool {
        self.0.binary_search(&namespace).is_ok()
    }

    pub fn is_superset(&self, other: &Self) -> bool {
        other.0.iter().all(|namespace| self.contains(*namespace))
    }
}

/// The storage server's name for a message: 32 to 99 bytes of UTF-8 text, today 43 of unpadded base64.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MessageHash(Private<Box<str>>);

impl MessageHash {
    pub const MIN: usize = 32;
    pub const MAX: usize = 99;

    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        (Self::MIN..=Self::MAX)
            .contains(&bytes.len())
            .then(|| Self(Private::new(text.into())))
    }

    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// Who carries the wakeup. The names are those clients send in `service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Service {
    Apns = 1,
    ApnsSandbox = 2,
    Firebase = 3,
    /// Web Push (RFC 8030), UnifiedPush among it.
    Webpush = 4,
    Huawei = 5,
}

impl Service {
    pub const ALL: [Self; 5] = [
        Self::Apns,
        Self::ApnsSandbox,
        Self::Firebase,
        Self::Webpush,
        Self::Huawei,
    ];

    /// How many there are; what is kept for each is an array of so many, in the order of [`Self::ALL`].
    pub const COUNT: usize = Self::ALL.len();

    /// Its place in [`Self::ALL`].
    pub const fn place(self) -> usize {
        match self {
            Self::Apns => 0,
            Self::ApnsSandbox => 1,
            Self::Firebase => 2,
            Self::Webpush => 3,
            Self::Huawei => 4,
        }
    }

    /// Case counts, as upstream.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// As on the wire and in metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apns => "apns",
            Self::ApnsSandbox => "apns-sandbox",
            Self::Firebase => "firebase",
            Self::Huawei => "huawei",
            Self::Webpush => "webpush",
        }
    }

    /// The number in a row. Numbers are never reused.
    pub const fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.code() == code)
    }
}

/// A provider's name for one device: for APNs 32 to 100 raw bytes (hex decoded), for FCM and Huawei its text, for Web Push the
/// reader's keys and the endpoint ([`PushEndpoint`](crate::endpoint::PushEndpoint)).
///
/// The bytes are what the provider's own form decodes to, so that one device has one form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceToken(Private<Box<[u8]>>);

impl DeviceToken {
    /// The most bytes of any token.
    pub const MAX: usize = 1_081;
    /// Bytes of the reader's keys before a Web Push endpoint.
    pub const WEB_PUSH_KEYS: usize = 81;

    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(Private::new(bytes.into()))
    }

    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// What tells one device from another. For Web Push the endpoint alone: keys that changed make no second device.
    pub fn identity(&self, service: Service) -> &[u8] {
        Self::identity_of(service, self.expose())
    }

    /// As [`identity`](Self::identity), of a token's bytes.
    pub fn identity_of(service: Service, token: &[u8]) -> &[u8] {
        match service {
            Service::Webpush => token.get(Self::WEB_PUSH_KEYS..).unwrap_or(token),
            Service::Apns | Service::ApnsSandbox | Service::Firebase | Service::Huawei => token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_their_places_and_numbers() {
        for (place, service) in Service::ALL.into_iter().enumerate() {
            assert_eq!(service.place(), place);
            assert_eq!(Service::from_code(service.code()), Some(service));
            assert_eq!(Service::from_name(service.name()), Some(service));
        }
    }

    #[test]
    fn namespaces_must_ascend_and_not_be_empty() {
        let set = |raw: &[i16]| NamespaceSet::new(raw.iter().map(|n| Namespace(*n)).collect::<Vec<_>>());
        assert!(set(&[-400, 0, 1]).is_some());
        assert!(set(&[]).is_none());
        assert!(set(&[1, 1]).is_none());
        assert!(set(&[2, 1]).is_none());
    }

    #[test]
    fn an_account_prints_as_nothing() {
        assert_eq!(format!("{:?}", AccountId::new([5; 33])), "AccountId(<private>)");
    }
}
