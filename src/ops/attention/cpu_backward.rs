//! attention's backward on the CPU, in two passes without shared writes. Pass 1, a task per query block and head: p from
//! the saved largest score and sum, dz, dq. Pass 2, a task per key block of a tree and kv head: query heads of the group outside, query
//! blocks that see the keys inside, both ascending; p and dz are recomputed, dk and dv are chains over the query rows.

use super::cpu::{Block, QUERY_BLOCK, head_of, hide, pieces, scores, unstage, weighted_sum};
use super::{AttentionBackward, AttentionGradients, AttentionOutput, AttentionShape};
use crate::batch::{AttentionPlan, KeySpans};
use crate::cpu::gemm::{Left, Right, Segment};
use crate::cpu::lanes::{Kernel, LANES, dispatch, dot, exp, load, store};
use crate::cpu::{Cpu, CpuBuf};
use rayon::prelude::*;
use std::ops::Range;

/// Key rows of a task of pass 2.
const KEY_BLOCK: usize = 64;

/// δ of every head of one row.
struct Delta<'a> {
    d_o: &'a [f32],
    o: &'a [f32],
    head_dim: usize,
    delta: &'a mut [f32],
}

impl Kernel for Delta<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let heads = self.d_o.chunks_exact(self.head_dim).zip(self.o.chunks_exact(self.head_dim));
        for (delta, (d_o, o)) in self.delta.iter_mut().zip(heads) {
            *delta = dot(d_o, o);
        }
    }
}

/// One row: scores s → p = exp(scale·s − largest)/sum, and dp → dz = p·(dp − δ); both 0 where hidden.
struct RowGradient<'a> {
    p: &'a mut [f32],
    dz: &'a mut [f32],
    columns: &'a [Range<usize>; 2],
    visible: &'a [Range<usize>; 2],
    scale: f32,
    /// (largest, 1/sum)
    softmax: (f32, f32),
    delta: f32,
}

impl Kernel for RowGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        hide(self.p, self.columns, self.visible, f32::NEG_INFINITY);
        hide(self.dz, self.columns, self.visible, 0.0);
        let (largest, inverse_sum) = self.softmax;
        for range in self.columns {
            let end = range.end.min(self.p.len());
            let (p_row, dz_row) = (&mut self.p[..end], &mut self.dz[..end]);
            for at in (range.start..end).step_by(LANES) {
                let (mut p, mut dz) = (load(p_row, at), load(dz_row, at));
                for l in 0..LANES {
                    p[l] = exp(p[l] * self.scale - largest) * inverse_sum;
                    dz[l] = p[l] * (dz[l] - self.delta);
                }
                store(p_row, at, p);
                store(dz_row, at, dz);
            }
        }
    }
}

/// What both passes read.
struct Inputs<'a> {
    shape: &'a AttentionShape,
    plan: &'a AttentionPlan,
    q: &'a CpuBuf,
    k: &'a CpuBuf,
    v: &'a CpuBuf,
    softmax: &'a CpuBuf,
    d_o: &'a CpuBuf,
    delta: CpuBuf,
}

impl Inputs<'_> {
    /// Rows of one head of q, do or o from `first` on, as the left operand.
    fn head<'b>(&self, buf: &'b CpuBuf, first: usize, head: usize) -> Left<'b> {
        Left { data: head_of(buf, first, head * self.shape.head_dim), row_stride: buf.cols(), k_stride: 1 }
    }

    /// (largest, 1/sum) of one row.
    fn softmax(&self, query: usize, head: usize) -> (f32, f32) {
        let saved = &self.softmax.row(query)[2 * head..];
        (saved[0], 1.0 / saved[1])
    }

    /// First column of the kv head that serves a query head.
    fn kv_column(&self, head: usize) -> usize {
        head / (self.shape.heads / self.shape.kv_heads) * self.shape.head_dim
    }

    /// Pass 1's task: dq `[rows, head_dim]`.
    fn query_block(&self, cpu: &Cpu, block: &Block<'_>, head: usize, dq: &mut [f32]) {
        let (width, kv, stride) = (self.shape.head_dim, self.kv_column(head), block.stride());
        let mut p = cpu.buffers().stale(block.rows() * stride);
        let mut dz = cpu.buffers().stale(block.rows() * stride);
        scores(cpu, block, self.head(self.q, block.queries.start, head), width, self.k, kv, &mut p);
        scores(cpu, block, self.head(self.d_o, block.queries.start, head), width, self.v, kv, &mut dz);
        let columns = &block.columns();
        for (row, query) in block.queries.clone().enumerate() {
            let here = row * stride..(row + 1) * stride;
            let gradient = RowGradient {
                p: &mut p[here.clone()],
                dz: &mut dz[here],
                columns,
                visible: &block.visible(&self.plan.spans[query]),
                scale: self.shape.scale,
                softmax: self.softmax(query, head),
                delta: self.delta.row(query)[head],
            };
            dispatch(cpu.isa(), gradient);
        }
        weighted_sum(cpu, block, &dz, self.k, kv, width, dq);
        for value in dq {
            *value *= self.shape.scale;
        }
    }

    /// Pass 2's task: dk and dv `[keys, head_dim]`.
    fn key_block(
        &self,
        cpu: &Cpu,
        blocks: &[Block<'_>],
        keys: &Range<usize>,
        kv_head: usize,
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let (width, group) = (self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        let stride = keys.len().next_multiple_of(LANES);
        let mut p = cpu.buffers().stale(QUERY_BLOCK * stride);
        let mut dz = cpu.buffers().stale(QUERY_BLOCK * stride);
        dk.fill(0.0);
        dv.fill(0.0);
        let key_side = |buf, column| {
            let data = head_of(buf, keys.start, column);
            Right::F32 { data, k_stride: 1, col_stride: buf.cols() }
        };
        for head in kv_head * group..(kv_head + 1) * group {
            let kv = self.kv_column(head);
            for block in blocks.iter().filter(|block| overlap(&block.prefix, keys) || overlap(&block.suffix, keys)) {
                let (rows, first) = (block.rows(), block.queries.start);
                let (q, d_o) = (self.head(self.q, first, head), self.head(self.d_o, first, head));
                let score = Segment { left: q, right: key_side(self.k, kv), k: width };
                cpu.product_serial(rows, keys.len(), &[score], &mut p, stride, false);
                let dp = Segment { left: d_o, right: key_side(self.v, kv), k: width };
                cpu.product_serial(rows, keys.len(), &[dp], &mut dz, stride, false);
                for (row, query) in block.queries.clone().enumerate() {
                    let here = row * stride..(row + 1) * stride;
                    let gradient = RowGradient {
                        p: &mut p[here.clone()],
                        dz: &mut dz[here],
                        columns: &[0..stride, 0..0],
                        visible: &within(&self.plan.spans[query], keys),
                        scale: self.shape.scale,
                        softmax: self.softmax(query, head),
                        delta: self.delta.row(query)[head],
                    };
                    dispatch(cpu.isa(), gradient);
                }
                let query_side = |buf| {
                    let data = head_of(buf, first, head * width);
                    Right::F32 { data, k_stride: buf.cols(), col_stride: 1 }
                };
                let transposed = |data| Left { data, row_stride: 1, k_stride: stride };
                let through_p = Segment { left: transposed(&p[..]), right: query_side(self.d_o), k: rows };
                cpu.product_serial(keys.len(), width, &[through_p], dv, width, true);
                let through_dz = Segment { left: transposed(&dz[..]), right: query_side(self.q), k: rows };
                cpu.product_serial(keys.len(), width, &[through_dz], dk, width, true);
            }
        }
        for value in dk {
            *value *= self.shape.scale;
        }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Columns of a key block that a row sees, ascending.
fn within(spans: &KeySpans, keys: &Range<usize>) -> [Range<usize>; 2] {
    let clip = |lo: u32, hi: u32| {
        let (lo, hi) = ((lo as usize).clamp(keys.start, keys.end), (hi as usize).clamp(keys.start, keys.end));
        if lo >= hi { 0..0 } else { lo - keys.start..hi - keys.start }
    };
    [clip(spans.lo0, spans.hi0), clip(spans.lo1, spans.hi1)]
}

impl AttentionBackward for Cpu {
    fn attention_backward(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &CpuBuf,
        k: &CpuBuf,
        v: &CpuBuf,
        output: &AttentionOutput<CpuBuf>,
        d_o: &CpuBuf,
    ) -> AttentionGradients<CpuBuf> {
        let (heads, kv_heads, width) = (shape.heads, shape.kv_heads, shape.head_dim);
        // δ sees do as the products do.
        let d_o = &*self.entering(d_o);
        let delta = self.rows(q.rows(), heads, |i, delta| {
            dispatch(self.isa(), Delta { d_o: d_o.row(i), o: output.o.row(i), head_dim: width, delta });
        });
        let inputs = Inputs { shape, plan, q, k, v, softmax: &output.softmax, d_o, delta };
        let blocks = Block::all(self, plan);

        let mut dq = self.stale(q.rows(), heads * width);
        let mut staged = self.buffers().stale(q.rows() * heads * width);
        let tasks: Vec<(&Block<'_>, usize)> =
            blocks.iter().flat_map(|block| (0..heads).map(move |head| (block, head))).collect();
        let targets = pieces(&mut staged, tasks.iter().map(|(block, _)| block.rows() * width));
        self.install(|| {
            tasks.par_iter().zip(targets).for_each(|(&(block, head), dq)| inputs.query_block(self, block, head, dq));
        });
        let ranges: Vec<Range<usize>> = blocks.iter().map(|block| block.queries.clone()).collect();
        unstage(self, &ranges, heads, width, &staged, &mut dq);

        let mut dk = self.stale(plan.key_rows, kv_heads * width);
        let mut dv = self.stale(plan.key_rows, kv_heads * width);
        let mut staged_dk = self.buffers().stale(plan.key_rows * kv_heads * width);
        let mut staged_dv = self.buffers().stale(plan.key_rows * kv_heads * width);
        let mut key_blocks: Vec<Range<usize>> = Vec::new();
        let mut tasks: Vec<(Range<usize>, &[Block<'_>], usize)> = Vec::new();
        for (tree, rows) in plan.trees.iter().enumerate() {
            let first = blocks.partition_point(|block| block.segment.tree < tree);
            let last = blocks.partition_point(|block| block.segment.tree <= tree);
            for start in rows.clone().step_by(KEY_BLOCK) {
                let keys = start..rows.end.min(start + KEY_BLOCK);
                key_blocks.push(keys.clone());
                tasks.extend((0..kv_heads).map(|kv_head| (keys.clone(), &blocks[first..last], kv_head)));
            }
        }
        let lengths = || tasks.iter().map(|(keys, ..)| keys.len() * width);
        let (dk_pieces, dv_pieces) = (pieces(&mut staged_dk, lengths()), pieces(&mut staged_dv, lengths()));
        self.install(|| {
            let outputs = dk_pieces.into_par_iter().zip(dv_pieces);
            tasks.par_iter().zip(outputs).for_each(|((keys, blocks, kv_head), (dk, dv))| {
                inputs.key_block(self, blocks, keys, *kv_head, dk, dv);
            });
        });
        unstage(self, &key_blocks, kv_heads, width, &staged_dk, &mut dk);
        unstage(self, &key_blocks, kv_heads, width, &staged_dv, &mut dv);
        AttentionGradients { dq, dk, dv }
    }
}
