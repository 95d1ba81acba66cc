//! norm and norm_add: Gemma's RMSNorm, alone or of a branch added to the residual stream.
//!
//! ρ = 1/√(mean(x²)+ε), x̂ = ρ·x, `norm`: y = x̂·(1+w); `norm_add`: y = h + x̂·(1+w). Rows are independent. The mean of squares
//! runs in 16 lanes (column mod 16) combined pairwise.
//! Backward, with g = dy·(1+w): dx = ρ·(g − x̂·mean(g·x̂)).

pub mod cases;
pub(crate) mod cpu;
pub mod cuda;
pub(crate) mod reference;

use super::{Backend, Cost};

/// Forward.
pub trait Norm: Backend {
    /// x `[T, n]`, w `[n]` → `[T, n]`, entering a product (bf16 precision rounds it).
    fn norm(&self, x: &Self::Buf, w: &Self::Weight, eps: f32) -> Self::Buf;
    /// h `[T, n]` + norm(branch `[T, n]`) → `[T, n]`, the residual stream (never rounded).
    fn norm_add(&self, h: &Self::Buf, branch: &Self::Buf, w: &Self::Weight, eps: f32) -> Self::Buf;
    /// norm(branch) alone, unrounded: what a `mlp_out` site reads; `norm_add` equals h plus this.
    fn branch_norm(&self, branch: &Self::Buf, w: &Self::Weight, eps: f32) -> Self::Buf;
}

/// Backward of both: `norm_add` passes dy on to h unchanged, and its branch's gradient is the same formula.
pub trait NormBackward: Backend {
    /// dx `[T, n]` for y = norm(x).
    fn norm_backward(&self, dy: &Self::Buf, x: &Self::Buf, w: &Self::Weight, eps: f32) -> Self::Buf;
}

/// Of [`Norm::norm`] and [`Norm::branch_norm`] on `rows` rows of `n`.
pub fn cost(rows: usize, n: usize) -> Cost {
    Cost::elementwise(rows * n, 4, 2)
}

/// Of [`Norm::norm_add`].
pub fn cost_add(rows: usize, n: usize) -> Cost {
    Cost::elementwise(rows * n, 5, 3)
}

/// Of [`NormBackward::norm_backward`].
pub fn cost_backward(rows: usize, n: usize) -> Cost {
    Cost::elementwise(rows * n, 10, 3)
}
