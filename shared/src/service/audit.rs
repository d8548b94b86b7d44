//! What a server holds of people, how it is kept, and what somebody would learn who gets at it.
//!
//! In: what a server found in its own files and its own process. Out: the same as text and JSON for its operator, as a page for everybody.
//! Never: a sentence that was not decided by a fact, or a small number in public.

pub mod files;
pub mod live;
pub mod process;
mod requests;
pub mod sentences;
mod text;
mod transparency;

pub use requests::{REQUESTS_LIMIT, Requests};
pub use transparency::{Publication, PublicationSettings};

use serde::Serialize;
use std::path::PathBuf;

/// How numbers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// To the operator.
    Exact,
    /// To everybody: nothing below [`FEWEST`], and two digits of what is above.
    Rounded,
}

/// A sum of fewer says too much about each of them.
pub const FEWEST: u64 = 20;

impl Scale {
    pub fn count(self, count: u64) -> String {
        match self {
            Self::Exact => grouped(count),
            Self::Rounded if count < FEWEST => format!("< {FEWEST}"),
            Self::Rounded => {
                // One digit of 20 to 99, two of what is longer.
                let digits = count.ilog10();
                let unit = 10_u64.pow(if digits < 2 { 1 } else { digits - 1 });
                format!("about {}", grouped(count / unit * unit))
            }
        }
    }
}

/// 1234567 → 1,234,567
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Everything, as of one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    pub server: &'static str,
    pub version: &'static str,
    /// Unix seconds.
    pub at: i64,
    /// Whether a process runs that answers its operator.
    pub running: bool,
    pub held: Vec<Holding>,
    pub keys: Vec<Key>,
    pub facts: Vec<Fact>,
    pub adversaries: Vec<Adversary>,
}

/// One kind of thing that is held.
#[derive(Clone, Debug, Serialize)]
pub struct Holding {
    pub what: &'static str,
    /// What one of them consists of.
    pub of: &'static str,
    pub place: Place,
    /// For the operator alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// By how they are kept; empty if there are none.
    pub groups: Vec<Group>,
    pub kept: String,
}

impl Holding {
    /// How many are kept in a way that `which` accepts; `None` where they could not be counted.
    pub fn count(&self, which: impl Fn(&Protection) -> bool) -> Option<u64> {
        let groups = self.groups.iter().filter(|group| which(&group.protection));
        groups.map(|group| group.count).sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Disk,
    Memory,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub protection: Protection,
    /// `None`: there are some, or none; it could not be counted.
    pub count: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kept", rename_all = "snake_case")]
pub enum Protection {
    /// Whoever has the file reads it.
    Plain,
    /// Encrypted under the row key with this id.
    Sealed { key: String },
    /// A hash under a key: it says whether a guess is right, to who has the key.
    KeyedHash,
    /// In the memory of the running process.
    Memory,
    /// Public knowledge.
    Public,
}

impl Protection {
    pub fn words(&self) -> String {
        match self {
            Self::Plain => "in plain".to_owned(),
            Self::Sealed { key } => format!("sealed under row key {key}"),
            Self::KeyedHash => "as hashes under a key".to_owned(),
            Self::Memory => "in memory only".to_owned(),
            Self::Public => "public anyway".to_owned(),
        }
    }
}

/// A file with a secret. Its content is never told; the id is a hash of a random key, good for telling two apart.
#[derive(Clone, Debug, Serialize)]
pub struct Key {
    pub name: &'static str,
    pub purpose: &'static str,
    pub file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub state: KeyState,
    /// Whether it lies on the disk of what it protects: then one theft gets both. `None` if that cannot be told.
    pub beside_data: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    OwnerOnly,
    OpenToOthers,
    Missing,
    Unreadable,
}

/// Something that is so, is not so, or cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    pub what: &'static str,
    /// Whether it is as it should be.
    pub good: Option<bool>,
    pub says: String,
}

/// Who gets at what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    Disk,
    DiskAndKey,
    Memory,
    Logs,
    Provider,
}

impl Who {
    pub const fn words(self) -> &'static str {
        match self {
            Self::Disk => "Somebody with the disk",
            Self::DiskAndKey => "Somebody with the disk and the keys",
            Self::Memory => "Somebody who reads the memory of the running process",
            Self::Logs => "Somebody with the logs and metrics",
            Self::Provider => "Somebody whom the providers help",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Adversary {
    pub who: Who,
    pub learns: Vec<String>,
    pub does_not_learn: Vec<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One of everything.
    pub(crate) fn sample() -> Audit {
        Audit {
            server: "quietline-test",
            version: "0.0.0",
            at: 1_800_000_000,
            running: true,
            held: vec![
                Holding {
                    what: "Subscriptions",
                    of: "an account <b> and a token",
                    place: Place::Disk,
                    file: Some("/var/lib/test/rows.db".into()),
                    groups: vec![
                        Group {
                            protection: Protection::Plain,
                            count: Some(7),
                        },
                        Group {
                            protection: Protection::Sealed {
                                key: "00c0ffee".to_owned(),
                            },
                            count: Some(123_456),
                        },
                    ],
                    kept: "14 days at most".to_owned(),
                },
                Holding {
                    what: "Accounts in memory",
                    of: "ids",
                    place: Place::Memory,
                    file: None,
                    groups: vec![Group {
                        protection: Protection::Memory,
                        count: None,
                    }],
                    kept: "while the process runs".to_owned(),
                },
            ],
            keys: vec![Key {
                name: "store.lookup_key_file",
                purpose: "names of rows",
                file: "/etc/test/keys/lookup".into(),
                id: Some("1a2b3c4d".to_owned()),
                state: KeyState::OpenToOthers,
                beside_data: Some(true),
            }],
            facts: vec![
                Fact {
                    what: "core dumps",
                    good: Some(true),
                    says: "none is written".to_owned(),
                },
                Fact {
                    what: "swap",
                    good: Some(false),
                    says: "12 kB lie in swap".to_owned(),
                },
                Fact {
                    what: "TLS",
                    good: None,
                    says: "cannot be told".to_owned(),
                },
            ],
            adversaries: vec![Adversary {
                who: Who::Disk,
                learns: vec!["7 subscriptions".to_owned()],
                does_not_learn: vec!["what is said".to_owned()],
            }],
        }
    }

    #[test]
    fn the_public_sees_no_small_number_and_two_digits_of_a_large_one() {
        for (count, expected) in [
            (0, "< 20"),
            (1, "< 20"),
            (19, "< 20"),
            (20, "about 20"),
            (29, "about 20"),
            (99, "about 90"),
            (100, "about 100"),
            (129, "about 120"),
            (1_299, "about 1,200"),
            (1_000_000, "about 1,000,000"),
            (u64::MAX, "about 18,000,000,000,000,000,000"),
        ] {
            assert_eq!(Scale::Rounded.count(count), expected, "{count}");
        }
        assert_eq!(Scale::Exact.count(1_234_567), "1,234,567");
        assert_eq!(Scale::Exact.count(0), "0");
    }

    #[test]
    fn json_has_everything_and_names_that_stay() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["held"][0]["groups"][1]["count"], 123_456);
        assert_eq!(json["held"][0]["groups"][1]["protection"]["key"], "00c0ffee");
        assert_eq!(json["held"][0]["groups"][0]["protection"]["kept"], "plain");
        assert_eq!(json["keys"][0]["state"], "open_to_others");
        assert_eq!(json["adversaries"][0]["who"], "disk");
    }
}
