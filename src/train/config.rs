//! Settings from TOML files and flags and back. A TOML key and a flag go through the same row of `keys.rs`; a problem is
//! reported with file and line.

use super::Error;
use super::keys::{self, Given, KEYS, OnResume};
use super::settings::Settings;
use crate::error::Result;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// The section of a run's `config.toml` that records what the run computed with; not a setting.
pub(super) const IDENTITY: &str = "identity";

impl Settings {
    /// Defaults overridden by a TOML file. Also reads the `config.toml` of a run.
    pub fn read(path: &Path) -> Result<Self> {
        Self::default().overridden_by(path)
    }

    /// These settings, a preset's say, overridden by a TOML file.
    pub fn overridden_by(self, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| crate::Error::io("read", path, source))?;
        Ok(self.parse_over(&text, &path.display().to_string())?)
    }

    /// Defaults overridden by TOML text; `name` stands for the file in errors.
    pub fn parse(text: &str, name: &str) -> Result<Self, Error> {
        Self::default().parse_over(text, name)
    }

    /// These settings overridden by TOML text. What replaces a whole loss or the length of the run replaces all of it.
    fn parse_over(mut self, text: &str, name: &str) -> Result<Self, Error> {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let syntax = |error: &toml::de::Error| Error::Config {
            place: error.span().map_or(name.to_owned(), |span| format!("{name}:{}", line(span.start))),
            problem: error.message().to_owned(),
        };
        let positions = DeTable::parse(text).map_err(|error| syntax(&error))?;
        let values: toml::Table = toml::from_str(text).map_err(|error| syntax(&error))?;
        let given = |section: &str, keys: &[&str]| {
            let table = values.get(section).and_then(toml::Value::as_table);
            table.is_some_and(|table| keys.iter().any(|key| table.contains_key(*key)))
        };
        if given("schedule", &["epochs", "steps"]) {
            (self.schedule.epochs, self.schedule.steps) = (None, None);
        }
        if given("objective", &["loss", "consistency", "accuracy"]) {
            let objective = &mut self.objective;
            (objective.loss, objective.consistency, objective.accuracy, objective.lambda) = (None, None, None, None);
        }
        for (section, content) in positions.get_ref() {
            let section_name: &str = section.get_ref();
            if section_name == IDENTITY {
                continue;
            }
            let place = format!("{name}:{}", line(section.span().start));
            let DeValue::Table(content) = content.get_ref() else {
                keys::find(section_name, &place)?;
                continue;
            };
            if !KEYS.iter().any(|key| key.name.split('.').next() == Some(section_name)) && content.is_empty() {
                keys::find(section_name, &place)?;
            }
            for key in content.keys() {
                let key_name: &str = key.get_ref();
                let place = format!("{name}:{}", line(key.span().start));
                let row = keys::find(&format!("{section_name}.{key_name}"), &place)?;
                if let Some(value) = values.get(section_name).and_then(|section| section.get(key_name)) {
                    self.assign(row, Given::Toml(value), &place)?;
                }
            }
        }
        Ok(self)
    }

    /// Applies flags, as (`section.name`, text), over what a file said. A flag for one of `schedule.epochs` and
    /// `schedule.steps`, or for `objective.loss` and its parts, replaces the file's other one.
    pub fn override_with(&mut self, flags: &[(&str, &str)]) -> Result<(), Error> {
        let given = |name: &str| flags.iter().any(|(key, _)| *key == name);
        let parts = given("objective.consistency") || given("objective.accuracy");
        if given("schedule.epochs") || given("schedule.steps") {
            (self.schedule.epochs, self.schedule.steps) = (None, None);
        }
        if given("objective.loss") {
            (self.objective.consistency, self.objective.accuracy) = (None, None);
        } else if parts {
            self.objective.loss = None;
        }
        for (key, text) in flags {
            let row = keys::find(key, "flags")?;
            self.assign(row, Given::Text(text), "flags")?;
        }
        // A file's λ belongs to the file's loss.
        if (given("objective.loss") || parts) && !given("objective.lambda") && self.objective.default_lambda().is_none()
        {
            self.objective.lambda = None;
        }
        Ok(())
    }

    fn assign(&mut self, row: &keys::Key, value: Given, place: &str) -> Result<(), Error> {
        (row.set)(self, value).ok_or_else(|| Error::Setting {
            key: row.name.to_owned(),
            place: place.to_owned(),
            expected: row.expected.to_owned(),
            found: value.show(),
        })?;
        self.given.0.insert(row.name);
        Ok(())
    }

    /// Every setting that has a value, by section.
    pub fn to_table(&self) -> toml::Table {
        let mut table = toml::Table::new();
        for row in KEYS {
            let (Some((section, name)), Some(value)) = (row.name.split_once('.'), (row.get)(self)) else { continue };
            let section = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(section) = section {
                section.insert(name.to_owned(), value);
            }
        }
        table
    }

    /// The settings as JSON, for result files. Infinity becomes the text `inf`.
    pub fn to_json(&self) -> serde_json::Value {
        fn json(value: &toml::Value) -> serde_json::Value {
            match value {
                toml::Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), json(value))).collect(),
                toml::Value::Array(items) => items.iter().map(json).collect(),
                toml::Value::Float(number) if number.is_infinite() => "inf".into(),
                toml::Value::Float(number) => (*number).into(),
                toml::Value::Integer(number) => (*number).into(),
                toml::Value::Boolean(truth) => (*truth).into(),
                other => other.as_str().map_or_else(|| other.to_string(), str::to_owned).into(),
            }
        }
        json(&toml::Value::Table(self.to_table()))
    }

    /// As [`Settings::to_json`], only what decides a result: no places, no threads.
    pub fn deciding_json(&self) -> serde_json::Value {
        let mut all = self.to_json();
        for row in KEYS.iter().filter(|row| row.on_resume == OnResume::Free) {
            if let Some((section, name)) = row.name.split_once('.')
                && let Some(section) = all.get_mut(section).and_then(serde_json::Value::as_object_mut)
            {
                section.remove(name);
            }
        }
        all
    }

    /// The first setting that a resumed run may not change and that differs: (key, stored, given).
    pub(super) fn first_change(&self, given: &Self) -> Option<(&'static str, String, String)> {
        let show = |value: Option<toml::Value>| value.map_or("unset".to_owned(), |value| value.to_string());
        KEYS.iter().filter(|row| row.on_resume == OnResume::Fixed).find_map(|row| {
            let (stored, given) = ((row.get)(self), (row.get)(given));
            (stored != given).then(|| (row.name, show(stored), show(given)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Decay, Layers, Paraphrases};
    use super::*;
    use crate::objective::Pairs;
    use crate::weights::Module;

    const EVERYTHING: &str = r#"
[model]
path = "google/gemma-3-270m"
precision = "bf16"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
paraphrases = "sample:2"
limit = 50
sample_pairs = 40
template = "Answer Yes or No: {question}"
[adapter]
modules = ["v", "q_proj"]
layers = "8-11"
rank = 4
alpha = 8
rslora = true
dropout = 0.05
[objective]
loss = "paper"
pairs = "all"
lambda = inf
[optimizer]
lr = 1e-4
beta1 = 0.8
beta2 = 0.99
eps = 1e-6
weight_decay = 0.01
clip = "none"
[schedule]
warmup_steps = 10
decay = "cosine"
batch_groups = 16
groups_per_batch = 4
steps = 300
[run]
seed = 7
checkpoint_every = 25
keep_checkpoints = 3
validate_every = 10
best_by = "loss"
threads = 3
isa = "avx2"
"#;

    #[test]
    fn every_setting_is_read_and_written_back() {
        let settings = Settings::parse(EVERYTHING, "c.toml").expect("valid");
        assert_eq!(settings.adapter.modules, [Module::Q, Module::V]);
        assert_eq!(settings.adapter.layers, Layers::These(vec![8, 9, 10, 11]));
        assert_eq!(settings.data.paraphrases, Paraphrases::Sample(2));
        assert_eq!((settings.objective.pairs, settings.objective.lambda), (Pairs::All, Some(f64::INFINITY)));
        assert_eq!((settings.optimizer.clip, settings.schedule.decay), (None, Decay::Cosine));
        let written = toml::to_string(&settings.to_table()).expect("writes");
        assert_eq!(Settings::parse(&written, "again").expect("valid"), settings);
        let defaults = toml::to_string(&Settings::default().to_table()).expect("writes");
        assert_eq!(Settings::parse(&defaults, "again").expect("valid"), Settings::default());
        assert_eq!(Settings::parse("", "empty").expect("valid"), Settings::default());
        assert_eq!(settings.to_json()["objective"]["lambda"], "inf");
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_one_with_file_and_line() {
        for (text, place, key, nearest) in [
            ("[optimizer]\n\nlearning_rat = 1\nlr = 2e-4", "c.toml:3", "optimizer.learning_rat", None),
            ("[optimizer]\nwieght_decay = 0.1", "c.toml:2", "optimizer.wieght_decay", Some("optimizer.weight_decay")),
            ("[adapter]\nlr = 0.1", "c.toml:2", "adapter.lr", Some("optimizer.lr")),
            ("[optimiser]\nlr = 0.1", "c.toml:2", "optimiser.lr", Some("optimizer.lr")),
            ("seed = 1", "c.toml:1", "seed", Some("run.seed")),
            ("\n[shedule]\n", "c.toml:2", "shedule", None),
            ("[schedule]\nwarmup = 3", "c.toml:2", "schedule.warmup", Some("schedule.warmup_steps")),
        ] {
            match Settings::parse(text, "c.toml") {
                Err(Error::UnknownKey { key: found, place: at, nearest: near }) => {
                    assert_eq!((found.as_str(), at.as_str()), (key, place));
                    if nearest.is_some() {
                        assert_eq!(near.as_deref(), nearest);
                    }
                }
                other => panic!("{text:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn values_out_of_range_say_what_is_expected_and_what_was_found() {
        for (section, line, expected) in [
            ("optimizer", "lr = 0", "`optimizer.lr` in c.toml:2 must be a number above 0, found 0"),
            ("optimizer", "lr = nan", "`optimizer.lr` in c.toml:2 must be a number above 0, found nan"),
            ("adapter", "rank = 0", "`adapter.rank` in c.toml:2 must be a whole number, at least 1, found 0"),
            (
                "adapter",
                "dropout = 1.0",
                "`adapter.dropout` in c.toml:2 must be a number at least 0 and below 1, found 1.0",
            ),
            (
                "adapter",
                "modules = [\"q\", \"x\"]",
                "`adapter.modules` in c.toml:2 must be one or more of q, k, v, o, gate, up, down, found [\"q\", \"x\"]",
            ),
            (
                "objective",
                "lambda = -1",
                "`objective.lambda` in c.toml:2 must be a number at least 0, or inf, found -1",
            ),
            (
                "data",
                "paraphrases = \"sample:0\"",
                "`data.paraphrases` in c.toml:2 must be all, none or sample:K with K at least 1, found \"sample:0\"",
            ),
            ("run", "seed = \"x\"", "`run.seed` in c.toml:2 must be a whole number, found \"x\""),
        ] {
            let error = Settings::parse(&format!("[{section}]\n{line}"), "c.toml").expect_err(line);
            assert_eq!(error.to_string(), expected);
        }
        let error = Settings::parse("[run]\nseed = = 1", "c.toml").expect_err("syntax");
        assert!(error.to_string().starts_with("c.toml:2: "), "{error}");
    }

    #[test]
    fn flags_override_the_file() {
        let mut settings = Settings::parse(EVERYTHING, "c.toml").expect("valid");
        settings
            .override_with(&[
                ("optimizer.lr", "3e-4"),
                ("schedule.epochs", "2"),
                ("objective.consistency", "margin"),
                ("objective.accuracy", "ce-full"),
                ("adapter.layers", "1"),
                ("adapter.modules", "o,down"),
                ("objective.lambda", "inf"),
            ])
            .expect("valid");
        assert_eq!((settings.optimizer.lr, settings.adapter.rank), (3e-4, 4));
        assert_eq!((settings.schedule.epochs, settings.schedule.steps), (Some(2), None));
        assert_eq!(settings.objective.loss, None);
        assert_eq!(settings.adapter.modules, [Module::O, Module::Down]);
        assert!(settings.clone().resolve().is_ok());
        let error = settings.override_with(&[("adapter.rank", "-2")]).expect_err("refused");
        assert_eq!(error.to_string(), "`adapter.rank` in flags must be a whole number, at least 1, found \"-2\"");
        settings.override_with(&[("schedule.epochs", "2"), ("schedule.steps", "9")]).expect("each is valid");
        assert!(matches!(settings.resolve(), Err(Error::Conflict { .. })));
    }
}
