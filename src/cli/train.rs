//! `unflip train`.

use super::data::Prompting;
use super::device::{DeviceArgs, OnDevice};
use super::model::ModelArgs;
use crate::data::ReadOptions;
use crate::eval::Question;
use crate::model::{Adapter, LoraLayout, LoraSettings};
use crate::objective::Objective;
use crate::ops::TrainDevice;
use crate::report::{Cell, Table};
use crate::train::{
    AdapterTrainer, EngineGroup, Error, Paraphrases, ProgressBar, RunDir, RunIdentity, Settings, TrainSummary, train,
};
use crate::weights::{AdapterConfig, AdapterFile, Checkpoint, Naming};
use clap::Args;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Arguments of `train`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  unflip train --model models/start --data assets/reports/reports-train.jsonl --loss paper --lr 2e-4 --out runs/paper\n  \
    unflip train --config run.toml --out runs/paper\n\n\
    Every setting has a key in the config file (`unflip train --print-config` shows all with their defaults); a flag overrides it. \
    A run that was interrupted goes on with --resume, to the same bits."
)]
pub struct Train {
    /// Settings (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
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
    flags: Flags,
}

/// Flags of settings, each named after its key.
#[derive(Args, Default)]
#[command(next_help_heading = "Settings")]
struct Flags {
    /// Model folder, or org/name in the local Hugging Face cache [model.path]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Adapter to start from instead of a new one [model.adapter]
    #[arg(long, value_name = "DIR")]
    adapter: Option<String>,
    /// Training groups (JSONL) [data.train]
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// Validation groups (JSONL): `best/` is chosen on them [data.validation]
    #[arg(long, value_name = "FILE")]
    validation: Option<String>,
    /// all, none (the original alone) or sample:K [data.paraphrases]
    #[arg(long, value_name = "WHICH")]
    paraphrases: Option<String>,
    /// First N groups only [data.limit]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    limit: Option<String>,
    /// Pattern of the user's turn [data.template]
    #[arg(long, value_name = "PATTERN")]
    template: Option<String>,
    /// Projections, any of q,k,v,o,gate,up,down [adapter.modules]
    #[arg(long, value_name = "LIST")]
    modules: Option<String>,
    /// all, 8-11, or 2,3,7 [adapter.layers]
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
    /// Weight of the loss's second part, 0 to inf [objective.lambda]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<String>,
    /// Stop when every answer becomes the same: true or false [objective.stop_on_collapse]
    #[arg(long, value_name = "BOOL")]
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
        let mut settings = match &self.config {
            Some(path) => Settings::read(path)?,
            None => Settings::default(),
        };
        settings.override_with(&self.flags.given()).map_err(with_flag)?;
        let settings = settings.resolve()?;
        if self.print_config {
            let text = toml::to_string(&settings.to_table()).expect("settings are plain values");
            return super::out(&text);
        }
        let out = self.out.clone().expect("clap asks for it");
        let model = required(settings.model.path.as_deref(), "--model", "model.path")?;
        let data = required(settings.data.train.as_deref(), "--data", "data.train")?.to_owned();
        let model = ModelArgs::named(&model.display().to_string(), &settings.model)?;
        let device = DeviceArgs::named(&settings)?;

        let (checkpoint, adapter) = model.open()?;
        let prompting = Prompting::open(&checkpoint, settings.data.template.as_deref())?;
        let alone = settings.data.paraphrases == Paraphrases::None || !settings.objective.needs_pairs();
        let options = ReadOptions { allow_no_paraphrases: alone };
        let limit = settings.data.limit;
        let (file, questions) = prompting.read(&data, limit, options)?;
        let validation = match &settings.data.validation {
            Some(path) => Some(prompting.read(path, None, ReadOptions::default())?),
            None => None,
        };
        let identity = RunIdentity {
            version: env!("CARGO_PKG_VERSION").into(),
            model: checkpoint.fingerprint()?,
            adapter: settings.model.adapter.as_deref().map_or(Ok(String::new()), super::model::adapter_identity)?,
            train_data: file.sha256,
            validation_data: validation.as_ref().map_or_else(String::new, |(file, _)| file.sha256.clone()),
            template: prompting.template.hash(),
            unit: String::new(),
        };
        let groups = |questions: Vec<Question>| questions.into_iter().map(|question| question.group).collect();
        let work = Work {
            groups: groups(questions),
            validation: validation.map_or_else(Vec::new, |(_, questions)| groups(questions)),
            model,
            checkpoint,
            adapter,
            settings,
            identity,
            out: out.clone(),
            resume: self.resume,
            other_unit: self.other_unit,
        };
        let summary = device.run(work)?;
        report(&summary, &out, self.json)
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
    adapter: Option<AdapterFile>,
    groups: Vec<EngineGroup>,
    validation: Vec<EngineGroup>,
    settings: Settings,
    identity: RunIdentity,
    out: PathBuf,
    resume: bool,
    other_unit: bool,
}

impl OnDevice for Work {
    type Output = TrainSummary;

    fn run<D: TrainDevice + 'static>(mut self, device: D) -> crate::Result<TrainSummary> {
        self.identity.unit = device.unit();
        let settings = &self.settings;
        let mut engine = self.model.engine(device, &self.checkpoint, None, None)?;
        engine.share_prefix = settings.model.share_prefix;
        engine.check_groups(&self.groups)?;
        engine.check_groups(&self.validation)?;
        let (adapter, config) = match &self.adapter {
            Some(file) => {
                let adapter = Adapter::from_file(&engine.device, &engine.model.config, file)?;
                let config = AdapterConfig { lora_dropout: settings.adapter.dropout, ..file.config.clone() };
                (adapter, config)
            }
            None => {
                let lora = lora_settings(settings, engine.model.config.num_hidden_layers)?;
                let layout = LoraLayout::from_settings(&engine.model.config, &lora)?;
                let naming = match self.checkpoint.config.vision {
                    None => Naming::CausalLm,
                    Some(_) => Naming::ConditionalGeneration,
                };
                let modules: Vec<_> = lora.modules.iter().copied().collect();
                let layers: Vec<_> = lora.layers.iter().copied().collect();
                let mut config = AdapterConfig::new(naming, lora.rank, lora.alpha, &modules, &layers);
                config.lora_dropout = settings.adapter.dropout;
                config.use_rslora = lora.rslora;
                config.base_model_name_or_path = Some(self.model.model.clone());
                (Adapter::new(&engine.device, layout, settings.run.seed), config)
            }
        };
        let objective = objective(settings)?;
        // Last, so that nothing that is wrong with the request leaves a run behind.
        let run = match self.resume && self.out.join("config.toml").exists() {
            true => RunDir::resume(&self.out, settings, &self.identity, self.other_unit)?,
            false => RunDir::create(&self.out, settings, &self.identity)?,
        };
        let mut trainer = AdapterTrainer::new(engine, adapter, config, objective, settings.run.seed);
        let total = settings.total_steps(self.groups.len());
        let done = run.newest_checkpoint()?.0.map_or(0, |checkpoint| checkpoint.step);
        let mut bar = ProgressBar::new(total, done);
        let summary = train(&mut trainer, &self.groups, &self.validation, settings, &run, |metrics, timing| {
            bar.step(metrics, timing);
            ControlFlow::Continue(())
        });
        bar.finish();
        summary
    }
}

fn lora_settings(settings: &Settings, layers: usize) -> crate::Result<LoraSettings> {
    let adapter = &settings.adapter;
    Ok(LoraSettings {
        layers: adapter.layers.resolve(layers)?.into_iter().collect(),
        modules: adapter.modules.iter().copied().collect(),
        rank: adapter.rank,
        alpha: adapter.alpha,
        rslora: adapter.rslora,
    })
}

fn objective(settings: &Settings) -> crate::Result<Objective> {
    let objective = &settings.objective;
    let lambda = objective.lambda();
    Ok(match &objective.loss {
        Some(name) => Objective::new(name, objective.pairs, Some(lambda))?,
        None => Objective::custom(
            objective.consistency.as_deref().map(str::parse).transpose()?,
            objective.accuracy.as_deref().map(str::parse).transpose()?,
            objective.pairs,
            lambda,
        )?,
    })
}

fn report(summary: &TrainSummary, out: &Path, json: bool) -> crate::Result<()> {
    let adapter = out.join(format!("checkpoints/step-{}", summary.steps));
    for skipped in &summary.skipped {
        eprintln!("skipped checkpoint {}: it is not whole", skipped.name);
    }
    if let Some(step) = summary.collapsed_at {
        eprintln!("warning: at step {step} every answer was the same although the truths differed");
        eprintln!("hint: a loss without an accuracy part collapses; give λ above 0");
    }
    if json {
        return super::print_json(&serde_json::json!({
            "steps": summary.steps,
            "total_steps": summary.total_steps,
            "resumed_from": summary.resumed_from,
            "adapter": adapter,
            "best_step": summary.best_step,
            "collapsed_at": summary.collapsed_at,
            "last": summary.last,
        }));
    }
    let mut table = Table::new(&["training", ""]);
    super::row(&mut table, "steps", &format!("{} of {}", summary.steps, summary.total_steps));
    super::row(&mut table, "adapter", &adapter.display().to_string());
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
