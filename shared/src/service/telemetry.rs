//! What an operator sees: log lines, metrics, health.
//!
//! In: `[log]`, `[ops]`, readiness. Out: lines on stderr, and GET /health/live, /health/ready and /metrics on the operator's own
//! listener. Never: lets a library print bytes or addresses, or prints what a panic carried.

use super::config::SettingsFile;
use super::hygiene;
use super::lifecycle::Readiness;
use super::published::{MINUTE, Published, metrics_period, warn_of_period};
use super::server::{self, Limits};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

/// `[log]`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Default info. No level prints an account, token, hash, key or address.
    pub level: Level,
    /// Default text.
    pub format: Format,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// `[ops]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct OpsSettings {
    /// Default 127.0.0.1:9100. Loopback, unless a proxy guards it.
    pub listen: SocketAddr,
    /// How often metrics that one account can move show a new value. Default 1 min, at least that; zero = at once, for tests.
    #[serde(deserialize_with = "metrics_period")]
    pub metrics_period: Duration,
}

impl Default for OpsSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9100)),
            metrics_period: MINUTE,
        }
    }
}

impl OpsSettings {
    /// Reads the section; a period for tests is told.
    pub fn read(file: &mut SettingsFile) -> Option<Self> {
        let settings: Self = file.section("ops")?;
        warn_of_period(file, settings.metrics_period);
        Some(settings)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TelemetryError {
    #[error("this process already has a log")]
    SecondLog,
    #[error("this process already has a metrics recorder")]
    SecondRecorder,
}

/// Sets up the log, the panic hook and the metrics of this process. Once per process.
pub fn install(settings: LogSettings) -> Result<Metrics, TelemetryError> {
    let subscriber = subscriber(settings, std::io::stderr);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::SecondLog)?;
    install_panic_hook();
    Metrics::install()
}

fn subscriber<W>(settings: LogSettings, writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let lines = match settings.format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().boxed(),
    };
    Registry::default().with(lines.with_filter(filter(settings.level)))
}

/// The level is for our own lines. Libraries print addresses, headers and bytes from `info` on, so they are heard from `warn` up;
/// those that quote a peer even there, from `error` up.
fn filter(level: Level) -> Targets {
    let own = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(own.min(LevelFilter::WARN))
        .with_targets(QUOTING_LIBRARIES.map(|library| (library, LevelFilter::ERROR)))
        .with_targets(OWN_CRATES.map(|name| (name, own)))
}

const OWN_CRATES: [&str; 3] = ["quietline", "notifier_core", "turn_core"];
const QUOTING_LIBRARIES: [&str; 4] = ["hyper", "h2", "rustls", "tokio_rustls"];

/// A panic may carry anything in its message; its place in the source is all that is printed.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(report_panic));
}

fn report_panic(info: &PanicHookInfo<'_>) {
    metrics::counter!("service_panics_total").increment(1);
    let (file, line) = info
        .location()
        .map_or(("unknown", 0), |place| (place.file(), place.line()));
    tracing::error!(file, line, "a task panicked");
}

/// The metrics of this process.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// The second call, as in tests, gives the same metrics.
    pub fn install() -> Result<Self, TelemetryError> {
        static INSTALLED: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let handle = INSTALLED.get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets(&SECONDS)
                // Fails for an empty list only.
                .ok()?
                .build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).ok()?;
            metrics::describe_counter!("service_panics_total", "Panics since the start; each is a bug.");
            metrics::describe_gauge!("server_connections", "Connections open now.");
            metrics::describe_gauge!("service_process_id", "Of this process, for whoever audits it.");
            metrics::describe_gauge!(
                "service_dumpable",
                "0: no core is dumped and no other process of the user may look in; the kernel tells only the process itself."
            );
            metrics::counter!("service_panics_total").absolute(0);
            Some(handle)
        });
        handle.clone().map(Self).ok_or(TelemetryError::SecondRecorder)
    }

    /// Prometheus text, version 0.0.4.
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// What the operator is served.
pub struct Ops {
    pub metrics: Metrics,
    /// `[ops] metrics_period`
    pub metrics_period: Duration,
    pub readiness: Readiness,
    /// Pages of this server beside its health and metrics.
    pub pages: Router,
}

/// Serves the operator until `stop`. `/health/live` says that the process answers, `/health/ready` that every latch is set.
pub async fn serve_ops(listener: TcpListener, ops: Ops, stop: impl Future<Output = ()>) {
    let Ops {
        metrics,
        metrics_period,
        readiness,
        pages,
    } = ops;
    if listener.local_addr().is_ok_and(|address| !address.ip().is_loopback()) {
        tracing::warn!("health and metrics are served beyond this machine");
    }
    metrics::gauge!("service_process_id").set(f64::from(std::process::id()));
    if let Some(dumpable) = hygiene::is_dumpable() {
        metrics::gauge!("service_dumpable").set(f64::from(u8::from(dumpable)));
    }
    let published = Arc::new(Published::new(metrics.clone(), metrics_period));
    let shown = Arc::clone(&published);
    let router = pages
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(async move || ready(&readiness)))
        .route(
            "/metrics",
            get(async move || ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], shown.text())),
        );
    let upkeep = async {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            ticks.tick().await;
            // Observations wait in memory until they are read or this runs.
            metrics.0.run_upkeep();
        }
    };
    tokio::select! {
        () = server::serve(listener, router, OPS_LIMITS, stop) => {}
        () = upkeep => {}
        () = published.keep_time() => {}
    }
}

fn ready(readiness: &Readiness) -> impl IntoResponse + use<> {
    let waiting = readiness.waiting_for();
    if waiting.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for {}\n", waiting.join(", ")),
        )
    }
}

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4";
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
const OPS_LIMITS: Limits = Limits {
    name: "ops",
    connections: 16,
    header_timeout: Duration::from_secs(5),
    write_timeout: Duration::from_secs(5),
};
/// Upper bounds of every histogram, seconds: from one signature check to the longest time a push may take.
const SECONDS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Write::write(&mut *self.0.lock().unwrap(), bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(settings: LogSettings, act: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        tracing::subscriber::with_default(subscriber(settings, move || writer.clone()), act);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn libraries_are_quiet_even_at_trace() {
        let settings = LogSettings {
            level: Level::Trace,
            format: Format::Text,
        };
        let lines = logged(settings, || {
            tracing::trace!(target: "quietline_notifier::http", "own trace");
            tracing::trace!(target: "notifier_core", "own core");
            for level in ["info", "debug", "trace"] {
                match level {
                    "info" => tracing::info!(target: "sqlx::query", "CANARY"),
                    "debug" => tracing::debug!(target: "hyper::proto", "CANARY"),
                    _ => tracing::trace!(target: "h2::codec", "CANARY"),
                }
            }
            tracing::warn!(target: "rustls::conn", "CANARY");
            tracing::info!(target: "some_library_of_tomorrow", "CANARY");
            tracing::warn!(target: "sqlx::pool", "pool is empty");
        });
        assert!(
            lines.contains("own trace") && lines.contains("own core") && lines.contains("pool is empty"),
            "{lines}"
        );
        assert!(!lines.contains("CANARY"), "{lines}");
    }

    #[test]
    fn the_level_and_the_format_are_settings() {
        let act = || {
            tracing::info!(target: "quietline_shared", nodes = 3, "counted");
            tracing::error!(target: "sqlx", "broken");
        };
        let text = logged(LogSettings::default(), act);
        assert!(text.contains("counted nodes=3") && text.contains("broken"), "{text}");
        let quiet = logged(
            LogSettings {
                level: Level::Error,
                format: Format::Text,
            },
            act,
        );
        assert!(!quiet.contains("counted") && quiet.contains("broken"), "{quiet}");
        let json = logged(
            LogSettings {
                level: Level::Info,
                format: Format::Json,
            },
            act,
        );
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(first["fields"]["nodes"], 3);
    }

    #[test]
    fn a_panic_is_counted_and_its_message_is_not_printed() {
        let metrics = Metrics::install().unwrap();
        let lines = logged(LogSettings::default(), || {
            let before = std::panic::take_hook();
            install_panic_hook();
            let caught = std::panic::catch_unwind(|| panic!("CANARY {}", 5));
            std::panic::set_hook(before);
            assert!(caught.is_err());
        });
        assert!(
            lines.contains("a task panicked") && lines.contains("telemetry.rs"),
            "{lines}"
        );
        assert!(!lines.contains("CANARY"), "{lines}");
        assert!(
            !metrics.render().contains("service_panics_total 0\n"),
            "{}",
            metrics.render()
        );
    }

    async fn get_ops(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_operator_sees_health_and_metrics() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::install().unwrap();
        let readiness = Readiness::new();
        let store = readiness.latch("store");
        let (stopper, stop) = super::super::lifecycle::stop();
        let server = tokio::spawn(serve_ops(
            listener,
            Ops {
                metrics,
                metrics_period: Duration::ZERO,
                readiness,
                pages: Router::new().route("/page", get(|| async { "a page" })),
            },
            stop.stopped(),
        ));

        assert!(get_ops(address, "/health/live").await.starts_with("HTTP/1.1 200 OK"));
        let waiting = get_ops(address, "/health/ready").await;
        assert!(
            waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("waiting for store\n"),
            "{waiting}"
        );
        store.set();
        assert!(get_ops(address, "/health/ready").await.starts_with("HTTP/1.1 200 OK"));
        metrics::counter!("ops_test_total", "kind" => "seen").increment(2);
        metrics::histogram!("ops_test_seconds").record(0.003);
        let text = get_ops(address, "/metrics").await;
        assert!(text.contains("content-type: text/plain; version=0.0.4\r\n"), "{text}");
        assert!(text.contains("ops_test_total{kind=\"seen\"} 2"), "{text}");
        assert!(text.contains("ops_test_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(get_ops(address, "/page").await.ends_with("a page"));
        assert!(get_ops(address, "/").await.starts_with("HTTP/1.1 404"));
        stopper.stop();
        server.await.unwrap();
    }

    #[test]
    fn settings_have_their_defaults() {
        let log = |text: &str| <figment::providers::Toml as figment::providers::Format>::from_str::<LogSettings>(text);
        assert_eq!(
            log("").unwrap(),
            LogSettings {
                level: Level::Info,
                format: Format::Text
            }
        );
        assert!(log("level = \"loud\"").is_err());
        let ops = OpsSettings::default();
        assert_eq!(
            (ops.listen.to_string().as_str(), ops.metrics_period),
            ("127.0.0.1:9100", MINUTE)
        );
    }
}
