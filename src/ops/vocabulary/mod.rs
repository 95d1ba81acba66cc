//! vocabulary: softmax statistics of answer rows over the whole tied head, without a row of logits ever being stored.
//!
//! n = RMSNorm(h)·(1+w) and zᵢ\[v\] = nᵢ·Eᵥ as in [`answer_head`](mod@super::answer_head), pᵢ = softmax of zᵢ over v. Per row:
//! log Σ exp z and the logits of chosen ids; per pair (i, k) of rows: Σᵥ pᵢ\[v\]·(zₖ\[v\] − cₖ), where cₖ is row k's logit of the
//! first chosen id: what losses read cancels it, and near it a difference of logits keeps its digits.
//! Backward: a loss of these has ∂loss/∂n = C·\[P; X\] + D·E\[ids\], with the means Pᵢ = Σᵥ pᵢ\[v\]·Eᵥ and, per pair,
//! X = Σᵥ pᵢ\[v\]·(zₖ\[v\] − cₖ)·Eᵥ; so one pass over E serves forward and backward. Then RMSNorm's backward.
//! Bound by memory for few rows. Nothing is rounded to bf16 in any precision. Rows are independent.

pub mod cases;
mod cpu;
mod cuda;
mod reference;

use super::answer_head::AnswerHead;
use super::cost::F32;
use super::{Backend, Cost};

/// What is asked of a batch's answer rows.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Vocabulary ids whose logits are wanted, at least one.
    pub ids: &'a [u32],
    /// Pairs (i, k) of rows.
    pub pairs: &'a [(u32, u32)],
}

/// Statistics of n rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// log Σᵥ exp z, `[n]`.
    pub log_sum: Vec<f64>,
    /// `[n, ids]`
    pub logits: Vec<f64>,
    /// Σᵥ pᵢ\[v\]·(zₖ\[v\] − cₖ) of each pair.
    pub cross: Vec<f64>,
}

/// What the loss depends on, as coefficients of ∂loss/∂n, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Coefficients<'a> {
    /// C `[n, n + pairs]`.
    pub means: &'a [f32],
    /// D `[n, ids]`: ∂loss/∂logits.
    pub logits: &'a [f32],
}

/// The tied head with its final norm.
pub struct Head<'a, D: Backend + ?Sized> {
    /// w of the final norm, `[hidden]`.
    pub norm: &'a D::Weight,
    /// ε of the final norm.
    pub eps: f32,
    /// E `[vocab, hidden]`.
    pub embedding: &'a D::Weight,
}

impl<D: Backend + ?Sized> Clone for Head<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Backend + ?Sized> Copy for Head<'_, D> {}

/// Forward.
pub trait Vocabulary: AnswerHead {
    /// Statistics of answer rows h `[n, hidden]`.
    fn vocabulary(&self, h: &Self::Buf, head: Head<'_, Self>, question: Question<'_>) -> Statistics;
}

/// Forward with what the backward needs, and the backward.
pub trait VocabularyBackward: Vocabulary {
    /// The statistics, and the means `[n + pairs, hidden]`: P of each row, then X of each pair.
    fn vocabulary_means(&self, h: &Self::Buf, head: Head<'_, Self>, question: Question<'_>) -> (Statistics, Self::Buf);
    /// dh `[n, hidden]`.
    fn vocabulary_backward(
        &self,
        coefficients: Coefficients<'_>,
        means: &Self::Buf,
        h: &Self::Buf,
        head: Head<'_, Self>,
        ids: &[u32],
    ) -> Self::Buf;
}

/// Of `rows` answer rows; with `means`, those of rows and pairs as well.
pub fn cost(
    rows: usize,
    hidden: usize,
    vocab: usize,
    weight_bytes: usize,
    question: Question<'_>,
    means: bool,
) -> Cost {
    let sums = if means { rows + question.pairs.len() } else { 0 };
    super::answer_head::cost(rows, hidden, question.ids.len(), weight_bytes)
        + Cost::product(rows + sums, vocab, hidden)
        // Subtract, exponentiate, add; multiply and add for a pair.
        + Cost::new(rows * vocab * 3 + question.pairs.len() * vocab * 2, 0)
        + Cost::traffic(vocab * hidden * weight_bytes + sums * hidden * F32)
}

/// Of the backward.
pub fn cost_backward(rows: usize, hidden: usize, weight_bytes: usize, question: Question<'_>) -> Cost {
    let sums = rows + question.pairs.len();
    super::answer_head::cost_backward(rows, hidden, question.ids.len(), weight_bytes)
        + Cost::product(rows, hidden, sums)
        + Cost::traffic(F32 * sums * (hidden + rows))
}
