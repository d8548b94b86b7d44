//! What a seized disk holds of a notifier that works: nothing that names anybody, under a key that can be exchanged at any moment.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::notifier::Notifier;
use quietline_lab::phone::{Phone, PushService};
use quietline_notifier::keyring::{KeyId, file};
use quietline_notifier::sqlite::keys::{KeyUse, entered_in, in_file};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};

const PATIENCE: Duration = Duration::from_secs(60);
const FORTNIGHT: Duration = Duration::from_secs(14 * 24 * 3600);
const PHONES: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_a_busy_notifier_names_nobody_and_forgets_who_leaves() {
    let world = World::start(|settings| {
        settings
            .with("store.erase_after", "50ms")
            .with("outbox.erase_after", "50ms")
    })
    .await;
    // Wakeups that no provider takes stay in the outbox file.
    world.lab.set_providers_down(true);
    for phone in &world.phones {
        world.lab.send(phone, 0, b"a message for the outbox", FORTNIGHT);
    }
    until(|| async { world.rows("outbox.db").await >= PHONES as u64 }).await;
    assert_eq!(world.leaks(), Vec::<String>::new());

    let rows = world.sealed_rows().await;
    assert_eq!(rows.len(), PHONES);
    for phone in &world.phones {
        assert!(world.lab.unsubscribe(phone).await.unwrap().is_success());
    }
    assert_eq!(world.rows("subscriptions.db").await, 0);
    let wal = world.path("data/subscriptions.db-wal");
    until(|| async { std::fs::metadata(&wal).is_ok_and(|wal| wal.len() == 0) }).await;
    // Not a piece of any row is left, though nobody could read it.
    let after = std::fs::read(world.path("data/subscriptions.db")).unwrap();
    let pieces: HashSet<&[u8]> = rows.iter().flat_map(|row| row.chunks_exact(32)).collect();
    let left = after.windows(32).filter(|window| pieces.contains(window)).count();
    assert_eq!(left, 0);
    assert_eq!(world.leaks(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_key_is_exchanged_beside_a_notifier_that_works_all_the_while() {
    let mut world = World::start(|settings| settings).await;
    let old = world.key_ids();
    let old_line = world.key_file();
    let mut rotating = world.command("rotate-key").spawn().unwrap();
    // Subscriptions and wakeups go on until it has ended.
    let mut wakeups = 0;
    while rotating.try_wait().unwrap().is_none() {
        let phone = world.lab.phone(PushService::Apns);
        assert!(world.lab.subscribe(&phone).await.unwrap().is_success());
        world.phones.push(phone);
        world.wakes(wakeups % PHONES).await;
        wakeups += 1;
    }
    let output = rotating.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("moved by the notifier that runs"),
        "{}",
        text(&output.stdout)
    );
    let new = world.key_ids();
    assert_eq!(new.len(), 1);
    assert_ne!(new, old);
    assert!(!world.key_file().contains(old_line.trim()));
    world.is_all_under(new[0]).await;
    world.wakes(0).await;

    let check = world.command("check").output().await.unwrap();
    let said = text(&check.stdout);
    assert!(check.status.success(), "{said}");
    let rows = format!("subscriptions: {} rows under {}", world.phones.len(), new[0]);
    assert!(
        said.contains(&rows) && said.contains(&format!("row keys: {}", new[0])),
        "{said}"
    );

    world.lab.stop_notifier(PATIENCE).await.unwrap();
    world.lab.start_notifier().await.unwrap();
    world.wakes(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_the_middle_of_an_exchange_lose_nothing_and_it_goes_on() {
    let mut world = World::start(|settings| settings).await;
    let old = world.key_ids();
    // The command dies as soon as the new key is in the file, the notifier when it has begun to use it.
    let mut rotating = world.command("rotate-key").spawn().unwrap();
    until(|| async { world.key_ids().len() == 2 }).await;
    kill(&mut rotating).await;
    let during = world.key_ids();
    assert_eq!(during[1], old[0]);
    world.lab.notifier().kill().await.unwrap();
    let check = world.command("check").output().await.unwrap();
    assert!(
        text(&check.stdout).contains("run rotate-key again"),
        "{}",
        text(&check.stdout)
    );

    // No notifier runs: the command does it alone, and it is the same new key.
    let output = world.command("rotate-key").output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("goes on"), "{}", text(&output.stdout));
    assert_eq!(world.key_ids(), during[..1]);
    world.is_all_under(during[0]).await;

    world.lab.start_notifier().await.unwrap();
    for number in 0..PHONES {
        world.wakes(number).await;
    }
    assert_eq!(world.rows("subscriptions.db").await, PHONES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_row_key_ends_the_start_with_its_name_and_deletes_nothing() {
    let mut world = World::start(|settings| settings).await;
    world.lab.stop_notifier(PATIENCE).await.unwrap();
    let (key, before) = (world.key_file(), world.kept());
    let wrong: Vec<u8> = (0..32).map(|n| n * 7 + 3).collect();
    std::fs::write(world.path("keys/rows"), hex::encode(wrong)).unwrap();
    let output = world.command("run").output().await.unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("[store]") && said.contains("row_key_file"), "{said}");
    assert!(world.kept() == before, "the refused start changed a file");

    std::fs::write(world.path("keys/rows"), key).unwrap();
    world.lab.start_notifier().await.unwrap();
    world.wakes(0).await;
    // One that comes while it runs is not taken either.
    std::fs::write(world.path("keys/rows"), "no key").unwrap();
    until(|| async { world.metric("keyring_refused_total").await >= 1.0 }).await;
    world.wakes(1).await;
}

// ---- Helpers

struct World {
    lab: Lab,
    phones: Vec<Phone>,
    messages: AtomicU64,
    _folder: TempDir,
}

impl World {
    async fn start(change: impl FnOnce(LabSettings) -> LabSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = LabSettings {
            swarms: 2,
            nodes_per_swarm: 3,
            ..LabSettings::in_folder(folder.path().join("lab"))
        };
        let mut lab = Lab::surround(change(settings)).unwrap();
        lab.start_notifier().await.unwrap();
        let mut phones = Vec::new();
        for number in 0..PHONES {
            let phone = lab.phone(PushService::ALL[number % 2]);
            assert!(lab.subscribe(&phone).await.unwrap().is_success());
            phones.push(phone);
        }
        for phone in &phones {
            lab.wait_watched(phone, 3, PATIENCE).await.unwrap();
        }
        Self {
            lab,
            phones,
            messages: AtomicU64::new(0),
            _folder: folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.settings.folder.join(name)
    }

    fn key_file(&self) -> String {
        hex_or_text(&std::fs::read(self.path("keys/rows")).unwrap())
    }

    fn key_ids(&self) -> Vec<KeyId> {
        file::read(&self.path("keys/rows")).unwrap().ids()
    }

    fn command(&self, command: &str) -> Command {
        let mut line = Command::new(Notifier::find_binary(None).unwrap());
        line.arg(command)
            .arg("--settings")
            .arg(self.lab.settings_file())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        line
    }

    /// A message for this phone arrives.
    async fn wakes(&self, number: usize) {
        let phone = &self.phones[number];
        // The same text would be the same message.
        let text = format!("message {}", self.messages.fetch_add(1, Ordering::Relaxed));
        let sent = self.lab.send(phone, 0, text.as_bytes(), FORTNIGHT);
        assert_eq!(self.lab.next_delivery(phone, PATIENCE).await.unwrap().1.hash, sent.hash);
    }

    async fn metric(&self, name: &str) -> f64 {
        let answer = quietline_lab::http::HttpClient::new(self.lab.ops_address())
            .get("/metrics")
            .await;
        let body = answer.map(|answer| answer.body).unwrap_or_default();
        let lines = text(&body);
        let values = lines.lines().filter(|line| line.starts_with(name));
        values
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    async fn rows(&self, database: &str) -> u64 {
        let uses = in_file(&self.path("data").join(database)).await.unwrap();
        uses.iter().map(|known| known.rows).sum()
    }

    async fn sealed_rows(&self) -> Vec<Vec<u8>> {
        let options = SqliteConnectOptions::new()
            .filename(self.path("data/subscriptions.db"))
            .read_only(true);
        let mut file = options.connect().await.unwrap();
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as("SELECT row FROM subscription")
            .fetch_all(&mut file)
            .await
            .unwrap();
        file.close().await.unwrap();
        rows.into_iter().map(|(row,)| row).collect()
    }

    async fn is_all_under(&self, key: KeyId) {
        for database in ["subscriptions.db", "outbox.db"] {
            let path = self.path("data").join(database);
            assert_eq!(entered_in(&path).await.unwrap(), [key], "{database}");
            let uses: Vec<KeyUse> = in_file(&path).await.unwrap();
            assert!(uses.iter().all(|known| known.key == Some(key)), "{database}: {uses:?}");
        }
    }

    /// Everything under data/.
    fn files(&self) -> Vec<u8> {
        self.read(|_| true)
    }

    /// Without the memory that SQLite's connections share: who ends at once leaves it there, and nothing of it outlives them.
    fn kept(&self) -> Vec<u8> {
        self.read(|name| !name.ends_with("-shm"))
    }

    fn read(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<u8> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(self.path("data"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| is_wanted(&path.to_string_lossy()))
            .collect();
        names.sort();
        names.iter().flat_map(|name| std::fs::read(name).unwrap()).collect()
    }

    /// Accounts, tokens and keys that stand in the files, in any usual spelling.
    fn leaks(&self) -> Vec<String> {
        let files = self.files();
        let lower = files.to_ascii_lowercase();
        let found = |text: &[u8]| {
            let within = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            within(&files) || within(&lower)
        };
        let mut leaks = Vec::new();
        for (number, phone) in self.phones.iter().enumerate().step_by(PHONES / 8) {
            let token = hex::decode(&phone.token).unwrap_or_else(|_| phone.token.clone().into_bytes());
            let secrets: [(&str, &[u8]); 3] = [
                ("account", phone.account()),
                ("token", &token),
                ("wakeup key", &phone.enc_key),
            ];
            for (what, secret) in secrets {
                let reversed: Vec<u8> = secret.iter().rev().copied().collect();
                let encoded = STANDARD_NO_PAD.encode(&secret[..secret.len() / 3 * 3]);
                for spelling in [secret, &reversed, hex::encode(secret).as_bytes(), encoded.as_bytes()] {
                    if found(spelling) {
                        leaks.push(format!("{what} of phone {number}"));
                    }
                }
            }
        }
        leaks
    }
}

async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let search = async {
        while !is_so().await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, search)
        .await
        .expect("it comes so in time");
}

async fn kill(child: &mut Child) {
    child.start_kill().unwrap();
    child.wait().await.unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lab writes raw keys, the notifier hex.
fn hex_or_text(bytes: &[u8]) -> String {
    if bytes.len() == 32 {
        hex::encode(bytes)
    } else {
        text(bytes)
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(10);
