//! Who may ask: long-term credentials, static or timed, and nonces without state.
//!
//! In: one request's [`Attributes`], where it came from, the time. Out: [`Verified`], or the [`Denied`] that names the answer. Never:
//! keeps anything about a client, tells an unknown user from a wrong password by answer, size or time, or checks an expiry: that is for
//! an Allocate alone.
//!
//! RFC 8489 §9.2; timed credentials as [`quietline_shared::timed`] makes them.

use crate::attributes::{Attributes, Integrity};
use crate::time::Now;
use crate::wire::{FiveTuple, Message, Writer};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use md5::{Digest, Md5};
use quietline_shared::crypto::{hmac_sha1, hmac_sha256, keyed_hash_16};
use quietline_shared::redact::Secret;
use quietline_shared::timed::{TimedSecret, expiry, is_placeholder};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Checks one request, in the order of RFC 8489 §9.2.4. `known` is what the source's allocation was made with: its key stays good
/// when users and secrets are exchanged, so that a reload ends no call.
pub fn authenticate(
    message: &Message<'_>,
    attributes: &Attributes<'_>,
    from: &FiveTuple,
    credentials: &Credentials,
    nonces: &Nonces,
    known: Option<(UserId, &Key)>,
    now: Now,
) -> Result<Verified, Denied> {
    let integrity = Presented::of(message, attributes).ok_or(Denied::NoIntegrity)?;
    let name = match (attributes.username, attributes.userhash) {
        (Some(username), _) => Name::Plain(username),
        (None, Some(hash)) => Name::Hashed(hash),
        (None, None) => return Err(Denied::Incomplete),
    };
    let (Some(_), Some(nonce)) = (attributes.realm, attributes.nonce) else {
        return Err(Denied::Incomplete);
    };
    let algorithm = chosen_algorithm(attributes).ok_or(Denied::Algorithms)?;
    let answer = match algorithm {
        None => IntegrityKind::Sha1,
        Some(_) => IntegrityKind::Sha256,
    };
    let algorithm = algorithm.unwrap_or(PasswordAlgorithm::Md5);

    let hash = match name {
        Name::Plain(username) => credentials.userhash(username),
        Name::Hashed(hash) => *hash,
    };
    let user = UserId(keyed_hash_16(&nonces.key, &[b"user", &hash]));
    let remembered = known
        .filter(|(owner, key)| *owner == user && key.algorithm == algorithm && integrity.is_made_with(key))
        .map(|(_, key)| (key.duplicate(), None));
    let (key, timed_until) = match remembered {
        Some(found) => found,
        None => credentials
            .find(name, &hash, algorithm, &integrity)
            .ok_or(Denied::Credential)?,
    };
    if !nonces.accepts(nonce, from, now) {
        return Err(Denied::StaleNonce);
    }
    Ok(Verified {
        user,
        key,
        answer,
        timed_until,
    })
}

/// What the request's sender proved.
pub struct Verified {
    pub user: UserId,
    pub key: Key,
    /// The integrity that every answer to this request carries.
    pub answer: IntegrityKind,
    /// Seconds since 1970 that a timed username names. An Allocate must check it; `None` for static users and for what the allocation's
    /// own key proved.
    pub timed_until: Option<u64>,
}

/// Why a request does not count. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// 401: the first request of every client.
    NoIntegrity,
    /// 400: user, realm or nonce is missing.
    Incomplete,
    /// 400: the list of password algorithms is not ours, or what was chosen is not on it: somebody bids down.
    Algorithms,
    /// 401: unknown user or wrong password.
    Credential,
    /// 438: the integrity was good.
    StaleNonce,
}

impl Denied {
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoIntegrity => "no_integrity",
            Self::Incomplete => "incomplete",
            Self::Algorithms => "algorithms",
            Self::Credential => "credential",
            Self::StaleNonce => "stale_nonce",
        }
    }
}

/// A user as one process knows them: a keyed hash of the user hash, worth nothing outside of it.
#[derive(Clone, Copy, PartialEq, Eq, Zeroize)]
pub struct UserId([u8; 16]);

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserId(<private>)")
    }
}

/// RFC 8489 §18.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordAlgorithm {
    Md5,
    Sha256,
}

/// The value of PASSWORD-ALGORITHMS: SHA-256 before MD5, both without parameters. A client must send it back byte for byte.
pub const PASSWORD_ALGORITHMS: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

/// `Some(None)`: the request names no algorithm, which means MD5. `None`: 400.
fn chosen_algorithm(attributes: &Attributes<'_>) -> Option<Option<PasswordAlgorithm>> {
    match (attributes.password_algorithm, attributes.password_algorithms) {
        (None, None) => Some(None),
        (Some(1), Some(list)) if list == PASSWORD_ALGORITHMS => Some(Some(PasswordAlgorithm::Md5)),
        (Some(2), Some(list)) if list == PASSWORD_ALGORITHMS => Some(Some(PasswordAlgorithm::Sha256)),
        _ => None,
    }
}

/// A long-term key: 16 bytes with MD5, 32 with SHA-256.
pub struct Key {
    bytes: Secret<[u8; 32]>,
    algorithm: PasswordAlgorithm,
}

impl Key {
    /// RFC 8489 §18.5.1.
    fn derive(algorithm: PasswordAlgorithm, username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        let parts = [username, b":", realm, b":", password];
        let mut bytes = [0; 32];
        match algorithm {
            PasswordAlgorithm::Md5 => {
                let mut hash = Md5::new();
                parts.iter().for_each(|part| Digest::update(&mut hash, part));
                bytes.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
            }
            PasswordAlgorithm::Sha256 => {
                let mut hash = Sha256::new();
                parts.iter().for_each(|part| Digest::update(&mut hash, part));
                bytes = hash.finalize().into();
            }
        }
        let key = Self {
            bytes: Secret::new(bytes),
            algorithm,
        };
        bytes.zeroize();
        key
    }

    /// What a client signs with that knows no list of algorithms, as browsers are.
    pub fn of_client(username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        Self::derive(PasswordAlgorithm::Md5, username, realm, password)
    }

    /// Explicit, since each copy is one more place to seize.
    pub fn duplicate(&self) -> Self {
        Self {
            bytes: Secret::new(*self.bytes.expose()),
            algorithm: self.algorithm,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        let length = match self.algorithm {
            PasswordAlgorithm::Md5 => 16,
            PasswordAlgorithm::Sha256 => 32,
        };
        self.bytes.expose().get(..length).unwrap_or_default()
    }
}

/// Which integrity attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntegrityKind {
    Sha1,
    Sha256,
}

impl IntegrityKind {
    const fn length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    const fn attribute(self) -> u16 {
        match self {
            Self::Sha1 => crate::attributes::kind::MESSAGE_INTEGRITY,
            Self::Sha256 => crate::attributes::kind::MESSAGE_INTEGRITY_SHA256,
        }
    }

    /// The first `length()` bytes count.
    fn mac(self, key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut bytes = [0; 32];
        match self {
            Self::Sha1 => {
                let mac = hmac_sha1(key, parts);
                bytes.iter_mut().zip(mac).for_each(|(to, from)| *to = from);
            }
            Self::Sha256 => bytes = hmac_sha256(key, parts),
        }
        bytes
    }
}

/// Appends the integrity of what is written so far.
pub fn sign(writer: &mut Writer<'_>, kind: IntegrityKind, key: &Key) {
    let mac = kind.mac(key.as_bytes(), &[writer.covered(4 + kind.length())]);
    writer.attribute(kind.attribute(), &[mac.get(..kind.length()).unwrap_or_default()]);
}

/// Whether a message carries an integrity made with this key: how a client knows an answer.
pub fn is_signed(message: &Message<'_>, attributes: &Attributes<'_>, key: &Key) -> bool {
    Presented::of(message, attributes).is_some_and(|integrity| integrity.is_made_with(key))
}

/// The integrity of a request and what it covers. If both kinds are there the stronger one counts (RFC 8489 §9.2.4).
struct Presented<'a> {
    kind: IntegrityKind,
    mac: &'a [u8],
    covered: (&'a [u8], [u8; 2], &'a [u8]),
}

impl<'a> Presented<'a> {
    fn of(message: &Message<'a>, attributes: &Attributes<'a>) -> Option<Self> {
        let (kind, Integrity { mac, at }) = match (attributes.integrity_sha256, attributes.integrity_sha1) {
            (Some(integrity), _) => (IntegrityKind::Sha256, integrity),
            (None, Some(integrity)) => (IntegrityKind::Sha1, integrity),
            (None, None) => return None,
        };
        Some(Self {
            kind,
            mac,
            covered: message.covered(at, mac.len()),
        })
    }

    /// In constant time. A truncated MAC is no MAC: TURN does not allow it (RFC 8489 §14.6).
    fn is_made_with(&self, key: &Key) -> bool {
        let (kind, length, rest) = &self.covered;
        let expected = self.kind.mac(key.as_bytes(), &[kind, length, rest]);
        let expected = expected.get(..self.kind.length()).unwrap_or_default();
        expected.ct_eq(self.mac).into()
    }
}

#[derive(Clone, Copy)]
enum Name<'a> {
    Plain(&'a [u8]),
    Hashed(&'a [u8; 32]),
}

/// Everybody who may ask, under one realm.
pub struct Credentials {
    realm: Box<str>,
    by_userhash: BTreeMap<[u8; 32], StaticKeys>,
    timed: Vec<TimedSecret>,
    /// What an unknown user is checked against, so that the work is the same.
    nobody: StaticKeys,
}

struct StaticKeys {
    md5: Key,
    sha256: Key,
}

impl StaticKeys {
    const fn with(&self, algorithm: PasswordAlgorithm) -> &Key {
        match algorithm {
            PasswordAlgorithm::Md5 => &self.md5,
            PasswordAlgorithm::Sha256 => &self.sha256,
        }
    }
}

/// Whether it can be a realm. A short one keeps the answer to a stranger small; quotes and controls have no place in it (RFC 8489
/// §14.9).
pub fn check_realm(realm: &str) -> Result<(), CredentialFault> {
    let is_good = |byte| (b' '..=b'~').contains(&byte) && !b"\"\\".contains(&byte);
    if realm.is_empty() {
        Err(CredentialFault::EmptyRealm)
    } else if realm.len() > MAX_REALM || !realm.bytes().all(is_good) {
        Err(CredentialFault::BadRealm)
    } else {
        Ok(())
    }
}

impl Credentials {
    pub fn new(realm: &str, users: Vec<StaticUser>, timed: Vec<TimedSecret>) -> Result<Self, CredentialFault> {
        check_realm(realm)?;
        if users.is_empty() && timed.is_empty() {
            return Err(CredentialFault::NoCredentials);
        }
        let mut credentials = Self {
            realm: realm.into(),
            by_userhash: BTreeMap::new(),
            timed,
            nobody: StaticKeys {
                md5: Key::derive(PasswordAlgorithm::Md5, b"", b"", b""),
                sha256: Key::derive(PasswordAlgorithm::Sha256, b"", b"", b""),
            },
        };
        for StaticUser { name, password } in users {
            let key = |algorithm| Key::derive(algorithm, name.as_bytes(), realm.as_bytes(), password.expose());
            let keys = StaticKeys {
                md5: key(PasswordAlgorithm::Md5),
                sha256: key(PasswordAlgorithm::Sha256),
            };
            let hash = credentials.userhash(name.as_bytes());
            if credentials.by_userhash.insert(hash, keys).is_some() {
                return Err(CredentialFault::UserTwice);
            }
        }
        Ok(credentials)
    }

    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// Four base64 characters of security features (RFC 8489 §18.1): password algorithms, and anonymous usernames if there are users whose
    /// hash we can know: the password of a timed username cannot be found from its hash.
    pub fn features(&self) -> Features {
        Features(if self.by_userhash.is_empty() {
            *b"gAAA"
        } else {
            *b"wAAA"
        })
    }

    /// What a credential endpoint gives out beside a timed username, made with the first secret; `None` if there is none.
    pub fn timed_password(&self, username: &[u8]) -> Option<Secret<String>> {
        let password = self.timed.first()?.password(username);
        Some(Secret::new(password.text().to_owned()))
    }

    /// RFC 8489 §14.4.
    fn userhash(&self, username: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        [username, b":", self.realm.as_bytes()]
            .iter()
            .for_each(|part| Digest::update(&mut hash, part));
        hash.finalize().into()
    }

    /// The key that made the integrity. Static users and each timed secret are tried for every name in one order.
    fn find(
        &self,
        name: Name<'_>,
        hash: &[u8; 32],
        algorithm: PasswordAlgorithm,
        integrity: &Presented<'_>,
    ) -> Option<(Key, Option<u64>)> {
        let mut found = None;
        let (keys, is_known) = match self.by_userhash.get(hash) {
            Some(keys) => (keys, true),
            None => (&self.nobody, false),
        };
        let key = keys.with(algorithm);
        if integrity.is_made_with(key) & is_known {
            found = Some((key.duplicate(), None));
        }
        let (username, timed_until) = match name {
            Name::Plain(username) => (username, expiry(username)),
            Name::Hashed(hash) => (hash.as_slice(), None),
        };
        for secret in &self.timed {
            let password = secret.password(username);
            let key = Key::derive(algorithm, username, self.realm.as_bytes(), password.text().as_bytes());
            if integrity.is_made_with(&key) & timed_until.is_some() {
                found = Some((key, timed_until));
            }
        }
        found
    }
}

/// Four base64 characters that a nonce begins with, after the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features([u8; 4]);

/// A user with a password of their own, or one that a whole messenger shares.
pub struct StaticUser {
    name: String,
    password: Secret<Vec<u8>>,
}

impl StaticUser {
    pub fn new(name: &str, password: Secret<Vec<u8>>) -> Result<Self, CredentialFault> {
        if name.is_empty() {
            return Err(CredentialFault::EmptyName);
        }
        if name.len() > crate::attributes::MAX_USERNAME {
            return Err(CredentialFault::LongName);
        }
        if password.expose().is_empty() {
            return Err(CredentialFault::EmptyPassword);
        }
        if is_placeholder(password.expose()) || password.expose() == name.as_bytes() {
            return Err(CredentialFault::Placeholder);
        }
        Ok(Self {
            name: name.to_owned(),
            password,
        })
    }
}

/// Bytes of the realm, at most: every challenge carries it.
pub const MAX_REALM: usize = 64;

/// Why settings about who may ask are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialFault {
    #[error("neither users nor timed secrets: a relay for everybody is not offered")]
    NoCredentials,
    #[error("the realm is empty")]
    EmptyRealm,
    #[error("the realm is longer than 64 bytes or has characters other than plain ASCII without quotes")]
    BadRealm,
    #[error("a user's name is empty")]
    EmptyName,
    #[error("a user's name is longer than 508 bytes")]
    LongName,
    #[error("a user's password is empty")]
    EmptyPassword,
    #[error("a user is given twice")]
    UserTwice,
    #[error("a password is a placeholder")]
    Placeholder,
}

/// RFC 8489 §9.2: what a nonce begins with when it carries features.
const COOKIE: &[u8; 9] = b"obMatJos2";
/// Cookie, features, and 16 bytes of keyed hash as base64.
pub const NONCE: usize = 9 + 4 + 22;

/// Makes and checks nonces. All shards share the key, so any of them accepts what another gave; it is kept over reloads.
pub struct Nonces {
    key: Secret<[u8; 32]>,
    epoch: Duration,
}

/// How long a nonce is given out; it is accepted for as long again.
pub const NONCE_EPOCH: Duration = Duration::from_secs(30 * 60);

impl Nonces {
    pub fn new(key: Secret<[u8; 32]>, epoch: Duration) -> Self {
        Self {
            key,
            epoch: epoch.max(Duration::from_secs(1)),
        }
    }

    /// Bound to the source and the features: nobody in between can clear a bit.
    pub fn make(&self, from: &FiveTuple, features: Features, now: Now) -> [u8; NONCE] {
        self.of_epoch(from, features, self.epoch_at(now))
    }

    fn accepts(&self, nonce: &[u8], from: &FiveTuple, now: Now) -> bool {
        let features = nonce.strip_prefix(COOKIE).and_then(|rest| rest.first_chunk::<4>());
        let Some(features) = features.copied().map(Features) else {
            return false;
        };
        let epoch = self.epoch_at(now);
        let current = self.of_epoch(from, features, epoch).ct_eq(nonce);
        let previous = match epoch.checked_sub(1) {
            Some(previous) => self.of_epoch(from, features, previous).ct_eq(nonce),
            None => 0.into(),
        };
        (current | previous).into()
    }

    fn epoch_at(&self, now: Now) -> u64 {
        now.steady.as_secs() / self.epoch.as_secs()
    }

    fn of_epoch(&self, from: &FiveTuple, features: Features, epoch: u64) -> [u8; NONCE] {
        let words = from.words().map(u64::to_be_bytes);
        let hash = keyed_hash_16(
            &self.key,
            &[b"nonce", &epoch.to_be_bytes(), words.as_flattened(), &features.0],
        );
        let mut nonce = [0; NONCE];
        let (cookie, rest) = nonce.split_at_mut(COOKIE.len());
        cookie.copy_from_slice(COOKIE);
        let (bits, text) = rest.split_at_mut(features.0.len());
        bits.copy_from_slice(&features.0);
        URL_SAFE_NO_PAD
            .encode_slice(hash, text)
            .expect("16 bytes are 22 characters of base64");
        nonce
    }
}

#[cfg(test)]
impl UserId {
    pub(crate) fn for_tests(name: &[u8]) -> Self {
        Self(keyed_hash_16(&Secret::new([0; 32]), &[name]))
    }
}

#[cfg(test)]
#[path = "auth/tests.rs"]
mod tests;
