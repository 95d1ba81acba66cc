//! Cases of qk_norm_rope.

use super::{cost, cost_backward};
use crate::ops::case::{Benchmark, Case, Input, Output, input, walk, weight};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use crate::weights::{Dtype, TensorView};
use std::hint::black_box;

/// Rows of some heads.
pub struct QkNormRopeCase {
    rows: usize,
    heads: usize,
    w: TensorView,
}

const EPS: f32 = 1e-6;

/// All cases: the head sizes of the tiny models, one that is no multiple of 16 lanes, and Gemma's.
pub fn cases() -> Vec<QkNormRopeCase> {
    [(1, 1, 12), (5, 3, 12), (24, 4, 16), (7, 2, 20), (9, 3, 32), (3, 4, 256), (2, 8, 256)]
        .into_iter()
        .map(|(rows, heads, head_dim)| case(rows, heads, head_dim))
        .collect()
}

/// Query heads.
pub fn benchmarks() -> Vec<Benchmark<QkNormRopeCase>> {
    vec![Benchmark {
        name: "qk_norm_rope",
        axes: &["rows", "heads", "head_dim"],
        points: &[&[420, 4, 256]],
        passes: &Pass::ALL,
        case: |at| (at[2] > 0 && at[2].is_multiple_of(2)).then(|| case(at[0], at[1], at[2])),
    }]
}

fn case(rows: usize, heads: usize, head_dim: usize) -> QkNormRopeCase {
    QkNormRopeCase { rows, heads, w: weight("qk_norm_rope", "w", Dtype::Bf16, &[head_dim], 0.5) }
}

impl QkNormRopeCase {
    fn head_dim(&self) -> usize {
        self.w.shape[0]
    }

    /// Cosines and sines of plausible angles.
    fn rope<D: Device>(&self, device: &D) -> D::Buf {
        let half = self.head_dim() / 2;
        let mut table = Vec::new();
        for row in 0..self.rows {
            let angle = |j: usize| (row * 37 + 5) as f32 * 10_000_f32.powf(-(j as f32) / half as f32);
            table.extend((0..half).map(|j| angle(j).cos()));
            table.extend((0..half).map(|j| angle(j).sin()));
        }
        device.upload(self.rows, self.head_dim(), &table)
    }
}

impl Case for QkNormRopeCase {
    fn name(&self) -> String {
        format!("qk_norm_rope rows={} heads={} head_dim={}", self.rows, self.heads, self.head_dim())
    }

    fn inputs(&self) -> Vec<Input> {
        vec![input(&self.name(), "x", self.rows, self.heads * self.head_dim(), 1.0)]
    }

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        vec![Output::new("y", device.qk_norm_rope(&inputs[0], &w, EPS, &self.rope(device), self.head_dim()))]
    }

    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        let rope = self.rope(device);
        vec![Some(device.qk_norm_rope_backward(&d_outputs[0], &inputs[0], &w, EPS, &rope, self.head_dim()))]
    }

    /// As norm's, and the rotation's three.
    fn bound(&self) -> f64 {
        walk(self.head_dim() / 16 + 19)
    }

    fn cost(&self, pass: Pass) -> Cost {
        let of = match pass {
            Pass::Forward => cost,
            Pass::Backward => cost_backward,
        };
        of(self.rows, self.heads, self.head_dim())
    }

    fn timed<D: TrainDevice>(
        &self,
        device: &D,
        inputs: &[D::Buf],
        d_outputs: &[D::Buf],
        pass: Pass,
        clock: &mut dyn FnMut(&mut dyn FnMut()),
    ) {
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        let (x, rope, width) = (&inputs[0], &self.rope(device), self.head_dim());
        match pass {
            Pass::Forward => clock(&mut || drop(black_box(device.qk_norm_rope(x, &w, EPS, rope, width)))),
            Pass::Backward => {
                let dy = &d_outputs[0];
                clock(&mut || drop(black_box(device.qk_norm_rope_backward(dy, x, &w, EPS, rope, width))));
            }
        }
    }
}
