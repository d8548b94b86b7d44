//! What the tests of this stage share: a provider on a real socket, and settings that lead to it.

pub mod server;

use super::Push;
use super::http2::PoolSettings;
use super::settings::{ApnsSettings, FirebaseSettings, HuaweiApi, HuaweiPushType, HuaweiSettings, WebpushSettings};
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::{EntryId, PushId};
use notifier_core::seal::{Class, Priority};
use quietline_shared::backoff::Backoff;
use server::Root;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// The files an operator has, in a folder of their own, and the root they trust.
pub struct Files {
    folder: tempfile::TempDir,
    pub root: Root,
    pub apns_public: String,
}

impl Files {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new();
        let key = rcgen::KeyPair::generate().unwrap();
        let files = Self {
            folder,
            root,
            apns_public: key.public_key_pem(),
        };
        files.put("ca.pem", &files.root.pem());
        files.put("apns.p8", &key.serialize_pem());
        files
    }

    pub fn put(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn apns(&self, port: u16) -> ApnsSettings {
        ApnsSettings {
            jitter: Duration::ZERO,
            topic: "org.example.app".to_owned(),
            key_file: Some(self.path("apns.p8")),
            key_id: Some("ABCDE12345".to_owned()),
            team_id: Some("FGHIJ67890".to_owned()),
            certificate_file: None,
            certificate_key_file: None,
            host: Some("localhost".to_owned()),
            port,
            ca_file: Some(self.path("ca.pem")),
            concurrency: 100,
            rate: 50_000,
            connections: 2,
        }
    }

    /// With a client certificate instead of a provider token.
    pub fn apns_with_certificate(&self, port: u16) -> ApnsSettings {
        let (certificate, key) = self.root.issue("org.example.app", 2090);
        ApnsSettings {
            key_file: None,
            key_id: None,
            team_id: None,
            certificate_file: Some(self.put("client.pem", &certificate.pem())),
            certificate_key_file: Some(self.put("client-key.pem", &key.serialize_pem())),
            ..self.apns(port)
        }
    }

    pub fn firebase(&self, port: u16, token_port: u16) -> FirebaseSettings {
        let account = serde_json::json!({
            "type": "service_account", "client_email": "push@example.org", "private_key_id": "1a2b",
            "private_key": rsa().serialize_pem(), "project_id": "example-project",
            "token_uri": "https://oauth.example.org/token"
        });
        FirebaseSettings {
            jitter: Duration::ZERO,
            service_account_file: self.put("firebase.json", &account.to_string()),
            project: None,
            host: "localhost".to_owned(),
            port,
            ca_file: Some(self.path("ca.pem")),
            token_uri: Some(format!("https://localhost:{token_port}/token")),
            concurrency: 100,
            rate: 9_000,
            ramp: Duration::ZERO,
            connections: 2,
        }
    }
}

impl Files {
    /// v1 with a client secret.
    pub fn huawei(&self, port: u16, token_port: u16) -> HuaweiSettings {
        HuaweiSettings {
            jitter: Duration::ZERO,
            api: HuaweiApi::V1,
            client_id: Some("107205081".to_owned()),
            client_secret_file: Some(self.put("huawei.secret", "s3cret+&/\n")),
            service_account_file: None,
            project: None,
            push_type: HuaweiPushType::Alert,
            host: "localhost".to_owned(),
            port,
            ca_file: Some(self.path("ca.pem")),
            token_uri: Some(format!("https://localhost:{token_port}/oauth2/v3/token")),
            concurrency: 100,
            rate: 6_000,
            ramp: Duration::ZERO,
            connections: 2,
        }
    }

    /// v3 with a service account.
    pub fn huawei_v3(&self, port: u16) -> HuaweiSettings {
        let account = serde_json::json!({
            "project_id": "example-project", "key_id": "5f1e", "private_key": rsa().serialize_pem(), "sub_account": "101",
            "token_uri": "https://oauth.example.org/oauth2/v3/token"
        });
        HuaweiSettings {
            api: HuaweiApi::V3,
            client_id: None,
            client_secret_file: None,
            service_account_file: Some(self.put("huawei.json", &account.to_string())),
            token_uri: None,
            ..self.huawei(port, 443)
        }
    }

    pub fn webpush(&self, port: u16) -> WebpushSettings {
        WebpushSettings {
            jitter: Duration::ZERO,
            key_file: self.put("vapid", &hex::encode(vapid())),
            contact: "mailto:push@example.org".to_owned(),
            ports: vec![port],
            allowed_networks: vec!["127.0.0.0/8".to_owned()],
            denied_hosts: Vec::new(),
            ca_file: Some(self.path("ca.pem")),
            concurrency: 100,
            rate: 50_000,
            connections: 100,
            origins: 100,
            origin_concurrency: 64,
            origin_rate: 50_000,
        }
    }
}

/// The key of VAPID.
pub fn vapid() -> [u8; 32] {
    std::array::from_fn(|place| place as u8 * 7 + 1)
}

/// Making one takes long.
pub fn rsa() -> &'static rcgen::KeyPair {
    static KEY: OnceLock<rcgen::KeyPair> = OnceLock::new();
    KEY.get_or_init(|| rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap())
}

/// No pauses between connections.
pub fn eager(mut pool: PoolSettings) -> PoolSettings {
    pool.pace = Backoff {
        base: Duration::from_nanos(2),
        cap: Duration::from_nanos(2),
    };
    pool.settled = Duration::ZERO;
    pool
}

pub fn push(entry: i64, service: Service, token: &[u8]) -> Push {
    Push {
        entry: EntryId(entry),
        push_id: PushId(std::array::from_fn(|place| place as u8 * 16 + 1)),
        service,
        token: DeviceToken::new(token),
        payload: (0..=255).collect(),
        priority: Priority::High,
        class: Class::Visible,
        too_long: false,
        deadline_ms: i64::MAX,
        expires_at_ms: 1_900_000_000_999,
    }
}
