//! Time of every operation, forward and backward, on the fastest instruction set of this CPU, at those of the operations'
//! cases (`ops/*/cases.rs`) that have a width of Gemma 3. What is timed was checked against the reference just before.
//!
//! `cargo bench --bench operations -- [--quick] [FILTER]`. The cases are small (their rows suit tests): a time includes
//! what a case does around the operation, such as its rotary table or the forward that a backward asks for.
//! `projections` has the products at the rows of a training step.

use criterion::{Criterion, Throughput};
use std::hint::black_box;
use unflip::cpu::{Cpu, Isa};
use unflip::ops::case::{Case, Values};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{
    Backend, Pass, TrainDevice, adamw, answer_head, attention, embed, geglu, lora_linear, norm, qk_norm_rope,
};

/// Widths of Gemma 3 (270M, 1B, 4B) as the cases' names state them; AdamW's largest case stands for its many parameters.
const GEMMA: [&str; 9] =
    [" n=640", " n=2560", " n=2048", " n=10001", " in=640", " in=1152", " in=2560", ", 640]", "dim=256"];

/// Inputs and seeded output gradients of a case on a device.
fn operands<D: TrainDevice, C: Case>(device: &D, case: &C) -> (Vec<D::Buf>, Vec<D::Buf>) {
    let inputs: Vec<D::Buf> =
        case.inputs().iter().map(|input| device.upload(input.rows, input.cols, &input.values)).collect();
    let mut values = Values::new(&case.name());
    let mut d_outputs = Vec::new();
    for output in case.forward(device, &inputs).iter().filter(|output| output.differentiable) {
        let (rows, cols) = device.shape(&output.buf);
        let seed: Vec<f32> = (0..rows * cols).map(|_| values.next(1.0)).collect();
        d_outputs.push(device.upload(rows, cols, &seed));
    }
    (inputs, d_outputs)
}

/// Everything that a case computes.
fn results<D: TrainDevice, C: Case>(device: &D, case: &C) -> Vec<Vec<f64>> {
    let (inputs, d_outputs) = operands(device, case);
    let outputs = case.forward(device, &inputs).into_iter().map(|output| output.buf);
    let gradients = case.backward(device, &inputs, &d_outputs).into_iter().flatten();
    outputs.chain(gradients).map(|buf| device.download(&buf)).collect()
}

/// Panics unless the device is within the case's bound of the reference.
fn verify<C: Case>(device: &Cpu, case: &C) {
    let expected = results(&Reference::new(Precision::F32), case);
    let found = results(device, case);
    assert_eq!(found.len(), expected.len(), "{}", case.name());
    for (found, expected) in found.iter().zip(&expected) {
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let allowed = case.bound() * largest.max(case.cancelling());
        assert_eq!(found.len(), expected.len(), "{}", case.name());
        for (found, expected) in found.iter().zip(expected) {
            let right = (found - expected).abs() <= allowed;
            assert!(right, "{}: {found} instead of {expected} ± {allowed:e}", case.name());
        }
    }
}

/// The forward's throughput is in FLOP/s, where arithmetic is what bounds it.
fn bench<C: Case>(criterion: &mut Criterion, device: &Cpu, operation: &str, cases: Vec<C>) {
    let of_gemma = |case: &C| GEMMA.iter().any(|width| case.name().contains(width));
    let cases: Vec<C> = cases.into_iter().filter(of_gemma).collect();
    assert!(!cases.is_empty(), "no case of {operation} has a width of Gemma");
    let shape = |case: &C| {
        let name = case.name();
        name.strip_prefix(operation).unwrap_or(&name).trim().to_owned()
    };
    let mut group = criterion.benchmark_group(operation);
    for case in &cases {
        verify(device, case);
        let (inputs, _) = operands(device, case);
        let flops = case.cost(Pass::Forward).flops;
        if flops > 0.0 {
            group.throughput(Throughput::Elements(flops as u64));
        }
        group.bench_function(shape(case), |timer| timer.iter(|| black_box(case.forward(device, black_box(&inputs)))));
    }
    group.finish();
    let mut group = criterion.benchmark_group(format!("{operation} backward"));
    for case in &cases {
        let (inputs, d_outputs) = operands(device, case);
        if !d_outputs.is_empty() {
            group.bench_function(shape(case), |timer| {
                timer.iter(|| black_box(case.backward(device, black_box(&inputs), &d_outputs)));
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let device = Cpu::new(Isa::best(), None).expect("a device");
    eprintln!("{}, {} threads", device.describe(), device.threads());
    bench(&mut criterion, &device, "embed", embed::cases::cases());
    bench(&mut criterion, &device, "norm", norm::cases::cases());
    bench(&mut criterion, &device, "qk_norm_rope", qk_norm_rope::cases::cases());
    bench(&mut criterion, &device, "attention", attention::cases::cases());
    bench(&mut criterion, &device, "lora_linear", lora_linear::cases::cases());
    bench(&mut criterion, &device, "geglu", geglu::cases::cases());
    bench(&mut criterion, &device, "answer_head", answer_head::cases::cases());
    bench(&mut criterion, &device, "adamw", adamw::cases::cases());
    criterion.final_summary();
}
