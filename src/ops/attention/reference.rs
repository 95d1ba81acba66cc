//! attention in f64. In bf16 precision q, k, v and do are rounded on entry, p before p·v and pᵀ·do, dz before dz·k and dzᵀ·q,
//! o at the end; scores, their sums, δ and the gradients' sums are not.

use super::{Attention, AttentionBackward, AttentionGradients, AttentionOutput, AttentionShape};
use crate::batch::{AttentionPlan, KeySpans};
use crate::ops::reference::{Matrix, Reference};

/// Key rows that a query sees, ascending.
fn visible(spans: &KeySpans) -> impl Iterator<Item = usize> + use<> {
    (spans.lo0 as usize..spans.hi0 as usize).chain(spans.lo1 as usize..spans.hi1 as usize)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// target += factor·source.
fn add_scaled(target: &mut [f64], factor: f64, source: &[f64]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += factor * source;
    }
}

impl Reference {
    fn entering(&self, buf: &Matrix) -> Matrix {
        Matrix { data: self.precision.rounded(&buf.data), ..*buf }
    }
}

impl Attention for Reference {
    fn attention(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
    ) -> AttentionOutput<Matrix> {
        let (q, k, v) = (self.entering(q), self.entering(k), self.entering(v));
        let width = shape.head_dim;
        let mut o = Matrix::zeros(q.rows, q.cols);
        let mut softmax = Matrix::zeros(q.rows, 2 * shape.heads);
        for (row, spans) in plan.spans.iter().enumerate() {
            for head in 0..shape.heads {
                let (own, kv) = (head * width, head / (shape.heads / shape.kv_heads) * width);
                let query = &q.row(row)[own..own + width];
                let z = |key: usize| f64::from(shape.scale) * dot(query, &k.row(key)[kv..kv + width]);
                let largest = visible(spans).map(z).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = visible(spans).map(|key| (z(key) - largest).exp()).sum();
                softmax.row_mut(row)[2 * head..][..2].copy_from_slice(&[largest, sum]);
                for key in visible(spans) {
                    let p = self.precision.round((z(key) - largest).exp() / sum);
                    add_scaled(&mut o.row_mut(row)[own..own + width], p, &v.row(key)[kv..kv + width]);
                }
            }
        }
        AttentionOutput { o: self.entering(&o), softmax }
    }
}

impl AttentionBackward for Reference {
    fn attention_backward(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        output: &AttentionOutput<Matrix>,
        d_o: &Matrix,
    ) -> AttentionGradients<Matrix> {
        let (q, k, v, d_o) = (self.entering(q), self.entering(k), self.entering(v), self.entering(d_o));
        let width = shape.head_dim;
        let scale = f64::from(shape.scale);
        let mut dq = Matrix::zeros(q.rows, q.cols);
        let mut dk = Matrix::zeros(k.rows, k.cols);
        let mut dv = Matrix::zeros(v.rows, v.cols);
        for (row, spans) in plan.spans.iter().enumerate() {
            for head in 0..shape.heads {
                let (own, kv) = (head * width, head / (shape.heads / shape.kv_heads) * width);
                let query = &q.row(row)[own..own + width];
                let d_out = &d_o.row(row)[own..own + width];
                let (largest, sum) = (output.softmax.row(row)[2 * head], output.softmax.row(row)[2 * head + 1]);
                let delta = dot(d_out, &output.o.row(row)[own..own + width]);
                for key in visible(spans) {
                    let (key_row, value) = (&k.row(key)[kv..kv + width], &v.row(key)[kv..kv + width]);
                    let p = (scale * dot(query, key_row) - largest).exp() / sum;
                    let dz = self.precision.round(p * (dot(d_out, value) - delta));
                    add_scaled(&mut dq.row_mut(row)[own..own + width], scale * dz, key_row);
                    add_scaled(&mut dk.row_mut(key)[kv..kv + width], scale * dz, query);
                    add_scaled(&mut dv.row_mut(key)[kv..kv + width], self.precision.round(p), d_out);
                }
            }
        }
        AttentionGradients { dq, dk, dv }
    }
}
