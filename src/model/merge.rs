//! merge: an adapter folded into its base weights, W + s·B·A, written as a model folder of the same files.
//!
//! Products and sum are f64, rounded once to the stored dtype. In bf16 the rounding loses a part of small updates: margins of a merged
//! model differ from those of base plus adapter, so comparisons should keep adapters unmerged.

use super::{Error, LoraLayout};
use crate::weights::{AdapterFile, Checkpoint, Dtype, LoraTensors, TensorView, write_safetensors};
use rayon::prelude::*;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes `checkpoint` with `adapter` merged as a new model folder: same weight files and names, other files copied. The folder
/// appears whole or not at all. `progress` is called with (tensors done, tensors in all).
///
/// # Errors
/// An adapter for another model, an existing output, or an I/O error.
pub fn merge(
    checkpoint: &Checkpoint,
    adapter: &AdapterFile,
    out: &Path,
    mut progress: impl FnMut(usize, usize),
) -> crate::Result<()> {
    LoraLayout::from_file(&checkpoint.config.text, adapter)?;
    if out.exists() {
        return Err(Error::OutputExists { path: out.display().to_string() }.into());
    }
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|error| crate::Error::io("create", parent, error))?;
    let staging = tempfile::Builder::new()
        .prefix(".merge-")
        // The process's umask decides, as for any other folder; temporary ones are private by default.
        .permissions(fs::Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .map_err(|error| crate::Error::io("create a folder in", parent, error))?;

    let mut adapted = HashMap::new();
    for tensors in &adapter.tensors {
        let name = format!("language_model.layers.{}.{}.weight", tensors.layer, tensors.module.path());
        if let Some(stored) = checkpoint.stored_name(&name) {
            adapted.insert(stored.to_owned(), tensors);
        }
    }
    let total = checkpoint.files().map(|file| file.names().count()).sum();
    let mut done = 0;
    for file in checkpoint.files() {
        let mut merged: HashMap<String, Vec<u8>> = HashMap::new();
        let mut views = Vec::new();
        for name in file.names() {
            let view = file.tensor(name)?;
            if let Some(tensors) = adapted.get(name) {
                merged.insert(name.to_owned(), merge_tensor(&view, tensors));
            }
            views.push((name.to_owned(), view));
            done += 1;
            progress(done, total);
        }
        let entries: Vec<_> = views
            .iter()
            .map(|(name, view)| {
                let bytes = merged.get(name).map_or_else(|| view.bytes(), Vec::as_slice);
                (name.as_str(), view.dtype, view.shape.as_slice(), bytes)
            })
            .collect();
        let file_name = file.path().file_name().expect("an opened file has a name");
        write_safetensors(staging.path().join(file_name), &entries)?;
    }
    copy_other_files(checkpoint.dir(), staging.path())?;
    let staged = staging.keep();
    fs::rename(&staged, out).map_err(|error| crate::Error::io("rename to", out, error))
}

/// Everything in the folder that is neither weights nor a folder: config, tokenizer, licence.
fn copy_other_files(from: &Path, to: &Path) -> crate::Result<()> {
    let entries = fs::read_dir(from).map_err(|error| crate::Error::io("read", from, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| crate::Error::io("read", from, error))?;
        let path = entry.path();
        // A manifest of the original's checksums would be wrong for merged weights.
        let skipped = path.extension().is_some_and(|extension| extension == "safetensors")
            || entry.file_name() == "MANIFEST.json"
            || !path.is_file();
        if !skipped {
            let target = to.join(entry.file_name());
            fs::copy(&path, &target).map_err(|error| crate::Error::io("copy", &path, error))?;
        }
    }
    Ok(())
}

fn merge_tensor(view: &TensorView, tensors: &LoraTensors) -> Vec<u8> {
    let mut values: Vec<f64> = view.to_f32().into_iter().map(f64::from).collect();
    let (rank, inputs) = (tensors.rank, tensors.inputs);
    values.par_chunks_mut(inputs).zip(tensors.b.par_chunks(rank)).for_each(|(row, b)| {
        for (column, value) in row.iter_mut().enumerate() {
            let product: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(tensors.a[r * inputs + column])).sum();
            *value += f64::from(tensors.scale) * product;
        }
    });
    match view.dtype {
        Dtype::Bf16 => values.iter().flat_map(|&value| half::bf16::from_f64(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect(),
    }
}
