//! lora_linear and gated_linear on CUDA: `kernels/lora_linear.cu`. Here the tile is chosen, and what is asked becomes arguments.

use super::{LinearOutput, LoraLinear, Part, Store};
use crate::cuda::{Arg, Buf, Cuda, Element, Struct, stride};
use std::sync::Arc;

/// Columns of k that a stage of shared memory holds.
const K_TILE: usize = 64;
/// Bytes of a row of it.
const ROW: usize = 2 * K_TILE;
/// Rows of a block that computes s·u.
const U_ROWS: usize = 16;
/// Its threads.
const U_THREADS: u32 = 128;
/// Its stages: little is computed a tile, so that reads must run far ahead.
const U_STAGES: usize = 4;

/// What a block of threads owns of y, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Columns: half of gate's and half of up's where both are in one block.
    pub cols: usize,
    /// Warps along rows.
    pub warps_m: usize,
    /// Warps along columns.
    pub warps_n: usize,
    /// K-tiles in shared memory at once.
    pub stages: usize,
}

/// From few bytes a product to little waiting. A warp's share is 64·32 to 16·16, so that sums take at most 64 registers of a thread.
const TILES: [Tile; 6] = [
    // One block on a processor, eight warps; 96 KB, all that an RTX 4090 has.
    Tile { rows: 128, cols: 128, warps_m: 2, warps_n: 4, stages: 3 },
    // Two blocks on an A100.
    Tile { rows: 64, cols: 128, warps_m: 2, warps_n: 2, stages: 3 },
    Tile { rows: 64, cols: 64, warps_m: 2, warps_n: 2, stages: 4 },
    Tile { rows: 32, cols: 64, warps_m: 2, warps_n: 2, stages: 4 },
    // Few rows, as with a KV cache: W is read once by many blocks.
    Tile { rows: 16, cols: 128, warps_m: 1, warps_n: 4, stages: 4 },
    Tile { rows: 16, cols: 64, warps_m: 1, warps_n: 4, stages: 4 },
];

impl Tile {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        (32 * self.warps_m * self.warps_n) as u32
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(&self) -> u32 {
        (self.stages * (self.rows + self.cols) * ROW) as u32
    }

    /// Blocks for `rows` rows of `outs` columns each.
    fn blocks(&self, rows: usize, outs: &[usize], gated: bool) -> usize {
        rows.div_ceil(self.rows) * self.column_tiles(outs, gated)
    }

    fn column_tiles(&self, outs: &[usize], gated: bool) -> usize {
        if gated {
            return stride(outs[0]).div_ceil(self.cols / 2);
        }
        outs.iter().map(|&outs| stride(outs).div_ceil(self.cols)).sum()
    }

    /// Cycles that a processor of an A100 spends on 16 columns of k at the least: 2 for each tensor instruction, 4 for each load of four
    /// matrices (128 bytes a cycle), and one for each 64 bytes that come from L2.
    fn cycles(&self) -> usize {
        let warps = self.warps_m * self.warps_n;
        let fragments = (self.rows / self.warps_m / 16, self.cols / self.warps_n / 16);
        let tensor = 2 * warps * fragments.0 * 2 * fragments.1;
        let shared = 4 * warps * (fragments.0 + fragments.1);
        tensor.max(shared).max((self.rows + self.cols) / 2)
    }

    /// Whether a warp's columns are whole fragments of both projections.
    fn gates(&self) -> bool {
        (self.cols / self.warps_n).is_multiple_of(32)
    }
}

/// The tile whose busiest processor is done first, by the bound of [`Tile::cycles`]; of equals the larger, which reads less. At 400 rows a
/// 2560-wide output is 80 tiles of 128·128, which would leave 52 of an H100's 132 processors idle: 280 tiles of 64·64 end 25 % sooner.
pub fn tile(rows: usize, outs: &[usize], gated: bool, processors: usize) -> Tile {
    let time = |tile: &&Tile| tile.blocks(rows, outs, gated).div_ceil(processors.max(1)) * tile.cycles();
    let fits = TILES.iter().filter(|tile| !gated || tile.gates());
    *fits.min_by_key(time).unwrap_or(&TILES[2])
}

/// Columns of su that a block computes: whole fragments, all of them where the largest rank is at most 64.
fn u_cols(largest: usize) -> usize {
    largest.next_multiple_of(16).min(K_TILE)
}

/// The branch of a part on the device.
struct Branch {
    a: Arc<Buf>,
    b: Arc<Buf>,
    su: Buf,
    scale: f32,
}

impl Cuda {
    /// su of every branch, in one launch.
    fn branches(&self, x: &Buf, parts: &[Part<'_, Self>]) -> Vec<Option<Branch>> {
        let branch = |part: &Part<'_, Self>| {
            let term = part.lora.as_ref()?;
            assert!(term.dropout.is_none(), "dropout belongs to training, which this back end has not");
            Some(Branch {
                a: self.factor(term.params, term.a, term.rank, x.cols()),
                b: self.factor(term.params, term.b, part.weight.rows(), term.rank),
                su: self.buffer(x.rows(), term.rank, Element::Bf16),
                scale: term.scale,
            })
        };
        let branches: Vec<Option<Branch>> = parts.iter().map(branch).collect();
        let of: Vec<&Branch> = branches.iter().flatten().collect();
        if let Some(largest) = of.iter().map(|branch| branch.su.cols()).max() {
            let cols = u_cols(largest);
            let constants = [
                ("K", x.cols() as i64),
                ("PARTS", of.len() as i64),
                ("U_COLS", cols as i64),
                ("U_STAGES", U_STAGES as i64),
            ];
            let kernel = self.kernel("lora_linear.cu", "lora_u", &constants);
            let down = |branch: &&Branch| {
                Arg::from(Struct::new(&[
                    (&*branch.a).into(),
                    (&branch.su).into(),
                    (branch.su.cols() as i32).into(),
                    branch.scale.into(),
                ]))
            };
            let downs = Struct::new(&of.iter().map(down).collect::<Vec<_>>());
            let grid = [x.rows().div_ceil(U_ROWS), largest.div_ceil(cols), of.len()].map(|n| n as u32);
            let shared = (U_STAGES * (U_ROWS + cols) * ROW) as u32;
            let args = [x.into(), downs.into(), (x.rows() as i32).into()];
            self.launch(&kernel, grid, [U_THREADS, 1, 1], shared, &args);
        }
        branches
    }

    /// The products, with y in `element`; one y where `gated`.
    fn products(
        &self,
        x: &Buf,
        parts: &[Part<'_, Self>],
        branches: &[Option<Branch>],
        element: Element,
        gated: bool,
    ) -> Vec<Buf> {
        let outs: Vec<usize> = parts.iter().map(|part| part.weight.rows()).collect();
        let count = if gated { 1 } else { parts.len() };
        let y: Vec<Buf> = outs[..count].iter().map(|&outs| self.buffer(x.rows(), outs, element)).collect();
        let tile = tile(x.rows(), &outs, gated, self.architecture().processors as usize);
        let constants = [
            ("K", x.cols() as i64),
            ("PARTS", parts.len() as i64),
            ("TILE_ROWS", tile.rows as i64),
            ("TILE_COLS", tile.cols as i64),
            ("WARPS_M", tile.warps_m as i64),
            ("WARPS_N", tile.warps_n as i64),
            ("STAGES", tile.stages as i64),
            ("WIDE", i64::from(element == Element::F32)),
            ("GATED", i64::from(gated)),
        ];
        let kernel = self.kernel("lora_linear.cu", "lora_linear", &constants);
        let mut first = 0;
        let part = |(index, (part, branch)): (usize, (&Part<'_, Self>, &Option<Branch>))| {
            assert_eq!(part.weight.cols(), x.cols(), "inputs of a projection");
            let (b, su, rank) = match branch {
                Some(branch) => ((&*branch.b).into(), (&branch.su).into(), branch.su.cols()),
                None => (Arg::null(), Arg::null(), 0),
            };
            let numbers = [part.weight.rows(), rank, first].map(|number| Arg::from(number as i32));
            first += tile.column_tiles(&outs[index..=index], false);
            let pointers = [part.weight.buf().into(), b, su, y.get(index).map_or(Arg::null(), Arg::from)];
            Arg::from(Struct::new(&[&pointers[..], &numbers].concat()))
        };
        let of = Struct::new(&parts.iter().zip(branches).enumerate().map(part).collect::<Vec<_>>());
        let grid = [x.rows().div_ceil(tile.rows) as u32, tile.column_tiles(&outs, gated) as u32, 1];
        let args = [x.into(), of.into(), (x.rows() as i32).into()];
        self.launch(&kernel, grid, [tile.threads(), 1, 1], tile.shared(), &args);
        y
    }

    /// gelu(gate)·up of one block of both products.
    pub(in crate::ops) fn gated_products(&self, x: &Buf, parts: &[Part<'_, Self>; 2]) -> Buf {
        let x = self.in_bf16(x);
        let branches = self.branches(&x, parts);
        let mut y = self.products(&x, parts, &branches, Element::Bf16, true);
        y.swap_remove(0)
    }
}

impl LoraLinear for Cuda {
    fn lora_linear(&self, x: &Buf, parts: &[Part<'_, Self>], store: Store) -> LinearOutput<Buf> {
        let x = self.in_bf16(x);
        let branches = self.branches(&x, parts);
        let element = if store == Store::Full { Element::F32 } else { Element::Bf16 };
        let y = self.products(&x, parts, &branches, element, false);
        LinearOutput { y, su: branches.into_iter().map(|branch| branch.map(|branch| branch.su)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: usize = 132;

    #[test]
    fn tiles_fill_the_processors_at_one_group_and_at_eight() {
        let area = |tile: Tile| tile.rows * tile.cols;
        // One group: smaller tiles than eight groups.
        assert_eq!(area(tile(400, &[2560], false, H100)), 64 * 64);
        assert_eq!(area(tile(3200, &[2560], false, H100)), 128 * 128);
        assert_eq!(tile(1, &[2560], false, H100).rows, 16);
        assert!(tile(1, &[10_240; 2], true, H100).gates());
    }

    #[test]
    fn shared_memory_of_a_tile_is_what_a_block_may_have() {
        for tile in TILES {
            assert!(tile.shared() <= 99 << 10, "{tile:?}");
            assert!(tile.threads() >= 128 && tile.threads().is_multiple_of(128), "{tile:?}");
        }
    }
}
