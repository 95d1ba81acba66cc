//! attention over the token tree: grouped-query, sliding window and image spans folded into two key intervals per row.
//!
//! For query row i and head h, with kv head h / (heads/kv_heads): z = scale·q·kᵀ over the row's visible keys, p = softmax(z),
//! o = p·v. Saved for backward: the largest z and Σ exp(z − largest), apart, because one f32 log-sum-exp
//! would round away |z|·2⁻²⁴ of every p. Backward: δ = Σ do·o; dv = pᵀ·do; dz = p·(do·vᵀ − δ); dq = scale·dz·k; dk = scale·dzᵀ·q, summed over the
//! query heads of a group and, for prefix keys, over every suffix (in row order: heads outer, rows inner).
//! Sums over keys are anchored at the start of the tree's prefix, then of the own suffix, so that a row's result does not depend
//! on what else is in the batch. Fully hidden key blocks are skipped.

pub mod cases;
mod cpu;
mod cpu_backward;
mod cuda;
mod reference;

use super::cost::F32;
use super::{Backend, Cost};
use crate::batch::AttentionPlan;

/// Head layout of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// query_pre_attn_scalar^−½.
    pub scale: f32,
}

/// Outputs of [`Attention::attention`].
pub struct AttentionOutput<B> {
    /// `[queries, heads·head_dim]`
    pub o: B,
    /// `[queries, heads·2]`: of each head the largest z, then Σ exp(z − largest).
    pub softmax: B,
}

/// Forward.
pub trait Attention: Backend {
    /// q `[queries, heads·head_dim]` (rows as in `plan.spans`); k, v `[plan.key_rows, kv_heads·head_dim]`.
    fn attention(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
    ) -> AttentionOutput<Self::Buf>;
}

/// Gradients of [`AttentionBackward::attention_backward`], shaped as q, k and v.
pub struct AttentionGradients<B> {
    /// `[queries, heads·head_dim]`
    pub dq: B,
    /// `[key_rows, kv_heads·head_dim]`
    pub dk: B,
    /// `[key_rows, kv_heads·head_dim]`
    pub dv: B,
}

/// Backward.
pub trait AttentionBackward: Attention {
    /// `d_o` is the gradient of o; `output` what the forward returned.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
        output: &AttentionOutput<Self::Buf>,
        d_o: &Self::Buf,
    ) -> AttentionGradients<Self::Buf>;
}

/// Of the forward: q·kᵀ and p·v over the pairs of the plan that see each other.
pub fn cost(shape: &AttentionShape, plan: &AttentionPlan) -> Cost {
    products(shape, plan, 2) + Cost::traffic(F32 * (2 * queries(shape, plan) + 2 * keys(shape, plan)))
}

/// Of the backward: scores once more, do·vᵀ, dv, dq and dk.
pub fn cost_backward(shape: &AttentionShape, plan: &AttentionPlan) -> Cost {
    products(shape, plan, 5) + Cost::traffic(F32 * (4 * queries(shape, plan) + 4 * keys(shape, plan)))
}

fn products(shape: &AttentionShape, plan: &AttentionPlan, count: usize) -> Cost {
    Cost::product(plan.visible_pairs(), shape.heads * shape.head_dim, count)
}

fn queries(shape: &AttentionShape, plan: &AttentionPlan) -> usize {
    plan.spans.len() * shape.heads * shape.head_dim
}

fn keys(shape: &AttentionShape, plan: &AttentionPlan) -> usize {
    plan.key_rows * shape.kv_heads * shape.head_dim
}
