//! What keeps a folder one process's own, and what tells whether a file is the one that was written: the lock and hashes of
//! run directories and evaluations. Writing itself is in `weights/atomic.rs`.

use super::Error;
use crate::digest::{Sha256, hex};
use crate::error::Result;
use sha2::Digest;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

/// Name of the lock file in a locked folder.
pub const LOCK: &str = "run.lock";

/// Holds a folder for this process. The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the folder and leaves this process's number in it, or fails with [`Error::Locked`] if another process has it.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| crate::Error::io("write", &path, source))?;
        match file.try_lock() {
            Ok(()) => {
                // Only for the message: a full disk is no reason to refuse the folder here.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let process = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                Err(Error::Locked { path: folder.display().to_string(), process }.into())
            }
            Err(TryLockError::Error(source)) => Err(crate::Error::io("lock", &path, source)),
        }
    }
}

/// Size and SHA-256 of a file, read in pieces.
pub fn sha256_file(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|source| crate::Error::io("read", path, source))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut piece).map_err(|source| crate::Error::io("read", path, source))?;
        if read == 0 {
            return Ok((bytes, hex(hash)));
        }
        hash.update(&piece[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_sha256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("f");
        fs::write(&path, b"").expect("written");
        assert_eq!(sha256_file(&path).expect("read"), (0, empty.to_owned()));
    }

    #[test]
    fn a_locked_folder_is_refused_until_it_is_released() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let lock = FolderLock::take(folder.path()).expect("free");
        let error = FolderLock::take(folder.path()).expect_err("taken");
        let path = folder.path().display();
        assert_eq!(error.to_string(), format!("{path} is in use by another process ({})", std::process::id()));
        drop(lock);
        FolderLock::take(folder.path()).expect("free again");
    }
}
