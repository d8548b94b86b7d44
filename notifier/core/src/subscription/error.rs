//! Why an item was refused: upstream's numbers and, where upstream has a sentence of its own, its sentence.
//!
//! In: nothing. Out: `ItemError`. Never: repeats what a client sent, except a service's name.

use crate::endpoint::EndpointFault;
use std::borrow::Cow;
use std::fmt;

/// Why an item of `/subscribe` or `/unsubscribe` was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemError {
    InvalidJson,
    /// More than [`super::MAX_ITEMS`], or, said by the HTTP layer, a body that is too long.
    TooManyItems,
    NotAnObject,
    MissingParameter,
    WrongType,
    InvalidBytes,
    /// A number that is no integer of 16 bits.
    InvalidNamespace,
    TooManyNamespaces,
    NoNamespaces,
    UnsortedNamespaces,
    DuplicateNamespaces,
    KeyNotConvertible,
    KeyMismatch,
    UnknownService(ServiceName),
    InvalidToken,
    InvalidEndpoint(EndpointFault),
    TimestampMissing,
    TimestampTooOld,
    TimestampTooFarAhead,
    UnsubscribeTimeOutsideWindow,
    SubaccountWithoutRead,
    SubaccountOfOtherNetwork,
    SubaccountNotSigned,
    NotSignedBySubaccount,
    NotSigned,
    BindingNotSigned,
    /// The signer used a binding once, and whoever holds only its MONITOR signature may change nothing.
    BindingRequired,
    /// Tests were asked for lately; another one must wait.
    TooManyTests,
    /// The account has as many devices as it may have; repeating does not help.
    TooManyDevices,
    /// Not the item's fault: we are starting, stopping or overloaded.
    Unavailable,
    TimedOut,
    Internal,
}

/// What a client can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Ask again later (inner 503).
    Retryable,
    /// Set its clock and ask again (inner 425).
    Clock,
    Other,
}

impl ItemError {
    /// The number in `error` (push.md §3 Q12).
    pub const fn code(&self) -> u8 {
        match self {
            Self::InvalidJson
            | Self::TooManyItems
            | Self::MissingParameter
            | Self::InvalidNamespace
            | Self::TooManyNamespaces => BAD_INPUT,
            Self::UnknownService(_) | Self::TooManyTests | Self::Unavailable => SERVICE_NOT_AVAILABLE,
            Self::TimedOut => SERVICE_TIMEOUT,
            Self::Internal => INTERNAL_ERROR,
            Self::NotAnObject
            | Self::WrongType
            | Self::InvalidBytes
            | Self::NoNamespaces
            | Self::UnsortedNamespaces
            | Self::DuplicateNamespaces
            | Self::KeyNotConvertible
            | Self::KeyMismatch
            | Self::InvalidToken
            | Self::InvalidEndpoint(_)
            | Self::TimestampMissing
            | Self::TimestampTooOld
            | Self::TimestampTooFarAhead
            | Self::UnsubscribeTimeOutsideWindow
            | Self::SubaccountWithoutRead
            | Self::SubaccountOfOtherNetwork
            | Self::SubaccountNotSigned
            | Self::NotSignedBySubaccount
            | Self::NotSigned
            | Self::BindingNotSigned
            | Self::BindingRequired
            | Self::TooManyDevices => ERROR,
        }
    }

    /// The text in `message`.
    pub fn message(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::InvalidJson => "Invalid JSON",
            Self::TooManyItems => "request too large",
            Self::NotAnObject => "Invalid request: expected an object",
            Self::MissingParameter => "Missing required parameter",
            Self::WrongType => "Invalid request: a parameter has the wrong type",
            Self::InvalidBytes => "Invalid value: expected bytes, hex, or base64",
            Self::InvalidNamespace => "Invalid namespaces: expected integers from -32768 to 32767",
            Self::TooManyNamespaces => "Invalid namespaces: too many",
            Self::NoNamespaces => "Subscription: namespaces are missing",
            Self::UnsortedNamespaces => "Subscription: namespaces are not sorted numerically",
            Self::DuplicateNamespaces => "Subscription: namespaces contains duplicates",
            Self::KeyNotConvertible => "Failed to convert session_ed25519 to x25519 pubkey",
            Self::KeyMismatch => {
                "account_id/session_ed25519 mismatch: session_ed25519 does not convert to given account_id"
            }
            Self::UnknownService(name) => return Cow::Owned(name.not_available()),
            Self::InvalidToken => "Invalid token",
            Self::InvalidEndpoint(EndpointFault::PublicKey | EndpointFault::Auth) => {
                "Invalid keys of a Web Push subscription"
            }
            Self::InvalidEndpoint(EndpointFault::NotAllowed) => "This Web Push endpoint cannot be used here",
            Self::InvalidEndpoint(_) => {
                "Invalid Web Push endpoint: expected a plain https URL of at most 1000 characters"
            }
            Self::TimestampMissing => "Subscription: signature timestamp is missing",
            Self::TimestampTooOld => "Subscription: sig_ts timestamp is too old",
            Self::TimestampTooFarAhead => "Subscription: sig_ts timestamp is too far in the future",
            Self::UnsubscribeTimeOutsideWindow => {
                "Unsubscription: sig_ts is more than a day away from the current time"
            }
            Self::SubaccountWithoutRead => "Invalid subaccount: this subaccount does not have read permission",
            Self::SubaccountOfOtherNetwork => "Invalid subaccount: its network prefix is not the account's",
            Self::SubaccountNotSigned => "Subaccount auth signature verification failed",
            Self::NotSignedBySubaccount => "Subaccount main signature verification failed",
            Self::NotSigned => "Signature verification failed",
            Self::BindingNotSigned => "Binding signature verification failed",
            Self::BindingRequired => "Subscription: this signer's subscriptions need a binding signature",
            Self::TooManyTests => "Too many tests: wait a minute",
            Self::TooManyDevices => "Too many devices for this account",
            Self::Unavailable => "Notifications cannot be changed at the moment",
            Self::TimedOut => "The request took too long",
            Self::Internal => "An internal error occurred",
        })
    }

    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable | Self::TimedOut | Self::Internal => ErrorKind::Retryable,
            Self::TimestampMissing
            | Self::TimestampTooOld
            | Self::TimestampTooFarAhead
            | Self::UnsubscribeTimeOutsideWindow => ErrorKind::Clock,
            _ => ErrorKind::Other,
        }
    }

    /// The metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::TooManyItems => "too_many_items",
            Self::NotAnObject => "not_an_object",
            Self::MissingParameter => "missing_parameter",
            Self::WrongType => "wrong_type",
            Self::InvalidBytes => "invalid_bytes",
            Self::InvalidNamespace => "invalid_namespace",
            Self::TooManyNamespaces => "too_many_namespaces",
            Self::NoNamespaces => "no_namespaces",
            Self::UnsortedNamespaces => "unsorted_namespaces",
            Self::DuplicateNamespaces => "duplicate_namespaces",
            Self::KeyNotConvertible => "key_not_convertible",
            Self::KeyMismatch => "key_mismatch",
            Self::UnknownService(_) => "unknown_service",
            Self::InvalidToken => "invalid_token",
            Self::InvalidEndpoint(fault) => fault.label(),
            Self::TimestampMissing => "timestamp_missing",
            Self::TimestampTooOld => "timestamp_too_old",
            Self::TimestampTooFarAhead => "timestamp_too_far_ahead",
            Self::UnsubscribeTimeOutsideWindow => "unsubscribe_time_outside_window",
            Self::SubaccountWithoutRead => "subaccount_without_read",
            Self::SubaccountOfOtherNetwork => "subaccount_of_other_network",
            Self::SubaccountNotSigned => "subaccount_not_signed",
            Self::NotSignedBySubaccount => "not_signed_by_subaccount",
            Self::NotSigned => "not_signed",
            Self::BindingNotSigned => "binding_not_signed",
            Self::BindingRequired => "binding_required",
            Self::TooManyTests => "too_many_tests",
            Self::TooManyDevices => "too_many_devices",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::Internal => "internal",
        }
    }
}

/// The label: what may be in a log. What the client reads is [`ItemError::message`].
impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl std::error::Error for ItemError {}

/// The name of a service that is not on offer here, which the answer repeats (push.md §3 Q27).
///
/// Bounded, because a client chose it: up to 32 printable ASCII characters, or nothing of it is repeated.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceName(Option<Box<str>>);

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceName(<private>)")
    }
}

impl ServiceName {
    const MAX: usize = 32;

    pub(super) fn new(name: &str) -> Self {
        let printable = name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        let repeatable = printable && (1..=Self::MAX).contains(&name.len());
        Self(repeatable.then(|| name.into()))
    }

    fn not_available(&self) -> String {
        let name = self.0.as_deref().unwrap_or("requested");
        format!("{name} notification service not currently available")
    }
}

const BAD_INPUT: u8 = 1;
const SERVICE_NOT_AVAILABLE: u8 = 2;
const SERVICE_TIMEOUT: u8 = 3;
const ERROR: u8 = 4;
const INTERNAL_ERROR: u8 = 5;
