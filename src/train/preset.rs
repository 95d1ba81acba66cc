//! Named starting points for settings. A preset stands below the config file and the flags: both override it.

use super::settings::{Decay, Layers, Settings};

/// A named starting point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The main run of "Mechanistically Guided LoRA Improves Paraphrase Consistency in Medical VLMs": 500 pairs, 8 a step, 3 passes,
    /// middle layers. What that paper leaves open (the course after warm-up, clipping, β₁, β₂, ε) stays at the defaults.
    Paper,
}

/// Every preset with its name.
pub const PRESETS: [(&str, Preset); 1] = [("paper", Preset::Paper)];

/// First and last adapted layer in the paper, and the depth of its model.
const PAPER_LAYERS: (usize, usize, usize) = (15, 19, 34);

impl Settings {
    /// The settings of a preset.
    pub fn preset(preset: Preset) -> Self {
        let mut settings = Self::default();
        match preset {
            Preset::Paper => {
                settings.data.sample_pairs = Some(500);
                settings.adapter.layers = Layers::Paper;
                settings.adapter.rank = 16;
                settings.adapter.alpha = 32.0;
                settings.adapter.dropout = 0.05;
                // With λ = 1, which is this loss's own.
                settings.objective.loss = Some("paper".into());
                settings.optimizer.lr = 2e-4;
                settings.optimizer.weight_decay = 0.01;
                settings.schedule.warmup_steps = 100;
                settings.schedule.decay = Decay::Constant;
                settings.schedule.batch_groups = 8;
                settings.schedule.epochs = Some(3);
            }
        }
        settings
    }
}

/// The paper's layers in a model of `depth` layers: the same share of the depth, rounded, and one layer at least.
pub(super) fn paper_layers(depth: usize) -> std::ops::Range<usize> {
    let (first, last, of) = PAPER_LAYERS;
    // Half up, in whole numbers.
    let scaled = |bound: usize| (2 * bound * depth + of) / (2 * of);
    let first = scaled(first).min(depth.saturating_sub(1));
    first..scaled(last + 1).max(first + 1).min(depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_layers_scale_with_the_depth() {
        for (depth, layers) in
            [(34, 15..20), (26, 11..15), (18, 8..11), (48, 21..28), (62, 27..36), (4, 2..3), (1, 0..1)]
        {
            assert_eq!(paper_layers(depth), layers, "of {depth}");
        }
        assert!(paper_layers(0).is_empty());
    }

    #[test]
    fn the_papers_settings_are_those_of_its_table() {
        let settings = Settings::preset(Preset::Paper).resolve().expect("valid");
        let adapter = &settings.adapter;
        assert_eq!((adapter.rank, adapter.alpha, adapter.dropout, adapter.modules.len()), (16, 32.0, 0.05, 7));
        assert_eq!((settings.data.sample_pairs, settings.schedule.batch_groups), (Some(500), 8));
        // 500 pairs in steps of 8 are 63 steps a pass, the last one of 4 pairs.
        assert_eq!(settings.total_steps(500), 189);
        assert_eq!((settings.optimizer.lr, settings.optimizer.weight_decay), (2e-4, 0.01));
        assert_eq!((settings.schedule.warmup_steps, settings.objective.lambda), (100, Some(1.0)));
    }
}
