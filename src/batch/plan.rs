//! What attention needs to know of a batch: segments of queries, their keys, the keys' trees.

use super::{AttentionPlan, KeySpans, PackedBatch, QuerySegment};
use crate::weights::LayerKind;
use std::ops::Range;

impl AttentionPlan {
    /// (query, key) pairs that see each other.
    pub fn visible_pairs(&self) -> usize {
        self.spans.iter().map(|s| (s.hi0 - s.lo0 + s.hi1 - s.lo1) as usize).sum()
    }
}

impl PackedBatch {
    /// Visible keys of every row on layers of a kind.
    pub fn spans(&self, kind: LayerKind) -> &[KeySpans] {
        match kind {
            LayerKind::Full => &self.full_spans,
            LayerKind::Sliding => &self.sliding_spans,
        }
    }

    /// All rows as queries: a segment for each prefix that has rows and for each suffix.
    pub fn attention_plan(&self, kind: LayerKind) -> AttentionPlan {
        let mut segments = Vec::new();
        for (index, tree) in self.trees.iter().enumerate() {
            let prefix = tree.prefix.clone();
            // A cached prefix has keys but no queries.
            if !prefix.is_empty() && self.cached == 0 {
                let none = prefix.end..prefix.end;
                segments.push(QuerySegment {
                    queries: prefix.clone(),
                    prefix: prefix.clone(),
                    suffix: none,
                    tree: index,
                });
            }
            segments.extend(tree.suffixes.iter().map(|suffix| QuerySegment {
                queries: suffix.start - self.cached..suffix.end - self.cached,
                prefix: prefix.clone(),
                suffix: suffix.clone(),
                tree: index,
            }));
        }
        AttentionPlan { segments, spans: self.spans(kind).to_vec(), key_rows: self.key_rows(), trees: self.tree_rows() }
    }

    /// The answer rows alone as queries, in the order of `phrasings`: a segment of one query for each.
    pub fn answer_plan(&self, kind: LayerKind) -> AttentionPlan {
        let spans = self.spans(kind);
        let suffixes = self.trees.iter().enumerate().flat_map(|(index, tree)| {
            tree.suffixes.iter().map(move |suffix| (index, tree.prefix.clone(), suffix.clone()))
        });
        let segments = suffixes
            .enumerate()
            .map(|(query, (tree, prefix, suffix))| QuerySegment { queries: query..query + 1, prefix, suffix, tree })
            .collect();
        AttentionPlan {
            segments,
            spans: self.answer_rows().into_iter().map(|row| spans[row as usize]).collect(),
            key_rows: self.key_rows(),
            trees: self.tree_rows(),
        }
    }

    /// Cached and packed rows.
    fn key_rows(&self) -> usize {
        self.cached + self.rows()
    }

    /// Key rows of each tree.
    fn tree_rows(&self) -> Vec<Range<usize>> {
        let end = |index: usize| self.trees.get(index + 1).map_or(self.key_rows(), |next| next.prefix.start);
        self.trees.iter().enumerate().map(|(index, tree)| tree.prefix.start..end(index)).collect()
    }
}
