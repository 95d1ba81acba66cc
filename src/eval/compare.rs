//! Two evaluations of the same questions side by side, metric by metric: the difference with its bootstrap interval over
//! clusters, a paired permutation test that flips the signs of whole clusters, and for shares the tests of counts.

use super::Error;
use super::error::short;
use super::metrics::{METRICS, Tally, centre, units};
use super::proportions::{Proportions, mcnemar_exact};
use super::results::StoredResults;
use super::samples::Sample;
use super::statistics::{bootstrap, interval, paired_permutation};
use crate::error::Result;
use crate::train::says_yes;
use std::collections::HashMap;

/// What resampling and permutation keep together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterBy {
    /// As the evaluation did: the patient where known, else the image, the report, the context, the question.
    #[default]
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

impl ClusterBy {
    /// As it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Patient => "patient",
            Self::Image => "image",
            Self::Report => "report",
            Self::Question => "question",
        }
    }

    /// The cluster of a question's sample; `None` where the sample does not say it.
    fn of(self, sample: &Sample) -> Option<String> {
        let own = match self {
            Self::Auto => return Some(sample.cluster.clone()),
            Self::Question => return Some(sample.id.clone()),
            Self::Patient => &sample.origin.patient,
            Self::Image => &sample.origin.image,
            Self::Report => &sample.origin.report,
        };
        // The cluster is `patient:…`, `image:…` or `report:…` itself.
        own.clone().or_else(|| sample.cluster.strip_prefix(self.name())?.strip_prefix(':').map(str::to_owned))
    }
}

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompareSettings {
    /// Unit of resampling and permutation.
    pub cluster: ClusterBy,
    /// Random sign flips.
    pub permutations: usize,
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Seed of both.
    pub seed: u64,
    /// Largest loss of accuracy over all phrasings that counts as none, as a share.
    pub margin: f64,
}

impl Default for CompareSettings {
    fn default() -> Self {
        Self { cluster: ClusterBy::Auto, permutations: 10_000, resamples: 1000, seed: 0, margin: 0.03 }
    }
}

/// A yes/no outcome of two evaluations over the same units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Units where only the base has it.
    pub only_base: u64,
    /// Units where only the run has it.
    pub only_run: u64,
    /// McNemar's exact test of the two, two-sided.
    pub p_mcnemar: f64,
    /// The shares as if the samples were independent; first is the base.
    pub proportions: Proportions,
}

/// One metric of two evaluations.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricComparison {
    /// Of [`METRICS`].
    pub metric: &'static str,
    /// Of the base.
    pub base: f64,
    /// Of the other evaluation.
    pub run: f64,
    /// run − base.
    pub difference: f64,
    /// Its standard deviation over resamples.
    pub stderr: f64,
    /// Its 2.5th percentile over resamples.
    pub low: f64,
    /// Its 97.5th percentile over resamples.
    pub high: f64,
    /// Paired permutation, two-sided; NaN where the metric is undefined.
    pub p_permutation: f64,
    /// Questions, pairs or phrasings that the metric is over.
    pub n: u64,
    /// Of metrics that are shares of such units.
    pub shares: Option<Shares>,
}

/// Whether the run's accuracy over all phrasings is not worse than the base's by more than a margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonInferiority {
    /// Largest loss that counts as none, as a share.
    pub margin: f64,
    /// Lower end of the difference's 95 % interval.
    pub low: f64,
    /// low > −margin.
    pub holds: bool,
}

/// An evaluation against the base.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Names of what else than the answers differs: `adapter`, `template hash`, ….
    pub differs: Vec<&'static str>,
    /// Questions of both.
    pub questions: usize,
    /// Units of resampling and permutation.
    pub clusters: usize,
    /// In the order of [`METRICS`].
    pub metrics: Vec<MetricComparison>,
    /// Of `accuracy_all`.
    pub non_inferiority: NonInferiority,
}

impl Comparison {
    /// A metric of [`METRICS`].
    pub fn get(&self, metric: &str) -> Option<&MetricComparison> {
        self.metrics.iter().find(|row| row.metric == metric)
    }
}

/// Refuses evaluations of different data or questions.
fn check_questions(base: &StoredResults, run: &StoredResults) -> Result<()> {
    let other = |problem: String| Error::OtherQuestions {
        first: base.path.display().to_string(),
        second: run.path.display().to_string(),
        problem,
    };
    if base.header.data != run.header.data {
        let (a, b) = (short(&base.header.data), short(&run.header.data));
        return Err(other(format!("they are of different data (SHA-256 {a} and {b})")).into());
    }
    if base.groups.len() != run.groups.len() {
        let (a, b) = (base.groups.len(), run.groups.len());
        return Err(other(format!("they have {a} and {b} questions")).into());
    }
    for (number, (a, b)) in (1..).zip(base.groups.iter().zip(&run.groups)) {
        let key = |group: &[Sample]| (group[0].id.clone(), group.len(), group[0].truth.clone());
        if key(a) != key(b) {
            let show = |(id, phrasings, truth)| format!("`{id}` ({phrasings} phrasings, truth {truth})");
            return Err(other(format!("question {number} is {} and {}", show(key(a)), show(key(b)))).into());
        }
    }
    Ok(())
}

/// Place of each question's cluster, and how many clusters there are.
fn places(results: &StoredResults, by: ClusterBy) -> Result<(Vec<usize>, usize)> {
    let mut clusters: HashMap<String, usize> = HashMap::new();
    let mut places = Vec::with_capacity(results.groups.len());
    for group in &results.groups {
        let cluster = by.of(&group[0]).ok_or_else(|| Error::NoCluster {
            path: results.path.display().to_string(),
            id: group[0].id.clone(),
            unit: by.name(),
        })?;
        let next = clusters.len();
        places.push(*clusters.entry(cluster).or_insert(next));
    }
    Ok((places, clusters.len()))
}

/// Sums of one evaluation: of each question, and of each cluster.
struct Sums {
    questions: Vec<Tally>,
    clusters: Vec<Tally>,
    values: [f64; METRICS.len()],
}

impl Sums {
    fn of(groups: &[Vec<Sample>], places: &[usize], clusters: usize) -> Self {
        let centre = centre(groups.iter().filter_map(|group| group.first()));
        let tally = |group: &Vec<Sample>| Tally::of(&group.iter().collect::<Vec<_>>(), centre);
        let questions: Vec<Tally> = groups.iter().map(tally).collect();
        let mut sums = vec![Tally::default(); clusters];
        let mut total = Tally::default();
        for (tally, &place) in questions.iter().zip(places) {
            sums[place].add(tally);
            total.add(tally);
        }
        Self { questions, clusters: sums, values: total.values() }
    }

    fn resampled(&self, drawn: &[usize]) -> [f64; METRICS.len()] {
        let mut sum = Tally::default();
        drawn.iter().for_each(|&cluster| sum.add(&self.clusters[cluster]));
        sum.values()
    }

    /// What a question adds to the metric's numerator. Where the spread is part of a metric, it is this evaluation's own.
    fn part(&self, metric: &str, tally: &Tally) -> f64 {
        let counts = &tally.counts;
        match metric {
            "flip_rate_question" => counts.flipped_questions as f64,
            "flip_rate_pair" => counts.flipped_pairs as f64,
            "margin_difference" => tally.margin_differences,
            "margin_difference_scaled" => tally.margin_differences / self.values[place("margin_sd")],
            "margin_sd" => tally.centred_squares,
            "accuracy" => counts.right_originals as f64,
            "accuracy_all" => counts.right as f64,
            _ => counts.yes as f64,
        }
    }
}

fn place(metric: &str) -> usize {
    METRICS.iter().position(|name| *name == metric).expect("a metric's name")
}

/// Whether a unit of a metric has what the metric counts, unit by unit; `None` for metrics of margins.
fn outcomes(metric: &str, groups: &[Vec<Sample>]) -> Option<Vec<bool>> {
    let yes = |sample: &Sample| says_yes(sample.margin);
    let right = |sample: &Sample| yes(sample) == (sample.truth == "yes");
    let flips = |group: &[Sample]| group[1..].iter().map(|k| yes(k) != yes(&group[0])).collect::<Vec<_>>();
    let of_groups = |outcome: &dyn Fn(&[Sample]) -> Vec<bool>| groups.iter().flat_map(|group| outcome(group)).collect();
    Some(match metric {
        "flip_rate_question" => of_groups(&|group| match group.len() {
            0 | 1 => Vec::new(),
            _ => vec![flips(group).contains(&true)],
        }),
        "flip_rate_pair" => of_groups(&flips),
        "accuracy" => of_groups(&|group| vec![right(&group[0])]),
        "accuracy_all" => of_groups(&|group| group.iter().map(right).collect()),
        "yes_rate" => of_groups(&|group| vec![yes(&group[0])]),
        _ => return None,
    })
}

fn shares(metric: &str, base: &[Vec<Sample>], run: &[Vec<Sample>]) -> Option<Shares> {
    let (base, run) = (outcomes(metric, base)?, outcomes(metric, run)?);
    let count = |wanted: (bool, bool)| base.iter().zip(&run).filter(|&(&a, &b)| (a, b) == wanted).count() as u64;
    let (only_base, only_run, both) = (count((true, false)), count((false, true)), count((true, true)));
    let n = base.len() as u64;
    Some(Shares {
        only_base,
        only_run,
        p_mcnemar: mcnemar_exact(only_base, only_run),
        proportions: Proportions::of((only_base + both, n), (only_run + both, n)),
    })
}

/// Compares `run` with `base` on every metric.
///
/// The permutation test flips the signs of clusters' differences of what they add to a metric. For `margin_sd` that is the squared
/// distance from the mean margin, for `margin_difference_scaled` the |difference| in units of the evaluation's own `margin_sd`.
///
/// # Errors
/// Other data, another number of questions, a question that differs in id, phrasings or truth; samples that do not say
/// their patient, image or report where those are the clusters.
pub fn compare(base: &StoredResults, run: &StoredResults, settings: &CompareSettings) -> Result<Comparison> {
    check_questions(base, run)?;
    let (places, clusters) = places(base, settings.cluster)?;
    let [a, b] = [base, run].map(|results| Sums::of(&results.groups, &places, clusters));
    let resamples = if clusters == 0 { 0 } else { settings.resamples };
    let resampled = bootstrap(clusters, resamples, settings.seed, |drawn| {
        let (a, b) = (a.resampled(drawn), b.resampled(drawn));
        std::array::from_fn::<f64, { METRICS.len() }, _>(|metric| b[metric] - a[metric])
    });
    let mut total = Tally::default();
    a.clusters.iter().for_each(|tally| total.add(tally));
    let row = |(index, &metric): (usize, &&'static str)| {
        let difference = b.values[index] - a.values[index];
        let (stderr, low, high) = interval(resampled.iter().map(|values| values[index]).collect());
        let mut flipped = vec![0.0; clusters];
        for ((first, second), &place) in a.questions.iter().zip(&b.questions).zip(&places) {
            flipped[place] += b.part(metric, second) - a.part(metric, first);
        }
        let p_permutation = match difference.is_nan() {
            true => f64::NAN,
            false => paired_permutation(&flipped, settings.permutations, settings.seed),
        };
        MetricComparison {
            metric,
            base: a.values[index],
            run: b.values[index],
            difference,
            stderr,
            low,
            high,
            p_permutation,
            n: units(metric, &total.counts, total.can_flip),
            shares: shares(metric, &base.groups, &run.groups),
        }
    };
    let metrics: Vec<_> = METRICS.iter().enumerate().map(row).collect();
    let low = metrics[place("accuracy_all")].low;
    Ok(Comparison {
        differs: base.header.differences(&run.header).into_iter().map(|(name, ..)| name).collect(),
        questions: base.groups.len(),
        clusters,
        metrics,
        non_inferiority: NonInferiority { margin: settings.margin, low, holds: low > -settings.margin },
    })
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
