//! `unflip doctor`.

use super::data::Prompting;
use super::device::DeviceArgs;
use super::memory;
use super::model::ModelArgs;
use super::row;
use super::train::Flags;
use super::trunk::TrunkArgs;
use crate::bench::DeviceBlock;
use crate::bench::kernels;
use crate::cuda::probe;
use crate::data::{ReadOptions, TokenGroup};
use crate::estimate::{
    Estimate, GroupWork, Task, TrainingTask, Verdict, cost, estimate, group_work, judge, least_seconds, size,
};
use crate::machine::{self, Machine};
use crate::report::Table;
use crate::train::{EngineGroup, PRESETS, Settings};
use crate::weights::Checkpoint;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `doctor`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  unflip doctor --json\n  unflip doctor --model models/gemma-3-270m --data assets/reports/reports-train.jsonl --layers 8-11\n\n\
    With --model it says what `unflip train` with the same settings would take: which kernels serve, memory, trunk cache, time. Nothing but \
    config.json, headers and the data is read. Without --data it takes groups of 300 tokens and five endings of 24."
)]
pub struct Doctor {
    /// Named starting point of the settings, as in `unflip train`; the config file and flags override it
    #[arg(long, value_name = "NAME", value_parser = PRESETS.map(|(name, _)| name))]
    preset: Option<String>,
    /// Settings of a training run (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trunk: TrunkArgs,
    #[command(flatten)]
    flags: Flags,
}

impl Doctor {
    /// Runs the verb.
    ///
    /// # Errors
    /// Wrong settings, a model or data that cannot be read. A task that does not fit is a finding and no error.
    pub fn run(self) -> crate::Result<()> {
        let machine = Machine::detect();
        let settings = self.flags.settings(self.preset.as_deref(), self.config.as_deref())?;
        let outlook = match settings.model.path.clone() {
            Some(path) => Some(self.outlook(settings, &path.display().to_string())?),
            None => None,
        };
        if self.json {
            let mut value = serde_json::to_value(&machine).unwrap_or_default();
            value["cuda"] = serde_json::to_value(probe::report()).unwrap_or_default();
            if let (Some(outlook), Value::Object(object)) = (&outlook, &mut value) {
                object.insert("task".into(), outlook.json());
            }
            return super::print_json(&value);
        }
        super::out(&machine_table(&machine).plain())?;
        let Some(outlook) = outlook else { return Ok(()) };
        for table in outlook.tables() {
            super::out(&format!("\n{}", table.plain()))?;
        }
        match &outlook.verdict {
            Some(Verdict::Fits) => {}
            Some(Verdict::Tight(text)) => eprintln!("warning: {text}"),
            Some(Verdict::TooMuch(hint)) => {
                let need = size(outlook.training.needed());
                eprintln!("warning: training needs {need} of memory, which this machine does not have\nhint: {hint}");
            }
            None => eprintln!("warning: this system does not say how much memory is free"),
        }
        Ok(())
    }

    fn outlook(&self, mut settings: Settings, path: &str) -> crate::Result<Outlook> {
        let model = ModelArgs::named(path, &settings.model)?;
        let device = DeviceArgs::named(&settings)?;
        let (checkpoint, adapter) = model.open()?;
        let template = settings.complete(&checkpoint, adapter.as_ref())?;
        let (groups, typical) = match &settings.data.train {
            Some(data) => {
                let prompting = Prompting::open(&checkpoint, template)?;
                let options = ReadOptions { allow_no_paraphrases: !settings.needs_paraphrases() };
                let (_, questions) = prompting.read(data, settings.data.limit, options)?;
                (questions.into_iter().map(|question| question.group).collect(), false)
            }
            None => (vec![typical_group()], true),
        };
        let layout = memory::layout(&settings, &checkpoint, adapter.as_ref())?;
        let objective = settings.objective.build()?;
        let schedule = &settings.schedule;
        let training = Task {
            checkpoint: &checkpoint,
            layout: Some(&layout),
            groups: &groups,
            share_prefix: settings.model.share_prefix,
            groups_per_batch: schedule.groups_per_batch,
            trunk_budget: self.trunk.trunk_cache,
            training: Some(TrainingTask { objective: &objective, batch_groups: schedule.batch_groups }),
        };
        let evaluation = Task { training: None, groups_per_batch: 1, ..training };
        let found = estimate(&training)?;
        let verdict = machine::memory().map(|memory| judge(&training, &found, &memory)).transpose()?;
        let block = DeviceBlock::measure(device.threads)?;
        Ok(Outlook {
            model: describe(&checkpoint),
            serves: device.describe()?,
            peaks: device.peaks()?,
            memory: machine::memory(),
            train_work: group_work(&training)?,
            eval_work: group_work(&evaluation)?,
            evaluation: estimate(&evaluation)?,
            training: found,
            verdict,
            block,
            groups: groups.len(),
            typical,
            batch_groups: schedule.batch_groups,
            steps: settings.total_steps(groups.len()),
        })
    }
}

/// A group like those of the peers' workload.
fn typical_group() -> EngineGroup {
    let tokens = TokenGroup { prefix: vec![2; 300], suffixes: vec![vec![2; 24]; 5] };
    EngineGroup { id: "typical".into(), tokens, yes: 0, no: 1, answer_yes: true }
}

fn describe(checkpoint: &Checkpoint) -> String {
    let config = &checkpoint.config.text;
    let parameters: usize = config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    format!(
        "{} layers of width {}, vocabulary {}, {:.0} million parameters in {}",
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
        parameters as f64 / 1e6,
        checkpoint.weight_dtype().name(),
    )
}

/// What a run would take.
struct Outlook {
    model: String,
    serves: String,
    block: DeviceBlock,
    peaks: crate::cpu::peak::Peaks,
    memory: Option<machine::Memory>,
    training: Estimate,
    evaluation: Estimate,
    verdict: Option<Verdict>,
    train_work: GroupWork,
    eval_work: GroupWork,
    groups: usize,
    typical: bool,
    batch_groups: usize,
    steps: u64,
}

impl Outlook {
    /// Least seconds of a training step, cold and with a warm trunk cache, and of an evaluation of one group.
    fn seconds(&self) -> [f64; 3] {
        let groups = self.batch_groups as f64;
        [
            groups * least_seconds(&self.train_work.cold, &self.peaks),
            groups * least_seconds(&self.train_work.warm, &self.peaks),
            least_seconds(&self.eval_work.cold, &self.peaks),
        ]
    }

    fn tables(&self) -> [Table; 4] {
        let mut kernels = Table::new(&["operation", "served by"]);
        let mut names: Vec<&str> = kernels::list().iter().map(|listed| listed.name).collect();
        names.dedup();
        for name in names {
            row(&mut kernels, name, &self.serves);
        }

        let mut memory = Table::new(&["memory", "training", "evaluation"]);
        let mut line = |name: &str, of: fn(&Estimate) -> u64| {
            let cells = [name.to_owned(), size(of(&self.training)), size(of(&self.evaluation))];
            memory.row(cells.map(crate::report::Cell::text).into());
        };
        line("weights, mapped", |found| found.weights);
        line("adapter, gradients, moments", |found| found.adapter);
        line("activations of the largest launch", |found| found.activations);
        line("logits on the host", |found| found.host);
        line("trunk cache in memory", |found| found.trunk_held);
        line("program and tokenizer", |found| found.program);
        line("must be there", Estimate::needed);
        line("with all weights", Estimate::resident);

        let mut task = Table::new(&["task", ""]);
        row(&mut task, "model", &self.model);
        let rows = self.training.most_rows;
        let groups = if self.typical {
            "none given: a prefix of 300 tokens and five endings of 24".to_owned()
        } else {
            format!(
                "{} groups, {} tokens in one of mean size, {rows} in the largest launch",
                self.groups, self.train_work.rows
            )
        };
        row(&mut task, "data", &groups);
        let available =
            self.memory.map_or("unknown".into(), |memory| format!("{} {}", size(memory.available), memory.limit));
        row(&mut task, "memory to be had", &available);
        if self.training.trunk_total > 0 {
            let total = size(self.training.trunk_total);
            row(
                &mut task,
                "trunk cache of all groups",
                &format!("{total} (budgets: --trunk-cache, --trunk-cache-disk)"),
            );
        }
        let seconds = |name: &str, seconds: f64| (name.to_owned(), format!("{seconds:.2} s"));
        let [step, warm, evaluation] = self.seconds();
        let work = cost(&self.train_work.cold).flops * self.batch_groups as f64 / 1e9;
        row(&mut task, "work of a step", &format!("{work:.0} GFLOP in {} groups", self.batch_groups));
        for (name, text) in [
            seconds("least time of a step", step),
            seconds("the same, trunk cache warm", warm),
            seconds("least time to evaluate a group", evaluation),
        ] {
            row(&mut task, &name, &text);
        }
        if !self.typical {
            let minutes = |seconds: f64| format!("{:.1} min", seconds / 60.0);
            let steps = self.steps as f64;
            row(&mut task, &format!("least time of {} steps", self.steps), &minutes(steps * step));
            row(&mut task, "least time to evaluate all groups", &minutes(self.groups as f64 * evaluation));
        }
        row(
            &mut task,
            "least time is",
            "the roofline of the peaks above; steps take longer, by `unflip bench step` how much",
        );
        [self.block.table(), kernels, memory, task]
    }

    fn json(&self) -> Value {
        let memory = |found: &Estimate| {
            json!({
                "weights": found.weights,
                "adapter": found.adapter,
                "activations": found.activations,
                "host": found.host,
                "trunk_cache": found.trunk_held,
                "trunk_cache_of_all_groups": found.trunk_total,
                "program": found.program,
                "needed": found.needed(),
                "resident": found.resident(),
                "most_rows": found.most_rows,
            })
        };
        let [step, warm, evaluation] = self.seconds();
        let verdict = match &self.verdict {
            Some(Verdict::Fits) => json!("fits"),
            Some(Verdict::Tight(text)) => json!({"tight": text}),
            Some(Verdict::TooMuch(text)) => json!({"too much": text}),
            None => Value::Null,
        };
        json!({
            "model": self.model,
            "serves": self.serves,
            "device": self.block,
            "memory": {"training": memory(&self.training), "evaluation": memory(&self.evaluation), "available": self.memory},
            "verdict": verdict,
            "groups": if self.typical { Value::Null } else { json!(self.groups) },
            "group_rows": self.train_work.rows,
            "step": {
                "groups": self.batch_groups,
                "flops": cost(&self.train_work.cold).flops * self.batch_groups as f64,
                "least_seconds": step,
                "least_seconds_warm": warm,
            },
            "evaluation": {"flops": cost(&self.eval_work.cold).flops, "least_seconds": evaluation},
            "steps": self.steps,
        })
    }
}

/// What `--device cuda` would find, and what it would miss with how to get it.
fn cuda_rows(table: &mut Table, report: &probe::Report) {
    let serves = if report.missing.is_empty() && !report.devices.is_empty() {
        "--device cuda serves eval, ask and trace, in bf16"
    } else {
        "--device cuda would serve eval, ask and trace: see what is missing"
    };
    row(table, "CUDA", serves);
    row(table, "CUDA driver", report.driver.as_deref().unwrap_or("none"));
    let nvrtc = report.nvrtc.as_deref().map(|version| match &report.nvrtc_library {
        Some(library) => format!("{version}, {library}"),
        None => version.to_owned(),
    });
    row(table, "NVRTC", nvrtc.as_deref().unwrap_or("none"));
    for device in &report.devices {
        let gib = device.memory as f64 / f64::from(1u32 << 30);
        let found = format!(
            "{}, compute capability {}, {} processors, {gib:.0} GiB",
            device.name, device.compute_capability, device.processors
        );
        row(table, "GPU", &found);
    }
    for missing in &report.missing {
        row(table, "missing for CUDA", &format!("{}: {}", missing.what, missing.remedy));
    }
}

fn machine_table(machine: &Machine) -> Table {
    let gib = |bytes: Option<u64>| {
        bytes.map_or_else(|| "unknown".into(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1u32 << 30)))
    };
    let mut table = Table::new(&["what", "found"]);
    row(&mut table, "unflip", machine.unflip);
    row(&mut table, "CPU", machine.cpu.as_deref().unwrap_or("unknown"));
    row(&mut table, "cores", &machine.cores.to_string());
    row(&mut table, "memory", &format!("{}, {} available", gib(machine.memory), gib(machine.memory_available)));
    row(&mut table, "instruction sets", &machine.instruction_sets.join(", "));
    row(&mut table, "units", &machine.units.join(", "));
    row(&mut table, "serves by default", &machine.serves);
    cuda_rows(&mut table, &probe::report());
    row(&mut table, "kernel sources", &format!("{} (sha256 {})", machine.kernels, &machine.kernels_sha256[..16]));
    table
}
