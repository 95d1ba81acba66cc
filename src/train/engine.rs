//! What training and evaluation ask of an engine: margins of groups, and, with an adapter, gradients and updates. Kept
//! apart from the model so that loop, checkpoints and statistics are tested without one.

use crate::Result;
use crate::batch::TokenGroup;
use crate::objective::GroupLoss;
use crate::ops::adamw::AdamWStep;
use std::path::Path;

/// One question with all its phrasings, as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineGroup {
    /// Id in the data file, for error messages.
    pub id: String,
    /// Prompts; phrasing 0 is the original.
    pub tokens: TokenGroup,
    /// Token id of "Yes".
    pub yes: u32,
    /// Token id of "No".
    pub no: u32,
    /// Whether yes is right.
    pub answer_yes: bool,
}

impl EngineGroup {
    /// Rows that the group occupies when its prefix is stored once.
    pub fn unique_tokens(&self) -> usize {
        self.tokens.unique_tokens()
    }

    /// The group with some of its phrasings, in the order given.
    pub fn with_phrasings(&self, phrasings: &[usize]) -> Self {
        let suffixes = phrasings.iter().map(|&k| self.tokens.suffixes[k].clone()).collect();
        Self { tokens: TokenGroup { prefix: self.tokens.prefix.clone(), suffixes }, ..self.clone() }
    }
}

/// A loaded model that answers.
pub trait MarginEngine {
    /// z_yes − z_no at the answer position, per group and phrasing. Dropout is off.
    fn margins(&mut self, groups: &[EngineGroup]) -> Result<Vec<Vec<f64>>>;
}

/// Adapter parameters and AdamW moments, all flat in the engine's fixed order and of one length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainerTensors {
    /// Master weights of every A and B.
    pub params: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
}

/// A loaded model with one adapter under training.
pub trait TrainEngine: MarginEngine {
    /// Flat gradient of the adapter.
    type Gradient;

    /// Loss of each group and the gradient *summed* over the groups, packed as one batch. `step` counts updates from 1 and
    /// `first_ordinal` is the first group's ordinal within the step: both key dropout masks.
    fn leaf(
        &mut self,
        groups: &[EngineGroup],
        step: u32,
        first_ordinal: u32,
    ) -> Result<(Vec<GroupLoss>, Self::Gradient)>;
    /// Loss of each group, without dropout and without a gradient.
    fn evaluate(&mut self, groups: &[EngineGroup]) -> Result<Vec<GroupLoss>>;
    /// The name in adapter files of the tensor that holds the flat vectors' element `index`, if the engine has names.
    fn tensor_name(&self, index: usize) -> Option<String>;
    /// Computes a group's leaf once more to name what leaves the numbers first: a parameter, an activation or answer logits in
    /// the order of the forward pass, or a gradient in the order of the backward pass. `None` if all are finite.
    fn first_non_finite(&mut self, group: &EngineGroup, step: u32, ordinal: u32) -> Result<Option<String>>;
    /// `into += other`, elementwise.
    fn add(&mut self, into: &mut Self::Gradient, other: &Self::Gradient);
    /// √Σg², summed in f64 in a fixed order.
    fn gradient_norm(&self, gradient: &Self::Gradient) -> f64;
    /// One AdamW update.
    fn update(&mut self, gradient: &Self::Gradient, step: &AdamWStep);
    /// Parameters and moments, for a checkpoint.
    fn state(&self) -> TrainerTensors;
    /// Puts a checkpoint's parameters and moments back. Fails if their length is not the adapter's.
    fn load_state(&mut self, state: TrainerTensors) -> Result<()>;
    /// Writes `adapter_model.safetensors`, `adapter_config.json` and what else belongs to an adapter into an existing folder.
    fn write_adapter(&self, folder: &Path) -> Result<()>;
}
