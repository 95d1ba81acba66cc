//! The decoder's forward pass over any layer range, on a [`Tape`].
//!
//! ```text
//! h = E[ids]·scale
//! each layer: h += post_norm(o(attention(rope(norm(q)), rope(norm(k)), v)));  h += post_norm(down(geglu(gate, up)))
//! ```
//!
//! After the last layer only answer rows are needed, so its queries, and everything after its attention, are computed for those
//! alone, unless all rows or a site of that layer are asked for. Forward values are the same bits either way.

use super::sites::{Site, SiteKind, SitePlan};
use super::weights::Layer;
use super::{Adapter, Error, KvCache, TextModel};
use crate::batch::{AttentionPlan, PackedBatch};
use crate::ops::attention::AttentionShape;
use crate::ops::lora_linear::Store;
use crate::ops::{Backend, Device};
use crate::tape::{DropoutRows, Projection, Tape, Var};
use crate::weights::{LayerKind, Module};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Where a layer range starts.
pub enum Entry<B> {
    /// Token embeddings (range must start at layer 0).
    Embeddings,
    /// A stored residual stream `[rows, hidden]` entering the first layer of the range.
    Hidden(B),
}

/// Rows of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputRows {
    /// Every packed row.
    All,
    /// The answer row of each phrasing, in order.
    Answers,
}

/// Dropout of a training step.
#[derive(Clone, Copy, Debug)]
pub struct DropoutStep {
    /// Probability of dropping.
    pub p: f32,
    /// Run seed.
    pub seed: u64,
    /// Optimiser step.
    pub step: u32,
}

/// What to run.
pub struct ForwardRequest<'a, 'm, D: Backend> {
    /// Layers, in model order.
    pub layers: Range<usize>,
    /// What enters the first one.
    pub entry: Entry<D::Buf>,
    /// Rows wanted after the last one.
    pub rows: OutputRows,
    /// LoRA branches to add.
    pub adapter: Option<&'m Adapter<D>>,
    /// Whether adapter parameters are leaves of the tape.
    pub train: bool,
    /// Dropout on LoRA branches.
    pub dropout: Option<DropoutStep>,
    /// Reads, writes and gradients at sites.
    pub sites: &'a SitePlan<'a, D>,
}

/// A finished forward pass.
pub struct Forward<'m, D: Backend> {
    /// Everything recorded.
    pub tape: Tape<'m, D>,
    /// Residual stream after the last layer: all rows or the answer rows.
    pub hidden: Var,
    /// Values of the sites that were read.
    pub reads: BTreeMap<Site, D::Buf>,
    /// Leaves of the sites whose gradients were asked for.
    pub leaves: BTreeMap<Site, Var>,
}

/// One layer kind's geometry for a batch.
struct Geometry<B> {
    plan: Arc<AttentionPlan>,
    rope: Arc<B>,
}

struct Pass<'a, 'm, D: Backend> {
    device: &'m D,
    model: &'m TextModel<D>,
    batch: &'a PackedBatch,
    sites: &'a SitePlan<'a, D>,
    adapter: Option<&'m Adapter<D>>,
    dropout: Option<DropoutStep>,
    all_rows: Arc<[(u32, u32)]>,
    tape: Tape<'m, D>,
    reads: BTreeMap<Site, D::Buf>,
    leaves: BTreeMap<Site, Var>,
    geometry: BTreeMap<bool, Geometry<D::Buf>>,
    cache: Option<&'a mut KvCache<D>>,
}

impl<D: Device> TextModel<D> {
    /// Runs layers of the decoder over a packed batch.
    ///
    /// # Errors
    /// A layer range or site outside the loaded layers; a write that is not additive where a gradient flows.
    pub fn forward<'m>(
        &'m self,
        device: &'m D,
        batch: &PackedBatch,
        request: ForwardRequest<'_, 'm, D>,
    ) -> Result<Forward<'m, D>, Error> {
        self.run(device, batch, request, None)
    }

    /// As [`Self::forward`] for a batch whose first key rows are in `cache`, and whose own are put there.
    ///
    /// # Errors
    /// As [`Self::forward`]; a cache without room; a request for gradients.
    pub fn forward_cached<'m>(
        &'m self,
        device: &'m D,
        batch: &PackedBatch,
        request: ForwardRequest<'_, 'm, D>,
        cache: &mut KvCache<D>,
    ) -> Result<Forward<'m, D>, Error> {
        if request.train || !request.sites.gradient.is_empty() {
            return Err(Error::CacheWithoutBackward);
        }
        let (rows, held, capacity) = (batch.rows(), cache.rows(), cache.capacity());
        if batch.cached != held || held + rows > capacity {
            return Err(Error::CacheFull { rows, held, capacity });
        }
        let forward = self.run(device, batch, request, Some(&mut *cache))?;
        cache.advance(rows);
        Ok(forward)
    }

    fn run<'a, 'm>(
        &'m self,
        device: &'m D,
        batch: &'a PackedBatch,
        request: ForwardRequest<'a, 'm, D>,
        cache: Option<&'a mut KvCache<D>>,
    ) -> Result<Forward<'m, D>, Error> {
        let Range { start, end } = request.layers.clone();
        let misplaced = matches!(request.entry, Entry::Embeddings) && start > 0;
        if start > end || end > self.depth() || misplaced {
            return Err(Error::Layers { start, end, layers: self.depth() });
        }
        if let Some(site) = request.sites.all().find(|site| !request.layers.contains(&site.layer)) {
            return Err(Error::SiteLayer { site: site.to_string(), start, end });
        }
        let mut pass = Pass {
            device,
            model: self,
            batch,
            sites: request.sites,
            adapter: request.adapter,
            dropout: request.dropout,
            all_rows: batch.dropout_rows.clone().into(),
            tape: Tape::new(device, self.config.rms_norm_eps as f32, request.train),
            reads: BTreeMap::new(),
            leaves: BTreeMap::new(),
            geometry: BTreeMap::new(),
            cache,
        };
        let embedded = match request.entry {
            Entry::Embeddings => device.embed(&self.embedding, &batch.ids, self.embed_scale),
            Entry::Hidden(hidden) => hidden,
        };
        let mut hidden = pass.tape.constant(embedded);
        let answers: Arc<[u32]> = batch.answer_rows().into();
        let mut on_answers = false;
        for layer in request.layers {
            let last = layer + 1 == end;
            let shortcut = last && request.rows == OutputRows::Answers && !pass.sites.touches_layer(layer);
            hidden = pass.block(hidden, layer, shortcut.then_some(&answers))?;
            on_answers |= shortcut;
        }
        if request.rows == OutputRows::Answers && !on_answers {
            let gathered = pass.tape.gather_rows(hidden, &answers);
            pass.tape.release(hidden);
            hidden = gathered;
        }
        Ok(Forward { tape: pass.tape, hidden, reads: pass.reads, leaves: pass.leaves })
    }
}

impl<'m, D: Device> Pass<'_, 'm, D> {
    /// One decoder block; with `answers` everything but keys and values is computed for those rows alone.
    fn block(&mut self, entering: Var, index: usize, answers: Option<&Arc<[u32]>>) -> Result<Var, Error> {
        let layer: &'m Layer<D> = &self.model.layers[index];
        let config = &self.model.config;
        let kind = config.layer_types[index];
        let head_dim = config.head_dim;
        self.prepare(kind);

        let entering = self.site(entering, index, SiteKind::ResidPre)?;
        let x = self.tape.norm(entering, &layer.input_norm);
        let (q, k, v, hidden) = match answers {
            None => {
                let [q, k, v] = self.project(x, index, [Module::Q, Module::K, Module::V], None);
                self.tape.release(x);
                (q, k, v, entering)
            }
            Some(rows) => {
                let [k, v] = self.project(x, index, [Module::K, Module::V], None);
                let x_rows = self.tape.gather_rows(x, rows);
                self.tape.release(x);
                let [q] = self.project(x_rows, index, [Module::Q], Some(rows));
                self.tape.release(x_rows);
                let hidden = self.tape.gather_rows(entering, rows);
                self.tape.release(entering);
                (q, k, v, hidden)
            }
        };
        let geometry = &self.geometry[&(kind == LayerKind::Sliding)];
        let rope = Arc::clone(&geometry.rope);
        let (plan, query_rope) = match answers {
            None => (Arc::clone(&geometry.plan), Arc::clone(&rope)),
            Some(rows) => (Arc::new(self.batch.answer_plan(kind)), Arc::new(self.device.gather_rows(&rope, rows))),
        };
        let q_rotated = self.tape.qk_norm_rope(q, &layer.q_norm, &query_rope, head_dim);
        let k_rotated = self.tape.qk_norm_rope(k, &layer.k_norm, &rope, head_dim);
        self.release([q, k]);
        let shape = AttentionShape {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim,
            scale: (1.0 / config.query_pre_attn_scalar.sqrt()) as f32,
        };
        let attended = match &mut self.cache {
            None => self.tape.attention(shape, &plan, q_rotated, k_rotated, v),
            Some(cache) => {
                let device = self.device;
                let (keys, values) = cache.extend(device, index, self.tape.value(k_rotated), self.tape.value(v));
                let output = device.attention(&shape, &plan, self.tape.value(q_rotated), keys, values);
                self.tape.constant(output.o)
            }
        };
        self.release([q_rotated, k_rotated, v]);
        let attended = self.site(attended, index, SiteKind::AttnOut)?;
        let [branch] = self.project(attended, index, [Module::O], answers);
        self.tape.release(attended);
        let middle = self.tape.norm_add(hidden, branch, &layer.post_attention_norm);
        self.release([hidden, branch]);

        let x = self.tape.norm(middle, &layer.pre_feedforward_norm);
        let x = self.site(x, index, SiteKind::MlpIn)?;
        let parts = self.projections(index, [Module::Gate, Module::Up], answers);
        let act = self.tape.gated_linear(x, parts);
        self.tape.release(x);
        let [branch] = self.project(act, index, [Module::Down], answers);
        self.tape.release(act);
        let leaving = if self.sites.touches(Site { layer: index, kind: SiteKind::MlpOut }) {
            let normed = self.tape.branch_norm(branch, &layer.post_feedforward_norm);
            let normed = self.site(normed, index, SiteKind::MlpOut)?;
            let leaving = self.tape.add(middle, normed);
            self.tape.release(normed);
            leaving
        } else {
            self.tape.norm_add(middle, branch, &layer.post_feedforward_norm)
        };
        self.release([middle, branch]);
        self.site(leaving, index, SiteKind::ResidPost)
    }

    fn release<const N: usize>(&mut self, vars: [Var; N]) {
        for var in vars {
            self.tape.release(var);
        }
    }

    /// Projections of one input, with their adapters; `rows` names the packed rows of `x` if it does not hold all.
    fn project<const N: usize>(
        &mut self,
        x: Var,
        index: usize,
        modules: [Module; N],
        rows: Option<&Arc<[u32]>>,
    ) -> [Var; N] {
        // o and down end in the residual stream; q, k and v enter norms and products that round them.
        let full = modules.iter().any(|module| matches!(module, Module::O | Module::Down));
        let store = if full { Store::Full } else { Store::Rounded };
        let parts = self.projections(index, modules, rows);
        let out = self.tape.lora_linear(x, parts.into(), store);
        std::array::from_fn(|part| out[part])
    }

    /// Frozen weights of projections with what is adapted of them.
    fn projections<const N: usize>(
        &self,
        index: usize,
        modules: [Module; N],
        rows: Option<&Arc<[u32]>>,
    ) -> [Projection<'m, D>; N] {
        let layer: &'m Layer<D> = &self.model.layers[index];
        let adapter = self.adapter;
        let dropout = self.dropout.filter(|dropout| dropout.p > 0.0).map(|dropout| DropoutRows {
            p: dropout.p,
            seed: dropout.seed,
            step: dropout.step,
            rows: match rows {
                None => Arc::clone(&self.all_rows),
                Some(rows) => rows.iter().map(|&row| self.all_rows[row as usize]).collect(),
            },
        });
        modules.map(|module| Projection {
            weight: layer.projection(module),
            lora: adapter.and_then(|adapter| adapter.layout.slot(index, module).map(|slot| (&adapter.params, slot))),
            dropout: dropout.clone(),
        })
    }

    /// Plans and rotary tables of a layer kind, made once per batch.
    fn prepare(&mut self, kind: LayerKind) {
        let config = &self.model.config;
        let (device, batch) = (self.device, self.batch);
        self.geometry.entry(kind == LayerKind::Sliding).or_insert_with(|| {
            let [sliding, full] = &self.model.rope;
            let (rows, rope) = match kind {
                LayerKind::Sliding => (sliding, &config.rope_local),
                LayerKind::Full => (full, &config.rope_global),
            };
            Geometry {
                plan: Arc::new(batch.attention_plan(kind)),
                rope: Arc::new(rows.at(device, &batch.positions, rope, config.head_dim)),
            }
        });
    }

    /// Writes, then reads, then marks as a leaf; returns the value to go on with.
    fn site(&mut self, mut var: Var, layer: usize, kind: SiteKind) -> Result<Var, Error> {
        let site = Site { layer, kind };
        if let Some(write) = self.sites.write.get(&site) {
            if self.tape.needs_gradient(var) {
                if !write.additive {
                    return Err(Error::WriteWithoutBackward { site: site.to_string() });
                }
                // The operation that made the value may read it again in its backward pass.
                var = self.tape.copy(var);
            }
            let (device, batch) = (self.device, self.batch);
            (write.edit)(device, batch, self.tape.value_mut(var));
        }
        if self.sites.read.contains(&site) {
            let copy = self.device.duplicate(self.tape.value(var));
            self.reads.insert(site, copy);
        }
        if self.sites.gradient.contains(&site) {
            self.tape.make_leaf(var);
            self.leaves.insert(site, var);
        }
        Ok(var)
    }
}
