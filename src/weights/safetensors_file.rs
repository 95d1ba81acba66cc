//! One safetensors file, memory-mapped read-only.
//!
//! The header is checked in full at opening (`header.rs`), so that a view can never leave the map. Data is not read:
//! NaN or infinity in it is found by whoever computes with it. Shrinking a mapped file makes the system kill a process
//! that touches the lost pages; the length is therefore compared at opening, and again whenever a tensor is looked up.

use super::{
    Error, TensorView,
    header::{self, Header},
};
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A mapped and checked file. Views keep the map alive on their own.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    map: Arc<Mmap>,
    header: Header,
}

impl SafetensorsFile {
    /// Maps `path` and checks its header.
    ///
    /// # Errors
    /// One variant of [`Error`] for every way in which a file can break the format, each naming the file and, where
    /// there is one, the tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        // Asked of the path first: opening a pipe would block.
        let kind = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        if !kind.is_file() {
            return Err(Error::NotAFile { path: name });
        }
        let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let length = file.metadata().map_err(|source| Error::io("open", path, source))?.len();
        if length < 8 {
            return Err(Error::TooShort { file: name, length });
        }
        // SAFETY: the map is private and read-only and nothing here writes to the file. Another process could; bytes
        // that change are still bytes, as no view is read at a type with invalid values. A file that shrinks is
        // guarded against by comparing lengths here and in `tensor`.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io("map", path, source))?;
        if map.len() as u64 != length {
            return Err(Error::Changed { file: name, expected: length, found: map.len() as u64 });
        }
        let mut start = [0; 8];
        start.copy_from_slice(&map[..8]);
        let header_length = header::header_length(&name, start, length)?;
        let header = header::parse(&name, &map[8..8 + header_length], length)?;
        Ok(Self { path: path.into(), file, map: Arc::new(map), header })
    }

    /// The view of one tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::WrongDtype`] for a dtype that the engine does not read; [`Error::Changed`]
    /// if the file has another length than when it was opened.
    pub fn tensor(&self, name: &str) -> Result<TensorView, Error> {
        let Some((stored, entry)) = self.header.entries.get_key_value(name) else {
            return Err(Error::MissingTensor {
                place: self.path.display().to_string(),
                tensor: name.into(),
                nearest: super::names::nearest(name, self.names()),
            });
        };
        let Some(dtype) = entry.dtype() else {
            return Err(Error::WrongDtype {
                file: self.path.display().to_string(),
                tensor: name.into(),
                expected: "F32, BF16, F16, I64 or U8",
                found: entry.dtype.clone(),
            });
        };
        self.check_length()?;
        Ok(TensorView {
            map: Arc::clone(&self.map),
            start: entry.start,
            length: entry.length,
            dtype,
            shape: entry.shape.clone(),
            name: stored.as_str().into(),
        })
    }

    /// Whether a tensor of that stored name exists.
    pub fn has(&self, name: &str) -> bool {
        self.header.entries.contains_key(name)
    }

    /// Stored names in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.entries.keys().map(String::as_str)
    }

    /// Shape and dtype (as stored) of a tensor, without asking whether the engine reads it.
    pub fn entry(&self, name: &str) -> Option<(&[usize], &str)> {
        self.header.entries.get(name).map(|entry| (entry.shape.as_slice(), entry.dtype.as_str()))
    }

    /// Blocks of the data, spread evenly over the file, for telling files apart without reading them whole.
    pub(super) fn samples(&self) -> impl Iterator<Item = &[u8]> {
        const BLOCKS: usize = 64;
        const BLOCK: usize = 4096;
        let data = &self.map[..];
        let last = data.len().saturating_sub(BLOCK);
        (0..BLOCKS).map(move |block| {
            let start = last / (BLOCKS - 1) * block;
            &data[start..data.len().min(start + BLOCK)]
        })
    }

    /// The `__metadata__` map; empty if there is none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The path as given at opening.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The eight length bytes and the header, as stored.
    pub(super) fn header_bytes(&self) -> &[u8] {
        &self.map[..self.header.data_start]
    }

    /// Size in bytes and time of the last change, from the open file.
    pub(super) fn status(&self) -> Result<std::fs::Metadata, Error> {
        self.file.metadata().map_err(|source| Error::io("examine", &self.path, source))
    }

    /// Compares the file's length with that at opening.
    pub fn check_length(&self) -> Result<(), Error> {
        let (expected, found) = (self.map.len() as u64, self.status()?.len());
        if expected == found {
            return Ok(());
        }
        Err(Error::Changed { file: self.path.display().to_string(), expected, found })
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
