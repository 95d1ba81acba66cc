//! Evaluation: margins of every phrasing to `samples.jsonl`, rates with bootstrap intervals to `results.json`, and paired
//! tests between two results. Statistics are apart from running, so that a result can be recomputed from its samples.
//!
//! Everything is counted on margins: the answer is yes iff m > 0, a paraphrase flips if its answer differs from the
//! original's. Intervals and tests draw whole clusters (a patient, image or report), because its questions share it.

#![forbid(unsafe_code)]

mod compare;
mod error;
mod evaluate;
mod metrics;
mod progress;
mod questions;
mod results;
mod samples;
pub mod statistics;

pub use compare::{Comparison, compare};
pub use error::Error;
pub use evaluate::{EvalSettings, Evaluation, evaluate};
pub use metrics::{Estimate, METRICS, MetricSet, by_finding, by_phenomenon};
pub use progress::ProgressBar;
pub use questions::questions;
pub use results::{StoredResults, environment};
pub use samples::{Header, Question, Sample};
