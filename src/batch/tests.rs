//! Packing against masks written down independently, pair by pair, and against recorded ones.

use super::*;
use crate::data::TraceInput;
use crate::weights::LayerKind;
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::path::Path;

const IMAGE: u32 = 9;
const KINDS: [LayerKind; 2] = [LayerKind::Full, LayerKind::Sliding];

fn options(sliding_window: usize, share: bool) -> PackOptions {
    PackOptions {
        sliding_window,
        image_token: Some(IMAGE),
        vocab_size: 10,
        max_positions: 1000,
        share,
        first_ordinal: 5,
    }
}

fn keys(spans: KeySpans) -> BTreeSet<u32> {
    (spans.lo0..spans.hi0).chain(spans.lo1..spans.hi1).collect()
}

/// The mask of one prompt by itself, as transformers 4.57.3 words it.
fn allowed(prompt: &[u32], window: usize, kind: LayerKind, query: usize, key: usize) -> bool {
    let (low, high) = (query.min(key), query.max(key));
    let same_image = prompt[low..=high].iter().all(|&id| id == IMAGE);
    let near = kind == LayerKind::Full || key as i64 > query as i64 - window as i64;
    (key <= query && near) || same_image
}

/// Prompts of a group: runs of image tokens are frequent, prefixes may end inside one.
fn group() -> impl Strategy<Value = TokenGroup> {
    let token = prop_oneof![2 => 0u32..3, 1 => Just(IMAGE)];
    let piece = prop_oneof![
        3 => prop::collection::vec(token.clone(), 1..6),
        1 => (1usize..7).prop_map(|n| vec![IMAGE; n]),
    ];
    let text = |pieces: std::ops::Range<usize>| {
        prop::collection::vec(piece.clone(), pieces).prop_map(|pieces| pieces.concat())
    };
    (text(0..5), prop::collection::vec(text(1..4), 1..5)).prop_map(|(prefix, suffixes)| TokenGroup { prefix, suffixes })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_row_sees_what_it_would_see_in_its_prompt_alone(
        groups in prop::collection::vec(group(), 1..4),
        window in 1usize..9,
        share: bool,
    ) {
        let batch = PackedBatch::pack(&groups, &options(window, share)).unwrap();
        prop_assert_eq!(batch.groups, groups.len());
        prop_assert_eq!(batch.phrasings.len(), groups.iter().map(TokenGroup::phrasings).sum::<usize>());
        let mut seen = BTreeSet::new();
        for phrasing in &batch.phrasings {
            let prompt = groups[phrasing.group].prompt(phrasing.index);
            let rows = batch.rows_of(phrasing);
            let ids: Vec<u32> = rows.iter().map(|&row| batch.ids[row as usize]).collect();
            prop_assert_eq!(&ids, &prompt);
            for (query, &row) in rows.iter().enumerate() {
                prop_assert_eq!(batch.positions[row as usize] as usize, query);
                for kind in KINDS {
                    let expected: BTreeSet<u32> = rows
                        .iter()
                        .enumerate()
                        .filter(|&(key, _)| allowed(&prompt, window, kind, query, key))
                        .map(|(_, &row)| row)
                        .collect();
                    let spans = batch.spans(kind)[row as usize];
                    prop_assert_eq!(keys(spans), expected, "{:?} query {} of {:?}", kind, query, prompt);
                    prop_assert!(spans.lo0 <= spans.hi0 && spans.lo1 <= spans.hi1);
                    prop_assert!(phrasing.prefix.start <= spans.lo0 as usize && spans.hi0 as usize <= phrasing.prefix.end);
                    if phrasing.prefix.contains(&(row as usize)) {
                        prop_assert_eq!(spans.lo1, spans.hi1);
                    } else {
                        prop_assert!(phrasing.suffix.start <= spans.lo1 as usize && spans.hi1 as usize <= phrasing.suffix.end);
                    }
                }
            }
            seen.extend(rows);
        }
        prop_assert_eq!(seen.len(), batch.rows());
        for rows in [batch.positions.len(), batch.dropout_rows.len(), batch.full_spans.len(), batch.sliding_spans.len()] {
            prop_assert_eq!(rows, batch.rows());
        }
    }

    #[test]
    fn unshared_rows_have_the_dropout_keys_of_shared_ones(groups in prop::collection::vec(group(), 1..4)) {
        let shared = PackedBatch::pack(&groups, &options(4, true)).unwrap();
        let alone = PackedBatch::pack(&groups, &options(4, false)).unwrap();
        let keys = |batch: &PackedBatch, k: usize| -> Vec<(u32, u32)> {
            batch.rows_of(&batch.phrasings[k]).iter().map(|&row| batch.dropout_rows[row as usize]).collect()
        };
        for k in 0..shared.phrasings.len() {
            prop_assert_eq!(keys(&shared, k), keys(&alone, k));
        }
        let distinct: BTreeSet<_> = shared.dropout_rows.iter().collect();
        prop_assert_eq!(distinct.len(), shared.rows(), "every row of a step has a key of its own");
        for (index, tree) in shared.trees.iter().enumerate() {
            prop_assert_eq!(shared.dropout_rows[tree.suffixes[0].start], (5 + index as u32, tree.prefix.len() as u32));
        }
    }

    #[test]
    fn plans_cover_queries_in_order_with_their_trees(
        groups in prop::collection::vec(group(), 1..4),
        window in 1usize..9,
        share: bool,
    ) {
        let batch = PackedBatch::pack(&groups, &options(window, share)).unwrap();
        let answers = batch.answer_rows();
        for kind in KINDS {
            for (plan, rows) in [
                (batch.attention_plan(kind), (0..batch.rows() as u32).collect::<Vec<_>>()),
                (batch.answer_plan(kind), answers.clone()),
            ] {
                prop_assert_eq!(plan.key_rows, batch.rows());
                prop_assert_eq!(plan.spans.len(), rows.len());
                let (mut query, mut tree) = (0, 0);
                for segment in &plan.segments {
                    prop_assert_eq!(segment.queries.start, query, "no gap, no overlap");
                    prop_assert!(!segment.queries.is_empty() && segment.tree >= tree);
                    (query, tree) = (segment.queries.end, segment.tree);
                    let whole = &plan.trees[segment.tree];
                    prop_assert!(whole.start <= segment.prefix.start && segment.suffix.end <= whole.end);
                    for q in segment.queries.clone() {
                        prop_assert_eq!(plan.spans[q], batch.spans(kind)[rows[q] as usize]);
                        for key in keys(plan.spans[q]) {
                            let key = key as usize;
                            prop_assert!(segment.prefix.contains(&key) || segment.suffix.contains(&key));
                        }
                    }
                }
                prop_assert_eq!(query, rows.len());
                prop_assert_eq!(plan.trees.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..batch.rows()).collect::<Vec<_>>());
            }
        }
        for (phrasing, &row) in batch.phrasings.iter().zip(&answers) {
            prop_assert_eq!(batch.rows_of(phrasing).last().copied(), Some(row));
        }
    }
}

#[test]
fn packing_equals_the_recorded_trees_and_masks() {
    for name in ["text", "vlm", "wide/vlm"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let bytes = std::fs::read(folder.join("prefix_sharing.safetensors")).expect("golden file opens");
        let file = SafeTensors::deserialize(&bytes).expect("golden file parses");
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("model/config.json")).expect("config opens"))
                .expect("config parses");
        let text = config.get("text_config").unwrap_or(&config);
        let options = PackOptions {
            sliding_window: text["sliding_window"].as_u64().expect("a window") as usize,
            image_token: config.get("image_token_index").and_then(serde_json::Value::as_u64).map(|id| id as u32),
            vocab_size: 512,
            max_positions: 1000,
            share: true,
            first_ordinal: 0,
        };
        assert_eq!(options.image_token.is_some(), name != "text");
        let integers = |name: &str| -> Vec<u32> {
            let data = file.tensor(name).expect("tensor").data();
            data.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("eight bytes")) as u32).collect()
        };
        let groups = TraceInput::read(folder.join("groups.json")).expect("groups read").groups;
        for (index, group) in groups.iter().enumerate() {
            let batch = PackedBatch::pack(std::slice::from_ref(&group.tokens), &options).expect("packs");
            assert_eq!(batch.ids, integers(&format!("group{index}.input_ids")), "{name} group {index}: ids");
            assert_eq!(
                batch.positions,
                integers(&format!("group{index}.position_ids")),
                "{name} group {index}: positions"
            );
            assert_eq!(
                batch.answer_rows(),
                integers(&format!("group{index}.last_index")),
                "{name} group {index}: answers"
            );
            for (kind, mask) in [(LayerKind::Full, "mask_full"), (LayerKind::Sliding, "mask_local")] {
                let mask = file.tensor(&format!("group{index}.{mask}")).expect("mask").data();
                for (row, expected) in mask.chunks_exact(batch.rows()).enumerate() {
                    let expected: BTreeSet<u32> =
                        (0..).zip(expected).filter(|&(_, &on)| on != 0).map(|(key, _)| key).collect();
                    assert_eq!(keys(batch.spans(kind)[row]), expected, "{name} group {index} {kind:?} row {row}");
                }
            }
        }
    }
}

#[test]
fn an_image_wider_than_the_window_is_seen_whole() {
    let group = TokenGroup { prefix: vec![1, 9, 9, 9, 9, 2], suffixes: vec![vec![1, 9, 9, 9, 2], vec![3]] };
    let batch = PackedBatch::pack(&[group], &options(2, true)).unwrap();
    let sliding = |row: usize| keys(batch.sliding_spans[row]).into_iter().collect::<Vec<_>>();
    assert_eq!(sliding(1), [0, 1, 2, 3, 4], "first token of the image: the window and the whole image");
    assert_eq!(sliding(4), [1, 2, 3, 4], "last token of the image");
    assert_eq!(sliding(5), [4, 5], "text after it: the window alone");
    assert_eq!(sliding(6), [5, 6], "a suffix's window reaches into the prefix");
    assert_eq!(sliding(7), [6, 7, 8, 9], "an image in a suffix");
    assert_eq!(sliding(10), [9, 10], "text after it");
    assert_eq!(sliding(11), [5, 11], "the next suffix sees the prefix, not its neighbour");
}

#[test]
fn an_image_cut_by_the_prefix_is_put_together() {
    let cut = TokenGroup { prefix: vec![1, 9, 9], suffixes: vec![vec![9, 2], vec![3]] };
    let batch = PackedBatch::pack(&[cut], &options(4, true)).unwrap();
    assert_eq!(batch.trees, [Tree { prefix: 0..1, suffixes: vec![1..5, 5..8] }]);
    assert_eq!(batch.ids, [1, 9, 9, 9, 2, 9, 9, 3]);
}

#[test]
fn prompts_that_do_not_fit_the_model_are_refused() {
    let pack = |prefix: &[u32], suffixes: &[&[u32]], change: fn(&mut PackOptions)| {
        let mut options = options(4, true);
        change(&mut options);
        let good = TokenGroup { prefix: vec![1], suffixes: vec![vec![2]] };
        let bad = TokenGroup { prefix: prefix.to_vec(), suffixes: suffixes.iter().map(|s| s.to_vec()).collect() };
        PackedBatch::pack(&[good, bad], &options).unwrap_err()
    };
    for (error, message) in [
        (pack(&[1], &[], |_| ()), "group 1 has no phrasing"),
        (
            pack(&[1], &[&[1], &[]], |_| ()),
            "group 1, phrasing 1: expected at least one token after the shared prefix, found none",
        ),
        (
            pack(&[1, 2], &[&[1], &[3, 10]], |_| ()),
            "group 1, phrasing 1, token 3: id 10 is not in the model's vocabulary of 10",
        ),
        (pack(&[1, 2], &[&[1, 2]], |o| o.max_positions = 3), "group 1, phrasing 0: 4 tokens, and the model takes 3"),
        (
            pack(&[262_144], &[&[1]], |o| (o.vocab_size, o.image_token) = (262_144, None)),
            "group 1, phrasing 0, token 0: an image token (262144), and the model is text-only",
        ),
        (pack(&[1], &[&[1]], |o| o.sliding_window = 0), "the sliding window must be at least 1, found 0"),
    ] {
        assert_eq!(error.to_string(), message);
        assert!(error.hint().is_some());
    }
}
