//! What the real binary says to requests about runs that cannot be met, and what it does with those that can: validation, `best/`,
//! presets, pairs, warm starts, adapters of another model.

#[path = "support/command.rs"]
mod command;

use command::{FAILED, Place, USAGE, group, refuses};
use serde_json::Value;

/// The arguments of a training run into `out` with `more`.
fn train(out: &str, more: &str) -> String {
    format!("train --model model --data data.jsonl --out {out} --batch-groups 2 {more}")
}

fn place() -> Place {
    let place = Place::new();
    place.data("validation.jsonl", &(4..7).map(group).collect::<Vec<_>>());
    place
}

#[test]
fn validation_requests_that_make_no_sense() {
    let place = place();
    let run = place.unflip(&train("run", "--validation data.jsonl"));
    assert_eq!(run.code, Some(USAGE), "{}", run.err);
    assert!(
        run.err.starts_with("error: the validation groups are the training groups: both files have the SHA-256 "),
        "{}",
        run.err
    );
    assert!(
        run.err
            .ends_with("\nhint: give --validation groups that are neither trained on nor tested on, or leave it out\n")
    );
    refuses(
        &place,
        USAGE,
        &train("run", "--validate-every 2"),
        "error: run.validate_every and data.validation: validations are asked for, but there are no groups to validate on\n\
         hint: give --validation, or leave run.validate_every out",
    );
    refuses(
        &place,
        USAGE,
        &train("run", "--validation validation.jsonl --validate-every 0"),
        "error: `run.validate_every` in --validate-every must be a whole number, at least 1, found \"0\"\n\
         hint: `unflip train --help` says what every setting does",
    );
    refuses(
        &place,
        USAGE,
        &train("run", "--best-by flip_rate_questions"),
        "error: `run.best_by` in --best-by must be accuracy_all, accuracy, flip_rate_question, flip_rate_pair, margin_difference or loss, \
         found \"flip_rate_questions\"\nhint: did you mean `flip_rate_question`?",
    );
    refuses(
        &place,
        USAGE,
        &train("run", "--keep-checkpoints 0"),
        "error: `run.keep_checkpoints` in --keep-checkpoints must be a whole number, at least 1, or \"all\", found \"0\"\n\
         hint: `unflip train --help` says what every setting does",
    );
    assert!(!place.exists("run"), "a refused request leaves the place to the corrected one");
}

#[test]
fn best_says_which_validation_it_is_and_by_what() {
    let place = place();
    let more = "--validation validation.jsonl --validate-every 1 --steps 4 --best-by loss --lr 2e-3 --loss combined";
    place.unflip(&train("run", more)).ok();
    let note: Value = serde_json::from_str(&place.read("run/best/best.json")).expect("JSON");
    assert_eq!(note["best_by"], "loss");
    let metrics = place.read("run/metrics.jsonl");
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let validations: Vec<Value> = lines.filter(|line| line.get("validation").is_some()).collect();
    assert_eq!(validations.len(), 4);
    let loss = |line: &Value| line["validation"]["loss"].as_f64().expect("a loss");
    let least = validations.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("four");
    assert_eq!((&note["step"], &note["validation"]), (&least["step"], &least["validation"]));
    assert_eq!(
        note["metrics"]["flip_rate_pair"],
        least["validation"]["flipped_pairs"].as_f64().expect("a count") / 6.0
    );
    let step = note["step"].as_u64().expect("a step");
    for file in ["adapter_model.safetensors", "adapter_config.json", "unflip.json", "README.md"] {
        assert_eq!(
            std::fs::read(place.path(&format!("run/best/{file}"))).expect(file),
            std::fs::read(place.path(&format!("run/checkpoints/step-{step}/{file}"))).expect(file)
        );
    }
    place.unflip("eval --model model --adapter run/best --data validation.jsonl --out evaluated").ok();
    // The same numbers as an evaluation's.
    let results: Value = serde_json::from_str(&place.read("evaluated/results.json")).expect("JSON");
    for metric in ["flip_rate_question", "flip_rate_pair", "accuracy", "accuracy_all", "yes_rate"] {
        assert_eq!(results["results"][metric], note["metrics"][metric], "{metric}");
    }
    let close = |name: &str| {
        let (a, b) = (results["results"][name].as_f64().expect(name), note["metrics"][name].as_f64().expect(name));
        assert!((a - b).abs() < 1e-12 * a.abs().max(1.0), "{name}: {a} and {b}");
    };
    close("margin_difference");
}

#[test]
fn questions_in_both_files_are_warned_of() {
    let place = place();
    place.data("validation.jsonl", &[group(3), group(4)]);
    let run = place.unflip(&train("run", "--validation validation.jsonl --steps 1"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    // Contexts alternate and questions are the same: all prompts of these are in the training data too.
    assert!(run.err.contains("2 of 2 validation questions are trained on too"), "{}", run.err);
}

#[test]
fn the_papers_preset_is_its_table_and_gives_way_to_file_and_flags() {
    let place = place();
    let printed = place.unflip("train --preset paper --print-config").ok();
    let line = |printed: &str, line: &str| assert!(printed.lines().any(|found| found == line), "{line} in {printed}");
    for expected in [
        "sample_pairs = 500",
        "layers = \"paper\"",
        "rank = 16",
        "alpha = 32.0",
        "dropout = 0.05",
        "loss = \"paper\"",
        "lambda = 1.0",
        "lr = 0.0002",
        "weight_decay = 0.01",
        "warmup_steps = 100",
        "decay = \"constant\"",
        "batch_groups = 8",
        "epochs = 3",
    ] {
        line(&printed, expected);
    }
    place.write("own.toml", "[adapter]\ndropout = 0.0\n[schedule]\nsteps = 7\n[objective]\nloss = \"combined\"\n");
    let printed = place.unflip("train --preset paper --config own.toml --rank 8 --print-config").ok();
    for expected in ["dropout = 0.0", "steps = 7", "rank = 8", "loss = \"combined\"", "lambda = 0.1", "alpha = 32.0"] {
        line(&printed, expected);
    }
    assert!(!printed.contains("epochs"), "{printed}");
    refuses(
        &place,
        USAGE,
        "train --preset papr --print-config",
        "error: invalid value 'papr' for '--preset <NAME>'\n  [possible values: paper]\n\n  tip: a similar value exists: 'paper'\n\
         hint: `unflip train --help` says what it takes",
    );
    let run = place.unflip("train --preset paper --model model --data data.jsonl --out run");
    let expected = "note: the paper's layers 15-19 of 34 are 3 of this model's 7\n\
        error: expected at least 500 (original, paraphrase) pairs to draw from, found 8 in 4 groups\n\
        hint: lower data.sample_pairs to 8 or less, or use all groups: --sample-pairs all\n";
    assert_eq!((run.code, run.err.as_str()), (Some(FAILED), expected));
    assert!(!place.exists("run"));
}

#[test]
fn pairs_are_drawn_once_by_the_seed() {
    let place = place();
    let run = |out: &str, more: &str| {
        place.unflip(&train(out, &format!("--preset paper --sample-pairs 5 --epochs 2 {more} --json"))).json()
    };
    // 5 pairs, 2 a step: 3 steps an epoch.
    assert_eq!(run("first", "")["total_steps"], 6);
    let config = place.read("first/config.toml");
    assert!(config.contains("sample_pairs = 5\n") && config.contains("layers = \"3\"\n"), "{config}");
    run("again", "");
    assert_eq!(place.read("first/metrics.jsonl"), place.read("again/metrics.jsonl"));
    run("other", "--seed 1");
    assert_ne!(place.read("first/metrics.jsonl"), place.read("other/metrics.jsonl"));
    let first: Value =
        serde_json::from_str(place.read("first/metrics.jsonl").lines().next().expect("a line")).expect("JSON");
    assert_eq!((&first["questions"], &first["pairs"]), (&2.into(), &2.into()));
    refuses(
        &place,
        USAGE,
        &train("run", "--sample-pairs 3 --paraphrases none"),
        "error: data.sample_pairs and data.paraphrases: pairs are to be drawn, but only the original would take part\n\
         hint: leave one of them out",
    );
}

#[test]
fn a_warm_start_refuses_what_the_adapter_has_not_even_if_it_is_the_default() {
    let place = place();
    place.unflip(&train("start", "--rank 4 --alpha 8 --steps 1")).ok();
    let warm = "--adapter start/final --steps 1";
    for (more, key, asked, found) in
        [("--rank 16", "adapter.rank", "16", "4"), ("--alpha 32", "adapter.alpha", "32.0", "8.0")]
    {
        refuses(
            &place,
            USAGE,
            &train("run", &format!("{warm} {more}")),
            &format!(
                "error: {key} and model.adapter: {asked} was asked for, the adapter to start from has {found}\n\
                 hint: leave it out: an adapter keeps its shape and scale; or leave model.adapter out to start a new one"
            ),
        );
    }
    place.write("own.toml", "[adapter]\nrank = 16\n");
    assert_eq!(place.unflip(&train("run", &format!("{warm} --config own.toml"))).code, Some(USAGE));
    place.unflip(&train("run", &format!("{warm} --rank 4"))).ok();
    place.unflip(&train("default", warm)).ok();
    assert_eq!(place.read("run/metrics.jsonl"), place.read("default/metrics.jsonl"));
}

#[test]
fn an_adapter_on_another_base_model_is_warned_of() {
    let place = place();
    place.unflip(&train("start", "--rank 4 --steps 1")).ok();
    place.model("other");
    // Another model of the same shape: last bits of its weights.
    let path = place.path("other/model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[data..].iter_mut().step_by(64).for_each(|byte| *byte ^= 1);
    std::fs::write(&path, bytes).expect("weights");
    let eval = |model: &str| {
        place.unflip(&format!("eval --model {model} --adapter start/final --data data.jsonl --out on-{model}"))
    };
    assert!(!eval("model").err.contains("warning"));
    let run = eval("other");
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(
        run.err.starts_with(
            "warning: the adapter start/final was trained on another base model: expected `model` (fingerprint "
        ),
        "{}",
        run.err
    );
    assert!(
        run.err.contains("\nhint: give that model as --model; on this one the adapter may do anything\n"),
        "{}",
        run.err
    );
}

#[test]
fn a_collapse_is_warned_of_with_both_figures_and_stops_the_run_if_asked() {
    let place = place();
    // A model that says the same to everything: the learning rate is as good as zero, and every prompt is the same.
    let same = |id: usize| {
        let mut one = group(id);
        one["context"] = "Fluid.".into();
        one
    };
    place.data("data.jsonl", &(0..16).map(same).collect::<Vec<_>>());
    let long = "--batch-groups 8 --steps 10 --lr 1e-9 --paraphrases sample:1 --loss combined";
    let warned = place.unflip(&format!("train --model model --data data.jsonl --out warned {long}"));
    assert_eq!(warned.code, Some(0), "{}", warned.err);
    let figures = "of training's last 64 answers are ";
    assert!(warned.err.contains("step 8: ") && warned.err.contains(figures), "{}", warned.err);
    assert!(
        warned.err.contains("while the truth is yes for 50 %; the standard deviation of their margins is 0.0"),
        "{}",
        warned.err
    );
    assert!(warned.err.contains("a larger objective.lambda"), "{}", warned.err);

    let stopped = format!("train --model model --data data.jsonl --out stopped {long} --stop-on-collapse");
    let run = place.unflip(&stopped);
    assert_eq!(run.code, Some(FAILED), "{}", run.err);
    assert!(run.err.contains("error: step 8: "), "{}", run.err);
    assert!(place.exists("stopped/checkpoints/step-8/manifest.json"));
    let summary = place.unflip(&format!("{stopped} false --resume --json")).json();
    assert_eq!((&summary["steps"], &summary["collapsed_at"]), (&10.into(), &8.into()));
    assert_eq!(summary["collapse"]["in"], "training");
    assert_eq!(place.read("stopped/metrics.jsonl"), place.read("warned/metrics.jsonl"));
}
