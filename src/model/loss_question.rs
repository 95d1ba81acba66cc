//! What a loss asks of a batch's answer rows, and where each group's share of the answer lies.

use crate::batch::PackedBatch;
use crate::objective::{GroupLoss, Objective};
use crate::ops::vocabulary::{Question, Statistics};
use std::ops::Range;

/// Answer rows of one group, and its pairs of rows, in the batch's.
pub(super) struct GroupRows {
    pub rows: Range<usize>,
    pub pairs: Range<usize>,
}

/// The whole question, for every group of a batch.
pub(super) struct LossQuestion {
    /// Ids of every spelling of the answers, ascending.
    pub ids: Vec<u32>,
    /// Pairs of rows.
    pub pairs: Vec<(u32, u32)>,
    /// In batch order.
    pub groups: Vec<GroupRows>,
}

impl LossQuestion {
    pub(super) fn new(batch: &PackedBatch, objective: &Objective, ids: Vec<u32>) -> Self {
        let mut question = Self { ids, pairs: Vec::new(), groups: Vec::with_capacity(batch.groups) };
        let (mut row, mut pair) = (0, 0);
        for group in 0..batch.groups {
            let count = batch.phrasings.iter().filter(|phrasing| phrasing.group == group).count();
            let pairs = objective.vocabulary_pairs(count);
            question.groups.push(GroupRows { rows: row..row + count, pairs: pair..pair + pairs.len() });
            question.pairs.extend(pairs.into_iter().map(|(i, k)| ((row + i) as u32, (row + k) as u32)));
            (row, pair) = (row + count, question.pairs.len());
        }
        question
    }

    pub(super) fn borrow(&self) -> Question<'_> {
        Question { ids: &self.ids, pairs: &self.pairs }
    }

    /// Answers of a loss that reads nothing but the logits of the ids.
    pub(super) fn without_vocabulary(&self, logits: Vec<f64>) -> Statistics {
        Statistics { log_sum: Vec::new(), logits, cross: Vec::new() }
    }

    /// ∂loss/∂logits of the ids, `[rows, ids]`.
    pub(super) fn of_logits(&self, losses: &[GroupLoss]) -> Vec<f32> {
        losses.iter().flat_map(|loss| &loss.dlogits).map(|&d| d as f32).collect()
    }

    /// Coefficients of the means of rows and pairs, `[rows, rows + pairs]`: blocks of the groups.
    pub(super) fn of_means(&self, losses: &[GroupLoss]) -> Vec<f32> {
        let rows = self.groups.last().map_or(0, |group| group.rows.end);
        let width = rows + self.pairs.len();
        let mut coefficients = vec![0.0; rows * width];
        for (group, loss) in self.groups.iter().zip(losses) {
            let (count, pairs) = (group.rows.len(), group.pairs.len());
            for (row, given) in group.rows.clone().zip(loss.dvocabulary.chunks_exact(count + pairs)) {
                let target = &mut coefficients[row * width..(row + 1) * width];
                let (of_rows, of_pairs) = given.split_at(count);
                for (target, value) in target[group.rows.clone()].iter_mut().zip(of_rows) {
                    *target = *value as f32;
                }
                for (target, value) in target[rows..][group.pairs.clone()].iter_mut().zip(of_pairs) {
                    *target = *value as f32;
                }
            }
        }
        coefficients
    }
}
