//! Memory of 2,000 links to nodes, beside as many libzmq sockets in a process of their own.

#[path = "support/report.rs"]
mod report;
#[path = "support/world.rs"]
mod world;

use quietline_lab::lab::Lab;
use quietline_lab::node::CurveKey;
use quietline_lab::system;
use report::Goal;
use std::io::{BufRead, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const LINKS: usize = 2_000;
/// A libzmq context has 1,023 sockets at most.
const CONTEXT: usize = 1_000;
/// After the last handshake, so that what it took is given back, or is not.
const SETTLE: Duration = Duration::from_secs(5);

fn main() {
    if std::env::args().any(|argument| argument == "as-libzmq") {
        return hold_libzmq_sockets();
    }
    world::runtime().block_on(async {
        let few = resident(1).await.0;
        let (many, lab) = resident(LINKS / 5).await;
        let reference = libzmq(&lab);
        let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        report::figure(
            "links: the whole notifier with 2,000 of them",
            megabytes(many),
            "MB",
            Goal::AtMost(50.0),
            &[("2,000 libzmq sockets", megabytes(reference))],
        );
        report::figure(
            "links: each",
            many.saturating_sub(few) as f64 / 1024.0 / (LINKS - 5) as f64,
            "KB",
            Goal::None,
            &[("libzmq", reference as f64 / 1024.0 / LINKS as f64)],
        );
        report::note(&format!("the notifier with 5 links: {:.1} MB", megabytes(few)));
    });
}

/// Of the notifier with `swarms` of five nodes, all watched.
async fn resident(swarms: usize) -> (u64, Lab) {
    let mut settings = world::settings("links", swarms).with("watcher.nodes_per_swarm", 5);
    settings.nodes_per_swarm = 5;
    let mut lab = Lab::start(settings).await.expect("the lab starts");
    let nodes = (swarms * 5) as u64;
    loop {
        let metrics = lab.notifier().metrics().await.expect("the notifier tells its metrics");
        if metrics.sum("watch_links") == Some(nodes as f64) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let bytes = lab.notifier().resident_bytes().expect("it runs");
    (bytes, lab)
}

/// This program again, as a client of the same nodes.
fn libzmq(lab: &Lab) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("it runs"))
        .arg("as-libzmq")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("asked for");
    for node in lab.fleet.addresses() {
        writeln!(input, "{} {}", node.port, hex::encode(node.public_key)).expect("it reads");
    }
    writeln!(input, "end").expect("it reads");
    let mut ready = String::new();
    std::io::BufReader::new(child.stdout.take().expect("asked for"))
        .read_line(&mut ready)
        .expect("it says when it is ready");
    std::thread::sleep(SETTLE);
    let bytes = system::status_bytes(child.id(), "VmRSS:").expect("it runs");
    drop(input);
    child.wait().expect("it ends");
    bytes
}

#[allow(clippy::print_stdout, reason = "its parent reads it")]
fn hold_libzmq_sockets() {
    system::raise_open_files();
    let mut context = zmq::Context::new();
    let me = CurveKey::new();
    let mut sockets = Vec::new();
    let mut lines = std::io::stdin().lines();
    while let Some(Ok(line)) = lines.next()
        && let Some((port, key)) = line.split_once(' ')
    {
        if sockets.len() % CONTEXT == CONTEXT - 1 {
            context = zmq::Context::new();
        }
        let socket = context.socket(zmq::DEALER).expect("a socket");
        socket
            .set_curve_serverkey(&hex::decode(key).expect("hex"))
            .expect("a key");
        socket.set_curve_publickey(&me.public).expect("a key");
        socket.set_curve_secretkey(&me.secret).expect("a key");
        socket.set_linger(0).expect("an option");
        socket
            .connect(&format!("tcp://127.0.0.1:{port}"))
            .expect("a connection");
        socket.send("HI", 0).expect("HI goes out");
        sockets.push(socket);
    }
    for socket in &sockets {
        while socket.recv_bytes(0).expect("an answer") != b"HELLO" {}
    }
    println!("ready");
    // Until the parent has looked.
    let _ = lines.next();
}
