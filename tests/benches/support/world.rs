//! What the benchmarks that run the real notifier have in common: a lab for load, many phones, a client that costs little.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each benchmark uses its part, and one that cannot go on stops"
)]

use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::node::{FleetCounts, SwarmMessage};
use quietline_lab::phone::{Phone, PushService, unix_milliseconds, unix_seconds};
use quietline_lab::swarms::{nearest_swarm, swarm_space};
use serde_json::Value;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nobody who is measured needs so long.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A folder of its own for each benchmark, on a real disk.
pub fn folder(name: &str) -> PathBuf {
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    target.join("bench-labs").join(name)
}

/// `swarms` swarms of seven nodes; limits that no client of ours alone should meet are lifted.
pub fn settings(name: &str, swarms: usize) -> LabSettings {
    let mut settings = LabSettings::in_folder(folder(name))
        .with("http.direct_rate", 1_000_000)
        .with("http.direct_burst", 1_000_000)
        .with("http.onion_rate", 1_000_000)
        .with("http.onion_burst", 1_000_000)
        .with("watcher.max_list_change", 1.0)
        .with("dispatch.apns.rate", 1_000_000)
        .with("dispatch.firebase.rate", 1_000_000)
        .with("dispatch.firebase.ramp", "0s")
        .with("log.level", "info");
    settings.swarms = swarms;
    settings.nodes_per_swarm = 7;
    settings.nodes.verify_one_in = 1000;
    settings.ready_within = PATIENCE;
    settings.keep_deliveries = 0;
    settings
}

/// Half of them Apple's, half Google's.
pub fn phones(count: usize) -> Vec<Phone> {
    in_threads(count, |number| {
        let mut phone = Phone::new(match number % 2 {
            0 => PushService::Apns,
            _ => PushService::Firebase,
        });
        phone.namespaces = vec![0];
        phone
    })
}

/// On all cores, in order.
pub fn in_threads<T: Send>(count: usize, make: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let share = count.div_ceil(threads);
    std::thread::scope(|scope| {
        let make = &make;
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    (thread * share..count.min((thread + 1) * share))
                        .map(make)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Subscribes them all, and returns when each is watched at three nodes.
pub async fn subscribe_all(lab: &Lab, phones: &[Phone]) {
    let now = unix_seconds();
    let before = lab.fleet.counts().watched;
    let requests: Vec<Vec<u8>> = phones
        .chunks(50)
        .map(|some| {
            let items: Vec<Value> = some.iter().map(|phone| phone.subscribe_item(now)).collect();
            post(
                "/subscribe",
                "application/json",
                Value::Array(items).to_string().as_bytes(),
            )
        })
        .collect();
    let answers = send_all(lab.http_address(), Arc::new(requests), 8).await;
    let successes: usize = answers
        .iter()
        .map(|(_, answer)| String::from_utf8_lossy(answer).matches("\"success\":true").count())
        .sum();
    assert_eq!(successes, phones.len(), "all phones are subscribed");
    let wanted = before + 3 * phones.len() as u64;
    let watched = |counts: &FleetCounts| counts.watched >= wanted;
    lab.fleet
        .wait_counts(PATIENCE, watched)
        .await
        .expect("every phone is watched at three nodes");
}

/// A whole HTTP/1.1 request.
pub fn post(path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Sends the requests over `connections` kept connections, one at a time on each; the time and the body of each answer.
pub async fn send_all(
    address: SocketAddr,
    requests: Arc<Vec<Vec<u8>>>,
    connections: usize,
) -> Vec<(Duration, Vec<u8>)> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut answers, mut buffer) = (Vec::new(), Vec::with_capacity(64 << 10));
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(request) = requests.get(number) else {
                    return answers;
                };
                let began = std::time::Instant::now();
                stream.write_all(request).await.unwrap();
                let body = read_answer(&mut stream, &mut buffer).await;
                answers.push((number, began.elapsed(), body));
            }
        });
    }
    let mut all: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(number, ..)| *number);
    all.into_iter().map(|(_, time, body)| (time, body)).collect()
}

async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Vec<u8> {
    buffer.clear();
    loop {
        assert!(stream.read_buf(buffer).await.unwrap() > 0, "the server answers");
        let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = std::str::from_utf8(&buffer[..end]).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "the answer is 200, not {head}");
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        while buffer.len() < end + 4 + length {
            assert!(stream.read_buf(buffer).await.unwrap() > 0, "the answer is whole");
        }
        return buffer[end + 4..].to_vec();
    }
}

/// Which nodes serve whom, looked up once.
pub struct Swarms {
    ids: Vec<u64>,
    nodes: HashMap<u64, Vec<usize>>,
}

impl Swarms {
    pub fn of(lab: &Lab) -> Self {
        let list = lab.list.lock().unwrap();
        let mut nodes: HashMap<u64, Vec<usize>> = HashMap::new();
        for (index, node) in list.nodes.iter().enumerate() {
            nodes.entry(node.swarm).or_default().push(index);
        }
        Self {
            ids: nodes.keys().copied().collect(),
            nodes,
        }
    }

    pub fn nodes(&self, account: &[u8; 33]) -> &[usize] {
        &self.nodes[&nearest_swarm(swarm_space(account), &self.ids).unwrap()]
    }
}

/// A message of an ordinary size that no other is the same as.
pub fn message(phone: &Phone, number: u64) -> SwarmMessage {
    let mut data = vec![7; 400];
    data[..8].copy_from_slice(&number.to_le_bytes());
    let timestamp_ms = unix_milliseconds();
    SwarmMessage {
        account: *phone.account(),
        session_ed25519: phone.session_ed25519().copied(),
        namespace: 0,
        timestamp_ms,
        expiry_ms: timestamp_ms + 14 * 86_400_000,
        data,
    }
}
