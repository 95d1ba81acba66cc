//! Every era of `config.json` gives the same structure; what is not computed is refused by name.

use super::*;
use serde_json::{Value, json};

fn golden(folder: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(folder).join("model/config.json")
}

fn parse(value: &Value) -> Result<ModelConfig, Error> {
    ModelConfig::from_json("config.json", &value.to_string())
}

/// A text-only configuration with every field of the older era.
fn text() -> Value {
    json!({
        "model_type": "gemma3_text", "vocab_size": 100, "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 7, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4,
        "query_pre_attn_scalar": 9, "rms_norm_eps": 1e-6, "sliding_window": 5, "max_position_embeddings": 64,
        "rope_theta": 2e6, "rope_local_base_freq": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false,
        "attn_logit_softcapping": null, "final_logit_softcapping": null, "eos_token_id": [1, 106],
    })
}

/// `text()` with some fields replaced; `null` removes one.
fn with(changes: Value) -> Value {
    let mut value = text();
    for (field, change) in changes.as_object().unwrap() {
        value[field] = change.clone();
    }
    value
}

#[test]
fn golden_configurations_are_read() {
    let text = ModelConfig::read(&golden("text")).unwrap();
    assert_eq!((text.text.num_hidden_layers, text.text.hidden_size, text.text.head_dim), (7, 48, 16));
    assert_eq!((text.text.num_attention_heads, text.text.num_key_value_heads), (4, 2));
    assert_eq!((text.text.query_pre_attn_scalar, text.text.sliding_window, text.text.vocab_size), (24.0, 8, 512));
    let full: Vec<usize> = (0..7).filter(|&layer| text.text.layer_types[layer] == LayerKind::Full).collect();
    assert_eq!(full, [5]);
    assert_eq!((text.vision, text.image_token, text.image_tokens, text.eos_token_ids), (None, None, 0, vec![1]));

    let vlm = ModelConfig::read(&golden("vlm")).unwrap();
    assert_eq!(vlm.text.rope_global, Rope { theta: 1e6, factor: 8.0 });
    assert_eq!(vlm.text.rope_local, Rope { theta: 1e4, factor: 1.0 });
    let vision = vlm.vision.unwrap();
    assert_eq!((vision.hidden_size, vision.image_size, vision.patch_size), (32, 56, 14));
    assert_eq!((vlm.image_token, vlm.image_tokens), (Some(502), 4));
    assert_eq!(ModelConfig::read(&golden("wide/vlm")).unwrap().image_tokens, 9);
}

#[test]
fn the_minimal_published_4b_configuration_gets_the_class_defaults() {
    let config = parse(&json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144, "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024
        },
        "vision_config": {
            "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false
        }
    }))
    .unwrap();
    let text = &config.text;
    assert_eq!((text.vocab_size, text.num_attention_heads, text.num_key_value_heads), (262_208, 8, 4));
    assert_eq!((text.head_dim, text.max_position_embeddings, text.sliding_window), (256, 131_072, 1024));
    assert_eq!((text.rms_norm_eps, text.query_pre_attn_scalar, text.tie_word_embeddings), (1e-6, 256.0, true));
    assert_eq!(
        (text.rope_global, text.rope_local),
        (Rope { theta: 1e6, factor: 8.0 }, Rope { theta: 1e4, factor: 1.0 },)
    );
    let full: Vec<usize> = (0..34).filter(|&layer| text.layer_types[layer] == LayerKind::Full).collect();
    assert_eq!(full, [5, 11, 17, 23, 29]);
    assert_eq!((config.image_token, config.image_tokens), (Some(262_144), 256));
    assert_eq!(config.eos_token_ids, [1, 106]);
    let parameters: usize = text.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!((parameters, text.tensors().len()), (3_880_263_168, 444));
}

#[test]
fn an_empty_text_configuration_is_transformers_default() {
    let config = parse(&json!({"model_type": "gemma3_text"})).unwrap();
    let text = &config.text;
    assert_eq!((text.hidden_size, text.intermediate_size, text.num_hidden_layers), (2304, 9216, 26));
    assert_eq!((text.sliding_window, config.eos_token_ids), (4096, vec![1]));
    let vlm = parse(&json!({"model_type": "gemma3", "mm_tokens_per_image": 49})).unwrap();
    assert_eq!(vlm.text, *text);
    assert_eq!(vlm.vision.unwrap().hidden_size, 768);
}

#[test]
fn eras_of_one_model_are_equal() {
    let expected = parse(&text()).unwrap();
    assert_eq!(expected.text.rope_global, Rope { theta: 2e6, factor: 8.0 });
    let kinds = ["sliding_attention", "sliding_attention", "full_attention"];
    let layer_types: Vec<&str> = (0..7).map(|layer| kinds[layer % 3]).collect();
    let later = json!({
        "rope_theta": null, "rope_local_base_freq": null, "rope_scaling": null, "sliding_window_pattern": null,
        "layer_types": layer_types,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 8},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4}
        }
    });
    for era in [
        json!({}),
        json!({"sliding_window_pattern": null, "_sliding_window_pattern": 3}),
        json!({"sliding_window_pattern": 6, "layer_types": layer_types}),
        json!({"rope_scaling": {"type": "linear", "factor": 8}}),
        json!({"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "default"}}}),
        later,
    ] {
        assert_eq!(parse(&with(era.clone())).unwrap(), expected, "{era}");
    }
    let inner = json!({"model_type": "gemma3", "text_config": text(), "mm_tokens_per_image": 49, "image_token_id": 77});
    let inner = parse(&inner).unwrap();
    assert_eq!((inner.text, inner.image_token), (expected.text, Some(77)));
    assert_eq!(inner.eos_token_ids, [1, 106]);
}

#[test]
fn scaling_is_of_full_layers_alone_and_default_is_none() {
    let plain = parse(&with(json!({"rope_scaling": null}))).unwrap().text;
    assert_eq!((plain.rope_global.factor, plain.rope_local.factor), (1.0, 1.0));
    let default = parse(&with(json!({"rope_scaling": {"rope_type": "default"}}))).unwrap().text;
    assert_eq!(default, plain);
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    for (field, value) in [
        ("model_type", json!("gemma2")),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("attention_bias", json!(true)),
        ("use_bidirectional_attention", json!(true)),
        ("use_bidirectional_attention", json!("all")),
        ("attention_dropout", json!(0.1)),
        ("hidden_activation", json!("gelu")),
        ("layer_types", json!(vec!["chunked_attention"; 7])),
        ("quantization_config", json!({"quant_method": "bitsandbytes"})),
    ] {
        match parse(&with(json!({field: value}))).unwrap_err() {
            Error::Unsupported { file, field: named, .. } => {
                assert_eq!((file.as_str(), named.as_str()), ("config.json", field))
            }
            other => panic!("{field}: {other}"),
        }
    }
    for rope in [json!({"rope_type": "yarn", "factor": 4.0}), json!({"rope_type": "dynamic", "factor": 2.0})] {
        let error = parse(&with(json!({"rope_scaling": rope}))).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { field, .. } if field == "rope_scaling.rope_type"), "{error}");
    }
    let nested = json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3n_text"}});
    assert!(matches!(parse(&nested), Err(Error::Unsupported { field, .. }) if field == "text_config.model_type"));
}

#[test]
fn impossible_values_are_refused_by_name() {
    for (field, value) in [
        ("vocab_size", json!(0)),
        ("hidden_size", json!(-3)),
        ("intermediate_size", json!(2.5)),
        ("num_hidden_layers", json!("7")),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_attention_heads", json!(u64::MAX)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(5)),
        ("sliding_window", json!(0)),
        ("sliding_window_pattern", json!(0)),
        ("rms_norm_eps", json!(0.0)),
        ("query_pre_attn_scalar", json!(-1)),
        ("rope_theta", json!(true)),
        ("layer_types", json!(["full_attention"])),
        ("layer_types", json!("full_attention")),
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!([])),
        ("eos_token_id", json!([1, -1])),
        ("tie_word_embeddings", json!(1)),
        ("model_type", json!(3)),
        ("model_type", json!(null)),
        ("rope_scaling", json!(8)),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e6})),
    ] {
        match parse(&with(json!({field: value}))).unwrap_err() {
            Error::Field { field: named, .. } => assert_eq!(named, field),
            other => panic!("{field} = {value}: {other}"),
        }
    }
    for scaling in [json!({"rope_type": "linear"}), json!({"factor": 8}), json!({"rope_type": "linear", "factor": 0})] {
        assert!(matches!(parse(&with(json!({"rope_scaling": scaling}))), Err(Error::Field { .. })), "{scaling}");
    }
    for tokens in [0, 5, 100] {
        let value = json!({"model_type": "gemma3", "mm_tokens_per_image": tokens});
        assert!(matches!(parse(&value), Err(Error::Field { .. })), "{tokens} tokens of 14 x 14 patches");
    }
}

#[test]
fn text_that_is_not_an_object_is_refused() {
    for text in ["", "{", "[]", "null", "{\"model_type\": \"gemma3_text\"} x"] {
        assert!(matches!(ModelConfig::from_json("config.json", text), Err(Error::Json { .. })), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_json_makes_the_reader_panic(field in 0_usize..25, number in proptest::num::i64::ANY, kind in 0_u8..6) {
        let mut value = text();
        let names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        value[&names[field % names.len()]] = match kind {
            0 => json!(number),
            1 => json!(number as f64 * 1e-3),
            2 => json!([number]),
            3 => json!({"rope_type": "linear", "factor": number}),
            4 => json!(number.to_string()),
            _ => json!(number % 2 == 0),
        };
        let _ = parse(&value);
    }
}
