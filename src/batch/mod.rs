//! The token tree: the prompts of a group share everything up to the first differing token, so a [`PackedBatch`]
//! stores that prefix once and each phrasing's suffix after it, several groups back to back, without padding.
//!
//! ```text
//! tree 0: [ prefix 0 ........ ][ suffix a ][ suffix b ]   tree 1: [ prefix 1 ...][ suffix a ]...
//! ```
//!
//! A row sees keys of its own prefix and its own suffix, nothing else; per layer kind that is two key intervals
//! ([`KeySpans`]) with window and image blocks folded in, so no kernel needs a mask matrix. The mask is that of transformers 4.57.

#![forbid(unsafe_code)]

mod error;
mod pack;
mod plan;
#[cfg(test)]
mod tests;

pub use crate::data::TokenGroup;
pub use error::{Error, GroupName};
pub use pack::PackOptions;

use std::ops::Range;

/// Keys visible to a row, as packed row indices: `[lo0, hi0)` within its prefix and `[lo1, hi1)` within its suffix.
/// For a prefix row the second interval is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpans {
    /// Start in the prefix.
    pub lo0: u32,
    /// End in the prefix.
    pub hi0: u32,
    /// Start in the own suffix.
    pub lo1: u32,
    /// End in the own suffix.
    pub hi1: u32,
}

/// Rows of one tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Rows of the shared prefix (may be empty: an unshared phrasing is a tree of an empty prefix and one suffix).
    pub prefix: Range<usize>,
    /// Rows of each suffix, none empty.
    pub suffixes: Vec<Range<usize>>,
}

/// One phrasing of one group and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrasing {
    /// Group of the batch.
    pub group: usize,
    /// Index in the group; 0 is the original.
    pub index: usize,
    /// Rows of its prefix.
    pub prefix: Range<usize>,
    /// Rows of its suffix; the last one is the answer position.
    pub suffix: Range<usize>,
}

/// Packed prompts. All vectors named `*_rows` or indexed "per row" have one entry per packed row. Ranges of trees, phrasings and spans
/// count key rows: the cached ones, then the packed ones.
#[derive(Clone, Debug)]
pub struct PackedBatch {
    /// Key rows that were run before and precede the packed ones; 0 unless the batch is a continuation.
    pub cached: usize,
    /// Token ids, per row.
    pub ids: Vec<u32>,
    /// Position within its prompt, per row.
    pub positions: Vec<u32>,
    /// Trees, in row order.
    pub trees: Vec<Tree>,
    /// Phrasings in order of group, then index.
    pub phrasings: Vec<Phrasing>,
    /// Groups in the batch.
    pub groups: usize,
    /// Key of a row's dropout mask: (group's ordinal in the step, row within the group's *shared* tree), per row. The same
    /// for shared and unshared packing of a group.
    pub dropout_rows: Vec<(u32, u32)>,
    /// Visible keys on full layers, per row.
    pub full_spans: Vec<KeySpans>,
    /// Visible keys on sliding layers, per row.
    pub sliding_spans: Vec<KeySpans>,
}

/// Rows of q that lie in one segment (a prefix or a suffix), with the keys that any of them may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuerySegment {
    /// Rows of the q and o buffers.
    pub queries: Range<usize>,
    /// Key rows of the prefix: all of it, whether or not the window hides some.
    pub prefix: Range<usize>,
    /// Key rows of the own suffix (empty for a prefix segment).
    pub suffix: Range<usize>,
    /// Index of the tree.
    pub tree: usize,
}

/// What attention needs to know of a batch for one layer kind. Queries are either all rows or the answer rows alone.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    /// Segments in ascending order of queries; segments of one tree are consecutive.
    pub segments: Vec<QuerySegment>,
    /// Visible keys, per row of q.
    pub spans: Vec<KeySpans>,
    /// Rows of k and v.
    pub key_rows: usize,
    /// Key rows (prefix and suffixes) of each tree, contiguous.
    pub trees: Vec<Range<usize>>,
}
