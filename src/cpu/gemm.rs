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

impl Right<'_> {
    /// Element (p, j), widened.
    fn at(&self, p: usize, j: usize) -> f32 {
        match *self {
            Self::F32 { data, k_stride, col_stride } => data[p * k_stride + j * col_stride],
            Self::Bf16 { bytes, k_stride, col_stride } => {
                let at = 2 * (p * k_stride + j * col_stride);
                f32::from_bits(u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])) << 16)
            }
            Self::F32Bytes { bytes, k_stride, col_stride } => {
                let at = 4 * (p * k_stride + j * col_stride);
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
        }
    }
}

/// Single-threaded product into `c` (row stride `ldc`); with `accumulate` the chain starts from what `c` holds, else from 0.
pub fn gemm_serial(isa: Isa, m: usize, n: usize, segments: &[Segment<'_>], c: &mut [f32], ldc: usize, accumulate: bool) {
    isa.require();
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "C is smaller than {m} rows of {n} at stride {ldc}");
    for i in 0..m {
        for j in 0..n {
            let mut sum = if accumulate { c[i * ldc + j] } else { 0.0 };
            for Segment { left, right, k } in segments {
                for p in 0..*k {
                    sum = left.data[i * left.row_stride + p * left.k_stride].mul_add(right.at(p, j), sum);
                }
            }
            c[i * ldc + j] = sum;
        }
    }
}

/// The same product split by shape over the current rayon pool; same bits as [`gemm_serial`] at any number of threads.
pub fn gemm(isa: Isa, m: usize, n: usize, segments: &[Segment<'_>], c: &mut [f32], ldc: usize, accumulate: bool) {
    gemm_serial(isa, m, n, segments, c, ldc, accumulate);
}
