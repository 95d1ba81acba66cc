//! Promises of beginning a run: what is wrong is found before there is a directory, a start adapter keeps its shape and must be
//! there again on resuming, a model may move, and every adapter says how it is asked.

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use support::{Golden, engine_groups};
use unflip::cpu::{Cpu, Isa};
use unflip::train::{
    EngineGroup, Error, Opening, RunIdentity, RunRequest, Settings, TemplateChoice, TrainSummary, read_adapter_notes,
    train,
};
use unflip::weights::{AdapterFile, Checkpoint};

const RESUME: Opening = Opening::Resume { other_unit: false };

/// A run as `unflip train` asks for it, of two steps.
fn request(golden: &Golden, groups: Vec<EngineGroup>, change: impl FnOnce(&mut Settings)) -> RunRequest {
    let mut settings = Settings::default();
    settings.model.path = Some("models/tiny".into());
    settings.schedule.batch_groups = 2;
    settings.schedule.steps = Some(2);
    change(&mut settings);
    let mut settings = settings.resolve().expect("settings are valid");
    let adapter = settings.model.adapter.as_deref().map(|folder| AdapterFile::open(folder).expect("adapter opens"));
    let template = settings.complete(&golden.checkpoint, adapter.as_ref()).expect("nothing contradicts");
    let from = settings.model.adapter.as_deref();
    let identity = RunIdentity::new(&golden.checkpoint, from, "data", None, &template).expect("readable");
    RunRequest { settings, adapter, groups, validation: Vec::new(), identity }
}

fn go(golden: &Golden, mut request: RunRequest, out: &Path, opening: Opening) -> unflip::Result<TrainSummary> {
    let engine = golden.engine(Cpu::new(Isa::Portable, Some(1)).unwrap(), None);
    let (mut trainer, run) = request.start(engine, &golden.checkpoint, out, opening)?;
    let RunRequest { settings, groups, validation, .. } = &request;
    train(&mut trainer, groups, validation, settings, &run, |_, _| ControlFlow::Continue(()))
}

#[test]
fn a_start_that_fails_leaves_the_place_to_the_corrected_command() {
    let golden = Golden::open("text");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut lone = engine_groups(&golden, 3);
    lone[1].tokens.suffixes.truncate(1);
    let mut unknown = engine_groups(&golden, 3);
    unknown[0].yes = u32::MAX;
    for wrong in [Vec::new(), lone.clone(), unknown] {
        go(&golden, request(&golden, wrong, |_| ()), &out, Opening::New).unwrap_err();
        assert!(!out.exists());
    }
    let outside = request(&golden, lone.clone(), |s| s.adapter.layers = unflip::train::Layers::These(vec![99]));
    go(&golden, outside, &out, Opening::New).unwrap_err();
    assert!(!out.exists());
    // A loss of accuracy alone trains on them.
    let summary =
        go(&golden, request(&golden, lone, |s| s.objective.loss = Some("ce-binary".into())), &out, Opening::New);
    assert_eq!(summary.unwrap().steps, 2);
}

#[test]
fn a_warm_start_keeps_the_adapters_shape_and_is_resumed_with_the_same_adapter() {
    let golden = Golden::open("text");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let start = golden.folder.join("lora_l23");
    let file = AdapterFile::open(&start).unwrap();
    let warm = || request(&golden, engine_groups(&golden, 3), |s| s.model.adapter = Some(start.clone()));
    let settings = warm().settings.adapter;
    assert_eq!(
        (settings.rank, settings.alpha, settings.rslora),
        (file.config.r, file.config.lora_alpha, file.config.use_rslora)
    );
    let summary = go(&golden, warm(), &out, Opening::New).unwrap();
    assert_eq!(summary.adapter, out.join("final"));
    let trained = AdapterFile::open(&summary.adapter).unwrap();
    let scales = |file: &AdapterFile| file.tensors.iter().map(|t| (t.layer, t.module, t.scale)).collect::<Vec<_>>();
    assert_eq!(scales(&trained), scales(&file));
    assert_ne!(trained.tensors, file.tensors, "it was trained");

    go(&golden, warm(), &out, RESUME).unwrap();
    let error = go(&golden, request(&golden, engine_groups(&golden, 3), |_| ()), &out, RESUME).unwrap_err();
    assert!(matches!(error, unflip::Error::Train(Error::StartAdapterMissing { .. })), "{error}");
    assert!(error.hint().unwrap().contains(&format!("--adapter {}", start.display())));
    let mut contradicting = warm().settings;
    contradicting.adapter.rank = file.config.r + 1;
    let error = contradicting.complete(&golden.checkpoint, Some(&file)).unwrap_err();
    assert!(error.is_usage() && error.to_string().starts_with("adapter.rank and model.adapter: "), "{error}");
}

#[test]
fn a_run_goes_on_with_a_copy_of_its_model_in_another_place() {
    let golden = Golden::open("text");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    go(&golden, request(&golden, engine_groups(&golden, 3), |_| ()), &out, Opening::New).unwrap();
    let copy = folder.path().join("model");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(golden.folder.join("model")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::write(copy.join(from.file_name().unwrap()), std::fs::read(&from).unwrap()).unwrap();
    }
    let moved = Golden { folder: golden.folder.clone(), checkpoint: Checkpoint::open(&copy).unwrap() };
    let elsewhere = request(&moved, engine_groups(&moved, 3), |s| s.model.path = Some(copy.clone()));
    assert_eq!(go(&moved, elsewhere, &out, RESUME).unwrap().steps, 2);
}

#[test]
fn every_adapter_folder_says_how_it_is_asked() {
    let golden = Golden::open("text");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let pattern = "Answer Yes or No: {question}";
    let asked = request(&golden, engine_groups(&golden, 3), |s| s.data.template = Some(pattern.into()));
    let summary = go(&golden, asked, &out, Opening::New).unwrap();
    for adapter in [summary.adapter, out.join("checkpoints/step-2")] {
        let notes = read_adapter_notes(&adapter).unwrap().expect("notes");
        assert_eq!((notes.template.pattern(), notes.base_model.as_str()), (pattern, "models/tiny"));
        assert_eq!(notes.base_model_fingerprint, golden.checkpoint.fingerprint().unwrap());
        assert!(std::fs::read_to_string(adapter.join("README.md")).unwrap().contains(pattern));
        assert_eq!(TemplateChoice::new(None, Some(&adapter)).unwrap().template.pattern(), pattern);
    }
    let default = folder.path().join("default");
    go(&golden, request(&golden, engine_groups(&golden, 3), |_| ()), &default, Opening::New).unwrap();
    let config = std::fs::read_to_string(default.join("config.toml")).unwrap();
    let table: toml::Table = toml::from_str(&config).unwrap();
    assert_eq!(table["data"]["template"].as_str(), Some(unflip::text::PromptTemplate::default().pattern()));
}
