//! A result does not depend on what else is computed with it: rows, trees, vocabulary ids, on every unit of this CPU and
//! on emulated ones.

#[path = "support/cases.rs"]
mod cases;

use cases::{BF16_DEVICES, DEVICES, every_device, upload};
use unflip::cpu::Cpu;
use unflip::ops::attention::cases::{AttentionCase, Queries, TreeShape, plan};
use unflip::ops::attention::{Attention, AttentionBackward, AttentionShape};
use unflip::ops::case::{Case, Input, input, weight};
use unflip::ops::lora_linear::{LoraLinear, LoraLinearBackward, LoraTerm, Part, Store};
use unflip::ops::norm::{Norm, NormBackward};
use unflip::ops::{Backend, answer_head::AnswerHead, answer_head::HeadColumns};
use unflip::weights::Dtype;

/// Bits of some rows.
fn row_bits(device: &Cpu, buf: &<Cpu as Backend>::Buf, rows: std::ops::Range<usize>) -> Vec<u64> {
    let cols = device.shape(buf).1;
    device.download(buf)[rows.start * cols..rows.end * cols].iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_tree_alone_gives_the_bits_it_gives_among_others() {
    let tree = |prefix, suffixes: &[usize], image| TreeShape { prefix, suffixes: suffixes.to_vec(), image };
    let trees = vec![tree(67, &[5, 9], None), tree(0, &[70], Some(3..40)), tree(21, &[3, 1, 30], Some(2..19))];
    for (window, queries) in [(None, Queries::All), (Some(7), Queries::All), (Some(7), Queries::Answers)] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 20, scale: 0.25 };
        let together = AttentionCase { shape, trees: trees.clone(), window, queries };
        let (plan_together, given) = (together.plan(), together.inputs());
        let d_o = input("invariance", "d_o", plan_together.spans.len(), 80, 1.0);
        for device in every_device() {
            let upload_rows = |input: &Input, rows: std::ops::Range<usize>| {
                let values = &input.values[rows.start * input.cols..rows.end * input.cols];
                device.upload(rows.len(), input.cols, values)
            };
            let run = |case: &AttentionCase, queries: std::ops::Range<usize>, keys: std::ops::Range<usize>| {
                let (q, d_o) = (upload_rows(&given[0], queries.clone()), upload_rows(&d_o, queries));
                let (k, v) = (upload_rows(&given[1], keys.clone()), upload_rows(&given[2], keys));
                let plan = case.plan();
                let output = device.attention(&shape, &plan, &q, &k, &v);
                let gradients = device.attention_backward(&shape, &plan, &q, &k, &v, &output, &d_o);
                (output, gradients)
            };
            let (all, d_all) = run(&together, 0..plan_together.spans.len(), 0..plan_together.key_rows);
            let mut first_query = 0;
            for (index, keys) in plan_together.trees.iter().enumerate() {
                let alone = together.alone(index);
                let queries = first_query..first_query + alone.plan().spans.len();
                first_query = queries.end;
                let (one, d_one) = run(&alone, queries.clone(), keys.clone());
                let own = 0..queries.len();
                for (name, mine, among, rows, at) in [
                    ("o", &one.o, &all.o, &own, &queries),
                    ("softmax", &one.softmax, &all.softmax, &own, &queries),
                    ("dq", &d_one.dq, &d_all.dq, &own, &queries),
                    ("dk", &d_one.dk, &d_all.dk, &(0..keys.len()), keys),
                    ("dv", &d_one.dv, &d_all.dv, &(0..keys.len()), keys),
                ] {
                    let (mine, among) = (row_bits(device, mine, rows.clone()), row_bits(device, among, at.clone()));
                    assert_eq!(mine, among, "{name} of tree {index}, window {window:?}, {queries:?}");
                }
            }
        }
    }
}

#[test]
fn an_answer_row_asked_alone_gives_the_bits_it_gives_among_all_rows() {
    let trees = vec![TreeShape { prefix: 75, suffixes: vec![5, 66, 1], image: Some(4..30) }];
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 32, scale: 0.125 };
    for window in [None, Some(9)] {
        let all = AttentionCase { shape, trees: trees.clone(), window, queries: Queries::All };
        let given = all.inputs();
        for device in every_device() {
            let inputs = upload(device, &given);
            let full = device.attention(&shape, &all.plan(), &inputs[0], &inputs[1], &inputs[2]);
            let answers = plan(&trees, window, Queries::Answers);
            let rows = [79, 145, 146];
            let q = device.gather_rows(&inputs[0], &rows);
            let short = device.attention(&shape, &answers, &q, &inputs[1], &inputs[2]);
            for (full, short) in [(&full.o, &short.o), (&full.softmax, &short.softmax)] {
                let expected = device.gather_rows(full, &rows);
                assert_eq!(row_bits(device, &expected, 0..3), row_bits(device, short, 0..3));
            }
        }
    }
}

/// Not on dot-product units: they sum several keys at once, counted from where a prefix or a suffix begins.
#[test]
fn a_shared_prefix_gives_the_bits_of_separate_prompts() {
    let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 16, scale: 0.25 };
    let shared = TreeShape { prefix: 37, suffixes: vec![6, 20], image: None };
    for window in [None, Some(11)] {
        let case = AttentionCase { shape, trees: vec![shared.clone()], window, queries: Queries::All };
        let given = case.inputs();
        let chains = BF16_DEVICES.iter().filter(|device| device.unit() == "cpu bf16");
        for device in DEVICES.iter().chain(chains) {
            let inputs = upload(device, &given);
            let tree = device.attention(&shape, &case.plan(), &inputs[0], &inputs[1], &inputs[2]);
            for (start, length) in [(37, 6), (43, 20)] {
                let rows: Vec<u32> = (0..37).chain(start..start + length).collect();
                let [q, k, v] = [0, 1, 2].map(|i| device.gather_rows(&inputs[i], &rows));
                let prompt = TreeShape { prefix: 0, suffixes: vec![rows.len()], image: None };
                let alone = device.attention(&shape, &plan(&[prompt], window, Queries::All), &q, &k, &v);
                let expected = device.gather_rows(&tree.o, &rows);
                assert_eq!(row_bits(device, &alone.o, 0..rows.len()), row_bits(device, &expected, 0..rows.len()));
            }
        }
    }
}

#[test]
fn a_row_alone_gives_the_bits_it_gives_among_others() {
    let (rows, inputs, outputs, rank) = (37, 49, 45, 5);
    let x = input("rows", "x", rows, inputs, 1.0);
    let dy = input("rows", "dy", rows, outputs, 1.0);
    let params = input("rows", "params", 1, rank * (inputs + outputs), 0.125);
    let [w, norm] = [("w", vec![outputs, inputs]), ("norm", vec![inputs])]
        .map(|(name, shape)| weight("rows", name, Dtype::Bf16, &shape, 0.125));
    for device in every_device() {
        let (w, norm) = (device.weight(&w).unwrap(), device.weight(&norm).unwrap());
        let params = device.upload(1, params.cols, &params.values);
        let run = |x: &Input, dy: &Input, rows: std::ops::Range<usize>| {
            let part = |input: &Input| {
                device.upload(rows.len(), input.cols, &input.values[rows.start * input.cols..rows.end * input.cols])
            };
            let (x, dy) = (part(x), part(dy));
            let lora = LoraTerm { params: &params, a: 0, b: rank * inputs, rank, scale: 2.0, dropout: None };
            let parts = [Part { weight: &w, lora: Some(lora) }];
            let n = device.norm(&x, &norm, 1e-6);
            let linear = device.lora_linear(&n, &parts, Store::Full);
            let dn = device.lora_linear_backward(&[&dy], None, &linear.su, &parts, None, true).unwrap();
            let dx = device.norm_backward(&dn, &x, &norm, 1e-6);
            let logits = device.answer_head(&x, &norm, 1e-6, &w, HeadColumns::Full);
            [linear.y.into_iter().next().unwrap(), dx, logits]
        };
        let all = run(&x, &dy, 0..rows);
        for part in [0..1, 5..6, 3..20, 31..rows] {
            for (alone, all) in run(&x, &dy, part.clone()).iter().zip(&all) {
                assert_eq!(row_bits(device, alone, 0..part.len()), row_bits(device, all, part.clone()));
            }
        }
    }
}

#[test]
fn chosen_ids_give_the_bits_of_the_whole_vocabulary() {
    let h = input("ids", "h", 3, 77, 4.0);
    let (w, head) = (weight("ids", "w", Dtype::Bf16, &[77], 1.0), weight("ids", "head", Dtype::Bf16, &[90, 77], 0.125));
    for device in every_device() {
        let (w, head) = (device.weight(&w).unwrap(), device.weight(&head).unwrap());
        let h = device.upload(3, 77, &h.values);
        let full = device.download(&device.answer_head(&h, &w, 1e-6, &head, HeadColumns::Full));
        let some = device.download(&device.answer_head(&h, &w, 1e-6, &head, HeadColumns::Ids(&[89, 0, 33])));
        for row in 0..3 {
            for (column, id) in [89, 0, 33].into_iter().enumerate() {
                assert_eq!(some[row * 3 + column].to_bits(), full[row * 90 + id].to_bits());
            }
        }
    }
}
