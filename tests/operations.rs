//! Promises of the operations, checked case by case (`ops/*/cases.rs`): the CPU agrees with the f64 reference, gives the
//! same bits on every instruction set and number of threads, and gradients are those of the forward.

#[path = "support/cases.rs"]
mod cases;

use cases::{BF16, DEVICES, F64, bits, d_outputs, every_device, largest, results, upload};
use std::collections::BTreeMap;
use unflip::cpu::{Cpu, Isa};
use unflip::ops::case::{Case, Values, weight};
use unflip::ops::lora_linear::cases::GAP;
use unflip::ops::lora_linear::{Dropout, LoraLinear, LoraLinearBackward, LoraTerm, Part, Store};
use unflip::ops::reference::Precision;
use unflip::ops::{
    Backend, TrainDevice, adamw, answer_head, attention, embed, gated_linear, geglu, lora_linear, norm, qk_norm_rope,
    vocabulary,
};
use unflip::weights::Dtype;

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
            let outputs = case.training_forward(&F64, &upload(&F64, &moved));
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
fn gated_linear_agrees_with_the_reference() {
    check_forward_and_backward(gated_linear::cases::cases());
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
fn vocabulary_agrees_with_the_reference() {
    check_forward_and_backward(vocabulary::cases::cases());
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
    check_gradients(gated_linear::cases::cases());
    check_gradients(attention::cases::cases());
    check_gradients(answer_head::cases::cases());
    check_gradients(vocabulary::cases::cases());
}

#[test]
fn bf16_stays_near_f64() {
    // One rounding is 2⁻⁹ of a value; sums of rounded terms stay below a few of them of the largest value, and a score up to
    // 8 turns its own into eight of a probability.
    check_bf16(norm::cases::cases(), 1.0 / 128.0);
    check_bf16(qk_norm_rope::cases::cases(), 1.0 / 64.0);
    check_bf16(geglu::cases::cases(), 1.0 / 128.0);
    check_bf16(lora_linear::cases::cases(), 1.0 / 64.0);
    // The roundings of two projections meet in a product.
    check_bf16(gated_linear::cases::cases(), 1.0 / 32.0);
    check_bf16(attention::cases::cases(), 1.0 / 16.0);
    check_bf16(answer_head::cases::cases(), 1e-12);
    check_bf16(vocabulary::cases::cases(), 1e-12);
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
    check(gated_linear::cases::cases(), &["act", "su"]);
    check(attention::cases::cases(), &["o"]);
    check(answer_head::cases::cases(), &[]);
    check(vocabulary::cases::cases(), &[]);
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
            let output = device.lora_linear(&inputs[0], parts, Store::Full);
            let d_outputs = d_outputs(device, &case, &inputs);
            let dy: Vec<&D::Buf> = d_outputs.iter().collect();
            let mut grads = device.upload(1, length, &vec![SENTINEL; length]);
            let none = device.lora_linear_backward(&dy, Some(&inputs[0]), &output.su, parts, Some(&mut grads), false);
            assert!(none.is_none(), "dx was not asked for");
            device.download(&grads)
        });
        let starts: Vec<usize> = offsets.iter().flatten().flat_map(|&(a, b)| [a, b]).chain([length]).collect();
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let outside = starts.iter().any(|&start| (start - GAP..start).contains(&i));
            assert_eq!(*found, if outside { f64::from(SENTINEL) } else { *expected }, "{}[{i}]", case.name());
        }
    }
}

#[test]
fn gradients_are_written_to_their_places_alone() {
    check_gradient_buffer(&F64);
    for device in every_device() {
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
    for device in every_device() {
        let (w, params) = (device.weight(&zeros).unwrap(), device.upload(1, 7, &[1.0; 7]));
        let lora = LoraTerm { params: &params, a: 0, b: 6, rank: 1, scale: 1.0, dropout: Some(dropout) };
        let parts = [Part { weight: &w, lora: Some(lora) }];
        let x = device.upload(1, 6, &x);
        let output = device.lora_linear(&x, &parts, Store::Full);
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
    for device in every_device() {
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
