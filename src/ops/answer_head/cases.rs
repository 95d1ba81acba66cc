//! Cases of answer_head.

use super::HeadColumns;
use crate::ops::TrainDevice;
use crate::ops::case::{Case, Input, Output, fan_in, input, walk, weight};
use crate::weights::{Dtype, TensorView};

/// Answer rows against some or all rows of a head.
pub struct AnswerHeadCase {
    rows: usize,
    w: TensorView,
    head: TensorView,
    ids: Option<Vec<u32>>,
}

const EPS: f32 = 1e-6;

/// All cases: yes/no ids, repeated and unordered ids, the whole vocabulary.
pub fn cases() -> Vec<AnswerHeadCase> {
    [
        (1, 48, 512, Some(vec![111, 222])),
        (5, 40, 512, None),
        (3, 41, 37, Some(vec![36, 0, 5, 5, 12])),
        (1, 17, 3, None),
        (6, 640, 300, Some(vec![222, 111])),
        (2, 640, 700, None),
    ]
    .into_iter()
    .map(|(rows, hidden, vocabulary, ids)| AnswerHeadCase {
        rows,
        w: weight("answer_head", "w", Dtype::Bf16, &[hidden], 1.0),
        head: weight("answer_head", "head", Dtype::Bf16, &[vocabulary, hidden], fan_in(hidden)),
        ids,
    })
    .collect()
}

impl AnswerHeadCase {
    fn columns(&self) -> HeadColumns<'_> {
        self.ids.as_deref().map_or(HeadColumns::Full, HeadColumns::Ids)
    }
}

impl Case for AnswerHeadCase {
    fn name(&self) -> String {
        format!("answer_head rows={} head={:?} columns={:?}", self.rows, self.head.shape, self.columns())
    }

    fn inputs(&self) -> Vec<Input> {
        vec![input(&self.name(), "h", self.rows, self.w.shape[0], 8.0)]
    }

    fn forward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        let head = device.weight(&self.head).expect("a head in bf16 or f32");
        vec![Output::new("logits", device.answer_head(&inputs[0], &w, EPS, &head, self.columns()))]
    }

    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        let head = device.weight(&self.head).expect("a head in bf16 or f32");
        vec![Some(device.answer_head_backward(&d_outputs[0], &inputs[0], &w, EPS, &head, self.columns()))]
    }

    /// The norm's roundings, then the longer of the two chains: hidden forward, columns backward.
    fn bound(&self) -> f64 {
        let columns = self.ids.as_ref().map_or(self.head.shape[0], Vec::len);
        walk(self.w.shape[0].max(columns) + 20)
    }

    fn flops(&self) -> f64 {
        let columns = self.ids.as_ref().map_or(self.head.shape[0], Vec::len);
        2.0 * (self.rows * columns * self.w.shape[0]) as f64
    }
}
