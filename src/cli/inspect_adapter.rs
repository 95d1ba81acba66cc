//! The adapter's half of `unflip inspect`: what a PEFT folder holds, and what it does to a model's logits.

use super::device::{DeviceArgs, OnDevice};
use super::row;
use crate::batch::TokenGroup;
use crate::model::{Adapter, AdapterEffect, EmbedScale, Engine};
use crate::ops::Device;
use crate::report::{Cell, Table};
use crate::text::{Error, PromptTemplate, Tokenizer};
use crate::train::{TemplateChoice, read_adapter_notes};
use crate::weights::{AdapterFile, Checkpoint};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// What the proof asks.
const QUESTION: &str = "Is there a pleural effusion?";
/// What it asks a model without tokenizer.
const TOKENS: [u32; 6] = [2, 7, 19, 4, 31, 11];

/// What an adapter folder holds.
#[derive(Serialize)]
pub struct AdapterDescription {
    folder: String,
    kind: &'static str,
    base_model: Option<String>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    dropout: f64,
    /// The distinct scales of its modules, α/r or α/√r.
    scales: Vec<f32>,
    layers: Vec<usize>,
    modules: Vec<&'static str>,
    tensors: usize,
    parameters: usize,
    norms: Vec<LayerNorms>,
    /// Settings it was trained with, where unflip trained it.
    training: Option<serde_json::Value>,
    fits_model: Option<bool>,
    change: Option<Change>,
}

/// Frobenius norms over a layer's modules.
#[derive(Serialize)]
struct LayerNorms {
    layer: usize,
    modules: Vec<&'static str>,
    a: f64,
    b: f64,
}

/// What an adapter does to the logits after a fixed prompt.
#[derive(Serialize)]
pub struct Change {
    prompt: String,
    logits: usize,
    largest: f64,
    mean: f64,
}

fn norm<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    values.map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

impl AdapterDescription {
    /// Describes an adapter; `change` is what [`change`] found where there is a model.
    ///
    /// # Errors
    /// Notes that cannot be read.
    pub fn new(folder: &Path, file: &AdapterFile, change: Option<Change>) -> crate::Result<Self> {
        let layers: BTreeSet<usize> = file.tensors.iter().map(|tensors| tensors.layer).collect();
        let modules: BTreeSet<_> = file.tensors.iter().map(|tensors| tensors.module).collect();
        let mut scales: Vec<f32> = file.tensors.iter().map(|tensors| tensors.scale).collect();
        scales.sort_by(f32::total_cmp);
        scales.dedup();
        let norms = layers.iter().map(|&layer| {
            let here = || file.tensors.iter().filter(move |tensors| tensors.layer == layer);
            LayerNorms {
                layer,
                modules: here().map(|tensors| tensors.module.name()).collect(),
                a: norm(here().flat_map(|tensors| &tensors.a)),
                b: norm(here().flat_map(|tensors| &tensors.b)),
            }
        });
        Ok(Self {
            folder: folder.display().to_string(),
            kind: if file.config.use_rslora { "rsLoRA" } else { "LoRA" },
            base_model: file.config.base_model_name_or_path.clone(),
            rank: file.config.r,
            alpha: file.config.lora_alpha,
            rslora: file.config.use_rslora,
            dropout: file.config.lora_dropout,
            scales,
            norms: norms.collect(),
            layers: layers.into_iter().collect(),
            modules: modules.into_iter().map(|module| module.name()).collect(),
            tensors: 2 * file.tensors.len(),
            parameters: file.tensors.iter().map(|tensors| tensors.a.len() + tensors.b.len()).sum(),
            training: read_adapter_notes(folder)?.map(|notes| notes.settings),
            fits_model: change.is_some().then_some(true),
            change,
        })
    }

    /// Tables on stdout.
    ///
    /// # Errors
    /// Standard output that is gone.
    pub fn print(&self) -> crate::Result<()> {
        let mut table = Table::new(&["adapter", &self.folder]);
        row(&mut table, "base model", self.base_model.as_deref().unwrap_or("not stated"));
        row(&mut table, "kind", &format!("{} r {} α {} dropout {}", self.kind, self.rank, self.alpha, self.dropout));
        row(&mut table, "scale", &self.scales.iter().map(f32::to_string).collect::<Vec<_>>().join(", "));
        row(&mut table, "layers", &self.layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", "));
        row(&mut table, "modules", &self.modules.join(", "));
        row(&mut table, "parameters", &format!("{} in {} tensors", self.parameters, self.tensors));
        for (what, section, key) in [
            ("loss", "objective", "loss"),
            ("λ", "objective", "lambda"),
            ("pool", "objective", "pool"),
            ("learning rate", "optimizer", "lr"),
            ("seed", "run", "seed"),
        ] {
            match self.training.as_ref().map(|settings| &settings[section][key]) {
                None | Some(serde_json::Value::Null) => {}
                Some(serde_json::Value::String(text)) => row(&mut table, what, text),
                Some(other) => row(&mut table, what, &other.to_string()),
            }
        }
        if self.fits_model.is_some() {
            row(&mut table, "fits the model", "yes");
        }
        if let Some(Change { prompt, logits, largest, mean }) = &self.change {
            let text = format!("largest {largest:.4}, mean {mean:.4} of {logits} logits after {prompt}");
            row(&mut table, "changes logits by", &text);
        }
        super::out(&table.plain())?;
        let mut table = Table::new(&["layer", "modules", "norm of A", "norm of B"]);
        for LayerNorms { layer, modules, a, b } in &self.norms {
            let modules: Vec<&str> = modules.iter().map(|name| name.trim_end_matches("_proj")).collect();
            let modules = Cell::text(modules.join(","));
            table.row(vec![Cell::Integer(*layer as i64), modules, Cell::Number(*a, 4), Cell::Number(*b, 4)]);
        }
        super::out(&format!("\n{}", table.plain()))
    }
}

/// What the adapter in `folder` does to the logits of a fixed prompt, written as the adapter was trained to be asked.
///
/// # Errors
/// An adapter that does not fit the model or changes nothing; a back end that is not there.
pub fn change(
    device: &DeviceArgs,
    checkpoint: &Checkpoint,
    folder: &Path,
    adapter: AdapterFile,
) -> crate::Result<Change> {
    // Before weights are read.
    crate::model::LoraLayout::from_file(&checkpoint.config.text, &adapter)?;
    let template = TemplateChoice::new(None, Some(folder))?.template;
    let (prompt, ids) = prompt(checkpoint, &template)?;
    let tokens = TokenGroup { prefix: Vec::new(), suffixes: vec![ids] };
    let effect = device.run(Work { checkpoint, adapter, tokens })?;
    Ok(Change { prompt, logits: effect.logits, largest: effect.largest, mean: effect.mean })
}

/// The fixed prompt as it is told and as token ids.
fn prompt(checkpoint: &Checkpoint, template: &PromptTemplate) -> crate::Result<(String, Vec<u32>)> {
    let tokenizer = Tokenizer::open(checkpoint.dir()).and_then(|tokenizer| {
        tokenizer.check_chat_tokens()?;
        Ok(tokenizer)
    });
    match tokenizer {
        Ok(tokenizer) => {
            let ids = tokenizer.encode(&template.render(QUESTION, None, false))?;
            Ok((format!("{QUESTION:?}"), ids))
        }
        Err(Error::NoTokenizer { .. }) => {
            let vocabulary = checkpoint.config.text.vocab_size as u32;
            let ids: Vec<u32> = TOKENS.iter().map(|id| id % vocabulary).collect();
            Ok((format!("the tokens {ids:?}"), ids))
        }
        Err(error) => Err(error.into()),
    }
}

struct Work<'a> {
    checkpoint: &'a Checkpoint,
    adapter: AdapterFile,
    tokens: TokenGroup,
}

impl OnDevice for Work<'_> {
    type Output = AdapterEffect;

    fn run<D: Device + 'static>(self, device: D) -> crate::Result<AdapterEffect> {
        let mut engine = Engine::open(device, self.checkpoint, EmbedScale::Auto, None)?;
        engine.adapter = Some(Adapter::from_file(&engine.device, &engine.model.config, &self.adapter)?);
        engine.adapter_effect(&self.tokens)
    }
}
