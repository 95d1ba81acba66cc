//! What the real binary says to models, adapters, tokenizers and data that it cannot use: exit code and the whole message,
//! which states what was expected, what was found, where, and what to do.

#[path = "support/command.rs"]
mod command;

use command::{FAILED, MERGES, Place, USAGE, group, refuses};
use serde_json::{Value, json};

/// Evaluates a data file of these groups.
#[track_caller]
fn refuses_data(groups: &[Value], message: &str) {
    let place = Place::new();
    place.data("bad.jsonl", groups);
    refuses(&place, FAILED, "eval --model model --data bad.jsonl --out run", message);
    assert!(!place.exists("run"), "data is checked before a folder is made");
}

/// A group with other fields.
fn with(id: usize, fields: Value) -> Value {
    let mut group = group(id);
    for (key, value) in fields.as_object().expect("an object") {
        group[key] = value.clone();
    }
    group
}

#[test]
fn model_that_is_not_there() {
    let place = Place::new();
    refuses(
        &place,
        FAILED,
        "inspect nowhere",
        "error: no model `nowhere`: looked at nowhere\n\
         hint: give a model folder, or `org/name` of a model in the local cache",
    );
    refuses(
        &place,
        FAILED,
        "eval --model org/name --data data.jsonl --out run",
        "error: no model `org/name`: looked at org/name, cache/models--org--name\n\
         hint: nothing is downloaded by itself: run `hf download org/name`",
    );
}

#[test]
fn model_config_that_cannot_be_used() {
    let place = Place::new();
    place.rename("model/config.json", "model/config");
    refuses(
        &place,
        FAILED,
        "inspect model",
        "error: model holds no config.json\nhint: give the folder that holds config.json and the weights",
    );
    place.write("model/config.json", "{\"model_type\": \"gemma3_text\",\n oops");
    refuses(
        &place,
        FAILED,
        "inspect model",
        "error: model/config.json is not valid JSON: key must be a string at line 2 column 2\n\
         hint: fetch the file again, or mend it at that place",
    );
    place.rename("model/config", "model/config.json");
    place.edit_json("model/config.json", |config| config["head_dim"] = json!(0));
    refuses(
        &place,
        FAILED,
        "inspect model",
        "error: model/config.json: `head_dim` is 0, expected a whole number from 1 to 2147483648\n\
         hint: take the config.json that was published with the weights",
    );
    place.edit_json("model/config.json", |config| config["model_type"] = json!("llama"));
    refuses(
        &place,
        FAILED,
        "inspect model",
        "error: model/config.json: `model_type` = llama is not supported: only `gemma3` and `gemma3_text` are\n\
         hint: give a Gemma 3 model as Hugging Face or Google published it",
    );
}

#[test]
fn weights_that_do_not_fit_the_config() {
    let place = Place::new();
    for name in ["missing", "shape", "half"] {
        place.model(name);
    }
    place.edit_header("missing/model.safetensors", |header| {
        let tensor = header.remove("model.layers.3.mlp.up_proj.weight").expect("it was there");
        header.insert("model.layers.3.mlp.upp_proj.weight".into(), tensor);
    });
    refuses(
        &place,
        FAILED,
        "inspect missing",
        "error: missing has no tensor `language_model.layers.3.mlp.up_proj.weight`\n\
         hint: the nearest name that is there is `language_model.layers.3.mlp.upp_proj.weight`: weights and config.json \
         must come from one model",
    );
    place.edit_header("shape/model.safetensors", |header| {
        header["model.layers.2.self_attn.k_proj.weight"]["shape"] = json!([48, 32]);
    });
    refuses(
        &place,
        FAILED,
        "ask --model shape Fluid?",
        "error: shape/model.safetensors: tensor `model.layers.2.self_attn.k_proj.weight` has shape [48, 32], expected [32, 48]\n\
         hint: config.json and the weights belong to different models: take both from one folder",
    );
    place.edit_header("half/model.safetensors", |header| {
        for tensor in header.values_mut().filter(|entry| entry.get("dtype").is_some()) {
            tensor["dtype"] = json!("F16");
        }
    });
    refuses(
        &place,
        FAILED,
        "ask --model half Fluid?",
        "error: half/model.safetensors: tensor `model.embed_tokens.weight` is F16, expected BF16 or F32: Gemma 3's residual \
         stream overflows half precision, whose largest value is 65504\n\
         hint: use the bfloat16 checkpoint, or convert the original one to bfloat16",
    );
}

#[test]
fn weight_files_that_are_damaged() {
    let place = Place::new();
    let weights = std::fs::read(place.path("model/model.safetensors")).expect("weights are read");
    std::fs::write(place.path("model/model.safetensors"), &weights[..weights.len() / 2]).expect("weights are cut");
    let run = place.unflip("inspect model");
    assert_eq!(run.code, Some(FAILED));
    let (error, hint) = run.err.split_once('\n').expect("two lines");
    assert!(error.starts_with("error: model/model.safetensors is truncated: tensor `model.layers."), "{error}");
    assert!(error.ends_with(&format!("ends at byte {}, the file has {}", weights.len(), weights.len() / 2)), "{error}");
    assert_eq!(hint, "hint: the download or copy did not finish: fetch the file again\n");

    let hostile = [&u64::MAX.to_le_bytes()[..], &weights[8..]].concat();
    std::fs::write(place.path("model/model.safetensors"), hostile).expect("header is written");
    refuses(
        &place,
        FAILED,
        "inspect model",
        "error: model/model.safetensors: the header claims 18446744073709551615 bytes, the format's limit is 100000000\n\
         hint: the file is damaged or was written wrongly: fetch or save it again",
    );
    place.rename("model/model.safetensors", "model/pytorch_model.bin");
    refuses(
        &place,
        FAILED,
        "inspect model",
        "error: model holds neither model.safetensors nor model.safetensors.index.json\n\
         hint: found pytorch_model.bin: save the model again with safe_serialization=True",
    );
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}});
    place.write("model/model.safetensors.index.json", &index.to_string());
    refuses(
        &place,
        FAILED,
        "inspect model",
        "error: model/model.safetensors.index.json names the shard `model-00001-of-00001.safetensors` (of tensor \
         `model.norm.weight`), which is missing\n\
         hint: the download or copy did not finish: fetch the file again",
    );
}

#[test]
fn adapter_that_is_none() {
    let place = Place::new();
    refuses(
        &place,
        FAILED,
        "eval --model model --adapter nowhere --data data.jsonl --out run",
        "error: cannot open nowhere: No such file or directory (os error 2)\n\
         hint: check the spelling of nowhere; its folder must exist",
    );
    refuses(
        &place,
        FAILED,
        "inspect --adapter model",
        "error: model is not a PEFT adapter folder: it holds no adapter_config.json\n\
         hint: this is a model folder: give it as --model",
    );
    refuses(
        &place,
        FAILED,
        "inspect lora",
        "error: lora holds neither model.safetensors nor model.safetensors.index.json\n\
         hint: this is an adapter folder: give its base model as --model and this folder as --adapter",
    );
    place.rename("lora/adapter_model.safetensors", "lora/adapter_model.bin");
    refuses(
        &place,
        FAILED,
        "inspect --adapter lora",
        "error: lora/adapter_model.bin is a pickle, expected adapter_model.safetensors\n\
         hint: load it with PEFT where you trust it and save it with safe_serialization=True",
    );
    place.remove("lora/adapter_model.bin");
    refuses(
        &place,
        FAILED,
        "inspect --adapter lora",
        "error: lora is not a PEFT adapter folder: it holds no adapter_model.safetensors\n\
         hint: give the folder that PEFT's `save_pretrained` wrote",
    );
}

#[test]
fn adapter_that_cannot_be_used() {
    let place = Place::new();
    for verb in ["eval --data data.jsonl", "merge"] {
        refuses(
            &place,
            FAILED,
            &format!("{verb} --model model --adapter vlm_lora --out run"),
            "error: adapter does not fit the model: layer 0 q_proj is 96×40 in the adapter and 64×48 in the model\n\
             hint: compare `unflip inspect MODEL` with `unflip inspect --adapter ADAPTER`: the adapter was made for another model",
        );
    }
    assert!(!place.exists("run"));
    for name in ["rank", "dora", "vision"] {
        place.adapter(name);
    }
    place.edit_json("rank/adapter_config.json", |config| config["r"] = json!(7));
    refuses(
        &place,
        FAILED,
        "inspect --adapter rank",
        "error: rank/adapter_model.safetensors: tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has \
         rank 4, adapter_config.json gives it 7\n\
         hint: adapter_config.json and adapter_model.safetensors come from different runs",
    );
    place.edit_json("dora/adapter_config.json", |config| config["use_dora"] = json!(true));
    refuses(
        &place,
        FAILED,
        "inspect --adapter dora",
        "error: dora/adapter_config.json: `use_dora` = true is not supported: DoRA rescales the weights by column norms; only \
         plain LoRA and rsLoRA are\n\
         hint: train the adapter again as plain LoRA or rsLoRA, or merge it into its base model with PEFT",
    );
    place.edit_header("vision/adapter_model.safetensors", |header| {
        for part in ["lora_A", "lora_B"] {
            let name = format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
            let tensor = header.remove(&name).expect("it was there");
            header.insert(name.replace("model.layers", "vision_tower.vision_model.encoder.layers"), tensor);
        }
    });
    refuses(
        &place,
        FAILED,
        "inspect --adapter vision",
        "error: vision/adapter_model.safetensors: tensor \
         `base_model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight` adapts the vision tower, \
         only the language model's layers can be adapted\n\
         hint: a list of target_modules also matches SigLIP's q_proj, k_proj and v_proj of the same layer numbers: train again \
         with target_modules as a regular expression such as \
         `.*language_model.*layers\\.(15|16)\\.(self_attn\\.(q|k|v|o)_proj|mlp\\.(gate|up|down)_proj)`, or with \
         exclude_modules=\".*vision_tower.*\"",
    );
}

#[test]
fn tokenizer_that_cannot_ask() {
    let place = Place::new();
    let ask = "ask --model model Fluid?";
    let answer_hint = "hint: take the tokenizer.json that belongs to this model: the margin compares one token for yes with one for no";
    place.tokenizer("model", &[("N", "o")]);
    refuses(
        &place,
        FAILED,
        ask,
        &format!(
            "error: answer `Yes` must be one token of this model's tokenizer, found 3: `Y`, `e`, `s`\n{answer_hint}"
        ),
    );
    place.tokenizer("model", &MERGES);
    place.edit_json("model/tokenizer.json", |tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
        for token in ["N", "o", "No"] {
            vocabulary.remove(token);
        }
        tokenizer["model"]["merges"] = json!([["Y", "e"], ["Ye", "s"]]);
    });
    refuses(
        &place,
        FAILED,
        ask,
        &format!("error: answer `No` must be one token of this model's tokenizer, found no token\n{answer_hint}"),
    );
    place.tokenizer("model", &MERGES);
    place.edit_json("model/tokenizer.json", |tokenizer| tokenizer["added_tokens"] = json!([]));
    refuses(
        &place,
        FAILED,
        ask,
        "error: `<bos>` must be one token of this model's tokenizer, found 5: `<`, `b`, `o`, `s`, `>`\n\
         hint: take the tokenizer.json of a Gemma 3 model: prompts are written in its chat format",
    );
    place.tokenizer("model", &MERGES);
    place.edit_json("model/tokenizer.json", |tokenizer| tokenizer["model"]["vocab"]["F"] = json!(700));
    refuses(
        &place,
        FAILED,
        ask,
        "error: group `ask`, phrasing 0, token 41: id 700 is not in the model's vocabulary of 512\n\
         hint: check that tokenizer.json, or the file of token ids, belongs to this model",
    );
    place.write("model/tokenizer.json", "{}");
    refuses(
        &place,
        FAILED,
        ask,
        "error: model/tokenizer.json is no tokenizer that can be used: Model missing. at line 1 column 2\n\
         hint: fetch the model's tokenizer.json again",
    );
    place.remove("model/tokenizer.json");
    refuses(
        &place,
        FAILED,
        ask,
        "error: no tokenizer.json in the model folder: expected model/tokenizer.json\n\
         hint: put the tokenizer.json that belongs to the model beside its config.json; `unflip trace` on token ids needs none",
    );
}

const LINE: &str = r#"hint: a line is {"id": …, "question": …, "paraphrases": ["…"], "answer": "yes"}"#;

#[test]
fn data_file_that_is_none() {
    let place = Place::new();
    refuses(
        &place,
        FAILED,
        "eval --model model --data nowhere.jsonl --out run",
        "error: cannot read nowhere.jsonl: No such file or directory (os error 2)\n\
         hint: check the spelling of nowhere.jsonl; its folder must exist",
    );
    refuses(
        &place,
        FAILED,
        "eval --model model --data file --out run",
        "error: file has no prompt group\n\
         hint: expected at least one group: a line is {\"id\": …, \"question\": …, \"paraphrases\": [\"…\"], \"answer\": \"yes\"}",
    );
    place.write("bad.jsonl", &format!("{}\n\n{{\"id\": \"q1\", oops}}\n", group(0)));
    refuses(
        &place,
        FAILED,
        "eval --model model --data bad.jsonl --out run",
        &format!(
            "error: bad.jsonl, line 3: expected a JSON object, found bad JSON: key must be a string at column 14\n{LINE}"
        ),
    );
}

#[test]
fn groups_that_are_not_whole() {
    refuses_data(
        &[group(0), json!([1])],
        &format!("error: bad.jsonl, line 2: expected a JSON object, found a list of 1\n{LINE}"),
    );
    refuses_data(
        &[group(0), with(1, json!({"question": " "}))],
        "error: bad.jsonl, line 2, group `q1`: `question` is empty\nhint: fill in `question`, or leave the group out",
    );
    refuses_data(
        &[with(0, json!({"paraphrases": ["Any fluid?", ""]}))],
        "error: bad.jsonl, line 1, group `q0`: `paraphrases[1]` is empty\n\
         hint: fill in `paraphrases[1]`, or leave the group out",
    );
    refuses_data(
        &[json!({"id": "q0", "answer": "yes", "paraphrases": ["Any fluid?"]})],
        &format!("error: bad.jsonl, line 1, group `q0`: `question` is missing\n{LINE}"),
    );
    refuses_data(
        &[with(0, json!({"paraphrases": []}))],
        "error: bad.jsonl, line 1, group `q0`: the question has no paraphrase\n\
         hint: add paraphrases; training on the question alone takes an accuracy loss (`--loss ce-binary` or `ce-full`)",
    );
    refuses_data(
        &[group(0), with(1, json!({"answer": "maybe"}))],
        "error: bad.jsonl, line 2, group `q1`: `answer` must be yes or no, found `maybe`\n\
         hint: leave out questions that have no yes/no answer",
    );
    refuses_data(
        &[group(0), group(1), group(0)],
        "error: bad.jsonl, line 3, group `q0`: its id is that of line 1 already\nhint: give each group an id of its own",
    );
    refuses_data(
        &[with(0, json!({"paraphrase": ["Any fluid?"]}))],
        "error: bad.jsonl, line 1, group `q0`: unknown key `paraphrase`: did you mean `paraphrases`?\n\
         hint: rename it; data of your own belongs in `meta`",
    );
    refuses_data(
        &[with(0, json!({"meta": {"phenomena": ["negation_pattern"]}}))],
        "error: bad.jsonl, line 1, group `q0`: `meta.phenomena` has 1 entries for 2 paraphrases\n\
         hint: list one phenomenon per paraphrase, or write paraphrases as {\"text\": …, \"phenomenon\": …}",
    );
}

#[test]
fn groups_that_the_model_cannot_take() {
    refuses_data(
        &[with(0, json!({"image": "x.png"}))],
        "error: group `q0` has an image (`x.png`), and the model is text-only\n\
         hint: use a vision-language model, or set `image` to null and describe it in `context`",
    );
    let long = "error: group `q2`, phrasing 0: 715 tokens, and the model takes 512\n\
                hint: shorten the context or the question, or leave the group out";
    let groups = [group(0), group(1), with(2, json!({"context": "x".repeat(600)}))];
    refuses_data(&groups, long);
    let place = Place::new();
    place.data("bad.jsonl", &groups);
    refuses(&place, FAILED, "train --model model --data bad.jsonl --out run", long);
    assert!(!place.exists("run"), "a run is begun only when it can go to its end");
    refuses(&place, FAILED, "train --model model --data data.jsonl --validation bad.jsonl --out run", long);
}

#[test]
fn images_that_are_not_seen() {
    let place = Place::new();
    place.vision_model("vlm");
    refuses(
        &place,
        USAGE,
        "ask --model model Fluid? --image x.png",
        "error: --image x.png was given, and model is a text-only model\n\
         hint: leave the image out, or use a vision-language model",
    );
    refuses(
        &place,
        USAGE,
        "ask --model vlm Fluid? --image x.png",
        "error: --image x.png was given, and this version does not run the vision tower\n\
         hint: leave the image out to ask about text alone",
    );
    place.data("image.jsonl", &[with(0, json!({"image": "x.png"}))]);
    refuses(
        &place,
        FAILED,
        "eval --model vlm --data image.jsonl --out run",
        "error: group `q0` has an image (`x.png`), and this version does not run the vision tower\n\
         hint: set `image` to null to ask about text alone",
    );
    place.edit_json("groups.json", |input| input["groups"][1]["image"] = json!(0));
    refuses(
        &place,
        FAILED,
        "trace --model model --input groups.json --out t.safetensors",
        "error: group `1` has an image (`0`), and the model is text-only\n\
         hint: use a vision-language model, or set `image` to null and describe it in `context`",
    );
}

#[test]
fn trace_input_that_does_not_fit() {
    let trace = |change: fn(&mut Value), message: &str| {
        let place = Place::new();
        place.edit_json("groups.json", |input| change(&mut input["groups"]));
        refuses(&place, FAILED, "trace --model model --input groups.json --out t.safetensors", message);
        assert!(!place.exists("t.safetensors"));
    };
    trace(
        |groups| groups[1]["prefix"][0] = json!(512),
        "error: group 1, phrasing 0, token 0: id 512 is not in the model's vocabulary of 512\n\
         hint: check that tokenizer.json, or the file of token ids, belongs to this model",
    );
    trace(
        |groups| groups[1]["prefix"][0] = json!(262_144),
        "error: group 1, phrasing 0, token 0: an image token (262144), and the model is text-only\n\
         hint: use a vision-language model, or take the image out of the prompt",
    );
    trace(
        |groups| groups[1]["yes_id"] = json!(512),
        "error: group 1: the answer token 512 is not in the model's vocabulary of 512\n\
         hint: check that tokenizer.json, or the file of token ids, belongs to this model",
    );
    trace(
        |groups| groups[1]["suffixes"][1] = json!([]),
        "error: groups.json, group 1: `suffixes[1]` is empty\nhint: fill in `suffixes[1]`, or leave the group out",
    );
    trace(
        |groups| groups[0]["suffixes"][0] = json!(vec![5; 600]),
        "error: group 0, phrasing 0: 614 tokens, and the model takes 512\n\
         hint: shorten the context or the question, or leave the group out",
    );
    trace(
        |groups| groups[0]["label"] = json!("maybe"),
        "error: groups.json, group 0: `label` must be yes or no, found `maybe`\n\
         hint: leave out questions that have no yes/no answer",
    );
    trace(
        |groups| *groups = json!(1),
        "error: groups.json: `groups` must be a list, found 1\n\
         hint: the file is {\"groups\": [{\"prefix\": [1, 2], \"suffixes\": [[3]], \"yes_id\": 4, \"no_id\": 5, \"label\": \"yes\"}]}",
    );
}
