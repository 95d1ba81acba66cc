//! What the user sees while an evaluation runs: one bar on stderr, hidden when stderr is no terminal.

use crate::report::progress_bar;
use crate::train::AnswerCounts;

/// A bar with questions done, flip rate, accuracy and time left.
pub struct ProgressBar {
    bar: indicatif::ProgressBar,
}

impl ProgressBar {
    /// A bar for `questions` questions.
    pub fn new(questions: usize) -> Self {
        Self { bar: progress_bar(questions as u64, "{bar:30} {pos}/{len} {msg} left {eta}") }
    }

    /// Shows the counts so far. The first call sets where the rate of progress is measured from.
    pub fn show(&self, counts: &AnswerCounts) {
        let percent = |part: u64| 100.0 * part as f64 / counts.questions.max(1) as f64;
        let (flips, right) = (percent(counts.flipped_questions), percent(counts.right_originals));
        self.bar.set_message(format!("flips {flips:.1}% accuracy {right:.1}%"));
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
