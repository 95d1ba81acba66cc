//! Cases of norm, norm_add and branch_norm, all three in each.

use super::{cost, cost_add, cost_backward};
use crate::ops::case::{Benchmark, Case, Input, Output, input, walk, weight};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use crate::weights::{Dtype, TensorView};
use std::hint::black_box;

/// Rows of a width.
pub struct NormCase {
    rows: usize,
    w: TensorView,
    /// Scale of x: small enough for ε to count, or as large as residual streams get.
    scale: f32,
    /// Whether `norm_add` is timed, or `norm` and its backward.
    adds: bool,
}

const EPS: f32 = 1e-6;

/// All cases.
pub fn cases() -> Vec<NormCase> {
    [(1, 1, 1.0), (3, 16, 0.001_953_125), (5, 17, 1.0), (2, 48, 1024.0), (24, 40, 1.0), (3, 640, 64.0), (2, 2560, 1.0)]
        .into_iter()
        .map(|(rows, n, scale)| {
            let dtype = if n % 3 == 0 { Dtype::F32 } else { Dtype::Bf16 };
            case(rows, n, dtype, scale, false)
        })
        .collect()
}

/// The residual stream's width.
pub fn benchmarks() -> Vec<Benchmark<NormCase>> {
    let common = Benchmark {
        name: "norm",
        axes: &["rows", "n"],
        points: &[&[420, 640]],
        passes: &Pass::ALL,
        case: |at: &[usize]| Some(case(at[0], at[1], Dtype::Bf16, 1.0, false)),
    };
    let adding = |at: &[usize]| Some(case(at[0], at[1], Dtype::Bf16, 1.0, true));
    vec![Benchmark { name: "norm_add", passes: &[Pass::Forward], case: adding, ..common }, common]
}

fn case(rows: usize, n: usize, dtype: Dtype, scale: f32, adds: bool) -> NormCase {
    NormCase { rows, w: weight("norm", "w", dtype, &[n], 1.0), scale, adds }
}

impl NormCase {
    fn n(&self) -> usize {
        self.w.shape[0]
    }
}

impl Case for NormCase {
    fn name(&self) -> String {
        format!("norm rows={} n={} scale={}", self.rows, self.n(), self.scale)
    }

    fn inputs(&self) -> Vec<Input> {
        ["x", "h"].map(|name| input(&self.name(), name, self.rows, self.n(), self.scale)).into()
    }

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let (x, h) = (&inputs[0], &inputs[1]);
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        vec![
            Output::new("norm", device.norm(x, &w, EPS)),
            Output::new("norm_add", device.norm_add(h, x, &w, EPS)),
            Output::new("branch_norm", device.branch_norm(x, &w, EPS)),
        ]
    }

    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        let mut dy = device.duplicate(&d_outputs[0]);
        device.add_assign(&mut dy, &d_outputs[1]);
        device.add_assign(&mut dy, &d_outputs[2]);
        vec![Some(device.norm_backward(&dy, &inputs[0], &w, EPS)), Some(device.duplicate(&d_outputs[1]))]
    }

    /// n/16 roundings of a lane, the tree, and a dozen of single operations.
    fn bound(&self) -> f64 {
        walk(self.n() / 16 + 16)
    }

    /// With one value the gradient is ε/(x²+ε) of its terms, which are dy·(1+w)·ρ.
    fn cancelling(&self) -> f64 {
        if self.n() == 1 { 4.0 } else { 0.0 }
    }

    fn cost(&self, pass: Pass) -> Cost {
        match pass {
            Pass::Forward if self.adds => cost_add(self.rows, self.n()),
            Pass::Forward => cost(self.rows, self.n()),
            Pass::Backward => cost_backward(self.rows, self.n()),
        }
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
        let (x, h) = (&inputs[0], &inputs[1]);
        match pass {
            Pass::Forward if self.adds => clock(&mut || drop(black_box(device.norm_add(h, x, &w, EPS)))),
            Pass::Forward => clock(&mut || drop(black_box(device.norm(x, &w, EPS)))),
            Pass::Backward => clock(&mut || drop(black_box(device.norm_backward(&d_outputs[0], x, &w, EPS)))),
        }
    }
}
