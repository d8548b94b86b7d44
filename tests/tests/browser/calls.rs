//! Calls of a browser's page with itself, and what must be true of each.
//!
//! In: relays, ways to reach them. Out: calls that have begun, and reports of both their ends. Never: decides what is good enough.

use crate::chromium::{Chromium, Pending};
use quietline_lab::turn::relay::guest;
use quietline_lab::turn::server::{PORT, Transport};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

/// A relay as one end of a call knows it.
#[derive(Clone)]
pub struct Way {
    pub server: IpAddr,
    pub transport: Transport,
    /// The secret of its timed credentials.
    pub secret: String,
}

/// How one end of a call gets its packets to the other.
#[derive(Clone)]
pub enum End {
    Relayed(Way),
    /// Without a relay, at this address alone.
    Host(IpAddr),
}

impl Way {
    pub fn url(&self) -> String {
        let host = match self.server {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let (scheme, transport) = match self.transport {
            Transport::Udp => ("turn", "udp"),
            Transport::Tcp => ("turn", "tcp"),
            Transport::Tls => ("turns", "tcp"),
        };
        format!("{scheme}:{host}:{PORT}?transport={transport}")
    }

    /// With a name that nobody has had before.
    fn ice_server(&self) -> Value {
        let who = guest(&self.secret);
        json!({"urls": [self.url()], "username": who.user, "credential": who.password})
    }
}

impl End {
    /// As `begin` in tests/browser/calls.js takes it.
    fn side(&self) -> Value {
        match self {
            Self::Relayed(way) => relayed_side(&json!([way.ice_server()])),
            Self::Host(ip) => json!({
                "config": {},
                "only": format!(" {} \\d+ typ host", ip.to_string().replace('.', "\\.")),
            }),
        }
    }
}

/// A side that is reached through these ICE servers alone.
pub fn relayed_side(ice_servers: &Value) -> Value {
    json!({"config": {"iceServers": ice_servers, "iceTransportPolicy": "relay"}})
}

/// What getStats says of one end.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndReport {
    pub state: String,
    pub local: String,
    pub relay_protocol: String,
    pub url: String,
    pub remote: String,
    pub remote_address: String,
    /// In whole milliseconds: of two ends on one machine it may be 0.
    pub round_trip_seconds: Option<f64>,
    pub bytes_received: u64,
    pub audio_packets: i64,
    pub audio_lost: i64,
    pub video_packets: i64,
    pub video_lost: i64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    pub ends: [EndReport; 2],
    /// Messages of the data channel, and how many came back.
    pub sent: i64,
    pub returned: i64,
    pub errors: Vec<String>,
    /// Whether what was waited for has come.
    #[serde(default)]
    pub whole: bool,
}

impl Report {
    /// Packets of sound and pictures that both ends got, and that they did not.
    pub fn packets(&self) -> (i64, i64) {
        let arrived = self.ends.iter().map(|end| end.audio_packets + end.video_packets).sum();
        let lost = self
            .ends
            .iter()
            .map(|end| end.audio_lost.max(0) + end.video_lost.max(0))
            .sum();
        (arrived, lost)
    }
}

/// How much both ends must hear, and within which time.
#[derive(Clone, Copy)]
pub struct Heard {
    pub audio_packets: u32,
    pub frames_decoded: u32,
    pub returned: u32,
    pub patience: Duration,
}

/// Half a second of a call.
pub const A_WORD: Heard = Heard {
    audio_packets: 25,
    frames_decoded: 3,
    returned: 10,
    patience: Duration::from_secs(60),
};

impl Chromium {
    /// Until ICE and DTLS are done: milliseconds.
    pub fn call(&self, name: &str, ends: [&End; 2]) -> Pending {
        self.call_between(name, ends.map(End::side))
    }

    pub fn call_between(&self, name: &str, sides: [Value; 2]) -> Pending {
        self.begin(format!("begin({}, {})", json!(name), json!(sides)))
    }

    pub fn report(&self, name: &str) -> Result<Report, String> {
        read(self.ask(format!("report({})", json!(name)))?)
    }

    pub fn heard(&self, name: &str, least: Heard) -> Result<Report, String> {
        let wanted = json!({
            "audioPackets": least.audio_packets,
            "framesDecoded": least.frames_decoded,
            "returned": least.returned,
            "roundTrips": 1,
        });
        let patience = least.patience.as_millis();
        read(self.ask(format!("heard({}, {wanted}, {patience})", json!(name)))?)
    }

    pub fn hang_up(&self, name: &str) -> Result<Value, String> {
        self.ask(format!("end({})", json!(name)))
    }
}

fn read(value: Value) -> Result<Report, String> {
    serde_json::from_value(value).map_err(|fault| fault.to_string())
}
