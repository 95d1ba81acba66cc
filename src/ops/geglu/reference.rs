//! geglu in f64, with the library's tanh.

use super::{Geglu, GegluBackward};
use crate::ops::reference::{Matrix, Reference};

const ROOT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

/// (gelu(a), gelu'(a)).
fn gelu(a: f64) -> (f64, f64) {
    let tanh = (ROOT_2_OVER_PI * (a + 0.044715 * a * a * a)).tanh();
    let slope = ROOT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * a * a);
    (0.5 * a * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * a * (1.0 - tanh * tanh) * slope)
}

impl Geglu for Reference {
    fn geglu(&self, gate: &Matrix, up: &Matrix) -> Matrix {
        let data = gate.data.iter().zip(&up.data).map(|(&gate, up)| self.precision.round(gelu(gate).0 * up)).collect();
        Matrix { data, ..*gate }
    }
}

impl GegluBackward for Reference {
    fn geglu_backward(&self, dy: &Matrix, gate: &Matrix, up: &Matrix) -> (Matrix, Matrix) {
        let all = || dy.data.iter().zip(&gate.data).zip(&up.data);
        let dgate = all().map(|((dy, &gate), up)| dy * up * gelu(gate).1).collect();
        let dup = all().map(|((dy, &gate), _)| dy * gelu(gate).0).collect();
        (Matrix { data: dgate, ..*gate }, Matrix { data: dup, ..*gate })
    }
}
