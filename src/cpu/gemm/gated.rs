//! Two products of the same shape, block by block side by side, with an epilogue on each pair of blocks while they are in the
//! cache: act\[i, j\] = apply(first\[i, j\], second\[i, j\]). Bits are those of the two products and the epilogue one after the other.

use super::bf16::{self, Multiplier};
use super::driver::{Output, tile_shape};
use super::{Left, Right, Segment, check, split::Grid};
use crate::cpu::buffers::Buffers;
use rayon::prelude::*;

/// Columns of a pair of blocks: enough for packing the rows to cost little, few enough for both blocks to stay near.
const BAND: usize = 256;

/// The epilogue of a stretch of a row: both products there, and where the result goes.
pub(crate) type Apply<'a> = dyn Fn(&[f32], &[f32], &mut [f32]) + Sync + 'a;

/// Computes both products `[m, n]` in the unit of `by`, split over the current pool, and their epilogue into `act` `[m, n]`; `kept`
/// receives the products themselves if given.
///
/// # Panics
/// As [`super::gemm`].
pub(crate) fn gated(
    by: Multiplier,
    (m, n): (usize, usize),
    segments: [&[Segment<'_>]; 2],
    act: &mut [f32],
    kept: Option<[&mut [f32]; 2]>,
    scratch: &Buffers,
    apply: &Apply<'_>,
) {
    for segments in segments {
        check(m, n, segments, act, n);
    }
    let k = segments[0].iter().map(|segment| segment.k).sum::<usize>();
    let act = Output { data: act.as_mut_ptr(), stride: n };
    let kept = kept.map(|matrices| {
        matrices.map(|matrix| {
            assert!(matrix.len() >= m * n, "{} elements cannot hold {m} rows of {n}", matrix.len());
            Output { data: matrix.as_mut_ptr(), stride: n }
        })
    });
    let (tile_rows, tile_columns) = tile_shape(by.isa);
    let grid = Grid::new(m, n, 2 * k, tile_rows, tile_columns, rayon::current_num_threads());
    let task = |index: usize| {
        let (rows, columns) = grid.task(index);
        for first in columns.clone().step_by(BAND) {
            let width = BAND.min(columns.end - first);
            let height = rows.len();
            let mut blocks = scratch.stale(2 * height * width);
            let (one, two) = blocks.split_at_mut(height * width);
            for (segments, block) in segments.into_iter().zip([&mut *one, &mut *two]) {
                let inner: Vec<Segment<'_>> = segments.iter().map(|segment| segment.from(rows.start, first)).collect();
                bf16::gemm_serial(by, height, width, &inner, block, width, false);
            }
            for (row, (one, two)) in rows.clone().zip(one.chunks_exact(width).zip(two.chunks_exact(width))) {
                // SAFETY: act and the kept matrices hold m rows of n elements and stay borrowed until the last task has ended; blocks of
                // a grid are disjoint, so no other task touches this stretch of a row.
                let stretch = |matrix: Output| unsafe {
                    std::slice::from_raw_parts_mut(matrix.data.add(row * matrix.stride + first), width)
                };
                if let Some([gate, up]) = kept {
                    stretch(gate).copy_from_slice(one);
                    stretch(up).copy_from_slice(two);
                }
                apply(one, two, stretch(act));
            }
        }
    };
    match grid.tasks() {
        0 => {}
        1 => task(0),
        tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
    }
}

impl<'a> Segment<'a> {
    /// The part of the product that begins at this row of Left and this column of Right.
    fn from(&self, row: usize, column: usize) -> Segment<'a> {
        if self.k == 0 {
            return *self;
        }
        let Left { data, row_stride, k_stride } = self.left;
        let left = Left { data: &data[row * row_stride..], row_stride, k_stride };
        let right = match self.right {
            Right::F32 { data, k_stride, col_stride } => {
                Right::F32 { data: &data[column * col_stride..], k_stride, col_stride }
            }
            Right::Bf16 { bytes, k_stride, col_stride } => {
                Right::Bf16 { bytes: &bytes[2 * column * col_stride..], k_stride, col_stride }
            }
            Right::F32Bytes { bytes, k_stride, col_stride } => {
                Right::F32Bytes { bytes: &bytes[4 * column * col_stride..], k_stride, col_stride }
            }
        };
        Segment { left, right, k: self.k }
    }
}
