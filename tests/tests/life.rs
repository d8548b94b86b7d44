//! The life of a notifier as its operator sees it: settings, start, a full disk, a dead network, signals, the end.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use quietline_lab::http::HttpClient;
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::node::Fault;
use quietline_lab::notifier::{Notifier, find_program};
use quietline_lab::onion::Cipher;
use quietline_lab::phone::{Phone, PushService};
use quietline_lab::provider::{Answer, Delivery};
use quietline_lab::settings::set;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use toml::Table;

const PATIENCE: Duration = Duration::from_secs(60);
const FORTNIGHT: Duration = Duration::from_secs(14 * 24 * 3600);

// ---- Signals

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_pushes_under_way_finish_and_keeps_the_rest_for_the_next_start() {
    let world = World::start(|settings| settings).await;
    let (mut lab, _folder) = (world.lab, world.folder);
    let quick = subscribed(&lab, PushService::Apns).await;
    let late = subscribed(&lab, PushService::Firebase).await;
    let slowly = Answer::Late(Duration::from_secs(4), Box::new(Answer::Accept));
    lab.apns.script().always(&quick.token, slowly);
    lab.fcm.script().always(&late.token, fcm_down());
    let kept = lab.send(&late, 0, b"kept", FORTNIGHT);
    lab.deliveries.take(PATIENCE, to(&late, false)).await.unwrap();
    lab.send(&quick, 0, b"under way", FORTNIGHT);
    let under_way = lab.deliveries.take(PATIENCE, to(&quick, true)).await.unwrap();
    assert!(under_way.answered.get().is_none());

    send_signal("-TERM", lab.notifier().process_id().unwrap()).await;
    let ready = until_not_ready(&lab).await;
    assert!(ready.contains("waiting for the end"), "{ready}");
    let status = lab.notifier().wait(PATIENCE).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(under_way.answered.get().is_some(), "the notifier waited for the answer");

    lab.apns.script().clear();
    lab.fcm.script().clear();
    lab.deliveries.take_all();
    lab.start_notifier().await.unwrap();
    let (_, message) = lab.next_delivery(&late, PATIENCE).await.unwrap();
    assert_eq!(message.hash, kept.hash);
    let fresh = lab.send(&quick, 0, b"fresh", FORTNIGHT);
    let (_, message) = lab.next_delivery(&quick, PATIENCE).await.unwrap();
    assert_eq!(
        message.hash, fresh.hash,
        "what was answered during the drain is not sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_drain_at_once_and_loses_nothing() {
    // Left alone, this drain would take longer than anybody waits here.
    let long = |settings: LabSettings| settings.with("lifecycle.drain", "1h").with("dispatch.timeout", "1h");
    let world = World::start(long).await;
    let (mut lab, _folder) = (world.lab, world.folder);
    let phone = subscribed(&lab, PushService::Apns).await;
    for second in ["-TERM", "-INT"] {
        lab.apns.script().always(&phone.token, Answer::Stall);
        let sent = lab.send(&phone, 0, second.as_bytes(), FORTNIGHT);
        lab.deliveries.take(PATIENCE, to(&phone, false)).await.unwrap();
        let process = lab.notifier().process_id().unwrap();
        send_signal("-TERM", process).await;
        until_not_ready(&lab).await;
        send_signal(second, process).await;
        let status = lab.notifier().wait(PATIENCE).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{second}");
        lab.apns.script().clear();
        lab.start_notifier().await.unwrap();
        let (_, message) = lab.next_delivery(&phone, PATIENCE).await.unwrap();
        assert_eq!(message.hash, sent.hash, "{second}");
    }
}

#[tokio::test]
async fn ctrl_c_ends_the_lab_and_its_notifier_at_any_moment() {
    for moment in ["the notifier starts", "messages flow"] {
        let folder = tempfile::tempdir().unwrap();
        let mut lab = Command::new(find_program("quietline-lab").unwrap().unwrap())
            .arg("run")
            .arg("--folder")
            .arg(folder.path().join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let process = lab.id().unwrap();
        let notifier = until_child(process, "quietline-notif").await;
        let mut lines = BufReader::new(lab.stdout.take().unwrap()).lines();
        if moment == "messages flow" {
            // The table of the stream counts the seconds in its first column.
            let second = |line: &str| line.trim_start().starts_with(|first: char| first.is_ascii_digit());
            let shown = async {
                while !lines
                    .next_line()
                    .await
                    .unwrap()
                    .is_some_and(|line| second(&line) && line.contains(" MB"))
                {}
            };
            tokio::time::timeout(PATIENCE, shown).await.unwrap();
        }
        send_signal("-INT", process).await;
        let rest = tokio::spawn(async move { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} });
        let status = tokio::time::timeout(PATIENCE, lab.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{moment}");
        let gone = async {
            while is_alive(notifier) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
        rest.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_ready_only_when_every_account_is_watched_and_stopping_at_the_end() {
    let world = World::start(|settings| settings).await;
    let (mut lab, folder) = (world.lab, world.folder);
    let phone = subscribed(&lab, PushService::Apns).await;
    lab.stop_notifier(PATIENCE).await.unwrap();

    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let nodes = lab.settings.swarms * lab.settings.nodes_per_swarm;
    for node in 0..nodes {
        lab.fleet.inject(node, Fault::Silence, u32::MAX);
    }
    let mut notifier = Command::new(Notifier::find_binary(None).unwrap())
        .args(["run", "--settings"])
        .arg(lab.settings_file())
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Links stand, nodes were asked, and waiting for their answer was given up.
    let ops = HttpClient::new(lab.ops_address());
    until_metric(&ops, "watch_links").await;
    until_metric(&ops, "watch_requests_failed_total").await;
    socket.set_nonblocking(true).unwrap();
    assert!(hear(&socket).is_none(), "nothing is said before the account is watched");
    assert_eq!(ops.get("/health/ready").await.unwrap().status, 503);

    for node in 0..nodes {
        lab.fleet.clear_faults(node);
    }
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(hear(&socket).as_deref(), Some("READY=1\n"));
    assert_eq!(ops.get("/health/ready").await.unwrap().status, 200);
    assert!(lab.wait_watched(&phone, 3, PATIENCE).await.is_some());
    send_signal("-TERM", notifier.id().unwrap()).await;
    assert_eq!(hear(&socket).as_deref(), Some("STOPPING=1\n"));
    assert_eq!(
        tokio::time::timeout(PATIENCE, notifier.wait())
            .await
            .unwrap()
            .unwrap()
            .code(),
        Some(0)
    );
}

// ---- Settings and places

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_named_all_at_once_by_check_and_by_run() {
    let world = World::surround(|settings| settings);
    let (lab, folder) = (world.lab, world.folder);
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, "not a key").unwrap();
    let garbage = garbage.to_str().unwrap();
    let settings = changed(&lab, |settings| {
        set(settings, "http.listen", "everywhere");
        set(settings, "http.bodylimit", 5);
        set(settings, "store.lookup_key_file", "keys/missing");
        set(settings, "watcher.nodes_per_swarm", 0);
        set(settings, "watcher.key_file", garbage);
        set(settings, "seal.padding", "none");
        set(settings, "dispatch.apns.key_file", garbage);
        set(settings, "dispatch.firebase.service_account_file", garbage);
        set(settings, "log.level", "loud");
        set(settings, "lifecycle.drain", "soon");
        set(settings, "telephone.number", 5);
    });
    for command in ["check", "run"] {
        let (code, errors) = run_to_end(command, &settings).await;
        assert_eq!(code, Some(78), "{errors}");
        assert!(
            errors.starts_with("11 faults in the settings:\n"),
            "{command}: {errors}"
        );
        for place in [
            "http.listen",
            "http.bodylimit",
            "store.lookup_key_file",
            "watcher.nodes_per_swarm",
            "watcher.key_file",
            "seal.padding",
            "dispatch.apns.key_file",
            "dispatch.firebase.service_account_file",
            "log.level",
            "lifecycle.drain",
            "telephone",
        ] {
            assert!(
                errors.contains(&format!("\n  {place}: ")),
                "{command} names {place}: {errors}"
            );
        }
        assert!(!errors.contains("not a key"), "{errors}");
    }
    // Nothing was started, so nothing was made.
    assert_eq!(std::fs::read_dir(lab.settings.folder.join("data")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_used_ends_the_start_with_its_name() {
    let world = World::surround(|settings| settings);
    let (lab, folder) = (world.lab, world.folder);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let in_file = file.join("a.db").to_str().unwrap().to_owned();
    let damaged = folder.path().join("damaged.db");
    std::fs::write(&damaged, vec![b'x'; 10_000]).unwrap();
    let damaged = damaged.to_str().unwrap();
    let folder_as_key = folder.path().to_str().unwrap();
    for (setting, value, code, words) in [
        ("http.listen", taken.as_str(), 1, ["[http] listen", "in use"]),
        ("ops.listen", taken.as_str(), 1, ["[ops] listen", "in use"]),
        (
            "store.path",
            in_file.as_str(),
            1,
            ["[store]", "cannot be read or written"],
        ),
        (
            "outbox.path",
            in_file.as_str(),
            1,
            ["[outbox]", "cannot be read or written"],
        ),
        ("store.path", damaged, 1, ["[store]", "damaged"]),
        ("outbox.path", damaged, 1, ["[outbox]", "damaged"]),
        (
            "http.onion_key_file",
            folder_as_key,
            78,
            ["http.onion_key_file", "is not a regular file"],
        ),
        (
            "watcher.key_file",
            in_file.as_str(),
            78,
            ["watcher.key_file", "cannot be read"],
        ),
    ] {
        let settings = changed(&lab, |settings| set(settings, setting, value));
        let (found, errors) = run_to_end("run", &settings).await;
        assert_eq!(found, Some(code), "{setting}: {errors}");
        for word in words {
            assert!(errors.contains(word), "{setting}: {errors}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_notifier_on_the_same_data_does_not_start_and_harms_nothing() {
    let world = World::start(|settings| settings).await;
    let (lab, folder) = (world.lab, world.folder);
    let phone = subscribed(&lab, PushService::Apns).await;
    for (own, words) in [
        ("outbox", "[store] another notifier uses"),
        ("store", "[outbox] another notifier uses"),
    ] {
        let settings = changed(&lab, |settings| {
            set(settings, "http.listen", "127.0.0.1:0");
            set(settings, "ops.listen", "127.0.0.1:0");
            let elsewhere = folder.path().join(own).join("own.db");
            set(settings, &format!("{own}.path"), elsewhere.to_str().unwrap());
        });
        let (code, errors) = run_to_end("run", &settings).await;
        assert_eq!(code, Some(1), "{errors}");
        assert!(errors.contains(words), "{errors}");
    }
    let sent = lab.send(&phone, 0, b"still here", FORTNIGHT);
    assert_eq!(lab.next_delivery(&phone, PATIENCE).await.unwrap().1.hash, sent.hash);
}

// ---- The way of a new operator

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_leads_from_an_empty_folder_to_a_phone_that_wakes() {
    let world = World::surround(|settings| settings);
    let (lab, folder) = (world.lab, world.folder);
    let home = folder.path().join("etc");
    std::fs::create_dir(&home).unwrap();
    let settings_file = home.join("notifier.toml");
    let example = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("deploy/notifier.toml");
    std::fs::copy(example, &settings_file).unwrap();

    let keygen = notifier_command("keygen", &settings_file).output().await.unwrap();
    assert_eq!(keygen.status.code(), Some(0));
    let said = String::from_utf8(keygen.stdout).unwrap();
    let public = said
        .lines()
        .find_map(|line| line.strip_prefix("onion public key: "))
        .unwrap();
    let public: [u8; 32] = hex::decode(public).unwrap().try_into().unwrap();

    // What nobody but Apple and Google can give is still missing, and named.
    let (code, errors) = run_to_end("check", &settings_file).await;
    assert_eq!(code, Some(78), "{errors}");
    assert!(errors.starts_with("2 faults"), "{errors}");
    assert!(
        errors.contains("dispatch.apns.key_file") && errors.contains("dispatch.firebase.service_account_file"),
        "{errors}"
    );
    for name in ["apns.p8", "firebase.json", "ca.pem"] {
        std::fs::copy(lab.keys.folder.join(name), home.join("keys").join(name)).unwrap();
    }
    // The file as it is in the repository.
    let (code, errors) = run_to_end("check", &settings_file).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));

    // What the README says to change, and the lab's providers in the place of the real ones.
    let lab_settings: Table = std::fs::read_to_string(lab.settings_file()).unwrap().parse().unwrap();
    let mut settings: Table = std::fs::read_to_string(&settings_file).unwrap().parse().unwrap();
    settings["watcher"]["oxend"] = lab_settings["watcher"]["oxend"].clone();
    for (section, keys) in [
        (
            "apns",
            ["host", "port", "topic", "key_id", "team_id", "ca_file"].as_slice(),
        ),
        ("firebase", &["host", "port", "ca_file"]),
    ] {
        for key in keys {
            let value = lab_settings["dispatch"][section][*key].clone();
            set(&mut settings, &format!("dispatch.{section}.{key}"), value);
        }
    }
    for place in ["http", "ops"] {
        settings[place]["listen"] = lab_settings[place]["listen"].clone();
    }
    std::fs::write(&settings_file, settings.to_string()).unwrap();
    let (code, errors) = run_to_end("check", &settings_file).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let binary = Notifier::find_binary(None).unwrap();
    let mut notifier = Notifier::spawn(&binary, &settings_file, &home.join("log"), lab.ops_address()).unwrap();
    notifier.wait_ready(PATIENCE).await.unwrap();
    for service in [PushService::Apns, PushService::Firebase] {
        let phone = lab.phone(service);
        assert!(
            phone
                .subscribe(&lab.http, &public, Cipher::BOTH[0])
                .await
                .unwrap()
                .is_success()
        );
        lab.wait_watched(&phone, 3, PATIENCE).await.unwrap();
        let sent = lab.send(&phone, 0, b"hello", FORTNIGHT);
        assert_eq!(lab.next_delivery(&phone, PATIENCE).await.unwrap().1.hash, sent.hash);
    }
    assert_eq!(notifier.stop(PATIENCE).await.unwrap().unwrap().code(), Some(0));
    for file in ["data/subscriptions.db", "data/outbox.db"] {
        assert_eq!(
            home.join(file).metadata().unwrap().permissions().mode() & 0o077,
            0,
            "{file}"
        );
    }
    assert!(home.join("data/nodes.json").is_file());
}

// ---- When the world fails

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_network_at_the_start_delays_wakeups_and_loses_none() {
    let world = World::start(|settings| settings).await;
    let (mut lab, _folder) = (world.lab, world.folder);
    let old = subscribed(&lab, PushService::Apns).await;
    lab.stop_notifier(PATIENCE).await.unwrap();
    // Neither oxend nor a seed, and no provider: only the kept list and the storage nodes.
    let settings = changed(&lab, |settings| {
        set(settings, "watcher.oxend", toml::Value::Array(Vec::new()));
        let nobody = Table::from_iter([("url".to_owned(), "https://127.0.0.1:9/json_rpc".into())]);
        set(settings, "watcher.seed", toml::Value::Array(vec![nobody.into()]));
    });
    std::fs::copy(settings, lab.settings_file()).unwrap();
    set_down(&lab, true);
    lab.start_notifier().await.unwrap();
    let new = subscribed(&lab, PushService::Firebase).await;
    let sent = [&old, &new].map(|phone| lab.send(phone, 0, b"while everything is dark", FORTNIGHT));
    until_metric(&HttpClient::new(lab.ops_address()), "outbox_held_total").await;
    set_down(&lab, false);
    for (phone, sent) in [&old, &new].into_iter().zip(sent) {
        assert_eq!(lab.next_delivery(phone, PATIENCE).await.unwrap().1.hash, sent.hash);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_is_new_and_keeps_what_was_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let Some(disk) = SmallDisk::mount(&small).await else {
        say("mounting is not permitted here; the limit of the file size in the next test stands for the full disk");
        return;
    };
    let ballast = small.join("ballast");
    let file = ballast.clone();
    let fill = move || fill_disk(&file);
    let world = World::start(|settings| in_folder(settings, &small)).await;
    outlives_a_full_disk(world, "disk_full", fill, |_| std::fs::remove_file(&ballast).unwrap()).await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_to_write_is_no_reason_to_lose_what_was_accepted() {
    let folder = tempfile::tempdir().unwrap();
    // The signal that comes with the limit would end the process before the failed write could be seen.
    let binary = folder.path().join("notifier.sh");
    let real = Notifier::find_binary(None).unwrap();
    std::fs::write(
        &binary,
        format!("#!/bin/sh\ntrap '' XFSZ\nexec '{}' \"$@\"\n", real.display()),
    )
    .unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let data = folder.path().join("data");
    let mut world = World::start(|settings| LabSettings {
        binary: Some(binary),
        ..in_folder(settings, &data)
    })
    .await;
    let process = world.lab.notifier().process_id().unwrap();
    let limit = move |bytes: &str| {
        let limited = std::process::Command::new("prlimit")
            .args(["--pid", &process.to_string(), &format!("--fsize={bytes}:unlimited")])
            .status();
        assert!(limited.unwrap().success());
    };
    outlives_a_full_disk(world, "io", move || limit("20000"), move |_| limit("unlimited")).await;
}

/// `fill` is called again and again: freed pages and the WAL's own space are used up first.
async fn outlives_a_full_disk(world: World, fault: &str, fill: impl Fn(), empty: impl FnOnce(&Lab)) {
    let (lab, _folder) = (world.lab, world.folder);
    let ops = HttpClient::new(lab.ops_address());
    let phone = subscribed(&lab, PushService::Firebase).await;
    lab.fcm.script().always(&phone.token, Answer::Stall);
    let mut accepted = Vec::new();
    for number in 0..5 {
        accepted.push(
            lab.send(&phone, 0, format!("accepted {number}").as_bytes(), FORTNIGHT)
                .hash,
        );
        // A provider hears of it only when it is in the file.
        lab.deliveries.take(PATIENCE, to(&phone, false)).await.unwrap();
    }
    let mut refused = None;
    for _ in 0..5_000 {
        fill();
        let stranger = lab.phone(PushService::Apns);
        let answer = lab.subscribe(&stranger).await.unwrap();
        if !answer.is_success() {
            refused = Some((stranger, answer));
            break;
        }
    }
    let (stranger, answer) = refused.unwrap();
    let code = answer.json().unwrap()["error"].as_i64();
    let codes = (answer.outer_status, answer.reply.map(|reply| reply.code), code);
    assert!(codes.0 == 503 || codes.1 == Some(503) || code == Some(503), "{codes:?}");
    let faults = async {
        for number in 0.. {
            fill();
            lab.send(&phone, 0, format!("while full {number}").as_bytes(), FORTNIGHT);
            let metrics = ops.get("/metrics").await.unwrap().body;
            let metrics = String::from_utf8_lossy(&metrics).into_owned();
            if metrics.contains(&format!("outbox_faults_total{{reason=\"{fault}\"}}")) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, faults).await.unwrap();
    assert_eq!(ops.get("/health/live").await.unwrap().status, 200);

    empty(&lab);
    let recovered = async {
        while !lab.subscribe(&stranger).await.unwrap().is_success() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, recovered).await.unwrap();
    lab.wait_watched(&stranger, 3, PATIENCE).await.unwrap();
    let deliverable = async {
        // The first ones may still meet the pause after the last failure.
        for number in 0.. {
            let sent = lab.send(&stranger, 0, format!("after {number}").as_bytes(), FORTNIGHT);
            if let Some((_, message)) = lab.next_delivery(&stranger, Duration::from_secs(1)).await {
                assert!(number > 0 || message.hash == sent.hash);
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, deliverable).await.unwrap();
    lab.fcm.script().clear();
    while !accepted.is_empty() {
        let (_, message) = lab
            .next_delivery(&phone, PATIENCE)
            .await
            .expect("what was accepted is delivered");
        accepted.retain(|hash| *hash != message.hash);
    }
}

// ---- Helpers

struct World {
    lab: Lab,
    folder: tempfile::TempDir,
}

impl World {
    fn surround(change: impl FnOnce(LabSettings) -> LabSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = LabSettings {
            swarms: 1,
            nodes_per_swarm: 3,
            ready_within: PATIENCE,
            ..LabSettings::in_folder(folder.path().join("lab"))
        };
        let lab = Lab::surround(change(settings)).unwrap();
        Self { lab, folder }
    }

    async fn start(change: impl FnOnce(LabSettings) -> LabSettings) -> Self {
        let mut world = Self::surround(change);
        world.lab.start_notifier().await.unwrap();
        world
    }
}

async fn subscribed(lab: &Lab, service: PushService) -> Phone {
    let phone = lab.phone(service);
    assert!(lab.subscribe(&phone).await.unwrap().is_success());
    lab.wait_watched(&phone, 3, PATIENCE).await.unwrap();
    phone
}

fn to(phone: &Phone, accepted: bool) -> impl Fn(&Delivery) -> bool {
    let token = phone.token.clone();
    move |delivery| delivery.token == token && delivery.accepted == accepted
}

fn fcm_down() -> Answer {
    Answer::fcm(503, "UNAVAILABLE", Some("UNAVAILABLE"), None)
}

fn set_down(lab: &Lab, down: bool) {
    lab.set_providers_down(down);
}

fn in_folder(settings: LabSettings, folder: &Path) -> LabSettings {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    settings
        .with("store.path", path("subscriptions.db"))
        .with("outbox.path", path("outbox.db"))
}

/// The lab's settings with something else, in a file beside them.
fn changed(lab: &Lab, change: impl FnOnce(&mut Table)) -> PathBuf {
    let mut settings: Table = std::fs::read_to_string(lab.settings_file()).unwrap().parse().unwrap();
    change(&mut settings);
    let file = lab.settings.folder.join("changed.toml");
    std::fs::write(&file, settings.to_string()).unwrap();
    file
}

fn notifier_command(command: &str, settings: &Path) -> Command {
    let mut line = Command::new(Notifier::find_binary(None).unwrap());
    line.arg(command)
        .arg("--settings")
        .arg(settings)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    line
}

/// Exit code, and what the operator reads.
async fn run_to_end(command: &str, settings: &Path) -> (Option<i32>, String) {
    let output = notifier_command(command, settings).output();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .expect("it ends by itself")
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

async fn send_signal(name: &str, process: u32) {
    let sent = Command::new("kill")
        .args([name, &process.to_string()])
        .status()
        .await
        .unwrap();
    assert!(sent.success());
}

/// What `/health/ready` says when it says no.
async fn until_not_ready(lab: &Lab) -> String {
    let ops = HttpClient::new(lab.ops_address());
    let search = async {
        loop {
            let answer = ops.get("/health/ready").await.unwrap();
            if answer.status == 503 {
                return String::from_utf8_lossy(&answer.body).into_owned();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap()
}

/// Until this counter is above zero.
async fn until_metric(ops: &HttpClient, name: &str) {
    let search = async {
        loop {
            let text = ops
                .get("/metrics")
                .await
                .map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
            let lines = text.iter().flat_map(|text| text.lines());
            let values = lines
                .filter(|line| line.starts_with(name))
                .filter_map(|line| line.rsplit_once(' '));
            if values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum::<f64>() > 0.0 {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap();
}

async fn until_child(parent: u32, name: &str) -> u32 {
    let search = async {
        loop {
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            let child = ids
                .into_iter()
                .find(|id| stat(*id).is_some_and(|(command, _, its_parent)| its_parent == parent && command == name));
            if let Some(child) = child {
                return child;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap()
}

/// A process that has ended and waits only for its parent is not alive.
fn is_alive(process: u32) -> bool {
    stat(process).is_some_and(|(_, state, _)| state != 'Z')
}

/// Command, state and parent of a process.
fn stat(process: u32) -> Option<(String, char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((head.split_once('(')?.1.to_owned(), state, fields.next()?.parse().ok()?))
}

fn hear(socket: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(buffer.get(..length)?).into_owned())
}

/// A file system of its own, in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where that is not permitted.
    async fn mount(folder: &Path) -> Option<Self> {
        let options = ["-t", "tmpfs", "-o", "size=3m", "tmpfs"];
        let mounted = Command::new("mount")
            .args(options)
            .arg(folder)
            .stderr(Stdio::null())
            .status()
            .await;
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn fill_disk(ballast: &Path) {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(ballast)
        .unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

const LOOK_EVERY: Duration = Duration::from_millis(20);
