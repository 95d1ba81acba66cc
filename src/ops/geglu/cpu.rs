//! geglu on the CPU. ½(1+tanh u) = σ(2u), so gelu(a) = a·σ(2u) needs one exponential; σ has no cancellation at either end.

use super::{Geglu, GegluBackward};
use crate::cpu::device::GRAIN;
use crate::cpu::lanes::{Kernel, LANES, dispatch, load, sigmoid, store};
use crate::cpu::rounding::round_all;
use crate::cpu::{Cpu, CpuBuf, Isa};
use rayon::prelude::*;

/// 2·√(2/π).
const TWICE_ROOT: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

/// σ(2u) of gelu(a) = a·σ(2u).
#[inline(always)]
fn gate_sigmoid(a: f32) -> f32 {
    sigmoid(TWICE_ROOT * (CUBIC * a * a).mul_add(a, a))
}

struct Forward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    /// Whether the result is rounded to bf16.
    round: bool,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for at in (0..self.gate.len()).step_by(LANES) {
            let (gate, up) = (load(self.gate, at), load(self.up, at));
            let mut y = [0.0; LANES];
            for l in 0..LANES {
                y[l] = gate[l] * gate_sigmoid(gate[l]) * up[l];
            }
            store(self.y, at, y);
        }
        if self.round {
            round_all(self.y);
        }
    }
}

struct Backward<'a> {
    dy: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for at in (0..self.gate.len()).step_by(LANES) {
            let (dy, gate, up) = (load(self.dy, at), load(self.gate, at), load(self.up, at));
            let (mut dgate, mut dup) = ([0.0; LANES], [0.0; LANES]);
            for l in 0..LANES {
                let a = gate[l];
                let sigma = gate_sigmoid(a);
                let slope = TWICE_ROOT * (3.0 * CUBIC * a).mul_add(a, 1.0);
                let derivative = (a * sigma * (1.0 - sigma)).mul_add(slope, sigma);
                dgate[l] = dy[l] * up[l] * derivative;
                dup[l] = dy[l] * (a * sigma);
            }
            store(self.dgate, at, dgate);
            store(self.dup, at, dup);
        }
    }
}

/// y = gelu_tanh(gate)·up of equally long stretches, on the calling thread, rounded to bf16 if asked.
pub(in crate::ops) fn gate(isa: Isa, round: bool, gate: &[f32], up: &[f32], y: &mut [f32]) {
    dispatch(isa, Forward { gate, up, round, y });
}

impl Geglu for Cpu {
    fn geglu(&self, gate: &CpuBuf, up: &CpuBuf) -> CpuBuf {
        let mut y = self.stale(gate.rows(), gate.cols());
        let inputs = gate.values().par_chunks(GRAIN).zip(up.values().par_chunks(GRAIN));
        let pieces = y.values_mut().par_chunks_mut(GRAIN).zip(inputs);
        let round = self.rounds();
        self.install(|| pieces.for_each(|(y, (gate, up))| dispatch(self.isa(), Forward { gate, up, round, y })));
        y
    }
}

impl GegluBackward for Cpu {
    fn geglu_backward(&self, dy: &CpuBuf, gate: &CpuBuf, up: &CpuBuf) -> (CpuBuf, CpuBuf) {
        let (mut dgate, mut dup) = (self.stale(gate.rows(), gate.cols()), self.stale(gate.rows(), gate.cols()));
        let inputs =
            dy.values().par_chunks(GRAIN).zip(gate.values().par_chunks(GRAIN)).zip(up.values().par_chunks(GRAIN));
        let outputs = dgate.values_mut().par_chunks_mut(GRAIN).zip(dup.values_mut().par_chunks_mut(GRAIN));
        self.install(|| {
            outputs.zip(inputs).for_each(|((dgate, dup), ((dy, gate), up))| {
                dispatch(self.isa(), Backward { dy, gate, up, dgate, dup });
            });
        });
        (dgate, dup)
    }
}
