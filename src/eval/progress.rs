//! What the user sees while an evaluation runs: one bar on stderr, hidden when stderr is no terminal.

use crate::train::AnswerCounts;
use indicatif::{ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A bar with questions done, flip rate, accuracy and time left.
pub struct ProgressBar {
    bar: indicatif::ProgressBar,
}

impl ProgressBar {
    /// A bar for `questions` questions.
    pub fn new(questions: usize) -> Self {
        let target =
            if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = indicatif::ProgressBar::with_draw_target(Some(questions as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} left {eta}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Shows the counts so far. The first call sets where the rate of progress is measured from.
    pub fn show(&self, counts: &AnswerCounts) {
        let questions = counts.questions.max(1) as f64;
        let (flips, right) = (counts.flipped_questions as f64 / questions, counts.right_originals as f64 / questions);
        self.bar.set_message(format!("flips {:.1}% accuracy {:.1}%", 100.0 * flips, 100.0 * right));
        let first = self.bar.position() == 0;
        self.bar.set_position(counts.questions);
        if first {
            self.bar.reset_eta();
        }
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
