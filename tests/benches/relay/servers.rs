//! The three servers as child processes: Debian's coturn, the bare forwarder, ours.
//!
//! In: which one, how many threads, which processors. Out: a process that answers, what it used, how much memory it has. Never: leaves
//! one behind.

use crate::batch;
use crate::stun::{Ask, Key, PASSWORD, REALM, Response, USER, request};
use quietline_lab::{notifier, ports, system};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Coturn,
    Bare,
    Ours,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coturn => "coturn",
            Self::Bare => "bare",
            Self::Ours => "ours",
        }
    }
}

pub struct Server {
    pub kind: Kind,
    pub address: SocketAddrV4,
    /// How many processors' worth it can work.
    pub threads: usize,
    child: Child,
}

/// How each server runs.
#[derive(Clone)]
pub struct Place {
    pub folder: PathBuf,
    pub threads: usize,
    pub processors: Vec<usize>,
}

impl Place {
    /// Starts one and waits until it answers.
    pub fn start(&self, kind: Kind) -> Server {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port());
        let folder = self.folder.join(kind.name());
        std::fs::create_dir_all(&folder).expect("the folder is ours");
        let processors: Vec<String> = self.processors.iter().map(usize::to_string).collect();
        let log = std::fs::File::create(folder.join("log")).expect("the folder is ours");
        // It must not outlive us, even if we are killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "--cpu-list", &processors.join(",")])
            .args(self.command(kind, address, &folder))
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file has another handle"))
            .stderr(log)
            .spawn()
            .expect("util-linux is essential on Debian");
        let threads = self.threads;
        let mut server = Server {
            kind,
            address,
            threads,
            child,
        };
        server.wait_until_it_answers(&folder);
        server
    }

    fn command(&self, kind: Kind, address: SocketAddrV4, folder: &Path) -> Vec<String> {
        let words = match kind {
            Kind::Coturn => format!(
                "turnserver -n -L {ip} -E {ip} -p {port} --no-tls --no-dtls --no-tcp --no-tcp-relay --no-cli -a -u {USER}:{PASSWORD} -r {REALM} \
                 --allow-loopback-peers -m {threads} --log-file stdout --simple-log --pidfile {folder}/pid",
                ip = address.ip(),
                port = address.port(),
                threads = self.threads,
                folder = folder.display(),
            ),
            Kind::Bare => {
                let this = std::env::current_exe().expect("it runs");
                format!("{} as-bare {address} {}", this.display(), self.threads)
            }
            Kind::Ours => {
                let settings = folder.join("settings.toml");
                std::fs::write(&settings, self.settings(address, folder)).expect("the folder is ours");
                format!("{} run --settings {}", our_binary().display(), settings.display())
            }
        };
        words.split_whitespace().map(str::to_owned).collect()
    }

    /// What differs from the defaults: loopback peers, and no limit that only a machine talking to itself would meet.
    fn settings(&self, address: SocketAddrV4, folder: &Path) -> String {
        let password = folder.join("password");
        write_secret(&password).expect("the folder is ours");
        format!(
            "[listen]\naddresses = [\"{ip}\"]\nports = [{port}]\n[[relay.address]]\nbind = \"{ip}\"\n[auth]\nrealm = \"{REALM}\"\n\
             [[auth.user]]\nname = \"{USER}\"\npassword_file = \"{password}\"\n[peers]\nallow = [\"127.0.0.0/8\"]\n{LIFTED}\n\
             [shard]\ncount = {threads}\n[ops]\nlisten = \"127.0.0.1:{ops}\"\n",
            ip = address.ip(),
            port = address.port(),
            password = password.display(),
            threads = self.threads,
            ops = ports::free(),
        )
    }
}

/// Limits of ours that are lifted.
pub const LIFTED: &str = "[limits]\nallocations = 20000\nallocations_per_prefix = 20000\nbandwidth_per_allocation = 1000000000\n\
                          bandwidth = 100000000000\nchallenges_per_second = 1000000\nchallenge_burst = 1000000\nport_cool_down = \"0s\"";

/// The relay refuses a secret that others may read.
fn write_secret(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(PASSWORD.as_bytes())
}

pub fn our_binary() -> PathBuf {
    notifier::find_program("quietline-turn")
        .ok()
        .flatten()
        .expect("make bench builds target/release/quietline-turn first")
}

/// What Debian's coturn calls itself.
pub fn coturn_version() -> String {
    let output = Command::new("turnserver")
        .arg("--version")
        .output()
        .expect("coturn is missing: make bench installs it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().last().unwrap_or_default().to_owned()
}

impl Server {
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    pub fn processor_time(&self) -> Duration {
        batch::processor_time(self.process())
    }

    pub fn resident_bytes(&self) -> u64 {
        system::status_bytes(self.process(), "VmRSS:").expect("it runs")
    }

    fn wait_until_it_answers(&mut self, folder: &Path) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("not zero");
        let question = request(Ask::Binding, *b"are you well", &Key::new(), None);
        let deadline = Instant::now() + PATIENCE;
        let mut answer = [0; 512];
        loop {
            match self.kind {
                Kind::Bare if socket.send_to(&[crate::bare::HELLO], self.address).is_ok() => {}
                _ => drop(socket.send_to(&question, self.address)),
            }
            if let Ok(length) = socket.recv(&mut answer)
                && (self.kind == Kind::Bare || Response::read(&answer[..length]).is_some())
            {
                return;
            }
            let ended = self.child.try_wait().expect("it is our child");
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                panic!("{} does not answer:\n{log}", self.kind.name());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Killed, not asked: a drain would wait for the allocations of clients that never say good-bye.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    loop {
        let port = ports::candidate();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
