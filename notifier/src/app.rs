//! The wiring: the only place that knows every stage.
//!
//! In: checked settings. Out: a running notifier, until a signal. Never: decides anything about a subscription, a message or a wakeup.

mod audit;
mod desk;
pub mod keys;
mod relay;
mod settled;
mod trial;

pub use audit::{View, audit, audit_now};
pub use trial::push_once;

use crate::dispatch::{self, Apns, Deliver, Fcm, Huawei, Webpush};
use crate::http;
use crate::outbox::{Lane, OutboxError, OutboxFile};
use crate::settings::{self, Settings};
use crate::store::sqlite::SqliteStore;
use crate::store::{StoreError, SubscriptionStore};
use crate::watcher;
use bytes::Bytes;
use desk::{Desk, Records};
use keys::KeyKeeper;
use notifier_core::account::Service;
use notifier_core::fanout::Mark;
use notifier_core::omq::Identity;
use notifier_core::outbox::{Effect, EntryId, Outcome, Push, Target};
use notifier_core::watch::Coverage;
use quietline_shared::service::audit::live::Live;
use quietline_shared::service::audit::{Publication, Scale};
use quietline_shared::service::lifecycle::{self, Latch, Readiness, Signal, Signals};
use quietline_shared::service::telemetry::{self, TelemetryError};
use relay::{Command, Ends, Relay, RelaySettings};
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use trial::{Trials, check_endpoints};

/// Notifications that may wait for the relay; beyond that links stop reading. A node keeps only 1,000 for us, so a burst waits here;
/// the watcher bounds its bytes as well.
const INCOMING: usize = 65_536;
/// Three thousand nodes, their databases and as many requests fit.
const OPEN_FILES: u64 = 65_536;
const COMMANDS: usize = 4_096;
/// Dead tokens and stopped lanes that may wait to be told.
const EFFECTS: usize = 4_096;
/// When rows whose signature ran out are removed for the first time; from then on at the end of each day.
const EXPIRED_ROWS_AFTER: Duration = Duration::from_secs(3600);

/// How long a start waits for every account to be watched before it says that it runs.
const WATCH_PATIENCE: Duration = Duration::from_secs(60);

/// Why the notifier does not start. What is wrong with settings is told before, all at once.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Telemetry(#[from] TelemetryError),
    #[error("the signals of the process cannot be taken: {0}")]
    Signals(io::Error),
    #[error("{place} cannot be listened on: {fault}")]
    Listen { place: &'static str, fault: io::Error },
    #[error("[store] {0}")]
    Store(#[from] StoreError),
    #[error("[outbox] {0}")]
    Outbox(#[from] OutboxError),
    #[error("{0} could not be set up again")]
    Provider(#[from] dispatch::SettingsFault),
    #[error("the task {0} ended before its time")]
    TaskEnded(&'static str),
}

impl StartError {
    /// Whether starting again would change nothing.
    pub const fn is_of_settings(&self) -> bool {
        match self {
            Self::Store(fault) => fault.is_of_settings(),
            Self::Outbox(fault) => fault.is_of_settings(),
            _ => false,
        }
    }
}

/// Runs until SIGTERM or SIGINT, then drains. SIGHUP reads the file again.
pub async fn run(settings: Settings, settings_file: &Path) -> Result<(), StartError> {
    let metrics = telemetry::install(settings.log)?;
    // A link is a file. Where the system allows fewer, dials beyond it fail and are counted.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES);
    let mut signals = Signals::install().map_err(StartError::Signals)?;
    let readiness = Readiness::new();
    let (store_ready, watch_ready) = (readiness.latch("store"), readiness.latch("watch"));
    let not_stopping = readiness.latch("the end");
    not_stopping.set();
    let (stopper, stop) = lifecycle::stop();

    let published = metrics.clone();
    let view = View::of(&settings);
    let transparency = Publication::new(&settings.transparency, move || {
        let (view, metrics) = (view.clone(), published.clone());
        async move {
            let live = Live::from_text(metrics.render());
            audit(&view, Some(&live), Scale::Rounded, unix_ms() / 1000).await
        }
    });

    let ops = listen("[ops] listen", settings.ops.listen).await?;
    let ops_task = tokio::spawn(telemetry::serve_ops(
        ops,
        telemetry::Ops {
            metrics,
            metrics_period: settings.ops.metrics_period,
            readiness: readiness.clone(),
            pages: axum::Router::new(),
        },
        // Whoever asks during the drain hears "not ready", and sees it in the metrics.
        std::future::pending(),
    ));
    // The place is taken before anything is started, so that a second notifier ends here.
    let http_listener = listen("[http] listen", settings.http.listen).await?;

    let window = settings.fanout.window;
    let mark_key = settings.lookup_key.derive("marks of messages");
    let store: Arc<dyn SubscriptionStore> =
        Arc::new(SqliteStore::open(&settings.store, settings.lookup_key, &settings.row_keys).await?);
    let mut file = OutboxFile::open(&settings.outbox, &settings.row_keys).await?;
    let mut seen = Vec::new();
    let since_ms = unix_ms().saturating_sub(i64::try_from(window.as_millis()).unwrap_or(i64::MAX));
    file.load_marks(since_ms, |mark| seen.push((Mark::from_bytes(mark.mark), mark.at_ms)))
        .await?;

    // Lanes first: what the last run left goes out while the rest still starts.
    let mut lanes = Vec::new();
    let mut starts = Vec::new();
    let services = settings.dispatch.services();
    let timeout = settings.dispatch.timeout;
    for service in services.iter().copied() {
        let limits = settings.dispatch.lane(service).expect("the service is on offer");
        let concurrency = limits.concurrency as usize;
        let (pushes, jobs) = mpsc::channel(concurrency);
        let lane = Lane {
            service,
            settings: limits,
            pushes,
        };
        lanes.push(lane);
        starts.push((service, concurrency, jobs));
    }
    let (effects, told_effects) = mpsc::channel(EFFECTS);
    let outbox = file.start(lanes, effects, window).await?;
    let (guard, mut ended) = Guard::new();
    let mut lane_tasks = Vec::new();
    let mut trials = Trials::new(settings.seal.padding, timeout);
    let mut webpush = None;
    for (service, concurrency, jobs) in starts {
        let outcomes = outbox.handle.outcomes.clone();
        lane_tasks.push(match service {
            Service::Apns | Service::ApnsSandbox => {
                let section = match service {
                    Service::Apns => settings.dispatch.apns.as_ref(),
                    _ => settings.dispatch.apns_sandbox.as_ref(),
                };
                let provider = Arc::new(Apns::new(service, section.expect("the service is on offer"), timeout)?);
                trials.add(&provider);
                guard.spawn(service.name(), lane(provider, jobs, outcomes, concurrency, timeout))
            }
            Service::Firebase => {
                let section = settings.dispatch.firebase.as_ref();
                let provider = Arc::new(Fcm::new(section.expect("the service is on offer"), timeout)?);
                trials.add(&provider);
                guard.spawn(service.name(), lane(provider, jobs, outcomes, concurrency, timeout))
            }
            Service::Huawei => {
                let section = settings.dispatch.huawei.as_ref();
                let provider = Arc::new(Huawei::new(section.expect("the service is on offer"), timeout)?);
                trials.add(&provider);
                guard.spawn(service.name(), lane(provider, jobs, outcomes, concurrency, timeout))
            }
            Service::Webpush => {
                let section = settings.dispatch.webpush.as_ref();
                let provider = Arc::new(Webpush::new(section.expect("the service is on offer"))?);
                trials.add(&provider);
                webpush = Some(Arc::clone(&provider));
                guard.spawn(service.name(), lane(provider, jobs, outcomes, concurrency, timeout))
            }
        });
    }

    let (commands, command_inbox) = mpsc::channel(COMMANDS);
    let (incoming, incoming_inbox) = mpsc::channel(INCOMING);
    let (dead, dead_inbox) = mpsc::channel(EFFECTS);
    let (told, told_inbox) = mpsc::channel(COMMANDS * 4);
    let (ring, current_ring) = watch::channel(Arc::new(settings.row_keys));
    let (watcher, stream) = watcher::spawn(watcher::Parts {
        watch: settings.watcher.watch(),
        link: settings.watcher.link(),
        identity: Arc::new(Identity::new(settings.link_key)),
        oxends: settings
            .watcher
            .oxend
            .iter()
            .map(|oxend| oxend.address.clone())
            .collect(),
        seeds: settings.seeds,
        node_list_file: settings.watcher.node_list_file.clone(),
        keys: current_ring,
        refresh_interval: settings.watcher.refresh_interval,
        max_list_change: settings.watcher.max_list_change,
        records: Records {
            store: Arc::clone(&store),
            relay: commands.clone(),
        },
        incoming,
    });
    let devices = Arc::new(AtomicUsize::new(0));
    let relay = Relay::new(
        RelaySettings {
            node_rate: settings.event.node_rate,
            node_burst: settings.event.node_burst,
            confirm: settings.event.confirm(),
            dedupe: settings.fanout,
            seal: settings.seal,
            devices: Arc::clone(&devices),
        },
        mark_key,
        seen,
        watcher.ring.clone(),
    );
    let ends = Ends {
        incoming: incoming_inbox,
        commands: command_inbox,
        dead: dead_inbox,
        outbox: outbox.handle.clone(),
        told,
    };
    let relay_task = guard.spawn("relay", relay.run(ends));

    let checks = trials.take_checks();
    let desk = Arc::new(Desk::new(
        Arc::clone(&store),
        commands.clone(),
        watcher.commands.clone(),
        devices,
        settings.max_devices,
        trials,
    ));
    let checking = webpush.map(|way| tokio::spawn(check_endpoints(way, checks, Arc::clone(&desk), timeout)));
    let keeper = KeyKeeper {
        path: settings.row_key_file,
        store: Arc::clone(&store),
        outbox: outbox.handle.clone(),
        ring,
    };
    let keeping_keys = tokio::spawn(keeper.keep());
    let housekeeping = tokio::spawn(Arc::clone(&desk).keep_house(told_inbox, EXPIRED_ROWS_AFTER));
    let effects_task = guard.spawn("effects", hear_effects(told_effects, dead));

    let web_push = settings.dispatch.webpush.as_ref().and_then(|section| {
        Some(http::WebPush {
            vapid_public_key: section.vapid_public_key()?,
            guard: section.guard().ok()?,
        })
    });
    let (offered, turn) = watch::channel(settings.turn.map(Arc::new));
    let http_task = tokio::spawn(http::serve(
        http_listener,
        http::Http {
            settings: settings.http,
            onion_key: settings.onion_key,
            services,
            web_push,
            turn,
            subscriptions: Arc::clone(&desk),
            clock: Arc::new(|| unix_ms() / 1000),
            pages: Publication::route(transparency),
        },
        stop.clone().stopped(),
    ));

    let load = tokio::spawn(load(Arc::clone(&store), commands, stream));
    let mut ready = tokio::spawn(become_ready(load, store_ready, watch_ready, watcher.coverage.clone()));

    // Without its subscriptions, or one of its tasks, a notifier that seems to run wakes nobody, so it ends.
    let end = tokio::select! {
        () = hear_signals(&mut signals, settings_file, &offered) => Ok(()),
        end = &mut ready => match end {
            Ok(Err(fault)) => Err(StartError::Store(fault)),
            _ => Err(StartError::TaskEnded("watcher")),
        },
        task = ended.recv() => Err(StartError::TaskEnded(task.unwrap_or("all"))),
    };
    tracing::info!("stopping: what can be sent is sent, the rest is in the outbox file");
    lifecycle::tell_stopping();
    not_stopping.clear();
    stopper.stop();
    let drain = settings.lifecycle.drain;
    let deadline = tokio::time::Instant::now() + drain;
    let work = async {
        // A request that trickles in may not take the time of wakeups under way.
        let _ = tokio::time::timeout(drain / 4, http_task).await;
        ready.abort();
        // Links close; what they gave goes through the relay into the outbox.
        drop(watcher);
        // On a full disk its commits wait; what they hold is then lost to this run, and the outbox still closes its file.
        if let Ok(end) = tokio::time::timeout(drain / 2, relay_task).await {
            log_end("relay", end);
        }
        outbox.shutdown(deadline).await;
        for task in lane_tasks {
            log_end("lane", task.await);
        }
        log_end("effects", effects_task.await);
        housekeeping.abort();
        keeping_keys.abort();
        if let Some(checking) = checking {
            checking.abort();
        }
        store.close().await;
    };
    let drained = lifecycle::drain(work, drain + Duration::from_secs(5), signals.stop()).await;
    tracing::info!(how = ?drained, "stopped");
    ops_task.abort();
    end
}

/// Ends with the signal to stop. A reload takes what may change while we run: the relays that callers are told, and their secrets.
async fn hear_signals(signals: &mut Signals, file: &Path, offered: &watch::Sender<Option<Arc<http::TurnOffer>>>) {
    while signals.next().await == Signal::Reload {
        let file = file.to_owned();
        // Files are read, and keys tried.
        let outcome = match tokio::task::spawn_blocking(move || settings::read(&file)).await {
            Ok(Ok((settings, warnings))) => {
                for warning in &warnings.0 {
                    tracing::warn!(place = warning.place, problem = warning.problem, "settings");
                }
                offered.send_replace(settings.turn.map(Arc::new));
                tracing::info!("settings read again: [turn] is taken, the rest waits for a restart");
                "taken"
            }
            Ok(Err(faults)) => {
                tracing::error!(faults = faults.0.len(), "the settings have faults: nothing is changed");
                for fault in &faults.0 {
                    tracing::error!(place = fault.place, problem = fault.problem, "settings");
                }
                "refused"
            }
            // A panic has been reported where it happened.
            Err(_) => "refused",
        };
        metrics::counter!("settings_reloads_total", "outcome" => outcome).increment(1);
    }
}

/// A lane ends when the outbox drops its end: until then each push that it took gets its outcome.
async fn lane<D: Deliver>(
    sender: Arc<D>,
    jobs: mpsc::Receiver<Push>,
    outcomes: mpsc::Sender<(EntryId, Outcome)>,
    concurrency: usize,
    timeout: Duration,
) {
    let forever = std::future::pending();
    dispatch::run_lane(sender, jobs, outcomes, concurrency, timeout, forever).await;
}

/// Tells when a task ends, by a panic too, that should run as long as the process.
struct Guard(mpsc::UnboundedSender<&'static str>);

impl Guard {
    fn new() -> (Self, mpsc::UnboundedReceiver<&'static str>) {
        let (sender, ended) = mpsc::unbounded_channel();
        (Self(sender), ended)
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        struct Tell(&'static str, mpsc::UnboundedSender<&'static str>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.1.send(self.0);
            }
        }
        let tell = Tell(name, self.0.clone());
        tokio::spawn(async move {
            let _tell = tell;
            task.await;
        })
    }
}

async fn listen(place: &'static str, address: std::net::SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|fault| StartError::Listen { place, fault })
}

/// Reads the store once: each row goes to the index and, with its record, to the watch.
async fn load(
    store: Arc<dyn SubscriptionStore>,
    relay: mpsc::Sender<Command>,
    watch: watcher::Stream,
) -> Result<u64, StoreError> {
    let mut rows = store.scan();
    let mut count = 0;
    let now = unix_ms() / 1000;
    while let Some(batch) = rows.recv().await {
        let (mut subscriptions, mut expired) = (Vec::new(), Vec::new());
        for subscription in batch? {
            if subscription.expires_at() <= now {
                expired.push(subscription.device);
                continue;
            }
            let mut record = Vec::with_capacity(320);
            subscription.monitor_record(&mut record);
            subscriptions.push((subscription, Bytes::from(record)));
        }
        count += subscriptions.len() as u64;
        let (done, standing) = oneshot::channel();
        let batch = Command::Load {
            subscriptions,
            expired,
            done,
        };
        if relay.send(batch).await.is_err() {
            break;
        }
        // An account must be in the index before its first notification comes.
        for record in standing.await.unwrap_or_default() {
            if watch.send(record).await.is_err() {
                return Ok(count);
            }
        }
    }
    let _ = relay.send(Command::LoadEnded).await;
    Ok(count)
}

/// Ready when the store is read and the accounts are watched; or, a minute after it was read, as well as they can be: nodes that are
/// down must not keep the service manager waiting.
async fn become_ready(
    load: JoinHandle<Result<u64, StoreError>>,
    store_ready: Latch,
    watch_ready: Latch,
    mut coverage: watch::Receiver<Coverage>,
) -> Result<(), StoreError> {
    let began = Instant::now();
    let devices = match load.await {
        Ok(loaded) => loaded?,
        // A panic of the loader has been reported where it happened.
        Err(_) => return Err(StoreError::Unavailable),
    };
    tracing::info!(devices, seconds = began.elapsed().as_secs_f64(), "subscriptions read");
    store_ready.set();
    let patience = Instant::now() + WATCH_PATIENCE;
    let mut told = false;
    loop {
        let now = *coverage.borrow_and_update();
        let all = now.swarms > 0 && now.covered >= now.accounts - now.accounts / 100;
        if now.links_up == 0 {
            watch_ready.clear();
        } else if told || all || Instant::now() >= patience {
            watch_ready.set();
            if !told {
                told = true;
                let (accounts, covered, links) = (now.accounts, now.covered, now.links_up);
                tracing::info!(
                    accounts,
                    covered,
                    links,
                    seconds = began.elapsed().as_secs_f64(),
                    "ready"
                );
                lifecycle::tell_ready();
            }
        }
        tokio::select! {
            changed = coverage.changed() => if changed.is_err() {
                return Ok(());
            },
            // Nothing may change for long where nodes are down.
            () = tokio::time::sleep_until(patience.into()), if !told && Instant::now() < patience => {}
        }
    }
}

/// The outbox must never wait for whoever acts on a dead token: what finds no room is told again by the next push.
async fn hear_effects(mut effects: mpsc::Receiver<Effect>, dead: mpsc::Sender<(Target, Option<i64>)>) {
    while let Some(effect) = effects.recv().await {
        match effect {
            Effect::TokenGone {
                target,
                provider_time_ms,
            } => {
                if dead.try_send((target, provider_time_ms)).is_err() {
                    metrics::counter!("app_dead_tokens_postponed_total").increment(1);
                }
            }
            Effect::LaneStopped(service) => {
                tracing::error!(
                    service = service.name(),
                    "the provider refuses our credential: lane stopped, its queue is kept"
                );
            }
            Effect::LaneStalled(service) => {
                tracing::error!(
                    service = service.name(),
                    "a push came to no end: it is sent again, and its lane is not as it should be"
                );
            }
            Effect::LaneResumed(service) => {
                tracing::info!(service = service.name(), "the credential works again: lane resumed")
            }
        }
    }
}

fn log_end(task: &'static str, end: Result<(), tokio::task::JoinError>) {
    if end.is_err_and(|fault| fault.is_panic()) {
        tracing::error!(task, "a task ended by a panic");
    }
}

fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
