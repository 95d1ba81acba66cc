//! Errors of settings, run directories, checkpoints and of training itself.

use super::checkpoint::Skipped;
use super::collapse::Answering;

/// A run that cannot start or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key that is no setting.
    #[error("unknown setting `{key}` in {place}{}", nearest.as_ref().map(|near| format!(": did you mean `{near}`?")).unwrap_or_default())]
    UnknownKey {
        /// As given, `section.name`.
        key: String,
        /// `file:line` or `flags`.
        place: String,
        /// The nearest known key, if any is near.
        nearest: Option<String>,
    },
    /// A value that a setting does not accept.
    #[error("`{key}` in {place} must be {expected}, found {found}")]
    Setting {
        /// `section.name`.
        key: String,
        /// `file:line` or `flags`.
        place: String,
        /// What it accepts.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Settings that exclude each other.
    #[error("{keys}: {problem}")]
    Conflict {
        /// The keys.
        keys: String,
        /// Why they cannot stand together.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// A loss that cannot be built.
    #[error(transparent)]
    Objective(#[from] crate::objective::Error),
    /// A file that is not TOML.
    #[error("{place}: {problem}")]
    Config {
        /// `file:line`.
        place: String,
        /// What the parser says.
        problem: String,
    },
    /// A run directory that already holds something else.
    #[error("{path} is not empty and not a run directory: it holds `{found}`")]
    Foreign {
        /// The directory.
        path: String,
        /// One of its entries.
        found: String,
    },
    /// A new run where one exists.
    #[error("{path} already holds a run")]
    Exists {
        /// The directory.
        path: String,
    },
    /// Resuming where there is no run.
    #[error("{path} is not a run directory: expected a `config.toml`")]
    NotARun {
        /// The directory.
        path: String,
    },
    /// Another process has the directory.
    #[error("{path} is in use by another process{}", process.map(|id| format!(" ({id})")).unwrap_or_default())]
    Locked {
        /// The directory.
        path: String,
        /// The process's number, if it could be read.
        process: Option<u32>,
    },
    /// Resuming with something other than the run began with.
    #[error("cannot resume {path}: `{key}` was {stored} when the run began, found {given}")]
    Changed {
        /// The run directory.
        path: String,
        /// The first key that differs.
        key: String,
        /// As stored.
        stored: String,
        /// As given.
        given: String,
    },
    /// Resuming without the adapter that the run started from.
    #[error("cannot resume {path}: the run started from the adapter {stored}, and none was given")]
    StartAdapterMissing {
        /// The run directory.
        path: String,
        /// The adapter's folder when the run began.
        stored: String,
    },
    /// Checkpoints exist, none is whole.
    #[error("{path} has no complete checkpoint: {}", list(skipped))]
    NoCompleteCheckpoint {
        /// The run directory.
        path: String,
        /// What was found instead, newest first.
        skipped: Vec<Skipped>,
    },
    /// A checkpoint whose files are intact but do not fit.
    #[error("checkpoint {path}: {problem}")]
    Checkpoint {
        /// Its folder or file.
        path: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A file of the run that was changed by something else.
    #[error("{place}: {problem}")]
    Record {
        /// `file:line`.
        place: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// Nothing to train on.
    #[error("there are no training groups")]
    NoGroups,
    /// A loss over pairs and a group without one.
    #[error("group `{group}` has no paraphrase, but the loss compares phrasings")]
    NoParaphrase {
        /// Its id.
        group: String,
    },
    /// The model left the numbers.
    #[error(
        "step {step}: the {what} of {} is not finite{}",
        group.as_ref().map_or("the whole step".to_owned(), |id| format!("group `{id}`")),
        tensor.as_ref().map(|name| format!("; first not finite: {name}")).unwrap_or_default()
    )]
    NonFinite {
        /// `loss`, `margin` or `gradient`.
        what: &'static str,
        /// The update that was not made.
        step: u64,
        /// Where it appeared, if one group alone shows it.
        group: Option<String>,
        /// The first tensor that is not finite, in the order of computation.
        tensor: Option<String>,
    },
    /// An update left the numbers; no checkpoint of it is written.
    #[error(
        "step {step}: the update made {what} that are not finite{}",
        tensor.as_ref().map(|name| format!("; the first is of {name}")).unwrap_or_default()
    )]
    NonFiniteUpdate {
        /// `parameters` or `moments`.
        what: &'static str,
        /// The update.
        step: u64,
        /// The tensor of the first one.
        tensor: Option<String>,
    },
    /// Almost every answer is the same although the truths differ.
    #[error(
        "step {step}: {:.0} % of {place}'s last {} answers are yes, while the truth is yes for {:.0} %; the standard deviation of \
         their margins is {:.3}",
        100.0 * answering.yes_rate, answering.questions, 100.0 * answering.label_yes_rate, answering.margin_sd
    )]
    Collapse {
        /// The step.
        step: u64,
        /// `training` or `validation`.
        place: &'static str,
        /// The figures.
        answering: Answering,
    },
    /// A file of the run that could not be written.
    #[error(
        "step {step}: cannot write {path}: {source}; {}",
        checkpoint.map_or("there is no checkpoint yet".to_owned(), |step| format!("the checkpoint of step {step} is whole"))
    )]
    Unwritten {
        /// The step that was under way.
        step: u64,
        /// The file.
        path: String,
        /// Step of the newest whole checkpoint.
        checkpoint: Option<u64>,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The user or the system asked the run to stop; it did after a step.
    #[error("stopped by {signal} after step {step} of {total}; its checkpoint is {checkpoint}")]
    Interrupted {
        /// `SIGINT` or `SIGTERM`.
        signal: &'static str,
        /// 128 and the signal's number: what the command exits with.
        code: u8,
        /// Updates made.
        step: u64,
        /// Updates of the whole run.
        total: u64,
        /// Folder of the checkpoint.
        checkpoint: String,
    },
    /// Validation on what is trained on.
    #[error("the validation groups are the training groups: both files have the SHA-256 {sha256}")]
    ValidationIsTraining {
        /// Of both.
        sha256: String,
    },
    /// Fewer pairs than are to be drawn.
    #[error("expected at least {asked} (original, paraphrase) pairs to draw from, found {found} in {groups} groups")]
    TooFewPairs {
        /// `data.sample_pairs`.
        asked: usize,
        /// Pairs of the groups in use.
        found: usize,
        /// These groups.
        groups: usize,
    },
}

fn list(skipped: &[Skipped]) -> String {
    skipped.iter().map(|one| format!("{} ({})", one.name, one.problem)).collect::<Vec<_>>().join(", ")
}

/// The word among `expected` (`a, b or c`) that `found` is nearly.
fn nearest<'a>(expected: &'a str, found: &str) -> Option<&'a str> {
    let found = found.trim_matches('"').to_lowercase().replace('_', "-");
    expected
        .split(", ")
        .flat_map(|part| part.split(" or "))
        .filter(|word| !word.contains(' '))
        .map(|word| (strsim::jaro_winkler(&found, word), word))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75)
        .map(|(_, word)| word)
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::UnknownKey { .. } => "`unflip train --print-config` shows every key with its default".to_owned(),
            Self::Setting { expected, found, .. } => nearest(expected, found).map_or_else(
                || "`unflip train --help` says what every setting does".to_owned(),
                |near| format!("did you mean `{near}`?"),
            ),
            Self::Objective(error) => return error.hint(),
            Self::StartAdapterMissing { stored, .. } => format!("add --adapter {stored}, or where it lies now"),
            Self::Config { .. } => {
                "the file is TOML, `[section]` and `key = value`: `unflip train --print-config` writes one".to_owned()
            }
            Self::Conflict { hint, .. } => (*hint).to_owned(),
            Self::Foreign { .. } => "choose a new or an empty directory".to_owned(),
            Self::Exists { .. } => "resume it with --resume, or choose another directory".to_owned(),
            Self::NotARun { .. } => "leave --resume out to start a run there".to_owned(),
            Self::Locked { .. } => "wait for the other process, or choose another directory".to_owned(),
            Self::Changed { .. } => "resume with the stored value, or start a run in another directory".to_owned(),
            Self::NoCompleteCheckpoint { .. } | Self::Checkpoint { .. } | Self::Record { .. } => {
                "restore the directory from a copy, or start a run in another directory".to_owned()
            }
            Self::NoGroups => "check data.train and data.limit".to_owned(),
            Self::NoParaphrase { .. } => {
                "add a paraphrase, or choose a loss of accuracy alone: objective.loss = \"ce-binary\"".to_owned()
            }
            Self::NonFinite { .. } | Self::NonFiniteUpdate { .. } => {
                "lower optimizer.lr or set optimizer.clip; the last checkpoint is kept".to_owned()
            }
            Self::Collapse { .. } => {
                "start another run with a larger objective.lambda (consistency alone rewards constant answers) or a lower \
                 optimizer.lr; a run that stopped goes on past its checkpoint with --resume --stop-on-collapse false"
                    .to_owned()
            }
            Self::Unwritten { path, source, checkpoint, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => format!(
                    "make room on the disk (--keep-checkpoints 1 removes older checkpoints), then run the same command with \
                     --resume: it {}",
                    if checkpoint.is_some() { "goes on from that checkpoint" } else { "starts over" }
                ),
                _ => format!("{}; then run the same command with --resume", crate::error::io_hint(path, source)),
            },
            Self::Interrupted { .. } => "run the same command with --resume to go on, to the same bits".to_owned(),
            Self::ValidationIsTraining { .. } => {
                "give --validation groups that are neither trained on nor tested on, or leave it out".to_owned()
            }
            Self::TooFewPairs { found, .. } => {
                format!("lower data.sample_pairs to {found} or less, or use all groups: --sample-pairs all")
            }
        };
        Some(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_choice_gets_the_nearest_one_as_hint() {
        let hint = |text: &str| crate::train::Settings::parse(text, "c.toml").expect_err(text).hint();
        assert_eq!(hint("[objective]\nloss = \"papr\"").as_deref(), Some("did you mean `paper`?"));
        assert_eq!(hint("[objective]\nloss = \"SymKL_binary\"").as_deref(), Some("did you mean `symkl-binary`?"));
        assert_eq!(hint("[schedule]\ndecay = \"cosin\"").as_deref(), Some("did you mean `cosine`?"));
        let general = Some("`unflip train --help` says what every setting does");
        assert_eq!(hint("[objective]\nloss = \"xyz\"").as_deref(), general);
        assert_eq!(hint("[optimizer]\nlr = 0").as_deref(), general);
        assert_eq!(nearest("a number above 0, or \"none\"", "\"nan\""), None);
    }
}
