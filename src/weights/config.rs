//! `config.json` of every era to one structure (formats in docs/formats.md).

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
