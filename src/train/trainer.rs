//! The training loop: data order → step → metrics → validation → checkpoint. Everything that decides a bit is a function of
//! settings and step; nothing is carried from step to step but the engine's tensors.

use super::checkpoint::{Checkpoint, Skipped};
use super::collapse::{Answering, CollapseWatch};
use super::engine::{EngineGroup, TrainEngine};
use super::error::Error;
use super::metrics::{Line, StepMetrics, StepTiming};
use super::order::{epoch_order, place};
use super::run_dir::RunDir;
use super::settings::Settings;
use super::step::{check_trainable, one_step, position_after};
use super::validation::{self, BestBy, ValidationMetrics, validate};
use crate::error::Result;
use crate::weights::sync;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

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
    /// The first collapse to one answer: step, `training` or `validation`, and the figures.
    pub collapsed: Option<(u64, &'static str, Answering)>,
}

/// Trains `engine`'s adapter on `groups` into `run`, going on from its newest whole checkpoint. `groups` are those of
/// [`Settings::select`] with all their phrasings (`data.paraphrases` chooses among them step by step), `settings` are
/// resolved. `progress` sees every step and may stop the run after it; a stopped run has a checkpoint of that step and can be
/// resumed.
///
/// # Errors
/// No groups, a group without a paraphrase under a loss over pairs, a non-finite loss, margin or gradient (no update is
/// made; the last checkpoint stays), a collapse if the settings ask to stop, and everything that files can do: a disk that is
/// full leaves the last checkpoint and no half file.
pub fn train<E: TrainEngine>(
    engine: &mut E,
    groups: &[EngineGroup],
    validation: &[EngineGroup],
    settings: &Settings,
    run: &RunDir,
    progress: impl FnMut(&StepMetrics, &StepTiming) -> ControlFlow<()>,
) -> Result<TrainSummary> {
    check_trainable(groups, settings)?;
    let mut reached = Reached::default();
    let trained = train_from_newest(engine, groups, validation, settings, run, progress, &mut reached);
    trained.map_err(|error| reached.explain(error))
}

/// How far a call has come, for the message if a file stops it.
#[derive(Default)]
struct Reached {
    step: u64,
    checkpoint: Option<u64>,
}

impl Reached {
    /// Says of a file that could not be written what is left and how to go on.
    fn explain(&self, error: crate::Error) -> crate::Error {
        let (path, source) = match error {
            crate::Error::Io { action: "write" | "create" | "sync" | "remove", path, source }
            | crate::Error::Weights(crate::weights::Error::Io {
                action: "write" | "create" | "sync" | "remove",
                path,
                source,
            }) => (path, source),
            other => return other,
        };
        // A file that was on its way into a folder: named by where it would have been.
        let part = |part: &str| match part.strip_prefix('.').and_then(|part| part.strip_suffix(".tmp")) {
            Some(inner) => inner.split('.').next().unwrap_or(inner).to_owned(),
            None => part.to_owned(),
        };
        let path = path.split('/').map(part).collect::<Vec<_>>().join("/");
        Error::Unwritten { step: self.step, path, checkpoint: self.checkpoint, source }.into()
    }
}

fn train_from_newest<E: TrainEngine>(
    engine: &mut E,
    groups: &[EngineGroup],
    validation: &[EngineGroup],
    settings: &Settings,
    run: &RunDir,
    mut progress: impl FnMut(&StepMetrics, &StepTiming) -> ControlFlow<()>,
    reached: &mut Reached,
) -> Result<TrainSummary> {
    let total_steps = settings.total_steps(groups.len());
    let best_by = settings.run.best_by;
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
    *reached = Reached { step: resumed_from, checkpoint: last_checkpoint.as_ref().map(|checkpoint| checkpoint.step) };
    let mut watch = CollapseWatch::default();
    let mut best: Option<ValidationMetrics> = None;
    let mut last = None;
    for line in start.lines {
        match line {
            Line::Step(metrics) => {
                watch.see(&metrics);
                last = Some(metrics);
            }
            Line::Validation(line) => {
                watch.see_validation(line.step, line.validation.answering());
                keep_better(&mut best, line, best_by);
            }
        }
    }
    if let Some(best) = &best {
        run.refresh_best(best, best_by)?;
    }
    // Going on would only end one step later: first the user has to say that it may.
    if let Some(error) = watch.collapse().filter(|_| settings.objective.stop_on_collapse) {
        return Err(error.into());
    }

    let (mut metrics_log, mut timings_log) = (run.metrics_log()?, run.timings_log()?);
    let mut events = run.event_log(resumed_from)?;
    let mut warned = watch.first.is_some();
    let mut order = (u64::MAX, Vec::new());
    for step in resumed_from + 1..=total_steps {
        reached.step = step;
        let began = Instant::now();
        let at = place(step, groups.len(), settings.schedule.batch_groups);
        if order.0 != at.epoch {
            order = (at.epoch, epoch_order(settings.run.seed, at.epoch, groups.len()));
        }
        let mut metrics = one_step(engine, groups, &order.1, &at, step, total_steps, settings)?;
        metrics.recent = watch.see(&metrics);
        metrics_log.append(&metrics)?;
        let seconds = began.elapsed().as_secs_f64();
        let timing = StepTiming {
            step,
            seconds,
            tokens_per_second: metrics.tokens as f64 / seconds.max(1e-9),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        };
        timings_log.append(&timing)?;
        events.step(&metrics)?;

        let validated = !validation.is_empty() && validation::is_due(step, total_steps, groups.len(), settings);
        if validated {
            let line = validate(engine, validation, settings, step)?;
            metrics_log.append(&line)?;
            events.validation(step, &line.validation)?;
            watch.see_validation(step, line.validation.answering());
            keep_better(&mut best, line, best_by);
        }
        let stop = progress(&metrics, &timing).is_break();
        last = Some(metrics);
        if let Some((step, place, answering)) = watch.first.filter(|_| !warned) {
            warned = true;
            let collapse = answering.collapse(step, place);
            tracing::warn!("{collapse}; {}", collapse.hint().unwrap_or_default());
        }
        let collapse = watch.collapse().filter(|_| settings.objective.stop_on_collapse);
        let due = step == total_steps || step % settings.run.checkpoint_every == 0;
        // A validation comes with a checkpoint, so that `best/` is always a copy of one.
        if due || validated || stop || collapse.is_some() {
            metrics_log.sync()?;
            sync(run.path())?;
            last_checkpoint = Some(run.write_checkpoint(engine, position_after(step, groups.len(), settings))?);
            reached.checkpoint = Some(step);
            if let Some(best) = &best {
                run.refresh_best(best, best_by)?;
            }
            run.prune(settings.run.keep_checkpoints, best.as_ref().map(|best| best.step))?;
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
        collapsed: watch.first,
    })
}

fn keep_better(best: &mut Option<ValidationMetrics>, line: ValidationMetrics, by: BestBy) {
    if best.as_ref().is_none_or(|best| line.beats(best, by)) {
        *best = Some(line);
    }
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
