//! ground
pub mod watcher;
