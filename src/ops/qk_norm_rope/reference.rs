//! qk_norm_rope in f64. In bf16 precision x (q or k out of its product) is rounded on entry and the result again.

use super::{QkNormRope, QkNormRopeBackward};
use crate::ops::norm::reference::{normed, normed_backward};
use crate::ops::reference::{Matrix, Reference, ReferenceWeight};

/// Rotates one head by the row's angles, or back where `sign` is −1.
fn rotated(n: &[f64], rope: &[f64], sign: f64) -> Vec<f64> {
    let half = n.len() / 2;
    let (cos, sin) = rope.split_at(half);
    let (low, high) = n.split_at(half);
    let first = (0..half).map(|j| low[j] * cos[j] - sign * high[j] * sin[j]);
    let second = (0..half).map(|j| high[j] * cos[j] + sign * low[j] * sin[j]);
    first.chain(second).collect()
}

impl QkNormRope for Reference {
    fn qk_norm_rope(&self, x: &Matrix, w: &ReferenceWeight, eps: f32, rope: &Matrix, head_dim: usize) -> Matrix {
        let w = w.row(0);
        let mut data = Vec::with_capacity(x.data.len());
        for row in 0..x.rows {
            for head in self.precision.rounded(x.row(row)).chunks_exact(head_dim) {
                data.extend(rotated(&normed(head, &w, eps), rope.row(row), 1.0));
            }
        }
        Matrix { data: self.precision.rounded(&data), ..*x }
    }
}

impl QkNormRopeBackward for Reference {
    fn qk_norm_rope_backward(
        &self,
        dy: &Matrix,
        x: &Matrix,
        w: &ReferenceWeight,
        eps: f32,
        rope: &Matrix,
        head_dim: usize,
    ) -> Matrix {
        let w = w.row(0);
        let mut data = Vec::with_capacity(x.data.len());
        for row in 0..x.rows {
            let x = self.precision.rounded(x.row(row));
            for (dy, x) in dy.row(row).chunks_exact(head_dim).zip(x.chunks_exact(head_dim)) {
                data.extend(normed_backward(&rotated(dy, rope.row(row), -1.0), x, &w, eps));
            }
        }
        Matrix { data, ..*x }
    }
}
