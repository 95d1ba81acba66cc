//! C[m, n] (+)= Σ over segments of Left[m, k]·Right[k, n], each element one FMA chain over the segments' k in order.

use super::isa::Isa;

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

/// Single-threaded product into `c` (row stride `ldc`); with `accumulate` the chain starts from what `c` holds, else from 0.
pub fn gemm_serial(isa: Isa, m: usize, n: usize, segments: &[Segment<'_>], c: &mut [f32], ldc: usize, accumulate: bool) {
    let _ = (isa, m, n, segments, c, ldc, accumulate);
    todo!()
}

/// The same product split by shape over the current rayon pool; same bits as [`gemm_serial`] at any number of threads.
pub fn gemm(isa: Isa, m: usize, n: usize, segments: &[Segment<'_>], c: &mut [f32], ldc: usize, accumulate: bool) {
    gemm_serial(isa, m, n, segments, c, ldc, accumulate);
}
