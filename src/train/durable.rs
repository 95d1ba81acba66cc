//! Files that survive a kill: atomic replacement, fsync of files and folders, hashes, and the lock that keeps a second
//! process out of a folder. Used by run directories and by evaluations.

use super::Error;
use crate::digest::{Sha256, hex};
use crate::error::Result;
use sha2::Digest;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Name of the lock file in a locked folder.
pub const LOCK: &str = "run.lock";

/// Holds a folder for this process. The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the folder, or fails with [`Error::Locked`] if another process has it.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| crate::Error::io("write", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: folder.display().to_string() }.into()),
            Err(TryLockError::Error(source)) => Err(crate::Error::io("lock", &path, source)),
        }
    }
}

/// Flushes a file's or folder's content to the disk.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|source| crate::Error::io("sync", path, source))
}

/// Replaces `path` by `bytes` so that a kill leaves either the old or the whole new file.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = sibling(path, "tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| crate::Error::io("write", path, source))?;
    sync(parent(path))
}

/// `.{name}.{suffix}` beside `path`.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{suffix}"))
}

/// The folder that holds `path`.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
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
        write_atomically(&path, b"abc").expect("written");
        write_atomically(&path, b"").expect("replaced");
        assert_eq!(sha256_file(&path).expect("read"), (0, empty.to_owned()));
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_locked_folder_is_refused_until_it_is_released() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let lock = FolderLock::take(folder.path()).expect("free");
        let error = FolderLock::take(folder.path()).expect_err("taken");
        assert!(matches!(error, crate::Error::Train(Error::Locked { .. })), "{error}");
        drop(lock);
        FolderLock::take(folder.path()).expect("free again");
    }
}
