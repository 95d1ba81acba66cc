//! norm, norm_add and branch_norm on CUDA: `kernels/norm.cu`.

use super::Norm;
use crate::cuda::buffer::stride;
use crate::cuda::{Arg, Buf, Cuda, Element, Weight};

/// How rows are laid over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Warps that share a row.
    pub warps: u32,
    /// Rows of a block.
    pub rows: u32,
}

/// A row stays in registers, at most 32 f32 a thread: more threads a row where it is wider. Blocks are of four warps, so that the 400
/// rows of one group are 100 blocks or more; above 4,096 columns a row takes a block of its own.
pub fn tile(cols: usize) -> Tile {
    match stride(cols) {
        0..=1024 => Tile { warps: 1, rows: 4 },
        1025..=2048 => Tile { warps: 2, rows: 2 },
        2049..=4096 => Tile { warps: 4, rows: 1 },
        wide => Tile { warps: (wide as u32).div_ceil(1024).next_power_of_two().min(32), rows: 1 },
    }
}

impl Cuda {
    fn norm_kernel(&self, entry: &'static str, x: &Buf, y: &Buf, inputs: &[Arg], eps: f32) {
        let Tile { warps, rows } = tile(x.cols());
        let constants = [("COLS", x.cols() as i64), ("WARPS", i64::from(warps)), ("ROWS", i64::from(rows))];
        let kernel = self.kernel("norm.cu", entry, &constants);
        let numbers = [Arg::from(x.rows() as u32), Arg::from(eps)];
        let args = [&[y.into()], inputs, &numbers].concat();
        self.launch(&kernel, [(x.rows() as u32).div_ceil(rows), 1, 1], [32 * warps * rows, 1, 1], 0, &args);
    }
}

impl Norm for Cuda {
    fn norm(&self, x: &Buf, w: &Weight, eps: f32) -> Buf {
        let x = self.in_f32(x);
        let y = self.buffer(x.rows(), x.cols(), Element::Bf16);
        self.norm_kernel("rms_norm", &x, &y, &[(&*x).into(), w.buf().into()], eps);
        y
    }

    fn norm_add(&self, h: &Buf, branch: &Buf, w: &Weight, eps: f32) -> Buf {
        let (h, branch) = (self.in_f32(h), self.in_f32(branch));
        let y = self.buffer(h.rows(), h.cols(), Element::F32);
        self.norm_kernel("norm_add", &branch, &y, &[(&*h).into(), (&*branch).into(), w.buf().into()], eps);
        y
    }

    fn branch_norm(&self, branch: &Buf, w: &Weight, eps: f32) -> Buf {
        let branch = self.in_f32(branch);
        let y = self.buffer(branch.rows(), branch.cols(), Element::F32);
        self.norm_kernel("branch_norm", &branch, &y, &[(&*branch).into(), w.buf().into()], eps);
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_fits_the_registers_of_its_block() {
        for cols in [1, 40, 640, 1152, 2560, 4096, 5376, 21_504] {
            let Tile { warps, rows } = tile(cols);
            assert!(stride(cols) <= 1024 * warps as usize, "{cols}");
            assert!(warps * rows <= 32 && warps * rows >= 4, "{cols}");
        }
    }
}
