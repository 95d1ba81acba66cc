//! Promises of the loop, on the toy engine: resumed equals uninterrupted, whatever happened in between.

use super::super::checkpoint::{Checkpoint, Skipped};
use super::super::run_dir::RunIdentity;
use super::super::settings::{Decay, Paraphrases};
use super::super::toy::{Toy, groups};
use super::*;
use crate::ops::adamw::AdamWStep;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const GO: fn(&StepMetrics, &StepTiming) -> ControlFlow<()> = |_, _| ControlFlow::Continue(());

/// 11 groups, 4 a step in launches of 2, 4 epochs of 3 steps, everything that depends on the step in use.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.schedule.batch_groups = 4;
    settings.schedule.groups_per_batch = 2;
    settings.schedule.epochs = Some(4);
    settings.schedule.warmup_steps = 2;
    settings.schedule.decay = Decay::Cosine;
    settings.data.paraphrases = Paraphrases::Sample(2);
    settings.optimizer.weight_decay = 0.01;
    settings.optimizer.lr = 0.05;
    settings.run.checkpoint_every = 5;
    settings.run.validate_every = Some(5);
    settings.run.seed = 3;
    settings.resolve().expect("valid")
}

fn create(path: &Path, settings: &Settings) -> RunDir {
    RunDir::create(path, settings, &RunIdentity::default()).expect("created")
}

fn resume(path: &Path, settings: &Settings) -> RunDir {
    RunDir::resume(path, settings, &RunIdentity::default(), false).expect("resumed")
}

/// Every file of a run but those with clock values, by name.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, base: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("listed") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path, base, files);
            } else {
                let name = path.strip_prefix(base).expect("inside").display().to_string();
                files.insert(name, fs::read(&path).expect("read"));
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(path, path, &mut files);
    // What a clock decides, and the number of the process.
    files.retain(|name, _| !matches!(name.as_str(), "timings.jsonl" | "run.lock") && !name.starts_with("tensorboard/"));
    files
}

fn uninterrupted(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let run = create(path, &settings());
    let summary = train(&mut Toy::new(), &groups(11), &groups(5), &settings(), &run, GO).expect("trained");
    assert_eq!((summary.steps, summary.total_steps, summary.resumed_from), (12, 12, 0));
    contents(path)
}

fn error_of(result: Result<TrainSummary>) -> Error {
    match result {
        Err(crate::Error::Train(error)) => error,
        other => panic!("expected an error of training, found {other:?}"),
    }
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let expected = uninterrupted(&folder.path().join("whole"));
    for name in [
        "checkpoints/step-5/manifest.json",
        "checkpoints/step-12/trainer_state.safetensors",
        "best/best.json",
        "final/final.json",
    ] {
        assert!(expected.contains_key(name), "{name} in {:?}", expected.keys());
    }
    for killed_at in 1..=12 {
        let path = folder.path().join(format!("killed-at-{killed_at}"));
        let run = create(&path, &settings());
        let mut engine = Toy { fail_at: Some(killed_at), ..Toy::new() };
        train(&mut engine, &groups(11), &groups(5), &settings(), &run, GO).expect_err("killed");
        drop(run);
        let run = resume(&path, &settings());
        let summary = train(&mut Toy::new(), &groups(11), &groups(5), &settings(), &run, GO).expect("trained");
        assert_eq!(summary.resumed_from, u64::from(killed_at - 1) / 5 * 5);
        drop(run);
        assert_eq!(contents(&path), expected, "killed at step {killed_at}");
    }
}

#[test]
fn a_run_stopped_twice_by_the_observer_equals_uninterrupted_run() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let expected = uninterrupted(&folder.path().join("whole"));
    let path = folder.path().join("stopped");
    drop(create(&path, &settings()));
    for stop_at in [2, 7, 99] {
        let run = resume(&path, &settings());
        let stop = |metrics: &StepMetrics, _: &StepTiming| match metrics.step == stop_at {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let summary = train(&mut Toy::new(), &groups(11), &groups(5), &settings(), &run, stop).expect("trained");
        assert_eq!(summary.steps, stop_at.min(12));
    }
    let mut found = contents(&path);
    found.retain(|name, _| !name.starts_with("checkpoints/step-2/") && !name.starts_with("checkpoints/step-7/"));
    assert_eq!(found, expected);
}

#[test]
fn half_written_checkpoint_is_skipped() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let expected = uninterrupted(&folder.path().join("whole"));
    type Damage = fn(&Path);
    let damages: [(&str, Damage, &str); 5] = [
        ("step-10", |c| fs::remove_file(c.join("step-10/manifest.json")).expect("removed"), "no manifest.json: "),
        (
            "step-10",
            |c| fs::write(c.join("step-10/adapter_model.safetensors"), "short").expect("written"),
            "adapter_model.safetensors has 5 bytes, its manifest says 48",
        ),
        (
            "step-10",
            |c| {
                let path = c.join("step-10/trainer_state.safetensors");
                let mut bytes = fs::read(&path).expect("read");
                *bytes.last_mut().expect("bytes") ^= 1;
                fs::write(&path, bytes).expect("written");
            },
            "trainer_state.safetensors does not match its hash",
        ),
        (
            "step-10",
            |c| fs::write(c.join("step-10/manifest.json"), "{\"step\": 10, ").expect("written"),
            "broken manifest.json: ",
        ),
        (".step-10.tmp", |c| fs::rename(c.join("step-10"), c.join(".step-10.tmp")).expect("renamed"), "half-written"),
    ];
    for (i, (name, damage, problem)) in damages.into_iter().enumerate() {
        let path = folder.path().join(format!("damaged-{i}"));
        let run = create(&path, &settings());
        let mut engine = Toy { fail_at: Some(12), ..Toy::new() };
        train(&mut engine, &groups(11), &groups(5), &settings(), &run, GO).expect_err("killed");
        damage(&path.join("checkpoints"));
        let summary = train(&mut Toy::new(), &groups(11), &groups(5), &settings(), &run, GO).expect("trained");
        assert_eq!(summary.resumed_from, 5);
        let [Skipped { name: skipped, problem: found }] = summary.skipped.as_slice() else {
            panic!("expected one skipped checkpoint, found {:?}", summary.skipped);
        };
        assert_eq!(skipped, name);
        assert!(found.starts_with(problem), "{found}");
        assert_eq!(contents(&path), expected, "{problem}");
    }
}

#[test]
fn a_run_whose_checkpoints_are_all_broken_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = create(folder.path(), &settings());
    train(&mut Toy::new(), &groups(11), &[], &settings(), &run, GO).expect("trained");
    for step in [5, 10, 12] {
        fs::remove_file(folder.path().join(format!("checkpoints/step-{step}/manifest.json"))).expect("removed");
    }
    let error = error_of(train(&mut Toy::new(), &groups(11), &[], &settings(), &run, GO));
    assert!(matches!(&error, Error::NoCompleteCheckpoint { skipped, .. } if skipped.len() == 3), "{error}");
    assert_eq!(fs::read_to_string(folder.path().join("metrics.jsonl")).expect("kept").lines().count(), 12);
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let expected = uninterrupted(folder.path());
    let mut engine = Toy::new();
    let run = resume(folder.path(), &settings());
    let summary = train(&mut engine, &groups(11), &groups(5), &settings(), &run, GO).expect("nothing to do");
    assert_eq!((summary.steps, summary.resumed_from, engine.leaves), (12, 12, 0));
    assert_eq!(summary.checkpoint, Checkpoint { path: folder.path().join("checkpoints/step-12"), step: 12 });
    assert_eq!(contents(folder.path()), expected);
}

#[test]
fn best_is_mended_after_a_kill_between_checkpoint_and_copy() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let expected = uninterrupted(folder.path());
    fs::remove_dir_all(folder.path().join("best")).expect("removed");
    let run = resume(folder.path(), &settings());
    train(&mut Toy::new(), &groups(11), &groups(5), &settings(), &run, GO).expect("nothing to do");
    assert_eq!(contents(folder.path()), expected);
}

#[test]
fn final_is_the_last_checkpoints_adapter_alone_and_is_mended() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let expected = uninterrupted(folder.path());
    let adapter = |name: &str| expected.get(name).unwrap_or_else(|| panic!("{name} in {:?}", expected.keys()));
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        assert_eq!(adapter(&format!("final/{name}")), adapter(&format!("checkpoints/step-12/{name}")));
    }
    assert_eq!(expected.keys().filter(|name| name.starts_with("final/")).count(), 3, "no trainer state");
    fs::remove_dir_all(folder.path().join("final")).expect("removed");
    let run = resume(folder.path(), &settings());
    let summary = train(&mut Toy::new(), &groups(11), &groups(5), &settings(), &run, GO).expect("nothing to do");
    assert_eq!(summary.adapter, folder.path().join("final"));
    assert_eq!(contents(folder.path()), expected);
    // A stopped run has no final adapter yet.
    let stopped = tempfile::tempdir().expect("temporary folder");
    let run = create(stopped.path(), &settings());
    let stop = |_: &StepMetrics, _: &StepTiming| ControlFlow::Break(());
    let summary = train(&mut Toy::new(), &groups(11), &[], &settings(), &run, stop).expect("stopped");
    assert_eq!(summary.adapter, stopped.path().join("checkpoints/step-1"));
    assert!(!stopped.path().join("final").exists());
}

#[test]
fn a_collapse_leaves_a_checkpoint_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // Parameters that answer yes to everything, hardly moved by training.
    let constant = || {
        let mut toy = Toy::new();
        toy.shift = 100.0;
        toy
    };
    let with = |stop_on_collapse| {
        let mut settings = settings();
        settings.schedule.epochs = Some(10);
        settings.objective.stop_on_collapse = stop_on_collapse;
        settings
    };
    let run = create(folder.path(), &with(true));
    let error = error_of(train(&mut constant(), &groups(11), &[], &with(true), &run, GO));
    let Error::Collapse { step, place: "training", answering } = error else { panic!("no collapse: {error}") };
    assert_eq!((answering.questions, answering.yes_rate, answering.one_way), (66, 1.0, true));
    let (truth, spread) = (100.0 * answering.label_yes_rate, answering.margin_sd);
    assert_eq!(
        error.to_string(),
        format!(
            "step {step}: 100 % of training's last 66 answers are yes, while the truth is yes for {truth:.0} %; the standard \
             deviation of their margins is {spread:.3}"
        )
    );
    assert_eq!(run.newest_checkpoint().expect("read").0.map(|found| found.step), Some(step));
    assert!(error.hint().is_some_and(|hint| hint.contains("--resume --stop-on-collapse false")));
    drop(run);
    let run = resume(folder.path(), &with(true));
    let mut engine = constant();
    let again = error_of(train(&mut engine, &groups(11), &[], &with(true), &run, GO));
    assert!(matches!(again, Error::Collapse { step: found, .. } if found == step), "{again}");
    assert_eq!(engine.leaves, 0, "nothing is computed only to stop again");
    drop(run);
    let run = resume(folder.path(), &with(false));
    let summary = train(&mut constant(), &groups(11), &[], &with(false), &run, GO).expect("goes on");
    assert_eq!((summary.resumed_from, summary.steps), (step, 30));
    assert_eq!(summary.collapsed.map(|(step, place, _)| (step, place)), Some((step, "training")));
    let metrics = fs::read_to_string(folder.path().join("metrics.jsonl")).expect("metrics");
    let first = metrics.lines().position(|line| line.contains("\"one_way\":true")).expect("recorded");
    assert_eq!(first as u64 + 1, step);
}

#[test]
fn non_finite_values_stop_before_the_update_and_name_step_and_group() {
    for what in ["loss", "margin", "gradient"] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let run = create(folder.path(), &settings());
        let mut engine = Toy { fail_at: Some(8), ..Toy::new() };
        train(&mut engine, &groups(11), &[], &settings(), &run, GO).expect_err("killed");
        let mut engine = Toy { poison: Some(("g4".into(), what)), ..Toy::new() };
        let error = error_of(train(&mut engine, &groups(11), &[], &settings(), &run, GO));
        // Epoch 1 is steps 4 to 6; the run goes on from step 5, and g4 is in step 6 of this seed's order.
        let order = epoch_order(3, 1, 11);
        let step = 4 + order.iter().position(|&index| index == 4).expect("every group") as u64 / 4;
        let step = if step > 5 {
            step
        } else {
            7 + epoch_order(3, 2, 11).iter().position(|&i| i == 4).expect("in") as u64 / 4
        };
        let tensor = if what == "gradient" { "; first not finite: toy.3" } else { "" };
        assert_eq!(error.to_string(), format!("step {step}: the {what} of group `g4` is not finite{tensor}"));
        let metrics = fs::read_to_string(folder.path().join("metrics.jsonl")).expect("metrics");
        assert_eq!(metrics.lines().count() as u64, step - 1, "nothing is written of the step or after it");
        let (checkpoint, _) = run.newest_checkpoint().expect("read");
        assert_eq!(checkpoint.map(|found| found.step), Some(5));
        assert!(engine.state.params.iter().all(|value| value.is_finite()));
    }
}

#[test]
fn accumulation_in_leaves_is_one_large_batch_up_to_rounding() {
    let losses = |groups_per_batch| {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut settings = settings();
        settings.schedule.groups_per_batch = groups_per_batch;
        let run = create(folder.path(), &settings);
        let mut losses = Vec::new();
        let see = |metrics: &StepMetrics, _: &StepTiming| {
            losses.push((metrics.loss, metrics.grad_norm));
            ControlFlow::Continue(())
        };
        train(&mut Toy::new(), &groups(11), &[], &settings, &run, see).expect("trained");
        losses
    };
    let (single, whole) = (losses(1), losses(4));
    assert_eq!(single.len(), 12);
    for (a, b) in single.iter().zip(&whole) {
        assert!((a.0 - b.0).abs() < 1e-5 * a.0.abs() && (a.1 - b.1).abs() < 1e-5 * a.1, "{a:?} and {b:?}");
    }
    assert!(single[11].0 < single[0].0, "the toy learns");
}

#[test]
fn the_update_is_the_clipped_mean_gradient() {
    struct Recorder(Toy, Vec<AdamWStep>, Vec<f64>);
    impl super::super::engine::MarginEngine for Recorder {
        fn margins(&mut self, groups: &[EngineGroup]) -> Result<Vec<Vec<f64>>> {
            self.0.margins(groups)
        }
    }
    impl TrainEngine for Recorder {
        type Gradient = Vec<f32>;
        fn leaf(&mut self, g: &[EngineGroup], s: u32, o: u32) -> Result<(Vec<crate::objective::GroupLoss>, Vec<f32>)> {
            self.0.leaf(g, s, o)
        }
        fn evaluate(&mut self, g: &[EngineGroup]) -> Result<Vec<crate::objective::GroupLoss>> {
            self.0.evaluate(g)
        }
        fn tensor_name(&self, index: usize) -> Option<String> {
            self.0.tensor_name(index)
        }
        fn first_non_finite(&mut self, g: &EngineGroup, s: u32, o: u32) -> Result<Option<String>> {
            self.0.first_non_finite(g, s, o)
        }
        fn add(&mut self, into: &mut Vec<f32>, other: &Vec<f32>) {
            self.0.add(into, other);
        }
        fn gradient_norm(&self, gradient: &Vec<f32>) -> f64 {
            self.0.gradient_norm(gradient)
        }
        fn update(&mut self, gradient: &Vec<f32>, step: &AdamWStep) {
            self.1.push(*step);
            self.2.push(self.0.gradient_norm(gradient));
            self.0.update(gradient, step);
        }
        fn state(&self) -> super::super::TrainerTensors {
            self.0.state()
        }
        fn load_state(&mut self, state: super::super::TrainerTensors) -> Result<()> {
            self.0.load_state(state)
        }
        fn write_adapter(&self, folder: &Path) -> Result<()> {
            self.0.write_adapter(folder)
        }
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut settings = settings();
    settings.optimizer.clip = Some(0.3);
    let run = create(folder.path(), &settings);
    let mut engine = Recorder(Toy::new(), Vec::new(), Vec::new());
    let mut norms = Vec::new();
    let see = |metrics: &StepMetrics, _: &StepTiming| {
        norms.push(metrics.grad_norm);
        ControlFlow::Continue(())
    };
    train(&mut engine, &groups(11), &[], &settings, &run, see).expect("trained");
    for (i, ((step, sum), norm)) in engine.1.iter().zip(&engine.2).zip(&norms).enumerate() {
        // 11 groups, 4 a step: every third step has three groups.
        let count = if i % 3 == 2 { 3.0 } else { 4.0 };
        assert_eq!((step.step, *norm), (i as u64 + 1, sum / count));
        assert_eq!(step.gradient_scale, (0.3 / (norm + 1e-6)).min(1.0) / count);
    }
    assert!(engine.1.iter().any(|step| step.gradient_scale < 0.25), "clipping is in use");
}

#[test]
fn useless_groups_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = create(folder.path(), &settings());
    assert!(matches!(error_of(train(&mut Toy::new(), &[], &[], &settings(), &run, GO)), Error::NoGroups));
    let mut lone = groups(2);
    lone[1].tokens.suffixes.truncate(1);
    let error = error_of(train(&mut Toy::new(), &lone, &[], &settings(), &run, GO));
    assert_eq!(error.to_string(), "group `g1` has no paraphrase, but the loss compares phrasings");
}

#[test]
fn other_metrics_than_the_checkpoints_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = create(folder.path(), &settings());
    train(&mut Toy::new(), &groups(11), &[], &settings(), &run, GO).expect("trained");
    fs::write(folder.path().join("metrics.jsonl"), "").expect("emptied");
    let error = error_of(train(&mut Toy::new(), &groups(11), &[], &settings(), &run, GO));
    assert!(error.to_string().ends_with("expected step 1, found the end; the checkpoint is of step 12"), "{error}");
}
