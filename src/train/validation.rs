//! Validation during a run: what is measured, when, and which of two validations is the better one. Its data choose `best/`
//! and nothing else; they are never the training data, and never test data.

use super::answers::AnswerCounts;
use super::collapse::{Answering, MarginSpread};
use super::engine::{EngineGroup, TrainEngine};
use super::error::Error;
use super::order::steps_per_epoch;
use super::settings::Settings;
use crate::error::Result;
use crate::report::progress_bar;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// What `best/` is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BestBy {
    /// Right answers to all phrasings: a flip is a wrong answer, and a collapsed model does badly.
    AccuracyAll,
    /// Right answers to originals.
    Accuracy,
    /// Questions with a flip. The least for a model that answers one way: read it with the accuracy.
    FlipRateQuestion,
    /// Paraphrases that flip.
    FlipRatePair,
    /// Mean |margin − the original's margin|.
    MarginDifference,
    /// Mean loss.
    Loss,
}

impl BestBy {
    /// Every choice with its name.
    pub(super) const NAMES: [(&'static str, Self); 6] = [
        ("accuracy_all", Self::AccuracyAll),
        ("accuracy", Self::Accuracy),
        ("flip_rate_question", Self::FlipRateQuestion),
        ("flip_rate_pair", Self::FlipRatePair),
        ("margin_difference", Self::MarginDifference),
        ("loss", Self::Loss),
    ];

    /// The name of the metric.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, by)| *by == self).map_or("", |(name, _)| name)
    }
}

/// What a validation measured: means over questions, and counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Validation {
    /// Mean of what is minimised, without dropout.
    pub loss: f64,
    pub loss_consistency: f64,
    pub loss_accuracy: f64,
    /// Mean over paraphrases of |margin − the original's|; 0 without paraphrases.
    pub margin_difference: f64,
    #[serde(flatten)]
    pub margins: MarginSpread,
    #[serde(flatten)]
    pub answers: AnswerCounts,
    /// Whether almost all answers are one although the truths differ.
    pub one_way: bool,
}

/// A validation's line in `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ValidationMetrics {
    pub step: u64,
    pub validation: Validation,
}

impl Validation {
    /// The metrics by the names that evaluations give them; undefined ones are NaN.
    pub fn rates(&self) -> [(&'static str, f64); 6] {
        let answers = &self.answers;
        let share = |part: u64, whole: u64| part as f64 / whole as f64;
        [
            ("flip_rate_question", share(answers.flipped_questions, answers.questions)),
            ("flip_rate_pair", share(answers.flipped_pairs, answers.pairs)),
            ("margin_difference", self.margin_difference),
            ("accuracy", share(answers.right_originals, answers.questions)),
            ("accuracy_all", share(answers.right, answers.phrasings)),
            ("yes_rate", share(answers.yes, answers.questions)),
        ]
    }

    pub fn answering(&self) -> Answering {
        Answering::of_validation(&self.answers, self.margins)
    }
}

impl ValidationMetrics {
    /// Whether this one is better by the metric; where that is equal, by right answers to all phrasings, then by flips.
    pub fn beats(&self, other: &Self, by: BestBy) -> bool {
        let (a, b) = (&self.validation, &other.validation);
        let more = |count: fn(&AnswerCounts) -> u64| count(&a.answers).cmp(&count(&b.answers));
        let less = |value: fn(&Validation) -> f64| value(b).total_cmp(&value(a));
        let first = match by {
            BestBy::AccuracyAll => Ordering::Equal,
            BestBy::Accuracy => more(|answers| answers.right_originals),
            BestBy::FlipRateQuestion => more(|answers| answers.flipped_questions).reverse(),
            BestBy::FlipRatePair => more(|answers| answers.flipped_pairs).reverse(),
            BestBy::MarginDifference => less(|validation| validation.margin_difference),
            BestBy::Loss => less(|validation| validation.loss),
        };
        let rest = more(|answers| answers.right).then(more(|answers| answers.flipped_pairs).reverse());
        first.then(rest) == Ordering::Greater
    }

    /// What stands beside the adapter in `best/`.
    pub fn note(&self, by: BestBy) -> serde_json::Value {
        let rates: serde_json::Map<_, _> =
            self.validation.rates().into_iter().map(|(name, rate)| (name.to_owned(), rate.into())).collect();
        serde_json::json!({ "step": self.step, "best_by": by.name(), "metrics": rates, "validation": self.validation })
    }
}

/// Whether `step` ends with a validation: every `validate_every` steps, else at the end of every epoch; and at the end of the run.
pub(super) fn is_due(step: u64, total_steps: u64, groups: usize, settings: &Settings) -> bool {
    let every = settings.run.validate_every;
    let every = every.unwrap_or_else(|| steps_per_epoch(groups, settings.schedule.batch_groups)).max(1);
    step == total_steps || step.is_multiple_of(every)
}

/// Losses and answers on validation data, in launches of the run's leaf size.
///
/// # Errors
/// A value that is not finite; whatever the engine gives.
pub(super) fn validate<E: TrainEngine>(
    engine: &mut E,
    groups: &[EngineGroup],
    settings: &Settings,
    step: u64,
) -> Result<ValidationMetrics> {
    let mut answers = AnswerCounts::default();
    let mut originals = Vec::with_capacity(groups.len());
    let (mut loss, mut consistency, mut accuracy, mut differences) = (0.0, 0.0, 0.0, 0.0);
    let bar = progress_bar(groups.len() as u64, "{bar:30} {pos}/{len} validation, left {eta}");
    for part in groups.chunks(settings.schedule.groups_per_batch) {
        for (group, one) in part.iter().zip(engine.evaluate(part)?) {
            let values = [one.loss, one.consistency, one.accuracy];
            if !one.margins.iter().chain(&values).all(|value| value.is_finite()) {
                let group = Some(group.id.clone());
                return Err(Error::NonFinite { what: "validation margin", step, group, tensor: None }.into());
            }
            let original = one.margins.first().copied().unwrap_or_default();
            originals.push(original);
            differences += one.margins.iter().skip(1).map(|margin| (margin - original).abs()).sum::<f64>();
            loss += one.loss;
            consistency += one.consistency;
            accuracy += one.accuracy;
            answers += AnswerCounts::of(&one.margins, group.answer_yes);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let count = groups.len().max(1) as f64;
    let margins = MarginSpread::of(&originals);
    let validation = Validation {
        loss: loss / count,
        loss_consistency: consistency / count,
        loss_accuracy: accuracy / count,
        margin_difference: differences / answers.pairs.max(1) as f64,
        margins,
        answers,
        one_way: Answering::of_validation(&answers, margins).one_way,
    };
    Ok(ValidationMetrics { step, validation })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(right: u64, flipped_pairs: u64, loss: f64) -> ValidationMetrics {
        let answers = AnswerCounts {
            questions: 10,
            pairs: 40,
            phrasings: 50,
            right,
            right_originals: right / 5,
            flipped_pairs,
            flipped_questions: flipped_pairs / 2,
            ..AnswerCounts::default()
        };
        let validation = Validation {
            loss,
            loss_consistency: 0.0,
            loss_accuracy: 0.0,
            margin_difference: loss,
            margins: MarginSpread::default(),
            answers,
            one_way: false,
        };
        ValidationMetrics { step: 1, validation }
    }

    #[test]
    fn the_better_validation_is_so_by_the_metric_then_by_right_answers() {
        let (accurate, steady) = (of(45, 8, 0.5), of(25, 2, 0.7));
        for (by, winner) in [
            (BestBy::AccuracyAll, &accurate),
            (BestBy::Accuracy, &accurate),
            (BestBy::Loss, &accurate),
            (BestBy::MarginDifference, &accurate),
            (BestBy::FlipRateQuestion, &steady),
            (BestBy::FlipRatePair, &steady),
        ] {
            assert_eq!(accurate.beats(&steady, by), winner == &accurate, "{}", by.name());
            assert_eq!(steady.beats(&accurate, by), winner == &steady, "{}", by.name());
            assert!(!accurate.beats(&accurate, by), "the earlier one stays");
        }
        assert!(of(26, 2, 0.9).beats(&steady, BestBy::FlipRatePair));
        assert!(of(45, 7, 0.9).beats(&accurate, BestBy::AccuracyAll));
    }

    #[test]
    fn validations_come_at_the_end_of_an_epoch_unless_asked_for_otherwise() {
        let mut settings = Settings::default();
        settings.schedule.batch_groups = 4;
        let due = |settings: &Settings| (1..=8).filter(|&step| is_due(step, 8, 11, settings)).collect::<Vec<_>>();
        assert_eq!(due(&settings), [3, 6, 8]);
        settings.run.validate_every = Some(5);
        assert_eq!(due(&settings), [5, 8]);
    }

    #[test]
    fn a_note_has_the_metrics_under_their_names() {
        let note = of(45, 8, 0.5).note(BestBy::Loss);
        assert_eq!((note["best_by"].as_str(), note["metrics"]["accuracy_all"].as_f64()), (Some("loss"), Some(0.9)));
        assert_eq!(note["metrics"]["flip_rate_pair"].as_f64(), Some(0.2));
        assert_eq!(note["validation"]["right"].as_u64(), Some(45));
    }
}
