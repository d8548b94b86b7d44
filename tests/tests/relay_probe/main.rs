//! A black-box probe of a TURN server: the conformance cases and the known attacks, byte by byte over real sockets.
//!
//! The same probe runs against Debian's coturn, whose faults are known: a probe that did not find them would prove nothing. What takes
//! minutes or hours of protocol time (permissions of 300 s, channels of 600 s, stale nonces) is shown in turn-core, where time is an
//! argument.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod abuse;
mod cases;
mod conformance;
mod findings;

use findings::Findings;
use quietline_lab::turn::server::Site;
use std::collections::BTreeSet;
use toml::Table;

/// Our relay with these settings does what the probe asks, and is alive and silent about it at the end.
fn holds(change: impl FnOnce(&mut Table), probe: impl FnOnce(&Site, &mut Findings)) {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::quietline(folder.path(), change);
    let mut found = Findings::default();
    probe(&site, &mut found);
    found.conclude(site);
}

/// Faults of every coturn so far, 4.17 included.
const KNOWN: &[&str] = &[
    "8 Sha256 allocates",
    "8 UserHash allocates",
    "12 REQUESTED-TRANSPORT 99 over Udp is 442",
    "18 after it Refresh is 437",
    "19 10.0.0.1 is 403",
    "19 100.64.0.1 is 403",
    "19 192.0.2.1 is 403",
    "19 224.0.0.1 is 403",
    "24 Udp: CreatePermission without allocation is 437",
    "24 Udp: ChannelBind without allocation is 437",
    "ICMP: an indication",
    "ICMPv6: an indication",
];

/// And those of 4.6, which Debian 12 and 13 have.
const KNOWN_OF_4_6: &[&str] = &[
    "9 LIFETIME behind an Allocate's integrity is ignored",
    "9 LIFETIME=0 behind a Refresh's integrity is ignored",
    "10 no SOFTWARE",
    "19 169.254.169.254 is 403",
    "22 channel 0x5000 is 400",
];

/// Its other faults begin like this; where one stands for many, it is because the rest follows from it.
const FOLLOWING: &[&str] = &[
    "1 size over ",
    "3 a wrong cookie ",
    "4 PASSWORD-ALGORITHMS ",
    "4 the nonce begins with its cookie ",
    "6 Md5: ",
    "7 the 438 for ",
    "8 ",
    "12 REQUESTED-TRANSPORT ",
    "15 with IPv6: ",
    "16 a bogus token ",
    "16 a token is good once",
    "18 after it the port is closed ",
    // It keeps what came before a permission until there is one now and then; from then on all that comes is one packet late.
    "21 Udp: the next is a Data indication from ",
    "21 Udp: then it is ChannelData",
    "21 Udp: from another port still a Data indication",
    "19 ::ffff:127.0.0.1 of both families ",
    "19 an IPv6 peer of both families",
    "22 nothing is permitted yet",
    "22 channel 0x4000 ",
    "22 a channel of another peer ",
    "22 binding installs the permission",
    "24 ",
    // The same, for all that B gets.
    "25 Udp and Udp on one server: B gets ",
    "25 Udp and Udp on one server: B without a channel",
    "25 Udp and Udp on one server: channel to channel",
];

#[test]
fn the_probe_finds_the_known_faults_of_another_relay_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::coturn(folder.path(), &[]);
    let mut found = Findings::default();
    for case in [
        cases::case_1,
        cases::case_2,
        cases::case_3,
        cases::case_4,
        cases::case_5,
        cases::case_6,
        cases::case_7,
        cases::case_8,
        cases::case_9,
        cases::case_10,
        cases::case_11,
        cases::case_12,
        cases::case_13,
        cases::case_14,
        cases::case_15_with_ipv6,
        cases::case_16,
        cases::case_18,
        cases::case_19,
        cases::case_20,
        cases::case_21,
        cases::case_22,
        cases::case_23,
        cases::case_23_streams,
        cases::case_24,
        cases::case_25,
        cases::icmp,
        cases::ipv6_relay,
    ] {
        case(&site, &mut found);
    }
    assert!(found.checks() > 500, "{} checks", found.checks());
    let names: BTreeSet<&str> = found.names().into_iter().collect();
    let is_4_6 = site.log().contains("Version Coturn-4.6");
    let known: Vec<&&str> = match is_4_6 {
        true => KNOWN.iter().chain(KNOWN_OF_4_6).collect(),
        false => KNOWN.iter().collect(),
    };
    let overlooked: Vec<_> = known.iter().filter(|fault| !names.contains(**fault)).collect();
    assert!(overlooked.is_empty(), "the probe overlooks {overlooked:#?}");
    let is_known = |name: &&&str| {
        KNOWN.contains(name) || KNOWN_OF_4_6.contains(name) || FOLLOWING.iter().any(|start| name.starts_with(start))
    };
    let invented: Vec<_> = names.iter().filter(|name| !is_known(name)).collect();
    assert!(
        invented.is_empty(),
        "these are no faults of it: {invented:#?}\n{}",
        found.report()
    );
}
