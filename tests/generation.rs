//! Greedy generation with kept keys and values is the generation that runs the whole text again for every token.

mod support;

use support::{Golden, OnEach, on_each_device, single};
use unflip::batch::PackedBatch;
use unflip::model::{AnswerColumns, Engine, Entry, ForwardRequest, KvCache, OutputRows, SitePlan};
use unflip::ops::TrainDevice;

/// The next tokens and their logits, each from a pass over everything before it.
fn without_cache<D: TrainDevice>(engine: &Engine<D>, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<f64>) {
    let (mut ids, mut logits) = (prompt.to_vec(), Vec::new());
    for _ in 0..count {
        let batch = engine.pack(&[single(ids.clone()).tokens], 0).unwrap();
        let row = engine.answer_logits(&batch, &AnswerColumns::Full).unwrap().remove(0);
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        ids.push(row.iter().position(|&logit| logit == largest).unwrap() as u32);
        logits.push(largest);
    }
    (ids.split_off(prompt.len()), logits)
}

#[test]
fn a_cache_changes_no_token_and_no_bit() {
    struct Body;
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = Golden::open("text");
            let engine = golden.engine(device, Some(&golden.adapter("lora_all")));
            let prompt = golden.groups().groups[0].tokens.prompt(1);
            let window = engine.model.config.sliding_window;
            let count = if name == "reference" { 3 } else { 2 * window.min(20) };
            let (tokens, logits) = without_cache(&engine, &prompt, count);
            let mut seen = Vec::new();
            let generated = engine.generate(&prompt, count, &[], |token| seen.push(token)).unwrap();
            assert_eq!((&generated.tokens, &seen, generated.stopped_by), (&tokens, &tokens, None), "{name}");
            assert_eq!(generated.logits, logits, "{name}");
            assert!(name == "reference" || prompt.len() + count > window, "the window is passed");

            // The text ends at the first token that ends it.
            let stop = tokens[2];
            let first = tokens.iter().position(|&token| token == stop).unwrap();
            let ended = engine.generate(&prompt, count, &[stop], |_| ()).unwrap();
            assert_eq!((&ended.tokens[..], ended.stopped_by), (&tokens[..first], Some(stop)), "{name}");
        }
    }
    on_each_device(&mut Body);
}

#[test]
fn what_does_not_fit_or_wants_a_gradient_is_refused() {
    let golden = Golden::open("text");
    let device = unflip::cpu::Cpu::new(unflip::cpu::Isa::best(), Some(2)).unwrap();
    let engine = golden.engine(device, None);
    let positions = engine.model.config.max_position_embeddings;
    let error = engine.generate(&[2, 3], positions, &[], |_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("a prompt of 2 tokens and {positions} new ones were asked for, the model has {positions} positions")
    );

    let run = |cache: &mut KvCache<_>, batch: &PackedBatch, train| {
        let request = ForwardRequest {
            layers: 0..engine.model.depth(),
            entry: Entry::Embeddings,
            rows: OutputRows::Answers,
            adapter: None,
            train,
            dropout: None,
            sites: &SitePlan::default(),
        };
        engine.model.forward_cached(&engine.device, batch, request, cache).map(|_| ()).map_err(|e| e.to_string())
    };
    let mut cache = KvCache::new(&engine.device, &engine.model.config, engine.model.depth(), 3);
    let batch = engine.pack(&[single(vec![2, 3]).tokens], 0).unwrap();
    assert!(run(&mut cache, &batch, true).unwrap_err().starts_with("there is no backward pass through a cache"));
    run(&mut cache, &batch, false).unwrap();
    let full = "2 tokens were given to a cache of keys and values that holds 2 of 3";
    assert_eq!(run(&mut cache, &batch, false).unwrap_err(), full);
    let two = PackedBatch::continuation(2, &[4, 5], engine.model.config.sliding_window);
    assert_eq!(run(&mut cache, &two, false).unwrap_err(), full);
}
