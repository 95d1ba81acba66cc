//! The micro-kernel in plain Rust: `f32::mul_add` on arrays, up to 4 rows by 16 columns. The compiler turns it into
//! vector instructions where the target has FMA at compile time, else into calls of `fmaf`: the same bits, slowly.

use super::driver::Tile;

pub(super) struct Kernel;

impl super::driver::Kernel for Kernel {
    const ROWS: usize = 4;
    const WIDTH: usize = 16;

    fn panels(_rows: usize) -> usize {
        1
    }

    unsafe fn tile(rows: usize, _panels: usize, t: &Tile<'_>) {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match rows {
                1 => tile::<1>(t),
                2 => tile::<2>(t),
                3 => tile::<3>(t),
                _ => tile::<4>(t),
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`](super::driver::Kernel::tile), for ROWS rows and one panel.
unsafe fn tile<const ROWS: usize>(t: &Tile<'_>) {
    let Tile { strips, row, panels, c, load, .. } = *t;
    let mut sums = [[0.0_f32; 16]; ROWS];
    // SAFETY: C is readable and writable over the tile, the panel over the k that the strips have together, the strips
    // over ROWS rows from `row` on. An array of f32 needs no more alignment than f32.
    unsafe {
        if load {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = *c.data.add(r * c.stride).cast::<[f32; 16]>();
            }
        }
        let mut right = panels.cast::<[f32; 16]>();
        for strip in strips {
            let mut left = strip.data.add(row * strip.row_stride);
            for _ in 0..strip.k {
                let columns = &*right;
                for (r, sums) in sums.iter_mut().enumerate() {
                    let value = *left.add(r * strip.row_stride);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = value.mul_add(*column, *sum);
                    }
                }
                left = left.add(strip.k_stride);
                right = right.add(1);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            *c.data.add(r * c.stride).cast::<[f32; 16]>() = *sums;
        }
    }
}
