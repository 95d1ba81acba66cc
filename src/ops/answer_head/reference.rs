//! answer_head in f64; nothing is rounded but the rows of the head, which are as stored.

use super::{AnswerHead, AnswerHeadBackward, HeadColumns};
use crate::ops::norm::reference::{normed, normed_backward};
use crate::ops::reference::{Matrix, Reference, ReferenceWeight};

/// The chosen vocabulary ids.
fn ids(columns: HeadColumns<'_>, head: &ReferenceWeight) -> Vec<usize> {
    match columns {
        HeadColumns::Ids(ids) => ids.iter().map(|&id| id as usize).collect(),
        HeadColumns::Full => (0..head.rows()).collect(),
    }
}

impl AnswerHead for Reference {
    fn answer_head(
        &self,
        h: &Matrix,
        w: &ReferenceWeight,
        eps: f32,
        head: &ReferenceWeight,
        columns: HeadColumns<'_>,
    ) -> Matrix {
        let (w, ids) = (w.row(0), ids(columns, head));
        let n: Vec<Vec<f64>> = (0..h.rows).map(|row| normed(h.row(row), &w, eps)).collect();
        let mut logits = Matrix::zeros(h.rows, ids.len());
        for (column, &id) in ids.iter().enumerate() {
            let embedding = head.stored_row(id);
            for (row, n) in n.iter().enumerate() {
                logits.row_mut(row)[column] = n.iter().zip(&embedding).map(|(n, e)| n * e).sum();
            }
        }
        logits
    }
}

impl AnswerHeadBackward for Reference {
    fn answer_head_backward(
        &self,
        dlogits: &Matrix,
        h: &Matrix,
        w: &ReferenceWeight,
        eps: f32,
        head: &ReferenceWeight,
        columns: HeadColumns<'_>,
    ) -> Matrix {
        let w = w.row(0);
        let mut dn = Matrix::zeros(h.rows, h.cols);
        for (column, id) in ids(columns, head).into_iter().enumerate() {
            let embedding = head.stored_row(id);
            for row in 0..h.rows {
                let d = dlogits.row(row)[column];
                for (dn, e) in dn.row_mut(row).iter_mut().zip(&embedding) {
                    *dn += d * e;
                }
            }
        }
        let data = (0..h.rows).flat_map(|row| normed_backward(dn.row(row), h.row(row), &w, eps)).collect();
        Matrix { data, ..*h }
    }
}
