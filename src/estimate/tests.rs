//! What an estimate promises: its work is what a real step is recorded with, its memory is what the buffers of a real step hold,
//! and a machine that is too small is told which setting to change.

use super::*;
use crate::cpu::{Cpu, Isa};
use crate::data::TraceInput;
use crate::machine::Memory;
use crate::model::LoraSettings;
use crate::objective::Pairs;
use crate::weights::Module;
use std::path::Path;

struct Fixture {
    checkpoint: Checkpoint,
    groups: Vec<EngineGroup>,
    objective: Objective,
}

impl Fixture {
    fn new() -> Self {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/text");
        let input = TraceInput::read(goldens.join("groups.json")).unwrap();
        Self {
            checkpoint: Checkpoint::open(goldens.join("model")).unwrap(),
            groups: crate::bench::step::engine_groups(&input),
            objective: Objective::new("combined", Pairs::All, Some(0.1)).unwrap(),
        }
    }

    fn layout(&self, layers: impl IntoIterator<Item = usize>) -> LoraLayout {
        let lora = LoraSettings {
            layers: layers.into_iter().collect(),
            modules: Module::ALL.into_iter().collect(),
            rank: 4,
            alpha: 8.0,
            rslora: false,
        };
        LoraLayout::from_settings(&self.checkpoint.config.text, &lora).unwrap()
    }

    fn task<'a>(&'a self, layout: &'a LoraLayout) -> Task<'a> {
        Task {
            checkpoint: &self.checkpoint,
            layout: Some(layout),
            groups: &self.groups,
            share_prefix: true,
            groups_per_batch: 1,
            trunk_budget: 0,
            training: Some(TrainingTask { objective: &self.objective, batch_groups: 1 }),
        }
    }

    fn depth(&self) -> usize {
        self.checkpoint.config.text.num_hidden_layers
    }
}

/// A real step of the group on the CPU, clocked.
fn real(fixture: &Fixture, layout: &LoraLayout, group: &EngineGroup) -> BTreeMap<Key, Total> {
    let profile = Profile::new(false);
    let device = Profiled::new(Cpu::new(Isa::best(), Some(2)).unwrap(), profile.clone());
    let engine = Engine::open(device, &fixture.checkpoint, EmbedScale::Auto, None).unwrap();
    let adapter = Adapter::new(&engine.device, layout.clone(), 0);
    let config = AdapterConfig::new(Naming::CausalLm, 4, 8.0, &[], &[]);
    let mut trainer = AdapterTrainer::new(engine, adapter, config, fixture.objective.clone(), 0);
    profile.clear();
    let (_, gradient) = trainer.leaf(std::slice::from_ref(group), 1, 0).unwrap();
    trainer.gradient_norm(&gradient);
    let step =
        AdamWStep { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, gradient_scale: 1.0, step: 1 };
    trainer.update(&gradient, &step);
    profile.totals()
}

#[test]
fn the_estimated_work_is_that_of_a_real_step() {
    let fixture = Fixture::new();
    let layout = fixture.layout(0..fixture.depth());
    let one = std::slice::from_ref(&fixture.groups[0]);
    let found = group_work(&Task { groups: one, ..fixture.task(&layout) }).unwrap();
    let real = real(&fixture, &layout, &fixture.groups[0]);
    let counted = |costs: Vec<(Key, Total)>| -> Vec<(Key, u64, Cost)> {
        costs.into_iter().map(|(key, total)| (key, total.calls, total.cost)).collect()
    };
    assert_eq!(counted(found.cold), counted(real.into_iter().collect()));
}

#[test]
fn a_warm_trunk_cache_leaves_the_layers_below_out() {
    let fixture = Fixture::new();
    let (all, last) = (fixture.layout(0..fixture.depth()), fixture.layout([fixture.depth() - 1]));
    let (whole, whole_work) = (estimate(&fixture.task(&all)).unwrap(), group_work(&fixture.task(&all)).unwrap());
    assert_eq!((whole.trunk_total, &whole_work.warm), (0, &whole_work.cold));
    let task = Task { trunk_budget: 1 << 30, ..fixture.task(&last) };
    let (upper, work) = (estimate(&task).unwrap(), group_work(&task).unwrap());
    assert!(cost(&work.warm).flops < 0.8 * cost(&work.cold).flops);
    assert!(cost(&work.cold).flops < cost(&whole_work.cold).flops, "no backward below the lowest adapted layer");
    assert!(upper.activations < whole.activations);
    let rows: usize = fixture.groups.iter().map(EngineGroup::unique_tokens).sum();
    assert_eq!(upper.trunk_held, (rows * fixture.checkpoint.config.text.hidden_size * 4) as u64);
}

#[test]
fn more_groups_a_launch_and_unshared_prefixes_need_more() {
    let fixture = Fixture::new();
    let layout = fixture.layout(0..fixture.depth());
    let single = estimate(&fixture.task(&layout)).unwrap();
    let double = estimate(&Task { groups_per_batch: 2, ..fixture.task(&layout) }).unwrap();
    let unshared = estimate(&Task { share_prefix: false, ..fixture.task(&layout) }).unwrap();
    assert!(double.activations > single.activations && double.most_rows > single.most_rows);
    assert!(unshared.activations > single.activations && unshared.most_rows > single.most_rows);
    let evaluation = estimate(&Task { training: None, ..fixture.task(&layout) }).unwrap();
    assert!(evaluation.activations < single.activations / 2, "{evaluation:?}");
    assert_eq!((evaluation.host, evaluation.what), (0, "evaluation"));
}

/// Memory that the CPU device's buffers hold after a step is about what was estimated.
#[test]
fn the_estimated_activations_are_those_of_a_real_step() {
    let fixture = Fixture::new();
    let layout = fixture.layout(0..fixture.depth());
    let one = std::slice::from_ref(&fixture.groups[0]);
    let found = estimate(&Task { groups: one, ..fixture.task(&layout) }).unwrap();
    let cpu = Cpu::new(Isa::best(), Some(1)).unwrap();
    let buffers = cpu.buffers().clone();
    let engine = Engine::open(cpu, &fixture.checkpoint, EmbedScale::Auto, None).unwrap();
    let adapter = Adapter::new(&engine.device, layout.clone(), 0);
    let config = AdapterConfig::new(Naming::CausalLm, 4, 8.0, &[], &[]);
    let mut trainer = AdapterTrainer::new(engine, adapter, config, fixture.objective.clone(), 0);
    drop(trainer.leaf(one, 1, 0).unwrap());
    drop(trainer);
    let held = buffers.idle_bytes() as u64;
    let counted = found.activations + found.adapter;
    assert!(held <= counted * 5 / 4 && held >= counted * 2 / 5, "held {held}, estimated {counted}");
}

#[test]
fn a_machine_that_is_too_small_is_told_what_to_change() {
    let fixture = Fixture::new();
    let layout = fixture.layout(1..fixture.depth());
    let limit = "free on this machine";
    let plain = fixture.task(&layout);
    let need = |task: &Task<'_>| estimate(task).unwrap().needed();
    let told = |task: &Task<'_>, available: u64| {
        let (found, memory) = (estimate(task).unwrap(), Memory { available, limit });
        match judge(task, &found, &memory).unwrap().enforce(&found, &memory) {
            Ok(()) => String::new(),
            Err(error) => format!("{error} / {}", error.hint().unwrap()),
        }
    };
    assert_eq!(told(&plain, need(&plain)), "");
    let cached = Task { trunk_budget: 1 << 30, ..plain };
    assert!(need(&cached) > need(&plain));
    let message = told(&cached, need(&plain) + 1);
    assert!(message.contains("--trunk-cache less than") && message.contains("training needs"), "{message}");
    let packed = Task { groups_per_batch: 2, ..plain };
    let message = told(&packed, need(&plain));
    assert!(message.contains("--groups-per-batch") && message.contains("from 2"), "{message}");
    let unshared = Task { share_prefix: false, ..plain };
    assert!(told(&unshared, need(&plain)).contains("share their prefix"));
    let upper = layout.from_layer(fixture.depth() - 1);
    let message = told(&plain, need(&Task { layout: Some(&upper), ..plain }));
    assert!(message.contains("adapt fewer layers") && message.contains("--layers"), "{message}");
    assert!(told(&plain, 1).contains("fewer paraphrases"));
}
