//! Frozen decoder weights as the device holds them.

use super::{Error, RopeRows};
use crate::ops::Backend;
use crate::weights::{Checkpoint, Dtype, Module, TextConfig};

/// How √hidden, the factor on embeddings, is rounded. Hugging Face rounds it to the dtype that the weights are loaded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EmbedScale {
    /// To the stored embedding's dtype: what a bf16 model is used with.
    #[default]
    Auto,
    /// Not at all (f32).
    Exact,
    /// To bf16.
    Bf16,
}

impl EmbedScale {
    /// The factor for a model of this width and stored dtype.
    pub fn value(self, hidden: usize, stored: Dtype) -> f32 {
        let exact = (hidden as f64).sqrt() as f32;
        match (self, stored) {
            (Self::Exact, _) | (Self::Auto, Dtype::F32) => exact,
            _ => half::bf16::from_f32(exact).to_f32(),
        }
    }
}

/// Weights of one decoder block; shapes as stored, `[out, in]`.
pub struct Layer<D: Backend> {
    pub(super) input_norm: D::Weight,
    pub(super) q: D::Weight,
    pub(super) k: D::Weight,
    pub(super) v: D::Weight,
    pub(super) o: D::Weight,
    pub(super) q_norm: D::Weight,
    pub(super) k_norm: D::Weight,
    pub(super) post_attention_norm: D::Weight,
    pub(super) pre_feedforward_norm: D::Weight,
    pub(super) gate: D::Weight,
    pub(super) up: D::Weight,
    pub(super) down: D::Weight,
    pub(super) post_feedforward_norm: D::Weight,
}

impl<D: Backend> Layer<D> {
    /// The projection that a LoRA module adapts.
    pub fn projection(&self, module: Module) -> &D::Weight {
        match module {
            Module::Q => &self.q,
            Module::K => &self.k,
            Module::V => &self.v,
            Module::O => &self.o,
            Module::Gate => &self.gate,
            Module::Up => &self.up,
            Module::Down => &self.down,
        }
    }
}

/// A text decoder on a device.
pub struct TextModel<D: Backend> {
    /// Dimensions of the whole model, also when only its first layers were loaded.
    pub config: TextConfig,
    /// Factor on embeddings.
    pub embed_scale: f32,
    /// Id whose rows are images (VLM).
    pub image_token: Option<u32>,
    pub(super) embedding: D::Weight,
    pub(super) head: D::Weight,
    pub(super) layers: Vec<Layer<D>>,
    pub(super) final_norm: D::Weight,
    /// Of sliding layers, then of full ones.
    pub(super) rope: [RopeRows<D::Buf>; 2],
}

impl<D: Backend> TextModel<D> {
    /// Takes the decoder of a checkpoint, or its first `layers` layers.
    pub fn load(
        device: &D,
        checkpoint: &Checkpoint,
        embed_scale: EmbedScale,
        layers: Option<usize>,
    ) -> crate::Result<Self> {
        let config = checkpoint.config.text.clone();
        let depth = layers.unwrap_or(config.num_hidden_layers);
        if depth > config.num_hidden_layers {
            return Err(Error::Layers { start: 0, end: depth, layers: config.num_hidden_layers }.into());
        }
        let tensor = |name: &str, shape: &[usize]| -> crate::Result<D::Weight> {
            Ok(device.weight(&checkpoint.tensor_shaped(&format!("language_model.{name}"), shape)?)?)
        };
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let table = [config.vocab_size, hidden];
        let embedding = tensor("embed_tokens.weight", &table)?;
        let head = if config.tie_word_embeddings {
            tensor("embed_tokens.weight", &table)?
        } else {
            device.weight(&checkpoint.tensor_shaped("lm_head.weight", &table)?)?
        };
        let blocks = (0..depth)
            .map(|index| {
                let norm = |name: &str| tensor(&format!("layers.{index}.{name}.weight"), &[hidden]);
                let head_norm = |name: &str| tensor(&format!("layers.{index}.self_attn.{name}.weight"), &[head_dim]);
                let linear = |module: Module| {
                    tensor(&format!("layers.{index}.{}.weight", module.path()), &config.linear_shape(module))
                };
                Ok(Layer {
                    input_norm: norm("input_layernorm")?,
                    q: linear(Module::Q)?,
                    k: linear(Module::K)?,
                    v: linear(Module::V)?,
                    o: linear(Module::O)?,
                    q_norm: head_norm("q_norm")?,
                    k_norm: head_norm("k_norm")?,
                    post_attention_norm: norm("post_attention_layernorm")?,
                    pre_feedforward_norm: norm("pre_feedforward_layernorm")?,
                    gate: linear(Module::Gate)?,
                    up: linear(Module::Up)?,
                    down: linear(Module::Down)?,
                    post_feedforward_norm: norm("post_feedforward_layernorm")?,
                })
            })
            .collect::<crate::Result<Vec<_>>>()?;
        let final_norm = tensor("norm.weight", &[hidden])?;
        let stored = checkpoint.weight_dtype();
        Ok(Self {
            embed_scale: embed_scale.value(hidden, stored),
            image_token: checkpoint.config.image_token,
            embedding,
            head,
            layers: blocks,
            final_norm,
            rope: Default::default(),
            config,
        })
    }

    /// Layers that were loaded.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }
}
