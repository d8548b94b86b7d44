//! How well the memory of a process is kept where it is.
//!
//! In: what the kernel says of a process and of its machine. Out: facts. Never: looks into the memory itself.

use super::Fact;
use std::fs;
use std::path::{Path, PathBuf};

/// What was found; `None` = it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// As the process says of itself: the kernel tells nobody else.
    pub dumpable: Option<bool>,
    core_limit: Option<u64>,
    core_is_piped: Option<bool>,
    locked_kb: Option<u64>,
    resident_kb: Option<u64>,
    swapped_kb: Option<u64>,
    /// Kilobytes of swap on disks; memory that is compressed in memory does not count.
    swap_on_disk_kb: Option<u64>,
    /// The unit's bound on swap, bytes.
    swap_bound: Option<u64>,
}

impl Process {
    pub fn of(process_id: u32, dumpable: Option<bool>) -> Self {
        let proc = PathBuf::from(format!("/proc/{process_id}"));
        let read = |path: &Path| fs::read_to_string(path).ok();
        let status = read(&proc.join("status")).unwrap_or_default();
        let field = |name: &str| kilobytes(&status, name);
        Self {
            dumpable,
            core_limit: read(&proc.join("limits")).as_deref().and_then(core_limit),
            core_is_piped: read(Path::new("/proc/sys/kernel/core_pattern")).map(|pattern| pattern.starts_with('|')),
            locked_kb: field("VmLck:"),
            resident_kb: field("VmRSS:"),
            swapped_kb: field("VmSwap:"),
            swap_on_disk_kb: read(Path::new("/proc/swaps")).as_deref().map(swap_on_disk),
            swap_bound: read(&proc.join("cgroup"))
                .as_deref()
                .and_then(control_group)
                .and_then(|group| read(&Path::new("/sys/fs/cgroup").join(group).join("memory.swap.max")))
                .and_then(|text| text.trim().parse().ok()),
        }
    }

    /// Whether a crash leaves a copy of the memory on the disk. A handler behind a pipe is given one whatever the limit says, so there
    /// only a process that is not dumpable is safe.
    pub fn leaves_no_core(&self) -> Option<bool> {
        match (self.dumpable, self.core_limit, self.core_is_piped) {
            (Some(false), _, _) | (_, Some(0), Some(false)) => Some(true),
            (Some(true), Some(_), _) | (_, Some(1..), _) => Some(false),
            _ => None,
        }
    }

    /// Whether the memory can come to lie on a disk while the process runs.
    pub fn stays_in_memory(&self) -> Option<bool> {
        if self.swapped_kb.is_some_and(|kb| kb > 0) && self.swap_on_disk_kb != Some(0) {
            return Some(false);
        }
        if self.swap_bound == Some(0) || self.is_locked() || self.swap_on_disk_kb == Some(0) {
            return Some(true);
        }
        self.swap_on_disk_kb.map(|_| false)
    }

    fn is_locked(&self) -> bool {
        matches!((self.locked_kb, self.resident_kb), (Some(locked), Some(resident)) if locked > 0 && locked >= resident)
    }

    pub fn facts(&self) -> Vec<Fact> {
        let core = match self.leaves_no_core() {
            Some(true) => "a crash leaves no copy of the memory",
            Some(false) => "a crash may write the memory to a disk",
            None => "the process does not say whether a crash leaves a copy of its memory",
        };
        let peers = match self.dumpable {
            Some(false) => "other processes of the same user cannot look into it",
            Some(true) => "other processes of the same user can look into it",
            None => "unknown: the process does not say",
        };
        let bound = self.swap_bound == Some(0);
        let swap = match self.stays_in_memory() {
            Some(true) if self.is_locked() => "all of it is locked: nothing can lie in swap".to_owned(),
            Some(true) if bound => "the service manager allows no swap for it".to_owned(),
            Some(true) => "this machine has no swap on a disk; with one, parts could lie in it".to_owned(),
            Some(false) => {
                let now = self
                    .swapped_kb
                    .map_or("an unknown part".to_owned(), |kb| format!("{kb} kB"));
                let locked = self.locked_kb.unwrap_or(0);
                format!("parts can lie in swap on a disk: now {now}; {locked} kB are locked")
            }
            None => "it cannot be told whether parts lie in swap".to_owned(),
        };
        vec![
            Fact {
                what: "core dumps",
                good: self.leaves_no_core(),
                says: core.to_owned(),
            },
            Fact {
                what: "access by other processes",
                good: self.dumpable.map(|dumpable| !dumpable),
                says: peers.to_owned(),
            },
            Fact {
                what: "swap",
                good: self.stays_in_memory(),
                says: swap,
            },
        ]
    }
}

/// The soft limit of `Max core file size` in bytes.
fn core_limit(limits: &str) -> Option<u64> {
    let rest = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn swap_on_disk(swaps: &str) -> u64 {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let size: u64 = words.nth(1)?.parse().ok()?;
        Some(if name.starts_with("/dev/zram") { 0 } else { size })
    };
    swaps.lines().skip(1).filter_map(device).sum()
}

/// The path of the one group of cgroup v2.
fn control_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax core file size        0                    0                    bytes\n";
        assert_eq!(core_limit(limits), Some(0));
        assert_eq!(
            core_limit("Max core file size        unlimited            unlimited            bytes"),
            Some(u64::MAX)
        );
        assert_eq!(core_limit("nothing"), None);
        assert_eq!(kilobytes("VmRSS:\t    1234 kB\nVmSwap:\t 5 kB\n", "VmSwap:"), Some(5));
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        assert_eq!(swap_on_disk(head), 0);
        let swaps = format!("{head}/dev/zram0 partition 100 0 100\n/dev/sda2 partition 2048 0 -2\n");
        assert_eq!(swap_on_disk(&swaps), 2048);
        assert_eq!(
            control_group("0::/system.slice/a.service\n"),
            Some("system.slice/a.service")
        );
    }

    #[test]
    fn a_core_is_excluded_by_dumpable_or_by_a_limit_that_counts() {
        let process = |dumpable, core_limit, core_is_piped| Process {
            dumpable,
            core_limit,
            core_is_piped,
            ..Process::default()
        };
        for (dumpable, limit, piped, expected) in [
            (Some(false), Some(u64::MAX), Some(true), Some(true)),
            (None, Some(0), Some(false), Some(true)),
            (None, Some(0), Some(true), None),
            (Some(true), Some(0), Some(true), Some(false)),
            (None, Some(4096), Some(false), Some(false)),
            (None, None, None, None),
        ] {
            let found = process(dumpable, limit, piped).leaves_no_core();
            assert_eq!(found, expected, "{dumpable:?} {limit:?} {piped:?}");
        }
    }

    #[test]
    fn swap_counts_unless_it_is_locked_out_forbidden_or_not_there() {
        let with_swap = Process {
            locked_kb: Some(0),
            resident_kb: Some(100),
            swapped_kb: Some(0),
            swap_on_disk_kb: Some(1),
            ..Process::default()
        };
        assert_eq!(with_swap.stays_in_memory(), Some(false));
        for safe in [
            Process {
                locked_kb: Some(100),
                ..with_swap.clone()
            },
            Process {
                swap_bound: Some(0),
                ..with_swap.clone()
            },
            Process {
                swap_on_disk_kb: Some(0),
                ..with_swap.clone()
            },
        ] {
            assert_eq!(safe.stays_in_memory(), Some(true), "{safe:?}");
        }
        // What lies there already counts whatever was done since.
        let late = Process {
            swapped_kb: Some(4),
            swap_bound: Some(0),
            ..with_swap
        };
        assert_eq!(late.stays_in_memory(), Some(false));
        assert_eq!(Process::default().stays_in_memory(), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let process = Process::of(std::process::id(), None);
        assert!(
            process.core_limit.is_some() && process.resident_kb > Some(0),
            "{process:?}"
        );
        assert_eq!(process.facts().len(), 3);
    }
}
