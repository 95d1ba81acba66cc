//! `unflip inspect`.

use super::device::DeviceArgs;
use super::inspect_adapter::{self, AdapterDescription};
use super::row;
use crate::report::{Cell, Table};
use crate::text::{AnswerStrings, Answers, Error, Tokenizer, Variant};
use crate::weights::{AdapterFile, Checkpoint, LayerKind, ModelConfig, resolve_model};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of `inspect`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  unflip inspect models/gemma-3-270m\n  unflip inspect --adapter runs/paper/final --model models/gemma-3-270m --json\n\n\
    With a model, an adapter must fit it and change its logits on a fixed prompt, else the exit code is 1."
)]
pub struct Inspect {
    /// Model folder, or org/name in the local Hugging Face cache
    #[arg(value_name = "MODEL", group = "which", required_unless_present_any = ["model_flag", "adapter"])]
    model: Option<String>,
    /// The same
    #[arg(long = "model", id = "model_flag", value_name = "MODEL", group = "which")]
    model_flag: Option<String>,
    /// PEFT LoRA adapter folder; with a model, also proves that they fit and that it changes logits
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Read every weight file and print its SHA-256
    #[arg(long, requires = "which")]
    sha256: bool,
    /// List every tensor
    #[arg(long, requires = "which")]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct Description {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelDescription>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<AdapterDescription>,
}

#[derive(Serialize)]
struct ModelDescription {
    folder: String,
    kind: &'static str,
    layers: usize,
    full_attention_layers: Vec<usize>,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    sliding_window: usize,
    tensors: usize,
    parameters: u64,
    dtypes: BTreeMap<String, u64>,
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<Answers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<Vec<(String, String)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor_list: Option<Vec<TensorRow>>,
}

impl Inspect {
    /// Runs the verb.
    ///
    /// # Errors
    /// Anything wrong with model or adapter.
    pub fn run(self) -> crate::Result<()> {
        let checkpoint = match self.model.as_ref().or(self.model_flag.as_ref()) {
            Some(model) => Some(Checkpoint::open(&resolve_model(model)?)?),
            None => None,
        };
        let model = checkpoint.as_ref().map(|checkpoint| self.describe(checkpoint)).transpose()?;
        let adapter = match &self.adapter {
            Some(folder) => {
                let file = AdapterFile::open(folder)?;
                let change = checkpoint
                    .as_ref()
                    .map(|checkpoint| inspect_adapter::change(&self.device, checkpoint, folder, file.clone()));
                Some(AdapterDescription::new(folder, &file, change.transpose()?)?)
            }
            None => None,
        };
        let description = Description { model, adapter };
        if self.json {
            return super::print_json(&description);
        }
        print(&description)
    }

    fn describe(&self, checkpoint: &Checkpoint) -> crate::Result<ModelDescription> {
        let ModelConfig { text, vision, .. } = &checkpoint.config;
        let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        let mut dtypes = BTreeMap::new();
        let mut parameters = 0;
        let mut list = Vec::new();
        for name in &names {
            let view = checkpoint.tensor(name)?;
            let count = view.elements() as u64;
            *dtypes.entry(format!("{:?}", view.dtype).to_uppercase()).or_insert(0) += count;
            parameters += count;
            list.push(TensorRow {
                name: view.name.to_string(),
                dtype: format!("{:?}", view.dtype).to_uppercase(),
                shape: view.shape.clone(),
            });
        }
        let full = text.layer_types.iter().enumerate().filter(|(_, kind)| **kind == LayerKind::Full);
        Ok(ModelDescription {
            folder: checkpoint.dir().display().to_string(),
            kind: if vision.is_some() { "vision-language model" } else { "text model" },
            layers: text.num_hidden_layers,
            full_attention_layers: full.map(|(layer, _)| layer).collect(),
            hidden: text.hidden_size,
            intermediate: text.intermediate_size,
            heads: text.num_attention_heads,
            kv_heads: text.num_key_value_heads,
            head_dim: text.head_dim,
            vocabulary: text.vocab_size,
            sliding_window: text.sliding_window,
            tensors: names.len(),
            parameters,
            dtypes,
            fingerprint: checkpoint.fingerprint()?,
            answers: answers(checkpoint.dir())?,
            sha256: if self.sha256 { Some(checkpoint.sha256_files()?) } else { None },
            tensor_list: self.tensors.then_some(list),
        })
    }
}

/// Answer tokens with their spellings; none for a folder without tokenizer, or with one that lacks them.
fn answers(folder: &Path) -> crate::Result<Option<Answers>> {
    let found = Tokenizer::open(folder).and_then(|tokenizer| Answers::look_up(&tokenizer, &AnswerStrings::default()));
    match found {
        Ok(answers) => Ok(Some(answers)),
        Err(Error::NoTokenizer { .. } | Error::Answer { .. } | Error::SameAnswer { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `"Yes" 10784, "yes" 3553`.
fn spellings(variants: &[Variant]) -> String {
    let show = |variant: &Variant| format!("{:?} {}", variant.string, variant.id);
    variants.iter().map(show).collect::<Vec<_>>().join(", ")
}

fn print(description: &Description) -> crate::Result<()> {
    let join = |layers: &[usize]| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    if let Some(model) = &description.model {
        let mut table = Table::new(&["model", &model.folder]);
        row(&mut table, "kind", model.kind);
        row(
            &mut table,
            "layers",
            &format!("{} (full attention: {})", model.layers, join(&model.full_attention_layers)),
        );
        row(&mut table, "hidden, MLP", &format!("{}, {}", model.hidden, model.intermediate));
        row(
            &mut table,
            "heads",
            &format!("{} query, {} key/value, {} wide", model.heads, model.kv_heads, model.head_dim),
        );
        row(&mut table, "vocabulary", &model.vocabulary.to_string());
        row(&mut table, "sliding window", &model.sliding_window.to_string());
        let dtypes: Vec<_> = model.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        row(
            &mut table,
            "parameters",
            &format!("{} in {} tensors ({})", model.parameters, model.tensors, dtypes.join(", ")),
        );
        row(&mut table, "fingerprint", &model.fingerprint);
        if let Some(answers) = &model.answers {
            row(&mut table, "yes tokens", &spellings(&answers.yes_variants));
            row(&mut table, "no tokens", &spellings(&answers.no_variants));
        }
        for (file, hash) in model.sha256.iter().flatten() {
            row(&mut table, &format!("sha256 {file}"), hash);
        }
        super::out(&table.plain())?;
        if let Some(list) = &model.tensor_list {
            let mut table = Table::new(&["tensor", "dtype", "shape"]);
            for tensor in list {
                table.row(vec![
                    Cell::text(&tensor.name),
                    Cell::text(&tensor.dtype),
                    Cell::text(format!("{:?}", tensor.shape)),
                ]);
            }
            super::out(&format!("\n{}", table.plain()))?;
        }
    }
    if let Some(adapter) = &description.adapter {
        adapter.print()?;
    }
    Ok(())
}
