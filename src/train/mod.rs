//! Training: settings, data order, schedule, the gradient tree, run directories with checkpoints, and the loop over an
//! engine. Everything that decides a result is a function of the settings and the step, so that a run killed at any
//! instant and resumed equals one that was never killed, bit for bit.

#![forbid(unsafe_code)]

mod answers;
mod checkpoint;
mod collapse;
mod config;
pub mod durable;
mod engine;
mod error;
mod events;
mod gradient_tree;
mod keys;
mod metrics;
mod model_engine;
mod non_finite;
mod notes;
pub mod order;
mod preset;
mod progress;
pub mod random;
mod run_dir;
mod schedule;
mod settings;
mod start;
mod step;
#[cfg(test)]
mod toy;
mod trainer;
mod validation;

pub use answers::{AnswerCounts, says_yes};
pub use checkpoint::{Checkpoint, Skipped};
pub use collapse::{Answering, MarginSpread};
pub use engine::{EngineGroup, MarginEngine, TrainEngine, TrainerTensors};
pub use error::Error;
pub use gradient_tree::GradientTree;
pub use keys::MODULES;
pub use metrics::{StepMetrics, StepTiming};
pub use model_engine::AdapterTrainer;
pub use notes::{AdapterNotes, TemplateChoice, adapter_pool, other_base, read_adapter_notes};
pub use preset::{PRESETS, Preset};
pub use progress::ProgressBar;
pub use run_dir::{RunDir, RunIdentity};
pub use schedule::Schedule;
pub use settings::{
    AdapterSettings, DataSettings, Decay, Layers, ModelSettings, ObjectiveSettings, OptimizerSettings, Paraphrases,
    RunSettings, ScheduleSettings, Settings,
};
pub use start::{Opening, RunRequest};
pub use trainer::{TrainSummary, train};
pub use validation::BestBy;
