//! Errors of evaluations and of their files.

/// An evaluation that cannot run, go on or be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to evaluate.
    #[error("there are no questions to evaluate")]
    NoQuestions,
    /// The model left the numbers.
    #[error("phrasing {index} of group `{group}` has a margin of {margin}")]
    NonFinite {
        /// Id of the group.
        group: String,
        /// Phrasing, 0 is the original.
        index: usize,
        /// What was computed.
        margin: f64,
    },
    /// `samples.jsonl` was begun with something else.
    #[error("{path} was begun with another {key}: it has {}, this evaluation {}", short(.stored), short(.given))]
    OtherEvaluation {
        /// The file.
        path: String,
        /// What differs.
        key: String,
        /// As stored.
        stored: String,
        /// As given.
        given: String,
    },
    /// `samples.jsonl` is something else's file.
    #[error("{path} is not the sample file of an evaluation: {problem}")]
    NotSamples {
        /// The file.
        path: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A record that cannot be read or does not fit.
    #[error("{place}: {problem}")]
    Record {
        /// `file:line`.
        place: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A file that is no result file.
    #[error("{path} is not a result file: {problem}")]
    NotResults {
        /// The file.
        path: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// Samples that do not say what they shall be grouped by.
    #[error("{path}: question `{id}` does not say its {unit}")]
    NoCluster {
        /// The result file.
        path: String,
        /// Id of the first such question.
        id: String,
        /// `patient`, `image` or `report`.
        unit: &'static str,
    },
    /// Margins that are other ones when groups are packed together.
    #[error(
        "{answers} answers and {margins} margins of {phrasings} depend on the batch, the first in group `{group}`, phrasing {index}: \
         {alone:e} alone, {packed:e} in a batch of {size}"
    )]
    DependsOnBatch {
        /// Answers that changed.
        answers: u64,
        /// Margins that changed in any bit.
        margins: u64,
        /// Margins compared.
        phrasings: u64,
        /// Id of the first group that changed.
        group: String,
        /// Its first phrasing that changed.
        index: usize,
        /// Its margin alone.
        alone: f64,
        /// Its margin in the batch.
        packed: f64,
        /// Groups in the batch.
        size: usize,
    },
    /// Two results on different questions.
    #[error("{first} and {second} cannot be compared: {problem}")]
    OtherQuestions {
        /// First result file.
        first: String,
        /// Second result file.
        second: String,
        /// What differs.
        problem: String,
    },
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoQuestions => "check the data file and --limit",
            Self::NonFinite { .. } => "run `unflip inspect` on the model and adapter to find the tensor at fault",
            Self::OtherEvaluation { .. } => "choose another output folder",
            Self::NotSamples { .. } => "choose another output folder, or move the file away",
            Self::Record { .. } => "remove the file to evaluate again",
            Self::NotResults { .. } => "give the folder that `unflip eval --out` wrote",
            Self::NoCluster { .. } => {
                "give it in `meta` of the data file and evaluate again into another folder, or use --cluster auto or question"
            }
            Self::DependsOnBatch { .. } => {
                "the back end breaks a promise: report it with `unflip doctor`, and use --groups-per-batch 1 until then"
            }
            Self::OtherQuestions { .. } => "evaluate both models on the same file with the same --limit",
        };
        Some(hint.to_owned())
    }
}

/// The beginning of a hash, enough to tell two apart; anything else as it is.
pub(super) fn short(value: &str) -> &str {
    let is_hash = value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { &value[..12] } else { value }
}
