//! `unflip bench`.

mod step;

use crate::bench::kernels::{self, Listed};
use crate::bench::output::{self, Baseline};
use crate::bench::{DeviceBlock, Patience, Selection};
use crate::report::{Cell, Table};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `bench`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  unflip bench --list\n  unflip bench -b lora_linear -a rows=64:512:64 -a rank=0 -a provider=portable,avx2 --md\n  \
    unflip bench --json > before.json; unflip bench --baseline before.json\n  \
    unflip bench step --model models/gemma-3-270m --groups tools/peer/groups_270m.json\n\n\
    Sizes are 5, 1,2,3 or 1024:4096:256; the axes `pass` (forward, backward) and `provider` (reference, an instruction set, all) are there \
    for every benchmark. Nothing is timed before it agrees with the reference. A cold time has the caches full of other data, a hot one \
    follows on itself; rates are of cold medians."
)]
pub struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    /// Show the benchmarks and their axes
    #[arg(long)]
    list: bool,
    /// Run this one (may be given several times; default: all)
    #[arg(short, long, value_name = "NAME")]
    benchmark: Vec<String>,
    /// Sizes of an axis, e.g. rows=24,420 (may be given several times)
    #[arg(short, long, value_name = "AXIS=VALUES")]
    axis: Vec<String>,
    /// Samples of each time at least
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = super::count)]
    min_samples: usize,
    /// Spread to get down to, in percent
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT", value_parser = positive)]
    max_noise: f64,
    /// Seconds to sample each time at least
    #[arg(long, default_value_t = 0.1, value_name = "SECONDS", value_parser = positive)]
    min_time: f64,
    /// Seconds after which to stop sampling a time, however noisy
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = positive)]
    timeout: f64,
    /// Compare with an earlier --json; a difference counts only beyond the noise
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Leading columns with a fixed value, for joining tables
    #[arg(long, value_name = "COLUMN:VALUE,…", value_delimiter = ',', value_parser = tag)]
    tags: Vec<(String, String)>,
    /// Threads (default: all cores)
    #[arg(long, value_name = "N", value_parser = super::count)]
    threads: Option<usize>,
    /// Print JSON
    #[arg(long, group = "format")]
    json: bool,
    /// Print CSV
    #[arg(long, group = "format")]
    csv: bool,
    /// Print Markdown
    #[arg(long, group = "format")]
    md: bool,
}

#[derive(Subcommand)]
enum What {
    /// Time training steps and evaluations of a whole model on recorded groups.
    Step(Box<step::Step>),
}

fn positive(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|&value: &f64| value >= 0.0 && value.is_finite());
    value.ok_or_else(|| "expected a number, at least 0".to_owned())
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (column, value) = text.split_once(':').ok_or("expected column:value")?;
    Ok((column.to_owned(), value.to_owned()))
}

impl Bench {
    /// Runs the verb.
    ///
    /// # Errors
    /// A selection that fits nothing, an unreadable baseline; an operation that disagrees with the reference, after all others
    /// were timed.
    pub fn run(self) -> crate::Result<()> {
        if let Some(What::Step(step)) = self.what {
            return step.run();
        }
        if self.list {
            return self.show(&listed(&kernels::list()));
        }
        let selection = Selection::parse(&self.benchmark, &self.axis)?;
        let baseline = self.baseline.as_deref().map(Baseline::read).transpose()?;
        let seconds = Duration::from_secs_f64;
        let patience = Patience {
            min_samples: self.min_samples,
            max_noise: self.max_noise / 100.0,
            min_time: seconds(self.min_time.min(1e6)),
            timeout: seconds(self.timeout.min(1e6)),
        };
        let block = DeviceBlock::measure(self.threads)?;
        if let Some(baseline) = baseline.as_ref().filter(|baseline| baseline.cpu != block.cpu) {
            let cpu = baseline.cpu.as_deref().unwrap_or("an unknown CPU");
            tracing::warn!("the baseline was measured on {cpu}");
        }
        let bar = crate::report::progress_bar(0, "{spinner} {msg}");
        bar.enable_steady_tick(Duration::from_millis(200));
        let states = kernels::run(&selection, patience, &block, &mut |name| bar.set_message(name.to_owned()));
        bar.finish_and_clear();
        let states = states?;

        if self.json {
            let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
            let command = format!("unflip {command}");
            super::print_json(&output::json(&states, &block, baseline.as_ref(), &self.tags, &command))?;
        } else {
            let table = output::table(&states, &block, baseline.as_ref(), &self.tags);
            if !self.csv {
                self.show(&block.table())?;
                super::out("\n")?;
            }
            self.show(&table)?;
            if !self.csv {
                let lines =
                    states.iter().enumerate().map(|(i, state)| format!("{:>3}  {}\n", i + 1, state.arguments()));
                let fence = if self.md { "```\n" } else { "" };
                super::out(&format!("\narguments of each\n{fence}{}{fence}", lines.collect::<String>()))?;
            }
        }
        let failed = states.iter().find_map(|state| Some((state, state.verification.as_ref().err()?)));
        match failed {
            None => Ok(()),
            Some((state, problem)) => {
                Err(crate::bench::Error::Wrong { arguments: state.arguments(), problem: problem.clone() }.into())
            }
        }
    }

    fn show(&self, table: &Table) -> crate::Result<()> {
        super::out(&match (self.json, self.csv, self.md) {
            (true, ..) => format!("{:#}\n", table.json()),
            (_, true, _) => table.csv(),
            (.., true) => table.markdown(),
            _ => table.plain(),
        })
    }
}

fn listed(benchmarks: &[Listed]) -> Table {
    let mut table = Table::new(&["benchmark", "axes", "sizes by default", "passes"]);
    for Listed { name, axes, points, passes } in benchmarks {
        let sizes: Vec<String> =
            points.iter().map(|point| point.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")).collect();
        let passes: Vec<&str> = passes.iter().map(|pass| pass.name()).collect();
        for (index, sizes) in sizes.into_iter().enumerate() {
            let once = |text: String| Cell::text(if index == 0 { text } else { String::new() });
            table.row(vec![once((*name).into()), once(axes.join(" ")), Cell::text(sizes), once(passes.join(" "))]);
        }
    }
    table
}
