//! lora_linear in f64. In bf16 precision x, dy, s·u, du and the read copies of A and B are rounded on entry to their
//! products; y, u's sum, dA, dB and dx are not.

use super::{LinearOutput, LoraLinear, LoraLinearBackward, LoraTerm, Part, Store};
use crate::ops::reference::{Matrix, Reference, add_product, add_product_transposed, add_transposed_product};

/// A or B of a term as the products read it.
fn factor(device: &Reference, params: &Matrix, offset: usize, length: usize) -> Vec<f64> {
    device.precision.rounded(&params.data[offset..offset + length])
}

/// `x` (of `cols` columns) where the term's mask keeps it, times 1/(1−p); `x` itself without dropout.
fn dropped(term: &LoraTerm<'_, Reference>, x: &[f64], cols: usize) -> Vec<f64> {
    let mut x = x.to_vec();
    if let Some(dropout) = term.dropout {
        for (row, x) in x.chunks_exact_mut(cols).enumerate() {
            dropout.each(row, cols, |column, keep| x[column] *= if keep { dropout.factor() } else { 0.0 });
        }
    }
    x
}

impl LoraLinear for Reference {
    fn lora_linear(&self, x: &Matrix, parts: &[Part<'_, Self>], _: Store) -> LinearOutput<Matrix> {
        let (rows, inputs) = (x.rows, x.cols);
        let x = self.precision.rounded(&x.data);
        let mut output = LinearOutput { y: Vec::new(), su: Vec::new() };
        for part in parts {
            let weight = part.weight.matrix();
            let mut y = Matrix::zeros(rows, weight.rows);
            add_product_transposed(&mut y.data, &x, &weight.data, inputs);
            output.su.push(part.lora.as_ref().map(|term| {
                let a = factor(self, term.params, term.a, term.rank * inputs);
                let b = factor(self, term.params, term.b, weight.rows * term.rank);
                let mut su = Matrix::zeros(rows, term.rank);
                add_product_transposed(&mut su.data, &dropped(term, &x, inputs), &a, inputs);
                for u in &mut su.data {
                    *u = self.precision.round(f64::from(term.scale) * *u);
                }
                add_product_transposed(&mut y.data, &su.data, &b, term.rank);
                su
            }));
            output.y.push(y);
        }
        output
    }
}

impl LoraLinearBackward for Reference {
    fn lora_linear_backward(
        &self,
        dy: &[&Matrix],
        x: Option<&Matrix>,
        su: &[Option<Matrix>],
        parts: &[Part<'_, Self>],
        mut grads: Option<&mut Matrix>,
        need_dx: bool,
    ) -> Option<Matrix> {
        let (rows, inputs) = (dy[0].rows, parts[0].weight.matrix().cols);
        let x = x.map(|x| self.precision.rounded(&x.data));
        let mut dx = need_dx.then(|| Matrix::zeros(rows, inputs));
        for ((part, dy), su) in parts.iter().zip(dy).zip(su) {
            let outputs = dy.cols;
            let dy = self.precision.rounded(&dy.data);
            if let Some(dx) = &mut dx {
                add_product(&mut dx.data, &dy, &part.weight.matrix().data, outputs);
            }
            let (Some(term), Some(su)) = (&part.lora, su) else { continue };
            let a = factor(self, term.params, term.a, term.rank * inputs);
            let b = factor(self, term.params, term.b, outputs * term.rank);
            let mut du = vec![0.0; rows * term.rank];
            add_product(&mut du, &dy, &b, outputs);
            for du in &mut du {
                *du = self.precision.round(f64::from(term.scale) * *du);
            }
            if let Some(grads) = grads.as_deref_mut() {
                let x = x.as_deref().expect("a tape that wants adapter gradients keeps the input");
                let da = &mut grads.data[term.a..term.a + term.rank * inputs];
                da.fill(0.0);
                add_transposed_product(da, &du, &dropped(term, x, inputs), term.rank, inputs);
                let db = &mut grads.data[term.b..term.b + outputs * term.rank];
                db.fill(0.0);
                add_transposed_product(db, &dy, &su.data, outputs, term.rank);
            }
            if let Some(dx) = &mut dx {
                let mut through = vec![0.0; rows * inputs];
                add_product(&mut through, &du, &a, term.rank);
                for (dx, through) in dx.data.iter_mut().zip(dropped(term, &through, inputs)) {
                    *dx += through;
                }
            }
        }
        dx
    }
}
