//! Errors of losses that cannot be set up.

/// A loss that does not exist or cannot be weighted so.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// An unknown name.
    #[error("unknown {what} `{found}`: expected one of {known}")]
    Unknown {
        /// `loss`, `consistency part`, ….
        what: &'static str,
        /// As given.
        found: String,
        /// Known names.
        known: String,
        /// The known name that is most like it, if any is.
        nearest: Option<String>,
    },
    /// λ out of range.
    #[error("λ must be a number of at least 0, or inf, found {found}")]
    Lambda {
        /// As given.
        found: f64,
    },
    /// λ for a loss of one term.
    #[error("λ = {found} was given for `{loss}`, which has no second part to weight")]
    UnusedLambda {
        /// The loss.
        loss: String,
        /// As given.
        found: f64,
    },
    /// Neither part is given.
    #[error("the objective has neither a consistency nor an accuracy part")]
    Empty,
}

impl Error {
    pub(super) fn unknown(what: &'static str, found: &str, known: &[&str]) -> Self {
        let nearest = known
            .iter()
            .map(|name| (strsim::jaro_winkler(&found.to_lowercase().replace('_', "-"), name), *name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness > 0.75)
            .map(|(_, name)| name.to_owned());
        Self::Unknown { what, found: found.to_owned(), known: known.join(", "), nearest }
    }

    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { nearest, known, .. } => Some(match nearest {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("choose one of {known}"),
            }),
            Self::Lambda { .. } => Some("0 leaves one part alone, inf the other; 1 is the paper's weight".into()),
            Self::UnusedLambda { .. } => Some("leave λ out, or choose `paper` or `combined`".into()),
            Self::Empty => Some("set `loss = \"paper\"`, or one of `consistency` and `accuracy`".into()),
        }
    }
}
