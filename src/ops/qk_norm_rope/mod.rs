//! qk_norm_rope: per-head RMSNorm, then rotary position embedding, of q or k.
//!
//! Per row and head of x `[T, heads·head_dim]`: n = RMSNorm(x)·(1+w), then with the half-split layout, for j < head_dim/2:
//! `y[j] = n[j]·cos[j] − n[j+half]·sin[j]`, `y[j+half] = n[j+half]·cos[j] + n[j]·sin[j]`.
//! `rope` is `[T, head_dim]`: cosines of the row's angles in the first half, sines in the second (angles in f32 as Hugging Face
//! computes them; [`crate::model`] makes the table).
//! Backward: rotate by −angle, then RMSNorm's backward with x as saved.

pub mod cases;
mod cpu;
mod cuda;
mod reference;

use super::cost::F32;
use super::{Backend, Cost};

/// Forward.
pub trait QkNormRope: Backend {
    /// Returns `[T, heads·head_dim]`; w is `[head_dim]`.
    fn qk_norm_rope(&self, x: &Self::Buf, w: &Self::Weight, eps: f32, rope: &Self::Buf, head_dim: usize) -> Self::Buf;
}

/// Backward.
pub trait QkNormRopeBackward: Backend {
    /// dx for dy; `x` is the forward's input.
    fn qk_norm_rope_backward(
        &self,
        dy: &Self::Buf,
        x: &Self::Buf,
        w: &Self::Weight,
        eps: f32,
        rope: &Self::Buf,
        head_dim: usize,
    ) -> Self::Buf;
}

/// Of the forward on `rows` rows of `heads` heads.
pub fn cost(rows: usize, heads: usize, head_dim: usize) -> Cost {
    Cost::elementwise(rows * heads * head_dim, 7, 2) + Cost::traffic(rows * head_dim * F32)
}

/// Of the backward.
pub fn cost_backward(rows: usize, heads: usize, head_dim: usize) -> Cost {
    Cost::elementwise(rows * heads * head_dim, 13, 3) + Cost::traffic(rows * head_dim * F32)
}
