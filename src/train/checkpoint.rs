//! One checkpoint: `checkpoints/step-N/` with the adapter as PEFT reads it, `trainer_state.safetensors` and a manifest of
//! sizes and hashes. It is written beside, synced, manifest last, then renamed: a folder named `step-N` with a matching
//! manifest is whole, anything else is skipped and named.

use super::Error;
use super::durable::{parent, sha256_file, sibling, sync, write_atomically};
use super::engine::{TrainEngine, TrainerTensors};
use crate::error::Result;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the manifest.
const MANIFEST: &str = "manifest.json";
/// Name of the optimiser's file.
const STATE: &str = "trainer_state.safetensors";

/// A checkpoint that is not whole, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Folder name.
    pub name: String,
    /// What is missing or differs.
    pub problem: String,
}

/// A whole checkpoint, its hashes verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its folder; an adapter folder for PEFT too.
    pub path: PathBuf,
    /// Updates made.
    pub step: u64,
}

/// Where a run stands, stored with the optimiser's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Updates made.
    pub step: u64,
    /// Seed of order and dropout.
    pub seed: u64,
    /// Epoch of the next step.
    pub epoch: u64,
    /// Groups of that epoch already seen.
    pub seen: u64,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    step: u64,
    files: BTreeMap<String, ManifestFile>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct ManifestFile {
    bytes: u64,
    sha256: String,
}

/// Writes `checkpoints/step-N` and returns it. A state that is not finite is refused: nothing could go on from it.
pub(super) fn write<E: TrainEngine>(checkpoints: &Path, engine: &E, position: Position) -> Result<Checkpoint> {
    let tensors = engine.state();
    for (what, values) in [("parameters", &tensors.params), ("moments", &tensors.m), ("moments", &tensors.v)] {
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::NonFiniteUpdate { what, step: position.step }.into());
        }
    }
    let path = checkpoints.join(format!("step-{}", position.step));
    let temporary = sibling(&path, "tmp");
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| crate::Error::io(action, path, source)
    };
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(io("remove", &temporary))?;
    }
    fs::create_dir_all(&temporary).map_err(io("create", &temporary))?;
    engine.write_adapter(&temporary)?;
    let state = temporary.join(STATE);
    fs::write(&state, encode_state(&tensors, position)?).map_err(io("write", &state))?;

    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&temporary).map_err(io("read", &temporary))? {
        let file = entry.map_err(io("read", &temporary))?.path();
        sync(&file)?;
        let (bytes, sha256) = sha256_file(&file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, ManifestFile { bytes, sha256 });
    }
    let manifest = serde_json::to_vec_pretty(&Manifest { step: position.step, files });
    let manifest = manifest.map_err(|error| io("write", &temporary.join(MANIFEST))(error.into()))?;
    write_atomically(&temporary.join(MANIFEST), &manifest)?;
    if path.exists() {
        // Only a checkpoint that was found broken can stand here: resuming starts at the newest whole one.
        fs::remove_dir_all(&path).map_err(io("remove", &path))?;
    }
    fs::rename(&temporary, &path).map_err(io("create", &path))?;
    sync(parent(&path))?;
    Ok(Checkpoint { path, step: position.step })
}

/// The newest whole checkpoint and the newer ones that are not.
pub(super) fn newest(checkpoints: &Path) -> Result<(Option<Checkpoint>, Vec<Skipped>)> {
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((None, Vec::new())),
        Err(error) => return Err(crate::Error::io("read", checkpoints, error)),
    };
    let mut found: Vec<(u64, bool, String)> = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| crate::Error::io("read", checkpoints, error))?.file_name();
        let name = name.to_string_lossy().into_owned();
        let (bare, whole) = match name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")) {
            Some(bare) => (bare, false),
            None => (name.as_str(), true),
        };
        if let Some(step) = bare.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, whole, name));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    let mut skipped = Vec::new();
    for (step, whole, name) in found {
        let path = checkpoints.join(&name);
        match if whole { verify(&path, step) } else { Err("half-written".to_owned()) } {
            Ok(()) => return Ok((Some(Checkpoint { path, step }), skipped)),
            Err(problem) => skipped.push(Skipped { name, problem }),
        }
    }
    Ok((None, skipped))
}

/// Compares every file with the manifest.
fn verify(path: &Path, step: u64) -> Result<(), String> {
    let text = fs::read(path.join(MANIFEST)).map_err(|error| format!("no {MANIFEST}: {error}"))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| format!("broken {MANIFEST}: {error}"))?;
    if manifest.step != step {
        return Err(format!("its {MANIFEST} is of step {}", manifest.step));
    }
    if !manifest.files.contains_key(STATE) {
        return Err(format!("its {MANIFEST} lists no {STATE}"));
    }
    for (name, expected) in &manifest.files {
        if Path::new(name).components().count() != 1 || name.starts_with("..") {
            return Err(format!("its {MANIFEST} lists `{name}` outside the folder"));
        }
        let (bytes, sha256) = sha256_file(&path.join(name)).map_err(|error| error.to_string())?;
        if bytes != expected.bytes {
            return Err(format!("{name} has {bytes} bytes, its manifest says {}", expected.bytes));
        }
        if sha256 != expected.sha256 {
            return Err(format!("{name} does not match its hash"));
        }
    }
    Ok(())
}

/// Reads position and tensors.
pub(super) fn read_state(checkpoint: &Checkpoint) -> Result<(Position, TrainerTensors)> {
    let path = checkpoint.path.join(STATE);
    let bytes = fs::read(&path).map_err(|source| crate::Error::io("read", &path, source))?;
    decode_state(&bytes)
        .map_err(|problem| Error::Checkpoint { path: path.display().to_string(), problem }.into())
        .and_then(|(position, tensors)| match position.step == checkpoint.step {
            true => Ok((position, tensors)),
            false => Err(Error::Checkpoint {
                path: path.display().to_string(),
                problem: format!("expected the state of step {}, found step {}", checkpoint.step, position.step),
            }
            .into()),
        })
}

fn encode_state(tensors: &TrainerTensors, position: Position) -> Result<Vec<u8>> {
    let problem = |error: safetensors::SafeTensorError| Error::Checkpoint {
        path: STATE.into(),
        problem: format!("cannot be written: {error}"),
    };
    let named = [("params", &tensors.params), ("m", &tensors.m), ("v", &tensors.v)];
    let bytes = named.map(|(name, values)| {
        (name, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    });
    let mut views = Vec::new();
    for (name, length, bytes) in &bytes {
        views.push((*name, TensorView::new(Dtype::F32, vec![*length], bytes).map_err(problem)?));
    }
    // One metadata entry: the map's order is not fixed, and the file's bytes must be.
    let text = serde_json::json!({"step": position.step, "seed": position.seed, "epoch": position.epoch, "seen": position.seen});
    let metadata = HashMap::from([("position".to_owned(), text.to_string())]);
    Ok(safetensors::serialize(views, Some(metadata)).map_err(problem)?)
}

fn decode_state(bytes: &[u8]) -> Result<(Position, TrainerTensors), String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let text = header.metadata().as_ref().and_then(|map| map.get("position")).ok_or("no position in its metadata")?;
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("broken position: {error}"))?;
    let field = |name: &str| json[name].as_u64().ok_or_else(|| format!("no `{name}` in its position"));
    let position =
        Position { step: field("step")?, seed: field("seed")?, epoch: field("epoch")?, seen: field("seen")? };
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |name: &str| -> Result<Vec<f32>, String> {
        let view = file.tensor(name).map_err(|error| format!("`{name}`: {error}"))?;
        if view.dtype() != Dtype::F32 || view.shape().len() != 1 {
            return Err(format!("`{name}` must be a flat F32 vector, found {:?} {:?}", view.dtype(), view.shape()));
        }
        Ok(view.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
    };
    let tensors = TrainerTensors { params: tensor("params")?, m: tensor("m")?, v: tensor("v")? };
    if tensors.m.len() != tensors.params.len() || tensors.v.len() != tensors.params.len() {
        return Err(format!(
            "moments must be as long as the {} parameters, found {} and {}",
            tensors.params.len(),
            tensors.m.len(),
            tensors.v.len()
        ));
    }
    Ok((position, tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_optimiser_state_keeps_every_bit() {
        let tensors = TrainerTensors {
            params: vec![1.5, -0.0, f32::MIN_POSITIVE / 8.0, 0.1],
            m: vec![1e-30, 2.0, 3.0, 4.0],
            v: vec![0.0, 1e-45, 7.0, f32::MAX],
        };
        let position = Position { step: 12, seed: u64::MAX, epoch: 3, seen: 40 };
        let bytes = encode_state(&tensors, position).expect("encoded");
        assert_eq!(bytes, encode_state(&tensors, position).expect("encoded"));
        let (found, read) = decode_state(&bytes).expect("decoded");
        assert_eq!(found, position);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read.params), bits(&tensors.params));
        assert_eq!((bits(&read.m), bits(&read.v)), (bits(&tensors.m), bits(&tensors.v)));
        assert!(decode_state(&bytes[..20]).is_err());
    }
}
