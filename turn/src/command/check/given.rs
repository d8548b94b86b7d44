//! What was given out for calls: relays, each with a name and its password.
//!
//! In: JSON of `POST /turn/credentials` or of `quietline-turn credentials`. Out: the URLs of each server with its [`Ticket`]. Never: takes
//! more than an endpoint gives, or prints a name or a password.

use crate::offer::{Ticket, TurnUrl};
use quietline_shared::redact::Secret;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// One server of an answer.
pub struct Given {
    pub urls: Vec<TurnUrl>,
    pub ticket: Ticket,
}

/// `-` is standard input: a password on the command line would be seen by everybody on the machine.
pub fn read(path: &Path) -> Result<Vec<Given>, GivenFault> {
    let mut json = Vec::new();
    let bound = LONGEST + 1;
    let read = match path == Path::new("-") {
        true => io::stdin().take(bound).read_to_end(&mut json),
        false => File::open(path).and_then(|file| file.take(bound).read_to_end(&mut json)),
    };
    read.map_err(|error| GivenFault::Unreadable(error.kind()))?;
    if json.len() as u64 > LONGEST {
        return Err(GivenFault::Long);
    }
    parsed(&json)
}

fn parsed(json: &[u8]) -> Result<Vec<Given>, GivenFault> {
    let answer: Answer = serde_json::from_slice(json).map_err(|_| GivenFault::NoAnswer)?;
    let mut given = Vec::new();
    let mut count = 0;
    for server in answer.servers {
        let texts = match server.urls {
            Urls::One(url) => vec![url],
            Urls::Many(urls) => urls,
        };
        // Others than ours name STUN servers as well, for which nobody needs a name.
        let texts = texts.iter().filter(|url| !url.starts_with("stun"));
        let urls: Result<Vec<TurnUrl>, _> = texts.map(|url| url.parse()).collect();
        let urls = urls.map_err(|_| GivenFault::Url)?;
        count += urls.len();
        if count > MOST_URLS {
            return Err(GivenFault::ManyUrls);
        }
        if let (false, Some(username), Some(credential)) = (urls.is_empty(), server.username, server.credential) {
            given.push(Given {
                urls,
                ticket: Ticket::of_user(username, Secret::new(credential)),
            });
        }
    }
    match given.is_empty() {
        true => Err(GivenFault::NoRelay),
        false => Ok(given),
    }
}

/// Why nothing of it can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GivenFault {
    #[error("the file cannot be read ({0})")]
    Unreadable(ErrorKind),
    #[error("the file is longer than 64 KiB")]
    Long,
    #[error(
        "the file is not JSON with iceServers, as POST /turn/credentials answers and quietline-turn credentials prints"
    )]
    NoAnswer,
    #[error("no server in the file has a TURN URL, a username and a credential")]
    NoRelay,
    #[error("a URL in the file is not such as turn:turn.example.org:3478?transport=udp")]
    Url,
    #[error("the file has more than 16 URLs")]
    ManyUrls,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "iceServers")]
    servers: Vec<IceServer>,
}

#[derive(Deserialize)]
struct IceServer {
    urls: Urls,
    username: Option<String>,
    credential: Option<String>,
}

/// Browsers take both.
#[derive(Deserialize)]
#[serde(untagged)]
enum Urls {
    One(String),
    Many(Vec<String>),
}

/// Bytes of an answer; a notifier's has a tenth.
const LONGEST: u64 = 1 << 16;
/// A notifier gives two relays, each with eight URLs at most. Each is a thread.
const MOST_URLS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fault(json: &serde_json::Value) -> Option<GivenFault> {
        parsed(json.to_string().as_bytes()).err()
    }

    #[test]
    fn an_answer_is_read_as_a_notifier_gives_it_and_as_browsers_take_it() {
        let answer = json!({"success": true, "ttl": 25_000, "iceServers": [
            {"urls": ["turn:a.example:3478?transport=udp", "turns:a.example:443"], "username": "1800000000:ab", "credential": "one",
                "operator": "A"},
            {"urls": "stun:b.example"},
            {"urls": "turn:b.example", "username": "1800000001:cd", "credential": "two"},
        ]});
        // As long as all other answers.
        let padded = format!("{answer}          ");
        let given = parsed(padded.as_bytes()).ok().unwrap();
        let told: Vec<_> = given
            .iter()
            .map(|given| {
                (
                    given.urls.len(),
                    given.ticket.username.as_str(),
                    given.ticket.password(),
                )
            })
            .collect();
        assert_eq!(told, [(2, "1800000000:ab", "one"), (1, "1800000001:cd", "two")]);
    }

    #[test]
    fn what_is_no_answer_or_too_much_is_named() {
        assert_eq!(parsed(b"").err(), Some(GivenFault::NoAnswer));
        let refusal = json!({"error": 503, "message": "No credentials at the moment: come again later"});
        assert_eq!(fault(&refusal), Some(GivenFault::NoAnswer));
        assert_eq!(fault(&json!({"iceServers": []})), Some(GivenFault::NoRelay));
        let server =
            |urls: serde_json::Value| json!({"iceServers": [{"urls": urls, "username": "a", "credential": "b"}]});
        assert_eq!(fault(&server(json!("stun:a.example"))), Some(GivenFault::NoRelay));
        assert_eq!(fault(&server(json!("http://a.example"))), Some(GivenFault::Url));
        assert_eq!(
            fault(&server(json!(vec!["turn:a.example"; 17]))),
            Some(GivenFault::ManyUrls)
        );
        assert_eq!(fault(&server(json!(vec!["turn:a.example"; 16]))), None);
        assert_eq!(
            read(Path::new("/nowhere/at/all")).err(),
            Some(GivenFault::Unreadable(ErrorKind::NotFound))
        );
    }
}
