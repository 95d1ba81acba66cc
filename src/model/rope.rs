//! Rotary tables: cosines and sines of every row's angles, for one layer kind.

use crate::ops::Backend;
use crate::weights::Rope;
use std::sync::{Arc, Mutex, PoisonError};

/// Fewest positions of a table.
const FEWEST: usize = 512;

/// The table of one layer kind for every position met so far, on the device: batches take their rows from it, so that angles are
/// computed once and not in every step.
pub struct RopeRows<B> {
    table: Mutex<Option<Arc<B>>>,
}

impl<B> Default for RopeRows<B> {
    fn default() -> Self {
        Self { table: Mutex::default() }
    }
}

impl<B: Send + Sync> RopeRows<B> {
    /// `[positions.len(), head_dim]`, as [`rope_table`] gives them.
    pub fn at<D: Backend<Buf = B>>(&self, device: &D, positions: &[u32], rope: &Rope, head_dim: usize) -> B {
        let needed = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let table = {
            let mut held = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            match &*held {
                Some(table) if device.shape(table).0 >= needed => Arc::clone(table),
                _ => {
                    let count = needed.next_power_of_two().max(FEWEST);
                    let every: Vec<u32> = (0..count as u32).collect();
                    let table = Arc::new(device.upload(count, head_dim, &rope_table(&every, rope, head_dim)));
                    Arc::clone(held.insert(table))
                }
            }
        };
        device.gather_rows(&table, positions)
    }
}

/// `[positions.len(), head_dim]` row-major: cosines of the row's head_dim/2 angles, then their sines.
///
/// Inverse frequencies and angles are rounded to f32 as Hugging Face computes them (an angle of position 700 is off by up to
/// 3e-5 otherwise); the functions themselves are evaluated in f64, by code of this program rather than the system's mathematics
/// library, so that every machine gets the same bits.
pub fn rope_table(positions: &[u32], rope: &Rope, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let inverse: Vec<f32> = (0..half)
        .map(|j| {
            let exponent = (2 * j) as f32 / head_dim as f32;
            let power = libm::pow(rope.theta, f64::from(exponent)) as f32;
            (1.0 / power) / rope.factor as f32
        })
        .collect();
    let mut table = vec![0.0; positions.len() * head_dim];
    for (row, &position) in table.chunks_exact_mut(head_dim).zip(positions) {
        for (j, &frequency) in inverse.iter().enumerate() {
            let angle = f64::from(position as f32 * frequency);
            row[j] = libm::cos(angle) as f32;
            row[half + j] = libm::sin(angle) as f32;
        }
    }
    table
}
