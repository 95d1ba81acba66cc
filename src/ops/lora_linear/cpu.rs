//! lora_linear on the CPU: everything is the GEMM, whose segments carry a chain over `in` on into the rank, or over several
//! parts. With dropout the masked input exists as a scratch copy, and du·A is masked before it is added. In bf16 the product
//! rounds what enters it, and a mask's factor 1/(1−p) belongs to the sum, so that x is rounded as it is without dropout.

use super::{Dropout, LinearOutput, LoraLinear, LoraLinearBackward, LoraTerm, Part, Store};
use crate::cpu::buffers::Block;
use crate::cpu::gemm::{Left, Right, Segment};
use crate::cpu::{Cpu, CpuBuf};
use rayon::prelude::*;

/// A row-major matrix of `cols` columns as the left operand.
fn rows_of(data: &[f32], cols: usize) -> Left<'_> {
    Left { data, row_stride: cols, k_stride: 1 }
}

/// Its transpose as the left operand.
fn columns_of(data: &[f32], cols: usize) -> Left<'_> {
    Left { data, row_stride: 1, k_stride: cols }
}

/// M `[k, n]` as the right operand.
fn plain(data: &[f32], cols: usize) -> Right<'_> {
    Right::F32 { data, k_stride: cols, col_stride: 1 }
}

/// Mᵀ of M `[n, k]` as the right operand.
fn transposed(data: &[f32], cols: usize) -> Right<'_> {
    Right::F32 { data, k_stride: 1, col_stride: cols }
}

impl<'a> LoraTerm<'a, Cpu> {
    fn a(&self, inputs: usize) -> &'a [f32] {
        &self.params.values()[self.a..self.a + self.rank * inputs]
    }

    fn b(&self, outputs: usize) -> &'a [f32] {
        &self.params.values()[self.b..self.b + outputs * self.rank]
    }

    /// The mask, if it drops anything.
    fn active(&self) -> Option<Dropout<'a>> {
        self.dropout.filter(|dropout| dropout.p > 0.0)
    }
}

impl Cpu {
    /// `x` where the mask keeps it, times 1/(1−p) in f32.
    fn masked(&self, dropout: &Dropout<'_>, x: &[f32], cols: usize) -> Block {
        let mut out = self.buffers().stale(x.len());
        let factor = if self.rounds() { 1.0 } else { dropout.factor() as f32 };
        out.par_chunks_mut(cols).zip(x.par_chunks(cols)).enumerate().for_each(|(row, (out, x))| {
            dropout.each(row, cols, |column, keep| out[column] = if keep { x[column] * factor } else { 0.0 });
        });
        out
    }

    /// What is left of the mask's factor for the sum over masked values.
    fn factor_of_sum(&self, dropout: Option<Dropout<'_>>) -> f32 {
        dropout.filter(|_| self.rounds()).map_or(1.0, |dropout| dropout.factor() as f32)
    }

    fn scale(values: &mut [f32], scale: f32) {
        for value in values {
            *value *= scale;
        }
    }
}

impl Cpu {
    /// s·u `[T, r]` of a part's branch, if it has one.
    pub(in crate::ops) fn branch(&self, x: &CpuBuf, part: &Part<'_, Self>) -> Option<CpuBuf> {
        let term = part.lora.as_ref()?;
        let (rows, inputs) = (x.rows(), x.cols());
        let mut su = self.stale(rows, term.rank);
        let masked = term.active().map(|dropout| self.masked(&dropout, x.values(), inputs));
        let left = rows_of(masked.as_deref().unwrap_or(x.values()), inputs);
        let segment = Segment { left, right: transposed(term.a(inputs), inputs), k: inputs };
        self.product(rows, term.rank, &[segment], su.values_mut(), term.rank);
        Self::scale(su.values_mut(), term.scale * self.factor_of_sum(term.active()));
        self.round(&mut su);
        Some(su)
    }

    /// What a part's output is the sum of: x·Wᵀ, then (s·u)·Bᵀ.
    pub(in crate::ops) fn segments<'a>(
        &self,
        x: &'a CpuBuf,
        part: &Part<'a, Self>,
        su: Option<&'a CpuBuf>,
    ) -> Vec<Segment<'a>> {
        let (inputs, outputs) = (x.cols(), part.weight.rows());
        let base = Segment { left: rows_of(x.values(), inputs), right: part.weight.transposed(), k: inputs };
        let adapter = part.lora.as_ref().zip(su).map(|(term, su)| {
            let right = transposed(term.b(outputs), term.rank);
            Segment { left: rows_of(su.values(), term.rank), right, k: term.rank }
        });
        std::iter::once(base).chain(adapter).collect()
    }
}

impl LoraLinear for Cpu {
    fn lora_linear(&self, x: &CpuBuf, parts: &[Part<'_, Self>], _: Store) -> LinearOutput<CpuBuf> {
        self.install(|| {
            let mut output = LinearOutput { y: Vec::with_capacity(parts.len()), su: Vec::with_capacity(parts.len()) };
            for part in parts {
                let (rows, outputs) = (x.rows(), part.weight.rows());
                let su = self.branch(x, part);
                let mut y = self.stale(rows, outputs);
                self.product(rows, outputs, &self.segments(x, part, su.as_ref()), y.values_mut(), outputs);
                output.y.push(y);
                output.su.push(su);
            }
            output
        })
    }
}

impl LoraLinearBackward for Cpu {
    fn lora_linear_backward(
        &self,
        dy: &[&CpuBuf],
        x: Option<&CpuBuf>,
        su: &[Option<CpuBuf>],
        parts: &[Part<'_, Self>],
        grads: Option<&mut CpuBuf>,
        need_dx: bool,
    ) -> Option<CpuBuf> {
        self.install(|| {
            let (rows, inputs) = (dy[0].rows(), parts[0].weight.cols());
            // du of every adapted part, scaled.
            let du: Vec<Option<Block>> = parts
                .iter()
                .zip(dy)
                .map(|(part, dy)| {
                    part.lora.as_ref().filter(|_| need_dx || grads.is_some()).map(|term| {
                        let outputs = dy.cols();
                        let mut du = self.buffers().stale(rows * term.rank);
                        let right = plain(term.b(outputs), term.rank);
                        let segment = Segment { left: rows_of(dy.values(), outputs), right, k: outputs };
                        self.product(rows, term.rank, &[segment], &mut du, term.rank);
                        Self::scale(&mut du, term.scale);
                        du
                    })
                })
                .collect();

            if let Some(grads) = grads {
                let x = x.expect("a tape that wants adapter gradients keeps the input");
                for (((part, dy), su), du) in parts.iter().zip(dy).zip(su).zip(&du) {
                    let (Some(term), Some(su), Some(du)) = (&part.lora, su, du) else { continue };
                    let (outputs, rank) = (dy.cols(), term.rank);
                    let right = plain(su.values(), rank);
                    let segment = Segment { left: columns_of(dy.values(), outputs), right, k: rows };
                    let db = &mut grads.values_mut()[term.b..term.b + outputs * rank];
                    self.product(outputs, rank, &[segment], db, rank);

                    let masked = term.active().map(|dropout| self.masked(&dropout, x.values(), inputs));
                    let right = plain(masked.as_deref().unwrap_or(x.values()), inputs);
                    let segment = Segment { left: columns_of(du, rank), right, k: rows };
                    let da = &mut grads.values_mut()[term.a..term.a + rank * inputs];
                    self.product(rank, inputs, &[segment], da, inputs);
                    let factor = self.factor_of_sum(term.active());
                    if factor != 1.0 {
                        Self::scale(da, factor);
                    }
                }
            }

            if !need_dx {
                return None;
            }
            let mut dx = self.stale(rows, inputs);
            let mut segments: Vec<Segment<'_>> = Vec::with_capacity(2 * parts.len());
            for (part, dy) in parts.iter().zip(dy) {
                let left = rows_of(dy.values(), dy.cols());
                segments.push(Segment { left, right: part.weight.plain(), k: dy.cols() });
            }
            let mut masked_terms = Vec::new();
            for (part, du) in parts.iter().zip(&du) {
                let (Some(term), Some(du)) = (&part.lora, du) else { continue };
                let right = plain(term.a(inputs), inputs);
                let segment = Segment { left: rows_of(du, term.rank), right, k: term.rank };
                match term.active() {
                    None => segments.push(segment),
                    Some(dropout) => masked_terms.push((dropout, segment)),
                }
            }
            self.product(rows, inputs, &segments, dx.values_mut(), inputs);
            for (dropout, segment) in masked_terms {
                let mut through = self.buffers().stale(rows * inputs);
                self.product(rows, inputs, &[segment], &mut through, inputs);
                let factor = dropout.factor() as f32;
                let pairs = dx.values_mut().par_chunks_mut(inputs).zip(through.par_chunks(inputs));
                pairs.enumerate().for_each(|(row, (dx, through))| {
                    dropout.each(row, inputs, |column, keep| {
                        if keep {
                            dx[column] += through[column] * factor;
                        }
                    });
                });
            }
            Some(dx)
        })
    }
}
