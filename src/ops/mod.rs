//! Fused operations, one folder each: `mod.rs` (contract: formula, shapes, cost as [`cost`] counts it), `reference.rs` (plain f64 loops, the
//! oracle of every test), `cpu.rs`, `cases.rs` (shapes for tests, gradient checks and benchmarks).
//!
//! [`Device`] is the sum of the forward operations, [`TrainDevice`] adds their backward and the optimiser; a back end that
//! cannot do something fails to compile instead of failing at run time. It is a dozen fused operations, not a tensor
//! library: no broadcasting, no shapes discovered at run time.
//!
//! Promises of every back end in f32 (docs/architecture.md): each GEMM element is one FMA chain over k ascending, LoRA last;
//! row sums run in 16 fixed lanes combined in a fixed tree; results never depend on the number of threads, and a row's
//! result never depends on what else is in the batch. Portable, AVX2 and AVX-512 give the same bits.

#![forbid(unsafe_code)]

pub mod adamw;
pub mod answer_head;
pub mod attention;
pub mod case;
pub mod cost;
pub mod embed;
mod error;
pub mod gated_linear;
pub mod geglu;
pub mod lora_linear;
pub mod norm;
pub mod qk_norm_rope;
pub mod reference;
pub mod vocabulary;

pub use cost::{Cost, Pass};
pub use error::Error;

use crate::weights::TensorView;

/// Where values and weights of a back end live.
pub trait Backend: Sync {
    /// A dense matrix `[rows, cols]` of activations, gradients or parameters.
    type Buf: Send + Sync;
    /// A frozen tensor, made once from a mapped view: a matrix `[out, in]` or a vector `[n]` (one row).
    type Weight: Send + Sync;

    /// Makes a frozen tensor usable: the CPU keeps the view itself, CUDA uploads a padded copy.
    fn weight(&self, view: &TensorView) -> Result<Self::Weight, Error>;
    /// A buffer of zeros.
    fn zeros(&self, rows: usize, cols: usize) -> Self::Buf;
    /// Host to device; `values` is row-major `[rows, cols]`.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Self::Buf;
    /// Device to host, row-major. f64 so that the reference loses nothing.
    fn download(&self, buf: &Self::Buf) -> Vec<f64>;
    /// Logical shape `(rows, cols)`.
    fn shape(&self, buf: &Self::Buf) -> (usize, usize);
    /// A copy.
    fn duplicate(&self, buf: &Self::Buf) -> Self::Buf;
    /// `target += source`, elementwise.
    fn add_assign(&self, target: &mut Self::Buf, source: &Self::Buf);
    /// `[rows.len(), cols]`: the named rows.
    fn gather_rows(&self, source: &Self::Buf, rows: &[u32]) -> Self::Buf;
    /// Adds row i of `source` to row `rows[i]` of `target`; rows are distinct.
    fn scatter_add_rows(&self, target: &mut Self::Buf, source: &Self::Buf, rows: &[u32]);
    /// What computes, for logs and result files, e.g. `cpu f32 avx2`.
    fn describe(&self) -> String;
    /// What decides the bits of a result, e.g. `cpu f32`: instruction sets that promise the same bits are one unit.
    fn unit(&self) -> String;
}

/// Everything a forward pass of the text model needs.
pub trait Device:
    Backend
    + embed::Embed
    + norm::Norm
    + lora_linear::LoraLinear
    + qk_norm_rope::QkNormRope
    + attention::Attention
    + geglu::Geglu
    + gated_linear::GatedLinear
    + answer_head::AnswerHead
    + vocabulary::Vocabulary
{
}

/// Everything a training step needs beyond the forward pass.
pub trait TrainDevice:
    Device
    + norm::NormBackward
    + lora_linear::LoraLinearBackward
    + qk_norm_rope::QkNormRopeBackward
    + attention::AttentionBackward
    + geglu::GegluBackward
    + answer_head::AnswerHeadBackward
    + vocabulary::VocabularyBackward
    + adamw::AdamW
{
}

impl<D> Device for D where
    D: Backend
        + embed::Embed
        + norm::Norm
        + lora_linear::LoraLinear
        + qk_norm_rope::QkNormRope
        + attention::Attention
        + geglu::Geglu
        + gated_linear::GatedLinear
        + answer_head::AnswerHead
        + vocabulary::Vocabulary
{
}

impl<D> TrainDevice for D where
    D: Device
        + norm::NormBackward
        + lora_linear::LoraLinearBackward
        + qk_norm_rope::QkNormRopeBackward
        + attention::AttentionBackward
        + geglu::GegluBackward
        + answer_head::AnswerHeadBackward
        + vocabulary::VocabularyBackward
        + adamw::AdamW
{
}
