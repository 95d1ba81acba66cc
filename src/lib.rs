//! unflip measures and removes *answer flips*: yes/no answers of a vision-language model that change when the same
//! clinical question is reworded.
//!
//! Data goes one way through the modules; a module uses only what stands above it in this list:
//! [`digest`] (SHA-256 names), [`error`] (what every module's errors sum up to), [`weights`] (memory-mapped checkpoints
//! and adapters), [`text`] (tokenizer, chat template, answer ids), [`data`] (prompt groups), [`batch`] (the token tree), [`objective`] (losses),
//! [`ops`] with [`cpu`] and [`cuda`] (one layer: contracts and their f64 reference, and what the CPU's and the GPU's side of each operation shares),
//! [`tape`] (autograd), [`model`] (Gemma 3 written once over [`ops::Device`]), [`machine`] (what computes), [`report`]
//! (tables), [`profile`] (where time goes), [`train`] (the engine's seam, runs, the loop), [`eval`] (metrics and statistics), [`trace`] (parity output), [`estimate`] (what a task will take), [`mod@bench`] (how fast),
//! [`cli`]. `docs/architecture.md` has the picture.

pub mod batch;
pub mod bench;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod digest;
pub mod error;
pub mod estimate;
pub mod eval;
pub mod machine;
pub mod model;
pub mod objective;
pub mod ops;
pub mod profile;
pub mod report;
pub mod tape;
pub mod text;
pub mod trace;
pub mod train;
pub mod trunk;
pub mod weights;

pub use error::{Error, Result};
