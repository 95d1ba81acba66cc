//! qk_norm_rope on the CPU: a task takes whole rows, head after head.

use super::{QkNormRope, QkNormRopeBackward};
use crate::cpu::lanes::{Kernel, dispatch};
use crate::cpu::rounding::round_all;
use crate::cpu::{Cpu, CpuBuf, CpuWeight};
use crate::ops::norm::cpu::{normed, normed_backward};

/// Rotates one head in place by the row's angles, or back where `sign` is −1.
#[inline(always)]
fn rotate(head: &mut [f32], rope: &[f32], sign: f32) {
    let half = head.len() / 2;
    let (cos, sin) = rope.split_at(half);
    let (low, high) = head.split_at_mut(half);
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b, sin) = (*low, *high, sign * sin);
        *low = a.mul_add(*cos, -(b * sin));
        *high = b.mul_add(*cos, a * sin);
    }
}

struct Forward<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    rope: &'a [f32],
    head_dim: usize,
    /// Whether the result is rounded to bf16.
    round: bool,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, y) in self.x.chunks_exact(self.head_dim).zip(self.y.chunks_exact_mut(self.head_dim)) {
            normed(x, self.w, self.eps, y);
            rotate(y, self.rope, 1.0);
        }
        if self.round {
            round_all(self.y);
        }
    }
}

struct Backward<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    rope: &'a [f32],
    head_dim: usize,
    dx: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.dx.copy_from_slice(self.dy);
        for (x, dx) in self.x.chunks_exact(self.head_dim).zip(self.dx.chunks_exact_mut(self.head_dim)) {
            rotate(dx, self.rope, -1.0);
            normed_backward(x, self.w, self.eps, dx);
        }
    }
}

impl QkNormRope for Cpu {
    fn qk_norm_rope(&self, x: &CpuBuf, w: &CpuWeight, eps: f32, rope: &CpuBuf, head_dim: usize) -> CpuBuf {
        let (x, round) = (self.entering(x), self.rounds());
        self.rows(x.rows(), x.cols(), |i, y| {
            let (x, rope) = (x.row(i), rope.row(i));
            dispatch(self.isa(), Forward { x, w: w.vector(), eps, rope, head_dim, round, y });
        })
    }
}

impl QkNormRopeBackward for Cpu {
    fn qk_norm_rope_backward(
        &self,
        dy: &CpuBuf,
        x: &CpuBuf,
        w: &CpuWeight,
        eps: f32,
        rope: &CpuBuf,
        head_dim: usize,
    ) -> CpuBuf {
        let x = self.entering(x);
        self.rows(x.rows(), x.cols(), |i, dx| {
            let (dy, x, rope) = (dy.row(i), x.row(i), rope.row(i));
            dispatch(self.isa(), Backward { dy, x, w: w.vector(), eps, rope, head_dim, dx });
        })
    }
}
