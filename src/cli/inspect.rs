//! `unflip inspect`.

use super::row;
use crate::report::{Cell, Table};
use crate::text::{AnswerStrings, Answers, Error, Tokenizer, Variant};
use crate::weights::{AdapterFile, Checkpoint, LayerKind, ModelConfig, resolve_model};
use clap::Args;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Arguments of `inspect`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  unflip inspect models/gemma-3-270m\n  unflip inspect --adapter runs/paper/best --json"
)]
pub struct Inspect {
    /// Model folder, or org/name in the local Hugging Face cache
    #[arg(value_name = "MODEL", required_unless_present = "adapter")]
    model: Option<String>,
    /// PEFT LoRA adapter folder; with a model, also checks that they fit
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Read every weight file and print its SHA-256
    #[arg(long, requires = "model")]
    sha256: bool,
    /// List every tensor
    #[arg(long, requires = "model")]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
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

#[derive(Serialize)]
struct AdapterDescription {
    folder: String,
    base_model: Option<String>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    dropout: f64,
    layers: Vec<usize>,
    modules: Vec<&'static str>,
    parameters: usize,
    fits_model: Option<bool>,
}

impl Inspect {
    /// Runs the verb.
    ///
    /// # Errors
    /// Anything wrong with model or adapter.
    pub fn run(self) -> crate::Result<()> {
        let checkpoint = match &self.model {
            Some(model) => Some(Checkpoint::open(&resolve_model(model)?)?),
            None => None,
        };
        let model = checkpoint.as_ref().map(|checkpoint| self.describe(checkpoint)).transpose()?;
        let adapter = match &self.adapter {
            Some(folder) => {
                let file = AdapterFile::open(folder)?;
                if let Some(checkpoint) = &checkpoint {
                    crate::model::LoraLayout::from_file(&checkpoint.config.text, &file)?;
                }
                Some(describe_adapter(folder.display().to_string(), &file, checkpoint.is_some()))
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

fn describe_adapter(folder: String, file: &AdapterFile, fits: bool) -> AdapterDescription {
    let layers: BTreeSet<usize> = file.tensors.iter().map(|tensors| tensors.layer).collect();
    let modules: BTreeSet<_> = file.tensors.iter().map(|tensors| tensors.module).collect();
    AdapterDescription {
        folder,
        base_model: file.config.base_model_name_or_path.clone(),
        rank: file.config.r,
        alpha: file.config.lora_alpha,
        rslora: file.config.use_rslora,
        dropout: file.config.lora_dropout,
        layers: layers.into_iter().collect(),
        modules: modules.into_iter().map(|module| module.name()).collect(),
        parameters: file.tensors.iter().map(|tensors| tensors.a.len() + tensors.b.len()).sum(),
        fits_model: fits.then_some(true),
    }
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
        let mut table = Table::new(&["adapter", &adapter.folder]);
        row(&mut table, "base model", adapter.base_model.as_deref().unwrap_or("not stated"));
        let scale = if adapter.rslora { "rsLoRA" } else { "LoRA" };
        row(&mut table, "kind", &format!("{scale} r {} α {} dropout {}", adapter.rank, adapter.alpha, adapter.dropout));
        row(&mut table, "layers", &join(&adapter.layers));
        row(&mut table, "modules", &adapter.modules.join(", "));
        row(&mut table, "parameters", &adapter.parameters.to_string());
        if adapter.fits_model.is_some() {
            row(&mut table, "fits the model", "yes");
        }
        super::out(&table.plain())?;
    }
    Ok(())
}
