//! The real engine behind the loop: a model with a LoRA adapter, its moments, its loss and its dropout.

use super::{AdapterNotes, EngineGroup, MarginEngine, TrainEngine, TrainerTensors, non_finite};
use crate::Result;
use crate::batch::{GroupName, TokenGroup};
use crate::model::{Adapter, DropoutStep, Engine, Target};
use crate::objective::{GroupLoss, Objective};
use crate::ops::adamw::AdamWStep;
use crate::ops::{Device, TrainDevice};
use crate::weights::AdapterConfig;
use std::path::Path;

impl From<&EngineGroup> for Target {
    fn from(group: &EngineGroup) -> Self {
        Self { yes: group.yes, no: group.no, answer_yes: group.answer_yes }
    }
}

fn tokens(groups: &[EngineGroup]) -> Vec<TokenGroup> {
    groups.iter().map(|group| group.tokens.clone()).collect()
}

fn targets(groups: &[EngineGroup]) -> Vec<Target> {
    groups.iter().map(Target::from).collect()
}

/// Names the group that a batch's error is about by its id.
fn with_ids(error: crate::Error, groups: &[EngineGroup]) -> crate::Error {
    let id = |index: usize| groups.get(index).map_or(GroupName::Index(index), |group| GroupName::Id(group.id.clone()));
    match error {
        crate::Error::Batch(error) => error.rename(id).into(),
        other => other,
    }
}

impl<D: Device> Engine<D> {
    /// Whether the model can take all of these groups: to be asked before a folder is made or hours are spent.
    ///
    /// # Errors
    /// As [`Engine::check`], with the group's id.
    pub fn check_groups(&self, groups: &[EngineGroup]) -> Result<()> {
        self.check(&tokens(groups), &targets(groups)).map_err(|error| with_ids(error, groups))
    }
}

impl<D: Device> MarginEngine for Engine<D> {
    fn margins(&mut self, groups: &[EngineGroup]) -> Result<Vec<Vec<f64>>> {
        self.check_groups(groups)?;
        let batch = self.pack(&tokens(groups), 0)?;
        Engine::margins(self, &batch, &targets(groups))
    }
}

/// Trains the adapter of an engine.
pub struct AdapterTrainer<D: TrainDevice> {
    engine: Engine<D>,
    objective: Objective,
    dropout: f32,
    seed: u64,
    m: D::Buf,
    v: D::Buf,
    config: AdapterConfig,
    notes: Option<AdapterNotes>,
}

impl<D: TrainDevice> AdapterTrainer<D> {
    /// Starts from `adapter` with moments of zero. `config` is what its folders state; its dropout is applied in training.
    pub fn new(
        mut engine: Engine<D>,
        adapter: Adapter<D>,
        config: AdapterConfig,
        objective: Objective,
        seed: u64,
    ) -> Self {
        let length = adapter.layout.len();
        let (m, v) = (engine.device.zeros(1, length), engine.device.zeros(1, length));
        engine.adapter = Some(adapter);
        Self { engine, objective, dropout: config.lora_dropout as f32, seed, m, v, config, notes: None }
    }

    /// Has `notes` stand in every adapter folder.
    pub fn with_notes(mut self, notes: AdapterNotes) -> Self {
        self.notes = Some(notes);
        self
    }

    fn adapter(&self) -> &Adapter<D> {
        self.engine.adapter.as_ref().expect("`new` attached one")
    }

    fn download(&self, buf: &D::Buf) -> Vec<f32> {
        self.engine.device.download(buf).into_iter().map(|value| value as f32).collect()
    }
}

impl<D: TrainDevice> MarginEngine for AdapterTrainer<D> {
    fn margins(&mut self, groups: &[EngineGroup]) -> Result<Vec<Vec<f64>>> {
        MarginEngine::margins(&mut self.engine, groups)
    }
}

impl<D: TrainDevice> TrainEngine for AdapterTrainer<D> {
    type Gradient = D::Buf;

    fn leaf(&mut self, groups: &[EngineGroup], step: u32, first_ordinal: u32) -> Result<(Vec<GroupLoss>, D::Buf)> {
        self.engine.check_groups(groups)?;
        let batch = self.engine.pack(&tokens(groups), first_ordinal)?;
        let targets = targets(groups);
        let dropout = DropoutStep { p: self.dropout, seed: self.seed, step };
        let leaf = self.engine.leaf_gradient(&batch, &targets, &self.objective, Some(dropout))?;
        Ok((leaf.losses, leaf.gradient))
    }

    fn evaluate(&mut self, groups: &[EngineGroup]) -> Result<Vec<GroupLoss>> {
        self.engine.check_groups(groups)?;
        let batch = self.engine.pack(&tokens(groups), 0)?;
        self.engine.losses(&batch, &targets(groups), &self.objective)
    }

    fn tensor_name(&self, index: usize) -> Option<String> {
        non_finite::tensor_name(self.adapter(), &self.config, index)
    }

    fn first_non_finite(&mut self, group: &EngineGroup, step: u32, ordinal: u32) -> Result<Option<String>> {
        let named = |index| non_finite::tensor_name(self.adapter(), &self.config, index);
        if let Some(index) = non_finite::first(self.download(&self.adapter().params)) {
            return Ok(named(index));
        }
        let batch = self.engine.pack(&tokens(std::slice::from_ref(group)), ordinal)?;
        let dropout = DropoutStep { p: self.dropout, seed: self.seed, step };
        if let Some(activation) = non_finite::activation(&self.engine, &batch, dropout)? {
            return Ok(Some(activation));
        }
        let (_, gradient) = self.leaf(std::slice::from_ref(group), step, ordinal)?;
        let gradient = self.download(&gradient);
        Ok(non_finite::gradient(self.adapter(), &self.config, &gradient))
    }

    fn add(&mut self, into: &mut D::Buf, other: &D::Buf) {
        self.engine.device.add_assign(into, other);
    }

    fn gradient_norm(&self, gradient: &D::Buf) -> f64 {
        self.engine.device.sum_of_squares(gradient).sqrt()
    }

    fn update(&mut self, gradient: &D::Buf, step: &AdamWStep) {
        let adapter = self.engine.adapter.as_mut().expect("`new` attached one");
        self.engine.device.adamw(&mut adapter.params, gradient, &mut self.m, &mut self.v, step);
    }

    fn state(&self) -> TrainerTensors {
        TrainerTensors {
            params: self.download(&self.adapter().params),
            m: self.download(&self.m),
            v: self.download(&self.v),
        }
    }

    fn load_state(&mut self, state: TrainerTensors) -> Result<()> {
        let length = self.adapter().layout.len();
        for (what, values) in [("params", &state.params), ("m", &state.m), ("v", &state.v)] {
            if values.len() != length {
                return Err(super::Error::Checkpoint {
                    path: "trainer_state.safetensors".into(),
                    problem: format!("`{what}` has {} values, the adapter has {length}", values.len()),
                }
                .into());
            }
        }
        let device = &self.engine.device;
        let params = device.upload(1, length, &state.params);
        self.m = device.upload(1, length, &state.m);
        self.v = device.upload(1, length, &state.v);
        self.engine.adapter.as_mut().expect("`new` attached one").params = params;
        Ok(())
    }

    fn write_adapter(&self, folder: &Path) -> Result<()> {
        self.adapter().to_file(&self.engine.device, self.config.clone()).write(folder)?;
        self.notes.as_ref().map_or(Ok(()), |notes| notes.write(folder))
    }
}
