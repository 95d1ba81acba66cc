//! Entries in memory, up to a budget. What is there stays: passes over the data come round to every entry equally often, so
//! giving one up for another gains nothing, and giving up the oldest of a round trip that does not fit would lose all.

use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct Memory {
    budget: u64,
    used: u64,
    entries: HashMap<String, Arc<[f32]>>,
}

impl Memory {
    pub fn new(budget: u64) -> Self {
        Self { budget, used: 0, entries: HashMap::new() }
    }

    pub fn get(&self, key: &str) -> Option<Arc<[f32]>> {
        self.entries.get(key).cloned()
    }

    /// Keeps an entry if it fits.
    pub fn put(&mut self, key: &str, values: &Arc<[f32]>) {
        let bytes = size_of_val::<[f32]>(values) as u64;
        if bytes <= self.budget - self.used && !self.entries.contains_key(key) {
            self.used += bytes;
            self.entries.insert(key.to_owned(), Arc::clone(values));
        }
    }
}
