//! A toy engine for tests of the loop: the "prompt" of a phrasing is its suffix, its margin a dot product of parameters
//! with features derived from the suffix, and the loss is squared margin differences plus a logistic term. All f32, as the
//! real engine, so that a wrong order of sums shows in the bits.

use super::engine::{EngineGroup, MarginEngine, TrainEngine, TrainerTensors};
use crate::Result;
use crate::batch::TokenGroup;
use crate::objective::GroupLoss;
use crate::ops::adamw::AdamWStep;
use std::path::Path;

const SIZE: usize = 12;

pub(crate) struct Toy {
    pub state: TrainerTensors,
    /// Fails at the leaves of this step, as a kill would end the process.
    pub fail_at: Option<u32>,
    /// Gives this group a non-finite value: (id, `loss`, `margin` or `gradient`).
    pub poison: Option<(String, &'static str)>,
    pub leaves: usize,
    /// Added to every margin.
    pub shift: f64,
}

/// Groups of four phrasings with mixed truths.
pub(crate) fn groups(count: usize) -> Vec<EngineGroup> {
    (0..count)
        .map(|i| EngineGroup {
            id: format!("g{i}"),
            tokens: TokenGroup {
                prefix: vec![2, 7, i as u32],
                suffixes: (0..4).map(|k| vec![(i as u32 * 31 + k * 7) % 97, k]).collect(),
            },
            yes: 5,
            no: 6,
            answer_yes: i % 2 == 0,
        })
        .collect()
}

impl Toy {
    pub fn new() -> Self {
        let params = (0..SIZE).map(|i| 0.1 * (i as f32 - 4.0)).collect();
        Self {
            state: TrainerTensors { params, m: vec![0.0; SIZE], v: vec![0.0; SIZE] },
            fail_at: None,
            poison: None,
            leaves: 0,
            shift: 0.0,
        }
    }

    fn features(group: &EngineGroup, phrasing: usize) -> [f32; SIZE] {
        let suffix = &group.tokens.suffixes[phrasing];
        std::array::from_fn(|i| ((suffix[0] * 13 + suffix[1] * 5 + i as u32 * 17) % 29) as f32 / 14.0 - 1.0)
    }

    fn margin(&self, group: &EngineGroup, phrasing: usize) -> f64 {
        let features = Self::features(group, phrasing);
        let product = features.iter().zip(&self.state.params).fold(0.0_f32, |sum, (x, p)| x.mul_add(*p, sum));
        f64::from(product) + self.shift
    }
}

impl MarginEngine for Toy {
    fn margins(&mut self, groups: &[EngineGroup]) -> Result<Vec<Vec<f64>>> {
        self.leaves += 1;
        let of = |group: &EngineGroup| (0..group.tokens.suffixes.len()).map(|k| self.margin(group, k)).collect();
        Ok(groups.iter().map(of).collect())
    }
}

impl TrainEngine for Toy {
    type Gradient = Vec<f32>;

    fn leaf(&mut self, groups: &[EngineGroup], step: u32, _: u32) -> Result<(Vec<GroupLoss>, Vec<f32>)> {
        self.leaves += 1;
        if self.fail_at == Some(step) {
            return Err(crate::Error::Usage { message: "killed".into(), hint: None });
        }
        let mut gradient = vec![0.0_f32; SIZE];
        let mut losses = Vec::new();
        for group in groups {
            let n = group.tokens.suffixes.len();
            let mut margins: Vec<f64> = (0..n).map(|k| self.margin(group, k)).collect();
            let sign = if group.answer_yes { 1.0 } else { -1.0 };
            let (mut consistency, mut accuracy) = (0.0, 0.0);
            for (k, &m) in margins.iter().enumerate() {
                let difference = m - margins[0];
                consistency += difference * difference / n as f64;
                accuracy += (-sign * m).exp().ln_1p() / n as f64;
                let dm = (2.0 * difference - sign / (1.0 + (sign * m).exp())) / n as f64;
                for (g, x) in gradient.iter_mut().zip(Self::features(group, k)) {
                    *g += x * dm as f32;
                }
            }
            let mut loss = consistency + accuracy;
            match &self.poison {
                Some((id, "loss")) if *id == group.id => loss = f64::NAN,
                Some((id, "margin")) if *id == group.id => margins[1] = f64::INFINITY,
                Some((id, "gradient")) if *id == group.id => gradient[3] = f32::NAN,
                _ => {}
            }
            losses.push(GroupLoss {
                loss,
                consistency,
                accuracy,
                margins,
                dlogits: Vec::new(),
                dvocabulary: Vec::new(),
            });
        }
        Ok((losses, gradient))
    }

    fn evaluate(&mut self, groups: &[EngineGroup]) -> Result<Vec<GroupLoss>> {
        self.leaf(groups, 0, 0).map(|(losses, _)| losses)
    }

    fn tensor_name(&self, index: usize) -> Option<String> {
        Some(format!("toy.{index}"))
    }

    fn first_non_finite(&mut self, group: &EngineGroup, step: u32, ordinal: u32) -> Result<Option<String>> {
        let (_, gradient) = self.leaf(std::slice::from_ref(group), step, ordinal)?;
        Ok(gradient.iter().position(|value| !value.is_finite()).and_then(|index| self.tensor_name(index)))
    }

    fn add(&mut self, into: &mut Vec<f32>, other: &Vec<f32>) {
        into.iter_mut().zip(other).for_each(|(a, b)| *a += b);
    }

    fn gradient_norm(&self, gradient: &Vec<f32>) -> f64 {
        gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
    }

    fn update(&mut self, gradient: &Vec<f32>, step: &AdamWStep) {
        let TrainerTensors { params, m, v } = &mut self.state;
        let correct = |beta: f64| 1.0 - (0..step.step).fold(1.0, |power, _| power * beta);
        for i in 0..SIZE {
            let g = f64::from(gradient[i]) * step.gradient_scale;
            let p = f64::from(params[i]) * (1.0 - step.lr * step.weight_decay);
            m[i] = (step.beta1 * f64::from(m[i]) + (1.0 - step.beta1) * g) as f32;
            v[i] = (step.beta2 * f64::from(v[i]) + (1.0 - step.beta2) * g * g) as f32;
            let root = (f64::from(v[i]) / correct(step.beta2)).sqrt() + step.eps;
            params[i] = (p - step.lr * f64::from(m[i]) / correct(step.beta1) / root) as f32;
        }
    }

    fn state(&self) -> TrainerTensors {
        self.state.clone()
    }

    fn load_state(&mut self, state: TrainerTensors) -> Result<()> {
        self.state = state;
        Ok(())
    }

    fn write_adapter(&self, folder: &Path) -> Result<()> {
        let bytes: Vec<u8> = self.state.params.iter().flat_map(|p| p.to_le_bytes()).collect();
        for (name, bytes) in [("adapter_model.safetensors", bytes.as_slice()), ("adapter_config.json", b"{}")] {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|source| crate::Error::io("write", &path, source))?;
        }
        Ok(())
    }
}
