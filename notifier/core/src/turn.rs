//! Credentials for calls: which relays one caller is told, under names that name nobody.
//!
//! In: the relays on offer with their secrets, the time, random bits. Out: the text of an answer, as long for everybody. Never: sees who
//! asks, gives a name twice, or says more of the time of a request than its epoch.

use quietline_shared::timed::{self, TimedSecret};
use serde_json::{Value, json};
use std::net::Ipv6Addr;
use std::time::Duration;

/// The one request there is: who asks says nothing, and all say the same.
pub const REQUEST: &[u8] = b"{}";

/// `None`: the request asks for credentials.
pub fn request_fault(body: &[u8]) -> Option<RequestFault> {
    match body {
        REQUEST => None,
        [] => Some(RequestFault::NoBody),
        _ => Some(RequestFault::OtherBody),
    }
}

/// Why a request gets no credentials. The labels are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFault {
    NoBody,
    OtherBody,
}

impl RequestFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoBody => "no_body",
            Self::OtherBody => "other_body",
        }
    }
}

/// One relay that callers are told of.
pub struct Relay {
    /// Whose it is: a caller gets two of different operators where there are two, and is told which.
    pub operator: String,
    pub urls: Vec<RelayUrl>,
    /// What the relay shares with us; nothing else.
    pub secret: TimedSecret,
    /// How long new calls may begin with a credential, at least.
    pub lifetime: Duration,
}

/// The relays on offer.
pub struct Offer {
    relays: Vec<Relay>,
    /// Places in `relays`; each request gets one entry, the second of which may be missing.
    choices: Vec<(usize, Option<usize>)>,
    epoch: u64,
    length: usize,
}

/// Bits of one request: which relays, in which order, and a name for each.
pub struct Chance {
    pub choice: [u8; 8],
    pub names: [[u8; 16]; 2],
}

impl Offer {
    /// `epoch`: credentials given out within one end at the same second, so that a name does not tell when it was asked for.
    pub fn new(relays: Vec<Relay>, epoch: Duration) -> Result<Self, OfferFault> {
        if relays.is_empty() {
            return Err(OfferFault::NoRelay);
        }
        if relays.len() > MOST_RELAYS {
            return Err(OfferFault::TooManyRelays);
        }
        if relays
            .iter()
            .any(|relay| relay.urls.is_empty() || relay.urls.len() > MOST_URLS)
        {
            return Err(OfferFault::Urls);
        }
        let mut offer = Self {
            choices: choices(&relays),
            relays,
            epoch: epoch.as_secs().max(1),
            length: 0,
        };
        // A name is as long in every year of ten digits, a password as its algorithm says.
        let chance = Chance {
            choice: [0; 8],
            names: [[0; 16]; 2],
        };
        let longest = offer
            .choices
            .iter()
            .map(|choice| offer.text(*choice, LATEST, &chance).len())
            .max();
        offer.length = longest.unwrap_or_default().next_multiple_of(BLOCK);
        Ok(offer)
    }

    /// JSON with `iceServers` as browsers take them, and behind it as many spaces as make all answers equal.
    pub fn answer(&self, unix_seconds: u64, chance: &Chance) -> String {
        let number = u64::from_be_bytes(chance.choice);
        let many = self.choices.len() as u64;
        let choice = usize::try_from(number / 2 % many.max(1)).unwrap_or_default();
        let choice = match self.choices.get(choice).copied().unwrap_or((0, None)) {
            (first, Some(second)) if number % 2 == 1 => (second, Some(first)),
            as_it_is => as_it_is,
        };
        self.padded(self.text(choice, unix_seconds, chance))
    }

    /// A refusal shall not be told from an answer by its length either.
    pub fn padded(&self, mut text: String) -> String {
        let missing = self.length.saturating_sub(text.len());
        text.extend(std::iter::repeat_n(' ', missing));
        text
    }

    /// Of the epochs that end names: the number of the one that this time is in.
    pub const fn epoch_at(&self, unix_seconds: u64) -> u64 {
        unix_seconds / self.epoch
    }

    /// Seconds until the next epoch.
    pub const fn epoch_left(&self, unix_seconds: u64) -> u64 {
        self.epoch - unix_seconds % self.epoch
    }

    fn text(&self, (first, second): (usize, Option<usize>), unix_seconds: u64, chance: &Chance) -> String {
        let [first_name, second_name] = &chance.names;
        let given = [Some((first, first_name)), second.map(|second| (second, second_name))];
        let given = given.into_iter().flatten();
        let relays = given.filter_map(|(place, random)| Some((self.relays.get(place)?, random)));
        let mut ends = u64::MAX;
        let servers: Vec<Value> = relays
            .map(|(relay, random)| {
                let expiry = unix_seconds + self.epoch_left(unix_seconds) + relay.lifetime.as_secs();
                ends = ends.min(expiry);
                let username = timed::username(expiry, random);
                let urls: Vec<&str> = relay.urls.iter().map(RelayUrl::as_str).collect();
                let password = relay.secret.password(username.as_bytes());
                json!({"urls": urls, "username": username, "credential": password.text(), "operator": relay.operator})
            })
            .collect();
        let left = ends.saturating_sub(unix_seconds);
        json!({"success": true, "ttl": left, "iceServers": servers}).to_string()
    }
}

/// All pairs of different operators; with one operator all pairs; with one relay that one.
fn choices(relays: &[Relay]) -> Vec<(usize, Option<usize>)> {
    let pairs = |is_good: fn(&Relay, &Relay) -> bool| -> Vec<(usize, Option<usize>)> {
        let numbered = || relays.iter().enumerate();
        numbered()
            .flat_map(|(first, one)| {
                let rest = numbered().skip(first + 1);
                rest.filter(move |(_, other)| is_good(one, other))
                    .map(move |(second, _)| (first, Some(second)))
            })
            .collect()
    };
    let of_two = pairs(|one, other| one.operator != other.operator);
    let of_one = || pairs(|_, _| true);
    match (of_two.is_empty(), relays.len()) {
        (false, _) => of_two,
        (true, 1) => vec![(0, None)],
        (true, _) => of_one(),
    }
}

/// How many credentials were given out in this epoch. It outlives the offer: a reload gives nobody a second share.
#[derive(Default)]
pub struct Epochs {
    current: u64,
    given: u64,
}

impl Epochs {
    /// `false`: as many as there may be.
    pub fn take(&mut self, epoch: u64, most: u64) -> bool {
        if epoch != self.current {
            *self = Self {
                current: epoch,
                given: 0,
            };
        }
        let is_left = self.given < most;
        self.given += u64::from(is_left);
        is_left
    }
}

/// A URL of RFC 7065 that browsers take: `turn:HOST[:PORT][?transport=udp|tcp]`, or `turns:` for TLS over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayUrl(String);

impl RelayUrl {
    pub fn parse(text: &str) -> Result<Self, UrlFault> {
        if text.len() > LONGEST_URL {
            return Err(UrlFault::Long);
        }
        let (scheme, rest) = text.split_once(':').ok_or(UrlFault::Scheme)?;
        if !["turn", "turns"].contains(&scheme) {
            return Err(UrlFault::Scheme);
        }
        let (place, transport) = match rest.split_once("?transport=") {
            Some((place, transport)) => (place, Some(transport)),
            None => (rest, None),
        };
        match (scheme, transport) {
            (_, None | Some("tcp")) | ("turn", Some("udp")) => {}
            _ => return Err(UrlFault::Transport),
        }
        let port = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(UrlFault::Host)?;
                host.parse::<Ipv6Addr>().map_err(|_| UrlFault::Host)?;
                // What follows and is no port is none either.
                (!port.is_empty()).then(|| port.strip_prefix(':').unwrap_or_default())
            }
            None => {
                let (host, port) = match place.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (place, None),
                };
                let is_name =
                    |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if !host.split('.').all(is_name) {
                    return Err(UrlFault::Host);
                }
                port
            }
        };
        // libwebrtc uses no other port below 1024.
        let is_used = |port: &u16| matches!(port, 53 | 80 | 443 | 1024..);
        match port.map(|port| port.parse().ok().filter(is_used)) {
            Some(None) => Err(UrlFault::Port),
            _ => Ok(Self(text.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is wrong with a URL of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    #[error("begins with neither turn: nor turns:")]
    Scheme,
    #[error("has no good host")]
    Host,
    #[error("has a port that browsers do not use for TURN")]
    Port,
    #[error("has a transport that browsers do not use")]
    Transport,
    #[error("is longer than 255 characters")]
    Long,
}

/// What is wrong with the relays of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferFault {
    #[error("there is no relay")]
    NoRelay,
    #[error("there are more than 64 relays")]
    TooManyRelays,
    #[error("a relay has no URL, or more than 8")]
    Urls,
}

const MOST_RELAYS: usize = 64;
const MOST_URLS: usize = 8;
const LONGEST_URL: usize = 255;
/// Answers are this long, or twice, …: bytes.
const BLOCK: usize = 512;
/// The last second of ten digits, less what a credential may live: in November 2286.
const LATEST: u64 = 9_990_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::redact::Secret;
    use quietline_shared::timed::TimedAlgorithm;
    use std::collections::BTreeSet;

    const NOW: u64 = 1_800_000_123;
    const HOUR: Duration = Duration::from_secs(3_600);

    fn secret(number: u8) -> TimedSecret {
        let text = format!("{number:02x}1e2d3c4b5a69788796a5b4c3d2e1f0");
        TimedSecret::new(TimedAlgorithm::Sha1, Secret::new(text.into_bytes())).unwrap()
    }

    fn relay(number: u8, operator: &str) -> Relay {
        let url = format!(
            "turn:r{number}.{}.net:3478?transport=udp",
            "x".repeat(usize::from(number))
        );
        Relay {
            operator: operator.to_owned(),
            urls: vec![RelayUrl::parse(&url).unwrap()],
            secret: secret(number),
            lifetime: 6 * HOUR,
        }
    }

    fn offer(operators: &[&str]) -> Offer {
        let relays = operators
            .iter()
            .zip(1..)
            .map(|(operator, number)| relay(number, operator));
        Offer::new(relays.collect(), HOUR).unwrap()
    }

    fn chance(number: u64) -> Chance {
        Chance {
            choice: number.to_be_bytes(),
            names: [[1; 16], [2; 16]],
        }
    }

    fn answer(offer: &Offer, number: u64) -> Value {
        serde_json::from_str(&offer.answer(NOW, &chance(number))).unwrap()
    }

    /// The numbers in the URLs of one answer.
    fn told(offer: &Offer, number: u64) -> Vec<u8> {
        let answer = answer(offer, number);
        let url = |server: &Value| server["urls"][0].as_str().unwrap().to_owned();
        let servers = answer["iceServers"].as_array().unwrap();
        servers.iter().map(|server| url(server).as_bytes()[6] - b'0').collect()
    }

    #[test]
    fn a_credential_is_the_end_of_its_epoch_and_chance_and_nothing_else() {
        let answer = answer(&offer(&["one", "two"]), 0);
        let servers = answer["iceServers"].as_array().unwrap();
        let end = NOW - NOW % 3_600 + 7 * 3_600;
        for (server, random) in servers.iter().zip(["01", "02"]) {
            assert_eq!(server["username"], format!("{end}:{}", random.repeat(16)));
            assert_eq!(server.as_object().unwrap().len(), 4);
        }
        let password = secret(1).password(servers[0]["username"].as_str().unwrap().as_bytes());
        assert_eq!(servers[0]["credential"], password.text());
        assert_eq!(answer["ttl"], end - NOW);
        assert_eq!(answer.as_object().unwrap().len(), 3);
    }

    #[test]
    fn two_relays_are_of_two_operators_where_there_are_two() {
        let offer = offer(&["one", "one", "one", "two"]);
        let all: BTreeSet<Vec<u8>> = (0..100).map(|number| told(&offer, number)).collect();
        let expected = [[1, 4], [2, 4], [3, 4], [4, 1], [4, 2], [4, 3]].map(|pair| pair.to_vec());
        assert_eq!(all, BTreeSet::from(expected), "every such pair, in both orders");
    }

    #[test]
    fn one_operator_gives_two_of_its_relays_and_one_relay_is_one() {
        let of_one = offer(&["one", "one", "one"]);
        let all: BTreeSet<Vec<u8>> = (0..100).map(|number| told(&of_one, number)).collect();
        let expected = [[1, 2], [1, 3], [2, 3], [2, 1], [3, 1], [3, 2]].map(|pair| pair.to_vec());
        assert_eq!(all, BTreeSet::from(expected));
        assert_eq!(told(&offer(&["one"]), 7), [1]);
    }

    #[test]
    fn every_pair_comes_as_often() {
        let offer = offer(&["one", "two", "three"]);
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..6_000_u64 {
            // A step that is prime to everything, as a generator would jump about.
            let mut pair = told(&offer, number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            pair.sort_unstable();
            *counts.entry(pair).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 3);
        assert!(
            counts.values().all(|count| (1_850..2_150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn all_answers_and_refusals_are_equally_long() {
        let mut relays = vec![relay(1, "one"), relay(60, "two"), relay(9, "three")];
        relays[1].secret = TimedSecret::new(
            TimedAlgorithm::Sha256,
            Secret::new([&b"0123456789abcdef"[..]; 2].concat()),
        )
        .unwrap();
        let offer = Offer::new(relays, HOUR).unwrap();
        let lengths: BTreeSet<usize> = (0..100)
            .flat_map(|number| [NOW, NOW + 3_476, LATEST].map(|now| offer.answer(now, &chance(number)).len()))
            .chain([offer.padded("{}".to_owned()).len()])
            .collect();
        assert_eq!(lengths.len(), 1, "{lengths:?}");
        assert_eq!(lengths.first().unwrap() % BLOCK, 0);
    }

    #[test]
    fn only_one_request_exists() {
        assert_eq!(request_fault(b"{}"), None);
        assert_eq!(request_fault(b""), Some(RequestFault::NoBody));
        for other in [
            &b"{ }"[..],
            b"{}\n",
            b"[]",
            b"[{}]",
            b"{\"account\":\"05\"}",
            b"\xff",
            &[b'{'; 9_999],
        ] {
            assert_eq!(request_fault(other), Some(RequestFault::OtherBody));
        }
    }

    #[test]
    fn an_epoch_has_its_share_and_the_next_one_its_own() {
        let mut epochs = Epochs::default();
        assert_eq!((0..5).filter(|_| epochs.take(7, 3)).count(), 3);
        assert!(!epochs.take(7, 3));
        assert!(epochs.take(7, 4), "a reload may raise it");
        assert_eq!((0..5).filter(|_| epochs.take(8, 3)).count(), 3);
        let offer = offer(&["one"]);
        assert_eq!(offer.epoch_at(NOW) + 1, offer.epoch_at(NOW + offer.epoch_left(NOW)));
    }

    #[test]
    fn urls_are_what_browsers_take() {
        for good in [
            "turn:turn.example.org",
            "turn:192.0.2.1:3478",
            "turn:turn.example.org:443?transport=tcp",
            "turn:[2001:db8::1]:3478?transport=udp",
            "turn:[2001:db8::1]",
            "turns:turn.example.org:443?transport=tcp",
        ] {
            assert_eq!(RelayUrl::parse(good).map(|url| url.0), Ok(good.to_owned()));
        }
        for (bad, fault) in [
            ("", UrlFault::Scheme),
            ("turn", UrlFault::Scheme),
            ("stun:turn.example.org", UrlFault::Scheme),
            ("https://turn.example.org", UrlFault::Scheme),
            ("turn:", UrlFault::Host),
            ("turn://turn.example.org", UrlFault::Host),
            ("turn:a b", UrlFault::Host),
            ("turn:user@turn.example.org", UrlFault::Host),
            ("turn:\"</script>", UrlFault::Host),
            ("turn:[2001:db8::1", UrlFault::Host),
            ("turn:[1.2.3.4]", UrlFault::Host),
            ("turn:[2001:db8::1]3478", UrlFault::Port),
            ("turn:turn.example.org:", UrlFault::Port),
            ("turn:turn.example.org:22", UrlFault::Port),
            ("turn:turn.example.org:70000", UrlFault::Port),
            ("turn:turn.example.org?transport=sctp", UrlFault::Transport),
            ("turns:turn.example.org?transport=udp", UrlFault::Transport),
        ] {
            assert_eq!(RelayUrl::parse(bad), Err(fault), "{bad}");
        }
        assert_eq!(
            RelayUrl::parse(&format!("turn:{}", "a".repeat(251))),
            Err(UrlFault::Long)
        );
    }

    #[test]
    fn an_offer_has_relays_with_urls() {
        assert_eq!(Offer::new(vec![], HOUR).err(), Some(OfferFault::NoRelay));
        let many = (0..65).map(|_| relay(1, "one")).collect();
        assert_eq!(Offer::new(many, HOUR).err(), Some(OfferFault::TooManyRelays));
        let mut without = relay(1, "one");
        without.urls.clear();
        assert_eq!(Offer::new(vec![without], HOUR).err(), Some(OfferFault::Urls));
    }
}
