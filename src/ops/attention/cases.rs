//! Cases of attention, and a small builder of plans from the rule itself (position by position).

use super::{AttentionOutput, AttentionShape, cost, cost_backward};
use crate::batch::{AttentionPlan, KeySpans, QuerySegment};
use crate::ops::case::{Benchmark, Case, Input, Output, input, walk};
use crate::ops::{Cost, Device, Pass, TrainDevice};
use std::hint::black_box;
use std::ops::Range;

/// One tree: lengths of its prefix and suffixes, and the positions of an image in it.
#[derive(Clone, Debug)]
pub struct TreeShape {
    /// Rows of the prefix.
    pub prefix: usize,
    /// Rows of each suffix.
    pub suffixes: Vec<usize>,
    /// Positions that see each other both ways; within the prefix or within every suffix.
    pub image: Option<Range<usize>>,
}

/// Which rows ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// All.
    All,
    /// The last row of each suffix.
    Answers,
}

/// The plan of some trees: position i sees j ≤ i with i − j < window, and its own image.
pub fn plan(trees: &[TreeShape], window: Option<usize>, queries: Queries) -> AttentionPlan {
    let mut plan = AttentionPlan { segments: Vec::new(), spans: Vec::new(), key_rows: 0, trees: Vec::new() };
    for (index, tree) in trees.iter().enumerate() {
        let first = plan.key_rows;
        let prefix = first..first + tree.prefix;
        let mut end = prefix.end;
        let mut segments = vec![(prefix.clone(), end..end)];
        for &length in &tree.suffixes {
            segments.push((prefix.clone(), end..end + length));
            end += length;
        }
        for (number, (prefix, suffix)) in segments.into_iter().enumerate() {
            let own = if number == 0 { &prefix } else { &suffix };
            let asked = match queries {
                Queries::All => own.clone(),
                Queries::Answers if number == 0 => own.end..own.end,
                Queries::Answers => own.end - 1..own.end,
            };
            if asked.is_empty() {
                continue;
            }
            let start = plan.spans.len();
            for row in asked {
                let position = if number == 0 { row - first } else { tree.prefix + row - suffix.start };
                let mut lo = window.map_or(0, |window| (position + 1).saturating_sub(window));
                let mut hi = position + 1;
                if let Some(image) = tree.image.as_ref().filter(|image| image.contains(&position)) {
                    (lo, hi) = (lo.min(image.start), hi.max(image.end));
                }
                let place = |at: usize| at.min(tree.prefix) + first;
                let beyond = |at: usize| at.saturating_sub(tree.prefix) + suffix.start;
                let [lo0, hi0, lo1, hi1] = [place(lo), place(hi), beyond(lo), beyond(hi)].map(|at| at as u32);
                plan.spans.push(KeySpans { lo0, hi0, lo1, hi1 });
            }
            plan.segments.push(QuerySegment { queries: start..plan.spans.len(), prefix, suffix, tree: index });
        }
        plan.key_rows = end;
        plan.trees.push(first..end);
    }
    plan
}

/// Heads over a plan.
pub struct AttentionCase {
    /// Head layout.
    pub shape: AttentionShape,
    /// The batch.
    pub trees: Vec<TreeShape>,
    /// Sliding window.
    pub window: Option<usize>,
    /// Which rows ask.
    pub queries: Queries,
}

fn tree(prefix: usize, suffixes: &[usize], image: Option<Range<usize>>) -> TreeShape {
    TreeShape { prefix, suffixes: suffixes.to_vec(), image }
}

/// All cases.
pub fn cases() -> Vec<AttentionCase> {
    let case = |heads, kv_heads, head_dim: usize, trees: Vec<TreeShape>, window, queries| AttentionCase {
        shape: AttentionShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() },
        trees,
        window,
        queries,
    };
    let five = || vec![tree(40, &[5, 1, 9, 17, 6], None)];
    let several = || vec![tree(19, &[4, 7], None), tree(0, &[23], None), tree(33, &[1, 2, 16], None)];
    let images = || vec![tree(30, &[6, 9], Some(4..20)), tree(3, &[12, 14], Some(5..11)), tree(21, &[3], Some(0..21))];
    vec![
        case(1, 1, 16, vec![tree(0, &[1], None)], None, Queries::All),
        case(2, 1, 12, vec![tree(7, &[], None)], None, Queries::All),
        case(4, 2, 16, five(), None, Queries::All),
        case(4, 2, 16, five(), Some(8), Queries::All),
        case(4, 2, 16, five(), None, Queries::Answers),
        case(4, 2, 16, five(), Some(8), Queries::Answers),
        case(3, 1, 20, several(), None, Queries::All),
        case(3, 3, 20, several(), Some(5), Queries::All),
        case(3, 1, 32, images(), None, Queries::All),
        case(3, 1, 32, images(), Some(6), Queries::All),
        case(3, 1, 32, images(), Some(1), Queries::Answers),
        case(3, 1, 32, images(), Some(2), Queries::Answers),
        case(2, 1, 12, vec![tree(150, &[70, 3], None), tree(0, &[90], None)], Some(33), Queries::All),
        case(4, 1, 256, vec![tree(37, &[9, 11], None)], None, Queries::All),
        case(8, 4, 256, vec![tree(70, &[3], Some(2..66))], Some(20), Queries::All),
    ]
}

/// One group: a prefix and equal suffixes; a window of 0 is none.
pub fn benchmarks() -> Vec<Benchmark<AttentionCase>> {
    vec![Benchmark {
        name: "attention",
        axes: &["prefix", "suffix", "phrasings", "heads", "kv_heads", "head_dim", "window"],
        points: &[&[300, 24, 5, 4, 1, 256, 0], &[300, 24, 5, 4, 1, 256, 128]],
        passes: &Pass::ALL,
        case: |at| {
            let [prefix, suffix, phrasings, heads, kv_heads, head_dim, window] = *at else { return None };
            let whole = suffix > 0 && kv_heads > 0 && head_dim % 2 == 0 && heads % kv_heads == 0;
            whole.then(|| AttentionCase {
                shape: AttentionShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() },
                trees: vec![tree(prefix, &vec![suffix; phrasings], None)],
                window: (window > 0).then_some(window),
                queries: Queries::All,
            })
        },
    }]
}

impl AttentionCase {
    /// Its plan.
    pub fn plan(&self) -> AttentionPlan {
        plan(&self.trees, self.window, self.queries)
    }

    /// The same heads over one tree of the batch alone.
    pub fn alone(&self, tree: usize) -> Self {
        Self { trees: vec![self.trees[tree].clone()], ..*self }
    }

    fn run<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> AttentionOutput<D::Buf> {
        device.attention(&self.shape, &self.plan(), &inputs[0], &inputs[1], &inputs[2])
    }
}

impl Case for AttentionCase {
    fn name(&self) -> String {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let trees: Vec<String> = self
            .trees
            .iter()
            .map(|tree| {
                let suffixes: Vec<String> = tree.suffixes.iter().map(usize::to_string).collect();
                let image = tree.image.as_ref().map_or(String::new(), |image| format!(" image {image:?}"));
                format!("{}[{}]{image}", tree.prefix, suffixes.join(","))
            })
            .collect();
        let window = self.window.map_or("none".into(), |window| window.to_string());
        let (trees, queries) = (trees.join(" "), self.queries);
        format!(
            "attention heads={heads}/{kv_heads} head_dim={head_dim} window={window} queries={queries:?} trees={trees}"
        )
    }

    fn inputs(&self) -> Vec<Input> {
        let (plan, name) = (self.plan(), self.name());
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        vec![
            input(&name, "q", plan.spans.len(), heads * head_dim, 1.0),
            input(&name, "k", plan.key_rows, kv_heads * head_dim, 1.0),
            input(&name, "v", plan.key_rows, kv_heads * head_dim, 1.0),
        ]
    }

    fn forward<D: Device>(&self, device: &D, inputs: &[D::Buf]) -> Vec<Output<D::Buf>> {
        let AttentionOutput { o, softmax } = self.run(device, inputs);
        vec![Output::new("o", o), Output::side("softmax", softmax)]
    }

    fn backward<D: TrainDevice>(&self, device: &D, inputs: &[D::Buf], d_outputs: &[D::Buf]) -> Vec<Option<D::Buf>> {
        let output = self.run(device, inputs);
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        let gradients = device.attention_backward(&self.shape, &self.plan(), q, k, v, &output, &d_outputs[0]);
        vec![Some(gradients.dq), Some(gradients.dk), Some(gradients.dv)]
    }

    /// A score is a chain over head_dim of values below 4·scale·√head_dim ≤ 8, whose absolute error is p's relative one: the walk
    /// of head_dim roundings, eightfold; then the longest chain over keys or queries.
    fn bound(&self) -> f64 {
        let plan = self.plan();
        8.0 * walk(self.shape.head_dim + 16) + walk(plan.key_rows.max(plan.spans.len()))
    }

    /// With one visible key p is 1 whatever the score, so dz = do·v − δ is 0; its terms are Σ do·v ≈ √head_dim, and dq and
    /// dk take them times scale = 1/√head_dim.
    fn cancelling(&self) -> f64 {
        let single = |s: &KeySpans| s.hi0 - s.lo0 + s.hi1 - s.lo1 == 1;
        if self.plan().spans.iter().all(single) { 1.0 } else { 0.0 }
    }

    fn checks_gradient(&self) -> bool {
        self.shape.head_dim < 100
    }

    fn cost(&self, pass: Pass) -> Cost {
        match pass {
            Pass::Forward => cost(&self.shape, &self.plan()),
            Pass::Backward => cost_backward(&self.shape, &self.plan()),
        }
    }

    fn timed<D: TrainDevice>(
        &self,
        device: &D,
        inputs: &[D::Buf],
        d_outputs: &[D::Buf],
        pass: Pass,
        clock: &mut dyn FnMut(&mut dyn FnMut()),
    ) {
        let (shape, plan, [q, k, v]) = (&self.shape, &self.plan(), [0, 1, 2].map(|which| &inputs[which]));
        match pass {
            Pass::Forward => clock(&mut || _ = black_box(device.attention(shape, plan, q, k, v).o)),
            Pass::Backward => {
                let output = device.attention(shape, plan, q, k, v);
                let d_o = &d_outputs[0];
                clock(&mut || _ = black_box(device.attention_backward(shape, plan, q, k, v, &output, d_o).dq));
            }
        }
    }
}
