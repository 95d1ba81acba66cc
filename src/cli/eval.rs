//! `unflip eval`.

use super::data::Prompting;
use super::device::{DeviceArgs, OnDevice};
use super::model::ModelArgs;
use super::profile::ProfileArgs;
use super::trunk::TrunkArgs;
use crate::data::ReadOptions;
use crate::estimate::Task;
use crate::eval::{
    BATCH_SIZES, BatchingControl, Estimate, EvalSettings, Evaluation, Header, METRICS, MetricSet, ProgressBar,
    Question, batching_control, evaluate, record_batching,
};
use crate::model::LoraLayout;
use crate::objective::Pooling;
use crate::ops::Device;
use crate::report::{Cell, Table, progress_bar};
use crate::weights::{AdapterFile, Checkpoint};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Controls of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Control {
    /// Every group alone and in batches of 2, 3 and 8: no bit of a margin may differ, else exit code 1.
    Batching,
}

/// Arguments of `eval`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  unflip eval --model models/gemma-3-270m --data assets/reports/reports-eval.jsonl --limit 20 --out runs/base\n\n\
    An interrupted evaluation goes on where it stopped when run again. `--control batching` evaluates every group alone and packed together \
    with others, and fails if an answer depends on it."
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
    /// Accept questions without paraphrase: they count in accuracy and yes-rate alone
    #[arg(long)]
    allow_no_paraphrases: bool,
    /// Groups packed into one launch (results do not depend on it)
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = super::count)]
    groups_per_batch: usize,
    /// Also check, after the evaluation, that answers do not depend on the batch
    #[arg(long, value_enum, value_name = "WHAT")]
    control: Option<Control>,
    /// How an answer's spellings become one logit: single (the first alone), max or logsumexp (default: as the adapter was
    /// trained, else single)
    #[arg(long, value_name = "HOW")]
    pool: Option<String>,
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
    trunk: TrunkArgs,
    #[command(flatten)]
    profile: ProfileArgs,
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
        let pool = super::data::pool(self.pool.as_deref(), self.model.adapter.as_deref())?;
        let prompting = Prompting::open(&checkpoint, template)?;
        let pooling = prompting.pooling(pool);
        let options = ReadOptions { allow_no_paraphrases: self.allow_no_paraphrases };
        let (file, questions) = prompting.read(&self.data, self.limit, options)?;
        let header = Header {
            model: checkpoint.fingerprint()?,
            adapter: self.model.adapter.as_deref().map(AdapterFile::fingerprint).transpose()?,
            data: file.sha256,
            template: prompting.template.hash(),
            precision: self.device.precision_name().into(),
            // Known once the model is on the device.
            embed_scale: String::new(),
            share_prefix: !self.no_sharing,
            yes: prompting.answers.yes,
            no: prompting.answers.no,
            pool,
            yes_spellings: pooling.yes.clone(),
            no_spellings: pooling.no.clone(),
            unit: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let layout = adapter.as_ref().map(|file| LoraLayout::from_file(&checkpoint.config.text, file)).transpose()?;
        let groups: Vec<_> = questions.iter().map(|question| question.group.clone()).collect();
        let task = Task {
            checkpoint: &checkpoint,
            layout: layout.as_ref(),
            groups: &groups,
            share_prefix: !self.no_sharing,
            groups_per_batch: self.groups_per_batch,
            trunk_budget: self.trunk.trunk_cache,
            training: None,
        };
        super::memory::check(&self.device, &task)?;
        let (device, out, json) = (self.device.clone(), self.out.clone(), self.json);
        let profile = self.profile.begin()?;
        let work = Work { arguments: self, checkpoint, adapter, questions, header, pooling };
        let (evaluation, control) = profile.run(&device, work)?;
        if json {
            let path = out.join("results.json");
            let text = std::fs::read_to_string(&path).map_err(|error| crate::Error::io("read", path, error))?;
            super::out(&text)?;
        } else {
            print(&evaluation, control.as_ref())?;
        }
        Ok(control.map_or(Ok(()), |control| control.passed())?)
    }
}

struct Work {
    arguments: Eval,
    checkpoint: Checkpoint,
    adapter: Option<AdapterFile>,
    questions: Vec<Question>,
    header: Header,
    pooling: Pooling,
}

impl OnDevice for Work {
    type Output = (Evaluation, Option<BatchingControl>);

    fn run<D: Device + 'static>(mut self, device: D) -> crate::Result<Self::Output> {
        let arguments = &self.arguments;
        self.header.unit = device.unit();
        let mut engine = arguments.model.engine(device, &self.checkpoint, self.adapter.as_ref(), None)?;
        engine.share_prefix = self.header.share_prefix;
        engine.pooling = self.pooling;
        let lowest = engine.adapter.as_ref().and_then(|adapter| adapter.layout.lowest_layer());
        arguments.trunk.attach(&mut engine, &self.checkpoint, lowest)?;
        self.header.embed_scale = engine.model.embed_scale.to_string();
        let groups: Vec<_> = self.questions.iter().map(|question| question.group.clone()).collect();
        engine.check_groups(&groups)?;
        let settings = EvalSettings {
            groups_per_batch: arguments.groups_per_batch,
            resamples: arguments.resamples,
            seed: arguments.seed,
        };
        let config = serde_json::json!({
            "model": arguments.model.model,
            "adapter": arguments.model.adapter,
            "data": arguments.data,
            "limit": arguments.limit,
        });
        let bar = ProgressBar::new(self.questions.len());
        let evaluation =
            evaluate(&mut engine, &self.questions, &self.header, &settings, config, &arguments.out, |counts| {
                bar.show(counts)
            });
        bar.finish();
        let evaluation = evaluation?;
        let control = match arguments.control {
            None => None,
            Some(Control::Batching) => {
                // What is stored would be compared with itself.
                engine.trunk = None;
                let launches = self.questions.len() * (1 + BATCH_SIZES.len());
                let bar = progress_bar(launches as u64, "{bar:30} {pos}/{len} alone and in batches, left {eta}");
                let control = batching_control(
                    &mut engine,
                    &self.questions,
                    &evaluation.groups,
                    arguments.groups_per_batch,
                    &BATCH_SIZES,
                    |groups| bar.inc(groups as u64),
                );
                bar.finish_and_clear();
                let control = control?;
                record_batching(&arguments.out, &control)?;
                Some(control)
            }
        };
        Ok((evaluation, control))
    }
}

/// Metrics with their intervals and numbers of units, then the breakdowns.
fn print(evaluation: &Evaluation, control: Option<&BatchingControl>) -> crate::Result<()> {
    super::out(&main_table(&evaluation.metrics).plain())?;
    for (title, sets) in [("phenomenon", &evaluation.by_phenomenon), ("finding", &evaluation.by_finding)] {
        if !sets.is_empty() {
            super::out(&format!("\n{}", breakdown(title, sets).plain()))?;
        }
    }
    if let Some(control) = control {
        let sizes: Vec<String> = control.sizes.iter().map(usize::to_string).collect();
        super::out(&format!(
            "\n{} of {} answers and {} margins depend on the batch (groups alone and {} together)\n",
            control.answers_that_depend_on_the_batch,
            control.compared,
            control.margins_that_depend_on_the_batch,
            sizes.join(", ")
        ))?;
    }
    Ok(())
}

/// A rate as a percentage, a margin as a number.
fn cell(metric: &str, value: f64) -> Cell {
    if metric.starts_with("margin") { Cell::Number(value, 3) } else { Cell::Percent(value, 1) }
}

/// A value and its interval.
fn interval(metric: &str, found: &Estimate) -> Cell {
    let Estimate { value, low, high, .. } = *found;
    let percent = !metric.starts_with("margin");
    Cell::Interval { value, low, high, decimals: if percent { 1 } else { 3 }, percent }
}

fn main_table(set: &MetricSet) -> Table {
    let counts = &set.counts;
    let mut table = Table::new(&["metric", "value", "95 % low", "high", "n"]);
    for (name, estimate) in METRICS.into_iter().zip(&set.estimates) {
        let n = set.units(name);
        let [value, low, high] = [estimate.value, estimate.low, estimate.high].map(|value| cell(name, value));
        table.row(vec![Cell::text(name), value, low, high, Cell::Integer(n as i64)]);
    }
    let ties = Cell::Integer(counts.ties as i64);
    table.row(vec![Cell::text("ties"), ties, Cell::Missing, Cell::Missing, Cell::Integer(counts.phrasings as i64)]);
    table
}

fn breakdown(title: &str, sets: &BTreeMap<String, MetricSet>) -> Table {
    const SHOWN: [&str; 4] = ["flip_rate_question", "flip_rate_pair", "margin_difference", "accuracy_all"];
    let mut table = Table::new(&[&[title, "questions"], &SHOWN[..]].concat());
    for (name, set) in sets {
        let mut cells = vec![Cell::text(name), Cell::Integer(set.counts.questions as i64)];
        cells.extend(SHOWN.map(|metric| set.get(metric).map_or(Cell::Missing, |found| interval(metric, &found))));
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Origin, Sample};

    fn sample(index: usize, margin: f64) -> Sample {
        Sample {
            id: "a".into(),
            index,
            phenomenon: None,
            finding: None,
            cluster: "r".into(),
            origin: Origin::default(),
            margin,
            answer: String::new(),
            truth: "yes".into(),
            flipped: None,
            tokens: 1,
            tokens_sha256: String::new(),
        }
    }

    #[test]
    fn tables_name_each_metric_as_the_results_do_and_count_its_units() {
        let groups = [vec![sample(0, 2.0), sample(1, 0.0), sample(2, 1.5)], vec![sample(0, 1.0)]];
        let set = MetricSet::of(&groups, 10, 0);
        let text = main_table(&set).plain();
        assert_eq!(text.lines().count(), 2 + METRICS.len() + 1, "{text}");
        let row = |name: &str| {
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(name)).expect(name);
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let ends = |name: &str| (row(name)[1].clone(), row(name).last().cloned());
        let found = |value: &str, n: &str| (value.to_owned(), Some(n.to_owned()));
        assert_eq!(ends("flip_rate_question"), found("100.0", "1"), "of the one question that can flip");
        assert_eq!(ends("flip_rate_pair"), found("50.0", "2"));
        assert_eq!(ends("margin_difference"), found("1.250", "2"));
        assert_eq!(ends("accuracy"), found("100.0", "2"));
        assert_eq!(ends("accuracy_all"), found("75.0", "4"));
        assert_eq!(ends("ties"), found("1", "4"));
        let table = breakdown("finding", &BTreeMap::from([("effusion".to_owned(), set)]));
        assert!(table.plain().contains("50.0 % [50.0, 50.0]"), "one cluster: {}", table.plain());
        let json = &table.json()[0];
        assert_eq!((&json["flip_rate_pair_low"], &json["accuracy_all_high"]), (&0.5.into(), &0.75.into()));
        assert_eq!((&json["flip_rate_pair"], &json["margin_difference"]), (&0.5.into(), &1.25.into()));
        assert_eq!((&json["accuracy_all"], &json["questions"]), (&0.75.into(), &2.into()));
    }
}
