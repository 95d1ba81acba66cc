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
