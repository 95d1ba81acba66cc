//! `results.json`: metrics with their intervals, breakdowns, and everything needed to know what they belong to.

use super::Error;
use super::control::BatchingControl;
use super::evaluate::Evaluation;
use super::metrics::MetricSet;
use super::samples::{self, Header, Sample};
use crate::error::Result;
use crate::weights::write_atomically;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the result file in its folder.
pub(super) const RESULTS: &str = "results.json";
/// Name of the sample file in its folder.
pub(super) const SAMPLES: &str = "samples.jsonl";

/// The machine: operating system, architecture, processor and logical cores.
pub fn environment() -> Value {
    json!({
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu": crate::machine::cpu_name(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// Writes `results.json` of an evaluation. `config` is what the caller wants recorded beside.
pub(super) fn write(folder: &Path, evaluation: &Evaluation, header: &Header, config: Value) -> Result<()> {
    let breakdown = |sets: &BTreeMap<String, MetricSet>| -> Map<String, Value> {
        sets.iter().map(|(name, set)| (name.clone(), Value::Object(set.to_json()))).collect()
    };
    let value = json!({
        "results": evaluation.metrics.to_json(),
        "by_phenomenon": breakdown(&evaluation.by_phenomenon),
        "by_finding": breakdown(&evaluation.by_finding),
        "config": config,
        "versions": { "unflip": header.version },
        "model": header.model,
        "adapter": header.adapter,
        "data_hash": header.data,
        "template_hash": header.template,
        "precision": header.precision,
        "embed_scale": header.embed_scale,
        "share_prefix": header.share_prefix,
        "answer_ids": { "yes": header.yes, "no": header.no },
        "pool": header.pool,
        "answer_spellings": { "yes": header.yes_spellings, "no": header.no_spellings },
        "unit": header.unit,
        "environment": environment(),
    });
    write_json(&folder.join(RESULTS), &value)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| crate::Error::io("write", path, error.into()))?;
    text.push(b'\n');
    Ok(write_atomically(path, &text)?)
}

/// Adds what a control found to the `results.json` in `folder`, as `controls.batching`.
///
/// # Errors
/// A result file that cannot be read or written.
pub fn record_batching(folder: &Path, control: &BatchingControl) -> Result<()> {
    let path = folder.join(RESULTS);
    let text = fs::read(&path).map_err(|source| crate::Error::io("read", &path, source))?;
    let problem = |error: serde_json::Error| Error::NotResults {
        path: path.display().to_string(),
        problem: format!("expected one JSON object: {error}"),
    };
    let mut value: Map<String, Value> = serde_json::from_slice(&text).map_err(problem)?;
    value.insert("controls".into(), json!({ "batching": control }));
    write_json(&path, &Value::Object(value))
}

/// A finished evaluation, read back.
#[derive(Clone, Debug)]
pub struct StoredResults {
    /// The result file.
    pub path: PathBuf,
    /// What was evaluated.
    pub header: Header,
    /// `results.json` as stored.
    pub json: Value,
    /// Samples of the questions that the results are of, by group.
    pub groups: Vec<Vec<Sample>>,
}

impl StoredResults {
    /// Reads `results.json` (or the folder that holds it) and the `samples.jsonl` beside it.
    pub fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join(RESULTS) } else { path.to_owned() };
        let text = fs::read(&path).map_err(|source| crate::Error::io("read", &path, source))?;
        let problem = |problem: String| Error::NotResults { path: path.display().to_string(), problem };
        let json: Value =
            serde_json::from_slice(&text).map_err(|error| problem(format!("expected one JSON object: {error}")))?;
        let questions = json["results"]["n_questions"].as_u64();
        let questions = questions.ok_or_else(|| problem("it has no `results.n_questions`".into()))?;
        let (header, mut groups) = samples::read(&path.with_file_name(SAMPLES))?;
        if json["data_hash"] != header.data || json["model"] != header.model || (groups.len() as u64) < questions {
            return Err(problem(format!("it does not belong to the {SAMPLES} beside it")).into());
        }
        groups.truncate(questions as usize);
        Ok(Self { path, header, json, groups })
    }
}
