//! adamw in f64.

use super::{AdamW, AdamWStep};
use crate::ops::reference::{Matrix, Reference};

impl AdamW for Reference {
    fn adamw(&self, params: &mut Matrix, grads: &Matrix, m: &mut Matrix, v: &mut Matrix, step: &AdamWStep) {
        let correction1 = 1.0 - step.beta1.powi(step.step as i32);
        let correction2 = 1.0 - step.beta2.powi(step.step as i32);
        let moments = m.data.iter_mut().zip(&mut v.data);
        for ((p, g), (m, v)) in params.data.iter_mut().zip(&grads.data).zip(moments) {
            let g = step.gradient_scale * g;
            *p -= step.lr * step.weight_decay * *p;
            *m = step.beta1 * *m + (1.0 - step.beta1) * g;
            *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
            *p -= step.lr * (*m / correction1) / ((*v / correction2).sqrt() + step.eps);
        }
    }

    fn sum_of_squares(&self, buf: &Matrix) -> f64 {
        buf.data.iter().map(|value| value * value).sum()
    }
}
