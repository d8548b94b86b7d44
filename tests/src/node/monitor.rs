//! What a storage server makes of one `monitor.messages` body: checks and answers as storage server 2.8.0 gives them.
//!
//! In: the body, the time. Out: accepted records, and the answer for each. Never: remembers.

use crate::bt;
use crate::phone::monitor_message;
use crate::sodium;

/// Signatures count for 14 days, and may be 24 hours ahead.
const OLDEST: i64 = 14 * 24 * 3600;
const NEWEST: i64 = 24 * 3600;

/// One accepted wish. `watched` is the account, or for a person 05 and the Ed25519 key: converting each key of a million would
/// cost a minute of the lab's processor time, and whoever sends a message knows the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub watched: [u8; 33],
    pub namespaces: Vec<i16>,
    pub want_data: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: i64,
    pub text: String,
}

pub type Answer = Result<Record, Refusal>;

/// A request's answers: one for a dict, a list for a list.
#[derive(Debug, PartialEq, Eq)]
pub enum Answers {
    One(Answer),
    List(Vec<Answer>),
}

/// Reads a whole request. `verify` says item by item whether to check the signature.
pub fn read(parts: &[&[u8]], now: i64, mut verify: impl FnMut() -> bool) -> Answers {
    let wrong_form = || {
        Answers::One(arguments(
            "monitor request takes a single bencoded dict or list parameter",
        ))
    };
    let [body] = parts else { return wrong_form() };
    if !body.ends_with(b"e") {
        return wrong_form();
    }
    match body.first() {
        Some(b'd') => Answers::One(record(body, now, verify()).0),
        Some(b'l') => {
            let (mut rest, mut answers) = (body.get(1..).unwrap_or_default(), Vec::new());
            while rest.first() == Some(&b'd') {
                let (answer, after) = record(rest, now, verify());
                answers.push(answer);
                let Some(after) = after else { return wrong_form() };
                rest = after;
            }
            if rest == b"e" {
                Answers::List(answers)
            } else {
                wrong_form()
            }
        }
        _ => wrong_form(),
    }
}

impl Answers {
    pub fn items(&self) -> &[Answer] {
        match self {
            Self::One(answer) => std::slice::from_ref(answer),
            Self::List(answers) => answers,
        }
    }

    pub fn items_mut(&mut self) -> &mut [Answer] {
        match self {
            Self::One(answer) => std::slice::from_mut(answer),
            Self::List(answers) => answers,
        }
    }

    /// The body of the REPLY.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * self.items().len() + 2);
        if let Self::List(_) = self {
            out.push(b'l');
        }
        for answer in self.items() {
            match answer {
                Ok(_) => out.extend_from_slice(b"d7:successi1ee"),
                Err(refusal) => {
                    out.extend_from_slice(format!("d7:errcodei{}e5:error", refusal.code).as_bytes());
                    bt::put_bytes(&mut out, refusal.text.as_bytes());
                    out.push(b'e');
                }
            }
        }
        if let Self::List(_) = self {
            out.push(b'e');
        }
        out
    }
}

/// One dict, and what follows it; `None` if its end was not found.
fn record(bytes: &[u8], now: i64, verify: bool) -> (Answer, Option<&[u8]>) {
    let after = after_value(bytes);
    let inside = bytes
        .get(1..bytes.len() - after.map_or(0, <[u8]>::len))
        .unwrap_or_default();
    (check(&mut Fields(inside), now, verify), after)
}

fn check(fields: &mut Fields, now: i64, verify: bool) -> Answer {
    // In the order in which the storage server asks for them: a key that comes too early is not found.
    let session_key = fields.bytes(b"P");
    let tag_signature = fields.bytes(b"S");
    let tag = fields.bytes(b"T");
    let want_data = fields.int(b"d").unwrap_or(0);
    let namespaces = fields
        .namespaces()
        .ok_or_else(|| refused(1, "Invalid arguments: Key n not found!"))?;
    let account_key = fields.bytes(b"p");
    let signature = fields.bytes(b"s");
    let signed_at = fields.int(b"t");

    if want_data > 1 {
        let text = "Integer deserialization failed: found too-large value";
        return arguments(&format!("{text} {want_data} > 1"));
    }
    let signature = signature.ok_or_else(|| refused(1, "Invalid arguments: Key s not found!"))?;
    let signed_at =
        signed_at.ok_or_else(|| refused(1, "Invalid arguments: required signature timestamp is missing"))?;
    let mut watched = [5; 33];
    match (session_key, account_key) {
        (Some(key), None) => {
            let key: &[u8; 32] = key
                .try_into()
                .map_err(|_| refused(2, "Provided P= Session Ed25519 pubkey must be 32 bytes"))?;
            watched[1..].copy_from_slice(key);
        }
        (None, Some(account)) => {
            watched = account
                .try_into()
                .map_err(|_| refused(2, "Provided p= pubkey must be 33 bytes"))?;
        }
        _ => return arguments("Either p= or P= must be given"),
    }
    if !namespaces.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(refused(3, "Invalid n= namespace list: namespaces must be ascending"));
    }
    if signed_at <= now - OLDEST {
        return Err(refused(4, "Invalid t= signature timestamp: timestamp is too old"));
    }
    if signed_at >= now + NEWEST {
        return Err(refused(
            4,
            "Invalid t= signature timestamp: timestamp is too far in the future",
        ));
    }
    let signature: &[u8; 64] = signature
        .try_into()
        .map_err(|_| refused(5, "Provided s= signature must be 64 bytes"))?;
    let subaccount = match (tag_signature, tag) {
        (Some(by_owner), Some(tag)) => {
            let tag: &[u8; 36] = tag
                .try_into()
                .map_err(|_| refused(2, "Provided T subaccount token must be 36 bytes"))?;
            let by_owner: &[u8; 64] = by_owner
                .try_into()
                .map_err(|_| refused(5, "Provided S= signature must be 64 bytes"))?;
            Some((tag, by_owner))
        }
        _ => None,
    };
    let record = Record {
        watched,
        namespaces,
        want_data: want_data == 1,
    };
    if verify {
        verify_signatures(&record, session_key.is_some(), subaccount, signed_at, signature)?;
    }
    Ok(record)
}

fn verify_signatures(
    record: &Record,
    is_person: bool,
    subaccount: Option<(&[u8; 36], &[u8; 64])>,
    signed_at: i64,
    signature: &[u8; 64],
) -> Result<(), Refusal> {
    let [prefix, key @ ..] = &record.watched;
    let mut account = record.watched;
    if is_person {
        let converted = sodium::ed25519_to_x25519(key)
            .ok_or_else(|| refused(2, "Provided P= Session Ed25519 pubkey is not valid"))?;
        account[1..].copy_from_slice(&converted);
    }
    let mut signer = *key;
    if let Some((tag, by_owner)) = subaccount {
        let [tag_prefix, flags, _, _, delegate @ ..] = tag;
        if flags & 1 == 0 {
            return Err(refused(
                5,
                "Subaccount verification failed: this subaccount does not have read permission",
            ));
        }
        if flags & 8 == 0 && tag_prefix != prefix {
            return Err(refused(
                5,
                "Subaccount verification failed: subaccount network prefix mismatch",
            ));
        }
        if !sodium::verify_ed25519(key, tag, by_owner) {
            return Err(refused(5, "Subaccount verification failed: bad signature"));
        }
        signer = *delegate;
    }
    let message = monitor_message(&account, signed_at, record.want_data, &record.namespaces);
    if sodium::verify_ed25519(&signer, message.as_bytes(), signature) {
        Ok(())
    } else {
        Err(refused(5, "Signature verification failed"))
    }
}

fn refused(code: i64, text: &str) -> Refusal {
    Refusal {
        code,
        text: text.to_owned(),
    }
}

fn arguments(text: &str) -> Answer {
    Err(refused(1, &format!("Invalid arguments: {text}")))
}

/// The keys and values of one dict, read forward only.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Skips lower keys; stays before `wanted` if the next key is higher.
    fn find(&mut self, wanted: &[u8]) -> Option<&'a [u8]> {
        loop {
            let (key, value) = bt::take_bytes(self.0)?;
            if key >= wanted {
                return (key == wanted).then_some(value);
            }
            self.0 = after_value(value)?;
        }
    }

    fn bytes(&mut self, key: &[u8]) -> Option<&'a [u8]> {
        let (bytes, rest) = bt::take_bytes(self.find(key)?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn int(&mut self, key: &[u8]) -> Option<i64> {
        let (number, rest) = bt::take_int(self.find(key)?)?;
        self.0 = rest;
        Some(number)
    }

    fn namespaces(&mut self) -> Option<Vec<i16>> {
        let mut rest = self.find(b"n")?.strip_prefix(b"l")?;
        let mut namespaces = Vec::with_capacity(5);
        while let Some((number, further)) = bt::take_int(rest) {
            namespaces.push(i16::try_from(number).ok()?);
            rest = further;
        }
        self.0 = rest.strip_prefix(b"e")?;
        Some(namespaces)
    }
}

/// What follows the value at the start of `bytes`.
fn after_value(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    let mut open = 0_u32;
    loop {
        match rest.first()? {
            b'i' => rest = bt::take_int(rest)?.1,
            b'l' | b'd' => {
                open += 1;
                rest = rest.get(1..)?;
            }
            b'e' => {
                open = open.checked_sub(1)?;
                rest = rest.get(1..)?;
            }
            _ => rest = bt::take_bytes(rest)?.1,
        }
        if open == 0 {
            return Some(rest);
        }
    }
}
