//! Batches of UDP datagrams over IPv4, and what else of the system the load and the bare forwarder need.
//!
//! In: slices to send, sockets to read. Out: datagrams with their source, destination and segment size. Never: copies a payload.
//! One socket bound to 0.0.0.0 plays any number of clients of 127/8: each datagram says from which address it goes.
#![expect(
    unsafe_code,
    reason = "recvmmsg, sendmmsg, epoll, affinity and clocks of other processes are C calls"
)]

use std::io;
use std::marker::PhantomData;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Datagrams that one system call moves.
pub const BATCH: usize = 64;
/// What a datagram may take, with UDP_GRO. Not a power of two, or all buffers would meet in the same lines of the caches.
const STRIDE: usize = 65_536 + 1_088;
/// What a full inbox can become: each datagram the end of one batch of segments and the begin of the next ...
const LETTERS: usize = 2 * BATCH;
/// ... and each of at most 128 segments a header and a payload.
const PARTS: usize = BATCH * 128 * 2;
const CONTROL: usize = 128;

#[repr(align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// One datagram, or several of one source that the kernel did not take apart.
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    pub source: SocketAddrV4,
    /// Where it came to; unspecified unless the socket was asked to tell.
    pub destination: Ipv4Addr,
    /// When the kernel took it from the network; the epoch unless the socket was asked to tell.
    pub arrived: SystemTime,
    /// All have this size but the last, which may be shorter.
    pub segment: usize,
    pub bytes: &'a [u8],
}

impl<'a> Datagram<'a> {
    pub fn segments(&self) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// Room for what is received.
pub struct Inbox {
    buffers: Vec<u8>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in the headers and vectors point into the other vectors of the same value, which never grow and move with it.
unsafe impl Send for Inbox {}

impl Inbox {
    pub fn new() -> Self {
        // SAFETY: these are C structs of numbers and pointers, for which zeroes are good.
        let (name, header): (libc::sockaddr_in, libc::mmsghdr) = unsafe { (zeroed(), zeroed()) };
        let mut inbox = Self {
            buffers: vec![0; STRIDE * BATCH],
            names: vec![name; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
            vectors: Vec::with_capacity(BATCH),
            headers: vec![header; BATCH],
        };
        inbox
            .vectors
            .extend(inbox.buffers.chunks_mut(STRIDE).map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            }));
        for (place, header) in inbox.headers.iter_mut().enumerate() {
            header.msg_hdr.msg_name = (&raw mut inbox.names[place]).cast();
            header.msg_hdr.msg_control = inbox.controls[place].0.as_mut_ptr().cast();
            header.msg_hdr.msg_iov = &raw mut inbox.vectors[place];
            header.msg_hdr.msg_iovlen = 1;
        }
        inbox
    }

    /// Reads what is there into the places from `first` on, without waiting. How many came.
    pub fn receive(&mut self, socket: &UdpSocket, first: usize) -> usize {
        let free = &mut self.headers[first..];
        for header in free.iter_mut() {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_hdr.msg_controllen = CONTROL;
        }
        // SAFETY: each header points to a name, a control buffer and one vector of this value, with their sizes.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                free.as_mut_ptr(),
                free.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(count).unwrap_or(0)
    }

    pub fn datagram(&self, place: usize) -> Datagram<'_> {
        let header = &self.headers[place];
        let bytes = &self.buffers[place * STRIDE..place * STRIDE + header.msg_len as usize];
        let mut datagram = Datagram {
            source: from_c(&self.names[place]),
            destination: Ipv4Addr::UNSPECIFIED,
            arrived: SystemTime::UNIX_EPOCH,
            segment: bytes.len(),
            bytes,
        };
        // SAFETY: the kernel has filled the control buffer of this header and written its length; the macros stay within it.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(&header.msg_hdr);
            while !message.is_null() {
                let data = libc::CMSG_DATA(message);
                match ((*message).cmsg_level, (*message).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        datagram.segment = data.cast::<libc::c_int>().read_unaligned() as usize;
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        datagram.destination = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                    }
                    (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                        let time = data.cast::<libc::timespec>().read_unaligned();
                        datagram.arrived += Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(&header.msg_hdr, message);
            }
        }
        datagram
    }
}

/// Room for what is sent.
pub struct Outbox {
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: as for `Inbox`; and between two batches no pointer into foreign memory is followed.
unsafe impl Send for Outbox {}

impl Outbox {
    pub fn new() -> Self {
        Self {
            names: Vec::with_capacity(LETTERS),
            controls: Vec::with_capacity(LETTERS),
            vectors: Vec::with_capacity(PARTS),
            headers: Vec::with_capacity(LETTERS),
        }
    }

    /// An empty batch of slices that live as long as it does.
    pub fn batch<'bytes>(&mut self) -> Batch<'_, 'bytes> {
        self.names.clear();
        self.controls.clear();
        self.vectors.clear();
        self.headers.clear();
        Batch {
            room: self,
            bytes: PhantomData,
        }
    }
}

/// Datagrams about to be sent.
pub struct Batch<'room, 'bytes> {
    room: &'room mut Outbox,
    bytes: PhantomData<&'bytes [u8]>,
}

impl<'bytes> Batch<'_, 'bytes> {
    /// Begins a datagram; its parts follow.
    pub fn begin(&mut self, to: SocketAddrV4, from: Option<Ipv4Addr>) {
        assert!(self.room.headers.len() < LETTERS, "an inbox makes no more than this");
        self.room.names.push(to_c(to));
        self.room.controls.push(Control([0; CONTROL]));
        // SAFETY: a C struct of numbers and pointers, for which zeroes are good.
        let mut header: libc::mmsghdr = unsafe { zeroed() };
        let place = self.room.headers.len();
        header.msg_hdr.msg_name = (&raw mut self.room.names[place]).cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: within the capacity, which never changes; `part` writes there before it is read.
        header.msg_hdr.msg_iov = unsafe { self.room.vectors.as_mut_ptr().add(self.room.vectors.len()) };
        self.room.headers.push(header);
        if let Some(from) = from {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: address_to_c(from),
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            self.control(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
    }

    /// The datagram begun last is as many datagrams of this size as its parts make; the last may be shorter.
    pub fn split(&mut self, segment: usize) {
        self.control(libc::SOL_UDP, libc::UDP_SEGMENT, &(segment as u16));
    }

    fn control<T>(&mut self, level: libc::c_int, kind: libc::c_int, value: &T) {
        let (Some(header), Some(control)) = (self.room.headers.last_mut(), self.room.controls.last_mut()) else {
            return;
        };
        let used = header.msg_hdr.msg_controllen;
        let length = size_of::<T>() as libc::c_uint;
        // SAFETY: the buffer is aligned for a header, each message takes a multiple of that, and the larger of the two kinds, each
        // used once, takes 32 bytes of its 128.
        unsafe {
            let at = control.0.as_mut_ptr().add(used).cast::<libc::cmsghdr>();
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = libc::CMSG_LEN(length) as usize;
            std::ptr::copy_nonoverlapping(std::ptr::from_ref(value).cast(), libc::CMSG_DATA(at), length as usize);
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = used + libc::CMSG_SPACE(length) as usize;
        }
    }

    /// The next bytes of the datagram begun last.
    pub fn part(&mut self, bytes: &'bytes [u8]) {
        let vectors = &mut self.room.vectors;
        assert!(vectors.len() < PARTS, "an inbox makes no more than this");
        vectors.push(libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        });
        if let Some(header) = self.room.headers.last_mut() {
            header.msg_hdr.msg_iovlen += 1;
        }
    }

    /// Sends all; what the kernel refuses is left out. How many it took.
    pub fn send(self, socket: &UdpSocket) -> usize {
        let headers = &mut self.room.headers;
        let (mut done, mut taken) = (0, 0);
        while done < headers.len() {
            let rest = &mut headers[done..];
            // SAFETY: each header points to a name and a control buffer of the room, and to vectors over slices that live for
            // `'bytes`, which is longer than this call.
            let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0) };
            match usize::try_from(count) {
                Ok(count) if count > 0 => {
                    done += count;
                    taken += count;
                }
                _ => done += 1,
            }
        }
        taken
    }
}

fn address_to_c(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: address.to_bits().to_be(),
    }
}

fn to_c(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: address_to_c(*address.ip()),
        sin_zero: [0; 8],
    }
}

fn from_c(address: &libc::sockaddr_in) -> SocketAddrV4 {
    SocketAddrV4::new(
        Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)),
        u16::from_be(address.sin_port),
    )
}

/// A socket of this address that others may have too, each getting its share of the sources.
pub fn bind_shared(address: SocketAddrV4) -> io::Result<UdpSocket> {
    // SAFETY: the descriptor is new and nobody else's; the name outlives the call.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = UdpSocket::from_raw_fd(socket);
        set(&socket, Wish::Shared)?;
        let name = to_c(address);
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        if libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// An option of a socket that takes a number.
#[derive(Clone, Copy)]
pub enum Wish {
    /// Datagrams tell where they came to.
    Destination,
    /// Datagrams tell when they came.
    Arrival,
    /// Several of one source come in one piece.
    Gro,
    /// Before it is bound: others may bind the same address.
    Shared,
    ReceiveBuffer(libc::c_int),
    SendBuffer(libc::c_int),
}

pub fn set(socket: &UdpSocket, wish: Wish) -> io::Result<()> {
    let (level, name, value) = match wish {
        Wish::Destination => (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        Wish::Arrival => (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1),
        Wish::Gro => (libc::SOL_UDP, libc::UDP_GRO, 1),
        Wish::Shared => (libc::SOL_SOCKET, libc::SO_REUSEPORT, 1),
        Wish::ReceiveBuffer(bytes) => (libc::SOL_SOCKET, libc::SO_RCVBUF, bytes),
        Wish::SendBuffer(bytes) => (libc::SOL_SOCKET, libc::SO_SNDBUF, bytes),
    };
    // SAFETY: the option takes an int, and gets one with its size.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Which of many sockets have something to read, each told once per arrival (edge-triggered).
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes a flag and gives a descriptor that nobody else owns.
        let epoll = unsafe {
            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if epoll < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(epoll)
        };
        Ok(Self {
            epoll,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 256],
        })
    }

    pub fn add(&self, socket: &UdpSocket, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: token,
        };
        // SAFETY: the event is read during the call.
        let code = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_raw_fd(),
                &mut event,
            )
        };
        if code == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Gives the tokens of what is there, and waits for something if it may.
    pub fn wait(&mut self, may_sleep: bool) -> impl Iterator<Item = u64> {
        // SAFETY: the kernel writes at most as many events as the vector has.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                if may_sleep { -1 } else { 0 },
            )
        };
        let count = usize::try_from(count).unwrap_or(0);
        self.events[..count].iter().map(|event| event.u64)
    }
}

/// Lets the calling thread run on these processors only.
pub fn pin(processors: &[usize]) {
    // SAFETY: the set is ours, and its macros stay within it for numbers below its size.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        for processor in processors {
            libc::CPU_SET(*processor, &mut set);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Keeps processors from going to sleep, by threads of the lowest priority, until it is dropped: whoever else wants to run there does so
/// at once. The host of a virtual machine takes between some microseconds and some milliseconds to wake a processor that halted, whoever
/// serves there.
pub struct Awake(Arc<AtomicBool>);

impl Awake {
    pub fn keep(processors: &[usize]) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        for processor in processors.iter().copied() {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                pin(&[processor]);
                // SAFETY: the parameters are read during the call, and zero is the only priority of this class.
                let code = unsafe {
                    let parameters: libc::sched_param = zeroed();
                    libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters)
                };
                assert_eq!(code, 0, "anybody may lower a thread's priority");
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(is_over)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The processors on which this process may run.
pub fn processors() -> Vec<usize> {
    // SAFETY: the set is ours and the kernel writes no more than its size.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        (0..libc::CPU_SETSIZE as usize)
            .filter(|processor| libc::CPU_ISSET(*processor, &set))
            .collect()
    }
}

/// What all threads of a process have used of the processors: utime + stime of `/proc/PROCESS/stat`, in nanoseconds instead of
/// hundredths of a second.
pub fn processor_time(process: u32) -> Duration {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: both calls write to what they are given.
    unsafe {
        let mut time: libc::timespec = zeroed();
        if libc::clock_getcpuclockid(process as libc::pid_t, &mut clock) != 0
            || libc::clock_gettime(clock, &mut time) != 0
        {
            return Duration::ZERO;
        }
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}
