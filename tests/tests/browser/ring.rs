//! A call from its first ring to its sound: a message that wakes a phone, credentials through an onion, ICE, packets.

use crate::calls::{A_WORD, relayed_side};
use crate::chromium::Chromium;
use crate::{OLD_SECRET, timed, write_secrets};
use quietline_lab::keys::write_secret;
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::phone::{PhoneBody, PushService};
use quietline_lab::settings::{set, turn_server};
use quietline_lab::trial::{PATIENCE, enrolled};
use quietline_lab::turn::server::{FAR_SERVER, SERVER, Site};
use serde_json::Value;
use std::time::{Duration, Instant};
use toml::Value as Setting;

/// How long a message of a call lives: clients give up after that time.
const RING: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_rings_and_is_heard() {
    let folders = [0; 3].map(|_| tempfile::tempdir().unwrap());
    let [at_notifier, one, other] = folders.each_ref().map(tempfile::TempDir::path);
    [one, other].into_iter().for_each(write_secrets);
    let site = Site::quietline(one, |settings| set(settings, "auth.timed", timed(&["old"])));
    let second = site.across(other, |settings| set(settings, "auth.timed", timed(&["old"])));
    let mut lab = Lab::surround(LabSettings::in_folder(at_notifier)).unwrap();
    write_secret(&at_notifier.join("keys/turn"), OLD_SECRET.as_bytes()).unwrap();
    let server = |operator, ip| turn_server(operator, &[format!("turn:{ip}:3478?transport=udp")], "keys/turn");
    let servers = Setting::Array(vec![server("one", SERVER), server("other", FAR_SERVER)]);
    lab.settings.overrides.push(("turn.server".to_owned(), servers));
    lab.write_settings().unwrap();
    lab.start_notifier().await.unwrap();
    let chromium = Chromium::start(&site.world, one, &[]);
    let callee = enrolled(&lab, PushService::Firebase).await;

    // The caller has its relays ready before it rings.
    let ice_servers = async || {
        let answer = lab.credentials().await.unwrap().json().unwrap();
        answer["iceServers"].clone()
    };
    let of_caller = ice_servers().await;
    let began = Instant::now();
    let sent = lab.send(&callee, 0, b"an offer, sealed for the callee", RING);
    let (delivery, message) = lab.next_delivery(&callee, PATIENCE).await.unwrap();
    assert_eq!(message.hash, sent.hash);
    assert_eq!(
        message.body,
        PhoneBody::Data(b"an offer, sealed for the callee".to_vec())
    );
    assert_eq!(message.expiry_ms - message.timestamp_ms, RING.as_millis() as i64);
    let woken = began.elapsed();
    let of_callee = ice_servers().await;
    assert_ne!(of_caller, of_callee, "two who call each other share no name");
    let told = began.elapsed();
    let sides = [relayed_side(&of_caller), relayed_side(&of_callee)];
    // The browser's thread is waited for beside the tasks that the lab runs on.
    let (setup, report) = tokio::task::block_in_place(|| {
        let setup = chromium.call_between("ring", sides).wait();
        (setup, chromium.heard("ring", A_WORD))
    });
    let setup = setup.as_ref().ok().and_then(Value::as_f64);
    let heard = began.elapsed();
    let report = report.unwrap();
    assert!(
        report.whole && setup.is_some(),
        "{report:?}\n{}\n{}",
        site.log(),
        second.log()
    );
    for end in &report.ends {
        assert_eq!(
            (end.local.as_str(), end.remote.as_str()),
            ("relay", "relay"),
            "{report:?}"
        );
    }
    println!(
        "ring: woken after {:?} (a push of {} bytes), told its relays after {:?}, connected in {:.0} ms, heard after {:?}",
        woken,
        delivery.enc_payload.len(),
        told,
        setup.unwrap_or_default(),
        heard
    );
}
