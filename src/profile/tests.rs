//! What a profile promises: it changes no result, and its counts are those of the operations that ran.

use super::*;
use crate::cpu::peak::Peaks;
use crate::ops::case::{Case, Values};
use crate::ops::reference::{Precision, Reference};
use crate::ops::{
    Backend, TrainDevice, adamw, answer_head, attention, embed, gated_linear, geglu, lora_linear, norm, qk_norm_rope,
    vocabulary,
};

/// Everything that a case computes.
fn results<D: TrainDevice, C: Case>(device: &D, case: &C) -> Vec<Vec<f64>> {
    let inputs: Vec<D::Buf> =
        case.inputs().iter().map(|input| device.upload(input.rows, input.cols, &input.values)).collect();
    let outputs = case.training_forward(device, &inputs);
    let mut values = Values::new(&case.name());
    let mut d_outputs = Vec::new();
    for output in outputs.iter().filter(|output| output.differentiable) {
        let (rows, cols) = device.shape(&output.buf);
        let seed: Vec<f32> = (0..rows * cols).map(|_| values.next(1.0)).collect();
        d_outputs.push(device.upload(rows, cols, &seed));
    }
    let gradients = case.backward(device, &inputs, &d_outputs).into_iter().flatten();
    outputs.into_iter().map(|output| output.buf).chain(gradients).map(|buf| device.download(&buf)).collect()
}

fn check<C: Case>(cases: Vec<C>) {
    let profile = Profile::new(true);
    let profiled = Profiled::new(Reference::new(Precision::F32), profile.clone());
    let plain = Reference::new(Precision::F32);
    for case in &cases {
        assert_eq!(results(&profiled, case), results(&plain, case), "{}", case.name());
    }
    assert!(profile.cost().bytes > 0.0);
}

#[test]
fn a_profiled_device_gives_the_same_bits() {
    check(embed::cases::cases());
    check(norm::cases::cases());
    check(qk_norm_rope::cases::cases());
    check(attention::cases::cases().into_iter().filter(|case| case.shape.head_dim < 100).collect());
    check(lora_linear::cases::cases().into_iter().take(8).collect());
    check(gated_linear::cases::cases().into_iter().take(5).collect());
    check(geglu::cases::cases());
    check(answer_head::cases::cases());
    check(vocabulary::cases::cases());
    check(adamw::cases::cases());
}

/// A timed pass is recorded with what its case says it costs.
fn check_costs<C: Case>(cases: Vec<C>, operations: &[&str]) {
    let profile = Profile::new(false);
    let device = Profiled::new(Reference::new(Precision::F32), profile.clone());
    for case in cases {
        let inputs: Vec<_> =
            case.inputs().iter().map(|input| device.upload(input.rows, input.cols, &input.values)).collect();
        let d_outputs: Vec<_> = case
            .training_forward(&device, &inputs)
            .into_iter()
            .filter(|out| out.differentiable)
            .map(|out| out.buf)
            .collect();
        for pass in Pass::ALL {
            let expected = case.cost(pass);
            if expected == Cost::ZERO {
                continue;
            }
            case.timed(&device, &inputs, &d_outputs, pass, &mut |call| {
                profile.clear();
                call();
            });
            let totals = profile.totals();
            let found: Cost =
                totals.iter().filter(|(key, _)| operations.contains(&key.operation)).map(|(_, total)| total.cost).sum();
            assert_eq!(found, expected, "{} {}: {totals:?}", case.name(), pass.name());
        }
    }
}

#[test]
fn calls_are_recorded_at_the_cost_of_their_case() {
    check_costs(embed::cases::cases(), &["embed"]);
    check_costs(norm::cases::cases(), &["norm"]);
    check_costs(qk_norm_rope::cases::cases(), &["qk_norm_rope"]);
    let small = attention::cases::cases().into_iter().filter(|case| case.shape.head_dim < 100).collect();
    check_costs(small, &["attention"]);
    check_costs(lora_linear::cases::cases().into_iter().take(8).collect(), &["lora_linear"]);
    check_costs(gated_linear::cases::cases().into_iter().take(5).collect(), &["gated_linear"]);
    check_costs(geglu::cases::cases(), &["geglu"]);
    check_costs(vocabulary::cases::cases(), &["vocabulary"]);
    check_costs(answer_head::cases::cases(), &["answer_head"]);
    check_costs(adamw::cases::cases(), &["adamw", "sum_of_squares"]);
}

#[test]
fn reports_and_traces_hold_every_call() {
    let profile = Profile::new(true);
    let device = Profiled::new(Reference::new(Precision::F32), profile.clone());
    profile.mark("begin");
    let a = device.upload(2, 3, &[1.0; 6]);
    let mut b = device.duplicate(&a);
    device.add_assign(&mut b, &a);
    device.add_assign(&mut b, &a);
    let report = profile.report();
    let add = report.operations.iter().find(|row| row.operation == "add").expect("it was called");
    assert_eq!((add.total.calls, add.total.cost.flops, add.total.cost.bytes), (2, 12.0, 2.0 * 72.0));
    assert!(report.wall >= report.inside());
    let peaks = Peaks { flops: 1e9, bandwidth: 1e9 };
    let trace = profile.trace(&peaks);
    let events = trace["traceEvents"].as_array().expect("a list");
    let names: Vec<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    assert_eq!(names, ["upload", "duplicate", "add", "add", "begin"]);
    for event in &events[..4] {
        assert!(event["ph"] == "X" && event["dur"].as_f64() >= Some(0.0) && event["ts"].is_number(), "{event}");
    }
    let [operations, _] = report.tables(&peaks);
    let json = operations.json();
    let last = json.as_array().and_then(|rows| rows.last()).expect("a sum");
    assert_eq!((&last["operation"], &last["calls"]), (&"all".into(), &4.into()));
    profile.clear();
    assert!(profile.totals().is_empty());
}
