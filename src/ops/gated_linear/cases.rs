//! Cases of gated_linear.

use super::{GatedOutput, cost};
use crate::ops::case::{Benchmark, Case, Input, Output};
use crate::ops::lora_linear::{self, Part, cases::LoraLinearCase};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use crate::weights::Dtype;

/// One input through gate and up.
pub struct GatedLinearCase {
    projections: LoraLinearCase,
    /// Whether gate and up are kept.
    keep: bool,
}

fn case(rows: usize, inputs: usize, n: usize, ranks: [Option<usize>; 2], dtype: Dtype, keep: bool) -> GatedLinearCase {
    let parts = ranks.map(|rank| (n, rank));
    GatedLinearCase { projections: lora_linear::cases::case(rows, inputs, &parts, 0.0, dtype), keep }
}

/// All cases: with and without branches, ragged in every dimension, wider than a band, f32 weights, Gemma's widths.
pub fn cases() -> Vec<GatedLinearCase> {
    let (bf16, f32) = (Dtype::Bf16, Dtype::F32);
    vec![
        case(1, 1, 1, [None, None], bf16, false),
        case(5, 17, 9, [Some(1), None], f32, true),
        case(24, 48, 72, [Some(4), Some(4)], bf16, true),
        case(13, 40, 129, [Some(3), Some(16)], bf16, false),
        case(7, 41, 600, [None, Some(8)], f32, false),
        case(33, 640, 2048, [Some(16), Some(16)], bf16, true),
        case(150, 72, 530, [Some(16), Some(16)], bf16, false),
        case(2, 2560, 1030, [Some(64), Some(64)], bf16, true),
    ]
}

/// Cases of back ends that work in tiles, as evaluation runs them.
pub fn tiled() -> Vec<GatedLinearCase> {
    let mut all = Vec::new();
    for (rows, inputs, n) in [
        (1, 64, 64),
        (2, 1, 1),
        (15, 63, 65),
        (16, 65, 63),
        (17, 128, 127),
        (31, 40, 129),
        (33, 200, 20),
        (63, 72, 192),
        (64, 320, 66),
        (65, 12, 250),
        (127, 130, 128),
        (129, 64, 10),
    ] {
        for ranks in [[None, None], [Some(16), Some(16)], [Some(3), None]] {
            all.push(case(rows, inputs, n, ranks, Dtype::Bf16, false));
        }
    }
    for ranks in [[None, Some(64)], [Some(65), Some(1)], [Some(17), Some(128)], [Some(32), Some(33)]] {
        all.push(case(20, 70, 50, ranks, Dtype::Bf16, false));
    }
    all.push(case(1300, 64, 2050, [Some(16), Some(16)], Dtype::Bf16, false));
    all
}

/// The MLP's first half, as training and as evaluation run it.
pub fn benchmarks() -> Vec<Benchmark<GatedLinearCase>> {
    vec![Benchmark {
        name: "gated_linear",
        axes: &["rows", "in", "n", "rank", "keep"],
        points: &[&[420, 640, 2048, 16, 1], &[420, 640, 2048, 16, 0]],
        passes: &[Pass::Forward],
        case: |at| {
            let rank = (at[3] > 0).then_some(at[3]);
            (at[1] > 0 && at[2] > 0).then(|| case(at[0], at[1], at[2], [rank; 2], Dtype::Bf16, at[4] > 0))
        },
    }]
}

impl GatedLinearCase {
    /// Calls `then` with x and the parts as a device sees them.
    pub fn with_parts<D: Device, T>(
        &self,
        device: &D,
        inputs: &[D::Buf],
        then: impl FnOnce(&D::Buf, &[Part<'_, D>; 2]) -> T,
    ) -> T {
        self.projections
            .with_parts(device, &inputs[1], |parts| then(&inputs[0], parts.try_into().expect("gate and up")))
    }

    fn run<D: Device>(&self, device: &D, inputs: &[D::Buf], keep: bool) -> GatedOutput<D::Buf> {
        self.with_parts(device, inputs, |x, parts| device.gated_linear(x, parts, keep))
    }
}

impl Case for GatedLinearCase {
    fn name(&self) -> String {
        format!("gated_linear keep={} {}", self.keep, self.projections.name())
    }

    fn inputs(&self) -> Vec<Input> {
        self.projections.inputs()
    }

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let GatedOutput { act, kept } = self.run(device, inputs, self.keep);
        let mut outputs = vec![Output::new("act", act)];
        if let Some(kept) = kept {
            outputs.extend([Output::side("gate", kept.gate), Output::side("up", kept.up)]);
            outputs.extend(kept.su.into_iter().flatten().map(|su| Output::side("su", su)));
        }
        outputs
    }

    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let kept = self.run(device, inputs, true).kept.expect("it was asked for");
        let (dgate, dup) = device.geglu_backward(&d_outputs[0], &kept.gate, &kept.up);
        self.projections.with_parts(device, &inputs[1], |parts| {
            let mut grads = device.zeros(1, self.projections.layout().1);
            let x = Some(&inputs[0]);
            let dx = device.lora_linear_backward(&[&dgate, &dup], x, &kept.su, parts, Some(&mut grads), true);
            vec![dx, Some(grads)]
        })
    }

    /// That of the projections, and the gate's roundings.
    fn bound(&self) -> f64 {
        2.0 * self.projections.bound()
    }

    fn checks_gradient(&self) -> bool {
        self.projections.checks_gradient()
    }

    fn cost(&self, pass: Pass) -> Cost {
        match pass {
            Pass::Forward => {
                let (rows, inputs) = self.projections.extent();
                cost(rows, inputs, &self.projections.shapes(), self.keep)
            }
            // Made of two operations that count for themselves.
            Pass::Backward => Cost::ZERO,
        }
    }
}
