//! Cases of embed.

use crate::ops::TrainDevice;
use crate::ops::case::{Case, Input, Output, weight};
use crate::weights::{Dtype, TensorView};

/// Rows of a table.
pub struct EmbedCase {
    table: TensorView,
    ids: Vec<u32>,
    scale: f32,
}

/// All cases.
pub fn cases() -> Vec<EmbedCase> {
    [(7, 1, 1), (100, 5, 48), (100, 31, 41), (300, 7, 640)]
        .into_iter()
        .flat_map(|(vocabulary, tokens, hidden)| {
            [Dtype::Bf16, Dtype::F32].map(|dtype| (vocabulary, tokens, hidden, dtype))
        })
        .map(|(vocabulary, tokens, hidden, dtype)| EmbedCase {
            table: weight("embed", "table", dtype, &[vocabulary, hidden], 1.0),
            ids: (0..tokens).map(|i| (i * i * 31 + 6) as u32 % vocabulary as u32).collect(),
            scale: (hidden as f32).sqrt(),
        })
        .collect()
}

impl Case for EmbedCase {
    fn name(&self) -> String {
        format!("embed tokens={} table={:?} {:?}", self.ids.len(), self.table.shape, self.table.dtype)
    }

    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn forward<D: TrainDevice>(&self, device: &D, _: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let table = device.weight(&self.table).expect("a table in bf16 or f32");
        vec![Output::side("h", device.embed(&table, &self.ids, self.scale))]
    }

    fn backward<D: TrainDevice>(&self, _: &D, _: &[D::Buf], _: &[D::Buf]) -> Vec<Option<D::Buf>> {
        Vec::new()
    }

    /// One rounding.
    fn bound(&self) -> f64 {
        2.0_f64.powi(-24)
    }
}
