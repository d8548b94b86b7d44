//! What happened to streams, as numbers under names that are fixed at compile time.

/// Why a stream is gone, was not taken, or did not get a packet. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The client ended it, in order.
    ClosedByClient,
    /// The network or the client ended it, without order.
    Reset,
    /// TLS did not come about in time, or no byte came.
    NoHandshake,
    /// No STUN request came in time.
    NoMessage,
    /// No STUN request for too long, and no allocation.
    Idle,
    /// The client took nothing of what waited for it.
    Stalled,
    /// Neither TLS nor STUN nor ChannelData.
    NotOurs,
    /// A frame above what this client may send.
    FrameTooLong,
    /// The client's TLS is broken, or has nothing in common with ours.
    TlsFault,
    /// TLS, and there is no certificate.
    TlsOff,
    /// A second stream of one 5-tuple: the first one has ended, and we have not heard of its end yet.
    Twin,
    /// It had no allocation, all seats were taken, and somebody new came.
    Displaced,
    /// Not taken: as many as all may have, and in this shard each with an allocation.
    TooMany,
    /// Not taken: as many as one prefix may have.
    TooManyOfPrefix,
    /// Not taken: more a second than one prefix may have.
    TooFast,
    /// Not taken: the system had no descriptor or memory.
    AcceptFailed,
    /// A packet: as much waits for this client as may.
    QueueFull,
    /// A packet: as much waits for the client's shard as may.
    ArrivalsFull,
    /// A packet for a stream that has ended meanwhile.
    StreamGone,
}

impl StreamEvent {
    pub const ALL: [Self; 19] = [
        Self::ClosedByClient,
        Self::Reset,
        Self::NoHandshake,
        Self::NoMessage,
        Self::Idle,
        Self::Stalled,
        Self::NotOurs,
        Self::FrameTooLong,
        Self::TlsFault,
        Self::TlsOff,
        Self::Twin,
        Self::Displaced,
        Self::TooMany,
        Self::TooManyOfPrefix,
        Self::TooFast,
        Self::AcceptFailed,
        Self::QueueFull,
        Self::ArrivalsFull,
        Self::StreamGone,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::ClosedByClient => "closed_by_client",
            Self::Reset => "reset",
            Self::NoHandshake => "no_handshake",
            Self::NoMessage => "no_message",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::NotOurs => "not_ours",
            Self::FrameTooLong => "frame_too_long",
            Self::TlsFault => "tls_fault",
            Self::TlsOff => "tls_off",
            Self::Twin => "twin",
            Self::Displaced => "displaced",
            Self::TooMany => "too_many",
            Self::TooManyOfPrefix => "too_many_of_prefix",
            Self::TooFast => "too_fast",
            Self::AcceptFailed => "accept_failed",
            Self::QueueFull => "queue_full",
            Self::ArrivalsFull => "arrivals_full",
            Self::StreamGone => "stream_gone",
        }
    }

    /// What it happened to.
    pub const fn kind(self) -> StreamEventKind {
        match self {
            Self::TooMany | Self::TooManyOfPrefix | Self::TooFast | Self::AcceptFailed => StreamEventKind::Refused,
            Self::QueueFull | Self::ArrivalsFull | Self::StreamGone => StreamEventKind::Dropped,
            _ => StreamEventKind::Ended,
        }
    }
}

/// One metric each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEventKind {
    /// A stream that was open.
    Ended,
    /// A connection that was closed at once.
    Refused,
    /// A packet.
    Dropped,
}

/// What one shard has counted since its start; those of several can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounters {
    events: [u64; StreamEvent::ALL.len()],
    /// Streams taken.
    pub accepted: u64,
    /// TLS handshakes completed.
    pub handshakes: u64,
    /// Now, not since the start: over plain TCP or not yet known, and over TLS.
    pub open_tcp: u64,
    pub open_tls: u64,
}

impl StreamCounters {
    pub fn count(&self, event: StreamEvent) -> u64 {
        self.events.get(event as usize).copied().unwrap_or(0)
    }

    pub fn iter(&self) -> impl Iterator<Item = (StreamEvent, u64)> + '_ {
        StreamEvent::ALL.into_iter().zip(self.events)
    }

    pub fn merge(&mut self, other: &Self) {
        for (sum, count) in self.events.iter_mut().zip(other.events) {
            *sum += count;
        }
        self.accepted += other.accepted;
        self.handshakes += other.handshakes;
        self.open_tcp += other.open_tcp;
        self.open_tls += other.open_tls;
    }

    pub(super) fn add(&mut self, event: StreamEvent) {
        if let Some(count) = self.events.get_mut(event as usize) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_its_own_place_and_label() {
        let labels: std::collections::BTreeSet<_> = StreamEvent::ALL.iter().map(|event| event.label()).collect();
        assert_eq!(labels.len(), StreamEvent::ALL.len());
        for (place, event) in StreamEvent::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, place);
            let mut counters = StreamCounters::default();
            counters.add(event);
            counters.merge(&counters.clone());
            assert_eq!(
                counters.iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>(),
                [(event, 2)]
            );
        }
    }
}
