//! What `unflip bench` runs: single operations from the same cases that tests and criterion use (`kernels`), and whole steps of a
//! model on recorded groups (`step`).
//!
//! `select` reads which ones and at which sizes, `verify` holds results against the reference before anything is timed,
//! `measure` samples, `block` describes the machine and its measured peaks, `output` prints. Apart from the command line so that
//! scripts, criterion and tests time the code that users do.

#![forbid(unsafe_code)]

mod block;
mod error;
pub mod kernels;
pub mod measure;
pub mod output;
mod provider;
#[cfg(feature = "rivals")]
mod rivals;
mod samples;
mod select;
pub mod step;
pub mod verify;

pub use block::{DeviceBlock, UnitPeak};
pub use error::Error;
pub use measure::Patience;
pub use provider::Provider;
pub use samples::Samples;
pub use select::Selection;
pub use step::{StepBench, StepSettings, StepTime};
