//! A headless Chromium in a network of its own, and one page in it.
//!
//! In: a network, switches of the browser's, an address. Out: what the page's own script says, once it has come to its end. Never: a wait
//! without a deadline.

use chromiumoxide::browser::{Browser, BrowserConfig};
use chromiumoxide::cdp::browser_protocol::emulation::SetDeviceMetricsOverrideParams;
use chromiumoxide::cdp::js_protocol::runtime::EvaluateParams;
use chromiumoxide::page::Page;
use futures_util::StreamExt;
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
        let mut config = BrowserConfig::builder()
            .chrome_executable("/usr/bin/chromium")
            .new_headless_mode()
            .no_sandbox()
            .user_data_dir(profile.path())
            .launch_timeout(PATIENCE)
            .request_timeout(PATIENCE)
            .viewport(None)
            .arg("disable-gpu");
        if let Some(trusted) = self.trusted {
            config = config.arg(("ignore-certificate-errors-spki-list", trusted));
        }
        let (mut browser, mut events) = Browser::launch(config.build().unwrap())
            .await
            .expect("chromium starts; .ci/setup installs it");
        let events = tokio::spawn(async move { while events.next().await.is_some() {} });
        let value = self.visit(&browser, script).await;
        browser.close().await.unwrap();
        browser.wait().await.unwrap();
        events.abort();
        value.unwrap()
    }

    async fn visit(&self, browser: &Browser, script: &str) -> chromiumoxide::Result<Value> {
        let page: Page = browser.new_page("about:blank").await?;
        page.execute(SetDeviceMetricsOverrideParams::new(390, 844, 2.0, true))
            .await?;
        if let Some(before) = self.before {
            page.evaluate_on_new_document(before).await?;
        }
        page.goto(self.url).await?;
        let asked = EvaluateParams::builder()
            .expression(script)
            .await_promise(true)
            .return_by_value(true)
            .build()
            .unwrap();
        let result = page.evaluate_expression(asked).await?;
        Ok(result.value().cloned().unwrap_or_default())
    }
}

/// A browser on a busy machine, and a page that waits for what does not come.
const PATIENCE: Duration = Duration::from_secs(120);
