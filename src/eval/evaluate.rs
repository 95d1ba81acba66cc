//! Running an evaluation: margins group by group into `samples.jsonl`, going on where an earlier process stopped, then the
//! statistics and `results.json`.

use super::Error;
use super::metrics::{MetricSet, by_finding, by_phenomenon};
use super::results::{self, SAMPLES};
use super::samples::{Header, Question, Sample, SampleFile};
use crate::error::Result;
use crate::train::durable::FolderLock;
use crate::train::{AnswerCounts, EngineGroup, MarginEngine};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// How to evaluate. None of it changes a margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalSettings {
    /// Questions packed into one launch.
    pub groups_per_batch: usize,
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

impl Default for EvalSettings {
    fn default() -> Self {
        Self { groups_per_batch: 1, resamples: 1000, seed: 0 }
    }
}

/// A finished evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Records by group.
    pub groups: Vec<Vec<Sample>>,
    /// Over all questions.
    pub metrics: MetricSet,
    /// By paraphrase phenomenon.
    pub by_phenomenon: BTreeMap<String, MetricSet>,
    /// By finding asked about.
    pub by_finding: BTreeMap<String, MetricSet>,
    /// Questions whose margins an earlier process had stored.
    pub resumed: usize,
}

impl Evaluation {
    /// Statistics of samples.
    pub fn of(groups: Vec<Vec<Sample>>, settings: &EvalSettings) -> Self {
        let (resamples, seed) = (settings.resamples, settings.seed);
        Self {
            metrics: MetricSet::of(&groups, resamples, seed),
            by_phenomenon: by_phenomenon(&groups, resamples, seed),
            by_finding: by_finding(&groups, resamples, seed),
            groups,
            resumed: 0,
        }
    }
}

/// Evaluates `questions` into `folder` (`samples.jsonl`, `results.json`), going on from what an evaluation with the same
/// header has stored there. A question without paraphrase counts in accuracy and yes-rate alone. `config` is recorded in the result file; `progress` sees the counts after every launch.
///
/// # Errors
/// No questions, a non-finite margin, samples of another evaluation, a folder in use.
pub fn evaluate<E: MarginEngine>(
    engine: &mut E,
    questions: &[Question],
    header: &Header,
    settings: &EvalSettings,
    config: Value,
    folder: &Path,
    mut progress: impl FnMut(&AnswerCounts),
) -> Result<Evaluation> {
    if questions.is_empty() {
        return Err(Error::NoQuestions.into());
    }
    std::fs::create_dir_all(folder).map_err(|source| crate::Error::io("create", folder, source))?;
    let _lock = FolderLock::take(folder)?;
    let (mut file, mut groups) = SampleFile::open(&folder.join(SAMPLES), header, questions)?;
    let resumed = groups.len();
    let count = |samples: &[Sample]| {
        let margins: Vec<f64> = samples.iter().map(|sample| sample.margin).collect();
        AnswerCounts::of(&margins, samples.first().is_some_and(|sample| sample.truth == "yes"))
    };
    let mut counts: AnswerCounts = groups.iter().map(|samples| count(samples)).sum();
    if resumed > 0 {
        progress(&counts);
    }
    for part in questions[resumed..].chunks(settings.groups_per_batch.max(1)) {
        let batch: Vec<EngineGroup> = part.iter().map(|question| question.group.clone()).collect();
        for (question, margins) in part.iter().zip(engine.margins(&batch)?) {
            let samples = Sample::of(question, &margins)?;
            file.append(&samples)?;
            counts += count(&samples);
            groups.push(samples);
        }
        progress(&counts);
    }
    file.sync()?;
    let evaluation = Evaluation { resumed, ..Evaluation::of(groups, settings) };
    let config = json!({
        "groups_per_batch": settings.groups_per_batch,
        "bootstrap_resamples": settings.resamples,
        "bootstrap_seed": settings.seed,
        "run": config,
    });
    results::write(folder, &evaluation, header, config)?;
    Ok(evaluation)
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
