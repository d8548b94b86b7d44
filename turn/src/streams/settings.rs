//! Bounds of everything that a TCP or TLS client may take.

use serde::Deserialize;
use std::time::Duration;

/// Settings of TCP and TLS clients. A reload holds for streams that are open, too, but for what the
/// kernel was told when they began.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamSettings {
    /// Streams of all shards together. Default 10,000, as many as allocations: a client needs one each. Beside the kernel's socket
    /// one takes 300 bytes, with TLS 7 KiB, and 19 to 32 KiB while its handshake lasts. Beyond, who is new takes the seat of who has been
    /// there longest without an allocation.
    pub total: u32,
    /// Streams of one source prefix, /24 or /56. Default 1,024, as many as allocations: whole towns share one address.
    pub per_prefix: u32,
    /// New streams a second of one source prefix. Default 50, with a burst of four seconds' worth: a handshake costs a signature.
    pub per_prefix_per_second: u32,
    /// From the connection to the end of the TLS handshake. Default `"10s"`: three round trips on a bad mobile network.
    #[serde(with = "humantime_serde")]
    pub handshake: Duration,
    /// From then, or from the connection over plain TCP, to the first STUN request. Default `"10s"`.
    #[serde(with = "humantime_serde")]
    pub first_message: Duration,
    /// Without an allocation and without a STUN request. Default `"60s"`: who only asks for their address does so more often.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// How long a client may take nothing of what waits for it. Default `"30s"`: a network change of a phone; a call has failed by then.
    #[serde(with = "humantime_serde")]
    pub stall: Duration,
    /// Bytes that may wait for one client beyond the kernel's buffer; packets beyond are dropped. Default 262,144: a quarter of a second
    /// at the default bandwidth.
    pub queue: usize,
    /// The kernel's send buffer of one stream in bytes, which it doubles for its own needs. Default 262,144: what waits there is late for a
    /// call, and left to itself it grows to megabytes.
    pub send_buffer: usize,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            total: 10_000,
            per_prefix: 1_024,
            per_prefix_per_second: 50,
            handshake: Duration::from_secs(10),
            first_message: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            queue: 262_144,
            send_buffer: 262_144,
        }
    }
}

/// A setting of streams that cannot work. The name is the setting's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is too small: {least} is the least")]
pub struct StreamSettingsFault {
    pub setting: &'static str,
    pub least: u64,
}

impl StreamSettings {
    /// All faults at once.
    pub fn faults(&self) -> Vec<StreamSettingsFault> {
        let second = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        [
            ("total", u64::from(self.total), 1),
            ("per_prefix", u64::from(self.per_prefix), 1),
            ("per_prefix_per_second", u64::from(self.per_prefix_per_second), 1),
            ("handshake", second(self.handshake), 1_000),
            ("first_message", second(self.first_message), 1_000),
            ("idle", second(self.idle), 1_000),
            ("stall", second(self.stall), 1_000),
            // One frame must fit, or nothing of that length ever passes.
            ("queue", self.queue as u64, LEAST_QUEUE),
            ("send_buffer", self.send_buffer as u64, LEAST_SEND_BUFFER),
        ]
        .into_iter()
        .filter(|(_, value, least)| value < least)
        .map(|(setting, _, least)| StreamSettingsFault { setting, least })
        .collect()
    }
}

/// A packet of the longest kind with what TLS adds.
const LEAST_QUEUE: u64 = 66_560;
const LEAST_SEND_BUFFER: u64 = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_fault_and_zeros_have_all() {
        assert_eq!(StreamSettings::default().faults(), []);
        let zeros = StreamSettings {
            total: 0,
            per_prefix: 0,
            per_prefix_per_second: 0,
            handshake: Duration::ZERO,
            first_message: Duration::ZERO,
            idle: Duration::ZERO,
            stall: Duration::ZERO,
            queue: 0,
            send_buffer: 0,
        };
        assert_eq!(zeros.faults().len(), 9);
    }
}
