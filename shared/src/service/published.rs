//! How often the operator's metrics may tell what happened.
//!
//! In: the metrics of the process, a period. Out: Prometheus text. Never: lets a number that one account alone can move be seen to move
//! more than once in a period: who can scrape us and can make a phone's message come would find its account by the moment.
//!
//! A metric waits for the end of its period unless it stands in [`AT_ONCE`], so that a new one is late rather than telling.

use super::config::SettingsFile;
use super::telemetry::Metrics;
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Metrics that say how the machine and its providers are. None of them moves for what a single account does.
const AT_ONCE: &[&str] = &[
    "dispatch_certificate_expires_seconds",
    "dispatch_credential_state",
    "outbox_lane_state",
    "server_accept_errors_total",
    "service_dumpable",
    "service_panics_total",
    "service_process_id",
    "settings_reloads_total",
    "shard_reports_total",
    "watch_block_subscription_failures_total",
    "watch_node_list_answers_total",
    "watch_node_list_failures_total",
    "watch_node_list_refused_total",
    "watch_node_list_write_failures_total",
    "watch_nodes",
];

/// Default of `[ops] metrics_period`, and the shortest that is not zero.
pub const MINUTE: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3_600);

/// What `/metrics` shows now.
pub struct Published {
    metrics: Metrics,
    period: Duration,
    /// As of the beginning of the period.
    kept: Mutex<String>,
}

impl Published {
    /// A period of zero shows everything at once.
    pub fn new(metrics: Metrics, period: Duration) -> Self {
        let published = Self {
            metrics,
            period,
            kept: Mutex::default(),
        };
        published.begin_period();
        published
    }

    pub fn text(&self) -> String {
        let now = self.metrics.render();
        if self.period.is_zero() {
            return now;
        }
        let mut text = self.kept().clone();
        text.extend(lines(&now, true));
        text
    }

    /// Begins a period each time the last one is over; never returns.
    pub async fn keep_time(&self) {
        if self.period.is_zero() {
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(self.period);
        loop {
            ticks.tick().await;
            self.begin_period();
        }
    }

    fn begin_period(&self) {
        let now = self.metrics.render();
        *self.kept() = lines(&now, false).collect();
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, String> {
        // A text is whole or not there, so a panic elsewhere leaves nothing half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines of the metrics that are shown at once, or of the others, each with its end.
fn lines(text: &str, at_once: bool) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter(move |line| {
        !line.trim().is_empty() && name_of(line).is_some_and(|name| AT_ONCE.contains(&name)) == at_once
    })
}

/// The metric that a line is about: `# TYPE name kind`, `# HELP name text`, `name{labels} value` or `name value`.
fn name_of(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("# ") {
        Some(comment) => comment.split_once(' ')?.1,
        None => line,
    };
    line.split(['{', ' ', '\n']).next()
}

/// `[ops] metrics_period`.
pub fn metrics_period<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    #[derive(Deserialize)]
    struct Period(#[serde(with = "humantime_serde")] Duration);
    let Period(period) = Period::deserialize(deserializer)?;
    (period.is_zero() || (MINUTE..=LONGEST).contains(&period))
        .then_some(period)
        .ok_or_else(|| serde::de::Error::custom("from \"1m\" to \"1h\"; \"0s\" in tests"))
}

pub fn warn_of_period(file: &mut SettingsFile, period: Duration) {
    if period.is_zero() {
        file.warn(
            "ops.metrics_period",
            "shows at once what a single account does, which is for tests",
            "\"1m\" or more",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(text: &str) -> Option<Duration> {
        metrics_period(serde_json::Value::from(text)).ok()
    }

    #[test]
    fn a_period_is_a_minute_or_more_or_none() {
        for (text, expected) in [
            ("0s", Some(0)),
            ("1s", None),
            ("59s", None),
            ("1m", Some(60)),
            ("1h", Some(3_600)),
            ("61m", None),
            ("soon", None),
        ] {
            assert_eq!(period(text), expected.map(Duration::from_secs), "{text}");
        }
    }

    fn value(published: &Published, name: &str) -> String {
        let text = published.text();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    }

    #[test]
    fn what_one_account_moves_is_seen_a_period_later_and_health_at_once() {
        const MOVED: &str = "published_test_total{outcome=\"new\"}";
        let metrics = Metrics::install().unwrap();
        let subscribed = metrics::counter!("published_test_total", "outcome" => "new");
        let nodes = metrics::gauge!("watch_nodes");
        subscribed.increment(1);
        nodes.set(3.0);
        let published = Published::new(metrics.clone(), MINUTE);
        let both = || (value(&published, MOVED), value(&published, "watch_nodes "));
        let is = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(both(), is("1", "3"));
        subscribed.increment(1);
        nodes.set(4.0);
        assert_eq!(both(), is("1", "4"));
        published.begin_period();
        assert_eq!(both(), is("2", "4"));
        subscribed.increment(1);
        let at_once = Published::new(metrics, Duration::ZERO);
        assert_eq!(value(&at_once, MOVED), "3");
    }

    #[tokio::test]
    async fn a_period_ends_and_the_next_begins() {
        const MOVED: &str = "published_period_test_total";
        let metrics = Metrics::install().unwrap();
        let counter = metrics::counter!(MOVED);
        counter.absolute(1);
        let published = Published::new(metrics, Duration::from_millis(5));
        counter.absolute(2);
        let seen = async {
            while value(&published, MOVED) != "2" {
                tokio::task::yield_now().await;
            }
        };
        let both = async {
            tokio::select! {
                () = seen => {}
                () = published.keep_time() => {}
            }
        };
        tokio::time::timeout(MINUTE, both).await.unwrap();
    }

    #[test]
    fn no_line_is_lost_or_shown_twice() {
        let text = "# HELP a_total Some a.\n# TYPE a_total counter\na_total{b=\"c d\"} 1\n\n# TYPE watch_nodes gauge\nwatch_nodes 2\n";
        let at_once: Vec<_> = lines(text, true).collect();
        assert_eq!(at_once, ["# TYPE watch_nodes gauge\n", "watch_nodes 2\n"]);
        assert_eq!(lines(text, false).count(), 3);
    }
}
