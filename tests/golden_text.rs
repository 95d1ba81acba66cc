//! The text model equals Hugging Face on recorded results: logits, hidden states, losses, gradients, optimiser steps, on
//! every back end, with shared and unshared prefixes; and the CPU gives the same bits on every instruction set and thread count.

mod support;

use support::{GRADIENT, Golden, LOGITS, LOSS, OnEach, assert_close, ids, isas, on_each_device, single, widen};
use unflip::cpu::Cpu;
use unflip::data::TraceInput;
use unflip::model::{Engine, Target};
use unflip::objective::{Objective, Pairs};
use unflip::ops::TrainDevice;
use unflip::ops::adamw::AdamWStep;
use unflip::trace::{TraceTensor, trace_forward, trace_loss};

const LOSSES: [(&str, &str, Pairs); 7] = [
    ("L_margin", "margin", Pairs::All),
    ("L_symkl_binary", "symkl-binary", Pairs::All),
    ("L_symkl_full", "symkl-full", Pairs::All),
    ("L_ce_full", "ce-full", Pairs::All),
    ("L_ce_binary", "ce-binary", Pairs::All),
    ("L_paper", "paper", Pairs::Original),
    ("combined", "combined", Pairs::All),
];

fn find<'a>(tensors: &'a [TraceTensor], name: &str) -> &'a [f32] {
    &tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no tensor {name}")).values
}

#[test]
fn hidden_states_and_logits_equal_hugging_face() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let forward = golden.file("forward.safetensors");
            let engine = golden.engine(device, None);
            let vocabulary = engine.model.config.vocab_size;
            for sequence in ["seq0", "seq1"] {
                let group = single(ids(&forward, &format!("{sequence}.input_ids")));
                let input = TraceInput { groups: vec![group], ..TraceInput::default() };
                let expected = |what: &str| forward.tensor(&format!("{sequence}.{what}")).unwrap().to_f32();
                for hidden in [true, false] {
                    let tensors = trace_forward(&engine, &input, hidden).unwrap();
                    let logits = expected("logits");
                    let last = &logits[logits.len() - vocabulary..];
                    assert_close(
                        &format!("{name} {sequence} logits"),
                        &widen(find(&tensors, "group0.last_logits")),
                        last,
                        LOGITS,
                    );
                    if !hidden {
                        continue;
                    }
                    let layers = (0..engine.model.depth()).map(|layer| format!("hidden.layer_{layer:02}"));
                    for state in layers.chain(["hidden.embed".into(), "hidden.final_norm".into()]) {
                        let found = widen(find(&tensors, &format!("group0.phrasing0.{state}")));
                        assert_close(&format!("{name} {sequence} {state}"), &found, &expected(&state), LOGITS);
                    }
                }
            }
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

#[test]
fn group_logits_margins_and_gradients_equal_hugging_face() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let input = golden.groups();
            let logits = golden.file("group_logits.safetensors");
            let mut engine = golden.engine(device, None);
            for adapter in [None, Some("lora_all"), Some("lora_l23")] {
                let file = adapter.map(|folder| golden.adapter(folder));
                engine = golden.engine(engine.device, file.as_ref());
                let label = adapter.unwrap_or("base");
                for share in [true, false] {
                    engine.share_prefix = share;
                    let tensors = trace_forward(&engine, &input, false).unwrap();
                    for group in 0..input.groups.len() {
                        for what in ["last_logits", "margin"] {
                            let Ok(expected) = logits.tensor(&format!("{label}.group{group}.{what}")) else {
                                continue;
                            };
                            let found = widen(find(&tensors, &format!("group{group}.{what}")));
                            assert_close(
                                &format!("{name} {label} group{group} {what} share={share}"),
                                &found,
                                &expected.to_f32(),
                                LOGITS,
                            );
                        }
                    }
                    let (Some(folder), Some(file)) = (adapter, &file) else { continue };
                    check_losses(golden, &engine, folder, file, &input, share, name);
                }
            }
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

fn check_losses<D: TrainDevice>(
    golden: &Golden,
    engine: &Engine<D>,
    folder: &str,
    file: &unflip::weights::AdapterFile,
    input: &TraceInput,
    share: bool,
    name: &str,
) {
    let losses = golden.json(&format!("{folder}/losses.json"));
    let gradients = golden.file(&format!("{folder}/grads.safetensors"));
    for (index, (recorded, loss, pairs)) in LOSSES.into_iter().enumerate() {
        assert_eq!(losses["grads_index"][index], recorded);
        let objective = Objective::new(loss, pairs, (loss == "combined").then_some(0.5)).unwrap();
        let tensors = trace_loss(engine, file, input, &objective).unwrap();
        let expected = losses["float64"][recorded].as_f64().unwrap();
        let found = f64::from(find(&tensors, "loss")[0]);
        assert!(
            (found - expected).abs() <= LOSS * expected.abs(),
            "{name} {folder} {recorded} share={share}: {found} instead of {expected}"
        );
        for tensor in &tensors[1..] {
            let recorded_gradient = gradients.tensor(&tensor.name).unwrap().to_f32();
            let size = tensor.values.len();
            assert_close(
                &format!("{name} {folder} {recorded} share={share} {}", tensor.name),
                &widen(&tensor.values),
                &recorded_gradient[index * size..(index + 1) * size],
                GRADIENT,
            );
        }
        assert_eq!(tensors.len() - 1, file.tensors.len() * 2, "one gradient per adapter tensor");
    }
}

#[test]
fn adamw_steps_equal_pytorch() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let settings = golden.json("adamw/adamw.json");
            let recorded = golden.file("adamw/params.safetensors");
            let file = golden.adapter("lora_all");
            let mut engine = golden.engine(device, Some(&file));
            let input = golden.groups();
            let objective = Objective::new("combined", Pairs::All, Some(0.5)).unwrap();
            let length = engine.adapter.as_ref().unwrap().layout.len();
            let (mut m, mut v) = (engine.device.zeros(1, length), engine.device.zeros(1, length));
            let mut errors = Vec::new();
            for step in 0..3u64 {
                let mut gradient: Option<D::Buf> = None;
                let mut loss = 0.0;
                for group in &input.groups {
                    let batch = engine.pack(std::slice::from_ref(&group.tokens), 0).unwrap();
                    let target = Target { yes: group.yes, no: group.no, answer_yes: group.answer_yes };
                    let leaf = engine.leaf_gradient(&batch, &[target], &objective, None).unwrap();
                    loss += leaf.losses[0].loss;
                    match &mut gradient {
                        Some(sum) => engine.device.add_assign(sum, &leaf.gradient),
                        empty => *empty = Some(leaf.gradient),
                    }
                }
                let gradient = gradient.unwrap();
                let count = input.groups.len() as f64;
                let expected = &settings["steps_float64"][step as usize];
                let norm = engine.device.sum_of_squares(&gradient).sqrt() / count;
                let close = |found: f64, key: &str| {
                    let expected = expected[key].as_f64().unwrap();
                    assert!(
                        (found - expected).abs() <= 5e-5 * expected,
                        "{name} step {step} {key}: {found} for {expected}"
                    );
                };
                close(loss / count, "loss");
                close(norm, "grad_norm_before_clip");
                let clip = (1.0 / (norm + 1e-6)).min(1.0);
                let update = AdamWStep {
                    lr: settings["lr"].as_f64().unwrap(),
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: settings["weight_decay"].as_f64().unwrap(),
                    gradient_scale: clip / count,
                    step: step + 1,
                };
                let adapter = engine.adapter.as_mut().unwrap();
                engine.device.adamw(&mut adapter.params, &gradient, &mut m, &mut v, &update);
                let adapter = engine.adapter.as_ref().unwrap();
                let values = engine.device.download(&adapter.params);
                for (slot, tensors) in adapter.layout.slots().iter().zip(&file.tensors) {
                    for (tensor, start) in [(&tensors.a_name, slot.a), (&tensors.b_name, slot.b)] {
                        let expected = recorded.tensor(tensor).unwrap().to_f32();
                        let size = expected.len() / 3;
                        let expected = &expected[step as usize * size..(step as usize + 1) * size];
                        errors.extend(
                            values[start..start + size].iter().zip(expected).map(|(f, &e)| (f - f64::from(e)).abs()),
                        );
                    }
                }
            }
            errors.sort_by(f64::total_cmp);
            let p999 = errors[errors.len() * 999 / 1000];
            assert!(p999 < 1e-6, "{name}: 99.9th percentile {p999:.2e}");
            let max = errors[errors.len() - 1];
            assert!(max < 2e-4, "{name}: maximum {max:.2e}");
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

#[test]
fn every_instruction_set_and_thread_count_gives_the_same_bits() {
    let golden = Golden::open("text");
    let file = golden.adapter("lora_all");
    let input = golden.groups();
    let objective = Objective::new("combined", Pairs::All, Some(0.5)).unwrap();
    /// (name, bits) of every tensor.
    type Bits = Vec<(String, Vec<u32>)>;
    let mut first: Option<(String, Bits)> = None;
    for isa in isas() {
        for threads in [1, 2, 3, 7] {
            let engine = golden.engine(Cpu::new(isa, Some(threads)).unwrap(), Some(&file));
            let mut tensors = trace_forward(&engine, &input, true).unwrap();
            tensors.extend(trace_loss(&engine, &file, &input, &objective).unwrap());
            let bits: Bits = tensors
                .into_iter()
                .map(|tensor| (tensor.name, tensor.values.iter().map(|value| value.to_bits()).collect()))
                .collect();
            let label = format!("{isa} {threads} threads");
            match &first {
                None => first = Some((label, bits)),
                Some((reference, expected)) => {
                    for (found, expected) in bits.iter().zip(expected) {
                        assert!(found == expected, "{} differs between {reference} and {label}", found.0);
                    }
                }
            }
        }
    }
}
