//! From a delivery to ciphertext that only the device can read.
//!
//! In: a `MessageEvent`, a device's key, randomness. Out: `Sealed`. Never: keeps the text.

use crate::account::{AccountId, DeviceToken, MessageHash, Namespace, Service};
use crate::event::MessageEvent;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use quietline_shared::crypto::xchacha_seal;
use std::sync::Arc;

mod payload;
mod row;

use payload::text_without_body;
pub use payload::{Limits, Padding, Payload, payload};

/// Seals one wakeup for one device, or says why the device is better left asleep.
///
/// `random` is fresh for every call: two nonces of 24 bytes, for the body and its "too long" form.
pub fn seal(
    event: &MessageEvent,
    device: DeviceView<'_>,
    settings: &SealSettings,
    random: [u8; 48],
) -> Result<Sealed, Suppressed> {
    let occasion = Occasion::of(event);
    if let Some(reason) = settings.suppresses(occasion, false) {
        return Err(reason);
    }
    let payload = payload(event, device.want_data, Limits::OF_PROVIDERS);
    if let Some(reason) = settings.suppresses(occasion, payload.too_long) {
        return Err(reason);
    }
    let [nonce, fallback_nonce] = &two_nonces(&random);
    let close = |text: Vec<u8>, nonce| -> Box<[u8]> {
        xchacha_seal(device.enc_key, nonce, &settings.padding.pad(text)).into_boxed_slice()
    };
    let has_body = payload.with_body.is_some();
    let (body, fallback) = match payload.with_body {
        Some(with_body) => (
            close(with_body, nonce),
            Some(close(payload.without_body, fallback_nonce)),
        ),
        None => (close(payload.without_body, nonce), None),
    };
    Ok(Sealed {
        service: device.service,
        token: device.token.clone(),
        body,
        fallback,
        class: settings.class(occasion, event.namespace, has_body),
        priority: settings.priority(occasion, event.namespace),
        expires_at_ms: event.expiry_ms,
    })
}

/// A wakeup that somebody asked for, to see that wakeups arrive. A client takes it for a message that it has to fetch, and finds none.
///
/// `random` is fresh for every call: the name of a message that is none, and the nonces.
pub fn trial(account: AccountId, device: DeviceView<'_>, padding: Padding, now_ms: i64, random: [u8; 80]) -> Sealed {
    let mut name = [0; 32];
    let mut nonces = [0; 48];
    let (first, rest) = random.split_at(name.len());
    name.copy_from_slice(first);
    nonces.copy_from_slice(rest);
    let event = MessageEvent {
        account,
        hash: MessageHash::from_slice(STANDARD_NO_PAD.encode(name).as_bytes()).expect("43 characters are a hash"),
        namespace: Namespace(0),
        timestamp_ms: now_ms,
        expiry_ms: now_ms.saturating_add(TRIAL_LIFE_MS),
        body: None,
    };
    let settings = SealSettings {
        padding,
        ..SealSettings::default()
    };
    seal(&event, device, &settings, nonces).expect("a message is never suppressed")
}

/// Longer than any call, so that it is none.
const TRIAL_LIFE_MS: i64 = 600_000;

fn two_nonces(random: &[u8; 48]) -> [[u8; 24]; 2] {
    let mut nonces = [[0; 24]; 2];
    nonces.as_flattened_mut().copy_from_slice(random);
    nonces
}

/// What sealing needs to know of a device.
#[derive(Clone, Copy)]
pub struct DeviceView<'a> {
    pub service: Service,
    pub token: &'a DeviceToken,
    pub enc_key: &'a [u8; 32],
    pub want_data: bool,
}

/// Section `[seal]` of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealSettings {
    pub padding: Padding,
    /// Whose messages show something: they wake with high priority, everything else with normal. FCM demotes an app whose
    /// high-priority pushes show nothing.
    pub high_priority_namespaces: Arc<[Namespace]>,
    /// Calls are worth more than messages: they go first, and are the last to be shed.
    pub calls_first: bool,
    /// Do not wake a phone because somebody is typing.
    pub skip_typing: bool,
    /// Do not wake a phone for a configuration message that is too long to be carried.
    pub skip_too_long_config: bool,
}

impl Default for SealSettings {
    fn default() -> Self {
        Self {
            padding: Padding::TwoClasses,
            high_priority_namespaces: Arc::new([Namespace(0), Namespace(11)]),
            calls_first: true,
            skip_typing: true,
            skip_too_long_config: true,
        }
    }
}

impl SealSettings {
    fn class(&self, occasion: Occasion, namespace: Namespace, has_body: bool) -> Class {
        match occasion {
            // It rings with or without its text.
            Occasion::Call if self.calls_first => Class::Call,
            _ if !has_body => Class::TooLong,
            Occasion::Typing => Class::Quiet,
            _ if self.shows(namespace) => Class::Visible,
            _ => Class::Quiet,
        }
    }

    fn suppresses(&self, occasion: Occasion, is_too_long: bool) -> Option<Suppressed> {
        match occasion {
            Occasion::Typing if self.skip_typing => Some(Suppressed::Typing),
            Occasion::Config if self.skip_too_long_config && is_too_long => Some(Suppressed::TooLongConfig),
            _ => None,
        }
    }

    fn priority(&self, occasion: Occasion, namespace: Namespace) -> Priority {
        match occasion {
            Occasion::Typing => Priority::Normal,
            _ if self.shows(namespace) => Priority::High,
            _ => Priority::Normal,
        }
    }

    fn shows(&self, namespace: Namespace) -> bool {
        self.high_priority_namespaces.contains(&namespace)
    }
}

/// Why a device is not woken. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppressed {
    Typing,
    TooLongConfig,
}

impl Suppressed {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Typing => "typing",
            Self::TooLongConfig => "too_long_config",
        }
    }
}

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

/// All of a message but its text: what the "too long" form tells. The device hears that something came, and fetches it.
pub struct Notice {
    event: MessageEvent,
    /// Of the text, bytes; `None` if there was none.
    length: Option<usize>,
}

impl Notice {
    pub fn of(mut event: MessageEvent) -> Self {
        let length = event.body.take().map(|body| body.0.len()).filter(|length| *length > 0);
        Self { event, length }
    }

    /// Without its text.
    pub const fn event(&self) -> &MessageEvent {
        &self.event
    }

    /// Why a device is not woken for this, if it is not.
    pub fn suppressed(&self, want_data: bool, settings: &SealSettings) -> Option<Suppressed> {
        let is_too_long = self
            .length
            .is_some_and(|length| want_data && length > Limits::OF_PROVIDERS.body);
        settings.suppresses(Occasion::of(&self.event), is_too_long)
    }

    /// As [`seal`] does it, but worth as little as any.
    pub fn seal(
        &self,
        device: DeviceView<'_>,
        settings: &SealSettings,
        random: [u8; 24],
    ) -> Result<Sealed, Suppressed> {
        if let Some(reason) = self.suppressed(device.want_data, settings) {
            return Err(reason);
        }
        let text = text_without_body(&self.event, self.length.filter(|_| device.want_data));
        Ok(Sealed {
            service: device.service,
            token: device.token.clone(),
            body: xchacha_seal(device.enc_key, &random, &settings.padding.pad(text)).into_boxed_slice(),
            fallback: None,
            class: Class::TooLong,
            priority: settings.priority(Occasion::of(&self.event), self.event.namespace),
            expires_at_ms: self.event.expiry_ms,
        })
    }
}

/// Seconds for which a provider is asked to keep a wakeup: one of three times, so that it does not see how long the message lives. The
/// shortest that is not over before the message is; 14 days for what lives longer; 0 for what is over.
pub const fn time_to_live(expires_at_ms: i64, now_ms: i64) -> i64 {
    let left_ms = expires_at_ms.saturating_sub(now_ms);
    if left_ms < 1_000 {
        0
    } else if left_ms <= (CALL_SECONDS + CLOCKS_DIFFER) * 1_000 {
        CALL_SECONDS
    } else if left_ms <= DAY_SECONDS * 1_000 {
        DAY_SECONDS
    } else {
        LONGEST_SECONDS
    }
}

/// What a ringing call has.
const CALL_SECONDS: i64 = 300;
/// A sender's clock may be ahead of ours, and a call that rings tomorrow is worse than one that ends half a minute early.
const CLOCKS_DIFFER: i64 = 30;
const DAY_SECONDS: i64 = 86_400;
/// As long as messages live, most of them. Huawei takes one day more, Google four weeks, Apple 30 days.
const LONGEST_SECONDS: i64 = 14 * DAY_SECONDS;

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

impl Class {
    pub const ALL: [Self; 4] = [Self::Call, Self::Visible, Self::Quiet, Self::TooLong];

    /// The number in a row.
    pub const fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.code() == code)
    }

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Visible => "visible",
            Self::Quiet => "quiet",
            Self::TooLong => "too_long",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    High = 1,
    Normal = 2,
}

impl Priority {
    /// The number in a row.
    pub const fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        [Self::High, Self::Normal]
            .into_iter()
            .find(|priority| priority.code() == code)
    }
}

/// What a message is about, as far as its namespace and life tell (push.md §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    Typing,
    Call,
    Message,
    Config,
}

impl Occasion {
    fn of(event: &MessageEvent) -> Self {
        match event.namespace {
            Namespace(0) => Self::of_life(event.expiry_ms.saturating_sub(event.timestamp_ms)),
            Namespace(2..=5 | 12..=14 | -11) => Self::Config,
            _ => Self::Message,
        }
    }

    fn of_life(life_ms: i64) -> Self {
        if life_ms <= TYPING_LIFE_MS {
            Self::Typing
        } else if life_ms <= CALL_LIFE_MS {
            Self::Call
        } else {
            Self::Message
        }
    }
}

/// Clients let typing indicators live 20 s.
const TYPING_LIFE_MS: i64 = 30_000;
/// Clients let call messages live 300 s.
const CALL_LIFE_MS: i64 = 300_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{AccountId, MessageHash};
    use crate::event::Body;
    use bytes::Bytes;
    use proptest::prelude::*;
    use quietline_shared::crypto::xchacha_open;

    const KEY: [u8; 32] = [7; 32];
    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_provider_sees_one_of_three_times_to_live() {
        let now = 1_800_000_000_000;
        let left = |ms: i64| time_to_live(now + ms, now);
        for (ms, expected) in [
            (-1, 0),
            (999, 0),
            (1_000, 300),
            (300_000, 300),
            (330_000, 300),
            (330_001, 86_400),
            (86_400_000, 86_400),
            (86_400_001, 1_209_600),
            (14 * 86_400_000, 1_209_600),
            (60 * 86_400_000, 1_209_600),
        ] {
            assert_eq!(left(ms), expected, "{ms}");
        }
        for (expires_at_ms, now_ms) in [(i64::MIN, i64::MAX), (i64::MIN, 0)] {
            assert_eq!(time_to_live(expires_at_ms, now_ms), 0);
        }
        assert_eq!(time_to_live(i64::MAX, i64::MIN), 1_209_600);
    }

    #[test]
    fn an_ordinary_message_is_visible_and_urgent_and_has_a_fallback() {
        let sealed = wake(&event(0, HOUR, Some(100))).unwrap();
        assert_eq!((sealed.class, sealed.priority), (Class::Visible, Priority::High));
        assert_eq!(sealed.expires_at_ms, 1_000 + HOUR);
        let fallback = sealed.fallback.as_deref().unwrap();
        assert!(open(&sealed.body).starts_with(b"l170:{\"@\": \"0505"));
        assert!(open(fallback).starts_with(b"ld1:#43:"));
        assert!(contains(&open(fallback), b"1:Bi1e1:li100e1:n"));
    }

    #[test]
    fn body_and_fallback_are_sealed_under_the_two_nonces() {
        let sealed = wake(&event(0, HOUR, Some(100))).unwrap();
        assert!(sealed.body.starts_with(&[1; 24]));
        assert!(sealed.fallback.unwrap().starts_with(&[2; 24]));
    }

    #[test]
    fn lengths_tell_only_the_two_classes() {
        let lengths = |body| {
            let sealed = wake(&event(0, HOUR, body)).unwrap();
            (sealed.body.len(), sealed.fallback.map(|fallback| fallback.len()))
        };
        assert_eq!(lengths(Some(1)), (40 + 512, Some(40 + 512)));
        assert_eq!(lengths(Some(1_000)), (40 + 2_816, Some(40 + 512)));
        assert_eq!(lengths(Some(2_500)), (40 + 2_816, Some(40 + 512)));
        assert_eq!(lengths(Some(2_501)), (40 + 512, None));
        assert_eq!(lengths(None), (40 + 512, None));
    }

    #[test]
    fn a_body_of_2501_bytes_is_told_but_not_carried() {
        let sealed = wake(&event(0, HOUR, Some(2_501))).unwrap();
        assert_eq!((sealed.class, sealed.priority), (Class::TooLong, Priority::High));
        assert!(contains(&open(&sealed.body), b"1:Bi1e1:li2501e1:ni0e"));
    }

    #[test]
    fn a_notice_tells_what_a_message_that_is_too_long_tells() {
        let token = DeviceToken::new(*b"token");
        let tell = |event: MessageEvent, want_data| {
            let device = DeviceView {
                want_data,
                ..device(&token)
            };
            Notice::of(event).seal(device, &SealSettings::default(), [0; 24])
        };
        let short = tell(event(0, HOUR, Some(100)), true).unwrap();
        assert_eq!((short.class, short.priority), (Class::TooLong, Priority::High));
        let whole = wake(&event(0, HOUR, Some(100))).unwrap();
        assert_eq!(open(&short.body), open(&whole.fallback.unwrap()));
        assert!(short.fallback.is_none());
        // A call as well, what has no text, and what a device wants no text of.
        for (body, want_data) in [(Some(5), true), (None, true), (Some(5), false)] {
            let call = tell(event(0, 200_000, body), want_data).unwrap();
            assert_eq!((call.class, call.body.len()), (Class::TooLong, 40 + 512));
            assert_eq!(contains(&open(&call.body), b"1:Bi1e"), body.is_some() && want_data);
        }
        assert_eq!(tell(event(0, 20_000, Some(5)), true), Err(Suppressed::Typing));
        assert_eq!(tell(event(3, HOUR, Some(2_501)), true), Err(Suppressed::TooLongConfig));
        assert!(tell(event(3, HOUR, Some(2_501)), false).is_ok() && tell(event(3, HOUR, Some(2_500)), true).is_ok());
    }

    #[test]
    fn a_device_that_wants_no_data_gets_neither_body_nor_length() {
        let token = DeviceToken::new(*b"token");
        let device = DeviceView {
            want_data: false,
            ..device(&token)
        };
        let sealed = seal(&event(11, HOUR, Some(5)), device, &SealSettings::default(), [0; 48]).unwrap();
        assert_eq!((sealed.class, sealed.fallback), (Class::TooLong, None));
        assert!(contains(&open(&sealed.body), b"1:ni11e1:ti1000e1:zi3601000eee"));
        assert!(!contains(&open(&sealed.body), b"1:B"));
    }

    #[test]
    fn a_message_that_lives_over_30_and_up_to_300_seconds_is_a_call() {
        let class = |life| wake(&event(0, life, Some(5))).map(|sealed| sealed.class);
        assert_eq!(class(30_000), Err(Suppressed::Typing));
        assert_eq!(class(30_001), Ok(Class::Call));
        assert_eq!(class(300_000), Ok(Class::Call));
        assert_eq!(class(300_001), Ok(Class::Visible));
        assert_eq!(class(i64::MIN), Err(Suppressed::Typing));
        assert_eq!(class(i64::MAX), Ok(Class::Visible));
    }

    #[test]
    fn typing_wakes_quietly_where_the_operator_wants_it() {
        let settings = SealSettings {
            skip_typing: false,
            ..SealSettings::default()
        };
        let token = DeviceToken::new(*b"token");
        let sealed = seal(&event(0, 20_000, Some(5)), device(&token), &settings, [0; 48]).unwrap();
        assert_eq!((sealed.class, sealed.priority), (Class::Quiet, Priority::Normal));
    }

    #[test]
    fn a_trial_is_as_urgent_as_a_message_and_as_long_as_the_smallest() {
        let token = DeviceToken::new(*b"token");
        let made = trial(
            AccountId::new([5; 33]),
            device(&token),
            Padding::TwoClasses,
            1_000,
            [7; 80],
        );
        assert_eq!((made.class, made.priority), (Class::TooLong, Priority::High));
        assert_eq!((made.body.len(), made.expires_at_ms), (40 + 512, 601_000));
        assert!(contains(&open(&made.body), b"1:@66:0505"));
    }

    #[test]
    fn only_messages_are_visible_and_urgent() {
        for namespace in [2, 3, 4, 5, 12, 13, 14, -11, 1, 21, -400] {
            let sealed = wake(&event(namespace, 20_000, Some(5))).unwrap();
            assert_eq!(
                (sealed.class, sealed.priority),
                (Class::Quiet, Priority::Normal),
                "namespace {namespace}"
            );
        }
        assert_eq!(wake(&event(11, 20_000, Some(5))).unwrap().priority, Priority::High);
    }

    #[test]
    fn what_shows_something_is_a_setting() {
        let settings = SealSettings {
            high_priority_namespaces: Arc::new([Namespace(11), Namespace(21)]),
            ..SealSettings::default()
        };
        let token = DeviceToken::new(*b"token");
        for (namespace, expected) in [
            (21, (Class::Visible, Priority::High)),
            (11, (Class::Visible, Priority::High)),
            (0, (Class::Quiet, Priority::Normal)),
        ] {
            let sealed = seal(&event(namespace, HOUR, Some(5)), device(&token), &settings, [0; 48]).unwrap();
            assert_eq!((sealed.class, sealed.priority), expected, "namespace {namespace}");
        }
    }

    #[test]
    fn calls_go_with_the_messages_where_the_operator_wants_it() {
        let settings = SealSettings {
            calls_first: false,
            ..SealSettings::default()
        };
        let token = DeviceToken::new(*b"token");
        for (body, expected) in [(Some(5), Class::Visible), (None, Class::TooLong)] {
            let sealed = seal(&event(0, 60_000, body), device(&token), &settings, [0; 48]).unwrap();
            assert_eq!((sealed.class, sealed.priority), (expected, Priority::High));
        }
    }

    #[test]
    fn config_that_is_too_long_wakes_nobody_unless_the_operator_wants_it() {
        let settings = SealSettings {
            skip_too_long_config: false,
            ..SealSettings::default()
        };
        let token = DeviceToken::new(*b"token");
        for namespace in [2, 3, 4, 5, 12, 13, 14, -11] {
            let long = event(namespace, HOUR, Some(2_501));
            assert_eq!(wake(&long), Err(Suppressed::TooLongConfig), "namespace {namespace}");
            let sealed = seal(&long, device(&token), &settings, [0; 48]).unwrap();
            assert_eq!((sealed.class, sealed.priority), (Class::TooLong, Priority::Normal));
            assert!(
                wake(&event(namespace, HOUR, None)).is_ok(),
                "nothing says that it is too long"
            );
        }
        for namespace in [0, 11, 1, 21] {
            assert!(
                wake(&event(namespace, HOUR, Some(2_501))).is_ok(),
                "namespace {namespace}"
            );
        }
    }

    #[test]
    fn a_negative_namespace_is_sent_as_a_number_in_both_forms() {
        let sealed = wake(&event(-11, HOUR, Some(5))).unwrap();
        assert!(contains(&open(&sealed.body), b"\"n\": -11, "));
        assert!(contains(&open(&sealed.fallback.unwrap()), b"1:ni-11e"));
    }

    #[test]
    fn a_hash_full_of_escapes_goes_up_a_class_or_leaves_the_body_out() {
        let with_hash = |length| MessageEvent {
            hash: MessageHash::from_slice(&[1; 99]).unwrap(),
            ..event(0, HOUR, Some(length))
        };
        let small = wake(&with_hash(1)).unwrap();
        assert_eq!((small.class, small.body.len()), (Class::Visible, 40 + 2_816));
        let large = wake(&with_hash(2_500)).unwrap();
        assert_eq!(
            (large.class, large.body.len(), large.fallback),
            (Class::TooLong, 40 + 512, None)
        );
    }

    #[test]
    fn a_cut_or_foreign_row_is_refused_by_name() {
        let sealed = wake(&event(0, HOUR, Some(5))).unwrap();
        let row = sealed.encode_row();
        let refusal = |row: &[u8]| Sealed::decode_row(row).unwrap_err().label();
        for length in 0..row.len() {
            assert_eq!(refusal(row.get(..length).unwrap()), "truncated");
        }
        assert_eq!(refusal(&[&row[..], &[0]].concat()), "trailing_bytes");
        assert_eq!(refusal(&[&[2], row.get(1..).unwrap()].concat()), "unknown_version");
        assert_eq!(refusal(&[&[1, 9], row.get(2..).unwrap()].concat()), "malformed");
    }

    proptest! {
        #[test]
        fn a_row_decodes_to_what_was_encoded(
            service in prop::sample::select(&Service::ALL[..]),
            class in prop::sample::select(&Class::ALL[..]),
            priority in prop::sample::select(&[Priority::High, Priority::Normal][..]),
            token in prop::collection::vec(any::<u8>(), 1..=1_000),
            body in prop::collection::vec(any::<u8>(), 1..=4_096),
            fallback in prop::option::of(prop::collection::vec(any::<u8>(), 1..600)),
            expires_at_ms: i64,
        ) {
            let sealed = Sealed {
                service, class, priority, expires_at_ms,
                token: DeviceToken::new(token),
                body: body.into(),
                fallback: fallback.map(Into::into),
            };
            prop_assert_eq!(Sealed::decode_row(&sealed.encode_row()), Ok(sealed));
        }

        #[test]
        fn any_bytes_are_a_row_or_a_refusal(tail in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Sealed::decode_row(&tail);
            let _ = Sealed::decode_row(&[&[1, 2, 1][..], &tail].concat());
        }
    }

    fn wake(event: &MessageEvent) -> Result<Sealed, Suppressed> {
        let mut random = [1; 48];
        random.split_at_mut(24).1.fill(2);
        seal(
            event,
            device(&DeviceToken::new(*b"token")),
            &SealSettings::default(),
            random,
        )
    }

    fn device(token: &DeviceToken) -> DeviceView<'_> {
        DeviceView {
            service: Service::Firebase,
            token,
            enc_key: &KEY,
            want_data: true,
        }
    }

    fn event(namespace: i16, life_ms: i64, body_length: Option<usize>) -> MessageEvent {
        MessageEvent {
            account: AccountId::new([5; 33]),
            hash: MessageHash::from_slice(&[b'h'; 43]).unwrap(),
            namespace: Namespace(namespace),
            timestamp_ms: 1_000,
            expiry_ms: life_ms.saturating_add(1_000),
            body: body_length.map(|length| Body(Bytes::from(vec![b'b'; length]))),
        }
    }

    fn open(sealed: &[u8]) -> Vec<u8> {
        xchacha_open(&KEY, sealed).unwrap()
    }

    fn contains(text: &[u8], part: &[u8]) -> bool {
        text.windows(part.len()).any(|window| window == part)
    }
}
