//! A checkpoint in two parts, so that commits do not wait for the large one. A tool, not a stage.
//!
//! In: how much was written. Out: when the writer should make the small part. Never: writes anything new.
//!
//! A task with a connection of its own copies what stands in the WAL into the file while commits go on (SQLite's PASSIVE checkpoint, which
//! blocks nobody), and once more what came meanwhile. The few pages that are left are the writer's: it copies them between two commits, and
//! only then can the WAL begin anew (<https://www.sqlite.org/wal.html>, "Checkpointing"). This needs SQLite 3.51.3 or later, which a test of
//! sqlite.rs holds.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Rows written between two copies: a WAL of about 12 MiB, where each row is on a page of its own.
pub const COPY_EVERY: usize = 2_048;

#[derive(Debug)]
pub struct Copier {
    starts: mpsc::Sender<()>,
    ends: mpsc::Receiver<()>,
    task: JoinHandle<()>,
    is_running: bool,
    changes: usize,
}

/// What the writer does now.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// The large part is done.
    End,
}

impl Copier {
    pub fn start(options: SqliteConnectOptions) -> Self {
        let (starts, mut wishes) = mpsc::channel(1);
        let (done, ends) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            // Pages do not go through its cache.
            let Ok(mut connection) = options.pragma("cache_size", "-64").connect().await else {
                return;
            };
            while wishes.recv().await.is_some() {
                for _ in 0..PASSES {
                    // A fault of the disk shows at the commits.
                    let _ = sqlx::query(COPY).execute(&mut connection).await;
                }
                if done.send(()).await.is_err() {
                    break;
                }
            }
            let _ = connection.close().await;
        });
        Self {
            starts,
            ends,
            task,
            is_running: false,
            changes: 0,
        }
    }

    /// After a commit of so many rows; `is_due` if a copy is wanted now.
    pub fn step(&mut self, changes: usize, is_due: bool) -> Step {
        self.changes = self.changes.saturating_add(changes);
        if self.is_running {
            match self.ends.try_recv() {
                Err(mpsc::error::TryRecvError::Empty) => return Step::Wait,
                // Without a task the writer does it all.
                Ok(()) | Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.is_running = false;
                    return Step::End;
                }
            }
        }
        if self.changes < COPY_EVERY && !is_due {
            return Step::Wait;
        }
        self.changes = 0;
        self.is_running = self.starts.try_send(()).is_ok();
        if self.is_running { Step::Wait } else { Step::End }
    }

    #[cfg(test)]
    pub const fn is_running(&self) -> bool {
        self.is_running
    }

    /// Ends the task and its connection, so that the writer is the last one.
    pub async fn close(self) {
        drop(self.starts);
        drop(self.ends);
        let _ = self.task.await;
    }
}

const COPY: &str = "PRAGMA wal_checkpoint(PASSIVE)";

/// The second copies what was written during the first.
const PASSES: u32 = 2;
