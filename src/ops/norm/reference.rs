//! norm, norm_add and their backward in f64.

use super::{Norm, NormBackward};
use crate::ops::reference::{Matrix, Reference, ReferenceWeight};

/// ρ = 1/√(mean(x²)+ε).
pub(crate) fn rho(x: &[f64], eps: f32) -> f64 {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    1.0 / (mean + f64::from(eps)).sqrt()
}

/// y = x̂·(1+w).
pub(crate) fn normed(x: &[f64], w: &[f64], eps: f32) -> Vec<f64> {
    let rho = rho(x, eps);
    x.iter().zip(w).map(|(x, w)| rho * x * (1.0 + w)).collect()
}

/// dx = ρ·(g − x̂·mean(g·x̂)), g = dy·(1+w).
pub(crate) fn normed_backward(dy: &[f64], x: &[f64], w: &[f64], eps: f32) -> Vec<f64> {
    let rho = rho(x, eps);
    let g: Vec<f64> = dy.iter().zip(w).map(|(dy, w)| dy * (1.0 + w)).collect();
    let mean = g.iter().zip(x).map(|(g, x)| g * rho * x).sum::<f64>() / x.len() as f64;
    g.iter().zip(x).map(|(g, x)| rho * (g - rho * x * mean)).collect()
}

impl Norm for Reference {
    fn norm(&self, x: &Matrix, w: &ReferenceWeight, eps: f32) -> Matrix {
        let mut y = self.branch_norm(x, w, eps);
        y.data = self.precision.rounded(&y.data);
        y
    }

    fn norm_add(&self, h: &Matrix, branch: &Matrix, w: &ReferenceWeight, eps: f32) -> Matrix {
        let mut y = self.branch_norm(branch, w, eps);
        for (y, h) in y.data.iter_mut().zip(&h.data) {
            *y += h;
        }
        y
    }

    fn branch_norm(&self, branch: &Matrix, w: &ReferenceWeight, eps: f32) -> Matrix {
        let w = w.row(0);
        let data = branch.data.chunks_exact(branch.cols).flat_map(|x| normed(x, &w, eps)).collect();
        Matrix { data, ..*branch }
    }
}

impl NormBackward for Reference {
    fn norm_backward(&self, dy: &Matrix, x: &Matrix, w: &ReferenceWeight, eps: f32) -> Matrix {
        let w = w.row(0);
        let data = (0..x.rows).flat_map(|row| normed_backward(dy.row(row), x.row(row), &w, eps)).collect();
        Matrix { data, ..*x }
    }
}
