//! What training or evaluating will take, before anything is loaded: memory, work, and with measured peaks time. From
//! `config.json` and the weights' headers alone, by running the model on a device of shapes (`shapes`).
//!
//! Memory that must be there is anonymous: activations, adapter, gradient, moments, the trunk cache, logits on the host. Weights are
//! mapped; the system may drop their pages and read them again, which is slow but not fatal, so that a lack of room for them is a
//! warning and not an error.

#![forbid(unsafe_code)]

mod error;
mod guard;
mod shapes;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use guard::{Verdict, judge, size};
pub use shapes::{ShapeBuf, ShapeWeight, Shapes};

use crate::cpu::peak::Peaks;
use crate::model::{Adapter, EmbedScale, Engine, LoraLayout};
use crate::objective::Objective;
use crate::ops::adamw::AdamWStep;
use crate::ops::{Backend, Cost};
use crate::profile::{Key, Profile, Profiled, Total};
use crate::train::{AdapterTrainer, EngineGroup, MarginEngine, TrainEngine};
use crate::trunk::{TrunkBudget, TrunkCache, TrunkIdentity};
use crate::weights::{AdapterConfig, Checkpoint, Naming};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the CPU holds beyond live buffers, as a share of them: rounding to size classes, memory that lies idle between classes, and
/// scratch within operations. A training step of Gemma 3 270M held 0.6 (its peak resident set against the count).
const BUFFER_SLACK: f64 = 0.6;

/// Bytes per logit on the host: f64 logits, their f64 gradient, its f32 copy.
const HOST_BYTES_PER_LOGIT: u64 = 20;

/// The program, its tokenizer and thread stacks: measured on Gemma's tokenizer.json.
const PROGRAM: u64 = 90 << 20;

/// What is to be done with a model.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// The adapter's shape, if there is one.
    pub layout: Option<&'a LoraLayout>,
    /// All groups.
    pub groups: &'a [EngineGroup],
    /// Whether the phrasings of a group share their prefix.
    pub share_prefix: bool,
    /// Groups of one launch.
    pub groups_per_batch: usize,
    /// Most bytes of the trunk cache in memory.
    pub trunk_budget: u64,
    /// What is trained; `None` evaluates.
    pub training: Option<TrainingTask<'a>>,
}

/// What training adds to a [`Task`].
#[derive(Clone, Copy)]
pub struct TrainingTask<'a> {
    /// The loss.
    pub objective: &'a Objective,
    /// Groups of one update.
    pub batch_groups: usize,
}

/// What a task takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// `training` or `evaluation`.
    pub what: &'static str,
    /// Groups of one launch.
    pub groups_per_batch: usize,
    /// Rows of the largest launch.
    pub most_rows: usize,
    /// Mapped bytes of the decoder's weights.
    pub weights: u64,
    /// Parameters, gradients that are summed, moments.
    pub adapter: u64,
    /// Activations of the largest launch, what is kept for backward and what is on the way.
    pub activations: u64,
    /// Logits on the host.
    pub host: u64,
    /// Program and tokenizer.
    pub program: u64,
    /// Bytes of the hidden states of all groups below the lowest adapted layer; 0 where nothing is frozen below it.
    pub trunk_total: u64,
    /// As much of them as the budget lets stay in memory.
    pub trunk_held: u64,
}

/// What one group of about the mean size computes, by operation.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupWork {
    /// Its rows.
    pub rows: usize,
    /// Everything computed.
    pub cold: Vec<(Key, Total)>,
    /// With the layers below the lowest adapted one taken from the trunk cache.
    pub warm: Vec<(Key, Total)>,
}

/// Sum over operations.
pub fn cost(work: &[(Key, Total)]) -> Cost {
    work.iter().map(|(_, total)| total.cost).sum()
}

/// Least seconds by the roofline, operation by operation.
pub fn least_seconds(work: &[(Key, Total)], peaks: &Peaks) -> f64 {
    work.iter().map(|(_, total)| total.cost.seconds(peaks.flops, peaks.bandwidth)).sum()
}

impl Estimate {
    /// Bytes that must be there, weights aside.
    pub fn needed(&self) -> u64 {
        self.adapter + self.activations + self.host + self.program + self.trunk_held
    }

    /// Bytes with all weights in memory: the peak resident set to expect.
    pub fn resident(&self) -> u64 {
        self.needed() + self.weights
    }
}

/// Estimates the memory of a task.
///
/// # Errors
/// Groups that the model cannot take, tensors that are missing: as the task itself would.
pub fn estimate(task: &Task<'_>) -> crate::Result<Estimate> {
    let rows = |group: &EngineGroup| rows(task, group);
    // Any groups may meet in one launch: the longest ones are the worst case.
    let mut longest: Vec<&EngineGroup> = task.groups.iter().collect();
    longest.sort_by_key(|group| std::cmp::Reverse(rows(group)));
    let launch: Vec<EngineGroup> = longest.iter().take(task.groups_per_batch).map(|group| (*group).clone()).collect();
    let all_rows: usize = task.groups.iter().map(rows).sum();
    let most = Run::new(task, false)?.measure(task, &launch)?;
    let parameters = task.layout.map_or(0, |layout| 4 * layout.len() as u64);
    let copies = match &task.training {
        None => 1,
        Some(training) => {
            // Parameters, two moments, and the partial sums of the tree over a step's launches.
            let leaves = training.batch_groups.div_ceil(task.groups_per_batch.max(1)) as u64;
            3 + 1 + u64::from(leaves.max(1).ilog2()) + u64::from(!leaves.is_power_of_two())
        }
    };
    // The run held the adapter's own buffers too.
    let held = parameters * if task.training.is_some() { 4 } else { 1 };
    let lowest = task.layout.and_then(LoraLayout::lowest_layer).unwrap_or(0);
    let activations = ((most.bytes.saturating_sub(held)) as f64 * (1.0 + BUFFER_SLACK)) as u64;
    let config = &task.checkpoint.config.text;
    let trunk_total = if lowest == 0 { 0 } else { (all_rows * config.hidden_size * 4) as u64 };
    Ok(Estimate {
        what: if task.training.is_some() { "training" } else { "evaluation" },
        groups_per_batch: task.groups_per_batch,
        most_rows: launch.iter().map(rows).sum(),
        weights: weights(task)?,
        adapter: parameters * copies,
        activations,
        host: most.downloaded * HOST_BYTES_PER_LOGIT,
        program: PROGRAM,
        trunk_total,
        trunk_held: trunk_total.min(task.trunk_budget),
    })
}

/// What a group of about the mean size computes.
///
/// # Errors
/// As [`estimate`].
pub fn group_work(task: &Task<'_>) -> crate::Result<GroupWork> {
    let all_rows: usize = task.groups.iter().map(|group| rows(task, group)).sum();
    let mean = all_rows / task.groups.len().max(1);
    let typical = task.groups.iter().min_by_key(|group| rows(task, group).abs_diff(mean));
    let typical: Vec<EngineGroup> = typical.cloned().into_iter().collect();
    let cold = Run::new(task, false)?.measure(task, &typical)?.costs;
    let warm = match task.layout.and_then(LoraLayout::lowest_layer).unwrap_or(0) {
        0 => cold.clone(),
        _ => {
            let mut run = Run::new(task, true)?;
            run.measure(task, &typical)?;
            run.measure(task, &typical)?.costs
        }
    };
    let rows = typical.iter().map(|group| rows(task, group)).sum();
    Ok(GroupWork { rows, cold: cold.into_iter().collect(), warm: warm.into_iter().collect() })
}

/// Rows that a group takes in a launch.
fn rows(task: &Task<'_>, group: &EngineGroup) -> usize {
    let tokens = &group.tokens;
    if task.share_prefix {
        return tokens.unique_tokens();
    }
    tokens.suffixes.iter().map(|suffix| tokens.prefix.len() + suffix.len()).sum()
}

/// Bytes of the decoder's tensors. The embedding counts in whole only where the loss reads the whole vocabulary.
fn weights(task: &Task<'_>) -> crate::Result<u64> {
    let config = &task.checkpoint.config.text;
    let whole_head = task.training.is_some_and(|training| training.objective.needs_full_vocabulary());
    let mut bytes = 0;
    for (name, shape) in config.tensors() {
        let view = task.checkpoint.tensor_shaped(&name, &shape)?;
        let elements = if name.ends_with("embed_tokens.weight") && !whole_head { 0 } else { view.elements() };
        bytes += (elements * view.dtype.size()) as u64;
    }
    Ok(bytes)
}

/// What one launch took.
struct Measured {
    bytes: u64,
    downloaded: u64,
    costs: BTreeMap<Key, Total>,
}

/// A model of shapes.
struct Run {
    shapes: Shapes,
    profile: Profile,
    engine: Subject,
}

enum Subject {
    Trains(Box<AdapterTrainer<Profiled<Shapes>>>),
    Answers(Box<Engine<Profiled<Shapes>>>),
}

impl Run {
    fn new(task: &Task<'_>, trunk: bool) -> crate::Result<Self> {
        let (shapes, profile) = (Shapes::default(), Profile::new(false));
        let device = Profiled::new(shapes.clone(), profile.clone());
        let mut engine = Engine::open(device, task.checkpoint, EmbedScale::Auto, None)?;
        engine.share_prefix = task.share_prefix;
        if trunk {
            let identity =
                TrunkIdentity { model: String::new(), embed_scale: String::new(), unit: engine.device.unit() };
            let budget = TrunkBudget { memory: u64::MAX / 2, disk: 0, folder: PathBuf::new() };
            engine.trunk = Some(TrunkCache::new(identity, &budget)?);
        }
        let adapter =
            task.layout.map(|layout| Adapter { layout: layout.clone(), params: engine.device.zeros(1, layout.len()) });
        let engine = match (&task.training, adapter) {
            (Some(training), Some(adapter)) => {
                let config = AdapterConfig::new(Naming::CausalLm, 1, 1.0, &[], &[]);
                let trainer = AdapterTrainer::new(engine, adapter, config, training.objective.clone(), 0);
                Subject::Trains(Box::new(trainer))
            }
            (_, adapter) => {
                engine.adapter = adapter;
                Subject::Answers(Box::new(engine))
            }
        };
        Ok(Self { shapes, profile, engine })
    }

    fn measure(&mut self, task: &Task<'_>, groups: &[EngineGroup]) -> crate::Result<Measured> {
        self.profile.clear();
        self.shapes.restart();
        if !groups.is_empty() {
            match &mut self.engine {
                Subject::Trains(trainer) => {
                    let (_, gradient) = trainer.leaf(groups, 1, 0)?;
                    trainer.gradient_norm(&gradient);
                    let step = AdamWStep {
                        lr: 0.0,
                        beta1: 0.9,
                        beta2: 0.999,
                        eps: 1e-8,
                        weight_decay: 0.0,
                        gradient_scale: 1.0,
                        step: 1,
                    };
                    trainer.update(&gradient, &step);
                }
                Subject::Answers(engine) => _ = MarginEngine::margins(engine.as_mut(), groups)?,
            }
        }
        let full = task.training.is_some_and(|training| training.objective.needs_full_vocabulary());
        let downloaded = if full { self.shapes.most_downloaded() } else { 0 };
        Ok(Measured { bytes: self.shapes.most_bytes(), downloaded, costs: self.profile.totals() })
    }
}
