//! "Is my TURN working?": the relay's page in a real browser, and `check` in a terminal, find each planted fault and name it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod browser;
mod check;
#[path = "../../browser/headless.rs"]
mod headless;
mod page;
mod scene;
