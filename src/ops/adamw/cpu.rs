//! adamw on the CPU: f32 elements with f64 scalars folded to f32 first, in the order of torch's `_single_tensor_adamw`.

use super::{AdamW, AdamWStep};
use crate::cpu::device::GRAIN;
use crate::cpu::lanes::{Kernel, dispatch};
use crate::cpu::{Cpu, CpuBuf};
use rayon::prelude::*;

#[derive(Clone, Copy)]
struct Scalars {
    gradient_scale: f32,
    keep: f32,
    weight1: f32,
    beta2: f32,
    weight2: f32,
    /// √(1−β₂ᵗ)
    root2: f32,
    eps: f32,
    /// lr/(1−β₁ᵗ)
    step_size: f32,
}

struct Update<'a> {
    scalars: Scalars,
    params: &'a mut [f32],
    grads: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let s = self.scalars;
        for (((p, g), m), v) in self.params.iter_mut().zip(self.grads).zip(self.m).zip(self.v) {
            let g = s.gradient_scale * g;
            *p *= s.keep;
            *m += s.weight1 * (g - *m);
            *v = *v * s.beta2 + s.weight2 * g * g;
            let denominator = v.sqrt() / s.root2 + s.eps;
            *p -= s.step_size * (*m / denominator);
        }
    }
}

struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f64;

    /// Eight f64 lanes, combined in a fixed tree.
    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = [0.0_f64; 8];
        for chunk in self.0.chunks(8) {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                let value = f64::from(value);
                *lane = value.mul_add(value, *lane);
            }
        }
        let mut half = 4;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

impl AdamW for Cpu {
    fn adamw(&self, params: &mut CpuBuf, grads: &CpuBuf, m: &mut CpuBuf, v: &mut CpuBuf, step: &AdamWStep) {
        let exponent = step.step.min(i32::MAX as u64) as i32;
        let scalars = Scalars {
            gradient_scale: step.gradient_scale as f32,
            keep: (1.0 - step.lr * step.weight_decay) as f32,
            weight1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            weight2: (1.0 - step.beta2) as f32,
            root2: (1.0 - step.beta2.powi(exponent)).sqrt() as f32,
            eps: step.eps as f32,
            step_size: (step.lr / (1.0 - step.beta1.powi(exponent))) as f32,
        };
        let moments = m.values_mut().par_chunks_mut(GRAIN).zip(v.values_mut().par_chunks_mut(GRAIN));
        let pieces = params.values_mut().par_chunks_mut(GRAIN).zip(grads.values().par_chunks(GRAIN)).zip(moments);
        self.install(|| {
            pieces.for_each(|((params, grads), (m, v))| {
                dispatch(self.isa(), Update { scalars, params, grads, m, v });
            });
        });
    }

    fn sum_of_squares(&self, buf: &CpuBuf) -> f64 {
        let pieces = buf.values().par_chunks(GRAIN);
        let sums: Vec<f64> = self.install(|| pieces.map(|piece| dispatch(self.isa(), Squares(piece))).collect());
        sums.iter().sum()
    }
}
