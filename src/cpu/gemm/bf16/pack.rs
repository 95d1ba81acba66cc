//! Packing for dot products: any operand becomes rows consecutive along k, or panels of pairs of k (VNNI), rounded to bf16
//! on the way. Loops are plain and compiled per instruction set; only the transpositions are spelled out.

#[cfg(target_arch = "x86_64")]
use super::super::pack::x86::transpose_f32;
use super::super::{Left, Right, Segment};
use super::driver::{Line, PANEL};
use crate::cpu::lanes::Kernel;
use crate::cpu::rounding::bf16_bits;
use std::ops::Range;

/// Values as they lie in memory.
#[derive(Clone, Copy)]
enum Data<'a> {
    F32(&'a [f32]),
    F32Bytes(&'a [u8]),
    Bf16(&'a [u8]),
}

impl Data<'_> {
    /// `out.len()` consecutive elements from `start` on, as bf16.
    #[inline(always)]
    fn consecutive(self, start: usize, out: &mut [u16]) {
        let count = out.len();
        match self {
            Self::F32(values) => {
                for (out, value) in out.iter_mut().zip(&values[start..start + count]) {
                    *out = bf16_bits(*value);
                }
            }
            Self::F32Bytes(bytes) => {
                for (out, b) in out.iter_mut().zip(bytes[4 * start..4 * (start + count)].chunks_exact(4)) {
                    *out = bf16_bits(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                }
            }
            Self::Bf16(bytes) => {
                for (out, b) in out.iter_mut().zip(bytes[2 * start..2 * (start + count)].chunks_exact(2)) {
                    *out = u16::from_le_bytes([b[0], b[1]]);
                }
            }
        }
    }
}

/// One side of a segment: element (i, p), i a row of Left or a column of Right, p along k.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    data: Data<'a>,
    stride: usize,
    k_stride: usize,
}

/// Left of a segment.
pub(super) fn left<'a>(segment: &Segment<'a>) -> Source<'a> {
    let Left { data, row_stride, k_stride } = segment.left;
    Source { data: Data::F32(data), stride: row_stride, k_stride }
}

/// Right of a segment.
pub(super) fn right<'a>(segment: &Segment<'a>) -> Source<'a> {
    let (data, k_stride, stride) = match segment.right {
        Right::F32 { data, k_stride, col_stride } => (Data::F32(data), k_stride, col_stride),
        Right::F32Bytes { bytes, k_stride, col_stride } => (Data::F32Bytes(bytes), k_stride, col_stride),
        Right::Bf16 { bytes, k_stride, col_stride } => (Data::Bf16(bytes), k_stride, col_stride),
    };
    Source { data, stride, k_stride }
}

/// What a transposed element costs, in elements copied straight.
const TRANSPOSED: usize = 4;

impl<'a> Source<'a> {
    /// What packing `count` of them as rows costs, per k.
    pub(super) fn cost_as_rows(self, count: usize) -> usize {
        match (self.k_stride, self.data) {
            (1, Data::Bf16(_)) => 0,
            (1, _) => count,
            _ => TRANSPOSED * count,
        }
    }

    /// What packing `count` of them as columns of panels costs, per k.
    pub(super) fn cost_as_panels(self, count: usize) -> usize {
        if self.stride == 1 { count } else { TRANSPOSED * count }
    }

    /// Address of element (row, p) and bytes between rows, if rows are bf16 consecutive along k already.
    pub(super) fn rows_in_place(self, row: usize, p: usize) -> Option<(*const u8, usize)> {
        match self.data {
            Data::Bf16(bytes) if self.k_stride == 1 => {
                Some((bytes[2 * (row * self.stride + p)..].as_ptr(), 2 * self.stride))
            }
            _ => None,
        }
    }

    /// Element (i, p).
    #[inline(always)]
    fn element(self, i: usize, p: usize) -> u16 {
        let mut out = [0];
        self.data.consecutive(i * self.stride + p * self.k_stride, &mut out);
        out[0]
    }
}

/// Packs rows: row r of `target` (rows `stride` apart) gets its k into `columns`, zeros behind them; rows that the source
/// lacks are zero.
pub(super) struct Rows<'a, 't> {
    pub source: Source<'a>,
    pub rows: Range<usize>,
    pub ks: Range<usize>,
    pub columns: Range<usize>,
    pub stride: usize,
    pub target: &'t mut [u16],
}

impl Kernel for Rows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { source, rows, ks, columns, stride, target } = self;
        let (count, length) = (rows.len(), ks.len());
        for (r, row) in target.chunks_exact_mut(stride).enumerate() {
            let row = &mut row[columns.clone()];
            row[if r < count { length } else { 0 }..].fill(0);
            if r < count && source.k_stride == 1 {
                let start = (rows.start + r) * source.stride + ks.start;
                source.data.consecutive(start, &mut row[..length]);
            }
        }
        if source.k_stride == 1 {
            return;
        }
        let mut done = 0;
        if source.stride == 1 {
            done = count / 8 * 8;
            for p in 0..length {
                for first in (0..done).step_by(8) {
                    let mut eight = [0; 8];
                    source.data.consecutive(rows.start + first + (ks.start + p) * source.k_stride, &mut eight);
                    for (r, value) in eight.into_iter().enumerate() {
                        target[(first + r) * stride + columns.start + p] = value;
                    }
                }
            }
        }
        for r in done..count {
            for p in 0..length {
                target[r * stride + columns.start + p] = source.element(rows.start + r, ks.start + p);
            }
        }
    }
}

/// k that are transposed at a time.
const BLOCK: usize = 64;

/// Packs one panel: line q of `target` gets k 2q and 2q + 1 of up to 16 columns; what the source lacks is zero.
pub(super) struct Panel<'a, 't> {
    pub source: Source<'a>,
    pub columns: Range<usize>,
    pub ks: Range<usize>,
    pub target: &'t mut [Line],
}

impl Kernel for Panel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { source, columns, ks, target } = self;
        let (count, length) = (columns.len(), ks.len());
        if source.k_stride == 1 {
            for (block, lines) in target.chunks_mut(BLOCK / 2).enumerate() {
                let start = (block * BLOCK).min(length);
                let end = (start + BLOCK).min(length);
                let mut halves = [[0_u16; BLOCK]; PANEL];
                for (j, halves) in halves.iter_mut().enumerate().take(count) {
                    let from = (columns.start + j) * source.stride + ks.start + start;
                    source.data.consecutive(from, &mut halves[..end - start]);
                }
                transpose(&halves, lines);
            }
            return;
        }
        for (q, line) in target.iter_mut().enumerate() {
            let mut pair = [[0_u16; PANEL]; 2];
            for (odd, halves) in pair.iter_mut().enumerate() {
                let p = 2 * q + odd;
                if p >= length {
                    continue;
                }
                let from = columns.start * source.stride + (ks.start + p) * source.k_stride;
                match (source.stride, count) {
                    (1, PANEL) => source.data.consecutive(from, halves),
                    (1, _) => source.data.consecutive(from, &mut halves[..count]),
                    _ => {
                        for (j, half) in halves.iter_mut().enumerate().take(count) {
                            *half = source.element(columns.start + j, ks.start + p);
                        }
                    }
                }
            }
            for (j, out) in line.0.iter_mut().enumerate() {
                *out = u32::from(pair[0][j]) | u32::from(pair[1][j]) << 16;
            }
        }
    }
}

/// Sixteen columns of consecutive k to lines of pairs.
#[inline(always)]
fn transpose(halves: &[[u16; BLOCK]; PANEL], lines: &mut [Line]) {
    #[cfg(target_arch = "x86_64")]
    let done = lines.len() / 4 * 4;
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    #[cfg(target_arch = "x86_64")]
    for q in (0..done).step_by(4) {
        for j in (0..PANEL).step_by(4) {
            // SAFETY: pairs q to q + 3 of columns j to j + 3 lie in `halves`, whose columns are consecutive, and go to
            // four lines from q on. The bits of f32 are moved, not computed with.
            unsafe {
                let from = halves.as_ptr().cast::<f32>().add(j * BLOCK / 2 + q).cast();
                let to = lines.as_mut_ptr().add(q).cast::<f32>().add(j);
                transpose_f32(from, BLOCK / 2, to, PANEL);
            }
        }
    }
    for (q, line) in lines.iter_mut().enumerate().skip(done) {
        for (j, out) in line.0.iter_mut().enumerate() {
            *out = u32::from(halves[j][2 * q]) | u32::from(halves[j][2 * q + 1]) << 16;
        }
    }
}
