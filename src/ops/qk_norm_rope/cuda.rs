//! qk_norm_rope on CUDA: `kernels/qk_norm_rope.cu`.

use super::QkNormRope;
use crate::cuda::{Buf, Cuda, Element, Weight};

/// Warps of a block, a head of a row each.
const WARPS: u32 = 4;

impl QkNormRope for Cuda {
    fn qk_norm_rope(&self, x: &Buf, w: &Weight, eps: f32, rope: &Buf, head_dim: usize) -> Buf {
        let (x, rope) = (self.in_bf16(x), self.in_f32(rope));
        let heads = x.cols() / head_dim;
        let y = self.buffer(x.rows(), x.cols(), Element::Bf16);
        let constants = [("HEADS", heads as i64), ("HEAD_DIM", head_dim as i64)];
        let kernel = self.kernel("qk_norm_rope.cu", "qk_norm_rope", &constants);
        let blocks = (x.rows() * heads) as u32;
        self.launch(
            &kernel,
            [blocks.div_ceil(WARPS), 1, 1],
            [32 * WARPS, 1, 1],
            0,
            &[(&y).into(), (&*x).into(), w.buf().into(), (&*rope).into(), (x.rows() as u32).into(), eps.into()],
        );
        y
    }
}
