//! The notifier (and in `relay` the relay) at the level that prints most goes through every path, good and bad; then everything that left the process is
//! searched for everything private that went in.
//!
//! Panics cannot be provoked from outside; that their payload is not printed is tested beside the hook (`shared`, telemetry).
#![allow(clippy::unwrap_used, reason = "the helpers of a test are outside of its functions")]

mod crash;
mod files;
mod relay;
mod scenes;
mod search;
mod world;

use search::{Form, Search, Sinks};
use std::time::Duration;
use world::World;

/// For everything that is awaited: generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_private_leaves_the_process_with_a_log_for_people() {
    everything_then_search("text", 1).await;
}

/// Without a seed no second source can agree, so a strange node list is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_private_leaves_the_process_with_a_log_for_machines() {
    everything_then_search("json", 0).await;
}

async fn everything_then_search(format: &str, seeds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path(), format, seeds).await;
    scenes::start_with_bad_keys(&mut world).await;
    let friends = scenes::subscribe_and_be_woken(&mut world).await;
    scenes::bindings_and_tests(&mut world).await;
    scenes::relays_for_calls(&mut world, &friends).await;
    world.look().await;
    scenes::refused_requests(&mut world, &friends).await;
    scenes::answers_of_the_providers(&mut world).await;
    scenes::lying_nodes(&mut world, &friends).await;
    scenes::broken_nodes(&mut world, &friends).await;
    scenes::no_node_list(&mut world, seeds).await;
    scenes::full_disk(&mut world, &friends).await;
    world.look().await;
    scenes::kill(&mut world, &friends).await;
    world.look().await;
    scenes::crash(&mut world, &friends).await;
    scenes::drain(&mut world, &friends).await;

    let (sinks, values) = world.gather().await;
    for sink in [
        "log",
        "/metrics",
        "/health/live",
        "/health/ready",
        "/info",
        "/transparency",
        "audit",
        "answers",
        "command line",
        "columns",
        "providers",
        "payloads",
        "names of files",
        "operator's push",
    ] {
        assert!(sinks.length(sink) > 0, "nothing was gathered from {sink}");
    }
    assert!(values.values() > 500, "{} values", values.values());
    every_leak_would_be_found(&sinks, &values);
    let leaks = sinks.leaks(&values);
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}

/// A search that finds nothing proves nothing unless it would have found something: a value is planted in each sink in each form.
fn every_leak_would_be_found(sinks: &Sinks, values: &Search) {
    let planted = values.example().to_vec();
    for (name, sink) in sinks.each() {
        let sample = &sink[sink.len().saturating_sub(8 << 10)..];
        for form in Form::ALL {
            // What stands before the value moves it against the groups of base64.
            for before in [&b""[..], b"x", b"xy"] {
                let mut leaking = sample[..sample.len() / 2].to_vec();
                leaking.extend(form.write(&[before, &planted].concat()));
                leaking.extend_from_slice(&sample[sample.len() / 2..]);
                let mut tampered = Sinks::default();
                tampered.add(name, leaking);
                assert!(
                    !tampered.leaks(values).is_empty(),
                    "{form:?} in {name} after {} bytes",
                    before.len()
                );
            }
        }
    }
}

#[test]
fn digits_of_a_key_are_no_leak_and_the_key_is() {
    let mut search = Search::default();
    let key = "123456789012345c9f123456789012";
    search.mark("key", key.as_bytes());
    assert_eq!(search.find(b"7123456789012345 0123456789012"), None);
    assert!(search.find(b"12345c9f1").is_some());
    search.mark("number", b"123456789012");
    assert!(search.find(b"7123456789012345").is_some());
}

#[test]
fn six_hex_digits_of_a_key_are_no_leak_and_nine_are() {
    let mut search = Search::default();
    let key = "c9f3a07be51d2846c0ffee";
    search.mark("key", key.as_bytes());
    assert_eq!(search.find(b"c9f3a07b-e51d-2846-c0ff-eec9f3a07b00"), None);
    for nine in key.as_bytes().windows(9) {
        assert!(search.find(&[b"0", nine, b"0"].concat()).is_some());
    }
    // Twice in hex there are twelve.
    assert!(search.find(&Form::HexLower.write(b"c9f3a0")).is_some());
    // A head that is no more than hex itself, of a text that is more.
    search.mark("word", b"facade of a house");
    assert!(search.find(b"facade").is_some());
}

#[test]
fn a_value_is_found_in_each_form_also_when_only_a_piece_of_it_is_there() {
    let mut search = Search::default();
    let value: Vec<u8> = (0..33u8).map(|at| at.wrapping_mul(37) ^ 0x9f).collect();
    search.mark_bytes("value", &value);
    assert_eq!(search.find(&[b'x'; 5000]), None);
    assert_eq!(search.find(b""), None);
    for form in Form::ALL {
        for piece in [&value[..], &value[..16], &value[7..20], &value[20..]] {
            let sink = [b"before".to_vec(), form.write(piece), b"after".to_vec()].concat();
            assert!(search.find(&sink).is_some(), "{form:?} of {} bytes", piece.len());
        }
    }
    let shortened = format!("account {}… did", hex::encode(&value[..6]));
    assert!(search.find(shortened.as_bytes()).is_some());
    let twice = Form::Base64.write(hex::encode(&value).as_bytes());
    assert!(search.find(&twice).is_some(), "hex in base64");
    assert_eq!(search.find(&Form::HexLower.write(&[7; 33])), None);
}
