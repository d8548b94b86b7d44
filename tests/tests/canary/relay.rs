//! The relay at the level that prints most goes through every path, good and bad; then everything that left the process but its packets
//! is searched for everything private that went in.

mod page;

use crate::crash::{SIGNALS, allow_core_dumps, assert_no_core, crash};
use crate::every_leak_would_be_found;
use crate::search::{Search, Sinks};
use quietline_lab::settings::set;
use quietline_lab::turn::client::{Client, Link, Login, PATIENCE, QUIET, UDP, Who, send_indication};
use quietline_lab::turn::server::{REALM, SERVER, Site, Transport, check, relay_settings, write_keys};
use quietline_lab::turn::stun::{Answer, Builder, attribute, channel_data, kind, random};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use toml::{Table, Value};

/// Long in text, so that no piece of one can be anything else.
const CLIENTS: [u8; 3] = [121, 134, 117];
const PEERS: [u8; 3] = [141, 156, 178];
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2a0b, 0x4c5d, 0x6e7f, 0x8192, 0xa3b4, 0xc5d6, 0xe7f8, 0x91a2);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2b1c, 0x5d6e, 0x7f80, 0x92a3, 0xb4c5, 0xd6e7, 0xf891, 0xa2b3);

#[test]
fn nothing_private_leaves_the_relay_with_a_log_for_people() {
    everything_then_search("text");
}

#[test]
fn nothing_private_leaves_the_relay_with_a_log_for_machines() {
    everything_then_search("json");
}

#[test]
fn a_relay_that_dies_in_a_call_leaves_no_core_dump() {
    for (name, number) in SIGNALS {
        let folder = tempfile::tempdir().unwrap();
        allow_core_dumps(folder.path());
        let mut world = World::start(folder.path(), "text");
        let mut live = world.client(Transport::Udp, world.users[0].clone());
        let _ = world.allocate(&mut live, false);
        crash(name, world.site.process_id(), PATIENCE);
        let ended = world.site.stop(PATIENCE).unwrap();
        assert_no_core(ended, number, folder.path());
    }
}

fn everything_then_search(format: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path(), format);
    world.calls();
    world.refused_strangers();
    world.refused_clients();
    world.malformed();
    world.streams();
    world.visits();
    world.audits(true);
    world.look();
    world.reloads();
    world.bad_starts();
    world.audits(false);
    world.look();
    let (sinks, values) = world.end();
    for sink in [
        "log",
        "/metrics",
        "/health/live",
        "/health/ready",
        "/transparency",
        "page",
        "/start",
        "audit",
        "command line",
        "names of threads",
        "bad starts",
    ] {
        assert!(sinks.length(sink) > 0, "nothing was gathered from {sink}");
    }
    assert!(values.values() > 300, "{} values", values.values());
    every_leak_would_be_found(&sinks, &values);
    let leaks = sinks.leaks(&values);
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}

struct World {
    site: Site,
    values: Search,
    sinks: Sinks,
    users: Vec<Who>,
    secret: String,
    next: u8,
}

/// Letters and digits of nothing else.
fn word() -> String {
    hex::encode(random::<14>())
}

fn user_settings(users: &[Who]) -> Value {
    let one = |(number, who): (usize, &Who)| {
        let mut user = Table::new();
        user.insert("name".to_owned(), who.user.clone().into());
        user.insert("password_file".to_owned(), format!("password-{number}").into());
        Value::Table(user)
    };
    Value::Array(users.iter().enumerate().map(one).collect())
}

fn timed_settings() -> Value {
    let mut timed = Table::new();
    timed.insert("secret_file".to_owned(), "timed".into());
    Value::Array(vec![Value::Table(timed)])
}

impl World {
    fn start(folder: &Path, format: &str) -> Self {
        let users = vec![Who::new(&word(), &word()), Who::new(&word(), &word())];
        let secret = word() + &word();
        for (number, who) in users.iter().enumerate() {
            std::fs::write(folder.join(format!("password-{number}")), &who.password).unwrap();
        }
        std::fs::write(folder.join("timed"), &secret).unwrap();
        let site = Site::quietline(folder, |settings| Self::settings(settings, &users, format));
        site.world.ip("addr add 121.134.117.0/24 dev lo");
        site.world.ip("addr add 141.156.178.0/24 dev lo");
        for ip in [CLIENT_V6, PEER_V6] {
            site.world.ip(&format!("addr add {ip}/128 dev lo nodad"));
        }
        let mut values = Search::default();
        for (number, who) in users.iter().enumerate() {
            values.mark(format!("name of user {number}"), who.user.as_bytes());
            values.mark(format!("password of user {number}"), who.password.as_bytes());
            for login in [Login::Md5, Login::Sha256] {
                let key = who.clone().with(login).key(REALM);
                values.mark_bytes(&format!("{login:?} key of user {number}"), key.as_bytes());
            }
        }
        values.mark("timed secret", secret.as_bytes());
        let pem = std::fs::read_to_string(folder.join("tls-key.pem")).unwrap();
        let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        values.mark("TLS key, base64 text", &text.as_bytes()[48..]);
        for (name, ip) in [("client", CLIENT_V6), ("peer", PEER_V6)] {
            values.mark(format!("IPv6 address of the {name}"), ip.to_string().as_bytes());
            values.mark_bytes(&format!("IPv6 address of the {name}, raw"), &ip.octets());
        }
        Self {
            site,
            values,
            sinks: Sinks::default(),
            users,
            secret,
            next: 200,
        }
    }

    fn settings(settings: &mut Table, users: &[Who], format: &str) {
        set(settings, "log.level", "trace");
        set(settings, "log.format", format);
        set(settings, "auth.user", user_settings(users));
        set(settings, "auth.timed", timed_settings());
        set(settings, "page.listen", page::PAGE.to_string());
        set(settings, "page.credentials_per_minute", 2);
        set(settings, "limits.allocations_per_prefix", 40);
        set(settings, "limits.permissions_per_allocation", 8);
        set(settings, "limits.channels_per_allocation", 8);
        set(settings, "limits.bandwidth_per_allocation", 100_000);
        set(settings, "streams.per_prefix", 8);
        for name in ["handshake", "first_message", "idle"] {
            set(settings, &format!("streams.{name}"), "3s");
        }
    }

    fn address(&mut self, [a, b, c]: [u8; 3]) -> Ipv4Addr {
        self.next = if self.next == 254 { 101 } else { self.next + 1 };
        let ip = Ipv4Addr::new(a, b, c, self.next);
        self.values.mark_address(&format!("address {ip}"), ip);
        ip
    }

    fn mark_socket(&mut self, name: &str, address: SocketAddr) {
        self.values
            .mark(format!("{name} {address}"), address.to_string().as_bytes());
    }

    fn client(&mut self, transport: Transport, who: Who) -> Client {
        let ip = self.address(CLIENTS);
        self.client_at(ip.into(), transport, who)
    }

    fn client_at(&mut self, ip: IpAddr, transport: Transport, who: Who) -> Client {
        let client = self.site.client_at(ip, transport, who);
        self.mark_socket("client", client.local());
        client
    }

    fn peer(&mut self) -> (UdpSocket, SocketAddr) {
        let ip = self.address(PEERS);
        self.peer_at(ip.into())
    }

    fn peer_at(&mut self, ip: IpAddr) -> (UdpSocket, SocketAddr) {
        let socket = self.site.peer_at(ip);
        let address = socket.local_addr().unwrap();
        self.mark_socket("peer", address);
        (socket, address)
    }

    fn payload(&mut self) -> Vec<u8> {
        let data = random::<40>().to_vec();
        self.values.mark("payload", &data);
        data
    }

    /// What an answer gave the client.
    fn mark_answer(&mut self, answer: Option<Answer>) -> Option<Answer> {
        let answer = answer?;
        self.values.mark("transaction", &answer.transaction);
        for relayed in answer.addresses(attribute::XOR_RELAYED_ADDRESS) {
            self.mark_socket("relayed address", relayed);
        }
        if let Some(nonce) = answer.get(attribute::NONCE) {
            self.values.mark("nonce", nonce);
        }
        Some(answer)
    }

    fn allocate(&mut self, client: &mut Client, is_v6: bool) -> SocketAddr {
        let challenge = client.challenge();
        self.mark_answer(challenge);
        let answer = client.allocate_with(|builder| match is_v6 {
            true => builder.attribute(attribute::REQUESTED_ADDRESS_FAMILY, [2, 0, 0, 0]),
            false => builder,
        });
        let answer = self.mark_answer(answer).expect("an Allocate is answered");
        let relayed = answer.address(attribute::XOR_RELAYED_ADDRESS);
        relayed.unwrap_or_else(|| panic!("no allocation: {}", answer.outcome()))
    }

    /// Each transport and family, Send and channels, there and back, relay to relay, and an ICMP error.
    fn calls(&mut self) {
        let sha256 = self.users[0].clone().with(Login::Sha256);
        let userhash = self.users[1].clone().with(Login::UserHash);
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
        let name = format!("{until}:{}", word());
        let timed = Who::timed(&name, &self.secret);
        // Its time is near to now, which is everywhere.
        self.values.mark("timed name", &name.as_bytes()[name.len() - 28..]);
        self.values.mark("timed password", timed.password.as_bytes());
        let ways = [
            (Transport::Udp, self.users[0].clone(), false),
            (Transport::Udp, sha256, true),
            (Transport::Tcp, userhash, false),
            (Transport::Tls, timed, false),
        ];
        for (transport, who, is_v6) in ways {
            let mut client = match is_v6 {
                true => self.client_at(CLIENT_V6.into(), transport, who),
                false => self.client(transport, who),
            };
            let relayed = self.allocate(&mut client, is_v6);
            let (peer, address) = if is_v6 {
                self.peer_at(PEER_V6.into())
            } else {
                self.peer()
            };
            assert_eq!(client.permit(address), 0);
            for with_channel in [false, true] {
                if with_channel {
                    assert_eq!(client.bind(0x4000, address), 0);
                }
                let (data, back) = (self.payload(), self.payload());
                match with_channel {
                    true => client.send_on(0x4000, &data),
                    false => client.send_to(address, &data),
                }
                assert_eq!(self.site.first_at(&peer), Some(data));
                peer.send_to(&back, relayed).unwrap();
                assert!(client.next().is_some());
            }
            // What a peer that is gone leads to. A kernel tells only so many a second, of all its networks together.
            drop(peer);
            let data = self.payload();
            let mut asked = (0..20).map(|_| {
                client.send_on(0x4000, &data);
                client.next_within(Duration::from_secs(1))
            });
            assert!(asked.any(|told| told.is_some()), "an ICMP error is told");
            assert!(client.refresh(0).is_some_and(|answer| answer.is_success()));
        }
        let (mut a, mut b) = (
            self.client(Transport::Udp, self.users[0].clone()),
            self.client(Transport::Tls, self.users[1].clone()),
        );
        let (near, far) = (self.allocate(&mut a, false), self.allocate(&mut b, false));
        assert_eq!((a.bind(0x4000, far), b.bind(0x4000, near)), (0, 0));
        let data = self.payload();
        a.send_on(0x4000, &data);
        assert!(b.next().is_some());
    }

    /// Who shows nothing valid: unknown, wrong, stale, forged.
    fn refused_strangers(&mut self) {
        for login in [Login::Md5, Login::Sha256, Login::UserHash] {
            let unknown = Who::new(&word(), &word()).with(login);
            self.values.mark("name of a stranger", unknown.user.as_bytes());
            let wrong = Who::new(&self.users[0].user, &word()).with(login);
            for who in [unknown, wrong] {
                let mut client = self.client(Transport::Udp, who);
                let answer = client.allocate_with(|builder| builder);
                assert_eq!(self.mark_answer(answer).and_then(|answer| answer.code()), Some(401));
            }
        }
        let mut client = self.client(Transport::Tcp, self.users[0].clone());
        let challenge = client.challenge();
        self.mark_answer(challenge);
        client.nonce = word().into_bytes();
        self.values.mark("forged nonce", &client.nonce.clone());
        let request = client.signed(Builder::new(kind::ALLOCATE).attribute(attribute::REQUESTED_TRANSPORT, UDP));
        let answer = client.ask(&request.build());
        assert_eq!(self.mark_answer(answer).and_then(|answer| answer.code()), Some(438));
        let ended = Who::timed(&format!("1000000000:{}", word()), &self.secret);
        self.values.mark("ended name", ended.user.as_bytes());
        let mut client = self.client(Transport::Udp, ended);
        let answer = client.allocate_with(|builder| builder);
        assert_eq!(self.mark_answer(answer).and_then(|answer| answer.code()), Some(401));
    }

    /// What clients are refused: peers, ports, too much of everything.
    fn refused_clients(&mut self) {
        let mut client = self.client(Transport::Udp, self.users[0].clone());
        let relayed = self.allocate(&mut client, false);
        let denied = Ipv4Addr::new(192, 168, 217, 193);
        self.values.mark_address("a denied peer", denied);
        let denied = SocketAddr::from((denied, 50_123));
        assert_eq!((client.permit(denied), client.bind(0x4000, denied)), (403, 403));
        client.send_to(denied, b"to a denied peer");
        let mapped = Ipv4Addr::new(192, 168, 217, 193).to_ipv6_mapped();
        self.values.mark("a mapped peer", mapped.to_string().as_bytes());
        assert_eq!(client.permit((mapped, 50_123).into()), 443);
        let (_peer, address) = self.peer();
        assert_eq!(client.bind(0x4000, SocketAddr::new(address.ip(), 53)), 403);
        assert_eq!(client.bind(0x5000, address), 400);
        assert_eq!(client.bind(0x4000, address), 0);
        assert_eq!(client.bind(0x4001, address), 400);
        assert_eq!(client.bind(0x4000, self.site.server()), 403);
        for _ in 0..10 {
            let (_, address) = self.peer();
            let _ = client.permit(address);
        }
        // More than its bandwidth, and from a peer without permission.
        for _ in 0..300 {
            client.send_on(0x4000, &[0x5A; 1_000]);
        }
        let (stranger, _) = self.peer();
        let data = self.payload();
        let _ = stranger.send_to(&data, relayed);
        client.who = self.users[1].clone();
        assert_eq!(client.refresh(600).and_then(|answer| answer.code()), Some(441));
        client.who = self.users[0].clone();
        let other = client.allocate_with(|builder| builder);
        assert_eq!(other.and_then(|answer| answer.code()), Some(437));
        assert!(client.refresh(0).is_some());
        let mut clients: Vec<Client> = Vec::new();
        let mut last = None;
        for _ in 0..41 {
            let mut client = self.client(Transport::Udp, self.users[0].clone());
            let answer = client.allocate_with(|builder| builder);
            last = self.mark_answer(answer).map(|answer| answer.outcome());
            clients.push(client);
        }
        assert_eq!(last, Some(486));
        for client in &mut clients {
            let _ = client.refresh(0);
        }
    }

    /// Bytes that are nothing, with marked ones among them.
    fn malformed(&mut self) {
        let mut client = self.client(Transport::Udp, self.users[0].clone());
        let marked = self.payload();
        let user = self.users[0].user.clone();
        for bytes in [
            marked.clone(),
            channel_data(0x4000, &marked, false),
            channel_data(0x4000, &marked, false)[..20].to_vec(),
            send_indication("1.2.5.1:1000".parse().unwrap(), &marked),
            Builder::new(kind::BINDING)
                .attribute(attribute::SOFTWARE, &marked)
                .raw(&marked[..7])
                .build(),
            Builder::new(kind::BINDING).attribute(0x7FFF, &marked).build(),
            Builder::new(0x0EEF).attribute(attribute::USERNAME, &user).build(),
            Builder::new(kind::ALLOCATE)
                .attribute(attribute::USERNAME, [user.as_bytes(), &[0xFF; 500]].concat())
                .build(),
            Builder::new(kind::ALLOCATE)
                .attribute(attribute::NONCE, [&marked[..], &[b'n'; 800]].concat())
                .build(),
        ] {
            client.link.send(&bytes).unwrap();
        }
        while client.next_within(QUIET).is_some() {}
        assert_eq!(client.is_silent(), Ok(()));
    }

    /// Streams that are too slow, too many, no TLS, no STUN, or end in the middle.
    fn streams(&mut self) {
        let marked = self.payload();
        let ip = self.address(CLIENTS);
        let hello = [&[0x16, 3, 1, 0, 200][..], &marked, &marked, &marked, &marked, &marked].concat();
        let texts = [
            [b"GET /", &marked[..], b" HTTP/1.1\r\n\r\n"].concat(),
            hello,
            [&[0xC0; 20][..], &marked].concat(),
            Vec::new(),
            Builder::new(kind::BINDING)
                .attribute(attribute::SOFTWARE, &marked)
                .build()[..30]
                .to_vec(),
        ];
        for bytes in texts {
            let mut stream = self.site.tcp(ip.into(), self.site.server());
            let local = stream.local_addr().unwrap();
            self.mark_socket("stream", local);
            let _ = stream.write_all(&bytes);
            assert!(Link::tcp(stream).unwrap().has_ended_within(PATIENCE));
        }
        let many: Vec<_> = (0..20).map(|_| self.site.tcp(ip.into(), self.site.server())).collect();
        drop(many);
        // While they are counted, the next ones are refused.
        let sum = |name| self.site.metrics().sum(name).unwrap_or(0.0);
        let (reports, deadline) = (sum("shard_reports_total"), std::time::Instant::now() + PATIENCE);
        while sum("shard_reports_total") < reports + 2.0 || sum("streams_open") > 2.0 {
            assert!(
                std::time::Instant::now() < deadline,
                "closed streams are no longer counted"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let mut within_tls = self.site.client_at(ip, Transport::Tls, self.users[0].clone());
        let _ = within_tls.link.send(&marked);
        let mut live = self.client(Transport::Tls, self.users[0].clone());
        let _ = self.allocate(&mut live, false);
        drop(live);
    }

    /// Settings that changed, that are broken, and whose secrets are.
    fn reloads(&mut self) {
        let users = self.users.clone();
        let format = "text";
        let before = self.reload_count();
        self.site.reload(|settings| Self::settings(settings, &users, format));
        self.wait_reloads(before + 1.0);
        self.site.reload(|settings| {
            Self::settings(settings, &users, format);
            set(settings, "limits.allocations", "many");
            set(settings, "peers.allow", Value::Array(vec!["192.168.217.193/99".into()]));
        });
        self.wait_reloads(before + 2.0);
        std::fs::write(self.site.folder.join("password-0"), "").unwrap();
        self.site.reload(|settings| Self::settings(settings, &users, format));
        self.wait_reloads(before + 3.0);
    }

    fn reload_count(&self) -> f64 {
        self.site.metrics().sum("settings_reloads_total").unwrap_or(0.0)
    }

    fn wait_reloads(&self, least: f64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.reload_count() < least {
            assert!(
                std::time::Instant::now() < deadline,
                "a SIGHUP is counted:\n{}",
                self.site.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the program says of settings that it refuses.
    fn bad_starts(&mut self) {
        let users = self.users.clone();
        let secret = self.secret.clone();
        let write = |folder: &Path, name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        type Change<'a> = &'a dyn Fn(&mut Table, &Path);
        let twice: Change = &|settings, _| {
            set(
                settings,
                "auth.user",
                user_settings(&[users[0].clone(), users[0].clone()]),
            );
        };
        let short: Change = &|_, folder| write(folder, "password-0", &users[0].password[..5]);
        let cut: Change = &|_, folder| write(folder, "timed", &secret[..12]);
        let key: Change = &|_, folder| {
            write(
                folder,
                "tls-key.pem",
                &format!("-----BEGIN PRIVATE KEY-----\n{secret}\n"),
            )
        };
        let key_as_certificate: Change = &|settings, _| set(settings, "listen.certificate_file", "tls-key.pem");
        let unknown: Change = &|settings, _| set(settings, "auth.password", users[0].password.clone());
        for change in [twice, short, cut, key, key_as_certificate, unknown] {
            let folder = tempfile::tempdir().unwrap();
            write_keys(folder.path()).unwrap();
            for (number, who) in users.iter().enumerate() {
                write(folder.path(), &format!("password-{number}"), &who.password);
            }
            write(folder.path(), "timed", &secret);
            let mut settings = relay_settings(SERVER);
            Self::settings(&mut settings, &users, "text");
            change(&mut settings, folder.path());
            let (code, said) = check(folder.path(), &settings);
            assert_eq!(code, Some(78), "{said}");
            self.sinks.add("bad starts", said);
        }
    }

    fn look(&mut self) {
        for path in ["/metrics", "/health/live", "/health/ready", "/transparency"] {
            let answer = self.site.tells(path);
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            assert!(!answer.contains("service_panics_total 1"));
            self.sinks.add(path, answer);
        }
        let process = format!("/proc/{}", self.site.process_id());
        self.sinks
            .add("command line", std::fs::read(format!("{process}/cmdline")).unwrap());
        for task in std::fs::read_dir(format!("{process}/task")).unwrap().flatten() {
            self.sinks.add(
                "names of threads",
                std::fs::read(task.path().join("comm")).unwrap_or_default(),
            );
        }
    }

    /// SIGTERM with a live call, and everything that is left.
    fn end(mut self) -> (Sinks, Search) {
        let mut live = self.client(Transport::Udp, self.users[1].clone());
        let _ = self.allocate(&mut live, false);
        let status = self.site.stop(PATIENCE);
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", self.site.log());
        self.sinks.add("log", self.site.log());
        let ours = ["log", "turn.toml", "tls.pem", "tls-key.pem", "ca.pem", "timed"];
        for file in std::fs::read_dir(&self.site.folder).unwrap().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if !ours.contains(&&*name) && !name.contains("password") {
                self.sinks
                    .add(format!("file {name}"), std::fs::read(file.path()).unwrap_or_default());
            }
        }
        (self.sinks, self.values)
    }
}
