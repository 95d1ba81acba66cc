//! Adapter gradients of the whole model: of any subset of modules and layers they are those of the loss (finite
//! differences on the reference, the reference on the CPU), and nothing that only saves work changes them: packing several
//! groups together, sharing prefixes, computing answer rows alone. Dropout masks depend on their key alone.

mod support;

use std::ops::Range;
use support::{GRADIENT, Golden, LOGITS, OnEach, engine_groups, isas, loss, on_each_device};
use unflip::batch::PackedBatch;
use unflip::cpu::Cpu;
use unflip::model::{
    Adapter, AnswerColumns, DropoutStep, Engine, Entry, ForwardRequest, Leaf, LoraLayout, LoraSettings, OutputRows,
    Site, SiteKind, SitePlan, Target,
};
use unflip::objective::{GroupLogits, Objective, Pairs};
use unflip::ops::case::{Values, walk};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{Backend, TrainDevice};
use unflip::train::EngineGroup;
use unflip::weights::Module;

const MODULES: [Module; 7] = [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

fn pack<D: TrainDevice>(engine: &Engine<D>, groups: &[EngineGroup], first: u32) -> (PackedBatch, Vec<Target>) {
    let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
    (engine.pack(&tokens, first).expect("packs"), groups.iter().map(Target::from).collect())
}

fn leaf<D: TrainDevice>(
    engine: &Engine<D>,
    groups: &[EngineGroup],
    first: u32,
    objective: &Objective,
    dropout: Option<DropoutStep>,
) -> Leaf<D::Buf> {
    let (batch, targets) = pack(engine, groups, first);
    engine.leaf_gradient(&batch, &targets, objective, dropout).expect("gradient")
}

fn gradient<D: TrainDevice>(
    engine: &Engine<D>,
    groups: &[EngineGroup],
    objective: &Objective,
    dropout: Option<DropoutStep>,
) -> Vec<f64> {
    engine.device.download(&leaf(engine, groups, 0, objective, dropout).gradient)
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// A and B of every slot.
fn tensors(layout: &LoraLayout) -> impl Iterator<Item = (String, Range<usize>)> + '_ {
    layout.slots().iter().flat_map(|slot| {
        let end = slot.b + slot.outputs * slot.rank;
        let name = |part| format!("layer {} {} {part}", slot.layer, slot.module.name());
        [(name("A"), slot.a..slot.b), (name("B"), slot.b..end)]
    })
}

/// |found − expected| ≤ tolerance · max|expected| in every A and every B.
#[track_caller]
fn assert_gradient(what: &str, layout: &LoraLayout, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!((found.len(), expected.len()), (layout.len(), layout.len()), "{what}");
    for (name, range) in tensors(layout) {
        let scale = largest(&expected[range.clone()]);
        assert!(scale > 0.0, "{what}: nothing flows to {name}");
        let worst = range.map(|i| (found[i] - expected[i]).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance * scale, "{what}: {name}: error {worst:.3e} of a maximum {scale:.3e}");
    }
}

#[test]
fn margins_do_not_depend_on_what_is_packed_together() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let groups = engine_groups(golden, 7);
            let engine = golden.engine(device, Some(&golden.adapter("lora_all")));
            let margins = |groups: &[EngineGroup]| {
                let (batch, targets) = pack(&engine, groups, 0);
                engine.margins(&batch, &targets).expect("margins")
            };
            let together = margins(&groups);
            assert!(largest(&together.concat()) > 0.0);
            for (index, group) in groups.iter().enumerate() {
                let alone = margins(std::slice::from_ref(group));
                assert!(alone[0] == together[index], "{name}: {}: {:?}, {:?}", group.id, alone[0], together[index]);
            }
            let pair = margins(&[groups[6].clone(), groups[2].clone()]);
            assert!(pair == [together[6].clone(), together[2].clone()], "{name}: another order");
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

#[test]
fn groups_of_one_batch_have_their_own_losses_and_the_sum_of_their_gradients() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let groups = engine_groups(golden, 2);
            let engine = golden.engine(device, Some(&golden.adapter("lora_all")));
            let layout = &engine.adapter.as_ref().expect("an adapter").layout;
            let dropout = Some(DropoutStep { p: 0.1, seed: 5, step: 2 });
            for objective in [loss("paper", Pairs::Original, None), loss("combined", Pairs::All, None)] {
                let both = leaf(&engine, &groups, 4, &objective, dropout);
                let mut sum = vec![0.0; layout.len()];
                for (index, group) in groups.iter().enumerate() {
                    let alone = leaf(&engine, std::slice::from_ref(group), 4 + index as u32, &objective, dropout);
                    assert!(alone.losses[0] == both.losses[index], "{name}: loss of {}", group.id);
                    sum.iter_mut().zip(engine.device.download(&alone.gradient)).for_each(|(s, g)| *s += g);
                }
                // Each row's part is the same bits; only the chain over rows is longer.
                let rows = pack(&engine, &groups, 4).0.rows();
                assert_gradient(name, layout, &engine.device.download(&both.gradient), &sum, walk(rows));
            }
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

#[test]
fn dropout_masks_follow_their_key_alone() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let groups = engine_groups(golden, 2);
            let mut engine = golden.engine(device, Some(&golden.adapter("lora_all")));
            let layout = engine.adapter.as_ref().expect("an adapter").layout.clone();
            let objective = loss("combined", Pairs::All, None);
            let step = |p, seed, step| Some(DropoutStep { p, seed, step });
            let of = |engine: &Engine<D>, dropout| gradient(engine, &groups, &objective, dropout);
            let none = of(&engine, None);
            let shared = of(&engine, step(0.3, 7, 4));
            assert!(of(&engine, step(0.0, 7, 4)) == none, "{name}: p = 0 is no dropout");
            assert!(of(&engine, step(0.3, 7, 4)) == shared, "{name}: one key, one mask");
            let swapped: Vec<_> = leaf(&engine, &groups, 2, &objective, step(0.3, 7, 4)).losses;
            let usual: Vec<_> = leaf(&engine, &groups, 0, &objective, step(0.3, 7, 4)).losses;
            assert!(swapped != usual, "{name}: another ordinal, another mask");
            for (what, other) in [
                ("without", none),
                ("another seed", of(&engine, step(0.3, 8, 4))),
                ("another half of the seed", of(&engine, step(0.3, 7 + (1 << 32), 4))),
                ("another step", of(&engine, step(0.3, 7, 5))),
            ] {
                let difference: Vec<f64> = other.iter().zip(&shared).map(|(a, b)| a - b).collect();
                assert!(largest(&difference) > 0.01 * largest(&shared), "{name}: {what}");
            }
            engine.share_prefix = false;
            let unshared = of(&engine, step(0.3, 7, 4));
            assert_gradient(&format!("{name} unshared"), &layout, &unshared, &shared, GRADIENT);
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

/// Margins and gradient with nothing saved: every row of the last layer, whose site is read, the whole vocabulary, and
/// whatever packing the engine is set to.
fn without_shortcuts<D: TrainDevice>(
    golden: &Golden,
    engine: &Engine<D>,
    groups: &[EngineGroup],
    objective: &Objective,
    dropout: Option<DropoutStep>,
    rows: OutputRows,
) -> (Vec<f64>, Vec<f64>) {
    let device = &engine.device;
    let adapter = engine.adapter.as_ref().expect("an adapter");
    let weight = |name: &str| device.weight(&golden.checkpoint.tensor(name).expect("stored")).expect("usable");
    let (norm, head) = (weight("language_model.norm.weight"), weight("language_model.embed_tokens.weight"));
    let (batch, targets) = pack(engine, groups, 0);
    let depth = engine.model.depth();
    let mut sites = SitePlan::default();
    sites.read.insert(Site { layer: depth - 1, kind: SiteKind::ResidPost });
    let request = ForwardRequest {
        layers: 0..depth,
        entry: Entry::Embeddings,
        rows,
        adapter: Some(adapter),
        train: true,
        dropout,
        sites: &sites,
    };
    let mut forward = engine.model.forward(device, &batch, request).expect("forward");
    let answers = match rows {
        OutputRows::All => forward.tape.gather_rows(forward.hidden, &batch.answer_rows().into()),
        OutputRows::Answers => forward.hidden,
    };
    let logits = forward.tape.answer_head(answers, &norm, &head, &AnswerColumns::Full);
    let (count, columns) = device.shape(forward.tape.value(logits));
    let values = device.download(forward.tape.value(logits));
    let (mut margins, mut seed) = (Vec::new(), Vec::new());
    let mut rest = values.as_slice();
    for (group, target) in groups.iter().zip(&targets) {
        let (logits, after) = rest.split_at(group.tokens.phrasings() * columns);
        rest = after;
        let (yes, no) = (target.yes as usize, target.no as usize);
        let answer_yes = target.answer_yes;
        let found = objective.evaluate(&GroupLogits { logits, columns, vocabulary: None, yes, no, answer_yes });
        margins.extend(found.margins);
        seed.extend(found.dlogits.iter().map(|&d| d as f32));
    }
    let mut gradient = device.zeros(1, adapter.layout.len());
    forward.tape.backward(logits, device.upload(count, columns, &seed), Some(&mut gradient));
    (margins, device.download(&gradient))
}

#[test]
fn shortcuts_change_neither_margins_nor_gradients() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let groups = engine_groups(golden, 2);
            let mut engine = golden.engine(device, Some(&golden.adapter("lora_all")));
            let layout = engine.adapter.as_ref().expect("an adapter").layout.clone();
            let dropout = Some(DropoutStep { p: 0.1, seed: 3, step: 1 });
            let (batch, targets) = pack(&engine, &groups, 0);
            let logits = engine.answer_logits(&batch, &AnswerColumns::Full).expect("logits").concat();
            let plain: Vec<f64> = engine.margins(&batch, &targets).expect("margins").concat();
            for objective in [loss("paper", Pairs::Original, None), loss("combined", Pairs::All, None)] {
                engine.share_prefix = true;
                let short = leaf(&engine, &groups, 0, &objective, dropout);
                let gradient = engine.device.download(&short.gradient);
                let margins: Vec<f64> = short.losses.iter().flat_map(|loss| loss.margins.clone()).collect();
                for share in [true, false] {
                    engine.share_prefix = share;
                    for rows in [OutputRows::All, OutputRows::Answers] {
                        let what = format!("{name} share={share} {rows:?}");
                        let (m, g) = without_shortcuts(golden, &engine, &groups, &objective, dropout, rows);
                        assert_gradient(&what, &layout, &g, &gradient, GRADIENT);
                        let worst = m.iter().zip(&margins).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                        assert!(worst <= LOGITS * largest(&logits), "{what}: margins differ by {worst:e}");
                        if share {
                            assert!(m == margins, "{what}: with shared prefixes forward values are the same bits");
                        }
                        let (m, _) = without_shortcuts(golden, &engine, &groups, &objective, None, rows);
                        let worst = m.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                        assert!(worst <= LOGITS * largest(&logits), "{what}: plain margins differ by {worst:e}");
                    }
                }
            }
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

/// An adapter whose A and B are all filled, on a grid of 2⁻¹⁹.
fn filled<D: Backend>(device: &D, layout: LoraLayout) -> Adapter<D> {
    let mut values = Values::new("filled adapter");
    let params: Vec<f32> = (0..layout.len()).map(|_| values.next(0.125)).collect();
    Adapter { params: device.upload(1, params.len(), &params), layout }
}

/// What is adapted: each module alone, one module of one layer at either end, all modules of scattered layers.
fn subsets() -> Vec<LoraSettings> {
    let settings = |layers: &[usize], modules: &[Module], rslora| LoraSettings {
        layers: layers.iter().copied().collect(),
        modules: modules.iter().copied().collect(),
        rank: 3,
        alpha: 6.0,
        rslora,
    };
    let mut subsets: Vec<LoraSettings> =
        MODULES.iter().map(|&module| settings(&[0, 1, 2, 3, 4, 5, 6], &[module], false)).collect();
    subsets.push(settings(&[0], &[Module::Q], false));
    subsets.push(settings(&[6], &[Module::Down], false));
    subsets.push(settings(&[0, 3, 6], &MODULES, true));
    subsets
}

#[test]
fn gradients_of_any_subset_are_those_of_the_loss() {
    let golden = Golden::open("text");
    let groups = engine_groups(&golden, 2);
    let objectives = [loss("paper", Pairs::Original, None), loss("combined", Pairs::All, None)];
    let mut reference = golden.engine(Reference::new(Precision::F32), None);
    let mut cpus: Vec<Engine<Cpu>> =
        isas().into_iter().map(|isa| golden.engine(Cpu::new(isa, Some(2)).unwrap(), None)).collect();
    for (subset, settings) in subsets().into_iter().enumerate() {
        let layout = LoraLayout::from_settings(&reference.model.config, &settings).expect("a subset");
        let what = format!("{:?} of layers {:?}", settings.modules, settings.layers);
        let objective = &objectives[subset % 2];
        reference.adapter = Some(filled(&reference.device, layout.clone()));
        let expected = gradient(&reference, &groups, objective, None);
        for engine in &mut cpus {
            engine.adapter = Some(filled(&engine.device, layout.clone()));
            let found = gradient(engine, &groups, objective, None);
            assert_gradient(&format!("{what}, {}", engine.device.isa()), &layout, &found, &expected, GRADIENT);
        }

        // Central differences along single parameters; Richardson's extrapolation leaves an error of the fourth order.
        let params = reference.adapter.as_ref().expect("an adapter").download(&reference.device);
        let mut loss_at = |index: usize, step: f32| -> f64 {
            let mut moved = params.clone();
            moved[index] += step;
            assert_eq!(f64::from(moved[index]), f64::from(params[index]) + f64::from(step), "exact in f32");
            let params = reference.device.upload(1, moved.len(), &moved);
            reference.adapter.as_mut().expect("an adapter").params = params;
            leaf(&reference, &groups, 0, objective, None).losses.iter().map(|one| one.loss).sum()
        };
        let all: Vec<_> = tensors(&layout).collect();
        // The first A and B, the last A and B, and some between them.
        let chosen = |place: &usize| *place < 2 || *place + 2 >= all.len() || place.is_multiple_of(5);
        for place in (0..all.len()).filter(chosen) {
            let (name, range) = all[place].clone();
            let scale = largest(&expected[range.clone()]);
            // The parameter that counts most.
            let index = range.max_by(|&a, &b| expected[a].abs().total_cmp(&expected[b].abs())).expect("not empty");
            let mut slope = |step: f32| (loss_at(index, step) - loss_at(index, -step)) / (2.0 * f64::from(step));
            let step = 2.0_f32.powi(-9);
            let numeric = (4.0 * slope(step / 2.0) - slope(step)) / 3.0;
            let found = expected[index];
            assert!(
                (numeric - found).abs() <= 1e-6 * scale,
                "{what}: {name} [{index}]: gradient {found:.9e}, finite difference {numeric:.9e}"
            );
        }
    }
}
