//! A whole lab: fakes, phones, keys, and the real notifier in the middle.
//!
//! In: `LabSettings`. Out: a running world; messages go in at a swarm and come out at a provider. Never: reaches beyond this machine.

use crate::http::{HttpClient, HttpError};
use crate::keys::{KeyError, Keys};
use crate::node::{Fleet, NodeError, NodeSettings, SwarmMessage};
use crate::notifier::{Metrics, Notifier, NotifierError};
use crate::onion::Cipher;
use crate::oxend::{Oxend, OxendTransport};
use crate::phone::{Phone, PhoneAnswer, PhoneMessage, PushService, send_onion, unix_milliseconds};
use crate::ports;
use crate::provider::apns::Apns;
use crate::provider::fcm::Fcm;
use crate::provider::huawei::Huawei;
use crate::provider::webpush::Webpush;
use crate::provider::{Deliveries, Delivery, Script};
use crate::seed::Seed;
use crate::settings::{Addresses, notifier_settings, remove, set};
use crate::swarms::NodeList;
use crate::system;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where relays for a call are asked for.
pub const CREDENTIALS: &str = "/turn/credentials";

/// Longest path of a Unix socket, without the closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// What kind of socket the fake oxend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OxendKind {
    Ipc,
    Tcp,
    Curve,
}

#[derive(Clone, Debug)]
pub struct LabSettings {
    /// Keys, settings, databases and the notifier's log. Earlier contents of `keys` and `data` are removed.
    pub folder: PathBuf,
    /// The notifier; `None` looks beside this program.
    pub binary: Option<PathBuf>,
    pub swarms: usize,
    pub nodes_per_swarm: usize,
    pub nodes: NodeSettings,
    pub oxend: OxendKind,
    pub seeds: usize,
    /// Deliveries kept in full until somebody takes them.
    pub keep_deliveries: usize,
    /// Requests that a provider allows under way on one connection.
    pub provider_streams: u32,
    /// `("watcher.nodes_per_swarm", 5.into())`: over everything the lab would write.
    pub overrides: Vec<(String, toml::Value)>,
    /// Settings that are left out.
    pub omissions: Vec<String>,
    /// Longest time a start may take.
    pub ready_within: Duration,
    /// Threads for the notifier's tasks; `None` is one for each core of the machine.
    pub workers: Option<usize>,
}

impl LabSettings {
    /// Three swarms of five nodes.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            binary: None,
            swarms: 3,
            nodes_per_swarm: 5,
            nodes: NodeSettings::default(),
            oxend: OxendKind::Ipc,
            seeds: 1,
            keep_deliveries: 10_000,
            provider_streams: 1000,
            overrides: Vec::new(),
            omissions: Vec::new(),
            ready_within: Duration::from_secs(30),
            workers: None,
        }
    }

    pub fn without(mut self, setting: &str) -> Self {
        self.omissions.push(setting.to_owned());
        self
    }

    pub fn with(mut self, setting: &str, value: impl Into<toml::Value>) -> Self {
        self.overrides.push((setting.to_owned(), value.into()));
        self
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("nodes: {0}")]
    Nodes(#[from] NodeError),
    #[error("oxend: {0}")]
    Oxend(#[from] zmq::Error),
    #[error("keys: {0}")]
    Keys(#[from] KeyError),
    #[error("{0}")]
    Notifier(#[from] NotifierError),
    #[error("file: {0}")]
    File(#[from] std::io::Error),
    #[error("request: {0}")]
    Http(#[from] HttpError),
    #[error("the folder holds something else; give an empty one, or one that the lab made")]
    ForeignFolder,
}

/// Everything around a notifier, which may run or not.
pub struct Lab {
    // First, so that the notifier ends before its world does.
    notifier: Option<Notifier>,
    pub settings: LabSettings,
    pub keys: Keys,
    pub fleet: Fleet,
    pub list: Arc<Mutex<NodeList>>,
    pub oxend: Oxend,
    pub seeds: Vec<Seed>,
    pub apns: Apns,
    pub apns_sandbox: Apns,
    pub fcm: Fcm,
    pub huawei: Huawei,
    pub webpush: Webpush,
    pub deliveries: Arc<Deliveries>,
    /// The notifier's HTTP, as the storage servers and clients without onions reach it.
    pub http: HttpClient,
    http_address: SocketAddr,
    ops_address: SocketAddr,
    next_cipher: AtomicUsize,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Sent {
    pub hash: String,
    pub at: Instant,
    /// Nodes that store it: the whole swarm.
    pub nodes: Vec<usize>,
}

impl Lab {
    /// Builds the world, starts the notifier in it, returns when it is ready.
    pub async fn start(settings: LabSettings) -> Result<Self, LabError> {
        let mut lab = Self::surround(settings)?;
        lab.start_notifier().await?;
        Ok(lab)
    }

    /// Only the world, with keys and a settings file. Needs a tokio runtime.
    pub fn surround(settings: LabSettings) -> Result<Self, LabError> {
        system::raise_open_files();
        prepare_folder(&settings.folder)?;
        let keys = Keys::generate(&settings.folder.join("keys"))?;
        let fleet = Fleet::start(settings.swarms * settings.nodes_per_swarm, &settings.nodes)?;
        let list = NodeList::in_swarms(fleet.addresses(), settings.nodes_per_swarm);
        let list = Arc::new(Mutex::new(list));
        let oxend = Oxend::start(&transport(&settings)?, Arc::clone(&list))?;
        let seeds: Result<Vec<_>, _> = (0..settings.seeds).map(|_| Seed::start(Arc::clone(&list))).collect();
        let seeds = seeds?;
        let deliveries = Deliveries::new(settings.keep_deliveries);
        let streams = settings.provider_streams;
        let apns = Apns::start(PushService::Apns, &keys, Arc::clone(&deliveries), streams)?;
        let apns_sandbox = Apns::start(PushService::ApnsSandbox, &keys, Arc::clone(&deliveries), streams)?;
        let fcm = Fcm::start(&keys, Arc::clone(&deliveries), streams)?;
        keys.write_service_account(&fcm.token_uri())?;
        let huawei = Huawei::start(&keys, Arc::clone(&deliveries), streams)?;
        let webpush = Webpush::start(&keys, Arc::clone(&deliveries), streams)?;
        let http_address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let ops_address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let lab = Self {
            notifier: None,
            keys,
            fleet,
            list,
            oxend,
            seeds,
            apns,
            apns_sandbox,
            fcm,
            huawei,
            webpush,
            deliveries,
            http: HttpClient::new(http_address),
            http_address,
            ops_address,
            next_cipher: AtomicUsize::new(0),
            settings,
        };
        lab.write_settings()?;
        Ok(lab)
    }

    /// Again, if `settings.overrides` changed since.
    pub fn write_settings(&self) -> Result<(), LabError> {
        let mut seeds = Vec::new();
        for (number, seed) in self.seeds.iter().enumerate() {
            let file = format!("keys/seed{}.pem", number + 1);
            std::fs::write(self.settings.folder.join(&file), &seed.certificate().certificate_pem)?;
            seeds.push((seed.url(), file));
        }
        let mut settings = notifier_settings(&Addresses {
            http: self.http_address,
            ops: self.ops_address,
            oxend: vec![self.oxend.address().to_owned()],
            seeds,
            apns: self.apns.address(),
            apns_sandbox: self.apns_sandbox.address(),
            fcm: self.fcm.address(),
            huawei: self.huawei.address(),
            huawei_token_uri: self.huawei.token_uri(),
            webpush: self.webpush.address(),
        });
        for (path, value) in &self.settings.overrides {
            set(&mut settings, path, value.clone());
        }
        for path in &self.settings.omissions {
            remove(&mut settings, path);
        }
        Ok(std::fs::write(self.settings_file(), settings.to_string())?)
    }

    /// What the provider of this service answers.
    pub fn script(&self, service: PushService) -> &Script {
        match service {
            PushService::Apns => self.apns.script(),
            PushService::ApnsSandbox => self.apns_sandbox.script(),
            PushService::Firebase => self.fcm.script(),
            PushService::Huawei => self.huawei.script(),
            PushService::Webpush => self.webpush.script(),
        }
    }

    /// Every provider drops every connection, those that stand and those that come.
    pub fn set_providers_down(&self, down: bool) {
        self.apns.set_down(down);
        self.apns_sandbox.set_down(down);
        self.fcm.set_down(down);
        self.huawei.set_down(down);
        self.webpush.set_down(down);
    }

    pub fn settings_file(&self) -> PathBuf {
        self.settings.folder.join("notifier.toml")
    }

    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    pub fn ops_address(&self) -> SocketAddr {
        self.ops_address
    }

    /// Returns when the notifier is ready.
    pub async fn start_notifier(&mut self) -> Result<(), LabError> {
        let binary = Notifier::find_binary(self.settings.binary.as_deref())?;
        let log = self.settings.folder.join("notifier.log");
        let (workers, settings) = (self.settings.workers, self.settings_file());
        let notifier = Notifier::spawn_with_workers(workers, &binary, &settings, &log, self.ops_address)?;
        let notifier = self.notifier.insert(notifier);
        Ok(notifier.wait_ready(self.settings.ready_within).await?)
    }

    /// # Panics
    /// If the notifier was never started.
    pub fn notifier(&mut self) -> &mut Notifier {
        self.notifier
            .as_mut()
            .expect("the test started the notifier before asking for it")
    }

    /// The notifier's figures now.
    pub async fn metrics(&self) -> Result<Metrics, LabError> {
        let answer = HttpClient::new(self.ops_address).get("/metrics").await?;
        Ok(Metrics::from_text(String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// SIGTERM to the notifier; its status. The world stays.
    pub async fn stop_notifier(&mut self, patience: Duration) -> Result<Option<ExitStatus>, LabError> {
        match &mut self.notifier {
            Some(notifier) => Ok(notifier.stop(patience).await?),
            None => Ok(None),
        }
    }

    /// A fresh phone with a fresh account; it is not subscribed yet.
    pub fn phone(&self, service: PushService) -> Phone {
        match service {
            PushService::Webpush => Phone::new(service).with_reader(self.webpush.reader()),
            _ => Phone::new(service),
        }
    }

    /// Through an onion request; the ciphers take turns.
    pub async fn subscribe(&self, phone: &Phone) -> Result<PhoneAnswer, LabError> {
        Ok(phone
            .subscribe(&self.http, &self.keys.onion_public, self.cipher())
            .await?)
    }

    pub async fn unsubscribe(&self, phone: &Phone) -> Result<PhoneAnswer, LabError> {
        Ok(phone
            .unsubscribe(&self.http, &self.keys.onion_public, self.cipher())
            .await?)
    }

    /// Asks for relays and credentials through an onion request, as anybody does before a call.
    pub async fn credentials(&self) -> Result<PhoneAnswer, LabError> {
        let (notifier, key) = (&self.http, &self.keys.onion_public);
        Ok(send_onion(notifier, key, self.cipher(), CREDENTIALS, &serde_json::json!({})).await?)
    }

    fn cipher(&self) -> Cipher {
        Cipher::BOTH[self.next_cipher.fetch_add(1, Ordering::Relaxed) % Cipher::BOTH.len()]
    }

    /// Nodes of the phone's swarm that watch its account, once there are `enough`.
    pub async fn wait_watched(&self, phone: &Phone, enough: usize, patience: Duration) -> Option<Vec<usize>> {
        self.fleet
            .wait_watched(phone.account(), phone.session_ed25519(), enough, patience)
            .await
    }

    /// Stores a message for the phone's account at every node of its swarm.
    pub fn send(&self, phone: &Phone, namespace: i16, data: &[u8], lifetime: Duration) -> Sent {
        let timestamp_ms = unix_milliseconds();
        let message = SwarmMessage {
            account: *phone.account(),
            session_ed25519: phone.session_ed25519().copied(),
            namespace,
            timestamp_ms,
            expiry_ms: timestamp_ms.saturating_add(i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX)),
            data: data.to_vec(),
        };
        self.send_message(&message)
    }

    pub fn send_message(&self, message: &SwarmMessage) -> Sent {
        let nodes = self
            .list
            .lock()
            .expect("nobody panics while holding the list")
            .nodes_of(&message.account)
            .into_iter()
            // A test may list peers that are none of our nodes.
            .filter(|node| *node < self.fleet.addresses().len())
            .collect::<Vec<_>>();
        let at = Instant::now();
        self.fleet.store(nodes.iter().copied(), message);
        Sent {
            hash: message.hash(),
            at,
            nodes,
        }
    }

    /// The next accepted push to this phone's token, opened; `None` if none comes in time.
    ///
    /// # Panics
    /// If the phone cannot open it: then there is nothing to go on with.
    pub async fn next_delivery(&self, phone: &Phone, patience: Duration) -> Option<(Delivery, PhoneMessage)> {
        let is_ours = |delivery: &Delivery| delivery.accepted && delivery.token == phone.token;
        let delivery = self.deliveries.take(patience, is_ours).await?;
        let message = phone
            .open(&delivery.enc_payload)
            .expect("a push to this phone opens with its key");
        Some((delivery, message))
    }
}

fn transport(settings: &LabSettings) -> std::io::Result<OxendTransport> {
    let path = settings.folder.canonicalize()?.join("oxend.sock");
    Ok(match settings.oxend {
        OxendKind::Ipc if path.as_os_str().len() <= SOCKET_PATH_MAX => OxendTransport::Ipc(path),
        OxendKind::Ipc | OxendKind::Tcp => OxendTransport::Tcp,
        OxendKind::Curve => OxendTransport::Curve,
    })
}

/// Empties `keys` and `data` of an earlier lab. Keys are new each time, so old databases could not be read.
fn prepare_folder(folder: &Path) -> Result<(), LabError> {
    let mark = folder.join(".quietline-lab");
    std::fs::create_dir_all(folder)?;
    let is_empty = std::fs::read_dir(folder)?.next().is_none();
    if !is_empty && !mark.exists() {
        return Err(LabError::ForeignFolder);
    }
    std::fs::write(
        mark,
        "made by quietline-lab; keys and data in here are thrown away at its next start\n",
    )?;
    for name in ["keys", "data", "tmp"] {
        match std::fs::remove_dir_all(folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        std::fs::create_dir(folder.join(name))?;
    }
    for name in ["notifier.log", "turn.log", "oxend.sock"] {
        match std::fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
