//! What the relay does when the system has no descriptor left. The limit is the process's, so that this test has one of its own.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod net;

use net::{Net, PATIENCE};
use quietline_turn::streams::StreamEvent;
use rlimit::Resource;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn without_descriptors_a_client_waits_until_there_are_some() {
    let net = Net::new(1);
    let (before, most) = Resource::NOFILE.get().unwrap();
    let mut clients: Vec<_> = (0..8).map(|_| TcpStream::connect(net.server).unwrap()).collect();
    net.until(|report| report.streams.accepted == 8);
    // The next connection's socket here is the last one that there is room for.
    let next = {
        use std::os::fd::AsRawFd;
        std::fs::File::open("/dev/null").unwrap().as_raw_fd()
    };
    Resource::NOFILE.set(next as u64 + 1, most).unwrap();
    let late = TcpStream::connect(net.server).unwrap();
    net.until(|report| report.streams.count(StreamEvent::AcceptFailed) > 0);
    // It is not tried again at every turn of the loop, and those that are in are served.
    clients.iter_mut().for_each(ask);
    let tries = net.shards().report().streams.count(StreamEvent::AcceptFailed);
    assert!(tries < 100, "{tries} tries");
    Resource::NOFILE.set(before, most).unwrap();
    net.until(|report| report.streams.accepted == 9);
    clients.push(late);
    clients.iter_mut().for_each(ask);
}

fn ask(client: &mut TcpStream) {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    client
        .write_all(&net::world::Draft::new(net::world::BINDING, [7; 12]).0)
        .unwrap();
    let mut answer = [0; 32];
    client.read_exact(&mut answer).unwrap();
    assert!(net::world::Reply::read(&answer).is_success());
}
