//! Two evaluations of the same questions side by side: paired permutation tests that flip the signs of whole clusters.

use super::Error;
use super::error::short;
use super::results::StoredResults;
use super::samples::Sample;
use super::statistics::paired_permutation;
use crate::error::Result;
use crate::train::AnswerCounts;
use serde::Serialize;
use std::collections::HashMap;

/// One metric of two evaluations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the metric.
    pub metric: &'static str,
    /// Of the first evaluation.
    pub first: f64,
    /// Of the second.
    pub second: f64,
    /// The statistic: second − first.
    pub difference: f64,
    /// Two-sided; NaN where nothing was compared.
    pub p_value: f64,
    /// Questions, pairs or phrasings compared.
    pub n: u64,
    /// Clusters whose signs are flipped.
    pub clusters: usize,
}

/// Per question: (sum of the metric, number of units).
type PerQuestion = fn(&[Sample]) -> (f64, f64);

fn counts(group: &[Sample]) -> AnswerCounts {
    let margins: Vec<f64> = group.iter().map(|sample| sample.margin).collect();
    AnswerCounts::of(&margins, group.first().is_some_and(|sample| sample.truth == "yes"))
}

const COMPARED: [(&str, PerQuestion); 4] = [
    ("flip_rate_question", |group| (counts(group).flipped_questions as f64, f64::from(u8::from(group.len() > 1)))),
    ("flip_rate_pair", |group| (counts(group).flipped_pairs as f64, counts(group).pairs as f64)),
    ("margin_difference", |group| {
        (group.iter().skip(1).map(|k| (k.margin - group[0].margin).abs()).sum(), group.len().saturating_sub(1) as f64)
    }),
    ("accuracy_all", |group| (counts(group).right as f64, counts(group).phrasings as f64)),
];

/// Compares question flips, pair flips, margin differences and accuracy on all phrasings with `permutations` sign flips.
///
/// # Errors
/// Other data, another number of questions, or a question that differs in id, phrasings or truth.
pub fn compare(
    first: &StoredResults,
    second: &StoredResults,
    permutations: usize,
    seed: u64,
) -> Result<Vec<Comparison>> {
    let other = |problem: String| Error::OtherQuestions {
        first: first.path.display().to_string(),
        second: second.path.display().to_string(),
        problem,
    };
    if first.header.data != second.header.data {
        return Err(other(format!(
            "they are of different data (SHA-256 {} and {})",
            short(&first.header.data),
            short(&second.header.data)
        ))
        .into());
    }
    if first.groups.len() != second.groups.len() {
        let (a, b) = (first.groups.len(), second.groups.len());
        return Err(other(format!("they have {a} and {b} questions")).into());
    }
    let mut clusters: HashMap<&str, usize> = HashMap::new();
    let mut places = Vec::new();
    for (number, (a, b)) in (1..).zip(first.groups.iter().zip(&second.groups)) {
        let key = |group: &[Sample]| (group[0].id.clone(), group.len(), group[0].truth.clone());
        if key(a) != key(b) {
            let show = |(id, phrasings, truth)| format!("`{id}` ({phrasings} phrasings, truth {truth})");
            return Err(other(format!("question {number} is {} and {}", show(key(a)), show(key(b)))).into());
        }
        let next = clusters.len();
        places.push(*clusters.entry(&a[0].cluster).or_insert(next));
    }
    let row = |&(metric, of): &(&'static str, PerQuestion)| {
        let mut differences = vec![0.0; clusters.len()];
        let (mut sum_a, mut sum_b, mut units) = (0.0, 0.0, 0.0);
        for ((a, b), &place) in first.groups.iter().zip(&second.groups).zip(&places) {
            let ((value_a, weight), (value_b, _)) = (of(a), of(b));
            differences[place] += value_b - value_a;
            sum_a += value_a;
            sum_b += value_b;
            units += weight;
        }
        Comparison {
            metric,
            first: sum_a / units,
            second: sum_b / units,
            difference: (sum_b - sum_a) / units,
            p_value: if units == 0.0 { f64::NAN } else { paired_permutation(&differences, permutations, seed) },
            n: units as u64,
            clusters: clusters.len(),
        }
    };
    Ok(COMPARED.iter().map(row).collect())
}
