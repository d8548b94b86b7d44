//! Credentials for calls: from a request that says nothing, through an onion, to a relay that lets in whoever has them.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use quietline_lab::keys::write_secret;
use quietline_lab::lab::{CREDENTIALS, Lab, LabSettings};
use quietline_lab::onion::{self, Cipher};
use quietline_lab::settings::{set, turn_server};
use quietline_lab::system;
use quietline_lab::trial::PATIENCE;
use quietline_lab::turn::call::{Call, Ends};
use quietline_lab::turn::client::Who;
use quietline_lab::turn::relay::{LOOK_EVERY, Relay};
use quietline_lab::turn::server::Transport;
use quietline_lab::turn::stun::{attribute, random};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;
use tempfile::TempDir;
use toml::{Table, Value as Setting};

/// A notifier, and relays of two operators that share nothing with it but a secret each.
struct World {
    lab: Lab,
    relays: [Relay; 2],
    _folders: [TempDir; 3],
}

impl World {
    /// With these settings of `[turn]`.
    async fn start(turn: &[(&str, Setting)]) -> Self {
        let folders = [0; 3].map(|_| tempfile::tempdir().unwrap());
        let [at_notifier, one, other] = folders.each_ref().map(TempDir::path);
        let relays = [one, other].map(|folder| {
            let mut relay = Relay::prepare(folder, None, |_| ()).unwrap();
            relay.start(PATIENCE).unwrap();
            relay
        });
        let mut settings = LabSettings::in_folder(at_notifier);
        for (key, value) in turn {
            settings = settings.with(&format!("turn.{key}"), value.clone());
        }
        let mut lab = Lab::surround(settings).unwrap();
        let servers = relays.iter().enumerate().map(|(number, relay)| {
            let file = format!("keys/turn-{number}");
            write_secret(&at_notifier.join(&file), relay.secret.as_bytes()).unwrap();
            turn_server(&format!("operator {number}"), &[relay.url()], &file)
        });
        let servers = Setting::Array(servers.collect());
        lab.settings.overrides.push(("turn.server".to_owned(), servers));
        lab.write_settings().unwrap();
        lab.start_notifier().await.unwrap();
        Self {
            lab,
            relays,
            _folders: folders,
        }
    }

    /// The two servers of one answer.
    async fn servers(&self) -> Vec<Server> {
        let answer = self.lab.credentials().await.unwrap();
        let reply = answer.reply.unwrap();
        assert_eq!((answer.outer_status, reply.code), (200, 200));
        servers(&serde_json::from_slice(&reply.body).unwrap())
    }

    fn relay_of(&self, server: &Server) -> &Relay {
        self.relays.iter().find(|relay| relay.url() == server.url).unwrap()
    }

    /// Each of both operators' relays lets in who has what was given for it.
    async fn both_let_in(&self) {
        let servers = self.servers().await;
        let codes: Vec<u16> = servers
            .iter()
            .map(|server| outcome(self.relay_of(server), server))
            .collect();
        assert_eq!(codes, [0, 0]);
    }

    /// SIGHUP to the notifier with other settings of `[turn]`; returns when it has read them.
    async fn reload(&mut self, outcome: &str, turn: &[(&str, Setting)]) {
        let label = format!("outcome=\"{outcome}\"");
        let count = async |lab: &Lab| {
            let metrics = lab.metrics().await.unwrap();
            metrics.sum_where("settings_reloads_total", &label).unwrap_or_default()
        };
        let before = count(&self.lab).await;
        for (key, value) in turn {
            let place = (format!("turn.{key}"), value.clone());
            self.lab.settings.overrides.push(place);
        }
        self.lab.write_settings().unwrap();
        system::ask_to_reload(self.lab.notifier().process_id().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while count(&self.lab).await == before {
            assert!(Instant::now() < deadline, "the settings are not read");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

struct Server {
    url: String,
    who: Who,
    name: String,
}

fn servers(answer: &Value) -> Vec<Server> {
    assert_eq!(answer["success"], true);
    assert!(
        (6 * 3_600..=7 * 3_600).contains(&answer["ttl"].as_u64().unwrap()),
        "{answer}"
    );
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let servers = answer["iceServers"].as_array().unwrap().iter();
    servers
        .map(|server| Server {
            url: text(&server["urls"][0]),
            who: Who::new(&text(&server["username"]), &text(&server["credential"])),
            name: text(&server["username"]),
        })
        .collect()
}

/// What a relay says to this credential: 0 is an allocation, which is given back.
fn outcome(relay: &Relay, server: &Server) -> u16 {
    let mut client = relay.client(Transport::Udp, server.who.clone()).unwrap();
    let outcome = client.allocate_with(|request| request).unwrap().outcome();
    if outcome == 0 {
        assert!(client.refresh(0).unwrap().is_success());
    }
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_gets_two_relays_of_two_operators_and_a_name_that_nobody_had() {
    let world = World::start(&[]).await;
    let lab = &world.lab;
    let (mut lengths, mut names) = (BTreeSet::new(), BTreeSet::new());
    for number in 0..12 {
        let cipher = Cipher::XChaCha20;
        let (request, key) = onion::request(cipher, &lab.keys.onion_public, CREDENTIALS, b"{}");
        let length = request.len();
        let answer = lab
            .http
            .post(onion::PATH, "application/octet-stream", request)
            .await
            .unwrap();
        lengths.insert((length, answer.body.len()));
        let reply = key.open_reply(&answer.body).unwrap();
        assert_eq!((answer.status, reply.code), (200, 200));
        let told = servers(&serde_json::from_slice(&reply.body).unwrap());
        assert_eq!(told.len(), 2);
        assert_ne!(told[0].url, told[1].url, "two relays, of which each operator has one");
        for server in &told {
            let (end, chance) = server.name.split_once(':').unwrap();
            assert_eq!(
                (end.parse::<u64>().unwrap() % 3_600, chance.len()),
                (0, 32),
                "{}",
                server.name
            );
            assert!(names.insert(server.name.clone()), "{}", server.name);
        }
        // What one operator's relay is shown opens nothing at the other's.
        if number < 3 {
            let codes = [(0, 0), (1, 1), (0, 1), (1, 0)].map(|(server, at): (usize, usize)| {
                let server: &Server = &told[server];
                outcome(world.relay_of(&told[at]), server)
            });
            assert_eq!(codes, [0, 0, 401, 401]);
        }
    }
    assert_eq!(lengths.len(), 1, "as many bytes for everybody: {lengths:?}");
    // Without an onion it is the same answer.
    let direct = lab.http.post(CREDENTIALS, "application/json", "{}").await.unwrap();
    assert_eq!(direct.status, 200);
    assert_eq!(servers(&serde_json::from_slice(&direct.body).unwrap()).len(), 2);
    let metrics = lab.metrics().await.unwrap();
    assert_eq!(
        metrics.sum_where("http_items_total", "operation=\"turn_credentials\",outcome=\"given\""),
        Some(13.0)
    );
    for name in &names {
        let chance = name.split_once(':').unwrap().1;
        assert_eq!(files_with(&lab.settings.folder, chance), Vec::<String>::new());
        assert!(!metrics.text().contains(chance));
    }
}

/// Files anywhere in this folder that hold this text.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_rolls_over_from_notifier_to_relay_without_a_failed_call() {
    let mut world = World::start(&[]).await;
    let new = hex::encode(random::<32>());
    let relay_folder = world.relays[0].folder.clone();
    write_secret(&relay_folder.join("keys/new-secret"), new.as_bytes()).unwrap();
    write_secret(&world.lab.settings.folder.join("keys/turn-new"), new.as_bytes()).unwrap();
    let accepts = |files: &[&str]| {
        let entry = |file: &&str| Setting::Table(Table::from_iter([("secret_file".to_owned(), (*file).into())]));
        let files = Setting::Array(files.iter().map(entry).collect());
        move |settings: &mut Table| set(settings, "auth.timed", files)
    };
    let call = {
        let told = world.servers().await;
        let of_first = told.iter().find(|server| server.url == world.relays[0].url()).unwrap();
        let mut clients = [0; 2].map(|_| world.relays[0].client(Transport::Udp, of_first.who.clone()).unwrap());
        let relayed = clients.each_mut().map(|client| {
            let answer = client.allocate_with(|request| request).unwrap();
            answer.address(attribute::XOR_RELAYED_ADDRESS).unwrap()
        });
        Call::begin(Ends::join(clients, relayed).unwrap())
    };
    world.both_let_in().await;

    // The relay learns the new secret first, so that it does not matter when the notifier changes.
    reload_relay(&world.relays[0], accepts(&["keys/turn-secret", "keys/new-secret"]));
    world.both_let_in().await;
    let earlier = world.servers().await;

    let servers = |files: [&str; 2]| {
        let entries = world.relays.iter().zip(files).enumerate();
        let entries =
            entries.map(|(number, (relay, file))| turn_server(&format!("operator {number}"), &[relay.url()], file));
        Setting::Array(entries.collect())
    };
    // A file with a fault changes nothing.
    let (broken, good) = (
        servers(["keys/nothing", "keys/turn-1"]),
        servers(["keys/turn-new", "keys/turn-1"]),
    );
    world.reload("refused", &[("server", broken)]).await;
    world.both_let_in().await;
    world.reload("taken", &[("server", good)]).await;
    world.both_let_in().await;
    // What was given out before is as good as ever, until the relay forgets the old secret.
    let old = earlier
        .iter()
        .find(|server| server.url == world.relays[0].url())
        .unwrap();
    assert_eq!(outcome(&world.relays[0], old), 0);
    reload_relay(&world.relays[0], accepts(&["keys/new-secret"]));
    assert_eq!(outcome(&world.relays[0], old), 401);
    world.both_let_in().await;
    let (arrived, lost) = tokio::task::block_in_place(|| call.end());
    assert!(arrived > 0);
    assert_eq!(lost, 0, "the call that went on all the time");
}

/// Returns when the settings hold.
fn reload_relay(relay: &Relay, change: impl FnOnce(&mut Table)) {
    let taken = || {
        let metrics = relay.metrics().unwrap();
        metrics
            .sum_where("settings_reloads_total", "outcome=\"taken\"")
            .unwrap_or_default()
    };
    let before = taken();
    relay.reload(change).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while taken() == before {
        assert!(Instant::now() < deadline, "the relay does not read its settings");
        std::thread::sleep(LOOK_EVERY);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_any_other_shape_and_rate_are_refused_and_counted() {
    let mut world = World::start(&[("rate", 1.into()), ("burst", 4.into())]).await;
    let lab = &world.lab;
    let ask = async |body: &[u8]| {
        let (request, key) = onion::request(Cipher::AesGcm, &lab.keys.onion_public, CREDENTIALS, body);
        let answer = lab.http.post(onion::PATH, "application/octet-stream", request);
        let reply = key.open_reply(&answer.await.unwrap().body).unwrap();
        let json: Value = serde_json::from_slice(&reply.body).unwrap();
        (reply.code, reply.body.len(), json)
    };
    let account = json!({"account": hex::encode(random::<33>())}).to_string();
    let long = vec![b'{'; 300_000];
    for (body, outcome) in [
        (&b""[..], "no_body"),
        (b"[]", "other_body"),
        (b"{}{}", "other_body"),
        (b"\xff\x00", "other_body"),
        (account.as_bytes(), "other_body"),
        (&long, "too_large"),
    ] {
        let label = format!("operation=\"turn_credentials\",outcome=\"{outcome}\"");
        let before = lab.metrics().await.unwrap().sum_where("http_items_total", &label);
        let (code, length, json) = ask(body).await;
        assert_eq!(
            (code, length % 512, &json["error"]),
            (400, 0, &json!(1)),
            "{outcome}: {json}"
        );
        let after = lab.metrics().await.unwrap().sum_where("http_items_total", &label);
        assert_eq!(after, Some(before.unwrap_or_default() + 1.0), "{outcome}");
    }
    assert_eq!(files_with(&lab.settings.folder, &account), Vec::<String>::new());

    let began = Instant::now();
    let mut given = 0;
    for _ in 0..50 {
        let (code, _, json) = ask(b"{}").await;
        match code {
            200 => given += 1,
            _ => assert_eq!(
                (code, &json["error"], &json["retry_after"]),
                (503, &json!(2), &json!(1))
            ),
        }
    }
    assert!((4..=5 + began.elapsed().as_secs()).contains(&given), "{given}");

    // Without the section there is no such endpoint.
    let (settings, file) = (
        std::fs::read_to_string(lab.settings_file()).unwrap(),
        lab.settings_file(),
    );
    let mut settings: Table = settings.parse().unwrap();
    settings.remove("turn");
    std::fs::write(file, settings.to_string()).unwrap();
    system::ask_to_reload(world.lab.notifier().process_id().unwrap());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = world
            .lab
            .http
            .post(CREDENTIALS, "application/json", "{}")
            .await
            .unwrap()
            .status;
        if status == 404 {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    assert_eq!(world.lab.credentials().await.unwrap().reply.unwrap().code, 404);
}
