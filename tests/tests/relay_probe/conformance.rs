//! The 25 cases and what libwebrtc needs, on our relay.

use crate::cases;
use crate::holds;
use quietline_lab::settings::set;
use quietline_lab::turn::server::Site;

#[test]
fn case_1_binding_tells_the_source_and_nothing_else() {
    holds(|_| {}, cases::case_1);
}

#[test]
fn case_2_unknown_attributes_of_binding() {
    holds(|_| {}, cases::case_2);
}

#[test]
fn case_3_what_is_malformed_gets_silence() {
    holds(|_| {}, cases::case_3);
}

#[test]
fn case_4_without_integrity_there_is_a_challenge() {
    holds(|_| {}, cases::case_4);
}

#[test]
fn case_5_an_integrity_without_its_companions_is_a_bad_request() {
    holds(|_| {}, cases::case_5);
}

#[test]
fn case_6_unknown_users_and_wrong_passwords_look_the_same() {
    holds(|_| {}, cases::case_6);
}

#[test]
fn case_7_foreign_and_random_nonces() {
    holds(|_| {}, cases::case_7);
}

#[test]
fn case_8_sha256_userhash_and_bidding_down() {
    holds(|_| {}, cases::case_8);
}

#[test]
fn case_9_what_stands_behind_the_integrity_is_ignored() {
    holds(|_| {}, cases::case_9);
}

#[test]
fn case_10_an_allocation_has_a_random_high_port() {
    holds(|_| {}, cases::case_10);
}

#[test]
fn case_11_lifetimes_are_clamped() {
    holds(|_| {}, cases::case_11);
}

#[test]
fn case_12_only_udp_is_relayed() {
    holds(|_| {}, cases::case_12);
}

#[test]
fn case_13_the_same_five_tuple_again() {
    holds(|_| {}, cases::case_13);
}

#[test]
fn case_14_another_user_on_the_same_five_tuple() {
    holds(|_| {}, cases::case_14);
}

#[test]
fn case_15_address_families() {
    holds(|_| {}, cases::case_15_with_ipv6);
    let only_v4 = |settings: &mut toml::Table| {
        set(settings, "listen.addresses", toml::Value::Array(vec!["1.2.3.4".into()]));
    };
    holds(only_v4, cases::case_15_without_ipv6);
}

#[test]
fn case_16_dont_fragment_even_ports_and_reservations() {
    holds(|_| {}, cases::case_16);
}

#[test]
fn case_17_quotas_and_ports_run_out_and_come_back() {
    for limit in ["limits.allocations_per_prefix", "limits.allocations"] {
        holds(
            |settings| set(settings, limit, 3),
            |site, found| cases::case_17(site, 3, found),
        );
    }
    let few_ports = |settings: &mut toml::Table| {
        set(settings, "relay.first_port", 50_000);
        set(settings, "relay.last_port", 50_003);
        set(settings, "limits.port_cool_down", "0s");
    };
    holds(few_ports, |site, found| cases::case_17_ports(site, 4, found));
}

#[test]
fn case_18_refresh() {
    holds(|_| {}, cases::case_18);
}

#[test]
fn case_19_create_permission() {
    holds(|_| {}, cases::case_19);
    holds(|_| {}, |site, found| cases::case_19_capacity(site, 64, found));
}

#[test]
fn case_20_send_indications() {
    holds(|_| {}, cases::case_20);
}

#[test]
fn case_21_packets_from_peers() {
    holds(|_| {}, cases::case_21);
}

#[test]
fn case_22_channel_bind() {
    holds(|_| {}, cases::case_22);
}

#[test]
fn case_23_channel_data() {
    holds(|_| {}, cases::case_23);
    holds(|_| {}, cases::case_23_streams);
}

#[test]
fn case_24_requests_without_allocation_unknown_methods_and_classes() {
    holds(|_| {}, cases::case_24);
}

#[test]
fn case_25_two_clients_of_one_server_and_of_two() {
    holds(|_| {}, cases::case_25);
    holds(
        |_| {},
        |site, found| {
            let folder = tempfile::tempdir().unwrap();
            let other = Site::beside(site, folder.path());
            cases::case_25_two_servers(site, &other, found);
        },
    );
}

#[test]
fn icmp_errors_reach_the_client_as_indications() {
    holds(|_| {}, cases::icmp);
}

#[test]
fn ipv6_is_relayed_for_clients_of_both_families() {
    holds(|_| {}, cases::ipv6_relay);
}
