//! The lab's own bencode: a tree to read, a tree to write.
//!
//! In: bytes. Out: `Bt`. Never: as fast or as strict as the product's reader, which it shares nothing with, except for the
//! order of keys, which storage servers depend on.

use std::collections::BTreeMap;

/// One bencoded value. Integers cover 64 bits of either sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bt {
    Int(i128),
    Bytes(Vec<u8>),
    List(Vec<Bt>),
    Dict(BTreeMap<Vec<u8>, Bt>),
}

impl Bt {
    /// `None` unless `bytes` are exactly one value.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match Self::parse_prefix(bytes, 0)? {
            (value, []) => Some(value),
            _ => None,
        }
    }

    fn parse_prefix(bytes: &[u8], depth: u8) -> Option<(Self, &[u8])> {
        if depth > 20 {
            return None;
        }
        let (first, after) = bytes.split_first()?;
        match first {
            b'i' => {
                let (digits, rest) = split_at_byte(after, b'e')?;
                Some((Self::Int(std::str::from_utf8(digits).ok()?.parse().ok()?), rest))
            }
            b'l' => {
                let (mut items, mut rest) = (Vec::new(), after);
                while rest.first()? != &b'e' {
                    let (item, further) = Self::parse_prefix(rest, depth + 1)?;
                    items.push(item);
                    rest = further;
                }
                Some((Self::List(items), rest.get(1..)?))
            }
            b'd' => {
                let (mut entries, mut rest) = (BTreeMap::new(), after);
                while rest.first()? != &b'e' {
                    let (key, further) = take_bytes(rest)?;
                    let (value, further) = Self::parse_prefix(further, depth + 1)?;
                    if entries
                        .last_key_value()
                        .is_some_and(|(last, _): (&Vec<u8>, _)| last.as_slice() >= key)
                    {
                        return None;
                    }
                    entries.insert(key.to_vec(), value);
                    rest = further;
                }
                Some((Self::Dict(entries), rest.get(1..)?))
            }
            _ => take_bytes(bytes).map(|(text, rest)| (Self::Bytes(text.to_vec()), rest)),
        }
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Int(number) => out.extend_from_slice(format!("i{number}e").as_bytes()),
            Self::Bytes(text) => put_bytes(out, text),
            Self::List(items) => {
                out.push(b'l');
                items.iter().for_each(|item| item.write_to(out));
                out.push(b'e');
            }
            Self::Dict(entries) => {
                out.push(b'd');
                for (key, value) in entries {
                    put_bytes(out, key);
                    value.write_to(out);
                }
                out.push(b'e');
            }
        }
    }

    /// A dict from pairs in any order.
    pub fn dict<const N: usize>(pairs: [(&str, Bt); N]) -> Self {
        Self::Dict(
            pairs
                .into_iter()
                .map(|(key, value)| (key.as_bytes().to_vec(), value))
                .collect(),
        )
    }

    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Bytes(text.as_ref().to_vec())
    }

    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dict(entries) => entries.get(key.as_bytes()),
            _ => None,
        }
    }

    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => i64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }
}

/// `LENGTH:` and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(bytes);
}

/// The byte string at the start of `bytes`, and what follows.
pub fn take_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (digits, rest) = split_at_byte(bytes.get(..bytes.len().min(20))?, b':')?;
    let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let start = bytes.len().min(20) - rest.len();
    bytes.get(start..)?.split_at_checked(length)
}

/// The integer at the start of `bytes`, and what follows.
pub fn take_int(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (digits, rest) = split_at_byte(bytes.strip_prefix(b"i")?, b'e')?;
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

fn split_at_byte(bytes: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().take(24).position(|found| *found == byte)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_comes_back_as_it_was_written() {
        let tree = Bt::dict([
            ("n", Bt::List(vec![Bt::Int(-400), Bt::Int(0)])),
            ("@", Bt::text([5; 33])),
            ("z", Bt::Int(1_700_000_000_123)),
        ]);
        let bytes = tree.write();
        assert!(bytes.starts_with(b"d1:@33:"));
        assert_eq!(Bt::parse(&bytes), Some(tree));
    }

    #[test]
    fn cut_off_unsorted_and_trailing_bytes_are_refused() {
        for bad in [
            &b"d1:n"[..],
            b"5:abc",
            b"d1:bi1e1:ai1ee",
            b"i1ee",
            b"l",
            b"",
            b"i99999999999999999999999999999e",
        ] {
            assert_eq!(Bt::parse(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(Bt::parse(&b"l".repeat(10_000)), None);
    }
}
