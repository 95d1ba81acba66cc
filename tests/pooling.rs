//! Spellings of an answer pooled into one logit, through the whole model: the gradient goes through the pool (finite differences on
//! the reference, the reference on the CPU), the head computes the pooled columns alone, and the batch changes nothing.

mod support;

use support::{GRADIENT, Golden, OnEach, engine_groups, isas, loss, on_each_device};
use unflip::cpu::Cpu;
use unflip::model::{AnswerColumns, Engine, Target};
use unflip::objective::{Objective, Pairs, Pool, Pooling, Spellings};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{Backend, TrainDevice};
use unflip::train::EngineGroup;

const POOLS: [Pool; 3] = [Pool::Single, Pool::Max, Pool::Logsumexp];

/// Spellings beside the golden answers' ids 111 and 222.
fn pooling(pool: Pool) -> Pooling {
    Pooling { pool, yes: vec![30, 310], no: vec![17, 401, 222] }
}

fn margins<D: TrainDevice>(engine: &Engine<D>, groups: &[EngineGroup]) -> Vec<Vec<f64>> {
    let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
    let targets: Vec<_> = groups.iter().map(Target::from).collect();
    engine.margins(&engine.pack(&tokens, 0).expect("packs"), &targets).expect("margins")
}

/// Sum of the groups' losses and its gradient.
fn leaf<D: TrainDevice>(engine: &Engine<D>, groups: &[EngineGroup], objective: &Objective) -> (f64, Vec<f64>) {
    let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
    let targets: Vec<_> = groups.iter().map(Target::from).collect();
    let batch = engine.pack(&tokens, 0).expect("packs");
    let leaf = engine.leaf_gradient(&batch, &targets, objective, None).expect("gradient");
    (leaf.losses.iter().map(|loss| loss.loss).sum(), engine.device.download(&leaf.gradient))
}

#[test]
fn pooled_margins_are_those_of_the_whole_vocabulary_and_of_no_batch() {
    struct Body(Golden);
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = &self.0;
            let groups = engine_groups(golden, 3);
            let mut engine = golden.engine(device, Some(&golden.adapter("lora_all")));
            let single = margins(&engine, &groups);
            for pool in POOLS {
                engine.pooling = pooling(pool);
                let found = margins(&engine, &groups);
                assert_eq!(found == single, pool == Pool::Single, "{name}: {pool:?}");
                let spellings = match pool {
                    Pool::Single => Spellings::single(111, 222),
                    _ => Spellings { pool, yes: vec![111, 30, 310], no: vec![222, 17, 401] },
                };
                for (group, found) in groups.iter().zip(&found) {
                    let alone = margins(&engine, std::slice::from_ref(group));
                    assert!(alone[0] == *found, "{name}: {pool:?}: {} depends on the batch", group.id);
                    let batch = engine.pack(std::slice::from_ref(&group.tokens), 0).expect("packs");
                    let full = engine.answer_logits(&batch, &AnswerColumns::Full).expect("logits");
                    let expected: Vec<f64> = full.iter().map(|row| spellings.margin(row)).collect();
                    assert!(*found == expected, "{name}: {pool:?}: {found:?}, {expected:?}");
                }
            }
        }
    }
    on_each_device(&mut Body(Golden::open("text")));
}

#[test]
fn gradients_go_through_the_pool() {
    let golden = Golden::open("text");
    let groups = engine_groups(&golden, 2);
    let file = golden.adapter("lora_all");
    let mut reference = golden.engine(Reference::new(Precision::F32), Some(&file));
    let layout = reference.adapter.as_ref().expect("an adapter").layout.clone();
    let params = reference.adapter.as_ref().expect("an adapter").download(&reference.device);
    let mut cpus: Vec<Engine<Cpu>> =
        isas().into_iter().map(|isa| golden.engine(Cpu::new(isa, Some(2)).unwrap(), Some(&file))).collect();
    let mut gradients = Vec::new();
    for pool in [Pool::Max, Pool::Logsumexp] {
        for objective in [loss("paper", Pairs::Original, None), loss("combined", Pairs::All, None)] {
            reference.pooling = pooling(pool);
            let (_, expected) = leaf(&reference, &groups, &objective);
            for engine in &mut cpus {
                engine.pooling = pooling(pool);
                let (_, found) = leaf(engine, &groups, &objective);
                for slot in layout.slots() {
                    for range in [slot.a..slot.b, slot.b..slot.b + slot.outputs * slot.rank] {
                        let scale = range.clone().map(|i| expected[i].abs()).fold(0.0, f64::max);
                        let worst = range.map(|i| (found[i] - expected[i]).abs()).fold(0.0, f64::max);
                        assert!(worst <= GRADIENT * scale, "{pool:?} {}: {worst:e} of {scale:e}", engine.device.isa());
                    }
                }
            }
            // Central differences with Richardson's extrapolation, along the parameters that count most in the first A and the last B.
            let (first, last) = (layout.slots()[0], layout.slots()[layout.slots().len() - 1]);
            for range in [first.a..first.b, last.b..last.b + last.outputs * last.rank] {
                let scale = range.clone().map(|i| expected[i].abs()).fold(0.0, f64::max);
                let index = range.max_by(|&a, &b| expected[a].abs().total_cmp(&expected[b].abs())).expect("not empty");
                let mut at = |step: f64| {
                    let mut moved = params.clone();
                    moved[index] += step as f32;
                    let exact = f64::from(moved[index]) - f64::from(params[index]);
                    let buf = reference.device.upload(1, moved.len(), &moved);
                    reference.adapter.as_mut().expect("an adapter").params = buf;
                    (leaf(&reference, &groups, &objective).0, exact)
                };
                let mut slope = |step: f64| {
                    let ((up, right), (down, left)) = (at(step), at(-step));
                    (up - down) / (right - left)
                };
                let step = 2.0_f64.powi(-9);
                let numeric = (4.0 * slope(step / 2.0) - slope(step)) / 3.0;
                let found = expected[index];
                assert!(
                    (numeric - found).abs() <= 1e-6 * scale,
                    "{pool:?} [{index}]: gradient {found:.9e}, finite difference {numeric:.9e}"
                );
                reference.adapter.as_mut().expect("an adapter").params =
                    reference.device.upload(1, params.len(), &params);
            }
            gradients.push(expected);
        }
    }
    assert!(gradients[0] != gradients[2] && gradients[1] != gradients[3], "the two pools differ");
}

#[test]
fn a_spelling_that_the_model_does_not_have_is_refused() {
    let golden = Golden::open("text");
    let mut engine = golden.engine(Reference::new(Precision::F32), None);
    let groups = engine_groups(&golden, 1);
    engine.pooling = Pooling { pool: Pool::Max, yes: vec![u32::MAX], no: Vec::new() };
    let error = engine.check_groups(&groups).expect_err("no such token").to_string();
    assert!(error.contains(&u32::MAX.to_string()) && error.contains("group-0"), "{error}");
    engine.pooling.pool = Pool::Single;
    engine.check_groups(&groups).expect("unused");
}
