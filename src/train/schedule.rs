//! The learning rate of a step: linear warm-up, then constant, linear or cosine decay to zero at the end of the run.
//! Computed without the system's mathematics library, whose cosine differs between machines in the last bit.

use super::settings::Decay;

/// The learning rate's course.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Rate at the top.
    pub lr: f64,
    /// Updates until the top is reached; 0 starts there.
    pub warmup_steps: u64,
    /// Course after warm-up.
    pub decay: Decay,
    /// Updates of the whole run.
    pub steps: u64,
}

impl Schedule {
    /// Rate of update `step`, counted from 1. Update t of a warm-up of w has lr·t/w; after it, with
    /// x = (step − 1 − w)/(steps − w): lr, lr·(1 − x) or lr·½(1 + cos πx). No update has rate zero.
    pub fn lr(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.warmup_steps {
            return self.lr * (step as f64 / self.warmup_steps as f64);
        }
        let rest = self.steps.saturating_sub(self.warmup_steps).max(1);
        let x = ((done - self.warmup_steps) as f64 / rest as f64).min(1.0);
        match self.decay {
            Decay::Constant => self.lr,
            Decay::Linear => self.lr * (1.0 - x),
            Decay::Cosine => self.lr * (0.5 * (1.0 + cos_pi(x))),
        }
    }
}

/// cos(πx) for x in [0, 1] as sin(π(½ − x)): Taylor's series on [−π/2, π/2], to the last digits of f64.
fn cos_pi(x: f64) -> f64 {
    let y = std::f64::consts::PI * (0.5 - x);
    let mut term = y;
    let mut sum = y;
    for n in 1..15 {
        term *= -y * y / f64::from(2 * n * (2 * n + 1));
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { lr: 2e-4, warmup_steps: 4, decay, steps: 12 }
    }

    #[test]
    fn warm_up_rises_in_equal_steps_to_the_full_rate() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let rates: Vec<f64> = (1..=5).map(|step| schedule(decay).lr(step) / 2e-4).collect();
            assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0]);
        }
        assert_eq!(Schedule { warmup_steps: 0, ..schedule(Decay::Constant) }.lr(1), 2e-4);
    }

    #[test]
    fn decays_follow_their_formulas_and_never_reach_zero_within_the_run() {
        for step in 5..=12 {
            let x = (step - 5) as f64 / 8.0;
            assert_eq!(schedule(Decay::Constant).lr(step), 2e-4);
            assert_eq!(schedule(Decay::Linear).lr(step), 2e-4 * (1.0 - x));
            let expected = 1e-4 * (1.0 + (std::f64::consts::PI * x).cos());
            assert!((schedule(Decay::Cosine).lr(step) - expected).abs() < 1e-19);
            assert!(schedule(Decay::Cosine).lr(step) > 0.0 && schedule(Decay::Linear).lr(step) > 0.0);
        }
    }

    #[test]
    fn the_cosine_is_exact_to_the_last_digits() {
        for k in 0..=1000 {
            let x = f64::from(k) / 1000.0;
            assert!((cos_pi(x) - (std::f64::consts::PI * x).cos()).abs() < 5e-16, "at {x}");
        }
    }
}
