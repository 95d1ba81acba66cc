//! embed on the CPU: rows are widened straight from the map.

use super::Embed;
use crate::cpu::{Cpu, CpuBuf, CpuWeight};

impl Embed for Cpu {
    fn embed(&self, table: &CpuWeight, ids: &[u32], scale: f32) -> CpuBuf {
        self.rows(ids.len(), table.cols(), |i, out| table.scaled_row(ids[i] as usize, scale, out))
    }
}
