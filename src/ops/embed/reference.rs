//! embed in f64.

use super::Embed;
use crate::ops::reference::{Matrix, Reference, ReferenceWeight};

impl Embed for Reference {
    fn embed(&self, table: &ReferenceWeight, ids: &[u32], scale: f32) -> Matrix {
        let data = ids.iter().flat_map(|&id| table.row(id as usize)).map(|value| value * f64::from(scale)).collect();
        Matrix { rows: ids.len(), cols: table.cols(), data }
    }
}
