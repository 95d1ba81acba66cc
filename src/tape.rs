//! The autograd tape: one node per fused operation, over adapter parameters and named leaves only.
//!
//! A value needs a gradient if it is a leaf (a site whose gradient was asked for) or depends on an adapter or such a leaf;
//! an operation none of whose outputs needs one is computed and not recorded, so nothing below the lowest leaf is kept.
//! [`Tape::release`] frees a value as soon as no recorded node will read it in the backward pass.

#![forbid(unsafe_code)]

use crate::batch::AttentionPlan;
use crate::ops::answer_head::HeadColumns;
use crate::ops::attention::{AttentionOutput, AttentionShape};
use crate::ops::gated_linear::Kept;
use crate::ops::lora_linear::{Dropout, LoraSlot, LoraTerm, Part, Store};
use crate::ops::{Backend, Device, TrainDevice};
use std::sync::Arc;

/// Handle of a value on the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Var(usize);

/// Keys of a step's dropout masks for the rows of one input.
#[derive(Clone, Debug)]
pub struct DropoutRows {
    /// Probability of dropping.
    pub p: f32,
    /// Run seed.
    pub seed: u64,
    /// Optimiser step.
    pub step: u32,
    /// (group's ordinal, row within the group) per row.
    pub rows: Arc<[(u32, u32)]>,
}

/// One projection of a [`Tape::lora_linear`] with what its backward needs.
pub struct Projection<'m, D: Backend> {
    /// W `[out, in]`.
    pub weight: &'m D::Weight,
    /// Flat parameters and the slot in them.
    pub lora: Option<(&'m D::Buf, LoraSlot)>,
    /// Active dropout.
    pub dropout: Option<DropoutRows>,
}

impl<D: Backend> Projection<'_, D> {
    fn part(&self) -> Part<'_, D> {
        Part {
            weight: self.weight,
            lora: self.lora.map(|(params, slot)| LoraTerm {
                params,
                a: slot.a,
                b: slot.b,
                rank: slot.rank,
                scale: slot.scale,
                dropout: self.dropout.as_ref().map(|dropout| Dropout {
                    p: dropout.p,
                    seed: dropout.seed,
                    step: dropout.step,
                    layer: slot.layer as u32,
                    module: slot.module as u32,
                    rows: &dropout.rows,
                }),
            }),
        }
    }
}

/// Columns of the head, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Columns {
    /// These vocabulary ids.
    Ids(Vec<u32>),
    /// The whole vocabulary.
    Full,
}

impl Columns {
    fn borrow(&self) -> HeadColumns<'_> {
        match self {
            Self::Ids(ids) => HeadColumns::Ids(ids),
            Self::Full => HeadColumns::Full,
        }
    }
}

enum Node<'m, D: Backend> {
    Norm { x: Var, w: &'m D::Weight, out: Var },
    NormAdd { h: Var, branch: Var, w: &'m D::Weight, out: Var },
    Add { a: Var, b: Var, out: Var },
    Copy { x: Var, out: Var },
    LoraLinear { x: Var, parts: Vec<Projection<'m, D>>, su: Vec<Option<D::Buf>>, out: Vec<Var> },
    QkNormRope { x: Var, w: &'m D::Weight, rope: Arc<D::Buf>, head_dim: usize, out: Var },
    Attention { q: Var, k: Var, v: Var, softmax: D::Buf, shape: AttentionShape, plan: Arc<AttentionPlan>, out: Var },
    Geglu { gate: Var, up: Var, out: Var },
    GatherRows { x: Var, rows: Arc<[u32]>, out: Var },
    AnswerHead { h: Var, w: &'m D::Weight, head: &'m D::Weight, columns: Columns, out: Var },
}

struct Value<B> {
    buf: Option<B>,
    /// Rows and columns, known even after the value was released.
    shape: (usize, usize),
    /// Whether a gradient flows to it.
    needs: bool,
    /// Whether a recorded node reads it in the backward pass.
    kept: bool,
    /// Whether its gradient is handed to the caller.
    leaf: bool,
}

/// Values and recorded operations of one forward pass. `'m` is the lifetime of model and adapter.
pub struct Tape<'m, D: Backend> {
    device: &'m D,
    eps: f32,
    values: Vec<Value<D::Buf>>,
    nodes: Vec<Node<'m, D>>,
    train_lora: bool,
}

/// Gradients of the leaves that were asked for.
pub struct LeafGradients<B>(Vec<(Var, B)>);

impl<B> LeafGradients<B> {
    /// The gradient of a leaf; `None` if the loss does not depend on it.
    pub fn get(&self, leaf: Var) -> Option<&B> {
        self.0.iter().find(|(var, _)| *var == leaf).map(|(_, gradient)| gradient)
    }
}

impl<'m, D: Backend> Tape<'m, D> {
    /// An empty tape. With `train_lora`, adapter parameters are leaves; `eps` is that of every RMSNorm.
    pub fn new(device: &'m D, eps: f32, train_lora: bool) -> Self {
        Self { device, eps, values: Vec::new(), nodes: Vec::new(), train_lora }
    }

    /// Puts a value on the tape that depends on nothing.
    pub fn constant(&mut self, buf: D::Buf) -> Var {
        self.push(buf, false)
    }

    /// Makes a value a leaf: everything computed from it from now on is recorded, and its gradient is returned.
    pub fn make_leaf(&mut self, var: Var) {
        self.values[var.0].needs = true;
        self.values[var.0].leaf = true;
    }

    /// A value.
    ///
    /// # Panics
    /// If it was released: that is a mistake in the model's code, not in its input.
    pub fn value(&self, var: Var) -> &D::Buf {
        self.values[var.0].buf.as_ref().expect("a released value is not read again")
    }

    /// Changes a value in place before anything was computed from it.
    pub fn value_mut(&mut self, var: Var) -> &mut D::Buf {
        self.values[var.0].buf.as_mut().expect("a released value is not changed")
    }

    /// Whether gradients flow to this value.
    pub fn needs_gradient(&self, var: Var) -> bool {
        self.values[var.0].needs
    }

    /// Takes a value off the tape, copying it if the backward pass still reads it.
    pub fn take(&mut self, var: Var) -> D::Buf {
        if self.values[var.0].kept {
            self.device.duplicate(self.value(var))
        } else {
            self.values[var.0].buf.take().expect("a released value is not read again")
        }
    }

    /// Frees a value unless the backward pass reads it. Call it when the forward pass is done with it.
    pub fn release(&mut self, var: Var) {
        if !self.values[var.0].kept {
            self.values[var.0].buf = None;
        }
    }

    /// Number of recorded operations.
    pub fn recorded(&self) -> usize {
        self.nodes.len()
    }

    fn push(&mut self, buf: D::Buf, needs: bool) -> Var {
        let shape = self.device.shape(&buf);
        self.values.push(Value { buf: Some(buf), shape, needs, kept: false, leaf: false });
        Var(self.values.len() - 1)
    }

    fn keep(&mut self, vars: &[Var]) {
        for var in vars {
            self.values[var.0].kept = true;
        }
    }
}

impl<'m, D: Device> Tape<'m, D> {
    /// RMSNorm entering a product.
    pub fn norm(&mut self, x: Var, w: &'m D::Weight) -> Var {
        let y = self.device.norm(self.value(x), w, self.eps);
        let needs = self.needs_gradient(x);
        let out = self.push(y, needs);
        if needs {
            self.keep(&[x]);
            self.nodes.push(Node::Norm { x, w, out });
        }
        out
    }

    /// RMSNorm of a branch alone, unrounded.
    pub fn branch_norm(&mut self, branch: Var, w: &'m D::Weight) -> Var {
        let y = self.device.branch_norm(self.value(branch), w, self.eps);
        let needs = self.needs_gradient(branch);
        let out = self.push(y, needs);
        if needs {
            self.keep(&[branch]);
            self.nodes.push(Node::Norm { x: branch, w, out });
        }
        out
    }

    /// h + RMSNorm(branch).
    pub fn norm_add(&mut self, h: Var, branch: Var, w: &'m D::Weight) -> Var {
        let y = self.device.norm_add(self.value(h), self.value(branch), w, self.eps);
        let needs = self.needs_gradient(h) || self.needs_gradient(branch);
        let out = self.push(y, needs);
        if needs {
            if self.needs_gradient(branch) {
                self.keep(&[branch]);
            }
            self.nodes.push(Node::NormAdd { h, branch, w, out });
        }
        out
    }

    /// a + b.
    pub fn add(&mut self, a: Var, b: Var) -> Var {
        let mut sum = self.device.duplicate(self.value(a));
        self.device.add_assign(&mut sum, self.value(b));
        let needs = self.needs_gradient(a) || self.needs_gradient(b);
        let out = self.push(sum, needs);
        if needs {
            self.nodes.push(Node::Add { a, b, out });
        }
        out
    }

    /// A value of its own with the same content, to be changed in place by something that does not depend on it.
    pub fn copy(&mut self, x: Var) -> Var {
        let y = self.device.duplicate(self.value(x));
        let needs = self.needs_gradient(x);
        let out = self.push(y, needs);
        if needs {
            self.nodes.push(Node::Copy { x, out });
        }
        out
    }

    /// One input through 1–3 projections with their LoRA branches; `store` says what reads the results.
    pub fn lora_linear(&mut self, x: Var, parts: Vec<Projection<'m, D>>, store: Store) -> Vec<Var> {
        let output = {
            let borrowed: Vec<Part<'_, D>> = parts.iter().map(Projection::part).collect();
            self.device.lora_linear(self.value(x), &borrowed, store)
        };
        let trains = self.train_lora && parts.iter().any(|part| part.lora.is_some());
        let needs = self.needs_gradient(x) || trains;
        let out: Vec<Var> = output
            .y
            .into_iter()
            .zip(&parts)
            .map(|(y, part)| {
                let needs = self.needs_gradient(x) || (self.train_lora && part.lora.is_some());
                self.push(y, needs)
            })
            .collect();
        if needs {
            if trains {
                self.keep(&[x]);
            }
            self.nodes.push(Node::LoraLinear { x, parts, su: output.su, out: out.clone() });
        }
        out
    }

    /// gelu_tanh(gate)·up, both projections of x.
    pub fn gated_linear(&mut self, x: Var, parts: [Projection<'m, D>; 2]) -> Var {
        let trains = self.train_lora && parts.iter().any(|part| part.lora.is_some());
        let needs = self.needs_gradient(x) || trains;
        let output = self.device.gated_linear(self.value(x), &parts.each_ref().map(Projection::part), needs);
        let out = self.push(output.act, needs);
        if let Some(Kept { gate, up, su }) = output.kept {
            let (gate, up) = (self.push(gate, true), self.push(up, true));
            self.keep(&[gate, up]);
            if trains {
                self.keep(&[x]);
            }
            self.nodes.push(Node::LoraLinear { x, parts: parts.into(), su, out: vec![gate, up] });
            self.nodes.push(Node::Geglu { gate, up, out });
        }
        out
    }

    /// Per-head RMSNorm, then rotary.
    pub fn qk_norm_rope(&mut self, x: Var, w: &'m D::Weight, rope: &Arc<D::Buf>, head_dim: usize) -> Var {
        let y = self.device.qk_norm_rope(self.value(x), w, self.eps, rope, head_dim);
        let needs = self.needs_gradient(x);
        let out = self.push(y, needs);
        if needs {
            self.keep(&[x]);
            self.nodes.push(Node::QkNormRope { x, w, rope: Arc::clone(rope), head_dim, out });
        }
        out
    }

    /// Attention over the token tree.
    pub fn attention(&mut self, shape: AttentionShape, plan: &Arc<AttentionPlan>, q: Var, k: Var, v: Var) -> Var {
        let output = self.device.attention(&shape, plan, self.value(q), self.value(k), self.value(v));
        let needs = [q, k, v].iter().any(|&var| self.needs_gradient(var));
        let out = self.push(output.o, needs);
        if needs {
            self.keep(&[q, k, v, out]);
            self.nodes.push(Node::Attention { q, k, v, softmax: output.softmax, shape, plan: Arc::clone(plan), out });
        }
        out
    }

    /// The named rows.
    pub fn gather_rows(&mut self, x: Var, rows: &Arc<[u32]>) -> Var {
        let y = self.device.gather_rows(self.value(x), rows);
        let needs = self.needs_gradient(x);
        let out = self.push(y, needs);
        if needs {
            self.nodes.push(Node::GatherRows { x, rows: Arc::clone(rows), out });
        }
        out
    }

    /// Final norm and head on answer rows.
    pub fn answer_head(&mut self, h: Var, w: &'m D::Weight, head: &'m D::Weight, columns: &Columns) -> Var {
        let logits = self.device.answer_head(self.value(h), w, self.eps, head, columns.borrow());
        let needs = self.needs_gradient(h);
        let out = self.push(logits, needs);
        if needs {
            self.keep(&[h]);
            self.nodes.push(Node::AnswerHead { h, w, head, columns: columns.clone(), out });
        }
        out
    }
}

impl<D: TrainDevice> Tape<'_, D> {
    /// Walks the tape backwards from `seed` = ∂loss/∂`output`. Adapter gradients are written to `adapter_gradient` (flat, zeroed by the
    /// caller); gradients of leaves are returned.
    pub fn backward(
        mut self,
        output: Var,
        seed: D::Buf,
        mut adapter_gradient: Option<&mut D::Buf>,
    ) -> LeafGradients<D::Buf> {
        let device = self.device;
        let eps = self.eps;
        let mut gradients: Vec<Option<D::Buf>> = self.values.iter().map(|_| None).collect();
        let mut leaves = Vec::new();
        gradients[output.0] = Some(seed);

        while let Some(node) = self.nodes.pop() {
            match node {
                Node::Norm { x, w, out } => {
                    if let Some(dy) = self.finish(&mut gradients, &mut leaves, out) {
                        let dx = device.norm_backward(&dy, self.value(x), w, eps);
                        self.accumulate(&mut gradients, x, dx);
                    }
                }
                Node::NormAdd { h, branch, w, out } => {
                    if let Some(dy) = self.finish(&mut gradients, &mut leaves, out) {
                        if self.needs_gradient(branch) {
                            let dbranch = device.norm_backward(&dy, self.value(branch), w, eps);
                            self.accumulate(&mut gradients, branch, dbranch);
                        }
                        self.accumulate(&mut gradients, h, dy);
                    }
                }
                Node::Add { a, b, out } => {
                    if let Some(dy) = self.finish(&mut gradients, &mut leaves, out) {
                        if self.needs_gradient(b) {
                            let db = device.duplicate(&dy);
                            self.accumulate(&mut gradients, b, db);
                        }
                        self.accumulate(&mut gradients, a, dy);
                    }
                }
                Node::Copy { x, out } => {
                    if let Some(dy) = self.finish(&mut gradients, &mut leaves, out) {
                        self.accumulate(&mut gradients, x, dy);
                    }
                }
                Node::LoraLinear { x, parts, su, out } => {
                    let dy: Vec<D::Buf> = out
                        .iter()
                        .map(|&var| {
                            self.finish(&mut gradients, &mut leaves, var).unwrap_or_else(|| {
                                // An output that the loss does not depend on.
                                let (rows, cols) = self.values[var.0].shape;
                                device.zeros(rows, cols)
                            })
                        })
                        .collect();
                    let borrowed: Vec<Part<'_, D>> = parts.iter().map(Projection::part).collect();
                    let need_dx = self.needs_gradient(x);
                    let trains = self.train_lora && parts.iter().any(|part| part.lora.is_some());
                    let target = if trains { adapter_gradient.as_deref_mut() } else { None };
                    let references: Vec<&D::Buf> = dy.iter().collect();
                    let input = self.values[x.0].buf.as_ref();
                    let dx = device.lora_linear_backward(&references, input, &su, &borrowed, target, need_dx);
                    if let Some(dx) = dx {
                        self.accumulate(&mut gradients, x, dx);
                    }
                }
                Node::QkNormRope { x, w, rope, head_dim, out } => {
                    if let Some(dy) = self.finish(&mut gradients, &mut leaves, out) {
                        let dx = device.qk_norm_rope_backward(&dy, self.value(x), w, eps, &rope, head_dim);
                        self.accumulate(&mut gradients, x, dx);
                    }
                }
                Node::Attention { q, k, v, softmax, shape, plan, out } => {
                    if let Some(d_o) = self.finish_keeping(&mut gradients, &mut leaves, out) {
                        let o = self.values[out.0].buf.take().expect("attention keeps its output");
                        let output = AttentionOutput { o, softmax };
                        let d = device.attention_backward(
                            &shape,
                            &plan,
                            self.value(q),
                            self.value(k),
                            self.value(v),
                            &output,
                            &d_o,
                        );
                        self.accumulate(&mut gradients, q, d.dq);
                        self.accumulate(&mut gradients, k, d.dk);
                        self.accumulate(&mut gradients, v, d.dv);
                    }
                }
                Node::Geglu { gate, up, out } => {
                    if let Some(dy) = self.finish(&mut gradients, &mut leaves, out) {
                        let (dgate, dup) = device.geglu_backward(&dy, self.value(gate), self.value(up));
                        self.accumulate(&mut gradients, gate, dgate);
                        self.accumulate(&mut gradients, up, dup);
                    }
                }
                Node::GatherRows { x, rows, out } => {
                    if let Some(dy) = self.finish(&mut gradients, &mut leaves, out) {
                        if gradients[x.0].is_none() {
                            let (count, cols) = self.values[x.0].shape;
                            gradients[x.0] = Some(device.zeros(count, cols));
                        }
                        let target = gradients[x.0].as_mut().expect("just set");
                        device.scatter_add_rows(target, &dy, &rows);
                    }
                }
                Node::AnswerHead { h, w, head, columns, out } => {
                    if let Some(dlogits) = self.finish(&mut gradients, &mut leaves, out) {
                        let dh = device.answer_head_backward(&dlogits, self.value(h), w, eps, head, columns.borrow());
                        self.accumulate(&mut gradients, h, dh);
                    }
                }
            }
        }
        // Leaves that no recorded node produced.
        for (index, gradient) in gradients.into_iter().enumerate() {
            if let (true, Some(gradient)) = (self.values[index].leaf, gradient) {
                leaves.push((Var(index), gradient));
            }
        }
        LeafGradients(leaves)
    }

    /// The complete gradient of a node's output; its value is not needed any more.
    fn finish(
        &mut self,
        gradients: &mut [Option<D::Buf>],
        leaves: &mut Vec<(Var, D::Buf)>,
        out: Var,
    ) -> Option<D::Buf> {
        let gradient = self.finish_keeping(gradients, leaves, out);
        if gradient.is_some() {
            self.values[out.0].buf = None;
        }
        gradient
    }

    fn finish_keeping(
        &mut self,
        gradients: &mut [Option<D::Buf>],
        leaves: &mut Vec<(Var, D::Buf)>,
        out: Var,
    ) -> Option<D::Buf> {
        let gradient = gradients[out.0].take()?;
        if self.values[out.0].leaf {
            leaves.push((out, self.device.duplicate(&gradient)));
        }
        Some(gradient)
    }

    fn accumulate(&self, gradients: &mut [Option<D::Buf>], var: Var, gradient: D::Buf) {
        if !self.needs_gradient(var) {
            return;
        }
        match &mut gradients[var.0] {
            Some(sum) => self.device.add_assign(sum, &gradient),
            slot => *slot = Some(gradient),
        }
    }
}
