//! Settings, read once, with every fault named in one go.
//!
//! In: a TOML file and one `Deserialize` type per section. Out: the sections, or all faults: which key, what is wrong,
//! what is expected. Never: prints a value (somebody pastes a key where its file belongs), or stops at the first fault.

use super::access::is_open_to_others;
use crate::redact::Secret;
use figment::error::{Actual, Kind};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use zeroize::{Zeroize, Zeroizing};

/// One settings file while its sections are taken out of it.
///
/// ```no_run
/// # use quietline_shared::service::config::{Faults, SettingsFile};
/// # #[derive(serde::Deserialize)] struct HttpSettings {}
/// # fn read() -> Result<(), Faults> {
/// let mut file = SettingsFile::read("notifier.toml".as_ref())?;
/// let http = file.section::<HttpSettings>("http");
/// let warnings = file.finish()?;
/// # Ok(()) }
/// ```
pub struct SettingsFile {
    folder: PathBuf,
    sections: Dict,
    taken: BTreeSet<String>,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
}

impl SettingsFile {
    /// Only a file that cannot be read or is not TOML fails here; everything else is collected until [`Self::finish`].
    pub fn read(path: &Path) -> Result<Self, Faults> {
        let whole = |problem: String, expected: &str| {
            Faults(vec![Fault {
                place: path.display().to_string(),
                problem,
                expected: expected.to_owned(),
            }])
        };
        let bytes = read_bounded(path, SETTINGS_LIMIT).map_err(|fault| whole(fault.problem(), &fault.expected()))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| whole("is not UTF-8".into(), "TOML text"))?;
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Self::parse(text, &folder).map_err(|fault| whole(fault.problem, &fault.expected))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, Fault> {
        let mut sections: Dict = Toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map(|before| before.lines().count().max(1));
            Fault {
                place: String::new(),
                problem: match line {
                    Some(line) => format!("is not TOML at line {line}"),
                    None => "is not TOML".into(),
                },
                // The parser's own text names tokens and keys; its long form would quote the line.
                expected: error.message().lines().collect::<Vec<_>>().join(", "),
            }
        })?;
        make_paths_absolute(&mut sections, folder, credentials().as_deref());
        Ok(Self {
            folder: folder.into(),
            sections,
            taken: BTreeSet::new(),
            faults: vec![],
            warnings: vec![],
        })
    }

    /// The section, or `None` when it has faults. A section that is absent is read as an empty one, so each of its
    /// settings without a default is named.
    pub fn section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        self.taken.insert(name.to_owned());
        let value = self
            .sections
            .get(name)
            .cloned()
            .unwrap_or_else(|| Value::from(Dict::new()));
        if value.as_dict().is_none() {
            self.faults
                .push(Fault::new(name, "is a single value", format!("a section: [{name}]")));
            return None;
        }
        let (section, mut faults) = deserialize_all::<T>(value, name);
        let clean = faults.is_empty();
        self.faults.append(&mut faults);
        section.filter(|_| clean)
    }

    /// As [`Self::section`], for a section that may be left out.
    pub fn optional_section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        self.sections.contains_key(name).then(|| self.section(name)).flatten()
    }

    /// Adds a fault that types cannot express, such as a range or two settings that exclude each other.
    pub fn fault(&mut self, place: &str, problem: impl Into<String>, expected: impl Into<String>) {
        self.faults.push(Fault::new(place, problem, expected));
    }

    /// Adds what works and yet is not right.
    pub fn warn(&mut self, place: &str, problem: impl Into<String>, expected: impl Into<String>) {
        self.warnings.push(Fault::new(place, problem, expected));
    }

    /// The path that the setting `place` (`section.key`) names, whatever else is wrong with its section.
    pub fn path(&self, place: &str) -> Option<PathBuf> {
        let (section, key) = place.split_once('.')?;
        let value = self.sections.get(section)?.as_dict()?.get(key)?;
        value.as_str().map(PathBuf::from)
    }

    /// As [`Self::path`] for each item of a list of sections: `[[auth.user]]` is the list `auth.user`. Beside each path its place, such as
    /// `auth.user[0].password_file`; an item without one has `None`.
    pub fn paths(&self, list: &str, key: &str) -> Vec<(String, Option<PathBuf>)> {
        let items = list.split_once('.').and_then(|(section, list)| {
            match self.sections.get(section)?.as_dict()?.get(list)? {
                Value::Array(_, items) => Some(items.as_slice()),
                _ => None,
            }
        });
        let path = |item: &Value| item.as_dict()?.get(key)?.as_str().map(PathBuf::from);
        items
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(number, item)| (format!("{list}[{number}].{key}"), path(item)))
            .collect()
    }

    /// The key in the file that the setting `place` names; a fault is collected.
    pub fn key_32(&mut self, place: &str, path: &Path) -> Option<Secret<[u8; 32]>> {
        let key = read_key_32(path);
        self.collect(place, path, key)
    }

    /// The keys in the file that the setting `place` names, one a line, at most `most`; a fault is collected.
    pub fn keys_32(&mut self, place: &str, path: &Path, most: usize) -> Option<Vec<Secret<[u8; 32]>>> {
        let keys = read_keys_32(path, most);
        self.collect(place, path, keys)
    }

    /// The bytes of a file that anybody may read, such as a certificate, at most `limit`; a fault is collected.
    pub fn public_file(&mut self, place: &str, path: &Path, limit: usize) -> Option<Vec<u8>> {
        match read_bounded(path, limit) {
            Ok(bytes) => Some(bytes),
            Err(fault) => {
                self.unusable(place, path, fault);
                None
            }
        }
    }

    /// The bytes of the file that the setting `place` names, at most `limit`; a fault is collected.
    pub fn secret_file(&mut self, place: &str, path: &Path, limit: usize) -> Option<Secret<Vec<u8>>> {
        let bytes = read_bounded(path, limit);
        self.collect(place, path, bytes).map(Secret::new)
    }

    /// As [`Self::secret_file`] for a password or secret that is text: one line end at its end does not count, so that what `echo` and
    /// editors write is read as it is meant.
    pub fn secret_text(&mut self, place: &str, path: &Path, limit: usize) -> Option<Secret<Vec<u8>>> {
        let text = read_bounded(path, limit).map(|mut bytes| {
            let line_end = match bytes.as_slice() {
                [.., b'\r', b'\n'] => 2,
                [.., b'\n'] => 1,
                _ => 0,
            };
            bytes.truncate(bytes.len() - line_end);
            bytes
        });
        self.collect(place, path, text).map(Secret::new)
    }

    fn collect<T>(&mut self, place: &str, path: &Path, read: Result<T, FileFault>) -> Option<T> {
        match read {
            Ok(value) => {
                if is_open_to_others(path) {
                    let name = printable_path(path, &self.folder);
                    self.warn(
                        place,
                        format!("{name} can be read by other users of this machine"),
                        "mode 0600",
                    );
                }
                Some(value)
            }
            Err(fault) => {
                self.unusable(place, path, fault);
                None
            }
        }
    }

    fn unusable(&mut self, place: &str, path: &Path, fault: FileFault) {
        let name = printable_path(path, &self.folder);
        self.fault(place, format!("{name} {}", fault.problem()), fault.expected());
    }

    /// All faults found, among them sections nobody asked for; otherwise the warnings.
    pub fn finish(mut self) -> Result<Warnings, Faults> {
        let known: Vec<&str> = self.taken.iter().map(String::as_str).collect();
        for name in self.sections.keys().filter(|name| !self.taken.contains(*name)) {
            self.faults.push(unknown(name, name, &known));
        }
        self.finish_partly()
    }

    /// As [`Self::finish`] for a command that needs only some sections: it says nothing about the others.
    pub fn finish_partly(self) -> Result<Warnings, Faults> {
        if self.faults.is_empty() {
            Ok(Warnings(self.warnings))
        } else {
            Err(Faults(self.faults))
        }
    }
}

/// One thing that is wrong with the settings. It never holds a value of a setting, except the path of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `section.key`
    pub place: String,
    pub problem: String,
    pub expected: String,
}

impl Fault {
    pub fn new(place: &str, problem: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            place: place.to_owned(),
            problem: problem.into(),
            expected: expected.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (expected: {})", self.place, self.problem, self.expected)
    }
}

/// Every fault of a settings file, one a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Fault::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// What is allowed and yet not right.
#[must_use = "a warning nobody sees helps nobody"]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(pub Vec<Fault>);

/// A secret key: 64 hex digits (white space around them is fine) or 32 raw bytes.
pub fn read_key_32(path: &Path) -> Result<Secret<[u8; 32]>, FileFault> {
    let mut bytes = read_bounded(path, KEY_FILE_LIMIT)?;
    let key = parse_key_32(&bytes);
    bytes.zeroize();
    key.map(Secret::new)
}

/// As [`read_key_32`], one key a line, at most `most`; lines without anything do not count.
pub fn read_keys_32(path: &Path, most: usize) -> Result<Vec<Secret<[u8; 32]>>, FileFault> {
    let bytes = Zeroizing::new(read_bounded(path, KEY_FILE_LIMIT.saturating_mul(most))?);
    let lines: Vec<&[u8]> = bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
        .collect();
    // Raw bytes may hold a line end anywhere.
    if bytes.len() == 32 || lines.len() < 2 {
        return parse_key_32(&bytes).map(|key| vec![Secret::new(key)]);
    }
    if lines.len() > most {
        return Err(FileFault::WrongLength { found: bytes.len() });
    }
    let keys = lines.into_iter().map(|line| parse_key_32(line).map(Secret::new));
    keys.collect()
}

fn parse_key_32(bytes: &[u8]) -> Result<[u8; 32], FileFault> {
    let key = match <[u8; 32]>::try_from(bytes) {
        // 32 random bytes are all printable once in 10^13 keys; a sentence in the place of a key always is.
        Ok(raw)
            if raw
                .iter()
                .all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t')) =>
        {
            return Err(FileFault::Placeholder);
        }
        Ok(raw) => raw,
        Err(_) => {
            let text = bytes.trim_ascii();
            let mut key = [0; 32];
            match hex::decode_to_slice(text, &mut key) {
                Ok(()) => key,
                Err(hex::FromHexError::InvalidHexCharacter { .. }) if text.len() == 64 => {
                    return Err(FileFault::NotHex);
                }
                Err(_) => return Err(FileFault::WrongLength { found: bytes.len() }),
            }
        }
    };
    let different: BTreeSet<u8> = key.iter().copied().collect();
    let counts_up = key
        .windows(2)
        .all(|pair| matches!(pair, [a, b] if a.wrapping_add(1) == *b));
    if key == [0; 32] {
        Err(FileFault::Zero)
    } else if different.len() < FEWEST_DIFFERENT_BYTES || counts_up {
        Err(FileFault::Placeholder)
    } else {
        Ok(key)
    }
}

/// Why a file named by a setting is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    #[error("does not exist")]
    Missing,
    #[error("cannot be read ({0})")]
    Unreadable(std::io::ErrorKind),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("holds {found} bytes")]
    WrongLength { found: usize },
    #[error("holds something other than hex digits")]
    NotHex,
    #[error("holds a key of zeros")]
    Zero,
    #[error("holds a placeholder")]
    Placeholder,
}

impl FileFault {
    fn problem(&self) -> String {
        self.to_string()
    }

    fn expected(&self) -> String {
        match self {
            Self::Missing | Self::NotAFile => "a file that exists".into(),
            Self::Unreadable(_) => "a file that this user may read".into(),
            Self::TooLarge { limit } => format!("at most {limit} bytes"),
            Self::WrongLength { .. } | Self::NotHex => "64 hex digits or 32 raw bytes".into(),
            Self::Zero | Self::Placeholder => "32 random bytes, as keygen makes them".into(),
        }
    }
}

impl From<std::io::Error> for FileFault {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::Missing,
            kind => Self::Unreadable(kind),
        }
    }
}

fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>, FileFault> {
    // Asked before opening: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(FileFault::NotAFile);
    }
    // One buffer of the full size, so that no half-grown copy of a key stays behind in freed memory.
    let mut bytes = Vec::with_capacity(limit + 1);
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        bytes.zeroize();
        return Err(FileFault::TooLarge { limit });
    }
    Ok(bytes)
}

/// A path for a fault; blank if it looks as if somebody put a key where its file belongs.
fn printable_path(path: &Path, folder: &Path) -> String {
    let given = path.strip_prefix(folder).unwrap_or(path).to_string_lossy();
    let key_alphabet = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '=');
    let like_a_key = matches!(given.len(), 43 | 44 | 64 | 128) && given.chars().all(key_alphabet);
    if like_a_key || given.contains('\n') {
        "the file".into()
    } else {
        path.display().to_string()
    }
}

/// `path` and everything that ends in `_file` starts at the folder of the settings, or at that of systemd's credentials.
fn make_paths_absolute(dict: &mut Dict, folder: &Path, credentials: Option<&Path>) {
    for (key, value) in dict.iter_mut() {
        match value {
            // An empty path would become the folder itself; left empty, it fails as what it is.
            Value::String(_, text) if (key == "path" || key.ends_with("_file")) && !text.is_empty() => {
                *text = match text.strip_prefix(CREDENTIALS) {
                    // Without credentials the name stays as it is, and says what is missing.
                    Some(name) => credentials.map_or_else(|| text.clone(), |folder| starting_at(folder, name)),
                    None => starting_at(folder, text),
                };
            }
            Value::Dict(_, inner) => make_paths_absolute(inner, folder, credentials),
            Value::Array(_, items) => {
                for item in items {
                    if let Value::Dict(_, inner) = item {
                        make_paths_absolute(inner, folder, credentials);
                    }
                }
            }
            _ => {}
        }
    }
}

fn starting_at(folder: &Path, path: &str) -> String {
    folder.join(path).to_string_lossy().into_owned()
}

/// Whether a path of the settings names a credential that systemd has not handed to this process.
pub fn is_missing_credential(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(CREDENTIALS))
}

/// Where systemd puts what `LoadCredential=` and its like name (systemd.exec(5)). A place, never a secret.
fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Reads `T` again and again, each time without the key that was at fault, until nothing new is found.
///
/// A key that may not be left out gets stand-ins of each type in turn, so that the faults behind it are found too.
fn deserialize_all<T: DeserializeOwned>(mut value: Value, section: &str) -> (Option<T>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut attempts: Vec<(Vec<String>, Attempt)> = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let error = match T::deserialize(&value) {
            Ok(section) => return (Some(section), faults),
            Err(error) => error,
        };
        let mut path = error.path.clone();
        let mut expected_one_of: &[&str] = &[];
        let missing = match &error.kind {
            Kind::MissingField(name) => {
                path.push(name.to_string());
                true
            }
            Kind::UnknownVariant(_, variants) => {
                expected_one_of = variants;
                false
            }
            _ => false,
        };
        let position = match attempts.iter().position(|(known, _)| path.starts_with(known)) {
            Some(position) => position,
            None => {
                faults.push(describe(&error.kind, &place(section, &path)));
                if path.is_empty() {
                    break;
                }
                let first = if missing { Attempt::StandIn(0) } else { Attempt::Removed };
                attempts.push((path.clone(), first));
                let applied = match first {
                    Attempt::Removed => {
                        remove(&mut value, &path) || put(&mut value, &path, stand_in(0, expected_one_of))
                    }
                    Attempt::StandIn(_) => put(&mut value, &path, stand_in(0, expected_one_of)),
                };
                if !applied {
                    break;
                }
                continue;
            }
        };
        let Some((path, attempt)) = attempts.get_mut(position) else {
            break;
        };
        let next = match attempt {
            Attempt::Removed => 0,
            Attempt::StandIn(tried) => *tried + 1,
        };
        *attempt = Attempt::StandIn(next);
        let stand_in = stand_in(next, expected_one_of);
        if stand_in.is_none() || !put(&mut value, path, stand_in) {
            break;
        }
    }
    (None, faults)
}

#[derive(Clone, Copy)]
enum Attempt {
    Removed,
    StandIn(usize),
}

fn stand_in(index: usize, expected_one_of: &[&str]) -> Option<Value> {
    if let Some(variant) = expected_one_of.first() {
        return Some(Value::from(*variant));
    }
    Some(match index {
        0 => Value::from("1s"),
        1 => Value::from(1u8),
        2 => Value::from("127.0.0.1:1"),
        3 => Value::from("127.0.0.1"),
        4 => Value::from(true),
        5 => Value::from(0.5f64),
        6 => Value::from(Vec::<String>::new()),
        7 => Value::from(Dict::new()),
        _ => return None,
    })
}

fn holder<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, step| match value {
        Value::Dict(_, dict) => dict.get_mut(step),
        Value::Array(_, items) => items.get_mut(step.parse::<usize>().ok()?),
        _ => None,
    })
}

/// `false` for an item of a list: without it the others would change their places.
fn remove(value: &mut Value, path: &[String]) -> bool {
    let Some((last, above)) = path.split_last() else {
        return false;
    };
    match holder(value, above) {
        Some(Value::Dict(_, dict)) => dict.remove(last).is_some(),
        _ => false,
    }
}

fn put(value: &mut Value, path: &[String], new: Option<Value>) -> bool {
    let (Some((last, above)), Some(new)) = (path.split_last(), new) else {
        return false;
    };
    match holder(value, above) {
        Some(Value::Dict(_, dict)) => {
            dict.insert(last.clone(), new);
            true
        }
        Some(Value::Array(_, items)) => match last.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
            Some(item) => {
                *item = new;
                true
            }
            None => false,
        },
        _ => false,
    }
}

fn place(section: &str, path: &[String]) -> String {
    path.iter()
        .fold(section.to_owned(), |place, step| match step.parse::<usize>() {
            Ok(index) => format!("{place}[{index}]"),
            Err(_) => format!("{place}.{step}"),
        })
}

fn describe(kind: &Kind, place: &str) -> Fault {
    match kind {
        Kind::UnknownField(name, known) => unknown(place, name, known),
        Kind::MissingField(_) => Fault::new(place, "is missing", "a value: it has no default"),
        Kind::InvalidType(actual, expected) => {
            Fault::new(place, format!("is {}", type_word(actual)), expected_words(expected))
        }
        Kind::InvalidValue(_, expected) => Fault::new(place, "has a wrong value", expected_words(expected)),
        Kind::InvalidLength(found, expected) => {
            Fault::new(place, format!("has {found} items"), expected_words(expected))
        }
        Kind::UnknownVariant(_, known) => {
            let known: Vec<String> = known.iter().map(|name| format!("\"{name}\"")).collect();
            Fault::new(place, "has an unknown value", format!("one of {}", known.join(", ")))
        }
        Kind::Message(message) => Fault::new(place, "has a wrong value", message.clone()),
        _ => Fault::new(place, "has a wrong value", "what deploy/ shows for this setting"),
    }
}

fn unknown(place: &str, name: &str, known: &[&str]) -> Fault {
    let nearest = known.iter().map(|candidate| (edits(name, candidate), *candidate)).min();
    let expected = match nearest {
        Some((distance, candidate)) if distance <= 2.max(name.len() / 3) => format!("perhaps {candidate}"),
        _ if known.is_empty() => "nothing".into(),
        _ => format!("one of {}", known.join(", ")),
    };
    Fault::new(place, "is unknown", expected)
}

fn type_word(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) | Actual::Str(_) | Actual::Bytes(_) => "text",
        Actual::Seq => "a list",
        Actual::Map => "a section",
        _ => "of another type",
    }
}

fn expected_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" | "u128" => format!("a whole number, 0 or more ({expected})"),
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => format!("a whole number ({expected})"),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "path string" => "a path".into(),
        "a string" => "text".into(),
        "a duration" => "a duration such as \"10s\"".into(),
        other if other.starts_with("struct ") => "a section".into(),
        other => other.to_owned(),
    }
}

/// Levenshtein's distance, for the nearest known name.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (y, pair) in b.chars().zip(row.windows(2)) {
            let [diagonal, above] = pair else { continue };
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(x != y)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// Bytes of a settings file; the longest example has 6,000.
const SETTINGS_LIMIT: usize = 1 << 20;
/// How the path of a credential begins in the settings.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";
/// Bytes of a key file: 64 hex digits and some white space.
const KEY_FILE_LIMIT: usize = 256;
/// 32 random bytes hold fewer than this many different ones less than once in 10^25 keys.
const FEWEST_DIFFERENT_BYTES: usize = 10;
const MOST_ROUNDS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::net::SocketAddr;
    use std::time::Duration;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Http {
        listen: SocketAddr,
        onion_key_file: PathBuf,
        #[serde(default)]
        body_limit: u32,
        #[serde(with = "humantime_serde")]
        request_timeout: Duration,
        level: Level,
        #[serde(default)]
        seeds: Vec<Seed>,
        #[serde(default)]
        names: Vec<String>,
        last: u16,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Level {
        Info,
        Warn,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Seed {
        url: String,
        certificate_file: Option<PathBuf>,
    }

    const GOOD: &str = r#"
        [http]
        listen = "127.0.0.1:8000"
        onion_key_file = "keys/onion"
        request_timeout = "15s"
        level = "warn"
        last = 7
        [[http.seeds]]
        url = "https://one"
        certificate_file = "/absolute.pem"
    "#;

    fn parse(text: &str) -> SettingsFile {
        SettingsFile::parse(text, Path::new("/etc/quietline")).expect("test text is TOML")
    }

    fn faults_of(text: &str) -> Vec<String> {
        let mut file = parse(text);
        let section = file.section::<Http>("http");
        assert!(section.is_none(), "a section with faults is not handed out");
        file.finish()
            .expect_err("faults")
            .0
            .iter()
            .map(Fault::to_string)
            .collect()
    }

    #[test]
    fn good_settings_are_read_and_relative_paths_start_at_the_file() {
        let mut file = parse(GOOD);
        let http = file.section::<Http>("http").expect("no fault");
        assert_eq!(file.finish(), Ok(Warnings::default()));
        assert_eq!(http.onion_key_file, Path::new("/etc/quietline/keys/onion"));
        assert_eq!(
            http.seeds[0].certificate_file.as_deref(),
            Some(Path::new("/absolute.pem"))
        );
        assert_eq!(http.seeds[0].url, "https://one");
        assert_eq!((http.listen.port(), http.last, http.body_limit), (8000, 7, 0));
        assert_eq!(
            (http.request_timeout, http.level),
            (Duration::from_secs(15), Level::Warn)
        );
        assert!(http.names.is_empty());
    }

    #[test]
    fn a_path_may_start_at_the_credentials_of_systemd() {
        let text = "[store]\nkey_file = '$CREDENTIALS_DIRECTORY/rows'\npath = 'rows.db'";
        let path = |credentials: Option<&str>, key: &str| {
            let mut sections: Dict = Toml::from_str(text).expect("test text is TOML");
            make_paths_absolute(&mut sections, Path::new("/etc"), credentials.map(Path::new));
            let store = sections.get("store").and_then(Value::as_dict).expect("a section");
            store.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        assert_eq!(path(Some("/run/c"), "key_file").as_deref(), Some("/run/c/rows"));
        assert_eq!(path(None, "key_file").as_deref(), Some("$CREDENTIALS_DIRECTORY/rows"));
        assert_eq!(path(Some("/run/c"), "path").as_deref(), Some("/etc/rows.db"));
    }

    #[test]
    fn a_key_file_may_hold_several_keys_a_line_each() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("ours");
            let keys = read_keys_32(&path, 2)?;
            Ok(keys.iter().map(|key| hex::encode(key.expose())).collect::<Vec<_>>())
        };
        let key = |first: u8| hex::encode((0..32).map(|n| n * 5 + first).collect::<Vec<u8>>());
        let (one, two) = (key(3), key(90));
        assert_eq!(read(format!("{one}\n").as_bytes()), Ok(vec![one.clone()]));
        assert_eq!(
            read(format!("\n{one}\r\n\n {two}\n").as_bytes()),
            Ok(vec![one.clone(), two.clone()])
        );
        let raw: Vec<u8> = (0..32).map(|n| n * 7 + 10).collect();
        assert_eq!(
            read(&raw),
            Ok(vec![hex::encode(&raw)]),
            "raw bytes, a line end among them"
        );
        let three = format!("{one}\n{two}\n{}", "01".repeat(32));
        assert!(matches!(read(three.as_bytes()), Err(FileFault::WrongLength { .. })));
        let odd = format!("{one}\nkey");
        assert!(matches!(read(odd.as_bytes()), Err(FileFault::WrongLength { found: 3 })));
        assert!(matches!(read(b""), Err(FileFault::WrongLength { found: 0 })));
    }

    #[test]
    fn all_faults_of_a_section_are_found_at_once() {
        let faults = faults_of(
            r#"
            surprise = 1
            [http]
            listen = "nonsense"
            body_limt = 1
            body_limit = "many"
            request_timeout = "soon"
            level = "loud"
            names = ["a", 5, "c", 6]
            [[http.seeds]]
            url = 5
            [[http.seeds]]
            certificate_file = 7
            uri = "x"
            [htpp]
            a = 1
            "#,
        );
        let places: BTreeSet<&str> = faults.iter().map(|fault| fault.split(": ").next().unwrap()).collect();
        let expected = BTreeSet::from([
            "http.listen",
            "http.body_limt",
            "http.body_limit",
            "http.request_timeout",
            "http.level",
            "http.names[1]",
            "http.names[3]",
            "http.seeds[0].url",
            "http.seeds[1].url",
            "http.seeds[1].certificate_file",
            "http.seeds[1].uri",
            "http.onion_key_file",
            "http.last",
            "surprise",
            "htpp",
        ]);
        assert_eq!(places, expected, "{faults:#?}");
        assert_eq!(faults.len(), expected.len(), "each fault once: {faults:#?}");
        let has = |text: &str| assert!(faults.iter().any(|fault| fault == text), "{text} in {faults:#?}");
        has("http.body_limt: is unknown (expected: perhaps body_limit)");
        has("http.body_limit: is text (expected: a whole number, 0 or more (u32))");
        has("http.level: has an unknown value (expected: one of \"info\", \"warn\")");
        has("http.last: is missing (expected: a value: it has no default)");
        has("htpp: is unknown (expected: perhaps http)");
    }

    #[test]
    fn an_absent_section_names_each_setting_without_a_default() {
        let faults = faults_of("");
        assert_eq!(faults.len(), 5, "{faults:?}");
        assert!(faults.iter().all(|fault| fault.contains("is missing")));
        assert!(parse("").optional_section::<Http>("http").is_none());
        assert_eq!(parse("").finish(), Ok(Warnings::default()));
        assert_eq!(
            faults_of("http = 3"),
            ["http: is a single value (expected: a section: [http])"]
        );
    }

    #[test]
    fn no_fault_repeats_a_value() {
        let canary = "5eadbeefcafef00d5eadbeefcafef00d5eadbeefcafef00d5eadbeefcafef0ad";
        let keys = [
            "listen",
            "onion_key_file",
            "body_limit",
            "request_timeout",
            "level",
            "seeds",
            "names",
            "last",
            "else",
        ];
        for key in keys {
            let mut file = parse(&format!(
                "[http]\n{key} = \"{canary}\"\n[[other]]\n{key} = \"{canary}\""
            ));
            let http = file.section::<Http>("http");
            let place = format!("http.{key}");
            file.key_32(&place, &Path::new("/etc/quietline").join(canary));
            let faults = file.finish().expect_err("faults");
            assert!(http.is_none());
            assert!(!format!("{faults} {faults:?}").contains(&canary[..16]), "{faults}");
        }
        for text in [format!("a = \"{canary}"), canary.to_owned(), format!("a = {canary}")] {
            let fault = SettingsFile::parse(&text, Path::new("")).err().expect("not TOML");
            assert!(!format!("{fault:?}").contains(&canary[..16]), "{fault:?}");
            assert!(fault.problem.contains("line 1"), "{fault:?}");
        }
    }

    #[test]
    fn a_key_is_hex_or_raw_and_never_a_placeholder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key: [u8; 32] = std::array::from_fn(|i| (i * 37 + 200) as u8);
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_key_32(&path).map(|key| *key.expose())
        };
        assert_eq!(read(&key), Ok(key));
        assert_eq!(read(hex::encode(key).as_bytes()), Ok(key));
        assert_eq!(read(format!(" {}\n", hex::encode_upper(key)).as_bytes()), Ok(key));
        assert_eq!(read(&[0; 32]), Err(FileFault::Zero));
        assert_eq!(read("0".repeat(64).as_bytes()), Err(FileFault::Zero));
        assert_eq!(read("deadbeef".repeat(8).as_bytes()), Err(FileFault::Placeholder));
        assert_eq!(
            read(&std::array::from_fn::<u8, 32, _>(|i| i as u8)),
            Err(FileFault::Placeholder)
        );
        assert_eq!(read(b"put-the-key-of-this-server-here!"), Err(FileFault::Placeholder));
        assert_eq!(read("zz".repeat(32).as_bytes()), Err(FileFault::NotHex));
        assert_eq!(read(b""), Err(FileFault::WrongLength { found: 0 }));
        assert_eq!(read(&key[..31]), Err(FileFault::WrongLength { found: 31 }));
        assert_eq!(read(&[7; 300]), Err(FileFault::TooLarge { limit: KEY_FILE_LIMIT }));
        assert_eq!(read_key_32(folder.path()).err(), Some(FileFault::NotAFile));
        assert_eq!(read_key_32(&folder.path().join("none")).err(), Some(FileFault::Missing));
    }

    #[test]
    fn the_paths_of_a_list_are_found_whatever_else_is_wrong_with_it() {
        let file = parse("auth.user = [{ name = 5, password_file = 'a' }, { name = 'x' }, 7]");
        let found = file.paths("auth.user", "password_file");
        let expected = [
            ("auth.user[0].password_file", Some("/etc/quietline/a".into())),
            ("auth.user[1].password_file", None),
            ("auth.user[2].password_file", None),
        ];
        assert_eq!(found, expected.map(|(place, path)| (place.to_owned(), path)));
        assert!(file.paths("auth.timed", "secret_file").is_empty());
        assert!(parse("auth = 5").paths("auth.user", "password_file").is_empty());
    }

    #[test]
    fn a_public_file_may_be_read_by_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        std::fs::write(&path, "public").unwrap();
        let mut file = parse("");
        let read = file.public_file("listen.certificate_file", &path, 10);
        assert_eq!(read.as_deref(), Some(b"public".as_slice()));
        assert!(file.public_file("listen.certificate_file", &path, 5).is_none());
        let faults = file.finish().expect_err("too large for the second reading");
        assert_eq!(faults.0.len(), 1);
    }

    #[test]
    fn a_secret_text_ends_before_its_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let mut file = parse("");
        for (written, read) in [
            ("pass word", Some("pass word")),
            ("pass\n", Some("pass")),
            ("pass\r\n", Some("pass")),
            ("pass\n\n", Some("pass\n")),
            ("", Some("")),
            ("longer than that\n", None),
        ] {
            std::fs::write(&path, written).unwrap();
            let found = file.secret_text("auth.password_file", &path, 10);
            let found = found.as_ref().map(|text| text.expose().as_slice());
            assert_eq!(found, read.map(str::as_bytes), "{written:?}");
        }
        let faults = file.finish().expect_err("one is too long");
        assert_eq!(faults.0.len(), 1);
        assert!(!faults.to_string().contains("longer than that"), "{faults}");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_a_warning() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, std::array::from_fn::<u8, 32, _>(|i| (i * 37 + 200) as u8)).unwrap();
        for (mode, warnings) in [(0o600, 0), (0o640, 1), (0o604, 1)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let mut file = parse("");
            assert!(file.key_32("http.onion_key_file", &path).is_some());
            assert_eq!(file.finish().unwrap().0.len(), warnings, "mode {mode:o}");
        }
    }

    #[test]
    fn a_missing_settings_file_is_a_fault() {
        let faults = SettingsFile::read(Path::new("/nowhere/notifier.toml"))
            .err()
            .expect("missing");
        assert_eq!(
            faults.to_string(),
            "/nowhere/notifier.toml: does not exist (expected: a file that exists)"
        );
    }
}
