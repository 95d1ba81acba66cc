//! answer_head: final norm and tied head on answer rows only, either chosen vocabulary ids or the full row.
//!
//! `logits[i, c] = RMSNorm(h[i])·(1+w) · E[ids[c]]`, h `[n, hidden]` (answer rows already gathered), E `[vocab, hidden]`.
//! Backward: dn = dlogits·E (rows of the chosen ids), then RMSNorm's backward.

pub mod cases;
mod cpu;
pub(in crate::ops) mod cuda;
mod reference;

use super::cost::F32;
use super::{Backend, Cost};

/// Columns of the head to compute.
#[derive(Clone, Copy, Debug)]
pub enum HeadColumns<'a> {
    /// These vocabulary ids, in this order.
    Ids(&'a [u32]),
    /// The whole vocabulary.
    Full,
}

/// Forward.
pub trait AnswerHead: Backend {
    /// `[n, columns]`.
    fn answer_head(
        &self,
        h: &Self::Buf,
        w: &Self::Weight,
        eps: f32,
        head: &Self::Weight,
        columns: HeadColumns<'_>,
    ) -> Self::Buf;
}

/// Backward.
pub trait AnswerHeadBackward: Backend {
    /// dh `[n, hidden]` for dlogits `[n, columns]`.
    fn answer_head_backward(
        &self,
        dlogits: &Self::Buf,
        h: &Self::Buf,
        w: &Self::Weight,
        eps: f32,
        head: &Self::Weight,
        columns: HeadColumns<'_>,
    ) -> Self::Buf;
}

/// Of `rows` answer rows against `columns` rows of the head, stored at `weight_bytes` an element.
pub fn cost(rows: usize, hidden: usize, columns: usize, weight_bytes: usize) -> Cost {
    super::norm::cost(rows, hidden)
        + Cost::product(rows, columns, hidden)
        + Cost::traffic(rows * columns * F32 + columns * hidden * weight_bytes)
}

/// Of the backward.
pub fn cost_backward(rows: usize, hidden: usize, columns: usize, weight_bytes: usize) -> Cost {
    super::norm::cost_backward(rows, hidden)
        + Cost::product(rows, hidden, columns)
        + Cost::traffic(rows * columns * F32 + columns * hidden * weight_bytes)
}
