//! answer_head on CUDA: `kernels/answer_head.cu` on the final norm of the answer rows, in f32 throughout.

use super::{AnswerHead, HeadColumns};
use crate::cuda::{Arg, Buf, Cuda, Element, Weight};
use crate::ops::norm::Norm;

/// Columns of the head that a block owns.
pub(in crate::ops) const COLS: usize = 128;
/// Threads of a block.
pub(in crate::ops) const THREADS: u32 = 128;

/// Answer rows that a block serves: one read of the head for all of them, as far as their sums fit a thread's registers.
pub(in crate::ops) fn tile(rows: usize) -> usize {
    [8, 16, 32].into_iter().find(|&tile| rows <= tile).unwrap_or(64)
}

/// What the kernels of a head are specialised by.
pub(in crate::ops) fn constants(hidden: usize, rows: usize, head: &Buf) -> [(&'static str, i64); 3] {
    [("HIDDEN", hidden as i64), ("ROWS", tile(rows) as i64), ("WIDE", i64::from(head.element() == Element::F32))]
}

impl AnswerHead for Cuda {
    fn answer_head(&self, h: &Buf, w: &Weight, eps: f32, head: &Weight, columns: HeadColumns<'_>) -> Buf {
        let n = self.branch_norm(h, w, eps);
        let stored = head.stored(self);
        let (ids, count) = match columns {
            HeadColumns::Ids(ids) => {
                let end = ids.iter().max().map_or(0, |&id| id as usize + 1);
                assert!(end <= head.rows(), "id {} of {}", end.saturating_sub(1), head.rows());
                (Some(self.words(ids)), ids.len())
            }
            HeadColumns::Full => (None, head.rows()),
        };
        let y = self.buffer(h.rows(), count, Element::F32);
        let kernel = self.kernel("answer_head.cu", "answer_head", &constants(h.cols(), h.rows(), stored));
        let grid = [y.stride().div_ceil(COLS) as u32, h.rows().div_ceil(tile(h.rows())) as u32, 1];
        let ids = ids.as_ref().map_or(Arg::null(), Arg::from);
        let args = [(&y).into(), (&n).into(), stored.into(), ids, (h.rows() as i32).into(), (count as i32).into()];
        self.launch(&kernel, grid, [THREADS, 1, 1], 0, &args);
        y
    }
}
