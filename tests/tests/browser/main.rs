//! A real browser calls through the relay: Chromium without a window, with sound, pictures and a data channel.
//!
//! One process holds many calls side by side. What counts is what getStats says: which candidates, bytes, frames decoded, round trips,
//! what was lost.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod calls;
mod chromium;
#[path = "../../browser/headless.rs"]
mod headless;
mod ring;

use calls::{A_WORD, End, Heard, Report, Way};
use chromium::Chromium;
use quietline_lab::keys::write_secret;
use quietline_lab::settings::set;
use quietline_lab::turn::server::{FAR_SERVER, FAR_SERVER_V6, SERVER, SERVER_V6, Site, Transport};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;
use toml::{Table, Value};

/// Where an end without a relay is: an address that only an allow-list opens.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const OLD_SECRET: &str = "the secret of the first months, 41d8 73b0";
const NEW_SECRET: &str = "the secret of the months to come, 9c55 e21f";

/// `[[auth.timed]]` of these files, the first makes new ones.
fn timed(files: &[&str]) -> Value {
    let entry = |file: &&str| Value::Table(Table::from_iter([("secret_file".to_owned(), Value::from(*file))]));
    Value::Array(files.iter().map(entry).collect())
}

fn write_secrets(folder: &Path) {
    for (name, secret) in [("old", OLD_SECRET), ("new", NEW_SECRET)] {
        write_secret(&folder.join(name), secret.as_bytes()).unwrap();
    }
}

fn way(server: impl Into<IpAddr>, transport: Transport) -> Way {
    Way {
        server: server.into(),
        transport,
        secret: OLD_SECRET.to_owned(),
    }
}

/// A call, and what each of its ends must turn out to be.
struct Case {
    name: String,
    ends: [End; 2],
}

/// Each transport and family with both ends on one relay, on two, and against a host; and some that mix them.
fn every_case() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |topology: &str, ends: [End; 2]| {
        let words = ends.iter().map(|end| match end {
            End::Relayed(way) => way.url(),
            End::Host(ip) => ip.to_string(),
        });
        let words: Vec<String> = words.collect();
        cases.push(Case {
            name: format!("{topology}, {}", words.join(" and ")),
            ends,
        });
    };
    let servers: [[IpAddr; 2]; 2] = [
        [SERVER.into(), FAR_SERVER.into()],
        [SERVER_V6.into(), FAR_SERVER_V6.into()],
    ];
    for transport in Transport::ALL {
        for [one, other] in servers {
            let relayed = |server| End::Relayed(way(server, transport));
            case("one relay", [relayed(one), relayed(one)]);
            case("two relays", [relayed(one), relayed(other)]);
            case("relay and host", [relayed(one), End::Host(HOST.into())]);
        }
    }
    let [[v4, other_v4], [v6, _]] = servers;
    let mixed = [
        (way(v4, Transport::Udp), way(v6, Transport::Tls)),
        (way(v4, Transport::Tcp), way(v4, Transport::Udp)),
        (way(v6, Transport::Tcp), way(other_v4, Transport::Tls)),
    ];
    for (one, other) in mixed {
        case("mixed", [End::Relayed(one), End::Relayed(other)]);
    }
    cases
}

/// What the report says against the case, if anything.
fn wrong(case: &Case, report: &Report) -> Option<String> {
    for (number, (end, said)) in case.ends.iter().zip(&report.ends).enumerate() {
        let is_right = match end {
            End::Relayed(way) => {
                let protocol = match way.transport {
                    Transport::Udp => "udp",
                    Transport::Tcp => "tcp",
                    Transport::Tls => "tls",
                };
                said.local == "relay" && said.relay_protocol == protocol && said.url == way.url()
            }
            End::Host(_) => said.local == "host",
        };
        let is_peer_right = match &case.ends[1 - number] {
            End::Relayed(_) => said.remote == "relay",
            End::Host(ip) => said.remote == "host" && said.remote_address == ip.to_string(),
        };
        let flows = said.bytes_received > 0 && said.round_trip_seconds.is_some();
        if !(is_right && is_peer_right && flows && said.state == "connected") {
            return Some(format!("end {number}: {said:?}; {:?}", report.errors));
        }
    }
    (!report.whole).then(|| format!("not enough was heard: {report:?}"))
}

#[test]
fn a_browser_calls_in_every_way_that_there_is() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    folders.iter().for_each(|folder| write_secrets(folder.path()));
    let site = Site::quietline(folders[0].path(), |settings| {
        set(settings, "auth.timed", timed(&["old"]));
        set(settings, "peers.allow", Value::Array(vec!["10.9.0.0/24".into()]));
    });
    site.world.ip(&format!("addr add {HOST}/32 dev in"));
    let other = site.across(folders[1].path(), |settings| {
        set(settings, "auth.timed", timed(&["old"]));
    });
    let certificates = folders.each_ref().map(|folder| folder.path().join("tls.pem"));
    let chromium = Chromium::start(&site.world, folders[0].path(), &certificates);

    // The other relay allows no such host: it says so, and no packet gets there.
    let forbidden = [End::Relayed(way(FAR_SERVER, Transport::Udp)), End::Host(HOST.into())];
    let never = chromium.call("forbidden", [&forbidden[0], &forbidden[1]]);
    other.wait_metric("control_refused_total", "stage=\"peers\"", 1.0);

    let cases = every_case();
    let begun: Vec<_> = cases
        .iter()
        .map(|case| chromium.call(&case.name, [&case.ends[0], &case.ends[1]]))
        .collect();
    let (mut faults, mut arrived, mut lost) = (Vec::new(), 0, 0);
    for (case, call) in cases.iter().zip(begun) {
        match call.wait().and_then(|_| chromium.heard(&case.name, A_WORD)) {
            Ok(report) => {
                let packets = report.packets();
                (arrived, lost) = (arrived + packets.0, lost + packets.1);
                faults.extend(wrong(case, &report).map(|fault| format!("{}: {fault}", case.name)));
            }
            Err(fault) => faults.push(format!("{}: {fault}", case.name)),
        }
        // The others get its share of the machine.
        chromium.hang_up(&case.name).unwrap();
    }
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), site.log());
    assert_eq!(cases.len(), 21);
    println!("in every way: {arrived} packets of sound and pictures, {lost} lost");

    let report = chromium.report("forbidden").unwrap();
    let received: u64 = report.ends.iter().map(|end| end.bytes_received).sum();
    assert_eq!(received, 0, "{report:?}");
    assert!(report.ends.iter().all(|end| end.state != "connected"), "{report:?}");
    drop(never);
}

/// `CALL_SECONDS`: how long the call is held. In short ones the timers of allocations and nonces are short; those of permissions and
/// channels, 300 and 600 seconds, are the protocol's.
#[test]
fn a_call_outlives_reloads_a_new_secret_its_nonces_and_its_refreshes() {
    let seconds = std::env::var("CALL_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_u32);
    let (lifetime, nonce_epoch) = if seconds < 600 { ("12s", "5s") } else { ("10m", "4m") };
    let folder = tempfile::tempdir().unwrap();
    write_secrets(folder.path());
    let settings = |secrets: &'static [&'static str]| {
        move |settings: &mut Table| {
            set(settings, "auth.timed", timed(secrets));
            set(settings, "auth.nonce_epoch", nonce_epoch);
            set(settings, "limits.default_lifetime", lifetime);
            set(settings, "limits.max_lifetime", lifetime);
        }
    };
    let site = Site::quietline(folder.path(), settings(&["old"]));
    let chromium = Chromium::start(&site.world, folder.path(), &[folder.path().join("tls.pem")]);
    let calls = [(Transport::Udp, "over UDP"), (Transport::Tls, "over TLS")];
    for (transport, name) in calls {
        let end = End::Relayed(way(SERVER, transport));
        chromium.call(name, [&end, &end]).wait().unwrap();
    }
    // Until the receivers have settled, so that what is counted is the call and not its first packets.
    let before = calls.map(|(_, name)| chromium.heard(name, A_WORD).unwrap());

    let steps: [&'static [&'static str]; 3] = [&["old", "new"], &["new", "old"], &["new"]];
    let part = |parts: u32| Heard {
        audio_packets: 50 * seconds / parts,
        frames_decoded: 2 * seconds / parts,
        returned: 10 * seconds / parts,
        patience: Duration::from_secs(u64::from(3 * seconds)),
    };
    for (number, secrets) in (1..).zip(steps) {
        site.reload(settings(secrets));
        site.wait_metric("settings_reloads_total", "outcome=\"taken\"", f64::from(number));
        for (_, name) in calls {
            let report = chromium.heard(name, part(2 * 4)).unwrap();
            assert!(report.whole, "{name}, after reload {number}: {report:?}");
        }
    }
    // Who comes now has a credential of the new secret, and one of the old is worth nothing.
    let mut fresh = way(SERVER, Transport::Udp);
    NEW_SECRET.clone_into(&mut fresh.secret);
    let fresh = End::Relayed(fresh);
    chromium.call("later", [&fresh, &fresh]).wait().unwrap();
    let stale = End::Relayed(way(SERVER, Transport::Udp));
    let _refused = chromium.call("too late", [&stale, &stale]);
    site.wait_metric("control_refused_total", "reason=\"credential\"", 1.0);

    for (_, name) in calls {
        let report = chromium.heard(name, part(2 * 4)).unwrap();
        assert!(report.whole, "{name}, at the end: {report:?}");
    }
    // Every end of both calls was told once that its nonce is old, and has refreshed its allocation.
    site.wait_metric("control_refused_total", "reason=\"stale_nonce\"", 4.0);
    site.wait_metric("control_successes_total", "method=\"refresh\"", 4.0);
    for ((_, name), before) in calls.into_iter().zip(before) {
        let after = chromium.report(name).unwrap();
        let ((arrived, lost), (earlier, lost_earlier)) = (after.packets(), before.packets());
        let (arrived, lost) = (arrived - earlier, lost - lost_earlier);
        println!(
            "{name}: {arrived} packets of sound and pictures, {lost} lost, {} of {} messages back",
            after.returned, after.sent
        );
        assert!(lost * 1_000 <= arrived, "{name}: {lost} of {arrived} packets are lost");
        assert!(after.ends.iter().all(|end| end.state == "connected"), "{after:?}");
    }
}
