//! Micro-kernels for AVX-512F: up to 12 rows by 32 columns, so that 24 of the 32 registers hold C; values of Left are
//! broadcast from memory by the multiply-add itself.

use super::driver::{Strip, Tile};
use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

pub(super) struct Kernel;

impl super::driver::Kernel for Kernel {
    const ROWS: usize = 12;
    const WIDTH: usize = 32;

    fn panels(rows: usize) -> usize {
        // Two FMA units with a latency of 4 want 8 chains.
        match rows {
            1 => 4,
            2 | 3 => 2,
            _ => 1,
        }
    }

    unsafe fn tile(rows: usize, panels: usize, t: &Tile<'_>) {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match (rows, panels) {
                (1, 4) => tile::<1, 4>(t),
                (1, _) => tile::<1, 1>(t),
                (2, 2) => tile::<2, 2>(t),
                (2, _) => tile::<2, 1>(t),
                (3, 2) => tile::<3, 2>(t),
                (3, _) => tile::<3, 1>(t),
                (4, _) => tile::<4, 1>(t),
                (5, _) => tile::<5, 1>(t),
                (6, _) => tile::<6, 1>(t),
                (7, _) => tile::<7, 1>(t),
                (8, _) => tile::<8, 1>(t),
                (9, _) => tile::<9, 1>(t),
                (10, _) => tile::<10, 1>(t),
                (11, _) => tile::<11, 1>(t),
                _ => tile::<12, 1>(t),
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`](super::driver::Kernel::tile), for ROWS rows and PANELS panels.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const ROWS: usize, const PANELS: usize>(t: &Tile<'_>) {
    let Tile { strips, row, panels, panel_stride, c, load } = *t;
    let at = |r: usize, q: usize, half: usize| c.data.wrapping_add(r * c.stride + q * 32 + half * 16);
    let mut sums = [[[_mm512_setzero_ps(); 2]; PANELS]; ROWS];
    // SAFETY: C is readable and writable over the tile, the panels over the k that the strips have together, the strips
    // over ROWS rows from `row` on.
    unsafe {
        if load {
            for r in 0..ROWS {
                for q in 0..PANELS {
                    sums[r][q] = [_mm512_loadu_ps(at(r, q, 0)), _mm512_loadu_ps(at(r, q, 1))];
                }
            }
        } else {
            for r in 0..ROWS {
                _mm_prefetch::<_MM_HINT_T0>(at(r, 0, 0).cast());
                _mm_prefetch::<_MM_HINT_T0>(at(r, 0, 1).cast());
            }
        }
        let mut right = panels;
        for strip in strips {
            let mut left = strip.data.add(row * strip.row_stride);
            for _ in 0..strip.k / 4 {
                for u in 0..4 {
                    step::<ROWS, PANELS>(
                        &mut sums,
                        left.add(u * strip.k_stride),
                        strip,
                        right.add(u * 32),
                        panel_stride,
                    );
                }
                left = left.add(4 * strip.k_stride);
                right = right.add(4 * 32);
            }
            for _ in 0..strip.k % 4 {
                step::<ROWS, PANELS>(&mut sums, left, strip, right, panel_stride);
                left = left.add(strip.k_stride);
                right = right.add(32);
            }
        }
        for r in 0..ROWS {
            for q in 0..PANELS {
                _mm512_storeu_ps(at(r, q, 0), sums[r][q][0]);
                _mm512_storeu_ps(at(r, q, 1), sums[r][q][1]);
            }
        }
    }
}

/// One k: each chain goes one multiply-add further.
///
/// # Safety
/// `left` is readable at ROWS rows, `right` at 32 values of PANELS panels.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn step<const ROWS: usize, const PANELS: usize>(
    sums: &mut [[[__m512; 2]; PANELS]; ROWS],
    left: *const f32,
    strip: &Strip,
    right: *const f32,
    panel_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [[_mm512_setzero_ps(); 2]; PANELS];
        for (q, column) in columns.iter_mut().enumerate() {
            let from = right.add(q * panel_stride);
            *column = [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))];
        }
        for (r, row) in sums.iter_mut().enumerate() {
            let value = _mm512_set1_ps(*left.add(r * strip.row_stride));
            for (sum, column) in row.iter_mut().zip(columns) {
                sum[0] = _mm512_fmadd_ps(value, column[0], sum[0]);
                sum[1] = _mm512_fmadd_ps(value, column[1], sum[1]);
            }
        }
    }
}
