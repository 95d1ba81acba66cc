//! Counts of answers and flips from margins: the sums behind every rate that training shows and evaluation reports.
//!
//! The answer is yes iff m > 0; a tie (m = 0) is therefore a no, and is counted. A paraphrase flips if its answer differs
//! from the original's (phrasing 0).

use serde::{Deserialize, Serialize};

/// Whether a margin says yes.
pub fn says_yes(margin: f64) -> bool {
    margin > 0.0
}

/// Sums over questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerCounts {
    /// Questions (groups).
    pub questions: u64,
    /// Questions with any flipped paraphrase.
    pub flipped_questions: u64,
    /// (original, paraphrase) pairs.
    pub pairs: u64,
    /// Pairs that flip.
    pub flipped_pairs: u64,
    /// Phrasings, originals included.
    pub phrasings: u64,
    /// Right answers to phrasings.
    pub right: u64,
    /// Right answers to originals.
    pub right_originals: u64,
    /// Originals answered yes.
    pub yes: u64,
    /// Questions whose truth is yes.
    pub label_yes: u64,
    /// Phrasings with m = 0.
    pub ties: u64,
}

impl AnswerCounts {
    /// Counts of one question; `margins[0]` is the original's.
    pub fn of(margins: &[f64], answer_yes: bool) -> Self {
        let Some((&original, paraphrases)) = margins.split_first() else { return Self::default() };
        let yes = says_yes(original);
        let flipped_pairs = paraphrases.iter().filter(|&&m| says_yes(m) != yes).count() as u64;
        Self {
            questions: 1,
            flipped_questions: u64::from(flipped_pairs > 0),
            pairs: paraphrases.len() as u64,
            flipped_pairs,
            phrasings: margins.len() as u64,
            right: margins.iter().filter(|&&m| says_yes(m) == answer_yes).count() as u64,
            right_originals: u64::from(yes == answer_yes),
            yes: u64::from(yes),
            label_yes: u64::from(answer_yes),
            ties: margins.iter().filter(|&&m| m == 0.0).count() as u64,
        }
    }
}

impl std::ops::AddAssign for AnswerCounts {
    fn add_assign(&mut self, other: Self) {
        self.questions += other.questions;
        self.flipped_questions += other.flipped_questions;
        self.pairs += other.pairs;
        self.flipped_pairs += other.flipped_pairs;
        self.phrasings += other.phrasings;
        self.right += other.right;
        self.right_originals += other.right_originals;
        self.yes += other.yes;
        self.label_yes += other.label_yes;
        self.ties += other.ties;
    }
}

impl std::iter::Sum for AnswerCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut total, one| {
            total += one;
            total
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_is_a_no_and_is_counted() {
        let counts = AnswerCounts::of(&[0.5, 0.0, -1.0, 2.0], true);
        assert_eq!((counts.pairs, counts.flipped_pairs, counts.flipped_questions, counts.ties), (3, 2, 1, 1));
        assert_eq!((counts.phrasings, counts.right, counts.right_originals, counts.yes), (4, 2, 1, 1));
        let counts = AnswerCounts::of(&[0.0, -1.0], false);
        assert_eq!((counts.flipped_pairs, counts.right, counts.ties, counts.yes), (0, 2, 1, 0));
    }
}
