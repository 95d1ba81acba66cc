//! Adapters of every era are read whole or refused by name; what is written reads back bit for bit.

use super::*;
use crate::weights::write_safetensors;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(folder)
}

fn settings() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"})
}

/// Writes an adapter folder of these settings and tensors (F32, counting up).
fn folder(settings: &Value, tensors: &[(&str, &[usize])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG), settings.to_string()).unwrap();
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| (0..shape.iter().product()).flat_map(|index: usize| (index as f32).to_le_bytes()).collect())
        .collect();
    let specs: Vec<_> =
        tensors.iter().zip(&data).map(|(&(name, shape), bytes)| (name, Dtype::F32, shape, bytes.as_slice())).collect();
    write_safetensors(dir.path().join(WEIGHTS), &specs).unwrap();
    dir
}

fn error(settings: &Value, tensors: &[(&str, &[usize])]) -> Error {
    match AdapterFile::open(folder(settings, tensors).path()) {
        Err(error) => error,
        Ok(_) => panic!("accepted: {settings} with {tensors:?}"),
    }
}

const A: &str = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight";
const PAIR: [(&str, &[usize]); 2] = [(A, &[2, 5]), (B, &[4, 2])];

#[test]
fn golden_adapters_are_read_and_written_back_byte_for_byte() {
    for (folder, layers) in
        [("text/lora_all", 7), ("text/lora_l23", 2), ("vlm/lora_all", 7), ("vlm/lora_l23", 2), ("wide/vlm/lora_l23", 2)]
    {
        let adapter = AdapterFile::open(golden(folder)).unwrap();
        assert_eq!(adapter.tensors.len(), 7 * layers, "{folder}");
        let keys: Vec<_> = adapter.tensors.iter().map(|tensors| (tensors.layer, tensors.module)).collect();
        assert!(keys.is_sorted() && keys[1].1 == Module::K);
        assert!(adapter.tensors.iter().all(|tensors| (tensors.rank, tensors.scale) == (4, 2.0)));

        let place = tempfile::tempdir().unwrap();
        let written = place.path().join("below/adapter");
        adapter.write(&written).unwrap();
        assert_eq!(AdapterFile::open(&written).unwrap(), adapter);
        assert_eq!(fs::read(written.join(WEIGHTS)).unwrap(), fs::read(golden(folder).join(WEIGHTS)).unwrap());
        let config = fs::read(written.join(CONFIG)).unwrap();
        adapter.write(&written).unwrap();
        assert_eq!(fs::read(written.join(CONFIG)).unwrap(), config, "written again over itself");
        assert_eq!(fs::read_dir(&written).unwrap().count(), 2, "nothing temporary is left");
        assert_eq!(fs::read_dir(written.parent().unwrap()).unwrap().count(), 1);
    }
}

#[test]
fn every_naming_era_is_read_to_the_same_module_and_keeps_its_names() {
    for path in ["model.layers", "language_model.model.layers", "model.language_model.layers"] {
        let name = |side| format!("base_model.model.{path}.3.self_attn.q_proj.lora_{side}.weight");
        let (a, b) = (name("A"), name("B"));
        let dir = folder(&settings(), &[(&a, &[2, 5]), (&b, &[4, 2])]);
        let adapter = AdapterFile::open(dir.path()).unwrap();
        let tensors = &adapter.tensors[0];
        assert_eq!((tensors.layer, tensors.module, tensors.rank), (3, Module::Q, 2));
        assert_eq!((tensors.inputs, tensors.outputs, tensors.scale), (5, 4, 4.0));
        assert_eq!(tensors.a, (0..10).map(|value| value as f32).collect::<Vec<_>>());
        assert_eq!((&tensors.a_name, &tensors.b_name), (&a, &b));
    }
}

#[test]
fn half_and_bfloat16_adapters_are_widened_exactly() {
    let dir = folder(&settings(), &PAIR);
    let half: Vec<u8> = (0..10).flat_map(|value| half::f16::from_f32(value as f32 / 8.0).to_le_bytes()).collect();
    let brain: Vec<u8> = (0..8).flat_map(|value| half::bf16::from_f32(value as f32 * -0.5).to_le_bytes()).collect();
    let tensors: [(&str, Dtype, &[usize], &[u8]); 2] =
        [(A, Dtype::F16, &[2, 5], &half), (B, Dtype::Bf16, &[4, 2], &brain)];
    write_safetensors(dir.path().join(WEIGHTS), &tensors).unwrap();
    let adapter = AdapterFile::open(dir.path()).unwrap();
    assert_eq!(adapter.tensors[0].a, (0..10).map(|value| value as f32 / 8.0).collect::<Vec<_>>());
    assert_eq!(adapter.tensors[0].b, (0..8).map(|value| value as f32 * -0.5).collect::<Vec<_>>());
    let integers: [(&str, Dtype, &[usize], &[u8]); 2] =
        [(A, Dtype::U8, &[2, 5], &[0; 10]), (B, Dtype::U8, &[4, 2], &[0; 8])];
    write_safetensors(dir.path().join(WEIGHTS), &integers).unwrap();
    assert!(matches!(AdapterFile::open(dir.path()), Err(Error::WrongDtype { tensor, .. }) if tensor == A));
}

#[test]
fn other_kinds_of_adapters_are_refused_by_name() {
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("lora_only")),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([5])),
        ("trainable_token_indices", json!({"embed_tokens": [5]})),
        ("target_parameters", json!(["mlp.gate"])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("alora_invocation_tokens", json!([1])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("olora")),
        ("rank_pattern", json!({"(?!v)_proj": 4})),
        ("alpha_pattern", json!({"(q": 4})),
    ] {
        let mut settings = settings();
        settings[field] = value;
        let error = error(&settings, &PAIR);
        assert!(matches!(&error, Error::Unsupported { field: named, .. } if named == field), "{error}");
        assert!(error.to_string().contains(CONFIG), "{error}");
    }
    for (field, value) in [
        ("use_dora", json!(false)),
        ("modules_to_save", json!([])),
        ("target_parameters", json!(null)),
        ("init_lora_weights", json!("gaussian")),
        ("something_of_a_later_version", json!({"x": 1})),
    ] {
        let mut settings = settings();
        settings[field] = value;
        assert!(AdapterFile::open(folder(&settings, &PAIR).path()).is_ok(), "{field}");
    }
}

#[test]
fn impossible_settings_are_refused_by_name() {
    for (field, value) in [
        ("r", json!(0)),
        ("r", json!(2.5)),
        ("lora_alpha", json!("8")),
        ("lora_dropout", json!(1.0)),
        ("lora_dropout", json!(-0.1)),
        ("use_rslora", json!("yes")),
        ("rank_pattern.q_proj", json!({"q_proj": 0})),
        ("alpha_pattern.q_proj", json!({"q_proj": "8"})),
        ("layers_to_transform", json!([1, -2])),
        ("target_modules", json!([1])),
        ("base_model_name_or_path", json!(7)),
    ] {
        let mut settings = settings();
        settings[field.split('.').next().unwrap()] = value;
        let error = error(&settings, &PAIR);
        assert!(matches!(&error, Error::Field { field: named, .. } if named == field), "{error}");
    }
}

#[test]
fn adapter_tensors_of_the_vision_tower_are_refused_with_the_list_trap() {
    for path in ["vision_tower.vision_model", "model.vision_tower.vision_model", "model.vision_tower"] {
        let name = format!("base_model.model.{path}.encoder.layers.3.self_attn.q_proj.lora_A.weight");
        let error = error(&settings(), &[PAIR[0], PAIR[1], (&name, &[2, 5])]);
        assert!(matches!(&error, Error::VisionAdapter { tensor, .. } if *tensor == name), "{error}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("list of target_modules") && hint.contains("exclude_modules"), "{hint}");
    }
}

#[test]
fn any_tensor_that_would_not_be_used_is_refused() {
    for (name, reason) in [
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_B.bias", "lora_bias"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.model.embed_tokens.weight", "neither"),
        ("base_model.model.lm_head.lora_A.weight", "outside"),
        ("base_model.model.lm_head.modules_to_save.weight", "replaces"),
        ("base_model.model.model.layers.3.input_layernorm.lora_A.weight", "q_proj"),
        ("base_model.model.model.layers.3.self_attn.lora_A.weight", "q_proj"),
        ("base_model.model.model.layers.03.self_attn.q_proj.lora_A.weight", "number"),
        ("base_model.model.model.layers.+3.self_attn.q_proj.lora_A.weight", "number"),
        ("base_model.model.model.layers.99999999999999999999.self_attn.q_proj.lora_A.weight", "number"),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", "neither"),
        ("base_model.model.multi_modal_projector.x.lora_A.weight", "outside"),
        ("model.layers.3.self_attn.v_proj.lora_A.weight", "base_model.model."),
        ("extra", "base_model.model."),
    ] {
        let error = error(&settings(), &[PAIR[0], PAIR[1], (name, &[2, 5])]);
        assert!(matches!(&error, Error::UnknownAdapterTensor { tensor, .. } if tensor == name), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn defective_pairs_are_refused() {
    let partner = error(&settings(), &PAIR[..1]);
    assert!(matches!(&partner, Error::MissingPartner { tensor, partner, .. } if tensor == A && partner == B));
    let partner = error(&settings(), &PAIR[1..]);
    assert!(matches!(&partner, Error::MissingPartner { tensor, partner, .. } if tensor == B && partner == A));
    for (a, b, named) in [
        (&[10][..], &[4, 2][..], A),
        (&[2, 5, 1], &[4, 2], A),
        (&[2, 0], &[4, 2], A),
        (&[2, 5], &[8], B),
        (&[2, 5], &[0, 2], B),
    ] {
        let error = error(&settings(), &[(A, a), (B, b)]);
        assert!(matches!(&error, Error::NotAMatrix { tensor, .. } if tensor == named), "{error}");
    }
    for (a, b, named, rank) in [(&[3, 5][..], &[4, 3][..], A, 3), (&[2, 5], &[4, 3], B, 3), (&[5, 2], &[2, 4], A, 5)] {
        let error = error(&settings(), &[(A, a), (B, b)]);
        let expected =
            matches!(&error, Error::WrongRank { tensor, expected: 2, found, .. } if tensor == named && *found == rank);
        assert!(expected, "{error}");
    }
    let other = "base_model.model.language_model.model.layers.3.self_attn.q_proj.lora_A.weight";
    let error = error(&settings(), &[PAIR[0], PAIR[1], (other, &[2, 5])]);
    assert!(matches!(&error, Error::DuplicateName { first, second, .. } if first == other && second == A), "{error}");
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    for (value, at) in [(f32::NAN, 3), (f32::INFINITY, 7)] {
        let dir = folder(&settings(), &PAIR);
        let mut values = [0.5_f32; 8];
        values[at] = value;
        let bytes = values.map(f32::to_le_bytes).concat();
        let tensors: [(&str, Dtype, &[usize], &[u8]); 2] =
            [(A, Dtype::F32, &[2, 5], &[0; 40]), (B, Dtype::F32, &[4, 2], &bytes)];
        write_safetensors(dir.path().join(WEIGHTS), &tensors).unwrap();
        let outcome = AdapterFile::open(dir.path());
        assert!(matches!(outcome, Err(Error::NonFinite { tensor, index, .. }) if tensor == B && index == at));
    }
}

#[test]
fn folders_that_hold_no_adapter_say_so() {
    assert!(matches!(error(&settings(), &[]), Error::EmptyAdapter { .. }));
    let dir = tempfile::tempdir().unwrap();
    let open = || AdapterFile::open(dir.path()).unwrap_err();
    assert!(matches!(open(), Error::NoAdapter { missing: CONFIG, is_model: false, .. }));
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(open().hint().unwrap().contains("--model"));
    fs::write(dir.path().join(CONFIG), settings().to_string()).unwrap();
    assert!(matches!(open(), Error::NoAdapter { missing: WEIGHTS, .. }));
    fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
    let error = open();
    assert!(matches!(error, Error::Pickle { .. }) && error.hint().unwrap().contains("safe_serialization"), "{error}");
    assert!(matches!(AdapterFile::open(dir.path().join("none")), Err(Error::Io { .. })));
    assert!(matches!(AdapterFile::open(dir.path().join(CONFIG)), Err(Error::NoAdapter { .. })));
}

#[test]
fn patterns_are_matched_as_peft_does() {
    let config = AdapterConfig::from_json(
        CONFIG,
        &json!({
            "r": 4, "lora_alpha": 6,
            "rank_pattern": {
                "^model.layers.0.self_attn.q_proj": 1, "layers.1.self_attn.q_proj": 2, "v_proj|k_proj": 3,
                r"layers\.\d+\.mlp\..*": 9, "proj": 100, "q_pro": 100
            },
            "alpha_pattern": {"self_attn.q_proj": 12}
        })
        .to_string(),
    )
    .unwrap();
    let scales = config.scales(CONFIG).unwrap();
    for (path, rank, alpha) in [
        ("model.layers.0.self_attn.q_proj", 1, 12.0_f64),
        ("model.language_model.layers.0.self_attn.q_proj", 4, 12.0),
        ("model.layers.1.self_attn.q_proj", 2, 12.0),
        ("model.layers.11.self_attn.q_proj", 4, 12.0),
        ("model.layers.5.self_attn.k_proj", 3, 6.0),
        ("model.layers.5.self_attn.o_proj", 4, 6.0),
        ("model.layers.5.mlp.down_proj", 9, 6.0),
    ] {
        assert_eq!(scales.rank(path), rank, "{path}");
        assert_eq!(scales.scale(path), (alpha / rank as f64) as f32, "{path}");
    }
    let stabilised = AdapterConfig { use_rslora: true, ..config };
    let scale = stabilised.scales(CONFIG).unwrap().scale("model.layers.5.self_attn.k_proj");
    assert_eq!(scale, (6.0 / 3.0_f64.sqrt()) as f32);
}

/// An adapter of the settings' own shape: `layers` × `modules`, values that are no round numbers.
fn built(naming: Naming, layers: &[usize], modules: &[Module]) -> AdapterFile {
    let config = AdapterConfig::new(naming, 2, 32.0, modules, layers);
    let pairs = layers.iter().flat_map(|&layer| modules.iter().map(move |&module| (layer, module)));
    let value = |index: usize| (index as f32 * 0.37).sin() * 1e-3;
    let tensors = pairs
        .map(|(layer, module)| {
            let (a, b) = ((0..6).map(value).collect(), (0..10).map(|index| value(index + layer)).collect());
            LoraTensors::new(naming, (layer, module), [5, 3], 2, 16.0, a, b)
        })
        .collect();
    AdapterFile { config, tensors }
}

#[test]
fn a_written_adapter_reads_back_bit_for_bit_under_the_names_of_its_class() {
    for (naming, root) in [(Naming::CausalLm, "model"), (Naming::ConditionalGeneration, "model.language_model")] {
        let mut adapter = built(naming, &[2, 10], &Module::ALL);
        adapter.config.base_model_name_or_path = Some("org/näme".into());
        adapter.config.lora_dropout = 0.05;
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("adapter");
        adapter.write(&dir).unwrap();
        let read = AdapterFile::open(&dir).unwrap();
        assert_eq!(read, adapter);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read.tensors[3].b), bits(&adapter.tensors[3].b));
        assert_eq!(read.tensors[0].a_name, format!("base_model.model.{root}.layers.2.self_attn.q_proj.lora_A.weight"));
    }
}

#[test]
fn written_settings_are_sorted_and_complete() {
    let text = AdapterConfig::new(Naming::CausalLm, 16, 32.0, &[Module::V, Module::Q, Module::Q], &[9, 8]).to_json();
    let value: Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted(), "{keys:?}");
    assert!(text.contains("\n  \"lora_alpha\": 32,\n  \"lora_dropout\": 0.0,\n"), "{text}");
    assert_eq!(value["target_modules"], json!(["q_proj", "v_proj"]));
    assert_eq!(value["layers_to_transform"], json!([8, 9]));
    assert_eq!((&value["peft_type"], &value["task_type"]), (&json!("LORA"), &json!("CAUSAL_LM")));
}

#[test]
fn the_targets_of_a_vision_language_adapter_never_match_the_vision_tower() {
    let config = AdapterConfig::new(Naming::ConditionalGeneration, 4, 8.0, &[Module::Q, Module::Down], &[1, 15]);
    assert_eq!(config.layers_to_transform, None);
    let Targets::Pattern(pattern) = &config.target_modules else { panic!("expected one expression") };
    // PEFT: re.fullmatch(pattern, path)
    let pattern = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
    for (path, matches) in [
        ("model.language_model.layers.15.self_attn.q_proj", true),
        ("language_model.model.layers.1.mlp.down_proj", true),
        ("model.language_model.layers.5.self_attn.q_proj", false),
        ("model.language_model.layers.11.self_attn.q_proj", false),
        ("model.language_model.layers.15.self_attn.k_proj", false),
        ("model.vision_tower.vision_model.encoder.layers.15.self_attn.q_proj", false),
        ("model.vision_tower.encoder.layers.1.self_attn.q_proj", false),
        ("vision_tower.vision_model.encoder.layers.1.self_attn.q_proj", false),
    ] {
        assert_eq!(pattern.is_match(path), matches, "{path}");
    }
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let place = tempfile::tempdir().unwrap();
    let good = built(Naming::CausalLm, &[3], &[Module::Q]);
    let changes: [&dyn Fn(&mut AdapterFile); 8] = [
        &|adapter| adapter.config.r = 3,
        &|adapter| adapter.tensors[0].scale = 2.0,
        &|adapter| adapter.tensors[0].layer = 4,
        &|adapter| adapter.tensors[0].module = Module::K,
        &|adapter| adapter.tensors[0].a.truncate(5),
        &|adapter| adapter.tensors[0].b_name = "base_model.model.model.layers.4.self_attn.q_proj.lora_B.weight".into(),
        &|adapter| adapter.config.target_modules = Targets::Pattern(".*".into()),
        &|adapter| adapter.tensors.clear(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut adapter = good.clone();
        change(&mut adapter);
        let error = adapter.write(place.path().join("x")).unwrap_err();
        let expected = if number == 7 {
            matches!(error, Error::EmptyAdapter { .. })
        } else {
            matches!(error, Error::Unwritable { .. })
        };
        assert!(expected, "{number}: {error}");
        assert!(!place.path().join("x").exists());
    }
    good.write(place.path().join("x")).unwrap();
}

#[test]
fn writing_into_a_folder_keeps_its_other_files() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("README.md"), "card").unwrap();
    built(Naming::CausalLm, &[3], &[Module::Q]).write(place.path()).unwrap();
    assert_eq!(fs::read_to_string(place.path().join("README.md")).unwrap(), "card");
    assert!(AdapterFile::open(place.path()).is_ok());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
}

#[test]
fn modules_are_found_by_path() {
    for module in Module::ALL {
        assert_eq!(Module::from_path(module.path()), Some(module));
        assert!(module.path().ends_with(module.name()));
    }
    assert!(Module::ALL.is_sorted());
    assert_eq!(Module::from_path("q_proj"), None);
}

proptest::proptest! {
    #[test]
    fn no_settings_make_the_reader_panic(field in 0_usize..14, number in proptest::num::i64::ANY, kind in 0_u8..6) {
        let fields = ["r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "target_modules", "bias",
            "layers_to_transform", "layers_pattern", "use_rslora", "use_dora", "init_lora_weights", "revision", "peft_type"];
        let mut settings = settings();
        settings[fields[field]] = match kind {
            0 => json!(number),
            1 => json!(number as f64 * 1e-9),
            2 => json!([number, "x"]),
            3 => json!({"x": number}),
            4 => json!(number.to_string()),
            _ => json!(number % 2 == 0),
        };
        if let Ok(config) = AdapterConfig::from_json(CONFIG, &settings.to_string()) {
            let again = AdapterConfig::from_json(CONFIG, &config.to_json());
            proptest::prop_assert_eq!(again.unwrap(), config);
        }
    }
}
