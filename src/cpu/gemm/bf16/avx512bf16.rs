//! The micro-kernel for AVX512-BF16: 8 rows by 32 columns, so that 16 of the 32 registers hold sums, more chains than the
//! latency of `vdpbf16ps` needs; the pair of a row is broadcast as it is read.
//!
//! `vdpbf16ps` (Intel SDM): sum += odd·odd, then sum += even·even, each a fused multiply-add in f32 rounded to nearest even,
//! denormals in and out as 0, whatever MXCSR says. So one element is one chain over pairs of k ascending.

use super::driver::{Strip, Tile};
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

pub(super) struct Kernel;

const ROWS: usize = 8;

impl super::driver::Kernel for Kernel {
    const ROWS: usize = ROWS;
    const GROUP: usize = 2;
    // Half of the 1 MiB second-level cache that CPUs with these instructions have at least.
    const CHUNK: usize = 512 << 10;
    type Session = ();

    unsafe fn begin() {}

    unsafe fn tile(panels: usize, tile: &mut Tile<'_>) {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match panels {
                1 => sums::<1>(tile),
                _ => sums::<2>(tile),
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`](super::driver::Kernel::tile), for PANELS panels.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn sums<const PANELS: usize>(tile: &mut Tile<'_>) {
    let Tile { strips, panels, pairs, ref mut sums } = *tile;
    let mut chains = [[_mm512_setzero_ps(); PANELS]; ROWS];
    // SAFETY: sums hold 8 rows of 32; each strip 8 rows of its pairs, each panel the pairs of all strips.
    unsafe {
        for (chains, sums) in chains.iter_mut().zip(&sums.0) {
            for (panel, chain) in chains.iter_mut().enumerate() {
                *chain = _mm512_loadu_ps(sums[16 * panel..].as_ptr());
            }
        }
        let mut lines = panels;
        for &Strip { data, row_stride, groups } in strips {
            let mut row = data;
            for _ in 0..groups {
                step::<PANELS>(&mut chains, row, row_stride, lines.cast(), 64 * pairs);
                row = row.add(4);
                lines = lines.add(1);
            }
        }
        for (chains, sums) in chains.iter().zip(&mut sums.0) {
            for (panel, chain) in chains.iter().enumerate() {
                _mm512_storeu_ps(sums[16 * panel..].as_mut_ptr(), *chain);
            }
        }
    }
}

/// One pair of k: each chain goes two multiply-adds further.
///
/// # Safety
/// Four bytes are readable at each of 8 rows, 64 aligned ones at each of PANELS panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn step<const PANELS: usize>(
    chains: &mut [[__m512; PANELS]; ROWS],
    row: *const u8,
    row_stride: usize,
    line: *const u8,
    panel_stride: usize,
) {
    // SAFETY: the caller's promise. Both vector types are 64 bytes without a meaning of their own.
    unsafe {
        let pairs = |vector: __m512i| std::mem::transmute::<__m512i, __m512bh>(vector);
        let mut columns = [_mm512_set1_epi32(0); PANELS];
        for (panel, column) in columns.iter_mut().enumerate() {
            *column = _mm512_load_si512(line.add(panel * panel_stride).cast());
        }
        for (r, chains) in chains.iter_mut().enumerate() {
            let value = _mm512_set1_epi32(row.add(r * row_stride).cast::<i32>().read_unaligned());
            for (chain, column) in chains.iter_mut().zip(columns) {
                *chain = _mm512_dpbf16_ps(*chain, pairs(value), pairs(column));
            }
        }
    }
}

/// Rounds of independent products in registers; returns their operations.
///
/// # Safety
/// The CPU has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn burn(rounds: u32) -> f64 {
    const CHAINS: usize = 16;
    // 0.5 in bf16, twice.
    let halves = _mm512_set1_epi32(std::hint::black_box(0x3f00_3f00));
    // SAFETY: both are 512 bits without invalid values.
    let halves: __m512bh = unsafe { std::mem::transmute::<__m512i, __m512bh>(halves) };
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, halves, halves);
        }
    }
    std::hint::black_box(sums);
    f64::from(rounds) * (CHAINS * 16 * 4) as f64
}
