//! What a shard's thread waits with: epoll, poll, eventfd, timerfd.
//!
//! In: descriptors. Out: which of them are ready. Never: reads what is there.

use super::checked;
use libc::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What one thread waits with.
pub struct Epoll(OwnedFd);

/// What to be woken for; errors and ends always count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
    Both,
}

impl Interest {
    const fn bits(self) -> u32 {
        (match self {
            Self::Read => libc::EPOLLIN | libc::EPOLLRDHUP,
            Self::Write => libc::EPOLLOUT,
            Self::Both => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT,
        }) as u32
    }
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug)]
pub struct Ready(u32);

impl Ready {
    const fn has(self, flags: c_int) -> bool {
        self.0 & flags as u32 != 0
    }

    pub const fn is_readable(self) -> bool {
        self.has(libc::EPOLLIN)
    }

    pub const fn is_writable(self) -> bool {
        self.has(libc::EPOLLOUT)
    }

    /// The other side will send nothing more.
    pub const fn is_ended(self) -> bool {
        self.has(libc::EPOLLRDHUP | libc::EPOLLHUP)
    }

    pub const fn has_error(self) -> bool {
        self.has(libc::EPOLLERR)
    }
}

/// Room for the events of one wait.
pub struct Events {
    list: Vec<libc::epoll_event>,
    count: usize,
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Events {
    pub fn new(most: usize) -> Self {
        Self {
            list: vec![libc::epoll_event { events: 0, u64: 0 }; most.clamp(1, 4096)],
            count: 0,
        }
    }

    pub const fn len(&self) -> usize {
        self.count
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there may be more than there was room for.
    pub const fn is_full(&self) -> bool {
        self.count == self.list.len()
    }

    pub const fn clear(&mut self) {
        self.count = 0;
    }

    pub fn get(&self, at: usize) -> Option<(u64, Ready)> {
        let event = self.list.get(..self.count)?.get(at)?;
        Some((event.u64, Ready(event.events)))
    }
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
        let fd = checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A descriptor leaves by being closed.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    pub fn change(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    /// What is ready now, without waiting.
    pub fn look(&self, events: &mut Events) -> io::Result<()> {
        let most = events.list.len() as c_int;
        // SAFETY: the list has room for as many events as are asked for.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.list.as_mut_ptr(), most, 0) };
        events.count = match checked(count) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    fn control(&self, operation: c_int, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest.bits(),
            u64: token,
        };
        // SAFETY: both descriptors are open, the event lives on this stack.
        checked(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) })?;
        Ok(())
    }
}

/// What one thread waits for beside an epoll, or instead of it.
///
/// A socket that an epoll watches pays for that with each datagram it sends: the kernel tells the epoll that there is room again, behind
/// two locks, though nobody asked. Here a socket is watched only while the thread waits.
pub struct Watch(Vec<libc::pollfd>);

impl Watch {
    /// The descriptors must stay open as long as this is used; one that is closed is always ready.
    pub fn new<'fd>(fds: impl Iterator<Item = BorrowedFd<'fd>>) -> Self {
        let entry = |fd: BorrowedFd<'_>| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        Self(fds.map(entry).collect())
    }

    /// Until one of them is ready, or a signal came: then none is. Or only looks, and does not wait.
    pub fn wait(&mut self, only_looks: bool) -> io::Result<()> {
        let timeout = if only_looks { 0 } else { -1 };
        // SAFETY: the list has as many entries as are given.
        let count = unsafe { libc::poll(self.0.as_mut_ptr(), self.0.len() as libc::nfds_t, timeout) };
        match checked(count) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.0.iter_mut().for_each(|entry| entry.revents = 0);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this one, by its place in the list, was ready at the last wait.
    pub fn is_ready(&self, at: usize) -> bool {
        self.0.get(at).is_some_and(|entry| entry.revents != 0)
    }
}

/// Wakes a thread that waits in epoll, from any thread.
pub struct Waker(OwnedFd);

impl Waker {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
        let fd = checked(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Fails only where the counter is full, and then it is ready already.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are there.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Not ready any more, until the next wake.
    pub fn clear(&self) {
        drain(&self.0);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ready once in each period. A timeout of epoll itself would cost a kernel timer for each wait.
pub struct Ticker(OwnedFd);

impl Ticker {
    pub fn new(period: Duration) -> io::Result<Self> {
        // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
        let fd =
            checked(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) })?;
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let period = libc::timespec {
            tv_sec: period.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(period.subsec_nanos()),
        };
        let timer = libc::itimerspec {
            it_interval: period,
            it_value: period,
        };
        // SAFETY: the new value lives on this stack, the old one is not asked for.
        checked(unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const timer, std::ptr::null_mut()) })?;
        Ok(Self(fd))
    }

    pub fn clear(&self) {
        drain(&self.0);
    }
}

impl AsFd for Ticker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes the count of an eventfd or timerfd, which is back at zero then.
fn drain(fd: &OwnedFd) {
    let mut count = [0u8; 8];
    // SAFETY: eight bytes of room are there.
    let _ = unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}
