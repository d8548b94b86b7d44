//! The golden data that concerns subscriptions, swarms and sealing, each case run against our own code.
//!
//! The data shows the incumbent. Where we mean to differ from it, the case stands in
//! `tests/vectors/deviations.toml` with our answer and the reason.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod deviations;
mod monitor;
mod push_payload;
mod subscriptions;
mod swarm_mapping;

use serde_json::Value;

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .unwrap_or_else(|| panic!("no list {key}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text {key}"))
}

fn bytes(value: &Value, key: &str) -> Vec<u8> {
    hex::decode(text(value, key)).unwrap()
}

fn array<const N: usize>(value: &Value, key: &str) -> [u8; N] {
    bytes(value, key).try_into().unwrap()
}
