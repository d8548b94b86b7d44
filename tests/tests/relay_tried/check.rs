//! `quietline-turn check` makes calls, and names what keeps others from calling.

use crate::scene::{FILES, Fault, Scene, limit_files};
use quietline_lab::turn::server::{PORT, SERVER};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;

/// Asserts that `check` names the fault, and whether it says that the relay works all the same.
fn finds(fault: Fault, name: &str, code: i32) {
    let scene = Scene::with(fault);
    let (exit, said) = scene.check();
    assert!(said.contains(&format!(": {name}: ")), "{fault:?} is {name}:\n{said}");
    assert_eq!(exit, Some(code), "{said}");
    assert_eq!(said.contains("\nthe relay works\n"), code == 0, "{said}");
}

#[test]
fn a_relay_that_works_carries_a_call_over_each_transport_and_one_of_webrtc() {
    let (exit, said) = Scene::with(Fault::None).check();
    assert_eq!(exit, Some(0), "{said}");
    for url in [
        "turn:1.2.3.4:3478?transport=udp",
        "turn:1.2.3.4:3478?transport=tcp",
        "turns:1.2.3.4:3478?transport=tcp",
    ] {
        let line = said
            .lines()
            .find(|line| line.starts_with(&format!("{url}: a call works")));
        let line = line.unwrap_or_else(|| panic!("{url}: {said}"));
        assert!(line.contains("0 of 50 packets lost"), "{said}");
        assert!(line.ends_with("packets of others arrive"), "{said}");
    }
    assert!(
        said.contains("turn:1.2.3.4:3478?transport=udp: WebRTC works: set up in "),
        "{said}"
    );
    assert!(!said.contains("fault: "), "{said}");
}

#[test]
fn another_machine_needs_no_file_but_settings_and_secret_and_is_not_looked_at() {
    // The settings ask for a larger buffer than any machine gives, and name a certificate that is not there.
    let (exit, said) = Scene::with(Fault::Buffers).check_elsewhere(&["turn:1.2.3.4:3478"]);
    assert_eq!(exit, Some(0), "{said}");
    for words in ["listens on", "warning: ", "core dumps"] {
        assert!(!said.contains(words), "{words} is about the machine that asks:\n{said}");
    }
}

#[test]
fn a_relay_over_ipv6_is_judged_by_the_client_that_knows_ipv6() {
    let scene = Scene::with(Fault::StaleName);
    let (exit, said) = scene.check_elsewhere(&["turn:[2a00:1::4]:3478"]);
    assert_eq!(exit, Some(0), "{said}");
    assert!(
        said.contains("turn:[2a00:1::4]:3478?transport=udp: a call works"),
        "{said}"
    );
    assert!(said.contains("the WebRTC client knows IPv4 alone"), "{said}");
}

#[test]
fn each_address_family_of_a_name_is_tried() {
    let scene = Scene::with(Fault::StaleName);
    let (exit, said) = scene.check();
    assert_eq!(exit, Some(1), "{said}");
    assert!(
        said.contains("fault: port-closed: nothing answers at turn.example.org (2a00:1::66)"),
        "{said}"
    );
    assert_eq!(said.matches("fault: ").count(), 1, "{said}");
    for way in [
        "turn:turn.example.org:3478?transport=udp",
        "turns:turn.example.org:3478?transport=tcp",
    ] {
        assert!(said.contains(&format!("{way} at 1.2.3.4: a call works")), "{said}");
    }
    assert!(said.contains("at 1.2.3.4: WebRTC works"), "{said}");

    // Who has no IPv6 cannot say whether it works.
    scene.site.world.set("net/ipv6/conf/all/disable_ipv6", "1");
    let (exit, said) = scene.check();
    assert_eq!(exit, Some(0), "{said}");
    assert!(
        said.contains("at 2a00:1::66: not tried, as this machine has no way to IPv6 addresses"),
        "{said}"
    );
    let (exit, said) = scene.check_elsewhere(&["turn:[2a00:1::4]:3478"]);
    assert_eq!(exit, Some(1), "nothing was tried: {said}");
    assert!(!said.contains("the relay works"), "{said}");
}

/// Answers every connection as a server for the web does whom somebody asks something else.
fn serve_web(scene: &Scene, port: u16) {
    let listener = scene.site.home.run(|| TcpListener::bind((SERVER, port))).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1_024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html></html>");
        }
    });
}

#[test]
fn another_program_at_a_port_is_not_taken_for_a_closed_one() {
    let scene = Scene::with(Fault::None);
    serve_web(&scene, 443);
    for url in ["turn:1.2.3.4:443?transport=tcp", "turns:1.2.3.4:443"] {
        let (exit, said) = scene.check_elsewhere(&[url]);
        assert_eq!(exit, Some(1), "{said}");
        assert!(
            said.contains("fault: other-server: ") && !said.contains("-closed") && !said.contains("-blocked"),
            "{said}"
        );
    }
}

#[test]
fn before_the_first_start_who_has_the_port_is_named() {
    let mut scene = Scene::with(Fault::None);
    scene.site.kill();
    let (exit, said) = scene.check_at_home(&[]);
    assert_eq!(exit, Some(0), "one with these settings serves the check: {said}");
    assert!(
        said.contains("no relay that runs says how many files it may open"),
        "{said}"
    );
    serve_web(&scene, PORT);
    let (exit, said) = scene.check_at_home(&[]);
    assert_eq!(exit, Some(1), "{said}");
    assert!(
        said.contains("fault: other-server: another program has 1.2.3.4:3478"),
        "{said}"
    );
    assert_eq!(said.matches("fault: ").count(), 1, "{said}");
}

#[test]
fn less_than_half_of_the_packets_are_no_call() {
    let scene = Scene::with(Fault::None);
    // 20 packets of a call pass, of which one round trip takes two: then the network is full.
    scene.site.home.nft(
        "table inet full { chain in { type filter hook input priority 0; \
         udp dport 3478 udp length 184 limit rate over 1/hour burst 20 packets drop; }; }",
    );
    let (exit, said) = scene.check_elsewhere(&["turn:1.2.3.4:3478"]);
    assert_eq!(exit, Some(1), "{said}");
    assert!(
        said.contains(": no-media: ") && said.contains(" of 26 packets come through"),
        "{said}"
    );
}

#[test]
fn a_stun_server_whose_name_leads_nowhere_is_named() {
    let (exit, said) = Scene::with(Fault::None).check_at_home(&["--stun", "typo.invalid:3478"]);
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("fault: name: typo.invalid leads nowhere"), "{said}");
}

#[test]
fn the_files_of_whoever_checks_are_not_the_relays() {
    let scene = Scene::with(Fault::None);
    limit_files(&scene.site, FILES);
    let (exit, said) = scene.check_with_files(1_000);
    assert_eq!(exit, Some(0), "{said}");
    assert!(
        said.contains(&format!("the relay that runs may open {FILES} files")),
        "{said}"
    );
    assert!(!said.contains("file-limit"), "{said}");
}

#[test]
fn what_an_endpoint_gave_out_is_tried_as_it_is() {
    let scene = Scene::with(Fault::None);
    let answer = scene.credentials();
    let (exit, said) = scene.check_given(&answer);
    assert_eq!(exit, Some(0), "{said}");
    assert_eq!(said.matches(": a call works: ").count(), 3, "{said}");
    let (exit, said) = scene.check_given_at_home(&answer);
    assert_eq!(exit, Some(0), "{said}");
    assert!(
        said.contains("the credential for turn:1.2.3.4:3478?transport=udp was made with auth.timed[0].secret_file"),
        "{said}"
    );

    let with = |key: &str, value: &str| {
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        answer["iceServers"][0][key] = value.into();
        scene.check_given(&answer.to_string())
    };
    let (exit, said) = with("credential", "made with another secret");
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("fault: wrong-secret: "), "{said}");
    let (exit, said) = with("username", "1700000000:ab");
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("fault: clock-off: "), "{said}");
    assert!(!said.contains("1700000000"), "no name is printed: {said}");
    let (exit, said) = scene.check_given("{\"error\": 503}");
    assert_eq!(exit, Some(1), "{said}");
    assert!(
        said.contains("--credentials: the file is not JSON with iceServers"),
        "{said}"
    );
}

#[test]
fn udp_that_is_blocked_is_found() {
    finds(Fault::UdpBlocked, "udp-blocked", 1);
}

#[test]
fn tcp_that_is_blocked_is_found() {
    finds(Fault::TcpBlocked, "tcp-blocked", 1);
}

#[test]
fn relay_ports_that_are_blocked_are_found() {
    finds(Fault::RelayPortsBlocked, "relay-ports-blocked", 1);
}

#[test]
fn relay_ports_that_let_only_answers_in_are_found() {
    finds(Fault::RelayPortsUnopened, "relay-ports-blocked", 1);
}

#[test]
fn a_wrong_outer_address_is_found() {
    finds(Fault::ExternalWrong, "external-wrong", 1);
}

#[test]
fn a_missing_outer_address_is_found() {
    finds(Fault::ExternalMissing, "external-missing", 1);
}

#[test]
fn a_wrong_secret_is_found() {
    finds(Fault::WrongSecret, "wrong-secret", 1);
}

#[test]
fn a_clock_that_is_off_is_found() {
    finds(Fault::ClockOff, "clock-off", 0);
}

#[test]
fn a_certificate_that_has_ended_is_found() {
    finds(Fault::CertificateExpired, "certificate-expired", 0);
}

#[test]
fn a_certificate_for_another_name_is_found() {
    finds(Fault::CertificateName, "certificate-name", 0);
}

#[test]
fn a_chain_with_a_hole_is_found() {
    finds(Fault::ChainIncomplete, "chain-incomplete", 0);
}

#[test]
fn too_few_open_files_are_found() {
    finds(Fault::FileLimit, "file-limit", 0);
}

#[test]
fn small_buffers_are_found() {
    finds(Fault::Buffers, "buffers", 0);
}
