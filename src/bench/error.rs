//! Errors of benchmarks.

/// A benchmark whose result is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What would have been timed disagrees with the reference.
    #[error("the benchmark {arguments} computes something else than the reference: {problem}")]
    Wrong {
        /// Arguments that run it.
        arguments: String,
        /// What was found and expected, where.
        problem: String,
    },
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Wrong { arguments, .. } => {
                Some(format!("`unflip bench {arguments}` repeats it; please report it with the CPU's name"))
            }
        }
    }
}
