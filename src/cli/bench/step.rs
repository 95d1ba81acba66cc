//! `unflip bench step`.

use crate::bench::{Samples, StepBench, StepSettings, StepTime};
use crate::cli::device::{DeviceArgs, OnTrainDevice};
use crate::cli::model::ModelArgs;
use crate::cli::profile::{ProfileArgs, Profiling};
use crate::cli::trace::PairsName;
use crate::cli::trunk::{TrunkArgs, size};
use crate::data::TraceInput;
use crate::machine;
use crate::model::LoraSettings;
use crate::objective::{Objective, default_lambda};
use crate::ops::TrainDevice;
use crate::report::{Cell, Table};
use crate::train::Layers;
use crate::weights::{AdapterFile, Checkpoint, Module};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `bench step`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  unflip bench step --model models/gemma-3-270m --groups tools/peer/groups_270m.json --eval --flops 192e9\n  \
    unflip bench step --model models/gemma-3-270m --groups tools/peer/groups_270m.json --layers 8-11 --trunk-cache 1GB --profile trace.json\n\n\
    A step is one group: forward, loss, backward, gradient norm, AdamW. With --interactive a line on stdin, `train [GROUP]`, `eval [GROUP]` or `peak`, \
    is answered by one line of JSON, so that a script can take turns with another process."
)]
pub struct Step {
    #[command(flatten)]
    model: ModelArgs,
    /// Groups as token ids (groups.json)
    #[arg(long, value_name = "FILE")]
    groups: PathBuf,
    /// Layers of a new adapter: all, 8-11, or 2,3,7
    #[arg(long, default_value = "all", value_name = "LAYERS")]
    layers: String,
    /// Rank of a new adapter
    #[arg(long, default_value_t = 16, value_name = "R", value_parser = crate::cli::count)]
    rank: usize,
    /// α of a new adapter
    #[arg(long, default_value_t = 32.0, value_name = "X")]
    alpha: f64,
    /// paper, combined, margin, symkl-binary, symkl-full, ce-binary or ce-full
    #[arg(long, default_value = "combined", value_name = "NAME")]
    loss: String,
    /// Weight of the loss's second term (default: the loss's own)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<f64>,
    /// Which phrasings the loss pairs
    #[arg(long, value_enum, default_value = "all")]
    pairs: PairsName,
    /// Learning rate
    #[arg(long, default_value_t = 1e-4, value_name = "X")]
    lr: f64,
    /// Steps to time, each on the next group
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = crate::cli::count)]
    steps: usize,
    /// Steps before these, which are not counted
    #[arg(long, default_value_t = 1, value_name = "N")]
    warmup: usize,
    /// Time evaluations as well
    #[arg(long)]
    eval: bool,
    /// Time evaluations alone
    #[arg(long, conflicts_with = "eval")]
    eval_only: bool,
    /// Work of a training step as someone counts it, for a rate beside the times, e.g. 192e9
    #[arg(long, value_name = "FLOP")]
    flops: Option<f64>,
    /// Hidden states below the lowest adapted layer to keep in memory, e.g. 1GB (default: none, so that every step is a whole one)
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    trunk_cache: u64,
    /// The same on disk
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size, requires = "trunk_cache_dir")]
    trunk_cache_disk: u64,
    /// Where on disk
    #[arg(long, value_name = "DIR")]
    trunk_cache_dir: Option<PathBuf>,
    /// Do what lines on stdin ask for
    #[arg(long)]
    interactive: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Step {
    /// Runs the verb.
    ///
    /// # Errors
    /// Bad input of any kind.
    pub fn run(self) -> crate::Result<()> {
        let began = Instant::now();
        let profile = self.profile.begin()?;
        let input = TraceInput::read(&self.groups)?;
        let lambda = self.lambda.or(default_lambda(&self.loss));
        let objective = Objective::new(&self.loss, self.pairs.into(), lambda)?;
        let (checkpoint, adapter) = self.model.open()?;
        let depth = checkpoint.config.text.num_hidden_layers;
        let layers = Layers::parse(&self.layers).ok_or_else(|| crate::Error::Usage {
            message: format!("--layers must be all, a range like 8-11, or a list like 2,3,7, found `{}`", self.layers),
            hint: None,
        })?;
        let lora = LoraSettings {
            layers: layers.resolve(depth)?.into_iter().collect(),
            modules: Module::ALL.into_iter().collect(),
            rank: self.rank,
            alpha: self.alpha,
            rslora: false,
        };
        let settings = StepSettings { lora, objective, lr: self.lr, seed: 0 };
        let device = self.device.clone();
        let work = Work { arguments: self, began, checkpoint, adapter, input, settings, profile: profile.clone() };
        profile.run_training(&device, work)
    }
}

struct Work {
    arguments: Step,
    began: Instant,
    checkpoint: Checkpoint,
    adapter: Option<AdapterFile>,
    input: TraceInput,
    settings: StepSettings,
    profile: Profiling,
}

impl OnTrainDevice for Work {
    type Output = ();

    fn run<D: TrainDevice + 'static>(self, device: D) -> crate::Result<()> {
        let arguments = &self.arguments;
        let serves = device.describe();
        let mut engine = arguments.model.engine(device, &self.checkpoint, None, None)?;
        let lowest = match &self.adapter {
            Some(file) => file.tensors.iter().map(|tensors| tensors.layer).min(),
            None => self.settings.lora.layers.first().copied(),
        };
        let trunk = TrunkArgs {
            trunk_cache: arguments.trunk_cache,
            trunk_cache_disk: arguments.trunk_cache_disk,
            trunk_cache_dir: arguments.trunk_cache_dir.clone(),
        };
        trunk.attach(&mut engine, &self.checkpoint, lowest)?;
        let mut bench = StepBench::new(engine, self.adapter.as_ref(), &self.input, &self.settings)?;
        if arguments.interactive {
            let ready = json!({
                "ready": self.began.elapsed().as_secs_f64(),
                "serves": serves,
                "groups": bench.groups(),
                "unflip": env!("CARGO_PKG_VERSION"),
            });
            return interact(&mut bench, &ready, &self.profile);
        }
        self.time(&mut bench, &serves)
    }
}

impl Work {
    fn time<D: TrainDevice>(&self, bench: &mut StepBench<D>, serves: &str) -> crate::Result<()> {
        let arguments = &self.arguments;
        let mut results = Vec::new();
        if !arguments.eval_only {
            results.push(("training step", self.repeat(|| bench.train(None), "train")?));
        }
        if arguments.eval || arguments.eval_only {
            results.push(("evaluation", self.repeat(|| bench.evaluate(None), "eval")?));
        }
        let peak = machine::peak_resident();
        if arguments.json {
            let mut object = Map::new();
            object.insert("unflip/serves".into(), json!(serves));
            object.insert("unflip/memory/peak_resident".into(), json!(peak));
            for (name, times) in &results {
                let name = if *name == "evaluation" { "eval" } else { "train" };
                let samples = seconds(times);
                object.insert(format!("unflip/step/{name}/time/median"), json!(samples.median()));
                object.insert(format!("unflip/step/{name}/time/noise"), json!(samples.noise()));
                object.insert(format!("unflip/step/{name}/samples"), times.iter().map(record).collect());
            }
            return crate::cli::print_json(&Value::Object(object));
        }
        let mut table =
            Table::new(&["per group", "samples", "median s", "least s", "most s", "noise", "tokens/s", "GFLOP/s"]);
        for (name, times) in &results {
            let samples = seconds(times);
            let tokens: usize = times.iter().map(|time| time.tokens).sum();
            let given = arguments.flops.filter(|_| *name == "training step");
            table.row(vec![
                Cell::text(*name),
                Cell::Integer(samples.len() as i64),
                Cell::Number(samples.median(), 3),
                Cell::Number(samples.least(), 3),
                Cell::Number(samples.most(), 3),
                Cell::Percent(samples.noise(), 1),
                Cell::Number(tokens as f64 / samples.total(), 0),
                given.map_or(Cell::Missing, |flops| Cell::Number(flops / samples.median() / 1e9, 1)),
            ]);
        }
        let peak = peak.map_or("unknown".into(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6));
        crate::cli::out(&format!("{}\n{serves}; peak resident set {peak}\n", table.plain()))
    }

    /// Warm-up, then the steps that count.
    fn repeat(&self, mut step: impl FnMut() -> crate::Result<StepTime>, name: &str) -> crate::Result<Vec<StepTime>> {
        let (warmup, steps) = (self.arguments.warmup, self.arguments.steps);
        let bar = crate::report::progress_bar((warmup + steps) as u64, "{msg} {bar:30} {pos}/{len} {eta}");
        bar.set_message(name.to_owned());
        let mut times = Vec::new();
        for index in 0..warmup + steps {
            if index == warmup && (name == "train" || self.arguments.eval_only) {
                self.profile.clear();
            }
            let time = step()?;
            self.profile.mark(|| format!("end of {name} {index}"));
            bar.inc(1);
            if index >= warmup {
                times.push(time);
            }
        }
        bar.finish_and_clear();
        Ok(times)
    }
}

fn seconds(times: &[StepTime]) -> Samples {
    times.iter().map(|time| time.seconds).collect()
}

fn record(time: &StepTime) -> Value {
    json!({
        "group": time.group,
        "seconds": time.seconds,
        "tokens": time.tokens,
        "loss": time.loss,
        "margins": time.margins,
    })
}

/// Answers each line of stdin with one line of JSON, until its end.
fn interact<D: TrainDevice>(bench: &mut StepBench<D>, ready: &Value, profile: &Profiling) -> crate::Result<()> {
    crate::cli::out(&format!("{ready}\n"))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|source| crate::Error::io("read", "standard input", source))?;
        let mut words = line.split_whitespace();
        let (verb, group) = (words.next(), words.next());
        let wrong = || crate::Error::Usage {
            message: format!("expected `train [GROUP]`, `eval [GROUP]` or `peak`, found `{line}`"),
            hint: Some("`unflip bench step --help` says what --interactive does".into()),
        };
        let group = group.map(str::parse).transpose().map_err(|_| wrong())?;
        let answer = match verb {
            None => continue,
            Some("train") => record(&bench.train(group)?),
            Some("eval") => record(&bench.evaluate(group)?),
            Some("peak") => json!({"peak_resident": machine::peak_resident()}),
            Some(_) => return Err(wrong()),
        };
        profile.mark(|| format!("end of {line}"));
        crate::cli::out(&format!("{answer}\n"))?;
    }
    Ok(())
}
