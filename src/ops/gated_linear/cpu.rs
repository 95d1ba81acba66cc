//! gated_linear on the CPU: both products of a block, then the gate, while the block is in the cache.

use super::{GatedLinear, GatedOutput, Kept};
use crate::cpu::gemm::Segment;
use crate::cpu::gemm::gated::gated;
use crate::cpu::{Cpu, CpuBuf};
use crate::ops::geglu::cpu::gate;
use crate::ops::lora_linear::Part;

impl GatedLinear for Cpu {
    fn gated_linear(&self, x: &CpuBuf, parts: &[Part<'_, Self>; 2], keep: bool) -> GatedOutput<CpuBuf> {
        self.install(|| {
            let (rows, n) = (x.rows(), parts[0].weight.rows());
            let su: Vec<Option<CpuBuf>> = parts.iter().map(|part| self.branch(x, part)).collect();
            let of = |index: usize| self.segments(x, &parts[index], su[index].as_ref());
            let (first, second) = (of(0), of(1));
            let segments: [&[Segment<'_>]; 2] = [&first, &second];
            let mut act = self.stale(rows, n);
            let mut kept = keep.then(|| [self.stale(rows, n), self.stale(rows, n)]);
            let targets = kept.as_mut().map(|kept| kept.each_mut().map(CpuBuf::values_mut));
            let apply = |one: &[f32], two: &[f32], y: &mut [f32]| gate(self.isa(), self.rounds(), one, two, y);
            gated(self.multiplier(), (rows, n), segments, act.values_mut(), targets, self.buffers(), &apply);
            drop((first, second));
            GatedOutput { act, kept: kept.map(|[gate, up]| Kept { gate, up, su }) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, Unit};
    use crate::ops::Backend;
    use crate::ops::case::Case;
    use crate::ops::gated_linear::cases::cases;
    use crate::ops::geglu::Geglu;
    use crate::ops::lora_linear::{LoraLinear, Store};

    /// The fused operation and the two it is made of, on the same device.
    fn check(device: &Cpu) {
        for case in cases() {
            let inputs: Vec<CpuBuf> =
                case.inputs().iter().map(|input| device.upload(input.rows, input.cols, &input.values)).collect();
            case.with_parts(device, &inputs, |x, parts| {
                let plain = device.lora_linear(x, parts, Store::Full);
                let act = device.geglu(&plain.y[0], &plain.y[1]);
                for keep in [false, true] {
                    let fused = device.gated_linear(x, parts, keep);
                    let what = format!("{} keep={keep} on {}", case.name(), device.describe());
                    assert!(fused.act.values() == act.values(), "act of {what}");
                    assert_eq!(fused.kept.is_some(), keep);
                    if let Some(kept) = fused.kept {
                        assert!(kept.gate.values() == plain.y[0].values(), "gate of {what}");
                        assert!(kept.up.values() == plain.y[1].values(), "up of {what}");
                    }
                }
            });
        }
    }

    #[test]
    fn bits_are_those_of_the_products_and_the_gate_apart() {
        for isa in Isa::available() {
            for threads in [1, 3] {
                check(&Cpu::new(isa, Some(threads)).unwrap());
            }
        }
        check(&Cpu::with_unit(Unit::Bf16, Isa::best(), Some(2)).unwrap());
        for unit in [Unit::Avx512Bf16, Unit::Amx] {
            check(&Cpu::emulating(unit, Some(2)).unwrap());
        }
    }
}
