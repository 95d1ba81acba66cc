//! The bf16 unit of every CPU: operands are rounded into scratch, then multiplied by the f32 kernels, so that all
//! instruction sets give the same bits. Weights stored in bf16 need no scratch.

use super::super::{Left, Right, Segment, check};
use crate::cpu::gemm;
use crate::cpu::isa::Isa;
use crate::cpu::lanes::{Kernel, dispatch};
use crate::cpu::rounding::{bf16_bits, round_bf16};
use rayon::prelude::*;
use std::cell::Cell;

/// Most segments of a product: three projections, each with its adapter.
const MOST_SEGMENTS: usize = 8;
/// Values below which rounding is not worth splitting.
const GRAIN: usize = 1 << 14;

/// Space that a thread keeps from call to call, taken out while in use: a thread that waits for others may be given
/// another product meanwhile.
#[derive(Default)]
struct Space {
    left: Vec<f32>,
    right: Vec<u8>,
}

thread_local! {
    static SPACE: Cell<Space> = const { Cell::new(Space { left: Vec::new(), right: Vec::new() }) };
}

/// The product of the rounded operands.
///
/// # Panics
/// As [`gemm::gemm`], and for more segments than any operation has.
#[allow(clippy::too_many_arguments)]
pub(super) fn gemm(
    isa: Isa,
    m: usize,
    n: usize,
    segments: &[Segment<'_>],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
    parallel: bool,
) {
    isa.require();
    check(m, n, segments, c, ldc);
    assert!(segments.len() <= MOST_SEGMENTS, "a product of {} segments", segments.len());
    let mut space = SPACE.take();
    let left_length: usize = segments.iter().map(|segment| m * segment.k).sum();
    let right_length: usize = segments.iter().filter(|s| is_f32(&s.right)).map(|segment| 2 * n * segment.k).sum();
    space.left.resize(space.left.len().max(left_length), 0.0);
    space.right.resize(space.right.len().max(right_length), 0);
    {
        let (mut left_space, mut right_space) = (&mut space.left[..], &mut space.right[..]);
        let nothing = Segment {
            left: Left { data: &[], row_stride: 0, k_stride: 0 },
            right: Right::F32 { data: &[], k_stride: 0, col_stride: 0 },
            k: 0,
        };
        let mut rounded = [nothing; MOST_SEGMENTS];
        for (segment, rounded) in segments.iter().zip(&mut rounded) {
            let k = segment.k;
            if m == 0 || n == 0 || k == 0 {
                continue;
            }
            let (mine, rest) = left_space.split_at_mut(m * k);
            left_space = rest;
            let left = round_left(isa, &segment.left, m, k, mine, parallel);
            let right = match segment.right {
                Right::Bf16 { .. } => segment.right,
                _ => {
                    let (mine, rest) = right_space.split_at_mut(2 * n * k);
                    right_space = rest;
                    round_right(isa, &segment.right, n, k, mine, parallel)
                }
            };
            *rounded = Segment { left, right, k };
        }
        let rounded = &rounded[..segments.len()];
        match parallel {
            true => gemm::gemm(isa, m, n, rounded, c, ldc, accumulate),
            false => gemm::gemm_serial(isa, m, n, rounded, c, ldc, accumulate),
        }
    }
    SPACE.set(space);
}

fn is_f32(right: &Right<'_>) -> bool {
    !matches!(right, Right::Bf16 { .. })
}

/// A row of values to round, `stride` apart.
#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    Bytes(&'a [u8]),
}

impl<'a> Values<'a> {
    fn from(self, start: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[start..]),
            Self::Bytes(bytes) => Self::Bytes(&bytes[4 * start..]),
        }
    }

    #[inline(always)]
    fn each(self, stride: usize, count: usize, mut visit: impl FnMut(usize, f32)) {
        match (self, stride) {
            (Self::F32(values), 1) => values[..count].iter().enumerate().for_each(|(i, &value)| visit(i, value)),
            (Self::F32(values), _) => (0..count).for_each(|i| visit(i, values[i * stride])),
            (Self::Bytes(bytes), _) => (0..count).for_each(|i| {
                let b = &bytes[4 * i * stride..][..4];
                visit(i, f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }),
        }
    }
}

/// Rounds a row to f32 that hold bf16.
struct ToF32<'a, 'o>(Values<'a>, usize, &'o mut [f32]);

impl Kernel for ToF32<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(values, stride, out) = self;
        match (values, stride) {
            (Values::F32(values), 1) => {
                for (out, value) in out.iter_mut().zip(values) {
                    *out = round_bf16(*value);
                }
            }
            _ => values.each(stride, out.len(), |i, value| out[i] = round_bf16(value)),
        }
    }
}

/// Rounds a row to bf16.
struct ToBf16<'a, 'o>(Values<'a>, usize, &'o mut [u8]);

impl Kernel for ToBf16<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(values, stride, out) = self;
        match (values, stride) {
            (Values::F32(values), 1) => {
                for (out, value) in out.chunks_exact_mut(2).zip(values) {
                    out.copy_from_slice(&bf16_bits(*value).to_le_bytes());
                }
            }
            _ => values.each(stride, out.len() / 2, |i, value| {
                out[2 * i..2 * i + 2].copy_from_slice(&bf16_bits(value).to_le_bytes());
            }),
        }
    }
}

/// Left `[m, k]` rounded into `out`, in the order it lies in.
fn round_left<'o>(isa: Isa, left: &Left<'_>, m: usize, k: usize, out: &'o mut [f32], parallel: bool) -> Left<'o> {
    let Left { data, row_stride, k_stride } = *left;
    let by_k = row_stride == 1 && k_stride != 1;
    let (inner, outer_stride, inner_stride) = if by_k { (m, k_stride, row_stride) } else { (k, row_stride, k_stride) };
    let row = |(index, out): (usize, &mut [f32])| {
        dispatch(isa, ToF32(Values::F32(data).from(index * outer_stride), inner_stride, out));
    };
    match parallel {
        true => out.par_chunks_mut(inner).enumerate().with_min_len(GRAIN.div_ceil(inner)).for_each(row),
        false => out.chunks_mut(inner).enumerate().for_each(row),
    }
    if by_k { Left { data: out, row_stride: 1, k_stride: m } } else { Left { data: out, row_stride: k, k_stride: 1 } }
}

/// Right `[k, n]` in f32 rounded into `out`, two bytes each, in the order it lies in.
fn round_right<'o>(isa: Isa, right: &Right<'_>, n: usize, k: usize, out: &'o mut [u8], parallel: bool) -> Right<'o> {
    let (values, k_stride, col_stride) = match *right {
        Right::F32 { data, k_stride, col_stride } => (Values::F32(data), k_stride, col_stride),
        Right::F32Bytes { bytes, k_stride, col_stride } | Right::Bf16 { bytes, k_stride, col_stride } => {
            (Values::Bytes(bytes), k_stride, col_stride)
        }
    };
    let by_k = col_stride == 1;
    let (inner, outer_stride, inner_stride) = if by_k { (n, k_stride, col_stride) } else { (k, col_stride, k_stride) };
    let row = |(index, out): (usize, &mut [u8])| {
        dispatch(isa, ToBf16(values.from(index * outer_stride), inner_stride, out));
    };
    match parallel {
        true => out.par_chunks_mut(2 * inner).enumerate().with_min_len(GRAIN.div_ceil(inner)).for_each(row),
        false => out.chunks_mut(2 * inner).enumerate().for_each(row),
    }
    let (k_stride, col_stride) = if by_k { (n, 1) } else { (1, k) };
    Right::Bf16 { bytes: out, k_stride, col_stride }
}
