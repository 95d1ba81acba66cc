//! Errors of estimates.

/// A task that this machine cannot hold.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Less memory than the task needs, weights aside.
    #[error("{what} needs {needed} of memory ({parts}), and {available} can be had ({limit})")]
    Memory {
        /// Training or evaluation.
        what: &'static str,
        /// How much.
        needed: String,
        /// For what.
        parts: String,
        /// How much there is.
        available: String,
        /// What sets that.
        limit: &'static str,
        /// Which setting to change.
        hint: String,
    },
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Memory { hint, .. } => Some(hint.clone()),
        }
    }
}
