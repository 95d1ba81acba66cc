//! From settings, data and a model on a device to a trainer and its run directory. Everything that can be wrong with the
//! request is found before the directory exists, so that a corrected command can use the same place.

use super::keys::KEYS;
use super::notes::{AdapterNotes, TemplateChoice};
use super::settings::{AdapterSettings, Layers, Settings};
use super::step::check_trainable;
use super::{AdapterTrainer, EngineGroup, Error, RunDir, RunIdentity};
use crate::error::Result;
use crate::model::{Adapter, Engine, LoraLayout, LoraSettings};
use crate::ops::TrainDevice;
use crate::text::{AnswerStrings, PromptTemplate};
use crate::weights::{AdapterConfig, AdapterFile, Checkpoint, Module, Naming};
use std::collections::{BTreeSet, HashSet};
use std::path::Path;

/// What a run is begun or gone on with, all that needs no device.
#[derive(Debug)]
pub struct RunRequest {
    /// Resolved and completed by [`Settings::complete`].
    pub settings: Settings,
    /// Adapter to start from.
    pub adapter: Option<AdapterFile>,
    /// Training groups as read; once started, those of [`Settings::select`].
    pub groups: Vec<EngineGroup>,
    /// Validation groups; may be empty.
    pub validation: Vec<EngineGroup>,
    /// What the run computes with; `unit` is the engine's.
    pub identity: RunIdentity,
}

/// How a run directory is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A new run.
    New,
    /// The run that is there, or a new one.
    Resume {
        /// Allow another version or unit than the run began with.
        other_unit: bool,
    },
}

impl Settings {
    /// Fills in what model and start adapter decide: the prompt template, and of the adapter all but its dropout.
    ///
    /// # Errors
    /// A setting of a file or flag, or other than its default, that contradicts the start adapter; a template without a question.
    pub fn complete(&mut self, checkpoint: &Checkpoint, adapter: Option<&AdapterFile>) -> Result<PromptTemplate> {
        let template = TemplateChoice::new(self.data.template.as_deref(), self.model.adapter.as_deref())?.template;
        self.data.template = Some(template.pattern().to_owned());
        let depth = checkpoint.config.text.num_hidden_layers;
        if let Some(file) = adapter {
            self.adopt(file, depth)?;
        }
        if self.adapter.layers == Layers::Paper {
            self.adapter.layers = Layers::These(self.adapter.layers.resolve(depth)?);
        }
        Ok(template)
    }

    /// The shape of a new adapter for a model of `layers` layers.
    ///
    /// # Errors
    /// Layers that the model lacks.
    pub fn lora(&self, layers: usize) -> Result<LoraSettings, Error> {
        let AdapterSettings { modules, layers: adapted, rank, alpha, rslora, .. } = &self.adapter;
        Ok(LoraSettings {
            layers: adapted.resolve(layers)?.into_iter().collect(),
            modules: modules.iter().copied().collect(),
            rank: *rank,
            alpha: *alpha,
            rslora: *rslora,
        })
    }

    /// Takes the shape of `file`, for a model of `layers` layers.
    fn adopt(&mut self, file: &AdapterFile, layers: usize) -> Result<(), Error> {
        let every = |found: &[usize]| found.iter().copied().eq(0..layers);
        let named = |found: Vec<usize>| if every(&found) { Layers::All } else { Layers::These(found) };
        let modules: BTreeSet<Module> = file.tensors.iter().map(|tensors| tensors.module).collect();
        let held: BTreeSet<usize> = file.tensors.iter().map(|tensors| tensors.layer).collect();
        let mut adopted = self.clone();
        adopted.adapter = AdapterSettings {
            modules: modules.into_iter().collect(),
            layers: named(held.into_iter().collect()),
            rank: file.config.r,
            alpha: file.config.lora_alpha,
            rslora: file.config.use_rslora,
            dropout: self.adapter.dropout,
        };
        let by_preset = self.adapter.layers == Layers::Paper && !self.given.0.contains("adapter.layers");
        // `0-25` and `all` are one thing for a model of 26 layers.
        self.adapter.layers = named(self.adapter.layers.resolve(layers)?);
        let default = Self::default();
        for row in KEYS.iter().filter(|row| row.name.starts_with("adapter.")) {
            let [given, default, found] = [&*self, &default, &adopted].map(row.get);
            let asked = match row.name {
                "adapter.layers" if by_preset => false,
                name => self.given.0.contains(name) || given != default,
            };
            if asked && given != found {
                let show = |value: Option<toml::Value>| value.map_or("unset".to_owned(), |value| value.to_string());
                return Err(Error::Conflict {
                    keys: format!("{} and model.adapter", row.name),
                    problem: format!("{} was asked for, the adapter to start from has {}", show(given), show(found)),
                    hint: "leave it out: an adapter keeps its shape and scale; or leave model.adapter out to start a new one",
                });
            }
        }
        *self = adopted;
        Ok(())
    }
}

impl RunIdentity {
    /// Identity of a run on `checkpoint`; its unit is set when the engine is there. Data are SHA-256 sums of files.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn new(
        checkpoint: &Checkpoint,
        adapter: Option<&Path>,
        train_data: &str,
        validation_data: Option<&str>,
        template: &PromptTemplate,
    ) -> Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            model: checkpoint.fingerprint()?,
            adapter: adapter.map_or(Ok(String::new()), AdapterFile::fingerprint)?,
            train_data: train_data.to_owned(),
            validation_data: validation_data.unwrap_or_default().to_owned(),
            template: template.hash(),
            unit: String::new(),
        })
    }
}

impl RunRequest {
    /// Puts the adapter on the engine's device and opens the run directory `out`, after everything else was found good.
    ///
    /// # Errors
    /// No groups or groups of no use to the loss; prompts or an adapter that do not fit the model; wrong settings of the
    /// adapter or the loss; and of the directory as [`RunDir::create`] and [`RunDir::resume`].
    pub fn start<D: TrainDevice>(
        &mut self,
        mut engine: Engine<D>,
        checkpoint: &Checkpoint,
        out: &Path,
        opening: Opening,
    ) -> Result<(AdapterTrainer<D>, RunDir)> {
        let settings = &self.settings;
        self.identity.unit = engine.device.unit();
        engine.share_prefix = settings.model.share_prefix;
        if !self.identity.validation_data.is_empty() && self.identity.validation_data == self.identity.train_data {
            return Err(Error::ValidationIsTraining { sha256: self.identity.train_data.clone() }.into());
        }
        if self.validation.is_empty() && settings.run.validate_every.is_some() {
            return Err(Error::Conflict {
                keys: "run.validate_every and data.validation".into(),
                problem: "validations are asked for, but there are no groups to validate on".into(),
                hint: "give --validation, or leave run.validate_every out",
            }
            .into());
        }
        self.groups = settings.select(std::mem::take(&mut self.groups))?;
        check_trainable(&self.groups, settings)?;
        engine.check_groups(&self.groups)?;
        engine.check_groups(&self.validation)?;
        let trained: HashSet<Vec<u32>> = self.groups.iter().map(|group| group.tokens.prompt(0)).collect();
        let shared = self.validation.iter().filter(|group| trained.contains(&group.tokens.prompt(0))).count();
        if shared > 0 {
            let all = self.validation.len();
            tracing::warn!(
                "{shared} of {all} validation questions are trained on too: `best/` will favour what is learnt by heart"
            );
        }
        let objective = settings.objective.build()?;
        let (adapter, mut config) = match &self.adapter {
            Some(file) => (Adapter::from_file(&engine.device, &engine.model.config, file)?, file.config.clone()),
            None => new_adapter(&engine, checkpoint, settings)?,
        };
        config.lora_dropout = settings.adapter.dropout;
        let (run, begun) = match opening {
            Opening::Resume { other_unit } if out.join("config.toml").exists() => {
                (RunDir::resume(out, settings, &self.identity, other_unit)?, RunDir::settings(out)?)
            }
            _ => (RunDir::create(out, settings, &self.identity)?, settings.clone()),
        };
        // Names are those that the run began with: a resumed one writes the same bytes wherever its model lies now.
        let base_model = begun.model.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        if self.adapter.is_none() {
            config.base_model_name_or_path = Some(base_model.clone());
        }
        let template = begun.data.template.as_deref().map(PromptTemplate::new).transpose()?.unwrap_or_default();
        let notes = AdapterNotes {
            version: self.identity.version.clone(),
            base_model,
            base_model_fingerprint: self.identity.model.clone(),
            template,
            answers: AnswerStrings::default(),
            train_data: self.identity.train_data.clone(),
            validation_data: self.identity.validation_data.clone(),
            start_adapter: self.identity.adapter.clone(),
            settings: begun.deciding_json(),
        };
        let trainer = AdapterTrainer::new(engine, adapter, config, objective, settings.run.seed).with_notes(notes);
        Ok((trainer, run))
    }
}

fn new_adapter<D: TrainDevice>(
    engine: &Engine<D>,
    checkpoint: &Checkpoint,
    settings: &Settings,
) -> Result<(Adapter<D>, AdapterConfig)> {
    let model = &engine.model.config;
    let lora = settings.lora(model.num_hidden_layers)?;
    let layout = LoraLayout::from_settings(model, &lora)?;
    let naming = match checkpoint.config.vision {
        None => Naming::CausalLm,
        Some(_) => Naming::ConditionalGeneration,
    };
    let modules: Vec<_> = lora.modules.iter().copied().collect();
    let layers: Vec<_> = lora.layers.iter().copied().collect();
    let mut config = AdapterConfig::new(naming, lora.rank, lora.alpha, &modules, &layers);
    config.use_rslora = lora.rslora;
    Ok((Adapter::new(&engine.device, layout, settings.run.seed), config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::LoraTensors;

    /// A rank-4 adapter of q and v in layers 0 and 1.
    fn file() -> AdapterFile {
        let (modules, layers) = ([Module::Q, Module::V], [0, 1]);
        let tensors = layers.iter().flat_map(|&layer| {
            modules.map(|module| {
                LoraTensors::new(Naming::CausalLm, (layer, module), [2, 3], 4, 2.0, vec![0.5; 12], vec![0.0; 8])
            })
        });
        AdapterFile {
            tensors: tensors.collect(),
            config: AdapterConfig::new(Naming::CausalLm, 4, 8.0, &modules, &layers),
        }
    }

    #[test]
    fn settings_of_the_adapter_are_those_of_the_one_to_start_from() {
        let mut settings = Settings::default();
        settings.adapter.dropout = 0.1;
        settings.adopt(&file(), 3).expect("defaults give way");
        let adapter = &settings.adapter;
        assert_eq!((adapter.rank, adapter.alpha, adapter.rslora, adapter.dropout), (4, 8.0, false, 0.1));
        assert_eq!((&adapter.modules[..], &adapter.layers), (&[Module::Q, Module::V][..], &Layers::These(vec![0, 1])));
        let again = settings.clone();
        settings.adopt(&file(), 3).expect("the same");
        assert_eq!(settings, again);
        let mut whole = Settings::default();
        whole.adapter.layers = Layers::These(vec![0, 1]);
        whole.adopt(&file(), 2).expect("all layers by number");
        assert_eq!(whole.adapter.layers, Layers::All);
    }

    #[test]
    fn a_setting_that_contradicts_the_start_adapter_is_refused() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            let before = settings.adapter.rank;
            let error = settings.adopt(&file(), 3).expect_err("refused");
            assert_eq!(settings.adapter.rank, before);
            let text = error.to_string();
            assert!(crate::Error::from(error).is_usage());
            text
        };
        assert_eq!(
            refused(|s| s.adapter.rank = 8),
            "adapter.rank and model.adapter: 8 was asked for, the adapter to start from has 4"
        );
        assert!(refused(|s| s.adapter.alpha = 16.0).starts_with("adapter.alpha and "));
        assert!(refused(|s| s.adapter.rslora = true).starts_with("adapter.rslora and "));
        assert!(refused(|s| s.adapter.modules = vec![Module::Q]).starts_with("adapter.modules and "));
        assert!(refused(|s| s.adapter.layers = Layers::These(vec![2])).starts_with("adapter.layers and "));
        let by_flag = refused(|s| s.override_with(&[("adapter.rank", "16")]).expect("valid"));
        assert_eq!(by_flag, "adapter.rank and model.adapter: 16 was asked for, the adapter to start from has 4");
        let by_file = |text: &str| Settings::parse(text, "c.toml").expect("valid").adopt(&file(), 3);
        assert!(by_file("[adapter]\nalpha = 32").expect_err("refused").to_string().starts_with("adapter.alpha and "));
        assert!(by_file("[adapter]\nlayers = \"all\"").is_err() && by_file("[adapter]\nlayers = \"paper\"").is_err());
        by_file("[adapter]\nrank = 4\nlayers = \"0-1\"\nmodules = [\"q\", \"v\"]").expect("as the adapter has it");
    }

    #[test]
    fn a_presets_adapter_gives_way_to_the_one_to_start_from() {
        let mut settings = Settings::preset(super::super::Preset::Paper);
        settings.adopt(&file(), 3).expect("gives way");
        assert_eq!((settings.adapter.rank, settings.adapter.dropout), (4, 0.05));
        assert_eq!(settings.adapter.layers, Layers::These(vec![0, 1]));
    }
}
