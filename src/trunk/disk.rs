//! Entries on disk: one safetensors file each, written beside and renamed, so that several processes may share a folder.
//!
//! A file is trusted only if its header, shape and SHA-256 are right; any other is removed and computed again. When the
//! budget is full, files that no process has used since this one started make room, the longest unused first; if there are none
//! nothing more is stored, since a pass over more than fits would otherwise push out every file before its next use.

use crate::digest::sha256;
use crate::weights::{Dtype, SafetensorsFile, TensorSpec, is_leftover, write_safetensors_streamed};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const TENSOR: &str = "hidden";
const CHECKSUM: &str = "sha256";
const EXTENSION: &str = "safetensors";
/// Stored entries between two looks at what other processes have stored.
const LOOK: u32 = 64;
/// Age from which a half-written file is a killed process's: entries are written in far less.
const ABANDONED: Duration = Duration::from_secs(3600);

pub(super) struct Disk {
    folder: PathBuf,
    budget: u64,
    used: u64,
    /// Entries stored since the folder was last listed.
    since_listed: u32,
    started: SystemTime,
    /// Files not used since the start, by time of last use; filled at the first need.
    stale: Option<BTreeMap<(SystemTime, PathBuf), u64>>,
    /// Whether a write failed.
    refused: bool,
}

impl Disk {
    /// # Errors
    /// A folder that cannot be made or listed.
    pub fn open(folder: &Path, budget: u64) -> crate::Result<Self> {
        fs::create_dir_all(folder).map_err(|source| crate::Error::io("create", folder, source))?;
        remove_abandoned(folder).map_err(|source| crate::Error::io("list", folder, source))?;
        let listed = list(folder).map_err(|source| crate::Error::io("list", folder, source))?;
        Ok(Self {
            folder: folder.into(),
            budget,
            used: listed.values().sum(),
            since_listed: 0,
            started: SystemTime::now(),
            stale: None,
            refused: false,
        })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(key).with_extension(EXTENSION)
    }

    /// The values of an entry `[rows, width]`, if its file is there and whole.
    pub fn get(&mut self, key: &str, rows: usize, width: usize) -> Option<Vec<f32>> {
        let path = self.path(key);
        let bytes = fs::metadata(&path).ok()?.len();
        let values = read(&path, rows, width);
        if values.is_none() {
            tracing::warn!(file = %path.display(), "removed a trunk cache file that is not whole");
            if fs::remove_file(&path).is_ok() {
                self.used = self.used.saturating_sub(bytes);
            }
        } else if let Ok(file) = fs::File::options().append(true).open(&path) {
            // The time of last use, for whoever has to make room. Failing to set it costs nothing but that file's place.
            let _ = file.set_modified(SystemTime::now());
        }
        values
    }

    /// Stores an entry if there is room.
    pub fn put(&mut self, key: &str, rows: usize, width: usize, values: &[f32]) {
        let path = self.path(key);
        if self.refused || path.exists() {
            return;
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        // Header and padding are under a kilobyte.
        let size = bytes.len() as u64 + 1024;
        if !self.make_room(size) {
            return;
        }
        let checksum = sha256(&bytes);
        let spec = TensorSpec { name: TENSOR.into(), dtype: Dtype::F32, shape: vec![rows, width] };
        let written = write_safetensors_streamed(&path, &[spec], &[(CHECKSUM, &checksum)], |_, out| {
            out.write_all(&bytes).map_err(|source| crate::Error::io("write", &path, source))
        });
        match written {
            Ok(()) => {
                self.used += fs::metadata(&path).map_or(size, |data| data.len());
                self.since_listed += 1;
            }
            Err(error) => {
                self.refused = true;
                tracing::warn!(folder = %self.folder.display(), %error, "the trunk cache stores nothing more on disk");
            }
        }
    }

    /// Whether `size` more bytes fit, after removing what nobody has used since the start.
    fn make_room(&mut self, size: u64) -> bool {
        if size > self.budget {
            return false;
        }
        if self.since_listed >= LOOK {
            let Ok(listed) = list(&self.folder) else { return false };
            (self.used, self.since_listed) = (listed.values().sum(), 0);
        }
        if self.used + size <= self.budget {
            return true;
        }
        if self.stale.is_none() {
            let Ok(listed) = list(&self.folder) else { return false };
            self.used = listed.values().sum();
            self.stale = Some(listed.into_iter().filter(|((used, _), _)| *used < self.started).collect());
        }
        let stale = self.stale.get_or_insert_default();
        while self.used + size > self.budget {
            let Some(((time, path), bytes)) = stale.pop_first() else { return false };
            // Used since the list was made: it stays.
            let unused = fs::metadata(&path).and_then(|data| data.modified()).is_ok_and(|now| now == time);
            if unused && fs::remove_file(&path).is_ok() {
                self.used = self.used.saturating_sub(bytes);
            }
        }
        true
    }
}

/// Removes what killed processes left half-written. What another one is writing now is younger.
fn remove_abandoned(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let age = entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed().unwrap_or_default());
        if is_leftover(&entry.file_name().to_string_lossy()) && age.is_ok_and(|age| age > ABANDONED) {
            // A file that another process removed meanwhile is gone as well.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Files of the cache with their time of last use and size.
fn list(folder: &Path) -> std::io::Result<BTreeMap<(SystemTime, PathBuf), u64>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION)
            // A file that another process removed meanwhile is none.
            && let Ok(data) = fs::metadata(&path)
        {
            files.insert((data.modified()?, path), data.len());
        }
    }
    Ok(files)
}

fn read(path: &Path, rows: usize, width: usize) -> Option<Vec<f32>> {
    let file = SafetensorsFile::open(path).ok()?;
    let view = file.tensor(TENSOR).ok()?;
    if view.dtype != Dtype::F32 || view.shape != [rows, width] {
        return None;
    }
    if file.metadata().get(CHECKSUM) != Some(&sha256(view.bytes())) {
        return None;
    }
    Some(view.bytes().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
