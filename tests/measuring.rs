//! Verbs that measure, through the real binary: `bench`, `--profile` and what `doctor` says of a task.

#[path = "support/command.rs"]
mod command;

use command::Place;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

const QUICK: &str = "--min-samples 1 --min-time 0 --timeout 0.01 --threads 1";
const STEP: &str = "bench step --model model --groups groups.json --rank 2 --threads 1";

#[test]
fn bench_lists_runs_and_compares_with_itself() {
    let place = Place::new();
    let listed = place.unflip("bench --list --json").json();
    let names: Vec<&str> =
        listed.as_array().expect("a list").iter().filter_map(|row| row["benchmark"].as_str()).collect();
    for name in ["lora_linear", "attention", "answer_head", "geglu", "norm", "qk_norm_rope", "embed", "adamw"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let run = format!("bench -b norm -a rows=2,3 -a n=16 -a provider=reference,portable {QUICK}");
    let result = place.unflip(&format!("{run} --json")).json();
    assert!(result["command"].as_str().is_some_and(|command| command.starts_with("unflip bench -b norm")));
    assert!(result["device"]["bandwidth"].as_f64() > Some(0.0), "{result}");
    let states = result["results"].as_array().expect("a list");
    assert_eq!(states.len(), 2 * 2 * 2, "two sizes, passes and providers");
    for state in states {
        assert!(state["unflip/cold/time/median"].as_f64() > Some(0.0), "{state}");
        assert!(state["unflip/verification/share_of_bound"].as_f64() <= Some(1.0), "{state}");
    }
    let arguments = states[5]["arguments"].as_str().expect("arguments");
    let again = place.unflip(&format!("bench {arguments} {QUICK} --json")).json();
    assert_eq!(again["results"].as_array().map(Vec::len), Some(1));
    assert_eq!(again["results"][0]["arguments"], states[5]["arguments"]);

    place.write("before.json", &result.to_string());
    let table = place.unflip(&format!("{run} --baseline before.json --tags machine:here --md")).ok();
    assert!(table.contains("| against baseline |") && table.contains("| here "), "{table}");
    let csv = place.unflip(&format!("{run} --csv")).ok();
    assert_eq!(csv.lines().count(), 1 + states.len());
}

#[test]
fn bench_refuses_what_it_does_not_know() {
    let place = Place::new();
    for (arguments, said) in [
        ("-b nrm", "there is no benchmark `nrm`; the nearest is `norm`"),
        ("-b norm -a heads=3", "there is no axis `heads`"),
        ("-b norm -a rows=x", "-a rows expects sizes"),
        ("-b norm -a provider=abacus", "provider `abacus` is not available"),
        ("-b adamw -a pass=backward", "nothing is left to run"),
        ("--baseline file", "file is no benchmark result"),
    ] {
        let run = place.unflip(&format!("bench {arguments} {QUICK}"));
        assert_eq!(run.code, Some(2), "{arguments}: {}", run.err);
        assert!(run.err.contains(said) && run.out.is_empty(), "{arguments}: {}", run.err);
    }
}

#[test]
fn bench_step_times_training_and_evaluation_of_each_group() {
    let place = Place::new();
    let result = place.unflip(&format!("{STEP} --steps 3 --warmup 0 --eval --json")).json();
    let losses = |result: &Value| -> Vec<f64> {
        let samples = result["unflip/step/train/samples"].as_array().expect("samples");
        samples.iter().map(|sample| sample["loss"].as_f64().expect("a loss")).collect()
    };
    assert_eq!(losses(&result).len(), 3);
    assert_eq!(result["unflip/step/eval/samples"].as_array().map(Vec::len), Some(3));
    for key in ["unflip/step/train/time/median", "unflip/step/eval/time/median", "unflip/memory/peak_resident"] {
        assert!(result[key].as_f64() > Some(0.0), "{key}: {result}");
    }
    // Steps change the adapter, and the trunk cache changes nothing.
    let layers = format!("{STEP} --layers 3-5 --steps 4 --warmup 0 --json");
    let plain = place.unflip(&layers).json();
    let cached = place.unflip(&format!("{layers} --trunk-cache 100MB")).json();
    assert_eq!(losses(&plain), losses(&cached));
    assert!(place.unflip(&format!("{STEP} --steps 1 --flops 1e9")).ok().contains("GFLOP/s"));
}

#[test]
fn bench_step_takes_turns_with_whoever_asks() {
    let place = Place::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_unflip"))
        .args(STEP.split(' ').chain(["--interactive"]))
        .current_dir(place.path("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let (mut asks, mut answers) =
        (child.stdin.take().expect("stdin"), BufReader::new(child.stdout.take().expect("stdout")));
    let mut next = || -> Value {
        let mut line = String::new();
        answers.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).expect("JSON")
    };
    let ready = next();
    assert!(ready["ready"].as_f64() > Some(0.0) && ready["groups"].as_u64() > Some(1), "{ready}");
    let mut ask = |text: &str| {
        writeln!(asks, "{text}").expect("it listens");
        next()
    };
    assert_eq!(ask("train")["group"], 0);
    assert_eq!(ask("train")["group"], 1);
    let evaluated = ask("eval 0");
    assert_eq!((&evaluated["group"], &evaluated["loss"]), (&0.into(), &Value::Null));
    assert!(ask("peak")["peak_resident"].as_u64() > Some(0));
    drop(asks);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_profile_says_where_the_time_went_and_changes_nothing() {
    let place = Place::new();
    let trace = "trace --model model --adapter lora --input groups.json --loss combined";
    place.unflip(&format!("{trace} --out plain.safetensors")).ok();
    let profiled = place.unflip(&format!("{trace} --out profiled.safetensors --profile calls.json"));
    assert!(profiled.err.contains("lora_linear") && profiled.err.contains("between operations"), "{}", profiled.err);
    assert!(profiled.ok().is_empty());
    let bytes = |name: &str| std::fs::read(place.path(name)).expect(name);
    assert_eq!(bytes("plain.safetensors"), bytes("profiled.safetensors"));
    let calls: Value = serde_json::from_str(&place.read("calls.json")).expect("JSON");
    let events = calls["traceEvents"].as_array().expect("events");
    for (name, category) in [("lora_linear", "forward"), ("lora_linear", "backward"), ("attention", "backward")] {
        let found = events.iter().any(|event| event["name"] == name && event["cat"] == category && event["ph"] == "X");
        assert!(found, "{name} {category}");
    }

    let eval = "eval --model model --data data.jsonl --resamples 10 --out evaluated";
    place.unflip(&format!("{eval} --profile where.md")).ok();
    assert!(place.read("where.md").contains("| lora_linear "));
    let train = "train --model model --data data.jsonl --batch-groups 2 --rank 2 --out run";
    let run = place.unflip(&format!("{train} --profile"));
    assert!(run.err.contains("adamw"), "{}", run.err);
    assert_eq!(place.unflip(&format!("{train}2 --profile nowhere/x.json")).code, Some(1));
}

#[test]
fn doctor_says_what_training_would_take() {
    let place = Place::new();
    let found = place.unflip("doctor --model model --data data.jsonl --batch-groups 2 --threads 1 --json").json();
    let task = &found["task"];
    assert_eq!((&task["verdict"], &task["groups"], &task["steps"]), (&"fits".into(), &4.into(), &2.into()));
    for (part, least) in [("weights", 1), ("adapter", 1), ("activations", 1), ("needed", 1), ("resident", 1)] {
        assert!(task["memory"]["training"][part].as_u64() >= Some(least), "{part}: {task}");
    }
    assert!(task["step"]["least_seconds"].as_f64() > Some(0.0), "{task}");
    let upper = place.unflip("doctor --model model --data data.jsonl --layers 3-5 --threads 1 --json").json();
    let (whole, upper) = (&task["memory"]["training"], &upper["task"]["memory"]["training"]);
    assert!(upper["activations"].as_u64() < whole["activations"].as_u64());
    assert!(upper["trunk_cache"].as_u64() > Some(0) && whole["trunk_cache"] == 0);
    let text = place.unflip("doctor --model model --threads 1").ok();
    for line in ["served by", "must be there", "trunk cache in memory", "least time of a step"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(place.unflip("doctor --model model --data nothing.jsonl").code, Some(1));
}
