//! The real notifier, as a child process.
//!
//! In: a binary and a settings file. Out: a process that is ready, ends on SIGTERM, dies on demand, and tells its metrics.
//! Never: anything that an operator could not do.

use crate::http::{HttpClient, HttpError};
use crate::system;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// Between two looks at `/health/ready`; the notifier offers no event before it listens.
const LOOK_EVERY: Duration = Duration::from_millis(25);

#[derive(Debug, thiserror::Error)]
pub enum NotifierError {
    #[error("no quietline-notifier beside this program; build it, or give its path")]
    NoBinary,
    #[error("the notifier could not be started: {0}")]
    Start(std::io::Error),
    #[error("the notifier ended instead of getting ready ({status}); the end of its log:\n{log}")]
    Ended { status: ExitStatus, log: String },
    #[error("the notifier was not ready in time; the end of its log:\n{log}")]
    NotReady { log: String },
    #[error("the notifier did not end in time after SIGTERM")]
    DidNotEnd,
    #[error("the notifier's metrics: {0}")]
    Metrics(#[from] HttpError),
    #[error("file: {0}")]
    File(#[from] std::io::Error),
}

pub struct Notifier {
    binary: PathBuf,
    settings_file: PathBuf,
    log_file: PathBuf,
    ops: HttpClient,
    workers: Option<usize>,
    child: Option<Child>,
}

/// One reading of `/metrics`.
pub struct Metrics(String);

impl Notifier {
    /// The binary given, or the one built last beside this program.
    pub fn find_binary(given: Option<&Path>) -> Result<PathBuf, NotifierError> {
        if let Some(path) = given {
            return if path.is_file() {
                Ok(path.to_owned())
            } else {
                Err(NotifierError::NoBinary)
            };
        }
        find_program("quietline-notifier")?.ok_or(NotifierError::NoBinary)
    }

    /// Starts `BINARY run --settings FILE`; its output is appended to `log_file`. What it wrote to a temporary file or to where it
    /// stands would be found in the folder `tmp` beside the log.
    pub fn spawn(binary: &Path, settings_file: &Path, log_file: &Path, ops: SocketAddr) -> Result<Self, NotifierError> {
        Self::spawn_with_workers(None, binary, settings_file, log_file, ops)
    }

    /// As [`Self::spawn`], with so many threads for its tasks; `None` is one for each core of the machine.
    pub fn spawn_with_workers(
        workers: Option<usize>,
        binary: &Path,
        settings_file: &Path,
        log_file: &Path,
        ops: SocketAddr,
    ) -> Result<Self, NotifierError> {
        std::fs::create_dir_all(log_file.with_file_name("tmp"))?;
        let mut notifier = Self {
            // It stands elsewhere, so no path may be relative to where we stand.
            binary: binary.canonicalize()?,
            settings_file: settings_file.canonicalize()?,
            log_file: std::path::absolute(log_file)?,
            ops: HttpClient::new(ops),
            workers,
            child: None,
        };
        notifier.start()?;
        Ok(notifier)
    }

    fn start(&mut self) -> Result<(), NotifierError> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)?;
        let scratch = self.log_file.with_file_name("tmp");
        let mut command = Command::new(&self.binary);
        if let Some(workers) = self.workers {
            command.env("TOKIO_WORKER_THREADS", workers.to_string());
        }
        let child = command
            .current_dir(&scratch)
            .env("TMPDIR", &scratch)
            .arg("run")
            .arg("--settings")
            .arg(&self.settings_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal goes to the whole group; the lab ends its notifier itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(NotifierError::Start)?;
        self.child = Some(child);
        Ok(())
    }

    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Returns when `/health/ready` says 200.
    pub async fn wait_ready(&mut self, patience: Duration) -> Result<(), NotifierError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            if self
                .ops
                .get("/health/ready")
                .await
                .is_ok_and(|answer| answer.status == 200)
            {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                self.child = None;
                return Err(NotifierError::Ended {
                    status,
                    log: self.log_end(),
                });
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(NotifierError::NotReady { log: self.log_end() });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// SIGTERM, and the status it ends with. `None` if it was not running.
    pub async fn stop(&mut self, patience: Duration) -> Result<Option<ExitStatus>, NotifierError> {
        if let Some(process) = self.process_id() {
            system::ask_to_end(process);
        }
        self.wait(patience).await
    }

    /// The status it ends with; somebody else has asked it to. `None` if it was not running.
    pub async fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, NotifierError> {
        let Some(child) = self.child.as_mut() else {
            return Ok(None);
        };
        let status = tokio::time::timeout(patience, child.wait())
            .await
            .map_err(|_| NotifierError::DidNotEnd)??;
        self.child = None;
        Ok(Some(status))
    }

    /// SIGKILL: what a power cut leaves.
    pub async fn kill(&mut self) -> Result<(), NotifierError> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Starts again with the same settings and files; kills it first if it runs.
    pub async fn restart(&mut self, patience: Duration) -> Result<(), NotifierError> {
        self.kill().await?;
        self.start()?;
        self.wait_ready(patience).await
    }

    pub async fn metrics(&self) -> Result<Metrics, NotifierError> {
        let answer = self.ops.get("/metrics").await?;
        Ok(Metrics(String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// Memory in use now, bytes (`VmRSS`).
    pub fn resident_bytes(&self) -> Option<u64> {
        system::resident_bytes(self.process_id()?)
    }

    /// The most memory that was in use so far, bytes (`VmHWM`).
    pub fn most_resident_bytes(&self) -> Option<u64> {
        system::status_bytes(self.process_id()?, "VmHWM:")
    }

    /// Processor time used so far, of all threads.
    pub fn processor_time(&self) -> Option<Duration> {
        system::processor_time(self.process_id()?)
    }

    pub fn log_file(&self) -> &Path {
        &self.log_file
    }

    /// The last twenty lines.
    fn log_end(&self) -> String {
        let log = std::fs::read(&self.log_file).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(20))
            .copied()
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Metrics {
    pub fn from_text(text: String) -> Self {
        Self(text)
    }

    /// The sum over all label values; `None` if there is no such metric.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(name, "")
    }

    /// As `sum`, of the lines that contain `label`, such as `service="apns"`.
    pub fn sum_where(&self, name: &str, label: &str) -> Option<f64> {
        let values: Vec<f64> = self
            .0
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
            .filter_map(|rest| rest.rsplit_once(' ')?.1.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A program of this workspace: for a program the one beside it, for a test the optimised one if there is one, since that is what
/// people run.
pub fn find_program(name: &str) -> std::io::Result<Option<PathBuf>> {
    let this = std::env::current_exe()?;
    let beside = this.parent().unwrap_or(&this);
    let folders = match (beside.file_name(), beside.ancestors().nth(2)) {
        (Some(folder), Some(target)) if folder == "deps" => vec![target.join("release"), target.join("debug")],
        _ => vec![beside.to_owned()],
    };
    Ok(folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let metrics = Metrics("# TYPE a counter\na{b=\"c\"} 2\na{b=\"d\"} 3\nab 7\n".into());
        assert_eq!(metrics.sum("a"), Some(5.0));
        assert_eq!(metrics.sum_where("a", "b=\"d\""), Some(3.0));
        assert_eq!(metrics.sum("ab"), Some(7.0));
        assert_eq!(metrics.sum("missing"), None);
    }
}
