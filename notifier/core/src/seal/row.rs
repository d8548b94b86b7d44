//! A sealed wakeup as bytes for the outbox file, and back.
//!
//! In: `Sealed` or bytes. Out: the other one. Never: opens what is sealed.
//!
//! Version 1, integers big-endian:
//! version(1) class(1) priority(1) expires_at_ms(8) service(1) token-length(2) token body-length(2) body
//! fallback-length(2, 0 = none) fallback.

use super::{Class, Priority, Sealed};
use crate::subscription::RowError;
use crate::subscription::row::{finished, put_target, take, take_slice, take_target, versioned};

impl Sealed {
    /// The same wakeup always gives the same bytes.
    pub fn encode_row(&self) -> Vec<u8> {
        let fallback = self.fallback.as_deref().unwrap_or_default();
        let mut row = Vec::with_capacity(self.row_len());
        row.extend_from_slice(&[VERSION, self.class.code(), self.priority.code()]);
        row.extend_from_slice(&self.expires_at_ms.to_be_bytes());
        put_target(&mut row, self.service, &self.token);
        for sealed in [&self.body, fallback] {
            // What `seal` makes has at most 2,856 bytes.
            row.extend_from_slice(&u16::try_from(sealed.len()).unwrap_or(u16::MAX).to_be_bytes());
            row.extend_from_slice(sealed);
        }
        row
    }

    /// Bytes of the row.
    pub fn row_len(&self) -> usize {
        let fallback = self.fallback.as_deref().map_or(0, <[u8]>::len);
        LONGEST_FIXED + self.token.expose().len() + self.body.len() + fallback
    }

    pub fn decode_row(row: &[u8]) -> Result<Self, RowError> {
        let rest = &mut versioned(row, VERSION)?;
        let [class, priority] = take(rest)?;
        let class = Class::from_code(class).ok_or(RowError::Malformed)?;
        let priority = Priority::from_code(priority).ok_or(RowError::Malformed)?;
        let expires_at_ms = i64::from_be_bytes(take(rest)?);
        let (service, token) = take_target(rest)?;
        let body = take_sealed(rest)?;
        let fallback = take_sealed(rest)?;
        finished(rest)?;
        if body.is_empty() {
            return Err(RowError::Malformed);
        }
        Ok(Self {
            service,
            token,
            body: body.into(),
            fallback: (!fallback.is_empty()).then(|| fallback.into()),
            class,
            priority,
            expires_at_ms,
        })
    }
}

fn take_sealed<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], RowError> {
    let length = usize::from(u16::from_be_bytes(take(rest)?));
    if length > MAX_SEALED {
        return Err(RowError::Malformed);
    }
    take_slice(rest, length)
}

const VERSION: u8 = 1;
/// No provider carries more than 4,096 bytes.
const MAX_SEALED: usize = 4_096;
const LONGEST_FIXED: usize = 3 + 8 + 3 + 2 + 2;
