//! What a server that dies by a signal leaves: nothing, where any other program would leave its memory.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// A fault of the program, and its own giving up.
pub const SIGNALS: [(&str, i32); 2] = [("-SEGV", 11), ("-ABRT", 6)];

/// From now on, what this process starts may leave core dumps of any size, and a program that allows them does.
pub fn allow_core_dumps(folder: &Path) {
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit")
        .args(["--core=unlimited:unlimited", "--pid", &own])
        .status();
    assert!(
        raised.unwrap().success(),
        "the limit of core dumps can be raised: ulimit -Hc"
    );
    let folder = folder.join("control");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, number) in SIGNALS {
        let mut sleeping = Command::new("sleep").arg("1000").current_dir(&folder).spawn().unwrap();
        send(name, sleeping.id());
        let ended = sleeping.wait().unwrap();
        assert_eq!(ended.signal(), Some(number));
        assert!(
            ended.core_dumped(),
            "this machine dumps no core at all (/proc/sys/kernel/core_pattern): nothing is shown"
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Sends the signal until the process has ended: the first SIGSEGV that is no fault of its own only takes Rust's handler away.
pub fn crash(name: &str, process: u32, patience: Duration) {
    let deadline = Instant::now() + patience;
    while !has_ended(process) {
        assert!(Instant::now() < deadline, "{name} ends a process");
        send(name, process);
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn assert_no_core(ended: ExitStatus, number: i32, folder: &Path) {
    assert_eq!(ended.signal(), Some(number), "{ended}");
    assert!(!ended.core_dumped(), "{ended}");
    let files = crate::files::below(folder);
    let is_core = |path: &&String| path.rsplit('/').next().is_some_and(|name| name.starts_with("core"));
    assert_eq!(files.iter().find(is_core), None);
}

fn send(name: &str, process: u32) {
    Command::new("kill")
        .args([name, &process.to_string()])
        .status()
        .unwrap();
}

/// Ended, and perhaps not yet waited for.
fn has_ended(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}
