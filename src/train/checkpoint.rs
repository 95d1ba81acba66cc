//! One checkpoint: `checkpoints/step-N/` with the adapter as PEFT reads it, `trainer_state.safetensors` and a manifest of
//! sizes and hashes. It is written beside, synced, manifest last, then renamed: a folder named `step-N` with a matching
//! manifest is whole, anything else is skipped and named.

use super::Error;
use super::durable::sha256_file;
use super::engine::{TrainEngine, TrainerTensors};
use crate::error::Result;
use crate::weights::{
    Dtype, SafetensorsFile, TensorSpec, is_leftover, replace_folder, write_atomically, write_safetensors_streamed,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let tensor = engine.tensor_name(index);
            return Err(Error::NonFiniteUpdate { what, step: position.step, tensor }.into());
        }
    }
    // Only a checkpoint that was found broken can stand here already: resuming starts at the newest whole one.
    let path = checkpoints.join(format!("step-{}", position.step));
    replace_folder(&path, |folder| -> Result<()> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| crate::Error::io("read", path, source)
        };
        engine.write_adapter(folder)?;
        write_state(&folder.join(STATE), &tensors, position)?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(io(folder))? {
            let file = entry.map_err(io(folder))?.path();
            let (bytes, sha256) = sha256_file(&file)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, ManifestFile { bytes, sha256 });
        }
        let manifest = serde_json::to_vec_pretty(&Manifest { step: position.step, files })
            .map_err(|error| crate::Error::io("write", folder.join(MANIFEST), error.into()))?;
        Ok(write_atomically(&folder.join(MANIFEST), &manifest)?)
    })?;
    Ok(Checkpoint { path, step: position.step })
}

/// Removes whole checkpoints beyond the newest `keep` (at least 1), except those of the steps in `spared`. Each is
/// renamed first: a kill leaves no folder of its name that is half there.
pub(super) fn prune(checkpoints: &Path, keep: usize, spared: &[u64]) -> Result<()> {
    let mut steps: Vec<u64> =
        folders(checkpoints)?.into_iter().filter(|(_, whole, _)| *whole).map(|(step, ..)| step).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    for step in steps.into_iter().skip(keep.max(1)).filter(|step| !spared.contains(step)) {
        let path = checkpoints.join(format!("step-{step}"));
        let doomed = checkpoints.join(format!(".step-{step}.tmp"));
        fs::rename(&path, &doomed)
            .and_then(|()| fs::remove_dir_all(&doomed))
            .map_err(|source| crate::Error::io("remove", &path, source))?;
    }
    Ok(())
}

/// The newest whole checkpoint and the newer ones that are not.
pub(super) fn newest(checkpoints: &Path) -> Result<(Option<Checkpoint>, Vec<Skipped>)> {
    let mut found = folders(checkpoints)?;
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

/// Step, whether it has a whole one's name, and name of everything that is or was to be a checkpoint.
fn folders(checkpoints: &Path) -> Result<Vec<(u64, bool, String)>> {
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(crate::Error::io("read", checkpoints, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| crate::Error::io("read", checkpoints, error))?.file_name();
        let name = name.to_string_lossy().into_owned();
        let whole = !is_leftover(&name);
        let bare = if whole { Some(name.as_str()) } else { name.split('.').nth(1) };
        let step = bare.and_then(|bare| bare.strip_prefix("step-")).and_then(|step| step.parse().ok());
        found.extend(step.map(|step| (step, whole, name.clone())));
    }
    Ok(found)
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
    let broken = |problem| Error::Checkpoint { path: path.display().to_string(), problem };
    let file = SafetensorsFile::open(&path)?;
    let position = position(&file).map_err(broken)?;
    if position.step != checkpoint.step {
        let problem = format!("expected the state of step {}, found step {}", checkpoint.step, position.step);
        return Err(broken(problem).into());
    }
    let tensor = |name: &str| -> Result<Vec<f32>> {
        let view = file.tensor(name)?;
        if view.dtype != Dtype::F32 || view.shape.len() != 1 {
            let problem = format!("`{name}` must be a flat F32 vector, found {} {:?}", view.dtype.name(), view.shape);
            return Err(broken(problem).into());
        }
        Ok(view.to_f32())
    };
    let tensors = TrainerTensors { params: tensor("params")?, m: tensor("m")?, v: tensor("v")? };
    let [params, m, v] = [&tensors.params, &tensors.m, &tensors.v].map(Vec::len);
    if m != params || v != params {
        return Err(broken(format!("moments must be as long as the {params} parameters, found {m} and {v}")).into());
    }
    Ok((position, tensors))
}

fn write_state(path: &Path, tensors: &TrainerTensors, position: Position) -> Result<()> {
    let named = [("params", &tensors.params), ("m", &tensors.m), ("v", &tensors.v)];
    let spec = |(name, values): (&str, &Vec<f32>)| TensorSpec {
        name: name.into(),
        dtype: Dtype::F32,
        shape: vec![values.len()],
    };
    let Position { step, seed, epoch, seen } = position;
    let text = serde_json::json!({"step": step, "seed": seed, "epoch": epoch, "seen": seen}).to_string();
    write_safetensors_streamed(path, &named.map(spec), &[("position", &text)], |index, out| {
        let mut write = |value: &f32| out.write_all(&value.to_le_bytes());
        named[index].1.iter().try_for_each(&mut write).map_err(|source| crate::Error::io("write", path, source))
    })
}

fn position(file: &SafetensorsFile) -> Result<Position, String> {
    let text = file.metadata().get("position").ok_or("no position in its metadata")?;
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("broken position: {error}"))?;
    let field = |name: &str| json[name].as_u64().ok_or_else(|| format!("no `{name}` in its position"));
    Ok(Position { step: field("step")?, seed: field("seed")?, epoch: field("epoch")?, seen: field("seen")? })
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
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(STATE);
        write_state(&path, &tensors, position).expect("written");
        let bytes = fs::read(&path).expect("read");
        write_state(&path, &tensors, position).expect("written");
        assert_eq!(fs::read(&path).expect("read"), bytes);
        let checkpoint = Checkpoint { path: folder.path().into(), step: 12 };
        let (found, read) = read_state(&checkpoint).expect("read");
        assert_eq!(found, position);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read.params), bits(&tensors.params));
        assert_eq!((bits(&read.m), bits(&read.v)), (bits(&tensors.m), bits(&tensors.v)));
        let other = Checkpoint { step: 13, ..checkpoint.clone() };
        let error = read_state(&other).expect_err("another step").to_string();
        assert!(error.ends_with("expected the state of step 13, found step 12"), "{error}");
        fs::write(&path, &bytes[..20]).expect("written");
        assert!(read_state(&checkpoint).is_err());
    }

    #[test]
    fn pruning_keeps_the_newest_and_what_is_spared() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let steps = |keep, spared: &[u64]| {
            for step in [5, 10, 15, 100] {
                fs::create_dir_all(folder.path().join(format!("step-{step}/inner"))).expect("made");
            }
            prune(folder.path(), keep, spared).expect("pruned");
            let mut left: Vec<u64> = folders(folder.path()).expect("read").into_iter().map(|(step, ..)| step).collect();
            left.sort_unstable();
            left
        };
        assert_eq!(steps(9, &[]), [5, 10, 15, 100]);
        assert_eq!(steps(2, &[]), [15, 100]);
        assert_eq!(steps(1, &[5, 100]), [5, 100]);
        assert_eq!(steps(0, &[]), [100], "the newest always stays");
    }
}
