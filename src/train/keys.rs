//! The table of setting keys: how each is read from TOML or from a flag, written back, and whether a resumed run may
//! change it. One row a setting, so that reading, `config.toml`, and the comparison on resume cannot drift apart.

use super::Error;
use super::settings::{Decay, Layers, Paraphrases, Settings};
use super::validation::BestBy;
use crate::objective::{ACCURACY, CONSISTENCY, LOSSES, POOLS, Pairs};
use crate::weights::Module;
use toml::Value;

/// A value as it was given.
#[derive(Clone, Copy)]
pub(super) enum Given<'a> {
    /// From a TOML file.
    Toml(&'a Value),
    /// From a flag.
    Text(&'a str),
}

impl Given<'_> {
    fn text(self) -> Option<String> {
        match self {
            Self::Toml(Value::String(text)) => Some(text.clone()),
            Self::Text(text) => Some(text.to_owned()),
            Self::Toml(_) => None,
        }
    }

    fn integer(self) -> Option<u64> {
        match self {
            Self::Toml(Value::Integer(number)) => u64::try_from(*number).ok(),
            // TOML has signed integers only, and a seed must come back from config.toml.
            Self::Text(text) => text.parse().ok().filter(|&number| i64::try_from(number).is_ok()),
            Self::Toml(_) => None,
        }
    }

    fn count(self) -> Option<usize> {
        self.integer().and_then(|number| usize::try_from(number).ok()).filter(|&number| number > 0)
    }

    fn number(self) -> Option<f64> {
        match self {
            Self::Toml(Value::Float(number)) => Some(*number),
            Self::Toml(Value::Integer(number)) => Some(*number as f64),
            Self::Text(text) => text.parse().ok(),
            Self::Toml(_) => None,
        }
        .filter(|number| !number.is_nan())
    }

    fn finite(self) -> Option<f64> {
        self.number().filter(|number| number.is_finite())
    }

    fn truth(self) -> Option<bool> {
        match self {
            Self::Toml(Value::Boolean(truth)) => Some(*truth),
            Self::Text(text) => text.parse().ok(),
            Self::Toml(_) => None,
        }
    }

    fn one_of(self, names: &[&str]) -> Option<String> {
        self.text().filter(|text| names.contains(&text.as_str()))
    }

    /// A list of strings, or one string with commas.
    fn list(self) -> Option<Vec<String>> {
        match self {
            Self::Toml(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()
            }
            _ => Some(self.text()?.split(',').map(|item| item.trim().to_owned()).collect()),
        }
    }

    /// For error messages.
    pub(super) fn show(self) -> String {
        match self {
            Self::Toml(value) => value.to_string(),
            Self::Text(text) => format!("\"{text}\""),
        }
    }
}

/// What a resumed run may do with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnResume {
    /// Must be as the run began.
    Fixed,
    /// May change: a place whose content is compared by hash, or something that never changes a result.
    Free,
}

/// One setting.
pub(super) struct Key {
    /// `section.name`.
    pub(super) name: &'static str,
    /// What it accepts, for error messages.
    pub(super) expected: &'static str,
    pub(super) on_resume: OnResume,
    /// `None` if the setting is absent.
    pub(super) get: fn(&Settings) -> Option<Value>,
    /// `None` if the value is not what is expected.
    pub(super) set: fn(&mut Settings, Given) -> Option<()>,
}

/// Short names of the adapted modules, in their fixed order.
pub const MODULES: [(&str, Module); 7] = [
    ("q", Module::Q),
    ("k", Module::K),
    ("v", Module::V),
    ("o", Module::O),
    ("gate", Module::Gate),
    ("up", Module::Up),
    ("down", Module::Down),
];

/// Reads `q` or `q_proj`.
fn module(name: &str) -> Option<Module> {
    let name = name.strip_suffix("_proj").unwrap_or(name);
    MODULES.iter().find(|(short, _)| *short == name).map(|&(_, module)| module)
}

fn paraphrases(text: &str) -> Option<Paraphrases> {
    match text {
        "all" => Some(Paraphrases::All),
        "none" => Some(Paraphrases::None),
        _ => text.strip_prefix("sample:")?.parse().ok().filter(|&k| k > 0).map(Paraphrases::Sample),
    }
}

fn string(text: impl ToString) -> Option<Value> {
    Some(Value::String(text.to_string()))
}

fn int(number: impl TryInto<i64>) -> Option<Value> {
    number.try_into().ok().map(Value::Integer)
}

fn path(path: &Option<std::path::PathBuf>) -> Option<Value> {
    path.as_ref().and_then(|path| string(path.display()))
}

use OnResume::{Fixed, Free};

/// Every setting, by section.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    Key { name: "model.path", expected: "a model folder or org/name", on_resume: Free,
        get: |s| path(&s.model.path), set: |s, v| { s.model.path = Some(v.text()?.into()); Some(()) } },
    Key { name: "model.adapter", expected: "an adapter folder", on_resume: Free,
        get: |s| path(&s.model.adapter), set: |s, v| { s.model.adapter = Some(v.text()?.into()); Some(()) } },
    Key { name: "model.precision", expected: "auto, f32 or bf16", on_resume: Fixed,
        get: |s| string(&s.model.precision), set: |s, v| { s.model.precision = v.one_of(&["auto", "f32", "bf16"])?; Some(()) } },
    Key { name: "model.device", expected: "cpu, cuda or reference", on_resume: Fixed,
        get: |s| string(&s.model.device), set: |s, v| { s.model.device = v.one_of(&["cpu", "cuda", "reference"])?; Some(()) } },
    Key { name: "model.embed_scale", expected: "auto, exact or bf16", on_resume: Fixed,
        get: |s| string(&s.model.embed_scale), set: |s, v| { s.model.embed_scale = v.one_of(&["auto", "exact", "bf16"])?; Some(()) } },
    Key { name: "model.share_prefix", expected: "true or false", on_resume: Fixed,
        get: |s| Some(Value::Boolean(s.model.share_prefix)), set: |s, v| { s.model.share_prefix = v.truth()?; Some(()) } },

    Key { name: "data.train", expected: "a JSONL file of prompt groups", on_resume: Free,
        get: |s| path(&s.data.train), set: |s, v| { s.data.train = Some(v.text()?.into()); Some(()) } },
    Key { name: "data.validation", expected: "a JSONL file of prompt groups", on_resume: Free,
        get: |s| path(&s.data.validation), set: |s, v| { s.data.validation = Some(v.text()?.into()); Some(()) } },
    Key { name: "data.paraphrases", expected: "all, none or sample:K with K at least 1", on_resume: Fixed,
        get: |s| match s.data.paraphrases {
            Paraphrases::All => string("all"),
            Paraphrases::None => string("none"),
            Paraphrases::Sample(k) => string(format!("sample:{k}")),
        },
        set: |s, v| { s.data.paraphrases = paraphrases(&v.text()?)?; Some(()) } },
    Key { name: "data.limit", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| s.data.limit.and_then(int), set: |s, v| { s.data.limit = Some(v.count()?); Some(()) } },
    Key { name: "data.sample_pairs", expected: "a whole number, at least 1, or \"all\"", on_resume: Fixed,
        get: |s| s.data.sample_pairs.and_then(int),
        set: |s, v| { s.data.sample_pairs = if v.text().as_deref() == Some("all") { None } else { Some(v.count()?) }; Some(()) } },
    Key { name: "data.template", expected: "a prompt template", on_resume: Fixed,
        get: |s| s.data.template.as_ref().and_then(string), set: |s, v| { s.data.template = Some(v.text()?); Some(()) } },

    Key { name: "adapter.modules", expected: "one or more of q, k, v, o, gate, up, down", on_resume: Fixed,
        get: |s| {
            let chosen = MODULES.iter().filter(|(_, module)| s.adapter.modules.contains(module));
            Some(Value::Array(chosen.map(|&(name, _)| Value::String(name.into())).collect()))
        },
        set: |s, v| {
            let mut modules = v.list()?.iter().map(|name| module(name)).collect::<Option<Vec<_>>>()?;
            modules.sort_unstable();
            modules.dedup();
            s.adapter.modules = Some(modules).filter(|modules| !modules.is_empty())?;
            Some(())
        } },
    Key { name: "adapter.layers", expected: "all, paper, a range as 8-11 or a list as 2,3,7", on_resume: Fixed,
        get: |s| string(&s.adapter.layers),
        set: |s, v| {
            s.adapter.layers = match v {
                Given::Toml(Value::Array(items)) => {
                    let texts = items.iter().map(|item| item.as_integer().map(|layer| layer.to_string()));
                    Layers::parse(&texts.collect::<Option<Vec<_>>>()?.join(","))?
                }
                Given::Toml(Value::Integer(layer)) => Layers::parse(&layer.to_string())?,
                _ => Layers::parse(&v.text()?)?,
            };
            Some(())
        } },
    Key { name: "adapter.rank", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| int(s.adapter.rank), set: |s, v| { s.adapter.rank = v.count()?; Some(()) } },
    Key { name: "adapter.alpha", expected: "a number above 0", on_resume: Fixed,
        get: |s| Some(Value::Float(s.adapter.alpha)), set: |s, v| { s.adapter.alpha = v.finite().filter(|&x| x > 0.0)?; Some(()) } },
    Key { name: "adapter.rslora", expected: "true or false", on_resume: Fixed,
        get: |s| Some(Value::Boolean(s.adapter.rslora)), set: |s, v| { s.adapter.rslora = v.truth()?; Some(()) } },
    Key { name: "adapter.dropout", expected: "a number at least 0 and below 1", on_resume: Fixed,
        get: |s| Some(Value::Float(s.adapter.dropout)), set: |s, v| { s.adapter.dropout = v.number().filter(|x| (0.0..1.0).contains(x))?; Some(()) } },

    Key { name: "objective.loss", expected: "paper, margin, symkl-binary, symkl-full, ce-binary, ce-full or combined", on_resume: Fixed,
        get: |s| s.objective.loss.as_ref().and_then(string), set: |s, v| { s.objective.loss = Some(v.one_of(&LOSSES)?); Some(()) } },
    Key { name: "objective.consistency", expected: "margin, symkl-binary or symkl-full", on_resume: Fixed,
        get: |s| s.objective.consistency.as_ref().and_then(string), set: |s, v| { s.objective.consistency = Some(v.one_of(&CONSISTENCY)?); Some(()) } },
    Key { name: "objective.accuracy", expected: "ce-binary or ce-full", on_resume: Fixed,
        get: |s| s.objective.accuracy.as_ref().and_then(string), set: |s, v| { s.objective.accuracy = Some(v.one_of(&ACCURACY)?); Some(()) } },
    Key { name: "objective.pairs", expected: "original or all", on_resume: Fixed,
        get: |s| string(match s.objective.pairs { Pairs::Original => "original", Pairs::All => "all" }),
        set: |s, v| { s.objective.pairs = if v.one_of(&["original", "all"])? == "all" { Pairs::All } else { Pairs::Original }; Some(()) } },
    Key { name: "objective.lambda", expected: "a number at least 0, or inf", on_resume: Fixed,
        get: |s| s.objective.lambda.map(Value::Float), set: |s, v| { s.objective.lambda = Some(v.number().filter(|&x| x >= 0.0)?); Some(()) } },
    Key { name: "objective.pool", expected: "single, max or logsumexp", on_resume: Fixed,
        get: |s| string(s.objective.pool.name()), set: |s, v| { s.objective.pool = v.one_of(&POOLS)?.parse().ok()?; Some(()) } },
    Key { name: "objective.stop_on_collapse", expected: "true or false", on_resume: Free,
        get: |s| Some(Value::Boolean(s.objective.stop_on_collapse)), set: |s, v| { s.objective.stop_on_collapse = v.truth()?; Some(()) } },

    Key { name: "optimizer.lr", expected: "a number above 0", on_resume: Fixed,
        get: |s| Some(Value::Float(s.optimizer.lr)), set: |s, v| { s.optimizer.lr = v.finite().filter(|&x| x > 0.0)?; Some(()) } },
    Key { name: "optimizer.beta1", expected: "a number at least 0 and below 1", on_resume: Fixed,
        get: |s| Some(Value::Float(s.optimizer.beta1)), set: |s, v| { s.optimizer.beta1 = v.number().filter(|x| (0.0..1.0).contains(x))?; Some(()) } },
    Key { name: "optimizer.beta2", expected: "a number at least 0 and below 1", on_resume: Fixed,
        get: |s| Some(Value::Float(s.optimizer.beta2)), set: |s, v| { s.optimizer.beta2 = v.number().filter(|x| (0.0..1.0).contains(x))?; Some(()) } },
    Key { name: "optimizer.eps", expected: "a number above 0", on_resume: Fixed,
        get: |s| Some(Value::Float(s.optimizer.eps)), set: |s, v| { s.optimizer.eps = v.finite().filter(|&x| x > 0.0)?; Some(()) } },
    Key { name: "optimizer.weight_decay", expected: "a number at least 0", on_resume: Fixed,
        get: |s| Some(Value::Float(s.optimizer.weight_decay)), set: |s, v| { s.optimizer.weight_decay = v.finite().filter(|&x| x >= 0.0)?; Some(()) } },
    Key { name: "optimizer.clip", expected: "a number above 0, or \"none\"", on_resume: Fixed,
        get: |s| s.optimizer.clip.map_or(string("none"), |clip| Some(Value::Float(clip))),
        set: |s, v| {
            s.optimizer.clip = if v.text().as_deref() == Some("none") { None } else { Some(v.finite().filter(|&x| x > 0.0)?) };
            Some(())
        } },

    Key { name: "schedule.warmup_steps", expected: "a whole number", on_resume: Fixed,
        get: |s| int(s.schedule.warmup_steps), set: |s, v| { s.schedule.warmup_steps = v.integer()?; Some(()) } },
    Key { name: "schedule.decay", expected: "constant, linear or cosine", on_resume: Fixed,
        get: |s| string(match s.schedule.decay { Decay::Constant => "constant", Decay::Linear => "linear", Decay::Cosine => "cosine" }),
        set: |s, v| {
            s.schedule.decay = match v.text()?.as_str() {
                "constant" => Decay::Constant,
                "linear" => Decay::Linear,
                "cosine" => Decay::Cosine,
                _ => return None,
            };
            Some(())
        } },
    Key { name: "schedule.batch_groups", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| int(s.schedule.batch_groups), set: |s, v| { s.schedule.batch_groups = v.count()?; Some(()) } },
    Key { name: "schedule.groups_per_batch", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| int(s.schedule.groups_per_batch), set: |s, v| { s.schedule.groups_per_batch = v.count()?; Some(()) } },
    Key { name: "schedule.epochs", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| s.schedule.epochs.and_then(int), set: |s, v| { s.schedule.epochs = Some(v.integer().filter(|&n| n > 0)?); Some(()) } },
    Key { name: "schedule.steps", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| s.schedule.steps.and_then(int), set: |s, v| { s.schedule.steps = Some(v.integer().filter(|&n| n > 0)?); Some(()) } },

    Key { name: "run.seed", expected: "a whole number", on_resume: Fixed,
        get: |s| int(s.run.seed), set: |s, v| { s.run.seed = v.integer()?; Some(()) } },
    Key { name: "run.checkpoint_every", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| int(s.run.checkpoint_every), set: |s, v| { s.run.checkpoint_every = v.integer().filter(|&n| n > 0)?; Some(()) } },
    Key { name: "run.keep_checkpoints", expected: "a whole number, at least 1, or \"all\"", on_resume: Free,
        get: |s| s.run.keep_checkpoints.map_or(string("all"), int),
        set: |s, v| { s.run.keep_checkpoints = if v.text().as_deref() == Some("all") { None } else { Some(v.count()?) }; Some(()) } },
    Key { name: "run.validate_every", expected: "a whole number, at least 1", on_resume: Fixed,
        get: |s| s.run.validate_every.and_then(int), set: |s, v| { s.run.validate_every = Some(v.integer().filter(|&n| n > 0)?); Some(()) } },
    Key { name: "run.best_by", expected: "accuracy_all, accuracy, flip_rate_question, flip_rate_pair, margin_difference or loss", on_resume: Fixed,
        get: |s| string(s.run.best_by.name()),
        set: |s, v| { let name = v.text()?; s.run.best_by = BestBy::NAMES.iter().find(|(known, _)| *known == name)?.1; Some(()) } },
    Key { name: "run.threads", expected: "a whole number, at least 1", on_resume: Free,
        get: |s| s.run.threads.and_then(int), set: |s, v| { s.run.threads = Some(v.count()?); Some(()) } },
    Key { name: "run.isa", expected: "an instruction set", on_resume: Free,
        get: |s| s.run.isa.as_ref().and_then(string), set: |s, v| { s.run.isa = Some(v.text()?); Some(()) } },
];

/// Finds a key or says which known one is nearest.
pub(super) fn find(name: &str, place: &str) -> Result<&'static Key, Error> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| Error::UnknownKey {
        key: name.to_owned(),
        place: place.to_owned(),
        nearest: nearest(name),
    })
}

/// The nearest known key, by its name in whatever section, if any is near enough to be a slip.
fn nearest(name: &str) -> Option<String> {
    let bare = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let score =
        |known: &str| strsim::jaro_winkler(name, known).max(0.99 * strsim::jaro_winkler(&bare(name), &bare(known)));
    KEYS.iter()
        .map(|key| (score(key.name), key.name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.75)
        .map(|(_, name)| name.to_owned())
}
