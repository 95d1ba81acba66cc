//! A benchmark counts only if what it timed is right: everything that a case computes is held against the f64 reference
//! first, within the case's own bound.

use crate::ops::case::{Case, Values};
use crate::ops::reference::{Precision, Reference};
use crate::ops::{Pass, TrainDevice};

/// What a pass of a case computes, on the host, each with its name.
pub type Computed = Vec<(String, Vec<f64>)>;

/// Inputs and seeded output gradients of a case on a device.
pub fn operands<D: TrainDevice, C: Case>(device: &D, case: &C) -> (Vec<D::Buf>, Vec<D::Buf>) {
    let inputs: Vec<D::Buf> =
        case.inputs().iter().map(|input| device.upload(input.rows, input.cols, &input.values)).collect();
    let mut values = Values::new(&case.name());
    let mut d_outputs = Vec::new();
    for output in case.training_forward(device, &inputs).iter().filter(|output| output.differentiable) {
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
            let outputs = case.training_forward(device, inputs);
            outputs.iter().map(|output| (output.name.to_owned(), device.download(&output.buf))).collect()
        }
        Pass::Backward => {
            let names = case.inputs().into_iter().map(|input| format!("d{}", input.name));
            let gradients = names.zip(case.backward(device, inputs, d_outputs));
            gradients.filter_map(|(name, gradient)| Some((name, device.download(&gradient?)))).collect()
        }
    }
}

/// What the reference computes.
pub struct Expected {
    /// Without any rounding.
    pub exact: Computed,
    /// Rounded to bf16 where a bf16 unit rounds, if that was asked for.
    rounded: Option<Computed>,
}

/// Values of a bf16 unit that may be beyond an f32 device's bound: two orders of a sum may round to neighbouring bf16 values, but few do,
/// and a unit that rounded elsewhere would differ almost everywhere.
const NEIGHBOURS: f64 = 0.01;

impl Expected {
    /// A pass of a case, with `bf16` in that precision as well.
    pub fn new<C: Case>(case: &C, pass: Pass, bf16: bool) -> Self {
        let of = |precision| {
            let reference = Reference::new(precision);
            compute(&reference, case, pass, &operands(&reference, case))
        };
        Self { exact: of(Precision::F32), rounded: bf16.then(|| of(Precision::Bf16)) }
    }

    /// The largest error as a share of what is allowed: in f32 the case's bound, in bf16 twice what rounding costs the reference and a
    /// unit in the last of eight places of the largest value.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn verify<C: Case>(&self, case: &C, found: &Computed, precision: Precision) -> Result<f64, String> {
        let Some(rounded) = self.rounded.as_ref().filter(|_| precision == Precision::Bf16) else {
            return verify(case, found, &self.exact);
        };
        check_shapes(found, rounded)?;
        let mut share = 0.0_f64;
        for (((name, found), (_, rounded)), (_, exact)) in found.iter().zip(rounded).zip(&self.exact) {
            let scale = largest(exact).max(case.cancelling());
            let cost = rounded.iter().zip(exact).fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
            let allowed = 2.0 * cost + scale / 256.0;
            share = share.max(within(name, found, exact, allowed)?);
            let bound = case.bound() * scale;
            let beyond = found.iter().zip(rounded).filter(|(a, b)| (*a - *b).abs() > bound).count();
            if beyond as f64 > NEIGHBOURS * found.len() as f64 {
                return Err(format!("{name}: {beyond} of {} values are not those of bf16 rounding", found.len()));
            }
        }
        Ok(share)
    }
}

/// The largest error as a share of what the case allows.
///
/// # Errors
/// A value beyond its bound, or another number of values: says which, where and by how much.
pub fn verify<C: Case>(case: &C, found: &Computed, expected: &Computed) -> Result<f64, String> {
    check_shapes(found, expected)?;
    let mut worst = 0.0_f64;
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        worst = worst.max(within(name, found, expected, case.bound() * largest(expected).max(case.cancelling()))?);
    }
    Ok(worst)
}

fn check_shapes(found: &Computed, expected: &Computed) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} results instead of {}", found.len(), expected.len()));
    }
    let wrong = found.iter().zip(expected).find(|((_, found), (_, expected))| found.len() != expected.len());
    wrong.map_or(Ok(()), |((name, found), (_, expected))| {
        Err(format!("{name}: {} values instead of {}", found.len(), expected.len()))
    })
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()))
}

/// The largest error as a share of `allowed`, or which value is further off.
fn within(name: &str, found: &[f64], expected: &[f64], allowed: f64) -> Result<f64, String> {
    let mut worst = 0.0_f64;
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        if error.is_nan() || error > allowed {
            return Err(format!("{name}[{index}] is {found}, expected {expected} ± {allowed:e}"));
        }
        if allowed > 0.0 {
            worst = worst.max(error / allowed);
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Unit;
    use crate::cpu::{Cpu, Isa};
    use crate::ops::geglu;

    #[test]
    fn bf16_units_pass_in_bf16_and_fail_in_f32() {
        let case = &geglu::cases::cases()[3];
        let cpu = Cpu::with_unit(Unit::Bf16, Isa::best(), Some(2)).unwrap();
        let expected = Expected::new(case, Pass::Forward, true);
        let mut found = compute(&cpu, case, Pass::Forward, &operands(&cpu, case));
        assert!(expected.verify(case, &found, Precision::Bf16).unwrap() <= 1.0);
        assert!(expected.verify(case, &found, Precision::F32).is_err());
        // What was not rounded is off almost everywhere.
        found.clone_from(&expected.exact);
        assert!(expected.verify(case, &found, Precision::Bf16).unwrap_err().contains("not those of bf16"));
    }

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
