//! Errors of tokenizer, prompt template and answer tokens.

/// Text that cannot become token ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The model folder has no tokenizer.
    #[error("no tokenizer.json in the model folder: expected {path}")]
    NoTokenizer {
        /// Where it was looked for.
        path: String,
    },
    /// tokenizer.json cannot be read or is not a tokenizer.
    #[error("{path} is no tokenizer that can be used: {reason}")]
    BadTokenizer {
        /// The file.
        path: String,
        /// Reason given by the reader.
        reason: String,
    },
    /// The tokenizer failed on a text or on ids.
    #[error("cannot {action} {subject}: {reason}")]
    Coding {
        /// `encode` or `decode`.
        action: &'static str,
        /// The text's beginning, or the ids.
        subject: String,
        /// Reason given by the tokenizer.
        reason: String,
    },
    /// An answer string is not one token.
    #[error("answer `{string}` must be one token of this model's tokenizer, found {}", pieces(.tokens))]
    Answer {
        /// The string.
        string: String,
        /// Tokens that it became; none if the tokenizer does not know it.
        tokens: Vec<String>,
    },
    /// A marker of Gemma's chat format is not one token.
    #[error("`{token}` must be one token of this model's tokenizer, found {}", pieces(.tokens))]
    ChatToken {
        /// The marker.
        token: &'static str,
        /// What it became instead.
        tokens: Vec<String>,
    },
    /// Both answers are one token.
    #[error("the answers `{yes}` and `{no}` are the same token {id}")]
    SameAnswer {
        /// Yes.
        yes: String,
        /// No.
        no: String,
        /// Their id.
        id: u32,
    },
    /// A prompt template that cannot be used.
    #[error("prompt template `{pattern}`: {problem}")]
    Template {
        /// As given.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A prompt with a number of image markers that differs from its images.
    #[error("the prompt has {images} image(s) and {found} `{marker}` marker(s)")]
    ImageMarkers {
        /// Images that belong to it.
        images: usize,
        /// Markers in its text.
        found: usize,
        /// The marker.
        marker: &'static str,
    },
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoTokenizer { .. } => {
                "put the tokenizer.json that belongs to the model beside its config.json; `unflip trace` on token ids needs none"
                    .into()
            }
            Self::ChatToken { .. } => "take the tokenizer.json of a Gemma 3 model: prompts are written in its chat format".into(),
            Self::BadTokenizer { .. } => "fetch the model's tokenizer.json again".into(),
            Self::Coding { .. } => "check that tokenizer.json is whole and belongs to this model".into(),
            Self::Answer { .. } => {
                "take the tokenizer.json that belongs to this model: the margin compares one token for yes with one for no"
                    .into()
            }
            Self::SameAnswer { .. } => "choose two different answers".into(),
            Self::Template { .. } => {
                "a template is text with `{question}` once, and `{image}` and `{context}` where they shall stand".into()
            }
            Self::ImageMarkers { marker, .. } => format!("remove `{marker}` from question and context"),
        })
    }
}

fn pieces(tokens: &[String]) -> String {
    if tokens.is_empty() {
        return "no token".into();
    }
    let list = tokens.iter().map(|token| format!("`{token}`")).collect::<Vec<_>>().join(", ");
    format!("{}: {list}", tokens.len())
}
