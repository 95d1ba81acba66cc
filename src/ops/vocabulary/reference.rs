//! vocabulary in f64, from rows of logits.

use super::{Coefficients, Head, Question, Statistics, Vocabulary, VocabularyBackward};
use crate::ops::answer_head::{AnswerHead, HeadColumns};
use crate::ops::norm::reference::normed_backward;
use crate::ops::reference::{Matrix, Reference};

/// Softmax of a row and log Σ exp.
fn softmax(z: &[f64]) -> (Vec<f64>, f64) {
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = z.iter().map(|z| (z - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    (exponentials.iter().map(|e| e / sum).collect(), largest + sum.ln())
}

impl Vocabulary for Reference {
    fn vocabulary(&self, h: &Matrix, head: Head<'_, Self>, question: Question<'_>) -> Statistics {
        self.vocabulary_means(h, head, question).0
    }
}

impl VocabularyBackward for Reference {
    fn vocabulary_means(&self, h: &Matrix, head: Head<'_, Self>, question: Question<'_>) -> (Statistics, Matrix) {
        let logits = self.answer_head(h, head.norm, head.eps, head.embedding, HeadColumns::Full);
        let rows: Vec<(Vec<f64>, f64)> = (0..h.rows).map(|row| softmax(logits.row(row))).collect();
        let chosen = |row: usize| question.ids.iter().map(move |&id| id as usize).map(move |id| (row, id));
        let centre = |row: usize| logits.row(row)[question.ids[0] as usize];
        // Weights of every mean over the vocabulary.
        let pair = |&(i, k): &(u32, u32)| {
            let (i, k) = (i as usize, k as usize);
            rows[i].0.iter().zip(logits.row(k)).map(|(p, z)| p * (z - centre(k))).collect::<Vec<f64>>()
        };
        let weights: Vec<Vec<f64>> =
            rows.iter().map(|(p, _)| p.clone()).chain(question.pairs.iter().map(pair)).collect();
        let mut means = Matrix::zeros(weights.len(), h.cols);
        for id in 0..head.embedding.rows() {
            let embedding = head.embedding.stored_row(id);
            for (row, weights) in weights.iter().enumerate() {
                for (mean, e) in means.row_mut(row).iter_mut().zip(&embedding) {
                    *mean += weights[id] * e;
                }
            }
        }
        let statistics = Statistics {
            log_sum: rows.iter().map(|(_, log_sum)| *log_sum).collect(),
            logits: (0..h.rows).flat_map(chosen).map(|(row, id)| logits.row(row)[id]).collect(),
            cross: weights[h.rows..].iter().map(|weights| weights.iter().sum()).collect(),
        };
        (statistics, means)
    }

    fn vocabulary_backward(
        &self,
        coefficients: Coefficients<'_>,
        means: &Matrix,
        h: &Matrix,
        head: Head<'_, Self>,
        ids: &[u32],
    ) -> Matrix {
        let w = head.norm.row(0);
        let embeddings: Vec<Vec<f64>> = ids.iter().map(|&id| head.embedding.stored_row(id as usize)).collect();
        let mut dn = Matrix::zeros(h.rows, h.cols);
        for row in 0..h.rows {
            let of_means = &coefficients.means[row * means.rows..(row + 1) * means.rows];
            let of_logits = &coefficients.logits[row * ids.len()..(row + 1) * ids.len()];
            let means = of_means.iter().enumerate().map(|(index, c)| (c, means.row(index)));
            let embeddings = of_logits.iter().zip(&embeddings).map(|(d, embedding)| (d, &embedding[..]));
            for (coefficient, vector) in means.chain(embeddings) {
                for (dn, value) in dn.row_mut(row).iter_mut().zip(vector) {
                    *dn += f64::from(*coefficient) * value;
                }
            }
        }
        let data = (0..h.rows).flat_map(|row| normed_backward(dn.row(row), h.row(row), &w, head.eps)).collect();
        Matrix { data, ..*h }
    }
}
