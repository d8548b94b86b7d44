//! The real relay on the loopback of this machine, as a child process.
//!
//! In: what differs from its defaults. Out: a relay that is ready, reads its settings again, ends when asked. Never: anything that an
//! operator could not do.

use super::client::{Client, Link, PATIENCE, Who};
use super::server::Transport;
use crate::keys::{Authority, KeyError, turn_client_config, write_secret};
use crate::notifier::{Metrics, find_program};
use crate::ports;
use crate::settings::set;
use crate::system;
use rustls::ClientConfig;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use toml::{Table, Value, toml};

/// Where a peer is that is no client: an address of the loopback that is not the relay's own.
pub const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Between two looks at a relay: it offers no event to who stands outside.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("no quietline-turn beside this program; build it, or give its path")]
    NoBinary,
    #[error("keys: {0}")]
    Keys(#[from] KeyError),
    #[error("file: {0}")]
    File(#[from] io::Error),
    #[error("the relay ended instead of getting ready ({status}); its log:\n{log}")]
    Ended { status: ExitStatus, log: String },
    #[error("the relay was not ready in time; its log:\n{log}")]
    NotReady { log: String },
    #[error("the relay did not end in time")]
    DidNotEnd,
}

/// A relay that runs or does not, its settings, and what its clients need.
pub struct Relay {
    binary: PathBuf,
    pub folder: PathBuf,
    /// For UDP, TCP and TLS.
    pub address: SocketAddr,
    pub ops: SocketAddr,
    /// Of the timed credentials in `keys/turn-secret`.
    pub secret: String,
    tls: Arc<ClientConfig>,
    child: Option<Child>,
}

impl Relay {
    /// The binary given, or the one built last beside this program.
    pub fn find_binary(given: Option<&Path>) -> Result<PathBuf, RelayError> {
        match given {
            Some(path) => path.is_file().then(|| path.to_owned()).ok_or(RelayError::NoBinary),
            None => find_program("quietline-turn")?.ok_or(RelayError::NoBinary),
        }
    }

    /// Keys, a certificate and `turn.toml` in this folder. Nothing runs yet.
    pub fn prepare(folder: &Path, binary: Option<&Path>, change: impl FnOnce(&mut Table)) -> Result<Self, RelayError> {
        let secret = hex::encode(super::stun::random::<32>());
        std::fs::create_dir_all(folder.join("keys"))?;
        write_secret(&folder.join("keys/turn-secret"), format!("{secret}\n").as_bytes())?;
        let relay = Self {
            binary: Self::find_binary(binary)?.canonicalize()?,
            tls: certificate_in(folder)?,
            folder: folder.canonicalize()?,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free())),
            ops: SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free())),
            secret,
            child: None,
        };
        relay.write_settings(change)?;
        Ok(relay)
    }

    pub fn settings_file(&self) -> PathBuf {
        self.folder.join("turn.toml")
    }

    pub fn log_file(&self) -> PathBuf {
        self.folder.join("turn.log")
    }

    /// The settings of a lab, changed. A relay that runs reads them when it is told to.
    pub fn write_settings(&self, change: impl FnOnce(&mut Table)) -> Result<(), RelayError> {
        let mut settings = toml! {
            [listen]
            certificate_file = "keys/turn-certificate.pem"
            certificate_key_file = "keys/turn-certificate-key.pem"

            [[auth.timed]]
            secret_file = "keys/turn-secret"
            algorithm = "sha1"

            [peers]
            // Everybody is on the loopback here.
            allow = ["127.0.0.0/8"]

            [shard]
            count = 2

            // Longer than anybody here waits: a busy machine must not end a handshake that it has not let begin.
            [streams]
            handshake = "60s"
            first_message = "60s"
        };
        let (ip, port) = (self.address.ip().to_string(), i64::from(self.address.port()));
        set(&mut settings, "listen.addresses", Value::Array(vec![ip.into()]));
        set(&mut settings, "listen.ports", Value::Array(vec![port.into()]));
        set(&mut settings, "ops.listen", self.ops.to_string());
        // Tests wait for what happens, not for the minute.
        set(&mut settings, "ops.metrics_period", "0s");
        change(&mut settings);
        Ok(std::fs::write(self.settings_file(), settings.to_string())?)
    }

    /// A line of the command line with these settings.
    pub fn command(&self, command: &str) -> Command {
        let mut line = Command::new(&self.binary);
        line.arg(command)
            .arg("--settings")
            .arg(self.settings_file())
            .stdin(Stdio::null());
        line
    }

    /// Returns when it is ready. What it says is appended to the log.
    pub fn start(&mut self, patience: Duration) -> Result<(), RelayError> {
        let line = self.command("run");
        self.start_as(line)?;
        let deadline = Instant::now() + patience;
        while !self
            .tells("/health/ready")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                self.child = None;
                return Err(RelayError::Ended {
                    status,
                    log: self.log(),
                });
            }
            if Instant::now() >= deadline {
                return Err(RelayError::NotReady { log: self.log() });
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Does not wait until it is ready.
    pub fn start_as(&mut self, mut line: Command) -> Result<(), RelayError> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file())?;
        let child = line
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal goes to the whole group; the lab ends its relay itself.
            .process_group(0)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    pub fn process_id(&self) -> Option<u32> {
        Some(self.child.as_ref()?.id())
    }

    /// SIGHUP with other settings.
    pub fn reload(&self, change: impl FnOnce(&mut Table)) -> Result<(), RelayError> {
        self.write_settings(change)?;
        self.process_id().into_iter().for_each(system::ask_to_reload);
        Ok(())
    }

    /// SIGTERM.
    pub fn ask_to_end(&self) {
        self.process_id().into_iter().for_each(system::ask_to_end);
    }

    /// The status it ends with; somebody has asked it to. `None` if it was not running.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, RelayError> {
        let deadline = Instant::now() + patience;
        while let Some(child) = self.child.as_mut() {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Err(RelayError::DidNotEnd);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(None)
    }

    /// SIGKILL: what a power cut leaves.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it tells its operator at this path: status line, headers and body.
    pub fn tells(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.ops)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub fn metrics(&self) -> io::Result<Metrics> {
        Ok(Metrics::from_text(self.tells("/metrics")?))
    }

    /// Memory in use now, bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        system::resident_bytes(self.process_id()?)
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// As clients are told it.
    pub fn url(&self) -> String {
        format!("turn:{}?transport=udp", self.address)
    }

    /// Somebody who got a credential that lasts an hour.
    pub fn guest(&self) -> Who {
        guest(&self.secret)
    }

    /// A client on the loopback, from a new port.
    pub fn client(&self, transport: Transport, who: Who) -> io::Result<Client> {
        self.client_trusting(&self.tls, transport, who)
    }

    pub fn client_trusting(&self, tls: &Arc<ClientConfig>, transport: Transport, who: Who) -> io::Result<Client> {
        let link = match transport {
            Transport::Udp => Link::udp(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, self.address),
            Transport::Tcp => Link::tcp(TcpStream::connect(self.address)?),
            Transport::Tls => Link::tls(TcpStream::connect(self.address)?, Arc::clone(tls)),
        };
        Ok(Client::new(link?, who, PATIENCE))
    }

    /// A fresh authority and a certificate of it, in the place of the one before; who trusts it.
    pub fn renew_certificate(&self) -> Result<Arc<ClientConfig>, RelayError> {
        Ok(certificate_in(&self.folder)?)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A timed name with random bits, good for an hour.
pub fn guest(secret: &str) -> Who {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let expiry = now.unwrap_or_default().as_secs() + 3_600;
    Who::timed(
        &format!("{expiry}:{}", hex::encode(super::stun::random::<16>())),
        secret,
    )
}

/// A socket of a peer that is no client.
pub fn peer() -> io::Result<UdpSocket> {
    UdpSocket::bind((IpAddr::from(PEER), 0))
}

fn certificate_in(folder: &Path) -> Result<Arc<ClientConfig>, KeyError> {
    let authority = Authority::new()?;
    let issued = authority.issue()?;
    std::fs::write(folder.join("keys/turn-certificate.pem"), &issued.certificate_pem)?;
    let key = folder.join("keys/turn-certificate-key.pem");
    // Written anew: a key is never changed in its place.
    let _ = std::fs::remove_file(&key);
    write_secret(&key, issued.key_pem.as_bytes())?;
    turn_client_config(authority.certificate())
}
