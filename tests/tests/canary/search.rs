//! Finds private values in whatever a process let out, in any of the forms in which one could have got there.
//!
//! In: marked values, bytes of a sink. Out: which value stands there and how it was written. Never: takes a value for another: what is
//! searched for are nine bytes in a row, of values that are random.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use std::collections::HashMap;
use std::net::Ipv4Addr;

/// Bytes of a value that count as a leak. Nine bytes are three groups of base64, so that every alignment has such a piece.
const PIECE: usize = 9;
/// The head of a value is searched for in shorter form too: "the first few digits" is how people shorten things.
const HEAD: usize = 6;
/// Bytes of a pattern that the table is keyed by.
const KEY: usize = 6;
/// Of a long value, such as a message, so much of its beginning and of its end.
const LONG: usize = 96;

/// How a value may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    Raw,
    Reversed,
    HexLower,
    HexUpper,
    HexOfReversed,
    HexUpperOfReversed,
    /// `9f:3a`, as keys and certificates are printed.
    HexColons,
    /// `9f 3a`, as a dump of packets is printed.
    HexSpaces,
    /// `0x9f, 0x3a`, as `{:#x?}` prints bytes.
    HexList,
    Base64,
    Base64Url,
    Base64OfReversed,
    /// `1, 2, 3`, as Debug prints bytes.
    DecimalList,
    /// `1,2,3`, as JSON prints bytes.
    DecimalListTight,
    /// `\x9f`, as Debug prints `Bytes`.
    RustEscape,
    /// `\u009f`
    JsonEscape,
    /// `\u009F`, and each `/` as `\/`
    JsonEscapeUpper,
    /// Bytes as the letters of Latin-1, in UTF-8.
    Latin1,
    Percent,
    PercentLower,
    Utf16,
    Utf16OfHex,
    Utf16BigEndian,
    Utf16BigEndianOfHex,
    Utf16OfBase64,
}

impl Form {
    pub const ALL: [Self; 25] = [
        Self::Raw,
        Self::Reversed,
        Self::HexLower,
        Self::HexUpper,
        Self::HexOfReversed,
        Self::HexUpperOfReversed,
        Self::HexColons,
        Self::HexSpaces,
        Self::HexList,
        Self::Base64,
        Self::Base64Url,
        Self::Base64OfReversed,
        Self::DecimalList,
        Self::DecimalListTight,
        Self::RustEscape,
        Self::JsonEscape,
        Self::JsonEscapeUpper,
        Self::Latin1,
        Self::Percent,
        Self::PercentLower,
        Self::Utf16,
        Self::Utf16OfHex,
        Self::Utf16BigEndian,
        Self::Utf16BigEndianOfHex,
        Self::Utf16OfBase64,
    ];

    /// `bytes` written in this form.
    pub fn write(self, bytes: &[u8]) -> Vec<u8> {
        let reversed = || bytes.iter().rev().copied().collect::<Vec<u8>>();
        let each = |write: fn(u8) -> String| bytes.iter().map(|byte| write(*byte)).collect::<String>().into_bytes();
        let list = |between: &str, write: fn(&u8) -> String| {
            let numbers: Vec<_> = bytes.iter().map(write).collect();
            numbers.join(between).into_bytes()
        };
        let hex = |byte: &u8| format!("{byte:02x}");
        let little = |text: &[u8]| text.iter().flat_map(|byte| [*byte, 0]).collect::<Vec<u8>>();
        let big = |text: &[u8]| text.iter().flat_map(|byte| [0, *byte]).collect::<Vec<u8>>();
        match self {
            Self::Raw => bytes.to_vec(),
            Self::Reversed => reversed(),
            Self::HexLower => hex::encode(bytes).into_bytes(),
            Self::HexUpper => hex::encode_upper(bytes).into_bytes(),
            Self::HexOfReversed => hex::encode(reversed()).into_bytes(),
            Self::HexUpperOfReversed => hex::encode_upper(reversed()).into_bytes(),
            Self::HexColons => list(":", hex),
            Self::HexSpaces => list(" ", hex),
            Self::HexList => list(", ", |byte| format!("{byte:#x}")),
            Self::Base64OfReversed => STANDARD_NO_PAD.encode(reversed()).into_bytes(),
            Self::Base64 => STANDARD_NO_PAD.encode(bytes).into_bytes(),
            Self::Base64Url => URL_SAFE_NO_PAD.encode(bytes).into_bytes(),
            Self::DecimalList => list(", ", u8::to_string),
            Self::DecimalListTight => list(",", u8::to_string),
            Self::RustEscape => bytes.escape_ascii().to_string().into_bytes(),
            Self::JsonEscape => each(|byte| match byte {
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\u{byte:04x}"),
            }),
            Self::JsonEscapeUpper => each(|byte| match byte {
                b'/' => "\\/".to_owned(),
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\u{byte:04X}"),
            }),
            Self::Latin1 => each(|byte| char::from(byte).to_string()),
            Self::Percent => each(|byte| match is_plain_in_url(byte) {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            }),
            Self::PercentLower => each(|byte| match is_plain_in_url(byte) {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02x}"),
            }),
            Self::Utf16 => little(bytes),
            Self::Utf16OfHex => little(hex::encode(bytes).as_bytes()),
            Self::Utf16BigEndian => big(bytes),
            Self::Utf16BigEndianOfHex => big(hex::encode(bytes).as_bytes()),
            Self::Utf16OfBase64 => little(STANDARD_NO_PAD.encode(bytes).as_bytes()),
        }
    }
}

fn is_plain_in_url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

/// One leak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub value: String,
    pub form: Form,
    /// Where in the sink.
    pub at: usize,
}

/// All marked values, ready to be searched for.
#[derive(Default)]
pub struct Search {
    names: Vec<String>,
    example: Vec<u8>,
    /// By their first bytes.
    patterns: HashMap<[u8; KEY], Vec<Pattern>>,
}

struct Pattern {
    bytes: Vec<u8>,
    value: usize,
    form: Form,
}

impl Search {
    /// A value of at least nine bytes.
    pub fn mark(&mut self, name: impl Into<String>, value: &[u8]) {
        let name = name.into();
        assert!(value.len() >= PIECE, "{name} is too short to be told from chance");
        let number = self.names.len();
        self.names.push(name);
        if self.example.is_empty() {
            self.example = value.to_vec();
        }
        let (front, back) = if value.len() > 2 * LONG {
            (&value[..LONG], &value[value.len() - LONG..])
        } else {
            (value, &value[..0])
        };
        for piece in front.windows(PIECE).chain(back.windows(PIECE)) {
            if is_by_chance(value, piece) {
                continue;
            }
            let mut written = Vec::with_capacity(Form::ALL.len());
            for form in Form::ALL {
                let bytes = form.write(piece);
                // Of a text, many forms are the text itself.
                if !written.contains(&bytes) {
                    written.push(bytes.clone());
                    self.add(bytes, number, form);
                }
            }
        }
        let head = &value[..HEAD];
        let forms = [Form::HexLower, Form::HexUpper, Form::RustEscape];
        for form in forms.into_iter().filter(|_| !is_by_chance(value, head)) {
            let written = form.write(head);
            if !(is_hex(value) && written == head) {
                self.add(written, number, form);
            }
        }
    }

    /// Bytes that nobody reads as text: also marked as the texts that people write them as.
    pub fn mark_bytes(&mut self, name: &str, value: &[u8]) {
        self.mark(name, value);
        self.mark(format!("{name}, hex text"), hex::encode(value).as_bytes());
        self.mark(format!("{name}, base64 text"), STANDARD.encode(value).as_bytes());
    }

    /// An address, in the forms in which so few bytes can be told from chance.
    pub fn mark_address(&mut self, name: &str, address: Ipv4Addr) {
        self.mark(name, address.to_string().as_bytes());
        let number = self.names.len() - 1;
        for form in [
            Form::HexLower,
            Form::HexUpper,
            Form::DecimalList,
            Form::DecimalListTight,
            Form::RustEscape,
        ] {
            self.add(form.write(&address.octets()), number, form);
        }
        // As one number, in either order of its bytes.
        for number_text in [u32::from(address), u32::from(address).swap_bytes()].map(|number| number.to_string()) {
            if number_text.len() >= PIECE {
                self.add(number_text.into_bytes(), number, Form::Raw);
            }
        }
    }

    /// A value that is marked, for somebody who plants it.
    pub fn example(&self) -> &[u8] {
        &self.example
    }

    pub fn values(&self) -> usize {
        self.names.len()
    }

    pub fn find(&self, sink: &[u8]) -> Option<Found> {
        sink.windows(KEY).enumerate().find_map(|(at, key)| {
            let key: &[u8; KEY] = key.try_into().expect("windows have the length asked for");
            let candidates = self.patterns.get(key)?;
            let pattern = candidates
                .iter()
                .find(|pattern| sink[at..].starts_with(&pattern.bytes))?;
            Some(Found {
                value: self.names[pattern.value].clone(),
                form: pattern.form,
                at,
            })
        })
    }

    fn add(&mut self, bytes: Vec<u8>, value: usize, form: Form) {
        if let Some(key) = bytes.first_chunk::<KEY>().copied() {
            self.patterns
                .entry(key)
                .or_default()
                .push(Pattern { bytes, value, form });
        }
    }
}

/// Some digits of a longer text, such as of a key in hex: among the random numbers of a table they stand anyway.
fn is_by_chance(value: &[u8], piece: &[u8]) -> bool {
    piece.iter().all(u8::is_ascii_digit) && !value.iter().all(u8::is_ascii_digit)
}

/// Six digits of a text in hex stand by chance in every hundredth table of random ids; nine do not.
fn is_hex(value: &[u8]) -> bool {
    value.iter().all(u8::is_ascii_hexdigit)
}

/// What one process let out, by where it went.
#[derive(Default)]
pub struct Sinks(Vec<(String, Vec<u8>)>);

impl Sinks {
    pub fn add(&mut self, name: impl Into<String>, bytes: impl AsRef<[u8]>) {
        let name = name.into();
        let bytes = bytes.as_ref();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sink)) => {
                sink.push(b'\n');
                sink.extend_from_slice(bytes);
            }
            None => self.0.push((name, bytes.to_vec())),
        }
    }

    pub fn each(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (&**name, &**bytes))
    }

    pub fn length(&self, name: &str) -> usize {
        self.each()
            .find(|(known, _)| *known == name)
            .map_or(0, |(_, sink)| sink.len())
    }

    /// Each leak with the name of its sink and the text around it.
    pub fn leaks(&self, search: &Search) -> Vec<String> {
        let leak = |(name, sink): (&str, &[u8])| {
            let found = search.find(sink)?;
            let around = &sink[found.at.saturating_sub(120)..(found.at + 120).min(sink.len())];
            Some(format!(
                "{name} has \"{}\" as {:?}: …{}…",
                found.value,
                found.form,
                around.escape_ascii()
            ))
        };
        self.each().filter_map(leak).collect()
    }
}
