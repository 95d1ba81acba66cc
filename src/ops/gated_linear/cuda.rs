//! gated_linear on CUDA: both products in one block of `kernels/lora_linear.cu`, the gate in its epilogue.

use super::{GatedLinear, GatedOutput, Kept};
use crate::cuda::{Buf, Cuda};
use crate::ops::geglu::Geglu;
use crate::ops::lora_linear::{LoraLinear, Part, Store};

impl GatedLinear for Cuda {
    fn gated_linear(&self, x: &Buf, parts: &[Part<'_, Self>; 2], keep: bool) -> GatedOutput<Buf> {
        let [gate, up] = parts;
        if !keep && gate.weight.rows() == up.weight.rows() {
            return GatedOutput { act: self.gated_products(x, parts), kept: None };
        }
        // What a backward pass needs is stored, so that the fused form has nothing to save.
        let output = self.lora_linear(x, parts, Store::Full);
        let mut y = output.y.into_iter();
        let (Some(gate), Some(up)) = (y.next(), y.next()) else { unreachable!("one output per part") };
        let act = self.geglu(&gate, &up);
        GatedOutput { act, kept: keep.then_some(Kept { gate, up, su: output.su }) }
    }
}
