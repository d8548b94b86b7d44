//! Strict bt-encoding, as OxenMQ and the onion layer use it: byte strings, 64-bit integers, lists, dicts with ascending keys.
//!
//! In: bytes. Out: borrowed values, or a named fault. Never: allocates while reading, recurses deeper than [`MAX_DEPTH`].

/// Deepest nesting that [`Reader::skip`] follows. Real messages need 3.
pub const MAX_DEPTH: usize = 16;

/// Why bytes are not bt-encoded. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    #[error("the input ends within a value")]
    Truncated,
    #[error("a byte that cannot begin or continue this value")]
    UnexpectedByte,
    #[error("an integer beyond 64 bits, or not written in its shortest form")]
    BadInteger,
    #[error("dict keys are not in ascending order")]
    KeysNotAscending,
    #[error("nested deeper than {MAX_DEPTH}")]
    TooDeep,
}

impl BencodeError {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::UnexpectedByte => "unexpected_byte",
            Self::BadInteger => "bad_integer",
            Self::KeysNotAscending => "keys_not_ascending",
            Self::TooDeep => "too_deep",
        }
    }
}

type Result<T> = std::result::Result<T, BencodeError>;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bytes,
    Int,
    List,
    Dict,
    /// The `e` of an enclosing list or dict.
    End,
}

/// A cursor over bt-encoded bytes. After an error its position means nothing.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// What is read may be about people.
impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({} bytes)", self.rest.len())
    }
}

impl<'a> Reader<'a> {
    pub const fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// What is not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// `None` at the end of the input and before a byte that begins nothing.
    pub fn kind(&self) -> Option<Kind> {
        match self.rest.first()? {
            b'0'..=b'9' => Some(Kind::Bytes),
            b'i' => Some(Kind::Int),
            b'l' => Some(Kind::List),
            b'd' => Some(Kind::Dict),
            b'e' => Some(Kind::End),
            _ => None,
        }
    }

    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let (length, after) = digits(self.rest)?;
        let after = match after.split_first() {
            Some((b':', after)) => after,
            Some(_) => return Err(BencodeError::UnexpectedByte),
            None => return Err(BencodeError::Truncated),
        };
        let length = usize::try_from(length).map_err(|_| BencodeError::Truncated)?;
        let (value, rest) = after.split_at_checked(length).ok_or(BencodeError::Truncated)?;
        self.rest = rest;
        Ok(value)
    }

    pub fn int(&mut self) -> Result<i64> {
        let (negative, magnitude) = self.integer()?;
        if negative {
            0i64.checked_sub_unsigned(magnitude).ok_or(BencodeError::BadInteger)
        } else {
            i64::try_from(magnitude).map_err(|_| BencodeError::BadInteger)
        }
    }

    /// An integer that may use all 64 bits and has no sign.
    pub fn uint(&mut self) -> Result<u64> {
        match self.integer()? {
            (false, magnitude) => Ok(magnitude),
            (true, _) => Err(BencodeError::BadInteger),
        }
    }

    fn integer(&mut self) -> Result<(bool, u64)> {
        self.expect(b'i')?;
        let negative = self.rest.first() == Some(&b'-');
        let text = if negative {
            self.rest.split_first().map_or(self.rest, |(_, rest)| rest)
        } else {
            self.rest
        };
        let (magnitude, rest) = digits(text)?;
        if negative && magnitude == 0 {
            return Err(BencodeError::BadInteger);
        }
        self.rest = rest;
        self.expect(b'e')?;
        Ok((negative, magnitude))
    }

    pub fn list(&mut self) -> Result<ListReader<'_, 'a>> {
        self.expect(b'l')?;
        Ok(ListReader { reader: self })
    }

    pub fn dict(&mut self) -> Result<DictReader<'_, 'a>> {
        self.expect(b'd')?;
        Ok(DictReader {
            reader: self,
            last_key: None,
        })
    }

    /// Reads over one value of any kind.
    pub fn skip(&mut self) -> Result<()> {
        self.skip_nested(0)
    }

    fn skip_nested(&mut self, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(BencodeError::TooDeep);
        }
        match self.kind() {
            Some(Kind::Bytes) => self.bytes().map(drop),
            Some(Kind::Int) => self.integer().map(drop),
            Some(Kind::List) => {
                let mut list = self.list()?;
                while list.has_next()? {
                    list.reader.skip_nested(depth + 1)?;
                }
                Ok(())
            }
            Some(Kind::Dict) => {
                let mut dict = self.dict()?;
                while dict.next_key()?.is_some() {
                    dict.reader.skip_nested(depth + 1)?;
                }
                Ok(())
            }
            Some(Kind::End) => Err(BencodeError::UnexpectedByte),
            None if self.rest.is_empty() => Err(BencodeError::Truncated),
            None => Err(BencodeError::UnexpectedByte),
        }
    }

    fn expect(&mut self, wanted: u8) -> Result<()> {
        match self.rest.split_first() {
            Some((byte, rest)) if *byte == wanted => {
                self.rest = rest;
                Ok(())
            }
            Some(_) => Err(BencodeError::UnexpectedByte),
            None => Err(BencodeError::Truncated),
        }
    }

    fn at_end(&mut self) -> Result<bool> {
        match self.rest.split_first() {
            Some((b'e', rest)) => {
                self.rest = rest;
                Ok(true)
            }
            Some(_) => Ok(false),
            None => Err(BencodeError::Truncated),
        }
    }
}

/// Inside a list: ask [`has_next`](Self::has_next), then read exactly one [`value`](Self::value).
#[derive(Debug)]
pub struct ListReader<'r, 'a> {
    reader: &'r mut Reader<'a>,
}

impl<'a> ListReader<'_, 'a> {
    /// At the end it consumes the `e` and says false.
    pub fn has_next(&mut self) -> Result<bool> {
        self.reader.at_end().map(|end| !end)
    }

    pub const fn value(&mut self) -> &mut Reader<'a> {
        self.reader
    }
}

/// Inside a dict: take the [`next_key`](Self::next_key), then read exactly one [`value`](Self::value).
pub struct DictReader<'r, 'a> {
    reader: &'r mut Reader<'a>,
    last_key: Option<&'a [u8]>,
}

impl std::fmt::Debug for DictReader<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DictReader").field(&self.reader).finish()
    }
}

impl<'a> DictReader<'_, 'a> {
    /// At the end it consumes the `e` and says `None`.
    pub fn next_key(&mut self) -> Result<Option<&'a [u8]>> {
        if self.reader.at_end()? {
            return Ok(None);
        }
        let key = self.reader.bytes()?;
        if self.last_key.is_some_and(|last| last >= key) {
            return Err(BencodeError::KeysNotAscending);
        }
        self.last_key = Some(key);
        Ok(Some(key))
    }

    pub const fn value(&mut self) -> &mut Reader<'a> {
        self.reader
    }
}

/// A run of decimal digits without needless zeros.
fn digits(input: &[u8]) -> Result<(u64, &[u8])> {
    let count = input.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (text, rest) = input.split_at_checked(count).ok_or(BencodeError::Truncated)?;
    match text {
        [] if input.is_empty() => return Err(BencodeError::Truncated),
        [] => return Err(BencodeError::UnexpectedByte),
        [b'0', _, ..] => return Err(BencodeError::BadInteger),
        _ => {}
    }
    let value = text.iter().try_fold(0u64, |value, digit| {
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    Ok((value.ok_or(BencodeError::BadInteger)?, rest))
}

/// Appends a byte string.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_decimal(out, bytes.len() as u64);
    out.push(b':');
    out.extend_from_slice(bytes);
}

/// Appends an integer.
pub fn put_int(out: &mut Vec<u8>, value: i64) {
    out.push(b'i');
    if value < 0 {
        out.push(b'-');
    }
    put_decimal(out, value.unsigned_abs());
    out.push(b'e');
}

/// Appends an integer without a sign.
pub fn put_uint(out: &mut Vec<u8>, value: u64) {
    out.push(b'i');
    put_decimal(out, value);
    out.push(b'e');
}

fn put_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut text = [0u8; 20];
    let mut count = 0;
    for place in text.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
        count += 1;
        if value == 0 {
            break;
        }
    }
    out.extend(text.iter().skip(text.len() - count));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_dict_gives_its_keys_in_order_and_unknown_values_can_be_skipped() {
        let mut reader = Reader::new(b"d1:@2:ab1:ni-11e1:xl1:yi5ed1:zleeeetail");
        let mut dict = reader.dict().unwrap();
        let (mut account, mut namespace) = (None, None);
        while let Some(key) = dict.next_key().unwrap() {
            match key {
                b"@" => account = Some(dict.value().bytes().unwrap()),
                b"n" => namespace = Some(dict.value().int().unwrap()),
                _ => dict.value().skip().unwrap(),
            }
        }
        assert_eq!((account, namespace), (Some(b"ab".as_slice()), Some(-11)));
        assert_eq!(reader.rest(), b"tail");
    }

    #[test]
    fn every_way_to_be_wrong_has_its_name() {
        use BencodeError::*;
        let fault = |input: &[u8]| Reader::new(input).skip().unwrap_err();
        assert_eq!(fault(b""), Truncated);
        assert_eq!(fault(b"5:abcd"), Truncated);
        assert_eq!(fault(b"5"), Truncated);
        assert_eq!(fault(b"99999999999999999999999999:a"), BadInteger);
        assert_eq!(fault(b"18446744073709551615:a"), Truncated);
        assert_eq!(fault(b"05:abcde"), BadInteger);
        assert_eq!(fault(b"i05e"), BadInteger);
        assert_eq!(fault(b"i-0e"), BadInteger);
        assert_eq!(fault(b"ie"), UnexpectedByte);
        assert_eq!(fault(b"i5"), Truncated);
        assert_eq!(fault(b"i18446744073709551616e"), BadInteger);
        assert_eq!(fault(b"d1:bi1e1:ai2ee"), KeysNotAscending);
        assert_eq!(fault(b"d1:ai1e1:ai2ee"), KeysNotAscending);
        assert_eq!(fault(b"l"), Truncated);
        assert_eq!(fault(b"x"), UnexpectedByte);
        assert_eq!(fault(b"e"), UnexpectedByte);
        assert_eq!(fault(&[b'l'; 100_000]), TooDeep);
    }

    #[test]
    fn integers_reach_both_ends_of_their_range() {
        assert_eq!(Reader::new(b"i-9223372036854775808e").int(), Ok(i64::MIN));
        assert_eq!(
            Reader::new(b"i9223372036854775808e").int(),
            Err(BencodeError::BadInteger)
        );
        assert_eq!(Reader::new(b"i18446744073709551615e").uint(), Ok(u64::MAX));
        assert_eq!(Reader::new(b"i-1e").uint(), Err(BencodeError::BadInteger));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: Vec<u8>, number: i64, unsigned: u64) {
            let mut out = vec![b'l'];
            put_bytes(&mut out, &bytes);
            put_int(&mut out, number);
            put_uint(&mut out, unsigned);
            out.push(b'e');
            let mut reader = Reader::new(&out);
            let mut list = reader.list().unwrap();
            prop_assert!(list.has_next().unwrap());
            prop_assert_eq!(list.value().bytes().unwrap(), bytes.as_slice());
            prop_assert!(list.has_next().unwrap());
            prop_assert_eq!(list.value().int().unwrap(), number);
            prop_assert!(list.has_next().unwrap());
            prop_assert_eq!(list.value().uint().unwrap(), unsigned);
            prop_assert!(!list.has_next().unwrap());
            prop_assert!(reader.rest().is_empty());
        }

        #[test]
        fn no_input_panics(input: Vec<u8>) {
            let _ = Reader::new(&input).skip();
        }
    }
}
