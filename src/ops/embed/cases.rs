//! Cases of embed.

use super::cost;
use crate::ops::case::{Benchmark, Case, Input, Output, weight};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use crate::weights::{Dtype, TensorView};
use std::hint::black_box;

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
        .map(|(vocabulary, tokens, hidden, dtype)| case(vocabulary, tokens, hidden, dtype))
        .collect()
}

/// Rows from all over a table.
pub fn benchmarks() -> Vec<Benchmark<EmbedCase>> {
    vec![Benchmark {
        name: "embed",
        axes: &["rows", "hidden", "vocab"],
        points: &[&[420, 640, 8192]],
        passes: &[Pass::Forward],
        case: |at| Some(case(at[2], at[0], at[1], Dtype::Bf16)),
    }]
}

fn case(vocabulary: usize, tokens: usize, hidden: usize, dtype: Dtype) -> EmbedCase {
    EmbedCase {
        table: weight("embed", "table", dtype, &[vocabulary, hidden], 1.0),
        ids: (0..tokens).map(|i| (i * i * 31 + 6) as u32 % vocabulary as u32).collect(),
        scale: (hidden as f32).sqrt(),
    }
}

impl Case for EmbedCase {
    fn name(&self) -> String {
        format!("embed tokens={} table={:?} {:?}", self.ids.len(), self.table.shape, self.table.dtype)
    }

    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn forward<D: Device>(&self, device: &D, _: &[D::Buf]) -> Vec<Output<D::Buf>> {
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

    fn cost(&self, pass: Pass) -> Cost {
        match pass {
            Pass::Forward => cost(self.ids.len(), self.table.shape[1], self.table.dtype.size()),
            Pass::Backward => Cost::ZERO,
        }
    }

    fn timed<D: TrainDevice>(
        &self,
        device: &D,
        _: &[D::Buf],
        _: &[D::Buf],
        _: Pass,
        clock: &mut dyn FnMut(&mut dyn FnMut()),
    ) {
        let table = device.weight(&self.table).expect("a table in bf16 or f32");
        clock(&mut || drop(black_box(device.embed(&table, &self.ids, self.scale))));
    }
}
