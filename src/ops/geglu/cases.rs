//! Cases of geglu.

use super::{cost, cost_backward};
use crate::ops::case::{Benchmark, Case, Input, Output, input, walk};
use crate::ops::{Cost, Device, Pass, TrainDevice};

/// A matrix of gates.
pub struct GegluCase {
    rows: usize,
    n: usize,
    scale: f32,
}

/// All cases: ragged sizes, and gates into both saturated ends.
pub fn cases() -> Vec<GegluCase> {
    [(1, 1, 1.0), (3, 15, 1.0), (5, 72, 4.0), (2, 2048, 2.0), (3, 4097, 32.0)]
        .map(|(rows, n, scale)| GegluCase { rows, n, scale })
        .into()
}

/// The MLP's width.
pub fn benchmarks() -> Vec<Benchmark<GegluCase>> {
    vec![Benchmark {
        name: "geglu",
        axes: &["rows", "n"],
        points: &[&[420, 2048]],
        passes: &Pass::ALL,
        case: |at| Some(GegluCase { rows: at[0], n: at[1], scale: 2.0 }),
    }]
}

impl Case for GegluCase {
    fn name(&self) -> String {
        format!("geglu rows={} n={} scale={}", self.rows, self.n, self.scale)
    }

    fn inputs(&self) -> Vec<Input> {
        vec![
            input(&self.name(), "gate", self.rows, self.n, self.scale),
            input(&self.name(), "up", self.rows, self.n, 1.0),
        ]
    }

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        vec![Output::new("y", device.geglu(&inputs[0], &inputs[1]))]
    }

    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let (dgate, dup) = device.geglu_backward(&d_outputs[0], &inputs[0], &inputs[1]);
        vec![Some(dgate), Some(dup)]
    }

    /// About 25 roundings of single operations; the argument of the exponential, below 88, turns its own rounding into a
    /// share, but only where the result is far from its largest value.
    fn bound(&self) -> f64 {
        walk(25)
    }

    /// A step of 2⁻⁸·32 is too coarse for a difference.
    fn checks_gradient(&self) -> bool {
        self.scale < 8.0
    }

    fn cost(&self, pass: Pass) -> Cost {
        match pass {
            Pass::Forward => cost(self.rows * self.n),
            Pass::Backward => cost_backward(self.rows * self.n),
        }
    }
}
