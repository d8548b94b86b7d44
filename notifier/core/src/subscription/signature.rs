//! Who signed a request, and what exactly they signed (push.md §3 Q22, Q26; docs/clients.md).
//!
//! In: the key fields of an item. Out: `Signer`, signed texts. Never: looks at a service or a device.

use super::fields::Fields;
use super::{DeviceId, ItemError, Subaccount};
use crate::account::{AccountId, NamespaceSet};
use quietline_shared::crypto::{blake2b_256, ed25519_to_x25519, verify_ed25519};
use quietline_shared::redact::Secret;
use std::fmt::Write;

/// The account a request speaks for, and the keys that may do so.
pub(super) struct Signer {
    pub account: AccountId,
    /// Only for an 05 account; checked to belong to it.
    pub session_ed25519: Option<[u8; 32]>,
    pub subaccount: Option<Subaccount>,
}

impl Signer {
    pub fn parse(fields: &Fields) -> Result<Self, ItemError> {
        let account = AccountId::new(fields.bytes("pubkey")?);
        let session_ed25519 = if account.is_session() {
            Some(session_key(&account, fields.bytes("session_ed25519")?)?)
        } else {
            None
        };
        let subaccount = match fields.optional("subaccount") {
            Some(_) => Some(Subaccount {
                tag: fields.bytes("subaccount")?,
                signature: fields.bytes("subaccount_sig")?,
            }),
            None => None,
        };
        Ok(Self {
            account,
            session_ed25519,
            subaccount,
        })
    }

    /// Signatures are verified with libsodium's rules, which clients and storage servers use.
    pub fn verify(&self, text: &str, signature: &[u8; 64]) -> Result<(), ItemError> {
        let account_key = self.session_ed25519.as_ref().unwrap_or(self.account.key());
        let Some(subaccount) = &self.subaccount else {
            return verified(account_key, text.as_bytes(), signature, ItemError::NotSigned);
        };
        let [prefix, flags, ..] = &subaccount.tag;
        if flags & FLAG_READ == 0 {
            return Err(ItemError::SubaccountWithoutRead);
        }
        if flags & FLAG_ANY_PREFIX == 0 && *prefix != self.account.prefix() {
            return Err(ItemError::SubaccountOfOtherNetwork);
        }
        verified(
            account_key,
            &subaccount.tag,
            &subaccount.signature,
            ItemError::SubaccountNotSigned,
        )?;
        verified(
            subaccount.delegate(),
            text.as_bytes(),
            signature,
            ItemError::NotSignedBySubaccount,
        )
    }

    /// As [`verify`](Self::verify), of a text that the same key signs after it, so that nothing else need be checked again.
    pub fn verify_binding(&self, text: &str, signature: &[u8; 64]) -> Result<(), ItemError> {
        let key = match &self.subaccount {
            None => self.session_ed25519.as_ref().unwrap_or(self.account.key()),
            Some(subaccount) => subaccount.delegate(),
        };
        verified(key, text.as_bytes(), signature, ItemError::BindingNotSigned)
    }
}

pub(super) fn monitor_text(account: &AccountId, sig_ts: i64, want_data: bool, namespaces: &NamespaceSet) -> String {
    let mut text = format!(
        "MONITOR{}{sig_ts}{}",
        hex::encode(account.expose()),
        u8::from(want_data)
    );
    for (at, namespace) in namespaces.as_slice().iter().enumerate() {
        let separator = if at == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{}", namespace.0);
    }
    text
}

pub(super) fn unsubscribe_text(account: &AccountId, sig_ts: i64) -> String {
    format!("UNSUBSCRIBE{}{sig_ts}", hex::encode(account.expose()))
}

pub(super) fn test_text(account: &AccountId, sig_ts: i64) -> String {
    format!("TEST{}{sig_ts}", hex::encode(account.expose()))
}

/// Everything that decides where an account's wakeups go and who can open them.
pub(super) fn binding_text(device: &DeviceId, enc_key: &Secret<[u8; 32]>, sig_ts: i64) -> String {
    format!(
        "BINDING{account}{sig_ts}{service}{token}{key}",
        account = hex::encode(device.account.expose()),
        service = device.service.name(),
        token = hex::encode(blake2b_256(&[device.token.expose()])),
        key = hex::encode(enc_key.expose()),
    )
}

fn session_key(account: &AccountId, ed25519: [u8; 32]) -> Result<[u8; 32], ItemError> {
    let x25519 = ed25519_to_x25519(&ed25519).ok_or(ItemError::KeyNotConvertible)?;
    if x25519 == *account.key() {
        Ok(ed25519)
    } else {
        Err(ItemError::KeyMismatch)
    }
}

fn verified(public: &[u8; 32], text: &[u8], signature: &[u8; 64], otherwise: ItemError) -> Result<(), ItemError> {
    if verify_ed25519(public, text, signature) {
        Ok(())
    } else {
        Err(otherwise)
    }
}

/// Bits of a tag's second byte.
const FLAG_READ: u8 = 1;
const FLAG_ANY_PREFIX: u8 = 8;
