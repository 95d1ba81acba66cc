//! Promises of training, kept by the real engine on a tiny model: a run is a function of its settings alone (not of stops,
//! threads, instruction sets or what is packed together), and what it does lowers its loss. Gradients are in
//! `gradients.rs`.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use support::{Golden, engine_groups, isas, loss};
use unflip::Error;
use unflip::cpu::{Cpu, Isa};
use unflip::model::{Adapter, LoraLayout, LoraSettings};
use unflip::ops::TrainDevice;
use unflip::train::{
    AdapterTrainer, Decay, EngineGroup, MarginEngine, Paraphrases, RunDir, RunIdentity, Settings, TrainEngine,
    TrainSummary, train,
};
use unflip::weights::{AdapterConfig, AdapterFile, Naming};

/// Defaults but for a learning rate that suits a tiny model, and `change`.
fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    settings.optimizer.lr = 2e-3;
    settings.adapter.rank = 4;
    settings.adapter.alpha = 8.0;
    change(&mut settings);
    settings.resolve().expect("settings are valid")
}

/// A run that uses everything that could depend on more than the step: dropout, warm-up and decay, accumulation, an epoch's
/// order and its sample of paraphrases, validation. Seven groups make 3 steps an epoch, the last one of 1 group.
fn eventful() -> Settings {
    settings(|s| {
        s.adapter.dropout = 0.1;
        s.optimizer.weight_decay = 0.01;
        s.schedule.warmup_steps = 2;
        s.schedule.decay = Decay::Cosine;
        s.schedule.batch_groups = 3;
        s.schedule.epochs = Some(3);
        s.data.paraphrases = Paraphrases::Sample(2);
        s.run.checkpoint_every = 4;
        s.run.seed = 11;
    })
}

/// A new adapter on the golden model, as `unflip train` makes it.
fn trainer<D: TrainDevice>(golden: &Golden, device: D, settings: &Settings) -> AdapterTrainer<D> {
    let engine = golden.engine(device, None);
    let model = &engine.model.config;
    let lora = LoraSettings {
        layers: settings
            .adapter
            .layers
            .resolve(model.num_hidden_layers)
            .expect("layers of the model")
            .into_iter()
            .collect(),
        modules: settings.adapter.modules.iter().copied().collect(),
        rank: settings.adapter.rank,
        alpha: settings.adapter.alpha,
        rslora: settings.adapter.rslora,
    };
    let layout = LoraLayout::from_settings(model, &lora).expect("adapter fits");
    let layers: Vec<usize> = lora.layers.iter().copied().collect();
    let mut config = AdapterConfig::new(Naming::CausalLm, lora.rank, lora.alpha, &settings.adapter.modules, &layers);
    config.lora_dropout = settings.adapter.dropout;
    let adapter = Adapter::new(&engine.device, layout, settings.run.seed);
    let objective = &settings.objective;
    let objective = loss(objective.loss.as_deref().expect("a whole loss"), objective.pairs, objective.lambda);
    AdapterTrainer::new(engine, adapter, config, objective, settings.run.seed)
}

fn identity() -> RunIdentity {
    RunIdentity { version: "test".into(), model: "tiny".into(), unit: "cpu f32".into(), ..RunIdentity::default() }
}

/// Begins or goes on with the run in `folder`, with nothing from an earlier call but the folder, and stops after `stop`.
fn run(golden: &Golden, device: Cpu, settings: &Settings, folder: &Path, stop: Option<u64>) -> TrainSummary {
    let begun = folder.join("config.toml").exists();
    let open = if begun {
        RunDir::resume(folder, settings, &identity(), false)
    } else {
        RunDir::create(folder, settings, &identity())
    };
    let open = open.expect("run directory opens");
    let groups = engine_groups(golden, 9);
    let (validation, training) = groups.split_at(2);
    let mut trainer = trainer(golden, device, settings);
    let progress = |metrics: &unflip::train::StepMetrics, _: &unflip::train::StepTiming| {
        if Some(metrics.step) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    train(&mut trainer, training, validation, settings, &open, progress).expect("trains")
}

/// Every file that a finished run leaves and no clock decides: the last checkpoint, `best/`, the metrics.
fn outcome(folder: &Path, steps: u64) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for part in [format!("checkpoints/step-{steps}"), "best".to_owned()] {
        for entry in std::fs::read_dir(folder.join(&part)).expect("a folder of the run") {
            let path = entry.expect("an entry").path();
            let name = format!("{part}/{}", path.file_name().unwrap().to_string_lossy());
            files.insert(name, std::fs::read(&path).expect("a file"));
        }
    }
    files.insert("metrics.jsonl".into(), std::fs::read(folder.join("metrics.jsonl")).expect("metrics"));
    files
}

#[track_caller]
fn assert_same(what: &str, found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{what}: other bytes in {name}");
    }
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    let golden = Golden::open("text");
    let settings = eventful();
    let folder = tempfile::tempdir().unwrap();
    let isas = [Isa::Portable, Isa::best()];
    let device = |turn: u64| Cpu::new(isas[turn as usize % 2], Some(1 + turn as usize % 3)).unwrap();
    let whole = folder.path().join("whole");
    let summary = run(&golden, device(1), &settings, &whole, None);
    assert_eq!((summary.steps, summary.total_steps, summary.resumed_from), (9, 9, 0));
    let expected = outcome(&whole, 9);
    for name in ["adapter_model.safetensors", "adapter_config.json", "trainer_state.safetensors", "manifest.json"] {
        assert!(expected.contains_key(&format!("checkpoints/step-9/{name}")), "{name}");
    }
    let lines = expected["metrics.jsonl"].iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(lines, 9 + 3, "9 steps, validations after 4, 8 and 9");

    // Inside an epoch, at its end, at a checkpoint, behind one.
    for stop in [1, 3, 4, 8] {
        let path = folder.path().join(format!("stopped-{stop}"));
        let stopped = run(&golden, device(stop), &settings, &path, Some(stop));
        assert_eq!((stopped.steps, stopped.checkpoint.step), (stop, stop));
        let resumed = run(&golden, device(stop + 1), &settings, &path, None);
        assert_eq!((resumed.steps, resumed.resumed_from), (9, stop));
        assert_same(&format!("stopped after {stop}"), &outcome(&path, 9), &expected);
    }
    // Killed between two checkpoints: metrics reach beyond the last one.
    let killed = folder.path().join("killed");
    run(&golden, device(2), &settings, &killed, Some(6));
    std::fs::remove_dir_all(killed.join("checkpoints/step-6")).unwrap();
    let resumed = run(&golden, device(0), &settings, &killed, None);
    assert_eq!((resumed.steps, resumed.resumed_from), (9, 4));
    assert_same("killed after 6", &outcome(&killed, 9), &expected);
}

#[test]
fn a_run_gives_the_same_bits_on_every_instruction_set_at_any_thread_count() {
    let golden = Golden::open("text");
    let settings = eventful();
    let folder = tempfile::tempdir().unwrap();
    let mut expected = None;
    for isa in isas() {
        for threads in 1..=3 {
            let path = folder.path().join(format!("{isa}-{threads}"));
            run(&golden, Cpu::new(isa, Some(threads)).unwrap(), &settings, &path, None);
            let found = outcome(&path, 9);
            match &expected {
                None => expected = Some(found),
                Some(expected) => assert_same(&format!("{isa}, {threads} threads"), &found, expected),
            }
        }
    }
}

/// Mean over paraphrases of |m_k − m_0|.
fn margin_difference(engine: &mut impl MarginEngine, groups: &[EngineGroup]) -> f64 {
    let margins = engine.margins(groups).expect("margins");
    let differences: Vec<f64> =
        margins.iter().flat_map(|group| group[1..].iter().map(|m| (m - group[0]).abs())).collect();
    differences.iter().sum::<f64>() / differences.len() as f64
}

/// Trains a new adapter on seven groups; returns the losses of the steps and |Δm| before and after.
fn losses(settings: &Settings) -> (Vec<f64>, f64, f64) {
    let golden = Golden::open("text");
    let groups = engine_groups(&golden, 7);
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(&folder.path().join("run"), settings, &identity()).unwrap();
    let mut trainer = trainer(&golden, Cpu::new(Isa::best(), Some(2)).unwrap(), settings);
    let before = margin_difference(&mut trainer, &groups);
    let mut losses = Vec::new();
    train(&mut trainer, &groups, &[], settings, &run, |metrics, _| {
        losses.push(metrics.loss);
        ControlFlow::Continue(())
    })
    .expect("trains");
    let after = margin_difference(&mut trainer, &groups);
    (losses, before, after)
}

#[test]
fn thirty_steps_lower_the_combined_loss() {
    let (losses, ..) = losses(&settings(|s| {
        s.objective.loss = Some("combined".into());
        s.schedule.batch_groups = 7;
        s.schedule.steps = Some(30);
    }));
    assert_eq!(losses.len(), 30);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..5]), mean(&losses[25..]));
    assert!(last < 0.5 * first, "combined loss {first} in the first five steps, {last} in the last");
}

#[test]
fn consistency_alone_draws_margins_together() {
    let (losses, before, after) = losses(&settings(|s| {
        s.objective.loss = Some("paper".into());
        s.objective.lambda = Some(0.0);
        s.schedule.batch_groups = 7;
        s.schedule.steps = Some(30);
    }));
    assert!(after < 0.5 * before, "mean |Δm| {before} before, {after} after");
    assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
}

#[test]
fn numbers_out_of_range_stop_the_run_with_group_and_step_and_keep_the_last_checkpoint() {
    let golden = Golden::open("text");
    let groups = engine_groups(&golden, 7);
    let folder = tempfile::tempdir().unwrap();
    // After one update at this learning rate the forward pass leaves f32.
    let of_rate = |lr: f64| {
        settings(|s| {
            s.optimizer.lr = lr;
            s.schedule.batch_groups = 2;
            s.run.checkpoint_every = 1;
        })
    };
    let wild = of_rate(1e36);
    let path = folder.path().join("wild");
    let run = RunDir::create(&path, &wild, &identity()).unwrap();
    let mut engine = trainer(&golden, Cpu::new(Isa::best(), Some(2)).unwrap(), &wild);
    let error = train(&mut engine, &groups, &[], &wild, &run, |_, _| ControlFlow::Continue(())).unwrap_err();
    let second = unflip::train::order::epoch_order(wild.run.seed, 0, 7)[2];
    let start = format!(
        "step 2: the margin of group `{}` is not finite; first not finite: the activation `",
        groups[second].id
    );
    assert!(error.to_string().starts_with(&start), "{error}");
    assert!(matches!(error, Error::Train(unflip::train::Error::NonFinite { step: 2, group: Some(_), .. })));
    assert!(error.hint().is_some_and(|hint| hint.contains("the last checkpoint is kept")));
    let (kept, skipped) = run.newest_checkpoint().unwrap();
    let kept = kept.expect("a whole checkpoint");
    assert_eq!((kept.step, skipped.len()), (1, 0));
    AdapterFile::open(&kept.path).expect("the checkpoint is an adapter");
    assert!(!path.join("checkpoints/step-2").exists());

    // At this one the update itself does, and what it made is never stored.
    let wilder = of_rate(1e38);
    let run = RunDir::create(&folder.path().join("wilder"), &wilder, &identity()).unwrap();
    let mut engine = trainer(&golden, Cpu::new(Isa::best(), Some(2)).unwrap(), &wilder);
    let error = train(&mut engine, &groups, &[], &wilder, &run, |_, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "step 1: the update made parameters that are not finite; the first is of \
         `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`"
    );
    assert_eq!(run.newest_checkpoint().unwrap(), (None, Vec::new()));

    // One parameter that is not a number: no update is made at all.
    let calm = settings(|s| s.schedule.batch_groups = 2);
    let run = RunDir::create(&folder.path().join("nan"), &calm, &identity()).unwrap();
    let mut engine = trainer(&golden, Cpu::new(Isa::best(), Some(2)).unwrap(), &calm);
    let mut state = engine.state();
    state.params[5] = f32::NAN;
    engine.load_state(state).unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let before = engine.state();
    let error = train(&mut engine, &groups, &[], &calm, &run, |_, _| ControlFlow::Continue(())).unwrap_err();
    let first = unflip::train::order::epoch_order(calm.run.seed, 0, 7)[0];
    assert_eq!(
        error.to_string(),
        format!(
            "step 1: the margin of group `{}` is not finite; first not finite: \
             `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`",
            groups[first].id
        )
    );
    let after = engine.state();
    for (after, before) in [(&after.params, &before.params), (&after.m, &before.m), (&after.v, &before.v)] {
        assert_eq!(bits(after), bits(before));
    }
    assert_eq!(run.newest_checkpoint().unwrap(), (None, Vec::new()));
}
