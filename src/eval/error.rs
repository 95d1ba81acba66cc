//! Errors of evaluations and of their files.

/// An evaluation that cannot run, go on or be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to evaluate.
    #[error("there are no questions to evaluate")]
    NoQuestions,
    /// A flip needs a paraphrase.
    #[error("group `{group}` has no paraphrase, so it cannot flip")]
    NoParaphrase {
        /// Its id.
        group: String,
    },
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
    #[error("{path} was begun with another {key}: it has {stored}, this evaluation {given}")]
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
    /// A record that cannot be read or does not fit.
    #[error("{place}: {problem}")]
    Record {
        /// `file:line`.
        place: String,
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
            Self::NoParaphrase { .. } => "add a paraphrase to the group or remove it",
            Self::NonFinite { .. } => "run `unflip inspect` on the model and adapter to find the tensor at fault",
            Self::OtherEvaluation { .. } => "choose another output folder",
            Self::Record { .. } => "remove the file to evaluate again",
            Self::OtherQuestions { .. } => "evaluate both models on the same file with the same --limit",
        };
        Some(hint.to_owned())
    }
}
