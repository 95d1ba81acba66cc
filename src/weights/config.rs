//! `config.json` of every era to one structure (formats in docs/formats.md).
//!
//! The published 4B configuration stores seven fields and leaves the rest to the defaults of transformers' classes, so
//! those stand here. A setting that changes the computation and is not computed is refused by name; `json.rs` does the
//! reading of single fields.

use super::{
    Error,
    adapter::Module,
    json::{self, Object},
};
use std::path::Path;

/// What a layer's queries may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Keys within the sliding window only; local rotary base.
    Sliding,
    /// All earlier keys; global rotary base and scaling.
    Full,
}

/// Rotary embedding of one layer kind: angle = position · theta^(−2j/head_dim) / factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base.
    pub theta: f64,
    /// Linear scaling divisor (1 without scaling).
    pub factor: f64,
}

/// The text decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// ε of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Scores are scaled by its −½th power.
    pub query_pre_attn_scalar: f64,
    /// Keys a sliding layer's query sees, itself included.
    pub sliding_window: usize,
    /// Kind of each layer.
    pub layer_types: Vec<LayerKind>,
    /// Rotary of full layers.
    pub rope_global: Rope,
    /// Rotary of sliding layers.
    pub rope_local: Rope,
    /// Longest prompt.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding (always, unless a separate lm_head is stored).
    pub tie_word_embeddings: bool,
}

/// The SigLIP tower, as stored; read now so that a VLM's text half loads, used by the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// MLP width.
    pub intermediate_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// ε of every layer norm.
    pub layer_norm_eps: f64,
}

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Decoder.
    pub text: TextConfig,
    /// Vision tower of a vision-language model.
    pub vision: Option<VisionConfig>,
    /// Id of the soft token that image embeddings replace (VLM only).
    pub image_token: Option<u32>,
    /// Soft tokens per image (VLM only).
    pub image_tokens: usize,
    /// End-of-sequence ids.
    pub eos_token_ids: Vec<u32>,
}

/// Layers that a configuration may have: far beyond any model, and small enough to allocate for.
pub(super) const MOST_LAYERS: usize = 4096;

impl TextConfig {
    /// `[outputs, inputs]` of a linear layer that LoRA can adapt.
    pub fn linear_shape(&self, module: Module) -> [usize; 2] {
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        match module {
            Module::Q => [queries, self.hidden_size],
            Module::K | Module::V => [keys, self.hidden_size],
            Module::O => [self.hidden_size, queries],
            Module::Gate | Module::Up => [self.intermediate_size, self.hidden_size],
            Module::Down => [self.hidden_size, self.intermediate_size],
        }
    }

    /// Canonical name and shape of every tensor of the decoder, without an `lm_head.weight`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![
            ("language_model.embed_tokens.weight".to_string(), vec![self.vocab_size, self.hidden_size]),
            ("language_model.norm.weight".to_string(), vec![self.hidden_size]),
        ];
        for layer in 0..self.num_hidden_layers {
            let mut add = |part: &str, shape: Vec<usize>| {
                tensors.push((format!("language_model.layers.{layer}.{part}.weight"), shape));
            };
            for norm in NORMS {
                add(norm, vec![self.hidden_size]);
            }
            add("self_attn.q_norm", vec![self.head_dim]);
            add("self_attn.k_norm", vec![self.head_dim]);
            for module in Module::ALL {
                add(module.path(), self.linear_shape(module).to_vec());
            }
        }
        tensors
    }
}

/// The four RMSNorms over the residual stream in a layer.
const NORMS: [&str; 4] =
    ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"];

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::Field`] for a value of the wrong type or range, [`Error::Unsupported`]
    /// for a valid setting that is not computed.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_json(&path.display().to_string(), &json::read(path)?)
    }

    /// As [`ModelConfig::read`], from the text of a file named `file` in errors.
    pub fn from_json(file: &str, text: &str) -> Result<Self, Error> {
        let value = json::parse(file, text)?;
        let outer = Object::root(file, &value)?;
        outer.refuse_set("quantization_config", "weights must be BF16 or F32")?;
        match outer.string("model_type")?.as_deref() {
            Some("gemma3_text") => Ok(Self {
                eos_token_ids: token_ids(&outer, "eos_token_id")?.unwrap_or_else(|| vec![1]),
                text: text_config(&outer, &outer)?,
                vision: None,
                image_token: None,
                image_tokens: 0,
            }),
            Some("gemma3") => {
                let text = outer.object("text_config")?;
                if let Some(found) = text.string("model_type")?.filter(|found| found != "gemma3_text") {
                    return Err(text.unsupported("model_type", found, "only `gemma3_text` is"));
                }
                let eos = match token_ids(&outer, "eos_token_id")? {
                    Some(ids) => ids,
                    None => token_ids(&text, "eos_token_id")?.unwrap_or_else(|| vec![1]),
                };
                let vision = vision_config(&outer.object("vision_config")?)?;
                let image_tokens = outer.positive("mm_tokens_per_image", 256)?;
                check_pooling(&outer, &vision, image_tokens)?;
                Ok(Self {
                    text: text_config(&text, &outer)?,
                    vision: Some(vision),
                    image_token: Some(match outer.token("image_token_index")? {
                        Some(id) => id,
                        None => outer.token("image_token_id")?.unwrap_or(262_144),
                    }),
                    image_tokens,
                    eos_token_ids: eos,
                })
            }
            Some(found) => Err(outer.unsupported("model_type", found, "only `gemma3` and `gemma3_text` are")),
            None => Err(outer.wrong("model_type", "absent", "`gemma3` or `gemma3_text`")),
        }
    }
}

/// The decoder, with the defaults of transformers' `Gemma3TextConfig`.
fn text_config(object: &Object, outer: &Object) -> Result<TextConfig, Error> {
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        object.refuse_set(field, "Gemma 3 has no soft-capping")?;
    }
    for (field, reason) in [
        ("attention_bias", "Gemma 3's projections have no bias"),
        ("use_bidirectional_attention", "only causal attention is computed"),
    ] {
        match object.get(field) {
            None | Some(serde_json::Value::Bool(false)) => {}
            Some(found) => return Err(object.unsupported(field, found, reason)),
        }
    }
    if object.number("attention_dropout", 0.0)? != 0.0 {
        return Err(object.unsupported("attention_dropout", "not 0", "dropout is applied to adapters only"));
    }
    for field in ["hidden_activation", "hidden_act"] {
        if let Some(found) = object.string(field)?.filter(|found| found != "gelu_pytorch_tanh") {
            return Err(object.unsupported(field, found, "only `gelu_pytorch_tanh` is"));
        }
    }

    let num_hidden_layers = object.positive("num_hidden_layers", 26)?;
    if num_hidden_layers > MOST_LAYERS {
        return Err(object.wrong("num_hidden_layers", num_hidden_layers, &format!("at most {MOST_LAYERS}")));
    }
    let num_attention_heads = object.positive("num_attention_heads", 8)?;
    let num_key_value_heads = object.positive("num_key_value_heads", 4)?;
    if num_attention_heads % num_key_value_heads != 0 {
        let expected = format!("a divisor of the {num_attention_heads} attention heads");
        return Err(object.wrong("num_key_value_heads", num_key_value_heads, &expected));
    }
    let head_dim = object.positive("head_dim", 256)?;
    if head_dim % 2 != 0 {
        return Err(object.wrong("head_dim", head_dim, "an even number, as rotary embedding turns pairs"));
    }
    let (rope_global, rope_local) = ropes(object)?;
    Ok(TextConfig {
        vocab_size: object.positive("vocab_size", 262_208)?,
        hidden_size: object.positive("hidden_size", 2304)?,
        intermediate_size: object.positive("intermediate_size", 9216)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: object.positive_number("rms_norm_eps", 1e-6)?,
        query_pre_attn_scalar: object.positive_number("query_pre_attn_scalar", 256.0)?,
        sliding_window: object.positive("sliding_window", 4096)?,
        layer_types: layer_types(object, num_hidden_layers)?,
        rope_global,
        rope_local,
        max_position_embeddings: object.positive("max_position_embeddings", 131_072)?,
        tie_word_embeddings: match object.boolean("tie_word_embeddings")? {
            Some(tied) => tied,
            None => outer.boolean("tie_word_embeddings")?.unwrap_or(true),
        },
    })
}

/// Explicit `layer_types`, else every `sliding_window_pattern`-th layer is full.
fn layer_types(object: &Object, layers: usize) -> Result<Vec<LayerKind>, Error> {
    let Some(value) = object.get("layer_types") else {
        let pattern = match object.get("sliding_window_pattern") {
            Some(_) => object.positive("sliding_window_pattern", 6)?,
            None => object.positive("_sliding_window_pattern", 6)?,
        };
        let kind = |layer| if (layer + 1) % pattern == 0 { LayerKind::Full } else { LayerKind::Sliding };
        return Ok((0..layers).map(kind).collect());
    };
    let Some(kinds) = value.as_array() else {
        return Err(object.wrong("layer_types", value, "a list with one kind for each layer"));
    };
    if kinds.len() != layers {
        let found = format!("a list of {}", kinds.len());
        return Err(object.wrong("layer_types", found, &format!("one kind for each of the {layers} layers")));
    }
    let kind = |kind: &serde_json::Value| match kind.as_str() {
        Some("sliding_attention") => Ok(LayerKind::Sliding),
        Some("full_attention") => Ok(LayerKind::Full),
        _ => Err(object.unsupported("layer_types", kind, "only `sliding_attention` and `full_attention` are")),
    };
    kinds.iter().map(kind).collect()
}

/// Rotary of full and of sliding layers: `rope_parameters` by layer type, or the older three fields, or both, where
/// `rope_scaling` has the last word on full layers (as transformers 5 reads it).
fn ropes(object: &Object) -> Result<(Rope, Rope), Error> {
    let mut global = Rope { theta: object.positive_number("rope_theta", 1e6)?, factor: 1.0 };
    let mut local = Rope { theta: object.positive_number("rope_local_base_freq", 1e4)?, factor: 1.0 };
    for field in ["rope_parameters", "rope_scaling"] {
        if object.get(field).is_none() {
            continue;
        }
        let settings = object.object(field)?;
        let full = settings.object("full_attention")?;
        let sliding = settings.object("sliding_attention")?;
        if !full.is_empty() || !sliding.is_empty() {
            global = rope(&full, global)?;
            local = rope(&sliding, local)?;
        } else if field == "rope_scaling" {
            global = rope(&settings, global)?;
        } else {
            return Err(object.wrong(field, "flat", "one entry each for `full_attention` and `sliding_attention`"));
        }
    }
    Ok((global, local))
}

/// One rotary entry over what is known already.
fn rope(settings: &Object, before: Rope) -> Result<Rope, Error> {
    let kind = match settings.string("rope_type")? {
        Some(kind) => Some(kind),
        None => settings.string("type")?,
    };
    if settings.number("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(settings.unsupported("partial_rotary_factor", "not 1", "the whole head is rotated"));
    }
    let factor = match kind.as_deref() {
        None if settings.get("factor").is_none() => before.factor,
        Some("default") => 1.0,
        Some("linear") if settings.get("factor").is_none() => {
            return Err(settings.wrong("factor", "absent", "the divisor of linear scaling"));
        }
        Some("linear") => settings.positive_number("factor", 1.0)?,
        Some(other) => return Err(settings.unsupported("rope_type", other, "only `default` and `linear` are")),
        None => return Err(settings.wrong("rope_type", "absent", "`default` or `linear`")),
    };
    Ok(Rope { theta: settings.positive_number("rope_theta", before.theta)?, factor })
}

/// SigLIP, with the defaults of transformers' `SiglipVisionConfig`.
fn vision_config(object: &Object) -> Result<VisionConfig, Error> {
    if let Some(found) = object.string("model_type")?.filter(|found| found != "siglip_vision_model") {
        return Err(object.unsupported("model_type", found, "only `siglip_vision_model` is"));
    }
    if let Some(found) = object.string("hidden_act")?.filter(|found| found != "gelu_pytorch_tanh") {
        return Err(object.unsupported("hidden_act", found, "only `gelu_pytorch_tanh` is"));
    }
    let channels = object.positive("num_channels", 3)?;
    if channels != 3 {
        return Err(object.unsupported("num_channels", channels, "images have 3 channels"));
    }
    let config = VisionConfig {
        hidden_size: object.positive("hidden_size", 768)?,
        num_hidden_layers: object.positive("num_hidden_layers", 12)?,
        num_attention_heads: object.positive("num_attention_heads", 12)?,
        intermediate_size: object.positive("intermediate_size", 3072)?,
        patch_size: object.positive("patch_size", 16)?,
        image_size: object.positive("image_size", 224)?,
        layer_norm_eps: object.positive_number("layer_norm_eps", 1e-6)?,
    };
    if config.num_hidden_layers > MOST_LAYERS {
        return Err(object.wrong("num_hidden_layers", config.num_hidden_layers, &format!("at most {MOST_LAYERS}")));
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        let expected = format!("a divisor of hidden_size {}", config.hidden_size);
        return Err(object.wrong("num_attention_heads", config.num_attention_heads, &expected));
    }
    Ok(config)
}

/// The patches, a square, are pooled to `image_tokens`, a square, by a whole number each way.
fn check_pooling(outer: &Object, vision: &VisionConfig, image_tokens: usize) -> Result<(), Error> {
    let side = vision.image_size / vision.patch_size;
    let tokens_side = image_tokens.isqrt();
    if side == 0 || tokens_side * tokens_side != image_tokens || !side.is_multiple_of(tokens_side) {
        let expected = format!("the square of a divisor of {side}, the patches along one side of the image");
        return Err(outer.wrong("mm_tokens_per_image", image_tokens, &expected));
    }
    Ok(())
}

/// A token id or a list of them.
fn token_ids(object: &Object, field: &str) -> Result<Option<Vec<u32>>, Error> {
    let id = |value: &serde_json::Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| object.wrong(field, value, "a token id or a list of token ids"))
    };
    match object.get(field) {
        None => Ok(None),
        Some(serde_json::Value::Array(ids)) if !ids.is_empty() => {
            ids.iter().map(id).collect::<Result<_, _>>().map(Some)
        }
        Some(value) => Ok(Some(vec![id(value)?])),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
