//! One logit for an answer that has several spellings.

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

impl Pool {
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
