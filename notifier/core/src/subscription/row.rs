//! A subscription as bytes for the store's sealed row, and back.
//!
//! In: `Subscription` or bytes. Out: the other one. Never: encrypts; the bytes hold the device's key in clear.
//!
//! Version 1, integers big-endian:
//! version(1) flags(1) account(33) service(1) token-length(2) token [session_ed25519(32)] [tag(36) tag-signature(64)]
//! sig_ts(8) signature(64) enc_key(32) count(2) namespaces(2 each).

use super::{DeviceId, Subaccount, Subscription};
use crate::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
use quietline_shared::redact::Secret;

/// Why a row cannot be read. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("row of an unknown version")]
    UnknownVersion,
    #[error("row is cut off")]
    Truncated,
    #[error("row holds a value that does not exist")]
    Malformed,
    #[error("row has bytes left over")]
    TrailingBytes,
}

impl RowError {
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownVersion => "unknown_version",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::TrailingBytes => "trailing_bytes",
        }
    }
}

impl Subscription {
    /// The same subscription always gives the same bytes.
    pub fn encode_row(&self) -> Vec<u8> {
        let namespaces = self.namespaces.as_slice();
        let mut row = Vec::with_capacity(LONGEST_FIXED + self.device.token.expose().len() + 2 * namespaces.len());
        row.push(VERSION);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        row.push(
            flag(self.session_ed25519.is_some(), HAS_SESSION_KEY)
                | flag(self.subaccount.is_some(), HAS_SUBACCOUNT)
                | flag(self.want_data, WANTS_DATA),
        );
        row.extend_from_slice(self.device.account.expose());
        put_target(&mut row, self.device.service, &self.device.token);
        if let Some(session_ed25519) = &self.session_ed25519 {
            row.extend_from_slice(session_ed25519);
        }
        if let Some(subaccount) = &self.subaccount {
            row.extend_from_slice(&subaccount.tag);
            row.extend_from_slice(&subaccount.signature);
        }
        row.extend_from_slice(&self.sig_ts.to_be_bytes());
        row.extend_from_slice(&self.signature);
        row.extend_from_slice(self.enc_key.expose());
        // A set holds at most 256.
        row.extend_from_slice(&u16::try_from(namespaces.len()).unwrap_or(u16::MAX).to_be_bytes());
        for namespace in namespaces {
            row.extend_from_slice(&namespace.0.to_be_bytes());
        }
        row
    }

    pub fn decode_row(row: &[u8]) -> Result<Self, RowError> {
        let rest = &mut versioned(row, VERSION)?;
        let [flags] = take(rest)?;
        if flags & !(HAS_SESSION_KEY | HAS_SUBACCOUNT | WANTS_DATA) != 0 {
            return Err(RowError::Malformed);
        }
        let account = AccountId::new(take(rest)?);
        let (service, token) = take_target(rest)?;
        let session_ed25519 = if flags & HAS_SESSION_KEY != 0 {
            Some(take(rest)?)
        } else {
            None
        };
        if session_ed25519.is_some() != account.is_session() {
            return Err(RowError::Malformed);
        }
        let subaccount = if flags & HAS_SUBACCOUNT != 0 {
            Some(Subaccount {
                tag: take(rest)?,
                signature: take(rest)?,
            })
        } else {
            None
        };
        let sig_ts = i64::from_be_bytes(take(rest)?);
        let signature = take(rest)?;
        let enc_key = Secret::new(take(rest)?);
        let count = usize::from(u16::from_be_bytes(take(rest)?));
        if count > NamespaceSet::MAX {
            return Err(RowError::Malformed);
        }
        let namespaces: Vec<_> = (0..count)
            .map(|_| take(rest).map(i16::from_be_bytes).map(Namespace))
            .collect::<Result<_, _>>()?;
        let namespaces = NamespaceSet::new(namespaces).ok_or(RowError::Malformed)?;
        finished(rest)?;
        Ok(Self {
            device: DeviceId {
                account,
                service,
                token,
            },
            session_ed25519,
            subaccount,
            namespaces,
            want_data: flags & WANTS_DATA != 0,
            sig_ts,
            signature,
            enc_key,
            is_bound: false,
        })
    }
}

/// Stands in the store in the place of a row, under a name made of the signer: this signer's subscriptions need a binding as long as
/// a MONITOR signature that came with one counts. Never a subscription's row.
pub const BINDING_MARK: &[u8] = &[2];

/// What follows the version byte.
pub(crate) fn versioned(row: &[u8], version: u8) -> Result<&[u8], RowError> {
    match row.split_first() {
        None => Err(RowError::Truncated),
        Some((first, rest)) if *first == version => Ok(rest),
        Some(_) => Err(RowError::UnknownVersion),
    }
}

pub(crate) fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], RowError> {
    let (head, tail) = rest.split_first_chunk().ok_or(RowError::Truncated)?;
    *rest = tail;
    Ok(*head)
}

pub(crate) fn take_slice<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], RowError> {
    let (head, tail) = rest.split_at_checked(length).ok_or(RowError::Truncated)?;
    *rest = tail;
    Ok(head)
}

/// service(1) token-length(2) token.
pub(crate) fn put_target(row: &mut Vec<u8>, service: Service, token: &DeviceToken) {
    let token = token.expose();
    row.push(service.code());
    // A token that came through a request has at most `DeviceToken::MAX` bytes.
    row.extend_from_slice(&u16::try_from(token.len()).unwrap_or(u16::MAX).to_be_bytes());
    row.extend_from_slice(token);
}

pub(crate) fn take_target(rest: &mut &[u8]) -> Result<(Service, DeviceToken), RowError> {
    let [code] = take(rest)?;
    let service = Service::from_code(code).ok_or(RowError::Malformed)?;
    let length = usize::from(u16::from_be_bytes(take(rest)?));
    if !(1..=DeviceToken::MAX).contains(&length) {
        return Err(RowError::Malformed);
    }
    Ok((service, DeviceToken::new(take_slice(rest, length)?)))
}

pub(crate) fn finished(rest: &[u8]) -> Result<(), RowError> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(RowError::TrailingBytes)
    }
}

const VERSION: u8 = 1;
const HAS_SESSION_KEY: u8 = 1;
const HAS_SUBACCOUNT: u8 = 2;
const WANTS_DATA: u8 = 4;
/// All of a row but its token and namespaces.
const LONGEST_FIXED: usize = 1 + 1 + 33 + 3 + 32 + 100 + 8 + 64 + 32 + 2;
