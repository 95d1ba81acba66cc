//! Where each LoRA module's A and B lie in the one flat parameter vector.

use super::Error;
use crate::ops::lora_linear::LoraSlot;
use crate::weights::{AdapterFile, Module, TextConfig};
use std::collections::BTreeSet;

/// What to adapt, as a user states it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    /// Layer indices.
    pub layers: BTreeSet<usize>,
    /// Projections.
    pub modules: BTreeSet<Module>,
    /// r.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// s = α/√r instead of α/r.
    pub rslora: bool,
}

impl LoraSettings {
    /// s.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// Slots in order of layer, then module, and the length of the vector.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraLayout {
    slots: Vec<LoraSlot>,
    len: usize,
}

impl LoraLayout {
    /// The layout of new parameters.
    ///
    /// # Errors
    /// Nothing to adapt, rank 0, or a layer that the model lacks.
    pub fn from_settings(config: &TextConfig, settings: &LoraSettings) -> Result<Self, Error> {
        if settings.layers.is_empty() || settings.modules.is_empty() {
            return Err(Error::EmptyAdapter { layers: settings.layers.len(), modules: settings.modules.len() });
        }
        if settings.rank == 0 {
            return Err(Error::Rank { rank: 0 });
        }
        let mut layout = Self { slots: Vec::new(), len: 0 };
        for &layer in &settings.layers {
            check_layer(config, layer)?;
            for &module in &settings.modules {
                let [outputs, inputs] = config.linear_shape(module);
                layout.push(layer, module, settings.rank, settings.scale(), inputs, outputs);
            }
        }
        Ok(layout)
    }

    /// The layout of an adapter on disk.
    ///
    /// # Errors
    /// An adapter for a model of other dimensions.
    pub fn from_file(config: &TextConfig, file: &AdapterFile) -> Result<Self, Error> {
        let mut layout = Self { slots: Vec::new(), len: 0 };
        for tensors in &file.tensors {
            check_layer(config, tensors.layer)?;
            let [outputs, inputs] = config.linear_shape(tensors.module);
            if (outputs, inputs) != (tensors.outputs, tensors.inputs) {
                return Err(Error::AdapterShape {
                    layer: tensors.layer,
                    module: tensors.module.name(),
                    found_out: tensors.outputs,
                    found_in: tensors.inputs,
                    expected_out: outputs,
                    expected_in: inputs,
                });
            }
            layout.push(tensors.layer, tensors.module, tensors.rank, tensors.scale, inputs, outputs);
        }
        Ok(layout)
    }

    fn push(&mut self, layer: usize, module: Module, rank: usize, scale: f32, inputs: usize, outputs: usize) {
        let a = self.len;
        let b = a + rank * inputs;
        self.len = b + outputs * rank;
        self.slots.push(LoraSlot { layer, module, rank, scale, inputs, outputs, a, b });
    }

    /// All slots.
    pub fn slots(&self) -> &[LoraSlot] {
        &self.slots
    }

    /// The lowest adapted layer: below it nothing depends on the parameters.
    pub fn lowest_layer(&self) -> Option<usize> {
        self.slots.first().map(|slot| slot.layer)
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is adapted.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The layout of the slots in layers from `first` on alone.
    pub fn from_layer(&self, first: usize) -> Self {
        let mut layout = Self { slots: Vec::new(), len: 0 };
        for slot in self.slots.iter().filter(|slot| slot.layer >= first) {
            layout.push(slot.layer, slot.module, slot.rank, slot.scale, slot.inputs, slot.outputs);
        }
        layout
    }

    /// The slot of a projection, if it is adapted.
    pub fn slot(&self, layer: usize, module: Module) -> Option<LoraSlot> {
        let found = self.slots.binary_search_by(|slot| (slot.layer, slot.module).cmp(&(layer, module)));
        found.ok().map(|index| self.slots[index])
    }
}

fn check_layer(config: &TextConfig, layer: usize) -> Result<(), Error> {
    if layer >= config.num_hidden_layers {
        return Err(Error::AdapterLayer { layer, last: config.num_hidden_layers.saturating_sub(1) });
    }
    Ok(())
}
