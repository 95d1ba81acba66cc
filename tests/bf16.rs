//! bf16 on the CPU rounds where the reference rounds: operation by operation, and through a whole model with its losses and
//! gradients, on every unit of this CPU and on emulated ones.
//!
//! Two sums of one element in different orders may round to neighbouring bf16 values, so single values differ by a unit in
//! the last of eight places; but few do, and a device that rounded elsewhere, or not, would differ almost everywhere.

#[path = "support/cases.rs"]
mod cases;
mod support;

use cases::{BF16, BF16_DEVICES, F64, bits, largest, results};
use std::collections::BTreeMap;
use support::{Golden, engine_groups, loss};
use unflip::batch::PackedBatch;
use unflip::cpu::{Cpu, Isa, Unit};
use unflip::model::{DropoutStep, Engine, Target};
use unflip::objective::{Objective, Pairs};
use unflip::ops::case::Case;
use unflip::ops::{
    Backend, TrainDevice, adamw, answer_head, attention, embed, gated_linear, geglu, lora_linear, norm, qk_norm_rope,
    vocabulary,
};
use unflip::train::EngineGroup;

/// Values of one output over all cases: how many, and how many are beyond an f32 device's bound.
#[derive(Default)]
struct Share {
    values: usize,
    beyond: usize,
}

/// All bf16 devices against the reference in bf16: at most `share` of any output's values beyond the f32 bound, none
/// further from the exact value than twice the reference's worst or a unit in the last place of the largest value.
/// Devices of one unit give the same bits.
fn check<C: Case>(cases: Vec<C>, share: f64) {
    let mut shares: BTreeMap<(String, String), Share> = BTreeMap::new();
    for case in &cases {
        let (rounded, exact) = (results(&BF16, case), results(&F64, case));
        let mut first: BTreeMap<String, Vec<Vec<u64>>> = BTreeMap::new();
        for device in BF16_DEVICES.iter() {
            let found = results(device, case);
            for ((found, rounded), exact) in found.iter().zip(&rounded).zip(&exact) {
                let scale = largest(&exact.values).max(case.cancelling());
                let pairs = || rounded.values.iter().zip(&exact.values);
                let worst = pairs().fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
                let allowed = 2.0 * worst + scale / 256.0;
                let tally = shares.entry((device.unit(), found.name.clone())).or_default();
                for (i, (value, (rounded, exact))) in found.values.iter().zip(pairs()).enumerate() {
                    let place = || format!("{}: {}[{i}] on {}", case.name(), found.name, device.describe());
                    assert!((value - exact).abs() <= allowed, "{}: {value} for {exact} ± {allowed:e}", place());
                    tally.values += 1;
                    tally.beyond += usize::from((value - rounded).abs() > case.bound() * scale);
                }
            }
            let found = bits(&found);
            let first = first.entry(device.unit()).or_insert_with(|| found.clone());
            assert!(
                *first == found,
                "{}: other bits on {} at {} threads",
                case.name(),
                device.describe(),
                device.threads()
            );
        }
    }
    for ((unit, output), Share { values, beyond }) in shares {
        println!("{unit}: {output}: {beyond} of {values} beyond the f32 bound");
        assert!(beyond as f64 <= share * values as f64, "{unit}: {output}: {beyond} of {values} values are off");
    }
}

#[test]
fn every_operation_rounds_where_the_reference_rounds() {
    // Not a product, or in f32 in every precision.
    check(embed::cases::cases(), 0.0);
    check(answer_head::cases::cases(), 0.0);
    check(vocabulary::cases::cases(), 0.0);
    check(adamw::cases::cases(), 0.0);
    // One rounding of an f32 value.
    check(norm::cases::cases(), 0.001);
    check(geglu::cases::cases(), 0.001);
    check(qk_norm_rope::cases::cases(), 0.001);
    // A value depends on r roundings of u, or on a rounding per visible key.
    check(lora_linear::cases::cases(), 0.001);
    check(attention::cases::cases(), 0.01);
    // dx depends on a rounding of dgate and of dup per hidden unit.
    check(gated_linear::cases::cases(), 0.01);
}

fn pack<D: TrainDevice>(engine: &Engine<D>, groups: &[EngineGroup]) -> (PackedBatch, Vec<Target>) {
    let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
    (engine.pack(&tokens, 0).expect("packs"), groups.iter().map(Target::from).collect())
}

/// Margins, then the adapter's gradient.
fn step<D: TrainDevice>(golden: &Golden, device: D, groups: &[EngineGroup], dropout: f32) -> [Vec<f64>; 2] {
    let engine = golden.engine(device, Some(&golden.adapter("lora_all")));
    let (batch, targets) = pack(&engine, groups);
    let objective: Objective = loss("combined", Pairs::All, Some(0.1));
    let dropout = (dropout > 0.0).then_some(DropoutStep { p: dropout, seed: 3, step: 5 });
    let leaf = engine.leaf_gradient(&batch, &targets, &objective, dropout).expect("gradient");
    let margins = engine.margins(&batch, &targets).expect("margins").concat();
    [margins, engine.device.download(&leaf.gradient)]
}

/// √Σ(a−b)²
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn margins_and_gradients_of_a_model_are_those_of_the_reference_in_bf16() {
    let golden = Golden::open("text");
    let groups = engine_groups(&golden, 2);
    for dropout in [0.0, 0.2] {
        let exact = step(&golden, F64, &groups, dropout);
        let rounded = step(&golden, BF16, &groups, dropout);
        let mut first: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
        for (unit, isa, threads, emulated) in devices() {
            let found = step(&golden, device(unit, isa, threads, emulated), &groups, dropout);
            let name = format!("{unit} {isa} {threads} threads, emulated {emulated}, dropout {dropout}");
            for (what, ((found, rounded), exact)) in
                ["margins", "gradient"].iter().zip(found.iter().zip(&rounded).zip(&exact))
            {
                // What rounding to bf16 costs; a device that rounds elsewhere is as far from the reference as that.
                let (cost, ours) = (distance(rounded, exact), distance(found, exact));
                let apart = distance(found, rounded);
                println!("{name}: {what}: bf16 costs {cost:.3e}, {ours:.3e} here, {apart:.3e} apart");
                assert!(apart <= 0.5 * cost, "{name}: {what}: {apart:e} from the reference, whose error is {cost:e}");
                assert!(ours <= 1.25 * cost, "{name}: {what}: error {ours:e}, the reference's {cost:e}");
            }
            let first = first.entry(unit.to_string()).or_insert_with(|| found.clone());
            assert!(*first == found, "{name}: other bits than the unit's first device");
        }
    }
}

/// (unit, instruction set, threads, emulated)
fn devices() -> Vec<(Unit, Isa, usize, bool)> {
    let mut all: Vec<_> = Isa::available().into_iter().map(|isa| (Unit::Bf16, isa, 2, false)).collect();
    all.push((Unit::Bf16, Isa::best(), 1, false));
    for unit in [Unit::Avx512Bf16, Unit::Amx] {
        all.extend([(unit, Isa::best(), 1, true), (unit, Isa::best(), 3, true)]);
        if unit.is_available() {
            all.push((unit, Isa::best(), 2, false));
        } else {
            eprintln!("skipped: {unit}, which this CPU lacks; its emulation is tested");
        }
    }
    all
}

fn device(unit: Unit, isa: Isa, threads: usize, emulated: bool) -> Cpu {
    match emulated {
        true => Cpu::emulating(unit, Some(threads)).unwrap(),
        false => Cpu::with_unit(unit, isa, Some(threads)).unwrap(),
    }
}

#[test]
fn margins_do_not_depend_on_what_is_packed_together() {
    let golden = Golden::open("text");
    let groups = engine_groups(&golden, 4);
    for (unit, isa, threads, emulated) in devices() {
        let engine = golden.engine(device(unit, isa, threads, emulated), Some(&golden.adapter("lora_all")));
        let margins = |groups: &[EngineGroup]| {
            let (batch, targets) = pack(&engine, groups);
            engine.margins(&batch, &targets).expect("margins")
        };
        let together = margins(&groups);
        assert!(largest(&together.concat()) > 0.0);
        for (index, group) in groups.iter().enumerate() {
            let alone = margins(std::slice::from_ref(group));
            assert!(alone[0] == together[index], "{unit} {isa}: {}", group.id);
        }
    }
}

#[test]
fn a_unit_is_named_by_precision_and_instruction() {
    let unit = |unit| Cpu::emulating(unit, Some(1)).unwrap().unit();
    assert_eq!(Cpu::new(Isa::Portable, Some(1)).unwrap().unit(), "cpu f32");
    assert_eq!(Cpu::with_unit(Unit::Bf16, Isa::Portable, Some(1)).unwrap().unit(), "cpu bf16");
    assert_eq!([unit(Unit::Avx512Bf16), unit(Unit::Amx)], ["cpu bf16 avx512bf16", "cpu bf16 amx"]);
    for lacking in Unit::ALL.into_iter().filter(|unit| !unit.is_available()) {
        let message = Cpu::with_unit(lacking, Isa::best(), Some(1)).err().unwrap().to_string();
        assert!(message.contains(lacking.name()) && message.contains("f32, bf16"), "{message}");
    }
}
