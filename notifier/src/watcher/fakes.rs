//! Listeners made with libzmq, for tests: storage nodes and an oxend.
//!
//! In: what to answer. Out: what was asked. Never: shipped.

use notifier_core::swarm::{Node, NodeKey, SwarmId};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What a fake does with one request: the data parts of its reply, or silence.
type Handler = Box<dyn FnMut(&[u8], &[u8]) -> Option<Vec<Vec<u8>>> + Send>;

enum Order {
    Push(Vec<Vec<u8>>),
    Stop,
}

struct Listener {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(socket: zmq::Socket, handler: Handler) -> Self {
        let (orders, inbox) = channel();
        let thread = std::thread::spawn(move || serve(&socket, &inbox, handler));
        Self {
            orders,
            thread: Some(thread),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &zmq::Socket, orders: &Receiver<Order>, mut handler: Handler) {
    let mut peers = HashSet::new();
    loop {
        while let Ok(order) = orders.try_recv() {
            match order {
                Order::Push(parts) => {
                    for peer in &peers {
                        let mut frames: Vec<Vec<u8>> = vec![Vec::clone(peer)];
                        frames.extend(parts.iter().cloned());
                        let _ = socket.send_multipart(frames, 0);
                    }
                }
                Order::Stop => return,
            }
        }
        if socket.poll(zmq::POLLIN, 5).unwrap() == 0 {
            continue;
        }
        let frames = socket.recv_multipart(0).unwrap();
        match frames.as_slice() {
            [peer, hi] if hi == b"HI" => {
                peers.insert(peer.clone());
                let _ = socket.send_multipart([peer.as_slice(), b"HELLO"], 0);
            }
            [peer, command, tag, data @ ..] => {
                let data = data.first().map_or(&[][..], |data| data);
                if let Some(reply) = handler(command, data) {
                    let mut frames = vec![peer.clone(), b"REPLY".to_vec(), tag.clone()];
                    frames.extend(reply);
                    let _ = socket.send_multipart(frames, 0);
                }
            }
            _ => {}
        }
    }
}

fn router() -> zmq::Socket {
    let socket = zmq::Context::new().socket(zmq::ROUTER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_router_handover(true).unwrap();
    // What a test pushes must not be lost here.
    socket.set_sndhwm(0).unwrap();
    socket
}

/// A storage node that accepts every record.
pub(super) struct FakeNode {
    pub node: Node,
    /// Bodies of `monitor.messages`.
    pub asked: Arc<Mutex<Vec<Vec<u8>>>>,
    listener: Listener,
}

impl FakeNode {
    pub fn start(swarm: u64) -> Self {
        let keys = zmq::CurveKeyPair::new().unwrap();
        let socket = router();
        socket.set_curve_server(true).unwrap();
        socket.set_curve_publickey(&keys.public_key).unwrap();
        socket.set_curve_secretkey(&keys.secret_key).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        let endpoint = socket.get_last_endpoint().unwrap().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        let handler = move |command: &[u8], body: &[u8]| {
            assert_eq!(command, b"monitor.messages");
            record.lock().unwrap().push(body.to_vec());
            // The records of these tests are strings of 33 bytes.
            let records = (body.len() - 2) / 36;
            Some(vec![format!("l{}e", "d7:successi1ee".repeat(records)).into_bytes()])
        };
        Self {
            node: Node {
                key: NodeKey(keys.public_key),
                ip: Ipv4Addr::LOCALHOST,
                port: endpoint.rsplit_once(':').unwrap().1.parse().unwrap(),
                swarm: SwarmId(swarm),
            },
            asked,
            listener: Listener::start(socket, Box::new(handler)),
        }
    }

    /// To everybody who ever said HI.
    pub fn notify(&self, body: &[u8]) {
        let parts = vec![b"notify.message".to_vec(), body.to_vec()];
        self.listener.orders.send(Order::Push(parts)).unwrap();
    }

    pub fn was_asked_about(&self, record: &[u8]) -> bool {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .any(|body| body.windows(record.len()).any(|part| part == record))
    }
}

/// An oxend at a Unix socket, without CURVE.
pub(super) struct FakeOxend {
    pub list: Arc<Mutex<Vec<u8>>>,
    /// Commands, in order.
    pub asked: Arc<Mutex<Vec<String>>>,
    listener: Listener,
}

impl FakeOxend {
    pub fn start(path: &Path, list: Vec<u8>) -> Self {
        let socket = router();
        socket.bind(&format!("ipc://{}", path.display())).unwrap();
        let (list, asked) = (Arc::new(Mutex::new(list)), Arc::new(Mutex::new(Vec::new())));
        let (answer, record) = (Arc::clone(&list), Arc::clone(&asked));
        let handler = move |command: &[u8], _: &[u8]| {
            record
                .lock()
                .unwrap()
                .push(String::from_utf8_lossy(command).into_owned());
            Some(match command {
                b"ping.ping" => vec![b"pong".to_vec()],
                b"rpc.get_service_nodes" => vec![b"200".to_vec(), answer.lock().unwrap().clone()],
                b"sub.block" => vec![b"OK".to_vec()],
                _ => return None,
            })
        };
        Self {
            list,
            asked,
            listener: Listener::start(socket, Box::new(handler)),
        }
    }

    pub fn announce_block(&self) {
        let parts = vec![b"notify.block".to_vec(), b"1001".to_vec(), vec![7; 32]];
        self.listener.orders.send(Order::Push(parts)).unwrap();
    }
}
