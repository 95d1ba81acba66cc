//! `unflip trace`.

use super::device::{DeviceArgs, OnDevice, OnTrainDevice};
use super::model::ModelArgs;
use super::profile::ProfileArgs;
use crate::data::{Error, TraceInput};
use crate::model::Engine;
use crate::objective::{Objective, Pairs, Pool, Pooling};
use crate::ops::{Device, TrainDevice};
use crate::trace::{TraceTensor, trace_forward, trace_loss};
use crate::weights::{AdapterFile, Checkpoint, Dtype, check_place, write_safetensors};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Which phrasings are paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PairsName {
    /// The original with each paraphrase.
    Original,
    /// Every two phrasings.
    All,
}

impl From<PairsName> for Pairs {
    fn from(name: PairsName) -> Self {
        match name {
            PairsName::Original => Self::Original,
            PairsName::All => Self::All,
        }
    }
}

/// Arguments of `trace`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  unflip trace --model tests/goldens/text/model --input tests/goldens/text/groups.json \\\n    \
    --adapter tests/goldens/text/lora_all --loss combined --pairs all --embed-scale exact --out trace.safetensors"
)]
pub struct Trace {
    #[command(flatten)]
    model: ModelArgs,
    /// Groups as token ids (groups.json)
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write the tensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Pixel values of the groups' images, `seq{i}.pixel_values` (vision-language models)
    #[arg(long, value_name = "FILE")]
    pixels: Option<PathBuf>,
    /// Loss whose adapter gradients to write: paper, combined, margin, symkl-binary, symkl-full, ce-binary, ce-full
    #[arg(long, value_name = "NAME")]
    loss: Option<String>,
    /// How an answer's spellings become one logit: single (the first alone), max or logsumexp of the input's `answer_spellings`
    #[arg(long, default_value = "single", value_name = "HOW")]
    pool: String,
    /// Which phrasings the loss pairs
    #[arg(long, value_enum, default_value = "original")]
    pairs: PairsName,
    /// Weight of the loss's second term (default: the input file's, else the loss's own)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<f64>,
    /// Run the first N layers only
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Run every phrasing by itself instead of sharing the group's prefix
    #[arg(long)]
    no_sharing: bool,
    /// Write hidden states of every layer
    #[arg(long)]
    hidden: bool,
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Trace {
    /// Runs the verb.
    ///
    /// # Errors
    /// Bad input of any kind.
    pub fn run(self) -> crate::Result<()> {
        check_place(&self.out)?;
        let pool = self.pool.parse::<Pool>()?;
        let input = TraceInput::read(&self.input)?;
        let pooling = match (pool, &input.spellings) {
            (Pool::Single, _) => Pooling::default(),
            (pool, Some([yes, no])) => Pooling { pool, yes: yes.clone(), no: no.clone() },
            (pool, None) => {
                return Err(crate::Error::Usage {
                    message: format!(
                        "--pool {} was given, and {} has no `answer_spellings`",
                        pool.name(),
                        self.input.display()
                    ),
                    hint: Some(r#"add `"answer_spellings": {"Yes": […], "No": […]}` with token ids to it"#.into()),
                });
            }
        };
        let objective = self
            .loss
            .as_deref()
            .map(|name| Objective::new(name, self.pairs.into(), self.lambda.or(file_lambda(name, &input))))
            .transpose()?;
        if objective.as_ref().is_some_and(Objective::needs_paraphrases)
            && let Some(index) = input.groups.iter().position(|group| group.tokens.suffixes.len() < 2)
        {
            tracing::warn!("group {index} has one phrasing: its part of the loss over pairs is 0");
        }
        let (checkpoint, adapter) = self.model.open()?;
        if objective.is_some() && adapter.is_none() {
            return Err(crate::Error::Usage {
                message: "--loss writes adapter gradients, and no adapter was given".into(),
                hint: Some("add --adapter DIR".into()),
            });
        }
        if let Some((index, image)) = input.groups.iter().enumerate().find_map(|(i, group)| Some((i, group.image?))) {
            let (id, image) = (index.to_string(), image.to_string());
            return Err(match checkpoint.config.vision {
                None => Error::ImageForTextModel { id, image },
                Some(_) => Error::NoVisionTower { id, image },
            }
            .into());
        }
        if self.pixels.is_some() {
            return Err(crate::Error::Usage {
                message: "--pixels was given, and no group has an image".into(),
                hint: Some("leave --pixels out".into()),
            });
        }
        let device = self.device.clone();
        let out = self.out.clone();
        let profile = self.profile.begin()?;
        let work = Work { arguments: self, input, pooling, checkpoint, adapter };
        let tensors = match objective {
            None => profile.run(&device, work)?,
            Some(objective) => profile.run_training(&device, Loss { work, objective })?,
        };
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|tensor| tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let entries: Vec<_> = tensors
            .iter()
            .zip(&bytes)
            .map(|(tensor, bytes)| (tensor.name.as_str(), Dtype::F32, tensor.shape.as_slice(), bytes.as_slice()))
            .collect();
        write_safetensors(&out, &entries)?;
        Ok(())
    }
}

/// The file's λ belongs to the goldens' combined loss; `paper` keeps its own default.
fn file_lambda(loss: &str, input: &TraceInput) -> Option<f64> {
    (loss == "combined").then_some(input.lambda).flatten()
}

struct Work {
    arguments: Trace,
    input: TraceInput,
    pooling: Pooling,
    checkpoint: Checkpoint,
    adapter: Option<AdapterFile>,
}

impl Work {
    fn engine<D: Device + 'static>(&mut self, device: D) -> crate::Result<Engine<D>> {
        let arguments = &self.arguments;
        let mut engine = arguments.model.engine(device, &self.checkpoint, self.adapter.as_ref(), arguments.layers)?;
        engine.share_prefix = !arguments.no_sharing;
        engine.pooling = std::mem::take(&mut self.pooling);
        Ok(engine)
    }
}

impl OnDevice for Work {
    type Output = Vec<TraceTensor>;

    fn run<D: Device + 'static>(mut self, device: D) -> crate::Result<Self::Output> {
        let engine = self.engine(device)?;
        trace_forward(&engine, &self.input, self.arguments.hidden)
    }
}

/// The same with a loss and its gradients.
struct Loss {
    work: Work,
    objective: Objective,
}

impl OnTrainDevice for Loss {
    type Output = Vec<TraceTensor>;

    fn run<D: TrainDevice + 'static>(self, device: D) -> crate::Result<Self::Output> {
        let Self { mut work, objective } = self;
        let engine = work.engine(device)?;
        let mut tensors = trace_forward(&engine, &work.input, work.arguments.hidden)?;
        if let Some(adapter) = &work.adapter {
            tensors.extend(trace_loss(&engine, adapter, &work.input, &objective)?);
        }
        Ok(tensors)
    }
}
