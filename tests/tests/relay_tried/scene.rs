//! A relay at a public address with one thing wrong, and the world that calls it.
//!
//! In: a [`Fault`]. Out: a [`Scene`] in which exactly that is so. Never: a fault that an operator could not have.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quietline_lab::keys::write_secret;
use quietline_lab::settings::set;
use quietline_lab::turn::net::Network;
use quietline_lab::turn::server::{OTHER_SERVER, PORT, SERVER, SERVER_V6, Site, binary, networks, relay_settings};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData, date_time_ymd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use toml::{Table, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    UdpBlocked,
    TcpBlocked,
    /// 443 is closed, 3478 is not; the certificate is good for 13 more days.
    TlsBlocked,
    /// The same, and 3478 is closed over TCP as well.
    TcpAndTlsBlocked,
    /// Nothing answers at one of the relay's two addresses.
    V6Blocked,
    /// Of the visitor: the relay has IPv6.
    NoV6,
    RelayPortsBlocked,
    /// By a firewall that lets in what answers: each packet that goes out opens it for the one who gets it.
    RelayPortsUnopened,
    ExternalWrong,
    /// Behind a NAT, under a name.
    ExternalMistyped,
    ExternalMissing,
    WrongSecret,
    ClockOff,
    CertificateExpired,
    CertificateName,
    ChainIncomplete,
    FileLimit,
    Buffers,
    /// The relay has both families, and the name that clients are told leads elsewhere over IPv6.
    StaleName,
}

pub struct Scene {
    pub site: Site,
    /// See [`crate::browser::Visit::trusted`].
    pub trusted: String,
    folder: TempDir,
    fault: Fault,
    /// A second relay, where a fault needs one.
    _other: Option<(Site, TempDir)>,
}

/// Where the page is served.
pub const PAGE: &str = "1.2.3.4:8080";
const SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
const OTHER_SECRET: &str = "00112233445566778899aabbccddeeff";
/// A rule of routing cannot end with the very last port.
const LAST_PORT: i64 = 65_000;
/// Nobody is there.
const NOWHERE: &str = "1.2.6.66";
/// As `/etc/hosts` has it: one address is the relay's, at the other nobody is.
const STALE_NAME: &str = "1.2.3.4 turn.example.org\n2a00:1::66 turn.example.org\n";
/// An address of the relay's machine that only its own network knows.
const INNER: &str = "10.9.0.5";
/// Every resolver reads it as the relay's address, and asks nobody.
const NAME: &str = "0x01020304";
const USUAL_TLS_PORT: u16 = 443;
const UP_WITHIN: Duration = Duration::from_secs(30);

impl Scene {
    pub fn with(fault: Fault) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let trusted = write_certificate(folder.path(), fault);
        write_secret(&folder.path().join("secret"), SECRET.as_bytes()).unwrap();
        write_secret(&folder.path().join("other-secret"), OTHER_SECRET.as_bytes()).unwrap();
        let networks = networks();
        let home = networks.0.clone();
        if matches!(fault, Fault::ExternalMissing | Fault::ExternalMistyped) {
            home.ip(&format!("addr add {INNER}/32 dev lo"));
        }
        let world = networks.1.clone();
        match fault {
            // A browser has the families that have a way to everybody.
            Fault::V6Blocked => {
                world.ip(&format!("route add default via {SERVER}"));
                world.ip(&format!("-6 route add default via {SERVER_V6}"));
            }
            Fault::NoV6 => {
                world.ip(&format!("route add default via {SERVER}"));
                world.set("net/ipv6/conf/all/disable_ipv6", "1");
            }
            _ => {}
        }
        let site = Site::quietline_within(networks, folder.path(), |settings| change(settings, fault));
        // Only now: the relay must have been able to get ready.
        match fault {
            Fault::UdpBlocked => block(&home, &format!("ipproto udp dport {PORT}")),
            Fault::TcpBlocked => block(&home, &format!("ipproto tcp dport {PORT}")),
            Fault::TlsBlocked => drop_what_comes(&home, &format!("tcp dport {USUAL_TLS_PORT}")),
            Fault::TcpAndTlsBlocked => drop_what_comes(&home, &format!("tcp dport {{ {PORT}, {USUAL_TLS_PORT} }}")),
            Fault::V6Blocked => drop_what_comes(&home, &format!("ip6 daddr {SERVER_V6}")),
            Fault::RelayPortsBlocked => block(&home, &format!("ipproto udp dport 49152-{LAST_PORT}")),
            Fault::RelayPortsUnopened => drop_what_comes(&home, &format!("udp dport 49152-{LAST_PORT} ct state new")),
            Fault::FileLimit => limit_files(&site, 1_000),
            _ => {}
        }
        let other = (fault == Fault::WrongSecret).then(|| {
            let folder = tempfile::tempdir().unwrap();
            (site.beside(folder.path()), folder)
        });
        if matches!(fault, Fault::V6Blocked | Fault::NoV6) {
            wait_until_up(&world);
        }
        Self {
            site,
            trusted,
            folder,
            fault,
            _other: other,
        }
    }

    /// `quietline-turn check`: faults of the machine from the relay's own, all others from the world, where nothing of the relay's machine
    /// is but a copy of settings and secret. Exit code, and all it said.
    pub fn check(&self) -> (Option<i32>, String) {
        if matches!(self.fault, Fault::FileLimit | Fault::Buffers | Fault::ClockOff) {
            return self.check_at_home(&[]);
        }
        let host = match self.fault {
            Fault::StaleName => "turn.example.org",
            _ => "1.2.3.4",
        };
        let urls = ["turn:HOST:3478", "turn:HOST:3478?transport=tcp", "turns:HOST:3478"];
        let urls = urls.map(|url| url.replace("HOST", host));
        self.check_elsewhere(&urls.each_ref().map(String::as_str))
    }

    /// On the relay's machine.
    pub fn check_at_home(&self, words: &[&str]) -> (Option<i32>, String) {
        let file = self.settings_in(self.folder.path());
        if self.fault == Fault::ClockOff {
            let later = SystemTime::now() + Duration::from_secs(3_600);
            let written = std::fs::File::options().append(true).open(&file).unwrap();
            written.set_modified(later).unwrap();
        }
        self.checked(
            &self.site.home,
            FILES,
            &[&["--settings", file.to_str().unwrap()], words].concat(),
        )
    }

    /// On the relay's machine, from a shell that may open so many files.
    pub fn check_with_files(&self, files: u32) -> (Option<i32>, String) {
        let file = self.settings_in(self.folder.path());
        self.checked(&self.site.home, files, &["--settings", file.to_str().unwrap()])
    }

    /// On another machine.
    pub fn check_elsewhere(&self, urls: &[&str]) -> (Option<i32>, String) {
        let copy = tempfile::tempdir().unwrap();
        for secret in ["secret", "other-secret"] {
            let text = std::fs::read(self.folder.path().join(secret)).unwrap();
            write_secret(&copy.path().join(secret), &text).unwrap();
        }
        let file = self.settings_in(copy.path());
        let urls = urls.iter().flat_map(|url| ["--url", url]);
        let words: Vec<&str> = ["--settings", file.to_str().unwrap()].into_iter().chain(urls).collect();
        self.checked(&self.site.world, FILES, &words)
    }

    /// On another machine, with what an endpoint gave out and nothing else.
    pub fn check_given(&self, answer: &str) -> (Option<i32>, String) {
        let file = self.folder.path().join("answer.json");
        std::fs::write(&file, answer).unwrap();
        self.checked(&self.site.world, FILES, &["--credentials", file.to_str().unwrap()])
    }

    /// On the relay's machine, where the secrets are.
    pub fn check_given_at_home(&self, answer: &str) -> (Option<i32>, String) {
        let file = self.folder.path().join("answer.json");
        std::fs::write(&file, answer).unwrap();
        self.check_at_home(&["--credentials", file.to_str().unwrap()])
    }

    /// What `quietline-turn credentials` prints.
    pub fn credentials(&self) -> String {
        let file = self.settings_in(self.folder.path());
        let output = self.site.home.run(|| {
            let mut command = Command::new(binary());
            command.arg("credentials").arg("--settings").arg(file).output()
        });
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    /// The relay's own, but for what the fault is.
    fn settings_in(&self, folder: &Path) -> PathBuf {
        let mut settings = relay_settings(SERVER);
        change(&mut settings, self.fault);
        if self.fault == Fault::WrongSecret {
            set(&mut settings, "auth.timed", timed("other-secret"));
        }
        let file = folder.join("checked.toml");
        std::fs::write(&file, settings.to_string()).unwrap();
        file
    }

    fn checked(&self, network: &Network, files: u32, words: &[&str]) -> (Option<i32>, String) {
        let hosts = self.folder.path().join("hosts");
        std::fs::write(&hosts, STALE_NAME).unwrap();
        // Names are the system's to resolve: it is given a file of ours in a place of its own.
        let mut command = Command::new("unshare");
        command
            .args([
                "-m",
                "sh",
                "-c",
                "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"",
                "sh",
            ])
            .arg(hosts)
            .arg("prlimit")
            .arg(format!("--nofile={files}:{files}"))
            .arg(binary())
            .arg("check")
            .args(words);
        let output = network.run(|| command.output()).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }
}

/// More than the relay asks for.
pub const FILES: u32 = 20_000;

/// As `LimitNOFILE` of its unit would.
pub fn limit_files(relay: &Site, files: u32) {
    let limit = format!("--nofile={files}:{files}");
    let process = relay.process_id().to_string();
    let status = Command::new("prlimit").args([&*limit, "--pid", &*process]).status();
    assert!(status.unwrap().success());
}

fn change(settings: &mut Table, fault: Fault) {
    let mut addresses = vec![Value::from(SERVER.to_string())];
    if matches!(fault, Fault::StaleName | Fault::V6Blocked | Fault::NoV6) {
        addresses.push(SERVER_V6.to_string().into());
    }
    set(settings, "listen.addresses", Value::Array(addresses));
    set(settings, "listen.certificate_file", "own.pem");
    set(settings, "listen.certificate_key_file", "own-key.pem");
    set(settings, "auth.timed", timed("secret"));
    set(settings, "page.listen", PAGE);
    set(settings, "relay.last_port", LAST_PORT);
    // So few that any machine has files for them.
    set(settings, "limits.allocations", 500);
    set(settings, "streams.total", 500);
    set(settings, "streams.per_prefix", 500);
    let relay = |bind: &str, advertised: &str| {
        let mut relay = Table::new();
        relay.insert("bind".to_owned(), bind.into());
        relay.insert("advertised".to_owned(), advertised.into());
        Value::Array(vec![Value::Table(relay)])
    };
    let server = SERVER.to_string();
    match fault {
        Fault::TlsBlocked | Fault::TcpAndTlsBlocked => {
            let ports = [PORT, USUAL_TLS_PORT].map(|port| i64::from(port).into());
            set(settings, "listen.ports", Value::Array(ports.to_vec()));
        }
        Fault::ExternalMistyped => {
            set(settings, "listen.name", NAME);
            set(settings, "relay.address", relay(INNER, NOWHERE));
        }
        Fault::ExternalWrong => set(settings, "relay.address", relay(&server, NOWHERE)),
        Fault::ExternalMissing => set(settings, "relay.address", relay(INNER, INNER)),
        // What clients are told is another operator's relay.
        Fault::WrongSecret => set(settings, "relay.address", relay(&server, &OTHER_SERVER.to_string())),
        Fault::Buffers => set(settings, "sockets.receive_buffer", 1 << 30),
        _ => {}
    }
}

fn timed(file: &str) -> Value {
    let mut timed = Table::new();
    timed.insert("secret_file".to_owned(), file.into());
    Value::Array(vec![Value::Table(timed)])
}

/// Drops what comes to this machine and matches, as a firewall does: without a word. What it sends stays: its answers go to ports of all
/// kinds. The rules for its own addresses are asked first, so they are put behind.
fn block(network: &Network, what: &str) {
    for family in ["", "-6 "] {
        network.ip(&format!("{family}rule add pref 100 lookup local"));
        network.ip(&format!("{family}rule del pref 0"));
        network.ip(&format!("{family}rule add pref 10 iif out {what} blackhole"));
    }
}

/// The same by the packet filter, which can tell more packets apart.
fn drop_what_comes(network: &Network, what: &str) {
    network.nft(&format!(
        "table inet firewall {{ chain in {{ type filter hook input priority filter; {what} drop; }}; }}"
    ));
}

/// A browser that starts before the kernel says that its cable is plugged in, a second later at most, finds no address of its own.
fn wait_until_up(world: &Network) {
    let deadline = Instant::now() + UP_WITHIN;
    let is_up = || {
        let output = Command::new("ip").args(["link", "show", "in"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("state UP")
    };
    while !world.run(is_up) {
        assert!(Instant::now() < deadline, "the cable to the relay's network is not up");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `own.pem` and `own-key.pem`: a server's certificate, the one between, and a root that nobody knows.
fn write_certificate(folder: &Path, fault: Fault) -> String {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    };
    let (root, root_key) = authority("A root");
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root, root_key);
    let (between, between_key) = authority("In between");
    let between_pem = between.signed_by(&between_key, &root).unwrap().pem();
    let between = Issuer::new(between, between_key);
    let names = match fault {
        Fault::CertificateName => vec!["turn.example.net".to_owned()],
        _ => vec![SERVER.to_string(), SERVER_V6.to_string(), NAME.to_owned()],
    };
    let mut own = CertificateParams::new(names).unwrap();
    match fault {
        Fault::CertificateExpired => {
            own.not_before = date_time_ymd(2020, 1, 1);
            own.not_after = date_time_ymd(2021, 1, 1);
        }
        Fault::TlsBlocked | Fault::TcpAndTlsBlocked => {
            own.not_after = (SystemTime::now() + Duration::from_hours(13 * 24 + 1)).into()
        }
        _ => {}
    }
    let own_key = KeyPair::generate().unwrap();
    let mut pem = own.signed_by(&own_key, &between).unwrap().pem();
    if fault != Fault::ChainIncomplete {
        pem.push_str(&between_pem);
        pem.push_str(&root_pem);
    }
    std::fs::write(folder.join("own.pem"), pem).unwrap();
    write_secret(&folder.join("own-key.pem"), own_key.serialize_pem().as_bytes()).unwrap();
    STANDARD.encode(digest(&SHA256, &own_key.subject_public_key_info()))
}
