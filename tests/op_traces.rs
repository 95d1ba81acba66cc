//! Every operation of one sliding and one full layer against what Hugging Face recorded (`tests/goldens`): each takes
//! the recorded input of its place, so an error names the operation.

use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use unflip::cpu::{Cpu, Isa};
use unflip::ops::TrainDevice;
use unflip::ops::adamw::AdamWStep;
use unflip::ops::answer_head::HeadColumns;
use unflip::ops::attention::AttentionShape;
use unflip::ops::attention::cases::{Queries, TreeShape, plan};
use unflip::ops::lora_linear::{Part, Store};
use unflip::ops::reference::{Precision, Reference};
use unflip::weights::{Dtype, TensorView};

/// The largest error of one operation, as a share of its output's largest value: both sides compute in float32, Hugging Face
/// sums in an order of its own, and a product here has at most 96 terms (an operation's walk of 100 roundings is 2.4e-6).
const SHARE: f64 = 2.5e-6;

const EPS: f32 = 1e-6;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// All tensors of a safetensors file or of every one in a folder.
fn tensors(path: &Path) -> BTreeMap<String, TensorView> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        files = entries.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    }
    let mut all = BTreeMap::new();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let dtype = match tensor.dtype() {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::BF16 => Dtype::Bf16,
                safetensors::Dtype::I64 => Dtype::I64,
                safetensors::Dtype::U8 => Dtype::U8,
                other => panic!("{name}: {other:?}"),
            };
            let view = TensorView::from_bytes(&name, dtype, tensor.shape(), tensor.data()).unwrap();
            all.insert(name, view);
        }
    }
    all
}

/// One model's recorded results and weights, on a device.
struct Trace<'a, D: TrainDevice> {
    device: &'a D,
    weights: BTreeMap<String, TensorView>,
    recorded: BTreeMap<String, TensorView>,
    prefix: &'static str,
    name: String,
}

impl<D: TrainDevice> Trace<'_, D> {
    fn weight(&self, name: &str) -> D::Weight {
        self.device.weight(&self.weights[&format!("{}model.{name}", self.prefix)]).unwrap()
    }

    fn recorded(&self, name: &str) -> &TensorView {
        &self.recorded[&format!("seq1.{name}")]
    }

    /// A recorded tensor `[rows, …]`.
    fn input(&self, name: &str) -> D::Buf {
        let view = self.recorded(name);
        self.device.upload(view.shape[0], view.elements() / view.shape[0], &view.to_f32())
    }

    fn check(&self, name: &str, found: &D::Buf) {
        let expected: Vec<f64> = self.recorded(name).to_f32().into_iter().map(f64::from).collect();
        self.compare(name, &self.device.download(found), &expected);
    }

    fn compare(&self, name: &str, found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{} {name}", self.name);
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                (a - b).abs() <= SHARE * largest,
                "{} {name}[{i}] on {}: {a}, recorded {b}, of {largest}",
                self.name,
                self.device.describe(),
            );
        }
    }

    fn linear(&self, x: &D::Buf, names: &[String]) -> Vec<D::Buf> {
        let weights: Vec<D::Weight> = names.iter().map(|name| self.weight(&format!("{name}.weight"))).collect();
        let parts: Vec<Part<'_, D>> = weights.iter().map(|weight| Part { weight, lora: None }).collect();
        self.device.lora_linear(x, &parts, Store::Full).y
    }
}

/// Angles in f32 as Hugging Face computes them.
fn rope(rows: usize, head_dim: usize, theta: f32, factor: f32) -> Vec<f32> {
    let half = head_dim / 2;
    let mut table = Vec::new();
    for row in 0..rows {
        let angle = |j: usize| row as f32 * (1.0 / theta.powf((2 * j) as f32 / head_dim as f32) / factor);
        table.extend((0..half).map(|j| angle(j).cos()));
        table.extend((0..half).map(|j| angle(j).sin()));
    }
    table
}

struct Model {
    folder: &'static str,
    prefix: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    query_scale: f32,
    window: usize,
    global_factor: f32,
}

const MODELS: [Model; 3] = [
    Model {
        folder: "text",
        prefix: "",
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        query_scale: 24.0,
        window: 8,
        global_factor: 1.0,
    },
    Model {
        folder: "vlm",
        prefix: "language_model.",
        heads: 3,
        kv_heads: 1,
        head_dim: 32,
        query_scale: 20.0,
        window: 6,
        global_factor: 8.0,
    },
    Model {
        folder: "wide/vlm",
        prefix: "language_model.",
        heads: 3,
        kv_heads: 1,
        head_dim: 32,
        query_scale: 20.0,
        window: 6,
        global_factor: 8.0,
    },
];

fn check_layer<D: TrainDevice>(trace: &Trace<'_, D>, model: &Model, layer: usize, window: Option<usize>) {
    let device = trace.device;
    let at = |name: &str| format!("trace.layer_{layer:02}.{name}");
    let weight = |name: &str| trace.weight(&format!("layers.{layer}.{name}.weight"));
    let named = |names: &[&str]| names.iter().map(|name| format!("layers.{layer}.{name}")).collect::<Vec<_>>();
    let rows = trace.recorded("hidden.embed").shape[0];

    let h = trace.input(&format!("hidden.layer_{:02}", layer - 1));
    trace.check(&at("input_norm"), &device.norm(&h, &weight("input_layernorm"), EPS));

    let projections = named(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
    let qkv = trace.linear(&trace.input(&at("input_norm")), &projections);
    trace.check(&at("v"), &qkv[2]);

    let (theta, factor) = if window.is_some() { (10_000.0, 1.0) } else { (1_000_000.0, model.global_factor) };
    let table = device.upload(rows, model.head_dim, &rope(rows, model.head_dim, theta, factor));
    // Angle 0: the norm alone, recorded as [heads, rows, head_dim].
    let still = device.upload(rows, model.head_dim, &rope(1, model.head_dim, theta, factor).repeat(rows));
    for (part, short, heads) in [(0, "q", model.heads), (1, "k", model.kv_heads)] {
        let w = weight(&format!("self_attn.{short}_norm"));
        let turned = device.qk_norm_rope(&qkv[part], &w, EPS, &table, model.head_dim);
        trace.check(&at(&format!("{short}_rope")), &turned);
        let normed = device.download(&device.qk_norm_rope(&qkv[part], &w, EPS, &still, model.head_dim));
        let recorded = trace.recorded(&at(&format!("{short}_normed"))).to_f32();
        let by_row = |i: usize| {
            let (row, head, d) = (i / (heads * model.head_dim), i / model.head_dim % heads, i % model.head_dim);
            f64::from(recorded[(head * rows + row) * model.head_dim + d])
        };
        let expected: Vec<f64> = (0..normed.len()).map(by_row).collect();
        trace.compare(&at(&format!("{short}_normed")), &normed, &expected);
    }

    let image = trace.recorded.get("seq1.token_type_ids").map(|kinds| {
        let kinds = kinds.to_f32();
        let first = kinds.iter().position(|&kind| kind == 1.0).unwrap();
        first..first + kinds.iter().filter(|&&kind| kind == 1.0).count()
    });
    let shape = AttentionShape {
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        scale: 1.0 / model.query_scale.sqrt(),
    };
    let (q, k, v) = (trace.input(&at("q_rope")), trace.input(&at("k_rope")), trace.input(&at("v")));
    // As one phrasing alone, and as a tree whose only suffix is the end.
    for suffix in [rows, 3] {
        let tree = TreeShape { prefix: rows - suffix, suffixes: vec![suffix], image: image.clone() };
        let output = device.attention(&shape, &plan(&[tree], window, Queries::All), &q, &k, &v);
        trace.check(&at("attn_out"), &output.o);
        check_probabilities(trace, model, &at("attn_probs"), &device.download(&output.softmax), &q, &k, shape.scale);
    }

    let o = trace.linear(&trace.input(&at("attn_out")), &named(&["self_attn.o_proj"]));
    trace.check(&at("o_proj"), &o[0]);
    let branch = trace.input(&at("o_proj"));
    let w = weight("post_attention_layernorm");
    trace.check(&at("post_attn_norm"), &device.branch_norm(&branch, &w, EPS));
    let middle = device.norm_add(&h, &branch, &w, EPS);
    trace.check(&at("pre_ffn_norm"), &device.norm(&middle, &weight("pre_feedforward_layernorm"), EPS));

    let wide = trace.linear(&trace.input(&at("pre_ffn_norm")), &named(&["mlp.gate_proj", "mlp.up_proj"]));
    trace.check(&at("mlp_gate"), &wide[0]);
    trace.check(&at("mlp_up"), &wide[1]);
    let inner = device.geglu(&trace.input(&at("mlp_gate")), &trace.input(&at("mlp_up")));
    trace.check(&at("mlp"), &trace.linear(&inner, &named(&["mlp.down_proj"]))[0]);
    let branch = trace.input(&at("mlp"));
    let w = weight("post_feedforward_layernorm");
    trace.check(&at("post_ffn_norm"), &device.branch_norm(&branch, &w, EPS));
    trace.check(&format!("hidden.layer_{layer:02}"), &device.norm_add(&middle, &branch, &w, EPS));
}

/// p = exp(z − largest)/sum on the pairs that Hugging Face saw; where its p is 0, the pair is hidden and the plan hides it too.
fn check_probabilities<D: TrainDevice>(
    trace: &Trace<'_, D>,
    model: &Model,
    name: &str,
    softmax: &[f64],
    q: &D::Buf,
    k: &D::Buf,
    scale: f32,
) {
    let (q, k) = (trace.device.download(q), trace.device.download(k));
    let recorded = trace.recorded(name).to_f32();
    let (rows, width) = (softmax.len() / model.heads / 2, model.head_dim);
    let mut found = vec![0.0; recorded.len()];
    for (i, p) in found.iter_mut().enumerate().filter(|(i, _)| recorded[*i] > 0.0) {
        let (head, row, key) = (i / (rows * rows), i / rows % rows, i % rows);
        let kv = head / (model.heads / model.kv_heads);
        let query = &q[(row * model.heads + head) * width..][..width];
        let key = &k[(key * model.kv_heads + kv) * width..][..width];
        let z: f64 = f64::from(scale) * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
        let saved = &softmax[2 * (row * model.heads + head)..];
        *p = (z - saved[0]).exp() / saved[1];
    }
    let expected: Vec<f64> = recorded.into_iter().map(f64::from).collect();
    trace.compare(name, &found, &expected);
}

fn check_model<D: TrainDevice>(device: &D, model: &Model) {
    let mut recorded = tensors(&folder(model.folder).join("forward.safetensors"));
    recorded.extend(tensors(&folder(model.folder).join("trace.safetensors")));
    let weights = tensors(&folder(model.folder).join("model"));
    let trace = Trace { device, weights, recorded, prefix: model.prefix, name: model.folder.into() };

    check_layer(&trace, model, 1, Some(model.window));
    check_layer(&trace, model, 5, None);

    let table = trace.weight("embed_tokens.weight");
    let ids: Vec<u32> = trace.recorded("input_ids").to_f32().into_iter().map(|id| id as u32).collect();
    let embeddings = trace.recorded("hidden.embed");
    let hidden = embeddings.shape[1];
    let scale = (hidden as f32).sqrt();
    // Image rows hold the projector's output instead.
    let kinds = trace.recorded.get("seq1.token_type_ids").map(TensorView::to_f32);
    let text: Vec<usize> = (0..ids.len()).filter(|&row| kinds.as_ref().is_none_or(|kinds| kinds[row] == 0.0)).collect();
    let asked: Vec<u32> = text.iter().map(|&row| ids[row]).collect();
    let all = embeddings.to_f32();
    let expected: Vec<f64> =
        text.iter().flat_map(|row| &all[row * hidden..(row + 1) * hidden]).map(|&value| f64::from(value)).collect();
    trace.compare("hidden.embed", &device.download(&device.embed(&table, &asked, scale)), &expected);

    let last = trace.input("hidden.layer_06");
    let norm = trace.weight("norm.weight");
    trace.check("hidden.final_norm", &device.norm(&last, &norm, EPS));
    trace.check("logits", &device.answer_head(&last, &norm, EPS, &table, HeadColumns::Full));
}

#[test]
fn operations_of_the_text_model_equal_the_recorded_ones() {
    for_every_device(|device| check_model(device, &MODELS[0]), |device| check_model(device, &MODELS[0]));
}

#[test]
fn operations_with_an_image_equal_the_recorded_ones() {
    for model in &MODELS[1..] {
        for_every_device(|device| check_model(device, model), |device| check_model(device, model));
    }
}

fn for_every_device(reference: impl Fn(&Reference), cpu: impl Fn(&Cpu)) {
    reference(&Reference::new(Precision::F32));
    for isa in Isa::available() {
        cpu(&Cpu::new(isa, Some(2)).unwrap());
    }
}

/// The first of torch's steps: its parameters, its gradients of the combined loss, clipped by the global norm. Later steps
/// need gradients of their own.
fn check_first_step<D: TrainDevice>(device: &D) {
    let golden = folder("text");
    let before = tensors(&golden.join("lora_all/adapter_model.safetensors"));
    let gradients = tensors(&golden.join("lora_all/grads.safetensors"));
    let after = tensors(&golden.join("adamw/params.safetensors"));
    let losses: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(golden.join("lora_all/losses.json")).unwrap()).unwrap();
    let index = losses["grads_index"].as_array().unwrap().iter().position(|name| name == "combined").unwrap();
    let part = |view: &TensorView, index: usize| {
        let size = view.elements() / view.shape[0];
        view.to_f32()[index * size..(index + 1) * size].to_vec()
    };
    let params: Vec<f32> = before.values().flat_map(TensorView::to_f32).collect();
    let grads: Vec<f32> = before.keys().flat_map(|name| part(&gradients[name], index)).collect();
    let expected: Vec<f32> = before.keys().flat_map(|name| part(&after[name], 0)).collect();

    let n = params.len();
    let grads = device.upload(1, n, &grads);
    let norm = device.sum_of_squares(&grads).sqrt();
    let recorded = 22.881_802_397_643_99;
    assert!((norm - recorded).abs() < 1e-5 * recorded, "{norm}");
    let (mut p, mut m, mut v) = (device.upload(1, n, &params), device.zeros(1, n), device.zeros(1, n));
    let gradient_scale = (1.0 / (norm + 1e-6)).min(1.0);
    let step = AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, gradient_scale, step: 1 };
    device.adamw(&mut p, &grads, &mut m, &mut v, &step);
    let found = device.download(&p);
    let mut errors: Vec<f64> = found.iter().zip(expected).map(|(p, e)| (p - f64::from(e)).abs()).collect();
    errors.sort_by(f64::total_cmp);
    let share = |q: f64| errors[(q * (n - 1) as f64) as usize];
    assert!(
        share(0.999) < 1e-7 && errors[n - 1] < 2e-4,
        "{} p99.9 {}, max {}",
        device.describe(),
        share(0.999),
        errors[n - 1]
    );
}

#[test]
fn the_first_step_of_adamw_equals_torch() {
    for_every_device(check_first_step, check_first_step);
}
