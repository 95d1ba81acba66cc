//! answer_head: final norm and tied head on answer rows only, either chosen vocabulary ids or the full row.
//!
//! `logits[i, c] = RMSNorm(h[i])·(1+w) · E[ids[c]]`, h `[n, hidden]` (answer rows already gathered), E `[vocab, hidden]`.
//! Backward: dn = dlogits·E (rows of the chosen ids), then RMSNorm's backward.

pub mod cases;
mod cpu;
mod reference;

use super::Backend;

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
