//! geglu: gelu_tanh(gate)·up, gelu(a) = ½a(1+tanh(√(2/π)(a + 0.044715a³))), all `[T, intermediate]`. Backward recomputes tanh.

pub mod cases;
pub(super) mod cpu;
mod cuda;
mod reference;

use super::{Backend, Cost};

/// Forward.
pub trait Geglu: Backend {
    /// `[T, n]` from gate and up.
    fn geglu(&self, gate: &Self::Buf, up: &Self::Buf) -> Self::Buf;
}

/// Backward.
pub trait GegluBackward: Backend {
    /// (dgate, dup).
    fn geglu_backward(&self, dy: &Self::Buf, gate: &Self::Buf, up: &Self::Buf) -> (Self::Buf, Self::Buf);
}

/// Of the forward on `elements` gates.
pub fn cost(elements: usize) -> Cost {
    Cost::elementwise(elements, 9, 3)
}

/// Of the backward.
pub fn cost_backward(elements: usize) -> Cost {
    Cost::elementwise(elements, 18, 5)
}
