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
    /// More memory than there is.
    #[error(transparent)]
    Estimate(#[from] crate::estimate::Error),
    /// A benchmark that computes something wrong.
    #[error(transparent)]
    Bench(#[from] crate::bench::Error),
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
            Self::Estimate(error) => error.hint(),
            Self::Bench(error) => error.hint(),
            Self::Usage { hint, .. } => hint.clone(),
            Self::Io { path, source, .. } => Some(io_hint(path, source)),
        }
    }

    /// Whether the request itself was wrong: a flag, a setting, a combination of them. The command line then exits with 2.
    pub fn is_usage(&self) -> bool {
        use crate::{cuda, model, ops, text, train};
        match self {
            Self::Usage { .. } | Self::Objective(_) => true,
            Self::Device(error) => match error {
                ops::Error::Isa { .. } | ops::Error::Unavailable { .. } => true,
                ops::Error::Cuda(error) => matches!(error, cuda::Error::Missing(_) | cuda::Error::Architecture { .. }),
                ops::Error::Dtype { .. } => false,
            },
            Self::Text(error) => matches!(error, text::Error::Template { .. }),
            Self::Model(error) => matches!(
                error,
                model::Error::Layers { .. }
                    | model::Error::UnknownSite { .. }
                    | model::Error::SiteLayer { .. }
                    | model::Error::EmptyAdapter { .. }
                    | model::Error::Rank { .. }
            ),
            Self::Train(error) => matches!(
                error,
                train::Error::UnknownKey { .. }
                    | train::Error::Setting { .. }
                    | train::Error::Conflict { .. }
                    | train::Error::Objective(_)
                    | train::Error::Config { .. }
                    | train::Error::ValidationIsTraining { .. }
            ),
            _ => false,
        }
    }

    /// What the command line exits with: 2 for a wrong request, 128 and the signal's number for a run that a signal stopped, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Train(crate::train::Error::Interrupted { code, .. }) => *code,
            error if error.is_usage() => 2,
            _ => 1,
        }
    }

    /// Wraps an I/O error with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().display().to_string(), source }
    }
}

/// What to do about a system's refusal at `path`.
pub(crate) fn io_hint(path: &str, source: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound => format!("check the spelling of {path}; its folder must exist"),
        ErrorKind::PermissionDenied => format!("check who may read and write {path}"),
        ErrorKind::NotADirectory => format!("a part of {path} is a file: choose a path through folders alone"),
        ErrorKind::AlreadyExists => format!("{path} is a file: choose another path for the folder"),
        ErrorKind::IsADirectory => format!("{path} is a folder: give a file"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on the disk, then run the command again".into(),
        ErrorKind::ReadOnlyFilesystem => "choose a place that can be written".into(),
        ErrorKind::InvalidData => format!("{path} must be UTF-8 text"),
        _ => format!("check {path} and the disk that it is on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_flags_are_usage_and_files_are_not() {
        let setting = crate::train::Settings::parse("[optimizer]\nlr = 0", "c.toml").expect_err("no such rate");
        assert!(Error::from(setting).is_usage());
        assert!(Error::from(crate::cpu::Isa::parse("sse9").expect_err("unknown")).is_usage());
        let missing = crate::train::Settings::read(std::path::Path::new("no/such.toml")).expect_err("no file");
        assert!(!missing.is_usage());
        assert_eq!(missing.hint().as_deref(), Some("check the spelling of no/such.toml; its folder must exist"));
    }
}
