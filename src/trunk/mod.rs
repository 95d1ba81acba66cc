//! The trunk cache: hidden states that enter the lowest adapted layer.
//!
//! Below that layer nothing is trained, so the hidden state of a prompt never changes: later epochs, evaluations and arms
//! with the same lowest layer start from the stored one. Values are kept as the f32 that the model computed, and a row's bits do not depend on
//! the batch, so results with the cache are the bits without it. Keys and values of the layers above are not kept: those layers'
//! projections may be adapted.
//!
//! An entry is one tree of a batch (a shared prefix and its suffixes), `[rows, hidden]`. It is looked for in memory (`memory`), then
//! on disk (`disk`), where it outlives the process and is shared by several. Memory never holds more than its
//! budget; the disk may by what processes that write at the same time store before they look at each other's files again.

mod disk;
mod memory;

use crate::batch::PackedBatch;
use crate::digest::{Sha256, hex};
use disk::Disk;
use memory::Memory;
use sha2::Digest;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What decides the bits of a hidden state, apart from tokens and layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrunkIdentity {
    /// Fingerprint of the model's weights and configuration.
    pub model: String,
    /// Rounding of √hidden.
    pub embed_scale: String,
    /// The back end's unit, e.g. `cpu f32`.
    pub unit: String,
}

/// How much may be kept where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrunkBudget {
    /// Bytes in memory; 0 keeps nothing there.
    pub memory: u64,
    /// Bytes on disk; 0 keeps nothing there.
    pub disk: u64,
    /// Folder of the files.
    pub folder: PathBuf,
}

/// Where entries were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrunkCounts {
    /// In memory.
    pub memory: u64,
    /// On disk.
    pub disk: u64,
    /// Nowhere: computed.
    pub computed: u64,
}

/// Stored hidden states of one model on one unit.
pub struct TrunkCache {
    identity: TrunkIdentity,
    memory: Mutex<Memory>,
    disk: Option<Mutex<Disk>>,
    found_in_memory: AtomicU64,
    found_on_disk: AtomicU64,
    computed: AtomicU64,
}

impl TrunkCache {
    /// An empty cache in memory, and what the folder holds already.
    ///
    /// # Errors
    /// A folder that cannot be made or listed.
    pub fn new(identity: TrunkIdentity, budget: &TrunkBudget) -> crate::Result<Self> {
        let disk = if budget.disk > 0 { Some(Mutex::new(Disk::open(&budget.folder, budget.disk)?)) } else { None };
        Ok(Self {
            identity,
            memory: Mutex::new(Memory::new(budget.memory)),
            disk,
            found_in_memory: AtomicU64::new(0),
            found_on_disk: AtomicU64::new(0),
            computed: AtomicU64::new(0),
        })
    }

    /// Keys of a batch's trees for hidden states that enter `layer`, with the number of rows of each.
    pub fn keys(&self, batch: &PackedBatch, layer: usize) -> Vec<(String, usize)> {
        let trees = batch.trees.iter().map(|tree| {
            let end = tree.suffixes.last().map_or(tree.prefix.end, |suffix| suffix.end);
            let rows = tree.prefix.start..end;
            let mut hash = Sha256::new();
            for text in [&self.identity.model, &self.identity.embed_scale, &self.identity.unit] {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
            let lengths = std::iter::once(tree.prefix.len()).chain(tree.suffixes.iter().map(ExactSizeIterator::len));
            for number in [layer, tree.suffixes.len()].into_iter().chain(lengths) {
                hash.update((number as u64).to_le_bytes());
            }
            for id in &batch.ids[rows.clone()] {
                hash.update(id.to_le_bytes());
            }
            (hex(hash), rows.len())
        });
        trees.collect()
    }

    /// Values of every tree, one after the other, if all are there. `width` is the hidden size.
    pub fn get(&self, keys: &[(String, usize)], width: usize) -> Option<Vec<f32>> {
        let mut all = Vec::with_capacity(keys.iter().map(|(_, rows)| rows * width).sum());
        for (key, rows) in keys {
            match self.find(key, *rows, width) {
                Some(values) => all.extend_from_slice(&values),
                None => {
                    self.computed.fetch_add(keys.len() as u64, Ordering::Relaxed);
                    return None;
                }
            }
        }
        Some(all)
    }

    fn find(&self, key: &str, rows: usize, width: usize) -> Option<Arc<[f32]>> {
        if let Some(values) = lock(&self.memory).get(key) {
            self.found_in_memory.fetch_add(1, Ordering::Relaxed);
            return Some(values);
        }
        let values: Arc<[f32]> = lock(self.disk.as_ref()?).get(key, rows, width)?.into();
        self.found_on_disk.fetch_add(1, Ordering::Relaxed);
        lock(&self.memory).put(key, &values);
        Some(values)
    }

    /// Stores the trees of `values` `[all rows, width]`, as far as the budgets allow. A disk that refuses is left alone from
    /// then on, with a warning: the cache only saves time.
    pub fn put(&self, keys: &[(String, usize)], width: usize, values: &[f32]) {
        let mut rest = values;
        for (key, rows) in keys {
            let (tree, following) = rest.split_at(rows * width);
            rest = following;
            lock(&self.memory).put(key, &Arc::from(tree));
            if let Some(disk) = &self.disk {
                lock(disk).put(key, *rows, width, tree);
            }
        }
    }

    /// How often entries were found.
    pub fn counts(&self) -> TrunkCounts {
        TrunkCounts {
            memory: self.found_in_memory.load(Ordering::Relaxed),
            disk: self.found_on_disk.load(Ordering::Relaxed),
            computed: self.computed.load(Ordering::Relaxed),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
