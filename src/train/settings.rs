//! Every setting of a training run: one struct, its defaults, and the checks that need more than one setting. Reading and
//! writing by key is in `keys.rs`, TOML files and flags in `config.rs`.

use super::Error;
use crate::objective::{self, Objective, Pairs, Pool};
use crate::weights::Module;
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
    /// These, ascending.
    These(Vec<usize>),
}

impl Layers {
    /// Reads `all`, `8-11` (both ends included), `2,3,7` or a mixture of lists and ranges.
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim() == "all" {
            return Some(Self::All);
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
    /// Updates between checkpoints (and validations); one is always written at the end.
    pub checkpoint_every: u64,
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
            run: RunSettings { seed: 0, checkpoint_every: 50, threads: None, isa: None },
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

    /// Updates of the whole run over `groups` groups.
    pub fn total_steps(&self, groups: usize) -> u64 {
        let per_epoch = super::order::steps_per_epoch(groups, self.schedule.batch_groups);
        self.schedule.steps.unwrap_or_else(|| self.schedule.epochs.unwrap_or(1).saturating_mul(per_epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_read_ranges_and_lists_and_print_them_back() {
        for (text, expected) in
            [("8-11", vec![8, 9, 10, 11]), ("2,3,7", vec![2, 3, 7]), (" 5 , 0-2 ", vec![0, 1, 2, 5])]
        {
            assert_eq!(Layers::parse(text), Some(Layers::These(expected)));
        }
        for text in ["", "3-1", "a", "1,,2", "-3", "0-999999999"] {
            assert_eq!(Layers::parse(text), None, "{text:?}");
        }
        for text in ["all", "8-11", "2-3,7", "0-2,5"] {
            assert_eq!(Layers::parse(text).map(|layers| layers.to_string()).as_deref(), Some(text));
        }
        assert_eq!(Layers::All.resolve(3).expect("resolves"), [0, 1, 2]);
        let error = Layers::parse("2-4").expect("parses").resolve(4).expect_err("layer 4 of 4");
        assert_eq!(
            error.to_string(),
            "`adapter.layers` in settings must be layers 0 to 3 (the model has 4), found layer 4"
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let changed = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.resolve().expect_err("refused").to_string()
        };
        let both = changed(|s| (s.schedule.epochs, s.schedule.steps) = (Some(1), Some(5)));
        assert_eq!(both, "schedule.epochs and schedule.steps: only one of them can say how long the run is");
        assert!(
            changed(|s| s.schedule.groups_per_batch = 3).contains("8 groups a step cannot be split into launches of 3")
        );
        assert!(changed(|s| s.data.paraphrases = Paraphrases::None).contains("the loss compares phrasings"));
        let parts = changed(|s| {
            s.objective.loss = Some("paper".into());
            s.objective.accuracy = Some("ce-full".into());
        });
        assert!(parts.contains("not both"));
    }

    #[test]
    fn resolved_settings_name_their_loss_weight_and_length() {
        let settings = Settings::default().resolve().expect("defaults are valid");
        assert_eq!(settings.objective.loss.as_deref(), Some("paper"));
        assert_eq!((settings.objective.lambda, settings.schedule.epochs), (Some(1.0), Some(1)));
        assert_eq!(settings.total_steps(401), 51);
        let mut combined = Settings::default();
        combined.objective.loss = Some("combined".into());
        assert_eq!(combined.resolve().expect("valid").objective.lambda, Some(0.1));
        let mut margin = Settings::default();
        margin.objective.loss = Some("margin".into());
        assert_eq!(margin.resolve().expect("valid").objective.lambda, None);
    }

    #[test]
    fn only_a_weight_of_two_parts_is_accepted() {
        let of = |loss: Option<&str>, accuracy: Option<&str>, lambda| {
            let mut settings = Settings::default();
            settings.objective.loss = loss.map(str::to_owned);
            settings.objective.accuracy = accuracy.map(str::to_owned);
            settings.objective.lambda = lambda;
            settings.resolve()
        };
        for (loss, accuracy) in [(Some("margin"), None), (Some("ce-full"), None), (None, Some("ce-full"))] {
            let error = of(loss, accuracy, Some(0.5)).expect_err("no second part");
            assert!(matches!(&error, Error::Conflict { keys, .. } if keys.contains("objective.lambda")), "{error}");
            assert!(of(loss, accuracy, None).is_ok());
        }
    }

    #[test]
    fn paraphrases_are_needed_by_losses_that_count_pairs() {
        let needs = |loss: &str, lambda, paraphrases| {
            let mut settings = Settings::default();
            settings.objective.loss = Some(loss.into());
            settings.objective.lambda = lambda;
            settings.data.paraphrases = paraphrases;
            settings.resolve().map(|settings| settings.needs_paraphrases()).ok()
        };
        assert_eq!(needs("ce-binary", None, Paraphrases::All), Some(false));
        assert_eq!(needs("ce-full", None, Paraphrases::None), Some(false));
        assert_eq!(needs("combined", Some(0.0), Paraphrases::None), Some(false));
        assert_eq!(needs("combined", None, Paraphrases::All), Some(true));
        assert_eq!(needs("combined", None, Paraphrases::None), None);
        assert_eq!(needs("paper", Some(f64::INFINITY), Paraphrases::Sample(2)), Some(true));
    }
}
