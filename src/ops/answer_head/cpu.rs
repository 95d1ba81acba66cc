//! answer_head on the CPU: a GEMM over the vocabulary, or over a copy of the chosen rows. Each logit is one FMA chain over
//! `hidden` either way, so both give the same bits. Nothing is rounded to bf16 here, in any precision: the f32 product serves.

use super::{AnswerHead, AnswerHeadBackward, HeadColumns};
use crate::cpu::buffers::Block;
use crate::cpu::gemm::{Left, Right, Segment, gemm};
use crate::cpu::{Cpu, CpuBuf, CpuWeight};
use crate::ops::norm::{Norm, NormBackward};

/// The rows of the head that count.
enum Rows<'a> {
    Chosen(Block),
    All(&'a CpuWeight),
}

impl Rows<'_> {
    /// As the right operand of n·Eᵀ.
    fn transposed(&self, hidden: usize) -> Right<'_> {
        match self {
            Self::Chosen(data) => Right::F32 { data, k_stride: 1, col_stride: hidden },
            Self::All(head) => head.transposed(),
        }
    }

    /// As the right operand of dlogits·E.
    fn plain(&self, hidden: usize) -> Right<'_> {
        match self {
            Self::Chosen(data) => Right::F32 { data, k_stride: hidden, col_stride: 1 },
            Self::All(head) => head.plain(),
        }
    }
}

impl Cpu {
    fn head_rows<'a>(&self, head: &'a CpuWeight, columns: HeadColumns<'_>) -> (Rows<'a>, usize) {
        match columns {
            HeadColumns::Full => (Rows::All(head), head.rows()),
            HeadColumns::Ids(ids) => {
                let mut rows = self.buffers().stale(ids.len() * head.cols());
                for (row, &id) in rows.chunks_exact_mut(head.cols()).zip(ids) {
                    head.stored_row(id as usize, row);
                }
                (Rows::Chosen(rows), ids.len())
            }
        }
    }
}

impl AnswerHead for Cpu {
    fn answer_head(&self, h: &CpuBuf, w: &CpuWeight, eps: f32, head: &CpuWeight, columns: HeadColumns<'_>) -> CpuBuf {
        self.install(|| {
            let hidden = h.cols();
            let (rows, count) = self.head_rows(head, columns);
            let n = self.branch_norm(h, w, eps);
            let mut logits = self.stale(h.rows(), count);
            let left = Left { data: n.values(), row_stride: hidden, k_stride: 1 };
            let segment = Segment { left, right: rows.transposed(hidden), k: hidden };
            gemm(self.isa(), h.rows(), count, &[segment], logits.values_mut(), count, false);
            logits
        })
    }
}

impl AnswerHeadBackward for Cpu {
    fn answer_head_backward(
        &self,
        dlogits: &CpuBuf,
        h: &CpuBuf,
        w: &CpuWeight,
        eps: f32,
        head: &CpuWeight,
        columns: HeadColumns<'_>,
    ) -> CpuBuf {
        self.install(|| {
            let hidden = h.cols();
            let (rows, count) = self.head_rows(head, columns);
            let mut dn = self.stale(h.rows(), hidden);
            let left = Left { data: dlogits.values(), row_stride: count, k_stride: 1 };
            let segment = Segment { left, right: rows.plain(hidden), k: count };
            gemm(self.isa(), h.rows(), hidden, &[segment], dn.values_mut(), hidden, false);
            self.norm_backward(&dn, h, w, eps)
        })
    }
}
