//! A burst of 20,000 messages, each stored at every node of its swarm at once, counted where the phones would get them.

#[path = "support/report.rs"]
mod report;
#[path = "support/world.rs"]
mod world;

use quietline_lab::lab::Lab;
use quietline_lab::node::{CurveKey, Fleet, NodeSettings};
use report::Goal;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MESSAGES: usize = 20_000;

fn main() {
    // 252 nodes, as elsewhere here: each keeps its share of the burst, 556 messages of the 1,000 that OxenMQ lets wait.
    world::runtime().block_on(burst(36, Goal::AtMost(0.0)));
    // Three swarms: what one node has to send is several times what it may keep for one connection, and it sends as fast as it can
    // compute. What is lost then is lost inside the nodes, and more where a bare libzmq receives.
    world::runtime().block_on(burst(3, Goal::None));
}

async fn burst(swarms: usize, goal: Goal) {
    let settings = world::settings("burst", swarms);
    let mut lab = Lab::start(settings).await.expect("the lab starts");
    let phones = world::phones(MESSAGES);
    world::subscribe_all(&lab, &phones).await;
    let map = world::Swarms::of(&lab);
    lab.deliveries.count_only(true);
    let seen: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let noted = Arc::clone(&seen);
    lab.deliveries.observe(move |delivery| {
        let mut seen = noted.lock().expect("nobody panics while holding it");
        *seen.entry(delivery.token.clone()).or_default() += 1;
    });
    let before = lab.fleet.counts();
    let cpu = lab.notifier().processor_time().unwrap_or_default();
    let began = Instant::now();
    for (number, phone) in phones.iter().enumerate() {
        lab.fleet.store(
            map.nodes(phone.account()).iter().copied(),
            &world::message(phone, number as u64),
        );
    }
    lab.fleet.settle().expect("the nodes live");
    let pushed_in = began.elapsed();
    let mut last = (0, Instant::now());
    let found = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let found = seen.lock().expect("nobody panics while holding it").len();
        if found != last.0 {
            last = (found, Instant::now());
        }
        if found >= MESSAGES || last.1.elapsed() > Duration::from_secs(15) {
            break found;
        }
    };
    let took = last.1.duration_since(began);
    let cpu = lab.notifier().processor_time().unwrap_or_default().saturating_sub(cpu);
    let counts = lab.fleet.counts();
    let twice = seen
        .lock()
        .expect("nobody panics while holding it")
        .values()
        .filter(|times| **times > 1)
        .count();
    let (pushed, lost) = (counts.pushed - before.pushed, counts.lost - before.lost);
    report::figure(
        &format!("burst: messages lost of 20,000 in {swarms} swarms"),
        (MESSAGES - found) as f64,
        "messages",
        goal,
        &[],
    );
    report::figure(
        "burst: messages from node to provider",
        found as f64 / took.as_secs_f64(),
        "/s",
        Goal::None,
        &[("the fakes' own pushing", MESSAGES as f64 / pushed_in.as_secs_f64())],
    );
    let metrics = lab.notifier().metrics().await.expect("the notifier tells its metrics");
    let taken = metrics.sum("event_notifications_total").unwrap_or_default();
    lab.stop_notifier(Duration::from_secs(60)).await.expect("it stops");
    report::figure(
        &format!("burst: copies of 60,000 lost in the nodes' own queues, {swarms} swarms"),
        lost as f64,
        "copies",
        goal,
        &[],
    );
    report::note(&format!(
        "with a bare libzmq in the notifier's place: {}; of {pushed} copies that left the nodes the notifier took {taken}; delivered \
         twice: {twice}; {} of its processor time a message",
        bare_libzmq_loses(swarms),
        report::each(cpu, MESSAGES as u64)
    ));
}

/// Of a burst as `swarms` swarms send it, what nodes lose whose peer is a bare libzmq that only receives: one thread a link.
fn bare_libzmq_loses(swarms: usize) -> u64 {
    const COPIES: usize = 3;
    let nodes = swarms * 7;
    let fleet = Fleet::start(
        nodes,
        &NodeSettings {
            io_threads: std::env::var("IO").ok().and_then(|io| io.parse().ok()).unwrap_or(1),
            ..NodeSettings::default()
        },
    )
    .expect("the nodes start");
    let context = zmq::Context::new();
    let watched: Vec<usize> = (0..nodes).filter(|node| node % 7 < COPIES).collect();
    let enough = Arc::new(AtomicBool::new(false));
    let receivers: Vec<_> = watched
        .iter()
        .map(|node| {
            let (address, me) = (&fleet.addresses()[*node], CurveKey::new());
            let socket = context.socket(zmq::DEALER).expect("a socket");
            socket.set_curve_serverkey(&address.public_key).expect("a key");
            socket.set_curve_publickey(&me.public).expect("a key");
            socket.set_curve_secretkey(&me.secret).expect("a key");
            socket.set_rcvtimeo(100).expect("an option");
            socket
                .connect(&format!("tcp://127.0.0.1:{}", address.port))
                .expect("a connection");
            socket.send("HI", 0).expect("HI goes out");
            while socket.recv_bytes(0).is_ok_and(|frame| frame != b"HELLO") {}
            let enough = Arc::clone(&enough);
            std::thread::spawn(move || {
                let mut frame = zmq::Message::new();
                while !enough.load(Ordering::Relaxed) {
                    while socket.recv(&mut frame, 0).is_ok() {}
                }
            })
        })
        .collect();
    let body = vec![b'x'; 620];
    for number in 0..MESSAGES {
        // One command a message and three copies, as in the burst itself.
        let swarm = number % swarms;
        for node in swarm * 7..swarm * 7 + 3 {
            fleet.push_raw(node, vec![b"notify.message".to_vec(), body.clone()]);
        }
    }
    fleet.settle().expect("the nodes live");
    let lost = fleet.counts().lost;
    enough.store(true, Ordering::Relaxed);
    for receiver in receivers {
        receiver.join().expect("it only receives");
    }
    lost
}
