//! A call whose ends are two browsers in two networks, and what each of them says of it.
//!
//! In: two browsers, a configuration for each end. Out: reports of both. Never: carries anything but signalling between them.

use crate::chromium::{Chromium, Pending};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest time until something that must come has come: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What an end is told of its ICE servers, now and when it restarts ICE.
#[derive(Clone)]
pub struct Config {
    pub now: Value,
    pub later: Option<Value>,
}

impl From<Value> for Config {
    fn from(now: Value) -> Self {
        Self { now, later: None }
    }
}

/// What one end says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "some of it is for whoever reads a failed test")]
pub struct EndReport {
    pub ice: String,
    /// When it was connected first: milliseconds.
    pub connected_at: Option<f64>,
    pub local: String,
    pub remote: String,
    /// Of the relay that its packets go through.
    pub url: String,
    pub round_trip_seconds: Option<f64>,
    /// Lost, here and below: of what the other end has sent, as the gaps between the numbers of packets tell.
    pub audio_packets: i64,
    pub audio_lost: i64,
    pub audio_sent: i64,
    pub video_lost: i64,
    pub video_sent: i64,
    pub numbers_lost: i64,
    pub numbers_sent: i64,
    pub texts: i64,
    pub is_in_order: bool,
    /// Longest pauses since they were last forgotten, in milliseconds.
    pub audio_pause: f64,
    pub numbers_pause: f64,
    pub restarts: u32,
    pub states: Vec<String>,
    pub errors: Vec<String>,
    /// Whether what was waited for has come.
    #[serde(default)]
    pub whole: bool,
}

/// How much an end must get.
#[derive(Clone, Copy)]
pub struct Least {
    pub audio_packets: u32,
    pub frames_decoded: u32,
    pub numbers: u32,
    pub texts: u32,
}

impl Least {
    /// So many seconds of a call, as a busy machine may have them.
    pub const fn seconds(seconds: u32) -> Self {
        Self {
            audio_packets: 50 * seconds,
            frames_decoded: 4 * seconds,
            numbers: 20 * seconds,
            texts: 4 * seconds,
        }
    }

    fn json(self) -> Value {
        json!({
            "audioPackets": self.audio_packets,
            "framesDecoded": self.frames_decoded,
            "numbers": self.numbers,
            "texts": self.texts,
        })
    }
}

/// One call; both ends hang up with its owner.
pub struct Call {
    pub name: String,
    browsers: [Arc<Chromium>; 2],
    carriers: Vec<JoinHandle<()>>,
}

impl Call {
    /// The first calls the second.
    ///
    /// # Panics
    /// If a browser refuses the configuration.
    pub fn begin(name: &str, browsers: [&Arc<Chromium>; 2], configs: [Config; 2]) -> Self {
        let joined = [0, 1].map(|number: usize| {
            let Config { now, later } = &configs[number];
            let is_caller = number == 0;
            browsers[number].begin(format!("join({}, {}, {now}, {})", json!(name), is_caller, json!(later)))
        });
        for joined in joined {
            joined.wait().unwrap();
        }
        let browsers = browsers.map(Arc::clone);
        let [caller, callee] = &browsers;
        let carriers = [(caller, callee), (callee, caller)].map(|(from, to)| {
            let (from, to, name) = (Arc::clone(from), Arc::clone(to), json!(name));
            std::thread::spawn(move || {
                while let Ok(Value::Array(signals)) = from.ask(format!("signals({name})")) {
                    let _ = to.ask(format!("take({name}, {})", Value::Array(signals)));
                }
            })
        });
        Self {
            name: name.to_owned(),
            browsers,
            carriers: carriers.into(),
        }
    }

    /// Both ends, when each has got so much more.
    ///
    /// # Panics
    /// If they do not get it in time.
    pub fn heard(&self, least: Least) -> [EndReport; 2] {
        self.hear(least).wait()
    }

    /// Begins to wait for that.
    pub fn hear(&self, least: Least) -> Hearing<'_> {
        let (least, patience) = (least.json(), PATIENCE.as_millis());
        Hearing {
            call: self,
            pending: self.ask(|name| format!("grown({name}, {least}, {patience})")),
        }
    }

    pub fn forget_pauses(&self) {
        let both = self.ask(|name| format!("forgetPauses({name})"));
        both.into_iter().for_each(|one| drop(one.wait().unwrap()));
    }

    /// Both ends at about the same moment.
    pub fn reports(&self) -> [EndReport; 2] {
        self.ask(|name| format!("reportOfEnd({name})")).map(read)
    }

    fn ask(&self, expression: impl Fn(Value) -> String) -> [Pending; 2] {
        let ask = |browser: &Arc<Chromium>| browser.begin(expression(json!(self.name)));
        self.browsers.each_ref().map(ask)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        for browser in &self.browsers {
            let _ = browser.ask(format!("leave({})", json!(self.name)));
        }
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// What both ends will have got.
pub struct Hearing<'a> {
    call: &'a Call,
    pending: [Pending; 2],
}

impl Hearing<'_> {
    /// # Panics
    /// If they do not get it in time.
    pub fn wait(self) -> [EndReport; 2] {
        let ends = self.pending.map(read);
        assert!(ends.iter().all(|end| end.whole), "{}: {ends:#?}", self.call.name);
        self.call.reports()
    }
}

fn read(pending: Pending) -> EndReport {
    serde_json::from_value(pending.wait().unwrap()).unwrap()
}
