//! CurveZMQ boxes: ours beside libsodium's, same bytes, same run.
#![expect(unsafe_code, reason = "libsodium is C")]
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use libsodium_sys as sodium;
use quietline_shared::crypto::{CurveBox, x25519_public};
use quietline_shared::redact::Secret;
use std::time::{Duration, Instant};

fn main() {
    // SAFETY: may be called any number of times.
    assert!(unsafe { sodium::sodium_init() } >= 0);
    let (ours, theirs) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let public = x25519_public(&theirs);
    let curve = CurveBox::new(&public, &ours);
    let mut shared = [0u8; 32];
    // SAFETY: all three are 32 bytes.
    assert_eq!(
        unsafe { sodium::crypto_box_beforenm(shared.as_mut_ptr(), public.as_ptr(), ours.expose().as_ptr()) },
        0
    );
    for size in [300usize, 70_000] {
        let mut text = vec![7u8; size];
        let mine = rate(size, || {
            let _ = curve.seal_in_place(&[3; 24], &mut text);
        });
        let mut out = vec![0u8; size + 16];
        let other = rate(size, || {
            // SAFETY: `out` is 16 bytes longer than `text`; nonce and key have their lengths.
            unsafe {
                sodium::crypto_box_easy_afternm(
                    out.as_mut_ptr(),
                    text.as_ptr(),
                    size as u64,
                    [3u8; 24].as_ptr(),
                    shared.as_ptr(),
                );
            }
        });
        println!(
            "box of {size} bytes: ours {mine:.0} MB/s, libsodium {other:.0} MB/s, ratio {:.2}",
            mine / other
        );
    }
}

fn rate(size: usize, mut operation: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut done = 0u64;
    while started.elapsed() < Duration::from_secs(1) {
        for _ in 0..16 {
            operation();
        }
        done += 16;
    }
    done as f64 * size as f64 / started.elapsed().as_secs_f64() / 1e6
}
