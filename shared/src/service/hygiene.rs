//! What a process leaves of its memory where others could find it: core dumps, swap, the eyes of other processes.
//!
//! In: what the system allows. Out: a process that keeps its memory to itself as far as that goes; `audit::process` says how far that is.
//! Never: looks into the memory.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, dumpable_behavior, set_dumpable_behavior, setrlimit};
use std::fs;
use std::io;

/// What is in memory stays there: no core dump of this process, no other process of the same user may look into it, and nothing of it is
/// written to swap, where the system allows so much to be locked. To be called before the first secret is read.
pub fn keep_memory_private() -> io::Result<()> {
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, nothing)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let text = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    if may_lock(&text("status"), &text("limits")) {
        // Pages are locked when they are first used: stacks and pools take no more than without. Where a container has only the name of
        // the right to it, the audit says so.
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    }
    Ok(())
}

/// Whether a core of this process may be dumped and others of its user may look in; `None` if the system does not say.
pub fn is_dumpable() -> Option<bool> {
    let behaviour = dumpable_behavior().ok()?;
    Some(behaviour != DumpableBehavior::NotDumpable)
}

/// Overwrites what functions that have returned left on the stack of this thread. To be called where little is on it, before a wait.
#[inline(never)]
pub fn wipe_stack() {
    let mut below = [0u8; WIPED];
    // Nobody reads it, and it must be written all the same.
    std::hint::black_box(&mut below);
}

/// Whether a process may lock all that it will ever take. A limit that could be reached is worse than none: beyond it, memory is refused.
fn may_lock(status: &str, limits: &str) -> bool {
    let word_after = |text: &str, name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let capabilities = word_after(status, "CapEff:").and_then(|bits| u64::from_str_radix(&bits, 16).ok());
    capabilities.is_some_and(|bits| bits & CAP_IPC_LOCK != 0)
        || word_after(limits, "Max locked memory").as_deref() == Some("unlimited")
}

/// The deepest calls of both servers reach nearly as far. What it costs stands in docs/benchmarks.md.
const WIPED: usize = 64 << 10;
/// Bit 14 of a set of capabilities (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::audit::process::Process;
    use std::process::Command;

    #[test]
    fn all_is_locked_only_where_no_limit_can_be_reached() {
        let limits =
            |limit: &str| format!("Limit Soft Hard Units\nMax locked memory         {limit}  {limit}  bytes\n");
        for (capabilities, limit, expected) in [
            ("0000000000000000", "8388608", false),
            ("0000000000003fff", "8388608", false),
            ("0000000000004000", "8388608", true),
            ("0000000000000000", "unlimited", true),
        ] {
            let status = format!("VmLck:\t0 kB\nCapEff:\t{capabilities}\n");
            assert_eq!(may_lock(&status, &limits(limit)), expected, "{capabilities} {limit}");
        }
        assert!(!may_lock("", ""));
    }

    #[test]
    fn a_process_that_keeps_its_memory_private_leaves_no_core_dump() {
        // A child of its own: the other tests of this process may want to be looked into.
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "service::hygiene::tests::memory_is_kept_private_in_a_child"])
            .env("KEEP_MEMORY_PRIVATE", "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Also the child of the test above.
    #[test]
    fn memory_is_kept_private_in_a_child() {
        if std::env::var_os("KEEP_MEMORY_PRIVATE").is_none() {
            return;
        }
        keep_memory_private().unwrap();
        assert_eq!(is_dumpable(), Some(false));
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        let process = Process::of(std::process::id(), is_dumpable());
        assert_eq!(process.leaves_no_core(), Some(true));
        let text = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap();
        if may_lock(&text("status"), &text("limits")) {
            assert_eq!(process.stays_in_memory(), Some(true));
        }
    }
}
