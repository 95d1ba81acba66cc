//! An adapter's parameters on a device: made new as PEFT makes them, or read from and written to PEFT files.

use super::LoraLayout;
use crate::ops::Backend;
use crate::ops::lora_linear::{LoraSlot, philox};
use crate::weights::{AdapterConfig, AdapterFile, LoraTensors, Naming, Targets, TextConfig};

/// Flat LoRA parameters and where each module lies in them.
pub struct Adapter<D: Backend> {
    /// Slots.
    pub layout: LoraLayout,
    /// `[1, layout.len()]`
    pub params: D::Buf,
}

impl<D: Backend> Adapter<D> {
    /// New parameters: A ~ U(−1/√in, 1/√in), B = 0, a pure function of the seed, layer, module and index.
    pub fn new(device: &D, layout: LoraLayout, seed: u64) -> Self {
        let mut values = vec![0.0f32; layout.len()];
        for slot in layout.slots() {
            initialise(slot, seed, &mut values[slot.a..slot.b]);
        }
        let params = device.upload(1, values.len(), &values);
        Self { layout, params }
    }

    /// Parameters from a PEFT folder.
    ///
    /// # Errors
    /// An adapter made for a model of other dimensions.
    pub fn from_file(device: &D, config: &TextConfig, file: &AdapterFile) -> Result<Self, super::Error> {
        let layout = LoraLayout::from_file(config, file)?;
        let mut values = Vec::with_capacity(layout.len());
        for tensors in &file.tensors {
            values.extend_from_slice(&tensors.a);
            values.extend_from_slice(&tensors.b);
        }
        let params = device.upload(1, values.len(), &values);
        Ok(Self { layout, params })
    }

    /// The adapter as a PEFT folder states it; names follow `config`: a list of targets is a text-only model's, a pattern a
    /// vision-language model's.
    pub fn to_file(&self, device: &D, config: AdapterConfig) -> AdapterFile {
        let naming = match config.target_modules {
            Targets::Names(_) => Naming::CausalLm,
            Targets::Pattern(_) => Naming::ConditionalGeneration,
        };
        let values = self.download(device);
        let tensors = self.layout.slots().iter().map(|slot| {
            let a = values[slot.a..slot.b].to_vec();
            let b = values[slot.b..slot.b + slot.outputs * slot.rank].to_vec();
            let shape = [slot.outputs, slot.inputs];
            LoraTensors::new(naming, (slot.layer, slot.module), shape, slot.rank, slot.scale, a, b)
        });
        AdapterFile { tensors: tensors.collect(), config }
    }

    /// Values of A and B of every slot, in slot order.
    pub fn download(&self, device: &D) -> Vec<f32> {
        device.download(&self.params).into_iter().map(|value| value as f32).collect()
    }
}

/// PEFT's Kaiming-uniform A (a = √5 gives the bound 1/√in), from 24-bit uniforms.
fn initialise(slot: &LoraSlot, seed: u64, a: &mut [f32]) {
    let bound = 1.0 / (slot.inputs as f64).sqrt();
    let key = [seed as u32, (seed >> 32) as u32];
    for (block, chunk) in a.chunks_mut(4).enumerate() {
        let words = philox::philox4x32([block as u32, slot.layer as u32, slot.module as u32, 0x4c6f_5241], key);
        for (value, word) in chunk.iter_mut().zip(words) {
            let uniform = f64::from(word >> 8) / f64::from(1u32 << 24);
            *value = ((2.0 * uniform - 1.0) * bound) as f32;
        }
    }
}
