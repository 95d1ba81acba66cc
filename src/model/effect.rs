//! Whether an adapter does anything: logits of the same prompt with and without it. A folder that loads but changes nothing (never
//! trained, or written with other names than it is read by) would otherwise pass for one that makes no difference.

use super::{Engine, Error};
use crate::batch::TokenGroup;
use crate::ops::Device;
use crate::tape::Columns;

/// By how much an adapter moves the logits of the last token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterEffect {
    /// Logits compared: the vocabulary, for each phrasing.
    pub logits: usize,
    /// Largest |with − without|.
    pub largest: f64,
    /// Mean |with − without|.
    pub mean: f64,
}

impl<D: Device> Engine<D> {
    /// Runs `prompts` with the engine's adapter and without it; the adapter is attached again afterwards.
    ///
    /// # Errors
    /// [`Error::NoEffect`] where no logit changes, or no adapter is attached; prompts that the model cannot take.
    pub fn adapter_effect(&mut self, prompts: &TokenGroup) -> crate::Result<AdapterEffect> {
        let batch = self.pack(std::slice::from_ref(prompts), 0)?;
        let with = self.answer_logits(&batch, &Columns::Full)?.concat();
        let adapter = self.adapter.take();
        let without = self.answer_logits(&batch, &Columns::Full);
        self.adapter = adapter;
        let changes = with.iter().zip(without?.concat()).map(|(with, without)| (with - without).abs());
        // A logit that is not a number would get lost in a maximum.
        let (largest, sum) = changes.fold((0.0f64, 0.0), |(largest, sum), change| {
            (if change.is_nan() { change } else { largest.max(change) }, sum + change)
        });
        if largest == 0.0 {
            return Err(Error::NoEffect { logits: with.len() }.into());
        }
        Ok(AdapterEffect { logits: with.len(), largest, mean: sum / with.len() as f64 })
    }
}
