//! The lab around one notifier, everything marked that went in, everything gathered that came out.

use crate::PATIENCE;
use crate::files;
use crate::search::{Search, Sinks};
use quietline_lab::http::HttpClient;
use quietline_lab::keys::write_secret;
use quietline_lab::lab::{Lab, LabSettings, Sent};
use quietline_lab::notifier::Metrics;
use quietline_lab::onion::Cipher;
use quietline_lab::phone::{Phone, send_onion, unix_seconds};
use quietline_lab::provider::Delivery;
use quietline_lab::settings::turn_server;
use quietline_lab::sodium;
use serde_json::Value;
use sqlx::{Connection, Row};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

/// Messages live as long as the clients' do.
const FORTNIGHT: Duration = Duration::from_secs(14 * 24 * 3600);

pub struct World {
    pub lab: Lab,
    pub values: Search,
    /// Addresses of the nodes: private everywhere but in the kept node list, which is public.
    places: Search,
    pub sinks: Sinks,
    ops: HttpClient,
    next_client: u8,
    ciphers: usize,
    pushes: Arc<Mutex<Vec<Delivery>>>,
}

impl World {
    pub async fn start(folder: &Path, format: &str, seeds: usize) -> Self {
        let mut settings = LabSettings::in_folder(folder.join("lab"))
            .with("log.level", "trace")
            .with("log.format", format)
            .with("dispatch.timeout", "10s")
            .with("http.request_timeout", "10s")
            .with("http.direct_rate", 1000)
            .with("lifecycle.drain", "2s")
            .with("event.hold_for", "1s");
        settings.swarms = 2;
        settings.nodes_per_swarm = 3;
        settings.seeds = seeds;
        settings.ready_within = PATIENCE;
        crate::crash::allow_core_dumps(folder);
        let mut lab = Lab::surround(settings).unwrap();
        let relay = ["turn:turn.example.org:3478?transport=udp".to_owned()];
        let mut servers = Vec::new();
        let mut relay_secrets = Vec::new();
        for number in 0..2 {
            let (file, secret) = (format!("keys/turn-{number}"), hex::encode(sodium::random::<32>()));
            write_secret(&lab.settings.folder.join(&file), secret.as_bytes()).unwrap();
            servers.push(turn_server(&format!("operator {number}"), &relay, &file));
            relay_secrets.push(secret);
        }
        let servers = toml::Value::Array(servers);
        lab.settings.overrides.push(("turn.server".to_owned(), servers));
        lab.write_settings().unwrap();
        lab.start_notifier().await.unwrap();
        let pushes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&pushes);
        assert!(
            lab.deliveries
                .observe(move |push| kept.lock().unwrap().push(push.clone()))
        );
        let mut world = Self {
            ops: HttpClient::new(lab.ops_address()),
            values: Search::default(),
            places: Search::default(),
            sinks: Sinks::default(),
            next_client: 0,
            ciphers: 0,
            pushes,
            lab,
        };
        world.mark_keys();
        for secret in relay_secrets {
            world.values.mark("secret of a relay", secret.as_bytes());
        }
        for (number, node) in world.lab.fleet.addresses().iter().enumerate() {
            let address = format!("127.0.0.1:{}", node.port);
            world
                .places
                .mark(format!("address of node {number}"), address.as_bytes());
            world
                .values
                .mark_bytes(&format!("key of node {number}"), &node.public_key);
        }
        world
    }

    fn mark_keys(&mut self) {
        let folder = self.lab.keys.folder.clone();
        for name in ["onion", "lookup", "rows", "link", "vapid"] {
            let key = std::fs::read(folder.join(name)).unwrap();
            self.values.mark_bytes(&format!("key {name}"), &key);
        }
        let secret = std::fs::read(folder.join("huawei.secret")).unwrap();
        self.values.mark("Huawei secret", &secret);
        let firebase: Value = serde_json::from_slice(&std::fs::read(folder.join("firebase.json")).unwrap()).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        for (name, pem) in [
            ("APNs key", read("apns.p8")),
            ("APNs certificate's key", read("apns-key.pem")),
            // Huawei's service account has the same.
            ("Firebase key", firebase["private_key"].as_str().unwrap().to_owned()),
        ] {
            let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            let der = base64_decode(&text);
            // What stands before the secret itself is the same in every such file.
            let secret = &der[36.min(der.len() - 32)..];
            self.values.mark(name, secret);
            self.values.mark(format!("{name}, base64 text"), &text.as_bytes()[48..]);
        }
    }

    pub fn mark_phone(&mut self, name: &str, phone: &Phone) {
        self.values.mark_bytes(&format!("account of {name}"), phone.account());
        if let Some(key) = phone.session_ed25519() {
            self.values.mark_bytes(&format!("Ed25519 key of {name}"), key);
        }
        self.values.mark_bytes(&format!("enc_key of {name}"), &phone.enc_key);
        self.values.mark(format!("token of {name}"), phone.token.as_bytes());
        if let Some(reader) = phone.reader() {
            self.values.mark_bytes(&format!("p256dh of {name}"), &reader.public);
            self.values.mark_bytes(&format!("auth of {name}"), &reader.auth);
            let id = reader.endpoint.rsplit('/').next().unwrap();
            self.values
                .mark(format!("endpoint of {name}, its last part"), id.as_bytes());
        }
        if let Ok(token) = hex::decode(&phone.token) {
            self.values.mark(format!("token of {name}, raw"), &token);
        }
    }

    /// What a request adds to what its phone is marked with.
    pub fn mark_item(&mut self, name: &str, item: &Value) {
        for field in ["signature", "subaccount_sig", "binding"] {
            if let Some(text) = item[field].as_str() {
                self.values
                    .mark(format!("{field} of {name}, base64 text"), text.as_bytes());
                self.values.mark(format!("{field} of {name}"), &base64_decode(text));
            }
        }
        if let Some(tag) = item["subaccount"].as_str() {
            self.values
                .mark(format!("subaccount of {name}, hex text"), tag.as_bytes());
        }
    }

    pub fn mark_message(&mut self, name: &str, hash: &str, body: &[u8]) {
        self.values.mark(format!("hash of {name}"), hash.as_bytes());
        self.values.mark(format!("hash of {name}, raw"), &base64_decode(hash));
        if body.len() >= 16 {
            self.values.mark(format!("body of {name}"), body);
        }
    }

    /// A phone that is subscribed and watched.
    pub async fn subscribed(&mut self, name: &str, phone: Phone) -> Phone {
        self.mark_phone(name, &phone);
        let item = phone.subscribe_item(unix_seconds());
        self.mark_item(name, &item);
        let answer = self.onion("/subscribe", &item).await;
        assert_eq!(answer["success"], true, "{name}: {answer}");
        let watched = self.lab.wait_watched(&phone, 1, PATIENCE).await;
        assert!(watched.is_some(), "{name} is watched");
        phone
    }

    pub async fn onion(&mut self, endpoint: &str, request: &Value) -> Value {
        self.ciphers += 1;
        let cipher = Cipher::BOTH[self.ciphers % 2];
        let answer = send_onion(&self.lab.http, &self.lab.keys.onion_public, cipher, endpoint, request)
            .await
            .unwrap();
        let reply = answer.reply.expect("the reply opens");
        self.sinks.add("answers", &reply.body);
        serde_json::from_slice(&reply.body).unwrap_or_default()
    }

    /// Sends raw bytes from an address of its own and gives what came back; the end of our half is said when `ends`.
    pub async fn direct_bytes(&mut self, request: &[u8], ends: bool) -> Vec<u8> {
        self.next_client = self.next_client.wrapping_add(1);
        let address = Ipv4Addr::new(127, 77, 201, self.next_client.max(1));
        self.values.mark_address(&format!("client {address}"), address);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((address, 0))).unwrap();
        let mut stream = socket.connect(self.lab.http_address()).await.unwrap();
        let _ = stream.write_all(request).await;
        if ends {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("a connection has an end");
        self.sinks.add("answers", &answer);
        answer
    }

    /// A direct request; status and body.
    pub async fn direct(&mut self, endpoint: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let forwarded = Ipv4Addr::new(203, 0, 113, self.next_client);
        self.values
            .mark_address(&format!("forwarded client {forwarded}"), forwarded);
        let mut request = format!(
            "POST {endpoint} HTTP/1.1\r\nHost: quietline.example\r\nX-Forwarded-For: {forwarded}\r\n{headers}\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let answer = self.direct_bytes(&request, false).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
        (
            status,
            text.split_once("\r\n\r\n")
                .map_or(String::new(), |(_, body)| body.to_owned()),
        )
    }

    pub fn send(&mut self, name: &str, phone: &Phone, namespace: i16, length: usize) -> Sent {
        let body = quietline_lab::sodium::random::<4000>()[..length].to_vec();
        let sent = self.lab.send(phone, namespace, &body, FORTNIGHT);
        self.mark_message(name, &sent.hash, &body);
        sent
    }

    /// Sends one message and waits for the push.
    pub async fn wake(&mut self, name: &str, phone: &Phone, namespace: i16, length: usize) {
        let sent = self.send(name, phone, namespace, length);
        loop {
            let (_, message) = self
                .lab
                .next_delivery(phone, PATIENCE)
                .await
                .unwrap_or_else(|| panic!("{name} arrives"));
            if message.hash == sent.hash {
                return;
            }
        }
    }

    pub async fn metrics(&mut self) -> Metrics {
        self.lab.notifier().metrics().await.unwrap()
    }

    /// Waits until the sum over the lines of `metric` that contain `label` is at least `least`.
    pub async fn wait_metric(&mut self, metric: &str, label: &str, least: f64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics().await;
            if metrics.sum_where(metric, label).unwrap_or(0.0) >= least {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{metric} {label} does not reach {least}:\n{}",
                metrics
                    .text()
                    .lines()
                    .filter(|line| !line.contains("_bucket") && !line.ends_with(" 0") && !line.starts_with("#"))
                    .collect::<Vec<_>>()
                    .join("\n")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the sources of the node list gave `least` answers that are none.
    pub async fn wait_failed_lists(&mut self, least: f64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics().await;
            let all = metrics.sum("watch_node_list_answers_total").unwrap_or(0.0);
            let good = metrics
                .sum_where("watch_node_list_answers_total", "outcome=\"ok\"")
                .unwrap_or(0.0);
            if all - good >= least {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "a bad node list is noticed:\n{}",
                metrics.text()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks everything that may be asked.
    pub async fn look(&mut self) {
        for path in ["/metrics", "/health/live", "/health/ready"] {
            let answer = self.ops.get(path).await.unwrap();
            // A node that is away may keep accounts uncovered for a while.
            assert!(
                answer.status == 200 || (path, answer.status) == ("/health/ready", 503),
                "{path}"
            );
            self.sinks.add(path, &answer.body);
            assert!(!String::from_utf8_lossy(&answer.body).contains("service_panics_total 1"));
        }
        let info = self.lab.http.get("/info").await.unwrap();
        self.sinks.add("/info", &info.body);
        let page = self.lab.http.get("/transparency").await.unwrap();
        assert_eq!(page.status, 200);
        self.sinks.add("/transparency", &page.body);
        for form in [&[][..], &["--json"]] {
            let binary = quietline_lab::notifier::Notifier::find_binary(None).unwrap();
            let audit = std::process::Command::new(binary)
                .arg("audit")
                .args(form)
                .arg("--settings")
                .arg(self.lab.settings_file())
                .output()
                .unwrap();
            assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stderr));
            self.sinks.add("audit", [audit.stdout, audit.stderr].concat());
        }
        let process = self.lab.notifier().process_id().unwrap();
        self.sinks.add(
            "command line",
            std::fs::read(format!("/proc/{process}/cmdline")).unwrap(),
        );
        for task in std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
            self.sinks.add(
                "names of threads",
                std::fs::read(task.path().join("comm")).unwrap_or_default(),
            );
        }
        for file in files::nameless(process) {
            self.sinks.add("files without a name", file);
        }
        self.gather_databases("while it runs");
    }

    /// The databases, their logs, shared memory and free pages, and the kept node list, byte by byte.
    fn gather_databases(&mut self, when: &str) {
        let data = self.lab.settings.folder.join("data");
        for name in files::below(&data) {
            // Its writer may take a log away at any time.
            let bytes = std::fs::read(data.join(&name)).unwrap_or_default();
            self.sinks.add(format!("raw {name} {when}"), bytes);
        }
    }

    /// After the notifier ended: everything it left.
    pub async fn gather(mut self) -> (Sinks, Search) {
        let folder = self.lab.settings.folder.clone();
        let log = std::fs::read(folder.join("notifier.log")).unwrap();
        assert!(
            !String::from_utf8_lossy(&log).contains("panicked"),
            "{}",
            String::from_utf8_lossy(&log)
        );
        self.sinks.add("log", &log);
        self.gather_columns(&folder.join("data")).await;
        self.gather_pushes();
        let left = files::below(&folder);
        let ours = |name: &str| {
            name.starts_with("keys/") || [".quietline-lab", "notifier.toml", "notifier.log"].contains(&name)
        };
        let mut names = String::new();
        for name in left.iter().filter(|name| !ours(name)) {
            let _ = writeln!(names, "{name}");
            if *name != "oxend.sock" {
                self.sinks
                    .add(format!("file {name}"), std::fs::read(folder.join(name)).unwrap());
            }
        }
        self.sinks.add("names of files", names);
        assert!(
            !left.iter().any(|name| name.starts_with("tmp/")),
            "temporary files stay: {left:?}"
        );
        let leaks = self.sinks.leaks(&self.places);
        assert!(leaks.is_empty(), "{}", leaks.join("\n"));
        (self.sinks, self.values)
    }

    /// Every column of every table.
    async fn gather_columns(&mut self, folder: &Path) {
        for (file, table, columns_of_rows) in [
            (
                "subscriptions.db",
                "subscription",
                ["lookup", "expires_day", "key_id", "row"].as_slice(),
            ),
            ("outbox.db", "entry", &["id", "expires_day", "key_id", "head", "row"]),
        ] {
            let path = folder.join(file);
            let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", path.display()))
                .await
                .unwrap();
            let tables = sqlx::query(
                "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'",
            )
            .fetch_all(&mut database)
            .await
            .unwrap();
            let columns: Vec<(String, String)> = tables.iter().map(|row| (row.get(0), row.get(1))).collect();
            let found: Vec<_> = columns
                .iter()
                .filter(|(of, _)| of == table)
                .map(|(_, name)| name.as_str())
                .collect();
            assert_eq!(found, columns_of_rows, "a new column needs a look at what stands in it");
            for (table, column) in &columns {
                let query = format!("SELECT CAST(\"{column}\" AS BLOB) FROM \"{table}\"");
                let rows = sqlx::query(sqlx::AssertSqlSafe(query))
                    .fetch_all(&mut database)
                    .await
                    .unwrap();
                if table == "subscription" {
                    assert!(rows.len() > 20, "{} subscriptions are left", rows.len());
                }
                for row in rows {
                    let bytes: Option<Vec<u8>> = row.get(0);
                    self.sinks.add("columns", bytes.unwrap_or_default());
                }
            }
        }
    }

    /// What the providers were told besides the token and the wakeup itself.
    fn gather_pushes(&mut self) {
        let pushes = std::mem::take(&mut *self.pushes.lock().unwrap());
        assert!(pushes.len() > 50, "{} pushes", pushes.len());
        let mut credentials = Vec::new();
        for mut push in pushes {
            for (name, value) in &push.headers {
                if name == "authorization" {
                    credentials.push(value.clone());
                } else {
                    self.sinks.add("providers", format!("{name}: {value}"));
                }
            }
            for path in ["/enc_payload", "/message/data/enc_payload"] {
                if let Some(value) = push.body.pointer_mut(path) {
                    let sealed = std::mem::take(value);
                    self.sinks.add("payloads", base64_decode(sealed.as_str().unwrap()));
                }
            }
            if let Some(token) = push.body.pointer_mut("/message/token") {
                *token = Value::Null;
            }
            self.sinks.add("providers", push.body.to_string());
        }
        credentials.sort();
        credentials.dedup();
        for (number, credential) in credentials.iter().enumerate() {
            // VAPID (RFC 8292 §3) says its public key behind the token; that key stands in /info for everybody.
            let token = credential.split_once(", k=").map_or(&**credential, |(token, _)| token);
            let tail = &token.as_bytes()[token.len().saturating_sub(40)..];
            self.values.mark(format!("credential {number}"), tail);
        }
    }
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    STANDARD_NO_PAD.decode(text.trim_end_matches('=')).unwrap()
}
