//! Cases of adamw.

use super::{AdamWStep, cost, cost_of_squares};
use crate::ops::case::{Benchmark, Case, Input, Output, input, walk};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use std::hint::black_box;

/// One update of n parameters.
pub struct AdamWCase {
    n: usize,
    step: AdamWStep,
}

/// All cases: the first step, a late one, weight decay, clipping; sizes around the pieces that threads take.
pub fn cases() -> Vec<AdamWCase> {
    [(1, 1, 0.0, 1.0), (17, 3, 0.01, 0.25), (4096, 1, 0.1, 1.0), (10_001, 1000, 0.01, 0.03)]
        .map(|(n, step, weight_decay, gradient_scale)| case(n, step, weight_decay, gradient_scale))
        .into()
}

/// A step on as many parameters as an adapter of rank 16 on everything has.
pub fn benchmarks() -> Vec<Benchmark<AdamWCase>> {
    vec![Benchmark {
        name: "adamw",
        axes: &["n"],
        points: &[&[3_796_992]],
        passes: &[Pass::Forward],
        case: |at| Some(case(at[0], 3, 0.0, 1.0)),
    }]
}

fn case(n: usize, step: u64, weight_decay: f64, gradient_scale: f64) -> AdamWCase {
    let step = AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, gradient_scale, step };
    AdamWCase { n, step }
}

impl Case for AdamWCase {
    fn name(&self) -> String {
        format!("adamw n={} step={}", self.n, self.step.step)
    }

    fn inputs(&self) -> Vec<Input> {
        let mut inputs =
            Vec::from(["params", "grads", "m", "v"].map(|name| input(&self.name(), name, 1, self.n, 0.25)));
        let first = self.step.step == 1;
        for m in &mut inputs[2].values {
            *m = if first { 0.0 } else { *m };
        }
        for v in &mut inputs[3].values {
            *v = if first { 0.0 } else { v.abs() };
        }
        inputs
    }

    fn forward<D: Device>(&self, _: &D, _: &[D::Buf]) -> Vec<Output<D::Buf>> {
        Vec::new()
    }

    fn training_forward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let mut params = device.duplicate(&inputs[0]);
        let (mut m, mut v) = (device.duplicate(&inputs[2]), device.duplicate(&inputs[3]));
        device.adamw(&mut params, &inputs[1], &mut m, &mut v, &self.step);
        // As f32, to sit beside the matrices.
        let squares = device.upload(1, 1, &[device.sum_of_squares(&inputs[1]) as f32]);
        vec![
            Output::side("params", params),
            Output::side("m", m),
            Output::side("v", v),
            Output::side("sum of squares", squares),
        ]
    }

    fn backward<D: TrainDevice>(&self, _: &D, inputs: &[D::Buf], _: &[D::Buf]) -> Vec<Option<D::Buf>> {
        inputs.iter().map(|_| None).collect()
    }

    /// A dozen roundings of single operations.
    fn bound(&self) -> f64 {
        walk(16)
    }

    fn checks_gradient(&self) -> bool {
        false
    }

    fn cost(&self, pass: Pass) -> Cost {
        match pass {
            Pass::Forward => cost(self.n) + cost_of_squares(self.n),
            Pass::Backward => Cost::ZERO,
        }
    }

    fn timed<D: TrainDevice>(
        &self,
        device: &D,
        inputs: &[D::Buf],
        _: &[D::Buf],
        _: Pass,
        clock: &mut dyn FnMut(&mut dyn FnMut()),
    ) {
        let [mut params, mut m, mut v] = [0, 2, 3].map(|which| device.duplicate(&inputs[which]));
        clock(&mut || {
            black_box(device.sum_of_squares(&inputs[1]));
            device.adamw(&mut params, &inputs[1], &mut m, &mut v, &self.step);
        });
    }
}
