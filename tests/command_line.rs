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
    for line in ["7 (full attention: 5)", "163280 in 93 tensors", "model.embed_tokens.weight", "fits the model     yes"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    let described = place.unflip("inspect --model model --adapter lora --sha256 --json").json();
    assert_eq!((&described["model"]["layers"], &described["adapter"]["rank"]), (&7.into(), &4.into()));
    assert_eq!(described["model"]["sha256"][0][1].as_str().map(str::len), Some(64));
}

#[test]
fn inspect_says_what_an_adapter_holds_and_proves_that_it_changes_logits() {
    let place = Place::new();
    let text = place.unflip("inspect model --adapter lora").ok();
    for line in [
        "LoRA r 4 α 8 dropout 0",
        "\nscale",
        "changes logits by",
        "of 512 logits after \"Is there a pleural effusion?\"",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let adapter = place.unflip("inspect --model model --adapter lora --json").json()["adapter"].clone();
    assert_eq!(
        (&adapter["kind"], &adapter["scales"][0], &adapter["tensors"]),
        (&"LoRA".into(), &2.0.into(), &98.into())
    );
    let file = unflip::weights::AdapterFile::open(place.path("lora")).expect("an adapter");
    for norms in adapter["norms"].as_array().expect("layers") {
        let here = || file.tensors.iter().filter(|tensors| norms["layer"] == tensors.layer);
        let norm = |values: Vec<f32>| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let [a, b] =
            [norm(here().flat_map(|t| t.a.clone()).collect()), norm(here().flat_map(|t| t.b.clone()).collect())];
        assert!((norms["a"].as_f64().expect("a norm") - a).abs() < 1e-12 * a, "{norms}");
        assert!((norms["b"].as_f64().expect("a norm") - b).abs() < 1e-12 * b, "{norms}");
    }
    let change = &adapter["change"];
    let (largest, mean) = (change["largest"].as_f64().expect("a number"), change["mean"].as_f64().expect("a number"));
    assert!(largest > 0.1 && mean > 0.0 && mean < largest, "{change}");

    // Without a tokenizer the prompt is fixed tokens; without a model there is nothing to change; one that unflip trained says how.
    place.remove("model/tokenizer.json");
    assert!(
        place.unflip("inspect model --adapter lora").ok().contains("logits after the tokens [2, 7, 19, 4, 31, 11]")
    );
    place.model("model");
    let alone = place.unflip("inspect --adapter lora --json").json();
    assert_eq!((&alone["adapter"]["change"], &alone["adapter"]["training"]), (&Value::Null, &Value::Null));
    place.unflip(&format!("{TRAIN} run --steps 1 --pool max")).ok();
    let trained = place.unflip("inspect --adapter run/final").ok();
    assert!(trained.contains("\nloss") && trained.contains("paper") && trained.contains("max"), "{trained}");
}

#[test]
fn pooled_spellings_are_asked_evaluated_and_trained_and_kept_with_the_adapter() {
    let place = Place::new();
    // `yes` and ` Yes` become tokens of their own beside `Yes` and `No`.
    let merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("y", "e"), ("ye", "s"), ("▁", "Yes"), ("n", "o")];
    place.tokenizer("model", &merges);
    let ask = |pool: &str, more: &[&str]| {
        let start = ["ask", "--model", "model", "Is fluid seen?", "--pool", pool, "--json"];
        place.run(&[&start[..], more].concat()).json()[0]["margin"].as_f64().expect("a margin")
    };
    let margins: Vec<f64> = ["single", "max", "logsumexp"].iter().map(|pool| ask(pool, &[])).collect();
    assert!(margins[0] != margins[2] && margins[1] != margins[2], "{margins:?}");
    assert_eq!(
        ask("single", &[]),
        place.run(&["ask", "--model", "model", "Is fluid seen?", "--json"]).json()[0]["margin"]
    );

    place.unflip(&format!("{TRAIN} run --steps 2 --pool logsumexp")).ok();
    let other = place.unflip(&format!("{TRAIN} single --steps 2"));
    assert_ne!(other.code, None);
    let losses = |run: &str| place.read(&format!("{run}/metrics.jsonl"));
    assert_ne!(losses("run"), losses("single"), "the loss is of pooled margins");
    // An adapter is asked as it was trained.
    let with = ["--adapter", "run/final"];
    let default = place.run(&["ask", "--model", "model", "Is fluid seen?", "--json", "--adapter", "run/final"]).json();
    assert_eq!(default[0]["margin"].as_f64().expect("a margin"), ask("logsumexp", &with));
    assert_ne!(ask("single", &with), ask("logsumexp", &with));
    let noted = place.unflip("ask --model model Fluid? --adapter run/final --pool max");
    let note = "note: --pool is not the one that the adapter was trained with: logsumexp";
    assert_eq!(noted.err.lines().next(), Some(note));
    let results = place.unflip(&format!("{EVAL} pooled --adapter run/final --json")).json();
    assert_eq!(
        (&results["pool"], results["answer_spellings"]["yes"].as_array().map(Vec::len)),
        (&"logsumexp".into(), Some(2))
    );
}

#[test]
fn eval_proves_that_no_answer_depends_on_the_batch() {
    let place = Place::new();
    place.data("data.jsonl", &(0..9).map(command::group).collect::<Vec<_>>());
    let results = place.unflip(&format!("{EVAL} out --groups-per-batch 4 --control batching --json")).json();
    let control = &results["controls"]["batching"];
    assert_eq!(control["answers_that_depend_on_the_batch"], 0, "{control}");
    assert_eq!((&control["margins_that_depend_on_the_batch"], &control["groups"]), (&0.into(), &9.into()), "{control}");
    // Every phrasing as stored, and in batches of 2, 3 and 8.
    assert_eq!((&control["compared"], &control["sizes"]), (&(4 * 27).into(), &serde_json::json!([2, 3, 8])));
    let again = place.unflip(&format!("{EVAL} out --groups-per-batch 4 --control batching --json")).json();
    assert_eq!(again, results, "of stored samples");
    let text = place.unflip(&format!("{EVAL} out --control batching")).ok();
    assert!(
        text.ends_with("\n0 of 108 answers and 0 margins depend on the batch (groups alone and 2, 3, 8 together)\n"),
        "{text}"
    );
}

#[test]
fn eval_breaks_flips_and_margins_down_with_intervals() {
    let place = Place::new();
    let named = |id: usize| {
        let mut group = command::group(id);
        group["meta"] = serde_json::json!({"finding": if id < 3 { "effusion" } else { "edema" }, "phenomena": ["lexical", "scope"]});
        group
    };
    place.data("data.jsonl", &(0..6).map(named).collect::<Vec<_>>());
    let results = place.unflip(&format!("{EVAL} out --json")).json();
    for (part, names) in [("by_phenomenon", ["lexical", "scope"]), ("by_finding", ["edema", "effusion"])] {
        for name in names {
            let set = &results[part][name];
            for metric in ["flip_rate_question", "flip_rate_pair", "margin_difference"] {
                let at = |end: &str| set[format!("{metric}{end}")].as_f64().expect("a number");
                assert!(at("_low") <= at("") && at("") <= at("_high") && at("_stderr") >= 0.0, "{name} {metric}");
            }
        }
    }
    assert_eq!(results["by_phenomenon"]["scope"]["n_pairs"], 6);
    assert_eq!(results["by_finding"]["effusion"]["n_pairs"], 6);
    let text = place.unflip(&format!("{EVAL} out")).ok();
    let line = text.lines().find(|line| line.starts_with("lexical")).expect("a row");
    assert!(line.matches(" %").count() == 3 && line.matches('[').count() == 4, "{text}");
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
        assert_eq!(row["flip"], row["answer"] != rows[0]["answer"]);
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
    place.data("validation.jsonl", &[command::group(4), command::group(5)]);
    place.write("run.toml", "[adapter]\nlayers = \"2-6\"\n[schedule]\nsteps = 4\n");
    let table = place.unflip(&format!("{TRAIN} run --config run.toml --validation validation.jsonl")).ok();
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
    let comparison = &compared["comparisons"][0];
    let names: Vec<_> = comparison["metrics"].as_object().expect("an object").keys().collect();
    assert_eq!(names, unflip::eval::METRICS);
    assert_eq!((&compared["permutations"], &comparison["differs"]), (&100.into(), &serde_json::json!(["model"])));
    let question = &comparison["metrics"]["flip_rate_question"];
    for key in ["base", "run", "difference", "difference_stderr", "difference_low", "difference_high", "p_permutation"]
    {
        assert!(question[key].is_number(), "{key}: {question}");
    }
    assert!(question["mcnemar"]["p"].is_number() && question["proportions"]["z_corrected"].is_number(), "{question}");
    assert!(comparison["metrics"]["margin_difference"]["mcnemar"].is_null());
    let bound = &comparison["non_inferiority"];
    assert_eq!((&bound["metric"], &bound["margin"]), (&"accuracy_all".into(), &0.03.into()));
    let three = place.unflip("compare before adapted after --cluster question --json").json();
    assert_eq!((three["comparisons"].as_array().map(Vec::len), &three["cluster"]), (Some(2), &"question".into()));
    assert_eq!(three["comparisons"][0]["differs"], serde_json::json!(["adapter"]));
    let same = place.unflip("compare before before").ok();
    assert!(same.contains("1.0000") && same.contains("what differs: nothing"), "{same}");
    assert!(same.ends_with("is not inferior: the difference's lower bound is +0.0 points, the limit -3.0\n"), "{same}");
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
