//! The wiring: the only place that knows every stage, and the relay's life.
//!
//! In: checked settings, signals. Out: a running relay; health and metrics for its operator. Never: sees a packet, or logs who calls.

use crate::audit::{View, audit};
use crate::hazards::{Standing, open_files};
use crate::machine::Machine;
use crate::offer;
use crate::page::{Facts, Page};
use crate::settings::{self, Fixed, PeersSettings, Place, Settings};
use crate::shard::{self, Listener, Plan, Report, Shards};
use crate::streams::{StreamEventKind, StreamSettings};
use quietline_shared::redact::Secret;
use quietline_shared::service::audit::live::Live;
use quietline_shared::service::audit::{Publication, Scale};
use quietline_shared::service::config::Faults;
use quietline_shared::service::lifecycle::{self, Readiness, Signal, Signals};
use quietline_shared::service::server;
use quietline_shared::service::telemetry::{self, TelemetryError};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use turn_core::auth::{Credentials, Nonces};
use turn_core::control::{self, Limits, Shared};
use turn_core::wire::Method;
use zeroize::Zeroize;

/// Why the relay does not start, or does not go on. What is wrong with settings is told before, all at once.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Telemetry(#[from] TelemetryError),
    #[error("the signals of the process cannot be taken: {0}")]
    Signals(io::Error),
    #[error("[ops] listen cannot be listened on: {0}")]
    Ops(io::Error),
    #[error("[page] listen cannot be listened on: {0}")]
    Page(io::Error),
    #[error("[listen] {0} (is the address one of this machine, and does no other program have the port?)")]
    Listen(io::Error),
    #[error("the operating system gives no random bytes")]
    NoRandomness,
    #[error("a shard ended before its time: its calls are lost, and the others end with it")]
    ShardEnded,
}

/// Runs until SIGTERM or SIGINT, then drains. `path` is read again at SIGHUP.
pub async fn run(settings: Settings, path: &Path, machine: Machine) -> Result<(), RunError> {
    let metrics = telemetry::install(settings.fixed.log)?;
    describe_metrics();
    let mut signals = Signals::install().map_err(RunError::Signals)?;
    let readiness = Readiness::new();
    let (listening, not_stopping) = (readiness.latch("shards"), readiness.latch("the end"));
    not_stopping.set();
    let ops = TcpListener::bind(settings.fixed.ops.listen)
        .await
        .map_err(RunError::Ops)?;
    let metrics_period = settings.fixed.ops.metrics_period;
    let page_settings = settings.fixed.page.clone();
    let page_listener = match page_settings.listen.filter(|_| page_settings.serve) {
        Some(address) => Some(TcpListener::bind(address).await.map_err(RunError::Page)?),
        None => None,
    };

    let needed = open_files(&settings);
    if rlimit::increase_nofile_limit(needed).is_ok_and(|limit| limit < needed) {
        tracing::warn!("the system allows fewer open files than allocations and streams may need: see check");
    }
    let mut relay = Relay::start(settings, path, machine)?;
    listening.set();
    let (view, shown) = (Arc::clone(&relay.view), metrics.clone());
    let transparency = Publication::new(&relay.fixed.transparency, move || {
        let live = Live::from_text(shown.render());
        std::future::ready(audit(&current(&view), Some(&live), Scale::Rounded))
    });
    let router = match page_settings.serve {
        true => relay.page.router(),
        false => axum::Router::new(),
    };
    let (page_task, beside_health) = match page_listener {
        Some(listener) => {
            let served = server::serve(listener, router, PAGE_LIMITS, std::future::pending());
            (Some(tokio::spawn(served)), axum::Router::new())
        }
        None => (None, router),
    };
    // Whoever asks during the drain hears "not ready", and sees it in the metrics.
    let served = telemetry::Ops {
        metrics,
        metrics_period,
        readiness: readiness.clone(),
        pages: beside_health.merge(Publication::route(transparency)),
    };
    let ops = telemetry::serve_ops(ops, served, std::future::pending());
    let ops_task = tokio::spawn(ops);
    lifecycle::tell_ready();
    tracing::info!(shards = relay.fixed.shard.count(), "ready");

    let mut ticks = tokio::time::interval(PUBLISH_EVERY);
    let mut looks = tokio::time::interval(LOOK_AT_MACHINE_EVERY);
    let end = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => break Ok(()),
                Signal::Reload => relay.reload(),
            },
            _ = ticks.tick() => relay.publish().await,
            _ = looks.tick() => relay.look_at_machine(),
            () = relay.shards.failed() => break Err(RunError::ShardEnded),
        }
    };
    not_stopping.clear();
    lifecycle::tell_stopping();
    let end = match end {
        Ok(()) => relay.drain(&mut signals).await,
        failed => failed,
    };
    relay.publish().await;
    tracing::info!(allocations = relay.shards.allocations(), "stopped");
    ops_task.abort();
    page_task.iter().for_each(tokio::task::JoinHandle::abort);
    // Dropping the relay stops its shards and closes its sockets.
    end
}

/// A relay that serves until it is dropped.
pub struct Relay {
    shards: Arc<Shards>,
    page: Arc<Page>,
    /// What everybody may look up; a reload brings another.
    view: Arc<Mutex<Arc<View>>>,
    path: PathBuf,
    machine: Machine,
    fixed: Fixed,
    place: Place,
    taken: Taken,
    drain: Duration,
}

/// What holds of the settings file, for when the machine changes and the file does not.
struct Taken {
    control: Arc<control::Settings>,
    peers: PeersSettings,
    streams: StreamSettings,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Relay {
    pub fn start(settings: Settings, path: &Path, machine: Machine) -> Result<Self, RunError> {
        let tls = settings.tls();
        let view = Arc::new(View::of(&settings, path));
        let (urls, standing) = (offer::urls(&settings), Standing::new(path, &settings));
        let Settings {
            fixed,
            place,
            credentials,
            peers,
            limits,
            streams,
            drain,
            ..
        } = settings;
        let mut hash_key = [0; 2];
        for word in &mut hash_key {
            *word = getrandom::u64().map_err(|_| RunError::NoRandomness)?;
        }
        // Kept over reloads: a nonce that a client has stays good.
        let mut nonce_key = [0; 32];
        getrandom::fill(&mut nonce_key).map_err(|_| RunError::NoRandomness)?;
        let nonces = Nonces::new(Secret::new(nonce_key), fixed.nonce_epoch);
        nonce_key.zeroize();
        let control = Arc::new(control_settings(credentials, limits.clone(), &peers, &place));
        let page = Page::new(&fixed.page, facts(urls, standing, &place, &control, &limits));
        let taken = Taken {
            control: Arc::clone(&control),
            peers,
            streams: streams.clone(),
            tls: tls.clone(),
        };
        let listeners = place.listeners.iter();
        let shards = shard::start(Plan {
            shards: fixed.shard.count(),
            listeners: listeners.map(|address| Listener { address: *address }).collect(),
            buffers: fixed.sockets.buffers(),
            shared: Arc::new(Shared::new(place.relays.clone(), nonces, hash_key)),
            settings: control,
            streams,
            tls,
        });
        Ok(Self {
            shards: Arc::new(shards.map_err(RunError::Listen)?),
            page,
            view: Arc::new(Mutex::new(view)),
            path: path.to_owned(),
            machine,
            fixed,
            place,
            taken,
            drain,
        })
    }

    /// Takes what may change from the settings file; a file with a fault changes nothing.
    fn reload(&mut self) {
        let mut settings = match settings::read_again(&self.path, &self.machine, &self.fixed.realm) {
            Ok((settings, warnings)) => {
                for warning in warnings.0 {
                    tracing::warn!(place = warning.place, problem = warning.problem, "settings");
                }
                settings
            }
            Err(Faults(faults)) => {
                tracing::error!(faults = faults.len(), "the settings have faults: nothing is changed");
                for fault in faults {
                    tracing::error!(place = fault.place, problem = fault.problem, "settings");
                }
                metrics::counter!("settings_reloads_total", "outcome" => "refused").increment(1);
                return;
            }
        };
        for setting in self.fixed.differences(&settings.fixed) {
            tracing::warn!(setting, "this setting changed and waits for a restart");
        }
        // The page tells visitors where it is now.
        settings.stay(&self.fixed, &self.place);
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(View::of(&settings, &self.path));
        let tls = settings.tls();
        let (urls, standing) = (offer::urls(&settings), Standing::new(&self.path, &settings));
        let Settings {
            credentials,
            peers,
            limits,
            streams,
            drain,
            ..
        } = settings;
        // Where it does not say, the addresses are those of before.
        let _ = self.machine.look_again();
        self.place.look_again(&self.machine);
        let control = Arc::new(control_settings(credentials, limits.clone(), &peers, &self.place));
        self.page.reload(facts(urls, standing, &self.place, &control, &limits));
        self.shards.reload(&control, &streams, tls.as_ref());
        self.taken = Taken {
            control,
            peers,
            streams,
            tls,
        };
        self.drain = drain;
        metrics::counter!("settings_reloads_total", "outcome" => "taken").increment(1);
        tracing::info!("settings reloaded");
    }

    /// An address that the machine got since, as temporary IPv6 addresses come daily, is no peer: what serves on `[::]` trusts who comes from
    /// the machine itself.
    fn look_at_machine(&mut self) {
        if !self.machine.look_again() {
            return;
        }
        self.place.look_again(&self.machine);
        let taken = &mut self.taken;
        let policy = taken.peers.policy(&self.place);
        taken.control = Arc::new(taken.control.with_policy(policy, &self.place.relays));
        self.shards.reload(&taken.control, &taken.streams, taken.tls.as_ref());
        tracing::info!("the machine has other addresses: those that are ours are no peers");
    }

    /// Lets live calls end by themselves, for a while.
    async fn drain(&self, signals: &mut Signals) -> Result<(), RunError> {
        self.shards.drain();
        let (calls, seconds) = (self.shards.allocations(), self.drain.as_secs());
        tracing::info!(
            allocations = calls,
            seconds,
            "stopping: live calls may go on; a second signal ends them at once"
        );
        let over = async {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            let mut until_publish = 0;
            while self.shards.allocations() > 0 {
                looks.tick().await;
                until_publish += 1;
                if LOOK_EVERY * until_publish >= PUBLISH_EVERY {
                    until_publish = 0;
                    self.publish().await;
                }
            }
        };
        tokio::select! {
            how = lifecycle::drain(over, self.drain, signals.stop()) => {
                tracing::info!(?how, "drained");
                Ok(())
            }
            () = self.shards.failed() => Err(RunError::ShardEnded),
        }
    }

    /// Brings what the shards have counted into the metrics.
    async fn publish(&self) {
        let shards = Arc::clone(&self.shards);
        // A report waits for the shards, and the operator must be served meanwhile.
        let report = tokio::task::spawn_blocking(move || shards.report()).await;
        // Without one shard the sums would seem to shrink.
        if let Ok(report) = report
            && report.shards == usize::from(self.fixed.shard.count())
        {
            publish(&report);
            metrics::counter!("shard_reports_total").increment(1);
        }
    }
}

/// It is not locked while files are looked at.
fn current(view: &Mutex<Arc<View>>) -> Arc<View> {
    Arc::clone(&view.lock().unwrap_or_else(PoisonError::into_inner))
}

fn facts(
    urls: Vec<offer::TurnUrl>,
    standing: Standing,
    place: &Place,
    control: &Arc<control::Settings>,
    limits: &Limits,
) -> Facts {
    Facts {
        urls,
        advertised: (0..)
            .map_while(|number| place.relays.get(number))
            .map(|relay| relay.advertised)
            .collect(),
        standing,
        control: Arc::clone(control),
        longest_life: limits.timed_max_life,
    }
}

fn control_settings(
    credentials: Credentials,
    limits: Limits,
    peers: &PeersSettings,
    place: &Place,
) -> control::Settings {
    let policy = peers.policy(place);
    control::Settings::new(
        credentials,
        limits,
        policy,
        place.listeners.clone(),
        &place.relays,
        true,
    )
}

fn publish(report: &Report) {
    let counters = &report.counters;
    metrics::gauge!("allocation_live").set(counters.allocations as f64);
    for (direction, traffic) in [
        ("to_peers", counters.to_peers),
        ("to_clients", counters.to_clients),
        ("within", counters.within),
    ] {
        metrics::counter!("forwarding_packets_total", "direction" => direction).absolute(traffic.packets);
        metrics::counter!("forwarding_bytes_total", "direction" => direction).absolute(traffic.bytes);
    }
    for (method, count) in counters.successes.iter() {
        metrics::counter!("control_successes_total", "method" => method_label(method)).absolute(count);
    }
    // Some reasons share their name.
    let mut refusals = BTreeMap::new();
    for (refusal, count) in counters.refusals.iter() {
        *refusals.entry((refusal.stage(), refusal.label())).or_insert(0) += count;
    }
    for ((stage, reason), count) in refusals {
        metrics::counter!("control_refused_total", "stage" => stage, "reason" => reason).absolute(count);
    }
    let streams = &report.streams;
    metrics::gauge!("streams_open", "transport" => "tcp").set(streams.open_tcp as f64);
    metrics::gauge!("streams_open", "transport" => "tls").set(streams.open_tls as f64);
    metrics::counter!("streams_accepted_total").absolute(streams.accepted);
    metrics::counter!("streams_handshakes_total").absolute(streams.handshakes);
    for (event, count) in streams.iter() {
        let name = match event.kind() {
            StreamEventKind::Ended => "streams_ended_total",
            StreamEventKind::Refused => "streams_refused_total",
            StreamEventKind::Dropped => "streams_dropped_total",
        };
        metrics::counter!(name, "reason" => event.label()).absolute(count);
    }
    for (loss, count) in report.losses.iter() {
        metrics::counter!("shard_lost_total", "reason" => loss.label()).absolute(count);
    }
}

const fn method_label(method: Method) -> &'static str {
    match method {
        Method::Binding => "binding",
        Method::Allocate => "allocate",
        Method::Refresh => "refresh",
        Method::Send => "send",
        Method::Data => "data",
        Method::CreatePermission => "create_permission",
        Method::ChannelBind => "channel_bind",
    }
}

fn describe_metrics() {
    metrics::describe_gauge!(
        "allocation_live",
        "Allocations that are live now: about one for each end of a call."
    );
    metrics::describe_counter!(
        "forwarding_packets_total",
        "Packets relayed; within is from client to client of this server."
    );
    metrics::describe_counter!("forwarding_bytes_total", "Their bytes, headers not counted.");
    metrics::describe_counter!("control_successes_total", "Requests with a success answer.");
    metrics::describe_counter!(
        "control_refused_total",
        "What was not done, by the stage that said no and its reason."
    );
    metrics::describe_gauge!("streams_open", "TCP and TLS clients that are connected now.");
    metrics::describe_counter!("streams_accepted_total", "Connections of TCP and TLS clients taken.");
    metrics::describe_counter!("streams_handshakes_total", "TLS handshakes completed.");
    metrics::describe_counter!("streams_ended_total", "Streams that were open, by why they ended.");
    metrics::describe_counter!("streams_refused_total", "Connections that were closed at once, by why.");
    metrics::describe_counter!(
        "streams_dropped_total",
        "Packets for TCP and TLS clients that were dropped, by why."
    );
    metrics::describe_counter!(
        "shard_lost_total",
        "Packets that the sockets had no room for or did not send, by reason."
    );
    metrics::describe_counter!(
        "shard_reports_total",
        "Times at which all shards said what they had counted: about one a second."
    );
    metrics::describe_counter!("page_views_total", "How often the page was opened.");
    metrics::describe_counter!(
        "page_credentials_total",
        "Credentials that the page handed out, one for each check."
    );
    metrics::describe_counter!(
        "page_refused_total",
        "Requests to the page that were refused: under another name, by another site, too many."
    );
    metrics::describe_counter!("settings_reloads_total", "SIGHUPs, by what became of them.");
}

/// A page is one visit of a few people, each with a handful of requests.
const PAGE_LIMITS: server::Limits = server::Limits {
    name: "page",
    connections: 64,
    header_timeout: Duration::from_secs(5),
    write_timeout: Duration::from_secs(10),
};
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// Between two looks which addresses the machine has.
const LOOK_AT_MACHINE_EVERY: Duration = Duration::from_secs(10);
/// Between two looks whether the last call has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::Loss;
    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
    use quietline_shared::service::audit::Who;
    use std::collections::BTreeSet;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use turn_core::control::Refusal;

    /// Which metrics were explained, and which were set.
    #[derive(Default)]
    struct Names {
        described: Mutex<BTreeSet<String>>,
        set: Mutex<BTreeSet<String>>,
    }

    impl Names {
        fn describe(&self, name: &KeyName) {
            self.described.lock().unwrap().insert(name.as_str().to_owned());
        }

        fn set(&self, key: &Key) {
            self.set.lock().unwrap().insert(key.name().to_owned());
        }
    }

    impl Recorder for Names {
        fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
            self.describe(&name);
        }

        fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
            self.describe(&name);
        }

        fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
            self.describe(&name);
        }

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            self.set(key);
            Counter::noop()
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            self.set(key);
            Gauge::noop()
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            self.set(key);
            Histogram::noop()
        }
    }

    #[test]
    fn whatever_the_shards_report_is_explained() {
        let names = Names::default();
        let mut report = Report::default();
        report.losses.add(Loss::RelayOverflow);
        report.counters.successes.add(Method::Binding);
        report.counters.refusals.add(Refusal::NotOurs);
        metrics::with_local_recorder(&names, || {
            describe_metrics();
            publish(&report);
        });
        let (described, set) = (names.described.into_inner().unwrap(), names.set.into_inner().unwrap());
        assert!(set.len() > 10, "{set:?}");
        assert_eq!(set.difference(&described).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn everybody_may_look_up_what_is_so_after_a_reload() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        };
        let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
        write("certificate.pem", &made.cert.pem());
        let key = write("key.pem", &made.signing_key.serialize_pem());
        let secret = write("secret", "0f1e2d3c4b5a69788796a5b4c3d2e1f0");
        let password = write("password", "053c268164bc7bd7");
        // An address of its own, so that no other test has the port.
        let place = "shard.count = 1\n[listen]\naddresses = ['127.82.101.108']\n";
        let timed = "auth.timed = [{ secret_file = 'secret' }]\n";
        let user = "auth.user = [{ name = 'alice', password_file = 'password' }]\n";
        let tls = "certificate_file = 'certificate.pem'\ncertificate_key_file = 'key.pem'\n";

        let path = write("turn.toml", &format!("{timed}{place}{tls}"));
        let (settings, _) = settings::read(&path, &Machine::default()).unwrap();
        let mut relay = Relay::start(settings, &path, Machine::default()).unwrap();
        let look = |relay: &Relay| {
            let audit = audit(&current(&relay.view), None, Scale::Rounded);
            let facts = &audit.facts;
            let tls = facts.iter().find(|fact| fact.what == "TLS to clients").unwrap().good;
            let with_key = audit.adversaries.iter().find(|one| one.who == Who::DiskAndKey);
            let has_users = with_key
                .unwrap()
                .learns
                .iter()
                .any(|text| text.contains("static users"));
            let files: Vec<_> = audit.keys.into_iter().map(|key| key.file).collect();
            (tls, has_users, files)
        };
        assert_eq!(look(&relay), (Some(true), false, vec![secret.clone(), key]));

        write("turn.toml", &format!("{timed}{user}{place}"));
        relay.reload();
        let after = (Some(false), true, vec![secret, password]);
        assert_eq!(look(&relay), after);
        // A file with a fault changes nothing.
        write("turn.toml", &format!("limits.allocations = 0\n{timed}{place}{tls}"));
        relay.reload();
        assert_eq!(look(&relay), after);
    }
}
