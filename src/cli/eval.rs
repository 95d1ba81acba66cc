//! `unflip eval`.

use super::data::Prompting;
use super::device::{DeviceArgs, OnDevice};
use super::model::ModelArgs;
use crate::data::ReadOptions;
use crate::eval::{EvalSettings, Evaluation, Header, METRICS, ProgressBar, Question, evaluate};
use crate::ops::TrainDevice;
use crate::report::{Cell, Table};
use crate::weights::{AdapterFile, Checkpoint};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `eval`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  unflip eval --model models/gemma-3-270m --data assets/reports/reports-eval.jsonl --limit 20 --out runs/base\n\n\
    An interrupted evaluation goes on where it stopped when run again."
)]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt groups (JSONL)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Folder for results.json and samples.jsonl
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Evaluate the first N groups only
    #[arg(long, value_name = "N", value_parser = super::count)]
    limit: Option<usize>,
    /// Groups packed into one launch (results do not depend on it)
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = super::count)]
    groups_per_batch: usize,
    /// Bootstrap resamples of the intervals
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = super::count)]
    resamples: usize,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Pattern of the user's turn (default: the one that the adapter was trained with, else the paper's)
    #[arg(long, value_name = "PATTERN")]
    template: Option<String>,
    /// Run every phrasing by itself instead of sharing the group's prefix
    #[arg(long)]
    no_sharing: bool,
    /// Print results.json instead of tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Eval {
    /// Runs the verb.
    ///
    /// # Errors
    /// Anything wrong with model, adapter, data or the output folder.
    pub fn run(self) -> crate::Result<()> {
        let (checkpoint, adapter) = self.model.open()?;
        let template = super::data::template(self.template.as_deref(), self.model.adapter.as_deref())?;
        let prompting = Prompting::open(&checkpoint, template)?;
        let (file, questions) = prompting.read(&self.data, self.limit, ReadOptions::default())?;
        let header = Header {
            model: checkpoint.fingerprint()?,
            adapter: self.model.adapter.as_deref().map(super::model::adapter_identity).transpose()?,
            data: file.sha256,
            template: prompting.template.hash(),
            precision: self.device.precision_name().into(),
            unit: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let (device, out, json) = (self.device.clone(), self.out.clone(), self.json);
        let evaluation = device.run(Work { arguments: self, checkpoint, adapter, questions, header })?;
        if json {
            let path = out.join("results.json");
            let text = std::fs::read_to_string(&path).map_err(|error| crate::Error::io("read", path, error))?;
            return super::out(&text);
        }
        print(&evaluation)
    }
}

struct Work {
    arguments: Eval,
    checkpoint: Checkpoint,
    adapter: Option<AdapterFile>,
    questions: Vec<Question>,
    header: Header,
}

impl OnDevice for Work {
    type Output = Evaluation;

    fn run<D: TrainDevice + 'static>(mut self, device: D) -> crate::Result<Evaluation> {
        let arguments = &self.arguments;
        self.header.unit = device.unit();
        let mut engine = arguments.model.engine(device, &self.checkpoint, self.adapter.as_ref(), None)?;
        engine.share_prefix = !arguments.no_sharing;
        let groups: Vec<_> = self.questions.iter().map(|question| question.group.clone()).collect();
        engine.check_groups(&groups)?;
        let settings = EvalSettings {
            groups_per_batch: arguments.groups_per_batch,
            limit: arguments.limit,
            resamples: arguments.resamples,
            seed: arguments.seed,
        };
        let config = serde_json::json!({
            "model": arguments.model.model,
            "adapter": arguments.model.adapter,
            "data": arguments.data,
            "limit": arguments.limit,
            "embed_scale": engine.model.embed_scale,
            "share_prefix": engine.share_prefix,
        });
        let bar = ProgressBar::new(self.questions.len());
        let evaluation =
            evaluate(&mut engine, &self.questions, &self.header, &settings, config, &arguments.out, |counts| {
                bar.show(counts)
            });
        bar.finish();
        evaluation
    }
}

/// Metrics with their intervals, then the breakdowns.
fn print(evaluation: &Evaluation) -> crate::Result<()> {
    let mut table = Table::new(&["metric", "value", "95 % low", "high"]);
    for (name, estimate) in METRICS.into_iter().zip(&evaluation.metrics.estimates) {
        table.row(vec![
            Cell::text(name),
            Cell::Number(estimate.value, 4),
            Cell::Number(estimate.low, 4),
            Cell::Number(estimate.high, 4),
        ]);
    }
    super::out(&table.plain())?;
    for (title, sets) in [("phenomenon", &evaluation.by_phenomenon), ("finding", &evaluation.by_finding)] {
        if sets.is_empty() {
            continue;
        }
        let mut table = Table::new(&[title, "questions", "flips question", "flips pair", "accuracy"]);
        for (name, set) in sets {
            let percent = |key: &str| {
                let place = METRICS.into_iter().position(|name| name == key);
                place.map_or(Cell::Missing, |place| Cell::Percent(set.estimates[place].value, 1))
            };
            table.row(vec![
                Cell::text(name),
                Cell::Integer(set.counts.questions as i64),
                percent("flip_rate_question"),
                percent("flip_rate_pair"),
                percent("accuracy_all"),
            ]);
        }
        super::out(&format!("\n{}", table.plain()))?;
    }
    Ok(())
}
