//! A relay as a child process in a network of its own, with clients and peers around it.
//!
//! In: which relay, and what differs from its defaults. Out: a [`Site`] whose relay answers. Never: anything that an operator could not do.

use super::client::{Client, Link, PATIENCE, Who, arrived};
use super::net::Network;
use super::stun::{Builder, kind};
use crate::keys::{Authority, Issued, KeyError, write_secret};
use crate::notifier::{Metrics, find_program};
use crate::settings::set;
use crate::system;
use rustls::ClientConfig;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use toml::{Table, Value, toml};

/// Where relays are, in a network of their own. Public addresses, so that no policy has to be opened for a test.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 4);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2a00, 1, 0, 0, 0, 0, 0, 4);
/// Everybody else's addresses, in the world beyond: all of 1.2.4.0/24 to 1.2.7.0/24.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(1, 2, 4, 1);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2a00, 2, 0, 0, 0, 0, 0, 1);
pub const PEER: Ipv4Addr = Ipv4Addr::new(1, 2, 5, 1);
pub const OTHER_PEER: Ipv4Addr = Ipv4Addr::new(1, 2, 5, 2);
pub const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2a00, 3, 0, 0, 0, 0, 0, 1);
/// A second relay, out in the world.
pub const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(1, 2, 7, 4);
/// And one in a network of its own.
pub const FAR_SERVER: Ipv4Addr = Ipv4Addr::new(1, 2, 8, 4);
pub const FAR_SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2a00, 4, 0, 0, 0, 0, 0, 4);
pub const PORT: u16 = 3478;
pub const TLS_PORT: u16 = 5349;
pub const REALM: &str = "example.org";

/// A relay must have answered within this time.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks whether it answers; nothing tells when a foreign relay listens.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Tls];
}

/// Which relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    Coturn,
    Quietline,
}

pub fn alice() -> Who {
    Who::new("alice", "the password of alice, 2f7a91c4")
}

pub fn bob() -> Who {
    Who::new("bob", "the password of bob, 90b1dd3e")
}

/// A relay in its network, and the world around it.
pub struct Site {
    /// Where the relay is.
    pub home: Arc<Network>,
    /// Where everybody else is.
    pub world: Arc<Network>,
    pub make: Make,
    pub ip: Ipv4Addr,
    pub folder: PathBuf,
    /// How long clients wait for what must come.
    pub patience: Duration,
    tls: Arc<ClientConfig>,
    child: Child,
}

/// A network for a relay, joined to the world.
pub fn networks() -> (Arc<Network>, Arc<Network>) {
    let far: Vec<String> = [CLIENT_V6, PEER_V6].map(|ip| format!("{ip}/128")).to_vec();
    let mut all = vec!["1.2.4.0/24", "1.2.5.0/24", "1.2.6.0/24", "1.2.7.0/24"];
    all.extend(far.iter().map(|ip| &**ip));
    let (home, world) = (Network::new(&[]), Network::new(&all));
    let (ip, ip_v6) = (format!("{SERVER}/24"), format!("{SERVER_V6}/64"));
    home.connect(("out", &[&ip, &ip_v6]), &world, ("in", &["1.2.3.1/24", "2a00:1::1/64"]));
    home.ip("route add default via 1.2.3.1");
    home.ip("-6 route add default via 2a00:1::1");
    (Arc::new(home), Arc::new(world))
}

impl Site {
    /// coturn with two users, these words added to its command line.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn coturn(folder: &Path, words: &[&str]) -> Self {
        let (home, world) = networks();
        let tls = write_keys(folder).expect("keys can be made");
        let mut command = Command::new("turnserver");
        // Without -n it would read a file of the machine's. One thread, so that it answers in order.
        command
            .args([
                "-n",
                "-m",
                "0",
                "--no-cli",
                "--no-rfc5780",
                "-r",
                REALM,
                "--log-file",
                "stdout",
            ])
            .arg("-L")
            .arg(SERVER.to_string())
            .arg("-L")
            .arg(SERVER_V6.to_string())
            .arg("-p")
            .arg(PORT.to_string())
            .arg("--tls-listening-port")
            .arg(TLS_PORT.to_string())
            .arg("--cert")
            .arg(folder.join("tls.pem"))
            .arg("--pkey")
            .arg(folder.join("tls-key.pem"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .args(words);
        if !words.contains(&"--use-auth-secret") {
            command.arg("-a");
            for who in [alice(), bob()] {
                command.arg("-u").arg(format!("{}:{}", who.user, who.password));
            }
        }
        let mut site = Self::start((home, world), Make::Coturn, SERVER, folder, tls, command);
        site.patience = Duration::from_secs(3);
        site
    }

    /// Our relay with two users and no limit on strangers, since tests ask more than a client does; `change` may put that back.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn quietline(folder: &Path, change: impl FnOnce(&mut Table)) -> Self {
        Self::quietline_within(networks(), folder, change)
    }

    /// In networks that are there already, the relay's first.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn quietline_within(
        networks: (Arc<Network>, Arc<Network>),
        folder: &Path,
        change: impl FnOnce(&mut Table),
    ) -> Self {
        Self::quietline_in(networks, SERVER, folder, change)
    }

    /// A second relay in the world of a first.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn beside(&self, folder: &Path) -> Self {
        let both = (Arc::clone(&self.world), Arc::clone(&self.world));
        Self::quietline_in(both, OTHER_SERVER, folder, |_| {})
    }

    /// A second relay with a network of its own, which the world joins to the first: no client is on its machine.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn across(&self, folder: &Path, change: impl FnOnce(&mut Table)) -> Self {
        let home = Network::new(&[]);
        let (ip, ip_v6) = (format!("{FAR_SERVER}/24"), format!("{FAR_SERVER_V6}/64"));
        home.connect(
            ("out", &[&ip, &ip_v6]),
            &self.world,
            ("in-far", &["1.2.8.1/24", "2a00:4::1/64"]),
        );
        home.ip("route add default via 1.2.8.1");
        home.ip("-6 route add default via 2a00:4::1");
        self.world.set("net/ipv4/ip_forward", "1");
        let networks = (Arc::new(home), Arc::clone(&self.world));
        Self::quietline_in(networks, FAR_SERVER, folder, |settings| {
            let addresses = [ip_text(FAR_SERVER), ip_text(FAR_SERVER_V6)];
            set(settings, "listen.addresses", Value::Array(addresses.to_vec()));
            change(settings);
        })
    }

    fn quietline_in(
        networks: (Arc<Network>, Arc<Network>),
        ip: Ipv4Addr,
        folder: &Path,
        change: impl FnOnce(&mut Table),
    ) -> Self {
        let tls = write_keys(folder).expect("keys can be made");
        let mut settings = relay_settings(ip);
        change(&mut settings);
        std::fs::write(folder.join("turn.toml"), settings.to_string()).expect("settings can be written");
        Self::start(networks, Make::Quietline, ip, folder, tls, run_command(folder))
    }

    fn start(
        (home, world): (Arc<Network>, Arc<Network>),
        make: Make,
        ip: Ipv4Addr,
        folder: &Path,
        tls: Arc<ClientConfig>,
        mut command: Command,
    ) -> Self {
        let child = spawn(&home, folder, &mut command)
            .unwrap_or_else(|fault| panic!("{make:?} does not start ({fault}); .ci/setup installs what tests need"));
        let mut site = Self {
            home,
            world,
            make,
            ip,
            folder: folder.to_owned(),
            patience: PATIENCE,
            tls,
            child,
        };
        site.wait_ready();
        site
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY_WITHIN;
        let mut client = self.client(Transport::Udp, alice());
        let request = Builder::new(kind::BINDING).build();
        while client.ask_within(&request, LOOK_EVERY).is_none() {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!(
                    "{:?} ended ({status}) instead of getting ready:\n{}",
                    self.make,
                    self.log()
                );
            }
            assert!(
                Instant::now() < deadline,
                "{:?} is not ready:\n{}",
                self.make,
                self.log()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub fn server(&self) -> SocketAddr {
        SocketAddr::from((self.ip, PORT))
    }

    pub fn server_v6(&self) -> SocketAddr {
        SocketAddr::from((SERVER_V6, PORT))
    }

    /// Where TLS is spoken: ours tells it by the first byte, on any port.
    pub fn server_tls(&self) -> SocketAddr {
        match self.make {
            Make::Coturn => SocketAddr::from((self.ip, TLS_PORT)),
            Make::Quietline => self.server(),
        }
    }

    /// A client at the usual address, from a new port.
    pub fn client(&self, transport: Transport, who: Who) -> Client {
        self.client_at(CLIENT, transport, who)
    }

    /// A client at this address.
    ///
    /// # Panics
    /// If it cannot connect.
    pub fn client_at(&self, local: impl Into<IpAddr>, transport: Transport, who: Who) -> Client {
        let local = local.into();
        Client::new(self.link(local, transport), who, self.patience)
    }

    /// # Panics
    /// If it cannot connect.
    pub fn link(&self, local: IpAddr, transport: Transport) -> Link {
        let server = match (transport, local) {
            (_, IpAddr::V6(_)) => self.server_v6(),
            (Transport::Tls, _) => self.server_tls(),
            _ => self.server(),
        };
        let link = match transport {
            Transport::Udp => Link::udp(self.udp_client(local), server),
            Transport::Tcp => Link::tcp(self.tcp(local, server)),
            Transport::Tls => Link::tls(self.tcp(local, server), Arc::clone(&self.tls)),
        };
        link.expect("the server listens")
    }

    /// A port that no client before it had: its allocation may still live, and would refuse another one (437).
    fn udp_client(&self, local: IpAddr) -> UdpSocket {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let mut ports = (0..100).map(|_| 2_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 8_000);
        let socket = ports.find_map(|port| self.world.run(|| UdpSocket::bind((local, port))).ok());
        socket.expect("a client has a port")
    }

    /// A TCP connection from this address.
    ///
    /// # Panics
    /// If it is refused.
    pub fn tcp(&self, local: IpAddr, server: SocketAddr) -> TcpStream {
        self.world
            .run(|| {
                let socket = socket2::Socket::new(socket2::Domain::for_address(server), socket2::Type::STREAM, None)?;
                socket.bind(&SocketAddr::new(local, 0).into())?;
                socket.connect(&server.into())?;
                Ok::<_, std::io::Error>(TcpStream::from(socket))
            })
            .unwrap_or_else(|fault| panic!("no TCP connection to the relay: {fault}"))
    }

    /// A peer with a port of its own.
    pub fn peer(&self) -> UdpSocket {
        self.peer_at(PEER)
    }

    pub fn peer_at(&self, ip: impl Into<IpAddr>) -> UdpSocket {
        // Beside the ephemeral range, in which relayed ports lie too.
        static NEXT: AtomicU16 = AtomicU16::new(10_000);
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
        let socket = socket2::Socket::from(self.world.udp(ip, port));
        // A datagram of the longest kind in fragments of 1,500 bytes takes more than the kernel's default.
        let _ = socket.set_recv_buffer_size(1 << 20);
        socket.into()
    }

    /// The next packet at a peer: where it came from, and what it is.
    pub fn arrived(&self, peer: &UdpSocket) -> Option<(SocketAddr, Vec<u8>)> {
        arrived(peer, self.patience)
    }

    /// And only what it is.
    pub fn first_at(&self, peer: &UdpSocket) -> Option<Vec<u8>> {
        Some(self.arrived(peer)?.1)
    }

    pub fn tls_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Memory in use now, bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        system::resident_bytes(self.process_id())
    }

    /// What `quietline-turn` tells its operator at this path: status line, headers and body.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn tells(&self, path: &str) -> String {
        let asked = self.home.run(|| {
            let mut stream = TcpStream::connect(OPS)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        });
        asked.unwrap_or_else(|fault| panic!("{path}: {fault}"))
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::from_text(self.tells("/metrics"))
    }

    /// Waits until the lines of `metric` that contain `label` sum up to `least`: the relay brings its figures every second.
    ///
    /// # Panics
    /// If they do not in time.
    pub fn wait_metric(&self, metric: &str, label: &str, least: f64) {
        let deadline = Instant::now() + self.patience;
        loop {
            let metrics = self.metrics();
            if metrics.sum_where(metric, label).is_some_and(|sum| sum >= least) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{metric} {label} does not reach {least}:\n{}",
                metrics.text()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// SIGHUP with other settings.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn reload(&self, change: impl FnOnce(&mut Table)) {
        let mut settings = relay_settings(self.ip);
        change(&mut settings);
        std::fs::write(self.folder.join("turn.toml"), settings.to_string()).expect("settings can be written");
        system::ask_to_reload(self.process_id());
    }

    /// SIGTERM, and the status it ends with; `None` if it does not in time.
    pub fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        system::ask_to_end(self.process_id());
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        None
    }

    /// SIGKILL: nobody is told anything.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Our relay again, with the settings it had, where it was killed.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.home, &self.folder, &mut run_command(&self.folder))
            .expect("a program that has run starts again");
        self.wait_ready();
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("log")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

fn run_command(folder: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("run").arg("--settings").arg(folder.join("turn.toml"));
    command
}

/// What it says goes to the folder's `log`.
fn spawn(home: &Network, folder: &Path, command: &mut Command) -> std::io::Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("log"))?;
    command
        .current_dir(folder)
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    home.run(|| command.spawn())
}

fn ip_text(ip: impl Into<IpAddr>) -> Value {
    Value::from(ip.into().to_string())
}

/// The relay that was built last.
///
/// # Panics
/// If there is none.
pub fn binary() -> PathBuf {
    find_program("quietline-turn")
        .expect("the folder of programs can be read")
        .expect("no quietline-turn beside this test: cargo build --release --bin quietline-turn")
}

/// `quietline-turn check --settings-only` of these settings in this folder, which gets keys and passwords where it has none: exit code, and all it said.
///
/// # Panics
/// If it does not start.
pub fn check(folder: &Path, settings: &Table) -> (Option<i32>, String) {
    let file = folder.join("turn.toml");
    std::fs::write(&file, settings.to_string()).expect("settings can be written");
    let output = Command::new(binary())
        .args(["check", "--settings-only", "--settings"])
        .arg(&file)
        .output();
    let output = output.expect("the relay's program starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

const OPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9101);

/// What differs from the defaults in every test.
pub fn relay_settings(ip: Ipv4Addr) -> Table {
    let mut settings = toml! {
        [listen]
        certificate_file = "tls.pem"
        certificate_key_file = "tls-key.pem"

        [relay]

        [auth]

        [peers]

        [limits]
        challenges_per_second = 1_000_000
        challenge_burst = 1_000_000

        [shard]
        count = 2

        // A test has more patience than a relay, or a busy machine ends a handshake that it has not let begin.
        [streams]
        handshake = "60s"
        first_message = "60s"

        [ops]
        metrics_period = "0s"

        [log]

        [lifecycle]
        drain = "0s"
    };
    let mut listen = vec![Value::from(ip.to_string())];
    if ip == SERVER {
        listen.push(SERVER_V6.to_string().into());
    }
    set(&mut settings, "listen.addresses", Value::Array(listen));
    set(&mut settings, "auth.realm", REALM);
    let users = ["alice", "bob"].map(|name| {
        let mut user = Table::new();
        user.insert("name".to_owned(), name.into());
        user.insert("password_file".to_owned(), format!("{name}.password").into());
        Value::Table(user)
    });
    set(&mut settings, "auth.user", Value::Array(users.to_vec()));
    settings
}

/// `tls.pem`, `tls-key.pem` and `ca.pem`, and the client that trusts them.
pub fn write_keys(folder: &Path) -> Result<Arc<ClientConfig>, KeyError> {
    let authority = Authority::new()?;
    let issued = authority.issue_for(&[SERVER.to_string(), OTHER_SERVER.to_string(), SERVER_V6.to_string()])?;
    let Issued {
        certificate_pem,
        key_pem,
        ..
    } = &issued;
    std::fs::write(folder.join("tls.pem"), certificate_pem)?;
    write_secret(&folder.join("tls-key.pem"), key_pem.as_bytes())?;
    std::fs::write(folder.join("ca.pem"), authority.pem())?;
    for who in [alice(), bob()] {
        write_secret(&folder.join(format!("{}.password", who.user)), who.password.as_bytes())?;
    }
    crate::keys::turn_client_config(authority.certificate())
}

/// A child that the test needs beside the relay; it is gone with its owner.
pub struct Helper(Child);

impl Helper {
    /// # Panics
    /// If it does not start.
    pub fn start(network: &Network, program: &str, words: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = network
            .run(|| command.spawn())
            .unwrap_or_else(|fault| panic!("{program} does not start ({fault}); .ci/setup installs it"));
        Self(child)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
