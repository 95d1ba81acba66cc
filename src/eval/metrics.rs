//! Rates from samples, with bootstrap intervals over clusters and breakdowns by phenomenon and by finding.
//!
//! Rates of flips and margin differences are over questions that have a paraphrase; where none has, they are undefined (NaN,
//! null in JSON). Each metric is a function of sums over questions ([`Tally`]), so a resample adds the drawn clusters' sums.

use super::samples::Sample;
use super::statistics::{bootstrap, interval};
use crate::train::AnswerCounts;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

/// Names of the metrics with an interval, in the order of tables. The same in every file, table and tag.
pub const METRICS: [&str; 8] = [
    "flip_rate_question",
    "flip_rate_pair",
    "margin_difference",
    "margin_sd",
    "margin_difference_scaled",
    "accuracy",
    "accuracy_all",
    "yes_rate",
];

/// A value with its bootstrap standard error and 95 % interval; NaN where undefined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// On the samples themselves.
    pub value: f64,
    /// Standard deviation over resamples.
    pub stderr: f64,
    /// 2.5th percentile over resamples.
    pub low: f64,
    /// 97.5th percentile over resamples.
    pub high: f64,
}

/// All metrics of one set of questions.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricSet {
    /// In the order of [`METRICS`].
    pub estimates: [Estimate; METRICS.len()],
    /// Sums behind them: numbers of questions, pairs and ties among them.
    pub counts: AnswerCounts,
    /// Questions that have a paraphrase: the units of `flip_rate_question`.
    pub can_flip: u64,
    /// Units of resampling.
    pub clusters: usize,
}

/// Sums over questions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) counts: AnswerCounts,
    /// Questions that have a paraphrase, and so can flip.
    pub(super) can_flip: u64,
    /// Σ|m_k − m_0| over pairs.
    pub(super) margin_differences: f64,
    /// Σ(m_0 − c) and Σ(m_0 − c)², c being the mean over all questions, so that the variance does not cancel.
    centred: f64,
    pub(super) centred_squares: f64,
}

impl Tally {
    pub(super) fn of(group: &[&Sample], centre: f64) -> Self {
        let margins: Vec<f64> = group.iter().map(|sample| sample.margin).collect();
        let Some((&original, paraphrases)) = margins.split_first() else { return Self::default() };
        let centred = original - centre;
        Self {
            counts: AnswerCounts::of(&margins, group[0].truth == "yes"),
            can_flip: u64::from(!paraphrases.is_empty()),
            margin_differences: paraphrases.iter().map(|m| (m - original).abs()).sum(),
            centred,
            centred_squares: centred * centred,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.counts += other.counts;
        self.can_flip += other.can_flip;
        self.margin_differences += other.margin_differences;
        self.centred += other.centred;
        self.centred_squares += other.centred_squares;
    }

    /// In the order of [`METRICS`].
    pub(super) fn values(&self) -> [f64; METRICS.len()] {
        let counts = &self.counts;
        let share = |part: u64, whole: u64| if whole == 0 { f64::NAN } else { part as f64 / whole as f64 };
        let n = counts.questions as f64;
        let variance = (self.centred_squares - self.centred * self.centred / n) / (n - 1.0);
        let sd = if counts.questions < 2 { f64::NAN } else { variance.max(0.0).sqrt() };
        let difference = if counts.pairs == 0 { f64::NAN } else { self.margin_differences / counts.pairs as f64 };
        [
            share(counts.flipped_questions, self.can_flip),
            share(counts.flipped_pairs, counts.pairs),
            difference,
            sd,
            // Without spread there is no scale to measure by.
            if sd > 0.0 { difference / sd } else { f64::NAN },
            share(counts.right_originals, counts.questions),
            share(counts.right, counts.phrasings),
            share(counts.yes, counts.questions),
        ]
    }
}

/// Mean margin of originals; 0 of none.
pub(super) fn centre<'a>(originals: impl Iterator<Item = &'a Sample> + Clone) -> f64 {
    originals.clone().map(|sample| sample.margin).sum::<f64>() / originals.count().max(1) as f64
}

impl MetricSet {
    /// Metrics of groups (each the original's sample, then its paraphrases').
    pub fn of(groups: &[Vec<Sample>], resamples: usize, seed: u64) -> Self {
        let groups: Vec<Vec<&Sample>> = groups.iter().map(|group| group.iter().collect()).collect();
        Self::of_views(&groups, resamples, seed)
    }

    fn of_views(groups: &[Vec<&Sample>], resamples: usize, seed: u64) -> Self {
        let centre = centre(groups.iter().filter_map(|group| group.first().copied()));
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut clusters: Vec<Tally> = Vec::new();
        let mut total = Tally::default();
        for group in groups {
            let Some(first) = group.first() else { continue };
            let tally = Tally::of(group, centre);
            let place = *places.entry(&first.cluster).or_insert(clusters.len());
            if place == clusters.len() {
                clusters.push(Tally::default());
            }
            clusters[place].add(&tally);
            total.add(&tally);
        }
        let resampled = bootstrap(clusters.len(), if clusters.is_empty() { 0 } else { resamples }, seed, |drawn| {
            let mut sum = Tally::default();
            drawn.iter().for_each(|&cluster| sum.add(&clusters[cluster]));
            sum.values()
        });
        let values = total.values();
        let estimates = std::array::from_fn(|metric| {
            let (stderr, low, high) = interval(resampled.iter().map(|values| values[metric]).collect());
            Estimate { value: values[metric], stderr, low, high }
        });
        Self { estimates, counts: total.counts, can_flip: total.can_flip, clusters: clusters.len() }
    }

    /// Units that a metric of [`METRICS`] is over.
    pub fn units(&self, name: &str) -> u64 {
        units(name, &self.counts, self.can_flip)
    }

    /// The estimate of a metric of [`METRICS`].
    pub fn get(&self, name: &str) -> Option<Estimate> {
        METRICS.iter().position(|metric| *metric == name).map(|place| self.estimates[place])
    }

    /// `name`, `name_stderr`, `name_low`, `name_high` for every metric, then the counts. NaN becomes null.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for (name, estimate) in METRICS.iter().zip(&self.estimates) {
            map.insert((*name).to_owned(), estimate.value.into());
            map.insert(format!("{name}_stderr"), estimate.stderr.into());
            map.insert(format!("{name}_low"), estimate.low.into());
            map.insert(format!("{name}_high"), estimate.high.into());
        }
        let counts = &self.counts;
        for (name, count) in [
            ("ties", counts.ties),
            ("label_yes", counts.label_yes),
            ("n_questions", counts.questions),
            ("n_questions_with_paraphrases", self.can_flip),
            ("n_pairs", counts.pairs),
            ("n_phrasings", counts.phrasings),
            ("n_clusters", self.clusters as u64),
        ] {
            map.insert(name.to_owned(), count.into());
        }
        map
    }
}

/// Questions, pairs or phrasings that a metric is over.
pub(super) fn units(metric: &str, counts: &AnswerCounts, can_flip: u64) -> u64 {
    match metric {
        "flip_rate_question" => can_flip,
        "flip_rate_pair" | "margin_difference" | "margin_difference_scaled" => counts.pairs,
        "accuracy_all" => counts.phrasings,
        _ => counts.questions,
    }
}

/// Metrics per phenomenon: of the questions that have such a paraphrase, reduced to the original and these paraphrases.
pub fn by_phenomenon(groups: &[Vec<Sample>], resamples: usize, seed: u64) -> BTreeMap<String, MetricSet> {
    let mut parts: BTreeMap<&str, Vec<Vec<&Sample>>> = BTreeMap::new();
    for group in groups {
        let Some((original, paraphrases)) = group.split_first() else { continue };
        let mut own: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
        for sample in paraphrases {
            if let Some(phenomenon) = &sample.phenomenon {
                own.entry(phenomenon).or_insert_with(|| vec![original]).push(sample);
            }
        }
        own.into_iter().for_each(|(phenomenon, samples)| parts.entry(phenomenon).or_default().push(samples));
    }
    sets(parts, resamples, seed)
}

/// Metrics per finding asked about.
pub fn by_finding(groups: &[Vec<Sample>], resamples: usize, seed: u64) -> BTreeMap<String, MetricSet> {
    let mut parts: BTreeMap<&str, Vec<Vec<&Sample>>> = BTreeMap::new();
    for group in groups {
        if let Some(finding) = group.first().and_then(|original| original.finding.as_deref()) {
            parts.entry(finding).or_default().push(group.iter().collect());
        }
    }
    sets(parts, resamples, seed)
}

fn sets(parts: BTreeMap<&str, Vec<Vec<&Sample>>>, resamples: usize, seed: u64) -> BTreeMap<String, MetricSet> {
    let set =
        |(name, groups): (&str, Vec<Vec<&Sample>>)| (name.to_owned(), MetricSet::of_views(&groups, resamples, seed));
    parts.into_iter().map(set).collect()
}
