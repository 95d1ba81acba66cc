//! Matrix products in f32 over f32 or bf16 weights: C\[m, n\] (+)= Σ over segments of Left\[m, k\]·Right\[k, n\].
//!
//! **Promise.** Each element of C is one chain of f32 fused multiply-adds, starting at 0 (or at what C holds), over the
//! segments in order and k ascending in each. Blocking passes a partial chain through C, exactly, and no split ever cuts
//! k, so the bits depend neither on the instruction set nor on block sizes nor on the number of threads. (A NaN's sign
//! and payload are not part of the promise.)
//!
//! **How.** As in BLIS: a block of Right is packed into panels a few vectors wide (bf16 is widened and weights stored
//! `[n, k]` are transposed on the way), a block of Left is copied to consecutive rows, and a micro-kernel holds a tile
//! of C in registers. `blocking` sizes the blocks from the caches, `pack` packs, `driver` loops, `split` cuts a product
//! into tasks, and `portable`, `avx2` and `avx512` are the micro-kernels, thin on purpose. `bf16` holds the products of
//! bf16 operands, which give other bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod bf16;
mod blocking;
mod driver;
pub(crate) mod gated;
mod pack;
mod portable;
mod split;
#[cfg(test)]
mod tests;

use super::isa::Isa;
use driver::Output;
use rayon::prelude::*;

#[cfg(target_endian = "big")]
compile_error!("weights are used as they lie in the file, little-endian");

/// The row operand: element (i, p) is `data[i·row_stride + p·k_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// Values.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance along k.
    pub k_stride: usize,
}

/// The column operand: element (p, j) is `data[p·k_stride + j·col_stride]`, f32 or bf16 (widened while packing).
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// f32 values.
    F32 {
        /// Values.
        data: &'a [f32],
        /// Distance along k.
        k_stride: usize,
        /// Distance between columns.
        col_stride: usize,
    },
    /// Little-endian bf16 bytes straight from a map, maybe unaligned; strides count elements.
    Bf16 {
        /// Bytes, two per element.
        bytes: &'a [u8],
        /// Distance along k.
        k_stride: usize,
        /// Distance between columns.
        col_stride: usize,
    },
    /// Little-endian f32 bytes straight from a map, maybe unaligned; strides count elements.
    F32Bytes {
        /// Bytes, four per element.
        bytes: &'a [u8],
        /// Distance along k.
        k_stride: usize,
        /// Distance between columns.
        col_stride: usize,
    },
}

/// One stretch of k.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// `[m, k]`
    pub left: Left<'a>,
    /// `[k, n]`
    pub right: Right<'a>,
    /// Length.
    pub k: usize,
}

/// Single-threaded product into `c` (row stride `ldc`); with `accumulate` the chain starts from what `c` holds, else
/// from 0. Elements of `c` outside the `[m, n]` block are neither read nor written.
///
/// # Panics
/// Where an operand or `c` is too short for its shape and strides, or this CPU lacks `isa`.
pub fn gemm_serial(
    isa: Isa,
    m: usize,
    n: usize,
    segments: &[Segment<'_>],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    isa.require();
    check(m, n, segments, c, ldc);
    let c = Output { data: c.as_mut_ptr(), stride: ldc };
    // SAFETY: `check` has seen that the whole [m, n] block lies in `c`, which is borrowed exclusively, and that every
    // operand covers its shape; `require` that the CPU has the instruction set.
    unsafe { driver::block(isa, 0..m, 0..n, segments, c, accumulate) }
}

/// The same product split by shape over the current rayon pool; same bits as [`gemm_serial`] at any number of threads.
///
/// # Panics
/// As [`gemm_serial`].
pub fn gemm(isa: Isa, m: usize, n: usize, segments: &[Segment<'_>], c: &mut [f32], ldc: usize, accumulate: bool) {
    isa.require();
    check(m, n, segments, c, ldc);
    let c = Output { data: c.as_mut_ptr(), stride: ldc };
    let k = segments.iter().map(|segment| segment.k).sum();
    let (tile_rows, tile_columns) = driver::tile_shape(isa);
    let grid = split::Grid::new(m, n, k, tile_rows, tile_columns, rayon::current_num_threads());
    let task = |index: usize| {
        let (rows, columns) = grid.task(index);
        // SAFETY: as in `gemm_serial`; besides, the blocks of a grid are disjoint, so no two tasks touch the same
        // element of C, and `c` stays borrowed until the last task has ended.
        unsafe { driver::block(isa, rows, columns, segments, c, accumulate) }
    };
    match grid.tasks() {
        0 => {}
        1 => task(0),
        tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
    }
}

/// Checks that every operand covers its shape, so that the kernels need not.
fn check(m: usize, n: usize, segments: &[Segment<'_>], c: &[f32], ldc: usize) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n, "C: row stride {ldc} is less than its {n} columns");
    let covers = |held: usize, outer: usize, outer_stride: usize, inner: usize, inner_stride: usize| {
        let last = (outer - 1).checked_mul(outer_stride).zip((inner - 1).checked_mul(inner_stride));
        last.and_then(|(a, b)| a.checked_add(b)).is_some_and(|last| last < held)
    };
    assert!(covers(c.len(), m, ldc, n, 1), "C: {} elements cannot hold {m} rows of {n} at stride {ldc}", c.len());
    for (index, Segment { left, right, k }) in segments.iter().enumerate().filter(|(_, segment)| segment.k > 0) {
        assert!(
            covers(left.data.len(), m, left.row_stride, *k, left.k_stride),
            "segment {index}: left holds {} elements, too few for [{m}, {k}] at strides {}, {}",
            left.data.len(),
            left.row_stride,
            left.k_stride,
        );
        let (held, k_stride, col_stride) = match *right {
            Right::F32 { data, k_stride, col_stride } => (data.len(), k_stride, col_stride),
            Right::Bf16 { bytes, k_stride, col_stride } => (bytes.len() / 2, k_stride, col_stride),
            Right::F32Bytes { bytes, k_stride, col_stride } => (bytes.len() / 4, k_stride, col_stride),
        };
        assert!(
            covers(held, *k, k_stride, n, col_stride),
            "segment {index}: right holds {held} elements, too few for [{k}, {n}] at strides {k_stride}, {col_stride}",
        );
    }
}
