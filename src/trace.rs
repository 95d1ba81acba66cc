//! trace: token ids in, logits, margins, hidden states, losses and adapter gradients out, as safetensors. It is how parity
//! with another framework is checked.
//!
//! All tensors are F32: `group{i}.last_logits` `[phrasings, vocab]`, `group{i}.margin` `[phrasings]`; with a loss `loss` `[1]` (mean over
//! groups) and the gradient of every adapter tensor under its name in adapter_model.safetensors; with hidden states
//! `group{i}.phrasing{k}.hidden.{embed,layer_NN,final_norm}` `[tokens, hidden]`.

#![forbid(unsafe_code)]

use crate::batch::{GroupName, PackedBatch};
use crate::data::{TraceGroup, TraceInput};
use crate::model::{Engine, Entry, ForwardRequest, OutputRows, Site, SiteKind, SitePlan, Target};
use crate::objective::Objective;
use crate::ops::{Device, TrainDevice};
use crate::tape::Columns;
use crate::train::GradientTree;
use crate::weights::AdapterFile;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceTensor {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Vec<f32>,
}

/// Logits, margins and, if `hidden`, hidden states of every group.
///
/// # Errors
/// Token ids that the model does not have, or prompts that do not fit it.
pub fn trace_forward<D: Device>(
    engine: &Engine<D>,
    input: &TraceInput,
    hidden: bool,
) -> crate::Result<Vec<TraceTensor>> {
    let mut out = Vec::new();
    for (index, group) in input.groups.iter().enumerate() {
        check(engine, index, group)?;
        let batch = engine.pack(std::slice::from_ref(&group.tokens), 0)?;
        let logits = if hidden {
            hidden_states(engine, &batch, index, &mut out)?
        } else {
            engine.answer_logits(&batch, &Columns::Full)?
        };
        let spellings = engine.spellings(&target(group), |id| id as usize);
        let margins = logits.iter().map(|row| spellings.margin(row) as f32).collect::<Vec<_>>();
        let vocabulary = engine.model.config.vocab_size;
        out.push(TraceTensor {
            name: format!("group{index}.last_logits"),
            shape: vec![logits.len(), vocabulary],
            values: logits.into_iter().flatten().map(|value| value as f32).collect(),
        });
        out.push(TraceTensor { name: format!("group{index}.margin"), shape: vec![margins.len()], values: margins });
    }
    Ok(out)
}

/// The loss and its gradient in every adapter tensor, both means over groups.
///
/// # Errors
/// As [`trace_forward`].
pub fn trace_loss<D: TrainDevice>(
    engine: &Engine<D>,
    adapter: &AdapterFile,
    input: &TraceInput,
    objective: &Objective,
) -> crate::Result<Vec<TraceTensor>> {
    let mut tree = GradientTree::default();
    let mut loss = 0.0;
    for (position, group) in input.groups.iter().enumerate() {
        check(engine, position, group)?;
        let batch = engine.pack(std::slice::from_ref(&group.tokens), 0)?;
        let leaf = engine.leaf_gradient(&batch, &[target(group)], objective, None)?;
        loss += leaf.losses[0].loss;
        tree.push(position as u64, leaf.gradient, |into, other| engine.device.add_assign(into, other));
    }
    let count = input.groups.len() as f64;
    let mut out = vec![TraceTensor { name: "loss".into(), shape: vec![1], values: vec![(loss / count) as f32] }];
    let Some(sum) = tree.finish(|into, other| engine.device.add_assign(into, other)) else { return Ok(out) };
    let gradient = engine.device.download(&sum);
    let layout = &engine.adapter.as_ref().expect("a loss needs an adapter").layout;
    for (slot, tensors) in layout.slots().iter().zip(&adapter.tensors) {
        for (name, start, shape) in
            [(&tensors.a_name, slot.a, [slot.rank, slot.inputs]), (&tensors.b_name, slot.b, [slot.outputs, slot.rank])]
        {
            let values = gradient[start..start + shape[0] * shape[1]].iter().map(|g| (g / count) as f32).collect();
            out.push(TraceTensor { name: name.clone(), shape: shape.to_vec(), values });
        }
    }
    Ok(out)
}

fn target(group: &TraceGroup) -> Target {
    Target { yes: group.yes, no: group.no, answer_yes: group.answer_yes }
}

/// Refuses a group that the model cannot take, named by its place in the file.
fn check<D: Device>(engine: &Engine<D>, index: usize, group: &TraceGroup) -> crate::Result<()> {
    match engine.check(std::slice::from_ref(&group.tokens), &[target(group)]) {
        Err(crate::Error::Batch(error)) => Err(error.rename(|_| GroupName::Index(index)).into()),
        other => other,
    }
}

/// Runs with every row kept, adds the hidden states of each phrasing, and returns the answer logits.
fn hidden_states<D: Device>(
    engine: &Engine<D>,
    batch: &PackedBatch,
    group: usize,
    out: &mut Vec<TraceTensor>,
) -> crate::Result<Vec<Vec<f64>>> {
    let depth = engine.model.depth();
    let mut sites = SitePlan::default();
    let embed = Site { layer: 0, kind: SiteKind::ResidPre };
    if depth > 0 {
        sites.read.insert(embed);
    }
    sites.read.extend((0..depth).map(|layer| Site { layer, kind: SiteKind::ResidPost }));
    let request = ForwardRequest {
        layers: 0..depth,
        entry: Entry::Embeddings,
        rows: OutputRows::All,
        adapter: engine.adapter.as_ref(),
        train: false,
        dropout: None,
        sites: &sites,
    };
    let mut forward = engine.model.forward(&engine.device, batch, request)?;
    let last = forward.tape.take(forward.hidden);
    let final_norm = engine.final_norm(&last);
    let mut states: Vec<(String, Vec<f64>)> = Vec::new();
    for (site, value) in &forward.reads {
        let name = match site.kind {
            SiteKind::ResidPre => "embed".to_owned(),
            _ => format!("layer_{:02}", site.layer),
        };
        states.push((name, engine.device.download(value)));
    }
    if depth == 0 {
        states.push(("embed".into(), engine.device.download(&last)));
    }
    states.push(("final_norm".into(), engine.device.download(&final_norm)));
    let width = engine.model.config.hidden_size;
    for phrasing in &batch.phrasings {
        let rows = batch.rows_of(phrasing);
        for (name, values) in &states {
            out.push(TraceTensor {
                name: format!("group{group}.phrasing{}.hidden.{name}", phrasing.index),
                shape: vec![rows.len(), width],
                values: rows
                    .iter()
                    .flat_map(|&row| &values[row as usize * width..(row as usize + 1) * width])
                    .map(|&value| value as f32)
                    .collect(),
            });
        }
    }
    let answers = engine.device.gather_rows(&last, &batch.answer_rows());
    engine.head_logits(&answers, &Columns::Full)
}
