//! Whether a task fits into the memory there is, and which setting makes it fit if it does not.

use super::{Error, Estimate, Task, estimate};
use crate::machine::Memory;

/// What became of an estimate and a machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Everything fits, weights included.
    Fits,
    /// What must be there fits; weights will be read again and again. The text says so and what to change.
    Tight(String),
    /// It cannot run. The text names the setting to change.
    TooMuch(String),
}

impl Verdict {
    /// The error where it cannot run; a warning in the log where it is tight.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn enforce(self, found: &Estimate, memory: &Memory) -> Result<(), Error> {
        match self {
            Self::Fits => Ok(()),
            Self::Tight(message) => {
                tracing::warn!("{message}");
                Ok(())
            }
            Self::TooMuch(hint) => Err(Error::Memory {
                what: found.what,
                needed: size(found.needed()),
                parts: parts(found),
                available: size(memory.available),
                limit: memory.limit,
                hint,
            }),
        }
    }
}

/// Holds an estimate of `task` against `memory`.
///
/// # Errors
/// As [`estimate`], which tries other settings.
pub fn judge(task: &Task<'_>, found: &Estimate, memory: &Memory) -> crate::Result<Verdict> {
    if found.needed() > memory.available {
        return Ok(Verdict::TooMuch(remedy(task, memory, Estimate::needed)?));
    }
    if found.resident() > memory.available {
        return Ok(Verdict::Tight(format!(
            "{} needs {} beside {} of weights, and {} can be had ({}): weights will be read from disk again and again; {}",
            found.what,
            size(found.needed()),
            size(found.weights),
            size(memory.available),
            memory.limit,
            remedy(task, memory, Estimate::resident)?,
        )));
    }
    Ok(Verdict::Fits)
}

/// The first setting, from the least harmful on, that makes what `need_of` counts fit: said with what it would then need.
fn remedy(task: &Task<'_>, memory: &Memory, need_of: fn(&Estimate) -> u64) -> crate::Result<String> {
    let fits = |task: &Task<'_>| -> crate::Result<Option<Estimate>> {
        let found = estimate(task)?;
        Ok((need_of(&found) <= memory.available).then_some(found))
    };
    if task.trunk_budget > 0 {
        let without = Task { trunk_budget: 0, ..*task };
        if let Some(found) = fits(&without)?.filter(|found| found.trunk_total > 0) {
            let left = memory.available - need_of(&found);
            return Ok(format!("give --trunk-cache less than {}, or 0", size(left.max(1))));
        }
    }
    if task.groups_per_batch > 1 {
        let single = Task { groups_per_batch: 1, trunk_budget: 0, ..*task };
        if let Some(found) = fits(&single)? {
            let need = size(need_of(&found));
            let from = task.groups_per_batch;
            return Ok(format!(
                "lower --groups-per-batch (schedule.groups_per_batch in training) from {from}: at 1 it needs {need}"
            ));
        }
    }
    if !task.share_prefix {
        let shared = Task { share_prefix: true, groups_per_batch: 1, trunk_budget: 0, ..*task };
        if let Some(found) = fits(&shared)? {
            let need = size(need_of(&found));
            return Ok(format!("let phrasings share their prefix (model.share_prefix): it then needs {need}"));
        }
    }
    if let (Some(layout), Some(_)) = (task.layout, task.training) {
        let depth = task.checkpoint.config.text.num_hidden_layers;
        let lowest = layout.lowest_layer().unwrap_or(0);
        let mut first = lowest;
        while first + 1 < depth {
            first += (depth - first) / 2;
            let upper = layout.from_layer(first);
            if upper.is_empty() {
                break;
            }
            let fewer = Task { layout: Some(&upper), groups_per_batch: 1, trunk_budget: 0, ..*task };
            if let Some(found) = fits(&fewer)? {
                let (need, last) = (size(need_of(&found)), depth - 1);
                return Ok(format!(
                    "adapt fewer layers than from {lowest} on: with --layers {first}-{last} it needs {need}"
                ));
            }
        }
    }
    Ok("use fewer paraphrases (data.paraphrases = \"sample:1\"), shorter contexts, or a machine with more memory"
        .into())
}

/// What the memory is for.
fn parts(found: &Estimate) -> String {
    let groups =
        if found.groups_per_batch == 1 { "group".into() } else { format!("{} groups", found.groups_per_batch) };
    let mut parts = vec![format!(
        "activations {} for the largest launch of {groups}, {} tokens",
        size(found.activations),
        found.most_rows
    )];
    for (name, bytes) in [
        (if found.what == "training" { "adapter with gradients and moments" } else { "adapter" }, found.adapter),
        ("logits", found.host),
        ("trunk cache", found.trunk_held),
    ] {
        if bytes > 0 {
            parts.push(format!("{name} {}", size(bytes)));
        }
    }
    parts.join(", ")
}

/// A size as people read it.
pub fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        bytes if bytes >= 1e6 => format!("{:.0} MB", bytes / 1e6),
        bytes => format!("{:.0} kB", bytes / 1e3),
    }
}
