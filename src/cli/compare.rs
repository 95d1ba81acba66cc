//! `unflip compare`.

use crate::eval::{ClusterBy, CompareSettings, Comparison, MetricComparison, Shares, StoredResults, compare};
use crate::report::{Cell, Table};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What resampling and permutation keep together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cluster {
    /// As the evaluations did: patient, else image, report, context, question.
    Auto,
    /// The patient.
    Patient,
    /// The image.
    Image,
    /// The report.
    Report,
    /// Every question by itself.
    Question,
}

impl From<Cluster> for ClusterBy {
    fn from(cluster: Cluster) -> Self {
        match cluster {
            Cluster::Auto => Self::Auto,
            Cluster::Patient => Self::Patient,
            Cluster::Image => Self::Image,
            Cluster::Report => Self::Report,
            Cluster::Question => Self::Question,
        }
    }
}

/// Arguments of `compare`.
#[derive(Args)]
#[command(after_help = "Example:\n  unflip compare runs/start-eval runs/paper-eval runs/accuracy-eval\n\n\
    All must be evaluations of the same questions; the first is the base that each other one is compared with. Intervals are bootstrap \
    intervals of the difference, `p` is a paired permutation test's: both draw whole patients, images or reports. McNemar's test, z and h \
    count questions, pairs or phrasings as if they were independent. p-values are two-sided.")]
pub struct Compare {
    /// Folders or results.json of two or more evaluations; the first is the base
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    runs: Vec<PathBuf>,
    /// What resampling and permutation keep together
    #[arg(long, value_enum, default_value = "auto", value_name = "UNIT")]
    cluster: Cluster,
    /// Random permutations
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = super::count)]
    permutations: usize,
    /// Bootstrap resamples of the intervals
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = super::count)]
    resamples: usize,
    /// Seed of permutations and bootstrap
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Percentage points that accuracy over all phrasings may lose and still count as not inferior
    #[arg(long, default_value_t = 3.0, value_name = "POINTS", value_parser = points, allow_negative_numbers = true)]
    margin: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Reads the margin of non-inferiority.
fn points(text: &str) -> Result<f64, String> {
    let points = text.parse().ok().filter(|points| (0.0..=100.0).contains(points));
    points.ok_or_else(|| "expected percentage points from 0 to 100".to_owned())
}

impl Compare {
    /// Runs the verb.
    ///
    /// # Errors
    /// Results that cannot be read or are not of the same questions.
    pub fn run(self) -> crate::Result<()> {
        let settings = CompareSettings {
            cluster: self.cluster.into(),
            permutations: self.permutations,
            resamples: self.resamples,
            seed: self.seed,
            margin: self.margin / 100.0,
        };
        let results = self.runs.iter().map(|run| StoredResults::read(run)).collect::<crate::Result<Vec<_>>>()?;
        let (base, others) = results.split_first().expect("the parser asks for two");
        let compared = others.iter().map(|run| Ok((run, compare(base, run, &settings)?)));
        let compared = compared.collect::<crate::Result<Vec<_>>>()?;
        if self.json {
            let comparisons: Vec<Value> = compared.iter().map(|(run, found)| record(run, found)).collect();
            return super::print_json(&json!({
                "base": base.path,
                "cluster": settings.cluster.name(),
                "permutations": settings.permutations,
                "resamples": settings.resamples,
                "seed": settings.seed,
                "comparisons": comparisons,
            }));
        }
        for (place, (run, found)) in compared.iter().enumerate() {
            let blank = if place > 0 { "\n" } else { "" };
            super::out(&format!("{blank}{}", text(base, run, found)))?;
        }
        Ok(())
    }
}

/// The tables of one comparison.
fn text(base: &StoredResults, run: &StoredResults, found: &Comparison) -> String {
    let differs = if found.differs.is_empty() { "nothing".to_owned() } else { found.differs.join(", ") };
    let bound = &found.non_inferiority;
    let points = |share: f64| 100.0 * share;
    format!(
        "base {}, run {}: {} questions, {} clusters; what differs: {differs}\n\n{}\n{}\n\
         accuracy over all phrasings {} inferior: the difference's lower bound is {:+.1} points, the limit {:+.1}\n",
        base.path.display(),
        run.path.display(),
        found.questions,
        found.clusters,
        differences(found).plain(),
        counts(found).plain(),
        if bound.holds { "is not" } else { "may be" },
        points(bound.low),
        -points(bound.margin),
    )
}

fn number(metric: &str, value: f64) -> Cell {
    if metric.starts_with("margin") { Cell::Number(value, 3) } else { Cell::Percent(value, 1) }
}

/// Values, differences and the paired permutation test.
fn differences(found: &Comparison) -> Table {
    let mut table = Table::new(&["metric", "base", "run", "difference", "p", "n"]);
    for row in &found.metrics {
        let MetricComparison { metric, base, run, difference, low, high, p_permutation, n, .. } = *row;
        let percent = !metric.starts_with("margin");
        table.row(vec![
            Cell::text(metric),
            number(metric, base),
            number(metric, run),
            Cell::Interval { value: difference, low, high, decimals: if percent { 1 } else { 3 }, percent },
            Cell::Number(p_permutation, 4),
            Cell::Integer(n as i64),
        ]);
    }
    table
}

/// Tests of counts.
fn counts(found: &Comparison) -> Table {
    let columns =
        ["metric", "only base", "only run", "McNemar p", "base", "run", "z", "p of z", "corrected", "p of it", "h"];
    let mut table = Table::new(&columns);
    for row in &found.metrics {
        let Some(Shares { only_base, only_run, p_mcnemar, proportions }) = row.shares else { continue };
        let share = |(part, whole): (u64, u64)| Cell::text(format!("{part}/{whole}"));
        table.row(vec![
            Cell::text(row.metric),
            Cell::Integer(only_base as i64),
            Cell::Integer(only_run as i64),
            Cell::Number(p_mcnemar, 4),
            share(proportions.first),
            share(proportions.second),
            Cell::Number(proportions.z, 2),
            Cell::Number(proportions.p, 4),
            Cell::Number(proportions.z_corrected, 2),
            Cell::Number(proportions.p_corrected, 4),
            Cell::Number(proportions.cohens_h, 2),
        ]);
    }
    table
}

/// One comparison as JSON. NaN becomes null.
fn record(run: &StoredResults, found: &Comparison) -> Value {
    let mut metrics = Map::new();
    for row in &found.metrics {
        let mut entry = json!({
            "base": row.base,
            "run": row.run,
            "difference": row.difference,
            "difference_stderr": row.stderr,
            "difference_low": row.low,
            "difference_high": row.high,
            "p_permutation": row.p_permutation,
            "n": row.n,
        });
        if let Some(Shares { only_base, only_run, p_mcnemar, proportions }) = row.shares {
            entry["mcnemar"] = json!({ "only_base": only_base, "only_run": only_run, "p": p_mcnemar });
            entry["proportions"] = json!({
                "base": proportions.first.0,
                "run": proportions.second.0,
                "n": proportions.first.1,
                "z": proportions.z,
                "p": proportions.p,
                "z_corrected": proportions.z_corrected,
                "p_corrected": proportions.p_corrected,
                "cohens_h": proportions.cohens_h,
                "p_fisher": proportions.p_fisher,
            });
        }
        metrics.insert(row.metric.to_owned(), entry);
    }
    let bound = &found.non_inferiority;
    json!({
        "run": run.path,
        "differs": found.differs,
        "n_questions": found.questions,
        "n_clusters": found.clusters,
        "metrics": metrics,
        "non_inferiority": {
            "metric": "accuracy_all",
            "margin": bound.margin,
            "low": bound.low,
            "holds": bound.holds,
        },
    })
}
