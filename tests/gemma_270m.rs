//! Real Gemma 3 270M: logits, norms and training steps equal what transformers and PEFT computed in float32.
//!
//! Needs the weights: `UNFLIP_TEST_MODEL=DIR` (tools/get_gemma3_270m makes the folder, tools/test sets the variable); without it
//! every test here prints that it was skipped.

mod support;

use std::path::{Path, PathBuf};
use unflip::batch::TokenGroup;
use unflip::cpu::{Cpu, Isa};
use unflip::data::TraceInput;
use unflip::model::{Adapter, EmbedScale, Engine, Entry, ForwardRequest, OutputRows, Site, SiteKind, SitePlan, Target};
use unflip::objective::{Objective, Pairs};
use unflip::ops::Backend;
use unflip::ops::adamw::{AdamW, AdamWStep};
use unflip::tape::Columns;
use unflip::text::Tokenizer;
use unflip::weights::{AdapterFile, Checkpoint};

fn model() -> Option<PathBuf> {
    let folder = std::env::var_os("UNFLIP_TEST_MODEL").filter(|value| !value.is_empty());
    if folder.is_none() {
        eprintln!("skipped: UNFLIP_TEST_MODEL names no Gemma 3 270M folder");
    }
    folder.map(PathBuf::from)
}

fn recorded(name: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/peer").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn engine(folder: &Path) -> Engine<Cpu> {
    let device = Cpu::new(Isa::best(), None).unwrap();
    Engine::open(device, &Checkpoint::open(folder).unwrap(), EmbedScale::Exact, None).unwrap()
}

#[test]
fn logits_and_norms_of_real_text_equal_transformers() {
    let Some(folder) = model() else { return };
    let engine = engine(&folder);
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let golden = recorded("golden_270m.json");
    for prompt in golden["prompts"].as_array().unwrap() {
        let name = prompt["name"].as_str().unwrap();
        let ids: Vec<u32> = prompt["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        // The recorded ids came from a tokenizer call that prepends <bos>.
        let text = format!("<bos>{}", prompt["text"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: token ids");

        let batch = engine.pack(&[TokenGroup { prefix: Vec::new(), suffixes: vec![ids] }], 0).unwrap();
        let depth = engine.model.depth();
        let mut sites = SitePlan::default();
        sites.read.insert(Site { layer: 0, kind: SiteKind::ResidPre });
        sites.read.extend((0..depth - 1).map(|layer| Site { layer, kind: SiteKind::ResidPost }));
        let request = ForwardRequest {
            layers: 0..depth,
            entry: Entry::Embeddings,
            rows: OutputRows::All,
            adapter: None,
            train: false,
            dropout: None,
            sites: &sites,
        };
        let mut forward = engine.model.forward(&engine.device, &batch, request).unwrap();
        let last = forward.tape.take(forward.hidden);
        let mut states: Vec<&<Cpu as Backend>::Buf> = forward.reads.values().collect();
        let normed = engine.final_norm(&last);
        states.push(&normed);
        for (index, state) in states.into_iter().enumerate() {
            let cols = engine.device.shape(state).1;
            let values = engine.device.download(state);
            let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
            for (key, found) in
                [("hidden_l2_last", norm(&values[values.len() - cols..])), ("hidden_fro", norm(&values))]
            {
                let expected = prompt[key][index].as_f64().unwrap();
                assert!((found - expected).abs() <= 1e-4 * expected, "{name} {key}[{index}]: {found} for {expected}");
            }
        }

        let logits = engine.answer_logits(&batch, &Columns::Full).unwrap().remove(0);
        let max = logits.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let check = |id: usize, expected: f64| {
            let found = logits[id];
            assert!((found - expected).abs() <= 1e-4 * max, "{name} logit {id}: {found} for {expected}");
        };
        let top: Vec<(usize, f64)> = prompt["top20"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry[0].as_u64().unwrap() as usize, entry[1].as_f64().unwrap()))
            .collect();
        for &(id, expected) in &top {
            check(id, expected);
        }
        for (string, value) in prompt["answer_logits"].as_object().unwrap() {
            check(golden["answer_ids"][string].as_u64().unwrap() as usize, value.as_f64().unwrap());
        }
        for pair in top.windows(2) {
            if pair[0].1 - pair[1].1 > 1e-4 * max {
                assert!(logits[pair[0].0] > logits[pair[1].0], "{name}: order of {} and {}", pair[0].0, pair[1].0);
            }
        }
        let greedy = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(greedy as u64, prompt["greedy12"][0].as_u64().unwrap(), "{name}: first greedy token");
    }
}

#[test]
fn four_training_steps_equal_peft() {
    let Some(folder) = model() else { return };
    let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/peer");
    let mut engine = engine(&folder);
    let file = AdapterFile::open(peer.join("init_8_11")).unwrap();
    engine.adapter = Some(Adapter::from_file(&engine.device, &engine.model.config, &file).unwrap());
    let input = TraceInput::read(peer.join("groups_270m.json")).unwrap();
    let objective = Objective::new("combined", Pairs::All, Some(0.1)).unwrap();
    let runs = recorded("golden_trace.json");
    let losses = runs
        .as_array()
        .unwrap()
        .iter()
        .find(|run| run["layers"] == "8-11" && run["dtype"] == "fp32")
        .expect("a recorded run on layers 8-11")["losses"]
        .clone();
    let length = engine.adapter.as_ref().unwrap().layout.len();
    let start = engine.adapter.as_ref().unwrap().download(&engine.device);
    let (mut m, mut v) = (engine.device.zeros(1, length), engine.device.zeros(1, length));
    for (step, group) in input.groups.iter().take(4).enumerate() {
        let batch = engine.pack(std::slice::from_ref(&group.tokens), 0).unwrap();
        let target = Target { yes: group.yes, no: group.no, answer_yes: group.answer_yes };
        let leaf = engine.leaf_gradient(&batch, &[target], &objective, None).unwrap();
        let (found, expected) = (leaf.losses[0].loss, losses[step][0].as_f64().unwrap());
        let tolerance = if step == 0 { 1e-5 } else { 1e-3 };
        println!(
            "step {step}: loss {found:.6}, recorded {expected:.6}, relative {:.1e}",
            (found / expected - 1.0).abs()
        );
        assert!((found - expected).abs() <= tolerance * expected, "step {step}: loss {found} for {expected}");
        let update = AdamWStep {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            gradient_scale: 1.0,
            step: step as u64 + 1,
        };
        let adapter = engine.adapter.as_mut().unwrap();
        engine.device.adamw(&mut adapter.params, &leaf.gradient, &mut m, &mut v, &update);
    }
    let found = engine.adapter.as_ref().unwrap().download(&engine.device);
    let last = AdapterFile::open(peer.join("final_8_11_4")).unwrap();
    let recorded = Adapter::<Cpu>::from_file(&engine.device, &engine.model.config, &last).unwrap();
    let recorded = recorded.download(&engine.device);
    let distance = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt()
    };
    let (error, update) = (distance(&found, &recorded), distance(&start, &recorded));
    println!(
        "distance to the recorded adapter {error:.3e}, size of the update {update:.3e}, ratio {:.3e}",
        error / update
    );
    assert!(
        error < 0.05 * update,
        "the final adapter is {error:.3e} away from the recorded one; the update is {update:.3e}"
    );
}
