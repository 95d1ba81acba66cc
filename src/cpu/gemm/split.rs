//! Cutting one product into tasks for the threads of a pool: a grid over rows and columns, never over k.

use std::ops::Range;

/// A grid of disjoint blocks that cover C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    m: usize,
    n: usize,
    /// Rows of a block.
    rows: usize,
    /// Columns of a block.
    columns: usize,
}

/// What packing one element of Left or Right costs, in multiply-adds.
const PACK_LEFT: usize = 3;
const PACK_RIGHT: usize = 8;

/// Products of fewer multiply-adds are not worth waking a thread for.
const SERIAL: usize = 1 << 17;

impl Grid {
    /// The grid whose slowest thread is estimated to end first. Blocks are whole tiles, so that only the last row and
    /// column of blocks are ragged.
    pub(super) fn new(m: usize, n: usize, k: usize, tile_rows: usize, tile_columns: usize, threads: usize) -> Self {
        let whole = Self { m, n, rows: m.max(1), columns: n.max(1) };
        if threads <= 1 || m.saturating_mul(n).saturating_mul(k) < SERIAL {
            return whole;
        }
        let mut best = whole;
        let mut least = usize::MAX;
        let most = threads.saturating_mul(4);
        for down in 1..=most.min(m.div_ceil(tile_rows)) {
            for across in 1..=(most / down).min(n.div_ceil(tile_columns)) {
                let rows = m.div_ceil(down).next_multiple_of(tile_rows);
                let columns = n.div_ceil(across).next_multiple_of(tile_columns);
                let grid = Self { m, n, rows, columns };
                let block = rows * columns + PACK_LEFT * rows + PACK_RIGHT * columns;
                let slowest = grid.tasks().div_ceil(threads) * block;
                if slowest < least {
                    least = slowest;
                    best = grid;
                }
            }
        }
        best
    }

    /// How many blocks there are.
    pub(super) fn tasks(&self) -> usize {
        self.m.div_ceil(self.rows) * self.n.div_ceil(self.columns)
    }

    /// Rows and columns of block `index`.
    pub(super) fn task(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let across = self.n.div_ceil(self.columns);
        let (row, column) = (index / across * self.rows, index % across * self.columns);
        (row..(row + self.rows).min(self.m), column..(column + self.columns).min(self.n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_element_once() {
        for threads in [1, 2, 3, 7, 16] {
            for (m, n, k) in [(1, 5000, 640), (420, 1024, 640), (420, 16, 640), (7, 33, 4096), (61, 1, 9999), (0, 4, 4)]
            {
                let grid = Grid::new(m, n, k, 6, 16, threads);
                let mut seen = vec![0_u8; m * n];
                for index in 0..grid.tasks() {
                    let (rows, columns) = grid.task(index);
                    for i in rows {
                        columns.clone().for_each(|j| seen[i * n + j] += 1);
                    }
                }
                assert!(seen.iter().all(|&times| times == 1), "[{m}, {n}] on {threads} threads: {grid:?}");
            }
        }
    }

    #[test]
    fn threads_get_nearly_equal_work() {
        for threads in [2, 3, 7] {
            for (m, n) in [(420, 1024), (420, 640), (420, 2048), (420, 256), (1, 262_144), (420, 16)] {
                let grid = Grid::new(m, n, 640, 6, 16, threads);
                let mut load = vec![0; threads];
                for index in 0..grid.tasks() {
                    let (rows, columns) = grid.task(index);
                    *load.iter_mut().min().unwrap() += rows.len() * columns.len();
                }
                let slowest = *load.iter().max().unwrap() as f64 * threads as f64 / (m * n) as f64;
                assert!(slowest < 1.12, "[{m}, {n}] on {threads} threads: the slowest has {slowest:.3} of its share");
            }
        }
    }
}
