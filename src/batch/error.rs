//! Errors of prompts that cannot be packed.

/// A group as messages name it: by its place among those that were packed, or by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupName {
    /// Counted from 0.
    Index(usize),
    /// Its id in the data file.
    Id(String),
}

impl std::fmt::Display for GroupName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Id(id) => write!(f, "`{id}`"),
        }
    }
}

/// Prompts that cannot be packed for a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A group without phrasing.
    #[error("group {group} has no phrasing")]
    EmptyGroup {
        /// The group.
        group: GroupName,
    },
    /// A phrasing without a token of its own.
    #[error("group {group}, phrasing {phrasing}: expected at least one token after the shared prefix, found none")]
    EmptySuffix {
        /// The group.
        group: GroupName,
        /// Index of the phrasing.
        phrasing: usize,
    },
    /// An id without a row in the embedding.
    #[error(
        "group {group}, phrasing {phrasing}, token {position}: id {id} is not in the model's vocabulary of {vocab_size}"
    )]
    UnknownToken {
        /// The group.
        group: GroupName,
        /// Index of the first phrasing that has it.
        phrasing: usize,
        /// Position in the prompt.
        position: usize,
        /// The id.
        id: u32,
        /// Ids below are known.
        vocab_size: usize,
    },
    /// Gemma's image token in a prompt of a model without vision tower.
    #[error("group {group}, phrasing {phrasing}, token {position}: an image token ({id}), and the model is text-only")]
    ImageInTextModel {
        /// The group.
        group: GroupName,
        /// Index of the first phrasing that has it.
        phrasing: usize,
        /// Position in the prompt.
        position: usize,
        /// The id.
        id: u32,
    },
    /// A prompt longer than the model's positions.
    #[error("group {group}, phrasing {phrasing}: {tokens} tokens, and the model takes {max_positions}")]
    TooLong {
        /// The group.
        group: GroupName,
        /// Index of the phrasing.
        phrasing: usize,
        /// Its tokens.
        tokens: usize,
        /// Longest prompt.
        max_positions: usize,
    },
    /// An answer token without a row in the embedding.
    #[error("group {group}: the answer token {id} is not in the model's vocabulary of {vocab_size}")]
    UnknownAnswer {
        /// The group.
        group: GroupName,
        /// The id.
        id: u32,
        /// Ids below are known.
        vocab_size: usize,
    },
    /// A window in which a token does not see itself.
    #[error("the sliding window must be at least 1, found 0")]
    EmptyWindow,
    /// More rows than row indices.
    #[error("the batch has more rows than {}", u32::MAX)]
    TooManyRows,
}

impl Error {
    /// The same error with its group, counted in the batch, named otherwise: batches are cut from files.
    #[must_use]
    pub fn rename(mut self, name: impl FnOnce(usize) -> GroupName) -> Self {
        match &mut self {
            Self::EmptyGroup { group }
            | Self::EmptySuffix { group, .. }
            | Self::UnknownToken { group, .. }
            | Self::ImageInTextModel { group, .. }
            | Self::TooLong { group, .. }
            | Self::UnknownAnswer { group, .. } => {
                if let GroupName::Index(index) = *group {
                    *group = name(index);
                }
            }
            Self::EmptyWindow | Self::TooManyRows => (),
        }
        self
    }

    /// What to do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::EmptyGroup { .. } => "leave the group out, or give it a phrasing".into(),
            Self::EmptySuffix { .. } => "end the prefix one token earlier".into(),
            Self::UnknownToken { .. } | Self::UnknownAnswer { .. } => {
                "check that tokenizer.json, or the file of token ids, belongs to this model".into()
            }
            Self::ImageInTextModel { .. } => "use a vision-language model, or take the image out of the prompt".into(),
            Self::TooLong { .. } => "shorten the context or the question, or leave the group out".into(),
            Self::EmptyWindow => "check `sliding_window` in the model's config.json".into(),
            Self::TooManyRows => "pack fewer groups at once".into(),
        })
    }
}
