//! The files that hold secrets.
//!
//! In: their paths. Out: whether they are there, who reads them, on which disk they lie. Never: what is in them.

use super::{Key, KeyState};
use crate::crypto::keyed_hash_32;
use crate::service::access::{is_in_memory, is_open_to_others};
use crate::service::config::read_key_32;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `data`: a file that this key protects, if any.
pub fn key(name: &'static str, purpose: &'static str, file: &Path, data: Option<&Path>) -> Key {
    let state = match (fs::metadata(file), fs::File::open(file)) {
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => KeyState::Missing,
        (Ok(_), _) if is_open_to_others(file) => KeyState::OpenToOthers,
        (Ok(_), Ok(_)) => KeyState::OwnerOnly,
        _ => KeyState::Unreadable,
    };
    Key {
        name,
        purpose,
        file: file.to_owned(),
        id: None,
        state,
        beside_data: data.and_then(|data| same_disk(file, data)),
    }
}

/// As [`key`], for a file with 32 random bytes, which has an id. A password has none: a hash of it could be searched for.
pub fn random_key(name: &'static str, purpose: &'static str, file: &Path, data: Option<&Path>) -> Key {
    let id = read_key_32(file).ok().map(|key| {
        let [a, b, c, d, ..] = keyed_hash_32(&key, &[b"id of a key in an audit"]);
        hex::encode([a, b, c, d])
    });
    Key {
        id,
        ..self::key(name, purpose, file, data)
    }
}

/// Whether two files lie on the same file system: who takes one takes the other. A key in memory was put there by somebody who has it
/// elsewhere, which cannot be looked at.
fn same_disk(one: &Path, other: &Path) -> Option<bool> {
    if is_in_memory(one)? && !is_in_memory(other)? {
        return None;
    }
    let disk = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    Some(disk(one)? == disk(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "34da8c748c213aaee9afb2e6cc4cf3898a9b64326fca6ea532db86adc85cb49c";

    #[test]
    fn a_key_is_told_by_its_place_its_rights_and_an_id_that_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let data = folder.path().join("data");
        let look = || random_key("a", "b", &file, Some(&data));
        assert_eq!(
            (look().state, look().beside_data, look().id),
            (KeyState::Missing, None, None)
        );
        fs::write(&file, KEY).unwrap();
        fs::write(&data, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(look().state, KeyState::OpenToOthers);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let found = look();
        assert_eq!((found.state, found.beside_data), (KeyState::OwnerOnly, Some(true)));
        let id = found.id.unwrap();
        assert!(id.len() == 8 && !KEY.contains(&id), "{id}");
        assert_eq!(key("a", "b", &file, None).id, None, "a password has no id");
        // Another file system; and one that goes with the machine.
        assert_eq!(same_disk(&file, Path::new("/proc/self/status")), Some(false));
        assert_eq!(same_disk(Path::new("/dev/shm"), &file), None);
    }
}
