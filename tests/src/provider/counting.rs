//! A provider for load: says 200 to every push, and counts.
//!
//! In: HTTP/2 over TLS. Out: a count. Never: decodes a header or looks into a body, so that it takes as little as it can of the
//! cores it shares with what is measured.

use crate::ports;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Ends when it is dropped.
pub struct Counting {
    address: SocketAddr,
    pushes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Counting {
    /// `streams`: how many pushes a connection may have under way.
    pub fn start(tls: Arc<rustls::ServerConfig>, streams: u32) -> std::io::Result<Self> {
        let listener = ports::listener();
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(tls);
        let pushes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&pushes);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
                running.spawn(async move {
                    // A connection that breaks is its client's to notice.
                    let _ = serve(acceptor, stream, streams, &counted).await;
                });
            }
        });
        Ok(Self { address, pushes, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pushes(&self) -> u64 {
        self.pushes.load(Ordering::Relaxed)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(tls: TlsAcceptor, stream: TcpStream, streams: u32, pushes: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = tls.accept(stream).await?;
    let mut out = Vec::with_capacity(READ);
    let mut settings = Vec::new();
    for (setting, value) in [(MAX_CONCURRENT_STREAMS, streams), (INITIAL_WINDOW_SIZE, WINDOW)] {
        settings.extend_from_slice(&setting.to_be_bytes());
        settings.extend_from_slice(&value.to_be_bytes());
    }
    frame(&mut out, SETTINGS, 0, 0, &settings);
    frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes());
    let mut input = Vec::with_capacity(2 * READ);
    let mut preface = PREFACE;
    let mut taken = 0u32;
    loop {
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let mut rest = &input[..];
        if preface > 0 {
            if rest.len() < preface {
                continue;
            }
            rest = &rest[preface..];
            preface = 0;
        }
        let mut answered = 0;
        while let Some((head, after)) = rest.split_first_chunk::<9>() {
            let [a, b, c, kind, flags, stream_id @ ..] = head;
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some((payload, after)) = after.split_at_checked(length) else {
                break;
            };
            rest = after;
            match *kind {
                DATA | HEADERS => {
                    taken += if *kind == DATA { length as u32 } else { 0 };
                    if flags & END_STREAM != 0 {
                        answered += 1;
                        let id = u32::from_be_bytes(*stream_id);
                        // The first entry of the static table with a status: 200.
                        frame(&mut out, HEADERS, END_STREAM | END_HEADERS, id, &[0x88]);
                    }
                }
                SETTINGS if flags & ACK == 0 => frame(&mut out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut out, PING, ACK, 0, payload),
                _ => {}
            }
        }
        let left = rest.len();
        let read = input.len() - left;
        input.drain(..read);
        if taken >= WINDOW / 2 {
            frame(&mut out, WINDOW_UPDATE, 0, 0, &taken.to_be_bytes());
            taken = 0;
        }
        pushes.fetch_add(answered, Ordering::Relaxed);
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

const READ: usize = 256 << 10;
const WINDOW: u32 = 1 << 30;
/// Length of what a client says first.
const PREFACE: usize = 24;

// RFC 9113 §6 and §6.5.2.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
