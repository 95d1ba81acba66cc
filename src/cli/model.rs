//! `--model` and `--adapter`: opening what most verbs start from.

use crate::machine;
use crate::model::{Adapter, EmbedScale, Engine};
use crate::ops::Device;
use crate::train::{ModelSettings, other_base};
use crate::weights::{AdapterFile, Checkpoint, resolve_model};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How √hidden is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EmbedScaleName {
    /// To the dtype of the stored embedding, as the model is used.
    Auto,
    /// Not at all: what a float32 load in transformers computes.
    Exact,
    /// To bf16.
    Bf16,
}

impl From<EmbedScaleName> for EmbedScale {
    fn from(name: EmbedScaleName) -> Self {
        match name {
            EmbedScaleName::Auto => Self::Auto,
            EmbedScaleName::Exact => Self::Exact,
            EmbedScaleName::Bf16 => Self::Bf16,
        }
    }
}

/// Flags that choose the model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Model folder, or org/name in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Rounding of the embedding's √hidden factor
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    pub embed_scale: EmbedScaleName,
}

impl ModelArgs {
    /// The same choices, as a training run's settings name them.
    ///
    /// # Errors
    /// A rounding that is none.
    pub fn named(path: &str, settings: &ModelSettings) -> crate::Result<Self> {
        Ok(Self {
            model: path.into(),
            adapter: settings.adapter.clone(),
            embed_scale: super::choice("model.embed_scale", &settings.embed_scale)?,
        })
    }

    /// Maps the checkpoint and reads the adapter.
    ///
    /// # Errors
    /// Anything wrong with either folder.
    pub fn open(&self) -> crate::Result<(Checkpoint, Option<AdapterFile>)> {
        let checkpoint = Checkpoint::open(&resolve_model(&self.model)?)?;
        // While the disk reads, the tokenizer is parsed and the first layers compute.
        let free = machine::memory().map_or(0, |memory| memory.available);
        drop(checkpoint.read_ahead(free / 2));
        let adapter = self.adapter.as_deref().map(AdapterFile::open).transpose()?;
        if let Some(folder) = &self.adapter
            && let Some(notes) = other_base(folder, &checkpoint)?
        {
            let (found, trained) = (checkpoint.fingerprint()?, notes.base_model_fingerprint);
            let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
            eprintln!(
                "warning: the adapter {} was trained on another base model: expected `{}` (fingerprint {}), found {} ({})",
                folder.display(),
                notes.base_model,
                short(&trained),
                self.model,
                short(&found)
            );
            eprintln!("hint: give that model as --model; on this one the adapter may do anything");
        }
        Ok((checkpoint, adapter))
    }

    /// Puts the decoder (or its first `layers` layers) and the adapter on a device.
    ///
    /// # Errors
    /// An adapter made for another model.
    pub fn engine<D: Device>(
        &self,
        device: D,
        checkpoint: &Checkpoint,
        adapter: Option<&AdapterFile>,
        layers: Option<usize>,
    ) -> crate::Result<Engine<D>> {
        let mut engine = Engine::open(device, checkpoint, self.embed_scale.into(), layers)?;
        if let Some(file) = adapter {
            engine.adapter = Some(Adapter::from_file(&engine.device, &engine.model.config, file)?);
        }
        Ok(engine)
    }
}

/// Refuses an image given as `what` with the reason: a text-only model, or a vision tower that this version does not run.
///
/// # Errors
/// Always.
pub fn refuse_image(what: &str, checkpoint: &Checkpoint) -> crate::Result<()> {
    let (message, hint) = match checkpoint.config.vision {
        None => (
            format!("{what} was given, and {} is a text-only model", checkpoint.dir().display()),
            "leave the image out, or use a vision-language model",
        ),
        Some(_) => (
            format!("{what} was given, and this version does not run the vision tower"),
            "leave the image out to ask about text alone",
        ),
    };
    Err(crate::Error::Usage { message, hint: Some(hint.into()) })
}
