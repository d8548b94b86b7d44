//! What would let something private out, refused where it is written.
//!
//! - a log line is a constant sentence; its fields are not private, and print by `Display` or `Debug` only what is listed;
//! - the label of a metric is never a text that was made up at run time;
//! - text is formatted from private values only in the listed files;
//! - a type that prints itself holds nothing private in a plain form;
//! - an error of a library that quotes its input is never kept, printed or made a text;
//! - the private types themselves cannot be printed.
//!
//! What is private is told by its name: this finds what somebody writes without thinking, not what somebody hides.

use super::sources;
use std::collections::BTreeSet;

const PRODUCT: [&str; 5] = [
    "shared/src",
    "notifier/core/src",
    "notifier/src",
    "turn/core/src",
    "turn/src",
];

/// Words of names of values that are private.
const PRIVATE: &[&str] = &[
    "account",
    "addr",
    "address",
    "addresses",
    "bearer",
    "bodies",
    "body",
    "client",
    "endpoint",
    "hash",
    "host",
    "identity",
    "ip",
    "jwt",
    "key",
    "keys",
    "nonce",
    "password",
    "payload",
    "peer",
    "peers",
    "pem",
    "secret",
    "signature",
    "subaccount",
    "token",
    "tokens",
    "uri",
    "url",
    "user",
    "username",
];
/// And of what bytes from outside are called where they are read.
const UNREAD: &[&str] = &[
    "bytes", "content", "contents", "data", "frame", "input", "message", "record", "request", "rest", "text",
];
/// Names of errors that are not our own: many quote what they could not read.
const FOREIGN: &[&str] = &["e", "err", "error", "source"];

/// Files that write such texts for a wire, a row, a provider or, in commands, for the operator who asked.
const MAY_FORMAT: &[&str] = &[
    // What clients sign, what phones read.
    "notifier/core/src/subscription/signature.rs",
    "notifier/core/src/seal/payload.rs",
    // Headers and bodies for providers, and where they are.
    "notifier/core/src/endpoint.rs",
    "notifier/core/src/webpush.rs",
    "notifier/src/dispatch/credential.rs",
    "notifier/src/dispatch/http2/dial.rs",
    "notifier/src/dispatch/oauth.rs",
    "notifier/src/watcher/nodes/seed.rs",
    // Names of settings and of keys, and what a page may load.
    "shared/src/service/audit.rs",
    "shared/src/service/config.rs",
    "shared/src/service/page.rs",
    "notifier/src/http/turn.rs",
    "turn/src/settings.rs",
    // What an operator asked for, about the operator's own machine.
    "turn/src/command/check.rs",
    "turn/src/command/check/here.rs",
    "turn/src/command/check/trial.rs",
    "turn/src/hazards.rs",
    "turn/src/offer.rs",
];

/// What a log line may print by `Display` or `Debug`: enums without contents.
const MAY_LOG: &[&str] = &["drained", "how", "error.kind()", "fault"];

/// Errors whose text quotes what they could not read.
const QUOTING: &[&str] = &[
    "serde_json::Error",
    "figment::Error",
    "toml::de::Error",
    "hyper::Error",
    "h2::Error",
    "http::Error",
    "sqlx::Error",
    "rustls::Error",
    "jsonwebtoken::errors::Error",
    "AddrParseError",
    "InvalidUri",
    "Utf8Error",
    "FromUtf8Error",
    "FromHexError",
    "DecodeError",
    "InvalidHeaderValue",
];

/// Types that print themselves and have such a field all the same.
const MAY_PRINT: &[(&str, &str, &str)] = &[
    // Ciphertext.
    ("notifier/core/src/seal.rs", "Sealed", "body"),
    ("notifier/src/dispatch.rs", "Push", "payload"),
    // Of the chain, public.
    ("notifier/core/src/swarm/list.rs", "NodeList", "block_hash"),
    // Its number in a file of keys; files of keys.
    ("shared/src/service/audit.rs", "Protection", "key"),
    ("turn/src/audit.rs", "View", "keys"),
    // Where clients find the operator's relay, which everybody is told.
    ("notifier/core/src/turn.rs", "RelayUrl", "0"),
    ("turn/src/offer.rs", "TurnUrl", "host"),
    ("turn/src/settings/page.rs", "PageSettings", "public_host"),
    // The operator's own settings; secrets are files.
    ("notifier/src/dispatch/settings.rs", "ApnsSettings", "host"),
    ("notifier/src/dispatch/settings.rs", "ApnsSettings", "key_id"),
    ("notifier/src/dispatch/settings.rs", "FirebaseSettings", "host"),
    ("notifier/src/dispatch/settings.rs", "FirebaseSettings", "token_uri"),
    ("notifier/src/dispatch/settings.rs", "HuaweiSettings", "client_id"),
    ("notifier/src/dispatch/settings.rs", "HuaweiSettings", "host"),
    ("notifier/src/dispatch/settings.rs", "HuaweiSettings", "token_uri"),
    ("notifier/src/watcher/settings.rs", "SeedSettings", "url"),
    ("turn/src/settings.rs", "ListenSettings", "addresses"),
];

#[test]
fn log_lines_are_constant_and_their_fields_are_not_private() {
    assert_eq!(of_all(log_faults), [""; 0]);
    for (leak, expected) in [
        (r#"tracing::info!("subscribed {account}");"#, "is not constant"),
        (r#"tracing::warn!(%peer, "refused");"#, "prints %peer"),
        (r#"tracing::warn!(peer, "refused");"#, "peer is private"),
        (
            r#"tracing::debug!(at = ?device.token, "sent");"#,
            "prints ?device.token",
        ),
        (
            r#"tracing::debug!(length = body_limit(), client_addr = 5, "sent");"#,
            "client_addr is private",
        ),
        (r#"tracing::trace!("a \" {} b", x.expose());"#, "is not constant"),
    ] {
        let found = log_faults("x.rs", leak);
        assert!(found.iter().any(|fault| fault.contains(expected)), "{leak}: {found:?}");
    }
    let good = r#"tracing::info!(target: "a::b", nodes = list.len(), ?how, kind = ?error.kind(), "stopped");"#;
    assert_eq!(log_faults("x.rs", good), [""; 0]);
}

#[test]
fn a_label_of_a_metric_is_never_made_at_run_time() {
    assert_eq!(of_all(label_faults), [""; 0]);
    for leak in [
        r#"metrics::counter!("a_total", "account" => hex::encode(account)).increment(1);"#,
        r#"metrics::gauge!("a", "node" => node.to_string());"#,
        r#"metrics::histogram!("a", "to" => format!("{to}"));"#,
        r#"metrics::counter!(name.clone());"#,
    ] {
        assert_eq!(label_faults("x.rs", leak).len(), 1, "{leak}");
    }
    let good =
        r#"metrics::counter!("http_items_total", "operation" => operation.label(), "reason" => "bad").increment(1);"#;
    assert_eq!(label_faults("x.rs", good), [""; 0]);
}

#[test]
fn texts_are_formatted_from_private_values_only_in_the_listed_files() {
    let mut used = BTreeSet::new();
    let mut faults = Vec::new();
    for folder in PRODUCT {
        for (path, text) in sources(folder) {
            let found = format_faults(&path, &text);
            if found.is_empty() {
                continue;
            }
            if MAY_FORMAT.contains(&&*path) {
                used.insert(path);
            } else {
                faults.extend(found);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let unused: Vec<_> = MAY_FORMAT.iter().filter(|path| !used.contains(**path)).collect();
    assert!(
        unused.is_empty(),
        "these are listed and format nothing private: {unused:?}"
    );
    for leak in [
        r#"let line = format!("to {peer}");"#,
        r#"let line = format!("to {peer_addr:?}");"#,
        r#"write!(out, "{}", self.client_addr)?;"#,
        r#"let line = format!("{0:>9}", device.token);"#,
        r#"panic!("{}", subscription.account);"#,
        r#"let why = error.to_string();"#,
        r#"format!("{{}}, {error}")"#,
    ] {
        assert_eq!(format_faults("x.rs", leak).len(), 1, "{leak}");
    }
    for good in [
        r#"format!("{count} faults, {}", limit.as_secs())"#,
        r#"format!("{{token}} {{name}}")"#,
        r#"write!(f, "CurveBox(<secret>)")"#,
        r#"let why = fault.to_string();"#,
    ] {
        assert_eq!(format_faults("x.rs", good), [""; 0], "{good}");
    }
}

#[test]
fn a_type_that_prints_itself_holds_nothing_private_in_a_plain_form() {
    let mut used = BTreeSet::new();
    let mut faults = Vec::new();
    for folder in PRODUCT {
        for (path, text) in sources(folder) {
            for (holder, field) in debug_faults(&text) {
                match MAY_PRINT
                    .iter()
                    .find(|(file, a, b)| *file == path && *a == holder && *b == field)
                {
                    Some(listed) => drop(used.insert(*listed)),
                    None => faults.push(format!("{path}: {holder} derives Debug and {field} is plain")),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let unused: Vec<_> = MAY_PRINT.iter().filter(|listed| !used.contains(*listed)).collect();
    assert!(unused.is_empty(), "{unused:?}");
    for leak in [
        "#[derive(Clone, Debug)]\npub struct Device { pub token: Vec<u8>, count: u32 }",
        "#[derive(Debug)]\nstruct A { enc_key: [u8; 32] }",
        "#[derive(Debug)]\nenum A { B { peer: SocketAddr }, C }",
        "#[derive(Debug, Clone)]\n#[serde(x)]\npub(crate) struct A<'a> { user: Option<&'a str>, }",
        "#[derive(Debug)]\nstruct Password(String);",
        "#[derive(Debug)]\nstruct Reader<'a> { rest: &'a [u8] }",
        "#[derive(Debug)]\npub struct PeerAddr(pub SocketAddr);",
    ] {
        assert_eq!(debug_faults(leak).len(), 1, "{leak}");
    }
    for good in [
        "#[derive(Clone)]\npub struct Device { token: Vec<u8> }",
        "#[derive(Debug)]\npub struct Device { token: Private<Vec<u8>>, length: u32 }",
        "#[derive(Debug)]\nstruct A { token: DeviceToken }",
        "#[derive(Debug)]\nstruct Token(Private<Box<[u8]>>);",
    ] {
        assert_eq!(debug_faults(good), [], "{good}");
    }
}

#[test]
fn an_error_that_quotes_its_input_is_never_kept() {
    assert_eq!(of_all(quoting_faults), [""; 0]);
    for leak in [
        "enum Fault { Json(#[from] serde_json::Error) }",
        "pub struct Fault { source: sqlx::Error, }",
        "struct Fault(hyper::Error);",
    ] {
        assert_eq!(quoting_faults("x.rs", leak).len(), 1, "{leak}");
    }
    let good = "impl From<sqlx::Error> for Fault { fn from(error: sqlx::Error) -> Self { Self::Busy } }";
    assert_eq!(quoting_faults("x.rs", good), [""; 0]);
}

/// Whether a type has an impl: the inherent constant is there only where its bound holds, and goes before the trait's.
macro_rules! implements {
    ($type:ty, $bound:path) => {{
        #[allow(dead_code, reason = "where the bound holds nobody asks it")]
        trait Otherwise {
            const IT: bool = false;
        }
        impl<T: ?Sized> Otherwise for T {}
        struct Probe<T: ?Sized>(std::marker::PhantomData<T>);
        #[allow(dead_code, reason = "where the bound does not hold nobody sees it")]
        impl<T: ?Sized + $bound> Probe<T> {
            const IT: bool = true;
        }
        <Probe<$type>>::IT
    }};
}

macro_rules! cannot_be_printed {
    ($($type:ty),* $(,)?) => {
        [$((
            stringify!($type),
            implements!($type, std::fmt::Display)
                || implements!($type, std::string::ToString)
                || implements!($type, std::ops::Deref)
                || implements!($type, AsRef<[u8]>)
                || implements!($type, std::fmt::LowerHex),
        )),*]
    };
}

#[test]
fn private_types_cannot_be_printed() {
    use notifier_core::{account, endpoint, outbox, subscription};
    use quietline_shared::{crypto, onion, redact};
    let types = cannot_be_printed![
        redact::Private<String>,
        redact::Secret<[u8; 32]>,
        account::AccountId,
        account::MessageHash,
        account::DeviceToken,
        endpoint::PushEndpoint,
        subscription::DeviceId,
        subscription::Subscription,
        outbox::PushId,
        outbox::Target,
        onion::Body,
        onion::ReplyKey,
        crypto::CurveBox,
        crypto::P256Key,
    ];
    let printable: Vec<_> = types.iter().filter(|(_, is_printable)| *is_printable).collect();
    assert!(printable.is_empty(), "{printable:?}");
    let known = cannot_be_printed![String, u32, std::net::IpAddr, Vec<u8>];
    assert!(known.iter().all(|(_, is_printable)| *is_printable), "{known:?}");
}

fn of_all(look: fn(&str, &str) -> Vec<String>) -> Vec<String> {
    PRODUCT
        .iter()
        .flat_map(|folder| sources(folder))
        .flat_map(|(path, text)| look(&path, &text))
        .collect()
}

fn log_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for level in [
        "trace",
        "debug",
        "info",
        "warn",
        "error",
        "event",
        "span",
        "info_span",
        "debug_span",
        "trace_span",
    ] {
        for call in calls(text, &format!("tracing::{level}!")) {
            for part in parts(call) {
                let value = part.split_once('=').map_or(part, |(_, value)| value).trim();
                if part.starts_with('"') {
                    if !placeholders(part).is_empty() {
                        faults.push(format!("{path}: the sentence {part} is not constant"));
                    }
                } else if let Some(printed) = value.strip_prefix(['?', '%']) {
                    if !MAY_LOG.contains(&printed) {
                        faults.push(format!("{path}: a log line prints {value}"));
                    }
                } else {
                    let field = part.split(['=', ':']).next().unwrap_or_default().trim();
                    if is_private(field) {
                        faults.push(format!("{path}: {field} is private, and a field of a log line"));
                    }
                }
            }
        }
    }
    faults
}

fn label_faults(path: &str, text: &str) -> Vec<String> {
    let made = [
        "format!",
        "to_string",
        "to_owned",
        "String::",
        "encode(",
        ".expose",
        "clone()",
        "from_utf8",
        "Cow::",
    ];
    ["counter", "gauge", "histogram"]
        .iter()
        .flat_map(|kind| calls(text, &format!("metrics::{kind}!")))
        .filter(|call| made.iter().any(|word| call.contains(word)))
        .map(|call| format!("{path}: a label that is made at run time: {call}"))
        .collect()
}

fn format_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for name in [
        "format!",
        "write!",
        "writeln!",
        "panic!",
        "format_args!",
        "unreachable!",
        "assert!",
        "assert_eq!",
        "print!",
        "eprintln!",
    ] {
        for call in calls(text, name) {
            let parts = parts(call);
            let Some(at) = parts
                .iter()
                .position(|part| part.starts_with(['"', 'r']) && part.contains('"'))
            else {
                continue;
            };
            let inline = placeholders(parts[at]);
            let mut words: Vec<&str> = inline.iter().copied().filter(|name| !name.is_empty()).collect();
            if !inline.is_empty() {
                words.extend(parts[at + 1..].iter().flat_map(|part| last_names(part)));
            }
            if let Some(word) = words
                .into_iter()
                .find(|word| is_private(word) || FOREIGN.contains(word))
            {
                faults.push(format!("{path}: {word} is formatted: {name}({call})"));
            }
        }
    }
    for error in FOREIGN {
        let made = format!("{error}.to_string()");
        let is_whole = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
        if text.match_indices(&made).any(|(at, _)| is_whole(at)) {
            faults.push(format!("{path}: {error} is made a text"));
        }
    }
    faults
}

/// (type, field) of each plain field with a private name in a type that derives Debug.
fn debug_faults(text: &str) -> Vec<(String, String)> {
    let plain = [
        "[u8",
        "Vec<u8>",
        "Bytes",
        "String",
        "str",
        "IpAddr",
        "SocketAddr",
        "Ipv4Addr",
        "Ipv6Addr",
    ];
    let mut faults = Vec::new();
    for rest in text.split("#[derive(").skip(1) {
        let Some((derived, rest)) = rest.split_once(")]") else {
            continue;
        };
        if !derived.split(',').any(|one| one.trim() == "Debug") {
            continue;
        }
        let Some(at) = ["struct ", "enum "]
            .iter()
            .filter_map(|kind| rest.find(kind).map(|at| at + kind.len()))
            .min()
        else {
            continue;
        };
        let rest = &rest[at..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(open) = rest.find(['{', '(', ';']) else {
            continue;
        };
        let body = balanced(&rest[open..]);
        let is_plain = |kind: &str| {
            let words = kind
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .collect::<Vec<_>>();
            let is_kept = words.iter().any(|word| ["Private", "Secret"].contains(word));
            !is_kept
                && plain
                    .iter()
                    .any(|plain| match plain.chars().all(char::is_alphanumeric) {
                        true => words.contains(plain),
                        false => kind.contains(plain),
                    })
        };
        if rest[open..].starts_with('(') {
            if is_private(&snake(&name)) && is_plain(body) {
                faults.push((name, "0".to_owned()));
            }
            continue;
        }
        let mut fields = Vec::new();
        fields_of(body, &mut fields);
        for (field, kind) in fields {
            if (is_private(field) || UNREAD.contains(&field)) && is_plain(kind) {
                faults.push((name.clone(), field.to_owned()));
            }
        }
    }
    faults
}

/// `name: Type` at any depth: those of an enum's variants too.
fn fields_of<'a>(body: &'a str, found: &mut Vec<(&'a str, &'a str)>) {
    for part in parts(body) {
        let part = without_attributes(part);
        if let Some(open) = part.find('{') {
            fields_of(balanced(&part[open..]), found);
        } else if let Some((name, kind)) = part.split_once(':')
            && !name.contains('(')
        {
            found.push((name.rsplit(' ').next().unwrap_or(name).trim(), kind.trim()));
        }
    }
}

fn without_attributes(mut part: &str) -> &str {
    while let Some(rest) = part.trim_start().strip_prefix("#[") {
        let end = balanced(&part.trim_start()[1..]).len() + 1;
        part = rest.get(end..).unwrap_or_default();
    }
    part.trim()
}

fn quoting_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for kind in ["struct ", "enum "] {
        for rest in text.split(kind).skip(1) {
            let Some(open) = rest.find(['{', '(', ';']) else {
                continue;
            };
            let body = balanced(&rest[open..]);
            if let Some(error) = QUOTING.iter().find(|error| body.contains(**error)) {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
                faults.push(format!("{path}: {name} keeps a {error}, which quotes its input"));
            }
        }
    }
    faults
}

fn is_private(name: &str) -> bool {
    // A number of them, or a way to them, is not one of them.
    let counted = [
        "limit", "max", "min", "most", "len", "length", "count", "file", "files", "path", "size", "rate", "total",
    ];
    let words: Vec<&str> = name.split('_').collect();
    words.iter().any(|word| PRIVATE.contains(word)) && !words.iter().any(|word| counted.contains(word))
}

/// `PeerAddr` is `peer_addr`.
fn snake(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        if character.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(character.to_lowercase());
    }
    text
}

/// What stands between the parentheses of each call of a macro.
fn calls<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find(name).map(|at| from + at) {
        from = at + name.len();
        let is_whole = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        if is_whole && text[from..].starts_with(['(', '[', '{']) {
            found.push(balanced(&text[from..]));
        }
    }
    found
}

/// From an opening bracket to its closing one, without both.
fn balanced(text: &str) -> &str {
    let mut depth = 0;
    for (at, character) in outside_texts(text) {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth -= 1;
                if depth == 0 {
                    return &text[1..at];
                }
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    ""
}

/// The parts between the commas of the uppermost level.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut from) = (0i32, 0);
    let mut found = Vec::new();
    for (at, character) in outside_texts(text) {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(text[from..].trim());
    found.retain(|part| !part.is_empty());
    found
}

/// The characters that are not within a text.
fn outside_texts(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut is_text, mut before) = (false, ' ');
    text.char_indices().filter(move |(_, character)| {
        let was_text = is_text;
        if *character == '"' && before != '\\' && before != '\'' {
            is_text = !is_text;
        }
        before = if before == '\\' { ' ' } else { *character };
        !was_text && !is_text
    })
}

/// The names within `{}` of a text; an empty one for `{}` and for a number.
fn placeholders(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        rest = &rest[open + 1..];
        if let Some(after) = rest.strip_prefix('{') {
            rest = after;
            continue;
        }
        let end = rest.find(['}', ':']).unwrap_or(rest.len());
        let name = rest[..end].trim();
        found.push(if name.starts_with(|c: char| c.is_ascii_digit()) {
            ""
        } else {
            name
        });
        rest = rest[end..].split_once('}').map_or("", |(_, after)| after);
    }
    found
}

/// Of `self.peer.addr` and `name = x.len()` what the value is called in the end: `addr`, `len`.
fn last_names(part: &str) -> Option<&str> {
    let value = part
        .split_once('=')
        .filter(|(_, value)| !value.starts_with('='))
        .map_or(part, |(_, value)| value)
        .trim();
    let value = value.trim_end_matches("()").trim_end_matches('?');
    let name = value.rsplit(['.', ':', '&', ' ', '*']).next()?;
    name.chars().all(|c| c.is_alphanumeric() || c == '_').then_some(name)
}
