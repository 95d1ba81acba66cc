//! Running the cases of operations (`ops/*/cases.rs`) on any device, and the CPU devices of this machine.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::sync::LazyLock;
use unflip::cpu::{Cpu, Isa, Unit};
use unflip::ops::case::{Case, Input, Output, Values};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{Backend, Device, TrainDevice};

pub const F64: Reference = Reference::new(Precision::F32);
pub const BF16: Reference = Reference::new(Precision::Bf16);

/// A device for every instruction set of this machine at 1, 2, 3 and 7 threads.
pub static DEVICES: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    let skipped: Vec<&str> = Isa::ALL.into_iter().filter(|isa| !isa.is_available()).map(Isa::name).collect();
    if !skipped.is_empty() {
        eprintln!("skipped, because this CPU lacks them: {}", skipped.join(", "));
    }
    let all = Isa::available().into_iter().flat_map(|isa| [1, 2, 3, 7].map(|threads| (isa, threads)));
    all.map(|(isa, threads)| Cpu::new(isa, Some(threads)).unwrap()).collect()
});

/// bf16 devices: each unit of this machine at 1 and 3 threads, and emulations of the dot-product units.
pub static BF16_DEVICES: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for threads in [1, 3] {
        all.extend(Isa::available().into_iter().map(|isa| Cpu::with_unit(Unit::Bf16, isa, Some(threads)).unwrap()));
    }
    for unit in [Unit::Avx512Bf16, Unit::Amx] {
        for threads in [1, 3] {
            all.push(Cpu::emulating(unit, Some(threads)).unwrap());
            if unit.is_available() {
                all.push(Cpu::with_unit(unit, Isa::best(), Some(threads)).unwrap());
            }
        }
        if !unit.is_available() {
            eprintln!("skipped: {unit}, which this CPU lacks; its emulation is tested");
        }
    }
    all
});

/// All of them.
pub fn every_device() -> impl Iterator<Item = &'static Cpu> {
    DEVICES.iter().chain(BF16_DEVICES.iter())
}

/// A named matrix on the host.
pub struct Values64 {
    pub name: String,
    pub values: Vec<f64>,
}

pub fn upload<D: Backend>(device: &D, inputs: &[Input]) -> Vec<D::Buf> {
    inputs.iter().map(|input| device.upload(input.rows, input.cols, &input.values)).collect()
}

/// Gradients of the differentiable outputs: seeded, on the inputs' grid.
pub fn d_outputs<D: TrainDevice, C: Case>(device: &D, case: &C, inputs: &[D::Buf]) -> Vec<D::Buf> {
    let outputs = case.training_forward(device, inputs);
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

/// What a case computes forward.
pub fn forward_results<D: Device, C: Case>(device: &D, case: &C) -> Vec<Values64> {
    let outputs = case.forward(device, &upload(device, &case.inputs()));
    let values = |output: &Output<D::Buf>| Values64 { name: output.name.into(), values: device.download(&output.buf) };
    outputs.iter().map(values).collect()
}

/// Everything that a case computes, forward and backward.
pub fn results<D: TrainDevice, C: Case>(device: &D, case: &C) -> Vec<Values64> {
    let given = case.inputs();
    let inputs = upload(device, &given);
    let outputs = case.training_forward(device, &inputs);
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

pub fn bits(results: &[Values64]) -> Vec<Vec<u64>> {
    results.iter().map(|result| result.values.iter().map(|value| value.to_bits()).collect()).collect()
}

pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}
