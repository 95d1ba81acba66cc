//! Whether a verb's work fits into memory, asked before it is begun.

use super::device::{DeviceArgs, DeviceName};
use crate::estimate::{Task, TrainingTask, estimate, judge};
use crate::machine;
use crate::model::LoraLayout;
use crate::train::{EngineGroup, Settings};
use crate::weights::{AdapterFile, Checkpoint};

/// Slots of a run's adapter: those of the one to start from, or of a new one.
///
/// # Errors
/// An adapter for another model, layers that the model lacks.
pub fn layout(
    settings: &Settings,
    checkpoint: &Checkpoint,
    adapter: Option<&AdapterFile>,
) -> crate::Result<LoraLayout> {
    let config = &checkpoint.config.text;
    Ok(match adapter {
        Some(file) => LoraLayout::from_file(config, file)?,
        None => LoraLayout::from_settings(config, &settings.lora(config.num_hidden_layers)?)?,
    })
}

/// Refuses a training run that this machine cannot hold.
///
/// # Errors
/// [`crate::estimate::Error::Memory`] names the setting to change; what the run itself would refuse.
pub fn check_training(
    device: &DeviceArgs,
    settings: &Settings,
    checkpoint: &Checkpoint,
    adapter: Option<&AdapterFile>,
    groups: &[EngineGroup],
    trunk_budget: u64,
) -> crate::Result<()> {
    let layout = layout(settings, checkpoint, adapter)?;
    let objective = settings.objective.build()?;
    let schedule = &settings.schedule;
    check(
        device,
        &Task {
            checkpoint,
            layout: Some(&layout),
            groups,
            share_prefix: settings.model.share_prefix,
            groups_per_batch: schedule.groups_per_batch,
            trunk_budget,
            training: Some(TrainingTask { objective: &objective, batch_groups: schedule.batch_groups }),
        },
    )
}

/// Refuses a task that this machine cannot hold.
///
/// # Errors
/// [`crate::estimate::Error::Memory`] names the setting to change; what the task itself would refuse.
pub fn check(device: &DeviceArgs, task: &Task<'_>) -> crate::Result<()> {
    // The reference computes in f64 on models that are small enough for it.
    if device.device != DeviceName::Cpu {
        return Ok(());
    }
    let Some(memory) = machine::memory() else { return Ok(()) };
    let found = estimate(task)?;
    Ok(judge(task, &found, &memory)?.enforce(&found, &memory)?)
}
