//! Distinct wakeups from the nodes to the providers, over TLS and through the outbox; then their delay at 1,000 a second.
//!
//! `-- only-rate` or `-- only-delay` for one of the two; `-- messages=50000` for another number.

#[path = "support/report.rs"]
mod report;
#[path = "support/world.rs"]
mod world;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use quietline_lab::keys::client_config;
use quietline_lab::lab::Lab;
use quietline_lab::node::{CurveKey, Fleet, NodeSettings};
use quietline_lab::phone::Phone;
use quietline_lab::provider::counting::Counting;
use quietline_lab::system;
use report::Goal;
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PHONES: usize = 10_000;
const SWARMS: usize = 36;
/// Messages that no provider has seen yet, at most.
const UNDER_WAY: u64 = 4_000;

fn main() {
    let has = |word: &str| std::env::args().any(|argument| argument == word);
    let messages = std::env::args()
        .find_map(|argument| argument.strip_prefix("messages=")?.parse().ok())
        .unwrap_or(150_000);
    let phones = world::phones(PHONES);
    if !has("only-delay") {
        world::runtime().block_on(rate(&phones, messages));
    }
    if !has("only-rate") {
        world::runtime().block_on(delay(&phones));
    }
}

async fn rate(phones: &[Phone], messages: u64) {
    let mut lab = Lab::surround(world::settings("wakeups", SWARMS)).expect("the lab is built");
    let tls = || lab.keys.authority.server_config().expect("the authority issues");
    let apns = Counting::start(tls(), 1000).expect("a port is free");
    let fcm = Counting::start(tls(), 1000).expect("a port is free");
    for (lane, provider) in [("apns", &apns), ("firebase", &fcm)] {
        let port = i64::from(provider.address().port());
        lab.settings
            .overrides
            .push((format!("dispatch.{lane}.port"), port.into()));
    }
    lab.write_settings().expect("the folder is ours");
    lab.start_notifier().await.expect("the notifier starts");
    world::subscribe_all(&lab, phones).await;
    let swarms = world::Swarms::of(&lab);
    let delivered = || apns.pushes() + fcm.pushes();

    let mut number = 0;
    // What is opened and allocated once is not what is measured.
    number = run(&lab, phones, &swarms, number, 5_000, &delivered).await.1;
    let before = lab.fleet.counts();
    let cpu = lab.notifier().processor_time().unwrap_or_default();
    let began = Instant::now();
    let (lost, _) = run(&lab, phones, &swarms, number, messages, &delivered).await;
    let took = began.elapsed();
    let cpu = lab.notifier().processor_time().unwrap_or_default().saturating_sub(cpu);
    let counts = lab.fleet.counts();
    let resident = lab.notifier().resident_bytes().unwrap_or(0);
    if std::env::args().any(|argument| argument == "metrics") {
        let metrics = lab.notifier().metrics().await.expect("the notifier tells its metrics");
        report::note(metrics.text());
    }
    lab.stop_notifier(Duration::from_secs(60)).await.expect("it stops");

    let bare = bare_client(&lab, &apns, messages.min(100_000)).await;
    let libzmq = bare_libzmq(messages * 3);
    let rate = (messages - lost) as f64 / took.as_secs_f64();
    report::figure(
        "wakeups: distinct, node to provider",
        rate,
        "/s",
        Goal::AtLeast(10_000.0),
        &[
            ("bare hyper client", bare),
            ("bare libzmq loop (one of three copies)", libzmq / 3.0),
        ],
    );
    report::note(&format!(
        "{} of the notifier's processor time a wakeup with its three copies; lost {lost}; copies pushed {}, lost at the nodes {}; \
         resident {} MB",
        report::each(cpu, messages),
        counts.pushed - before.pushed,
        counts.lost - before.lost,
        resident >> 20
    ));
}

/// Sends `count` messages, not more than [`UNDER_WAY`] of them at once. How many never came, and the next number.
async fn run(
    lab: &Lab,
    phones: &[Phone],
    swarms: &world::Swarms,
    first: u64,
    count: u64,
    delivered: &impl Fn() -> u64,
) -> (u64, u64) {
    let start = delivered();
    let (mut sent, mut last) = (0, (0, Instant::now()));
    loop {
        let done = delivered() - start;
        if done != last.0 {
            last = (done, Instant::now());
        }
        if done >= count || last.1.elapsed() > Duration::from_secs(10) {
            return (count.saturating_sub(done), first + count);
        }
        if sent >= count || sent - done.min(sent) >= UNDER_WAY {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        for _ in 0..200.min(count - sent) {
            let phone = &phones[((first + sent) * 7_919 % phones.len() as u64) as usize];
            let message = world::message(phone, first + sent);
            lab.fleet.store(swarms.nodes(phone.account()).iter().copied(), &message);
            sent += 1;
        }
        tokio::task::yield_now().await;
    }
}

/// The same pushes by hyper alone: two connections, one request built once, nothing read but the status.
async fn bare_client(lab: &Lab, provider: &Counting, requests: u64) -> f64 {
    let tls = client_config(lab.keys.authority.certificate()).expect("the certificate is good");
    let mut senders = Vec::new();
    for _ in 0..2 {
        let stream = TcpStream::connect(provider.address()).await.expect("it listens");
        stream.set_nodelay(true).expect("TCP has this option");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::clone(&tls))
            .connect(name, stream)
            .await
            .expect("TLS");
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        senders.push(sender);
    }
    let request = Request::post(format!("https://localhost/3/device/{}", "07".repeat(32)))
        .header("authorization", "bearer ".to_owned() + &"x".repeat(200))
        .header("apns-topic", "org.example.app")
        .header("apns-push-type", "alert")
        .header("apns-priority", "10")
        .header("apns-id", "01112131-4151-6171-8191-a1b1c1d1e1f1")
        .header("apns-expiration", "1900000000")
        .body(Full::new(Bytes::from(vec![b'x'; 950])))
        .expect("a request");
    let began = Instant::now();
    let mut under_way = FuturesUnordered::new();
    for number in 0..requests {
        if under_way.len() >= 1000 {
            under_way.next().await;
        }
        let sent = senders[number as usize % 2].send_request(request.clone());
        under_way.push(async move {
            let response = sent.await.expect("an answer");
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.expect("a body");
        });
    }
    while under_way.next().await.is_some() {}
    requests as f64 / began.elapsed().as_secs_f64()
}

/// Copies a second from fake nodes to libzmq on one thread that only receives them.
fn bare_libzmq(copies: u64) -> f64 {
    const NODES: usize = 108;
    let fleet = Fleet::start(NODES, &NodeSettings::default()).expect("the nodes start");
    let context = zmq::Context::new();
    let me = CurveKey::new();
    let sockets: Vec<zmq::Socket> = fleet
        .addresses()
        .iter()
        .map(|node| {
            let socket = context.socket(zmq::DEALER).expect("a socket");
            socket.set_curve_serverkey(&node.public_key).expect("a key");
            socket.set_curve_publickey(&me.public).expect("a key");
            socket.set_curve_secretkey(&me.secret).expect("a key");
            socket
                .connect(&format!("tcp://127.0.0.1:{}", node.port))
                .expect("a connection");
            socket.send("HI", 0).expect("HI goes out");
            socket
        })
        .collect();
    for socket in &sockets {
        while socket.recv_bytes(0).expect("an answer") != b"HELLO" {}
    }
    let body = vec![b'x'; 620];
    let began = Instant::now();
    let (mut received, mut sent) = (0, 0);
    while received < copies {
        while sent < copies && sent - received < UNDER_WAY * 3 {
            for node in 0..NODES {
                fleet.push_raw(node, vec![b"notify.message".to_vec(), body.clone()]);
            }
            sent += NODES as u64;
        }
        let mut items: Vec<_> = sockets.iter().map(|socket| socket.as_poll_item(zmq::POLLIN)).collect();
        zmq::poll(&mut items, 1000).expect("polling works");
        for (socket, item) in sockets.iter().zip(&items) {
            while item.is_readable() && socket.recv_multipart(zmq::DONTWAIT).is_ok() {
                received += 1;
            }
        }
    }
    received as f64 / began.elapsed().as_secs_f64()
}

/// One message each millisecond for twenty seconds: the time from the nodes' storing to the provider's receiving.
async fn delay(phones: &[Phone]) {
    const MESSAGES: usize = 20_000;
    let mut lab = Lab::start(world::settings("delay", SWARMS))
        .await
        .expect("the lab starts");
    world::subscribe_all(&lab, phones).await;
    let swarms = world::Swarms::of(&lab);
    lab.deliveries.count_only(true);
    let sent: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (sent_by_token, noted) = (Arc::clone(&sent), Arc::clone(&times));
    lab.deliveries.observe(move |delivery| {
        let at = sent_by_token.lock().expect("nobody panics").remove(&delivery.token);
        if let Some(at) = at {
            noted
                .lock()
                .expect("nobody panics")
                .push(delivery.at.saturating_duration_since(at));
        }
    });
    let notifier = lab.notifier().process_id().expect("it runs");
    let processor_time = |id| system::processor_time(id).unwrap_or_default();
    let send = |number: usize| {
        let phone = &phones[number % phones.len()];
        sent.lock()
            .expect("nobody panics")
            .insert(phone.token.clone(), Instant::now());
        lab.fleet.store(
            swarms.nodes(phone.account()).iter().copied(),
            &world::message(phone, number as u64),
        );
    };
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for number in 0..2_000 {
        tick.tick().await;
        send(number);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    times.lock().expect("nobody panics").clear();
    let cpu_before = processor_time(notifier);
    // Or the ticks of the pause would come all at once.
    tick.reset();
    let began = Instant::now();
    for number in 2_000..2_000 + MESSAGES {
        tick.tick().await;
        send(number);
    }
    let took = began.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cpu = processor_time(notifier).saturating_sub(cpu_before);
    let mut times = std::mem::take(&mut *times.lock().expect("nobody panics"));
    let arrived = times.len();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let (half, late, latest) = (
        report::percentile(&mut times, 500),
        report::percentile(&mut times, 990),
        report::percentile(&mut times, 1000),
    );
    report::figure(
        "wakeups: p99 from node to provider at 1,000/s",
        milliseconds(late),
        "ms",
        Goal::AtMost(5.0),
        &[("a commit of the outbox alone", commit_time())],
    );
    report::note(&format!(
        "p50 {:.2} ms, longest {:.2} ms; {arrived} of {MESSAGES} arrived, sent at {:.0}/s; {} of the notifier's processor time each",
        milliseconds(half),
        milliseconds(latest),
        MESSAGES as f64 / took.as_secs_f64(),
        report::each(cpu, MESSAGES as u64)
    ));
}

/// What the disk takes to make one kilobyte durable, p99, ms: nothing with an outbox can be faster.
fn commit_time() -> f64 {
    use std::io::Write;
    let path = world::folder("delay").join("sync");
    let mut file = std::fs::File::create(path).expect("the folder is ours");
    let mut times: Vec<Duration> = (0..1000)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&[7; 1024]).expect("the disk has room");
            file.sync_data().expect("the disk works");
            began.elapsed()
        })
        .collect();
    report::percentile(&mut times, 990).as_secs_f64() * 1e3
}
