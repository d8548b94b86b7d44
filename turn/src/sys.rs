//! The system calls that neither std nor socket2 cover: epoll, eventfd, timerfd, datagrams in batches, and what ICMP said.
//!
//! In: sockets, and places in memory of our own. Out: counts, sources, errors. Never: decides anything, or keeps a packet.
//!
//! This file and its folder are the only ones of the relay with unsafe code.
#![expect(
    unsafe_code,
    reason = "recvmmsg, sendmmsg, control messages and epoll have no safe cover that takes batches without allocating"
)]

mod wait;

pub use wait::{Epoll, Events, Interest, Ready, Ticker, Waker, Watch};

use libc::{c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use zeroize::optimization_barrier;

/// linux/udp.h and asm-generic/socket.h; libc does not have them.
const UDP_SEGMENT: c_int = 103;
pub const UDP_GRO: c_int = 104;
const SO_MEMINFO: c_int = 55;

// Datagrams go in and out by `syscall`: a call by its own name is a point where POSIX may cancel a thread, and the C library prepares for
// that with each, at the price of a hundredth of what a packet costs.

/// Turns the -1 of C into the error of the thread.
fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Sets one option that is a number.
pub fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the value lives on this stack and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            length,
        )
    };
    checked(result).map(|_| ())
}

/// Datagrams that the socket had no room for since it was made; several that came in one piece count once.
pub fn overflowed(socket: BorrowedFd<'_>) -> u32 {
    /// Numbers that SO_MEMINFO gives, and the place of the drops among them (linux/sock_diag.h).
    const NUMBERS: usize = 9;
    const DROPS: usize = 8;
    let mut numbers = [0u32; NUMBERS];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: value and length live on this stack; the kernel writes no more than the length says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let [.., drops] = numbers;
    if result == 0 && length as usize > DROPS * size_of::<u32>() {
        drops
    } else {
        0
    }
}

/// Makes room in the table of descriptors at once: where threads share it, each doubling waits for all of them.
pub fn reserve_descriptors(fd: BorrowedFd<'_>, most: u64) {
    let highest = c_int::try_from(most.saturating_sub(1)).unwrap_or(c_int::MAX);
    // SAFETY: no pointers; the copy is ours and is closed at once.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, highest) };
    if copy >= 0 {
        // SAFETY: the descriptor was made just now.
        drop(unsafe { OwnedFd::from_raw_fd(copy) });
    }
}

/// Room for control messages of one datagram: a segment size, a TOS, an overflow count, and an ICMP error with its offender.
const CONTROL: usize = 24;
type Control = [u64; CONTROL];

/// Memory that the kernel writes into while our structures point to it. Only reached through its one raw pointer.
struct Fixed<T> {
    list: *mut [T],
}

impl<T: Copy> Fixed<T> {
    fn new(value: T, count: usize) -> Self {
        Self {
            list: Box::into_raw(vec![value; count].into_boxed_slice()),
        }
    }

    fn at(&mut self, at: usize) -> *mut T {
        assert!(at < self.list.len(), "a place within our own memory");
        // SAFETY: within the slice, as just seen.
        unsafe { self.list.cast::<T>().add(at) }
    }
}

impl<T> std::ops::Deref for Fixed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the pointer came from a box and lives until the drop; nothing writes while a shared borrow of self lives, because
        // each system call that does takes `&mut self` of whoever owns this.
        unsafe { &*self.list }
    }
}

impl<T> std::ops::DerefMut for Fixed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and this borrow is the only one.
        unsafe { &mut *self.list }
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box and is given back once.
        drop(unsafe { Box::from_raw(self.list) });
    }
}

/// Also where nobody reads it afterwards.
fn overwrite<T: Copy>(list: &mut [T], with: T) {
    list.fill(with);
    optimization_barrier(list);
}

/// What came with a datagram. It lies in the memory of [`Slots`].
#[derive(Clone, Copy)]
pub struct Received {
    pub source: SocketAddr,
    /// Of all segments together.
    pub length: usize,
    /// Several datagrams of one source, each of so many bytes, the last one perhaps shorter. As long as all where there is only one.
    pub segment: usize,
    /// The byte of the IP header with ECN in its lowest two bits; 0 where it was not asked for.
    pub tos: u8,
}

/// Memory in slots of one datagram each, with room in front of each, and behind all slots an area of the caller's own.
pub struct Slots {
    memory: Fixed<u8>,
    headers: Fixed<libc::mmsghdr>,
    /// The headers point into these three.
    _pieces: Fixed<libc::iovec>,
    names: Fixed<libc::sockaddr_storage>,
    controls: Fixed<Control>,
    stride: usize,
    headroom: usize,
    count: usize,
    /// Slots that had something since the last wipe, from the first.
    touched: usize,
    /// By slot, the longest datagram since the last wipe.
    longest: Vec<u32>,
}

/// Slots begin so many bytes further apart than a power of two, or all of them would share a few lines of the cache.
const STAGGER: usize = 1_472;
/// The longest datagram, and GRO's bound.
const MOST: usize = 65_535;

impl Slots {
    pub fn new(count: usize, headroom: usize, area: usize) -> Self {
        let stride = (MOST + headroom).next_multiple_of(64) + STAGGER;
        let mut memory = Fixed::new(0u8, stride * count + area);
        let nowhere = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut pieces = Fixed::new(nowhere, count);
        // SAFETY: all of these are plain numbers and pointers of C, for which zero is a value.
        let (name, header) = unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::mmsghdr>()) };
        let mut names = Fixed::new(name, count);
        let mut controls = Fixed::new([0u64; CONTROL], count);
        let mut headers = Fixed::new(header, count);
        for slot in 0..count {
            let piece = pieces.at(slot);
            let base = memory.at(slot * stride + headroom).cast::<c_void>();
            // SAFETY: all of them are places within memory that lives as long as the headers.
            unsafe {
                (*piece).iov_base = base;
                (*piece).iov_len = MOST;
                let header = headers.at(slot);
                (*header).msg_hdr.msg_iov = piece;
                (*header).msg_hdr.msg_iovlen = 1;
                (*header).msg_hdr.msg_name = names.at(slot).cast();
                (*header).msg_hdr.msg_control = controls.at(slot).cast();
            }
        }
        let mut slots = Self {
            memory,
            headers,
            _pieces: pieces,
            names,
            controls,
            stride,
            headroom,
            count,
            touched: 0,
            longest: vec![0; count],
        };
        (0..count).for_each(|slot| slots.reset(slot));
        slots
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Where the datagram of a slot begins.
    pub const fn start(&self, slot: usize) -> usize {
        slot * self.stride + self.headroom
    }

    /// The caller's own area.
    pub fn area(&self) -> Range<usize> {
        self.stride * self.count..self.memory.len()
    }

    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    pub fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Takes up to `most` datagrams into the slots from `first`, and never waits. A count below `most` says that there were no more.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, first: usize, most: usize) -> io::Result<usize> {
        let most = most.min(self.count.saturating_sub(first));
        if most == 0 {
            return Ok(0);
        }
        let headers = self.headers.at(first);
        let flags = libc::MSG_DONTWAIT;
        let received = if most == 1 {
            // SAFETY: a header points to memory of ours that lives, and gives its lengths.
            let length = unsafe {
                libc::syscall(
                    libc::SYS_recvmsg,
                    socket.as_raw_fd(),
                    &raw mut (*headers).msg_hdr,
                    flags,
                )
            };
            if length < 0 {
                Err(io::Error::last_os_error())
            } else {
                // SAFETY: as above.
                unsafe { (*headers).msg_len = length as u32 };
                Ok(1)
            }
        } else {
            // SAFETY: `most` headers from here on point to memory of ours that lives, and give its lengths.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_recvmmsg,
                    socket.as_raw_fd(),
                    headers,
                    most as u32,
                    flags,
                    std::ptr::null_mut::<libc::timespec>(),
                )
            };
            checked(count as c_int).map(|count| count as usize)
        };
        match received {
            Ok(count) => self.touched = self.touched.max(first + count),
            Err(_) => self.reset(first),
        }
        received
    }

    /// What came into a slot at the last receive; to be asked once. `None` for a source that is no IP address.
    pub fn take(&mut self, slot: usize) -> Option<Received> {
        let header = self.headers.get(slot)?;
        let length = (header.msg_len as usize).min(MOST);
        if let Some(longest) = self.longest.get_mut(slot) {
            *longest = (*longest).max(length as u32);
        }
        let is_truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let source = self.names.get(slot).and_then(read_name);
        let (mut segment, mut tos) = (length, 0);
        let control_length = header.msg_hdr.msg_controllen;
        if control_length > 0
            && let Some(control) = self.controls.get(slot)
        {
            for_each_control(control, control_length, |level, kind, data| match (level, kind, data) {
                (libc::SOL_UDP, UDP_GRO, [b0, b1, b2, b3, ..]) => {
                    segment = (c_int::from_ne_bytes([*b0, *b1, *b2, *b3]).max(1) as usize).min(length.max(1));
                }
                (libc::IPPROTO_IP, libc::IP_TOS, [byte, ..]) => tos = *byte,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, [b0, b1, b2, b3, ..]) => {
                    tos = c_int::from_ne_bytes([*b0, *b1, *b2, *b3]) as u8;
                }
                _ => {}
            });
        }
        self.reset(slot);
        (!is_truncated).then_some(())?;
        Some(Received {
            source: source?,
            length,
            segment,
            tos,
        })
    }

    /// Overwrites all that was taken since this was last called, who sent it, and what was written in front of it; and the first `area`
    /// bytes of the caller's own area. Where nothing came, nothing is done.
    pub fn wipe(&mut self, area: usize) {
        // SAFETY: plain numbers of C, for which zero is a value.
        let nobody = unsafe { mem::zeroed::<libc::sockaddr_storage>() };
        for (slot, longest) in self.longest.iter_mut().take(self.touched).enumerate() {
            let length = self.headroom + mem::take(longest) as usize;
            let start = slot * self.stride;
            overwrite(self.memory.get_mut(start..start + length).unwrap_or_default(), 0);
        }
        overwrite(self.names.get_mut(..self.touched).unwrap_or_default(), nobody);
        overwrite(self.controls.get_mut(..self.touched).unwrap_or_default(), [0; CONTROL]);
        self.touched = 0;
        let start = self.area().start;
        overwrite(self.memory.get_mut(start..start + area).unwrap_or_default(), 0);
    }

    fn reset(&mut self, slot: usize) {
        if let Some(header) = self.headers.get_mut(slot) {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_controllen = size_of::<Control>() as _;
            header.msg_hdr.msg_flags = 0;
        }
    }
}

/// Walks over the control messages that the kernel wrote.
fn for_each_control(control: &Control, length: usize, mut found: impl FnMut(c_int, c_int, &[u8])) {
    // SAFETY: any eight bytes are a u64 and the other way round; the length is that of the array.
    let bytes = unsafe { std::slice::from_raw_parts(control.as_ptr().cast::<u8>(), size_of_val(control)) };
    let mut rest = bytes.get(..length).unwrap_or(bytes);
    const HEADER: usize = size_of::<libc::cmsghdr>();
    while rest.len() >= HEADER {
        // SAFETY: a whole header lies here, of numbers only; alignment is not asked for.
        let header = unsafe { rest.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        let whole = header.cmsg_len as usize;
        let Some(data) = rest.get(HEADER..whole) else {
            return;
        };
        found(header.cmsg_level, header.cmsg_type, data);
        rest = rest
            .get(whole.next_multiple_of(size_of::<usize>())..)
            .unwrap_or_default();
    }
}

fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let pointer: *const libc::sockaddr_storage = name;
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is larger than each of the forms and aligned for all.
            let name = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from_bits(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)))
        }
        _ => None,
    }
}

/// Writes an address in the form of C; returns the length.
fn write_name(place: &mut libc::sockaddr_in6, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the IPv4 form is smaller and needs no stricter alignment.
            let name = unsafe { &mut *std::ptr::from_mut(place).cast::<libc::sockaddr_in>() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = v4.port().to_be();
            name.sin_addr.s_addr = v4.ip().to_bits().to_be();
            name.sin_zero = [0; 8];
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            place.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            place.sin6_port = v6.port().to_be();
            place.sin6_flowinfo = 0;
            place.sin6_addr.s6_addr = v6.ip().octets();
            place.sin6_scope_id = v6.scope_id();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// Some bytes of the memory that is given to [`Outgoing::send`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub start: u32,
    pub length: u32,
}

/// One call's worth for one destination.
#[derive(Clone)]
pub struct Message {
    pub to: SocketAddr,
    /// Which pieces make it up.
    pub pieces: Range<u32>,
    /// Several datagrams, each of so many bytes, the last perhaps shorter. 0: one datagram.
    pub segment: u16,
    /// For the lowest two bits of the TOS byte.
    pub ecn: u8,
}

/// The structures of C for one sendmmsg.
pub struct Outgoing {
    headers: Vec<libc::mmsghdr>,
    pieces: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_in6>,
    controls: Vec<[u64; SEND_CONTROL]>,
}

/// Two control messages of at most eight bytes each.
const SEND_CONTROL: usize = 6;

impl Outgoing {
    /// `most` messages a call, of `most_pieces` together.
    pub fn new(most: usize, most_pieces: usize) -> Self {
        // SAFETY: plain numbers and pointers of C, for which zero is a value.
        let (name, header, piece) = unsafe {
            (
                mem::zeroed::<libc::sockaddr_in6>(),
                mem::zeroed::<libc::mmsghdr>(),
                mem::zeroed::<libc::iovec>(),
            )
        };
        Self {
            headers: vec![header; most],
            pieces: vec![piece; most_pieces],
            names: vec![name; most],
            controls: vec![[0; SEND_CONTROL]; most],
        }
    }

    /// Sends in order until one fails, and never waits: how many went out, or the error of the first.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        memory: &[u8],
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        let bytes = |piece: &Piece| {
            let start = piece.start as usize;
            memory.get(start..start + piece.length as usize).unwrap_or_default()
        };
        let of = |message: &Message| {
            pieces
                .get(message.pieces.start as usize..message.pieces.end as usize)
                .unwrap_or_default()
        };
        if let [message] = messages
            && message.segment == 0
            && message.ecn == 0
            && let [piece] = of(message)
        {
            return self.send_one(socket, bytes(piece), message.to);
        }
        let mut used = 0;
        let mut count = 0;
        for (((message, header), name), control) in messages
            .iter()
            .zip(&mut self.headers)
            .zip(&mut self.names)
            .zip(&mut self.controls)
        {
            let parts = of(message);
            let Some(places) = self.pieces.get_mut(used..used + parts.len()) else {
                break;
            };
            used += parts.len();
            for (place, part) in places.iter_mut().zip(parts) {
                let part = bytes(part);
                place.iov_base = part.as_ptr().cast_mut().cast();
                place.iov_len = part.len();
            }
            let control_length = write_controls(control, message);
            header.msg_hdr.msg_namelen = write_name(name, message.to);
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_iov = places.as_mut_ptr();
            header.msg_hdr.msg_iovlen = parts.len() as _;
            header.msg_hdr.msg_control = if control_length == 0 {
                std::ptr::null_mut()
            } else {
                control.as_mut_ptr().cast()
            };
            header.msg_hdr.msg_controllen = control_length as _;
            header.msg_hdr.msg_flags = 0;
            count += 1;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `count` headers point to names, pieces and control messages of ours, whose lengths they give; the pieces point into
        // `memory`, which is borrowed for the call and only read.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_sendmmsg,
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                flags,
            )
        };
        checked(sent as c_int).map(|sent| sent as usize)
    }

    /// Overwrites where messages went and what went with them, of so many, and what is known of so many pieces.
    pub fn wipe(&mut self, messages: usize, pieces: usize) {
        // SAFETY: plain numbers and pointers of C, for which zero is a value.
        let (nobody, nothing) = unsafe { (mem::zeroed::<libc::sockaddr_in6>(), mem::zeroed::<libc::iovec>()) };
        let messages = messages.min(self.names.len());
        overwrite(self.names.get_mut(..messages).unwrap_or_default(), nobody);
        overwrite(self.controls.get_mut(..messages).unwrap_or_default(), [0; SEND_CONTROL]);
        let pieces = pieces.min(self.pieces.len());
        overwrite(self.pieces.get_mut(..pieces).unwrap_or_default(), nothing);
    }

    /// The kernel copies fewer structures for this one.
    fn send_one(&mut self, socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        let Some(name) = self.names.first_mut() else {
            return Ok(0);
        };
        let length = write_name(name, to);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: bytes and name are borrowed for the call, their lengths are given.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_sendto,
                socket.as_raw_fd(),
                bytes.as_ptr(),
                bytes.len(),
                flags,
                std::ptr::from_mut(name).cast_const(),
                length,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(1)
        }
    }
}

/// Returns how many bytes were written.
fn write_controls(control: &mut [u64; SEND_CONTROL], message: &Message) -> usize {
    const WORDS: usize = 3;
    let mut used = 0;
    let mut put = |level: c_int, kind: c_int, length: usize, value: u64| {
        let header = libc::cmsghdr {
            cmsg_len: (size_of::<libc::cmsghdr>() + length) as _,
            cmsg_level: level,
            cmsg_type: kind,
        };
        if let Some([h0, h1, data]) = control.get_mut(used..used + WORDS) {
            // SAFETY: a header of this system is two words, both plain numbers.
            [*h0, *h1] = unsafe { mem::transmute::<libc::cmsghdr, [u64; 2]>(header) };
            *data = value;
            used += WORDS;
        }
    };
    if message.segment != 0 {
        let [b0, b1] = message.segment.to_ne_bytes();
        put(
            libc::SOL_UDP,
            UDP_SEGMENT,
            2,
            u64::from_ne_bytes([b0, b1, 0, 0, 0, 0, 0, 0]),
        );
    }
    if message.ecn != 0 {
        let [b0, b1, b2, b3] = c_int::from(message.ecn).to_ne_bytes();
        let value = u64::from_ne_bytes([b0, b1, b2, b3, 0, 0, 0, 0]);
        match message.to {
            SocketAddr::V4(_) => put(libc::IPPROTO_IP, libc::IP_TOS, 4, value),
            SocketAddr::V6(_) => put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 4, value),
        }
    }
    used * size_of::<u64>()
}

/// What the network, or our own system, said about a datagram that we sent.
#[derive(Clone, Copy)]
pub struct Unreached {
    /// Where it was going.
    pub to: SocketAddr,
    pub kind: u8,
    pub code: u8,
    /// Of the next hop, where it was too big.
    pub mtu: u32,
    pub is_v6: bool,
}

/// The next entry of a socket's error queue: `None` when it is empty, `Some(None)` for one that says nothing of use.
pub fn next_unreached(socket: BorrowedFd<'_>) -> Option<Option<Unreached>> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control: Control = [0; CONTROL];
    // The datagram itself is of no use.
    let mut piece = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    // SAFETY: plain numbers and pointers of C, for which zero is a value.
    let mut header = unsafe { mem::zeroed::<libc::msghdr>() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header points to this stack and gives its lengths; the piece has no length.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    if result < 0 {
        return None;
    }
    // SAFETY: zeroed, then written by the kernel: any bytes are a value.
    let name = unsafe { name.assume_init() };
    let Some(to) = read_name(&name) else {
        return Some(None);
    };
    let mut found = None;
    let length = header.msg_controllen;
    for_each_control(&control, length, |level, kind, data| {
        let is_error = matches!(
            (level, kind),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        if is_error && data.len() >= size_of::<libc::sock_extended_err>() {
            // SAFETY: as many bytes are there, all of them plain numbers; alignment is not asked for.
            let error = unsafe { data.as_ptr().cast::<libc::sock_extended_err>().read_unaligned() };
            found = unreached(&error, to);
        }
    });
    Some(found)
}

fn unreached(error: &libc::sock_extended_err, to: SocketAddr) -> Option<Unreached> {
    let (kind, code, is_v6) = match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP => (error.ee_type, error.ee_code, false),
        libc::SO_EE_ORIGIN_ICMP6 => (error.ee_type, error.ee_code, true),
        // What does not leave this machine because it is too big is what the next one would have said.
        libc::SO_EE_ORIGIN_LOCAL if error.ee_errno == libc::EMSGSIZE as u32 => match to {
            SocketAddr::V4(_) => (3, 4, false),
            SocketAddr::V6(_) => (2, 0, true),
        },
        _ => return None,
    };
    Some(Unreached {
        to,
        kind,
        code,
        mtu: error.ee_info,
        is_v6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    /// Structures of C as bytes.
    fn bytes_of<T>(list: &[T]) -> &[u8] {
        // SAFETY: no structure of this file has padding, and any bytes of theirs are a u8.
        unsafe { std::slice::from_raw_parts(list.as_ptr().cast(), size_of_val(list)) }
    }

    fn has(bytes: &[u8], needle: &[u8]) -> bool {
        bytes.windows(needle.len()).any(|window| window == needle)
    }

    #[test]
    fn after_a_wipe_no_slot_has_a_packet_or_who_sent_it() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.19.83.147:0").unwrap();
        let long = [b"the longest one of all: ".as_slice(), &[7; 900]].concat();
        let mut slots = Slots::new(4, 64, 128);
        let come = |slots: &mut Slots, packets: &[&[u8]]| {
            for packet in packets {
                sender.send_to(packet, receiver.local_addr().unwrap()).unwrap();
            }
            assert_eq!(slots.receive(receiver.as_fd(), 0, 4).unwrap(), packets.len());
            let sources: Vec<_> = (0..packets.len())
                .map(|slot| slots.take(slot).unwrap().source)
                .collect();
            assert!(sources.iter().all(|source| *source == sender.local_addr().unwrap()));
        };
        come(&mut slots, &[b"first", &long, b""]);
        // A shorter one in the same slot.
        come(&mut slots, &[b"1st", b"2nd"]);
        let (before_empty, area) = (slots.start(2) - 6, slots.area().start);
        slots.memory_mut()[before_empty..before_empty + 6].copy_from_slice(b"header");
        slots.memory_mut()[area..area + 6].copy_from_slice(b"answer");
        let address = [127, 19, 83, 147];
        assert!(has(slots.memory(), &[7; 900]) && has(bytes_of(&slots.names), &address));
        slots.wipe(6);
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        assert!(is_zero(slots.memory()) && is_zero(bytes_of(&slots.names)) && is_zero(bytes_of(&slots.controls)));
        // It serves as before.
        come(&mut slots, &[b"next"]);
        assert!(has(slots.memory(), b"next"));
    }

    #[test]
    fn after_a_wipe_nothing_says_where_messages_went() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let message = |port| Message {
            to: SocketAddr::from(([127, 19, 83, 148], port)),
            pieces: 0..1,
            segment: 0,
            ecn: 1,
        };
        let mut outgoing = Outgoing::new(4, 8);
        let piece = Piece { start: 0, length: 5 };
        let sent = outgoing.send(
            socket.as_fd(),
            b"hello",
            &[piece],
            &[message(9), message(10), message(11)],
        );
        assert_eq!(sent.unwrap(), 3);
        assert!(has(bytes_of(&outgoing.names), &[127, 19, 83, 148]));
        outgoing.wipe(3, 3);
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        assert!(is_zero(bytes_of(&outgoing.names)) && is_zero(bytes_of(&outgoing.controls)));
        assert!(is_zero(bytes_of(&outgoing.pieces)));
    }
}
