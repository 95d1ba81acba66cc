//! vocabulary on the CPU: blocks of the head, each multiplied with the rows, exponentiated, and multiplied back while it is in the
//! cache. The vocabulary is cut into a fixed number of stripes, each a task that carries its own maxima, sums and means, so that no
//! result depends on the number of threads. Nothing is rounded to bf16: the f32 product serves.

use super::{Coefficients, Head, Question, Statistics, Vocabulary, VocabularyBackward};
use crate::cpu::buffers::Block;
use crate::cpu::gemm::{Left, Right, Segment, gemm_serial};
use crate::cpu::lanes::{Kernel, LANES, dispatch, exp, greater, load, store, tree_max, tree_sum};
use crate::cpu::{Cpu, CpuBuf};
use crate::ops::Backend;
use crate::ops::answer_head::{AnswerHead, HeadColumns};
use crate::ops::norm::{Norm, NormBackward};
use rayon::prelude::*;

/// Rows of the head in a block.
const BLOCK: usize = 256;
/// Stripes of the vocabulary: tasks for as many threads, and so many partial sums.
const STRIPES: usize = 32;

/// What a stripe has seen of the vocabulary.
struct Stripe {
    /// Largest logit of each row.
    largest: Vec<f32>,
    /// Σ exp(z − largest) of each row.
    sums: Vec<f64>,
    /// Σ exp(zᵢ − largest)·(zₖ − cₖ) of each pair.
    cross: Vec<f64>,
    /// The same sums of E's rows, `[rows + pairs, hidden]`; empty where no means are asked for.
    means: Block,
}

/// exp(z − largest) of a row of a block and its sum.
struct Exponentials<'a> {
    z: &'a [f32],
    largest: f32,
    weights: &'a mut [f32],
}

impl Kernel for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut sums = [0.0; LANES];
        for at in (0..self.z.len()).step_by(LANES) {
            let inside = LANES.min(self.z.len() - at);
            let mut lanes = load(self.z, at);
            for (l, lane) in lanes.iter_mut().enumerate() {
                *lane = exp(*lane - self.largest);
                sums[l] += if l < inside { *lane } else { 0.0 };
            }
            store(self.weights, at, lanes);
        }
        tree_sum(sums)
    }
}

/// weights·(z − centre) of a pair and its sum.
struct Crossed<'a> {
    weights: &'a [f32],
    z: &'a [f32],
    centre: f32,
    out: &'a mut [f32],
}

impl Kernel for Crossed<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut sums = [0.0; LANES];
        for at in (0..self.z.len()).step_by(LANES) {
            // Beyond the end weights are 0.
            let (weights, z) = (load(self.weights, at), load(self.z, at));
            let mut out = [0.0; LANES];
            for l in 0..LANES {
                out[l] = weights[l] * (z[l] - self.centre);
                sums[l] += out[l];
            }
            store(self.out, at, out);
        }
        tree_sum(sums)
    }
}

/// The largest value.
struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut largest = [f32::NEG_INFINITY; LANES];
        for at in (0..self.0.len()).step_by(LANES) {
            let inside = LANES.min(self.0.len() - at);
            let lanes = load(self.0, at);
            for l in 0..LANES {
                largest[l] = if l < inside { greater(largest[l], lanes[l]) } else { largest[l] };
            }
        }
        tree_max(largest)
    }
}

/// Everything that the stripes share.
struct Pass<'a> {
    device: &'a Cpu,
    /// n `[rows, hidden]`.
    n: &'a CpuBuf,
    head: Head<'a, Cpu>,
    pairs: &'a [(u32, u32)],
    /// cₖ of each row.
    centres: Vec<f32>,
    means: bool,
}

impl Pass<'_> {
    /// One stripe of the vocabulary.
    fn stripe(&self, index: usize) -> Stripe {
        let (rows, hidden, vocab) = (self.n.rows(), self.n.cols(), self.head.embedding.rows());
        let (isa, buffers) = (self.device.isa(), self.device.buffers());
        let width = vocab.div_ceil(STRIPES).next_multiple_of(BLOCK);
        let sums = rows + self.pairs.len();
        let mut stripe = Stripe {
            largest: vec![f32::NEG_INFINITY; rows],
            sums: vec![0.0; rows],
            cross: vec![0.0; self.pairs.len()],
            means: buffers.zeros(if self.means { sums * hidden } else { 0 }),
        };
        let mut logits = buffers.stale(rows * BLOCK);
        let mut weights = buffers.stale(sums * BLOCK);
        for first in (index * width..vocab.min((index + 1) * width)).step_by(BLOCK) {
            let count = BLOCK.min(vocab - first);
            let left = Left { data: self.n.values(), row_stride: hidden, k_stride: 1 };
            let segment = Segment { left, right: self.head.embedding.transposed_from(first), k: hidden };
            gemm_serial(isa, rows, count, &[segment], &mut logits, BLOCK, false);

            for row in 0..rows {
                let z = &logits[row * BLOCK..][..count];
                let before = stripe.largest[row];
                let largest = greater(before, dispatch(isa, Largest(z)));
                if largest > before {
                    stripe.largest[row] = largest;
                    self.rescale(&mut stripe, row, before - largest);
                }
                let weights = &mut weights[row * BLOCK..][..count];
                stripe.sums[row] += f64::from(dispatch(isa, Exponentials { z, largest: stripe.largest[row], weights }));
            }
            let (of_rows, of_pairs) = weights.split_at_mut(rows * BLOCK);
            for (pair, &(i, k)) in self.pairs.iter().enumerate() {
                let (i, k) = (i as usize, k as usize);
                let kernel = Crossed {
                    weights: &of_rows[i * BLOCK..][..count],
                    z: &logits[k * BLOCK..][..count],
                    centre: self.centres[k],
                    out: &mut of_pairs[pair * BLOCK..][..count],
                };
                stripe.cross[pair] += f64::from(dispatch(isa, kernel));
            }
            if self.means {
                let left = Left { data: &weights, row_stride: BLOCK, k_stride: 1 };
                let segment = Segment { left, right: self.head.embedding.plain_from(first), k: count };
                gemm_serial(isa, sums, hidden, &[segment], &mut stripe.means, hidden, true);
            }
        }
        stripe
    }

    /// Multiplies what a row has summed up by exp(`by`): its largest logit has grown.
    fn rescale(&self, stripe: &mut Stripe, row: usize, by: f32) {
        let hidden = self.n.cols();
        let factor = libm::exp(f64::from(by));
        let scale = |values: &mut [f32]| values.iter_mut().for_each(|value| *value *= factor as f32);
        stripe.sums[row] *= factor;
        if self.means {
            scale(&mut stripe.means[row * hidden..][..hidden]);
        }
        for (pair, _) in self.pairs.iter().enumerate().filter(|(_, (i, _))| *i as usize == row) {
            stripe.cross[pair] *= factor;
            if self.means {
                scale(&mut stripe.means[(self.n.rows() + pair) * hidden..][..hidden]);
            }
        }
    }

    /// Adds the stripes up, in order.
    fn combine(&self, stripes: &[Stripe], logits: Vec<f64>) -> (Statistics, CpuBuf) {
        let (rows, hidden) = (self.n.rows(), self.n.cols());
        let largest: Vec<f32> =
            (0..rows).map(|row| stripes.iter().fold(f32::NEG_INFINITY, |a, b| greater(a, b.largest[row]))).collect();
        let factor = |stripe: &Stripe, row: usize| libm::exp(f64::from(stripe.largest[row] - largest[row]));
        let sums: Vec<f64> =
            (0..rows).map(|row| stripes.iter().map(|stripe| factor(stripe, row) * stripe.sums[row]).sum()).collect();
        let owner = |mean: usize| if mean < rows { mean } else { self.pairs[mean - rows].0 as usize };
        let cross = (0..self.pairs.len()).map(|pair| {
            let row = owner(rows + pair);
            stripes.iter().map(|stripe| factor(stripe, row) * stripe.cross[pair]).sum::<f64>() / sums[row]
        });
        let statistics = Statistics {
            log_sum: (0..rows).map(|row| f64::from(largest[row]) + libm::log(sums[row])).collect(),
            logits,
            cross: cross.collect(),
        };
        let count = if self.means { rows + self.pairs.len() } else { 0 };
        let means = self.device.rows(count, hidden, |mean, out| {
            let row = owner(mean);
            let factors: Vec<f64> = stripes.iter().map(|stripe| factor(stripe, row) / sums[row]).collect();
            for (column, out) in out.iter_mut().enumerate() {
                let terms = stripes.iter().zip(&factors);
                let sum: f64 = terms.map(|(s, factor)| factor * f64::from(s.means[mean * hidden + column])).sum();
                *out = sum as f32;
            }
        });
        (statistics, means)
    }
}

impl Cpu {
    fn vocabulary_pass(
        &self,
        h: &CpuBuf,
        head: Head<'_, Self>,
        question: Question<'_>,
        means: bool,
    ) -> (Statistics, CpuBuf) {
        self.install(|| {
            let chosen = self.answer_head(h, head.norm, head.eps, head.embedding, HeadColumns::Ids(question.ids));
            let n = self.branch_norm(h, head.norm, head.eps);
            let centres = (0..h.rows()).map(|row| chosen.row(row)[0]).collect();
            let pass = Pass { device: self, n: &n, head, pairs: question.pairs, centres, means };
            let stripes: Vec<Stripe> =
                (0..STRIPES).into_par_iter().with_max_len(1).map(|index| pass.stripe(index)).collect();
            pass.combine(&stripes, self.download(&chosen))
        })
    }
}

impl Vocabulary for Cpu {
    fn vocabulary(&self, h: &CpuBuf, head: Head<'_, Self>, question: Question<'_>) -> Statistics {
        self.vocabulary_pass(h, head, question, false).0
    }
}

impl VocabularyBackward for Cpu {
    fn vocabulary_means(&self, h: &CpuBuf, head: Head<'_, Self>, question: Question<'_>) -> (Statistics, CpuBuf) {
        self.vocabulary_pass(h, head, question, true)
    }

    fn vocabulary_backward(
        &self,
        coefficients: Coefficients<'_>,
        means: &CpuBuf,
        h: &CpuBuf,
        head: Head<'_, Self>,
        ids: &[u32],
    ) -> CpuBuf {
        self.install(|| {
            let (rows, hidden, count) = (h.rows(), h.cols(), means.rows());
            let mut embeddings = self.buffers().stale(ids.len() * hidden);
            for (row, &id) in embeddings.chunks_exact_mut(hidden).zip(ids) {
                head.embedding.stored_row(id as usize, row);
            }
            let segment = |data, k, values| Segment {
                left: Left { data, row_stride: k, k_stride: 1 },
                right: Right::F32 { data: values, k_stride: hidden, col_stride: 1 },
                k,
            };
            let segments = [
                segment(coefficients.means, count, means.values()),
                segment(coefficients.logits, ids.len(), &embeddings),
            ];
            let mut dn = self.stale(rows, hidden);
            gemm_serial(self.isa(), rows, hidden, &segments, dn.values_mut(), hidden, false);
            self.norm_backward(&dn, h, head.norm, head.eps)
        })
    }
}
