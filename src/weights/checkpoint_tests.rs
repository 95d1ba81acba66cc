//! Model folders of every era open to the same model; folders with a defect are refused with file and tensor named.

use super::*;
use crate::weights::{TensorSpec, write_safetensors_streamed};
use serde_json::{Value, json};
use std::fs;

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(folder).join("model")
}

fn text_config() -> Value {
    json!({
        "model_type": "gemma3_text", "vocab_size": 11, "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "sliding_window": 3,
    })
}

/// A small model folder under construction; tensors by canonical name.
struct Folder {
    dir: tempfile::TempDir,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), text_config().to_string()).unwrap();
        let config = ModelConfig::from_json("config.json", &text_config().to_string()).unwrap();
        let mut folder = Self { dir, tensors: Vec::new() };
        for (name, shape) in config.text.tensors() {
            folder.add(&name, Dtype::Bf16, &shape);
        }
        folder
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a tensor whose bytes follow from its place in the list.
    fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        let length = dtype.size() * shape.iter().product::<usize>();
        let seed = self.tensors.len();
        let bytes = (0..length).map(|index| (index * 31 + seed * 7) as u8).collect();
        self.tensors.push((TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }, bytes));
    }

    fn find(&mut self, name: &str) -> &mut (TensorSpec, Vec<u8>) {
        self.tensors.iter_mut().find(|(spec, _)| spec.name == name).unwrap()
    }

    /// Gives a tensor another dtype or shape.
    fn change(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        self.tensors.retain(|(spec, _)| spec.name != name);
        self.add(name, dtype, shape);
    }

    /// Writes the tensors that `keep` keeps, under the names that `stored` gives.
    fn write(&self, file: &str, keep: impl Fn(&str) -> bool, stored: impl Fn(&str) -> String) -> Vec<String> {
        let kept: Vec<_> = self.tensors.iter().filter(|(spec, _)| keep(&spec.name)).collect();
        let rename = |(spec, _): &&(TensorSpec, Vec<u8>)| TensorSpec { name: stored(&spec.name), ..spec.clone() };
        let specs: Vec<TensorSpec> = kept.iter().map(rename).collect();
        write_safetensors_streamed(self.path().join(file), &specs, &[], |index, out| {
            out.write_all(&kept[index].1).map_err(|source| Error::io("write", Path::new(file), source))
        })
        .unwrap();
        specs.into_iter().map(|spec| spec.name).collect()
    }

    fn write_single(&self) {
        self.write("model.safetensors", |_| true, text_era);
    }

    /// Layer 1 in the second shard, all else in the first; returns the weight map.
    fn write_shards(&self) -> serde_json::Map<String, Value> {
        let second = |name: &str| name.contains("layers.1.");
        let first = self.write("model-00001-of-00002.safetensors", |name| !second(name), text_era);
        let second = self.write("model-00002-of-00002.safetensors", second, text_era);
        let place =
            |names: Vec<String>, file: &str| names.into_iter().map(|name| (name, json!(file))).collect::<Vec<_>>();
        let mut map = place(first, "model-00001-of-00002.safetensors");
        map.extend(place(second, "model-00002-of-00002.safetensors"));
        map.into_iter().collect()
    }

    fn write_index(&self, map: serde_json::Map<String, Value>) {
        let index = json!({"metadata": {"total_size": 1, "total_parameters": 2}, "weight_map": map});
        fs::write(self.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn error(&self) -> Error {
        match Checkpoint::open(self.path()) {
            Err(error) => error,
            Ok(_) => panic!("a folder with a defect was accepted"),
        }
    }
}

/// Text-only names from canonical ones.
fn text_era(name: &str) -> String {
    name.replace("language_model.", "model.")
}

#[test]
fn golden_models_open() {
    for (folder, layers, stored) in [
        ("text", 7, "model.layers.5.self_attn.q_proj.weight"),
        ("vlm", 7, "language_model.model.layers.5.self_attn.q_proj.weight"),
        ("wide/vlm", 7, "language_model.model.layers.5.self_attn.q_proj.weight"),
    ] {
        let checkpoint = Checkpoint::open(golden(folder)).unwrap();
        let text = &checkpoint.config.text;
        assert_eq!(text.num_hidden_layers, layers, "{folder}");
        let name = "language_model.layers.5.self_attn.q_proj.weight";
        let shape = [text.num_attention_heads * text.head_dim, text.hidden_size];
        let view = checkpoint.tensor_shaped(name, &shape).unwrap();
        assert_eq!((view.dtype, &*view.name), (Dtype::Bf16, stored));
        assert!(view.to_f32().iter().all(|value| value.is_finite() && value.abs() < 100.0));
        assert_eq!(checkpoint.stored_name(name), Some(stored));
        assert_eq!((checkpoint.weight_dtype(), text.tie_word_embeddings), (Dtype::Bf16, true));
        assert_eq!(checkpoint.has("vision_tower.post_layernorm.weight"), folder != "text");
        assert_eq!(checkpoint.has("multi_modal_projector.mm_input_projection_weight"), folder != "text");
        assert!(checkpoint.names().all(|name| canonical(name) == name));
    }
}

#[test]
fn every_naming_era_opens_to_the_same_tensors() {
    let mut folder = Folder::new();
    folder.add("vision_tower.post_layernorm.bias", Dtype::F32, &[3]);
    folder.add("multi_modal_projector.mm_input_projection_weight", Dtype::Bf16, &[3, 6]);
    let vision = |inner: &str, name: &str| name.replace("vision_tower.", &format!("vision_tower.{inner}"));
    let eras: [&dyn Fn(&str) -> String; 4] = [
        &|name| vision("vision_model.", &name.replace("language_model.", "language_model.model.")),
        &|name| format!("model.{}", vision("vision_model.", name)),
        &|name| format!("model.{name}"),
        &|name| text_era(name),
    ];
    let mut expected: Option<Vec<(String, Vec<u8>)>> = None;
    for (number, era) in eras.iter().enumerate() {
        folder.write("model.safetensors", |_| true, era);
        let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|error| panic!("era {number}: {error}"));
        let read = |name: &str| (name.to_string(), checkpoint.tensor(name).unwrap().bytes().to_vec());
        let tensors: Vec<_> = checkpoint.names().map(read).collect();
        assert_eq!(tensors.len(), 2 + 2 * 13 + 2);
        assert_eq!(expected.get_or_insert_with(|| tensors.clone()), &tensors, "era {number}");
    }
}

#[test]
fn shards_open_to_the_same_tensors_as_one_file_and_the_index_is_trusted() {
    let folder = Folder::new();
    folder.write_single();
    let single = Checkpoint::open(folder.path()).unwrap();
    let bytes = |checkpoint: &Checkpoint, name: &str| checkpoint.tensor(name).unwrap().bytes().to_vec();
    let before: Vec<_> = single.names().map(|name| (name.to_string(), bytes(&single, name))).collect();
    folder.write_index(folder.write_shards());
    fs::write(folder.path().join("model.safetensors"), "left over").unwrap();
    let sharded = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(sharded.files().count(), 2);
    for (name, expected) in before {
        assert_eq!(bytes(&sharded, &name), expected, "{name}");
    }
}

#[test]
fn an_index_that_does_not_match_its_shards_is_refused() {
    let folder = Folder::new();
    let map = folder.write_shards();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let tensor = "model.layers.1.mlp.up_proj.weight";

    let mut hole = map.clone();
    hole.insert("model.layers.1.mlp.bias".into(), json!(second));
    folder.write_index(hole);
    assert!(
        matches!(folder.error(), Error::IndexHole { shard, tensor, .. } if shard == second && tensor.ends_with("bias"))
    );

    let mut extra = map.clone();
    extra.shift_remove(tensor);
    folder.write_index(extra);
    assert!(
        matches!(folder.error(), Error::IndexExtra { shard, tensor: found, .. } if shard == second && found == tensor)
    );

    let mut elsewhere = map.clone();
    elsewhere.insert(tensor.into(), json!(first));
    folder.write_index(elsewhere);
    assert!(
        matches!(folder.error(), Error::IndexHole { shard, tensor: found, .. } if shard == first && found == tensor)
    );

    // Both shards hold it; the index can place it in one only.
    folder.write(first, |name| !name.contains("layers.1.") || name.ends_with("up_proj.weight"), text_era);
    folder.write_index(map.clone());
    assert!(
        matches!(folder.error(), Error::IndexExtra { shard, instead, .. } if shard == first && instead.contains(second))
    );

    folder.write_shards();
    for shard in ["../outside.safetensors", "a/b.safetensors", "/etc/passwd", "..", ""] {
        let mut outside = map.clone();
        outside.insert(tensor.into(), json!(shard));
        folder.write_index(outside);
        assert!(matches!(folder.error(), Error::ShardName { .. }), "{shard}");
    }

    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "x", "a": "y"}}"#).unwrap();
    assert!(matches!(folder.error(), Error::DuplicateKey { key, .. } if key == "a"));
    fs::write(&index, r#"{"weight_map": {"a": "x"}, "weight_map": {"a": "x"}}"#).unwrap();
    assert!(matches!(folder.error(), Error::DuplicateKey { key, .. } if key == "weight_map"));
    for text in ["", "[]", r#"{"weight_map": {"a": 1}}"#, r#"{"weight_map": []}"#] {
        fs::write(&index, text).unwrap();
        assert!(matches!(folder.error(), Error::Json { .. }), "{text}");
    }
    for text in ["{}", r#"{"weight_map": {}}"#] {
        fs::write(&index, text).unwrap();
        assert!(matches!(folder.error(), Error::Field { .. }), "{text}");
    }
}

#[test]
fn a_missing_or_truncated_shard_is_named() {
    let folder = Folder::new();
    folder.write_index(folder.write_shards());
    let shard = folder.path().join("model-00002-of-00002.safetensors");
    let length = fs::metadata(&shard).unwrap().len();
    fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(length - 1).unwrap();
    let error = folder.error();
    assert!(matches!(error, Error::TruncatedData { .. }), "{error}");
    assert!(error.to_string().contains("model-00002-of-00002") && error.hint().is_some(), "{error}");
    fs::remove_file(&shard).unwrap();
    let error = folder.error();
    assert!(matches!(&error, Error::MissingShard { tensor, .. } if tensor.contains("layers.1.")), "{error}");
    assert!(error.to_string().contains("model-00002-of-00002"), "{error}");
}

#[test]
fn every_tensor_of_every_layer_is_required() {
    let folder = Folder::new();
    for (spec, _) in &folder.tensors {
        folder.write("model.safetensors", |name| name != spec.name, text_era);
        let error = folder.error();
        assert!(matches!(&error, Error::MissingTensor { tensor, .. } if *tensor == spec.name), "{error}");
    }
}

#[test]
fn a_wrong_shape_says_what_was_expected_and_found() {
    let mut folder = Folder::new();
    folder.change("language_model.layers.1.self_attn.k_proj.weight", Dtype::Bf16, &[8, 6]);
    folder.write_single();
    match folder.error() {
        Error::WrongShape { file, tensor, expected, found } => {
            assert!(file.ends_with("model.safetensors"));
            assert_eq!(tensor, "model.layers.1.self_attn.k_proj.weight");
            assert_eq!((expected, found), (vec![4, 6], vec![8, 6]));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn half_precision_and_other_dtypes_are_refused_and_float32_is_read() {
    let name = "language_model.layers.0.mlp.down_proj.weight";
    let mut folder = Folder::new();
    folder.change(name, Dtype::F32, &[6, 5]);
    folder.write_single();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().tensor_shaped(name, &[6, 5]).unwrap().dtype, Dtype::F32);
    folder.change(name, Dtype::F16, &[6, 5]);
    folder.write_single();
    let error = folder.error();
    assert!(matches!(error, Error::HalfPrecision { .. }), "{error}");
    assert!(error.to_string().contains("overflows") && error.hint().unwrap().contains("bfloat16"), "{error}");
    folder.change(name, Dtype::I64, &[6, 5]);
    folder.write_single();
    assert!(matches!(folder.error(), Error::WrongDtype { found, .. } if found == "I64"));
}

#[test]
fn two_names_of_one_tensor_are_refused() {
    let mut folder = Folder::new();
    folder.add("language_model.model.norm.weight", Dtype::Bf16, &[6]);
    folder.write("model.safetensors", |_| true, |name| name.replace("language_model.layers", "model.layers"));
    match folder.error() {
        Error::DuplicateName { canonical, first, second, .. } => {
            assert_eq!(canonical, "language_model.norm.weight");
            assert_eq!([first, second], ["language_model.model.norm.weight", "language_model.norm.weight"]);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn text_tensors_beyond_the_decoder_are_refused_and_rotary_buffers_ignored() {
    let mut folder = Folder::new();
    folder.add("language_model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[2]);
    folder.write_single();
    assert!(Checkpoint::open(folder.path()).is_ok());
    for name in ["language_model.layers.2.mlp.up_proj.weight", "language_model.layers.0.self_attn.q_proj.bias"] {
        folder.add(name, Dtype::Bf16, &[1]);
        folder.write_single();
        assert!(
            matches!(folder.error(), Error::UnexpectedTensor { tensor, layers: 2, .. } if tensor == text_era(name))
        );
        folder.tensors.pop();
    }
}

#[test]
fn a_stored_head_is_used_when_it_differs_and_required_when_untied() {
    let mut folder = Folder::new();
    folder.add(HEAD, Dtype::Bf16, &[11, 6]);
    folder.write_single();
    assert!(!Checkpoint::open(folder.path()).unwrap().config.text.tie_word_embeddings);
    let embedding = folder.find(EMBEDDING).1.clone();
    folder.find(HEAD).1 = embedding;
    folder.write_single();
    assert!(Checkpoint::open(folder.path()).unwrap().config.text.tie_word_embeddings);
    folder.write("model.safetensors", |_| true, |name| name.replace("lm_head", "language_model.lm_head"));
    assert!(Checkpoint::open(folder.path()).unwrap().has(HEAD));
    folder.change(HEAD, Dtype::Bf16, &[6, 11]);
    folder.write_single();
    assert!(matches!(folder.error(), Error::WrongShape { tensor, .. } if tensor == HEAD));

    let mut untied = text_config();
    untied["tie_word_embeddings"] = json!(false);
    fs::write(folder.path().join("config.json"), untied.to_string()).unwrap();
    folder.write("model.safetensors", |name| name != HEAD, text_era);
    assert!(matches!(folder.error(), Error::MissingTensor { tensor, .. } if tensor == HEAD));
}

#[test]
fn a_folder_without_weights_or_configuration_says_what_it_holds_instead() {
    let folder = Folder::new();
    let error = folder.error();
    assert!(matches!(error, Error::NoWeights { instead: None, .. }), "{error}");
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert!(folder.error().hint().unwrap().contains("pytorch_model.bin"));
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(matches!(folder.error(), Error::NoConfig { .. }));
    fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    assert!(folder.error().hint().unwrap().contains("--adapter"));
    assert!(matches!(Checkpoint::open(folder.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn the_fingerprint_follows_content_and_configuration_not_times() {
    let folder = Folder::new();
    folder.write_single();
    let fingerprint = || Checkpoint::open(folder.path()).unwrap().fingerprint().unwrap();
    let first = fingerprint();
    assert_eq!(first.len(), 64);
    let path = folder.path().join("model.safetensors");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
    assert_eq!(fingerprint(), first, "a copy made at another time is the same model");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let trained = fingerprint();
    assert_ne!(trained, first);
    let mut config = text_config();
    config["sliding_window"] = json!(4);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    assert_ne!(fingerprint(), trained);
}

#[test]
fn full_hashes_are_those_of_the_files() {
    let checkpoint = Checkpoint::open(golden("text")).unwrap();
    let sums = checkpoint.sha256_files().unwrap();
    assert_eq!(sums.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["config.json", "model.safetensors"]);
    for (name, sum) in sums {
        assert_eq!(sum, crate::digest::sha256(&fs::read(golden("text").join(name)).unwrap()));
    }
}
