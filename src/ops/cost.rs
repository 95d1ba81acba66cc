//! What a call costs: work and traffic from shapes alone, counted the same way for every operation and back end, so that a
//! profile, a benchmark and an estimate before anything is loaded agree. Each operation's `mod.rs` has its own `cost`.
//!
//! A multiply-add is two FLOPs; any other operation on an element (a root, an exponential, a quotient) is one; what depends
//! on rows or columns alone is left out. Bytes are the compulsory traffic: every operand and result once, activations and
//! parameters as f32, frozen weights as stored; what a cache saves or a second pass costs is the back end's affair.

use serde::Serialize;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

/// Bytes of an activation or parameter.
pub const F32: usize = 4;

/// Work and traffic of a call. More counts (tensor-core instructions, sectors) may join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Cost {
    /// Arithmetic.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

/// Direction of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// From inputs to outputs.
    Forward,
    /// From output gradients to input and parameter gradients.
    Backward,
}

impl Pass {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Forward, Self::Backward];

    /// As tables and arguments name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

impl Cost {
    /// Nothing.
    pub const ZERO: Self = Self { flops: 0.0, bytes: 0.0 };

    /// From counts.
    pub fn new(flops: usize, bytes: usize) -> Self {
        Self { flops: flops as f64, bytes: bytes as f64 }
    }

    /// `flops` per element on `elements`, of which `touched` f32 matrices of that size are read or written.
    pub fn elementwise(elements: usize, flops: usize, touched: usize) -> Self {
        Self::new(elements * flops, elements * touched * F32)
    }

    /// Multiply-adds of `[m, k]`·`[k, n]` and no traffic: operands are counted where they are known to be met once.
    pub fn product(m: usize, n: usize, k: usize) -> Self {
        Self { flops: 2.0 * m as f64 * n as f64 * k as f64, bytes: 0.0 }
    }

    /// Traffic alone.
    pub fn traffic(bytes: usize) -> Self {
        Self::new(0, bytes)
    }

    /// Least seconds on a machine of `flops` FLOP/s and `bandwidth` bytes/s: the roofline.
    pub fn seconds(&self, flops: f64, bandwidth: f64) -> f64 {
        (self.flops / flops).max(self.bytes / bandwidth)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<f64> for Cost {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self { flops: self.flops * times, bytes: self.bytes * times }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::cases::{Queries, TreeShape, plan};
    use crate::ops::attention::{self, AttentionShape};
    use crate::ops::lora_linear::{self, PartShape};

    #[test]
    fn a_projection_costs_its_products_and_one_reading_of_each_operand() {
        let plain = PartShape { outputs: 7, rank: 0, weight_bytes: 2 };
        let found = lora_linear::cost(3, 5, &[plain]);
        assert_eq!((found.flops, found.bytes), (2.0 * 105.0, 4.0 * (15.0 + 21.0) + 70.0));
        let adapted = PartShape { rank: 2, ..plain };
        let found = lora_linear::cost(3, 5, &[adapted]);
        // x·Aᵀ and u·Bᵀ; A, B and the kept u.
        assert_eq!(found.flops, 2.0 * 105.0 + 2.0 * 3.0 * 2.0 * 12.0);
        assert_eq!(found.bytes, 4.0 * (15.0 + 21.0) + 70.0 + 4.0 * (24.0 + 6.0));
        // dx through W, and of the branch du, dB, dA, du·A.
        let back = lora_linear::cost_backward(3, 5, &[adapted], true, true);
        assert_eq!(back.flops, 2.0 * 105.0 + 2.0 * 3.0 * 2.0 * (7.0 + 7.0 + 5.0 + 5.0));
        let without_dx = lora_linear::cost_backward(3, 5, &[adapted], false, true);
        assert_eq!(without_dx.flops, 2.0 * 3.0 * 2.0 * (7.0 + 7.0 + 5.0));
        assert_eq!(lora_linear::cost_backward(3, 5, &[plain], true, false).flops, 2.0 * 105.0);
    }

    #[test]
    fn attention_counts_the_pairs_that_see_each_other() {
        let shape = AttentionShape { heads: 4, kv_heads: 1, head_dim: 8, scale: 1.0 };
        let tree = TreeShape { prefix: 3, suffixes: vec![2, 1], image: None };
        // Prefix rows see 1 + 2 + 3 keys, suffix rows 4 + 5 and 4.
        let all = plan(&[tree], None, Queries::All);
        assert_eq!(all.visible_pairs(), 19);
        assert_eq!(attention::cost(&shape, &all).flops, 4.0 * 19.0 * 32.0);
        assert_eq!(attention::cost_backward(&shape, &all).flops, 10.0 * 19.0 * 32.0);
    }

    #[test]
    fn sums_and_the_roofline() {
        let sum: Cost = [Cost::new(6, 4), Cost::product(1, 2, 3), Cost::traffic(16)].into_iter().sum();
        assert_eq!((sum.flops, sum.bytes), (18.0, 20.0));
        assert_eq!(sum.seconds(2.0, 1.0), 20.0);
        assert_eq!(sum.seconds(0.5, 1.0), 36.0);
        assert_eq!((sum * 2.0).bytes, 40.0);
    }
}
