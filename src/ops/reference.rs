//! The reference device: plain f64 loops, the oracle of every operation's test and `--device reference`.
//!
//! With [`Precision::F32`] nothing is rounded at all: what an f32 back end would give without rounding errors. With
//! [`Precision::Bf16`] values are computed in f64 and rounded to bf16 at exactly the points of docs/numerics.md:
//! operations round what enters a product when it enters, so a buffer between operations may still be unrounded. A
//! dropped-out input is rounded before the mask; its factor 1/(1−p) belongs to the sum.

use super::{Backend, Error};
use crate::weights::{Dtype, TensorView};
use rayon::prelude::*;

/// Where the reference rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Nowhere.
    F32,
    /// To bf16 where the bf16 back ends do.
    Bf16,
}

impl Precision {
    /// `value`, rounded to bf16 (to nearest, ties to even) if this precision rounds.
    pub fn round(self, value: f64) -> f64 {
        match self {
            Self::F32 => value,
            Self::Bf16 => round_bf16(value),
        }
    }

    /// All values rounded as by [`Precision::round`].
    pub fn rounded(self, values: &[f64]) -> Vec<f64> {
        values.iter().map(|&value| self.round(value)).collect()
    }
}

/// f64 → bf16's eight significant bits, to nearest, ties to even, in one rounding (through f32 there would be two).
/// Exponents below bf16's normal range are kept: they carry no information worth a special case.
fn round_bf16(value: f64) -> f64 {
    const DROPPED: u32 = 52 - 7;
    if !value.is_finite() {
        return value;
    }
    let bits = value.to_bits();
    let even = (bits >> DROPPED) & 1;
    let half = (1_u64 << (DROPPED - 1)) - 1;
    let rounded = f64::from_bits((bits + half + even) & !((1 << DROPPED) - 1));
    if rounded.abs() > half::bf16::MAX.to_f64() { f64::INFINITY.copysign(value) } else { rounded }
}

/// The f64 back end.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    /// Where it rounds.
    pub precision: Precision,
}

impl Reference {
    /// A device that rounds as `precision` says.
    pub const fn new(precision: Precision) -> Self {
        Self { precision }
    }
}

/// A matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Values.
    pub data: Vec<f64>,
}

impl Matrix {
    /// Zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// One row, to write.
    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }
}

/// A frozen tensor, kept as stored and widened where it is used.
pub struct ReferenceWeight {
    view: TensorView,
    precision: Precision,
}

impl ReferenceWeight {
    /// Rows of the matrix; 1 for a vector.
    pub fn rows(&self) -> usize {
        if self.view.shape.len() < 2 { 1 } else { self.view.shape[0] }
    }

    /// Columns of the matrix; the length of a vector.
    pub fn cols(&self) -> usize {
        self.view.elements() / self.rows().max(1)
    }

    /// One row widened to f64 (rounded to bf16 first in that precision).
    pub fn row(&self, row: usize) -> Vec<f64> {
        self.precision.rounded(&self.stored_row(row))
    }

    /// One row widened to f64 as stored.
    pub fn stored_row(&self, row: usize) -> Vec<f64> {
        let (cols, size) = (self.cols(), self.view.dtype.size());
        let bytes = &self.view.bytes()[row * cols * size..(row + 1) * cols * size];
        match self.view.dtype {
            Dtype::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        }
    }

    /// All rows widened.
    pub fn matrix(&self) -> Matrix {
        let data = (0..self.rows()).flat_map(|row| self.row(row)).collect();
        Matrix { rows: self.rows(), cols: self.cols(), data }
    }
}

/// c += a·bᵀ: a `[m, k]`, b `[n, k]`, c `[m, n]`, row-major.
pub(super) fn add_product_transposed(c: &mut [f64], a: &[f64], b: &[f64], k: usize) {
    let n = b.len() / k.max(1);
    if n == 0 || k == 0 {
        return;
    }
    c.par_chunks_mut(n).zip(a.par_chunks(k)).for_each(|(c, a)| {
        for (c, b) in c.iter_mut().zip(b.chunks_exact(k)) {
            *c += a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        }
    });
}

/// c += a·b: a `[m, k]`, b `[k, n]`, c `[m, n]`, row-major.
pub(super) fn add_product(c: &mut [f64], a: &[f64], b: &[f64], k: usize) {
    let n = b.len() / k.max(1);
    if n == 0 || k == 0 {
        return;
    }
    c.par_chunks_mut(n).zip(a.par_chunks(k)).for_each(|(c, a)| {
        for (a, b) in a.iter().zip(b.chunks_exact(n)) {
            for (c, b) in c.iter_mut().zip(b) {
                *c += a * b;
            }
        }
    });
}

/// c += aᵀ·b: a `[k, m]`, b `[k, n]`, c `[m, n]`, row-major.
pub(super) fn add_transposed_product(c: &mut [f64], a: &[f64], b: &[f64], m: usize, n: usize) {
    if m == 0 || n == 0 {
        return;
    }
    c.par_chunks_mut(n).enumerate().for_each(|(i, c)| {
        for (a, b) in a.chunks_exact(m).zip(b.chunks_exact(n)) {
            for (c, b) in c.iter_mut().zip(b) {
                *c += a[i] * b;
            }
        }
    });
}

impl Backend for Reference {
    type Buf = Matrix;
    type Weight = ReferenceWeight;

    fn weight(&self, view: &TensorView) -> Result<ReferenceWeight, Error> {
        match view.dtype {
            Dtype::Bf16 | Dtype::F32 => Ok(ReferenceWeight { view: view.clone(), precision: self.precision }),
            other => Err(Error::Dtype { tensor: view.name.to_string(), found: format!("{other:?}").to_uppercase() }),
        }
    }

    fn zeros(&self, rows: usize, cols: usize) -> Matrix {
        Matrix::zeros(rows, cols)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Matrix {
        assert_eq!(values.len(), rows * cols, "an upload of [{rows}, {cols}]");
        Matrix { rows, cols, data: values.iter().map(|&value| f64::from(value)).collect() }
    }

    fn download(&self, buf: &Matrix) -> Vec<f64> {
        buf.data.clone()
    }

    fn shape(&self, buf: &Matrix) -> (usize, usize) {
        (buf.rows, buf.cols)
    }

    fn duplicate(&self, buf: &Matrix) -> Matrix {
        buf.clone()
    }

    fn add_assign(&self, target: &mut Matrix, source: &Matrix) {
        assert_eq!(self.shape(target), self.shape(source), "shapes of a sum");
        for (value, added) in target.data.iter_mut().zip(&source.data) {
            *value += added;
        }
    }

    fn gather_rows(&self, source: &Matrix, rows: &[u32]) -> Matrix {
        let data = rows.iter().flat_map(|&row| source.row(row as usize)).copied().collect();
        Matrix { rows: rows.len(), cols: source.cols, data }
    }

    fn scatter_add_rows(&self, target: &mut Matrix, source: &Matrix, rows: &[u32]) {
        assert_eq!((rows.len(), target.cols), self.shape(source), "rows to add");
        for (i, &row) in rows.iter().enumerate() {
            for (value, added) in target.row_mut(row as usize).iter_mut().zip(source.row(i)) {
                *value += added;
            }
        }
    }

    fn unit(&self) -> String {
        self.describe()
    }

    fn describe(&self) -> String {
        match self.precision {
            Precision::F32 => "reference f64".into(),
            Precision::Bf16 => "reference f64, rounded to bf16".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_once() {
        for value in [0.0, -0.0, 1.0, 1.5, -3.142_857, 1e30, 6.02e-20, 3.0 * 2.0_f64.powi(-9) + 1.0] {
            let through_f32 = half::bf16::from_f32(value as f32).to_f64();
            assert_eq!(round_bf16(value).to_bits(), through_f32.to_bits(), "{value}");
        }
        let tie = 1.0 + 2.0_f64.powi(-8);
        assert_eq!(round_bf16(tie), 1.0);
        assert_eq!(round_bf16(tie + 2.0_f64.powi(-40)), 1.0 + 2.0_f64.powi(-7), "rounded through f32 this would be 1");
        assert_eq!(round_bf16(1e39), f64::INFINITY);
        assert!(round_bf16(f64::NAN).is_nan());
    }
}
