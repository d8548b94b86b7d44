//! What changes in mid-call: the address of an end, and which relays are alive.
//!
//! An allocation belongs to its client's address and port (RFC 8656 §3.2), so a client that moves needs a new one, and one whose relay is gone needs
//! another. ICE finds out by itself that its checks are not answered any more; then the caller restarts it (RFC 8445 §2.4).

use crate::ends::{Call, Config, EndReport, Least};
use crate::{Scene, figures, relayed, tell, url};
use quietline_lab::turn::household::{ETHERNET, Household};
use quietline_lab::turn::server::{Site, Transport};
use std::time::Duration;

/// Consent to send ends so long after the last answer (RFC 7675 §5.1): by then an end has noticed that it is cut off.
const CONSENT: Duration = Duration::from_secs(30);

/// What happens to these calls, and both ends of each when they hear each other again. What is printed is how long they did not.
fn survive(what: &str, calls: &[Call], happens: impl FnOnce()) -> Vec<[EndReport; 2]> {
    let before: Vec<_> = calls.iter().map(Call::reports).collect();
    calls.iter().for_each(Call::forget_pauses);
    happens();
    let hearings: Vec<_> = calls.iter().map(|call| call.hear(Least::seconds(2))).collect();
    let after: Vec<_> = hearings.into_iter().map(|hearing| hearing.wait()).collect();
    for ((call, after), before) in calls.iter().zip(&after).zip(&before) {
        let longest = |pause: fn(&EndReport) -> f64| after.iter().map(pause).fold(0.0, f64::max);
        let grown = |count: fn(&EndReport) -> i64| -> i64 {
            after.iter().map(count).sum::<i64>() - before.iter().map(count).sum::<i64>()
        };
        let silence = longest(|end| end.audio_pause);
        // What getStats calls lost begins anew after a long gap; what was sent and what came does not.
        tell(&format!(
            "{what}, {}: no sound for {silence:.0} ms, no numbers for {:.0} ms, ICE restarted {} times, \
             of {} packets of sound {} came; since the call began {}",
            call.name,
            longest(|end| end.numbers_pause),
            after[0].restarts - before[0].restarts,
            grown(|end| end.audio_sent),
            grown(|end| end.audio_packets),
            figures(after)
        ));
        assert!(
            silence < CONSENT.as_millis() as f64,
            "{what}, {}: {after:#?}",
            call.name
        );
        assert!(
            after.iter().all(|end| end.is_in_order),
            "{what}, {}: {after:#?}",
            call.name
        );
    }
    after
}

fn restarts(calls: &[[EndReport; 2]]) -> Vec<u32> {
    calls.iter().map(|[caller, _]| caller.restarts).collect()
}

#[test]
fn calls_go_on_when_the_callers_address_changes() {
    let scene = Scene::new(ETHERNET, ETHERNET);
    let calls =
        [Transport::Udp, Transport::Tls].map(|transport| scene.relayed_call(&format!("{transport:?}"), transport));
    for call in &calls {
        call.heard(Least::seconds(1));
    }
    // Nothing that the browser could see: only its packets come from elsewhere now.
    let renumbered = survive("the router has a new address", &calls, || scene.caller.renumber());
    assert!(restarts(&renumbered).iter().all(|count| *count > 0), "{renumbered:#?}");
    let home = &scene.caller.home;
    let mut mobile = None;
    let moved = survive("from Wi-Fi to a mobile network", &calls, || {
        home.ip("link set wlan0 down");
        mobile = Some(Household::around(home, &scene.relays[0].world, 3, "wwan0", ETHERNET));
    });
    for (before, after) in restarts(&renumbered).into_iter().zip(restarts(&moved)) {
        assert!(after > before, "{moved:#?}");
    }
}

#[test]
fn calls_whose_relay_dies_find_the_other() {
    let mut scene = Scene::new(ETHERNET, ETHERNET);
    let [near, far] = &scene.relays;
    let mut calls = Vec::new();
    for transport in [Transport::Udp, Transport::Tls] {
        let [one, both] = [relayed(&[near], transport), relayed(&[near, far], transport)];
        let both_known = Config::from(both.clone());
        // As a client that asks anew for relays when it has lost one.
        let one_known = Config {
            now: one,
            later: Some(both),
        };
        for (name, config) in [("both known", both_known), ("one known", one_known)] {
            calls.push(scene.call(&format!("{transport:?}, {name}"), [config.clone(), config]));
        }
    }
    for call in &calls {
        call.heard(Least::seconds(1));
    }
    let [near, far] = &mut scene.relays;
    let killed = survive("a relay is killed", &calls, || near.kill());
    for (call, [caller, callee]) in calls.iter().zip(&killed) {
        for end in [caller, callee] {
            assert!(goes_through(end, far), "{}: {end:#?}", call.name);
        }
        // Who knows both may need no restart: ICE keeps pairs of the other one at hand.
        assert!(caller.restarts > 0 || call.name.ends_with("both known"), "{caller:#?}");
    }
    // It is back, and knows nobody any more; and the other is silent, as after a power cut: its machine does not even say that nobody is there.
    near.start_again();
    let lost = survive("the other relay's machine is cut off", &calls, || cut_off(far));
    for (call, [caller, callee]) in calls.iter().zip(&lost) {
        for end in [caller, callee] {
            assert!(goes_through(end, near), "{}: {end:#?}", call.name);
        }
    }
    for (before, after) in restarts(&killed).into_iter().zip(restarts(&lost)) {
        assert!(after > before, "{lost:#?}");
    }
}

fn cut_off(relay: &Site) {
    relay.world.nft(&format!(
        "table ip cut-off {{ chain through {{ type filter hook forward priority 0; ip daddr {0} drop; ip saddr {0} drop; }}; }}",
        relay.ip
    ));
}

fn goes_through(end: &EndReport, relay: &Site) -> bool {
    [Transport::Udp, Transport::Tls]
        .map(|transport| url(relay, transport))
        .contains(&end.url)
}
