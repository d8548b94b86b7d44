//! What a process leaves in files, those among them that have no name any more.
//!
//! In: a folder, a process id. Out: names and bytes. Never: opens what is no ordinary file.

use std::path::Path;

/// Files below `folder`, by their paths in it.
pub fn below(folder: &Path) -> Vec<String> {
    fn list(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                list(root, &entry.path(), found);
            } else {
                found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    list(folder, folder, &mut found);
    found.sort();
    found
}

/// Ordinary files that a process has open and that nobody finds by a name: deleted ones, and those that never had one.
pub fn nameless(process: u32) -> Vec<Vec<u8>> {
    let open = std::fs::read_dir(format!("/proc/{process}/fd"));
    let is_nameless = |link: &Path| {
        let target = std::fs::read_link(link).unwrap_or_default();
        let target = target.to_string_lossy();
        target.starts_with('/') && target.ends_with(" (deleted)")
    };
    open.into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|link| is_nameless(link) && std::fs::metadata(link).is_ok_and(|file| file.is_file()))
        .filter_map(|link| std::fs::read(link).ok())
        .collect()
}

#[test]
fn what_is_in_a_folder_of_a_folder_or_in_a_deleted_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b");
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join(".hidden"), b"leak").unwrap();
    std::fs::write(folder.path().join("core"), b"leak").unwrap();
    assert_eq!(below(folder.path()), ["a/b/.hidden", "core"]);

    let mark = b"bytes of a file without a name";
    let path = folder.path().join("gone");
    std::fs::write(&path, mark).unwrap();
    let open = std::fs::File::open(&path).unwrap();
    let has_mark = |files: Vec<Vec<u8>>| files.iter().any(|file| file == mark);
    assert!(!has_mark(nameless(std::process::id())));
    std::fs::remove_file(&path).unwrap();
    assert!(has_mark(nameless(std::process::id())));
    drop(open);
}
