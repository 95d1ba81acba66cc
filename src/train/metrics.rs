//! `metrics.jsonl` (one line a step, deterministic values only) and `timings.jsonl` (clock values). The first is cut back
//! to the checkpoint's step on resume, so that a resumed run leaves the same bytes as one that was never killed.

use super::Error;
use super::answers::AnswerCounts;
use super::collapse::{Answering, MarginSpread};
use super::validation::ValidationMetrics;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What one step did, and nothing that a clock decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Update, from 1.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Mean over the step's groups of what is minimised.
    pub loss: f64,
    /// Mean consistency part, unweighted.
    pub loss_consistency: f64,
    /// Mean accuracy part, unweighted.
    pub loss_accuracy: f64,
    /// Global norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Rows computed, prefixes counted once.
    pub tokens: u64,
    /// Answers and flips before the update.
    #[serde(flatten)]
    pub answers: AnswerCounts,
    /// Margins of the originals before the update.
    #[serde(flatten)]
    pub margins: MarginSpread,
    /// The sliding window that ends with this step.
    pub recent: Answering,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Line {
    Validation(ValidationMetrics),
    Step(StepMetrics),
}

impl Line {
    fn step(&self) -> u64 {
        match self {
            Self::Validation(line) => line.step,
            Self::Step(line) => line.step,
        }
    }
}

/// A line of `timings.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTiming {
    /// Update, from 1.
    pub step: u64,
    /// Wall time of the step.
    pub seconds: f64,
    /// Rows a second, prefixes counted once.
    pub tokens_per_second: f64,
    /// Seconds since 1970 at its end.
    pub unix_time: f64,
}

/// An append-only file of JSON lines.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
}

impl Log {
    /// Opens for appending.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| crate::Error::io("write", path, source);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok(Self { path: path.into(), file, length })
    }

    /// Appends one line with one write. A line that does not fit on the disk is taken back.
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let io = |source| crate::Error::io("write", &self.path, source);
        let mut text = serde_json::to_vec(line).map_err(|error| io(error.into()))?;
        text.push(b'\n');
        if let Err(source) = self.file.write_all(&text) {
            // If this fails too, resuming cuts the torn line off.
            let _ = self.file.set_len(self.length);
            return Err(io(source));
        }
        self.length += text.len() as u64;
        Ok(())
    }

    /// Puts everything appended on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|source| crate::Error::io("sync", &self.path, source))
    }
}

/// Cuts `metrics.jsonl` back to `step` and returns what stays. Fails if a line up to there is missing or broken, because
/// then the file is not the one that the checkpoint was written with.
pub(super) fn cut_back(path: &Path, step: u64) -> Result<Vec<Line>> {
    let io = |action| move |source| crate::Error::io(action, path, source);
    let file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(io("write"))?;
    let mut reader = BufReader::new(&file);
    let (mut kept, mut length, mut last, mut number) = (Vec::new(), 0, 0, 0);
    loop {
        let mut text = String::new();
        let bytes = reader.read_line(&mut text).map_err(io("read"))?;
        number += 1;
        let problem = |problem: String| Error::Record { place: format!("{}:{number}", path.display()), problem };
        if bytes == 0 && last < step {
            return Err(problem(format!(
                "expected step {}, found the end; the checkpoint is of step {step}",
                last + 1
            ))
            .into());
        }
        // Beyond the checkpoint a line may be torn: it is cut off unread.
        let line = match serde_json::from_str::<Line>(&text) {
            Ok(line) if text.ends_with('\n') => line,
            _ if last == step => break,
            Ok(_) => return Err(problem("expected a whole line, found a torn one".into()).into()),
            Err(error) => return Err(problem(format!("expected a step's metrics: {error}")).into()),
        };
        if line.step() > step {
            break;
        }
        let expected = if matches!(line, Line::Step(_)) { last + 1 } else { last };
        if line.step() != expected {
            return Err(problem(format!("expected step {expected}, found step {}", line.step())).into());
        }
        last = line.step();
        length += bytes as u64;
        kept.push(line);
    }
    drop(reader);
    let mut file = file;
    file.set_len(length).map_err(io("write"))?;
    file.seek(SeekFrom::End(0)).and_then(|_| file.sync_all()).map_err(io("sync"))?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 0,
            loss: 0.1 + 0.2,
            loss_consistency: 1.0 / 3.0,
            loss_accuracy: 2e-17,
            grad_norm: 1.5,
            learning_rate: 2e-4,
            tokens: 10,
            answers: AnswerCounts::of(&[1.0, -1.0], true),
            margins: MarginSpread::of(&[1.0, 0.1]),
            recent: Answering { questions: 3, yes_rate: 1.0 / 3.0, ..Answering::default() },
        }
    }

    #[test]
    fn metrics_are_cut_back_to_a_step_with_its_validation() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metrics.jsonl");
        let mut log = Log::open(&path).expect("opened");
        for k in 1..=3 {
            log.append(&step(k)).expect("written");
        }
        let validation: ValidationMetrics = serde_json::from_value(serde_json::json!({"step": 3, "validation": {
            "loss": 0.1, "loss_consistency": 0.0, "loss_accuracy": 0.1, "margin_difference": 0.3, "margin_mean": 1.0,
            "margin_sd": 0.5, "questions": 1, "flipped_questions": 1, "pairs": 1, "flipped_pairs": 1, "phrasings": 2, "right": 1,
            "right_originals": 1, "yes": 1, "label_yes": 1, "ties": 0, "one_way": false}}))
        .expect("a validation");
        log.append(&validation).expect("written");
        let whole = std::fs::read(&path).expect("read");
        log.append(&step(4)).expect("written");
        log.file.write_all(b"{\"step\":5,\"epo").expect("torn line");
        assert_eq!(cut_back(&path, 3).expect("cut").len(), 4);
        assert_eq!(std::fs::read(&path).expect("read"), whole);
        let kept = cut_back(&path, 2).expect("cut");
        assert_eq!(kept, [Line::Step(step(1)), Line::Step(step(2))]);
        let error = cut_back(&path, 3).expect_err("step 3 is gone");
        assert!(
            error.to_string().ends_with("metrics.jsonl:3: expected step 3, found the end; the checkpoint is of step 3")
        );
        assert_eq!(cut_back(&path, 0).expect("cut"), []);
        assert_eq!(std::fs::read(&path).expect("read"), b"");
    }

    #[test]
    fn a_line_that_something_else_changed_is_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\": 1}\n").expect("written");
        assert!(
            cut_back(&path, 1)
                .expect_err("not metrics")
                .to_string()
                .contains("metrics.jsonl:1: expected a step's metrics")
        );
    }
}
