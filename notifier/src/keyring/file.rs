//! The file of the row keys, and its two changes while keys are exchanged.
//!
//! In: a path. Out: the keys; the file with a new key before the old ones, then without these. Never: leaves half a file, a moment
//! without a key that a row may need, or a key that nothing needs any more.
//!
//! One key a line, 64 hex digits, the newest first; a file of 32 raw bytes is one key. Only while keys are exchanged there are two.

use super::{KeyId, Keyring};
use quietline_shared::redact::Secret;
use quietline_shared::service::command::replace_secret_file;
use quietline_shared::service::config::{FileFault, read_keys_32};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Why the file cannot be used or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileFault {
    #[error("{0}")]
    Unusable(#[from] FileFault),
    #[error("holds a key twice")]
    Repeated,
    #[error("cannot be written ({0})")]
    Unwritable(io::ErrorKind),
    #[error("is being changed by another command")]
    InUse,
    #[error("cannot get a new key: the operating system gives no random bytes")]
    NoRandomness,
}

/// The ring in this file.
pub fn read(path: &Path) -> Result<Keyring, KeyFileFault> {
    Keyring::new(read_keys_32(path, MOST_KEYS)?).ok_or(KeyFileFault::Repeated)
}

/// An exchange of keys, alone with the file for as long as it lives.
#[derive(Debug)]
pub struct Exchange {
    path: PathBuf,
    new: KeyId,
    _lock: File,
}

impl Exchange {
    /// Puts a new key before the one that is there, or takes up an exchange that came to no end; whether it did that.
    pub fn begin(path: &Path) -> Result<(Self, bool), KeyFileFault> {
        // The folder is what stays where it is when the file is replaced.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let lock =
            File::open(folder.unwrap_or(Path::new("."))).map_err(|fault| KeyFileFault::Unwritable(fault.kind()))?;
        lock.try_lock().map_err(|fault| match fault {
            TryLockError::WouldBlock => KeyFileFault::InUse,
            TryLockError::Error(fault) => KeyFileFault::Unwritable(fault.kind()),
        })?;
        let mut keys = read_keys_32(path, MOST_KEYS)?;
        let resumed = keys.len() > 1;
        if !resumed {
            let mut key = Zeroizing::new([0; 32]);
            getrandom::fill(&mut *key).map_err(|_| KeyFileFault::NoRandomness)?;
            keys.insert(0, Secret::new(*key));
            write(path, &keys)?;
        }
        let new = Keyring::new(keys).ok_or(KeyFileFault::Repeated)?.ids();
        let exchange = Self {
            path: path.to_owned(),
            new: *new.first().ok_or(KeyFileFault::Repeated)?,
            _lock: lock,
        };
        Ok((exchange, resumed))
    }

    /// The key that everything is to be under.
    pub fn new_key(&self) -> KeyId {
        self.new
    }

    /// Leaves the new key alone in the file. Nothing may be under another one any more.
    pub fn finish(self) -> Result<(), KeyFileFault> {
        let mut keys = read_keys_32(&self.path, MOST_KEYS)?;
        keys.truncate(1);
        write(&self.path, &keys)
    }
}

fn write(path: &Path, keys: &[Secret<[u8; 32]>]) -> Result<(), KeyFileFault> {
    let mut text = Zeroizing::new(String::with_capacity(keys.len() * 65));
    for key in keys {
        text.push_str(&Zeroizing::new(hex::encode(key.expose())));
        text.push('\n');
    }
    replace_secret_file(path, text.as_bytes()).map_err(|fault| KeyFileFault::Unwritable(fault.kind()))
}

/// A second rotation cannot begin before the first has ended, so two are enough; a file put together by hand may hold more.
pub const MOST_KEYS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key_file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        let key: Vec<u8> = (0..32).map(|n| n * 7 + 1).collect();
        std::fs::write(&path, format!("{}\n", hex::encode(key))).unwrap();
        (folder, path)
    }

    #[test]
    fn an_exchange_puts_a_new_key_first_and_ends_with_it_alone() {
        let (folder, path) = key_file();
        let old = std::fs::read_to_string(&path).unwrap();
        let before = read(&path).unwrap().ids();
        let (exchange, resumed) = Exchange::begin(&path).unwrap();
        assert!(!resumed);
        let during = read(&path).unwrap().ids();
        assert_eq!(during, [exchange.new_key(), before[0]]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        exchange.finish().unwrap();
        assert_eq!(read(&path).unwrap().ids(), during[..1]);
        assert!(!std::fs::read_to_string(&path).unwrap().contains(old.trim()));
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing else is left there"
        );
    }

    #[test]
    fn an_exchange_that_was_cut_off_goes_on_with_the_same_key() {
        let (_folder, path) = key_file();
        let (first, _) = Exchange::begin(&path).unwrap();
        let new = first.new_key();
        assert_eq!(Exchange::begin(&path).unwrap_err(), KeyFileFault::InUse);
        drop(first);
        let (second, resumed) = Exchange::begin(&path).unwrap();
        assert_eq!((second.new_key(), resumed), (new, true));
        second.finish().unwrap();
        assert_eq!(read(&path).unwrap().ids(), [new]);
    }

    #[test]
    fn a_file_without_a_key_or_with_one_twice_is_refused() {
        let (_folder, path) = key_file();
        let line = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, line.repeat(2)).unwrap();
        assert_eq!(read(&path).unwrap_err(), KeyFileFault::Repeated);
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(
            read(&path).unwrap_err(),
            KeyFileFault::Unusable(FileFault::WrongLength { .. })
        ));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).unwrap_err(), KeyFileFault::Unusable(FileFault::Missing));
    }
}
