//! Calls of two browsers through networks as they are: routers that map each conversation anew, loss, reordering, short packets, an address
//! that changes in mid-call, a relay that dies in mid-call.
//!
//! Each browser is at home behind a router of its own, and so is each relay. The figures are of the two ends' getStats, of their own
//! clocks, and of the links between.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../browser/chromium.rs"]
mod chromium;
mod ends;
#[path = "../../browser/headless.rs"]
mod headless;
mod moves;
mod sizes;

use chromium::Chromium;
use ends::{Call, Config, EndReport, Least};
use quietline_lab::turn::client::{Client, Link, PATIENCE};
use quietline_lab::turn::household::{ETHERNET, Household, Uplink};
use quietline_lab::turn::impaired::{Impairment, Passage};
use quietline_lab::turn::server::{PORT, Site, Transport, alice};
use quietline_lab::turn::stun::{Builder, attribute, kind};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Two relays, two households, a browser in each.
struct Scene {
    browsers: [Arc<Chromium>; 2],
    caller: Household,
    callee: Household,
    relays: [Site; 2],
    _folders: [tempfile::TempDir; 4],
}

impl Scene {
    fn new(caller: Uplink, callee: Uplink) -> Self {
        let folders = [0; 4].map(|_| tempfile::tempdir().unwrap());
        let [one, other, at_caller, at_callee] = folders.each_ref().map(tempfile::TempDir::path);
        let near = Site::quietline(one, |_| {});
        let far = near.across(other, |_| {});
        let caller = Household::new(&near.world, 1, "wlan0", caller);
        let callee = Household::new(&near.world, 2, "eth0", callee);
        let keys = [one.join("tls.pem"), other.join("tls.pem")];
        let start = |household: &Household, folder: &Path| Arc::new(Chromium::start(&household.home, folder, &keys));
        let browsers = std::thread::scope(|scope| {
            [(&caller, at_caller), (&callee, at_callee)]
                .map(|(household, folder)| scope.spawn(move || start(household, folder)))
                .map(|started| started.join().unwrap())
        });
        Self {
            browsers,
            caller,
            callee,
            relays: [near, far],
            _folders: folders,
        }
    }

    /// The first browser calls the second.
    fn call(&self, name: &str, configs: [impl Into<Config>; 2]) -> Call {
        Call::begin(name, self.browsers.each_ref(), configs.map(Into::into))
    }

    /// The caller through the first relay, the callee through the second.
    fn relayed_call(&self, name: &str, transport: Transport) -> Call {
        self.call(name, self.relays.each_ref().map(|relay| relayed(&[relay], transport)))
    }
}

/// A browser's configuration that leads through these relays alone.
fn relayed(relays: &[&Site], transport: Transport) -> Value {
    let mut config = reachable(relays, transport);
    config["iceTransportPolicy"] = json!("relay");
    config
}

/// One that may also go around them.
fn reachable(relays: &[&Site], transport: Transport) -> Value {
    let who = alice();
    let urls: Vec<String> = relays.iter().map(|relay| url(relay, transport)).collect();
    json!({"iceServers": [{"urls": urls, "username": who.user, "credential": who.password}]})
}

fn url(relay: &Site, transport: Transport) -> String {
    let (scheme, name) = match transport {
        Transport::Udp => ("turn", "udp"),
        Transport::Tcp => ("turn", "tcp"),
        Transport::Tls => ("turns", "tcp"),
    };
    format!("{scheme}:{}:{PORT}?transport={name}", relay.ip)
}

/// A line for whoever runs the tests, also when they pass: what the standard macros print is shown of failures alone.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "networks: {line}");
}

/// What both ends say, in one line.
fn figures([caller, callee]: &[EndReport; 2]) -> String {
    let way = |from: &EndReport, to: &EndReport| {
        format!(
            "sound {} sent, {} lost, pictures {} sent, {} lost, numbers {} sent, {} lost, {} texts",
            from.audio_sent,
            // A copy that comes twice counts as one less.
            to.audio_lost.max(0),
            from.video_sent,
            to.video_lost.max(0),
            from.numbers_sent,
            to.numbers_lost,
            to.texts
        )
    };
    format!(
        "there: {}; back: {}; RTT {:.0} ms, set up in {:.0} ms",
        way(caller, callee),
        way(callee, caller),
        1_000.0 * caller.round_trip_seconds.unwrap_or_default(),
        caller.connected_at.unwrap_or_default()
    )
}

/// Of the packets of sound, in both directions.
fn share_lost(ends: &[EndReport; 2]) -> f64 {
    let lost: i64 = ends.iter().map(|end| end.audio_lost).sum();
    let arrived: i64 = ends.iter().map(|end| end.audio_packets).sum();
    lost as f64 / (lost + arrived) as f64
}

/// Nothing but the network's own faults: texts are whole, and ICE needed no help.
fn is_undisturbed(ends: &[EndReport; 2]) -> bool {
    ends.iter().all(|end| end.is_in_order && end.restarts == 0)
}

/// Both ways of a link together.
fn both(passages: [Passage; 2]) -> Passage {
    let [one, other] = passages;
    Passage {
        passed: one.passed + other.passed,
        lost: one.lost + other.lost,
        overtaken: one.overtaken + other.overtaken,
        too_long: one.too_long + other.too_long,
        longest: one.longest.max(other.longest),
    }
}

/// What a household's packets come from, as these servers see the same socket.
fn mappings(household: &Household, relays: &[Site; 2]) -> [SocketAddr; 2] {
    let socket = household.home.udp(Ipv4Addr::UNSPECIFIED, 0);
    relays.each_ref().map(|relay| {
        let link = Link::udp(socket.try_clone().unwrap(), relay.server()).unwrap();
        let request = Builder::new(kind::BINDING).build();
        let answer = Client::new(link, alice(), PATIENCE).ask(&request).unwrap();
        answer.address(attribute::XOR_MAPPED_ADDRESS).unwrap()
    })
}

#[test]
fn calls_pass_between_routers_that_map_each_conversation_anew() {
    let scene = Scene::new(ETHERNET, ETHERNET);
    for household in [&scene.caller, &scene.callee] {
        let [one, other] = mappings(household, &scene.relays);
        assert_eq!([one.ip(), other.ip()], [household.outer(); 2]);
        assert_ne!(one.port(), other.port(), "this router maps endpoints independently");
    }
    let [near, far] = &scene.relays;
    // Such routers let nobody through whom their clients did not write to at just that port: without a relay there is no call.
    let stun_only = json!({"iceServers": [{"urls": format!("stun:{}:{PORT}", near.ip)}]});
    let never = scene.call("without a relay", [(); 2].map(|()| stun_only.clone()));
    let calls = [
        scene.relayed_call("two relays", Transport::Udp),
        scene.call("one relay", [(); 2].map(|()| relayed(&[near], Transport::Udp))),
        // One end's packets may reach the other's relayed address from a port that nobody was told of: permissions are of addresses and not
        // of ports (RFC 8656 §9). So one relay is enough.
        scene.call(
            "as they like",
            [near, far].map(|relay| reachable(&[relay], Transport::Udp)),
        ),
        scene.call(
            "one has a relay",
            [reachable(&[near], Transport::Udp), stun_only.clone()],
        ),
    ];
    for call in calls {
        let ends = call.heard(Least::seconds(2));
        let pair = |end: &EndReport| format!("{} to {}", end.local, end.remote);
        tell(&format!(
            "endpoint-dependent mapping, {} ({}): {}",
            call.name,
            pair(&ends[0]),
            figures(&ends)
        ));
        let is_relayed = ends.iter().any(|end| end.local == "relay");
        assert!(is_relayed, "{}: {ends:#?}", call.name);
        assert!(
            share_lost(&ends) < 0.01 && is_undisturbed(&ends),
            "{}: {ends:#?}",
            call.name
        );
    }
    let ends = never.reports();
    assert!(ends.iter().all(|end| end.connected_at.is_none()), "{ends:#?}");
}

#[test]
fn calls_bear_the_loss_of_one_packet_in_twenty() {
    let lossy = Impairment {
        loss: 0.05,
        ..Impairment::NONE
    };
    let scene = Scene::new(Uplink::Impaired(lossy), ETHERNET);
    let link = scene.caller.link.as_ref().unwrap();
    let calls =
        [Transport::Udp, Transport::Tls].map(|transport| scene.relayed_call(&format!("{transport:?}"), transport));
    for (call, is_mended) in calls.iter().zip([false, true]) {
        let ends = call.heard(Least::seconds(6));
        tell(&format!("loss of 5 %, {}: {}", call.name, figures(&ends)));
        // TCP and TLS lose nothing between a client and its relay; it comes late.
        let bounds = if is_mended { 0.0..=0.01 } else { 0.02..=0.10 };
        assert!(bounds.contains(&share_lost(&ends)), "{}: {ends:#?}", call.name);
        assert!(is_undisturbed(&ends), "{}: {ends:#?}", call.name);
    }
    let Passage { passed, lost, .. } = both(link.passages());
    tell(&format!("loss of 5 %, the link: {passed} packets passed, {lost} lost"));
    assert!(lost * 25 > passed && lost * 15 < passed, "{lost} of {passed}");
}

#[test]
fn calls_bear_packets_that_overtake_each_other() {
    let reordering = Impairment {
        reordered: 0.25,
        detour: Duration::from_millis(45),
        ..Impairment::NONE
    };
    let scene = Scene::new(Uplink::Impaired(reordering), ETHERNET);
    let link = scene.caller.link.as_ref().unwrap();
    let calls =
        [Transport::Udp, Transport::Tls].map(|transport| scene.relayed_call(&format!("{transport:?}"), transport));
    for call in &calls {
        let ends = call.heard(Least::seconds(6));
        tell(&format!(
            "a quarter comes 45 ms late, {}: {}",
            call.name,
            figures(&ends)
        ));
        // Some were late when they were counted.
        assert!(share_lost(&ends) < 0.02, "{}: {ends:#?}", call.name);
        assert!(is_undisturbed(&ends), "{}: {ends:#?}", call.name);
    }
    let Passage {
        passed,
        lost,
        overtaken,
        ..
    } = both(link.passages());
    tell(&format!(
        "a quarter comes 45 ms late, the link: {passed} packets passed, {overtaken} were overtaken, {lost} lost"
    ));
    assert_eq!(lost, 0);
    assert!(overtaken * 10 > passed, "{overtaken} of {passed}");
}
