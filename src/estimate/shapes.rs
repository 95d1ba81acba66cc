//! A device without values: every operation returns a buffer of the right shape, and the bytes of live buffers are counted.
//! Running a model on it, with [`crate::profile::Profiled`] around it, says what a step will hold and compute before any
//! weight is read, by the very code that will run.

use crate::batch::AttentionPlan;
use crate::ops::adamw::{AdamW, AdamWStep};
use crate::ops::answer_head::{AnswerHead, AnswerHeadBackward, HeadColumns};
use crate::ops::attention::{Attention, AttentionBackward, AttentionGradients, AttentionOutput, AttentionShape};
use crate::ops::cost::F32;
use crate::ops::embed::Embed;
use crate::ops::gated_linear::{GatedLinear, GatedOutput, Kept};
use crate::ops::geglu::{Geglu, GegluBackward};
use crate::ops::lora_linear::{LinearOutput, LoraLinear, LoraLinearBackward, Part, Store};
use crate::ops::norm::{Norm, NormBackward};
use crate::ops::qk_norm_rope::{QkNormRope, QkNormRopeBackward};
use crate::ops::vocabulary::{Coefficients, Head, Question, Statistics, Vocabulary, VocabularyBackward};
use crate::ops::{Backend, Error};
use crate::weights::TensorView;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The device.
#[derive(Clone, Default)]
pub struct Shapes {
    live: Arc<Live>,
}

/// Bytes of live buffers.
#[derive(Default)]
struct Live {
    now: AtomicU64,
    most: AtomicU64,
    /// Most elements that went to the host at once.
    downloaded: AtomicU64,
}

/// A shape that counts.
pub struct ShapeBuf {
    rows: usize,
    cols: usize,
    live: Arc<Live>,
}

impl ShapeBuf {
    fn bytes(&self) -> u64 {
        (self.rows * self.cols * F32) as u64
    }
}

impl Drop for ShapeBuf {
    fn drop(&mut self) {
        self.live.now.fetch_sub(self.bytes(), Relaxed);
    }
}

/// A weight's shape.
pub struct ShapeWeight {
    rows: usize,
    cols: usize,
}

impl Shapes {
    /// Most bytes that buffers held at once since the last [`Shapes::restart`].
    pub fn most_bytes(&self) -> u64 {
        self.live.most.load(Relaxed)
    }

    /// Bytes that buffers hold now.
    pub fn bytes(&self) -> u64 {
        self.live.now.load(Relaxed)
    }

    /// Most elements that were downloaded at once.
    pub fn most_downloaded(&self) -> u64 {
        self.live.downloaded.load(Relaxed)
    }

    /// Counts maxima from here on.
    pub fn restart(&self) {
        self.live.most.store(self.bytes(), Relaxed);
        self.live.downloaded.store(0, Relaxed);
    }

    fn like(&self, buf: &ShapeBuf) -> ShapeBuf {
        self.zeros(buf.rows, buf.cols)
    }
}

impl Backend for Shapes {
    type Buf = ShapeBuf;
    type Weight = ShapeWeight;

    fn weight(&self, view: &TensorView) -> Result<ShapeWeight, Error> {
        let rows = if view.shape.len() < 2 { 1 } else { view.shape[0] };
        Ok(ShapeWeight { rows, cols: view.elements() / rows.max(1) })
    }

    fn zeros(&self, rows: usize, cols: usize) -> ShapeBuf {
        let buf = ShapeBuf { rows, cols, live: Arc::clone(&self.live) };
        let now = self.live.now.fetch_add(buf.bytes(), Relaxed) + buf.bytes();
        self.live.most.fetch_max(now, Relaxed);
        buf
    }

    fn upload(&self, rows: usize, cols: usize, _: &[f32]) -> ShapeBuf {
        self.zeros(rows, cols)
    }

    /// Zeros.
    fn download(&self, buf: &ShapeBuf) -> Vec<f64> {
        let elements = buf.rows * buf.cols;
        self.live.downloaded.fetch_max(elements as u64, Relaxed);
        vec![0.0; elements]
    }

    fn shape(&self, buf: &ShapeBuf) -> (usize, usize) {
        (buf.rows, buf.cols)
    }

    fn duplicate(&self, buf: &ShapeBuf) -> ShapeBuf {
        self.like(buf)
    }

    fn add_assign(&self, _: &mut ShapeBuf, _: &ShapeBuf) {}

    fn gather_rows(&self, source: &ShapeBuf, rows: &[u32]) -> ShapeBuf {
        self.zeros(rows.len(), source.cols)
    }

    fn scatter_add_rows(&self, _: &mut ShapeBuf, _: &ShapeBuf, _: &[u32]) {}

    fn describe(&self) -> String {
        "shapes".into()
    }

    fn unit(&self) -> String {
        "shapes".into()
    }
}

impl Embed for Shapes {
    fn embed(&self, table: &ShapeWeight, ids: &[u32], _: f32) -> ShapeBuf {
        self.zeros(ids.len(), table.cols)
    }
}

impl Norm for Shapes {
    fn norm(&self, x: &ShapeBuf, _: &ShapeWeight, _: f32) -> ShapeBuf {
        self.like(x)
    }

    fn norm_add(&self, h: &ShapeBuf, _: &ShapeBuf, _: &ShapeWeight, _: f32) -> ShapeBuf {
        self.like(h)
    }

    fn branch_norm(&self, branch: &ShapeBuf, _: &ShapeWeight, _: f32) -> ShapeBuf {
        self.like(branch)
    }
}

impl NormBackward for Shapes {
    fn norm_backward(&self, _: &ShapeBuf, x: &ShapeBuf, _: &ShapeWeight, _: f32) -> ShapeBuf {
        self.like(x)
    }
}

impl LoraLinear for Shapes {
    fn lora_linear(&self, x: &ShapeBuf, parts: &[Part<'_, Self>], _: Store) -> LinearOutput<ShapeBuf> {
        LinearOutput {
            y: parts.iter().map(|part| self.zeros(x.rows, part.weight.rows)).collect(),
            su: parts.iter().map(|part| part.lora.as_ref().map(|term| self.zeros(x.rows, term.rank))).collect(),
        }
    }
}

impl LoraLinearBackward for Shapes {
    fn lora_linear_backward(
        &self,
        dy: &[&ShapeBuf],
        _: Option<&ShapeBuf>,
        _: &[Option<ShapeBuf>],
        parts: &[Part<'_, Self>],
        _: Option<&mut ShapeBuf>,
        need_dx: bool,
    ) -> Option<ShapeBuf> {
        let (rows, inputs) = (dy.first()?.rows, parts.first()?.weight.cols);
        need_dx.then(|| self.zeros(rows, inputs))
    }
}

impl QkNormRope for Shapes {
    fn qk_norm_rope(&self, x: &ShapeBuf, _: &ShapeWeight, _: f32, _: &ShapeBuf, _: usize) -> ShapeBuf {
        self.like(x)
    }
}

impl QkNormRopeBackward for Shapes {
    fn qk_norm_rope_backward(
        &self,
        _: &ShapeBuf,
        x: &ShapeBuf,
        _: &ShapeWeight,
        _: f32,
        _: &ShapeBuf,
        _: usize,
    ) -> ShapeBuf {
        self.like(x)
    }
}

impl Attention for Shapes {
    fn attention(
        &self,
        shape: &AttentionShape,
        _: &AttentionPlan,
        q: &ShapeBuf,
        _: &ShapeBuf,
        _: &ShapeBuf,
    ) -> AttentionOutput<ShapeBuf> {
        AttentionOutput { o: self.like(q), softmax: self.zeros(q.rows, 2 * shape.heads) }
    }
}

impl AttentionBackward for Shapes {
    fn attention_backward(
        &self,
        _: &AttentionShape,
        _: &AttentionPlan,
        q: &ShapeBuf,
        k: &ShapeBuf,
        v: &ShapeBuf,
        _: &AttentionOutput<ShapeBuf>,
        _: &ShapeBuf,
    ) -> AttentionGradients<ShapeBuf> {
        AttentionGradients { dq: self.like(q), dk: self.like(k), dv: self.like(v) }
    }
}

impl Geglu for Shapes {
    fn geglu(&self, gate: &ShapeBuf, _: &ShapeBuf) -> ShapeBuf {
        self.like(gate)
    }
}

impl GatedLinear for Shapes {
    fn gated_linear(&self, x: &ShapeBuf, parts: &[Part<'_, Self>; 2], keep: bool) -> GatedOutput<ShapeBuf> {
        let kept = if keep {
            let output = self.lora_linear(x, parts, Store::Full);
            let mut y = output.y.into_iter();
            y.next().zip(y.next()).map(|(gate, up)| Kept { gate, up, su: output.su })
        } else {
            None
        };
        GatedOutput { act: self.zeros(x.rows, parts[0].weight.rows), kept }
    }
}

impl GegluBackward for Shapes {
    fn geglu_backward(&self, _: &ShapeBuf, gate: &ShapeBuf, up: &ShapeBuf) -> (ShapeBuf, ShapeBuf) {
        (self.like(gate), self.like(up))
    }
}

impl AnswerHead for Shapes {
    fn answer_head(
        &self,
        h: &ShapeBuf,
        _: &ShapeWeight,
        _: f32,
        head: &ShapeWeight,
        columns: HeadColumns<'_>,
    ) -> ShapeBuf {
        let count = match columns {
            HeadColumns::Ids(ids) => ids.len(),
            HeadColumns::Full => head.rows,
        };
        self.zeros(h.rows, count)
    }
}

impl AnswerHeadBackward for Shapes {
    fn answer_head_backward(
        &self,
        _: &ShapeBuf,
        h: &ShapeBuf,
        _: &ShapeWeight,
        _: f32,
        _: &ShapeWeight,
        _: HeadColumns<'_>,
    ) -> ShapeBuf {
        self.like(h)
    }
}

/// Statistics of rows about which nothing is known.
fn statistics(rows: usize, question: Question<'_>) -> Statistics {
    Statistics {
        log_sum: vec![0.0; rows],
        logits: vec![0.0; rows * question.ids.len()],
        cross: vec![0.0; question.pairs.len()],
    }
}

impl Vocabulary for Shapes {
    fn vocabulary(&self, h: &ShapeBuf, _: Head<'_, Self>, question: Question<'_>) -> Statistics {
        statistics(h.rows, question)
    }
}

impl VocabularyBackward for Shapes {
    fn vocabulary_means(&self, h: &ShapeBuf, _: Head<'_, Self>, question: Question<'_>) -> (Statistics, ShapeBuf) {
        (statistics(h.rows, question), self.zeros(h.rows + question.pairs.len(), h.cols))
    }

    fn vocabulary_backward(
        &self,
        _: Coefficients<'_>,
        _: &ShapeBuf,
        h: &ShapeBuf,
        _: Head<'_, Self>,
        _: &[u32],
    ) -> ShapeBuf {
        self.like(h)
    }
}

impl AdamW for Shapes {
    fn adamw(&self, _: &mut ShapeBuf, _: &ShapeBuf, _: &mut ShapeBuf, _: &mut ShapeBuf, _: &AdamWStep) {}

    fn sum_of_squares(&self, _: &ShapeBuf) -> f64 {
        0.0
    }
}
