//! attention's forward on the CPU, and what its backward shares: blocks of query rows, their visible keys, and the masked
//! row kernels. A task is one block of one segment and one head; products go through the serial GEMM.
//!
//! Scores of a row lie at the key's index in the concatenated [prefix | own suffix], so lane (index mod 16) and chain order
//! are the row's own, whatever else is in the batch. Key ranges that no row of the block sees are skipped, which changes
//! no bit: they would only add 0. A bf16 unit takes several keys at once, so there the skipping ends at multiples of
//! [`ANCHOR`] keys; and there p is normalised before it is rounded, not o after the product.

use super::{Attention, AttentionOutput, AttentionShape};
use crate::batch::{AttentionPlan, KeySpans, QuerySegment};
use crate::cpu::gemm::{Left, Right, Segment};
use crate::cpu::lanes::{Kernel, LANES, Lanes, dispatch, exp, greater, load, store, tree_max, tree_sum};
use crate::cpu::{Cpu, CpuBuf};
use rayon::prelude::*;
use std::ops::Range;

/// Query rows of a task: small enough that scores stay in cache, large enough to amortise packing of k and v.
pub(super) const QUERY_BLOCK: usize = 64;

/// Keys, counted from the start of prefix or suffix, that a bf16 unit sums in one instruction at most. Divides
/// [`QUERY_BLOCK`].
const ANCHOR: usize = 32;

/// Query rows of one segment that are worked on together.
pub(super) struct Block<'a> {
    pub segment: &'a QuerySegment,
    /// Rows of q and o.
    pub queries: Range<usize>,
    /// Prefix key rows that any of them sees.
    pub prefix: Range<usize>,
    /// Own suffix key rows that any of them sees.
    pub suffix: Range<usize>,
}

impl<'a> Block<'a> {
    fn new(plan: &AttentionPlan, segment: &'a QuerySegment, queries: Range<usize>, anchor: usize) -> Self {
        let spans = &plan.spans[queries.clone()];
        let prefix = union(spans.iter().map(|s| s.lo0 as usize..s.hi0 as usize));
        let suffix = union(spans.iter().map(|s| s.lo1 as usize..s.hi1 as usize));
        let anchored = |range: Range<usize>, origin: usize| {
            if range.is_empty() { range } else { origin + (range.start - origin) / anchor * anchor..range.end }
        };
        let (prefix, suffix) = (anchored(prefix, segment.prefix.start), anchored(suffix, segment.suffix.start));
        Self { segment, queries, prefix, suffix }
    }

    /// All blocks, in row order; anchored at the segments' starts.
    pub fn all(cpu: &Cpu, plan: &'a AttentionPlan) -> Vec<Self> {
        let anchor = if cpu.rounds() { ANCHOR } else { 1 };
        let mut blocks = Vec::new();
        for segment in &plan.segments {
            for start in segment.queries.clone().step_by(QUERY_BLOCK) {
                let queries = start..segment.queries.end.min(start + QUERY_BLOCK);
                blocks.push(Self::new(plan, segment, queries, anchor));
            }
        }
        blocks
    }

    /// Rows of the block.
    pub fn rows(&self) -> usize {
        self.queries.len()
    }

    /// Stride of a row of scores: all keys of the segment, rounded up to whole lanes.
    pub fn stride(&self) -> usize {
        (self.segment.prefix.len() + self.segment.suffix.len()).next_multiple_of(LANES)
    }

    /// Visible key rows, each with its first column.
    pub fn ranges(&self) -> [(Range<usize>, usize); 2] {
        let prefix_len = self.segment.prefix.len();
        let first = self.prefix.start.saturating_sub(self.segment.prefix.start);
        let second = prefix_len + self.suffix.start.saturating_sub(self.segment.suffix.start);
        [(self.prefix.clone(), first), (self.suffix.clone(), second)]
    }

    /// Columns of the visible ranges, widened to whole lanes and disjoint.
    pub fn columns(&self) -> [Range<usize>; 2] {
        let [first, second] = self.ranges().map(|(keys, column)| {
            if keys.is_empty() {
                return 0..0;
            }
            column / LANES * LANES..(column + keys.len()).next_multiple_of(LANES)
        });
        if second.is_empty() || second.start >= first.end { [first, second] } else { [first.start..second.end, 0..0] }
    }

    /// Columns that one row sees.
    pub fn visible(&self, spans: &KeySpans) -> [Range<usize>; 2] {
        let column = |lo: u32, hi: u32, start: usize, shift: usize| {
            if lo >= hi { 0..0 } else { lo as usize - start + shift..hi as usize - start + shift }
        };
        [
            column(spans.lo0, spans.hi0, self.segment.prefix.start, 0),
            column(spans.lo1, spans.hi1, self.segment.suffix.start, self.segment.prefix.len()),
        ]
    }
}

/// The smallest range that holds all non-empty ones.
fn union(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    let filled = ranges.filter(|range| !range.is_empty());
    filled.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// Columns of one head of a matrix of `cols` columns, from row `first` on.
pub(super) fn head_of(buf: &CpuBuf, first: usize, column: usize) -> &[f32] {
    // An empty range may start behind the last row.
    buf.values().get(first * buf.cols() + column..).unwrap_or(&[])
}

/// left · (rows `keys` of one head)ᵀ, into the columns of `c` that belong to the keys.
pub(super) fn scores(cpu: &Cpu, block: &Block<'_>, left: Left<'_>, width: usize, k: &CpuBuf, kv: usize, c: &mut [f32]) {
    for (keys, column) in block.ranges() {
        if !keys.is_empty() {
            let right = Right::F32 { data: head_of(k, keys.start, kv), k_stride: 1, col_stride: k.cols() };
            let segment = Segment { left, right, k: width };
            cpu.product_serial(block.rows(), keys.len(), &[segment], &mut c[column..], block.stride(), false);
        }
    }
}

/// (columns of p) · (rows of one head of v), one chain over the keys ascending.
pub(super) fn weighted_sum(
    cpu: &Cpu,
    block: &Block<'_>,
    p: &[f32],
    v: &CpuBuf,
    kv: usize,
    width: usize,
    c: &mut [f32],
) {
    let segments = block.ranges().map(|(keys, column)| Segment {
        left: Left { data: p.get(column..).unwrap_or(&[]), row_stride: block.stride(), k_stride: 1 },
        right: Right::F32 { data: head_of(v, keys.start, kv), k_stride: v.cols(), col_stride: 1 },
        k: keys.len(),
    });
    let filled = if segments[0].k == 0 { &segments[1..] } else { &segments[..] };
    let filled = if segments[1].k == 0 { &filled[..filled.len() - 1] } else { filled };
    cpu.product_serial(block.rows(), width, filled, c, width, false);
}

/// Sets what a row does not see to `value`, within `columns`.
#[inline(always)]
pub(super) fn hide(row: &mut [f32], columns: &[Range<usize>; 2], visible: &[Range<usize>; 2], value: f32) {
    for range in columns {
        let mut at = range.start;
        for seen in visible {
            let (start, end) = (seen.start.clamp(at, range.end), seen.end.clamp(at, range.end));
            if start < end {
                row[at..start].fill(value);
                at = end;
            }
        }
        row[at..range.end].fill(value);
    }
}

/// One row: scores → exp(scale·score − largest), over the sum if `normalise`, 0 where hidden. Returns (largest, sum).
struct Softmax<'a> {
    row: &'a mut [f32],
    columns: &'a [Range<usize>; 2],
    visible: &'a [Range<usize>; 2],
    scale: f32,
    normalise: bool,
}

impl Kernel for Softmax<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32) {
        hide(self.row, self.columns, self.visible, f32::NEG_INFINITY);
        let mut largest: Lanes = [f32::NEG_INFINITY; LANES];
        for at in steps(self.columns) {
            let mut z = load(self.row, at);
            for l in 0..LANES {
                z[l] *= self.scale;
                largest[l] = greater(largest[l], z[l]);
            }
            store(self.row, at, z);
        }
        let largest = tree_max(largest);
        let mut sums: Lanes = [0.0; LANES];
        for at in steps(self.columns) {
            let mut p = load(self.row, at);
            for l in 0..LANES {
                p[l] = exp(p[l] - largest);
                sums[l] += p[l];
            }
            store(self.row, at, p);
        }
        let sum = tree_sum(sums);
        if self.normalise {
            for at in steps(self.columns) {
                let mut p = load(self.row, at);
                for p in &mut p {
                    *p /= sum;
                }
                store(self.row, at, p);
            }
        }
        (largest, sum)
    }
}

/// Starts of the whole lanes of both column ranges.
#[inline(always)]
fn steps(columns: &[Range<usize>; 2]) -> impl Iterator<Item = usize> + use<> {
    columns[0].clone().step_by(LANES).chain(columns[1].clone().step_by(LANES))
}

/// Cuts `data` into consecutive pieces.
pub(super) fn pieces(mut data: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut out = Vec::new();
    for length in lengths {
        let (piece, rest) = data.split_at_mut(length);
        out.push(piece);
        data = rest;
    }
    out
}

/// Copies results that lie as [block][head][row, width] to a matrix `[rows, heads·width]`.
pub(super) fn unstage(
    cpu: &Cpu,
    blocks: &[Range<usize>],
    heads: usize,
    width: usize,
    staged: &[f32],
    out: &mut CpuBuf,
) {
    // Blocks cover the rows in order, so the staged part of a block starts at its first row.
    let cols = heads * width;
    let first = blocks.first().map_or(0, |block| block.start);
    let total = blocks.last().map_or(0, |block| block.end) - first;
    let targets = pieces(&mut out.values_mut()[first * cols..][..total * cols], blocks.iter().map(|b| b.len() * cols));
    cpu.install(|| {
        targets.into_par_iter().zip(blocks).for_each(|(target, block)| {
            let staged = &staged[(block.start - first) * cols..][..block.len() * cols];
            for (head, values) in staged.chunks_exact(block.len() * width).enumerate() {
                for (row, values) in values.chunks_exact(width).enumerate() {
                    target[row * cols + head * width..][..width].copy_from_slice(values);
                }
            }
        });
    });
}

impl Attention for Cpu {
    fn attention(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &CpuBuf,
        k: &CpuBuf,
        v: &CpuBuf,
    ) -> AttentionOutput<CpuBuf> {
        let (heads, width) = (shape.heads, shape.head_dim);
        let blocks = Block::all(self, plan);
        let mut staged_o = self.buffers().stale(q.rows() * heads * width);
        let mut staged_softmax = self.buffers().stale(q.rows() * heads * 2);
        let tasks: Vec<(&Block<'_>, usize)> =
            blocks.iter().flat_map(|block| (0..heads).map(move |head| (block, head))).collect();
        let o_pieces = pieces(&mut staged_o, tasks.iter().map(|(block, _)| block.rows() * width));
        let softmax_pieces = pieces(&mut staged_softmax, tasks.iter().map(|(block, _)| block.rows() * 2));
        self.install(|| {
            tasks.par_iter().zip(o_pieces).zip(softmax_pieces).for_each(|((&(block, head), o), softmax)| {
                let kv = head / (heads / shape.kv_heads) * width;
                let stride = block.stride();
                let mut p = self.buffers().stale(block.rows() * stride);
                let left =
                    Left { data: head_of(q, block.queries.start, head * width), row_stride: q.cols(), k_stride: 1 };
                scores(self, block, left, width, k, kv, &mut p);
                let columns = &block.columns();
                for (row, spans) in plan.spans[block.queries.clone()].iter().enumerate() {
                    let visible = &block.visible(spans);
                    let values = &mut p[row * stride..(row + 1) * stride];
                    let normalise = self.rounds();
                    let kernel = Softmax { row: values, columns, visible, scale: shape.scale, normalise };
                    let (largest, sum) = dispatch(self.isa(), kernel);
                    softmax[row] = largest;
                    softmax[block.rows() + row] = sum;
                }
                weighted_sum(self, block, &p, v, kv, width, o);
                if self.rounds() {
                    return;
                }
                for (o, sum) in o.chunks_exact_mut(width).zip(&softmax[block.rows()..]) {
                    for o in o {
                        *o /= sum;
                    }
                }
            });
        });
        let ranges: Vec<Range<usize>> = blocks.iter().map(|block| block.queries.clone()).collect();
        let mut o = self.stale(q.rows(), heads * width);
        let mut softmax = self.stale(q.rows(), 2 * heads);
        unstage(self, &ranges, heads, width, &staged_o, &mut o);
        self.round(&mut o);
        unstage(self, &ranges, 2 * heads, 1, &staged_softmax, &mut softmax);
        AttentionOutput { o, softmax }
    }
}
