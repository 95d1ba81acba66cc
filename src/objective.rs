//! Consistency and accuracy losses on the answer logits, with closed-form gradients (docs/numerics.md).

/// Which phrasings of a group are paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// The original with each paraphrase (the paper).
    Original,
    /// Every i < j.
    All,
}

/// Logits of one group and its truth.
#[derive(Clone, Copy, Debug)]
pub struct GroupLogits<'a> {
    /// Row-major `[phrasings, columns]`.
    pub logits: &'a [f64],
    /// Columns: 2 (yes, no) or the vocabulary.
    pub columns: usize,
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
    /// Its consistency part, unweighted (0 if the objective has none).
    pub consistency: f64,
    /// Its accuracy part, unweighted (0 if the objective has none).
    pub accuracy: f64,
    /// z_yes − z_no per phrasing.
    pub margins: Vec<f64>,
    /// ∂loss/∂logits, shaped as the logits.
    pub dlogits: Vec<f64>,
}
