//! Errors of prompt groups: each says which file, line and group, and what was found there.

const LINE: &str = "a line is {\"id\": …, \"question\": …, \"paraphrases\": [\"…\"], \"answer\": \"yes\"}";
const TRACE: &str = "the file is {\"groups\": [{\"prefix\": [1, 2], \"suffixes\": [[3]], \"yes_id\": 4, \"no_id\": 5, \"label\": \"yes\"}]}";

/// A data file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file has no group.
    #[error("{path} has no prompt group")]
    NoGroups {
        /// The file.
        path: String,
    },
    /// A line of a JSONL file.
    #[error("{path}, line {line}{}: {problem}", named(.id))]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// The group's id, where it could be read.
        id: Option<String>,
        /// What is wrong.
        problem: Problem,
    },
    /// A file of groups as token ids.
    #[error("{path}{}: {problem}", numbered(.group))]
    Trace {
        /// The file.
        path: String,
        /// Index of the group, counted from 0.
        group: Option<usize>,
        /// What is wrong.
        problem: Problem,
    },
    /// A group with an image for a model that cannot see.
    #[error("group `{id}` has an image (`{image}`), and the model is text-only")]
    ImageForTextModel {
        /// The group's id.
        id: String,
        /// Its image.
        image: String,
    },
    /// A group with an image for a model whose vision tower is not run.
    #[error("group `{id}` has an image (`{image}`), and this version does not run the vision tower")]
    NoVisionTower {
        /// The group's id.
        id: String,
        /// Its image.
        image: String,
    },
    /// Token ids of a prompt hold another number of image tokens than its image has.
    #[error("group `{id}`: expected {expected} image tokens in the prompt, found {found}")]
    ImageTokens {
        /// The group's id.
        id: String,
        /// Tokens of its image, 0 without one.
        expected: usize,
        /// Tokens in the prompt.
        found: usize,
    },
}

/// What is wrong with a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not JSON.
    #[error("expected a JSON object, found {0}")]
    NotAnObject(String),
    /// A key that every group has.
    #[error("`{key}` is missing{}", instead(.nearest))]
    Missing {
        /// The key.
        key: &'static str,
        /// A key of the group that may be meant.
        nearest: Option<String>,
    },
    /// A key that is nearly a known one.
    #[error("unknown key `{key}`: did you mean `{nearest}`?")]
    Misspelled {
        /// As found.
        key: String,
        /// Known key.
        nearest: &'static str,
    },
    /// A value of another kind.
    #[error("`{key}` must be {expected}, found {found}")]
    Kind {
        /// Where.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// An empty text or list.
    #[error("`{0}` is empty")]
    Empty(String),
    /// An answer that is neither yes nor no.
    #[error("`{key}` must be yes or no, found {found}")]
    Answer {
        /// `answer` or `label`.
        key: &'static str,
        /// As found.
        found: String,
    },
    /// A question without paraphrase.
    #[error("the question has no paraphrase")]
    NoParaphrases,
    /// `meta.phenomena` does not match the paraphrases.
    #[error("`meta.phenomena` has {phenomena} entries for {paraphrases} paraphrases")]
    Phenomena {
        /// Paraphrases.
        paraphrases: usize,
        /// Entries.
        phenomena: usize,
    },
    /// Two groups of one id.
    #[error("its id is that of line {first} already")]
    Duplicate {
        /// Line of the first.
        first: usize,
    },
    /// Both answers are one token id.
    #[error("yes and no have the same token id {0}")]
    SameAnswerIds(u32),
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { path, source } => Some(crate::error::io_hint(path, source)),
            Self::NoGroups { .. } => Some(format!("expected at least one group: {LINE}")),
            Self::Line { problem, .. } => Some(problem.hint(LINE)),
            Self::Trace { problem, .. } => Some(problem.hint(TRACE)),
            Self::NoVisionTower { .. } => Some("set `image` to null to ask about text alone".into()),
            Self::ImageForTextModel { .. } => {
                Some("use a vision-language model, or set `image` to null and describe it in `context`".into())
            }
            Self::ImageTokens { .. } => {
                Some("take `<image_soft_token>` out of question and context; images are placed by the template".into())
            }
        }
    }
}

impl Problem {
    /// What to do; `form` says what the file should look like.
    fn hint(&self, form: &str) -> String {
        match self {
            Self::NotAnObject(_) | Self::Missing { .. } | Self::Kind { .. } => form.into(),
            Self::Empty(key) => format!("fill in `{key}`, or leave the group out"),
            Self::SameAnswerIds(_) => "give the ids of two different tokens".into(),
            Self::Misspelled { .. } => "rename it; data of your own belongs in `meta`".into(),
            Self::Answer { .. } => "leave out questions that have no yes/no answer".into(),
            Self::NoParaphrases => "add paraphrases; training on the question alone takes an accuracy loss (`--loss ce-binary` or `ce-full`)".into(),
            Self::Phenomena { .. } => {
                "list one phenomenon per paraphrase, or write paraphrases as {\"text\": …, \"phenomenon\": …}".into()
            }
            Self::Duplicate { .. } => "give each group an id of its own".into(),
        }
    }
}

fn named(id: &Option<String>) -> String {
    id.as_ref().map_or_else(String::new, |id| format!(", group `{id}`"))
}

fn numbered(group: &Option<usize>) -> String {
    group.map_or_else(String::new, |group| format!(", group {group}"))
}

fn instead(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |nearest| format!(": is it `{nearest}`?"))
}
