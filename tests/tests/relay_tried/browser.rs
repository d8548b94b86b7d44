//! A headless Chromium in a network of its own, and one page in it.
//!
//! In: a network, switches of the browser's, an address. Out: what the page's own script says, once it has come to its end. Never: a wait
//! without a deadline.

use crate::headless::{Headless, evaluate, trusting};
use chromiumoxide::cdp::browser_protocol::emulation::SetDeviceMetricsOverrideParams;
use chromiumoxide::{Browser, Page};
use quietline_lab::turn::net::Network;
use serde_json::Value;
use std::time::Duration;
use tempfile::tempdir;

pub struct Visit<'a> {
    pub network: &'a Network,
    pub url: &'a str,
    /// Certificates that are taken whatever is wrong with them: base64 of SHA-256 of their keys.
    pub trusted: Option<&'a str>,
    /// Runs before anything of the page does.
    pub before: Option<&'a str>,
}

impl Visit<'_> {
    /// Opens the page as a phone would and gives the value of `script`, a promise.
    pub fn ask(&self, script: &str) -> Value {
        self.network.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(self.asked(script))
        })
    }

    async fn asked(&self, script: &str) -> Value {
        let profile = tempdir().unwrap();
        let switches: Vec<String> = self.trusted.iter().map(|key| trusting(&[(*key).to_owned()])).collect();
        let headless = Headless::start(profile.path(), PATIENCE, &switches).await.unwrap();
        let page = self.visit(&headless.browser).await.unwrap();
        let value = evaluate(&page, script).await;
        headless.end().await;
        value.unwrap()
    }

    async fn visit(&self, browser: &Browser) -> chromiumoxide::Result<Page> {
        let page = browser.new_page("about:blank").await?;
        page.execute(SetDeviceMetricsOverrideParams::new(390, 844, 2.0, true))
            .await?;
        if let Some(before) = self.before {
            page.evaluate_on_new_document(before).await?;
        }
        page.goto(self.url).await?;
        Ok(page)
    }
}

/// A browser on a busy machine, and a page that waits for what does not come.
const PATIENCE: Duration = Duration::from_secs(120);
