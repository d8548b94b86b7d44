//! Clients that mean no good: of the HTTP port, of onions, of the operators' port. Each goes on until it is over.

use quietline_lab::onion::{self, Cipher};
use quietline_lab::phone::{Phone, PushService, unix_seconds};
use quietline_lab::sodium;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest that one connection is kept up.
const LONGEST: Duration = Duration::from_secs(7);
const SLOW_CONNECTIONS: usize = 300;

pub fn attack(
    http: SocketAddr,
    ops: SocketAddr,
    onion_public: [u8; 32],
    over: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for (address, requests) in [(http, bad_requests(&onion_public)), (ops, bad_for_operators())] {
        for request in requests {
            let over = Arc::clone(over);
            tasks.push(tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let _ = timeout(LONGEST, send(address, &request)).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }));
        }
    }
    // Hundreds that send a byte now and then, and a few at the operators' port.
    for number in 0..SLOW_CONNECTIONS {
        let (over, address) = (Arc::clone(over), if number.is_multiple_of(50) { ops } else { http });
        tasks.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let _ = trickle(address, number, &over).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }));
    }
    tasks
}

/// What is sent, and whether its end is repeated for ever.
struct BadRequest {
    start: Vec<u8>,
    forever: Vec<u8>,
}

fn once(start: impl Into<Vec<u8>>) -> BadRequest {
    BadRequest {
        start: start.into(),
        forever: Vec::new(),
    }
}

fn endless(start: impl Into<Vec<u8>>, forever: impl Into<Vec<u8>>) -> BadRequest {
    BadRequest {
        start: start.into(),
        forever: forever.into(),
    }
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn bad_requests(onion_public: &[u8; 32]) -> Vec<BadRequest> {
    const ONION: &str = "/oxen/v4/lsrpc";
    let chunked = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let nested = "[".repeat(100_000);
    let ten_megabytes = format!("[{}0]", "0,".repeat(5 << 20));
    let item = Phone::new(PushService::Apns).subscribe_item(unix_seconds()).to_string();
    let sealed = |body: &[u8]| onion::request(Cipher::XChaCha20, onion_public, "/subscribe", body).0;
    let mut huge_length = sealed(b"{}");
    huge_length[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut nested_routing = sealed(b"{}");
    nested_routing.extend_from_slice(nested.as_bytes());
    let announced =
        |length: &str| format!("POST /subscribe HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{item}");
    vec![
        once(sodium::random::<4096>()),
        endless(b"GET / HTTP/1.1\r\n".to_vec(), b"x-header: y\r\n".repeat(100)),
        endless(b"GET /".to_vec(), b"a".repeat(4096)),
        endless(
            chunked("/subscribe"),
            b"1000\r\n"
                .iter()
                .copied()
                .chain([b'x'; 0x1000])
                .chain(*b"\r\n")
                .collect::<Vec<_>>(),
        ),
        endless(chunked(ONION), b"1\r\nx\r\n".repeat(500)),
        endless(
            chunked("/subscribe"),
            b"1;extension=".iter().copied().chain([b'x'; 4000]).collect::<Vec<_>>(),
        ),
        endless(chunked("/subscribe"), b"0".repeat(4000)),
        once(post("/subscribe", ten_megabytes.as_bytes())),
        once(post("/subscribe", &ten_megabytes.as_bytes()[..3 << 20])),
        once(post("/subscribe", nested.as_bytes())),
        once(post("/unsubscribe", "{\"a\":".repeat(40_000).as_bytes())),
        once(post("/subscribe", format!("[{}1]", "1,".repeat(100_000)).as_bytes())),
        once(post("/subscribe", item.as_bytes()).repeat(300)),
        once(post(ONION, b"garbage").repeat(300)),
        once(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        once(announced("1")),
        once(announced("99999999999999999999999")),
        once(announced("18446744073709551615")),
        once(announced("-1")),
        once(announced("200000")),
        once(announced("10\r\nContent-Length: 20")),
        once(announced("10\r\nTransfer-Encoding: chunked")),
        once(post(ONION, &sodium::random::<2000>())),
        once(post(ONION, &huge_length)),
        once(post(ONION, &nested_routing)),
        once(post(ONION, &sealed(nested.as_bytes()))),
        once(post(ONION, &sealed(&sodium::random::<2000>()))),
        once(post(ONION, &sealed(format!("[{}1]", "1,".repeat(100_000)).as_bytes()))),
        once(post(ONION, &vec![0xff; 1 << 20])),
    ]
}

fn bad_for_operators() -> Vec<BadRequest> {
    vec![
        once(sodium::random::<4096>()),
        endless(b"GET /metrics HTTP/1.1\r\n".to_vec(), b"x-header: y\r\n".repeat(100)),
        endless(
            b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n".to_vec(),
            b"x".repeat(4096),
        ),
        once(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50)),
    ]
}

/// Sends it all and reads what comes, until either ends.
async fn send(address: SocketAddr, request: &BadRequest) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let (mut reading, mut writing) = stream.split();
    let write = async {
        writing.write_all(&request.start).await?;
        while !request.forever.is_empty() {
            writing.write_all(&request.forever).await?;
            tokio::task::yield_now().await;
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let read = async {
        let mut sink = [0; 16 << 10];
        while reading.read(&mut sink).await? > 0 {}
        Ok(())
    };
    tokio::select! {
        ended = write => ended,
        ended = read => ended,
    }
}

/// A byte every now and then: of headers, or of a body; some never read the answer.
async fn trickle(address: SocketAddr, number: usize, over: &AtomicBool) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    if number.is_multiple_of(2) {
        stream
            .write_all(b"POST /oxen/v4/lsrpc HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
            .await?;
        // A part of a body that is kept until its time is over.
        stream.write_all(&[b'x'; 15_000]).await?;
    } else {
        stream.write_all(b"GET /").await?;
    }
    while !over.load(Ordering::Relaxed) {
        stream.write_all(b"x").await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
