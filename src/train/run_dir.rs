//! A run directory: who may use it, what it was begun with, where its checkpoints are, and what a resumed run starts from.
//!
//! ```text
//! config.toml          every resolved setting and [identity]: version, hashes, unit
//! metrics.jsonl        one line a step, deterministic; timings.jsonl has the clock's values
//! checkpoints/step-N/  adapter, trainer_state.safetensors, manifest.json
//! best/                the adapter that did best on validation data, if there is any
//! final/               the adapter of a finished run
//! tensorboard/         the same figures as events
//! run.lock             held by the process that uses the directory
//! ```

use super::checkpoint::{self, Checkpoint, Position, Skipped};
use super::config::IDENTITY;
use super::durable::{FolderLock, LOCK};
use super::engine::{TrainEngine, TrainerTensors};
use super::error::Error;
use super::events::EventLog;
use super::metrics::{Line, Log, cut_back};
use super::settings::Settings;
use super::validation::{BestBy, ValidationMetrics};
use crate::error::Result;
use crate::weights::{is_leftover, remove_leftovers, replace_folder, write_atomically};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// First line of a run's `config.toml`: tells a run directory from anything else that holds a file of that name.
const HEADER: &str = "# unflip run";

/// What a run computes with beyond its settings. Resuming with another one is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// Version of unflip.
    pub version: String,
    /// Identifies the model's files.
    pub model: String,
    /// Hash of the adapter that the run starts from; empty for a new one.
    #[serde(default)]
    pub adapter: String,
    /// Hash of the training groups in use.
    pub train_data: String,
    /// Hash of the validation groups; empty without.
    pub validation_data: String,
    /// Hash of the prompt template.
    pub template: String,
    /// What decides the bits: device, precision and, where it matters, the unit.
    pub unit: String,
}

impl RunIdentity {
    /// (key, value, whether another one may be allowed by flag).
    fn entries(&self) -> [(&'static str, &str, bool); 7] {
        [
            ("identity.model", &self.model, false),
            ("identity.adapter", &self.adapter, false),
            ("identity.train_data", &self.train_data, false),
            ("identity.validation_data", &self.validation_data, false),
            ("identity.template", &self.template, false),
            ("identity.version", &self.version, true),
            ("identity.unit", &self.unit, true),
        ]
    }
}

/// An open run directory; no other process can open it while this lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: FolderLock,
}

/// What a run goes on from.
pub(super) struct Start {
    /// The newest whole checkpoint with its state; `None` starts at step 0.
    pub checkpoint: Option<(Checkpoint, Position, TrainerTensors)>,
    /// Newer ones that are not whole.
    pub skipped: Vec<Skipped>,
    /// Metrics up to the checkpoint.
    pub lines: Vec<Line>,
}

impl RunDir {
    /// Begins a run in a new or empty directory. `settings` are resolved.
    pub fn create(path: &Path, settings: &Settings, identity: &RunIdentity) -> Result<Self> {
        fs::create_dir_all(path).map_err(|source| crate::Error::io("create", path, source))?;
        if is_run(path) {
            FolderLock::take(path)?;
            return Err(Error::Exists { path: path.display().to_string() }.into());
        }
        let config = path.join("config.toml");
        for entry in fs::read_dir(path).map_err(|source| crate::Error::io("read", path, source))? {
            let name = entry.map_err(|source| crate::Error::io("read", path, source))?.file_name();
            let name = name.to_string_lossy().into_owned();
            // A killed start leaves its lock and a part of config.toml.
            if name != LOCK && !(is_leftover(&name) && name.starts_with(".config.toml.")) {
                return Err(Error::Foreign { path: path.display().to_string(), found: name }.into());
            }
        }
        let lock = FolderLock::take(path)?;
        if is_run(path) {
            return Err(Error::Exists { path: path.display().to_string() }.into());
        }
        remove_leftovers(path)?;
        let mut table = settings.to_table();
        let record = toml::Value::try_from(identity).and_then(|identity| {
            table.insert(IDENTITY.to_owned(), identity);
            toml::to_string(&table)
        });
        let text = record
            .map_err(|error| Error::Config { place: config.display().to_string(), problem: error.to_string() })?;
        write_atomically(&config, format!("{HEADER}\n{text}").as_bytes())?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// Opens a run to go on with it. Settings and identity must be as it began, but for places (compared by content) and
    /// what never changes a result; `other_unit` also lets version and unit differ.
    pub fn resume(path: &Path, settings: &Settings, identity: &RunIdentity, other_unit: bool) -> Result<Self> {
        if !is_run(path) {
            return Err(Error::NotARun { path: path.display().to_string() }.into());
        }
        let lock = FolderLock::take(path)?;
        let config = path.join("config.toml");
        let place = config.display().to_string();
        let text = fs::read_to_string(&config).map_err(|source| crate::Error::io("read", &config, source))?;
        let stored = Settings::parse(&text, &place)?;
        let show = |value: &str| match value {
            "" => "unset".to_owned(),
            // The beginning of a hash tells it from another.
            value if value.len() == 64 => format!("`{}`", value.get(..12).unwrap_or(value)),
            value => format!("`{value}`"),
        };
        let changed = |key: &str, stored: String, given: String| Error::Changed {
            path: path.display().to_string(),
            key: key.into(),
            stored,
            given,
        };
        #[derive(Deserialize)]
        struct Recorded {
            identity: RunIdentity,
        }
        let recorded: Recorded =
            toml::from_str(&text).map_err(|error| Error::Config { place, problem: error.message().to_owned() })?;
        // First, because the settings of the adapter follow from it.
        if !recorded.identity.adapter.is_empty() && identity.adapter.is_empty() {
            let folder = stored.model.adapter.as_ref().map(|folder| folder.display().to_string());
            let stored = folder.unwrap_or_else(|| recorded.identity.adapter.clone());
            return Err(Error::StartAdapterMissing { path: path.display().to_string(), stored }.into());
        }
        if recorded.identity.adapter != identity.adapter {
            return Err(changed("identity.adapter", show(&recorded.identity.adapter), show(&identity.adapter)).into());
        }
        if let Some((key, stored, given)) = stored.first_change(settings) {
            return Err(changed(key, stored, given).into());
        }
        for ((key, stored, by_flag), (_, given, _)) in recorded.identity.entries().into_iter().zip(identity.entries()) {
            if stored != given && !(by_flag && other_unit) {
                return Err(changed(key, show(stored), show(given)).into());
            }
        }
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// The settings that the run at `path` began with.
    pub fn settings(path: &Path) -> Result<Settings> {
        if !is_run(path) {
            return Err(Error::NotARun { path: path.display().to_string() }.into());
        }
        Settings::read(&path.join("config.toml"))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest whole checkpoint, and newer ones that are not whole.
    pub fn newest_checkpoint(&self) -> Result<(Option<Checkpoint>, Vec<Skipped>)> {
        checkpoint::newest(&self.path.join("checkpoints"))
    }

    /// Finds where to go on and cuts the metrics back to there. A run killed before its first checkpoint was whole starts
    /// over; one whose finished checkpoints are all broken is refused.
    pub(super) fn start(&self) -> Result<Start> {
        let (newest, skipped) = self.newest_checkpoint()?;
        if newest.is_none() && skipped.iter().any(|one| !one.name.starts_with('.')) {
            return Err(Error::NoCompleteCheckpoint { path: self.path.display().to_string(), skipped }.into());
        }
        remove_leftovers(&self.path.join("checkpoints"))?;
        remove_leftovers(&self.path)?;
        let checkpoint = match newest {
            Some(found) => {
                let (position, tensors) = checkpoint::read_state(&found)?;
                Some((found, position, tensors))
            }
            None => None,
        };
        let step = checkpoint.as_ref().map_or(0, |(found, _, _)| found.step);
        let lines = cut_back(&self.path.join("metrics.jsonl"), step)?;
        Ok(Start { checkpoint, skipped, lines })
    }

    pub(super) fn metrics_log(&self) -> Result<Log> {
        Log::open(&self.path.join("metrics.jsonl"))
    }

    pub(super) fn timings_log(&self) -> Result<Log> {
        Log::open(&self.path.join("timings.jsonl"))
    }

    /// The TensorBoard events up to `step`, to be gone on with.
    pub(super) fn event_log(&self, step: u64) -> Result<EventLog> {
        EventLog::open(&self.path.join("tensorboard"), step)
    }

    /// Removes checkpoints beyond the newest `keep`; never the one that `best/` is a copy of. `None` keeps all.
    pub(super) fn prune(&self, keep: Option<usize>, best: Option<u64>) -> Result<()> {
        let spared: Vec<u64> = best.into_iter().collect();
        keep.map_or(Ok(()), |keep| checkpoint::prune(&self.path.join("checkpoints"), keep, &spared))
    }

    pub(super) fn write_checkpoint<E: TrainEngine>(&self, engine: &E, position: Position) -> Result<Checkpoint> {
        checkpoint::write(&self.path.join("checkpoints"), engine, position)
    }

    /// Makes `best/` a copy of the adapter in the best validated checkpoint: a function of metrics and checkpoints alone,
    /// so that a kill between the two is mended on resume.
    pub(super) fn refresh_best(&self, best: &ValidationMetrics, by: BestBy) -> Result<()> {
        self.copy_adapter("best", best.step, &best.note(by))
    }

    /// Makes `final/` a copy of the finished run's adapter.
    pub(super) fn refresh_final(&self, step: u64) -> Result<()> {
        self.copy_adapter("final", step, &serde_json::json!({ "step": step }))
    }

    /// Makes the folder `name` a copy of the adapter in the checkpoint of `step`, with `note` in `name.json`. A folder that has
    /// this note already is left as it is.
    fn copy_adapter(&self, name: &str, step: u64, note: &impl Serialize) -> Result<()> {
        let target = self.path.join(name);
        let note_name = format!("{name}.json");
        let note = serde_json::to_vec_pretty(note).map_err(|error| crate::Error::io("write", &target, error.into()))?;
        if fs::read(target.join(&note_name)).is_ok_and(|found| found == note) {
            return Ok(());
        }
        let source = self.path.join(format!("checkpoints/step-{step}"));
        replace_folder(&target, |folder| -> Result<()> {
            for entry in fs::read_dir(&source).map_err(|error| crate::Error::io("read", &source, error))? {
                let from = entry.map_err(|error| crate::Error::io("read", &source, error))?.path();
                let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if !matches!(name.as_str(), "manifest.json" | "trainer_state.safetensors") {
                    let to = folder.join(&name);
                    fs::copy(&from, &to).map_err(|source| crate::Error::io("write", &to, source))?;
                }
            }
            Ok(write_atomically(&folder.join(&note_name), &note)?)
        })
    }
}

/// Whether `path` holds a run.
fn is_run(path: &Path) -> bool {
    fs::read_to_string(path.join("config.toml")).is_ok_and(|text| text.starts_with(HEADER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> RunIdentity {
        RunIdentity {
            version: "0.1.0".into(),
            model: "m".into(),
            train_data: "d".into(),
            unit: "cpu f32".into(),
            ..RunIdentity::default()
        }
    }

    fn settings() -> Settings {
        Settings::default().resolve().expect("defaults are valid")
    }

    fn train_error(result: Result<RunDir>) -> Error {
        match result {
            Err(crate::Error::Train(error)) => error,
            other => panic!("expected an error of a run directory, found {other:?}"),
        }
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("config.toml"), "name = 1").expect("written");
        let error = train_error(RunDir::create(folder.path(), &settings(), &identity()));
        assert!(matches!(&error, Error::Foreign { found, .. } if found == "config.toml"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
        let error = train_error(RunDir::resume(folder.path(), &settings(), &identity(), false));
        assert!(matches!(error, Error::NotARun { .. }), "{error}");
    }

    #[test]
    fn an_unwritable_place_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("written");
        let error = RunDir::create(&file.join("run"), &settings(), &identity()).expect_err("a file is in the way");
        assert!(error.to_string().starts_with(&format!("cannot create {}/run: ", file.display())), "{error}");
    }

    #[test]
    fn second_process_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("run");
        let run = RunDir::create(&path, &settings(), &identity()).expect("created");
        for second in
            [RunDir::create(&path, &settings(), &identity()), RunDir::resume(&path, &settings(), &identity(), false)]
        {
            let error = train_error(second);
            assert!(matches!(error, Error::Locked { .. }), "{error}");
        }
        drop(run);
        let error = train_error(RunDir::create(&path, &settings(), &identity()));
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        RunDir::resume(&path, &settings(), &identity(), false).expect("resumed");
    }

    #[test]
    fn changed_settings_are_named_and_free_ones_are_allowed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("run");
        drop(RunDir::create(&path, &settings(), &identity()).expect("created"));
        let with = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            RunDir::resume(&path, &settings, &identity(), false)
        };
        with(|s| s.run.threads = Some(3)).expect("threads never change a result");
        with(|s| s.data.train = Some("moved.jsonl".into())).expect("content is compared, not the place");
        let error = train_error(with(|s| s.optimizer.lr = 1e-4));
        assert_eq!(
            error.to_string(),
            format!("cannot resume {}: `optimizer.lr` was 0.0002 when the run began, found 0.0001", path.display())
        );
        let error = train_error(with(|s| s.schedule.epochs = Some(2)));
        assert!(error.to_string().contains("`schedule.epochs` was 1 when the run began, found 2"), "{error}");
        let error = train_error(with(|s| s.data.limit = Some(2)));
        assert!(error.to_string().contains("`data.limit` was unset when the run began, found 2"), "{error}");

        let other_data = RunIdentity { train_data: "e".into(), ..identity() };
        let error = train_error(RunDir::resume(&path, &settings(), &other_data, true));
        assert!(error.to_string().contains("`identity.train_data` was `d` when the run began, found `e`"), "{error}");
        let other_start = RunIdentity { adapter: "a".into(), ..identity() };
        let error = train_error(RunDir::resume(&path, &settings(), &other_start, true));
        assert!(error.to_string().contains("`identity.adapter` was unset when the run began, found `a`"), "{error}");
        let started = folder.path().join("started");
        drop(RunDir::create(&started, &settings(), &other_start).expect("created"));
        let error = train_error(RunDir::resume(&started, &settings(), &identity(), true));
        assert!(matches!(error, Error::StartAdapterMissing { .. }), "{error}");
        let another = RunIdentity { adapter: "b".into(), ..identity() };
        let error = train_error(RunDir::resume(&started, &settings(), &another, true));
        assert!(error.to_string().contains("`identity.adapter` was `a` when the run began, found `b`"), "{error}");
        let other_unit = RunIdentity { unit: "cpu bf16 amx".into(), ..identity() };
        let error = train_error(RunDir::resume(&path, &settings(), &other_unit, false));
        assert!(error.to_string().contains("`identity.unit`"), "{error}");
        RunDir::resume(&path, &settings(), &other_unit, true).expect("allowed by flag");
        assert_eq!(RunDir::settings(&path).expect("read"), settings());
    }
}
