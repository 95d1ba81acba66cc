//! attention on CUDA: `kernels/attention_forward.cu`. Here the rows are cut into tiles, and each tile gets the list of key blocks that one
//! of its rows sees: hidden ones are not loaded.

use super::{Attention, AttentionOutput, AttentionShape};
use crate::batch::{AttentionPlan, KeySpans};
use crate::cuda::{Buf, Cuda, Element};
use std::ops::Range;

/// Keys of a block: one bit of a word each.
const KEYS: usize = 32;

/// How rows are laid over a block of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Warps, each with 16 rows over the whole of head_dim.
    pub warps: usize,
    /// Query heads of a kv head that are served together, so that K and V are read once for them.
    pub heads: usize,
    /// Key blocks in shared memory at once.
    pub stages: usize,
}

/// As many heads together as share a kv head and divide the rows. Two warps where head_dim is above 128, because a row's output and query fill
/// 192 registers of a thread there and few rows are asked for; four else. Two stages fit twice into an A100's shared memory at head_dim 256.
pub fn tile(shape: &AttentionShape) -> Tile {
    let group = shape.heads / shape.kv_heads.max(1);
    let heads = [8, 4, 2, 1].into_iter().find(|heads| group.is_multiple_of(*heads)).unwrap_or(1);
    if shape.head_dim > 128 { Tile { warps: 2, heads, stages: 2 } } else { Tile { warps: 4, heads, stages: 3 } }
}

impl Tile {
    /// Query rows of a tile.
    pub fn queries(&self) -> usize {
        16 * self.warps / self.heads
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(&self, head_dim: usize) -> u32 {
        let row = head_dim.next_multiple_of(16) * 2 + 16;
        (self.stages * 2 * KEYS * row) as u32
    }
}

/// What the kernel is told of a batch: `tiles` (first query, queries, first block, blocks of the prefix, blocks) and `blocks` (first key row, rows).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Work {
    tiles: Vec<u32>,
    blocks: Vec<u32>,
}

impl Work {
    /// Tiles of at most `most` consecutive queries of one tree.
    fn new(plan: &AttentionPlan, most: usize) -> Self {
        let mut work = Self::default();
        let mut segments = &plan.segments[..];
        while let Some(first) = segments.first() {
            let count = segments.iter().take_while(|segment| segment.tree == first.tree).count();
            let (of_tree, rest) = segments.split_at(count);
            segments = rest;
            let rows = first.queries.start..of_tree[count - 1].queries.end;
            for start in rows.clone().step_by(most) {
                let tile = start..(start + most).min(rows.end);
                let at = work.blocks.len() / 2;
                let of = |intervals: &dyn Fn(&KeySpans) -> Range<u32>, queries: &Range<usize>| -> Vec<Range<u32>> {
                    plan.spans[queries.clone()].iter().map(intervals).collect()
                };
                work.seen(&first.prefix, &of(&|span| span.lo0..span.hi0, &tile));
                let prefix = work.blocks.len() / 2 - at;
                for segment in of_tree {
                    let own = tile.start.max(segment.queries.start)..tile.end.min(segment.queries.end);
                    if !own.is_empty() && !segment.suffix.is_empty() {
                        work.seen(&segment.suffix, &of(&|span| span.lo1..span.hi1, &own));
                    }
                }
                let blocks = work.blocks.len() / 2 - at;
                work.tiles.extend([tile.start, tile.len(), at, prefix, blocks].map(|number| number as u32));
            }
        }
        work
    }

    /// Blocks of these keys, anchored at the first, that one of the intervals meets.
    fn seen(&mut self, keys: &Range<usize>, intervals: &[Range<u32>]) {
        for start in keys.clone().step_by(KEYS) {
            let end = (start + KEYS).min(keys.end);
            let meets = |interval: &Range<u32>| {
                !interval.is_empty() && (interval.start as usize) < end && interval.end as usize > start
            };
            if intervals.iter().any(meets) {
                self.blocks.extend([start as u32, (end - start) as u32]);
            }
        }
    }
}

impl Attention for Cuda {
    fn attention(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &Buf,
        k: &Buf,
        v: &Buf,
    ) -> AttentionOutput<Buf> {
        let AttentionShape { heads, kv_heads, head_dim, scale } = *shape;
        let (q, k, v) = (self.in_bf16(q), self.in_bf16(k), self.in_bf16(v));
        let o = self.buffer(q.rows(), q.cols(), Element::Bf16);
        let softmax = self.buffer(q.rows(), 2 * heads, Element::F32);
        let tile = tile(shape);
        let work = Work::new(plan, tile.queries());
        let constants = [
            ("HEAD_DIM", head_dim as i64),
            ("HEADS", heads as i64),
            ("KV_HEADS", kv_heads as i64),
            ("HEADS_PER_BLOCK", tile.heads as i64),
            ("WARPS", tile.warps as i64),
            ("STAGES", tile.stages as i64),
        ];
        let kernel = self.kernel("attention_forward.cu", "attention_forward", &constants);
        let spans: Vec<u32> = plan.spans.iter().flat_map(|span| [span.lo0, span.hi0, span.lo1, span.hi1]).collect();
        let (spans, tiles, blocks) = (self.words(&spans), self.words(&work.tiles), self.words(&work.blocks));
        let args = [
            (&*q).into(),
            (&*k).into(),
            (&*v).into(),
            (&o).into(),
            (&softmax).into(),
            (&spans).into(),
            (&tiles).into(),
            (&blocks).into(),
            scale.into(),
        ];
        let grid = [(work.tiles.len() / 5) as u32, (heads / tile.heads) as u32, 1];
        self.launch(&kernel, grid, [32 * tile.warps as u32, 1, 1], tile.shared(head_dim), &args);
        AttentionOutput { o, softmax }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::cases::{Queries, TreeShape, plan};

    #[test]
    fn key_blocks_that_no_row_sees_are_left_out() {
        let tree = TreeShape { prefix: 100, suffixes: vec![40, 3], image: None };
        let full = Work::new(&plan(std::slice::from_ref(&tree), None, Queries::Answers), 16);
        // Both answers in one tile: all of the prefix, then each suffix.
        assert_eq!(full.tiles, [0, 2, 0, 4, 7]);
        assert_eq!(full.blocks, [0, 32, 32, 32, 64, 32, 96, 4, 100, 32, 132, 8, 140, 3]);
        let window = Work::new(&plan(&[tree], Some(10), Queries::Answers), 16);
        // Position 139 sees suffix keys 30 to 39; position 102 the prefix from 93 on and its suffix.
        assert_eq!(window.tiles, [0, 2, 0, 2, 5]);
        assert_eq!(window.blocks, [64, 32, 96, 4, 100, 32, 132, 8, 140, 3]);
    }

    #[test]
    fn shared_memory_of_a_tile_is_what_a_block_may_have() {
        for head_dim in [8, 12, 64, 128, 256] {
            for (heads, kv_heads) in [(4, 1), (8, 4), (3, 3), (16, 8)] {
                let tile = tile(&AttentionShape { heads, kv_heads, head_dim, scale: 1.0 });
                assert!(tile.shared(head_dim) <= 99 << 10, "{tile:?} at head_dim {head_dim}");
                assert!(tile.queries() >= 1 && (heads / kv_heads).is_multiple_of(tile.heads));
            }
        }
    }
}
