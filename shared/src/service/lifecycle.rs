//! From start to stop: signals, readiness, drain.
//!
//! In: signals of the operating system, latches that the stages set. Out: one stop for all, ready or not, how the drain ended.
//! Never: ends the process itself.

use serde::Deserialize;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::watch;

/// `[lifecycle]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// After the first signal to stop: how long the work under way may still take. Default 20 s.
    #[serde(default = "twenty_seconds", with = "humantime_serde")]
    pub drain: Duration,
}

const fn twenty_seconds() -> Duration {
    Duration::from_secs(20)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// The signals of this process. From [`Signals::install`] on, none of them ends it by itself.
pub struct Signals {
    terminate: SignalStream,
    interrupt: SignalStream,
    hang_up: SignalStream,
}

impl Signals {
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    pub async fn next(&mut self) -> Signal {
        // None of the streams ever ends; a branch that sees `None` waits for the others.
        tokio::select! {
            Some(()) = self.terminate.recv() => Signal::Stop,
            Some(()) = self.interrupt.recv() => Signal::Stop,
            Some(()) = self.hang_up.recv() => Signal::Reload,
            else => std::future::pending().await,
        }
    }

    /// The next signal to stop, for a server that is stopping already and takes no other settings.
    pub async fn stop(&mut self) {
        while self.next().await != Signal::Stop {
            tracing::warn!("the settings are not read again: this server is stopping");
        }
    }
}

/// Tells every [`Stop`] made with it. Dropping it tells them too: whoever ruled the process is gone.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// One stage's view of the stop. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

pub fn stop() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    pub async fn stopped(mut self) {
        // An error means that the stopper is gone, which is a stop.
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }

    pub fn is_stopped(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// Ready only while every latch is set. Names are constants: they are shown to whoever asks.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<Vec<(&'static str, bool)>>);

/// One condition of readiness, not met until set. A latch that is dropped stays as it was.
#[derive(Debug)]
pub struct Latch {
    all: Readiness,
    name: &'static str,
}

impl Readiness {
    pub fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    /// The same name twice is the same condition.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.0.send_modify(|latches| {
            if !latches.iter().any(|(known, _)| *known == name) {
                latches.push((name, false));
            }
        });
        Latch {
            all: self.clone(),
            name,
        }
    }

    /// The names not set, in the order in which they were made. Without any latch nothing is ready.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        let latches = self.0.borrow();
        if latches.is_empty() {
            return vec!["start"];
        }
        latches.iter().filter(|(_, set)| !set).map(|(name, _)| *name).collect()
    }

    pub fn is_ready(&self) -> bool {
        self.waiting_for().is_empty()
    }

    pub async fn ready(&self) {
        let ready = |latches: &Vec<(&str, bool)>| !latches.is_empty() && latches.iter().all(|(_, set)| *set);
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(ready).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Latch {
    pub fn set(&self) {
        self.change(true);
    }

    pub fn clear(&self) {
        self.change(false);
    }

    fn change(&self, to: bool) {
        self.all.0.send_if_modified(|latches| {
            let Some((_, set)) = latches.iter_mut().find(|(name, _)| *name == self.name) else {
                return false;
            };
            std::mem::replace(set, to) != to
        });
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    Done,
    Deadline,
    /// A second signal came.
    Forced,
}

/// Lets `work` finish until the deadline or `second_signal`, such as `signals.stop()`.
pub async fn drain(
    work: impl Future<Output = ()>,
    deadline: Duration,
    second_signal: impl Future<Output = ()>,
) -> Drained {
    let (work, second_signal) = (pin!(work), pin!(second_signal));
    tokio::select! {
        biased;
        () = work => Drained::Done,
        () = second_signal => Drained::Forced,
        () = tokio::time::sleep(deadline) => Drained::Deadline,
    }
}

/// Tells systemd that the service works. Does nothing where no `NOTIFY_SOCKET` is set.
pub fn tell_ready() {
    tell(sd_notify::NotifyState::Ready);
}

/// Tells systemd that the service is going down on purpose.
pub fn tell_stopping() {
    tell(sd_notify::NotifyState::Stopping);
}

fn tell(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(kind = ?error.kind(), "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn raise(name: &str) {
        let status = Command::new("kill")
            .args([name, &std::process::id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[tokio::test]
    async fn signals_stop_or_reload_and_a_second_one_forces_the_end() {
        let mut signals = Signals::install().unwrap();
        for (name, signal) in [
            ("-HUP", Signal::Reload),
            ("-TERM", Signal::Stop),
            ("-INT", Signal::Stop),
        ] {
            raise(name);
            assert_eq!(signals.next().await, signal, "{name}");
        }
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let raised = async {
            raise("-HUP");
            while log.lines() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            raise("-TERM");
        };
        let drained = drain(std::future::pending(), Duration::from_secs(3600), signals.stop());
        let (ended, ()) = tokio::join!(drained, raised);
        assert_eq!(ended, Drained::Forced);
        assert_eq!(log.lines(), 1, "a reload that is not taken is told");
    }

    /// Counts what is logged.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::atomic::AtomicUsize>);

    impl Log {
        fn lines(&self) -> usize {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    impl tracing::Subscriber for Log {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.is_event() && metadata.target().starts_with("quietline")
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test]
    async fn a_drain_ends_with_its_work_or_at_its_deadline() {
        let never = std::future::pending::<()>;
        assert_eq!(drain(async {}, Duration::from_secs(3600), never()).await, Drained::Done);
        assert_eq!(
            drain(never(), Duration::from_millis(1), never()).await,
            Drained::Deadline
        );
    }

    #[tokio::test]
    async fn ready_means_that_every_latch_is_set() {
        let readiness = Readiness::new();
        assert_eq!(readiness.waiting_for(), ["start"]);
        let (store, watcher) = (readiness.latch("store"), readiness.latch("watcher"));
        store.set();
        assert_eq!(readiness.waiting_for(), ["watcher"]);
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        watcher.set();
        waiting.await.unwrap();
        assert!(readiness.is_ready());
        drop(watcher);
        assert!(readiness.is_ready());
        store.clear();
        assert_eq!(readiness.waiting_for(), ["store"]);
        readiness.latch("store").set();
        assert!(readiness.is_ready());
    }

    #[tokio::test]
    async fn a_stop_reaches_every_clone_and_a_lost_stopper_is_a_stop() {
        let (stopper, first) = stop();
        let second = first.clone();
        assert!(!first.is_stopped());
        stopper.stop();
        assert!(first.is_stopped());
        first.stopped().await;
        second.stopped().await;
        let (stopper, stop) = stop();
        drop(stopper);
        assert!(stop.is_stopped());
        stop.stopped().await;
    }

    #[test]
    fn the_service_manager_hears_ready_and_stopping() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // A variable of this process cannot be set safely while other tests run; a child gets its own.
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "service::lifecycle::tests::without_a_service_manager_nothing_is_said",
            ])
            .env("NOTIFY_SOCKET", &path)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let mut buffer = [0; 100];
        for expected in ["READY=1\n", "STOPPING=1\n"] {
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
    }

    /// Also the child of the test above, which has a service manager.
    #[test]
    fn without_a_service_manager_nothing_is_said() {
        tell_ready();
        tell_stopping();
    }

    #[test]
    fn settings_have_their_defaults() {
        let settings =
            |text: &str| <figment::providers::Toml as figment::providers::Format>::from_str::<Settings>(text);
        assert_eq!(
            settings("").unwrap(),
            Settings {
                drain: Duration::from_secs(20)
            }
        );
        assert_eq!(
            settings("drain = \"1m\"").unwrap(),
            Settings {
                drain: Duration::from_secs(60)
            }
        );
        assert!(settings("drian = \"1m\"").is_err());
    }
}
