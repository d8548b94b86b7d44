//! A browser's call with itself, both ends relayed: from its first line of script until ICE and DTLS are done.
//!
//! In: two relays in networks of their own, one Chromium beside them. Out: the median of its calls through each. Never: two calls at
//! once.

use crate::calls::{End, Way};
use crate::chromium::Chromium;
use crate::report;
use quietline_lab::keys::write_secret;
use quietline_lab::settings::set;
use quietline_lab::turn::server::{FAR_SERVER, SERVER, Site, Transport};
use report::{Goal, percentile};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use toml::{Table, Value};

const SECRET: &str = "the secret of the benchmark, 5b0c 77d2";
/// Calls through each relay that only make everything warm.
const WARM: usize = 2;

pub fn measure(folder: &Path, threads: usize, calls: usize) {
    let folders = ["coturn-site", "ours-site"].map(|name| folder.join(name));
    for folder in &folders {
        // A profile of another run would be another start.
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).unwrap();
    }
    write_secret(&folders[1].join("secret"), SECRET.as_bytes()).unwrap();
    let (threads_word, secret_word) = (threads.to_string(), format!("--static-auth-secret={SECRET}"));
    let coturn = Site::coturn(&folders[0], &["-m", &threads_word, "--use-auth-secret", &secret_word]);
    let _ours = coturn.across(&folders[1], |settings| {
        let timed = Table::from_iter([("secret_file".to_owned(), Value::from("secret"))]);
        set(settings, "auth.timed", Value::Array(vec![Value::Table(timed)]));
        set(settings, "shard.count", Value::Integer(threads as i64));
    });
    let certificates = folders.each_ref().map(|folder| folder.join("tls.pem"));
    let chromium = Chromium::start(&coturn.world, &folders[0], &certificates);
    for transport in Transport::ALL {
        let mut times: [Vec<Duration>; 2] = Default::default();
        for number in 0..WARM + calls {
            for step in 0..2 {
                let at = (number + step) % 2;
                let took = call(&chromium, [SERVER, FAR_SERVER][at], transport);
                if number >= WARM {
                    times[at].push(took);
                }
            }
        }
        let mut of = |at: usize, share| percentile(&mut times[at], share).as_secs_f64() * 1e3;
        report::note(&format!(
            "browser: {calls} calls through each relay over {transport:?}; least and most: coturn {:.0} to {:.0} ms, ours {:.0} to {:.0} ms",
            of(0, 0),
            of(0, 1000),
            of(1, 0),
            of(1, 1000)
        ));
        let (coturn, ours) = (of(0, 500), of(1, 500));
        report::figure(
            &format!("calls: Chromium's setup over {transport:?}, median"),
            ours,
            "ms",
            Goal::AtMost(coturn),
            &[("coturn", coturn)],
        );
    }
}

/// Until both ends are connected.
fn call(chromium: &Chromium, server: Ipv4Addr, transport: Transport) -> Duration {
    const NAME: &str = "call";
    let end = End::Relayed(Way {
        server: server.into(),
        transport,
        secret: SECRET.to_owned(),
    });
    let setup = chromium.call(NAME, [&end, &end]).wait();
    let milliseconds = setup.as_ref().ok().and_then(serde_json::Value::as_f64);
    let milliseconds = milliseconds.unwrap_or_else(|| panic!("a call through {server} over {transport:?}: {setup:?}"));
    chromium.hang_up(NAME).unwrap();
    Duration::from_secs_f64(milliseconds / 1e3)
}
