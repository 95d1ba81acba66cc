//! The training loop: order → leaves → gradient tree → mean → clip → AdamW → metrics → checkpoint. Everything that decides
//! a bit is a function of settings and step; nothing is carried from step to step but the engine's tensors.

use super::answers::AnswerCounts;
use super::checkpoint::{Checkpoint, Position, Skipped};
use super::durable::sync;
use super::engine::{EngineGroup, TrainEngine};
use super::error::Error;
use super::gradient_tree::GradientTree;
use super::metrics::{Line, StepMetrics, StepTiming, ValidationMetrics};
use super::order::{StepPlace, chosen_phrasings, epoch_order, place};
use super::run_dir::RunDir;
use super::schedule::Schedule;
use super::settings::Settings;
use crate::error::Result;
use crate::ops::adamw::AdamWStep;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Questions that have to have one and the same answer, against differing truths, before this counts as a collapse.
const COLLAPSE_QUESTIONS: u64 = 64;

/// What a call of [`train`] did.
#[derive(Clone, Debug)]
pub struct TrainSummary {
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Updates made in this and earlier calls.
    pub steps: u64,
    /// Step of the checkpoint that this call went on from; 0 for a start.
    pub resumed_from: u64,
    /// Newer checkpoints that were not whole.
    pub skipped: Vec<Skipped>,
    /// The last checkpoint.
    pub checkpoint: Checkpoint,
    /// Folder of the adapter: `final/` of a finished run, else the last checkpoint.
    pub adapter: PathBuf,
    /// Step whose adapter is in `best/`, with validation data.
    pub best_step: Option<u64>,
    /// The last step's metrics.
    pub last: Option<StepMetrics>,
    /// First step at which every recent answer was the same although the truths differed.
    pub collapsed_at: Option<u64>,
}

/// Trains `engine`'s adapter on `groups` (all phrasings; the settings choose among them) into `run`, going on from its
/// newest whole checkpoint. `settings` are resolved. `progress` sees every step and may stop the run after it; a stopped
/// run has a checkpoint of that step and can be resumed.
///
/// # Errors
/// No groups, a group without a paraphrase under a loss over pairs, a non-finite loss, margin or gradient (no update is
/// made; the last checkpoint stays), a collapse if the settings ask to stop, and everything that files can do.
pub fn train<E: TrainEngine>(
    engine: &mut E,
    groups: &[EngineGroup],
    validation: &[EngineGroup],
    settings: &Settings,
    run: &RunDir,
    mut progress: impl FnMut(&StepMetrics, &StepTiming) -> ControlFlow<()>,
) -> Result<TrainSummary> {
    let groups = &groups[..settings.data.limit.unwrap_or(groups.len()).min(groups.len())];
    check_trainable(groups, settings)?;
    let total_steps = settings.total_steps(groups.len());
    let start = run.start()?;
    let mut last_checkpoint = None;
    if let Some((found, position, tensors)) = start.checkpoint {
        if position.seed != settings.run.seed || position != position_after(position.step, groups.len(), settings) {
            return Err(Error::Checkpoint {
                path: found.path.display().to_string(),
                problem: format!("its place in the data is {position:?}, which is not that of these settings"),
            }
            .into());
        }
        engine.load_state(tensors)?;
        last_checkpoint = Some(found);
    }
    let resumed_from = last_checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
    let mut watch = CollapseWatch::default();
    let mut best: Option<ValidationMetrics> = None;
    let mut last = None;
    for line in start.lines {
        match line {
            Line::Step(metrics) => {
                watch.see(&metrics);
                last = Some(metrics);
            }
            Line::Validation(line) => keep_better(&mut best, line),
        }
    }
    if let Some(best) = &best {
        run.refresh_best(best)?;
    }
    // Going on would only end one step later: first the user has to say that it may.
    if let Some(error) = watch.collapse(resumed_from).filter(|_| settings.objective.stop_on_collapse) {
        return Err(error.into());
    }

    let (mut metrics_log, mut timings_log) = (run.metrics_log()?, run.timings_log()?);
    let mut order = (u64::MAX, Vec::new());
    for step in resumed_from + 1..=total_steps {
        let began = Instant::now();
        let at = place(step, groups.len(), settings.schedule.batch_groups);
        if order.0 != at.epoch {
            order = (at.epoch, epoch_order(settings.run.seed, at.epoch, groups.len()));
        }
        let metrics = one_step(engine, groups, &order.1, &at, step, total_steps, settings)?;
        watch.see(&metrics);
        metrics_log.append(&metrics)?;
        let seconds = began.elapsed().as_secs_f64();
        let timing = StepTiming {
            step,
            seconds,
            tokens_per_second: metrics.tokens as f64 / seconds.max(1e-9),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        };
        timings_log.append(&timing)?;

        let due = step == total_steps || step % settings.run.checkpoint_every == 0;
        if due && !validation.is_empty() {
            let line = ValidationMetrics { step, validation: validate(engine, validation, settings, step)? };
            metrics_log.append(&line)?;
            keep_better(&mut best, line);
        }
        let stop = progress(&metrics, &timing).is_break();
        last = Some(metrics);
        let collapse = watch.collapse(step).filter(|_| settings.objective.stop_on_collapse);
        if due || stop || collapse.is_some() {
            metrics_log.sync()?;
            sync(run.path())?;
            last_checkpoint = Some(run.write_checkpoint(engine, position_after(step, groups.len(), settings))?);
            if let Some(best) = &best {
                run.refresh_best(best)?;
            }
        }
        if let Some(error) = collapse {
            return Err(error.into());
        }
        if stop {
            break;
        }
    }
    let checkpoint = match last_checkpoint {
        Some(checkpoint) => checkpoint,
        None => run.write_checkpoint(engine, position_after(resumed_from, groups.len(), settings))?,
    };
    let adapter = if checkpoint.step == total_steps {
        run.refresh_final(total_steps)?;
        run.path().join("final")
    } else {
        checkpoint.path.clone()
    };
    Ok(TrainSummary {
        total_steps,
        steps: checkpoint.step,
        resumed_from,
        skipped: start.skipped,
        checkpoint,
        adapter,
        best_step: best.map(|best| best.step),
        last,
        collapsed_at: watch.first,
    })
}

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

/// One update: returns its metrics, or an error before any parameter has changed.
fn one_step<E: TrainEngine>(
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
    let non_finite =
        |what, group: Option<&EngineGroup>| Error::NonFinite { what, step, group: group.map(|g| g.id.clone()) };
    let step_key = u32::try_from(step).unwrap_or(u32::MAX);
    let leaf_size = settings.schedule.groups_per_batch;

    let mut tree = GradientTree::default();
    let (mut loss, mut consistency, mut accuracy) = (0.0, 0.0, 0.0);
    let mut answers = AnswerCounts::default();
    for (leaf, part) in batch.chunks(leaf_size).enumerate() {
        let (losses, gradient) = engine.leaf(part, step_key, (leaf * leaf_size) as u32)?;
        for (group, one) in part.iter().zip(&losses) {
            if one.margins.iter().any(|margin| !margin.is_finite()) {
                return Err(non_finite("margin", Some(group)).into());
            }
            if ![one.loss, one.consistency, one.accuracy].iter().all(|value| value.is_finite()) {
                return Err(non_finite("loss", Some(group)).into());
            }
            loss += one.loss;
            consistency += one.consistency;
            accuracy += one.accuracy;
            answers += AnswerCounts::of(&one.margins, group.answer_yes);
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
                return Err(non_finite("gradient", Some(group)).into());
            }
        }
        return Err(non_finite("gradient", None).into());
    }
    let optimizer = &settings.optimizer;
    let clip = optimizer.clip.map_or(1.0, |most| (most / (grad_norm + 1e-6)).min(1.0));
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
    })
}

/// Where a run stands after `step` updates.
fn position_after(step: u64, groups: usize, settings: &Settings) -> Position {
    let next = place(step + 1, groups, settings.schedule.batch_groups);
    Position { step, seed: settings.run.seed, epoch: next.epoch, seen: next.positions.start as u64 }
}

/// Answers on validation data, in launches of the run's leaf size.
fn validate<E: TrainEngine>(
    engine: &mut E,
    groups: &[EngineGroup],
    settings: &Settings,
    step: u64,
) -> Result<AnswerCounts> {
    let mut counts = AnswerCounts::default();
    for part in groups.chunks(settings.schedule.groups_per_batch) {
        for (group, margins) in part.iter().zip(engine.margins(part)?) {
            if margins.iter().any(|margin| !margin.is_finite()) {
                return Err(Error::NonFinite { what: "margin", step, group: Some(group.id.clone()) }.into());
            }
            counts += AnswerCounts::of(&margins, group.answer_yes);
        }
    }
    Ok(counts)
}

fn keep_better(best: &mut Option<ValidationMetrics>, line: ValidationMetrics) {
    if best.as_ref().is_none_or(|best| line.beats(best)) {
        *best = Some(line);
    }
}

/// Looks for the collapse that consistency without accuracy leads to: one answer to every question.
#[derive(Default)]
struct CollapseWatch {
    /// (questions, answered yes, truth yes) of the latest steps, just enough to cover [`COLLAPSE_QUESTIONS`].
    recent: VecDeque<(u64, u64, u64)>,
    first: Option<u64>,
}

impl CollapseWatch {
    fn see(&mut self, metrics: &StepMetrics) {
        let answers = &metrics.answers;
        self.recent.push_back((answers.questions, answers.yes, answers.label_yes));
        while let Some(oldest) = self.recent.front()
            && self.sums().0 - oldest.0 >= COLLAPSE_QUESTIONS
        {
            self.recent.pop_front();
        }
        if self.first.is_none() && self.collapse(metrics.step).is_some() {
            self.first = Some(metrics.step);
            tracing::warn!(step = metrics.step, "every recent answer is the same although the truths differ");
        }
    }

    fn sums(&self) -> (u64, u64, u64) {
        self.recent.iter().fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    }

    /// The error if the latest answers are all one while each truth holds for a quarter of the questions at least.
    fn collapse(&self, step: u64) -> Option<Error> {
        let (questions, yes, label_yes) = self.sums();
        let mixed = 4 * label_yes >= questions && 4 * (questions - label_yes) >= questions;
        let constant = yes == 0 || yes == questions;
        let answer = if yes == 0 { "no" } else { "yes" };
        (questions >= COLLAPSE_QUESTIONS && mixed && constant).then_some(Error::Collapse {
            step,
            questions,
            answer,
            label_yes,
        })
    }
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
