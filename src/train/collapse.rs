//! The collapse that consistency without accuracy leads to: one answer to every question. Looked for in a sliding window of
//! training and in every validation, from two figures: the share of answers that are yes, and how far apart margins lie.

use super::answers::AnswerCounts;
use super::error::Error;
use super::metrics::StepMetrics;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Questions of training that a window covers.
const WINDOW: u64 = 64;
/// Fewest questions of a validation that say anything.
const FEWEST: u64 = 16;
/// Share of one answer from which a model answers one way.
const ONE_WAY: f64 = 0.98;
/// Share of either truth from which this is no reflection of the data.
const MIXED: f64 = 0.25;

/// Mean and population standard deviation of originals' margins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MarginSpread {
    /// Mean.
    pub margin_mean: f64,
    /// Standard deviation.
    pub margin_sd: f64,
}

impl MarginSpread {
    /// Of some margins; zeros of none.
    pub fn of(margins: &[f64]) -> Self {
        let count = margins.len().max(1) as f64;
        let margin_mean = margins.iter().sum::<f64>() / count;
        let squares = margins.iter().map(|margin| (margin - margin_mean) * (margin - margin_mean)).sum::<f64>();
        Self { margin_mean, margin_sd: (squares / count).sqrt() }
    }

    /// Of several sets together, each with its size.
    fn pooled(parts: impl Iterator<Item = (u64, Self)> + Clone) -> Self {
        let count = parts.clone().map(|(n, _)| n).sum::<u64>().max(1) as f64;
        let margin_mean = parts.clone().map(|(n, part)| n as f64 * part.margin_mean).sum::<f64>() / count;
        let squares = parts.map(|(n, part)| {
            let shift = part.margin_mean - margin_mean;
            n as f64 * (part.margin_sd * part.margin_sd + shift * shift)
        });
        Self { margin_mean, margin_sd: (squares.sum::<f64>() / count).sqrt() }
    }
}

/// How some questions were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answering {
    /// Questions.
    pub questions: u64,
    /// Share of originals answered yes.
    pub yes_rate: f64,
    /// Share of truths that are yes.
    pub label_yes_rate: f64,
    /// Standard deviation of the originals' margins.
    pub margin_sd: f64,
    /// Whether almost all answers are one although the truths differ.
    pub one_way: bool,
}

impl Answering {
    fn new(questions: u64, yes: u64, label_yes: u64, spread: MarginSpread, fewest: u64) -> Self {
        let rate = |count: u64| if questions == 0 { 0.0 } else { count as f64 / questions as f64 };
        let (yes_rate, label_yes_rate) = (rate(yes), rate(label_yes));
        let mixed = label_yes_rate.min(1.0 - label_yes_rate) >= MIXED;
        let one_way = questions >= fewest && mixed && yes_rate.max(1.0 - yes_rate) >= ONE_WAY;
        Self { questions, yes_rate, label_yes_rate, margin_sd: spread.margin_sd, one_way }
    }

    /// Of a validation.
    pub fn of_validation(answers: &AnswerCounts, spread: MarginSpread) -> Self {
        Self::new(answers.questions, answers.yes, answers.label_yes, spread, FEWEST)
    }

    /// The error that says so.
    pub(super) fn collapse(self, step: u64, place: &'static str) -> Error {
        Error::Collapse { step, place, answering: self }
    }
}

/// The window over the latest steps, just enough of them to cover [`WINDOW`] questions.
#[derive(Default)]
pub(super) struct CollapseWatch {
    /// (questions, answered yes, truth yes, margins) by step.
    recent: VecDeque<(u64, u64, u64, MarginSpread)>,
    /// Step and place of the first collapse.
    pub(super) first: Option<(u64, &'static str, Answering)>,
    /// What the latest step or its validation shows, if that is a collapse.
    latest: Option<(u64, &'static str, Answering)>,
}

impl CollapseWatch {
    /// Takes a step in and returns the window with it.
    pub(super) fn see(&mut self, metrics: &StepMetrics) -> Answering {
        let answers = &metrics.answers;
        self.recent.push_back((answers.questions, answers.yes, answers.label_yes, metrics.margins));
        while let Some(oldest) = self.recent.front()
            && self.sums().0 - oldest.0 >= WINDOW
        {
            self.recent.pop_front();
        }
        let (questions, yes, label_yes) = self.sums();
        let spread = MarginSpread::pooled(self.recent.iter().map(|&(n, .., spread)| (n, spread)));
        let window = Answering::new(questions, yes, label_yes, spread, WINDOW);
        self.latest = None;
        self.note(metrics.step, "training", window);
        window
    }

    /// Takes a validation in.
    pub(super) fn see_validation(&mut self, step: u64, answering: Answering) {
        self.note(step, "validation", answering);
    }

    fn note(&mut self, step: u64, place: &'static str, answering: Answering) {
        if answering.one_way {
            let found = (step, place, answering);
            self.latest = Some(found);
            self.first.get_or_insert(found);
        }
    }

    fn sums(&self) -> (u64, u64, u64) {
        self.recent.iter().fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    }

    /// The error if the latest step or its validation shows a collapse.
    pub(super) fn collapse(&self) -> Option<Error> {
        self.latest.map(|(step, place, answering)| answering.collapse(step, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64, yes: u64, label_yes: u64) -> StepMetrics {
        let answers = AnswerCounts { questions: 16, yes, label_yes, ..AnswerCounts::default() };
        StepMetrics { step, answers, ..StepMetrics::default() }
    }

    #[test]
    fn a_collapse_is_seen_once_the_window_is_full_and_the_truths_differ() {
        let first = |yes: [u64; 6], label_yes| {
            let mut watch = CollapseWatch::default();
            (1..).zip(yes).for_each(|(step, yes)| _ = watch.see(&metrics(step, yes, label_yes)));
            watch.first.map(|(step, place, window)| (step, place, window.yes_rate))
        };
        assert_eq!(first([16; 6], 8), Some((4, "training", 1.0)));
        assert_eq!(first([3, 0, 0, 0, 0, 0], 8), Some((5, "training", 0.0)));
        assert_eq!(first([16, 16, 16, 15, 16, 16], 8), Some((4, "training", 63.0 / 64.0)));
        assert_eq!(first([16, 15, 16, 15, 16, 15], 8), None);
        assert_eq!(first([0; 6], 3), None, "almost every truth is no");
    }

    #[test]
    fn a_collapse_passes_with_the_window() {
        let mut watch = CollapseWatch::default();
        (1..=4).for_each(|step| _ = watch.see(&metrics(step, 16, 8)));
        assert!(watch.collapse().is_some());
        watch.see(&metrics(5, 8, 8));
        assert!(watch.collapse().is_none());
        assert_eq!(watch.first.map(|first| first.0), Some(4));
    }

    #[test]
    fn a_validation_of_few_questions_says_nothing() {
        let of = |questions| AnswerCounts { questions, label_yes: questions / 2, ..AnswerCounts::default() };
        assert!(!Answering::of_validation(&of(15), MarginSpread::default()).one_way);
        assert!(Answering::of_validation(&of(16), MarginSpread::default()).one_way);
    }

    #[test]
    fn the_spread_of_parts_is_that_of_the_whole() {
        let margins = [1.5, -2.0, 0.25, 7.0, -0.5];
        let whole = MarginSpread::of(&margins);
        let parts = [(2, MarginSpread::of(&margins[..2])), (3, MarginSpread::of(&margins[2..]))];
        let pooled = MarginSpread::pooled(parts.into_iter());
        assert!((whole.margin_mean - pooled.margin_mean).abs() < 1e-15);
        assert!((whole.margin_sd - pooled.margin_sd).abs() < 1e-14);
        assert_eq!(MarginSpread::of(&[]), MarginSpread::default());
    }
}
