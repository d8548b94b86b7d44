//! `quietline-turn check` makes calls, and names what keeps others from calling.

use crate::scene::{Fault, Scene};

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
