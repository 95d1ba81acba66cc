//! Promises of the operations, checked case by case (`ops/*/cases.rs`): the CPU agrees with the f64 reference, gives the
//! same bits on every instruction set and number of threads, gradients are those of the forward, and a row's result does
//! not depend on what else is in the batch.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use unflip::cpu::{Cpu, Isa};
use unflip::ops::attention::cases::{AttentionCase, Queries, TreeShape, plan};
use unflip::ops::attention::{Attention, AttentionBackward, AttentionShape};
use unflip::ops::case::{Case, Input, Values, input, weight};
use unflip::ops::lora_linear::cases::GAP;
use unflip::ops::lora_linear::{Dropout, LoraLinear, LoraLinearBackward, LoraTerm, Part};
use unflip::ops::norm::{Norm, NormBackward};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{
    Backend, TrainDevice, adamw, answer_head, answer_head::AnswerHead, answer_head::HeadColumns, attention, embed,
    geglu, lora_linear, norm, qk_norm_rope,
};
use unflip::weights::Dtype;

const F64: Reference = Reference::new(Precision::F32);
const BF16: Reference = Reference::new(Precision::Bf16);

/// A device for every instruction set of this machine at 1, 2, 3 and 7 threads.
static DEVICES: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    let skipped: Vec<&str> = Isa::ALL.into_iter().filter(|isa| !isa.is_available()).map(Isa::name).collect();
    if !skipped.is_empty() {
        eprintln!("skipped, because this CPU lacks them: {}", skipped.join(", "));
    }
    let all = Isa::available().into_iter().flat_map(|isa| [1, 2, 3, 7].map(|threads| (isa, threads)));
    all.map(|(isa, threads)| Cpu::new(isa, Some(threads)).unwrap()).collect()
});

/// A named matrix on the host.
struct Values64 {
    name: String,
    values: Vec<f64>,
}

fn upload<D: Backend>(device: &D, inputs: &[Input]) -> Vec<D::Buf> {
    inputs.iter().map(|input| device.upload(input.rows, input.cols, &input.values)).collect()
}

/// Gradients of the differentiable outputs: seeded, on the inputs' grid.
fn d_outputs<D: TrainDevice, C: Case>(device: &D, case: &C, inputs: &[D::Buf]) -> Vec<D::Buf> {
    let outputs = case.forward(device, inputs);
    let mut values = Values::new(&format!("{}/d_outputs", case.name()));
    outputs
        .iter()
        .filter(|output| output.differentiable)
        .map(|output| {
            let (rows, cols) = device.shape(&output.buf);
            let values: Vec<f32> = (0..rows * cols).map(|_| values.next(1.0)).collect();
            device.upload(rows, cols, &values)
        })
        .collect()
}

/// Everything that a case computes, forward and backward.
fn results<D: TrainDevice, C: Case>(device: &D, case: &C) -> Vec<Values64> {
    let given = case.inputs();
    let inputs = upload(device, &given);
    let outputs = case.forward(device, &inputs);
    let mut all: Vec<Values64> = outputs
        .iter()
        .map(|output| Values64 { name: output.name.into(), values: device.download(&output.buf) })
        .collect();
    let gradients = case.backward(device, &inputs, &d_outputs(device, case, &inputs));
    for (gradient, input) in gradients.iter().zip(&given) {
        if let Some(gradient) = gradient {
            assert_eq!(device.shape(gradient), (input.rows, input.cols), "{}: d{}", case.name(), input.name);
            all.push(Values64 { name: format!("d{}", input.name), values: device.download(gradient) });
        }
    }
    all
}

fn bits(results: &[Values64]) -> Vec<Vec<u64>> {
    results.iter().map(|result| result.values.iter().map(|value| value.to_bits()).collect()).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The CPU against the reference, within the case's bound of the largest value; all devices give the same bits.
fn check_forward_and_backward<C: Case>(cases: Vec<C>) {
    assert!(!cases.is_empty());
    for case in cases {
        let expected = results(&F64, &case);
        let mut first: Option<Vec<Vec<u64>>> = None;
        for device in DEVICES.iter() {
            let found = results(device, &case);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.values.len(), expected.values.len());
                let allowed = case.bound() * largest(&expected.values).max(case.cancelling());
                for (i, (a, b)) in found.values.iter().zip(&expected.values).enumerate() {
                    let (case, device, threads) = (case.name(), device.describe(), device.threads());
                    assert!(
                        (a - b).abs() <= allowed,
                        "{case}: {}[{i}] is {a}, expected {b} ± {allowed:e} ({device}, {threads} threads)",
                        found.name,
                    );
                }
            }
            let found = bits(&found);
            match &first {
                None => first = Some(found),
                Some(first) => {
                    assert!(*first == found, "{}: other bits on {} {}", case.name(), device.isa(), device.threads());
                }
            }
        }
    }
}

/// The reference's backward against central differences of its forward along random directions of ±1 steps; Richardson's
/// extrapolation leaves an error of the fourth order in a step of 2⁻⁸.
fn check_gradients<C: Case>(cases: Vec<C>) {
    let mut checked = 0;
    for case in cases.into_iter().filter(Case::checks_gradient) {
        let given = case.inputs();
        let buffers = upload(&F64, &given);
        let d_outputs = d_outputs(&F64, &case, &buffers);
        let gradients = case.backward(&F64, &buffers, &d_outputs);
        let loss = |which: usize, direction: &[f32], step: f32| -> f64 {
            let mut moved = given.clone();
            for (value, direction) in moved[which].values.iter_mut().zip(direction) {
                let exact = f64::from(*value) + f64::from(direction * step);
                *value += direction * step;
                assert_eq!(f64::from(*value), exact, "the step is exact in f32");
            }
            let outputs = case.forward(&F64, &upload(&F64, &moved));
            let weighed = outputs.iter().filter(|output| output.differentiable).zip(&d_outputs);
            weighed.map(|(y, dy)| y.buf.data.iter().zip(&dy.data).map(|(y, dy)| y * dy).sum::<f64>()).sum()
        };
        for (which, gradient) in gradients.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let norm = gradient.data.iter().map(|g| g * g).sum::<f64>().sqrt();
            for trial in 0..3 {
                let mut values = Values::new(&format!("{}/{which}/{trial}", case.name()));
                let direction: Vec<f32> = gradient.data.iter().map(|_| values.sign()).collect();
                let slope = |step: f32| {
                    let difference = loss(which, &direction, step) - loss(which, &direction, -step);
                    difference / (2.0 * f64::from(step))
                };
                let step = given[which].scale / 256.0;
                let numeric = (4.0 * slope(step / 2.0) - slope(step)) / 3.0;
                let analytic: f64 = gradient.data.iter().zip(&direction).map(|(g, d)| g * f64::from(*d)).sum();
                assert!(
                    (numeric - analytic).abs() <= 1e-6 * norm,
                    "{}: d{} along direction {trial}: {analytic}, difference {numeric}, norm {norm}",
                    case.name(),
                    given[which].name,
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 0);
}

/// bf16 in the reference: near f64, but not equal to it, and finite.
fn check_bf16<C: Case>(cases: Vec<C>, share: f64) {
    for case in cases {
        for (rounded, exact) in results(&BF16, &case).iter().zip(results(&F64, &case)) {
            let allowed = share * largest(&exact.values);
            for (a, b) in rounded.values.iter().zip(&exact.values) {
                assert!((a - b).abs() <= allowed, "{}: {} {a} for {b} ± {allowed}", case.name(), rounded.name);
            }
        }
    }
}

#[test]
fn embed_agrees_with_the_reference() {
    check_forward_and_backward(embed::cases::cases());
}

#[test]
fn norm_agrees_with_the_reference() {
    check_forward_and_backward(norm::cases::cases());
}

#[test]
fn qk_norm_rope_agrees_with_the_reference() {
    check_forward_and_backward(qk_norm_rope::cases::cases());
}

#[test]
fn geglu_agrees_with_the_reference() {
    check_forward_and_backward(geglu::cases::cases());
}

#[test]
fn lora_linear_agrees_with_the_reference() {
    check_forward_and_backward(lora_linear::cases::cases());
}

#[test]
fn attention_agrees_with_the_reference() {
    check_forward_and_backward(attention::cases::cases());
}

#[test]
fn answer_head_agrees_with_the_reference() {
    check_forward_and_backward(answer_head::cases::cases());
}

#[test]
fn adamw_agrees_with_the_reference() {
    check_forward_and_backward(adamw::cases::cases());
}

#[test]
fn gradients_are_those_of_the_forward() {
    check_gradients(norm::cases::cases());
    check_gradients(qk_norm_rope::cases::cases());
    check_gradients(geglu::cases::cases());
    check_gradients(lora_linear::cases::cases());
    check_gradients(attention::cases::cases());
    check_gradients(answer_head::cases::cases());
}

#[test]
fn bf16_stays_near_f64() {
    // One rounding is 2⁻⁹ of a value; sums of rounded terms stay below a few of them of the largest value, and a score up to
    // 8 turns its own into eight of a probability.
    check_bf16(norm::cases::cases(), 1.0 / 128.0);
    check_bf16(qk_norm_rope::cases::cases(), 1.0 / 64.0);
    check_bf16(geglu::cases::cases(), 1.0 / 128.0);
    check_bf16(lora_linear::cases::cases(), 1.0 / 64.0);
    check_bf16(attention::cases::cases(), 1.0 / 16.0);
    check_bf16(answer_head::cases::cases(), 1e-12);
}

#[test]
fn bf16_rounds_exactly_the_values_that_the_table_names() {
    /// Outputs that are bf16 values in every case.
    fn check<C: Case>(cases: Vec<C>, rounded: &[&str]) {
        let mut always: BTreeMap<String, bool> = BTreeMap::new();
        for result in cases.iter().flat_map(|case| results(&BF16, case)) {
            let all = result.values.iter().all(|&value| Precision::Bf16.round(value) == value);
            *always.entry(result.name).or_insert(true) &= all;
        }
        let found: Vec<&str> = always.iter().filter(|(_, all)| **all).map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, rounded);
    }
    check(norm::cases::cases(), &["norm"]);
    check(qk_norm_rope::cases::cases(), &["y"]);
    check(geglu::cases::cases(), &["y"]);
    check(lora_linear::cases::cases(), &["su"]);
    check(attention::cases::cases(), &["o"]);
    check(answer_head::cases::cases(), &[]);
}

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
        for device in DEVICES.iter() {
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
        for device in DEVICES.iter() {
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

#[test]
fn a_shared_prefix_gives_the_bits_of_separate_prompts() {
    let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 16, scale: 0.25 };
    let shared = TreeShape { prefix: 37, suffixes: vec![6, 20], image: None };
    for window in [None, Some(11)] {
        let case = AttentionCase { shape, trees: vec![shared.clone()], window, queries: Queries::All };
        let given = case.inputs();
        for device in DEVICES.iter() {
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
    for device in DEVICES.iter() {
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
            let linear = device.lora_linear(&n, &parts);
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
    for device in DEVICES.iter() {
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

/// Gradients of A and B are written, nothing around them is, whatever was there.
fn check_gradient_buffer<D: TrainDevice>(device: &D) {
    const SENTINEL: f32 = 777.0;
    for case in lora_linear::cases::cases() {
        let given = case.inputs();
        let inputs = upload(device, &given);
        let (offsets, length) = case.layout();
        let expected = case.backward(device, &inputs, &d_outputs(device, &case, &inputs));
        let expected = expected[1].as_ref().map(|grads| device.download(grads)).unwrap();
        let found = case.with_parts(device, &inputs[1], |parts| {
            let output = device.lora_linear(&inputs[0], parts);
            let d_outputs = d_outputs(device, &case, &inputs);
            let dy: Vec<&D::Buf> = d_outputs.iter().collect();
            let mut grads = device.upload(1, length, &vec![SENTINEL; length]);
            let none = device.lora_linear_backward(&dy, Some(&inputs[0]), &output.su, parts, Some(&mut grads), false);
            assert!(none.is_none(), "dx was not asked for");
            device.download(&grads)
        });
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // `expected` was written over zeros, and no gradient is exactly 0 (counted below).
            let outside = *expected == 0.0;
            assert_eq!(*found, if outside { f64::from(SENTINEL) } else { *expected }, "{}[{i}]", case.name());
        }
        let outside = expected.iter().filter(|&&value| value == 0.0).count();
        let adapted = offsets.iter().flatten().count();
        assert_eq!(outside, GAP * (2 * adapted + 1), "{}", case.name());
    }
}

#[test]
fn gradients_are_written_to_their_places_alone() {
    check_gradient_buffer(&F64);
    for device in DEVICES.iter() {
        check_gradient_buffer(device);
    }
}

#[test]
fn dropout_masks_the_adapter_alone() {
    // W = 0, A = B = 1 (rank 1): y is the sum of the kept x, twice 1/(1−p) where p = ½.
    let x = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
    let rows = [(2, 9)];
    let dropout = Dropout { p: 0.5, seed: 42, step: 1, layer: 0, module: 3, rows: &rows };
    let mut kept = [0.0; 6];
    dropout.each(0, 6, |column, keep| kept[column] = if keep { 2.0 * x[column] } else { 0.0 });
    let expected: f32 = kept.iter().sum();
    assert!(expected != 0.0 && kept.contains(&0.0), "the seed drops some and keeps some");
    let zeros = unflip::weights::TensorView::from_bytes("w", Dtype::Bf16, &[1, 6], &[0; 12]).unwrap();
    for device in DEVICES.iter() {
        let (w, params) = (device.weight(&zeros).unwrap(), device.upload(1, 7, &[1.0; 7]));
        let lora = LoraTerm { params: &params, a: 0, b: 6, rank: 1, scale: 1.0, dropout: Some(dropout) };
        let parts = [Part { weight: &w, lora: Some(lora) }];
        let x = device.upload(1, 6, &x);
        let output = device.lora_linear(&x, &parts);
        assert_eq!(device.download(&output.y[0]), [f64::from(expected)]);
        let dy = device.upload(1, 1, &[1.0]);
        let mut grads = device.zeros(1, 7);
        let dx = device.lora_linear_backward(&[&dy], Some(&x), &output.su, &parts, Some(&mut grads), true).unwrap();
        let factor = |kept: f32| if kept == 0.0 { 0.0 } else { 2.0 };
        assert_eq!(device.download(&dx), kept.map(factor));
        let grads = device.download(&grads);
        assert_eq!(grads[..6], kept.map(f64::from));
        assert_eq!(grads[6], f64::from(expected));
    }
}

fn check_backend<D: Backend>(device: &D) {
    let source = device.upload(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(device.shape(&source), (3, 2));
    let gathered = device.gather_rows(&source, &[2, 0, 2]);
    assert_eq!(device.download(&gathered), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
    let mut target = device.zeros(4, 2);
    assert_eq!(device.download(&target), [0.0; 8]);
    device.scatter_add_rows(&mut target, &source, &[3, 0, 1]);
    device.scatter_add_rows(&mut target, &device.gather_rows(&source, &[0]), &[3]);
    assert_eq!(device.download(&target), [3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 2.0, 4.0]);
    let copy = device.duplicate(&target);
    device.add_assign(&mut target, &copy);
    assert_eq!(device.download(&target), [6.0, 8.0, 10.0, 12.0, 0.0, 0.0, 4.0, 8.0]);
    assert_eq!(device.download(&copy)[0], 3.0, "a copy is its own");
    let long: Vec<f32> = (0..20_000).map(|i| i as f32).collect();
    let mut sum = device.upload(1, 20_000, &long);
    device.add_assign(&mut sum, &device.upload(1, 20_000, &long));
    assert!(device.download(&sum).iter().zip(&long).all(|(a, b)| *a == 2.0 * f64::from(*b)));
}

#[test]
fn buffers_move_rows_and_add() {
    check_backend(&F64);
    for device in DEVICES.iter() {
        check_backend(device);
    }
}

#[test]
fn weights_in_other_dtypes_are_refused_by_name() {
    let view = weight("refused", "layers.0.w", Dtype::F32, &[2, 2], 1.0);
    let half = unflip::weights::TensorView::from_bytes("layers.0.w", Dtype::F16, &[2, 2], &[0; 8]).unwrap();
    assert!(DEVICES[0].weight(&view).is_ok() && F64.weight(&view).is_ok());
    for message in [DEVICES[0].weight(&half).err().unwrap().to_string(), F64.weight(&half).err().unwrap().to_string()] {
        assert!(message.contains("layers.0.w") && message.contains("F16"), "{message}");
    }
}

#[test]
fn a_repeated_step_takes_no_more_memory() {
    let device = Cpu::new(Isa::best(), Some(1)).unwrap();
    let step = || {
        for case in attention::cases::cases().into_iter().take(4) {
            results(&device, &case);
        }
        for case in lora_linear::cases::cases().into_iter().take(8) {
            results(&device, &case);
        }
        device.buffers().idle_bytes()
    };
    let first = step();
    assert!(first > 0);
    assert_eq!(step(), first);
}
