//! Errors of models and adapters that do not fit each other or a request.

/// What can go wrong between a model, an adapter and a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An adapter tensor whose shape is not that of the model's projection.
    #[error(
        "adapter does not fit the model: layer {layer} {module} is {found_out}×{found_in} in the adapter and \
         {expected_out}×{expected_in} in the model"
    )]
    AdapterShape {
        /// Layer index.
        layer: usize,
        /// Projection.
        module: &'static str,
        /// Outputs in the adapter.
        found_out: usize,
        /// Inputs in the adapter.
        found_in: usize,
        /// Outputs in the model.
        expected_out: usize,
        /// Inputs in the model.
        expected_in: usize,
    },
    /// An adapter for a deeper model.
    #[error("adapter does not fit the model: it adapts layer {layer}, the model has layers 0 to {last}")]
    AdapterLayer {
        /// Layer index of the adapter.
        layer: usize,
        /// Last layer of the model.
        last: usize,
    },
    /// A layer range outside the model.
    #[error("layers {start}..{end} were asked for, the model has {layers}")]
    Layers {
        /// First.
        start: usize,
        /// One past the last.
        end: usize,
        /// Number of layers.
        layers: usize,
    },
    /// A site name that is none.
    #[error("`{name}` is not a site")]
    UnknownSite {
        /// As given.
        name: String,
    },
    /// A site outside the layers that run.
    #[error("site {site} is outside the layers that run ({start}..{end})")]
    SiteLayer {
        /// The site.
        site: String,
        /// First layer run.
        start: usize,
        /// One past the last layer run.
        end: usize,
    },
    /// A write to a site through which a gradient flows, without a declared derivative.
    #[error("a write at site {site} has no backward pass, and a gradient flows through it")]
    WriteWithoutBackward {
        /// The site.
        site: String,
    },
    /// No layer or no module to adapt.
    #[error("an adapter needs at least one layer and one module, found {layers} layers and {modules} modules")]
    EmptyAdapter {
        /// Layers asked for.
        layers: usize,
        /// Modules asked for.
        modules: usize,
    },
    /// Rank 0.
    #[error("LoRA rank must be at least 1, found {rank}")]
    Rank {
        /// As given.
        rank: usize,
    },
    /// A prompt and new tokens beyond the model's positions.
    #[error("a prompt of {prompt} tokens and {count} new ones were asked for, the model has {positions} positions")]
    TooManyTokens {
        /// Tokens of the prompt.
        prompt: usize,
        /// New ones.
        count: usize,
        /// Positions.
        positions: usize,
    },
    /// More tokens than a cache of keys and values has room for.
    #[error("{rows} tokens were given to a cache of keys and values that holds {held} of {capacity}")]
    CacheFull {
        /// Tokens given.
        rows: usize,
        /// Tokens held.
        held: usize,
        /// Tokens that fit.
        capacity: usize,
    },
    /// A gradient through kept keys and values.
    #[error("there is no backward pass through a cache of keys and values, and a gradient was asked for")]
    CacheWithoutBackward,
    /// A logit that is no number.
    #[error("the logit of token {id} is {logit}")]
    LogitNotFinite {
        /// Token.
        id: u32,
        /// Its logit.
        logit: f64,
    },
    /// A merge target that exists.
    #[error("{path} exists already")]
    OutputExists {
        /// Folder.
        path: String,
    },
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::AdapterShape { .. } | Self::AdapterLayer { .. } => {
                "compare `unflip inspect MODEL` with `unflip inspect --adapter ADAPTER`: the adapter was made for another model"
                    .into()
            }
            Self::Layers { .. } | Self::SiteLayer { .. } => "`unflip inspect MODEL` lists the layers".into(),
            Self::UnknownSite { .. } => {
                "write LAYER.KIND with KIND one of resid_pre, resid_post, attn_out, mlp_in, mlp_out, e.g. 17.resid_post, \
                 or TransformerLens's blocks.17.hook_resid_post"
                    .into()
            }
            Self::WriteWithoutBackward { .. } => "declare the write additive, or ask for gradients above it only".into(),
            Self::EmptyAdapter { .. } => "set layers, e.g. `all` or `8-11`, and modules, e.g. `q,k,v,o,gate,up,down`".into(),
            Self::Rank { .. } => "the paper uses rank 16".into(),
            Self::TooManyTokens { .. } => "ask for fewer tokens, or shorten the prompt".into(),
            Self::CacheFull { .. } => "make a cache with more room".into(),
            Self::CacheWithoutBackward => "run the whole sequence without a cache".into(),
            Self::LogitNotFinite { .. } => "`unflip inspect MODEL` tells whether a weight is not finite".into(),
            Self::OutputExists { .. } => "choose another folder, or remove this one".into(),
        })
    }
}
