//! The command line end to end, on a tiny model: every verb does its work through the real binary.

#[path = "support/command.rs"]
mod command;

use command::Place;
use serde_json::Value;

const VERBS: [&str; 9] = ["doctor", "inspect", "ask", "eval", "compare", "train", "merge", "trace", "bench"];
const EVAL: &str = "eval --model model --data data.jsonl --resamples 50 --out";
const TRAIN: &str =
    "train --model model --data data.jsonl --batch-groups 2 --rank 2 --lr 1e-3 --checkpoint-every 1 --out";

/// Numbers of an evaluation's margins, in order.
fn margins(place: &Place, folder: &str) -> Vec<f64> {
    let samples = place.read(&format!("{folder}/samples.jsonl"));
    let record = |line: &str| serde_json::from_str::<Value>(line).expect("a sample")["margin"].as_f64();
    samples.lines().skip(1).map(|line| record(line).expect("a margin")).collect()
}

#[test]
fn every_verb_explains_itself_with_an_example() {
    let place = Place::new();
    let overview = place.unflip("--help").ok();
    for verb in VERBS {
        assert!(overview.contains(&format!("\n  {verb} ")), "{verb} is listed");
        let help = place.run(&[verb, "--help"]).ok();
        assert!(help.contains("Example"), "{verb}: {help}");
        assert!(help.contains(&format!("  unflip {verb} ")), "the example of {verb} is a command: {help}");
    }
    assert!(place.unflip("--version").ok().starts_with("unflip 0."));
}

#[test]
fn doctor_and_inspect_describe_in_text_and_in_json() {
    let place = Place::new();
    let machine = place.unflip("doctor --json").json();
    assert!(machine["cores"].as_u64().is_some_and(|cores| cores > 0), "{machine}");
    assert!(place.unflip("doctor").ok().contains("instruction sets"));

    let text = place.unflip("inspect model --adapter lora --tensors").ok();
    for line in ["7 (full attention: 5)", "163280 in 93 tensors", "model.embed_tokens.weight", "fits the model  yes"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let described = place.unflip("inspect model --adapter lora --sha256 --json").json();
    assert_eq!((&described["model"]["layers"], &described["adapter"]["rank"]), (&7.into(), &4.into()));
    assert_eq!(described["model"]["sha256"][0][1].as_str().map(str::len), Some(64));
}

#[test]
fn ask_gives_a_margin_for_each_phrasing_whoever_shares_its_prefix() {
    let place = Place::new();
    let ask = |more: &[&str]| {
        let start = ["ask", "--model", "model", "--context", "Clear.", "Is fluid seen?", "--json"];
        place.run(&[&start[..], more].concat()).json()
    };
    let both = ask(&["-p", "Any fluid?"]);
    let rows = both.as_array().expect("a list");
    assert_eq!(rows.len(), 2);
    for (row, phrasing) in rows.iter().zip(["Is fluid seen?", "Any fluid?"]) {
        let margin = row["margin"].as_f64().expect("a margin");
        assert_eq!(row["phrasing"], phrasing);
        assert_eq!(row["answer"], if margin > 0.0 { "yes" } else { "no" });
    }
    let alone = ask(&[])[0]["margin"].as_f64().expect("a margin");
    assert!((alone - rows[0]["margin"].as_f64().expect("a margin")).abs() < 1e-4);
    assert!(place.run(&["ask", "--model", "model", "Fluid?", "-p", "No?"]).ok().contains(" of 1 paraphrases flip"));
}

#[test]
fn eval_goes_on_where_it_stopped_and_repeats_itself() {
    let place = Place::new();
    let whole = place.unflip(&format!("{EVAL} whole --json")).json();
    assert_eq!(whole["results"]["n_questions"], 4);
    place.unflip(&format!("{EVAL} parts --limit 1")).ok();
    assert_eq!(margins(&place, "parts").len(), 3);
    // As a kill leaves it: a line cut off in the middle.
    let begun = place.read("parts/samples.jsonl");
    place.write("parts/samples.jsonl", &format!("{begun}{{\"id\": \"q1"));
    let parts = place.unflip(&format!("{EVAL} parts --json")).json();
    assert_eq!(parts["results"], whole["results"]);
    assert_eq!(place.read("parts/samples.jsonl"), place.read("whole/samples.jsonl"));
    let again = place.unflip(&format!("{EVAL} whole --json")).json();
    assert_eq!(again["results"], whole["results"]);
    assert!(place.unflip(&format!("{EVAL} whole")).ok().contains("flip_rate_question"));
}

#[test]
fn training_that_is_killed_goes_on_to_the_same_bits() {
    let place = Place::new();
    let steps = "--epochs 6";
    let summary = place.unflip(&format!("{TRAIN} whole {steps} --json")).json();
    assert_eq!((&summary["steps"], &summary["total_steps"]), (&12.into(), &12.into()));

    let arguments = format!("{TRAIN} parts {steps}");
    let mut child = place
        .command(&arguments.split_whitespace().collect::<Vec<_>>())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary runs");
    while !place.exists("parts/checkpoints/step-2") && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().expect("a child");
    child.wait().expect("a child");
    let resumed = place.unflip(&format!("{TRAIN} parts {steps} --resume --threads 1 --json")).json();
    assert!(resumed["resumed_from"].as_u64().is_some_and(|step| step >= 2), "{resumed}");
    assert_eq!(place.read("parts/metrics.jsonl"), place.read("whole/metrics.jsonl"));
    let adapter = |run: &str| {
        let path = place.path(&format!("{run}/checkpoints/step-12/adapter_model.safetensors"));
        std::fs::read(path).expect("an adapter")
    };
    assert_eq!(adapter("parts"), adapter("whole"));
}

#[test]
fn a_failed_request_leaves_no_run_so_that_the_mended_one_starts() {
    let place = Place::new();
    assert_eq!(place.unflip(&format!("{TRAIN} run --steps 1 --layers 5-9")).code, Some(2));
    place.unflip(&format!("{TRAIN} run --steps 1 --layers 5-6")).ok();
}

#[test]
fn a_question_without_paraphrase_trains_an_accuracy_loss() {
    let place = Place::new();
    let mut alone = command::group(0);
    alone["paraphrases"] = Value::Array(Vec::new());
    place.data("data.jsonl", &[alone, command::group(1)]);
    place.unflip(&format!("{TRAIN} run --loss ce-binary")).ok();
    assert_eq!(place.unflip(&format!("{TRAIN} other --loss paper")).code, Some(1));
}

#[test]
fn an_adapter_trains_merges_evaluates_and_compares() {
    let place = Place::new();
    place.unflip(&format!("{EVAL} before")).ok();
    place.write("run.toml", "[adapter]\nlayers = \"2-6\"\n[schedule]\nsteps = 4\n");
    let table = place.unflip(&format!("{TRAIN} run --config run.toml --validation data.jsonl")).ok();
    assert!(table.contains("4 of 4") && table.contains("run/final"), "{table}");
    assert!(place.exists("run/best/adapter_model.safetensors"));
    place.unflip(&format!("{EVAL} adapted --adapter run/final")).ok();

    place.unflip("merge --model model --adapter run/checkpoints/step-4 --out merged").ok();
    place.unflip(&EVAL.replace("--model model", "--model merged").replace("--out", "--out after")).ok();
    let (before, adapted, after) = (margins(&place, "before"), margins(&place, "adapted"), margins(&place, "after"));
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(distance(&before, &adapted) > 0.1, "training moves margins: {before:?} {adapted:?}");
    // bf16 weights round the update; the move is kept.
    assert!(distance(&adapted, &after) < 0.5 * distance(&before, &adapted), "{before:?} {adapted:?} {after:?}");

    let compared = place.unflip("compare before after --permutations 100 --json").json();
    let names: Vec<_> = compared.as_array().expect("a list").iter().map(|row| row["metric"].clone()).collect();
    assert_eq!(names, ["flip_rate_question", "flip_rate_pair", "margin_difference", "accuracy_all"]);
    assert!(place.unflip("compare before before").ok().contains("1.0000"));
}

#[test]
fn settings_print_as_a_config_that_reads_back() {
    let place = Place::new();
    let config = place.unflip("train --print-config --lr 3e-4 --layers 1,3-5 --lambda inf").ok();
    place.write("run.toml", &config);
    assert_eq!(place.unflip("train --print-config --config run.toml").ok(), config);
    assert!(config.contains("lr = 0.0003") && config.contains("layers = \"1,3-5\""), "{config}");
}

#[test]
fn trace_writes_what_was_asked_for() {
    let place = Place::new();
    let trace = "trace --model model --input groups.json --adapter lora --embed-scale exact --out";
    place.unflip(&format!("{trace} loss.safetensors --loss combined --pairs all")).ok();
    place.unflip(&format!("{trace} hidden.safetensors --hidden --layers 3")).ok();
    let names = |file: &str| {
        let file = unflip::weights::SafetensorsFile::open(place.path(file)).expect("a safetensors file");
        file.names().map(str::to_owned).collect::<Vec<_>>()
    };
    let loss = names("loss.safetensors");
    for name in ["loss", "group0.last_logits", "group1.margin"] {
        assert!(loss.iter().any(|found| found == name), "{name}: {loss:?}");
    }
    let gradients = loss.iter().filter(|name| name.starts_with("base_model.model.model.layers.")).count();
    assert_eq!(gradients, 7 * 7 * 2);
    let hidden = names("hidden.safetensors");
    assert!(hidden.iter().any(|name| name == "group0.phrasing0.hidden.layer_02"), "{hidden:?}");
    assert!(!hidden.iter().any(|name| name.contains("layer_03")), "{hidden:?}");
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let place = Place::new();
    let mut child = place
        .command(&["inspect", "model", "--tensors"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the binary ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn trace_of_a_single_phrasing_gives_a_loss_over_pairs_of_zero() {
    let place = Place::new();
    let groups =
        r#"{"groups": [{"prefix": [], "suffixes": [[2, 8, 49]], "yes_id": 111, "no_id": 222, "label": "yes"}]}"#;
    place.write("single.json", groups);
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/text/lora_l23");
    let run = |loss: &str, out: &str| {
        place
            .unflip(&format!("trace --model model --input single.json --adapter {adapter} --loss {loss} --out {out}"))
            .ok();
        let file = unflip::weights::SafetensorsFile::open(place.path(out)).expect("a safetensors file");
        file.tensor("loss").expect("a loss").to_f32()[0]
    };
    assert_eq!(run("margin", "margin.safetensors"), 0.0);
    assert_eq!(run("combined", "combined.safetensors"), run("ce-full", "ce.safetensors"));
}
