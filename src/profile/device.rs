//! A device that hands every operation to another one with a clock around it. Its weights remember their shape, which the
//! costs need.

use super::{Key, Profile};
use crate::batch::AttentionPlan;
use crate::ops::adamw::{self, AdamW, AdamWStep};
use crate::ops::answer_head::{self, AnswerHead, AnswerHeadBackward, HeadColumns};
use crate::ops::attention::{self, Attention, AttentionBackward, AttentionGradients, AttentionOutput, AttentionShape};
use crate::ops::cost::F32;
use crate::ops::embed::{self, Embed};
use crate::ops::gated_linear::{self, GatedLinear, GatedOutput};
use crate::ops::geglu::{self, Geglu, GegluBackward};
use crate::ops::lora_linear::{self, LinearOutput, LoraLinear, LoraLinearBackward, LoraTerm, Part, PartShape, Store};
use crate::ops::norm::{self, Norm, NormBackward};
use crate::ops::qk_norm_rope::{self, QkNormRope, QkNormRopeBackward};
use crate::ops::vocabulary::{self, Coefficients, Head, Question, Statistics, Vocabulary, VocabularyBackward};
use crate::ops::{Backend, Cost, Error, Pass};
use crate::weights::TensorView;
use std::time::Instant;

/// A clocked device.
pub struct Profiled<D> {
    inner: D,
    profile: Profile,
}

/// A frozen tensor and its shape.
pub struct ProfiledWeight<W> {
    inner: W,
    rows: usize,
    cols: usize,
    /// Bytes of a stored element.
    size: usize,
}

impl<D> Profiled<D> {
    /// Clocks `inner` into `profile`.
    pub fn new(inner: D, profile: Profile) -> Self {
        Self { inner, profile }
    }

    /// The device within.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn clock<T>(
        &self,
        operation: &'static str,
        pass: Pass,
        shape: String,
        cost: Cost,
        work: impl FnOnce(&D) -> T,
    ) -> T {
        let key = Key { operation, pass, shape };
        let started = Instant::now();
        let result = work(&self.inner);
        self.profile.record(key, cost, started);
        result
    }

    /// A call that only moves `bytes`.
    fn moved<T>(&self, operation: &'static str, bytes: usize, work: impl FnOnce(&D) -> T) -> T {
        self.clock(operation, Pass::Forward, String::new(), Cost::traffic(bytes), work)
    }
}

/// Bytes of a matrix of f32.
fn bytes((rows, cols): (usize, usize)) -> usize {
    rows * cols * F32
}

impl<D: Backend> Backend for Profiled<D> {
    type Buf = D::Buf;
    type Weight = ProfiledWeight<D::Weight>;

    fn weight(&self, view: &TensorView) -> Result<Self::Weight, Error> {
        let rows = if view.shape.len() < 2 { 1 } else { view.shape[0] };
        let cols = view.elements() / rows.max(1);
        Ok(ProfiledWeight { inner: self.inner.weight(view)?, rows, cols, size: view.dtype.size() })
    }

    fn zeros(&self, rows: usize, cols: usize) -> D::Buf {
        self.moved("zeros", bytes((rows, cols)), |device| device.zeros(rows, cols))
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> D::Buf {
        self.moved("upload", 2 * bytes((rows, cols)), |device| device.upload(rows, cols, values))
    }

    fn download(&self, buf: &D::Buf) -> Vec<f64> {
        self.moved("download", 3 * bytes(self.shape(buf)), |device| device.download(buf))
    }

    fn shape(&self, buf: &D::Buf) -> (usize, usize) {
        self.inner.shape(buf)
    }

    fn duplicate(&self, buf: &D::Buf) -> D::Buf {
        self.moved("duplicate", 2 * bytes(self.shape(buf)), |device| device.duplicate(buf))
    }

    fn add_assign(&self, target: &mut D::Buf, source: &D::Buf) {
        let (rows, cols) = self.shape(source);
        let cost = Cost::elementwise(rows * cols, 1, 3);
        self.clock("add", Pass::Forward, String::new(), cost, |device| device.add_assign(target, source));
    }

    fn gather_rows(&self, source: &D::Buf, rows: &[u32]) -> D::Buf {
        let moved = 2 * bytes((rows.len(), self.shape(source).1));
        self.moved("gather_rows", moved, |device| device.gather_rows(source, rows))
    }

    fn scatter_add_rows(&self, target: &mut D::Buf, source: &D::Buf, rows: &[u32]) {
        let (count, cols) = self.shape(source);
        let cost = Cost::elementwise(count * cols, 1, 3);
        self.clock("scatter_add_rows", Pass::Backward, String::new(), cost, |device| {
            device.scatter_add_rows(target, source, rows);
        });
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn unit(&self) -> String {
        self.inner.unit()
    }
}

impl<D: Embed> Embed for Profiled<D> {
    fn embed(&self, table: &Self::Weight, ids: &[u32], scale: f32) -> D::Buf {
        let cost = embed::cost(ids.len(), table.cols, table.size);
        self.clock("embed", Pass::Forward, width(table.cols), cost, |device| device.embed(&table.inner, ids, scale))
    }
}

fn width(cols: usize) -> String {
    format!("n={cols}")
}

impl<D: Norm> Norm for Profiled<D> {
    fn norm(&self, x: &D::Buf, w: &Self::Weight, eps: f32) -> D::Buf {
        let (rows, n) = self.shape(x);
        self.clock("norm", Pass::Forward, width(n), norm::cost(rows, n), |device| device.norm(x, &w.inner, eps))
    }

    fn norm_add(&self, h: &D::Buf, branch: &D::Buf, w: &Self::Weight, eps: f32) -> D::Buf {
        let (rows, n) = self.shape(h);
        let cost = norm::cost_add(rows, n);
        self.clock("norm_add", Pass::Forward, width(n), cost, |device| device.norm_add(h, branch, &w.inner, eps))
    }

    fn branch_norm(&self, branch: &D::Buf, w: &Self::Weight, eps: f32) -> D::Buf {
        let (rows, n) = self.shape(branch);
        let cost = norm::cost(rows, n);
        self.clock("norm", Pass::Forward, width(n), cost, |device| device.branch_norm(branch, &w.inner, eps))
    }
}

impl<D: NormBackward> NormBackward for Profiled<D> {
    fn norm_backward(&self, dy: &D::Buf, x: &D::Buf, w: &Self::Weight, eps: f32) -> D::Buf {
        let (rows, n) = self.shape(x);
        let cost = norm::cost_backward(rows, n);
        self.clock("norm", Pass::Backward, width(n), cost, |device| device.norm_backward(dy, x, &w.inner, eps))
    }
}

impl<D: GatedLinear> GatedLinear for Profiled<D> {
    fn gated_linear(&self, x: &D::Buf, given: &[Part<'_, Self>; 2], keep: bool) -> GatedOutput<D::Buf> {
        let (rows, inputs) = self.shape(x);
        let (inner, shapes) = parts(given);
        let inner = <[_; 2]>::try_from(inner).unwrap_or_else(|_| unreachable!("as many as were given"));
        let (shape, cost) = (projections(inputs, &shapes), gated_linear::cost(rows, inputs, &shapes, keep));
        self.clock("gated_linear", Pass::Forward, shape, cost, |device| device.gated_linear(x, &inner, keep))
    }
}

/// The parts as the device within sees them, and their shapes.
fn parts<'a, D: Backend>(given: &'a [Part<'_, Profiled<D>>]) -> (Vec<Part<'a, D>>, Vec<PartShape>) {
    let inner = |part: &'a Part<'_, Profiled<D>>| Part {
        weight: &part.weight.inner,
        lora: part.lora.as_ref().map(|term| LoraTerm {
            params: term.params,
            a: term.a,
            b: term.b,
            rank: term.rank,
            scale: term.scale,
            dropout: term.dropout,
        }),
    };
    let shape = |part: &Part<'_, Profiled<D>>| PartShape {
        outputs: part.weight.rows,
        rank: part.lora.as_ref().map_or(0, |term| term.rank),
        weight_bytes: part.weight.size,
    };
    (given.iter().map(inner).collect(), given.iter().map(shape).collect())
}

/// `in=640 out=1024+256+256 r=16`
fn projections(inputs: usize, shapes: &[PartShape]) -> String {
    let outputs: Vec<String> = shapes.iter().map(|part| part.outputs.to_string()).collect();
    let ranks: Vec<String> = shapes.iter().map(|part| part.rank.to_string()).collect();
    let ranks = if ranks.iter().all(|rank| *rank == ranks[0]) { ranks[0].clone() } else { ranks.join("+") };
    format!("in={inputs} out={} r={ranks}", outputs.join("+"))
}

impl<D: LoraLinear> LoraLinear for Profiled<D> {
    fn lora_linear(&self, x: &D::Buf, given: &[Part<'_, Self>], store: Store) -> LinearOutput<D::Buf> {
        let (rows, inputs) = self.shape(x);
        let (inner, shapes) = parts(given);
        let (shape, cost) = (projections(inputs, &shapes), lora_linear::cost(rows, inputs, &shapes));
        self.clock("lora_linear", Pass::Forward, shape, cost, |device| device.lora_linear(x, &inner, store))
    }
}

impl<D: LoraLinearBackward> LoraLinearBackward for Profiled<D> {
    fn lora_linear_backward(
        &self,
        dy: &[&D::Buf],
        x: Option<&D::Buf>,
        su: &[Option<D::Buf>],
        given: &[Part<'_, Self>],
        grads: Option<&mut D::Buf>,
        need_dx: bool,
    ) -> Option<D::Buf> {
        let rows = dy.first().map_or(0, |dy| self.shape(dy).0);
        let inputs = given.first().map_or(0, |part| part.weight.cols);
        let (inner, shapes) = parts(given);
        let cost = lora_linear::cost_backward(rows, inputs, &shapes, need_dx, grads.is_some());
        let shape = projections(inputs, &shapes);
        self.clock("lora_linear", Pass::Backward, shape, cost, |device| {
            device.lora_linear_backward(dy, x, su, &inner, grads, need_dx)
        })
    }
}

fn heads(count: usize, head_dim: usize) -> String {
    format!("heads={count} head_dim={head_dim}")
}

impl<D: QkNormRope> QkNormRope for Profiled<D> {
    fn qk_norm_rope(&self, x: &D::Buf, w: &Self::Weight, eps: f32, rope: &D::Buf, head_dim: usize) -> D::Buf {
        let (rows, cols) = self.shape(x);
        let count = cols / head_dim.max(1);
        let cost = qk_norm_rope::cost(rows, count, head_dim);
        self.clock("qk_norm_rope", Pass::Forward, heads(count, head_dim), cost, |device| {
            device.qk_norm_rope(x, &w.inner, eps, rope, head_dim)
        })
    }
}

impl<D: QkNormRopeBackward> QkNormRopeBackward for Profiled<D> {
    fn qk_norm_rope_backward(
        &self,
        dy: &D::Buf,
        x: &D::Buf,
        w: &Self::Weight,
        eps: f32,
        rope: &D::Buf,
        head_dim: usize,
    ) -> D::Buf {
        let (rows, cols) = self.shape(x);
        let count = cols / head_dim.max(1);
        let cost = qk_norm_rope::cost_backward(rows, count, head_dim);
        self.clock("qk_norm_rope", Pass::Backward, heads(count, head_dim), cost, |device| {
            device.qk_norm_rope_backward(dy, x, &w.inner, eps, rope, head_dim)
        })
    }
}

fn layout(shape: &AttentionShape, plan: &AttentionPlan) -> String {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let answers = if plan.spans.len() < plan.key_rows { " answers" } else { "" };
    format!("heads={heads}/{kv_heads} head_dim={head_dim}{answers}")
}

impl<D: Attention> Attention for Profiled<D> {
    fn attention(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &D::Buf,
        k: &D::Buf,
        v: &D::Buf,
    ) -> AttentionOutput<D::Buf> {
        let cost = attention::cost(shape, plan);
        self.clock("attention", Pass::Forward, layout(shape, plan), cost, |device| {
            device.attention(shape, plan, q, k, v)
        })
    }
}

impl<D: AttentionBackward> AttentionBackward for Profiled<D> {
    fn attention_backward(
        &self,
        shape: &AttentionShape,
        plan: &AttentionPlan,
        q: &D::Buf,
        k: &D::Buf,
        v: &D::Buf,
        output: &AttentionOutput<D::Buf>,
        d_o: &D::Buf,
    ) -> AttentionGradients<D::Buf> {
        let cost = attention::cost_backward(shape, plan);
        self.clock("attention", Pass::Backward, layout(shape, plan), cost, |device| {
            device.attention_backward(shape, plan, q, k, v, output, d_o)
        })
    }
}

impl<D: Geglu> Geglu for Profiled<D> {
    fn geglu(&self, gate: &D::Buf, up: &D::Buf) -> D::Buf {
        let (rows, n) = self.shape(gate);
        self.clock("geglu", Pass::Forward, width(n), geglu::cost(rows * n), |device| device.geglu(gate, up))
    }
}

impl<D: GegluBackward> GegluBackward for Profiled<D> {
    fn geglu_backward(&self, dy: &D::Buf, gate: &D::Buf, up: &D::Buf) -> (D::Buf, D::Buf) {
        let (rows, n) = self.shape(gate);
        let cost = geglu::cost_backward(rows * n);
        self.clock("geglu", Pass::Backward, width(n), cost, |device| device.geglu_backward(dy, gate, up))
    }
}

fn columns<W>(head: &ProfiledWeight<W>, columns: HeadColumns<'_>) -> usize {
    match columns {
        HeadColumns::Ids(ids) => ids.len(),
        HeadColumns::Full => head.rows,
    }
}

impl<D: AnswerHead> AnswerHead for Profiled<D> {
    fn answer_head(
        &self,
        h: &D::Buf,
        w: &Self::Weight,
        eps: f32,
        head: &Self::Weight,
        which: HeadColumns<'_>,
    ) -> D::Buf {
        let ((rows, hidden), count) = (self.shape(h), columns(head, which));
        let cost = answer_head::cost(rows, hidden, count, head.size);
        self.clock("answer_head", Pass::Forward, format!("columns={count}"), cost, |device| {
            device.answer_head(h, &w.inner, eps, &head.inner, which)
        })
    }
}

/// The head as the device within sees it.
fn head<'a, D: Backend>(given: Head<'a, Profiled<D>>) -> Head<'a, D> {
    Head { norm: &given.norm.inner, eps: given.eps, embedding: &given.embedding.inner }
}

/// `columns=262144 pairs=13`
fn of_vocabulary(vocab: usize, pairs: usize) -> String {
    if pairs == 0 { format!("columns={vocab}") } else { format!("columns={vocab} pairs={pairs}") }
}

impl<D: Vocabulary> Vocabulary for Profiled<D> {
    fn vocabulary(&self, h: &D::Buf, given: Head<'_, Self>, question: Question<'_>) -> Statistics {
        let ((rows, hidden), vocab, bytes) = (self.shape(h), given.embedding.rows, given.embedding.size);
        let cost = vocabulary::cost(rows, hidden, vocab, bytes, question, false);
        let shape = of_vocabulary(vocab, question.pairs.len());
        self.clock("vocabulary", Pass::Forward, shape, cost, |device| device.vocabulary(h, head(given), question))
    }
}

impl<D: VocabularyBackward> VocabularyBackward for Profiled<D> {
    fn vocabulary_means(&self, h: &D::Buf, given: Head<'_, Self>, question: Question<'_>) -> (Statistics, D::Buf) {
        let ((rows, hidden), vocab, bytes) = (self.shape(h), given.embedding.rows, given.embedding.size);
        let cost = vocabulary::cost(rows, hidden, vocab, bytes, question, true);
        let shape = of_vocabulary(vocab, question.pairs.len());
        self.clock("vocabulary", Pass::Forward, shape, cost, |device| device.vocabulary_means(h, head(given), question))
    }

    fn vocabulary_backward(
        &self,
        coefficients: Coefficients<'_>,
        means: &D::Buf,
        h: &D::Buf,
        given: Head<'_, Self>,
        ids: &[u32],
    ) -> D::Buf {
        let (rows, hidden) = self.shape(h);
        let pairs = vec![(0, 0); self.shape(means).0 - rows];
        let cost = vocabulary::cost_backward(rows, hidden, given.embedding.size, Question { ids, pairs: &pairs });
        let shape = of_vocabulary(given.embedding.rows, pairs.len());
        self.clock("vocabulary", Pass::Backward, shape, cost, |device| {
            device.vocabulary_backward(coefficients, means, h, head(given), ids)
        })
    }
}

impl<D: AnswerHeadBackward> AnswerHeadBackward for Profiled<D> {
    fn answer_head_backward(
        &self,
        dlogits: &D::Buf,
        h: &D::Buf,
        w: &Self::Weight,
        eps: f32,
        head: &Self::Weight,
        which: HeadColumns<'_>,
    ) -> D::Buf {
        let ((rows, hidden), count) = (self.shape(h), columns(head, which));
        let cost = answer_head::cost_backward(rows, hidden, count, head.size);
        self.clock("answer_head", Pass::Backward, format!("columns={count}"), cost, |device| {
            device.answer_head_backward(dlogits, h, &w.inner, eps, &head.inner, which)
        })
    }
}

impl<D: AdamW> AdamW for Profiled<D> {
    fn adamw(&self, params: &mut D::Buf, grads: &D::Buf, m: &mut D::Buf, v: &mut D::Buf, step: &AdamWStep) {
        let n = self.shape(params).1;
        self.clock("adamw", Pass::Forward, String::new(), adamw::cost(n), |device| {
            device.adamw(params, grads, m, v, step);
        });
    }

    fn sum_of_squares(&self, buf: &D::Buf) -> f64 {
        let n = self.shape(buf).1;
        let cost = adamw::cost_of_squares(n);
        self.clock("sum_of_squares", Pass::Forward, String::new(), cost, |device| device.sum_of_squares(buf))
    }
}
