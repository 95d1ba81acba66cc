//! embed: rows of the embedding table times the embedding scale.
//!
//! `h[t, :] = E[ids[t], :] · scale`, h `[T, hidden]`, E `[vocab, hidden]`; `scale` is √hidden, rounded to bf16 where the model
//! is used as a bf16 model. Frozen: no backward. Bound by memory.

pub mod cases;
mod cpu;
mod cuda;
mod reference;

use super::{Backend, Cost};

/// Token embedding.
pub trait Embed: Backend {
    /// `ids` are in range (the packer checks them). Returns `[ids.len(), hidden]`.
    fn embed(&self, table: &Self::Weight, ids: &[u32], scale: f32) -> Self::Buf;
}

/// Of `tokens` rows, stored at `weight_bytes` an element.
pub fn cost(tokens: usize, hidden: usize, weight_bytes: usize) -> Cost {
    Cost::elementwise(tokens * hidden, 1, 1) + Cost::traffic(tokens * hidden * weight_bytes)
}
