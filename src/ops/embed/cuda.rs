//! embed on CUDA: `kernels/embed.cu`.

use super::Embed;
use crate::cuda::{Buf, Cuda, Element, Weight};

const THREADS: u32 = 128;

impl Embed for Cuda {
    fn embed(&self, table: &Weight, ids: &[u32], scale: f32) -> Buf {
        let h = self.buffer(ids.len(), table.cols(), Element::F32);
        let kernel = self.kernel("embed.cu", "embed", &[("COLS", table.cols() as i64)]);
        let fours = (h.stride() / 4) as u32;
        let words = self.words(ids);
        let grid = [fours.div_ceil(THREADS), ids.len() as u32, 1];
        self.launch(
            &kernel,
            grid,
            [THREADS, 1, 1],
            0,
            &[(&h).into(), table.buf().into(), (&words).into(), scale.into()],
        );
        h
    }
}
