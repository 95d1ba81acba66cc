//! Cases of vocabulary.

use super::{Coefficients, Head, Question, Statistics, cost, cost_backward};
use crate::ops::case::{Benchmark, Case, Input, Output, fan_in, input, walk, weight};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use crate::weights::{Dtype, TensorView};
use std::hint::black_box;

/// Answer rows against a whole head.
pub struct VocabularyCase {
    rows: usize,
    norm: TensorView,
    embedding: TensorView,
    ids: Vec<u32>,
    pairs: Vec<(u32, u32)>,
}

const EPS: f32 = 1e-6;

/// All cases: vocabularies of less than a block, ragged, of many stripes; rows alone, pairs of a group, repeated ids.
pub fn cases() -> Vec<VocabularyCase> {
    let all = |n: u32| (0..n).flat_map(|i| (0..n).map(move |k| (i, k))).collect::<Vec<_>>();
    vec![
        case(1, 17, 3, &[1], &[]),
        case(1, 48, 512, &[111, 222], &[(0, 0)]),
        case(5, 40, 1000, &[999, 0, 5, 5], &all(5)),
        case(3, 41, 257, &[36], &[(0, 2), (2, 0), (0, 0), (2, 2)]),
        case(2, 640, 9000, &[222, 111], &all(2)),
        case(7, 72, 8193, &[3, 4], &[]),
    ]
}

/// Cases of back ends that work in tiles: rows around 8, 16, 32 and 64, and more than a block holds; a vocabulary around a block's columns.
pub fn tiled() -> Vec<VocabularyCase> {
    let mut all = Vec::new();
    for rows in [1, 7, 8, 9, 16, 17, 31, 33, 64, 65] {
        let chain: Vec<(u32, u32)> = (1..rows as u32).flat_map(|row| [(row - 1, row), (row, row - 1)]).collect();
        for (hidden, vocab) in [(1, 2), (40, 127), (65, 128), (96, 300)] {
            all.push(case(rows, hidden, vocab, &[1, 0], if vocab == 300 { &chain } else { &[] }));
        }
    }
    // A pair whose rows are far apart.
    all.push(case(130, 24, 129, &[5], &[(0, 129), (129, 0), (64, 3)]));
    all
}

/// Answer rows against a quarter of Gemma's vocabulary, which no cache holds: cross-entropy, and with every pair of a group.
pub fn benchmarks() -> Vec<Benchmark<VocabularyCase>> {
    vec![Benchmark {
        name: "vocabulary",
        axes: &["rows", "hidden", "vocab", "pairs"],
        points: &[&[5, 640, 65_536, 0], &[5, 640, 65_536, 13]],
        passes: &[Pass::Forward],
        case: |at| {
            let rows = at[0] as u32;
            let pairs = (0..rows).flat_map(|i| (0..rows).map(move |k| (i, k))).take(at[3]).collect::<Vec<_>>();
            (rows > 0 && at[1] > 0 && at[2] > 1).then(|| case(at[0], at[1], at[2], &[0, 1], &pairs))
        },
    }]
}

fn case(rows: usize, hidden: usize, vocab: usize, ids: &[u32], pairs: &[(u32, u32)]) -> VocabularyCase {
    VocabularyCase {
        rows,
        norm: weight("vocabulary", "w", Dtype::Bf16, &[hidden], 1.0),
        embedding: weight("vocabulary", "head", Dtype::Bf16, &[vocab, hidden], fan_in(hidden)),
        ids: ids.to_vec(),
        pairs: pairs.to_vec(),
    }
}

impl VocabularyCase {
    fn question(&self) -> Question<'_> {
        Question { ids: &self.ids, pairs: &self.pairs }
    }

    /// Calls `then` with the head as a device sees it.
    pub fn with_head<D: Device, T>(&self, device: &D, then: impl FnOnce(Head<'_, D>, Question<'_>) -> T) -> T {
        let norm = device.weight(&self.norm).expect("a weight in bf16 or f32");
        let embedding = device.weight(&self.embedding).expect("a head in bf16 or f32");
        then(Head { norm: &norm, eps: EPS, embedding: &embedding }, self.question())
    }

    /// Statistics of rows, logits, and statistics of pairs.
    fn outputs<D: Device>(&self, device: &D, statistics: &Statistics) -> Vec<Output<D::Buf>> {
        // In two parts, so that a device in f64 keeps the digits that finite differences need.
        let upload = |rows: usize, values: &[f64]| {
            let cols = values.len() / rows;
            let near: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            let rest: Vec<f32> =
                values.iter().zip(&near).map(|(value, near)| (value - f64::from(*near)) as f32).collect();
            let mut sum = device.upload(rows, cols, &near);
            device.add_assign(&mut sum, &device.upload(rows, cols, &rest));
            sum
        };
        let mut outputs = vec![
            Output::new("log_sum", upload(self.rows, &statistics.log_sum)),
            Output::new("logits", upload(self.rows, &statistics.logits)),
        ];
        if !self.pairs.is_empty() {
            outputs.push(Output::side("cross", upload(1, &statistics.cross)));
        }
        outputs
    }

    fn columns(&self) -> usize {
        self.rows + self.pairs.len()
    }
}

impl Case for VocabularyCase {
    fn name(&self) -> String {
        format!("vocabulary rows={} head={:?} pairs={}", self.rows, self.embedding.shape, self.pairs.len())
    }

    fn inputs(&self) -> Vec<Input> {
        vec![input(&self.name(), "h", self.rows, self.norm.shape[0], 8.0)]
    }

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let statistics = self.with_head(device, |head, question| device.vocabulary(&inputs[0], head, question));
        self.outputs(device, &statistics)
    }

    fn training_forward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let (statistics, means) =
            self.with_head(device, |head, question| device.vocabulary_means(&inputs[0], head, question));
        let mut outputs = self.outputs(device, &statistics);
        outputs.push(Output::side("means", means));
        outputs
    }

    /// Of Σ d·log_sum + Σ d·logits: the means of the rows, and rows of the head.
    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let h = &inputs[0];
        let d_log_sum = device.download(&d_outputs[0]);
        let logits: Vec<f32> = device.download(&d_outputs[1]).into_iter().map(|d| d as f32).collect();
        let mut coefficients = vec![0.0; self.rows * self.columns()];
        for (row, d) in d_log_sum.into_iter().enumerate() {
            coefficients[row * self.columns() + row] = d as f32;
        }
        vec![Some(self.with_head(device, |head, question| {
            let means = device.vocabulary_means(h, head, question).1;
            let coefficients = Coefficients { means: &coefficients, logits: &logits };
            device.vocabulary_backward(coefficients, &means, h, head, question.ids)
        }))]
    }

    /// The norm's roundings, then the longer of the two chains: hidden into a logit, a block of the vocabulary out of it. A logit's
    /// error is that of an exponent.
    fn bound(&self) -> f64 {
        16.0 * walk(self.norm.shape[0].max(self.embedding.shape[0].min(8192)) + 40)
    }

    fn cost(&self, pass: Pass) -> Cost {
        let (hidden, vocab) = (self.norm.shape[0], self.embedding.shape[0]);
        let bytes = self.embedding.dtype.size();
        match pass {
            Pass::Forward => cost(self.rows, hidden, vocab, bytes, self.question(), true),
            Pass::Backward => cost_backward(self.rows, hidden, bytes, self.question()),
        }
    }

    fn timed<D: TrainDevice>(
        &self,
        device: &D,
        inputs: &[D::Buf],
        _: &[D::Buf],
        pass: Pass,
        clock: &mut dyn FnMut(&mut dyn FnMut()),
    ) {
        let h = &inputs[0];
        self.with_head(device, |head, question| match pass {
            Pass::Forward => clock(&mut || drop(black_box(device.vocabulary_means(h, head, question)))),
            Pass::Backward => {
                let means = device.vocabulary_means(h, head, question).1;
                let of_means = vec![0.5; self.rows * self.columns()];
                let of_logits = vec![0.5; self.rows * self.ids.len()];
                let coefficients = Coefficients { means: &of_means, logits: &of_logits };
                clock(&mut || {
                    drop(black_box(device.vocabulary_backward(coefficients, &means, h, head, question.ids)));
                });
            }
        });
    }
}
