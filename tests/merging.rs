//! Promises of `merge`: the merged model answers as base and adapter do (exactly but for rounding in F32, within what
//! rounding each weight implies in bf16), it keeps the layout of its files, and it appears whole or not at all.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use support::{Golden, LOGITS, OnEach, engine_groups, on_each_device};
use unflip::model::{
    Adapter, AnswerColumns, EmbedScale, Engine, Entry, ForwardRequest, LoraLayout, LoraSettings, OutputRows, SitePlan,
    Target, merge,
};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{Backend, TrainDevice};
use unflip::weights::{AdapterFile, Checkpoint, Dtype, Module, SafetensorsFile, TensorView, write_safetensors};

const MODULES: [Module; 7] = [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Tensor]) {
    let entries: Vec<_> = tensors.iter().map(|(n, d, s, b)| (n.as_str(), *d, s.as_slice(), b.as_slice())).collect();
    write_safetensors(path, &entries).expect("written");
}

/// Every tensor of the golden model, as stored or widened to F32.
fn tensors(golden: &Golden, dtype: Dtype) -> Vec<Tensor> {
    let file = golden.file("model/model.safetensors");
    let tensor = |name: &str| {
        let view = file.tensor(name).expect("stored");
        let bytes = match dtype {
            Dtype::F32 => view.to_f32().iter().flat_map(|value| value.to_le_bytes()).collect(),
            _ => view.bytes().to_vec(),
        };
        (name.to_owned(), dtype, view.shape.clone(), bytes)
    };
    file.names().map(tensor).collect()
}

/// A folder with the golden model's other files.
fn model_folder(golden: &Golden, at: PathBuf) -> PathBuf {
    fs::create_dir(&at).unwrap();
    for name in ["config.json", "generation_config.json"] {
        fs::copy(golden.folder.join("model").join(name), at.join(name)).unwrap();
    }
    at
}

/// The golden model in F32: the same values, stored wider.
fn f32_model(golden: &Golden, at: PathBuf) -> Checkpoint {
    let folder = model_folder(golden, at);
    write(&folder.join("model.safetensors"), &tensors(golden, Dtype::F32));
    Checkpoint::open(&folder).expect("opens")
}

fn merged(checkpoint: &Checkpoint, adapter: &AdapterFile, out: &Path) -> Checkpoint {
    merge(checkpoint, adapter, out, |_, _| ()).expect("merges");
    Checkpoint::open(out).expect("the merged model opens")
}

fn engine<D: TrainDevice>(device: D, checkpoint: &Checkpoint) -> Engine<D> {
    Engine::open(device, checkpoint, EmbedScale::Exact, None).expect("loads")
}

/// Margin of every phrasing, and the largest logit.
fn margins<D: TrainDevice>(engine: &Engine<D>, golden: &Golden) -> (Vec<f64>, f64) {
    let groups = engine_groups(golden, 4);
    let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
    let targets: Vec<Target> = groups.iter().map(Target::from).collect();
    let batch = engine.pack(&tokens, 0).expect("packs");
    let logits = engine.answer_logits(&batch, &AnswerColumns::Full).expect("logits").concat();
    let largest = logits.iter().fold(0.0, |largest: f64, logit| largest.max(logit.abs()));
    (engine.margins(&batch, &targets).expect("margins").concat(), largest)
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Names in a folder.
fn listed(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_merged_f32_model_answers_as_base_and_adapter_do() {
    struct Body(Golden, Checkpoint);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let Self(golden, merged) = self;
            let base = golden.engine(device, None);
            let unadapted = margins(&base, golden).0;
            let adapted = golden.engine(base.device, Some(&golden.adapter("lora_all")));
            let (expected, largest) = margins(&adapted, golden);
            assert!(worst(&unadapted, &expected) > 100.0 * LOGITS * largest, "{name}: the adapter does something");
            let found = margins(&engine(adapted.device, merged), golden).0;
            assert!(worst(&found, &expected) <= LOGITS * largest, "{name}: {:e}", worst(&found, &expected));
        }
    }
    let golden = Golden::open("text");
    let folder = tempfile::tempdir().unwrap();
    let base = f32_model(&golden, folder.path().join("f32"));
    let merged = merged(&base, &golden.adapter("lora_all"), &folder.path().join("merged"));
    assert_eq!(merged.weight_dtype(), Dtype::F32);
    on_each_device(&mut Body(golden, merged));
}

/// ∂m/∂W of one phrasing for every linear layer: a LoRA branch with A = I, B = 0 and s = 1 adds B to W, so dB is dW.
struct WeightGradients {
    layout: LoraLayout,
    engine: Engine<Reference>,
}

impl WeightGradients {
    fn new(checkpoint: &Checkpoint) -> Self {
        let mut engine = engine(Reference::new(Precision::F32), checkpoint);
        let config = &engine.model.config;
        // One rank for all modules: the widest input. Rows of A beyond a module's inputs stay zero.
        let rank = MODULES.iter().map(|&module| config.linear_shape(module)[1]).max().expect("modules");
        let settings = LoraSettings {
            layers: (0..config.num_hidden_layers).collect(),
            modules: MODULES.into(),
            rank,
            alpha: rank as f64,
            rslora: false,
        };
        let layout = LoraLayout::from_settings(config, &settings).expect("fits");
        let mut params = vec![0.0; layout.len()];
        for slot in layout.slots() {
            (0..slot.inputs).for_each(|i| params[slot.a + i * slot.inputs + i] = 1.0);
        }
        let params = engine.device.upload(1, params.len(), &params);
        engine.adapter = Some(Adapter { layout: layout.clone(), params });
        Self { layout, engine }
    }

    /// Calls `each(layer, module, dW)` with dW `[outputs, inputs]` of the margin of phrasing `phrasing`.
    fn of(
        &self,
        golden: &Golden,
        checkpoint: &Checkpoint,
        phrasing: usize,
        mut each: impl FnMut(usize, Module, Vec<f64>),
    ) {
        let device = &self.engine.device;
        let groups = engine_groups(golden, 4);
        let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
        let batch = self.engine.pack(&tokens, 0).expect("packs");
        let weight = |name: &str| device.weight(&checkpoint.tensor(name).expect("stored")).expect("usable");
        let (norm, head) = (weight("language_model.norm.weight"), weight("language_model.embed_tokens.weight"));
        let sites = SitePlan::default();
        let request = ForwardRequest {
            layers: 0..self.engine.model.depth(),
            entry: Entry::Embeddings,
            rows: OutputRows::Answers,
            adapter: self.engine.adapter.as_ref(),
            train: true,
            dropout: None,
            sites: &sites,
        };
        let mut forward = self.engine.model.forward(device, &batch, request).expect("forward");
        let columns = AnswerColumns::Ids(vec![groups[0].yes, groups[0].no]);
        let logits = forward.tape.answer_head(forward.hidden, &norm, &head, &columns);
        let mut seed = vec![0.0; 2 * batch.phrasings.len()];
        (seed[2 * phrasing], seed[2 * phrasing + 1]) = (1.0, -1.0);
        let mut gradient = device.zeros(1, self.layout.len());
        forward.tape.backward(logits, device.upload(batch.phrasings.len(), 2, &seed), Some(&mut gradient));
        let gradient = device.download(&gradient);
        for slot in self.layout.slots() {
            let db = gradient[slot.b..slot.b + slot.outputs * slot.rank].chunks(slot.rank);
            each(slot.layer, slot.module, db.flat_map(|row| row[..slot.inputs].to_vec()).collect());
        }
    }
}

/// Storing a merged weight w in bf16 (8 significant bits, to nearest) changes it by δ, |δ| ≤ 2⁻⁸·|w|. A margin changes by
/// Σ(∂m/∂w)·δ to first order. Roundings of different weights are unrelated and have mean zero, so with δ uniform within its
/// bound the sum has a variance of at most Σ(∂m/∂w)²·(2⁻⁸·w)²/3, and four standard deviations are the bound. All of it is
/// measured on the reference, against the F32 merge; weights that no adapter touches are bf16 already and do not change.
#[test]
fn a_merged_bf16_model_differs_by_what_rounding_its_weights_implies() {
    let golden = Golden::open("text");
    let adapter = golden.adapter("lora_all");
    let folder = tempfile::tempdir().unwrap();
    let wide = merged(&f32_model(&golden, folder.path().join("f32")), &adapter, &folder.path().join("wide"));
    let narrow = merged(&golden.checkpoint, &adapter, &folder.path().join("narrow"));
    assert_eq!(narrow.weight_dtype(), Dtype::Bf16);

    let mut changed = 0;
    for name in golden.checkpoint.names() {
        let [before, exact, rounded] = [&golden.checkpoint, &wide, &narrow].map(|model| model.tensor(name).unwrap());
        assert_eq!((rounded.dtype, &rounded.shape), (Dtype::Bf16, &before.shape), "{name}");
        if rounded.bytes() != before.bytes() {
            changed += 1;
        }
        for (exact, rounded) in exact.to_f32().into_iter().zip(rounded.to_f32()) {
            // The exact sum was rounded to F32 as well.
            let allowed = (2.0_f64.powi(-8) + 2.0_f64.powi(-23)) * f64::from(exact.abs());
            assert!((f64::from(exact) - f64::from(rounded)).abs() <= allowed, "{name}: {exact} became {rounded}");
        }
    }
    assert_eq!(changed, 7 * MODULES.len(), "every adapted weight and no other");

    let reference = || Reference::new(Precision::F32);
    let exact = margins(&engine(reference(), &wide), &golden).0;
    let rounded = margins(&engine(reference(), &narrow), &golden).0;
    let gradients = WeightGradients::new(&wide);
    for phrasing in 0..exact.len() {
        let (mut first_order, mut variance) = (0.0, 0.0);
        gradients.of(&golden, &wide, phrasing, |layer, module, dw| {
            let name = format!("language_model.layers.{layer}.{}.weight", module.path());
            let values = |model: &Checkpoint| model.tensor(&name).unwrap().to_f32();
            for ((g, exact), rounded) in dw.iter().zip(values(&wide)).zip(values(&narrow)) {
                let (exact, rounded) = (f64::from(exact), f64::from(rounded));
                first_order += g * (rounded - exact);
                variance += (g * exact / 256.0).powi(2) / 3.0;
            }
        });
        let (found, bound) = (rounded[phrasing] - exact[phrasing], 4.0 * variance.sqrt());
        assert!(found != 0.0 && found.abs() <= bound, "phrasing {phrasing}: moved by {found:e}, bound {bound:e}");
        // What the roundings that happened predict, but for terms of second order.
        assert!(
            (found - first_order).abs() <= 0.1 * bound,
            "phrasing {phrasing}: moved by {found:e}, predicted {first_order:e}, bound {bound:e}"
        );
    }
}

/// The golden model in two shards with an index, a tokenizer, a manifest and a folder beside them.
fn sharded_model(golden: &Golden, at: PathBuf) -> Checkpoint {
    let folder = model_folder(golden, at);
    let all = tensors(golden, Dtype::Bf16);
    let (first, second) = all.split_at(all.len() / 2);
    let mut map = serde_json::Map::new();
    for (number, shard) in [(1, first), (2, second)] {
        let name = format!("model-0000{number}-of-00002.safetensors");
        write(&folder.join(&name), shard);
        map.extend(shard.iter().map(|(tensor, ..)| (tensor.clone(), name.clone().into())));
    }
    let size: usize = all.iter().map(|(_, _, _, bytes)| bytes.len()).sum();
    let index = serde_json::json!({"metadata": {"total_size": size}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), "{\"a\": 1}").unwrap();
    fs::write(folder.join("MANIFEST.json"), "{}").unwrap();
    fs::create_dir(folder.join("original")).unwrap();
    Checkpoint::open(&folder).expect("opens")
}

#[test]
fn a_sharded_model_stays_sharded_and_keeps_its_other_files() {
    let golden = Golden::open("text");
    let adapter = golden.adapter("lora_all");
    let folder = tempfile::tempdir().unwrap();
    let whole = merged(&golden.checkpoint, &adapter, &folder.path().join("whole"));
    let sharded = sharded_model(&golden, folder.path().join("sharded"));
    let out = folder.path().join("new/parent/out");
    let mut seen = Vec::new();
    merge(&sharded, &adapter, &out, |done, total| seen.push((done, total))).expect("merges");
    let count = golden.checkpoint.names().count();
    assert_eq!(seen, (1..=count).map(|done| (done, count)).collect::<Vec<_>>());

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&out), mode(sharded.dir()), "as any other new folder");

    // Opening checks the index against the shards.
    let merged = Checkpoint::open(&out).expect("the merged model opens");
    let layout = |model: &Checkpoint| -> Vec<(String, Vec<String>)> {
        let names = |file: &SafetensorsFile| file.names().map(str::to_owned).collect();
        let name = |file: &SafetensorsFile| file.path().file_name().unwrap().to_string_lossy().into_owned();
        model.files().map(|file| (name(file), names(file))).collect()
    };
    assert_eq!(layout(&merged), layout(&sharded));
    assert_eq!(merged.files().count(), 2);
    for name in whole.names() {
        let bytes = |view: TensorView| view.bytes().to_vec();
        assert!(bytes(merged.tensor(name).unwrap()) == bytes(whole.tensor(name).unwrap()), "{name}");
    }
    let mut expected = listed(sharded.dir());
    // Checksums of the original files, and a folder.
    assert!(expected.remove("MANIFEST.json") && expected.remove("original"));
    assert_eq!(listed(&out), expected);
    for name in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"] {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(sharded.dir().join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_merge_that_cannot_be_finished_leaves_nothing() {
    let golden = Golden::open("text");
    let adapter = golden.adapter("lora_all");
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("place");
    fs::create_dir(&place).unwrap();

    let taken = place.join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("note"), "mine").unwrap();
    let error = merge(&golden.checkpoint, &adapter, &taken, |_, _| ()).unwrap_err();
    assert_eq!(error.to_string(), format!("{} exists already", taken.display()));
    assert_eq!(fs::read_to_string(taken.join("note")).unwrap(), "mine");
    assert_eq!(listed(&taken).len(), 1);

    let other = Golden::open("vlm").adapter("lora_all");
    let error = merge(&golden.checkpoint, &other, &place.join("out"), |_, _| ()).unwrap_err();
    assert!(error.to_string().starts_with("adapter does not fit the model: layer 0 q_proj is "), "{error}");

    // The second shard is cut short after the model was opened: the first one has been written by then.
    let sharded = sharded_model(&golden, folder.path().join("sharded"));
    let second = sharded.files().nth(1).expect("two shards").path().to_path_buf();
    let length = fs::metadata(&second).unwrap().len();
    fs::OpenOptions::new().write(true).open(&second).unwrap().set_len(length / 2).unwrap();
    let error = merge(&sharded, &adapter, &place.join("out"), |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("model-00002-of-00002.safetensors"), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(listed(&place), BTreeSet::from(["taken".to_owned()]));
}
