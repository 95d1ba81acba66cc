//! Promises of the operations, checked case by case (`ops/*/cases.rs`): the CPU agrees with the f64 reference, gives the
//! same bits on every instruction set and number of threads, gradients are those of the forward, and a row's result does
//! not depend on what else is in the batch.

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
    Backend, TrainDevice, adamw, answer_head, answer_head::AnswerHead, answer_head::HeadColumns, attention, embed, geglu,
    lora_linear, norm, qk_norm_rope,
};
use unflip::weights::Dtype;

const F64: Reference = Reference { precision: Precision::F32 };
const BF16: Reference = Reference { precision: Precision::Bf16 };

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
    // Rounding to 8 bits is 2⁻⁹ of a value; a softmax's scores up to 8 turn it into up to 8·2⁻⁹·… of a probability.
    check_bf16(norm::cases::cases(), 0.01);
    check_bf16(qk_norm_rope::cases::cases(), 0.02);
    check_bf16(geglu::cases::cases(), 0.01);
    check_bf16(lora_linear::cases::cases(), 0.02);
    check_bf16(attention::cases::cases(), 0.06);
    check_bf16(answer_head::cases::cases(), 0.01);
}
