//! adamw: PyTorch's AdamW over one flat parameter vector, in one pass.
//!
//! g = clip·grad; p −= lr·wd·p; m = β₁m + (1−β₁)g; v = β₂v + (1−β₂)g²; p −= lr·m̂/(√v̂ + ε) with m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ).
//! `clip` = min(1, c/(‖g‖+1e-6)) comes from [`AdamW::sum_of_squares`] of the gradient.

pub mod cases;
mod cpu;
mod reference;

use super::{Backend, Cost};

/// Settings of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε, outside the root.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor on the gradient (clipping and averaging).
    pub gradient_scale: f64,
    /// 1 for the first update.
    pub step: u64,
}

/// The optimiser's device side.
pub trait AdamW: Backend {
    /// Updates `params`, `m` and `v`, all flat `[1, n]`.
    fn adamw(&self, params: &mut Self::Buf, grads: &Self::Buf, m: &mut Self::Buf, v: &mut Self::Buf, step: &AdamWStep);
    /// Σ g² in f64, in a fixed order.
    fn sum_of_squares(&self, buf: &Self::Buf) -> f64;
}

/// Of [`AdamW::adamw`] on n parameters.
pub fn cost(n: usize) -> Cost {
    Cost::elementwise(n, 14, 7)
}

/// Of [`AdamW::sum_of_squares`].
pub fn cost_of_squares(n: usize) -> Cost {
    Cost::elementwise(n, 2, 1)
}
