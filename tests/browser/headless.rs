//! A Chromium without a window, driven over its own protocol. Part of each test binary that needs one: the lab itself is built without.
//!
//! In: a folder for its profile, switches. Out: values of expressions. Never: a wait without a deadline.

use chromiumoxide::cdp::js_protocol::runtime::EvaluateParams;
use chromiumoxide::{Browser, BrowserConfig, Page};
use futures_util::StreamExt;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinHandle;

const START_WITHIN: Duration = Duration::from_secs(120);
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

pub struct Headless {
    pub browser: Browser,
    pump: JoinHandle<()>,
}

impl Headless {
    /// `patience`: longest time one request to the browser may take.
    pub async fn start(profile: &Path, patience: Duration, switches: &[String]) -> Result<Self, String> {
        let config = BrowserConfig::builder()
            .chrome_executable("/usr/bin/chromium")
            .new_headless_mode()
            // Tests run as root, which the sandbox refuses.
            .no_sandbox()
            .user_data_dir(profile)
            .launch_timeout(START_WITHIN)
            .request_timeout(patience)
            .viewport(None)
            .args(["disable-gpu", "disable-dev-shm-usage"])
            .args(switches.iter().map(String::as_str))
            .build();
        let launched = match config {
            Ok(config) => Browser::launch(config).await.map_err(|fault| fault.to_string()),
            Err(fault) => Err(fault),
        };
        let (browser, mut events) =
            launched.map_err(|fault| format!("chromium does not start ({fault}); .ci/setup installs it"))?;
        // Answers come through the stream of events; what of them it does not understand is none of ours.
        let pump = tokio::spawn(async move { while events.next().await.is_some() {} });
        Ok(Self { browser, pump })
    }

    pub async fn end(mut self) {
        let _ = tokio::time::timeout(CLOSE_WITHIN, async {
            let _ = self.browser.close().await;
            self.browser.wait().await
        })
        .await;
        let _ = self.browser.kill().await;
        self.pump.abort();
    }
}

/// The value of an expression; a promise is waited for. What has no JSON, such as `undefined`, is null.
pub async fn evaluate(page: &Page, expression: &str) -> Result<Value, String> {
    let wish = EvaluateParams::builder()
        .expression(expression)
        .await_promise(true)
        .return_by_value(true)
        .build()?;
    let evaluated = page.evaluate_expression(wish).await;
    let value = evaluated.map_err(|fault| fault.to_string())?;
    Ok(value.value().cloned().unwrap_or(Value::Null))
}

/// The switch that makes it take certificates with these keys, whatever else is wrong with them: base64 of SHA-256 of each.
pub fn trusting(keys: &[String]) -> String {
    format!("ignore-certificate-errors-spki-list={}", keys.join(","))
}
