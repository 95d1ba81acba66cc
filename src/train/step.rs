//! One step: leaves → gradient tree → mean → clip → AdamW, and what it measured. Apart from the loop, which knows files.

use super::answers::AnswerCounts;
use super::checkpoint::Position;
use super::collapse::{Answering, MarginSpread};
use super::engine::{EngineGroup, TrainEngine};
use super::error::Error;
use super::gradient_tree::GradientTree;
use super::metrics::StepMetrics;
use super::order::{StepPlace, chosen_phrasings, place};
use super::schedule::Schedule;
use super::settings::Settings;
use crate::error::Result;
use crate::ops::adamw::AdamWStep;

/// Whether there are groups, and paraphrases where the loss compares phrasings.
pub(super) fn check_trainable(groups: &[EngineGroup], settings: &Settings) -> Result<(), Error> {
    if groups.is_empty() {
        return Err(Error::NoGroups);
    }
    let lone = groups.iter().find(|group| group.tokens.suffixes.len() < 2);
    match lone.filter(|_| settings.needs_paraphrases()) {
        Some(group) => Err(Error::NoParaphrase { group: group.id.clone() }),
        None => Ok(()),
    }
}

/// One update: returns its metrics (their window is the caller's), or an error before any parameter has changed.
pub(super) fn one_step<E: TrainEngine>(
    engine: &mut E,
    groups: &[EngineGroup],
    order: &[usize],
    at: &StepPlace,
    step: u64,
    total_steps: u64,
    settings: &Settings,
) -> Result<StepMetrics> {
    let seed = settings.run.seed;
    let batch: Vec<EngineGroup> = order[at.positions.clone()]
        .iter()
        .map(|&index| {
            let group = &groups[index];
            let phrasings = group.tokens.suffixes.len();
            group.with_phrasings(&chosen_phrasings(settings.data.paraphrases, seed, at.epoch, index, phrasings))
        })
        .collect();
    let step_key = u32::try_from(step).unwrap_or(u32::MAX);
    let leaf_size = settings.schedule.groups_per_batch;

    let mut tree = GradientTree::default();
    let (mut loss, mut consistency, mut accuracy) = (0.0, 0.0, 0.0);
    let mut answers = AnswerCounts::default();
    let mut originals = Vec::with_capacity(batch.len());
    for (leaf, part) in batch.chunks(leaf_size).enumerate() {
        let first = (leaf * leaf_size) as u32;
        let (losses, gradient) = engine.leaf(part, step_key, first)?;
        for (index, (group, one)) in part.iter().zip(&losses).enumerate() {
            let margins = one.margins.iter().all(|margin| margin.is_finite());
            if !margins || ![one.loss, one.consistency, one.accuracy].iter().all(|value| value.is_finite()) {
                let what = if margins { "loss" } else { "margin" };
                return Err(non_finite(engine, what, step, group, first + index as u32).into());
            }
            loss += one.loss;
            consistency += one.consistency;
            accuracy += one.accuracy;
            answers += AnswerCounts::of(&one.margins, group.answer_yes);
            originals.extend(one.margins.first());
        }
        tree.push(leaf as u64, gradient, |into, other| engine.add(into, other));
    }
    let count = batch.len() as f64;
    let gradient = tree.finish(|into, other| engine.add(into, other)).ok_or(Error::NoGroups)?;
    let grad_norm = engine.gradient_norm(&gradient) / count;
    if !grad_norm.is_finite() {
        drop(gradient);
        // A second look, group by group, only to say where.
        for (ordinal, group) in batch.iter().enumerate() {
            let (_, alone) = engine.leaf(std::slice::from_ref(group), step_key, ordinal as u32)?;
            if !engine.gradient_norm(&alone).is_finite() {
                return Err(non_finite(engine, "gradient", step, group, ordinal as u32).into());
            }
        }
        return Err(Error::NonFinite { what: "gradient", step, group: None, tensor: None }.into());
    }
    let optimizer = &settings.optimizer;
    let clip = optimizer.clip.map_or(1.0, |most| (most / (grad_norm + 1e-6)).min(1.0));
    // The second moment holds squares in f32.
    if (clip * grad_norm).powi(2) > f64::from(f32::MAX) {
        return Err(Error::NonFinite { what: "squared gradient", step, group: None, tensor: None }.into());
    }
    let schedule = Schedule {
        lr: optimizer.lr,
        warmup_steps: settings.schedule.warmup_steps,
        decay: settings.schedule.decay,
        steps: total_steps,
    };
    let learning_rate = schedule.lr(step);
    engine.update(
        &gradient,
        &AdamWStep {
            lr: learning_rate,
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            eps: optimizer.eps,
            weight_decay: optimizer.weight_decay,
            gradient_scale: clip / count,
            step,
        },
    );
    Ok(StepMetrics {
        step,
        epoch: at.epoch,
        loss: loss / count,
        loss_consistency: consistency / count,
        loss_accuracy: accuracy / count,
        grad_norm,
        learning_rate,
        tokens: batch.iter().map(|group| group.unique_tokens() as u64).sum(),
        answers,
        margins: MarginSpread::of(&originals),
        recent: Answering::default(),
    })
}

/// The error for a value of `group` that is not finite, with the first tensor that is not.
fn non_finite<E: TrainEngine>(
    engine: &mut E,
    what: &'static str,
    step: u64,
    group: &EngineGroup,
    ordinal: u32,
) -> Error {
    let step_key = u32::try_from(step).unwrap_or(u32::MAX);
    let tensor = engine.first_non_finite(group, step_key, ordinal).ok().flatten();
    Error::NonFinite { what, step, group: Some(group.id.clone()), tensor }
}

/// Where a run stands after `step` updates.
pub(super) fn position_after(step: u64, groups: usize, settings: &Settings) -> Position {
    let next = place(step + 1, groups, settings.schedule.batch_groups);
    Position { step, seed: settings.run.seed, epoch: next.epoch, seen: next.positions.start as u64 }
}
