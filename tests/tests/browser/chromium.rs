//! A browser without a window, in a network of its own choice.
//!
//! In: a network, a folder for its profile, the keys it shall trust; expressions for its page. Out: what they evaluate to. Never: reaches
//! beyond that network, or lives longer than its owner.

use crate::headless::{Headless, evaluate, trusting};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chromiumoxide::{Browser, Page};
use quietline_lab::turn::net::Network;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Longest time one expression may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// A value, or what went wrong.
type Answer = Result<Value, String>;

pub struct Chromium {
    asks: Option<UnboundedSender<(String, mpsc::Sender<Answer>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Chromium {
    /// With tests/browser/calls.html open. `trusted`: PEM certificates that it takes although no public root leads to them.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(network: &Arc<Network>, folder: &Path, trusted: &[PathBuf]) -> Self {
        let (asks, asked) = unbounded_channel();
        let (tell, told) = mpsc::channel();
        let network = Arc::clone(network);
        let (profile, switches) = (folder.join("chromium"), switches(trusted));
        let thread = std::thread::spawn(move || {
            network.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime
                    .expect("a runtime can be made")
                    .block_on(serve(profile, switches, tell, asked));
            });
        });
        let started: Result<(), String> = told.recv().unwrap_or_else(|_| Err("it ended at once".to_owned()));
        started.unwrap_or_else(|fault| panic!("{fault}"));
        Self {
            asks: Some(asks),
            thread: Some(thread),
        }
    }

    /// Begins to evaluate an expression; a promise is waited for.
    pub fn begin(&self, expression: String) -> Pending {
        let (tell, told) = mpsc::channel();
        if let Some(asks) = &self.asks {
            let _ = asks.send((expression, tell));
        }
        Pending(told)
    }

    /// Its value.
    pub fn ask(&self, expression: String) -> Answer {
        self.begin(expression).wait()
    }
}

/// What an expression will be.
pub struct Pending(mpsc::Receiver<Answer>);

impl Pending {
    pub fn wait(self) -> Answer {
        self.0
            .recv()
            .unwrap_or_else(|_| Err("the browser has ended".to_owned()))
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn switches(trusted: &[PathBuf]) -> Vec<String> {
    let keys: Vec<String> = trusted.iter().map(|file| key_hash(file)).collect();
    vec![
        "use-fake-device-for-media-stream".to_owned(),
        "use-fake-ui-for-media-stream".to_owned(),
        "autoplay-policy=no-user-gesture-required".to_owned(),
        trusting(&keys),
    ]
}

/// The hash by which Chromium knows the key of a certificate.
fn key_hash(certificate: &Path) -> String {
    let shell = format!(
        "openssl x509 -in '{}' -pubkey -noout | openssl pkey -pubin -outform der",
        certificate.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &shell]).output();
    let key = output.expect("openssl is installed by .ci/setup").stdout;
    assert!(!key.is_empty(), "{} is no certificate", certificate.display());
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key);
    STANDARD.encode(hash)
}

/// Until its owner is gone.
async fn serve(
    profile: PathBuf,
    switches: Vec<String>,
    tell: mpsc::Sender<Result<(), String>>,
    mut asked: UnboundedReceiver<(String, mpsc::Sender<Answer>)>,
) {
    let headless = match Headless::start(&profile, PATIENCE, &switches).await {
        Ok(headless) => headless,
        Err(fault) => {
            let _ = tell.send(Err(fault));
            return;
        }
    };
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/calls.html");
    match open(&headless.browser, &page).await {
        Ok(page) => {
            let _ = tell.send(Ok(()));
            while let Some((expression, answer)) = asked.recv().await {
                let page = page.clone();
                tokio::spawn(async move {
                    let _ = answer.send(evaluate(&page, &expression).await);
                });
            }
        }
        Err(fault) => {
            let _ = tell.send(Err(fault));
        }
    }
    headless.end().await;
}

async fn open(browser: &Browser, file: &Path) -> Result<Page, String> {
    let page = browser.new_page(format!("file://{}", file.display())).await;
    let page = page.map_err(|fault| fault.to_string())?;
    page.wait_for_navigation().await.map_err(|fault| fault.to_string())?;
    Ok(page)
}
