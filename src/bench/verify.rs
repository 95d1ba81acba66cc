//! A benchmark counts only if what it timed is right: everything that a case computes is held against the f64 reference
//! first, within the case's own bound.

use crate::ops::case::{Case, Values};
use crate::ops::{Pass, TrainDevice};

/// What a pass of a case computes, on the host, each with its name.
pub type Computed = Vec<(String, Vec<f64>)>;

/// Inputs and seeded output gradients of a case on a device.
pub fn operands<D: TrainDevice, C: Case>(device: &D, case: &C) -> (Vec<D::Buf>, Vec<D::Buf>) {
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

/// What a pass computes of these operands.
pub fn compute<D: TrainDevice, C: Case>(
    device: &D,
    case: &C,
    pass: Pass,
    (inputs, d_outputs): &(Vec<D::Buf>, Vec<D::Buf>),
) -> Computed {
    match pass {
        Pass::Forward => {
            let outputs = case.forward(device, inputs);
            outputs.iter().map(|output| (output.name.to_owned(), device.download(&output.buf))).collect()
        }
        Pass::Backward => {
            let names = case.inputs().into_iter().map(|input| format!("d{}", input.name));
            let gradients = names.zip(case.backward(device, inputs, d_outputs));
            gradients.filter_map(|(name, gradient)| Some((name, device.download(&gradient?)))).collect()
        }
    }
}

/// The largest error as a share of what the case allows.
///
/// # Errors
/// A value beyond its bound, or another number of values: says which, where and by how much.
pub fn verify<C: Case>(case: &C, found: &Computed, expected: &Computed) -> Result<f64, String> {
    if found.len() != expected.len() {
        return Err(format!("{} results instead of {}", found.len(), expected.len()));
    }
    let mut worst = 0.0_f64;
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        if found.len() != expected.len() {
            return Err(format!("{name}: {} values instead of {}", found.len(), expected.len()));
        }
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let allowed = case.bound() * largest.max(case.cancelling());
        for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let error = (found - expected).abs();
            if error.is_nan() || error > allowed {
                return Err(format!("{name}[{index}] is {found}, expected {expected} ± {allowed:e}"));
            }
            if allowed > 0.0 {
                worst = worst.max(error / allowed);
            }
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, Isa};
    use crate::ops::geglu;
    use crate::ops::reference::{Precision, Reference};

    #[test]
    fn right_results_pass_and_wrong_ones_are_named() {
        let reference = Reference::new(Precision::F32);
        let cpu = Cpu::new(Isa::best(), Some(2)).unwrap();
        let case = &geglu::cases::cases()[2];
        for pass in Pass::ALL {
            let expected = compute(&reference, case, pass, &operands(&reference, case));
            let mut found = compute(&cpu, case, pass, &operands(&cpu, case));
            let share = verify(case, &found, &expected).unwrap();
            assert!((0.0..=1.0).contains(&share));
            found[0].1[7] += 1e-3;
            let told = verify(case, &found, &expected).unwrap_err();
            assert!(told.contains("[7]"), "{told}");
            found[0].1[7] = f64::NAN;
            assert!(verify(case, &found, &expected).is_err());
            found.pop();
            assert!(verify(case, &found, &expected).is_err());
        }
    }
}
