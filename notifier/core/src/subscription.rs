//! From a request's JSON to a signed, fresh, sorted subscription.
//!
//! In: the JSON text of `/subscribe`, `/unsubscribe` or `/test`, the clock. Out: `Subscription`s, `Unsubscription`s, `TestWish`es and
//! errors, item by item. Never: stores, or answers HTTP.

use crate::account::{AccountId, DeviceToken, NamespaceSet, Service};
use quietline_shared::redact::Secret;
use serde_json::Value;

mod error;
mod fields;
mod monitor;
pub(crate) mod row;
mod signature;

pub use error::{ErrorKind, ItemError, ServiceName};
pub use monitor::minimal_cover;
pub use row::{BINDING_MARK, RowError};

use fields::Fields;
use signature::Signer;

/// What the text of a request holds. The answer has the same form: an object for one item, an array for many.
pub enum Body {
    One(Box<Value>),
    /// At most [`MAX_ITEMS`], possibly none.
    Many(Vec<Value>),
    /// Answered with one object, even where an array was meant (push.md §3 Q14).
    Bad(ItemError),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(_) => f.write_str("One(<private>)"),
            Self::Many(items) => write!(f, "Many({} items)", items.len()),
            Self::Bad(error) => f.debug_tuple("Bad").field(error).finish(),
        }
    }
}

/// Splits the text of a request into its items. Nesting is bounded by serde_json (128), length by the HTTP layer.
pub fn parse_body(text: &[u8]) -> Body {
    match serde_json::from_slice(text) {
        Err(_) => Body::Bad(ItemError::InvalidJson),
        Ok(Value::Array(items)) if items.len() > MAX_ITEMS => Body::Bad(ItemError::TooManyItems),
        Ok(Value::Array(items)) => Body::Many(items),
        Ok(item) => Body::One(Box::new(item)),
    }
}

/// One item of `/subscribe`. `now` is Unix seconds; `on_offer` names the service a client may use here.
///
/// The order of the checks is upstream's: fields, service, token, namespaces, time, signatures.
pub fn subscribe(
    item: &Value,
    now: i64,
    on_offer: &dyn Fn(&str) -> Option<Service>,
) -> Result<Subscription, ItemError> {
    let fields = Fields::of(item)?;
    let signer = Signer::parse(&fields)?;
    let signature = fields.bytes("signature")?;
    let sig_ts = fields.timestamp("sig_ts")?;
    let service_name = fields.text("service")?;
    let service_info = fields.required("service_info")?;
    let enc_key = Secret::new(fields.bytes("enc_key")?);
    let namespaces = fields.namespaces("namespaces")?;
    let want_data = fields.flag("data")?;
    let binding = match fields.optional("binding") {
        Some(_) => Some(fields.bytes("binding")?),
        None => None,
    };

    let device = device(signer.account, service_name, service_info, on_offer)?;
    let namespaces = fields::sorted(namespaces)?;
    check_subscribe_time(sig_ts, now)?;
    signer.verify(
        &signature::monitor_text(&signer.account, sig_ts, want_data, &namespaces),
        &signature,
    )?;
    if let Some(binding) = &binding {
        signer.verify_binding(&signature::binding_text(&device, &enc_key, sig_ts), binding)?;
    }
    Ok(Subscription {
        device,
        session_ed25519: signer.session_ed25519,
        subaccount: signer.subaccount,
        namespaces,
        want_data,
        sig_ts,
        signature,
        enc_key,
        is_bound: binding.is_some(),
    })
}

/// One item of `/unsubscribe`. Fields that only `/subscribe` knows are not looked at.
pub fn unsubscribe(
    item: &Value,
    now: i64,
    on_offer: &dyn Fn(&str) -> Option<Service>,
) -> Result<Unsubscription, ItemError> {
    let (device, sig_ts) = signed_device(item, now, on_offer, signature::unsubscribe_text)?;
    Ok(Unsubscription { device, sig_ts })
}

/// One item of `/test`: as `/unsubscribe`, with a text of its own.
pub fn test(item: &Value, now: i64, on_offer: &dyn Fn(&str) -> Option<Service>) -> Result<TestWish, ItemError> {
    let (device, _) = signed_device(item, now, on_offer, signature::test_text)?;
    Ok(TestWish { device })
}

/// A device's token from a text, as an operator has it: what stands in `token`, or the JSON of a Web Push subscription.
pub fn token_of_text(service: Service, text: &str) -> Result<DeviceToken, ItemError> {
    let info = match service {
        Service::Webpush => serde_json::from_str(text).map_err(|_| ItemError::InvalidJson)?,
        _ => serde_json::json!({ "token": text }),
    };
    fields::device_token(service, &info)
}

/// And when it was signed.
fn signed_device(
    item: &Value,
    now: i64,
    on_offer: &dyn Fn(&str) -> Option<Service>,
    text: fn(&AccountId, i64) -> String,
) -> Result<(DeviceId, i64), ItemError> {
    let fields = Fields::of(item)?;
    let signer = Signer::parse(&fields)?;
    let signature = fields.bytes("signature")?;
    let sig_ts = fields.timestamp("sig_ts")?;
    let service_name = fields.text("service")?;
    let service_info = fields.required("service_info")?;

    let device = device(signer.account, service_name, service_info, on_offer)?;
    if now.saturating_sub(sig_ts).unsigned_abs() > UNSUBSCRIBE_WINDOW_SECONDS.unsigned_abs() {
        return Err(ItemError::UnsubscribeTimeOutsideWindow);
    }
    signer.verify(&text(&signer.account, sig_ts), &signature)?;
    Ok((device, sig_ts))
}

/// One device of one account, as its owner signed it.
pub struct Subscription {
    pub device: DeviceId,
    /// For an 05 account: its Ed25519 key, which converts to the account's X25519 key.
    pub session_ed25519: Option<[u8; 32]>,
    pub subaccount: Option<Subaccount>,
    pub namespaces: NamespaceSet,
    pub want_data: bool,
    /// Unix seconds.
    pub sig_ts: i64,
    pub signature: [u8; 64],
    /// XChaCha20-Poly1305 key of this device's wakeups.
    pub enc_key: Secret<[u8; 32]>,
    /// The request carried a `binding`. Not in the row: what follows from it is a mark beside the rows.
    pub is_bound: bool,
}

/// What makes a subscription unique: a renewal with the same three values replaces the old one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    pub account: AccountId,
    pub service: Service,
    pub token: DeviceToken,
}

/// Delegated access: `tag` is signed by the account and holds flags and the delegate's key.
#[derive(Clone, PartialEq, Eq)]
pub struct Subaccount {
    pub tag: [u8; 36],
    pub signature: [u8; 64],
}

impl Subaccount {
    /// The delegate's Ed25519 key.
    pub fn delegate(&self) -> &[u8; 32] {
        let [_, _, _, _, delegate @ ..] = &self.tag;
        delegate
    }
}

/// Its keys and signatures name the account as well as its id does.
impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription(<private>)")
    }
}

impl std::fmt::Debug for Subaccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subaccount(<private>)")
    }
}

/// A verified wish to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscription {
    pub device: DeviceId,
    /// Unix seconds. What the same device signed later stands.
    pub sig_ts: i64,
}

/// A verified wish for a test wakeup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestWish {
    pub device: DeviceId,
}

impl Subscription {
    /// Unix seconds after which the storage network refuses the signature.
    pub fn expires_at(&self) -> i64 {
        self.sig_ts.saturating_add(SIGNATURE_LIFETIME_SECONDS)
    }
}

fn device(
    account: AccountId,
    service_name: &str,
    service_info: &Value,
    on_offer: &dyn Fn(&str) -> Option<Service>,
) -> Result<DeviceId, ItemError> {
    let service = on_offer(service_name).ok_or_else(|| ItemError::UnknownService(ServiceName::new(service_name)))?;
    let token = fields::device_token(service, service_info)?;
    Ok(DeviceId {
        account,
        service,
        token,
    })
}

/// Both ends are exclusive, as upstream.
fn check_subscribe_time(sig_ts: i64, now: i64) -> Result<(), ItemError> {
    if sig_ts == 0 {
        Err(ItemError::TimestampMissing)
    } else if sig_ts <= now.saturating_sub(SIGNATURE_LIFETIME_SECONDS) {
        Err(ItemError::TimestampTooOld)
    } else if sig_ts >= now.saturating_add(SUBSCRIBE_AHEAD_SECONDS) {
        Err(ItemError::TimestampTooFarAhead)
    } else {
        Ok(())
    }
}

/// How long a MONITOR signature counts: 14 days (push.md §3 Q25).
pub const SIGNATURE_LIFETIME_SECONDS: i64 = 14 * 24 * 3600;
/// How far ahead of our clock a MONITOR signature may be: 24 hours (Q25).
pub const SUBSCRIBE_AHEAD_SECONDS: i64 = 24 * 3600;
/// How far from our clock, either way and inclusive, an UNSUBSCRIBE signature may be: 24 hours (Q25).
pub const UNSUBSCRIBE_WINDOW_SECONDS: i64 = 24 * 3600;
/// Items of one array. Clients send at most 100.
pub const MAX_ITEMS: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Namespace;
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_body_is_one_item_or_many_or_not_json() {
        assert!(matches!(parse_body(b"{}"), Body::One(_)));
        assert!(matches!(parse_body(b"5"), Body::One(_)));
        assert!(matches!(parse_body(b"[]"), Body::Many(items) if items.is_empty()));
        assert!(matches!(parse_body(b"[{},5]"), Body::Many(items) if items.len() == 2));
        for text in [&b""[..], b"{", b"\xff", b"{} {}"] {
            assert!(matches!(parse_body(text), Body::Bad(ItemError::InvalidJson)));
        }
    }

    #[test]
    fn an_array_holds_a_thousand_items_and_not_one_more() {
        let array = |items| format!("[{}]", vec!["0"; items].join(","));
        assert!(matches!(parse_body(array(MAX_ITEMS).as_bytes()), Body::Many(_)));
        assert!(matches!(
            parse_body(array(MAX_ITEMS + 1).as_bytes()),
            Body::Bad(ItemError::TooManyItems)
        ));
    }

    #[test]
    fn nesting_without_end_is_refused() {
        assert!(matches!(
            parse_body("[".repeat(200_000).as_bytes()),
            Body::Bad(ItemError::InvalidJson)
        ));
    }

    #[test]
    fn an_unknown_service_is_named_only_if_its_name_is_short_and_printable() {
        let message = |name: &str| ItemError::UnknownService(ServiceName::new(name)).message().into_owned();
        assert_eq!(
            message("carrier pigeon"),
            "carrier pigeon notification service not currently available"
        );
        for name in ["", "ü", "a\nb", "\u{1b}[0m", &"x".repeat(33)] {
            assert_eq!(message(name), "requested notification service not currently available");
        }
    }

    #[test]
    fn an_error_prints_no_word_of_the_client() {
        let error = ItemError::UnknownService(ServiceName::new("canary"));
        assert!(!format!("{error:?} {error}").contains("canary"));
    }

    #[test]
    fn a_time_outside_its_window_asks_the_client_to_set_its_clock() {
        let day = 24 * 3600;
        for (sig_ts, expected) in [
            (0, Some(ItemError::TimestampMissing)),
            (-5, Some(ItemError::TimestampTooOld)),
            (NOW - 14 * day, Some(ItemError::TimestampTooOld)),
            (NOW - 14 * day + 1, None),
            (NOW + day - 1, None),
            (NOW + day, Some(ItemError::TimestampTooFarAhead)),
            (i64::MIN, Some(ItemError::TimestampTooOld)),
            (i64::MAX, Some(ItemError::TimestampTooFarAhead)),
        ] {
            let error = check_subscribe_time(sig_ts, NOW).err();
            assert_eq!(error, expected, "{sig_ts}");
            assert!(error.is_none_or(|error| error.kind() == ErrorKind::Clock));
        }
    }

    #[test]
    fn an_unsubscribe_signature_counts_a_day_either_way_inclusive() {
        let outcome = |sig_ts: i64| {
            let item = json!({
                "pubkey": "03".repeat(33), "sig_ts": sig_ts, "signature": "00".repeat(64), "service": "firebase",
                "service_info": { "token": "t" },
            });
            unsubscribe(&item, NOW, &Service::from_name).unwrap_err()
        };
        for inside in [NOW - 86_400, NOW, NOW + 86_400] {
            assert_eq!(outcome(inside), ItemError::NotSigned);
        }
        for outside in [NOW - 86_401, NOW + 86_401, i64::MIN, i64::MAX, 0] {
            assert_eq!(outcome(outside), ItemError::UnsubscribeTimeOutsideWindow);
            assert_eq!(outcome(outside).kind(), ErrorKind::Clock);
        }
    }

    /// A group whose key is made of a fixed seed, so that its id is known too.
    fn group(seed: u8) -> (SigningKey, String) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let account = format!("03{}", hex::encode(key.verifying_key().as_bytes()));
        (key, account)
    }

    fn signed(key: &SigningKey, text: &str) -> String {
        hex::encode(key.sign(text.as_bytes()).to_bytes())
    }

    fn bound_request(binding: Value) -> Value {
        let (key, account) = group(1);
        json!({
            "pubkey": account, "sig_ts": NOW, "signature": signed(&key, &format!("MONITOR{account}{NOW}10")),
            "service": "firebase", "service_info": { "token": "token:1" }, "enc_key": "ab".repeat(32), "namespaces": [0],
            "data": true, "binding": binding,
        })
    }

    /// The example of docs/clients.md, byte for byte.
    #[test]
    fn a_binding_signs_account_time_service_token_and_key() {
        let (key, account) = group(1);
        let text = format!(
            "BINDING{account}{NOW}firebase{}{}",
            "13dfa5ce39565af499f9289fa8f359cd4c568df68cbb6aeca1c9ec111912513d",
            "ab".repeat(32)
        );
        let device = DeviceId {
            account: AccountId::from_slice(&hex::decode(&account).unwrap()).unwrap(),
            service: Service::Firebase,
            token: DeviceToken::new(*b"token:1"),
        };
        assert_eq!(signature::binding_text(&device, &Secret::new([0xab; 32]), NOW), text);
        let binding = signed(&key, &text);
        assert_eq!(
            binding,
            "92cc40e75b38040d902d73a1e6b7ad1a5bca72a4a84f8ae267e34d36eab72b56\
             7e520089bff4d8924f45254568cb9e27fdf1a4b6d3f243bc8570e1170fe17a0f"
        );
        let made = subscribe(&bound_request(json!(binding)), NOW, &Service::from_name).unwrap();
        assert!(made.is_bound);
        let without = subscribe(&bound_request(Value::Null), NOW, &Service::from_name).unwrap();
        assert!(!without.is_bound);
    }

    #[test]
    fn a_binding_for_another_token_key_time_or_service_is_refused() {
        let (key, account) = group(1);
        let token = hex::encode(quietline_shared::crypto::blake2b_256(&[b"token:1"]));
        let other = hex::encode(quietline_shared::crypto::blake2b_256(&[b"token:2"]));
        let (enc_key, later) = ("ab".repeat(32), NOW + 1);
        for text in [
            format!("BINDING{account}{NOW}firebase{other}{enc_key}"),
            format!("BINDING{account}{NOW}firebase{token}{}", "ac".repeat(32)),
            format!("BINDING{account}{later}firebase{token}{enc_key}"),
            format!("BINDING{account}{NOW}apns{token}{enc_key}"),
            format!("MONITOR{account}{NOW}10"),
        ] {
            let request = bound_request(json!(signed(&key, &text)));
            let error = subscribe(&request, NOW, &Service::from_name).unwrap_err();
            assert_eq!(error, ItemError::BindingNotSigned, "{text}");
        }
        for (binding, expected) in [(json!(5), ItemError::WrongType), (json!("ab"), ItemError::InvalidBytes)] {
            let error = subscribe(&bound_request(binding), NOW, &Service::from_name).unwrap_err();
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_delegate_binds_with_its_own_key() {
        let ((owner, account), (delegate, _)) = (group(1), group(2));
        let tag = format!("03010000{}", hex::encode(delegate.verifying_key().as_bytes()));
        let token = hex::encode(quietline_shared::crypto::blake2b_256(&[b"token:1"]));
        let text = format!("BINDING{account}{NOW}firebase{token}{}", "ab".repeat(32));
        let request = |binding: String| {
            json!({
                "pubkey": account, "sig_ts": NOW, "subaccount": tag,
                "subaccount_sig": hex::encode(owner.sign(&hex::decode(&tag).unwrap()).to_bytes()),
                "signature": signed(&delegate, &format!("MONITOR{account}{NOW}00")), "service": "firebase",
                "service_info": { "token": "token:1" }, "enc_key": "ab".repeat(32), "namespaces": [0], "binding": binding,
            })
        };
        let made = subscribe(&request(signed(&delegate, &text)), NOW, &Service::from_name).unwrap();
        assert!(made.is_bound);
        let error = subscribe(&request(signed(&owner, &text)), NOW, &Service::from_name).unwrap_err();
        assert_eq!(error, ItemError::BindingNotSigned);
    }

    #[test]
    fn a_wish_for_a_test_has_a_text_of_its_own() {
        let (key, account) = group(1);
        let request = |word: &str| {
            json!({
                "pubkey": account, "sig_ts": NOW, "signature": signed(&key, &format!("{word}{account}{NOW}")),
                "service": "firebase", "service_info": { "token": "token:1" },
            })
        };
        let wish = test(&request("TEST"), NOW, &Service::from_name).unwrap();
        assert_eq!(wish.device.token.expose(), b"token:1");
        let error = |result: Result<(), ItemError>| result.unwrap_err();
        assert_eq!(
            error(test(&request("UNSUBSCRIBE"), NOW, &Service::from_name).map(drop)),
            ItemError::NotSigned
        );
        assert_eq!(
            error(unsubscribe(&request("TEST"), NOW, &Service::from_name).map(drop)),
            ItemError::NotSigned
        );
        assert_eq!(
            error(test(&request("TEST"), NOW + 86_401, &Service::from_name).map(drop)),
            ItemError::UnsubscribeTimeOutsideWindow
        );
    }

    #[test]
    fn a_null_subaccount_is_no_subaccount() {
        let item = json!({ "pubkey": "03".repeat(33), "subaccount": null });
        let signer = Signer::parse(&Fields::of(&item).unwrap()).unwrap();
        assert_eq!(signer.subaccount, None);
    }

    #[test]
    fn a_subaccount_of_another_network_needs_the_flag_for_it() {
        let verdict = |flags: u8| {
            let tag = format!("05{flags:02x}0000{}", "07".repeat(32));
            let item = json!({
                "pubkey": "03".repeat(33), "subaccount": tag, "subaccount_sig": "00".repeat(64), "sig_ts": NOW,
                "signature": "00".repeat(64), "service": "firebase", "service_info": { "token": "t" },
            });
            unsubscribe(&item, NOW, &Service::from_name).unwrap_err()
        };
        assert_eq!(verdict(1), ItemError::SubaccountOfOtherNetwork);
        assert_eq!(verdict(1 | 8), ItemError::SubaccountNotSigned);
        assert_eq!(verdict(8), ItemError::SubaccountWithoutRead);
    }

    #[test]
    fn a_subaccount_without_its_signature_is_incomplete() {
        let item = json!({ "pubkey": "03".repeat(33), "subaccount": "00".repeat(36) });
        assert_eq!(
            Signer::parse(&Fields::of(&item).unwrap()).err(),
            Some(ItemError::MissingParameter)
        );
    }

    #[test]
    fn a_subscription_covers_what_asks_for_less_of_the_same_account() {
        let wide = sub(3, &[0, 2, 5], true, 10);
        assert!(wide.covers(&sub(3, &[0, 5], false, 20)));
        assert!(wide.covers(&wide));
        assert!(!wide.covers(&sub(3, &[0, 1], true, 10)));
        assert!(!wide.covers(&sub(4, &[0], true, 10)));
        assert!(!sub(3, &[0], false, 10).covers(&sub(3, &[0], true, 10)));
        let delegated = Subscription {
            subaccount: Some(Subaccount {
                tag: [1; 36],
                signature: [2; 64],
            }),
            ..sub(3, &[0, 2, 5], true, 10)
        };
        assert!(!wide.covers(&delegated) && !delegated.covers(&wide));
    }

    #[test]
    fn of_equal_subscriptions_the_newest_stays() {
        let subs = [sub(3, &[0], true, 10), sub(3, &[0], true, 30), sub(3, &[0], true, 20)];
        assert_eq!(
            minimal_cover(&subs).iter().map(|sub| sub.sig_ts).collect::<Vec<_>>(),
            [30]
        );
    }

    #[test]
    fn a_subscription_prints_nothing_private() {
        let text = format!("{:?}", sub(3, &[0], true, 10).device);
        assert_eq!(text.matches("<private>").count(), 2);
        assert!(!text.contains("token-of-a-device"));

        let subaccount = Subaccount {
            tag: [213; 36],
            signature: [213; 64],
        };
        assert_eq!(format!("{subaccount:?}"), "Subaccount(<private>)");
        let subscription = Subscription {
            session_ed25519: Some([213; 32]),
            subaccount: Some(subaccount),
            signature: [213; 64],
            ..sub(213, &[0], true, 10)
        };
        let printed = format!("{subscription:?} {subscription:#?}");
        assert!(!printed.contains("213") && !printed.contains("token"), "{printed}");
        for text in [
            r#"{"canary": 1}"#,
            r#"["canary"]"#,
            r#"{"canary""#,
            &format!("[{}]", ["\"canary\""; MAX_ITEMS + 1].join(",")),
        ] {
            let body = parse_body(text.as_bytes());
            let printed = format!("{body:?} {body:#?}");
            assert!(!printed.contains("canary"), "{printed}");
        }
    }

    #[test]
    fn a_cut_or_foreign_row_is_refused_by_name() {
        let row = sub(3, &[0, 1], true, 10).encode_row();
        let refusal = |row: &[u8]| Subscription::decode_row(row).unwrap_err();
        for length in 0..row.len() {
            assert_eq!(refusal(row.get(..length).unwrap()), RowError::Truncated);
        }
        assert_eq!(refusal(&[&row[..], &[0]].concat()), RowError::TrailingBytes);
        assert_eq!(
            refusal(&[&[2], row.get(1..).unwrap()].concat()),
            RowError::UnknownVersion
        );
        // A flag that does not exist, and a person's account without its session key.
        assert_eq!(
            refusal(&[&[1, 0x80], row.get(2..).unwrap()].concat()),
            RowError::Malformed
        );
        assert_eq!(
            refusal(&[&[1, 0, 5], row.get(3..).unwrap()].concat()),
            RowError::Malformed
        );
    }

    proptest! {
        #[test]
        fn a_row_decodes_to_what_was_encoded(sub in any_subscription()) {
            let row = sub.encode_row();
            let back = Subscription::decode_row(&row).unwrap();
            prop_assert_eq!(&back.device, &sub.device);
            prop_assert_eq!(back.session_ed25519, sub.session_ed25519);
            prop_assert_eq!(&back.subaccount, &sub.subaccount);
            prop_assert_eq!(&back.namespaces, &sub.namespaces);
            prop_assert_eq!((back.want_data, back.sig_ts, back.signature), (sub.want_data, sub.sig_ts, sub.signature));
            prop_assert_eq!(back.enc_key.expose(), sub.enc_key.expose());
            prop_assert_eq!(back.encode_row(), row);
        }

        #[test]
        fn any_bytes_are_a_row_or_a_refusal(tail in prop::collection::vec(any::<u8>(), 0..400), flags in 0u8..8) {
            let _ = Subscription::decode_row(&tail);
            let _ = Subscription::decode_row(&[&[1, flags][..], &tail].concat());
        }

        #[test]
        fn any_text_is_an_item_or_a_refusal(text in "\\PC{0,60}") {
            if let Body::One(item) = parse_body(text.as_bytes()) {
                prop_assert!(subscribe(&item, NOW, &Service::from_name).is_err());
                prop_assert!(unsubscribe(&item, NOW, &Service::from_name).is_err());
            }
        }

        #[test]
        fn a_cover_covers_everything_and_nothing_twice(
            wishes in prop::collection::vec((2u8..4, prop::collection::btree_set(0i16..4, 1..4), any::<bool>(), 0i64..5), 0..12),
        ) {
            let subs: Vec<_> = wishes
                .iter()
                .map(|(account, namespaces, want_data, sig_ts)| {
                    sub(*account, &namespaces.iter().copied().collect::<Vec<_>>(), *want_data, *sig_ts)
                })
                .collect();
            let cover = minimal_cover(&subs);
            prop_assert!(subs.iter().all(|sub| cover.iter().any(|kept| kept.covers(sub))));
            let idle = |kept: &&Subscription| cover.iter().any(|other| !std::ptr::eq(*other, *kept) && other.covers(kept));
            prop_assert!(!cover.iter().any(idle));
        }
    }

    fn sub(account: u8, namespaces: &[i16], want_data: bool, sig_ts: i64) -> Subscription {
        Subscription {
            device: DeviceId {
                account: AccountId::new([account; 33]),
                service: Service::Firebase,
                token: DeviceToken::new(*b"token-of-a-device"),
            },
            session_ed25519: None,
            subaccount: None,
            namespaces: NamespaceSet::new(namespaces.iter().map(|raw| Namespace(*raw)).collect::<Vec<_>>()).unwrap(),
            want_data,
            sig_ts,
            signature: [9; 64],
            enc_key: Secret::new([8; 32]),
            is_bound: false,
        }
    }

    fn any_subscription() -> impl Strategy<Value = Subscription> {
        (
            (
                any::<[u8; 33]>(),
                prop::sample::select(&Service::ALL[..]),
                prop::collection::vec(any::<u8>(), 1..=1_000),
            ),
            (any::<bool>(), any::<[u8; 32]>()),
            prop::option::of((any::<[u8; 36]>(), any::<[u8; 64]>())),
            prop::collection::btree_set(any::<i16>(), 1..=NamespaceSet::MAX),
            (any::<bool>(), any::<i64>(), any::<[u8; 64]>(), any::<[u8; 32]>()),
        )
            .prop_map(
                |((mut account, service, token), (session, session_ed25519), subaccount, namespaces, rest)| {
                    let [prefix, ..] = &mut account;
                    *prefix = if session { 5 } else { 3 };
                    let (want_data, sig_ts, signature, enc_key) = rest;
                    Subscription {
                        device: DeviceId {
                            account: AccountId::new(account),
                            service,
                            token: DeviceToken::new(token),
                        },
                        session_ed25519: session.then_some(session_ed25519),
                        subaccount: subaccount.map(|(tag, signature)| Subaccount { tag, signature }),
                        namespaces: NamespaceSet::new(namespaces.into_iter().map(Namespace).collect::<Vec<_>>())
                            .unwrap(),
                        want_data,
                        sig_ts,
                        signature,
                        enc_key: Secret::new(enc_key),
                        is_bound: false,
                    }
                },
            )
    }
}
