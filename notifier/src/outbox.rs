//! Wakeups not yet delivered, on disk.
pub mod journal;
pub mod sqlite;

use crate::sqlite::SqliteFault;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxSettings {
    pub path: PathBuf,
    /// Wakeups kept at most; beyond that the least valuable goes first.
    pub max_entries: usize,
    /// Wakeup bodies kept in memory, bytes; the rest waits on disk.
    pub memory: usize,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self { path: "data/outbox.db".into(), max_entries: 1_000_000, memory: 64 << 20 }
    }
}

/// Why a wakeup was not accepted. Its message does not count as seen. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    #[error("the disk of the outbox is full")]
    DiskFull,
    #[error("the outbox cannot be read or written now")]
    Unavailable,
    #[error("another notifier uses this file")]
    InUse,
    #[error("the file of the outbox is damaged or no database")]
    Damaged,
    #[error("the file of the outbox was written by another version of the notifier")]
    Version,
    #[error("the outbox is closed")]
    Closed,
    #[error("the database refused a statement (code {code})")]
    Internal { code: i32 },
}

impl OutboxError {
    pub const fn label(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::Unavailable => "unavailable",
            Self::InUse => "in_use",
            Self::Damaged => "damaged",
            Self::Version => "version",
            Self::Closed => "closed",
            Self::Internal { .. } => "internal",
        }
    }
}

impl From<SqliteFault> for OutboxError {
    fn from(fault: SqliteFault) -> Self {
        match fault {
            SqliteFault::DiskFull => Self::DiskFull,
            SqliteFault::Io | SqliteFault::Busy => Self::Unavailable,
            SqliteFault::InUse => Self::InUse,
            SqliteFault::Damaged => Self::Damaged,
            SqliteFault::Version => Self::Version,
            SqliteFault::Closed => Self::Closed,
            SqliteFault::Internal { code } => Self::Internal { code },
        }
    }
}
