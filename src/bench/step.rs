//! Whole steps on recorded groups of token ids: a training step of one group (forward, loss, backward, gradient norm, AdamW, as
//! `train` makes them) and an evaluation of one group.

use crate::Result;
use crate::data::TraceInput;
use crate::model::{Adapter, Engine, LoraLayout, LoraSettings};
use crate::objective::Objective;
use crate::ops::TrainDevice;
use crate::ops::adamw::AdamWStep;
use crate::train::{AdapterTrainer, EngineGroup, MarginEngine, TrainEngine};
use crate::weights::{AdapterConfig, AdapterFile, Naming};
use std::time::Instant;

/// How the steps are made.
#[derive(Clone, Debug)]
pub struct StepSettings {
    /// A new adapter's shape, where none is given.
    pub lora: LoraSettings,
    /// What is minimised.
    pub objective: Objective,
    /// Learning rate.
    pub lr: f64,
    /// Seed of a new adapter.
    pub seed: u64,
}

/// One step or evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// Index of its group.
    pub group: usize,
    /// How long it took.
    pub seconds: f64,
    /// Rows of the packed batch.
    pub tokens: usize,
    /// The group's loss before the update; `None` of an evaluation.
    pub loss: Option<f64>,
    /// z_yes − z_no of each phrasing.
    pub margins: Vec<f64>,
}

/// A model, an adapter under training, and groups to take in turn.
pub struct StepBench<D: TrainDevice> {
    trainer: AdapterTrainer<D>,
    groups: Vec<EngineGroup>,
    lr: f64,
    steps: u64,
    next: usize,
}

impl<D: TrainDevice> StepBench<D> {
    /// Puts an adapter on the engine: `adapter`, or a new one.
    ///
    /// # Errors
    /// Groups that the model cannot take; an adapter for another model; layers that it lacks.
    pub fn new(
        engine: Engine<D>,
        adapter: Option<&AdapterFile>,
        input: &TraceInput,
        settings: &StepSettings,
    ) -> Result<Self> {
        let groups = engine_groups(input);
        engine.check_groups(&groups)?;
        let config = &engine.model.config;
        let (adapter, stated) = match adapter {
            Some(file) => (Adapter::from_file(&engine.device, config, file)?, file.config.clone()),
            None => {
                let layout = LoraLayout::from_settings(config, &settings.lora)?;
                let modules: Vec<_> = settings.lora.modules.iter().copied().collect();
                let layers: Vec<_> = settings.lora.layers.iter().copied().collect();
                let stated =
                    AdapterConfig::new(Naming::CausalLm, settings.lora.rank, settings.lora.alpha, &modules, &layers);
                (Adapter::new(&engine.device, layout, settings.seed), stated)
            }
        };
        let stated = AdapterConfig { lora_dropout: 0.0, ..stated };
        let trainer = AdapterTrainer::new(engine, adapter, stated, settings.objective.clone(), settings.seed);
        Ok(Self { trainer, groups, lr: settings.lr, steps: 0, next: 0 })
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The group to take, in turn unless named.
    fn take(&mut self, group: Option<usize>) -> usize {
        let group = group.unwrap_or(self.next) % self.groups.len();
        self.next = group + 1;
        group
    }

    /// One update on one group (counted modulo their number); the next in turn if none is named.
    ///
    /// # Errors
    /// As of training.
    pub fn train(&mut self, group: Option<usize>) -> Result<StepTime> {
        let group = self.take(group);
        self.steps += 1;
        let batch = std::slice::from_ref(&self.groups[group]);
        let tokens = batch[0].unique_tokens();
        let update = AdamWStep {
            lr: self.lr,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            gradient_scale: 1.0,
            step: self.steps,
        };
        let start = Instant::now();
        let (losses, gradient) = self.trainer.leaf(batch, u32::try_from(self.steps).unwrap_or(u32::MAX), 0)?;
        let norm = self.trainer.gradient_norm(&gradient);
        if !norm.is_finite() {
            let id = Some(self.groups[group].id.clone());
            let error = crate::train::Error::NonFinite { what: "gradient", step: self.steps, group: id, tensor: None };
            return Err(error.into());
        }
        self.trainer.update(&gradient, &update);
        drop(gradient);
        let seconds = start.elapsed().as_secs_f64();
        let loss = losses.first().map(|loss| loss.loss);
        let margins = losses.into_iter().next().map_or_else(Vec::new, |loss| loss.margins);
        Ok(StepTime { group, seconds, tokens, loss, margins })
    }

    /// Margins of one group with the adapter as it is.
    ///
    /// # Errors
    /// As of evaluation.
    pub fn evaluate(&mut self, group: Option<usize>) -> Result<StepTime> {
        let group = self.take(group);
        let batch = std::slice::from_ref(&self.groups[group]);
        let tokens = batch[0].unique_tokens();
        let start = Instant::now();
        let margins = self.trainer.margins(batch)?;
        let seconds = start.elapsed().as_secs_f64();
        let margins = margins.into_iter().next().unwrap_or_default();
        Ok(StepTime { group, seconds, tokens, loss: None, margins })
    }
}

/// The file's groups as the engine takes them, named by their place.
pub fn engine_groups(input: &TraceInput) -> Vec<EngineGroup> {
    input
        .groups
        .iter()
        .enumerate()
        .map(|(index, group)| EngineGroup {
            id: index.to_string(),
            tokens: group.tokens.clone(),
            yes: group.yes,
            no: group.no,
            answer_yes: group.answer_yes,
        })
        .collect()
}
