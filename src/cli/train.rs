//! `unflip train`.

use super::data::Prompting;
use super::device::{DeviceArgs, OnTrainDevice};
use super::interrupt::Interrupt;
use super::memory;
use super::model::ModelArgs;
use super::profile::{ProfileArgs, Profiling};
use super::trunk::TrunkArgs;
use crate::data::ReadOptions;
use crate::eval::Question;
use crate::objective::Pooling;
use crate::ops::TrainDevice;
use crate::report::{Cell, Table};
use crate::train::{
    Error, Layers, Opening, PRESETS, ProgressBar, RunIdentity, RunRequest, Settings, TrainSummary, train,
};
use crate::weights::Checkpoint;
use clap::Args;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Arguments of `train`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  unflip train --model models/start --data assets/reports/reports-train.jsonl --loss paper --lr 2e-4 --out runs/paper\n  \
    unflip train --preset paper --model M --data train.jsonl --validation validation.jsonl --out runs/paper\n  \
    unflip train --config run.toml --out runs/paper\n\n\
    Every setting has a key in the config file (`unflip train --print-config` shows all with their defaults); a flag overrides it. \
    Ctrl-C or SIGTERM stops after the step with a checkpoint (exit code 130 or 143), a second one at once. \
    A run that was stopped or killed goes on with --resume, to the same bits. The adapter of a finished run is in OUT/final, with validation \
    data the best one in OUT/best:\n  unflip eval --model models/start --adapter runs/paper/final --data assets/reports/reports-eval.jsonl --out runs/paper-eval"
)]
pub struct Train {
    /// Settings (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start from the settings of `paper` (500 pairs, 8 a step, 3 passes, middle layers) instead of the defaults; config file
    /// and flags override it
    #[arg(long, value_name = "NAME", value_parser = PRESETS.map(|(name, _)| name))]
    preset: Option<String>,
    /// Run directory
    #[arg(long, value_name = "DIR", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// Go on with the run in --out; starts it if there is none
    #[arg(long)]
    resume: bool,
    /// With --resume: allow another version or unit than the run began with (results may differ in the last bits)
    #[arg(long, requires = "resume")]
    other_unit: bool,
    /// Print the resolved settings as TOML and stop
    #[arg(long)]
    print_config: bool,
    /// Print a JSON summary
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trunk: TrunkArgs,
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    flags: Flags,
}

/// Flags of settings, each named after its key.
#[derive(Args, Default)]
#[command(next_help_heading = "Settings")]
pub struct Flags {
    /// Model folder, or org/name in the local Hugging Face cache [model.path]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Adapter to start from instead of a new one; it keeps its rank, α, modules and layers [model.adapter]
    #[arg(long, value_name = "DIR")]
    adapter: Option<String>,
    /// Training groups (JSONL) [data.train]
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// Validation groups (JSONL), never those trained or tested on: `best/` is chosen on them [data.validation]
    #[arg(long, value_name = "FILE")]
    validation: Option<String>,
    /// all, none (the original alone) or sample:K [data.paraphrases]
    #[arg(long, value_name = "WHICH")]
    paraphrases: Option<String>,
    /// First N groups only [data.limit]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    limit: Option<String>,
    /// Draw N (original, paraphrase) pairs by the seed and train on these, or all for whole groups [data.sample_pairs]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    sample_pairs: Option<String>,
    /// Pattern of the user's turn (default: the start adapter's, else the paper's) [data.template]
    #[arg(long, value_name = "PATTERN")]
    template: Option<String>,
    /// Projections, any of q,k,v,o,gate,up,down [adapter.modules]
    #[arg(long, value_name = "LIST")]
    modules: Option<String>,
    /// all, 8-11, 2,3,7, or paper (its 15-19 of 34, scaled to the model) [adapter.layers]
    #[arg(long, value_name = "LAYERS", allow_negative_numbers = true)]
    layers: Option<String>,
    /// LoRA rank [adapter.rank]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    rank: Option<String>,
    /// LoRA α [adapter.alpha]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    alpha: Option<String>,
    /// Scale α/√r instead of α/r: true or false [adapter.rslora]
    #[arg(long, value_name = "BOOL")]
    rslora: Option<String>,
    /// LoRA dropout [adapter.dropout]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    dropout: Option<String>,
    /// paper, margin, symkl-binary, symkl-full, ce-binary, ce-full or combined [objective.loss]
    #[arg(long, value_name = "NAME")]
    loss: Option<String>,
    /// Consistency part of a loss of your own: margin, symkl-binary or symkl-full [objective.consistency]
    #[arg(long, value_name = "NAME")]
    consistency: Option<String>,
    /// Accuracy part of a loss of your own: ce-binary or ce-full [objective.accuracy]
    #[arg(long, value_name = "NAME")]
    accuracy: Option<String>,
    /// original or all [objective.pairs]
    #[arg(long, value_name = "WHICH")]
    pairs: Option<String>,
    /// Weight of the second part of paper, combined or a loss of two parts, 0 to inf [objective.lambda]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<String>,
    /// How an answer's spellings become one logit: single (the first alone), max or logsumexp [objective.pool]
    #[arg(long, value_name = "HOW")]
    pool: Option<String>,
    /// Stop, with a checkpoint, when the model answers one way (64 questions in training, or a validation): true or false
    /// [objective.stop_on_collapse]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    stop_on_collapse: Option<String>,
    /// Learning rate [optimizer.lr]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr: Option<String>,
    /// AdamW β₁ [optimizer.beta1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta1: Option<String>,
    /// AdamW β₂ [optimizer.beta2]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta2: Option<String>,
    /// AdamW ε [optimizer.eps]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    eps: Option<String>,
    /// Decoupled weight decay [optimizer.weight_decay]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<String>,
    /// Largest gradient norm, or none [optimizer.clip]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip: Option<String>,
    /// Warm-up steps [schedule.warmup_steps]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    warmup: Option<String>,
    /// constant, linear or cosine, after warm-up [schedule.decay]
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
    /// Groups a step [schedule.batch_groups]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    batch_groups: Option<String>,
    /// Groups packed into one launch [schedule.groups_per_batch]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    groups_per_batch: Option<String>,
    /// Passes over the data [schedule.epochs]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    epochs: Option<String>,
    /// Steps, instead of epochs [schedule.steps]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<String>,
    /// Seed [run.seed]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<String>,
    /// Steps between checkpoints [run.checkpoint_every]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    checkpoint_every: Option<String>,
    /// Whole checkpoints to keep, or all; the newest and the one that best/ is a copy of always stay [run.keep_checkpoints]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    keep_checkpoints: Option<String>,
    /// Steps between validations (default: once an epoch); the end always has one [run.validate_every]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    validate_every: Option<String>,
    /// What best/ is chosen by: accuracy_all, accuracy, flip_rate_question, flip_rate_pair, margin_difference or loss [run.best_by]
    #[arg(long, value_name = "METRIC")]
    best_by: Option<String>,
    /// Back end: cpu, cuda or reference [model.device]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// auto, f32 or bf16 [model.precision]
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,
    /// auto, exact or bf16 rounding of the embedding's √hidden factor [model.embed_scale]
    #[arg(long, value_name = "HOW")]
    embed_scale: Option<String>,
    /// Share the prefix of a group's phrasings: true or false [model.share_prefix]
    #[arg(long, value_name = "BOOL")]
    share_prefix: Option<String>,
    /// Threads [run.threads]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<String>,
    /// Instruction set of the CPU kernels [run.isa]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
}

impl Flags {
    /// The defaults, or those of `preset`, with the settings of `config` and the given flags in place, resolved.
    ///
    /// # Errors
    /// A file that cannot be read; an unknown or impossible setting.
    pub fn settings(&self, preset: Option<&str>, config: Option<&Path>) -> crate::Result<Settings> {
        let preset = PRESETS.into_iter().find(|(name, _)| Some(*name) == preset);
        let settings = preset.map_or_else(Settings::default, |(_, preset)| Settings::preset(preset));
        let mut settings = match config {
            Some(path) => settings.overridden_by(path)?,
            None => settings,
        };
        settings.override_with(&self.given()).map_err(with_flag)?;
        Ok(settings.resolve()?)
    }

    /// (key, value) of every flag that was given.
    fn given(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("model.path", &self.model),
            ("model.adapter", &self.adapter),
            ("model.device", &self.device),
            ("model.precision", &self.precision),
            ("model.embed_scale", &self.embed_scale),
            ("model.share_prefix", &self.share_prefix),
            ("data.train", &self.data),
            ("data.validation", &self.validation),
            ("data.paraphrases", &self.paraphrases),
            ("data.limit", &self.limit),
            ("data.sample_pairs", &self.sample_pairs),
            ("data.template", &self.template),
            ("adapter.modules", &self.modules),
            ("adapter.layers", &self.layers),
            ("adapter.rank", &self.rank),
            ("adapter.alpha", &self.alpha),
            ("adapter.rslora", &self.rslora),
            ("adapter.dropout", &self.dropout),
            ("objective.loss", &self.loss),
            ("objective.consistency", &self.consistency),
            ("objective.accuracy", &self.accuracy),
            ("objective.pairs", &self.pairs),
            ("objective.lambda", &self.lambda),
            ("objective.pool", &self.pool),
            ("objective.stop_on_collapse", &self.stop_on_collapse),
            ("optimizer.lr", &self.lr),
            ("optimizer.beta1", &self.beta1),
            ("optimizer.beta2", &self.beta2),
            ("optimizer.eps", &self.eps),
            ("optimizer.weight_decay", &self.weight_decay),
            ("optimizer.clip", &self.clip),
            ("schedule.warmup_steps", &self.warmup),
            ("schedule.decay", &self.schedule),
            ("schedule.batch_groups", &self.batch_groups),
            ("schedule.groups_per_batch", &self.groups_per_batch),
            ("schedule.epochs", &self.epochs),
            ("schedule.steps", &self.steps),
            ("run.seed", &self.seed),
            ("run.checkpoint_every", &self.checkpoint_every),
            ("run.keep_checkpoints", &self.keep_checkpoints),
            ("run.validate_every", &self.validate_every),
            ("run.best_by", &self.best_by),
            ("run.threads", &self.threads),
            ("run.isa", &self.isa),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))).collect()
    }
}

impl Train {
    /// Runs the verb.
    ///
    /// # Errors
    /// Anything wrong with settings, model, data or the run directory.
    pub fn run(self) -> crate::Result<()> {
        let mut settings = self.flags.settings(self.preset.as_deref(), self.config.as_deref())?;
        if self.print_config {
            let text = toml::to_string(&settings.to_table()).expect("settings are plain values");
            return super::out(&text);
        }
        let out = self.out.clone().expect("clap asks for it");
        let model = required(settings.model.path.as_deref(), "--model", "model.path")?;
        let data = required(settings.data.train.as_deref(), "--data", "data.train")?.to_owned();
        let model = ModelArgs::named(&model.display().to_string(), &settings.model)?;
        let device = DeviceArgs::named(&settings)?;
        let profile = self.profile.begin()?;

        let (checkpoint, adapter) = model.open()?;
        let scaled = settings.adapter.layers == Layers::Paper;
        let template = settings.complete(&checkpoint, adapter.as_ref())?;
        let depth = checkpoint.config.text.num_hidden_layers;
        if scaled && adapter.is_none() && depth != 34 {
            let layers = &settings.adapter.layers;
            eprintln!("note: the paper's layers 15-19 of 34 are {layers} of this model's {depth}");
        }
        let prompting = Prompting::open(&checkpoint, template)?;
        let options = ReadOptions { allow_no_paraphrases: !settings.needs_paraphrases() };
        let (file, questions) = prompting.read(&data, settings.data.limit, options)?;
        let validation = match &settings.data.validation {
            Some(path) => Some(prompting.read(path, None, options)?),
            None => None,
        };
        let identity = RunIdentity::new(
            &checkpoint,
            settings.model.adapter.as_deref(),
            &file.sha256,
            validation.as_ref().map(|(file, _)| file.sha256.as_str()),
            &prompting.template,
        )?;
        let groups = |questions: Vec<Question>| questions.into_iter().map(|question| question.group).collect();
        let request = RunRequest {
            groups: groups(questions),
            validation: validation.map_or_else(Vec::new, |(_, questions)| groups(questions)),
            adapter,
            settings,
            identity,
        };
        let RunRequest { adapter, settings, groups, .. } = &request;
        memory::check_training(&device, settings, &checkpoint, adapter.as_ref(), groups, self.trunk.trunk_cache)?;
        let opening = match self.resume {
            true => Opening::Resume { other_unit: self.other_unit },
            false => Opening::New,
        };
        let pooling = prompting.pooling(request.settings.objective.pool);
        let interrupt = Interrupt::catch()?;
        let stopped = interrupt.clone();
        let trunk = self.trunk;
        let work =
            Work { pooling, model, checkpoint, request, out, opening, trunk, interrupt, profile: profile.clone() };
        let summary = profile.run_training(&device, work)?;
        report(&summary, self.json)?;
        match stopped.caught().filter(|_| summary.steps < summary.total_steps) {
            Some(signal) => Err(Error::Interrupted {
                signal: signal.name,
                code: signal.code,
                step: summary.steps,
                total: summary.total_steps,
                checkpoint: summary.checkpoint.path.display().to_string(),
            }
            .into()),
            None => Ok(()),
        }
    }
}

/// Names the flag where the settings only know that it was one.
fn with_flag(error: Error) -> Error {
    match error {
        Error::Setting { key, place, expected, found } if place == "flags" => {
            let command = Flags::augment_args(clap::Command::new("train"));
            let of_key = format!("[{key}]");
            let flag = command
                .get_arguments()
                .find(|argument| argument.get_help().is_some_and(|help| help.to_string().ends_with(&of_key)));
            let place = flag.and_then(|flag| flag.get_long()).map_or(place, |long| format!("--{long}"));
            Error::Setting { key, place, expected, found }
        }
        other => other,
    }
}

fn required<'a>(path: Option<&'a Path>, flag: &str, key: &str) -> crate::Result<&'a Path> {
    path.ok_or_else(|| crate::Error::Usage {
        message: format!("training needs {flag} (or `{key}` in the config file)"),
        hint: Some("`unflip train --help` has an example".into()),
    })
}

struct Work {
    model: ModelArgs,
    checkpoint: Checkpoint,
    request: RunRequest,
    pooling: Pooling,
    out: PathBuf,
    opening: Opening,
    trunk: TrunkArgs,
    interrupt: Interrupt,
    profile: Profiling,
}

impl OnTrainDevice for Work {
    type Output = TrainSummary;

    fn run<D: TrainDevice + 'static>(mut self, device: D) -> crate::Result<TrainSummary> {
        let mut engine = self.model.engine(device, &self.checkpoint, None, None)?;
        engine.pooling = self.pooling;
        let layers = self.request.settings.adapter.layers.resolve(engine.model.depth())?;
        let lowest = layers.iter().min().copied();
        self.trunk.attach(&mut engine, &self.checkpoint, lowest)?;
        let (mut trainer, run) = self.request.start(engine, &self.checkpoint, &self.out, self.opening)?;
        let RunRequest { settings, groups, validation, .. } = &self.request;
        let done = run.newest_checkpoint()?.0.map_or(0, |checkpoint| checkpoint.step);
        let mut bar = ProgressBar::new(settings.total_steps(groups.len()), done);
        let summary = train(&mut trainer, groups, validation, settings, &run, |metrics, timing| {
            bar.step(metrics, timing);
            self.profile.mark(|| format!("end of step {}", metrics.step));
            match self.interrupt.caught() {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        });
        bar.finish();
        summary
    }
}

fn report(summary: &TrainSummary, json: bool) -> crate::Result<()> {
    for skipped in &summary.skipped {
        eprintln!("skipped checkpoint {}: it is not whole", skipped.name);
    }
    if json {
        return super::print_json(&serde_json::json!({
            "steps": summary.steps,
            "total_steps": summary.total_steps,
            "resumed_from": summary.resumed_from,
            "adapter": summary.adapter,
            "best_step": summary.best_step,
            "collapsed_at": summary.collapsed.map(|(step, ..)| step),
            "collapse": summary.collapsed.map(|(_, place, figures)| serde_json::json!({ "in": place, "figures": figures })),
            "last": summary.last,
        }));
    }
    let mut table = Table::new(&["training", ""]);
    super::row(&mut table, "steps", &format!("{} of {}", summary.steps, summary.total_steps));
    super::row(&mut table, "adapter", &summary.adapter.display().to_string());
    if let Some(step) = summary.best_step {
        super::row(&mut table, "best", &format!("of step {step}"));
    }
    if let Some(last) = &summary.last {
        table.row(vec![Cell::text("last loss"), Cell::Number(last.loss, 4)]);
        table.row(vec![Cell::text("last gradient norm"), Cell::Number(last.grad_norm, 4)]);
    }
    super::out(&table.plain())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_flag_states_its_key_and_is_named_in_errors() {
        let command = Flags::augment_args(clap::Command::new("train"));
        let table = Settings::default().to_table();
        for argument in command.get_arguments() {
            let help = argument.get_help().expect("every flag has a help text").to_string();
            let key = help.rsplit_once('[').expect("a key in brackets").1.trim_end_matches(']').to_owned();
            assert!(table.contains_key(key.split('.').next().unwrap_or_default()), "{help}");
            let setting = Error::Setting { key, place: "flags".into(), expected: "a".into(), found: "b".into() };
            let named = with_flag(setting).to_string();
            let long = argument.get_long().expect("a long flag");
            assert!(named.contains(&format!(" in --{long} must be a, found b")), "{named}");
        }
    }
}
