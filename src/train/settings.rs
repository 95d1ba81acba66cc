//! Every setting of a training run: one struct, its defaults, and the checks that need more than one setting. Reading and
//! writing by key is in `keys.rs`, TOML files and flags in `config.rs`.

use super::Error;
use super::engine::EngineGroup;
use super::order::drawn_pairs;
use super::preset::paper_layers;
use super::validation::BestBy;
use crate::objective::{self, Objective, Pairs, Pool};
use crate::weights::Module;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Course of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Stays at its top.
    Constant,
    /// Falls in a line to zero.
    Linear,
    /// Falls as half a cosine to zero.
    Cosine,
}

/// Which paraphrases of a group an epoch sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paraphrases {
    /// All of them.
    All,
    /// K drawn anew each epoch.
    Sample(usize),
    /// The original alone.
    None,
}

/// Which decoder layers carry the adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Every layer.
    All,
    /// The paper's 15–19 of 34, scaled to the model's depth.
    Paper,
    /// These, ascending.
    These(Vec<usize>),
}

impl Layers {
    /// Reads `all`, `paper`, `8-11` (both ends included), `2,3,7` or a mixture of lists and ranges.
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim() == "all" {
            return Some(Self::All);
        }
        if text.trim() == "paper" {
            return Some(Self::Paper);
        }
        let mut layers = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
            if first > last || last > 10_000 {
                return None;
            }
            layers.extend(first..=last);
        }
        layers.sort_unstable();
        layers.dedup();
        Some(Self::These(layers))
    }

    /// Layer numbers for a model of `count` layers.
    pub fn resolve(&self, count: usize) -> Result<Vec<usize>, Error> {
        match self {
            Self::All => Ok((0..count).collect()),
            Self::Paper => Ok(paper_layers(count).collect()),
            Self::These(layers) => match layers.iter().find(|&&layer| layer >= count) {
                Some(layer) => Err(Error::Setting {
                    key: "adapter.layers".into(),
                    place: "settings".into(),
                    expected: format!("layers 0 to {} (the model has {count})", count.saturating_sub(1)),
                    found: format!("layer {layer}"),
                }),
                None => Ok(layers.clone()),
            },
        }
    }
}

impl std::fmt::Display for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Paper => f.write_str("paper"),
            Self::These(layers) => {
                let mut first = 0;
                for i in 0..layers.len() {
                    if i + 1 < layers.len() && layers[i + 1] == layers[i] + 1 {
                        continue;
                    }
                    let comma = if first == 0 { "" } else { "," };
                    if first == i {
                        write!(f, "{comma}{}", layers[i])?;
                    } else {
                        write!(f, "{comma}{}-{}", layers[first], layers[i])?;
                    }
                    first = i + 1;
                }
                Ok(())
            }
        }
    }
}

/// `[model]`: what is adapted and how it computes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSettings {
    /// Folder, or `org/name` in the local Hugging Face cache.
    pub path: Option<PathBuf>,
    /// Adapter to start from; a fresh one otherwise.
    pub adapter: Option<PathBuf>,
    /// `auto`, `f32` or `bf16`.
    pub precision: String,
    /// `cpu`, `cuda` or `reference`.
    pub device: String,
    /// `auto`, `exact` or `bf16`.
    pub embed_scale: String,
    /// Prompts of a group share their prefix.
    pub share_prefix: bool,
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSettings {
    /// JSONL of training groups.
    pub train: Option<PathBuf>,
    /// JSONL of groups that choose `best/`; never test data.
    pub validation: Option<PathBuf>,
    /// Which paraphrases take part.
    pub paraphrases: Paraphrases,
    /// First groups of the file only.
    pub limit: Option<usize>,
    /// Train on this many (original, paraphrase) pairs, drawn once by the seed; on whole groups otherwise.
    pub sample_pairs: Option<usize>,
    /// Prompt template; the paper's otherwise.
    pub template: Option<String>,
}

/// `[adapter]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// Adapted linear layers, in [`Module`]'s order.
    pub modules: Vec<Module>,
    /// Adapted decoder layers.
    pub layers: Layers,
    /// Rank r.
    pub rank: usize,
    /// α: the scale is α/r, or α/√r with `rslora`.
    pub alpha: f64,
    /// Rank-stabilised scale.
    pub rslora: bool,
    /// Probability of dropping an input of A.
    pub dropout: f64,
}

/// `[objective]`: `loss`, or `consistency` and `accuracy` parts.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveSettings {
    /// One of [`objective::LOSSES`]; `paper` if neither this nor a part is given.
    pub loss: Option<String>,
    /// One of [`objective::CONSISTENCY`].
    pub consistency: Option<String>,
    /// One of [`objective::ACCURACY`].
    pub accuracy: Option<String>,
    /// Which phrasings are paired.
    pub pairs: Pairs,
    /// λ; by default [`objective::default_lambda`], or 1 between two parts.
    pub lambda: Option<f64>,
    /// How an answer's spellings become one logit, in the loss and in margins.
    pub pool: Pool,
    /// Stop when every recent answer is the same although the truths differ; otherwise warn.
    pub stop_on_collapse: bool,
}

impl ObjectiveSettings {
    /// The loss that is minimised; `paper` if neither a loss nor a part is given.
    ///
    /// # Errors
    /// As [`Objective::new`] and [`Objective::custom`].
    pub fn build(&self) -> Result<Objective, objective::Error> {
        match (&self.loss, &self.consistency, &self.accuracy) {
            (None, None, None) => Objective::new("paper", self.pairs, self.lambda),
            (None, consistency, accuracy) => Objective::custom(
                consistency.as_deref().map(str::parse).transpose()?,
                accuracy.as_deref().map(str::parse).transpose()?,
                self.pairs,
                self.lambda,
            ),
            (Some(loss), ..) => Objective::new(loss, self.pairs, self.lambda),
        }
    }

    /// λ where none is given; `None` for a loss of one term.
    pub(super) fn default_lambda(&self) -> Option<f64> {
        match (&self.loss, &self.consistency, &self.accuracy) {
            (None, None, None) => objective::default_lambda("paper"),
            (None, consistency, accuracy) => (consistency.is_some() && accuracy.is_some()).then_some(1.0),
            (Some(loss), ..) => objective::default_lambda(loss),
        }
    }
}

/// `[optimizer]`: AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Top learning rate.
    pub lr: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; `None` does not clip.
    pub clip: Option<f64>,
}

/// `[schedule]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleSettings {
    /// Updates of linear warm-up.
    pub warmup_steps: u64,
    /// Course after it.
    pub decay: Decay,
    /// Groups of one update.
    pub batch_groups: usize,
    /// Groups packed into one launch: a leaf of the gradient tree.
    pub groups_per_batch: usize,
    /// Passes over the data; 1 if neither this nor `steps` is given.
    pub epochs: Option<u64>,
    /// Updates.
    pub steps: Option<u64>,
}

/// `[run]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSettings {
    /// Seeds data order, paraphrase sampling, the adapter's init and dropout.
    pub seed: u64,
    /// Updates between checkpoints; one is always written at the end, and with every validation.
    pub checkpoint_every: u64,
    /// Whole checkpoints to keep; all otherwise. The newest and the one that `best/` is a copy of always stay.
    pub keep_checkpoints: Option<usize>,
    /// Updates between validations; at the end of every epoch otherwise. The end of the run always has one.
    pub validate_every: Option<u64>,
    /// What `best/` is chosen by.
    pub best_by: BestBy,
    /// Worker threads; all cores otherwise. Never changes a result.
    pub threads: Option<usize>,
    /// Instruction set of the CPU kernels; the best available otherwise. Never changes an f32 result.
    pub isa: Option<String>,
}

/// Every setting of a training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `[model]`
    pub model: ModelSettings,
    /// `[data]`
    pub data: DataSettings,
    /// `[adapter]`
    pub adapter: AdapterSettings,
    /// `[objective]`
    pub objective: ObjectiveSettings,
    /// `[optimizer]`
    pub optimizer: OptimizerSettings,
    /// `[schedule]`
    pub schedule: ScheduleSettings,
    /// `[run]`
    pub run: RunSettings,
    /// Keys that a file or a flag gave.
    pub(super) given: GivenKeys,
}

/// Names of the keys that a file or a flag gave, whatever their values: what a start adapter may contradict and what not.
/// Settings are equal by their values alone.
#[derive(Clone, Debug, Default)]
pub(super) struct GivenKeys(pub BTreeSet<&'static str>);

impl PartialEq for GivenKeys {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: ModelSettings {
                path: None,
                adapter: None,
                precision: "auto".into(),
                device: "cpu".into(),
                embed_scale: "auto".into(),
                share_prefix: true,
            },
            data: DataSettings {
                train: None,
                validation: None,
                paraphrases: Paraphrases::All,
                limit: None,
                sample_pairs: None,
                template: None,
            },
            adapter: AdapterSettings {
                modules: vec![Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down],
                layers: Layers::All,
                rank: 16,
                alpha: 32.0,
                rslora: false,
                dropout: 0.0,
            },
            objective: ObjectiveSettings {
                loss: None,
                consistency: None,
                accuracy: None,
                pairs: Pairs::Original,
                lambda: None,
                pool: Pool::Single,
                stop_on_collapse: false,
            },
            optimizer: OptimizerSettings {
                lr: 2e-4,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
                clip: Some(1.0),
            },
            schedule: ScheduleSettings {
                warmup_steps: 0,
                decay: Decay::Constant,
                batch_groups: 8,
                groups_per_batch: 1,
                epochs: None,
                steps: None,
            },
            run: RunSettings {
                seed: 0,
                checkpoint_every: 50,
                keep_checkpoints: None,
                validate_every: None,
                best_by: BestBy::AccuracyAll,
                threads: None,
                isa: None,
            },
            given: GivenKeys::default(),
        }
    }
}

impl Settings {
    /// Fills in what defaults depend on (loss, λ, epochs) and checks what single keys cannot.
    pub fn resolve(mut self) -> Result<Self, Error> {
        let (schedule, objective) = (&self.schedule, &self.objective);
        if schedule.epochs.is_some() && schedule.steps.is_some() {
            return Err(Error::Conflict {
                keys: "schedule.epochs and schedule.steps".into(),
                problem: "only one of them can say how long the run is".into(),
                hint: "leave one of them out",
            });
        }
        if !schedule.batch_groups.is_multiple_of(schedule.groups_per_batch) {
            return Err(Error::Conflict {
                keys: "schedule.batch_groups and schedule.groups_per_batch".into(),
                problem: format!(
                    "{} groups a step cannot be split into launches of {}",
                    schedule.batch_groups, schedule.groups_per_batch
                ),
                hint: "let groups_per_batch divide batch_groups",
            });
        }
        if objective.loss.is_some() && (objective.consistency.is_some() || objective.accuracy.is_some()) {
            return Err(Error::Conflict {
                keys: "objective.loss and its parts".into(),
                problem: "give a whole loss or its parts, not both".into(),
                hint: "leave `loss` out to build one of parts",
            });
        }
        if self.data.sample_pairs.is_some() && self.data.paraphrases == Paraphrases::None {
            return Err(Error::Conflict {
                keys: "data.sample_pairs and data.paraphrases".into(),
                problem: "pairs are to be drawn, but only the original would take part".into(),
                hint: "leave one of them out",
            });
        }
        let built = objective.build().map_err(|error| match error {
            objective::Error::UnusedLambda { .. } => Error::Conflict {
                keys: "objective.lambda and objective.loss".into(),
                problem: error.to_string(),
                hint: "leave λ out, or choose a loss of two parts: `paper`, `combined`, or both `consistency` and `accuracy`",
            },
            other => other.into(),
        })?;
        if built.needs_paraphrases() && self.data.paraphrases == Paraphrases::None {
            return Err(Error::Conflict {
                keys: "objective.loss and data.paraphrases".into(),
                problem: "the loss compares phrasings, but only the original would take part".into(),
                hint: "train on paraphrases too, or choose `ce-binary` or `ce-full`",
            });
        }
        if objective.loss.is_none() && objective.consistency.is_none() && objective.accuracy.is_none() {
            self.objective.loss = Some("paper".into());
        }
        if self.schedule.epochs.is_none() && self.schedule.steps.is_none() {
            self.schedule.epochs = Some(1);
        }
        self.objective.lambda = self.objective.lambda.or(self.objective.default_lambda());
        Ok(self)
    }

    /// Whether every group must have a paraphrase: the loss compares phrasings.
    pub fn needs_paraphrases(&self) -> bool {
        self.data.paraphrases != Paraphrases::None
            && self.objective.build().is_ok_and(|objective| objective.needs_paraphrases())
    }

    /// The groups to train on: the first `data.limit`, or pairs drawn from these.
    ///
    /// # Errors
    /// Fewer pairs than are to be drawn.
    pub fn select(&self, mut groups: Vec<EngineGroup>) -> Result<Vec<EngineGroup>, Error> {
        groups.truncate(self.data.limit.unwrap_or(usize::MAX));
        let Some(asked) = self.data.sample_pairs else { return Ok(groups) };
        let phrasings: Vec<usize> = groups.iter().map(|group| group.tokens.suffixes.len()).collect();
        let pairs = drawn_pairs(self.run.seed, &phrasings, asked);
        if pairs.len() < asked {
            return Err(Error::TooFewPairs { asked, found: pairs.len(), groups: groups.len() });
        }
        let pair = |(group, paraphrase): (usize, usize)| EngineGroup {
            id: format!("{} with paraphrase {paraphrase}", groups[group].id),
            ..groups[group].with_phrasings(&[0, paraphrase])
        };
        Ok(pairs.into_iter().map(pair).collect())
    }

    /// Updates of the whole run over `groups` groups.
    pub fn total_steps(&self, groups: usize) -> u64 {
        let per_epoch = super::order::steps_per_epoch(groups, self.schedule.batch_groups);
        self.schedule.steps.unwrap_or_else(|| self.schedule.epochs.unwrap_or(1).saturating_mul(per_epoch))
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
