//! What the path of a packet may not know.

const FORWARDING: [(&str, &str); 2] = [
    ("forwarding.rs", include_str!("../src/forwarding.rs")),
    ("forwarding/slot.rs", include_str!("../src/forwarding/slot.rs")),
];

#[test]
fn forwarding_knows_no_control_no_credentials_no_attributes_no_allocations_and_no_locks() {
    for (file, text) in FORWARDING {
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        for never in [
            "crate::control",
            "crate::auth",
            "crate::attributes",
            "crate::allocation",
            "use crate::{",
        ] {
            assert!(!code.contains(never), "{file} imports {never}");
        }
        for lock in ["Mutex", "RwLock", "mpsc", "HashMap", "BTreeMap"] {
            assert!(!code.contains(lock), "{file} has a {lock}");
        }
    }
}
