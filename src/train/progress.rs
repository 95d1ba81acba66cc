//! What the user sees while training runs: one bar on stderr, hidden when stderr is no terminal.

use super::metrics::{StepMetrics, StepTiming};
use crate::report::progress_bar;
use std::collections::VecDeque;

/// Steps over which the shown flip rate and speed are taken.
const RECENT: usize = 20;

/// A bar with loss, recent flip rate, tokens a second and time left.
pub struct ProgressBar {
    bar: indicatif::ProgressBar,
    recent: VecDeque<(u64, u64, u64, f64)>,
}

impl ProgressBar {
    /// A bar for `steps` updates of which `done` are made.
    pub fn new(steps: u64, done: u64) -> Self {
        let bar = progress_bar(steps, "{bar:30} {pos}/{len} {msg} left {eta}");
        bar.set_position(done);
        bar.reset_eta();
        Self { bar, recent: VecDeque::new() }
    }

    /// Shows one more step.
    pub fn step(&mut self, metrics: &StepMetrics, timing: &StepTiming) {
        let answers = &metrics.answers;
        self.recent.push_back((answers.flipped_questions, answers.questions, metrics.tokens, timing.seconds));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        let sum = |field: fn(&(u64, u64, u64, f64)) -> f64| self.recent.iter().map(field).sum::<f64>();
        let flips = sum(|one| one.0 as f64) / sum(|one| one.1 as f64).max(1.0);
        let speed = sum(|one| one.2 as f64) / sum(|one| one.3).max(1e-9);
        self.bar.set_message(format!("loss {:.4} flips {:.1}% {speed:.0} tok/s", metrics.loss, 100.0 * flips));
        self.bar.set_position(metrics.step);
    }

    /// Leaves the last state on the screen.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}
