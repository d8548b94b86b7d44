//! How the C library's allocator treats large blocks.
//!
//! In: nothing. Out: blocks of a mebibyte and more that go back to the system when they are freed. Never: allocates.
//!
//! This file is the only one of the crate with unsafe code.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "mallopt has no safe cover; it takes and gives numbers")
)]

/// To be called first of all, by a process of one thread. Whether the allocator does so from now on; one that is not glibc's is left alone.
///
/// Without this glibc keeps what was large: with the first block of many mebibytes that is freed (a node list of 10 MB, say) it takes such
/// blocks from the heaps of its threads from then on, and each heap may keep twice that much at its end. Where memory is locked
/// (`hygiene::keep_memory_private`), it cannot give back from the middle of a heap at all.
pub fn give_back_large_blocks() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: numbers in, a number out; no other thread is there yet.
        let set = |name, bytes| unsafe { libc::mallopt(name, bytes) == 1 };
        set(libc::M_MMAP_THRESHOLD, LARGE) && set(libc::M_TRIM_THRESHOLD, 2 * LARGE)
    }
    #[cfg(not(target_env = "gnu"))]
    false
}

/// Bytes. Far above what one packet, request or commit usually takes: such a block costs two system calls and its pages anew.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[cfg(target_env = "gnu")]
    #[test]
    fn after_many_blocks_of_ten_mebibytes_in_many_threads_a_process_is_as_small_as_before() {
        // A child of its own: what is set holds for a whole process.
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "service::heap::tests::large_blocks_in_a_child",
                "--nocapture",
            ])
            .env("LARGE_BLOCKS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Also the child of the test above.
    #[test]
    fn large_blocks_in_a_child() {
        if std::env::var_os("LARGE_BLOCKS").is_none() {
            return;
        }
        assert!(give_back_large_blocks());
        let before = resident_pages();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..4 {
                        // Grows as what comes from the network does, with small blocks between.
                        let mut grown = Vec::new();
                        let small: Vec<_> = (0..160u32)
                            .map(|number| {
                                grown.extend_from_slice(&[7u8; 64 << 10]);
                                number.to_string()
                            })
                            .collect();
                        std::hint::black_box((grown, small));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let stays = resident_pages().saturating_sub(before) * 4 / 1024;
        assert!(stays < 24, "{stays} MiB stay");
    }

    fn resident_pages() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    }
}
