//! A phone: subscribes with signed requests, and opens what its push service hands it.
//!
//! In: seeds, the time, received ciphertext. Out: subscribe and unsubscribe JSON, onion requests, `PhoneMessage`. Never: asks the
//! product how something is done; the vectors are its only teacher.

use crate::bt::{self, Bt};
use crate::http::{HttpClient, HttpError};
use crate::onion::{self, Cipher, OnionReply};
use crate::sodium::{self, SigningKey};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Who wakes the phone; the names are those of `service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PushService {
    Apns,
    ApnsSandbox,
    Firebase,
    Huawei,
    /// Has no token of its own: its [`Reader`] comes from a push server.
    Webpush,
}

impl PushService {
    /// Those that hand out tokens without being asked where.
    pub const ALL: [Self; 4] = [Self::Apns, Self::ApnsSandbox, Self::Firebase, Self::Huawei];

    pub fn name(self) -> &'static str {
        match self {
            Self::Apns => "apns",
            Self::ApnsSandbox => "apns-sandbox",
            Self::Firebase => "firebase",
            Self::Huawei => "huawei",
            Self::Webpush => "webpush",
        }
    }

    /// A token of the form this service hands out.
    pub fn new_token(self) -> String {
        match self {
            Self::Apns | Self::ApnsSandbox => hex::encode(sodium::random::<32>()),
            Self::Firebase => format!(
                "{}:APA91b{}",
                URL_SAFE_NO_PAD.encode(sodium::random::<16>()),
                URL_SAFE_NO_PAD.encode(sodium::random::<96>())
            ),
            Self::Huawei => format!("IQAAAA{}", URL_SAFE_NO_PAD.encode(sodium::random::<96>())),
            Self::Webpush => String::new(),
        }
    }

    /// The namespaces today's client of this platform asks for, for its own account.
    pub fn usual_namespaces(self) -> Vec<i16> {
        match self {
            Self::Apns | Self::ApnsSandbox => vec![0, 2, 3, 4, 5],
            Self::Firebase | Self::Huawei | Self::Webpush => vec![0],
        }
    }
}

/// What a push server handed to an app.
#[derive(Clone)]
pub struct Reader {
    pub endpoint: String,
    pub secret: [u8; 32],
    /// Uncompressed point.
    pub public: Vec<u8>,
    pub auth: [u8; 16],
}

/// A member's delegated right to read a group.
#[derive(Clone)]
pub struct Subaccount {
    /// Prefix, flags, two unused bytes, the member's Ed25519 key.
    pub tag: [u8; 36],
    /// The group's signature over the tag.
    pub signature: [u8; 64],
}

/// One device with one account.
#[derive(Clone)]
pub struct Phone {
    account: [u8; 33],
    /// Signs MONITOR: the account's key, or a group member's.
    signing: SigningKey,
    /// Given in requests of an 05 account.
    session_ed25519: Option<[u8; 32]>,
    subaccount: Option<Subaccount>,
    pub enc_key: [u8; 32],
    pub service: PushService,
    pub token: String,
    /// Ascending.
    pub namespaces: Vec<i16>,
    pub want_data: bool,
    /// Of a phone with Web Push; its token is the endpoint.
    reader: Option<Reader>,
}

/// A message as the phone sees it after opening the push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhoneMessage {
    pub account: [u8; 33],
    pub hash: String,
    /// `None` is what the incumbent made of a negative namespace.
    pub namespace: Option<i64>,
    pub timestamp_ms: i64,
    pub expiry_ms: i64,
    /// Length of the whole message, given also when it is not carried.
    pub length: Option<i64>,
    pub body: PhoneBody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PhoneBody {
    Data(Vec<u8>),
    /// The phone has to fetch it.
    TooLong,
    /// The subscription did not ask for data, or there was none.
    None,
}

/// Why the phone cannot read a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("shorter than a nonce and a tag")]
    TooShort,
    #[error("does not open with this key")]
    NotForMe,
    #[error("opens, but is not a list of metadata and body")]
    BadForm,
}

/// How a request reached the notifier, and what came back.
#[derive(Clone, Debug)]
pub struct PhoneAnswer {
    /// Of the HTTP exchange that the storage server sees.
    pub outer_status: u16,
    /// `None` if the answer did not open; for a direct request made from the HTTP answer.
    pub reply: Option<OnionReply>,
}

impl Phone {
    /// A person with a fresh key, and the usual namespaces of the platform.
    pub fn new(service: PushService) -> Self {
        Self::person(&sodium::random(), service)
    }

    pub fn person(seed: &[u8; 32], service: PushService) -> Self {
        let signing = SigningKey::from_seed(seed);
        let session_ed25519 = Some(*signing.public());
        let x25519 = sodium::ed25519_to_x25519(signing.public()).expect("a key made from a seed is a good point");
        Self::with(
            prefixed(0x05, &x25519),
            signing,
            session_ed25519,
            None,
            service,
            service.usual_namespaces(),
        )
    }

    /// The admin of a closed group: the account's own key signs.
    pub fn group_admin(group_seed: &[u8; 32], service: PushService) -> Self {
        let signing = SigningKey::from_seed(group_seed);
        let account = prefixed(0x03, signing.public());
        Self::with(account, signing, None, None, service, vec![-11, 11, 12, 13, 14])
    }

    /// A member of a closed group: the group signed a tag, the member's key signs the requests.
    pub fn group_member(group_seed: &[u8; 32], member_seed: &[u8; 32], service: PushService) -> Self {
        let group = SigningKey::from_seed(group_seed);
        let member = SigningKey::from_seed(member_seed);
        let mut tag = [0; 36];
        tag[..2].copy_from_slice(&[0x03, 0b0011]);
        tag[4..].copy_from_slice(member.public());
        let subaccount = Subaccount {
            tag,
            signature: group.sign(&tag),
        };
        let account = prefixed(0x03, group.public());
        Self::with(
            account,
            member,
            None,
            Some(subaccount),
            service,
            vec![-11, 11, 12, 13, 14],
        )
    }

    fn with(
        account: [u8; 33],
        signing: SigningKey,
        session_ed25519: Option<[u8; 32]>,
        subaccount: Option<Subaccount>,
        service: PushService,
        namespaces: Vec<i16>,
    ) -> Self {
        Self {
            account,
            signing,
            session_ed25519,
            subaccount,
            enc_key: sodium::random(),
            service,
            token: service.new_token(),
            namespaces,
            want_data: true,
            reader: None,
        }
    }

    /// The same account on a phone with Web Push.
    pub fn with_reader(&self, reader: Reader) -> Self {
        Self {
            enc_key: sodium::random(),
            service: PushService::Webpush,
            token: reader.endpoint.clone(),
            namespaces: PushService::Webpush.usual_namespaces(),
            reader: Some(reader),
            ..self.clone()
        }
    }

    /// A second device of the same account.
    pub fn another_device(&self, service: PushService) -> Self {
        Self {
            enc_key: sodium::random(),
            service,
            token: service.new_token(),
            ..self.clone()
        }
    }

    pub fn reader(&self) -> Option<&Reader> {
        self.reader.as_ref()
    }

    pub fn account(&self) -> &[u8; 33] {
        &self.account
    }

    pub fn account_hex(&self) -> String {
        hex::encode(self.account)
    }

    /// The key a storage node sees in `P`; groups have none.
    pub fn session_ed25519(&self) -> Option<&[u8; 32]> {
        self.session_ed25519.as_ref()
    }

    /// The item of a `/subscribe` request, signed at `signed_at` (Unix seconds).
    pub fn subscribe_item(&self, signed_at: i64) -> Value {
        let message = monitor_message(&self.account, signed_at, self.want_data, &self.namespaces);
        let mut item = self.common_item(signed_at, &message);
        item["namespaces"] = json!(self.namespaces);
        item["data"] = json!(self.want_data);
        item["enc_key"] = json!(hex::encode(self.enc_key));
        item
    }

    /// The item of an `/unsubscribe` request.
    pub fn unsubscribe_item(&self, signed_at: i64) -> Value {
        self.common_item(signed_at, &unsubscribe_message(&self.account, signed_at))
    }

    /// The item of a `/test` request.
    pub fn test_item(&self, signed_at: i64) -> Value {
        self.common_item(signed_at, &format!("TEST{}{signed_at}", self.account_hex()))
    }

    /// The `binding` of a `/subscribe` request (docs/clients.md); for tokens that are text.
    pub fn binding(&self, signed_at: i64) -> String {
        let token = match &self.reader {
            Some(reader) => [&reader.public, reader.auth.as_slice(), reader.endpoint.as_bytes()].concat(),
            None => match self.service {
                PushService::Apns | PushService::ApnsSandbox => {
                    hex::decode(&self.token).expect("Apple's tokens are hex")
                }
                _ => self.token.as_bytes().to_vec(),
            },
        };
        let message = format!(
            "BINDING{}{signed_at}{}{}{}",
            self.account_hex(),
            self.service.name(),
            hex::encode(sodium::blake2b_256(&token)),
            hex::encode(self.enc_key)
        );
        STANDARD.encode(self.signing.sign(message.as_bytes()))
    }

    fn common_item(&self, signed_at: i64, message: &str) -> Value {
        let mut item = json!({
            "pubkey": self.account_hex(),
            "sig_ts": signed_at,
            "signature": STANDARD.encode(self.signing.sign(message.as_bytes())),
            "service": self.service.name(),
            "service_info": match &self.reader {
                None => json!({ "token": self.token }),
                Some(reader) => json!({
                    "endpoint": reader.endpoint,
                    "p256dh": URL_SAFE_NO_PAD.encode(&reader.public),
                    "auth": URL_SAFE_NO_PAD.encode(reader.auth),
                }),
            },
        });
        if let Some(key) = &self.session_ed25519 {
            item["session_ed25519"] = json!(hex::encode(key));
        }
        if let Some(subaccount) = &self.subaccount {
            item["subaccount"] = json!(hex::encode(subaccount.tag));
            item["subaccount_sig"] = json!(STANDARD.encode(subaccount.signature));
        }
        item
    }

    /// The record a notifier would send to a storage node for this phone.
    pub fn monitor_record(&self, signed_at: i64) -> Bt {
        let message = monitor_message(&self.account, signed_at, self.want_data, &self.namespaces);
        let namespaces = self
            .namespaces
            .iter()
            .map(|namespace| Bt::Int((*namespace).into()))
            .collect();
        let mut record = vec![
            ("n", Bt::List(namespaces)),
            ("s", Bt::text(self.signing.sign(message.as_bytes()))),
            ("t", Bt::Int(signed_at.into())),
        ];
        match &self.session_ed25519 {
            Some(key) => record.push(("P", Bt::text(key))),
            None => record.push(("p", Bt::text(self.account))),
        }
        if self.want_data {
            record.push(("d", Bt::Int(1)));
        }
        if let Some(subaccount) = &self.subaccount {
            record.push(("S", Bt::text(subaccount.signature)));
            record.push(("T", Bt::text(subaccount.tag)));
        }
        Bt::Dict(
            record
                .into_iter()
                .map(|(key, value)| (key.as_bytes().to_vec(), value))
                .collect(),
        )
    }

    /// Opens the bytes of an `enc_payload` (base64 already undone).
    pub fn open(&self, enc_payload: &[u8]) -> Result<PhoneMessage, OpenError> {
        open_payload(&self.enc_key, enc_payload)
    }

    pub async fn subscribe(
        &self,
        notifier: &HttpClient,
        server_public: &[u8; 32],
        cipher: Cipher,
    ) -> Result<PhoneAnswer, HttpError> {
        send_onion(
            notifier,
            server_public,
            cipher,
            "/subscribe",
            &self.subscribe_item(unix_seconds()),
        )
        .await
    }

    pub async fn unsubscribe(
        &self,
        notifier: &HttpClient,
        server_public: &[u8; 32],
        cipher: Cipher,
    ) -> Result<PhoneAnswer, HttpError> {
        send_onion(
            notifier,
            server_public,
            cipher,
            "/unsubscribe",
            &self.unsubscribe_item(unix_seconds()),
        )
        .await
    }
}

impl PhoneAnswer {
    /// The answer's JSON, if it came through.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.reply.as_ref()?.body).ok()
    }

    /// Whether everything asked for was done: `success` in the object, or in every item of the array.
    pub fn is_success(&self) -> bool {
        let done = |item: &Value| item["success"] == json!(true);
        match self.json() {
            Some(Value::Array(items)) => items.iter().all(done),
            Some(item) => done(&item),
            None => false,
        }
    }
}

/// Sends `request` (an object or an array) as the last hop of an onion path would.
pub async fn send_onion(
    notifier: &HttpClient,
    server_public: &[u8; 32],
    cipher: Cipher,
    endpoint: &str,
    request: &Value,
) -> Result<PhoneAnswer, HttpError> {
    let (bytes, key) = onion::request(cipher, server_public, endpoint, request.to_string().as_bytes());
    let answer = notifier.post(onion::PATH, "application/octet-stream", bytes).await?;
    Ok(PhoneAnswer {
        outer_status: answer.status,
        reply: key.open_reply(&answer.body),
    })
}

/// Sends `request` without an onion.
pub async fn send_direct(notifier: &HttpClient, endpoint: &str, request: &Value) -> Result<PhoneAnswer, HttpError> {
    let answer = notifier.post(endpoint, "application/json", request.to_string()).await?;
    let reply = OnionReply {
        code: answer.status.into(),
        content_type: answer.content_type,
        body: answer.body.to_vec(),
    };
    Ok(PhoneAnswer {
        outer_status: answer.status,
        reply: Some(reply),
    })
}

/// `MONITOR` ‖ account ‖ time ‖ 0 or 1 ‖ namespaces.
pub fn monitor_message(account: &[u8; 33], signed_at: i64, want_data: bool, namespaces: &[i16]) -> String {
    let namespaces: Vec<_> = namespaces.iter().map(i16::to_string).collect();
    format!(
        "MONITOR{}{signed_at}{}{}",
        hex::encode(account),
        u8::from(want_data),
        namespaces.join(",")
    )
}

pub fn unsubscribe_message(account: &[u8; 33], signed_at: i64) -> String {
    format!("UNSUBSCRIBE{}{signed_at}", hex::encode(account))
}

/// nonce ‖ XChaCha20-Poly1305; inside: metadata, body, zero bytes.
pub fn open_payload(enc_key: &[u8; 32], enc_payload: &[u8]) -> Result<PhoneMessage, OpenError> {
    let (nonce, sealed) = enc_payload.split_first_chunk::<24>().ok_or(OpenError::TooShort)?;
    if sealed.len() < 16 {
        return Err(OpenError::TooShort);
    }
    let plaintext = sodium::xchacha20_open(enc_key, nonce, sealed).ok_or(OpenError::NotForMe)?;
    let end = plaintext.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    read_payload(plaintext.get(..end).unwrap_or_default()).ok_or(OpenError::BadForm)
}

fn read_payload(plaintext: &[u8]) -> Option<PhoneMessage> {
    let list = plaintext.strip_prefix(b"l")?.strip_suffix(b"e")?;
    if list.starts_with(b"d") {
        return read_dict(&Bt::parse(list)?);
    }
    let (metadata, rest) = bt::take_bytes(list)?;
    let (body, rest) = bt::take_bytes(rest)?;
    let metadata: Value = serde_json::from_slice(metadata).ok()?;
    rest.is_empty().then_some(PhoneMessage {
        account: hex::decode(metadata["@"].as_str()?).ok()?.try_into().ok()?,
        hash: metadata["#"].as_str()?.to_owned(),
        namespace: metadata["n"].as_i64(),
        timestamp_ms: metadata["t"].as_i64()?,
        expiry_ms: metadata["z"].as_i64()?,
        length: metadata["l"].as_i64(),
        body: PhoneBody::Data(body.to_vec()),
    })
}

fn read_dict(metadata: &Bt) -> Option<PhoneMessage> {
    let text = |key| std::str::from_utf8(metadata.get(key)?.as_bytes()?).ok();
    let number = |key| metadata.get(key)?.as_int();
    Some(PhoneMessage {
        account: hex::decode(text("@")?).ok()?.try_into().ok()?,
        hash: text("#")?.to_owned(),
        namespace: number("n"),
        timestamp_ms: number("t")?,
        expiry_ms: number("z")?,
        length: number("l"),
        body: if number("B") == Some(1) {
            PhoneBody::TooLong
        } else {
            PhoneBody::None
        },
    })
}

fn prefixed(prefix: u8, key: &[u8; 32]) -> [u8; 33] {
    let mut account = [prefix; 33];
    account[1..].copy_from_slice(key);
    account
}

pub fn unix_seconds() -> i64 {
    unix_milliseconds() / 1000
}

pub fn unix_milliseconds() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is after 1970");
    i64::try_from(since.as_millis()).expect("the clock is before the year 292 million")
}
