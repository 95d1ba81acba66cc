//! Cases of answer_head.

use super::{HeadColumns, cost, cost_backward};
use crate::ops::case::{Benchmark, Case, Input, Output, fan_in, input, walk, weight};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use crate::weights::{Dtype, TensorView};
use std::hint::black_box;

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
    .map(|(rows, hidden, vocabulary, ids)| case(rows, hidden, vocabulary, ids))
    .collect()
}

/// Cases of back ends that work in tiles: rows around 8, 16, 32 and 64, columns around a block's, and a head stored in f32.
pub fn tiled() -> Vec<AnswerHeadCase> {
    let mut all = Vec::new();
    for rows in [1, 7, 8, 9, 16, 17, 31, 33, 64, 65] {
        for (hidden, vocabulary) in [(1, 2), (40, 127), (65, 128), (96, 300)] {
            all.push(case(rows, hidden, vocabulary, None));
            all.push(case(rows, hidden, vocabulary, Some(vec![1, 0, vocabulary as u32 - 1])));
        }
    }
    for rows in [3, 20] {
        all.push(stored(Dtype::F32, rows, 70, 130, None));
        all.push(stored(Dtype::F32, rows, 70, 130, Some(vec![129, 7])));
    }
    all
}

/// Answer rows against `vocab` rows of a head: a quarter of Gemma's vocabulary, which no cache holds.
pub fn benchmarks() -> Vec<Benchmark<AnswerHeadCase>> {
    vec![Benchmark {
        name: "answer_head",
        axes: &["rows", "hidden", "vocab"],
        points: &[&[5, 640, 65_536]],
        passes: &Pass::ALL,
        case: |at| Some(case(at[0], at[1], at[2], None)),
    }]
}

fn case(rows: usize, hidden: usize, vocabulary: usize, ids: Option<Vec<u32>>) -> AnswerHeadCase {
    stored(Dtype::Bf16, rows, hidden, vocabulary, ids)
}

fn stored(dtype: Dtype, rows: usize, hidden: usize, vocabulary: usize, ids: Option<Vec<u32>>) -> AnswerHeadCase {
    AnswerHeadCase {
        rows,
        w: weight("answer_head", "w", Dtype::Bf16, &[hidden], 1.0),
        head: weight("answer_head", "head", dtype, &[vocabulary, hidden], fan_in(hidden)),
        ids,
    }
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

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
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

    fn cost(&self, pass: Pass) -> Cost {
        let columns = self.ids.as_ref().map_or(self.head.shape[0], Vec::len);
        let of = match pass {
            Pass::Forward => cost,
            Pass::Backward => cost_backward,
        };
        of(self.rows, self.w.shape[0], columns, self.head.dtype.size())
    }

    fn timed<D: TrainDevice>(
        &self,
        device: &D,
        inputs: &[D::Buf],
        d_outputs: &[D::Buf],
        pass: Pass,
        clock: &mut dyn FnMut(&mut dyn FnMut()),
    ) {
        let w = device.weight(&self.w).expect("a weight in bf16 or f32");
        let head = device.weight(&self.head).expect("a head in bf16 or f32");
        let (h, columns) = (&inputs[0], self.columns());
        match pass {
            Pass::Forward => clock(&mut || drop(black_box(device.answer_head(h, &w, EPS, &head, columns)))),
            Pass::Backward => {
                let dlogits = &d_outputs[0];
                clock(&mut || drop(black_box(device.answer_head_backward(dlogits, h, &w, EPS, &head, columns))));
            }
        }
    }
}
