//! Other libraries on the cases that they can compute: plain products. Their weights are f32 and ready, the engine's are bf16 as
//! stored; both give results in f32.

use super::Patience;
use super::measure::{Times, measure};
use super::verify::{Computed, operands, verify};
use crate::cpu::{Cpu, rival};
use crate::ops::case::Case;
use crate::ops::{Backend, Pass};
use std::hint::black_box;

/// Verifies and times the `gemm` crate on a case; `None` where it is more than a product.
pub fn time<C: Case>(
    cpu: &Cpu,
    case: &C,
    pass: Pass,
    expected: &Computed,
    patience: &Patience,
    flush: &mut dyn FnMut(),
) -> Option<(Result<f64, String>, Option<Times>)> {
    let (rows, inputs, weight) = case.plain_product()?;
    let outputs = weight.shape[0];
    let weight = weight.to_f32();
    let (given, d_outputs) = operands(cpu, case);
    let host = |buf| cpu.download(buf).into_iter().map(|value| value as f32).collect::<Vec<f32>>();
    let (left, n, k, name) = match pass {
        Pass::Forward => (host(&given[0]), outputs, inputs, "y"),
        Pass::Backward => (host(d_outputs.first()?), inputs, outputs, "dx"),
    };
    let transposed = pass == Pass::Forward;
    let mut c = vec![0.0_f32; rows * n];
    cpu.install(|| rival::product(rows, n, k, &left, &weight, transposed, &mut c));
    let found = vec![(name.to_owned(), c.iter().map(|&value| f64::from(value)).collect())];
    let expected: Computed = expected.iter().filter(|(known, _)| known == name).cloned().collect();
    let verification = verify(case, &found, &expected);
    let times = verification.is_ok().then(|| {
        measure(patience, flush, &mut || {
            cpu.install(|| rival::product(rows, n, k, &left, &weight, transposed, black_box(&mut c)));
        })
    });
    Some((verification, times))
}
