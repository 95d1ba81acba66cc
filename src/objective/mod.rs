//! Consistency and accuracy losses on the answer logits, with closed-form gradients (docs/numerics.md). All sums are f64.
//!
//! Margin m = z_yes − z_no, p = σ(m), each z one token's logit or that of several spellings pooled. Every loss is a mean over the pairs or the phrasings of one group; the mean over groups is the
//! trainer's. The mean over no pairs is 0: a group of one phrasing has a loss only under `ce-binary`, `ce-full` and their kind.

#![forbid(unsafe_code)]

mod error;
mod pool;
mod terms;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use pool::{POOLS, Pool, Pooling, Spellings};

use serde::{Deserialize, Serialize};

/// Names that [`Objective::new`] knows.
pub const LOSSES: [&str; 7] = ["paper", "margin", "symkl-binary", "symkl-full", "ce-binary", "ce-full", "combined"];
/// Names of consistency parts.
pub const CONSISTENCY: [&str; 3] = ["margin", "symkl-binary", "symkl-full"];
/// Names of accuracy parts.
pub const ACCURACY: [&str; 2] = ["ce-binary", "ce-full"];

/// λ of a whole loss where none is given; `None` for a loss of one term, which has no λ.
pub fn default_lambda(loss: &str) -> Option<f64> {
    match loss {
        "paper" => Some(1.0),
        "combined" => Some(0.1),
        _ => None,
    }
}

/// Which phrasings of a group are paired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairs {
    /// The original with each paraphrase (the paper).
    #[default]
    Original,
    /// Every i < j.
    All,
}

/// How a pair of phrasings is held together: a mean over pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// (m_i − m_j)²
    Margin,
    /// ½[KL(i‖j) + KL(j‖i)] on {yes, no}.
    SymklBinary,
    /// The same on the whole vocabulary.
    SymklFull,
}

/// How the right answer is asked for: a mean over phrasings, unless the loss is `paper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accuracy {
    /// Cross-entropy of the answer on {yes, no}.
    CeBinary,
    /// Cross-entropy of the answer's token on the whole vocabulary.
    CeFull,
}

/// What terms over the whole vocabulary read of one group's rows, in place of their logits.
#[derive(Clone, Copy, Debug)]
pub struct GroupStatistics<'a> {
    /// log Σ exp z of each phrasing.
    pub log_sum: &'a [f64],
    /// Σ p_i·(z_k − c_k) of the pairs of [`Objective::vocabulary_pairs`], in that order; c_k is any number.
    pub cross: &'a [f64],
}

/// Logits of one group and its truth.
#[derive(Clone, Copy, Debug)]
pub struct GroupLogits<'a> {
    /// Row-major `[phrasings, columns]`.
    pub logits: &'a [f64],
    /// Columns: any that hold yes and no; the vocabulary if the objective needs it and `vocabulary` is `None`.
    pub columns: usize,
    /// Statistics of the whole vocabulary where the columns are not all of it.
    pub vocabulary: Option<GroupStatistics<'a>>,
    /// Column of the yes token.
    pub yes: usize,
    /// Column of the no token.
    pub no: usize,
    /// Whether yes is right.
    pub answer_yes: bool,
}

/// Loss of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupLoss {
    /// What is minimised.
    pub loss: f64,
    /// Its consistency part, unweighted (0 if the objective has none). A part that λ turned off is still measured where two columns
    /// are enough for it.
    pub consistency: f64,
    /// Its accuracy part, unweighted, likewise.
    pub accuracy: f64,
    /// z_yes − z_no per phrasing.
    pub margins: Vec<f64>,
    /// ∂loss/∂logits, shaped as the logits: through the columns alone where statistics stood for the vocabulary.
    pub dlogits: Vec<f64>,
    /// With statistics: ∂loss/∂z of the whole vocabulary besides `dlogits` is, for phrasing i and column v, Σ_k a\[i, k\]·p_k\[v\] +
    /// Σ b\[i, (j, k)\]·p_j\[v\]·(z_k\[v\] − c_k) over the pairs; here `[phrasings, phrasings + pairs]`, a then b. Else empty.
    pub dvocabulary: Vec<f64>,
}

/// A loss: a weighted consistency part, a weighted accuracy part, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    pub(self) consistency: Option<(Consistency, f64)>,
    pub(self) accuracy: Option<(Accuracy, f64)>,
    /// The paper's accuracy part: a mean over pairs of the sum of both phrasings' cross-entropies.
    pub(self) accuracy_of_pairs: bool,
    pub(self) pairs: Pairs,
}

impl Objective {
    /// A loss by name:
    /// - `paper`: per pair symKL(i, j) + λ·(CE_i + CE_j) on {yes, no}; λ is 1 by default, 0 leaves consistency alone, infinity accuracy.
    /// - `combined`: `ce-full` + λ·`margin`; λ is 0.1 by default, infinity leaves the margin term alone.
    /// - `margin`, `symkl-binary`, `symkl-full`, `ce-binary`, `ce-full`: that term; it has no λ.
    ///
    /// # Errors
    /// An unknown name (the error lists the known ones and the nearest); λ negative or not a number, or given for a loss of one term.
    pub fn new(loss: &str, pairs: Pairs, lambda: Option<f64>) -> Result<Self, Error> {
        if let (Some(found), None, true) = (lambda, default_lambda(loss), LOSSES.contains(&loss)) {
            return Err(Error::UnusedLambda { loss: loss.to_owned(), found });
        }
        let lambda = lambda.or(default_lambda(loss));
        let term = |consistency, accuracy| Self::custom(consistency, accuracy, pairs, lambda);
        match loss {
            "paper" => {
                let parts = term(Some(Consistency::SymklBinary), Some(Accuracy::CeBinary))?;
                Ok(Self { accuracy_of_pairs: true, ..parts })
            }
            "combined" => {
                let (accuracy, consistency) = weights(lambda.unwrap_or(1.0))?;
                Ok(Self {
                    consistency: Some((Consistency::Margin, consistency)),
                    accuracy: Some((Accuracy::CeFull, accuracy)),
                    accuracy_of_pairs: false,
                    pairs,
                })
            }
            "margin" => term(Some(Consistency::Margin), None),
            "symkl-binary" => term(Some(Consistency::SymklBinary), None),
            "symkl-full" => term(Some(Consistency::SymklFull), None),
            "ce-binary" => term(None, Some(Accuracy::CeBinary)),
            "ce-full" => term(None, Some(Accuracy::CeFull)),
            _ => Err(Error::unknown("loss", loss, &LOSSES)),
        }
    }

    /// consistency + λ·accuracy, each a mean of its own; λ is 1 by default. λ = infinity leaves accuracy alone, 0 consistency; a part
    /// without the other has weight 1 and no λ.
    ///
    /// # Errors
    /// No part; λ negative or not a number, or given for one part alone.
    pub fn custom(
        consistency: Option<Consistency>,
        accuracy: Option<Accuracy>,
        pairs: Pairs,
        lambda: Option<f64>,
    ) -> Result<Self, Error> {
        let weights = match (consistency, accuracy, lambda) {
            (None, None, _) => return Err(Error::Empty),
            (Some(_), Some(_), _) => weights(lambda.unwrap_or(1.0))?,
            (_, _, None) => (1.0, 1.0),
            (_, _, Some(found)) => return Err(Error::UnusedLambda { loss: "one part alone".into(), found }),
        };
        Ok(Self {
            consistency: consistency.map(|part| (part, weights.0)),
            accuracy: accuracy.map(|part| (part, weights.1)),
            accuracy_of_pairs: false,
            pairs,
        })
    }

    /// Whether a part that counts is over the whole vocabulary. Otherwise the logits of yes and no are enough.
    pub fn needs_full_vocabulary(&self) -> bool {
        let consistency = matches!(self.consistency, Some((Consistency::SymklFull, weight)) if weight > 0.0);
        let accuracy = matches!(self.accuracy, Some((Accuracy::CeFull, weight)) if weight > 0.0);
        consistency || accuracy
    }

    /// The pairs (i, k) of a group's phrasings whose [`GroupStatistics::cross`] is needed, ascending: none unless the consistency
    /// part that counts is over the vocabulary.
    pub fn vocabulary_pairs(&self, phrasings: usize) -> Vec<(usize, usize)> {
        match self.consistency {
            Some((Consistency::SymklFull, weight)) if weight > 0.0 => {
                let both = |(i, j): (usize, usize)| [(i, i), (i, j), (j, i), (j, j)];
                let mut needed: Vec<_> = terms::pairs(phrasings, self.pairs).into_iter().flat_map(both).collect();
                needed.sort_unstable();
                needed.dedup();
                needed
            }
            _ => Vec::new(),
        }
    }

    /// Whether a part that counts is over pairs, so that it needs paraphrases.
    pub fn needs_paraphrases(&self) -> bool {
        let consistency = matches!(self.consistency, Some((_, weight)) if weight > 0.0);
        let accuracy = matches!(self.accuracy, Some((_, weight)) if weight > 0.0);
        consistency || (accuracy && self.accuracy_of_pairs)
    }
}

/// Weights (first, second) of first + λ·second.
fn weights(lambda: f64) -> Result<(f64, f64), Error> {
    match lambda {
        _ if lambda.is_nan() || lambda < 0.0 => Err(Error::Lambda { found: lambda }),
        f64::INFINITY => Ok((0.0, 1.0)),
        _ => Ok((1.0, lambda)),
    }
}

impl std::str::FromStr for Consistency {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "margin" => Ok(Self::Margin),
            "symkl-binary" => Ok(Self::SymklBinary),
            "symkl-full" => Ok(Self::SymklFull),
            _ => Err(Error::unknown("consistency part", name, &CONSISTENCY)),
        }
    }
}

impl std::str::FromStr for Accuracy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "ce-binary" => Ok(Self::CeBinary),
            "ce-full" => Ok(Self::CeFull),
            _ => Err(Error::unknown("accuracy part", name, &ACCURACY)),
        }
    }
}

impl std::str::FromStr for Pairs {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "original" => Ok(Self::Original),
            "all" => Ok(Self::All),
            _ => Err(Error::unknown("kind of pairs", name, &["original", "all"])),
        }
    }
}
