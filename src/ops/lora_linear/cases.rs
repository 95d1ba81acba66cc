//! Cases of lora_linear.

use super::{Dropout, LinearOutput, LoraTerm, Part, PartShape, Store, cost, cost_backward};
use crate::ops::case::{Benchmark, Case, Input, Output, fan_in, input, walk, weight};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use crate::weights::{Dtype, TensorView};
use std::hint::black_box;

/// One input through some projections.
pub struct LoraLinearCase {
    rows: usize,
    inputs: usize,
    /// (W, rank of its branch)
    parts: Vec<(TensorView, Option<usize>)>,
    dropout: f32,
    /// (group's ordinal, row within the group)
    dropout_rows: Vec<(u32, u32)>,
}

/// Unused parameters before every A and B: offsets are whatever the layout gives, and what lies between stays untouched.
pub const GAP: usize = 3;

const SCALE: f32 = 1.5;

/// A case; `parts` are outputs and rank of each.
pub(in crate::ops) fn case(
    rows: usize,
    inputs: usize,
    parts: &[(usize, Option<usize>)],
    dropout: f32,
    dtype: Dtype,
) -> LoraLinearCase {
    let parts = parts
        .iter()
        .map(|&(outputs, rank)| {
            (weight("lora_linear", &format!("w{outputs}"), dtype, &[outputs, inputs], fan_in(inputs)), rank)
        })
        .collect();
    let dropout_rows = (0..rows as u32).map(|row| (row / 4, row % 4 + 10)).collect();
    LoraLinearCase { rows, inputs, parts, dropout, dropout_rows }
}

/// All cases: one to three parts, with and without branches, ranks 1 to 64, dropout, f32 weights, Gemma's widths.
pub fn cases() -> Vec<LoraLinearCase> {
    let (bf16, f32) = (Dtype::Bf16, Dtype::F32);
    vec![
        case(1, 1, &[(1, None)], 0.0, bf16),
        case(1, 48, &[(72, Some(4))], 0.0, bf16),
        case(5, 17, &[(9, Some(1)), (5, None), (3, Some(2))], 0.0, f32),
        case(24, 48, &[(64, Some(4)), (32, Some(4)), (32, Some(4))], 0.0, bf16),
        case(13, 72, &[(48, None)], 0.0, bf16),
        case(7, 41, &[(33, Some(16)), (35, Some(8))], 0.0, bf16),
        case(9, 40, &[(24, Some(3)), (20, Some(5)), (12, None)], 0.25, bf16),
        case(6, 21, &[(24, Some(64))], 0.5, f32),
        case(33, 640, &[(1024, Some(16)), (256, Some(16)), (256, Some(16))], 0.0, bf16),
        case(3, 1152, &[(640, Some(64))], 0.1, bf16),
        case(2, 2560, &[(1024, Some(8)), (512, None)], 0.0, bf16),
    ]
}

/// Cases of back ends that work in tiles: rows around 16, 64 and 128, outputs and inputs around 64, every rank of a step, one to three parts
/// with and without branches, and the forward alone.
pub fn tiled() -> Vec<LoraLinearCase> {
    let bf16 = Dtype::Bf16;
    let mut all = Vec::new();
    for (rows, inputs, outputs) in [
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
        all.push(case(rows, inputs, &[(outputs, None)], 0.0, bf16));
        all.push(case(rows, inputs, &[(outputs, Some(16)), (outputs / 2 + 1, Some(8))], 0.0, bf16));
    }
    for rank in [1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128] {
        all.push(case(20, 70, &[(50, Some(rank))], 0.0, bf16));
    }
    for ranks in [[None, Some(4), None], [Some(64), None, Some(1)], [Some(16); 3], [Some(70), Some(3), Some(128)]] {
        let parts = [(96, ranks[0]), (32, ranks[1]), (33, ranks[2])];
        all.push(case(37, 90, &parts, 0.0, bf16));
        all.push(case(1, 90, &parts, 0.0, bf16));
    }
    // Enough of both for the largest tile.
    all.push(case(1300, 64, &[(2050, Some(16))], 0.0, bf16));
    all
}

/// The products of a layer: with their branches as training runs them, and each alone (rank 0), which other libraries can be
/// held against. Parts of no outputs are left out.
pub fn benchmarks() -> Vec<Benchmark<LoraLinearCase>> {
    vec![Benchmark {
        name: "lora_linear",
        axes: &["rows", "in", "out", "out2", "out3", "rank"],
        points: &[
            &[420, 640, 1024, 256, 256, 16],
            &[420, 1024, 640, 0, 0, 16],
            &[420, 640, 2048, 2048, 0, 16],
            &[420, 2048, 640, 0, 0, 16],
            &[420, 640, 1024, 0, 0, 0],
            &[420, 640, 256, 0, 0, 0],
            &[420, 1024, 640, 0, 0, 0],
            &[420, 640, 2048, 0, 0, 0],
            &[420, 2048, 640, 0, 0, 0],
        ],
        passes: &Pass::ALL,
        case: |at| {
            let rank = (at[5] > 0).then_some(at[5]);
            let parts: Vec<_> = at[2..5].iter().filter(|&&out| out > 0).map(|&out| (out, rank)).collect();
            (!parts.is_empty() && at[1] > 0).then(|| case(at[0], at[1], &parts, 0.0, Dtype::Bf16))
        },
    }]
}

impl LoraLinearCase {
    /// Rows and columns of x.
    pub(in crate::ops) fn extent(&self) -> (usize, usize) {
        (self.rows, self.inputs)
    }

    /// As the model keeps them: a product alone (o, down) in full, several of one input (q, k, v) rounded.
    pub fn store(&self) -> Store {
        if self.parts.len() == 1 { Store::Full } else { Store::Rounded }
    }

    /// Whether it has active dropout, which is training's.
    pub fn drops(&self) -> bool {
        self.dropout > 0.0
    }

    /// Of every part.
    pub(in crate::ops) fn shapes(&self) -> Vec<PartShape> {
        let shape = |(weight, rank): &(TensorView, Option<usize>)| PartShape {
            outputs: weight.shape[0],
            rank: rank.unwrap_or(0),
            weight_bytes: weight.dtype.size(),
        };
        self.parts.iter().map(shape).collect()
    }

    /// Offsets of A and B of every adapted part, and the length of the flat buffer.
    pub fn layout(&self) -> (Vec<Option<(usize, usize)>>, usize) {
        let mut end = 0;
        let mut place = |length: usize| {
            let start = end + GAP;
            end = start + length;
            start
        };
        let offsets = self
            .parts
            .iter()
            .map(|(weight, rank)| rank.map(|rank| (place(rank * self.inputs), place(rank * weight.shape[0]))))
            .collect();
        (offsets, end + GAP)
    }

    /// Calls `then` with the parts as a device sees them.
    pub fn with_parts<D: Device, T>(&self, device: &D, params: &D::Buf, then: impl FnOnce(&[Part<'_, D>]) -> T) -> T {
        let weights: Vec<D::Weight> =
            self.parts.iter().map(|(view, _)| device.weight(view).expect("a weight in bf16 or f32")).collect();
        let (offsets, _) = self.layout();
        let parts: Vec<Part<'_, D>> = weights
            .iter()
            .enumerate()
            .map(|(module, weight)| Part {
                weight,
                lora: offsets[module].map(|(a, b)| LoraTerm {
                    params,
                    a,
                    b,
                    rank: self.parts[module].1.unwrap_or(0),
                    scale: SCALE,
                    dropout: (self.dropout > 0.0).then_some(Dropout {
                        p: self.dropout,
                        seed: 0x1234_5678_9abc,
                        step: 3,
                        layer: 2,
                        module: module as u32,
                        rows: &self.dropout_rows,
                    }),
                }),
            })
            .collect();
        then(&parts)
    }
}

impl Case for LoraLinearCase {
    fn name(&self) -> String {
        let parts: Vec<String> =
            self.parts.iter().map(|(w, rank)| format!("{}r{}", w.shape[0], rank.unwrap_or(0))).collect();
        format!("lora_linear rows={} in={} out={} dropout={}", self.rows, self.inputs, parts.join("+"), self.dropout)
    }

    fn inputs(&self) -> Vec<Input> {
        let name = self.name();
        let params = input(&name, "params", 1, self.layout().1, fan_in(self.inputs));
        vec![input(&name, "x", self.rows, self.inputs, 1.0), params]
    }

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let LinearOutput { y, su } =
            self.with_parts(device, &inputs[1], |parts| device.lora_linear(&inputs[0], parts, self.store()));
        let y = y.into_iter().map(|y| Output::new("y", y));
        y.chain(su.into_iter().flatten().map(|su| Output::side("su", su))).collect()
    }

    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let (x, params) = (&inputs[0], &inputs[1]);
        self.with_parts(device, params, |parts| {
            let su = device.lora_linear(x, parts, self.store()).su;
            let dy: Vec<&D::Buf> = d_outputs.iter().collect();
            let mut grads = device.zeros(1, self.layout().1);
            let dx = device.lora_linear_backward(&dy, Some(x), &su, parts, Some(&mut grads), true);
            vec![dx, Some(grads)]
        })
    }

    /// The longest chain: a product over `in`, `out` or the rows, after another over `in` or `out`.
    fn bound(&self) -> f64 {
        let outputs: usize = self.parts.iter().map(|(weight, _)| weight.shape[0]).sum();
        walk(self.inputs + outputs + self.rows + 64)
    }

    fn checks_gradient(&self) -> bool {
        self.inputs < 100
    }

    fn plain_product(&self) -> Option<(usize, usize, &TensorView)> {
        match &self.parts[..] {
            [(weight, None)] => Some((self.rows, self.inputs, weight)),
            _ => None,
        }
    }

    fn cost(&self, pass: Pass) -> Cost {
        match pass {
            Pass::Forward => cost(self.rows, self.inputs, &self.shapes()),
            Pass::Backward => cost_backward(self.rows, self.inputs, &self.shapes(), true, true),
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
        let (x, params) = (&inputs[0], &inputs[1]);
        self.with_parts(device, params, |parts| match pass {
            Pass::Forward => clock(&mut || _ = black_box(device.lora_linear(x, parts, self.store()).y)),
            Pass::Backward => {
                let su = device.lora_linear(x, parts, self.store()).su;
                let dy: Vec<&D::Buf> = d_outputs.iter().collect();
                let mut grads = device.zeros(1, self.layout().1);
                clock(&mut || {
                    drop(black_box(device.lora_linear_backward(&dy, Some(x), &su, parts, Some(&mut grads), true)));
                });
            }
        });
    }
}
