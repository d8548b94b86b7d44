//! Where the page is served, and what it may hand out.
//!
//! In: `[page]`. Out: [`PageSettings`]. Never: a page that hands out without a bound.

use super::bounds::{Count, HOUR, SECOND, Span};
use serde::Deserialize;
use std::net::SocketAddr;

/// `[page]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct PageSettings {
    /// Default true.
    pub serve: bool,
    /// Default: on `ops.listen`.
    pub listen: Option<SocketAddr>,
    /// The name under which a proxy publishes it. Default: none, and only addresses and localhost lead to it.
    pub public_host: Option<String>,
    /// How long a visitor's credential makes new calls. Default 5 min.
    pub credential_life: Span<{ 30 * SECOND }, HOUR>,
    /// Of all visitors together. Default 20.
    pub credentials_per_minute: Count<1, 10_000>,
}

impl Default for PageSettings {
    fn default() -> Self {
        Self {
            serve: true,
            listen: None,
            public_host: None,
            credential_life: Span::seconds(300),
            credentials_per_minute: Count::new(20),
        }
    }
}
