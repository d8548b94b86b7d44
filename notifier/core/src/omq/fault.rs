//! Why a link ended.
//!
//! In: what a peer did or failed to do. Out: one named fault with a metric label. Never: carries a peer's bytes.

/// Each variant ends the connection. Numbers are sizes and codes, never data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LinkFault {
    #[error("the peer does not speak ZMTP")]
    NotZmtp,
    #[error("the peer speaks ZMTP {major}, 3 or later is needed")]
    OldVersion { major: u8 },
    #[error("the peer uses another security mechanism")]
    MechanismMismatch,
    #[error("a frame has reserved flags set")]
    ReservedFlags,
    #[error("a frame of {length} bytes was announced, the limit is {limit}")]
    FrameTooLarge { length: u64, limit: usize },
    #[error("a message has more than {limit} parts")]
    TooManyParts { limit: usize },
    #[error("a message is larger than {limit} bytes")]
    MessageTooLarge { limit: usize },
    #[error("a frame of another kind was due")]
    UnexpectedFrame,
    #[error("a command is cut short or too long")]
    MalformedCommand,
    #[error("the metadata of the peer cannot be read")]
    MalformedMetadata,
    #[error("the peer's socket type cannot talk to ours")]
    WrongSocketType,
    #[error("a box of the handshake does not open")]
    HandshakeBoxNotOpened,
    #[error("a box with a message does not open")]
    MessageBoxNotOpened,
    #[error("a nonce did not grow")]
    NonceNotGrowing,
    #[error("the peer refused us with status {status}")]
    RefusedByPeer { status: u16 },
    #[error("the handshake was not over in time")]
    HandshakeTimeout,
    #[error("no HELLO came in time")]
    NoHello,
    #[error("nothing came after a PING")]
    PeerSilent,
    #[error("a frame was begun and not finished in time")]
    FrameStalled,
    #[error("a message was begun and not finished in time")]
    MessageStalled,
    #[error("the peer said BYE")]
    Bye,
    #[error("the peer closed before its greeting was complete")]
    ClosedInGreeting,
    #[error("the peer closed in the handshake; a wrong server key looks like this")]
    ClosedInHandshake,
    #[error("the peer closed before HELLO")]
    ClosedBeforeHello,
    #[error("the peer closed")]
    Closed,
}

impl LinkFault {
    pub fn label(self) -> &'static str {
        match self {
            Self::NotZmtp => "not_zmtp",
            Self::OldVersion { .. } => "old_version",
            Self::MechanismMismatch => "mechanism_mismatch",
            Self::ReservedFlags => "reserved_flags",
            Self::FrameTooLarge { .. } => "frame_too_large",
            Self::TooManyParts { .. } => "too_many_parts",
            Self::MessageTooLarge { .. } => "message_too_large",
            Self::UnexpectedFrame => "unexpected_frame",
            Self::MalformedCommand => "malformed_command",
            Self::MalformedMetadata => "malformed_metadata",
            Self::WrongSocketType => "wrong_socket_type",
            Self::HandshakeBoxNotOpened => "handshake_box_not_opened",
            Self::MessageBoxNotOpened => "message_box_not_opened",
            Self::NonceNotGrowing => "nonce_not_growing",
            Self::RefusedByPeer { .. } => "refused_by_peer",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NoHello => "no_hello",
            Self::PeerSilent => "peer_silent",
            Self::FrameStalled => "frame_stalled",
            Self::MessageStalled => "message_stalled",
            Self::Bye => "bye",
            Self::ClosedInGreeting => "closed_in_greeting",
            Self::ClosedInHandshake => "closed_in_handshake",
            Self::ClosedBeforeHello => "closed_before_hello",
            Self::Closed => "closed",
        }
    }
}
