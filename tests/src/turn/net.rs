//! Networks of their own, so that a relay under test has public addresses, and forbidden ones around it, without touching the machine's.
//!
//! In: addresses. Out: a [`Network`] in which closures and child processes run; it is gone with its last user. Never: changes the
//! network that the machine has.

use crate::system;
use socket2::{Domain, Socket, Type};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

/// A network namespace of Linux, held open by a file.
pub struct Network {
    file: File,
}

impl Network {
    /// A fresh network with its loopback up. The addresses are its own.
    ///
    /// # Panics
    /// If this process may not make networks.
    pub fn new(addresses: &[&str]) -> Self {
        let file = std::thread::scope(|scope| scope.spawn(system::new_network).join())
            .expect("the thread does not panic")
            .unwrap_or_else(|fault| {
                panic!("this test makes networks of its own (unshare), so it must run as root: {fault}")
            });
        let network = Self { file };
        network.ip("link set lo up");
        for address in addresses {
            network.ip(&format!("addr add {address} dev lo{}", nodad(address)));
        }
        network
    }

    /// Runs in this network: sockets made within stay in it, and so do children.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let within = scope.spawn(|| {
                system::enter_network(&self.file).expect("a network that is held open can be entered");
                work()
            });
            within.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` with these words.
    ///
    /// # Panics
    /// If it fails.
    pub fn ip(&self, words: &str) {
        self.command("ip", &words.split(' ').collect::<Vec<_>>());
    }

    /// Gives these rules to the packet filter.
    ///
    /// # Panics
    /// If it refuses them.
    pub fn nft(&self, rules: &str) {
        self.command("nft", &[rules]);
    }

    /// What the kernel has counted in this network, such as `Ip: FragCreates` (RFC 4293).
    ///
    /// # Panics
    /// If it counts no such thing.
    pub fn count(&self, name: &str) -> u64 {
        let text = self
            .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))
            .expect("the kernel counts packets");
        let (protocol, name) = name.split_once(' ').expect("a protocol and a name");
        // Two lines each: names, then numbers.
        let mut lines = text.lines().filter(|line| line.starts_with(protocol));
        let [names, numbers] = [lines.next(), lines.next()].map(|line| line.unwrap_or_default().split(' '));
        names
            .zip(numbers)
            .find(|(one, _)| *one == name)
            .and_then(|(_, number)| number.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// A number of the kernel's, such as `net/ipv4/conf/all/rp_filter`.
    ///
    /// # Panics
    /// If it cannot be set.
    pub fn set(&self, name: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value))
            .unwrap_or_else(|fault| panic!("{name} = {value}: {fault}"));
    }

    /// Joins this network and another with a cable; the ends have these names and addresses, and know each other without asking.
    pub fn connect(
        &self,
        (name, addresses): (&str, &[&str]),
        other: &Self,
        (far_name, far_addresses): (&str, &[&str]),
    ) {
        // The far end is handed over to a process or thread that lives in the other network.
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                system::enter_network(&other.file).expect("a network that is held open can be entered");
                let _ = tell.send(system::thread_id());
                let _ = ended.recv();
            });
            let far = told.recv().expect("the thread tells its id first");
            self.ip(&format!(
                "link add {name} address {NEAR} type veth peer name {far_name} address {FAR} netns {far}"
            ));
            drop(end);
        });
        for (network, name, addresses, others, others_card) in [
            (self, name, addresses, far_addresses, FAR),
            (other, far_name, far_addresses, addresses, NEAR),
        ] {
            for address in addresses {
                network.ip(&format!("addr add {address} dev {name}{}", nodad(address)));
            }
            network.ip(&format!("link set {name} up"));
            for neighbour in others.iter().filter_map(|address| address.split('/').next()) {
                network.ip(&format!(
                    "neigh add {neighbour} lladdr {others_card} dev {name} nud permanent"
                ));
            }
        }
    }

    /// A UDP socket in this network.
    ///
    /// # Panics
    /// If the address is not this network's.
    pub fn udp(&self, ip: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let ip = ip.into();
        self.run(|| UdpSocket::bind((ip, port)))
            .unwrap_or_else(|fault| panic!("{ip}:{port}: {fault}"))
    }

    /// Sees every IP packet of this network, whichever interface it passes.
    ///
    /// # Panics
    /// If this process may not look.
    pub fn sniffer(&self) -> Sniffer {
        // Cooked: from the IP header on. The number is in the order of the network.
        let every_protocol = i32::from(u16::to_be(libc::ETH_P_ALL as u16));
        let socket = self
            .run(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(every_protocol.into())))
            .unwrap_or_else(|fault| panic!("this test looks at packets, so it must run as root: {fault}"));
        give_room(&socket);
        Sniffer(socket)
    }

    fn command(&self, program: &str, words: &[&str]) {
        let output = self
            .run(|| Command::new(program).args(words).output())
            .unwrap_or_else(|fault| panic!("{program} does not start ({fault}); .ci/setup installs it"));
        let words = words.join(" ");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {words}: {said}");
    }
}

/// Lets a socket keep what comes while nobody reads: the packets of a whole test.
///
/// # Panics
/// If this process may not ask for so much.
pub fn give_room(socket: &Socket) {
    const ROOM: i32 = 8 << 20;
    let given = system::force_receive_buffer(socket, ROOM).and_then(|()| socket.recv_buffer_size());
    let given = given.unwrap_or_else(|fault| panic!("this test needs a large buffer, so it must run as root: {fault}"));
    assert!(given >= ROOM as usize, "{given} bytes of buffer");
}

/// Packets as they pass.
pub struct Sniffer(Socket);

impl Sniffer {
    /// The next packet, from its IP header on.
    pub fn next(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut room = vec![0; 70_000];
        self.0.set_read_timeout(Some(patience)).ok()?;
        let length = (&self.0).read(&mut room).ok()?;
        room.truncate(length);
        Some(room)
    }

    /// The next packet that holds these bytes.
    pub fn next_with(&self, bytes: &[u8], patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let packet = self.next(deadline.checked_duration_since(Instant::now())?)?;
            if packet.windows(bytes.len()).any(|window| window == bytes) {
                return Some(packet);
            }
        }
    }
}

/// Hardware addresses of the two ends of a cable.
const NEAR: &str = "02:00:00:00:00:01";
const FAR: &str = "02:00:00:00:00:02";

/// Without it an IPv6 address cannot be used for its first second.
fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}
