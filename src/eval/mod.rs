//! Evaluation: margins of every phrasing to `samples.jsonl`, rates with bootstrap intervals to `results.json`, and paired
//! tests between results. Statistics are apart from running, so that a result can be recomputed from its samples.
//!
//! Everything is counted on margins: the answer is yes iff m > 0, a paraphrase flips if its answer differs from the
//! original's. Intervals and tests draw whole clusters (a patient, image or report), because its questions share it.

#![forbid(unsafe_code)]

mod compare;
mod control;
mod error;
mod evaluate;
mod metrics;
mod progress;
pub mod proportions;
mod questions;
mod results;
mod samples;
pub mod statistics;

pub use compare::{ClusterBy, CompareSettings, Comparison, MetricComparison, NonInferiority, Shares, compare};
pub use control::{BATCH_SIZES, BatchingControl, batching_control};
pub use error::Error;
pub use evaluate::{EvalSettings, Evaluation, evaluate};
pub use metrics::{Estimate, METRICS, MetricSet, by_finding, by_phenomenon};
pub use progress::ProgressBar;
pub use questions::questions;
pub use results::{StoredResults, environment, record_batching};
pub use samples::{Header, Origin, Question, Sample};
