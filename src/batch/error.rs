//! Errors of prompts that cannot be packed.

/// Prompts that cannot be packed for a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A group without phrasing.
    #[error("group {group} has no phrasing")]
    EmptyGroup {
        /// Index of the group.
        group: usize,
    },
    /// A phrasing without a token of its own.
    #[error("group {group}, phrasing {phrasing}: expected at least one token after the shared prefix, found none")]
    EmptySuffix {
        /// Index of the group.
        group: usize,
        /// Index of the phrasing.
        phrasing: usize,
    },
    /// An id without a row in the embedding.
    #[error(
        "group {group}, phrasing {phrasing}, token {position}: id {id} is not in the model's vocabulary of {vocab_size}"
    )]
    UnknownToken {
        /// Index of the group.
        group: usize,
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
        /// Index of the group.
        group: usize,
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
        /// Index of the group.
        group: usize,
        /// Index of the phrasing.
        phrasing: usize,
        /// Its tokens.
        tokens: usize,
        /// Longest prompt.
        max_positions: usize,
    },
    /// A window in which a token does not see itself.
    #[error("the sliding window must be at least 1, found 0")]
    EmptyWindow,
    /// More rows than row indices.
    #[error("the batch has more rows than {}", u32::MAX)]
    TooManyRows,
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::EmptyGroup { .. } => "leave the group out, or give it a phrasing".into(),
            Self::EmptySuffix { .. } => "end the prefix one token earlier".into(),
            Self::UnknownToken { .. } => {
                "check that tokenizer.json, or the file of token ids, belongs to this model".into()
            }
            Self::ImageInTextModel { .. } => "use a vision-language model, or take the image out of the prompt".into(),
            Self::TooLong { .. } => "shorten the context".into(),
            Self::EmptyWindow => "check `sliding_window` in the model's config.json".into(),
            Self::TooManyRows => "pack fewer groups at once".into(),
        })
    }
}
