//! Peers that are no storage nodes, and storage nodes that misbehave behind a good handshake.

use quietline_lab::lab::Lab;
use quietline_lab::node::SwarmMessage;
use quietline_lab::phone::unix_milliseconds;
use quietline_lab::sodium;
use quietline_lab::swarms::ListedNode;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// What one of them says to everybody who connects.
type Speech = fn(&mut TcpStream) -> std::io::Result<()>;

const SPEECHES: [Speech; 11] = [
    |stream| loop {
        stream.write_all(&sodium::random::<4096>())?;
    },
    |stream| stream.write_all(&greeting(b"NULL", 3)).and_then(|()| hear(stream)),
    |stream| stream.write_all(&greeting(b"CURVE", 1)).and_then(|()| hear(stream)),
    // One byte after the other, as long as somebody listens.
    |stream| {
        for byte in greeting(b"CURVE", 3) {
            stream.write_all(&[byte])?;
            thread::sleep(Duration::from_millis(400));
        }
        Ok(())
    },
    |stream| {
        stream.write_all(&greeting(b"CURVE", 3))?;
        stream.write_all(&[6, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])?;
        loop {
            stream.write_all(&[0; 4096])?;
        }
    },
    |stream| {
        stream.write_all(&greeting(b"CURVE", 3))?;
        loop {
            stream.write_all(&[4, 5, 4, b'P', b'O', b'N', b'G'].repeat(500))?;
        }
    },
    |stream| {
        stream.write_all(&greeting(b"CURVE", 3))?;
        let mut welcome = vec![4, 168, 7];
        welcome.extend_from_slice(b"WELCOME");
        welcome.extend_from_slice(&[0x55; 160]);
        stream.write_all(&welcome)?;
        hear(stream)
    },
    |_| Ok(()),
    hear,
    |stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    // The whole greeting, then the end.
    |stream| {
        stream.write_all(&greeting(b"CURVE", 3))?;
        thread::sleep(Duration::from_millis(300));
        stream.shutdown(std::net::Shutdown::Write)?;
        hear(stream)
    },
];

pub struct Liars(Vec<u16>);

impl Liars {
    pub fn start() -> Self {
        let ports = SPEECHES.into_iter().map(|speech| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            // They end with the process.
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || {
                        let mut stream = stream;
                        let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
                        let _ = stream.set_write_timeout(Some(Duration::from_secs(30)));
                        let _ = speech(&mut stream);
                    });
                }
            });
            port
        });
        Self(ports.collect())
    }

    pub fn ports(&self) -> &[u16] {
        &self.0
    }

    /// They are in the node list, a third in one swarm, the rest in the other: a part small enough to be believed at once is not
    /// asked for, since the list comes from two sources.
    pub fn join_swarms(&self, lab: &Lab) {
        lab.oxend.change(|list| {
            let swarms: Vec<u64> = list.nodes.iter().map(|node| node.swarm).collect();
            for (number, port) in self.0.iter().enumerate() {
                list.nodes.push(ListedNode {
                    public_key: sodium::random(),
                    ip: "127.0.0.1".into(),
                    port: *port,
                    swarm: swarms[(number * 3) % swarms.len()],
                });
            }
        });
    }
}

fn greeting(mechanism: &[u8], major: u8) -> Vec<u8> {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, major, 1];
    greeting.extend_from_slice(mechanism);
    greeting.resize(64, 0);
    greeting
}

fn hear(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut sink = [0; 4096];
    while stream.read(&mut sink)? > 0 {}
    Ok(())
}

/// The first node of each swarm has gone bad: floods, nonsense, lies; and frames beyond every limit, which end its link.
pub fn flood(lab: &Lab, round: u32) {
    for node in [0, 4] {
        for number in 0..1500u32 {
            let garbage = sodium::random::<64>().to_vec();
            let frames = match number % 5 {
                0 => vec![b"notify.message".to_vec(), garbage],
                1 => vec![b"notify.message".to_vec(), forged(node == 0)],
                2 => vec![garbage],
                3 => vec![b"REPLY".to_vec(), garbage.clone(), garbage],
                _ => vec![
                    b"notify.message".to_vec(),
                    [&b"d1:@33:"[..], &garbage].concat(),
                    b"l".repeat(2000),
                ],
            };
            lab.fleet.push_raw(node, frames);
        }
    }
    lab.fleet.push_raw(0, beyond_limits(round));
}

/// A frame, a number of parts, or a message that is too large.
pub fn beyond_limits(kind: u32) -> Vec<Vec<u8>> {
    match kind % 3 {
        0 => vec![vec![b'x'; 12 << 20]],
        1 => vec![vec![0]; 400],
        _ => [vec![b"notify.message".to_vec()], vec![vec![b'y'; 900_000]; 15]].concat(),
    }
}

/// Of an account that may well not be of this node's swarm.
fn forged(first: bool) -> Vec<u8> {
    let mut account = [5; 33];
    account[1..].copy_from_slice(&sodium::random::<32>());
    let message = SwarmMessage {
        account,
        session_ed25519: None,
        namespace: i16::from(first),
        timestamp_ms: unix_milliseconds(),
        expiry_ms: unix_milliseconds() + 1_000_000,
        data: sodium::random::<100>().to_vec(),
    };
    message.notification(true)
}
