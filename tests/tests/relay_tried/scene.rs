//! A relay at a public address with one thing wrong, and the world that calls it.
//!
//! In: a [`Fault`]. Out: a [`Scene`] in which exactly that is so. Never: a fault that an operator could not have.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quietline_lab::keys::write_secret;
use quietline_lab::settings::set;
use quietline_lab::turn::net::Network;
use quietline_lab::turn::server::{OTHER_SERVER, PORT, SERVER, Site, binary, networks, relay_settings};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData, date_time_ymd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use toml::{Table, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    UdpBlocked,
    TcpBlocked,
    RelayPortsBlocked,
    ExternalWrong,
    ExternalMissing,
    WrongSecret,
    ClockOff,
    CertificateExpired,
    CertificateName,
    ChainIncomplete,
    FileLimit,
    Buffers,
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
/// An address of the relay's machine that only its own network knows.
const INNER: &str = "10.9.0.5";

impl Scene {
    pub fn with(fault: Fault) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let trusted = write_certificate(folder.path(), fault);
        write_secret(&folder.path().join("secret"), SECRET.as_bytes()).unwrap();
        write_secret(&folder.path().join("other-secret"), OTHER_SECRET.as_bytes()).unwrap();
        let networks = networks();
        let home = networks.0.clone();
        if fault == Fault::ExternalMissing {
            home.ip(&format!("addr add {INNER}/32 dev lo"));
        }
        let site = Site::quietline_within(networks, folder.path(), |settings| change(settings, fault));
        // Only now: the relay must have been able to get ready.
        match fault {
            Fault::UdpBlocked => block(&home, &format!("ipproto udp dport {PORT}")),
            Fault::TcpBlocked => block(&home, &format!("ipproto tcp dport {PORT}")),
            Fault::RelayPortsBlocked => block(&home, &format!("ipproto udp dport 49152-{LAST_PORT}")),
            Fault::FileLimit => {
                let process = site.process_id().to_string();
                let status = Command::new("prlimit")
                    .args(["--nofile=1000:1000", "--pid", &process])
                    .status();
                assert!(status.unwrap().success());
            }
            _ => {}
        }
        let other = (fault == Fault::WrongSecret).then(|| {
            let folder = tempfile::tempdir().unwrap();
            (site.beside(folder.path()), folder)
        });
        Self {
            site,
            trusted,
            folder,
            fault,
            _other: other,
        }
    }

    /// `quietline-turn check`: faults of the machine from the relay's own, all others from the world. Exit code, and all it said.
    pub fn check(&self) -> (Option<i32>, String) {
        let mut settings = relay_settings(SERVER);
        change(&mut settings, self.fault);
        if self.fault == Fault::WrongSecret {
            set(&mut settings, "auth.timed", timed("other-secret"));
        }
        let file = self.folder.path().join("checked.toml");
        std::fs::write(&file, settings.to_string()).unwrap();
        if self.fault == Fault::ClockOff {
            let later = SystemTime::now() + Duration::from_secs(3_600);
            let written = std::fs::File::options().append(true).open(&file).unwrap();
            written.set_modified(later).unwrap();
        }
        let is_home = matches!(self.fault, Fault::FileLimit | Fault::Buffers | Fault::ClockOff);
        let mut command = Command::new("prlimit");
        // More than the relay asks for, unless that is the fault.
        let files = if self.fault == Fault::FileLimit {
            "1000:1000"
        } else {
            "20000:20000"
        };
        command.arg(format!("--nofile={files}")).arg(binary());
        command.arg("check").arg("--settings").arg(&file);
        if !is_home {
            for url in [
                "turn:1.2.3.4:3478",
                "turn:1.2.3.4:3478?transport=tcp",
                "turns:1.2.3.4:3478",
            ] {
                command.arg("--url").arg(url);
            }
        }
        let network = if is_home { &self.site.home } else { &self.site.world };
        let output = network.run(|| command.output()).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }
}

fn change(settings: &mut Table, fault: Fault) {
    set(
        settings,
        "listen.addresses",
        Value::Array(vec![SERVER.to_string().into()]),
    );
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
    let name = if fault == Fault::CertificateName {
        "turn.example.net"
    } else {
        "1.2.3.4"
    };
    let mut own = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if fault == Fault::CertificateExpired {
        own.not_before = date_time_ymd(2020, 1, 1);
        own.not_after = date_time_ymd(2021, 1, 1);
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
