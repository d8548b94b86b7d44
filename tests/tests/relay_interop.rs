//! Foreign clients talk through the relay: coturn's tools, aioice, aiortc, turn-client-proto.
//!
//! A run passes only if what the client printed, read number by number, says that every message came back at a paced rate; an exit code
//! alone says nothing. The same runs against a port on which nobody listens must fail, and against Debian's coturn they must pass.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use quietline_lab::settings::set;
use quietline_lab::turn::net::Network;
use quietline_lab::turn::server::{
    CLIENT, Helper, Make, PEER, PEER_V6, PORT, SERVER, Site, TLS_PORT, Transport, alice,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use toml::Table;
use turn_client_proto::api::{TransmitBuild, TurnClientApi, TurnConfig, TurnEvent, TurnRecvRet};
use turn_client_proto::prelude::DelayedTransmitBuild;
use turn_client_proto::stun::Instant as SansIoInstant;
use turn_client_proto::stun::agent::Transmit;
use turn_client_proto::stun::auth::Feature;
use turn_client_proto::types::stun::message::IntegrityAlgorithm;
use turn_client_proto::types::{TransportType, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;

/// Messages of each client, and the milliseconds between two of them.
const MESSAGES: u32 = 100;
const PAUSE: u32 = 20;
/// Longest life of one foreign client.
const PATIENCE: Duration = Duration::from_secs(60);
const PEER_PORT: u16 = 3480;
/// Nobody listens there.
const CLOSED_PORT: u16 = 3999;

// ---- turnutils_uclient

/// One way to use turnutils_uclient.
struct Way {
    name: &'static str,
    words: &'static [&'static str],
    transport: Transport,
    /// Allocations that send messages.
    clients: u32,
    /// Whether it binds channels.
    has_channels: bool,
}

const TO_PEER: [&str; 4] = ["-e", "1.2.5.1", "-r", "3480"];

/// Every way but those that shall fail. `-c` everywhere: with an RTCP pair each client draws one channel number more.
const WAYS: &[Way] = &[
    Way {
        name: "UDP, channels, DONT-FRAGMENT",
        words: &["-c", "-X", "-g", "-l", "170"],
        transport: Transport::Udp,
        clients: 1,
        has_channels: true,
    },
    Way {
        name: "UDP, Send and Data",
        words: &["-s", "-l", "1200"],
        transport: Transport::Udp,
        clients: 4,
        has_channels: false,
    },
    Way {
        name: "UDP, padded channels",
        words: &["-c", "-D", "-l", "171"],
        transport: Transport::Udp,
        clients: 1,
        has_channels: true,
    },
    Way {
        name: "UDP, client to client",
        words: &["-y", "-c"],
        transport: Transport::Udp,
        clients: 2,
        has_channels: true,
    },
    Way {
        name: "UDP, client to client with RTCP, Send and Data",
        words: &["-y", "-s"],
        transport: Transport::Udp,
        clients: 8,
        has_channels: false,
    },
    Way {
        name: "UDP, IPv6 relay, Send and Data",
        words: &["-x", "-s", "-c", "-e", "2a00:3::1", "-r", "3480"],
        transport: Transport::Udp,
        clients: 2,
        has_channels: false,
    },
    Way {
        name: "UDP, IPv6 relay, client to client",
        words: &["-x", "-y", "-c"],
        transport: Transport::Udp,
        clients: 2,
        has_channels: true,
    },
    Way {
        name: "TCP, channels",
        words: &["-t", "-c", "-l", "170"],
        transport: Transport::Tcp,
        clients: 1,
        has_channels: true,
    },
    Way {
        name: "TCP, Send and Data",
        words: &["-t", "-s", "-l", "333"],
        transport: Transport::Tcp,
        clients: 4,
        has_channels: false,
    },
    Way {
        name: "TCP, client to client",
        words: &["-t", "-y", "-c"],
        transport: Transport::Tcp,
        clients: 2,
        has_channels: true,
    },
    Way {
        name: "TLS, channels",
        words: &["-t", "-S", "-c", "-l", "170"],
        transport: Transport::Tls,
        clients: 1,
        has_channels: true,
    },
    Way {
        name: "TLS, Send and Data",
        words: &["-t", "-S", "-s", "-l", "333"],
        transport: Transport::Tls,
        clients: 4,
        has_channels: false,
    },
    Way {
        name: "TLS, client to client, Send and Data",
        words: &["-t", "-S", "-y", "-c", "-s"],
        transport: Transport::Tls,
        clients: 2,
        has_channels: false,
    },
];

impl Way {
    /// Runs it to its end, and reads what it says.
    fn run(&self, site: &Site, port: Option<u16>, credential: &[&str]) -> Result<(), String> {
        let port = port.unwrap_or(match (self.transport, site.make) {
            (Transport::Tls, Make::Coturn) => TLS_PORT,
            _ => PORT,
        });
        let mut words: Vec<String> = self.words.iter().map(|word| (*word).to_owned()).collect();
        if !self.words.contains(&"-y") && !self.words.contains(&"-e") {
            words.extend(TO_PEER.map(str::to_owned));
        }
        if self.transport == Transport::Tls {
            words.extend(["-E".to_owned(), site.folder.join("ca.pem").display().to_string()]);
        }
        words.extend([
            "-n".to_owned(),
            MESSAGES.to_string(),
            "-m".to_owned(),
            self.clients.to_string(),
        ]);
        words.extend(["-z".to_owned(), PAUSE.to_string(), "-p".to_owned(), port.to_string()]);
        words.extend(["-L".to_owned(), CLIENT.to_string()]);
        words.extend(credential.iter().map(|word| (*word).to_owned()));
        words.push(SERVER.to_string());
        let output = self.run_until_channels_fit(site, &words)?;
        Uclient::read(&output)?.is_whole(self.clients * MESSAGES)
    }

    /// uclient 4.6 draws channel numbers from 0x4000..0x8000, of which RFC 8656 §12 leaves 0x4000..0x5000, so three of four that it draws
    /// are refused with 400, as they must be, and it gives up. It then draws again; later ones draw within the range.
    fn run_until_channels_fit(&self, site: &Site, words: &[String]) -> Result<String, String> {
        const REFUSED: &str = "channel bind: error 400";
        let mut output = String::new();
        // Two numbers have to fit, so one of 16 runs goes on; 400 in vain happen once in 10¹¹.
        for _ in 0..400 {
            output = run(&site.world, "turnutils_uclient", words, PATIENCE)?;
            if !self.has_channels || !output.contains(REFUSED) {
                return Ok(output);
            }
        }
        Err(format!("it never bound its channels:\n{output}"))
    }
}

/// What turnutils_uclient says at its end.
#[derive(Debug, PartialEq)]
struct Uclient {
    sent: u32,
    received: u32,
    lost: u32,
    send_dropped: u32,
    /// Whole seconds.
    transmit_time: u32,
}

impl Uclient {
    fn read(output: &str) -> Result<Self, String> {
        let after = |name: &str| {
            let at = output
                .rfind(name)
                .ok_or_else(|| format!("it says no \"{name}\":\n{output}"))?;
            let digits: String = output[at + name.len()..]
                .chars()
                .skip_while(|character| *character == ' ')
                .take_while(char::is_ascii_digit)
                .collect();
            digits
                .parse()
                .map_err(|_| format!("no number after \"{name}\":\n{output}"))
        };
        Ok(Self {
            sent: after("tot_send_msgs=")?,
            received: after("tot_recv_msgs=")?,
            lost: after("Total lost packets")?,
            send_dropped: after("total send dropped")?,
            transmit_time: after("Total transmit time is")?,
        })
    }

    /// Every message came back, and they were not sent all at once.
    fn is_whole(&self, wanted: u32) -> Result<(), String> {
        let is_whole = self.sent == wanted && self.received == wanted && self.lost == 0 && self.send_dropped == 0;
        let is_paced = self.transmit_time + 1 >= MESSAGES * PAUSE / 1000;
        if is_whole && is_paced {
            Ok(())
        } else {
            Err(format!("{self:?} instead of {wanted} messages"))
        }
    }
}

/// Runs a foreign program to its end, and gives all that it printed. One that does not end in time is ended, and says so.
fn run(network: &Network, program: &str, words: &[String], patience: Duration) -> Result<String, String> {
    let output = network.run(|| {
        Command::new("timeout")
            .args(["--kill-after=5", &patience.as_secs().to_string(), program])
            .args(words)
            .stdin(Stdio::null())
            .output()
    });
    let output = output.map_err(|fault| format!("{program}: {fault}; .ci/setup installs it"))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn echo_peers(site: &Site) -> Helper {
    let port = PEER_PORT.to_string();
    let (peer, peer_v6) = (PEER.to_string(), PEER_V6.to_string());
    let helper = Helper::start(
        &site.world,
        "turnutils_peer",
        &["-L", &peer, "-L", &peer_v6, "-p", &port],
    );
    // It is there when it answers.
    let probe = site.peer();
    let deadline = Instant::now() + PATIENCE;
    probe.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while probe.send_to(b"echo", (PEER, PEER_PORT)).is_err() || probe.recv(&mut [0; 16]).is_err() {
        assert!(Instant::now() < deadline, "turnutils_peer does not answer");
    }
    helper
}

/// All ways at once: each sleeps most of its time. The names of those that fail, with why.
fn every_way(site: &Site, port: Option<u16>, credential: &[&str]) -> BTreeMap<&'static str, String> {
    let _peers = echo_peers(site);
    std::thread::scope(|scope| {
        let runs: Vec<_> = WAYS
            .iter()
            .map(|way| (way.name, scope.spawn(move || way.run(site, port, credential))))
            .collect();
        let ended = runs.into_iter().map(|(name, run)| (name, run.join().unwrap()));
        ended
            .filter_map(|(name, outcome)| Some((name, outcome.err()?)))
            .collect()
    })
}

#[test]
fn another_relay_passes_in_every_way_that_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::coturn(folder.path(), &[]);
    let who = alice();
    let mut failed = every_way(&site, None, &["-u", &who.user, "-w", &who.password]);
    // uclient reads one message of a TLS record, and coturn puts two into one when both are ready.
    failed.retain(|name, _| !name.starts_with("TLS"));
    assert!(failed.is_empty(), "{failed:#?}");
    let failed = every_way(&site, Some(CLOSED_PORT), &["-u", &who.user, "-w", &who.password]);
    assert_eq!(failed.len(), WAYS.len(), "a run against a closed port passed");
    let failed = every_way(&site, None, &["-u", &who.user, "-w", "not the password"]);
    assert_eq!(failed.len(), WAYS.len(), "a run with a wrong password passed");
}

#[test]
fn other_clients_pass_with_another_relay_and_fail_without() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::coturn(folder.path(), &[]);
    others(&site);
    let password = alice().password;
    let call = |port, integrity, userhash| proto_call(&site, port, integrity, userhash, &password);
    call(PORT, IntegrityAlgorithm::Sha1, Feature::Disabled).unwrap();
    call(CLOSED_PORT, IntegrityAlgorithm::Sha1, Feature::Disabled).unwrap_err();
    // coturn does not know SHA-256, and this client does not go below what it was told.
    call(PORT, IntegrityAlgorithm::Sha256, Feature::Required).unwrap_err();
}

/// turnutils_stunclient and aioice, all at once.
fn others(site: &Site) {
    std::thread::scope(|scope| {
        scope.spawn(|| stun_client(site, PORT).unwrap());
        scope.spawn(|| stun_client(site, CLOSED_PORT).unwrap_err());
        for transport in Transport::ALL {
            scope.spawn(move || aioice_call(site, transport, None).unwrap());
            scope.spawn(move || aioice_call(site, transport, Some(CLOSED_PORT)).unwrap_err());
        }
    });
}

// ---- turnutils_stunclient

/// It must print the address that it has.
fn stun_client(site: &Site, port: u16) -> Result<(), String> {
    let words = ["-p", &port.to_string(), "-L", &CLIENT.to_string(), &SERVER.to_string()].map(str::to_owned);
    let output = run(&site.world, "turnutils_stunclient", &words, Duration::from_secs(5))?;
    let reflexive = format!("UDP reflexive addr: {CLIENT}:");
    if output.contains(&reflexive) {
        Ok(())
    } else {
        Err(output)
    }
}

// ---- aioice

fn aioice_call(site: &Site, transport: Transport, port: Option<u16>) -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/aioice_call.py");
    let (server, name) = match transport {
        Transport::Udp => (site.server(), "udp"),
        Transport::Tcp => (site.server(), "tcp"),
        Transport::Tls => (site.server_tls(), "tls"),
    };
    let who = alice();
    let words = [
        script.display().to_string(),
        server.ip().to_string(),
        port.unwrap_or(server.port()).to_string(),
        name.to_owned(),
        who.user,
        who.password,
        MESSAGES.to_string(),
        format!("{}", f64::from(PAUSE) / 1000.0),
        site.folder.join("ca.pem").display().to_string(),
    ];
    // It asks a closed port again and again for a minute.
    let patience = if port.is_some() {
        Duration::from_secs(8)
    } else {
        PATIENCE
    };
    // Debian's own: another Python would not see Debian's aioice.
    let output = run(&site.world, "/usr/bin/python3", &words, patience)?;
    let line = output.lines().rev().find(|line| line.starts_with('{')).ok_or(&output)?;
    let said: Value = serde_json::from_str(line).map_err(|fault| format!("{fault}: {line}"))?;
    let number = |name: &str| said[name].as_u64();
    let all = Some(u64::from(MESSAGES));
    let is_whole = number("sent") == all && number("arrived") == all && number("returned") == all;
    let is_paced = said["seconds"].as_f64() >= Some(f64::from(MESSAGES * PAUSE) / 1000.0);
    if is_whole && is_paced { Ok(()) } else { Err(output) }
}

// ---- aiortc

/// Sound, pictures and messages of two calls.
fn aiortc_calls(site: &Site, transport: Transport, port: u16) -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/aiortc_call.py");
    let (scheme, name) = match transport {
        Transport::Udp => ("turn", "udp"),
        Transport::Tcp => ("turn", "tcp"),
        Transport::Tls => ("turns", "tcp"),
    };
    let who = alice();
    let words = [
        script.display().to_string(),
        format!("{scheme}:{SERVER}:{port}?transport={name}"),
        who.user,
        who.password,
        MESSAGES.to_string(),
        site.folder.join("ca.pem").display().to_string(),
    ];
    let patience = if port == CLOSED_PORT {
        Duration::from_secs(8)
    } else {
        PATIENCE
    };
    let output = run(&site.world, "/usr/bin/python3", &words, patience)?;
    let line = output.lines().rev().find(|line| line.starts_with('{')).ok_or(&output)?;
    let said: Value = serde_json::from_str(line).map_err(|fault| format!("{fault}: {line}"))?;
    let is_whole = ["sound", "pictures"].into_iter().all(|call| {
        let number = |name: &str| said[call][name].as_u64();
        said[call]["returned"] == true
            && number("frames") >= Some(10)
            && number("lost") == Some(0)
            && number("candidates") >= Some(2)
    });
    if is_whole { Ok(()) } else { Err(output) }
}

#[test]
fn aiortc_calls_with_sound_and_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let site = our_relay(folder.path(), |_| {});
    std::thread::scope(|scope| {
        let site = &site;
        for transport in Transport::ALL {
            scope.spawn(move || {
                aiortc_calls(site, transport, PORT).unwrap_or_else(|said| panic!("{transport:?}: {said}"))
            });
        }
        scope.spawn(|| aiortc_calls(site, Transport::Udp, CLOSED_PORT).unwrap_err());
    });
}

// ---- turn-client-proto

/// One client of a foreign implementation without sockets, and the socket for it.
struct Foreign {
    socket: UdpSocket,
    client: TurnClientUdp,
    server: SocketAddr,
    started: Instant,
    relayed: Option<SocketAddr>,
    permitted: usize,
    channels: usize,
    failed: Vec<String>,
    received: Vec<(SocketAddr, Vec<u8>)>,
    /// For whoever reads a failed test.
    last: Vec<u8>,
}

impl Foreign {
    fn new(site: &Site, port: u16, integrity: IntegrityAlgorithm, userhash: Feature, password: &str) -> Self {
        let mut config = TurnConfig::new(TurnCredentials::new(&alice().user, password));
        config.set_supported_integrity(integrity);
        config.set_anonymous_username(userhash);
        let socket = site.world.udp(CLIENT, 0);
        let server = SocketAddr::from((SERVER, port));
        Self {
            client: TurnClientUdp::allocate(socket.local_addr().unwrap(), server, config),
            socket,
            server,
            started: Instant::now(),
            relayed: None,
            permitted: 0,
            channels: 0,
            failed: Vec::new(),
            received: Vec::new(),
            last: Vec::new(),
        }
    }

    fn now(&self) -> SansIoInstant {
        SansIoInstant::from_nanos(i64::try_from(self.started.elapsed().as_nanos()).unwrap())
    }

    /// Moves what can be moved, and waits a moment for what comes.
    fn turn(&mut self) {
        let now = self.now();
        self.client.poll(now);
        while let Some(transmit) = self.client.poll_transmit(now) {
            let _ = self.socket.send_to(&transmit.data, transmit.to);
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                TurnEvent::AllocationCreated(_, relayed) => self.relayed = Some(relayed),
                TurnEvent::PermissionCreated(..) => self.permitted += 1,
                TurnEvent::ChannelCreated(..) => self.channels += 1,
                other => self.failed.push(format!("{other:?}")),
            }
        }
        self.socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut room = [0; 2048];
        while let Ok((length, from)) = self.socket.recv_from(&mut room) {
            let local = self.socket.local_addr().unwrap();
            self.last = room[..length].to_vec();
            let transmit = Transmit::new(room[..length].to_vec(), TransportType::Udp, from, local);
            let now = self.now();
            if let TurnRecvRet::PeerData(data) = self.client.recv(transmit, now) {
                self.received.push((data.peer, data.data().to_vec()));
            }
            while let Some(data) = self.client.poll_recv(now) {
                self.received.push((data.peer, data.data().to_vec()));
            }
        }
    }

    fn until(&mut self, what: &str, patience: Duration, is_so: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while !is_so(self) {
            self.turn();
            if Instant::now() > deadline || !self.failed.is_empty() {
                return Err(format!(
                    "{what}: {:?}; the last packet: {}",
                    self.failed,
                    hex::encode(&self.last)
                ));
            }
        }
        Ok(())
    }

    fn send(&mut self, to: SocketAddr, data: &[u8]) -> Result<(), String> {
        let now = self.now();
        let sent = self.client.send_to(TransportType::Udp, to, data.to_vec(), now);
        if let Some(transmit) = sent.map_err(|fault| fault.to_string())? {
            let TransmitBuild { data, .. } = transmit;
            let bytes = data.build();
            self.socket
                .send_to(&bytes, self.server)
                .map_err(|fault| fault.to_string())?;
        }
        Ok(())
    }
}

/// A call of two such clients: permissions first, then channels; every message must reach the other side and come back.
fn proto_call(
    site: &Site,
    port: u16,
    integrity: IntegrityAlgorithm,
    userhash: Feature,
    password: &str,
) -> Result<(), String> {
    let patience = if port == CLOSED_PORT {
        Duration::from_secs(3)
    } else {
        PATIENCE
    };
    let mut caller = Foreign::new(site, port, integrity, userhash, password);
    let mut callee = Foreign::new(site, port, integrity, userhash, password);
    for client in [&mut caller, &mut callee] {
        client.until("an allocation", patience, |client| client.relayed.is_some())?;
    }
    let (near, far) = (caller.relayed.unwrap(), callee.relayed.unwrap());
    for with_channels in [false, true] {
        for (client, peer) in [(&mut caller, far), (&mut callee, near)] {
            let now = client.now();
            if with_channels {
                let bound = client.client.bind_channel(TransportType::Udp, peer, now);
                bound.map_err(|fault| fault.to_string())?;
                client.until("a channel", patience, |client| client.channels == 1)?;
            } else {
                let permitted = client.client.create_permission(TransportType::Udp, peer.ip(), now);
                permitted.map_err(|fault| fault.to_string())?;
                client.until("a permission", patience, |client| client.permitted == 1)?;
            }
        }
        for number in 0..MESSAGES {
            let message = format!("message {number}, channels: {with_channels}").into_bytes();
            let back = [b"back ", &*message].concat();
            caller.send(far, &message)?;
            callee.until("a message", patience, |callee| {
                callee.received.contains(&(near, message.clone()))
            })?;
            callee.send(near, &back)?;
            caller.until("an echo", patience, |caller| {
                caller.received.contains(&(far, back.clone()))
            })?;
        }
    }
    let all = 2 * MESSAGES as usize;
    if (caller.received.len(), callee.received.len()) == (all, all) {
        Ok(())
    } else {
        Err(format!(
            "{} and {} messages",
            caller.received.len(),
            callee.received.len()
        ))
    }
}

// ---- our relay

fn password_of_alice() -> [String; 4] {
    let who = alice();
    ["-u".to_owned(), who.user, "-w".to_owned(), who.password]
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(|word| &**word).collect()
}

/// uclient ends without a word to the relay when its channels are refused, and is started again at once: allocations stay behind, and one
/// prefix opens hundreds of streams in a second.
fn our_relay(folder: &Path, change: impl FnOnce(&mut Table)) -> Site {
    Site::quietline(folder, |settings| {
        set(settings, "limits.allocations_per_prefix", 10_000);
        set(settings, "limits.challenges_per_second", 10_000);
        set(settings, "limits.challenge_burst", 10_000);
        set(settings, "streams.per_prefix", 10_000);
        set(settings, "streams.per_prefix_per_second", 10_000);
        change(settings);
    })
}

#[test]
fn turnutils_uclient_gets_every_message_back_in_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let site = our_relay(folder.path(), |_| {});
    let failed = every_way(&site, None, &words(&password_of_alice()));
    assert!(failed.is_empty(), "{failed:#?}\n{}", site.log());
    let failed = every_way(&site, Some(CLOSED_PORT), &words(&password_of_alice()));
    assert_eq!(failed.len(), WAYS.len(), "a run against a closed port passed");
}

#[test]
fn turnutils_uclient_gets_every_message_back_with_a_timed_credential() {
    const SECRET: &str = "a timed secret for foreign clients, 5b1e 0a77";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), SECRET).unwrap();
    let site = our_relay(folder.path(), |settings| {
        let mut timed = Table::new();
        timed.insert("secret_file".to_owned(), "secret".into());
        set(settings, "auth.timed", toml::Value::Array(vec![timed.into()]));
    });
    let failed = every_way(&site, None, &["-u", "somebody", "-W", SECRET]);
    assert!(failed.is_empty(), "{failed:#?}\n{}", site.log());
    let failed = every_way(&site, None, &["-u", "somebody", "-W", "another secret"]);
    assert_eq!(failed.len(), WAYS.len(), "a run with another secret passed");
}

#[test]
fn turnutils_stunclient_and_aioice_get_every_message_back() {
    let folder = tempfile::tempdir().unwrap();
    let site = our_relay(folder.path(), |_| {});
    others(&site);
}

#[test]
fn turn_client_proto_gets_every_message_back_with_sha_256_and_userhash() {
    let folder = tempfile::tempdir().unwrap();
    let site = our_relay(folder.path(), |_| {});
    let password = alice().password;
    std::thread::scope(|scope| {
        for (integrity, userhash) in [
            // Not with SHA-1: it then names MD5 as RFC 8489's algorithm, but knows no MESSAGE-INTEGRITY-SHA256, which §9.2.4 demands of
            // every answer to such a request.
            (IntegrityAlgorithm::Sha256, Feature::Disabled),
            (IntegrityAlgorithm::Sha256, Feature::Required),
        ] {
            let (site, password) = (&site, &password);
            scope.spawn(move || {
                proto_call(site, PORT, integrity, userhash, password)
                    .unwrap_or_else(|fault| panic!("{integrity:?}, {userhash:?}: {fault}"));
            });
        }
        scope.spawn(|| {
            proto_call(
                &site,
                CLOSED_PORT,
                IntegrityAlgorithm::Sha256,
                Feature::Required,
                &password,
            )
            .unwrap_err()
        });
    });
}

/// `-N` binds channels with numbers that are out of range or of another peer.
#[test]
fn the_negative_test_of_turnutils_uclient_is_refused_and_costs_nobody_else_anything() {
    let folder = tempfile::tempdir().unwrap();
    let site = our_relay(folder.path(), |_| {});
    let _peers = echo_peers(&site);
    for extra in [&["-N"][..], &["-N", "-t"], &["-N", "-x", "-y"]] {
        let mut all: Vec<String> = extra.iter().chain(&TO_PEER).map(|word| (*word).to_owned()).collect();
        if extra.contains(&"-y") {
            all.truncate(extra.len());
        }
        all.extend(["-p".to_owned(), PORT.to_string(), "-L".to_owned(), CLIENT.to_string()]);
        all.extend(password_of_alice());
        all.push(SERVER.to_string());
        let output = run(&site.world, "turnutils_uclient", &all, PATIENCE).unwrap();
        assert!(output.contains("channel bind: error 400"), "{extra:?}: {output}");
    }
    drop(_peers);
    let failed = every_way(&site, None, &words(&password_of_alice()));
    assert!(failed.is_empty(), "{failed:#?}");
}

/// `-R` overwrites bytes of one message in ten, requests too, and waits for ever for an answer to what it broke: so many try, and some get
/// to send. What they did not break must come back.
#[test]
fn the_negative_protocol_test_of_turnutils_uclient_loses_only_what_it_broke() {
    const RUNS: usize = 24;
    const EACH: u32 = 50;
    let folder = tempfile::tempdir().unwrap();
    let site = our_relay(folder.path(), |_| {});
    let peers = echo_peers(&site);
    let mut all: Vec<String> = ["-R", "-s", "-c", "-n"].iter().map(|word| (*word).to_owned()).collect();
    all.push(EACH.to_string());
    all.extend(TO_PEER.map(str::to_owned));
    all.extend(["-p".to_owned(), PORT.to_string(), "-L".to_owned(), CLIENT.to_string()]);
    all.extend(password_of_alice());
    all.push(SERVER.to_string());
    let outputs: Vec<String> = std::thread::scope(|scope| {
        let one = || run(&site.world, "turnutils_uclient", &all, Duration::from_secs(25)).unwrap();
        let runs: Vec<_> = (0..RUNS).map(|_| scope.spawn(one)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let ended: Vec<Uclient> = outputs.iter().filter_map(|output| Uclient::read(output).ok()).collect();
    let (sent, received) = ended.iter().fold((0, 0), |(sent, received), run| {
        (sent + run.sent, received + run.received)
    });
    // Each gets through its seven requests every other time.
    assert!(sent >= EACH, "none of {RUNS} got to send: {outputs:#?}");
    assert!(received * 10 >= sent * 8, "{received} of {sent} came back");
    drop(peers);
    let failed = every_way(&site, None, &words(&password_of_alice()));
    assert!(failed.is_empty(), "{failed:#?}");
}

/// DTLS is not built: its client must not get through, and must not leave anything.
#[test]
fn a_dtls_client_gets_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let site = our_relay(folder.path(), |_| {});
    let mut all = vec!["-S".to_owned(), "-y".to_owned(), "-c".to_owned()];
    all.extend(["-p".to_owned(), PORT.to_string(), "-L".to_owned(), CLIENT.to_string()]);
    all.extend(password_of_alice());
    all.push(SERVER.to_string());
    let output = run(&site.world, "turnutils_uclient", &all, Duration::from_secs(4)).unwrap();
    assert!(Uclient::read(&output).is_err(), "{output}");
    assert_eq!(site.metrics().sum("allocation_live"), Some(0.0));
}

// ---- the tests of the tests

#[test]
fn a_report_of_lost_messages_is_no_success() {
    let report = |sent: u32, received: u32, lost: u32, dropped: u32, seconds: u32| {
        Uclient::read(&format!(
            "5: : start_mclient: msz=4, tot_send_msgs=78, tot_recv_msgs=78, tot_send_bytes ~ 1, tot_recv_bytes ~ 1\n\
             6: : start_mclient: tot_send_msgs={sent}, tot_recv_msgs={received}\n\
             6: : Total transmit time is {seconds}\n\
             6: : Total lost packets {lost} (0.000000%), total send dropped {dropped} (0.000000%)\n"
        ))
        .unwrap()
        .is_whole(2 * MESSAGES)
    };
    report(200, 200, 0, 0, 4).unwrap();
    report(200, 199, 1, 0, 4).unwrap_err();
    report(200, 200, 0, 1, 4).unwrap_err();
    report(100, 100, 0, 0, 4).unwrap_err();
    report(0, 0, 0, 0, 4).unwrap_err();
    assert!(Uclient::read("0: : error 401 ()").is_err());
    assert!(Uclient::read("").is_err());
}
