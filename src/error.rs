//! One error type for the whole library: each module has its own typed enum, this sums them up and carries the hint
//! that the command line prints under the chain of causes.

/// What every fallible function of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of the library. `Display` says what was expected, what was found and where; [`Error::hint`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model folder, safetensors file, config.json or adapter.
    #[error(transparent)]
    Weights(#[from] crate::weights::Error),
    /// Tokenizer, chat template or answer tokens.
    #[error(transparent)]
    Text(#[from] crate::text::Error),
    /// Prompt groups.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// Token tree.
    #[error(transparent)]
    Batch(#[from] crate::batch::Error),
    /// Unknown loss, λ out of range.
    #[error(transparent)]
    Objective(#[from] crate::objective::Error),
    /// Device, instruction set or precision.
    #[error(transparent)]
    Device(#[from] crate::ops::Error),
    /// Model and adapter that do not fit each other.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// Run settings, run directories, checkpoints.
    #[error(transparent)]
    Train(#[from] crate::train::Error),
    /// Result files.
    #[error(transparent)]
    Eval(#[from] crate::eval::Error),
    /// Wrong usage of the command line: exit code 2.
    #[error("{message}")]
    Usage {
        /// What was expected and what was found.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A file that could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The path as the user gave it.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// What the user can do about it, as one line.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Weights(error) => error.hint(),
            Self::Text(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Batch(error) => error.hint(),
            Self::Objective(error) => error.hint(),
            Self::Device(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Train(error) => error.hint(),
            Self::Eval(error) => error.hint(),
            Self::Usage { hint, .. } => hint.clone(),
            Self::Io { .. } => None,
        }
    }

    /// Wraps an I/O error with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().display().to_string(), source }
    }
}
