//! lora_linear: one input through 1–3 frozen projections, each with an optional LoRA branch.
//!
//! For each part i: uᵢ = drop(x)·Aᵢᵀ `[T, r]`, yᵢ = x·Wᵢᵀ + (s·uᵢ)·Bᵢᵀ `[T, outᵢ]`; each element of y is one FMA chain over
//! `in` ascending, continued over r. Saved for backward: s·uᵢ.
//! Backward: duᵢ = s·dyᵢ·Bᵢ; dBᵢ = dyᵢᵀ·(s·uᵢ); dAᵢ = duᵢᵀ·drop(x); dx = Σᵢ dyᵢ·Wᵢ + Σᵢ drop'(duᵢ·Aᵢ), one chain over the parts'
//! `out` in order, continued over the parts' r. Never dW.
//! Cost: 2·T·in·out FLOPs forward and as many for dx, plus 2·T·r·(in+out) per LoRA product. Bound by arithmetic for T ≳ 50.

pub mod cases;
mod cpu;
mod cuda;
pub mod philox;
mod reference;

use super::cost::F32;
use super::{Backend, Cost};
use crate::weights::Module;

/// Dropout of one adapted module: Philox4x32-10, key = (seed lo, seed hi), counter = (column/4, packed row within the group,
/// group's ordinal · 2¹⁶ + layer · 16 + module, step), output word column mod 4; keep iff word ≥ p·2³², kept values · 1/(1−p).
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Probability of dropping.
    pub p: f32,
    /// Run seed.
    pub seed: u64,
    /// Optimiser step.
    pub step: u32,
    /// Layer index.
    pub layer: u32,
    /// Module order: q,k,v,o,gate,up,down = 0…6.
    pub module: u32,
    /// (group's ordinal, row within the group) of each row of x.
    pub rows: &'a [(u32, u32)],
}

/// Where an adapted projection's parameters lie in the flat vector: A `[rank, inputs]` at `a`, B `[outputs, rank]` at `b`,
/// row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSlot {
    /// Layer index.
    pub layer: usize,
    /// Projection.
    pub module: Module,
    /// r.
    pub rank: usize,
    /// s = α/r or α/√r.
    pub scale: f32,
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Offset of A.
    pub a: usize,
    /// Offset of B.
    pub b: usize,
}

/// The LoRA branch of a part. A `[rank, in]` and B `[out, rank]` lie row-major in one flat `[1, n]` parameter buffer.
pub struct LoraTerm<'a, D: Backend + ?Sized> {
    /// Flat parameters.
    pub params: &'a D::Buf,
    /// Offset of A in `params` (and of dA in the gradient buffer).
    pub a: usize,
    /// Offset of B.
    pub b: usize,
    /// r.
    pub rank: usize,
    /// s = α/r or α/√r.
    pub scale: f32,
    /// Active dropout, training only.
    pub dropout: Option<Dropout<'a>>,
}

/// One projection of the input.
pub struct Part<'a, D: Backend + ?Sized> {
    /// W `[out, in]`.
    pub weight: &'a D::Weight,
    /// Its LoRA branch.
    pub lora: Option<LoraTerm<'a, D>>,
}

/// What the consumer of a product needs of it. A back end whose buffers are f32 may ignore it: rounding on entry is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// Every bit of the sum: what is added to the residual stream.
    Full,
    /// The sum rounded to bf16 in that precision: what enters another product or is rounded on entry anyway (q, k, v).
    Rounded,
}

/// Outputs of [`LoraLinear::lora_linear`].
pub struct LinearOutput<B> {
    /// yᵢ `[T, outᵢ]`, one per part.
    pub y: Vec<B>,
    /// s·uᵢ `[T, r]` of each adapted part, for backward.
    pub su: Vec<Option<B>>,
}

/// Forward.
pub trait LoraLinear: Backend {
    /// x `[T, in]`; `store` says how y may be kept.
    fn lora_linear(&self, x: &Self::Buf, parts: &[Part<'_, Self>], store: Store) -> LinearOutput<Self::Buf>;
}

/// Backward.
pub trait LoraLinearBackward: LoraLinear {
    /// dy: one `[T, outᵢ]` per part; `x` as in the forward pass, needed only where `grads` is given; `su` as saved. Writes dA and dB of every adapted part to `grads` (flat, same offsets as the
    /// parameters; each is written, not added). Returns dx `[T, in]` if asked for (`need_dx`), else `None`.
    fn lora_linear_backward(
        &self,
        dy: &[&Self::Buf],
        x: Option<&Self::Buf>,
        su: &[Option<Self::Buf>],
        parts: &[Part<'_, Self>],
        grads: Option<&mut Self::Buf>,
        need_dx: bool,
    ) -> Option<Self::Buf>;
}

/// A part's shape, as its cost depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartShape {
    /// Rows of W.
    pub outputs: usize,
    /// r; 0 without a branch.
    pub rank: usize,
    /// Bytes of a stored element of W.
    pub weight_bytes: usize,
}

/// Of the forward on x `[rows, inputs]`.
pub fn cost(rows: usize, inputs: usize, parts: &[PartShape]) -> Cost {
    let part = |part: &PartShape| {
        let PartShape { outputs, rank, weight_bytes } = *part;
        Cost::product(rows, inputs, outputs)
            + Cost::product(rows, inputs + outputs, rank)
            + Cost::traffic(outputs * inputs * weight_bytes)
            + Cost::traffic(F32 * (rows * outputs + rank * (inputs + outputs) + rows * rank))
    };
    Cost::traffic(F32 * rows * inputs) + parts.iter().map(part).sum()
}

/// Of the backward, with dx or without, and with the branches' gradients (`grads`) or without.
pub fn cost_backward(rows: usize, inputs: usize, parts: &[PartShape], need_dx: bool, grads: bool) -> Cost {
    let adapted = parts.iter().any(|part| part.rank > 0);
    let part = |part: &PartShape| {
        let PartShape { outputs, rank, weight_bytes } = *part;
        let mut cost = Cost::traffic(F32 * rows * outputs);
        if need_dx {
            cost += Cost::product(rows, inputs, outputs) + Cost::product(rows, inputs, rank);
            cost += Cost::traffic(outputs * inputs * weight_bytes);
        }
        if rank > 0 {
            // du = dy·B, which both dA and dx need.
            cost += Cost::product(rows, outputs, rank) + Cost::traffic(F32 * rank * outputs);
            cost += Cost::traffic(F32 * rank * inputs);
        }
        if grads && rank > 0 {
            cost += Cost::product(rows, outputs + inputs, rank);
            cost += Cost::traffic(F32 * (rows * rank + rank * (inputs + outputs)));
        }
        cost
    };
    let x = if grads && adapted { F32 * rows * inputs } else { 0 };
    let dx = if need_dx { F32 * rows * inputs } else { 0 };
    Cost::traffic(x + dx) + parts.iter().map(part).sum()
}
