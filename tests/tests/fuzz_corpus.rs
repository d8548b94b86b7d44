//! Every fuzz target over its whole corpus, and over each input cut short and changed in each byte, as an ordinary test.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets.rs"]
mod targets;

fn run(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut run = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let input = fs::read(entry.unwrap().path()).unwrap();
        target(&input);
        // Each cut and each changed byte of a small input; of a large one, a spread of them.
        let step = (input.len() / 100).max(1);
        for at in (0..input.len()).step_by(step) {
            target(&input[..at]);
            let mut changed = input.clone();
            for flip in [0x01, 0x80] {
                changed[at] ^= flip;
                target(&changed);
                changed[at] ^= flip;
            }
        }
        run += 1;
    }
    assert!(run > 0, "the corpus of {name} is empty");
}

macro_rules! corpora {
    ($($target:ident),* $(,)?) => {
        $(
            #[test]
            fn $target() {
                run(stringify!($target), targets::$target);
            }
        )*

        #[test]
        fn every_target_of_the_fuzzer_is_run_here() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            let mut found: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            let mut listed = vec![$(stringify!($target).to_owned()),*];
            found.sort();
            listed.sort();
            assert_eq!(found, listed);
        }
    };
}

corpora!(
    bencode,
    onion,
    requests,
    endpoints,
    rows,
    node_list,
    notification,
    link,
    addresses,
    answers,
    wire,
    attributes,
    framing,
    turn_server
);
