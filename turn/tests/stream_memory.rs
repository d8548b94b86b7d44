//! What a stream costs on the heap, with and without TLS, idle and while its client is hostile.
#![expect(
    unsafe_code,
    reason = "counting needs an allocator of our own, and its trait is unsafe"
)]

mod net;

use net::world::{BINDING, Draft};
use net::{Net, PATIENCE};
use quietline_turn::streams::{StreamSettings, server_config};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use turn_core::control::Limits;

/// Counts the bytes that threads hold that have not said that they are the test's.
struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static IS_OF_THE_TEST: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: isize) {
    if !IS_OF_THE_TEST.try_with(Cell::get).unwrap_or(true) {
        HELD.fetch_add(bytes, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const STREAMS: usize = 50;

#[test]
fn a_stream_costs_little_and_a_hostile_one_not_much_more() {
    IS_OF_THE_TEST.set(true);
    let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = server_config(vec![made.cert.der().clone()], key.into()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let streams = StreamSettings {
        per_prefix_per_second: 100_000,
        ..StreamSettings::default()
    };
    let limits = Limits {
        challenges_per_second: 100_000,
        challenge_burst: 100_000,
        ..Limits::default()
    };
    let net = Net::with_streams(1, limits, streams, Some(server));
    let binding = Draft::new(BINDING, [7; 12]).0;
    let held = || HELD.load(Ordering::SeqCst);
    // Also those that the system has taken and the shard has not yet.
    let made = Cell::new(0);
    let all_gone = || {
        net.until(|report| {
            let streams = &report.streams;
            streams.accepted == made.get() && streams.open_tcp + streams.open_tls == 0
        });
    };
    // At least so many bytes are held for what a stream was sent: then it has arrived. Less than all of it, because a shard gives back the
    // channel of each report, which this thread took and does not count.
    let per_stream = |what: &str, least: isize, make: &dyn Fn() -> Box<dyn std::any::Any>| {
        // What the first ones bring up in the shard and in the libraries is not a stream's.
        drop((0..STREAMS).map(|_| make()).collect::<Vec<_>>());
        all_gone();
        let before = held();
        let streams: Vec<_> = (0..STREAMS).map(|_| make()).collect();
        net.until(|report| {
            let open = report.streams.open_tcp + report.streams.open_tls;
            open == STREAMS as u64 && held() - before >= least * STREAMS as isize
        });
        let each = (held() - before) / STREAMS as isize;
        println!("{what}: {each} bytes a stream");
        drop(streams);
        all_gone();
        each
    };
    let ask = |stream: &mut dyn ReadWrite| {
        stream.write_all(&binding).unwrap();
        stream.read_exact(&mut [0; 32]).unwrap();
    };
    let connect = || {
        made.set(made.get() + 1);
        let socket = TcpStream::connect(net.server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let silent = per_stream("silent", 0, &|| Box::new(connect()));
    let tcp = per_stream("TCP", 0, &|| {
        let mut socket = connect();
        ask(&mut socket);
        Box::new(socket)
    });
    let half = per_stream("TCP with half a frame", 1_500, &|| {
        let mut socket = connect();
        ask(&mut socket);
        // The longest that a stranger may begin, and never end.
        socket.write_all(&[0, 1, 0x07, 0xE8, 0x21, 0x12, 0xA4, 0x42]).unwrap();
        socket.write_all(&[0; 2_000]).unwrap();
        Box::new(socket)
    });
    let tls = per_stream("TLS", 0, &|| {
        let name = ServerName::try_from("relay.test").unwrap();
        let session = ClientConnection::new(config.clone(), name).unwrap();
        let mut stream = StreamOwned::new(session, connect());
        ask(&mut stream);
        Box::new(stream)
    });
    let hello = per_stream("TLS with half a hello", 14_000, &|| {
        let mut socket = connect();
        socket.write_all(&[22, 3, 1, 0x40, 0, 1, 0, 0x3F, 0xFC]).unwrap();
        socket.write_all(&[7; 15_000]).unwrap();
        Box::new(socket)
    });
    assert!(silent <= 1_024 && tcp <= 1_024, "{silent} {tcp}");
    assert!(half <= 4_096, "{half}");
    assert!(tls <= 8_192, "{tls}");
    // The buffer of a hello that comes in pieces doubles as it grows.
    assert!(hello <= 36_864, "{hello}");
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}
