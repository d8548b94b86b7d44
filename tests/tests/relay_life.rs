//! The life of a relay as its operator sees it: settings, start, reloads in mid-call, signals, the end.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use quietline_lab::settings::set;
use quietline_lab::system;
use quietline_lab::turn::client::{Client, PATIENCE, Packet, Who};
use quietline_lab::turn::relay::{LOOK_EVERY, PEER, Relay, guest, peer};
use quietline_lab::turn::server::Transport;
use quietline_lab::turn::stun::{attribute, random};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;
use tempfile::TempDir;
use toml::{Table, Value};

// ---- Settings and places

#[test]
fn wrong_settings_are_named_all_at_once_by_check_and_by_run() {
    let world = World::prepare(|settings| {
        set(settings, "listen.addresses", "everywhere");
        set(settings, "listen.port", 3478);
        set(settings, "relay.first_port", 70_000);
        set(settings, "auth.realm", 5);
        set(settings, "auth.timed", timed(&["missing"]));
        set(settings, "peers.allow", Value::Array(vec!["172.16.9.0/33".into()]));
        set(settings, "limits.allocations", 0);
        set(settings, "streams.idle", "soon");
        set(settings, "log.level", "loud");
        set(settings, "lifecycle.drain", 5);
        set(settings, "telephone.number", 5);
    });
    for command in ["check", "run"] {
        let output = world.relay.command(command).output().unwrap();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{errors}");
        assert!(
            errors.starts_with("11 faults in the settings:\n"),
            "{command}: {errors}"
        );
        for place in [
            "listen.addresses",
            "listen.port",
            "relay.first_port",
            "auth.realm",
            "auth.timed[0].secret_file",
            "peers.allow[0]",
            "limits.allocations",
            "streams.idle",
            "log.level",
            "lifecycle.drain",
            "telephone",
        ] {
            assert!(
                errors.contains(&format!("\n  {place}: ")),
                "{command} names {place}: {errors}"
            );
        }
        assert!(
            !errors.contains("everywhere") && !errors.contains("172.16.9"),
            "{errors}"
        );
    }
}

#[test]
fn it_does_not_start_without_authentication() {
    let world = World::prepare(|settings| {
        settings.remove("auth");
    });
    let output = world.relay.command("run").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(
        stderr(&output).contains("\n  auth: neither users nor timed secrets"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_place_that_cannot_be_used_ends_the_start_with_its_name() {
    let world = World::prepare(|_| ());
    let relay = &world.relay;
    let (address, ops) = (relay.address, relay.ops);
    let refused = |words: [&str; 2]| {
        let output = relay.command("run").output().unwrap();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        for word in words {
            assert!(errors.contains(word), "{word}: {errors}");
        }
        assert!(!errors.contains("127.0.0"), "no address in a log: {errors}");
    };
    let taken = UdpSocket::bind(address).unwrap();
    refused(["[listen]", "in use"]);
    drop(taken);
    let taken = TcpListener::bind(address).unwrap();
    refused(["[listen]", "in use"]);
    drop(taken);
    let taken = TcpListener::bind(ops).unwrap();
    refused(["[ops] listen", "in use"]);
    drop(taken);
    // An address of another machine.
    relay
        .write_settings(|settings| {
            set(settings, "listen.addresses", Value::Array(vec!["192.0.2.77".into()]));
        })
        .unwrap();
    refused(["[listen]", "not available"]);
}

#[test]
fn a_second_relay_in_the_same_place_does_not_start_and_harms_nothing() {
    let mut world = World::start(|_| ());
    let mut call = world.call(Transport::Udp, world.relay.guest());
    let ops = system_free_port();
    world
        .relay
        .write_settings(|settings| set(settings, "ops.listen", ops.to_string()))
        .unwrap();
    let output = world.relay.command("run").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("[listen]"), "{}", stderr(&output));
    call.goes_on();
    world.end_at_once();
}

// ---- The way of a new operator

#[test]
fn the_readme_leads_from_an_empty_folder_to_a_call() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("relay");
    let binary = Relay::find_binary(None).unwrap();
    let made = Command::new(&binary)
        .args(["setup", "--folder"])
        .arg(&home)
        .output()
        .unwrap();
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let mode = |name: &str| home.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("keys"), mode("keys/turn-secret")), (0o700, 0o600));
    let secret = std::fs::read_to_string(home.join("keys/turn-secret")).unwrap();
    assert!(!stdout(&made).contains(secret.trim()));

    // As it is made, on the addresses of this machine; a machine without any says so.
    let settings = home.join("turn.toml");
    let on = |words: &[&str]| {
        Command::new(&binary)
            .args(words)
            .arg("--settings")
            .arg(&settings)
            .output()
            .unwrap()
    };
    let checked = on(&["check", "--settings-only"]);
    match checked.status.code() {
        Some(0) => assert!(
            stdout(&checked).ends_with("settings are good\n"),
            "{}",
            stdout(&checked)
        ),
        _ => assert!(
            stderr(&checked).contains("no address but its own loopback"),
            "{}",
            stderr(&checked)
        ),
    }

    // On the loopback, so that nothing leaves this machine.
    let mut world = World::prepare(|_| ());
    let mut table: Table = std::fs::read_to_string(&settings).unwrap().parse().unwrap();
    let lab: Table = std::fs::read_to_string(world.relay.settings_file())
        .unwrap()
        .parse()
        .unwrap();
    for name in ["listen", "ops", "peers"] {
        table.insert(name.to_owned(), lab[name].clone());
    }
    for name in ["certificate_file", "certificate_key_file"] {
        let file = world.relay.folder.join(lab["listen"][name].as_str().unwrap());
        set(&mut table, &format!("listen.{name}"), file.to_str().unwrap());
    }
    std::fs::write(&settings, table.to_string()).unwrap();
    // Nothing runs yet: a relay of its own serves the check.
    let checked = on(&["check"]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    assert!(stdout(&checked).contains("no relay runs here"), "{}", stdout(&checked));
    assert!(stdout(&checked).ends_with("the relay works\n"), "{}", stdout(&checked));
    let mut run = Command::new(&binary);
    run.args(["run", "--settings"]).arg(&settings);
    world.relay.start_as(run).unwrap();
    world.until("it is ready", |relay| {
        relay
            .tells("/health/ready")
            .is_ok_and(|answer| answer.contains(" 200 "))
    });

    // What is printed is what a browser takes, and it works.
    let printed = on(&["credentials"]);
    assert_eq!(printed.status.code(), Some(0), "{}", stderr(&printed));
    let json: serde_json::Value = serde_json::from_str(stdout(&printed).trim()).unwrap();
    let server = &json["iceServers"][0];
    let at = world.relay.address;
    let urls = [
        format!("turn:{at}?transport=udp"),
        format!("turn:{at}?transport=tcp"),
        format!("turns:{at}?transport=tcp"),
    ];
    assert_eq!(server["urls"], serde_json::json!(urls));
    let (name, credential) = (
        server["username"].as_str().unwrap(),
        server["credential"].as_str().unwrap(),
    );
    let (expiry, chance) = name.split_once(':').unwrap();
    assert!(expiry.parse::<u64>().is_ok() && chance.len() == 32, "{name}");
    for transport in Transport::ALL {
        world.call(transport, Who::new(name, credential)).goes_on();
    }
    let other: serde_json::Value = serde_json::from_str(stdout(&on(&["credentials"])).trim()).unwrap();
    assert_ne!(
        other["iceServers"][0]["username"], server["username"],
        "nobody is known again"
    );
    world.end_at_once();
}

#[test]
fn check_says_what_will_hurt() {
    let world = World::prepare(|settings| {
        set(settings, "listen.name", "turn.example.org");
        // More than any system allows (fs.nr_open is at most 2^31).
        set(settings, "streams.total", 4_000_000_000_u32);
        set(settings, "sockets.receive_buffer", 1 << 30);
    });
    let output = world.relay.command("check").arg("--settings-only").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let errors = stderr(&output);
    for words in [
        "clients are told 127.0.0.1, which the internet does not reach",
        "the certificate does not lead to a public root",
        "certificate-name: the certificate is not for turn.example.org",
        "net.core.rmem_max",
        "open files",
    ] {
        assert!(errors.contains(words), "{words}: {errors}");
    }
    let urls = stdout(&output);
    assert!(
        urls.contains(&format!(
            "turn:turn.example.org:{}?transport=udp",
            world.relay.address.port()
        )),
        "{urls}"
    );
}

// ---- SIGHUP in mid-call

#[test]
fn a_user_who_is_removed_ends_no_call() {
    let world = World::start(with_alice);
    let mut call = world.call(Transport::Udp, alice());
    world.reload("taken", |_| ());
    assert_eq!(world.outcome(alice()), 401, "alice is gone");
    call.goes_on();
    assert!(call.refresh().iter().all(|code| *code == 0), "her call is not");
    world.reload("taken", with_alice);
    assert_eq!(world.outcome(alice()), 0, "alice is back");
    call.goes_on();
    world.ends();
}

#[test]
fn a_secret_rolls_over_without_a_failed_call() {
    let world = World::start(|_| ());
    let old = world.relay.secret.clone();
    let new = hex::encode(random::<32>());
    world.write_secret("keys/new-secret", &new);
    let mut call = world.call(Transport::Udp, guest(&old));
    assert_eq!(world.outcome(guest(&new)), 401);
    // First it is accepted, so that whoever hands out credentials may change at any time.
    world.reload("taken", |settings| {
        set(settings, "auth.timed", timed(&["keys/turn-secret", "keys/new-secret"]))
    });
    assert_eq!((world.outcome(guest(&old)), world.outcome(guest(&new))), (0, 0));
    world.reload("taken", |settings| {
        set(settings, "auth.timed", timed(&["keys/new-secret", "keys/turn-secret"]))
    });
    assert_eq!((world.outcome(guest(&old)), world.outcome(guest(&new))), (0, 0));
    let minted = world.relay.command("credentials").output().unwrap();
    let minted: serde_json::Value = serde_json::from_slice(&minted.stdout).unwrap();
    let minted = &minted["iceServers"][0];
    let name = minted["username"].as_str().unwrap();
    assert_eq!(
        minted["credential"],
        Who::timed(name, &new).password,
        "the first secret makes new ones"
    );
    world.reload("taken", |settings| {
        set(settings, "auth.timed", timed(&["keys/new-secret"]))
    });
    assert_eq!((world.outcome(guest(&old)), world.outcome(guest(&new))), (401, 0));
    call.goes_on();
    assert_eq!(call.refresh(), [0, 0], "what lives stays with its key");
    world.ends();
}

#[test]
fn a_new_certificate_is_for_new_streams_and_the_old_ones_go_on() {
    let world = World::start(|_| ());
    let mut call = world.call(Transport::Tls, world.relay.guest());
    let trust = world.relay.renew_certificate().unwrap();
    world.reload("taken", |_| ());
    world.until("the new certificate is shown", |relay| {
        let client = relay.client_trusting(&trust, Transport::Tls, relay.guest());
        client.is_ok_and(|mut client| client.challenge().is_some())
    });
    let mut old = world.relay.client(Transport::Tls, world.relay.guest()).unwrap();
    assert!(old.challenge().is_none(), "the old one is shown to nobody");
    call.goes_on();
    world.ends();
}

#[test]
fn a_policy_that_refuses_a_peer_ends_its_permission_and_not_the_call() {
    let world = World::start(|_| ());
    let outside = peer().unwrap();
    let at = outside.local_addr().unwrap();
    let mut call = world.call(Transport::Udp, world.relay.guest());
    assert_eq!(call.ends[0].permit(at), 0);
    call.ends[0].send_to(at, b"before");
    assert_eq!(arrived(&outside), b"before");
    let deny = |settings: &mut Table| set(settings, "peers.deny", Value::Array(vec![PEER.to_string().into()]));
    world.reload("taken", deny);
    assert_eq!(call.ends[0].permit(at), 403);
    let refused = "control_refused_total{stage=\"peers\",reason=\"denied\"}";
    let count = || world.count(refused);
    let before = count();
    call.ends[0].send_to(at, b"after");
    world.until("the packet is refused", |_| count() > before);
    call.goes_on();
    world.reload("taken", |_| ());
    assert_eq!(call.ends[0].permit(at), 0);
    call.ends[0].send_to(at, b"again");
    assert_eq!(arrived(&outside), b"again", "what was sent in between is gone");
    world.ends();
}

#[test]
fn lower_limits_hold_for_new_calls_only() {
    let world = World::start(|_| ());
    let mut call = world.call(Transport::Udp, world.relay.guest());
    world.reload("taken", |settings| set(settings, "limits.allocations", 2));
    assert_eq!(world.outcome(world.relay.guest()), 486);
    call.goes_on();
    assert_eq!(call.refresh(), [0, 0]);
    world.reload("taken", |settings| set(settings, "limits.allocations", 3));
    assert_eq!(world.outcome(world.relay.guest()), 0);
    world.ends();
}

#[test]
fn a_broken_file_changes_nothing_and_is_said() {
    let world = World::start(with_alice);
    let mut call = world.call(Transport::Udp, alice());
    // The user is removed by the same file that has a fault.
    world.reload("refused", |settings| set(settings, "limits.allocations", "many"));
    assert!(
        world.relay.log().contains("limits.allocations"),
        "{}",
        world.relay.log()
    );
    assert_eq!(world.outcome(alice()), 0);
    call.goes_on();
    std::fs::remove_file(world.relay.settings_file()).unwrap();
    let before = world.count("settings_reloads_total{outcome=\"refused\"}");
    system::ask_to_reload(world.relay.process_id().unwrap());
    world.until("the missing file is noticed", |_| {
        world.count("settings_reloads_total{outcome=\"refused\"}") > before
    });
    assert_eq!(world.outcome(alice()), 0);
    world.ends();
}

#[test]
fn what_waits_for_a_restart_is_said() {
    let world = World::start(|_| ());
    let mut call = world.call(Transport::Udp, world.relay.guest());
    world.reload("taken", |settings| {
        set(settings, "auth.realm", "elsewhere");
        set(settings, "listen.ports", Value::Array(vec![3478.into()]));
        set(settings, "shard.count", 3);
        set(settings, "ops.listen", "127.0.0.1:1");
    });
    let log = world.relay.log();
    for setting in ["auth.realm", "listen.ports", "shard", "ops"] {
        assert!(
            log.contains(&format!("waits for a restart setting=\"{setting}\"")),
            "{log}"
        );
    }
    call.goes_on();
    assert!(
        call.refresh().iter().all(|code| *code == 0),
        "its keys are made from the old realm"
    );
    assert_eq!(world.outcome(world.relay.guest()), 0, "it is where it was");
    world.ends();
}

#[test]
fn a_nonce_outlives_a_reload() {
    let world = World::start(|_| ());
    let mut client = world.relay.client(Transport::Udp, world.relay.guest()).unwrap();
    client.challenge().unwrap();
    let nonce = client.nonce.clone();
    world.reload("taken", |_| ());
    let answer = client.allocate_with(|request| request).unwrap();
    assert_eq!(
        (answer.outcome(), client.nonce == nonce),
        (0, true),
        "no second challenge was needed"
    );
    world.ends();
}

// ---- The end

#[test]
fn sigterm_lets_a_call_end_by_itself() {
    let mut world = World::start(|settings| set(settings, "lifecycle.drain", "1h"));
    let mut call = world.call(Transport::Udp, world.relay.guest());
    world.relay.ask_to_end();
    world.until("it says that it ends", |relay| {
        let ready = relay.tells("/health/ready").unwrap();
        ready.contains(" 503 ") && ready.contains("waiting for the end")
    });
    world.until("it takes no new calls", |_| world.outcome(world.relay.guest()) == 508);
    call.goes_on();
    assert_eq!(call.refresh(), [0, 0]);
    call.hang_up();
    assert_eq!(world.relay.wait(PATIENCE).unwrap().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_call_at_once() {
    for second in ["-TERM", "-INT"] {
        let mut world = World::start(|settings| set(settings, "lifecycle.drain", "1h"));
        let mut call = world.call(Transport::Tcp, world.relay.guest());
        world.relay.ask_to_end();
        world.until("it says that it ends", |relay| {
            relay.tells("/health/ready").unwrap().contains(" 503 ")
        });
        call.goes_on();
        world.signal(second);
        assert_eq!(world.relay.wait(PATIENCE).unwrap().unwrap().code(), Some(0), "{second}");
        assert!(call.ends[0].link.has_ended_within(PATIENCE), "its streams are closed");
    }
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let mut world = World::start(|settings| set(settings, "lifecycle.drain", "100ms"));
    let _call = world.call(Transport::Udp, world.relay.guest());
    world.relay.ask_to_end();
    assert_eq!(world.relay.wait(PATIENCE).unwrap().unwrap().code(), Some(0));
    assert!(world.relay.log().contains("Deadline"), "{}", world.relay.log());
}

#[test]
fn a_relay_that_died_starts_again_in_the_same_place() {
    let mut world = World::start(|_| ());
    let mut calls = Vec::from(Transport::ALL.map(|transport| world.call(transport, world.relay.guest())));
    world.relay.kill();
    for call in &mut calls[1..] {
        assert!(call.ends[0].link.has_ended_within(PATIENCE));
    }
    world.relay.start(PATIENCE).unwrap();
    for transport in Transport::ALL {
        world.call(transport, world.relay.guest()).goes_on();
    }
    world.end_at_once();
}

#[test]
fn the_service_manager_hears_ready_when_clients_are_served_and_stopping_at_the_end() {
    let mut world = World::prepare(|_| ());
    let path = world.relay.folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut run = world.relay.command("run");
    run.env("NOTIFY_SOCKET", &path);
    world.relay.start_as(run).unwrap();
    assert_eq!(hear(), "READY=1\n");
    assert_eq!(world.outcome(world.relay.guest()), 0);
    world.relay.ask_to_end();
    assert_eq!(hear(), "STOPPING=1\n");
    world.signal("-TERM");
    assert_eq!(world.relay.wait(PATIENCE).unwrap().unwrap().code(), Some(0));
}

// ---- What the operator sees, and does not see

#[test]
fn metrics_count_calls_and_nothing_says_who_called() {
    let world = World::start(|settings| {
        with_alice(settings);
        set(settings, "log.level", "trace");
    });
    let mut traces = vec!["127.0.0.".to_owned(), "alice".to_owned(), world.relay.secret.clone()];
    for transport in Transport::ALL {
        let who = world.relay.guest();
        traces.push(who.user.clone());
        let mut call = world.call(transport, who);
        for client in &call.ends {
            traces.push(client.local().to_string());
        }
        traces.extend(call.relayed.map(|relayed| relayed.to_string()));
        call.goes_on();
        call.hang_up();
    }
    let outside = peer().unwrap();
    let mut client = world.relay.client(Transport::Udp, alice()).unwrap();
    client.allocate();
    assert_eq!(client.permit(SocketAddr::from(([10, 0, 0, 1], 5_000))), 403);
    assert_eq!(client.permit(outside.local_addr().unwrap()), 0);
    client.send_to(outside.local_addr().unwrap(), b"hello");
    arrived(&outside);
    assert_eq!(world.outcome(Who::new("mallory", "wrong password")), 401);
    traces.extend(["mallory".to_owned(), "10.0.0.1".to_owned()]);

    world.every_shard_reports();
    assert_eq!(world.count("allocation_live"), 1.0);
    // Each client's first request, and those of mallory and for a private peer.
    assert_eq!(world.count("control_refused_total"), 10.0);
    assert_eq!(
        world.count("control_refused_total{stage=\"auth\",reason=\"credential\"}"),
        1.0
    );
    assert_eq!(
        world.count("control_refused_total{stage=\"peers\",reason=\"special\"}"),
        1.0
    );
    assert_eq!(world.count("control_successes_total{method=\"allocate\"}"), 7.0);
    assert_eq!(world.count("forwarding_packets_total{direction=\"to_peers\"}"), 1.0);
    assert!(world.count("forwarding_packets_total{direction=\"within\"}") >= 12.0);
    assert_eq!(world.count("streams_accepted_total"), 4.0);
    assert_eq!(world.count("streams_handshakes_total"), 2.0);
    let live = world.relay.tells("/health/live").unwrap();
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
    // A relay that ends says more.
    world.relay.ask_to_end();
    world.until("it says so", |relay| relay.log().contains("stopping"));
    let said = world.relay.log() + &world.relay.tells("/metrics").unwrap();
    for trace in traces {
        assert!(!said.contains(&trace), "{trace} is in what the operator sees: {said}");
    }
}

#[test]
fn its_memory_is_in_no_core_dump() {
    let world = World::start(|_| ());
    let process = world.relay.process_id().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
}

// ---- Helpers

struct World {
    relay: Relay,
    _folder: TempDir,
}

impl World {
    fn prepare(change: impl FnOnce(&mut Table)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let relay = Relay::prepare(folder.path(), None, |_| ()).unwrap();
        write_password(folder.path());
        relay.write_settings(change).unwrap();
        Self { relay, _folder: folder }
    }

    fn start(change: impl FnOnce(&mut Table)) -> Self {
        let mut world = Self::prepare(change);
        world.relay.start(PATIENCE).unwrap();
        world
    }

    fn write_secret(&self, name: &str, secret: &str) {
        quietline_lab::keys::write_secret(&self.relay.folder.join(name), secret.as_bytes()).unwrap();
    }

    /// Two clients of one server, joined by channels.
    fn call(&self, transport: Transport, who: Who) -> Call {
        let mut ends = [(); 2].map(|()| self.relay.client(transport, who.clone()).unwrap());
        let relayed = [ends[0].allocate(), ends[1].allocate()];
        assert_eq!(ends[0].bind(CHANNEL, relayed[1]), 0);
        assert_eq!(ends[1].bind(CHANNEL, relayed[0]), 0);
        let mut call = Call { ends, relayed };
        call.goes_on();
        call
    }

    /// What an Allocate of a new client comes to; what it got is given back.
    fn outcome(&self, who: Who) -> u16 {
        let mut client = self.relay.client(Transport::Udp, who).unwrap();
        let outcome = client.allocate_with(|request| request).unwrap().outcome();
        if outcome == 0 {
            assert!(client.refresh(0).unwrap().is_success());
        }
        outcome
    }

    /// SIGHUP with these settings; returns when they hold in every shard.
    fn reload(&self, outcome: &str, change: impl FnOnce(&mut Table)) {
        let name = format!("settings_reloads_total{{outcome=\"{outcome}\"}}");
        let before = self.count(&name);
        self.relay.reload(change).unwrap();
        self.until("the settings were read again", |_| self.count(&name) > before);
        // Orders are obeyed in their order: shards that have answered a later one have the settings.
        self.every_shard_reports();
    }

    /// Returns when every shard has said what it had counted by now, or later; each second they are asked to.
    fn every_shard_reports(&self) {
        let reports = || self.count("shard_reports_total");
        let seen = reports();
        // The next one may have been asked for before.
        self.until("every shard has reported twice", |_| reports() >= seen + 2.0);
    }

    fn count(&self, line: &str) -> f64 {
        let metrics = self.relay.metrics().unwrap();
        match line.split_once('{') {
            Some((name, labels)) => metrics.sum_where(name, labels.trim_end_matches('}')),
            None => metrics.sum(line),
        }
        .unwrap_or_default()
    }

    fn until(&self, what: &str, is_so: impl Fn(&Relay) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.relay) {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.relay.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn signal(&self, name: &str) {
        let process = self.relay.process_id().unwrap().to_string();
        assert!(Command::new("kill").args([name, &process]).status().unwrap().success());
    }

    fn end_at_once(&mut self) {
        self.relay.ask_to_end();
        self.until("it says that it ends", |relay| relay.log().contains("stopping"));
        // It may have ended by itself.
        let process = self.relay.process_id().unwrap();
        system::ask_to_end(process);
        assert_eq!(self.relay.wait(PATIENCE).unwrap().unwrap().code(), Some(0));
    }

    fn ends(mut self) {
        self.end_at_once();
    }
}

struct Call {
    ends: [Client; 2],
    relayed: [SocketAddr; 2],
}

const CHANNEL: u16 = 0x4000;

impl Call {
    /// A packet each way.
    fn goes_on(&mut self) {
        for from_second in [false, true] {
            let [first, second] = &mut self.ends;
            let (from, to) = if from_second { (second, first) } else { (first, second) };
            let said = random::<40>().to_vec();
            from.send_on(CHANNEL, &said);
            assert_eq!(to.next(), Some(Packet::Channel(CHANNEL, said)));
        }
    }

    fn refresh(&mut self) -> [u16; 2] {
        let codes = self.ends.each_mut();
        codes.map(|end| {
            let answer = end.refresh(600).unwrap();
            assert!(!answer.is_success() || answer.has(attribute::LIFETIME));
            answer.outcome()
        })
    }

    fn hang_up(&mut self) {
        for end in &mut self.ends {
            assert!(end.refresh(0).unwrap().is_success());
        }
    }
}

fn alice() -> Who {
    Who::new("alice", "053c268164bc7bd7")
}

fn with_alice(settings: &mut Table) {
    let mut user = Table::new();
    user.insert("name".to_owned(), "alice".into());
    user.insert("password_file".to_owned(), "keys/alice".into());
    set(settings, "auth.user", Value::Array(vec![user.into()]));
}

fn write_password(folder: &Path) {
    quietline_lab::keys::write_secret(&folder.join("keys/alice"), alice().password.as_bytes()).unwrap();
}

fn timed(files: &[&str]) -> Value {
    let secret = |file: &&str| Value::Table(Table::from_iter([("secret_file".to_owned(), (*file).into())]));
    Value::Array(files.iter().map(secret).collect())
}

fn arrived(peer: &UdpSocket) -> Vec<u8> {
    let (_, data) = quietline_lab::turn::client::arrived(peer, PATIENCE).unwrap();
    data
}

fn system_free_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], quietline_lab::ports::free()))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
