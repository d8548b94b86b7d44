//! Who may read a file with a secret, and on what it lies.
//!
//! In: a path. Out: facts. Never: opens the file.
//!
//! systemd hands credentials over in files of root's that an access control list opens to the service alone (systemd.exec(5), "Credentials").
//! Their group bits are then the bound of that list and say nothing about a group (acl(5)).

use rustix::fs::{getxattr, statfs};
use rustix::process::geteuid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether anybody but its owner, root and the service it is for may read it. A file that is not there is open to nobody.
pub fn is_open_to_others(path: &Path) -> bool {
    let Ok(found) = fs::metadata(path) else {
        return false;
    };
    let bits = found.mode() & 0o077;
    if bits == 0 || bits & 0o007 != 0 {
        return bits != 0;
    }
    let mut list = [0; LONGEST_LIST];
    let length = getxattr(path, ACCESS_LIST, &mut list[..]);
    match length.ok().and_then(|length| list.get(..length)) {
        Some(list) => lets_others_in(list, found.uid(), geteuid().as_raw()),
        // Without a list the bits are the group's. One that is longer lets many in.
        None => true,
    }
}

/// Whether it lies in memory, as what systemd hands over does: then where it came from cannot be told.
pub fn is_in_memory(path: &Path) -> Option<bool> {
    // Its type differs between machines, and 32 bits count.
    let kind = statfs(path).ok()?.f_type as u32;
    Some([RAMFS, TMPFS].contains(&kind))
}

/// `owner`: of the file. `reader`: who looks. A list that cannot be understood lets in whoever it wants.
fn lets_others_in(list: &[u8], owner: u32, reader: u32) -> bool {
    let Some((b"\x02\0\0\0", entries)) = list.split_first_chunk::<4>() else {
        return true;
    };
    let (entries, rest) = entries.as_chunks::<8>();
    let entries = entries.iter().map(|[a, b, c, d, id @ ..]| {
        let (who, may) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
        (who, may, u32::from_le_bytes(*id))
    });
    // The bound of all that follows it, and of what stands before it too.
    let bound = entries
        .clone()
        .find(|(who, ..)| *who == BOUND)
        .map_or(READ, |(_, may, _)| may);
    let mut readers = entries.filter(|(who, may, _)| {
        let bound = if *who == EVERYBODY { READ } else { bound };
        *who != OWNER && *who != BOUND && may & bound & READ != 0
    });
    match (readers.next(), readers.next(), rest) {
        (None, None, []) => false,
        // Root's own file, made for one service: for us, or for the one whose audit root looks at.
        (Some((NAMED_USER, _, id)), None, []) => id != reader && (owner != 0 || reader != 0),
        _ => true,
    }
}

const ACCESS_LIST: &str = "system.posix_acl_access";
/// Bytes: four and eight an entry.
const LONGEST_LIST: usize = 1_024;
/// Tags and rights of linux/posix_acl.h.
const OWNER: u16 = 0x01;
const NAMED_USER: u16 = 0x02;
const BOUND: u16 = 0x10;
const EVERYBODY: u16 = 0x20;
const READ: u16 = 0x04;
/// statfs(2)
const RAMFS: u32 = 0x8584_58f6;
const TMPFS: u32 = 0x0102_1994;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{XattrFlags, setxattr};
    use std::os::unix::fs::PermissionsExt;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut list = vec![2, 0, 0, 0];
        for (who, may, id) in entries {
            list.extend_from_slice(&who.to_le_bytes());
            list.extend_from_slice(&may.to_le_bytes());
            list.extend_from_slice(&id.to_le_bytes());
        }
        list
    }

    const NOBODY: u32 = u32::MAX;
    const GROUP: u16 = 0x04;
    const SERVICE: u32 = 61_234;

    /// As systemd makes it: `user::r--`, `user:SERVICE:r--`, `group::---`, `mask::r--`, `other::---`.
    fn credential() -> [(u16, u16, u32); 5] {
        [
            (OWNER, 4, NOBODY),
            (NAMED_USER, 4, SERVICE),
            (GROUP, 0, NOBODY),
            (BOUND, 4, NOBODY),
            (EVERYBODY, 0, NOBODY),
        ]
    }

    #[test]
    fn a_list_for_the_service_alone_lets_nobody_else_in() {
        for (owner, reader, expected) in [
            (0, SERVICE, false),
            (0, 0, false),
            // Of somebody else's file nobody knows whom it is for.
            (1_000, 0, true),
            (1_000, 1_000, true),
            (0, 1_000, true),
        ] {
            assert_eq!(
                lets_others_in(&list(&credential()), owner, reader),
                expected,
                "{owner} {reader}"
            );
        }
        for (place, changed) in [
            (2, (GROUP, 4, NOBODY)),
            (4, (EVERYBODY, 4, NOBODY)),
            (2, (NAMED_USER, 4, SERVICE + 1)),
            (2, (0x08, 4, 100)),
        ] {
            let mut other = credential();
            other[place] = changed;
            assert!(lets_others_in(&list(&other), 0, SERVICE), "{changed:?}");
            // Where the bound takes it away again, only everybody is left.
            other[3].1 = 0;
            assert_eq!(
                lets_others_in(&list(&other), 0, SERVICE),
                changed.0 == EVERYBODY,
                "{changed:?}"
            );
        }
        for broken in [&b""[..], b"\x02\0", b"\x03\0\0\0", b"\x02\0\0\0\x01"] {
            assert!(lets_others_in(broken, 0, SERVICE), "{broken:?}");
        }
    }

    #[test]
    fn the_bits_of_a_file_count_unless_a_list_stands_behind_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(!is_open_to_others(&path));
        fs::write(&path, "key").unwrap();
        for (mode, expected) in [
            (0o600, false),
            (0o400, false),
            (0o640, true),
            (0o604, true),
            (0o666, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open_to_others(&path), expected, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let mut own = credential();
        own[1].2 = geteuid().as_raw();
        for (entries, expected) in [
            (own, false),
            ([own[0], own[1], (GROUP, 4, NOBODY), own[3], own[4]], true),
        ] {
            setxattr(&path, ACCESS_LIST, &list(&entries), XattrFlags::empty()).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o440);
            assert_eq!(is_open_to_others(&path), expected);
        }
    }

    #[test]
    fn a_file_in_memory_is_told_from_one_on_a_disk() {
        assert_eq!(is_in_memory(Path::new("/dev/shm")), Some(true));
        assert_eq!(is_in_memory(Path::new("/proc/self/status")), Some(false));
        assert_eq!(is_in_memory(Path::new("/no/such/file")), None);
    }
}
