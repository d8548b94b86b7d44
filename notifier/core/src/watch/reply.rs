//! What a storage node says about the records of one request.
//!
//! In: the parts of a `REPLY` and how many records were asked. Out: a `Verdict`. Never: keeps the node's texts.

use bytes::Bytes;
use quietline_shared::bencode::{BencodeError, Kind, Reader};

/// Why a node refused one record. The numbers are the storage server's `errcode`s, the names metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// 1
    BadArguments,
    /// 2
    BadKey,
    /// 3
    BadNamespaces,
    /// 4: expired, or from the future.
    BadTimestamp,
    /// 5
    BadSignature,
    /// 6, documented and never seen: our node list is old.
    WrongSwarm,
    /// A number that no version we know sends.
    Unknown,
}

impl RecordFault {
    pub const ALL: [Self; 7] = [
        Self::BadArguments,
        Self::BadKey,
        Self::BadNamespaces,
        Self::BadTimestamp,
        Self::BadSignature,
        Self::WrongSwarm,
        Self::Unknown,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::BadArguments => "bad_arguments",
            Self::BadKey => "bad_key",
            Self::BadNamespaces => "bad_namespaces",
            Self::BadTimestamp => "bad_timestamp",
            Self::BadSignature => "bad_signature",
            Self::WrongSwarm => "wrong_swarm",
            Self::Unknown => "unknown",
        }
    }

    const fn from_code(code: i64) -> Self {
        match code {
            1 => Self::BadArguments,
            2 => Self::BadKey,
            3 => Self::BadNamespaces,
            4 => Self::BadTimestamp,
            5 => Self::BadSignature,
            6 => Self::WrongSwarm,
            _ => Self::Unknown,
        }
    }

    /// A node may refuse good bytes for a moment, with a clock that is off or while it restarts. What is still refused then fails
    /// until its owner signs anew, except where the fault is not the record's.
    const fn retry(self) -> Retry {
        match self {
            Self::WrongSwarm | Self::Unknown => Retry::UntilTaken,
            _ => Retry::FewTimes,
        }
    }
}

/// Whether what was refused is sent again in seconds, or waits for its renewal. In ascending order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Retry {
    #[default]
    No,
    /// At most [`REFUSED_ATTEMPTS`] times.
    FewTimes,
    UntilTaken,
}

impl Retry {
    /// `attempt`: how often it was sent again already.
    pub const fn is_due(self, attempt: u32) -> bool {
        match self {
            Self::No => false,
            Self::FewTimes => attempt < REFUSED_ATTEMPTS,
            Self::UntilTaken => true,
        }
    }
}

/// One request's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub accepted: u64,
    /// By [`RecordFault`], in the order of [`RecordFault::ALL`].
    pub refused: [u64; RecordFault::ALL.len()],
    /// Something may be taken if it is sent again.
    pub retry: Retry,
}

impl Verdict {
    fn count(&mut self, item: Option<RecordFault>, records: u64) {
        let Some(fault) = item else {
            self.accepted = self.accepted.saturating_add(records);
            return;
        };
        self.retry = self.retry.max(fault.retry());
        for (refused, known) in self.refused.iter_mut().zip(RecordFault::ALL) {
            if known == fault {
                *refused = refused.saturating_add(records);
            }
        }
    }
}

/// `None` if the reply is not what a storage server says to `records` records.
pub(super) fn read_reply(parts: &[Bytes], records: usize) -> Option<Verdict> {
    let [part] = parts else { return None };
    if part.len() > LONGEST_ITEM.saturating_mul(records.max(1)) {
        return None;
    }
    let mut reader = Reader::new(part);
    let mut verdict = Verdict::default();
    match reader.kind()? {
        Kind::List => {
            let mut list = reader.list().ok()?;
            let mut items = 0usize;
            while list.has_next().ok()? {
                items += 1;
                verdict.count(read_item(list.value()).ok()??, 1);
            }
            (items == records).then_some(())?;
        }
        // One dict for a list: the request as a whole.
        Kind::Dict => verdict.count(
            read_item(&mut reader).ok()??,
            u64::try_from(records).unwrap_or(u64::MAX),
        ),
        Kind::Bytes | Kind::Int | Kind::End => return None,
    }
    reader.rest().is_empty().then_some(verdict)
}

/// `Some(None)` = accepted; `None` = a dict that says neither yes nor no.
fn read_item(reader: &mut Reader<'_>) -> Result<Option<Option<RecordFault>>, BencodeError> {
    let mut dict = reader.dict()?;
    let mut answer = None;
    while let Some(key) = dict.next_key()? {
        match key {
            b"errcode" => answer = Some(Some(RecordFault::from_code(dict.value().int()?))),
            b"success" => {
                let success = dict.value().int()?;
                if answer.is_none() && success == 1 {
                    answer = Some(None);
                }
            }
            _ => dict.value().skip()?,
        }
    }
    Ok(answer)
}

/// Retries of a request whose records were refused by their own fault.
const REFUSED_ATTEMPTS: u32 = 3;
/// Bytes of reply for each record at most; a real refusal has about 120.
const LONGEST_ITEM: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reply: &str, records: usize) -> Option<Verdict> {
        read_reply(&[Bytes::copy_from_slice(reply.as_bytes())], records)
    }

    fn refused(verdict: Verdict, fault: RecordFault) -> u64 {
        RecordFault::ALL
            .into_iter()
            .zip(verdict.refused)
            .find(|(known, _)| *known == fault)
            .unwrap()
            .1
    }

    #[test]
    fn every_reply_of_a_real_storage_server_is_understood() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/monitor.json")).unwrap();
        let mut cases = 0;
        for case in file["storage_server_requests"].as_array().unwrap() {
            let reply = hex::decode(case["reply"][0].as_str().unwrap()).unwrap();
            let text = String::from_utf8(reply.clone()).unwrap();
            let records = case["entries"].as_array().map_or(1, Vec::len).max(1);
            if case["id"] == "list-empty" {
                assert_eq!(read_reply(&[reply.into()], 0), Some(Verdict::default()));
            } else {
                let verdict = read_reply(&[reply.into()], records).unwrap();
                let successes = text.matches("7:successi1e").count();
                assert_eq!(verdict.accepted, u64::try_from(successes).unwrap(), "{}", case["id"]);
                for (code, fault) in (1..).zip(RecordFault::ALL.into_iter().take(6)) {
                    let said = text.matches(&format!("7:errcodei{code}e")).count();
                    assert_eq!(refused(verdict, fault), u64::try_from(said).unwrap(), "{}", case["id"]);
                }
                let refused_any = verdict.refused.iter().any(|refused| *refused > 0);
                let expected = if refused_any { Retry::FewTimes } else { Retry::No };
                assert_eq!(verdict.retry, expected, "{}", case["id"]);
            }
            cases += 1;
        }
        assert_eq!(cases, 37);
    }

    #[test]
    fn a_list_of_another_length_is_not_an_answer() {
        assert_eq!(read("ld7:successi1eee", 2), None);
        assert_eq!(read("ld7:successi1eed7:successi1eee", 1), None);
    }

    #[test]
    fn one_dict_for_many_records_speaks_for_all_of_them() {
        let verdict = read("d7:errcodei1e5:error3:abce", 500).unwrap();
        assert_eq!(refused(verdict, RecordFault::BadArguments), 500);
        assert_eq!(verdict.retry, Retry::FewTimes);
    }

    #[test]
    fn a_code_nobody_knows_is_tried_again_until_it_is_taken() {
        let verdict = read("ld7:errcodei99eed7:errcodei5eed7:successi1eee", 3).unwrap();
        assert_eq!(verdict.retry, Retry::UntilTaken);
        assert_eq!(read("d7:errcodei6ee", 1).unwrap().retry, Retry::UntilTaken);
        assert!(Retry::UntilTaken.is_due(1000));
        assert!(Retry::FewTimes.is_due(2) && !Retry::FewTimes.is_due(3));
    }

    #[test]
    fn rubbish_is_not_an_answer() {
        for text in [
            "",
            "x",
            "i1e",
            "2:ab",
            "le",
            "ldee",
            "d7:successi1eex",
            "d7:successi1e",
            "d7:success1:1e",
        ] {
            assert_eq!(read(text, 1), None, "{text}");
        }
        assert_eq!(read_reply(&[], 1), None);
        assert_eq!(
            read(&format!("d5:error2000:{}7:successi1ee", "x".repeat(2000)), 1),
            None
        );
    }
}
