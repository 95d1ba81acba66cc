//! Errors of devices: an instruction set that the CPU lacks, a back end that is not there, a dtype it cannot use.

/// A device or weight that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--isa` names one that is unknown or that this CPU lacks.
    #[error("instruction set `{asked}` is not available: this CPU has {available}")]
    Isa {
        /// As given.
        asked: String,
        /// What can be used here.
        available: String,
    },
    /// `--device` or `--precision` that this build or machine cannot serve.
    #[error("{message}")]
    Unavailable {
        /// What was asked and what is missing.
        message: String,
        /// What to use instead.
        hint: String,
    },
    /// A GPU that cannot be used, or something that failed on it.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::Error),
    /// A base weight in a dtype that the engine does not compute with.
    #[error("tensor `{tensor}` is {found}: base weights must be BF16 or F32")]
    Dtype {
        /// Stored name.
        tensor: String,
        /// Its dtype.
        found: String,
    },
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Isa { .. } => Some("leave --isa out, or run `unflip doctor` to see what serves".into()),
            Self::Unavailable { hint, .. } => Some(hint.clone()),
            Self::Cuda(error) => error.hint(),
            Self::Dtype { .. } => Some("convert the checkpoint to bfloat16".into()),
        }
    }
}
