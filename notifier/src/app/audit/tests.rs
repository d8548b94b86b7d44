use super::*;
use notifier_core::account::DeviceToken;
use notifier_core::seal::{Class, Priority};
use quietline_shared::service::audit::{Key, KeyState};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions, SqliteConnection};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const NOW: i64 = 1_800_000_000;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let key = home.path("lookup");
        fs::write(&key, "34da8c748c213aaee9afb2e6cc4cf3898a9b64326fca6ea532db86adc85cb49c").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn view(&self) -> View {
        View {
            ops: SocketAddr::from(([127, 0, 0, 1], 9)),
            store: self.path("subscriptions.db"),
            outbox: self.path("outbox.db"),
            node_list: self.path("nodes.json"),
            keys: vec![KeyFile {
                name: "store.lookup_key_file",
                purpose: "names of rows",
                path: self.path("lookup"),
                kind: KeyKind::Rows,
            }],
            services: vec![
                (Service::Firebase, Duration::ZERO),
                (Service::Apns, Duration::from_secs(5)),
            ],
            padding: Padding::TwoClasses,
            log: Level::Info,
            metrics_period: Duration::from_secs(60),
            direct: false,
            nodes_per_swarm: 3,
            dedupe_window: Duration::from_secs(3_600),
            erase_after: Duration::from_secs(30),
        }
    }

    async fn open(&self, name: &str) -> SqliteConnection {
        let options = SqliteConnectOptions::new()
            .filename(self.path(name))
            .create_if_missing(true);
        options.journal_mode(SqliteJournalMode::Wal).connect().await.unwrap()
    }

    /// So many subscriptions under each key; 0 is none.
    async fn subscriptions(&self, rows: &[(i64, usize)]) -> SqliteConnection {
        let mut file = self.open("subscriptions.db").await;
        let schema = include_str!("../../../../migrations/sqlite/store/0001_subscriptions.sql");
        sqlx::raw_sql(schema).execute(&mut file).await.unwrap();
        for (key, count) in rows {
            for _ in 0..*count {
                sqlx::query("INSERT INTO subscription VALUES (randomblob(32), 20000, ?, randomblob(300))")
                    .bind(key)
                    .execute(&mut file)
                    .await
                    .unwrap();
            }
        }
        file
    }
}

fn live(dumpable: u8) -> Live {
    let id = std::process::id();
    Live::from_text(format!(
        "service_process_id {id}\nservice_dumpable {dumpable}\nfanout_accounts 30\nfanout_devices 41\noutbox_entries{{a=\"b\"}} 2\n"
    ))
}

fn fact<'a>(audit: &'a Audit, what: &str) -> &'a Fact {
    audit.facts.iter().find(|fact| fact.what == what).unwrap()
}

fn told(audit: &Audit, who: Who) -> (String, String) {
    let found = audit.adversaries.iter().find(|adversary| adversary.who == who).unwrap();
    (found.learns.join("\n"), found.does_not_learn.join("\n"))
}

#[tokio::test]
async fn rows_in_plain_are_told_as_rows_in_plain() {
    let home = Home::new();
    let _open = home.subscriptions(&[(0, 3), (0xC0FFEE, 25)]).await;
    let audit = audit(&home.view(), Some(&live(0)), Scale::Exact, NOW).await;
    let rows = audit.held.iter().find(|holding| holding.what == SUBSCRIPTIONS).unwrap();
    let sealed = Protection::Sealed {
        key: "00c0ffee".to_owned(),
    };
    let counted: Vec<_> = rows
        .groups
        .iter()
        .map(|group| (&group.protection, group.count))
        .collect();
    assert_eq!(counted, [(&Protection::Plain, Some(3)), (&sealed, Some(25))]);
    assert_eq!(fact(&audit, "rows on disk").good, Some(false));
    let (disk, not_disk) = told(&audit, Who::Disk);
    assert!(disk.contains("3 subscriptions in plain"), "{disk}");
    assert!(not_disk.contains("what 25 sealed subscriptions hold"), "{not_disk}");
    let (with_key, _) = told(&audit, Who::DiskAndKey);
    assert!(with_key.contains("28 subscriptions"), "{with_key}");
    let (memory, _) = told(&audit, Who::Memory);
    assert!(memory.contains("30 accounts and 41 devices"), "{memory}");
}

#[tokio::test]
async fn sealed_rows_beside_their_key_are_told_as_one_theft() {
    let home = Home::new();
    let _open = home.subscriptions(&[(7, 30)]).await;
    let audit = audit(&home.view(), Some(&live(0)), Scale::Rounded, NOW).await;
    assert_eq!(fact(&audit, "rows on disk").good, Some(true));
    assert_eq!(fact(&audit, "keys and rows").good, Some(false));
    let (disk, not_disk) = told(&audit, Who::Disk);
    assert!(disk.contains("the keys, which lie on the same disk"), "{disk}");
    assert!(not_disk.contains("about 30 sealed subscriptions"), "{not_disk}");
    assert!(!disk.contains("in plain"), "{disk}");
    let key: &Key = &audit.keys[0];
    assert_eq!((key.state, key.beside_data), (KeyState::OwnerOnly, Some(true)));
}

#[tokio::test]
async fn a_row_that_can_be_read_is_in_plain_whatever_its_column_says() {
    let home = Home::new();
    let mut file = home.open("outbox.db").await;
    let schema = include_str!("../../../../migrations/sqlite/outbox/0001_outbox.sql");
    sqlx::raw_sql(schema).execute(&mut file).await.unwrap();
    let sealed = Sealed {
        service: Service::Apns,
        token: DeviceToken::new(*b"token"),
        body: Box::new([7; 552]),
        fallback: None,
        class: Class::Visible,
        priority: Priority::High,
        expires_at_ms: 1,
    };
    sqlx::query("INSERT INTO entry VALUES (1, 1, 2, 3, 0, randomblob(16), 0, 77, ?)")
        .bind(sealed.encode_row())
        .execute(&mut file)
        .await
        .unwrap();
    let audit = audit(&home.view(), None, Scale::Exact, NOW).await;
    let entries = audit.held.iter().find(|holding| holding.what == WAKEUPS).unwrap();
    assert_eq!(entries.count(|kept| *kept == Protection::Plain), Some(1));
    let marks = audit.held.iter().find(|holding| holding.what == MARKS).unwrap();
    assert_eq!(marks.groups[0].protection, Protection::KeyedHash);
    let (disk, _) = told(&audit, Who::Disk);
    assert!(disk.contains("1 wakeups in plain"), "{disk}");
}

#[tokio::test]
async fn what_an_earlier_version_left_and_a_sealed_node_list_are_told_apart() {
    let home = Home::new();
    let mut file = home.subscriptions(&[(0, 4)]).await;
    sqlx::raw_sql(
        "ALTER TABLE subscription RENAME TO plain_subscription;
         CREATE TABLE subscription (lookup INTEGER PRIMARY KEY, expires_day INTEGER, key_id INTEGER, row BLOB);
         INSERT INTO subscription VALUES (1, 20000, 5, randomblob(556));
         CREATE TABLE sealing_key (id INTEGER PRIMARY KEY);
         INSERT INTO sealing_key VALUES (5);",
    )
    .execute(&mut file)
    .await
    .unwrap();
    fs::write(home.path("nodes.json"), [1, 0xDE, 0xAD, 0xBE, 0xEF, 7, 7]).unwrap();
    let found = audit(&home.view(), None, Scale::Exact, NOW).await;
    assert_eq!(plain_and_sealed(&found, SUBSCRIPTIONS), (Some(4), Some(1)));
    let nodes = |audit: &Audit| {
        let list = audit
            .held
            .iter()
            .find(|holding| holding.what == "The list of storage nodes")
            .unwrap();
        list.groups.first().map(|group| group.protection.words())
    };
    assert_eq!(nodes(&found).as_deref(), Some("sealed under row key deadbeef"));
    assert!(found.held.iter().any(|holding| holding.what == "Names of row keys"));
    assert!(!found.held.iter().any(|holding| holding.what.contains("does not know")));
    fs::write(home.path("nodes.json"), "{}").unwrap();
    let found = audit(&home.view(), None, Scale::Exact, NOW).await;
    assert_eq!(nodes(&found).as_deref(), Some("public anyway"));
}

#[tokio::test]
async fn what_deleted_rows_left_is_looked_for_in_the_files() {
    let home = Home::new();
    let mut file = home.subscriptions(&[(7, 300)]).await;
    let erased = |audit: &Audit| ["free pages", "logs of changes"].map(|what| fact(audit, what).good);
    let running = audit(&home.view(), Some(&live(0)), Scale::Rounded, NOW).await;
    assert_eq!(erased(&running), [Some(true), Some(true)]);
    assert!(told(&running, Who::DiskAndKey).0.contains("within the last 30s"));
    // Nobody empties it.
    let stopped = audit(&home.view(), None, Scale::Exact, NOW).await;
    assert_eq!(erased(&stopped), [Some(true), Some(false)]);
    let said = &fact(&stopped, "logs of changes").says;
    assert!(said.contains("no process runs") && said.contains("bytes"), "{said}");
    assert!(
        told(&stopped, Who::DiskAndKey)
            .0
            .contains("still in free pages or in the logs")
    );

    // Not overwritten, as without secure_delete.
    for sql in [
        "PRAGMA secure_delete = OFF",
        "DELETE FROM subscription",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ] {
        sqlx::raw_sql(sql).execute(&mut file).await.unwrap();
    }
    let found = audit(&home.view(), Some(&live(0)), Scale::Exact, NOW).await;
    assert_eq!(erased(&found), [Some(false), Some(true)]);
    let public = audit(&home.view(), Some(&live(0)), Scale::Rounded, NOW).await;
    assert_eq!(fact(&public, "free pages").says, "some hold what was deleted");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_taken_for_plain_and_for_unknown() {
    let home = Home::new();
    fs::write(home.path("subscriptions.db"), [7; 4096]).unwrap();
    let audit = audit(&home.view(), None, Scale::Exact, NOW).await;
    assert_eq!(fact(&audit, "rows on disk").good, None);
    let (disk, _) = told(&audit, Who::Disk);
    assert!(disk.contains("could not be read"), "{disk}");
}

#[tokio::test]
async fn a_notifier_that_does_not_run_and_has_nothing_holds_nothing() {
    let home = Home::new();
    let audit = audit_now(&home.view()).await;
    assert!(!audit.running);
    assert_eq!(
        audit.held.iter().map(|holding| holding.what).collect::<Vec<_>>(),
        ["The list of storage nodes"]
    );
    assert!(told(&audit, Who::Memory).0.starts_with("nothing"));
    assert_eq!(fact(&audit, "the process").good, None);
}

#[tokio::test]
async fn settings_that_tell_more_are_told() {
    let home = Home::new();
    let quiet = audit(&home.view(), Some(&live(0)), Scale::Exact, NOW).await;
    assert_eq!(fact(&quiet, "metrics").good, Some(true));
    assert_eq!(fact(&quiet, "TLS to push services").good, Some(true));
    assert_eq!(fact(&quiet, "TLS to seeds").good, Some(true));
    let (provider, _) = told(&quiet, Who::Provider);
    assert!(
        provider.contains("firebase: of each wakeup its token, its moment, one of two sizes"),
        "{provider}"
    );
    assert!(
        provider.contains("apns: of each wakeup its token, its moment, up to 5s late"),
        "{provider}"
    );

    let view = View {
        metrics_period: Duration::ZERO,
        log: Level::Trace,
        direct: true,
        padding: Padding::Upstream,
        ..home.view()
    };
    fs::set_permissions(home.path("lookup"), fs::Permissions::from_mode(0o640)).unwrap();
    let loud = audit(&view, Some(&live(1)), Scale::Exact, NOW).await;
    for what in ["metrics", "key files", "access by other processes"] {
        assert_eq!(fact(&loud, what).good, Some(false), "{what}");
    }
    let (logs, _) = told(&loud, Who::Logs);
    for part in ["at the moment it happens", "finer than usual", "log of a proxy"] {
        assert!(logs.contains(part), "{part}: {logs}");
    }
    assert!(told(&loud, Who::Provider).0.contains("its size to 256 bytes"));
}
