//! gated_linear: gelu_tanh(x·Wgateᵀ)·(x·Wupᵀ), each projection with an optional LoRA branch: the first half of the MLP.
//!
//! The formula is [`lora_linear`] on both parts, then [`geglu`], to the bit; so are saved values and
//! backward. Apart because a back end that applies the gate where a tile of both products is finished neither stores nor reads
//! the two `[T, intermediate]` matrices again.
//! Cost: that of both operations, less the traffic between them.

pub mod cases;
mod cpu;
mod cuda;

use super::Cost;
use super::cost::F32;
use super::geglu::{self, Geglu};
use super::lora_linear::{self, LoraLinear, Part, PartShape, Store};

/// Outputs of [`GatedLinear::gated_linear`].
pub struct GatedOutput<B> {
    /// gelu_tanh(gate)·up `[T, n]`.
    pub act: B,
    /// What the backward pass needs, if it was asked for.
    pub kept: Option<Kept<B>>,
}

/// Saved for the backward of the gate, then of the projections.
pub struct Kept<B> {
    /// `[T, n]`
    pub gate: B,
    /// `[T, n]`
    pub up: B,
    /// s·u `[T, r]` of the gate's branch and of up's.
    pub su: Vec<Option<B>>,
}

/// Forward; the backward is that of [`Geglu`] and [`LoraLinear`].
pub trait GatedLinear: LoraLinear + Geglu {
    /// x `[T, in]` through gate and up, both `[n, in]`.
    fn gated_linear(&self, x: &Self::Buf, parts: &[Part<'_, Self>; 2], keep: bool) -> GatedOutput<Self::Buf> {
        let output = self.lora_linear(x, parts, Store::Full);
        let [gate, up] = <[Self::Buf; 2]>::try_from(output.y).unwrap_or_else(|_| unreachable!("one output per part"));
        GatedOutput { act: self.geglu(&gate, &up), kept: keep.then_some(Kept { gate, up, su: output.su }) }
    }
}

/// Of the forward on x `[rows, inputs]`; with `keep`, gate and up are written as well.
pub fn cost(rows: usize, inputs: usize, parts: &[PartShape], keep: bool) -> Cost {
    let n = parts.first().map_or(0, |part| part.outputs);
    let mut cost = lora_linear::cost(rows, inputs, parts) + geglu::cost(rows * n);
    let between = (if keep { 2 } else { 4 }) * rows * n * F32;
    cost.bytes -= between as f64;
    cost
}

impl GatedLinear for super::reference::Reference {}
