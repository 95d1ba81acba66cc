//! `adapter_config.json` of PEFT: reading with every unsupported kind refused by name, and writing.
//!
//! Only what decides the computation is kept: which modules were adapted is told by the tensors themselves. Keys of
//! `rank_pattern` and `alpha_pattern` are regular expressions, matched as PEFT does; an expression that Rust's
//! `regex` does not have (look-around, back-references) is refused rather than misread.

use super::{
    Error, Module,
    json::{self, Object},
};
use regex::Regex;
use serde_json::{Map, Value};

/// Which class of transformers a written adapter's names and targets are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Naming {
    /// `Gemma3ForCausalLM`, text-only: `model.layers.N…`
    CausalLm,
    /// `Gemma3ForConditionalGeneration`, vision-language, from transformers 4.52 on: `model.language_model.layers.N…`
    ConditionalGeneration,
}

impl Naming {
    /// Path of a linear layer inside the model, as `model.layers.3.self_attn.q_proj`.
    pub fn module_path(self, layer: usize, module: Module) -> String {
        let root = match self {
            Self::CausalLm => "model",
            Self::ConditionalGeneration => "model.language_model",
        };
        format!("{root}.layers.{layer}.{}", module.path())
    }

    /// Names of A and B in `adapter_model.safetensors`.
    pub fn tensor_names(self, layer: usize, module: Module) -> (String, String) {
        let path = self.module_path(layer, module);
        (format!("base_model.model.{path}.lora_A.weight"), format!("base_model.model.{path}.lora_B.weight"))
    }
}

/// A choice of modules: names (each an exact path or the end of one) or one regular expression for the whole path.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// A JSON list.
    Names(Vec<String>),
    /// A JSON string.
    Pattern(String),
}

/// The settings of a LoRA adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank of modules that `rank_pattern` does not name.
    pub r: usize,
    /// α of modules that `alpha_pattern` does not name.
    pub lora_alpha: f64,
    /// Probability that an input element of the adapter is dropped in training, in [0, 1).
    pub lora_dropout: f64,
    /// Whether the scale is α/√r instead of α/r.
    pub use_rslora: bool,
    /// Ranks by regular expression over module paths; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// α by regular expression over module paths; the first that matches counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that PEFT adapts.
    pub target_modules: Targets,
    /// Modules that PEFT leaves out all the same.
    pub exclude_modules: Option<Targets>,
    /// Layers that PEFT adapts; only with a list of targets.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list of layers in module paths.
    pub layers_pattern: Option<Targets>,
    /// The model that it was trained on.
    pub base_model_name_or_path: Option<String>,
    /// That model's revision.
    pub revision: Option<String>,
    /// `CAUSAL_LM` as a rule.
    pub task_type: Option<String>,
}

impl AdapterConfig {
    /// Settings for adapting `modules` in each of `layers`, without dropout.
    ///
    /// A text-only model gets a list of targets and of layers. A vision-language model gets a regular expression that
    /// cannot match the vision tower, whose layers have modules of the same names.
    pub fn new(naming: Naming, r: usize, lora_alpha: f64, modules: &[Module], layers: &[usize]) -> Self {
        let (mut modules, mut layers) = (modules.to_vec(), layers.to_vec());
        modules.sort();
        modules.dedup();
        layers.sort_unstable();
        layers.dedup();
        let (target_modules, layers_to_transform) = match naming {
            Naming::CausalLm => {
                let mut names: Vec<String> = modules.iter().map(|module| module.name().to_string()).collect();
                names.sort();
                (Targets::Names(names), Some(layers))
            }
            Naming::ConditionalGeneration => {
                let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
                let paths: Vec<String> = modules.iter().map(|module| module.path().replace('.', "\\.")).collect();
                let (layers, paths) = (layers.join("|"), paths.join("|"));
                (Targets::Pattern(format!(r"(.*\.)?language_model\.(model\.)?layers\.({layers})\.({paths})")), None)
            }
        };
        Self {
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            target_modules,
            exclude_modules: None,
            layers_to_transform,
            layers_pattern: None,
            base_model_name_or_path: None,
            revision: None,
            task_type: Some("CAUSAL_LM".into()),
        }
    }

    /// Reads the text of an `adapter_config.json` named `file` in errors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for every kind of adapter that is not plain LoRA, [`Error::Field`], [`Error::Json`].
    pub fn from_json(file: &str, text: &str) -> Result<Self, Error> {
        let value = json::parse(file, text)?;
        let object = Object::root(file, &value)?;
        refuse_other_kinds(&object)?;
        let lora_dropout = object.number("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&lora_dropout) {
            return Err(object.wrong("lora_dropout", lora_dropout, "a number from 0 to below 1"));
        }
        let ranks = object.object("rank_pattern")?;
        let alphas = object.object("alpha_pattern")?;
        let config = Self {
            r: object.positive("r", 8)?,
            lora_alpha: object.number("lora_alpha", 8.0)?,
            lora_dropout,
            use_rslora: object.boolean("use_rslora")?.unwrap_or(false),
            rank_pattern: ranks
                .iter()
                .map(|(key, _)| Ok((key.into(), ranks.positive(key, 8)?)))
                .collect::<Result<_, Error>>()?,
            alpha_pattern: alphas
                .iter()
                .map(|(key, _)| Ok((key.into(), alphas.number(key, 8.0)?)))
                .collect::<Result<_, Error>>()?,
            target_modules: targets(&object, "target_modules")?.unwrap_or(Targets::Names(Vec::new())),
            exclude_modules: targets(&object, "exclude_modules")?,
            layers_to_transform: layers(&object)?,
            layers_pattern: targets(&object, "layers_pattern")?,
            base_model_name_or_path: object.string("base_model_name_or_path")?,
            revision: object.string("revision")?,
            task_type: object.string("task_type")?,
        };
        config.scales(file)?;
        Ok(config)
    }

    /// The text to write: keys sorted, indented by two, the same bytes for the same settings.
    pub fn to_json(&self) -> String {
        let sorted = |mut pairs: Vec<(String, Value)>| {
            pairs.sort_by(|left, right| left.0.cmp(&right.0));
            Value::Object(pairs.into_iter().collect::<Map<_, _>>())
        };
        let ranks = self.rank_pattern.iter().map(|(key, rank)| (key.clone(), Value::from(*rank))).collect();
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha))).collect();
        let mut fields: Vec<(&str, Value)> = vec![
            ("alpha_pattern", sorted(alphas)),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", self.base_model_name_or_path.clone().into()),
            ("bias", "none".into()),
            ("fan_in_fan_out", false.into()),
            ("inference_mode", true.into()),
            ("init_lora_weights", true.into()),
            ("layers_pattern", self.layers_pattern.as_ref().map(Targets::to_value).into()),
            ("layers_to_transform", self.layers_to_transform.clone().into()),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", Value::from(self.lora_dropout)),
            ("modules_to_save", Value::Null),
            ("peft_type", "LORA".into()),
            ("r", self.r.into()),
            ("rank_pattern", sorted(ranks)),
            ("revision", self.revision.clone().into()),
            ("target_modules", self.target_modules.to_value()),
            ("task_type", self.task_type.clone().into()),
            ("use_dora", false.into()),
            ("use_rslora", self.use_rslora.into()),
        ];
        // Left out when unset: PEFT before 0.14 does not know it.
        if let Some(excluded) = &self.exclude_modules {
            fields.push(("exclude_modules", excluded.to_value()));
        }
        let value = sorted(fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect());
        format!("{value:#}")
    }

    /// The patterns, ready to be asked for module paths. `file` is for errors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pattern that is not a regular expression here.
    pub fn scales(&self, file: &str) -> Result<Scales, Error> {
        let compile = |field: &str, key: &str| {
            // PEFT: re.match(rf"(.*\.)?({key})$", path)
            Regex::new(&format!(r"^(.*\.)?({key})$")).map_err(|_| Error::Unsupported {
                file: file.into(),
                field: field.into(),
                found: key.into(),
                reason: "it is not a regular expression without look-around and back-references".into(),
            })
        };
        let ranks = self.rank_pattern.iter().map(|(key, rank)| Ok((compile("rank_pattern", key)?, *rank)));
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| Ok((compile("alpha_pattern", key)?, *alpha)));
        Ok(Scales {
            ranks: ranks.collect::<Result<_, Error>>()?,
            alphas: alphas.collect::<Result<_, Error>>()?,
            rank: self.r,
            alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
        })
    }
}

/// Rank and scale of each module of an adapter.
#[derive(Debug)]
pub struct Scales {
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    rank: usize,
    alpha: f64,
    use_rslora: bool,
}

impl Scales {
    /// Rank of the module at a path such as `model.layers.3.self_attn.q_proj`.
    pub fn rank(&self, path: &str) -> usize {
        first_match(&self.ranks, path).unwrap_or(self.rank)
    }

    /// Factor on B·A: α/r, or α/√r with rsLoRA; computed in f64 and rounded once.
    pub fn scale(&self, path: &str) -> f32 {
        let rank = self.rank(path) as f64;
        let alpha = first_match(&self.alphas, path).unwrap_or(self.alpha);
        (alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, value)| *value)
}

impl Targets {
    fn to_value(&self) -> Value {
        match self {
            Self::Names(names) => names.clone().into(),
            Self::Pattern(pattern) => pattern.clone().into(),
        }
    }
}

/// Refuses whatever would make the forward pass differ from y = W·x + scale·B·(A·x).
fn refuse_other_kinds(object: &Object) -> Result<(), Error> {
    if let Some(found) = object.string("peft_type")?.filter(|found| found != "LORA") {
        return Err(object.unsupported("peft_type", found, "only `LORA` is"));
    }
    if let Some(found) = object.string("bias")?.filter(|found| found != "none") {
        return Err(object.unsupported("bias", found, "only `none` is: biases of the base model are not trained"));
    }
    for (field, reason) in [
        ("use_dora", "DoRA rescales the weights by column norms; only plain LoRA and rsLoRA are"),
        ("use_qalora", "QALoRA pools the inputs; only plain LoRA and rsLoRA are"),
        ("lora_bias", "A and B have no bias here"),
        ("fan_in_fan_out", "Gemma 3's weights are stored [outputs, inputs]"),
        ("modules_to_save", "the adapter replaces whole modules of the base model"),
        ("trainable_token_indices", "the adapter replaces rows of the embedding"),
        ("target_parameters", "only linear modules are adapted"),
        ("layer_replication", "the adapter repeats layers of the base model"),
        ("alora_invocation_tokens", "activated LoRA applies to a part of the tokens only"),
        ("arrow_config", "routed adapters are not"),
        ("megatron_config", "Megatron's layers are not"),
    ] {
        object.refuse_set(field, reason)?;
    }
    match object.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(kind)) if matches!(kind.as_str(), "gaussian" | "eva" | "orthogonal") => Ok(()),
        // PiSSA, OLoRA, CorDA and LoftQ change the base weights as well.
        Some(found) => Err(object.unsupported(
            "init_lora_weights",
            found,
            "it may have changed the base weights; convert the adapter to plain LoRA when saving it",
        )),
    }
}

/// A string or a list of strings.
fn targets(object: &Object, field: &str) -> Result<Option<Targets>, Error> {
    match object.get(field) {
        None => Ok(None),
        Some(Value::String(pattern)) => Ok(Some(Targets::Pattern(pattern.clone()))),
        Some(Value::Array(names)) => {
            let name = |name: &Value| name.as_str().map(str::to_string);
            let names = names.iter().map(name).collect::<Option<Vec<_>>>();
            names
                .map(|names| Some(Targets::Names(names)))
                .ok_or_else(|| object.wrong(field, "a list with something else", "a string or a list of strings"))
        }
        Some(found) => Err(object.wrong(field, found, "a string or a list of strings")),
    }
}

/// A layer or a list of layers.
fn layers(object: &Object) -> Result<Option<Vec<usize>>, Error> {
    let field = "layers_to_transform";
    let layer = |value: &Value| {
        let layer = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        layer.ok_or_else(|| object.wrong(field, value, "a layer or a list of layers"))
    };
    match object.get(field) {
        None => Ok(None),
        Some(Value::Array(layers)) => layers.iter().map(layer).collect::<Result<_, _>>().map(Some),
        Some(value) => Ok(Some(vec![layer(value)?])),
    }
}

/// A whole number without a point, as PEFT writes its α.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { Value::from(value as i64) } else { Value::from(value) }
}
