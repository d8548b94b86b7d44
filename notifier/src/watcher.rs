//! ground
pub mod link;
