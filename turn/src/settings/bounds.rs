//! Numbers and times whose type says their bounds.
//!
//! In: a value as written. Out: the value, or the fault that names what is expected. Never: corrects a value.

use humantime_serde::re::humantime::format_duration;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::time::Duration;

/// A whole number from `FROM` to `TO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count<const FROM: u64, const TO: u64>(u64);

impl<const FROM: u64, const TO: u64> Count<FROM, TO> {
    /// For defaults.
    ///
    /// # Panics
    /// Outside of the bounds: at compile time, where it stands in a constant.
    pub const fn new(value: u64) -> Self {
        assert!(FROM <= value && value <= TO, "a default lies within its bounds");
        Self(value)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// As a size in memory or the number of something in it.
    pub fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<'de, const FROM: u64, const TO: u64> Deserialize<'de> for Count<FROM, TO> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        if FROM <= value && value <= TO {
            Ok(Self(value))
        } else {
            Err(D::Error::custom(format_args!("a whole number from {FROM} to {TO}")))
        }
    }
}

/// A time from `FROM` to `TO` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<const FROM: u64, const TO: u64>(Duration);

impl<const FROM: u64, const TO: u64> Span<FROM, TO> {
    /// For defaults.
    ///
    /// # Panics
    /// As [`Count::new`].
    pub const fn seconds(seconds: u64) -> Self {
        assert!(
            FROM <= seconds * 1_000 && seconds * 1_000 <= TO,
            "a default lies within its bounds"
        );
        Self(Duration::from_secs(seconds))
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl<'de, const FROM: u64, const TO: u64> Deserialize<'de> for Span<FROM, TO> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value: Duration = humantime_serde::deserialize(deserializer)?;
        let (from, to) = (Duration::from_millis(FROM), Duration::from_millis(TO));
        if from <= value && value <= to {
            Ok(Self(value))
        } else {
            let (from, to) = (format_duration(from), format_duration(to));
            Err(D::Error::custom(format_args!("a duration from {from} to {to}")))
        }
    }
}

pub const SECOND: u64 = 1_000;
pub const MINUTE: u64 = 60 * SECOND;
pub const HOUR: u64 = 60 * MINUTE;
pub const DAY: u64 = 24 * HOUR;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_names_the_bounds() {
        type Some = Count<1, 8>;
        let count = |text: &str| serde_json::from_str::<Some>(text).map(Count::get);
        assert_eq!((count("1").ok(), count("8").ok()), (Option::Some(1), Option::Some(8)));
        for wrong in ["0", "9"] {
            let fault = count(wrong).unwrap_err().to_string();
            assert!(fault.contains("a whole number from 1 to 8"), "{fault}");
        }
        assert!(count("-1").is_err() && count("\"1\"").is_err() && count("1.5").is_err());
        type Short = Span<SECOND, MINUTE>;
        let span = |text: &str| serde_json::from_str::<Short>(text).map(Span::get);
        assert_eq!(span("\"2s\"").ok(), Option::Some(Duration::from_secs(2)));
        for wrong in ["\"0s\"", "\"2m\""] {
            let fault = span(wrong).unwrap_err().to_string();
            assert!(fault.contains("a duration from 1s to 1m"), "{fault}");
        }
    }
}
