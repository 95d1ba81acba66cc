//! One logit for an answer that has several spellings: how they are pooled, and which tokens they are.

use super::Error;
use serde::{Deserialize, Serialize};

/// How logits of an answer's spellings become one. A setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The first spelling's alone.
    #[default]
    Single,
    /// The largest.
    Max,
    /// log Σ exp: the logit of the spellings' summed probability.
    Logsumexp,
}

/// Names of the ways to pool.
pub const POOLS: [&str; 3] = ["single", "max", "logsumexp"];

impl Pool {
    /// As it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Max => "max",
            Self::Logsumexp => "logsumexp",
        }
    }

    /// The pooled logit and its derivative in each spelling's logit. `logits` is not empty; of equal largest the first one counts.
    pub fn pool(self, logits: &[f64]) -> (f64, Vec<f64>) {
        let largest = (1..logits.len()).fold(0, |best, k| if logits[k] > logits[best] { k } else { best });
        let one = |chosen: usize| {
            let gradient = (0..logits.len()).map(|k| f64::from(u8::from(k == chosen))).collect();
            (logits.get(chosen).copied().unwrap_or(f64::NAN), gradient)
        };
        match self {
            Self::Single => one(0),
            Self::Max => one(largest),
            Self::Logsumexp => {
                let (probabilities, lse) = super::terms::softmax(logits);
                (lse, probabilities)
            }
        }
    }
}

impl std::str::FromStr for Pool {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "single" => Ok(Self::Single),
            "max" => Ok(Self::Max),
            "logsumexp" => Ok(Self::Logsumexp),
            _ => Err(Error::unknown("pool", name, &POOLS)),
        }
    }
}

/// A pool and the tokens that it is over, beside those that a group names itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pooling {
    /// How spellings become one logit.
    pub pool: Pool,
    /// Token ids of further spellings of yes; unused by [`Pool::Single`].
    pub yes: Vec<u32>,
    /// Of no.
    pub no: Vec<u32>,
}

impl Pooling {
    /// Token ids of yes: the group's own first, each once.
    pub fn yes_ids(&self, first: u32) -> Vec<u32> {
        self.ids(first, &self.yes)
    }

    /// Token ids of no, likewise.
    pub fn no_ids(&self, first: u32) -> Vec<u32> {
        self.ids(first, &self.no)
    }

    fn ids(&self, first: u32, further: &[u32]) -> Vec<u32> {
        let further = if self.pool == Pool::Single { &[] } else { further };
        std::iter::once(first).chain(further.iter().copied().filter(|&id| id != first)).collect()
    }
}

/// Columns of both answers' spellings in a row of logits, and how they become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spellings {
    /// How.
    pub pool: Pool,
    /// Columns of yes, at least one.
    pub yes: Vec<usize>,
    /// Columns of no, at least one.
    pub no: Vec<usize>,
}

/// A pooled answer in one row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pooled {
    /// Its logit.
    pub(super) logit: f64,
    /// ∂logit/∂z of each spelling.
    pub(super) gradient: Vec<f64>,
}

impl Spellings {
    /// One column for each answer.
    pub fn single(yes: usize, no: usize) -> Self {
        Self { pool: Pool::Single, yes: vec![yes], no: vec![no] }
    }

    /// Yes and no of a row.
    pub(super) fn of(&self, row: &[f64]) -> [Pooled; 2] {
        [&self.yes, &self.no].map(|columns| {
            let logits: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
            let (logit, gradient) = self.pool.pool(&logits);
            Pooled { logit, gradient }
        })
    }

    /// z_yes − z_no of a row.
    pub fn margin(&self, row: &[f64]) -> f64 {
        let [yes, no] = self.of(row);
        yes.logit - no.logit
    }

    /// Adds `factor`·∂margin/∂z of a row to `gradient`, which has the row's columns.
    pub fn add_margin_gradient(&self, row: &[f64], factor: f64, gradient: &mut [f64]) {
        let [yes, no] = self.of(row);
        for (columns, pooled, factor) in [(&self.yes, yes, factor), (&self.no, no, -factor)] {
            for (&column, share) in columns.iter().zip(&pooled.gradient) {
                gradient[column] += factor * share;
            }
        }
    }
}
