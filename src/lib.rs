//! unflip measures and removes *answer flips*: yes/no answers of a vision-language model that change when the same
//! clinical question is reworded.
//!
//! Data goes one way through the modules; a module uses only what stands above it in this list:
//! [`weights`] (memory-mapped checkpoints and adapters), [`text`] (tokenizer, chat template, answer ids), [`data`]
//! (prompt groups), [`batch`] (the token tree), [`cpu`] (dispatch, packing, micro-kernels), [`ops`] (one folder per
//! fused operation), [`tape`] (autograd), [`model`] (Gemma 3 written once over [`ops::Device`]), [`objective`] (losses),
//! [`train`], [`eval`], [`cli`]. `docs/architecture.md` has the picture.

pub mod batch;
pub mod cli;
pub mod cpu;
pub mod data;
pub mod digest;
pub mod error;
pub mod eval;
pub mod machine;
pub mod model;
pub mod objective;
pub mod ops;
pub mod report;
pub mod tape;
pub mod text;
pub mod trace;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
