//! Row keys: what stands on the disk is sealed under one of them. A tool, not a stage.
//!
//! In: a key file, content with the place it belongs to. Out: sealed bytes of a few lengths, or the content again. Never: opens what
//! stands in another place than it was sealed for, or says what was wrong with it beyond a name.
//!
//! A sealed text is nonce(24) ‖ XChaCha20-Poly1305(length(4, big-endian) ‖ content ‖ zeros) ‖ tag(16), under a key derived from the row
//! key for one purpose; its additional data are the place and the id of the row key (4, big-endian). The id is a hash of the key, so
//! that nobody has to number them, and a wrong key is known before anything is opened with it.

pub mod file;

use quietline_shared::crypto::{NONCE, TAG, keyed_hash_32, xchacha_open_in_place, xchacha_seal_in_place};
use quietline_shared::redact::Secret;
use std::fmt;
use zeroize::Zeroizing;

/// Names a row key and says nothing about it. Never 0, which stands for "in plain" in files of earlier versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(u32);

impl KeyId {
    fn of(key: &Secret<[u8; 32]>) -> Self {
        let [a, b, c, d, ..] = keyed_hash_32(key, &[b"id of a row key"]);
        Self(u32::from_be_bytes([a, b, c, d]).max(1))
    }

    /// As a column holds it.
    pub fn from_column(number: i64) -> Option<Self> {
        u32::try_from(number).ok().filter(|number| *number > 0).map(Self)
    }

    pub fn column(self) -> i64 {
        self.0.into()
    }

    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        Self::from_column(u32::from_be_bytes(bytes).into())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The keys of one key file: the first seals, all of them open.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<(KeyId, Secret<[u8; 32]>)>,
}

impl Keyring {
    /// The newest first. `None` without a key, or with one twice.
    pub fn new(keys: Vec<Secret<[u8; 32]>>) -> Option<Self> {
        let keys: Vec<_> = keys.into_iter().map(|key| (KeyId::of(&key), key)).collect();
        let mut ids: Vec<_> = keys.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        (!keys.is_empty() && ids.len() == keys.len()).then_some(Self { keys })
    }

    /// The newest first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|(id, _)| *id).collect()
    }

    /// Keys of their own for one purpose, so that nothing sealed for one opens for another.
    pub fn sealer(&self, purpose: &str) -> Sealer {
        let derive = |(id, key): &(KeyId, Secret<[u8; 32]>)| {
            let key = Secret::new(keyed_hash_32(key, &[b"sealed rows", purpose.as_bytes()]));
            (*id, key)
        };
        let mut keys = self.keys.iter().map(derive);
        let newest = keys.next().expect("a ring has a key");
        Sealer {
            newest,
            older: keys.collect(),
        }
    }
}

/// Seals and opens for one purpose.
#[derive(Debug)]
pub struct Sealer {
    newest: (KeyId, Secret<[u8; 32]>),
    older: Vec<(KeyId, Secret<[u8; 32]>)>,
}

impl Sealer {
    /// Under which new texts are sealed.
    pub fn newest(&self) -> KeyId {
        self.newest.0
    }

    pub fn has(&self, id: KeyId) -> bool {
        self.key(id).is_some()
    }

    fn key(&self, id: KeyId) -> Option<&Secret<[u8; 32]>> {
        let mut all = std::iter::once(&self.newest).chain(&self.older);
        all.find(|(known, _)| *known == id).map(|(_, key)| key)
    }

    /// Under the newest key. `lengths` are those that the content may take, ascending; beyond the last one it takes a multiple of it.
    pub fn seal(&self, place: &[u8], content: &[u8], lengths: &[usize]) -> Result<Vec<u8>, NoRandomness> {
        seal_with_nonce(&self.newest, &fresh_nonce()?, place, content, lengths)
    }

    /// As [`Self::seal`] under an older key: a row has one key for all its columns.
    pub fn seal_under(
        &self,
        id: KeyId,
        place: &[u8],
        content: &[u8],
        lengths: &[usize],
    ) -> Result<Option<Vec<u8>>, NoRandomness> {
        let mut all = std::iter::once(&self.newest).chain(&self.older);
        let key = all.find(|(known, _)| *known == id);
        key.map(|key| seal_with_nonce(key, &fresh_nonce()?, place, content, lengths))
            .transpose()
    }

    /// What was sealed for this place under this key.
    pub fn open(&self, id: Option<KeyId>, place: &[u8], sealed: Vec<u8>) -> Result<Opened, OpenFault> {
        // Wiped when it is dropped, whatever becomes of it.
        let mut bytes = Zeroizing::new(sealed);
        let (id, key) = id
            .and_then(|id| Some((id, self.key(id)?)))
            .ok_or(OpenFault::UnknownKey)?;
        let (nonce, rest) = bytes.split_first_chunk_mut::<NONCE>().ok_or(OpenFault::Truncated)?;
        let (text, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(OpenFault::Truncated)?;
        if !xchacha_open_in_place(key, nonce, &context(place, id), text, tag) {
            return Err(OpenFault::NotAuthentic);
        }
        let (length, padded) = text.split_first_chunk::<LENGTH>().ok_or(OpenFault::Malformed)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| OpenFault::Malformed)?;
        if length > padded.len() {
            return Err(OpenFault::Malformed);
        }
        Ok(Opened { bytes, length })
    }
}

/// A content in the buffer it was opened in, which is wiped when this is dropped.
pub struct Opened {
    bytes: Zeroizing<Vec<u8>>,
    length: usize,
}

impl Opened {
    pub fn content(&self) -> &[u8] {
        self.bytes
            .get(NONCE + LENGTH..)
            .and_then(|rest| rest.get(..self.length))
            .unwrap_or_default()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened(<private>)")
    }
}

/// Why something sealed cannot be read. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenFault {
    #[error("it is sealed under a key that is not there")]
    UnknownKey,
    #[error("it was changed, or stands where it was not sealed for")]
    NotAuthentic,
    #[error("it is cut off")]
    Truncated,
    #[error("it is sealed well and holds nothing that was ever sealed")]
    Malformed,
}

impl OpenFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::NotAuthentic => "not_authentic",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
        }
    }
}

/// Nothing can be sealed without a nonce of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

fn fresh_nonce() -> Result<[u8; NONCE], NoRandomness> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|_| NoRandomness)?;
    Ok(nonce)
}

fn seal_with_nonce(
    (id, key): &(KeyId, Secret<[u8; 32]>),
    nonce: &[u8; NONCE],
    place: &[u8],
    content: &[u8],
    lengths: &[usize],
) -> Result<Vec<u8>, NoRandomness> {
    let padded = padded_length(content.len(), lengths);
    let mut sealed = Vec::with_capacity(NONCE + LENGTH + padded + TAG);
    sealed.extend_from_slice(nonce);
    // A row is far below 4 GiB.
    sealed.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    sealed.extend_from_slice(content);
    sealed.resize(NONCE + LENGTH + padded, 0);
    let text = sealed.get_mut(NONCE..).unwrap_or_default();
    let tag = xchacha_seal_in_place(key, nonce, &context(place, *id), text);
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

fn context(place: &[u8], id: KeyId) -> Vec<u8> {
    [place, &id.to_bytes()].concat()
}

fn padded_length(content: usize, lengths: &[usize]) -> usize {
    let longest = lengths.last().copied().unwrap_or(1).max(1);
    let fitting = lengths.iter().copied().find(|length| *length >= content);
    fitting.unwrap_or_else(|| content.next_multiple_of(longest))
}

const LENGTH: usize = 4;

/// What a sealed text is longer than its content may be.
pub const OVERHEAD: usize = NONCE + LENGTH + TAG;

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: &[usize] = &[16, 40];

    fn ring(keys: &[u8]) -> Keyring {
        Keyring::new(keys.iter().map(|key| Secret::new([*key; 32])).collect()).unwrap()
    }

    /// Made with libsodium: `crypto_generichash` for key and id, `crypto_aead_xchacha20poly1305_ietf_encrypt` for the text.
    #[test]
    fn the_format_is_what_libsodium_makes() {
        let sealer = ring(&[7]).sealer("subscriptions");
        let nonce = std::array::from_fn(|place| place as u8);
        let sealed = seal_with_nonce(&sealer.newest, &nonce, b"place", b"content", LENGTHS).unwrap();
        assert_eq!(sealer.newest().to_string(), "a0adca47");
        assert_eq!(
            hex::encode(&sealed),
            "000102030405060708090a0b0c0d0e0f10111213141516179032a57bf80a402c71ef2e328e0afcf1c54c3f1cf6f9d2cb04f9d0754d12bb17ce52c6f4"
        );
        let opened = sealer.open(Some(sealer.newest()), b"place", sealed).unwrap();
        assert_eq!(opened.content(), b"content");
    }

    #[test]
    fn nothing_opens_elsewhere_changed_cut_or_under_another_key() {
        let sealer = ring(&[7]).sealer("a");
        let id = Some(sealer.newest());
        let sealed = sealer.seal(b"here", b"content", LENGTHS).unwrap();
        let fault = |sealer: &Sealer, place: &[u8], sealed: &[u8]| {
            let id = Some(sealer.newest());
            sealer.open(id, place, sealed.to_vec()).unwrap_err()
        };
        assert_eq!(fault(&sealer, b"there", &sealed), OpenFault::NotAuthentic);
        assert_eq!(
            fault(&ring(&[7]).sealer("b"), b"here", &sealed),
            OpenFault::NotAuthentic
        );
        assert_eq!(
            fault(&ring(&[8]).sealer("a"), b"here", &sealed),
            OpenFault::NotAuthentic
        );
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(fault(&sealer, b"here", &changed), OpenFault::NotAuthentic, "{place}");
            let expected = match place {
                0..40 => OpenFault::Truncated,
                _ => OpenFault::NotAuthentic,
            };
            assert_eq!(fault(&sealer, b"here", &sealed[..place]), expected, "{place}");
        }
        let foreign = ring(&[8]).sealer("a").newest();
        let unknown = sealer.open(Some(foreign), b"here", sealed.clone());
        assert_eq!(unknown.unwrap_err(), OpenFault::UnknownKey);
        assert_eq!(
            sealer.open(None, b"here", sealed.clone()).unwrap_err(),
            OpenFault::UnknownKey
        );
        assert_eq!(sealer.open(id, b"here", sealed).unwrap().content(), b"content");
    }

    #[test]
    fn a_ring_seals_under_its_first_key_and_opens_under_all() {
        let (old, both) = (ring(&[1]).sealer("a"), ring(&[2, 1]).sealer("a"));
        let before = old.seal(b"p", b"before", LENGTHS).unwrap();
        assert_eq!(
            both.open(Some(old.newest()), b"p", before).unwrap().content(),
            b"before"
        );
        let after = both.seal(b"p", b"after", LENGTHS).unwrap();
        assert_ne!(both.newest(), old.newest());
        assert_eq!(
            old.open(Some(both.newest()), b"p", after).unwrap_err(),
            OpenFault::UnknownKey
        );
        let kept = both.seal_under(old.newest(), b"p", b"kept", LENGTHS).unwrap().unwrap();
        assert_eq!(old.open(Some(old.newest()), b"p", kept).unwrap().content(), b"kept");
        assert_eq!(old.seal_under(both.newest(), b"p", b"x", LENGTHS), Ok(None));
    }

    #[test]
    fn the_same_content_never_looks_the_same_and_lengths_tell_only_a_class() {
        let sealer = ring(&[7]).sealer("a");
        let seal = |content: &[u8]| sealer.seal(b"p", content, LENGTHS).unwrap();
        assert_ne!(seal(b"same"), seal(b"same"));
        for (content, padded) in [(0, 16), (1, 16), (16, 16), (17, 40), (40, 40), (41, 80), (81, 120)] {
            let sealed = seal(&vec![5; content]);
            assert_eq!(sealed.len(), padded + OVERHEAD, "{content}");
            let opened = sealer.open(Some(sealer.newest()), b"p", sealed).unwrap();
            assert_eq!(opened.content(), vec![5; content]);
        }
    }

    #[test]
    fn a_ring_needs_a_key_and_has_none_twice() {
        assert!(Keyring::new(Vec::new()).is_none());
        assert!(Keyring::new([1, 2, 1].map(|key| Secret::new([key; 32])).into()).is_none());
        let both = ring(&[1, 2]);
        assert_eq!(both.ids().len(), 2);
        assert_eq!(both.ids()[0], both.sealer("any").newest());
        for id in both.ids() {
            assert_eq!(KeyId::from_column(id.column()), Some(id));
            assert_eq!(KeyId::from_bytes(id.to_bytes()), Some(id));
        }
        assert_eq!(KeyId::from_column(0), None);
        assert!(!format!("{both:?}").contains("1, 1"));
    }
}
