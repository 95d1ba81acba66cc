//! What a case of an operation is: shapes, seeded inputs, and how to run it on any device. The registries in
//! `ops/*/cases.rs` drive correctness tests, gradient checks and benchmarks alike.
//!
//! Input values lie on a grid of 2⁻¹⁶·scale, so that a finite difference can step by 2⁻⁸·scale without rounding in f32.

use super::{Cost, Device, Pass, TrainDevice};
use crate::weights::{Dtype, TensorView};
use std::hint::black_box;

/// One matrix that goes into a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// As the contract calls it.
    pub name: &'static str,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row-major values in ±2·scale.
    pub values: Vec<f32>,
    /// A power of two.
    pub scale: f32,
}

/// One matrix that comes out.
pub struct Output<B> {
    /// As the contract calls it.
    pub name: &'static str,
    /// The values.
    pub buf: B,
    /// Whether a gradient may come back through it (false for log-sum-exp and the like).
    pub differentiable: bool,
}

impl<B> Output<B> {
    /// An output with a gradient.
    pub fn new(name: &'static str, buf: B) -> Self {
        Self { name, buf, differentiable: true }
    }

    /// An output that nothing differentiates through.
    pub fn side(name: &'static str, buf: B) -> Self {
        Self { name, buf, differentiable: false }
    }
}

/// One case of one operation.
pub trait Case: Sync {
    /// Operation and shape, e.g. `norm rows=3 n=640`.
    fn name(&self) -> String;
    /// The inputs, the same on every call.
    fn inputs(&self) -> Vec<Input>;
    /// The operation's forward on any back end; nothing where the operation exists in training alone.
    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>>;
    /// Its forward as training runs it.
    fn training_forward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        self.forward(device, inputs)
    }
    /// Its backward: one gradient per input (`None`: not differentiated), given one per differentiable output.
    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>>;
    /// How far an f32 back end may be from the reference, as a share of an output's largest value. A random walk of n
    /// roundings, each 2⁻²⁴ of the partial sum, ends within [`walk`]`(n)`; the case says which n and what enlarges it.
    fn bound(&self) -> f64;
    /// Where an output is the difference of terms that cancel altogether (a softmax over one key, a norm of one value): the size
    /// of those terms. The bound is a share of this if the output itself is smaller.
    fn cancelling(&self) -> f64 {
        0.0
    }
    /// Whether it is small enough for finite differences on the reference.
    fn checks_gradient(&self) -> bool {
        true
    }
    /// What a pass costs as [`Case::timed`] runs it, by the contract's own count.
    fn cost(&self, pass: Pass) -> Cost;
    /// Rows, inputs and weight `[out, in]` where the case is nothing but x·Wᵀ, which other libraries compute as well.
    fn plain_product(&self) -> Option<(usize, usize, &TensorView)> {
        None
    }
    /// Calls `clock` with one pass of the operation, to be run as often as it likes; what only prepares it (weights, rotary tables,
    /// the forward that a backward follows) is outside.
    fn timed<D: TrainDevice>(
        &self,
        device: &D,
        inputs: &[D::Buf],
        d_outputs: &[D::Buf],
        pass: Pass,
        clock: &mut dyn FnMut(&mut dyn FnMut()),
    ) {
        match pass {
            Pass::Forward => clock(&mut || drop(black_box(self.training_forward(device, inputs)))),
            Pass::Backward => clock(&mut || drop(black_box(self.backward(device, inputs, d_outputs)))),
        }
    }
}

/// Cases of an operation at sizes that matter for speed.
pub struct Benchmark<C> {
    /// The operation, or the variant of it that is timed.
    pub name: &'static str,
    /// What its axes are.
    pub axes: &'static [&'static str],
    /// The sizes it runs at unless told otherwise: one value per axis each, Gemma 3 270M's with 420 rows (the prefix of 300
    /// tokens and five suffixes of 24 of the peers' workload).
    pub points: &'static [&'static [usize]],
    /// What can be timed.
    pub passes: &'static [Pass],
    /// The case at a point; `None` where it makes no sense.
    pub case: fn(&[usize]) -> Option<C>,
}

/// Bound of the error of a chain of `roundings` roundings to f32 relative to the largest result among many:
/// 4·√n·2⁻²⁴ (four standard deviations), and at least that of 16 roundings.
pub fn walk(roundings: usize) -> f64 {
    4.0 * (roundings.max(16) as f64).sqrt() * 2.0_f64.powi(-24)
}

/// A seeded generator of values (SplitMix64).
#[derive(Clone, Debug)]
pub struct Values(u64);

impl Values {
    /// From a name, so that every input of every case differs.
    pub fn new(name: &str) -> Self {
        Self(
            name.bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
        )
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in ±2·scale on the grid; `scale` is a power of two.
    pub fn next(&mut self, scale: f32) -> f32 {
        let steps = (self.bits() >> 46) as i32 - (1 << 17);
        steps as f32 / 65536.0 * scale
    }

    /// ±1.
    pub fn sign(&mut self) -> f32 {
        if self.bits() >> 63 == 0 { 1.0 } else { -1.0 }
    }
}

/// A seeded input of a case.
pub fn input(case: &str, name: &'static str, rows: usize, cols: usize, scale: f32) -> Input {
    let mut values = Values::new(&format!("{case}/{name}"));
    Input { name, rows, cols, values: (0..rows * cols).map(|_| values.next(scale)).collect(), scale }
}

/// A seeded frozen tensor of a case; `shape` `[n]` or `[out, in]`.
pub fn weight(case: &str, name: &str, dtype: Dtype, shape: &[usize], scale: f32) -> TensorView {
    let mut values = Values::new(&format!("{case}/{name}"));
    let mut bytes = Vec::new();
    for _ in 0..shape.iter().product::<usize>() {
        let value = values.next(scale);
        match dtype {
            Dtype::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
            _ => bytes.extend(value.to_le_bytes()),
        }
    }
    TensorView::from_bytes(name, dtype, shape, &bytes).expect("anonymous memory for a small tensor")
}

/// The power of two next below 1/√n: the scale of a weight whose product with n values keeps their size.
pub fn fan_in(n: usize) -> f32 {
    (-(n as f32).log2() / 2.0).floor().exp2()
}
