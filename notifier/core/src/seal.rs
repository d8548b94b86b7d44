//! From a delivery to ciphertext that only the device can read.
//!
//! In: a `MessageEvent`, a device's key, randomness. Out: `Sealed`. Never: keeps the text.

use crate::account::{DeviceToken, Service};

/// One wakeup. From here on nothing can turn it back into text, and it holds no account and no message hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub service: Service,
    pub token: DeviceToken,
    /// nonce (24) ‖ XChaCha20-Poly1305 of the padded payload. Not base64; the provider's own form is made in dispatch.
    pub body: Box<[u8]>,
    /// The same wakeup in its "too long" form, for a provider that says 413. `None` where `body` is that form already.
    pub fallback: Option<Box<[u8]>>,
    pub class: Class,
    /// High wakes a sleeping phone; push.md §2.2.
    pub priority: Priority,
    /// Unix milliseconds: the message's own expiry. Later than that the wakeup is worthless.
    pub expires_at_ms: i64,
}

/// What a wakeup is worth, the most valuable first: the order of sending, and the reverse order of shedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Namespace 0, lives at most 300 s: a ringing call.
    Call = 1,
    /// Shows a notification.
    Visible = 2,
    /// Configuration and the like: the client works without waking its owner.
    Quiet = 3,
    /// Carries no body: it says only that something came.
    TooLong = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    High = 1,
    Normal = 2,
}
