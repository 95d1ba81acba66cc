//! A model folder: `config.json` and its weights, in one safetensors file or in shards with an index.
//!
//! Opening checks everything that can be checked without reading data: each header, that index and shards agree, that
//! every tensor of the configured decoder is there in the right shape and dtype and none is left over. Tensors are
//! asked for by canonical name (`names.rs`), whatever era the files are from. The vision tower's tensors can be asked
//! for; which of them must exist is the vision tower's matter.

use super::{
    Dtype, Error, ModelConfig, SafetensorsFile, TensorView,
    header::UniqueStrings,
    json,
    names::{canonical, nearest},
};
use crate::digest::{Sha256, hex};
use serde::de::DeserializeSeed;
use sha2::Digest;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

/// An opened model folder. Data stays on disk until a view's bytes are touched.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    /// From `config.json`; `tie_word_embeddings` is false only if a separate `lm_head.weight` is the head.
    pub config: ModelConfig,
    files: Vec<SafetensorsFile>,
    /// File and stored name by canonical name.
    places: BTreeMap<String, (usize, String)>,
    weight_dtype: Dtype,
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "language_model.embed_tokens.weight";

impl Checkpoint {
    /// Opens and checks a model folder.
    ///
    /// # Errors
    /// Any that [`ModelConfig::read`] and [`SafetensorsFile::open`] give, and those for a folder without weights, an
    /// index that does not match its shards, a missing, misshapen, unexpected or doubly named tensor, and base weights
    /// that are neither BF16 nor F32.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let kind = std::fs::metadata(dir).map_err(|source| Error::io("open", dir, source))?;
        let config_path = dir.join("config.json");
        if !kind.is_dir() || !config_path.is_file() {
            if dir.join("adapter_config.json").is_file() {
                return Err(no_weights(dir));
            }
            return Err(Error::NoConfig { folder: dir.display().to_string() });
        }
        let config = ModelConfig::read(&config_path)?;
        let files = open_files(dir)?;
        let places = places(dir, &files)?;
        let mut checkpoint = Self { dir: dir.into(), config, files, places, weight_dtype: Dtype::Bf16 };
        checkpoint.check_decoder()?;
        checkpoint.weight_dtype = checkpoint.tensor(EMBEDDING)?.dtype;
        checkpoint.choose_head()?;
        Ok(checkpoint)
    }

    /// A tensor by canonical name, as stored.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongDtype`], [`Error::Changed`].
    pub fn tensor(&self, name: &str) -> Result<TensorView, Error> {
        match self.places.get(name) {
            Some((file, stored)) => self.files[*file].tensor(stored),
            None => Err(self.missing(name)),
        }
    }

    /// A base weight by canonical name: BF16 or F32, of that shape.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and [`Error::WrongShape`], [`Error::HalfPrecision`].
    pub fn tensor_shaped(&self, name: &str, shape: &[usize]) -> Result<TensorView, Error> {
        self.check(name, shape)?;
        self.tensor(name)
    }

    /// Whether a tensor of that canonical name is stored.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Canonical names in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The name under which a canonical name is stored.
    pub fn stored_name(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|(_, stored)| stored.as_str())
    }

    /// The folder as given at opening.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The weight files in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &SafetensorsFile> {
        self.files.iter()
    }

    /// Dtype of the embedding, which transformers calls the model's.
    pub fn weight_dtype(&self) -> Dtype {
        self.weight_dtype
    }

    /// SHA-256 (hex) over `config.json` and each weight file's name, header, size and 64 blocks of its data spread evenly. It reads
    /// little, does not depend on paths or times (a copy on another machine has the same), and tells models apart that were
    /// trained or merged apart; a change that avoids every block is seen by [`Checkpoint::sha256_files`] alone.
    pub fn fingerprint(&self) -> Result<String, Error> {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(json::read(&self.dir.join("config.json"))?.as_bytes());
        for file in &self.files {
            let status = file.status()?;
            add(file_name(file).as_bytes());
            add(file.header_bytes());
            add(&status.len().to_le_bytes());
            for block in file.samples() {
                add(block);
            }
        }
        Ok(hex(hash))
    }

    /// File name and SHA-256 (hex) of `config.json` and of each weight file. Reads everything: seconds per gigabyte.
    pub fn sha256_files(&self) -> Result<Vec<(String, String)>, Error> {
        let config = (String::from("config.json"), self.dir.join("config.json"));
        let files = self.files.iter().map(|file| (file_name(file), file.path().to_path_buf()));
        let mut sums = Vec::with_capacity(self.files.len() + 1);
        for (name, path) in std::iter::once(config).chain(files) {
            let io = |source| Error::io("read", &path, source);
            let mut file = std::fs::File::open(&path).map_err(io)?;
            let mut hash = Sha256::new();
            let mut block = vec![0; 1 << 20];
            loop {
                match file.read(&mut block).map_err(io)? {
                    0 => break,
                    length => hash.update(&block[..length]),
                }
            }
            sums.push((name, hex(hash)));
        }
        Ok(sums)
    }

    /// Shape and dtype of one base weight.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        let Some((file, stored)) = self.places.get(name) else {
            return Err(self.missing(name));
        };
        let file = &self.files[*file];
        let Some((found, dtype)) = file.entry(stored) else {
            return Err(self.missing(name));
        };
        let path = file.path().display().to_string();
        match dtype {
            "BF16" | "F32" => {}
            "F16" => return Err(Error::HalfPrecision { file: path, tensor: stored.clone() }),
            other => {
                return Err(Error::WrongDtype {
                    file: path,
                    tensor: stored.clone(),
                    expected: "BF16 or F32",
                    found: other.into(),
                });
            }
        }
        if found != shape {
            return Err(Error::WrongShape {
                file: path,
                tensor: stored.clone(),
                expected: shape.to_vec(),
                found: found.to_vec(),
            });
        }
        Ok(())
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor {
            place: self.dir.display().to_string(),
            tensor: name.into(),
            nearest: nearest(name, self.names()),
        }
    }

    /// Every tensor of the decoder is there and fits, and no other is.
    fn check_decoder(&self) -> Result<(), Error> {
        let expected: BTreeMap<String, Vec<usize>> = self.config.text.tensors().into_iter().collect();
        for (name, shape) in &expected {
            self.check(name, shape)?;
        }
        for (name, (_, stored)) in &self.places {
            let ours = name.starts_with("language_model.") || name.starts_with("lm_head.");
            // Old saves carry the rotary frequencies, which are computed from the configuration.
            let known = expected.contains_key(name) || name == HEAD || name.ends_with("rotary_emb.inv_freq");
            if ours && !known {
                return Err(Error::UnexpectedTensor {
                    place: self.dir.display().to_string(),
                    tensor: stored.clone(),
                    layers: self.config.text.num_hidden_layers,
                });
            }
        }
        Ok(())
    }

    /// A stored head that differs from the embedding is used, as transformers 5 does even where the configuration ties
    /// them; one that is equal is the embedding. Without a stored one the configuration must tie them.
    fn choose_head(&mut self) -> Result<(), Error> {
        let text = &self.config.text;
        let tied = text.tie_word_embeddings;
        if !tied || self.has(HEAD) {
            let head = self.tensor_shaped(HEAD, &[text.vocab_size, text.hidden_size])?;
            let embedding = self.tensor(EMBEDDING)?;
            let equal = head.dtype == embedding.dtype && head.bytes() == embedding.bytes();
            self.config.text.tie_word_embeddings = equal;
        }
        Ok(())
    }
}

/// Maps the one weight file, or every shard that the index names.
fn open_files(dir: &Path) -> Result<Vec<SafetensorsFile>, Error> {
    let index_path = dir.join("model.safetensors.index.json");
    if !index_path.exists() {
        let single = dir.join("model.safetensors");
        return if single.exists() { Ok(vec![SafetensorsFile::open(single)?]) } else { Err(no_weights(dir)) };
    }
    let index = index_path.display().to_string();
    let weight_map = read_index(&index, &json::read(&index_path)?)?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain || shard.contains('\\') {
            return Err(Error::ShardName { index, shard: shard.clone(), tensor: tensor.clone() });
        }
        shards.entry(shard).or_default().push(tensor);
    }
    let mut files = Vec::with_capacity(shards.len());
    for (&shard, tensors) in &shards {
        let path = dir.join(shard);
        if !path.exists() {
            return Err(Error::MissingShard { index, shard: shard.into(), tensor: tensors[0].into() });
        }
        let file = SafetensorsFile::open(path)?;
        if let Some(&tensor) = tensors.iter().find(|tensor| !file.has(tensor)) {
            return Err(Error::IndexHole { index, shard: shard.into(), tensor: tensor.into() });
        }
        let extra = file.names().find(|&tensor| weight_map.get(tensor).is_none_or(|place| place != shard));
        if let Some(tensor) = extra {
            let instead = match weight_map.get(tensor) {
                Some(place) => format!("places in `{place}`"),
                None => "does not list".into(),
            };
            return Err(Error::IndexExtra { index, shard: shard.into(), tensor: tensor.into(), instead });
        }
        files.push(file);
    }
    Ok(files)
}

/// The `weight_map` of an index; the rest of it is descriptive.
fn read_index(index: &str, text: &str) -> Result<BTreeMap<String, String>, Error> {
    /// Reads `weight_map` and skips everything else.
    struct Index<'a>(&'a RefCell<Option<String>>);
    impl<'de> serde::de::Visitor<'de> for Index<'_> {
        type Value = Option<BTreeMap<String, String>>;
        fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
            formatter.write_str("an object with a weight_map")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<String>()? {
                if key != "weight_map" {
                    map.next_value::<serde::de::IgnoredAny>()?;
                } else if found.is_some() {
                    *self.0.borrow_mut() = Some(key);
                    return Err(serde::de::Error::custom("a key occurs twice"));
                } else {
                    found = Some(map.next_value_seed(UniqueStrings(self.0))?);
                }
            }
            Ok(found)
        }
    }
    impl<'de> DeserializeSeed<'de> for Index<'_> {
        type Value = Option<BTreeMap<String, String>>;
        fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
            reader.deserialize_map(self)
        }
    }

    let repeated = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let outcome = Index(&repeated).deserialize(&mut reader).and_then(|map| reader.end().map(|()| map));
    match (outcome, repeated.take()) {
        (_, Some(key)) => Err(Error::DuplicateKey { file: index.into(), key }),
        (Err(error), None) => Err(Error::Json { file: index.into(), reason: error.to_string() }),
        (Ok(Some(map)), None) if !map.is_empty() => Ok(map),
        (Ok(_), None) => Err(Error::Field {
            file: index.into(),
            field: "weight_map".into(),
            expected: "a shard for each tensor".into(),
            found: "absent or empty".into(),
        }),
    }
}

/// Which file holds each canonical name.
fn places(dir: &Path, files: &[SafetensorsFile]) -> Result<BTreeMap<String, (usize, String)>, Error> {
    let mut places: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for (file, stored) in files.iter().enumerate().flat_map(|(at, file)| file.names().map(move |name| (at, name))) {
        let name = canonical(stored);
        if let Some((_, first)) = places.get(&name) {
            return Err(Error::DuplicateName {
                place: dir.display().to_string(),
                canonical: name,
                first: first.clone(),
                second: stored.into(),
            });
        }
        places.insert(name, (file, stored.into()));
    }
    Ok(places)
}

/// Says what the folder holds instead of weights.
fn no_weights(dir: &Path) -> Error {
    let listed = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let other = |name: &&String| {
        *name == "adapter_config.json" || [".bin", ".pt", ".pth", ".gguf"].iter().any(|end| name.ends_with(end))
    };
    Error::NoWeights { folder: dir.display().to_string(), instead: names.iter().find(other).cloned() }
}

fn file_name(file: &SafetensorsFile) -> String {
    file.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
