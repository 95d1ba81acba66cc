//! PEFT LoRA adapters: `adapter_config.json` and `adapter_model.safetensors`, read and written.
//!
//! Every tensor of the file is used or refused by name: an adapter that is loaded in part gives wrong answers without
//! a sign. Names of all eras are read; each matrix keeps the name it was stored under, so that what is read can be
//! written back as it was. Whether an adapter fits a model is checked by whoever has both.

use super::{
    AdapterConfig, Dtype, Error, Naming, SafetensorsFile, Targets, TensorSpec, TensorView, atomic,
    config::MOST_LAYERS,
    json,
    names::{PEFT_PREFIX, canonical},
    safetensors_write::write_safetensors_streamed,
};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, io::Write as _, path::Path};

/// A linear layer of a decoder block that LoRA can adapt. The order is fixed: dropout masks are keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Module {
    /// All of them in their order.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Name as in PEFT's `target_modules`: `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Path inside a layer: `self_attn.q_proj`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The module of a [`Module::path`].
    pub fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.path() == path)
    }
}

/// A and B of one module: y = W·x + scale·B·(A·x).
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTensors {
    /// Decoder layer.
    pub layer: usize,
    /// Linear layer in it.
    pub module: Module,
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
    /// α/r or α/√r.
    pub scale: f32,
    /// `[rank, inputs]`, row-major.
    pub a: Vec<f32>,
    /// `[outputs, rank]`, row-major.
    pub b: Vec<f32>,
    /// Name of A in the file.
    pub a_name: String,
    /// Name of B in the file.
    pub b_name: String,
}

/// An adapter folder.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// Settings.
    pub config: AdapterConfig,
    /// Matrices, sorted by layer and module.
    pub tensors: Vec<LoraTensors>,
}

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

impl AdapterFile {
    /// Reads an adapter folder; F32, BF16 and F16 are widened to f32.
    ///
    /// # Errors
    /// A variant of [`Error`] for a folder without an adapter, a pickle, a kind that is not plain LoRA, a tensor of
    /// the vision tower, any tensor that is not used, a missing partner, a wrong shape, rank or dtype, a non-finite
    /// value.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let kind = std::fs::metadata(dir).map_err(|source| Error::io("open", dir, source))?;
        let (config_path, weights_path) = (dir.join(CONFIG), dir.join(WEIGHTS));
        for (path, missing) in [(&config_path, CONFIG), (&weights_path, WEIGHTS)] {
            if kind.is_dir() && path.exists() {
                continue;
            }
            let pickle = dir.join("adapter_model.bin");
            if missing == WEIGHTS && pickle.exists() {
                return Err(Error::Pickle { file: pickle.display().to_string() });
            }
            let is_model = dir.join("config.json").exists();
            return Err(Error::NoAdapter { folder: dir.display().to_string(), missing, is_model });
        }
        let config_name = config_path.display().to_string();
        let config = AdapterConfig::from_json(&config_name, &json::read(&config_path)?)?;
        let scales = config.scales(&config_name)?;

        let file = SafetensorsFile::open(&weights_path)?;
        let name = weights_path.display().to_string();
        let mut tensors = Vec::new();
        for ((layer, module), pair) in pairs(&name, file.names())? {
            let (a_name, b_name) = partners(&name, pair)?;
            let path = module_path(&a_name);
            let (a, b) = (file.tensor(&a_name)?, file.tensor(&b_name)?);
            let [rank, inputs] = matrix(&name, &a, "[rank, inputs]")?;
            let [outputs, b_rank] = matrix(&name, &b, "[outputs, rank]")?;
            let expected = scales.rank(path);
            for (tensor, found) in [(&a_name, rank), (&b_name, b_rank)] {
                if found != expected {
                    return Err(Error::WrongRank { file: name, tensor: tensor.clone(), expected, found });
                }
            }
            tensors.push(LoraTensors {
                layer,
                module,
                rank,
                inputs,
                outputs,
                scale: scales.scale(path),
                a: finite(&name, &a)?,
                b: finite(&name, &b)?,
                a_name,
                b_name,
            });
        }
        if tensors.is_empty() {
            return Err(Error::EmptyAdapter { file: name });
        }
        Ok(Self { config, tensors })
    }

    /// SHA-256 (hex) of the folder's two files: equal for copies.
    ///
    /// # Errors
    /// [`Error::Io`] for files that cannot be read.
    pub fn fingerprint(dir: &Path) -> Result<String, Error> {
        let mut hash = Sha256::new();
        for name in [CONFIG, WEIGHTS] {
            let path = dir.join(name);
            hash.update(std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Writes the folder as PEFT reads it, in F32 and under the names in `tensors`; the same adapter gives the same
    /// bytes. A new folder appears whole; in one that exists each of the two files is replaced whole, and other files
    /// stay.
    ///
    /// # Errors
    /// [`Error::Unwritable`] if the adapter could not be read back as it is; [`Error::Io`].
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<(), Error> {
        let dir = dir.as_ref();
        self.check_writable(&dir.join(WEIGHTS).display().to_string())?;
        if dir.exists() {
            return self.write_files(dir);
        }
        atomic::replace_folder(dir, |folder| self.write_files(folder))
    }

    fn write_files(&self, dir: &Path) -> Result<(), Error> {
        let mut specs = Vec::with_capacity(2 * self.tensors.len());
        let mut data: Vec<&[f32]> = Vec::with_capacity(2 * self.tensors.len());
        for tensors in &self.tensors {
            let LoraTensors { rank, inputs, outputs, .. } = *tensors;
            for (name, shape, values) in
                [(&tensors.a_name, [rank, inputs], &tensors.a), (&tensors.b_name, [outputs, rank], &tensors.b)]
            {
                specs.push(TensorSpec { name: name.clone(), dtype: Dtype::F32, shape: shape.to_vec() });
                data.push(values);
            }
        }
        let path = dir.join(WEIGHTS);
        write_safetensors_streamed(&path, &specs, &[("format", "pt")], |index, out| {
            let mut write = |value: &f32| out.write_all(&value.to_le_bytes());
            data[index].iter().try_for_each(&mut write).map_err(|source| Error::io("write", &path, source))
        })?;
        let path = dir.join(CONFIG);
        atomic::write_file(&path, |out| {
            out.write_all(self.config.to_json().as_bytes()).map_err(|source| Error::io("write", &path, source))
        })
    }

    /// What is written must read back as the same adapter.
    fn check_writable(&self, file: &str) -> Result<(), Error> {
        let unwritable = |reason: String| Error::Unwritable { file: file.into(), reason };
        let written = AdapterConfig::from_json(file, &self.config.to_json())?;
        if matches!(written.target_modules, Targets::Pattern(_)) && written.layers_to_transform.is_some() {
            return Err(unwritable("layers_to_transform needs a list of target_modules".into()));
        }
        let scales = written.scales(file)?;
        let names = self.tensors.iter().flat_map(|tensors| [tensors.a_name.as_str(), tensors.b_name.as_str()]);
        let mut pairs = pairs(file, names)?;
        for tensors in &self.tensors {
            let LoraTensors { layer, module, rank, inputs, outputs, scale, a, b, a_name, b_name } = tensors;
            let place = format!("layer {layer} {}", module.name());
            if pairs.remove(&(*layer, *module)) != Some([Some(a_name.clone()), Some(b_name.clone())]) {
                return Err(unwritable(format!("`{a_name}` and `{b_name}` are not the names of {place}")));
            }
            if rank.checked_mul(*inputs) != Some(a.len()) || outputs.checked_mul(*rank) != Some(b.len()) {
                return Err(unwritable(format!("the matrices of {place} do not have their shapes' sizes")));
            }
            let path = module_path(a_name);
            if scales.rank(path) != *rank || scales.scale(path).to_bits() != scale.to_bits() {
                let (rank_there, scale_there) = (scales.rank(path), scales.scale(path));
                return Err(unwritable(format!(
                    "{place} has rank {rank} and scale {scale}, its settings give {rank_there} and {scale_there}"
                )));
            }
        }
        if self.tensors.is_empty() { Err(Error::EmptyAdapter { file: file.into() }) } else { Ok(()) }
    }
}

impl LoraTensors {
    /// The matrices of one module, named for a class of transformers. Sizes are checked when they are written.
    pub fn new(
        naming: Naming,
        (layer, module): (usize, Module),
        [outputs, inputs]: [usize; 2],
        rank: usize,
        scale: f32,
        a: Vec<f32>,
        b: Vec<f32>,
    ) -> Self {
        let (a_name, b_name) = naming.tensor_names(layer, module);
        Self { layer, module, rank, inputs, outputs, scale, a, b, a_name, b_name }
    }
}

/// Stored names of A and B by layer and module.
type Pairs = BTreeMap<(usize, Module), [Option<String>; 2]>;

/// Sorts stored names by what they adapt; refuses any that is not a LoRA matrix of a decoder layer.
fn pairs<'a>(file: &str, names: impl Iterator<Item = &'a str>) -> Result<Pairs, Error> {
    let mut pairs = Pairs::new();
    for stored in names {
        let (layer, module, side) = parse_name(file, stored)?;
        let slot = &mut pairs.entry((layer, module)).or_default()[side];
        if let Some(first) = slot.replace(stored.into()) {
            let canonical = format!("language_model.layers.{layer}.{}.lora_{}", module.path(), ["A", "B"][side]);
            return Err(Error::DuplicateName { place: file.into(), canonical, first, second: stored.into() });
        }
    }
    Ok(pairs)
}

/// Layer, module, and 0 for A or 1 for B.
fn parse_name(file: &str, stored: &str) -> Result<(usize, Module, usize), Error> {
    let unknown = |reason: &str| {
        let (file, tensor) = (file.to_string(), stored.to_string());
        Err(Error::UnknownAdapterTensor { file, tensor, reason: reason.into() })
    };
    if !stored.starts_with(PEFT_PREFIX) {
        return unknown("PEFT's names start with `base_model.model.`");
    }
    let name = canonical(stored);
    if name.starts_with("vision_tower.") {
        return Err(Error::VisionAdapter { file: file.into(), tensor: stored.into() });
    }
    for (part, reason) in [
        ("lora_magnitude_vector", "it is a magnitude of DoRA, only plain LoRA is supported"),
        ("lora_embedding_", "LoRA of the embedding is not supported"),
        ("modules_to_save", "it replaces a module of the base model"),
    ] {
        if name.contains(part) {
            return unknown(reason);
        }
    }
    if name.ends_with(".lora_A.bias") || name.ends_with(".lora_B.bias") {
        return unknown("A and B have no bias here (lora_bias)");
    }
    let sides = [name.strip_suffix(".lora_A.weight"), name.strip_suffix(".lora_B.weight")];
    let (path, side) = match sides {
        [Some(path), _] => (path, 0),
        [_, Some(path)] => (path, 1),
        _ => return unknown("it ends neither in `.lora_A.weight` nor in `.lora_B.weight`"),
    };
    let Some((layer, path)) = path.strip_prefix("language_model.layers.").and_then(|rest| rest.split_once('.')) else {
        return unknown("it is outside the decoder's layers");
    };
    let plain = layer.bytes().all(|byte| byte.is_ascii_digit()) && (layer == "0" || !layer.starts_with('0'));
    let Some(layer) = layer.parse().ok().filter(|&layer: &usize| plain && layer < MOST_LAYERS) else {
        return unknown("its layer is not a number");
    };
    match Module::from_path(path) {
        Some(module) => Ok((layer, module, side)),
        None => unknown("a layer's adapted modules are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
    }
}

/// Both names of a pair; one of them is there.
fn partners(file: &str, pair: [Option<String>; 2]) -> Result<(String, String), Error> {
    let missing = |tensor: String, partner| Error::MissingPartner { file: file.into(), tensor, partner };
    match pair {
        [Some(a), Some(b)] => Ok((a, b)),
        [Some(a), None] => {
            let partner = a.replace(".lora_A.", ".lora_B.");
            Err(missing(a, partner))
        }
        [None, b] => {
            let b = b.unwrap_or_default();
            let partner = b.replace(".lora_B.", ".lora_A.");
            Err(missing(b, partner))
        }
    }
}

/// The path that PEFT's patterns are matched against: a stored name without prefix and suffix.
fn module_path(a_name: &str) -> &str {
    let path = a_name.strip_prefix(PEFT_PREFIX).unwrap_or(a_name);
    path.strip_suffix(".lora_A.weight").unwrap_or(path)
}

/// Both extents of a floating-point matrix that is not empty.
fn matrix(file: &str, tensor: &TensorView, form: &'static str) -> Result<[usize; 2], Error> {
    if !matches!(tensor.dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16) {
        return Err(Error::WrongDtype {
            file: file.into(),
            tensor: tensor.name.to_string(),
            expected: "F32, BF16 or F16",
            found: tensor.dtype.name().into(),
        });
    }
    match tensor.shape[..] {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(Error::NotAMatrix {
            file: file.into(),
            tensor: tensor.name.to_string(),
            expected: form,
            found: tensor.shape.clone(),
        }),
    }
}

/// The values, if all are finite.
fn finite(file: &str, tensor: &TensorView) -> Result<Vec<f32>, Error> {
    let values = tensor.to_f32();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(index) => {
            let (tensor, value) = (tensor.name.to_string(), values[index]);
            Err(Error::NonFinite { file: file.into(), tensor, value, index })
        }
    }
}

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
