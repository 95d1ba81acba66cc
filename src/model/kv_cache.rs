//! Keys and values of tokens that were already run, so that a prompt goes on by its new tokens alone.
//!
//! One sequence: rows 0, 1, 2, … are its positions. A pass over new tokens writes their rows and attends to all rows so far; scores lie
//! at the same columns as in a pass over the whole sequence, so results are the same bits.

use crate::ops::Backend;
use crate::weights::TextConfig;

/// Rotated keys and values of every layer, `[capacity, kv_heads·head_dim]` each.
pub struct KvCache<D: Backend> {
    layers: Vec<(D::Buf, D::Buf)>,
    rows: usize,
    capacity: usize,
}

impl<D: Backend> KvCache<D> {
    /// Room for `capacity` tokens.
    pub fn new(device: &D, config: &TextConfig, layers: usize, capacity: usize) -> Self {
        let width = config.num_key_value_heads * config.head_dim;
        let buffers = || (device.zeros(capacity, width), device.zeros(capacity, width));
        Self { layers: (0..layers).map(|_| buffers()).collect(), rows: 0, capacity }
    }

    /// Tokens held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Puts the keys and values of a layer's new tokens behind those held, and returns all of the layer's.
    pub(super) fn extend(&mut self, device: &D, layer: usize, k: &D::Buf, v: &D::Buf) -> &(D::Buf, D::Buf) {
        let first = self.rows;
        let rows: Vec<u32> = (first..first + device.shape(k).0).map(|row| row as u32).collect();
        let (keys, values) = &mut self.layers[layer];
        // The rows are still zero.
        device.scatter_add_rows(keys, k, &rows);
        device.scatter_add_rows(values, v, &rows);
        &self.layers[layer]
    }

    /// Counts the tokens of a pass through all layers as held.
    pub(super) fn advance(&mut self, rows: usize) {
        self.rows += rows;
    }
}
