//! New subscriptions a second over HTTP and through onion requests, 50 in flight, while 252 nodes are watched.
//!
//! The requests are signed and sealed before the clock starts. `-- count=20000` for another number.

#[path = "support/report.rs"]
mod report;
#[path = "support/world.rs"]
mod world;

use quietline_lab::lab::Lab;
use quietline_lab::onion::{self, Cipher};
use quietline_lab::phone::{PushService, unix_seconds};
use report::Goal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const IN_FLIGHT: usize = 50;
const SWARMS: usize = 36;

fn main() {
    let count = std::env::args()
        .find_map(|argument| argument.strip_prefix("count=")?.parse().ok())
        .unwrap_or(40_000);
    world::runtime().block_on(async {
        let mut settings = world::settings("subscribe", SWARMS);
        settings.nodes.count_only = true;
        let mut lab = Lab::start(settings).await.expect("the lab starts");
        let server = lab.keys.onion_public;
        let direct = world::in_threads(count, |number| {
            world::post("/subscribe", "application/json", &wish(number))
        });
        measure(&mut lab, "subscribe: new over HTTP", direct, 5_000.0, |answer| {
            String::from_utf8_lossy(answer).contains("\"success\":true")
        })
        .await;

        let sealed = world::in_threads(count, |number| {
            let cipher = Cipher::BOTH[number % Cipher::BOTH.len()];
            let (request, key) = onion::request(cipher, &server, "/subscribe", &wish(number));
            (world::post(onion::PATH, "application/octet-stream", &request), key)
        });
        let (requests, keys): (Vec<_>, Vec<_>) = sealed.into_iter().unzip();
        let mut keys = keys.into_iter();
        measure(
            &mut lab,
            "subscribe: new through onion requests",
            requests,
            3_000.0,
            |answer| {
                let reply = keys.next().and_then(|key| key.open_reply(answer));
                reply.is_some_and(|reply| String::from_utf8_lossy(&reply.body).contains("\"success\":true"))
            },
        )
        .await;
    });
}

fn wish(number: usize) -> Vec<u8> {
    let phone = quietline_lab::phone::Phone::new(match number % 2 {
        0 => PushService::Apns,
        _ => PushService::Firebase,
    });
    phone.subscribe_item(unix_seconds()).to_string().into_bytes()
}

async fn measure(
    lab: &mut Lab,
    name: &str,
    requests: Vec<Vec<u8>>,
    goal: f64,
    mut is_success: impl FnMut(&[u8]) -> bool,
) {
    let count = requests.len();
    let before = lab.fleet.counts();
    let requests = Arc::new(requests);
    let cpu = lab.notifier().processor_time().unwrap_or_default();
    let began = Instant::now();
    let answers = world::send_all(lab.http_address(), Arc::clone(&requests), IN_FLIGHT).await;
    let took = began.elapsed();
    let cpu = lab.notifier().processor_time().unwrap_or_default().saturating_sub(cpu);
    let failed = answers.iter().filter(|(_, answer)| !is_success(answer)).count();
    let mut times: Vec<Duration> = answers.into_iter().map(|(time, _)| time).collect();
    let wanted = before.records + 3 * (count - failed) as u64;
    let watched = lab
        .fleet
        .wait_counts(Duration::from_secs(30), |counts| counts.records >= wanted)
        .await;

    let bare = bare_server().await;
    let began = Instant::now();
    world::send_all(bare, requests, IN_FLIGHT).await;
    let reference = count as f64 / began.elapsed().as_secs_f64();
    report::figure(
        name,
        count as f64 / took.as_secs_f64(),
        "/s",
        Goal::AtLeast(goal),
        &[("a bare loop over the same sockets", reference)],
    );
    let late = report::percentile(&mut times, 990).as_secs_f64() * 1e3;
    report::figure(&format!("{name}, p99"), late, "ms", Goal::AtMost(30.0), &[]);
    report::note(&format!(
        "p50 {:.1} ms; {} of the notifier's processor time each; {failed} failed; acknowledged by three nodes: {}",
        report::percentile(&mut times, 500).as_secs_f64() * 1e3,
        report::each(cpu, count as u64),
        if watched.is_some() { "all" } else { "NOT all" }
    ));
}

/// Reads each request and answers the same.
async fn bare_server() -> SocketAddr {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n{\"success\":true}";
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(async move {
                let mut buffer = Vec::with_capacity(16 << 10);
                loop {
                    let whole = buffer
                        .windows(4)
                        .position(|four| four == b"\r\n\r\n")
                        .is_some_and(|end| {
                            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
                            let length = head
                                .rsplit_once("content-length: ")
                                .and_then(|(_, text)| text.trim().parse::<usize>().ok());
                            buffer.len() >= end + 4 + length.unwrap_or(0)
                        });
                    if whole {
                        buffer.clear();
                        if stream.write_all(ANSWER).await.is_err() {
                            return;
                        }
                    } else if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                        return;
                    }
                }
            });
        }
    });
    address
}
