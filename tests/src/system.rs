//! The few things the lab asks of the operating system that the standard library does not offer.
//!
//! In: a number of files, a process id, a network, a socket. Out: limits raised, signals sent, threads moved, interfaces without a card.
//! Never: touches a process the lab did not start.
#![expect(
    unsafe_code,
    reason = "setrlimit, kill, unshare, setns, setsockopt, ioctl and ppoll are C calls"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// What the largest test needs: thousands of nodes, several files each.
const FILES: libc::rlim_t = 20_000;

/// Raises the limit of open files as far as the hard limit, and to what the tests need where this process may.
/// Gives the limit now in force.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit fills the struct it is given; setrlimit reads it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            // Beyond the hard limit only root may.
            for most in [limit.rlim_max.max(FILES), limit.rlim_max] {
                let raised = libc::rlimit {
                    rlim_cur: most,
                    rlim_max: most,
                };
                if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
                    limit = raised;
                    break;
                }
            }
        }
    }
    limit.rlim_cur
}

/// Asks the child with this id to end (SIGTERM).
pub fn ask_to_end(process: u32) {
    signal(process, libc::SIGTERM);
}

/// Asks the child with this id to read its settings again (SIGHUP).
pub fn ask_to_reload(process: u32) {
    signal(process, libc::SIGHUP);
}

fn signal(process: u32, signal: i32) {
    let Ok(process) = libc::pid_t::try_from(process) else {
        return;
    };
    if process > 1 {
        // SAFETY: kill has no memory effects; the id is of a child that has not been waited for yet.
        unsafe { libc::kill(process, signal) };
    }
}

/// Puts the calling thread, and what it starts, into a network of its own; the file holds it.
pub fn new_network() -> io::Result<File> {
    // SAFETY: unshare has no memory effects, and without CLONE_FILES or CLONE_FS it changes nothing that other threads share.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    File::open("/proc/thread-self/ns/net")
}

/// Puts the calling thread, and what it starts, into that network.
pub fn enter_network(network: &File) -> io::Result<()> {
    // SAFETY: setns has no memory effects; the file is open.
    match unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Room for so many bytes of packets that wait to be read, whatever `net.core.rmem_max` allows others.
pub fn force_receive_buffer(socket: &impl AsRawFd, bytes: i32) -> io::Result<()> {
    // SAFETY: the socket is open, and the call reads the one number it is given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An interface of the calling thread's network whose packets are read from and written to the file, one at a time from the IP header
/// on; neither waits. It is gone with the file.
pub fn new_tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last place stays zero: it ends the name.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and the call reads and writes the one `ifreq` it is given.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(file),
    }
}

/// Waits until there is something to read, or the time is over.
pub fn wait_readable(file: &File, patience: Duration) {
    let mut wanted = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let patience = libc::timespec {
        tv_sec: patience.as_secs() as libc::time_t,
        tv_nsec: patience.subsec_nanos().into(),
    };
    // SAFETY: one entry is given and one is counted; no signal mask is.
    unsafe { libc::ppoll(&mut wanted, 1, &patience, std::ptr::null()) };
}

/// The kernel's number of the calling thread.
pub fn thread_id() -> i32 {
    // SAFETY: gettid only gives a number.
    unsafe { libc::gettid() }
}

/// A size from `/proc/PROCESS/status`, such as `VmHWM:`.
pub fn status_bytes(process: u32, name: &str) -> Option<u64> {
    size_in(process, "status", name)
}

/// Memory in use now, bytes. The kernel counts it by processor, and some versions leave up to 128 KiB of each out of `status`: what it finds when
/// it looks at all pages is exact, where one may ask for that.
pub fn resident_bytes(process: u32) -> Option<u64> {
    size_in(process, "smaps_rollup", "Rss:").or_else(|| size_in(process, "status", "VmRSS:"))
}

fn size_in(process: u32, file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// What all threads of a process have used of the processors.
pub fn processor_time(process: u32) -> Option<std::time::Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may contain anything; user and system time are the 12th and 13th word after it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks: u64 = rest
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    // Linux shows hundredths of a second to every program.
    Some(std::time::Duration::from_millis(ticks * 10))
}
