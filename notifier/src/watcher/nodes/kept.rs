//! The last good node list on disk, sealed as all that is there: it tells which network was served, and when last.
//!
//! In: text, row keys. Out: the same text at the next start. Never: leaves half a file, or one that others may read.
//!
//! version(1) ‖ key id(4, big-endian) ‖ the sealed text. What an earlier version left is JSON.

use crate::keyring::{KeyId, Keyring, OpenFault};
use quietline_shared::service::command::replace_secret_file;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What the file holds.
pub(super) struct Kept {
    pub text: Vec<u8>,
    /// It is in plain, or under an older key: it should be written again.
    pub is_old: bool,
}

/// Why the file gives no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptFault {
    #[error("it cannot be read ({})", .0.kind())]
    File(#[from] io::Error),
    #[error("{0}")]
    Sealed(#[from] OpenFault),
}

/// `None` if there is no file yet.
pub(super) fn read(path: &Path, keys: &Keyring) -> Result<Option<Kept>, KeptFault> {
    let Some(file) = bytes(path, LONGEST + 1)? else {
        return Ok(None);
    };
    let sealed = match file.as_slice() {
        [VERSION, sealed @ ..] => sealed,
        // One byte more than any list: the parser refuses it.
        _ => {
            return Ok(Some(Kept {
                text: file,
                is_old: true,
            }));
        }
    };
    let (id, sealed) = sealed.split_first_chunk().ok_or(OpenFault::Truncated)?;
    let (id, sealer) = (KeyId::from_bytes(*id), keys.sealer(PURPOSE));
    let opened = sealer.open(id, PLACE, sealed.to_vec())?;
    Ok(Some(Kept {
        text: opened.content().to_vec(),
        is_old: id != Some(sealer.newest()),
    }))
}

pub(super) fn write(path: &Path, text: &[u8], keys: &Keyring) -> io::Result<()> {
    let sealer = keys.sealer(PURPOSE);
    let sealed = sealer.seal(PLACE, text, LENGTHS).map_err(io::Error::other)?;
    let file = [&[VERSION][..], &sealer.newest().to_bytes(), &sealed].concat();
    replace_secret_file(path, &file)
}

/// Under which key the file is; `None` if there is none, or if it is in plain.
pub fn key_of(path: &Path) -> io::Result<Option<KeyId>> {
    Ok(match bytes(path, 5)?.as_deref() {
        Some([VERSION, id @ ..]) => id.first_chunk().copied().and_then(KeyId::from_bytes),
        _ => None,
    })
}

/// Seals the file under the newest key, while no notifier runs; whether it was not before. One that nobody can read is left as it is.
pub fn change_keys(path: &Path, keys: &Keyring) -> io::Result<bool> {
    match read(path, keys) {
        Ok(Some(kept)) if kept.is_old => write(path, &kept.text, keys).map(|()| true),
        Ok(_) | Err(KeptFault::Sealed(_)) => Ok(false),
        Err(KeptFault::File(fault)) => Err(fault),
    }
}

fn bytes(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// No list begins with it: they are JSON.
const VERSION: u8 = 1;
const PURPOSE: &str = "node list";
const PLACE: &[u8] = b"node list";
/// How many nodes there are is no secret.
const LENGTHS: &[usize] = &[4_096];
const LONGEST: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::redact::Secret;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn ring(keys: &[u8]) -> Keyring {
        Keyring::new(keys.iter().map(|key| Secret::new([*key; 32])).collect()).unwrap()
    }

    fn text(path: &Path, keys: &Keyring) -> Option<(Vec<u8>, bool)> {
        read(path, keys).unwrap().map(|kept| (kept.text, kept.is_old))
    }

    #[test]
    fn what_was_written_is_read_and_only_we_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, keys) = (folder.path().join("nodes.json"), ring(&[1]));
        assert_eq!(text(&path, &keys), None);
        assert_eq!(key_of(&path).unwrap(), None);
        write(&path, b"one, and longer", &keys).unwrap();
        write(&path, b"the second list", &keys).unwrap();
        assert_eq!(text(&path, &keys), Some((b"the second list".to_vec(), false)));
        assert_eq!(key_of(&path).unwrap(), keys.ids().first().copied());
        let file = fs::read(&path).unwrap();
        assert!(!file.windows(6).any(|bytes| bytes == b"second"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_list_in_plain_or_under_an_old_key_is_read_and_goes_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        fs::write(&path, "{}").unwrap();
        assert_eq!(text(&path, &ring(&[1])), Some((b"{}".to_vec(), true)));
        assert!(change_keys(&path, &ring(&[1])).unwrap());
        assert_eq!(text(&path, &ring(&[2, 1])), Some((b"{}".to_vec(), true)));
        assert!(change_keys(&path, &ring(&[2, 1])).unwrap());
        assert_eq!(text(&path, &ring(&[2])), Some((b"{}".to_vec(), false)));
        assert!(!change_keys(&path, &ring(&[2])).unwrap());
    }

    #[test]
    fn a_foreign_cut_or_changed_list_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        write(&path, b"{}", &ring(&[1])).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(read(&path, &ring(&[2])).is_err());
        assert!(!change_keys(&path, &ring(&[2])).unwrap());
        assert_eq!(fs::read(&path).unwrap(), before);
        for length in [1, 4, 5, 20, before.len() - 1] {
            fs::write(&path, &before[..length]).unwrap();
            assert!(read(&path, &ring(&[1])).is_err(), "{length}");
        }
    }
}
