//! norm, norm_add and their backward on the CPU: a task takes whole rows.

use super::{Norm, NormBackward};
use crate::cpu::lanes::{Kernel, LANES, dispatch, dot, load, store, sum_of_squares};
use crate::cpu::rounding::round_all;
use crate::cpu::{Cpu, CpuBuf, CpuWeight};

/// ρ = 1/√(mean(x²)+ε).
#[inline(always)]
pub(crate) fn rho(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt()
}

/// y = x̂·(1+w).
#[inline(always)]
pub(crate) fn normed(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let rho = rho(x, eps);
    for at in (0..x.len()).step_by(LANES) {
        let (x, w) = (load(x, at), load(w, at));
        let mut lanes = [0.0; LANES];
        for l in 0..LANES {
            lanes[l] = rho * x[l] * (1.0 + w[l]);
        }
        store(y, at, lanes);
    }
}

/// dx = ρ·(g − x̂·mean(g·x̂)), g = dy·(1+w); `dx` holds dy at the start and g in between.
#[inline(always)]
pub(crate) fn normed_backward(x: &[f32], w: &[f32], eps: f32, dx: &mut [f32]) {
    let rho = rho(x, eps);
    for at in (0..x.len()).step_by(LANES) {
        let w = load(w, at);
        let mut lanes = load(dx, at);
        for l in 0..LANES {
            lanes[l] *= 1.0 + w[l];
        }
        store(dx, at, lanes);
    }
    let mean = rho * dot(dx, x) / x.len() as f32;
    for at in (0..x.len()).step_by(LANES) {
        let x = load(x, at);
        let mut lanes = load(dx, at);
        for l in 0..LANES {
            lanes[l] = rho * (rho * x[l]).mul_add(-mean, lanes[l]);
        }
        store(dx, at, lanes);
    }
}

struct Normed<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    /// Added to the result: the residual stream.
    h: Option<&'a [f32]>,
    /// Whether the result is rounded to bf16: it enters a product.
    round: bool,
    y: &'a mut [f32],
}

impl Kernel for Normed<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        normed(self.x, self.w, self.eps, self.y);
        if let Some(h) = self.h {
            for (y, h) in self.y.iter_mut().zip(h) {
                *y += h;
            }
        }
        if self.round {
            round_all(self.y);
        }
    }
}

struct NormedBackward<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    dx: &'a mut [f32],
}

impl Kernel for NormedBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.dx.copy_from_slice(self.dy);
        normed_backward(self.x, self.w, self.eps, self.dx);
    }
}

impl Norm for Cpu {
    fn norm(&self, x: &CpuBuf, w: &CpuWeight, eps: f32) -> CpuBuf {
        let round = self.rounds();
        self.rows(x.rows(), x.cols(), |i, y| {
            dispatch(self.isa(), Normed { x: x.row(i), w: w.vector(), eps, h: None, round, y });
        })
    }

    fn norm_add(&self, h: &CpuBuf, branch: &CpuBuf, w: &CpuWeight, eps: f32) -> CpuBuf {
        self.rows(branch.rows(), branch.cols(), |i, y| {
            dispatch(self.isa(), Normed { x: branch.row(i), w: w.vector(), eps, h: Some(h.row(i)), round: false, y });
        })
    }

    fn branch_norm(&self, branch: &CpuBuf, w: &CpuWeight, eps: f32) -> CpuBuf {
        self.rows(branch.rows(), branch.cols(), |i, y| {
            dispatch(self.isa(), Normed { x: branch.row(i), w: w.vector(), eps, h: None, round: false, y });
        })
    }
}

impl NormBackward for Cpu {
    fn norm_backward(&self, dy: &CpuBuf, x: &CpuBuf, w: &CpuWeight, eps: f32) -> CpuBuf {
        self.rows(x.rows(), x.cols(), |i, dx| {
            dispatch(self.isa(), NormedBackward { dy: dy.row(i), x: x.row(i), w: w.vector(), eps, dx });
        })
    }
}
