//! Packing groups into trees: ids, positions, dropout keys and visible keys of every row.

use super::{Error, GroupName, KeySpans, PackedBatch, Phrasing, TokenGroup, Tree};
use std::ops::Range;

/// Id of the image soft token in every Gemma 3 tokenizer; text-only models have no embedding for it.
const GEMMA_IMAGE_TOKEN: u32 = 262_144;

/// What packing needs to know of the model and the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// Keys that a query of a sliding layer sees, itself included.
    pub sliding_window: usize,
    /// Id of the image soft token (vision-language models).
    pub image_token: Option<u32>,
    /// Ids below are known.
    pub vocab_size: usize,
    /// Longest prompt.
    pub max_positions: usize,
    /// Store a group's prefix once. Otherwise each phrasing is a tree of its own; results are equal up to rounding.
    pub share: bool,
    /// Ordinal, within the optimiser step, of the first group.
    pub first_ordinal: u32,
}

impl PackedBatch {
    /// Packs groups in their order. An image that a prefix's end cuts is moved into the suffixes first.
    ///
    /// # Errors
    /// An empty group or suffix, an id that the model does not have, an image in a text-only model, a prompt longer than the
    /// model's positions.
    pub fn pack(groups: &[TokenGroup], options: &PackOptions) -> Result<Self, Error> {
        if options.sliding_window == 0 {
            return Err(Error::EmptyWindow);
        }
        let mut batch = Self {
            cached: 0,
            ids: Vec::new(),
            positions: Vec::new(),
            trees: Vec::new(),
            phrasings: Vec::new(),
            groups: groups.len(),
            dropout_rows: Vec::new(),
            full_spans: Vec::new(),
            sliding_spans: Vec::new(),
        };
        for (index, group) in groups.iter().enumerate() {
            check(index, group, options)?;
            let group = group.clone().with_whole_images(options.image_token);
            let ordinal = options.first_ordinal.wrapping_add(index as u32);
            let shared = group.prefix.len();
            let prefix_rows = 0..shared;
            let mut suffix_rows = Vec::with_capacity(group.phrasings());
            let mut end = shared;
            for suffix in &group.suffixes {
                suffix_rows.push(end..end + suffix.len());
                end += suffix.len();
            }
            if options.share {
                batch.begin_tree(&group.prefix, ordinal, prefix_rows, options);
                for (k, suffix) in group.suffixes.iter().enumerate() {
                    batch.add_suffix((index, k), suffix, ordinal, suffix_rows[k].clone(), options);
                }
            } else {
                for (k, rows) in suffix_rows.into_iter().enumerate() {
                    batch.begin_tree(&[], ordinal, 0..0, options);
                    batch.add_suffix((index, k), &group.prompt(k), ordinal, prefix_rows.clone().chain(rows), options);
                }
            }
            if batch.ids.len() > u32::MAX as usize {
                return Err(Error::TooManyRows);
            }
        }
        Ok(batch)
    }

    /// The next tokens of a sequence whose first `cached` tokens were run before and whose keys and values are kept. Tokens must be
    /// the model's own, as generated ones are; images do not continue.
    pub fn continuation(cached: usize, ids: &[u32], sliding_window: usize) -> Self {
        let rows = cached..cached + ids.len();
        let spans = |window: Option<usize>| {
            let span = |position: usize| {
                let visible = visible(position, window, &(0..0));
                KeySpans {
                    lo0: visible.start.min(cached) as u32,
                    hi0: cached as u32,
                    lo1: visible.start.max(cached) as u32,
                    hi1: visible.end as u32,
                }
            };
            rows.clone().map(span).collect()
        };
        Self {
            cached,
            ids: ids.to_vec(),
            positions: rows.clone().map(|position| position as u32).collect(),
            trees: vec![Tree { prefix: 0..cached, suffixes: vec![rows.clone()] }],
            phrasings: vec![Phrasing { group: 0, index: 0, prefix: 0..cached, suffix: rows.clone() }],
            groups: 1,
            dropout_rows: rows.clone().map(|row| (0, row as u32)).collect(),
            full_spans: spans(None),
            sliding_spans: spans(Some(sliding_window)),
        }
    }

    /// Whether [`Self::pack`] would take these groups, without packing them.
    ///
    /// # Errors
    /// As [`Self::pack`].
    pub fn check(groups: &[TokenGroup], options: &PackOptions) -> Result<(), Error> {
        groups.iter().enumerate().try_for_each(|(index, group)| check(index, group, options))
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Packed row of each phrasing's answer position (its last token), in the order of `phrasings`.
    pub fn answer_rows(&self) -> Vec<u32> {
        self.phrasings.iter().map(|phrasing| (phrasing.suffix.end - 1 - self.cached) as u32).collect()
    }

    /// Packed rows of a phrasing, token by token: its prefix, then its suffix.
    pub fn rows_of(&self, phrasing: &Phrasing) -> Vec<u32> {
        phrasing.prefix.clone().chain(phrasing.suffix.clone()).map(|row| row as u32).collect()
    }

    fn begin_tree(
        &mut self,
        prefix: &[u32],
        ordinal: u32,
        dropout_rows: impl Iterator<Item = usize>,
        options: &PackOptions,
    ) {
        let start = self.rows();
        let rows = start..start + prefix.len();
        self.push_rows(prefix, 0, ordinal, dropout_rows);
        for (t, block) in image_blocks(prefix, options.image_token).into_iter().enumerate() {
            let spans = |window: Option<usize>| {
                let visible = visible(t, window, &block);
                let (lo, hi) = (start + visible.start, start + visible.end);
                KeySpans { lo0: lo as u32, hi0: hi as u32, lo1: rows.end as u32, hi1: rows.end as u32 }
            };
            self.full_spans.push(spans(None));
            self.sliding_spans.push(spans(Some(options.sliding_window)));
        }
        self.trees.push(Tree { prefix: rows, suffixes: Vec::new() });
    }

    /// Adds a suffix to the last tree.
    fn add_suffix(
        &mut self,
        (group, index): (usize, usize),
        suffix: &[u32],
        ordinal: u32,
        dropout_rows: impl Iterator<Item = usize>,
        options: &PackOptions,
    ) {
        let prefix = self.trees.last().expect("a tree was begun").prefix.clone();
        let (shared, start) = (prefix.len(), self.rows());
        let rows = start..start + suffix.len();
        self.push_rows(suffix, shared, ordinal, dropout_rows);
        for (t, block) in image_blocks(suffix, options.image_token).into_iter().enumerate() {
            let block = shared + block.start..shared + block.end;
            let spans = |window: Option<usize>| {
                let visible = visible(shared + t, window, &block);
                KeySpans {
                    lo0: (prefix.start + visible.start.min(shared)) as u32,
                    hi0: prefix.end as u32,
                    lo1: (start + visible.start.saturating_sub(shared)) as u32,
                    hi1: (start + visible.end - shared) as u32,
                }
            };
            self.full_spans.push(spans(None));
            self.sliding_spans.push(spans(Some(options.sliding_window)));
        }
        self.trees.last_mut().expect("a tree was begun").suffixes.push(rows.clone());
        self.phrasings.push(Phrasing { group, index, prefix, suffix: rows });
    }

    fn push_rows(
        &mut self,
        ids: &[u32],
        first_position: usize,
        ordinal: u32,
        dropout_rows: impl Iterator<Item = usize>,
    ) {
        self.ids.extend_from_slice(ids);
        self.positions.extend((first_position..first_position + ids.len()).map(|position| position as u32));
        self.dropout_rows.extend(dropout_rows.map(|row| (ordinal, row as u32)));
    }
}

/// Keys that the query at position `query` of its prompt sees, as positions of the prompt.
///
/// transformers 4.57: (key ≤ query and key > query − window) or both in one image block; without window on full layers. The first
/// part is the interval [max(0, query + 1 − window), query + 1), which holds the query. A block that holds the query is an interval that
/// shares that point, so the union is again one interval, from the lower start to the higher end. A block is never cut by the
/// prefix's end: for a prefix row the interval therefore ends within the prefix, and for a suffix row it ends in the suffix behind
/// the query; what reaches below the suffix's start is a tail of the prefix. So each row has at most two key intervals, one of its
/// prefix and one of its suffix.
fn visible(query: usize, window: Option<usize>, block: &Range<usize>) -> Range<usize> {
    let start = window.map_or(0, |window| (query + 1).saturating_sub(window));
    if block.is_empty() {
        return start..query + 1;
    }
    start.min(block.start)..(query + 1).max(block.end)
}

/// Per token the image block (maximal run of image tokens) that holds it; empty for other tokens.
fn image_blocks(ids: &[u32], image_token: Option<u32>) -> Vec<Range<usize>> {
    let mut blocks = vec![0..0; ids.len()];
    let mut start = 0;
    while start < ids.len() {
        let length = ids[start..].iter().take_while(|&&id| Some(id) == image_token).count();
        blocks[start..start + length].fill(start..start + length);
        start += length.max(1);
    }
    blocks
}

fn check(index: usize, group: &TokenGroup, options: &PackOptions) -> Result<(), Error> {
    let name = || GroupName::Index(index);
    if group.suffixes.is_empty() {
        return Err(Error::EmptyGroup { group: name() });
    }
    for (phrasing, suffix) in group.suffixes.iter().enumerate() {
        if suffix.is_empty() {
            return Err(Error::EmptySuffix { group: name(), phrasing });
        }
        let tokens = group.prefix.len() + suffix.len();
        if tokens > options.max_positions {
            return Err(Error::TooLong { group: name(), phrasing, tokens, max_positions: options.max_positions });
        }
        let prompt = group.prefix.iter().chain(suffix).copied();
        if let Some((position, id)) = prompt.enumerate().find(|&(_, id)| id as usize >= options.vocab_size) {
            return Err(if id == GEMMA_IMAGE_TOKEN && options.image_token.is_none() {
                Error::ImageInTextModel { group: name(), phrasing, position, id }
            } else {
                Error::UnknownToken { group: name(), phrasing, position, id, vocab_size: options.vocab_size }
            });
        }
    }
    Ok(())
}
