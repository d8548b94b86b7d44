//! ground
pub mod sqlite;
