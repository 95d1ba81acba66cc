//! What the real binary says to requests that cannot be met: flags, settings, places. The exit code tells a wrong request (2)
//! from a failure (1), and the message what to do.

#[path = "support/command.rs"]
mod command;

use command::{FAILED, Place, USAGE, group, refused, refuses};

/// The arguments of a training run into `out` with `more`.
fn train(out: &str, more: &str) -> String {
    format!("train --model model --data data.jsonl --out {out} --batch-groups 2 {more}")
}

#[test]
fn questions_that_ask_nothing() {
    let place = Place::new();
    refused(
        &place,
        USAGE,
        &["ask", "--model", "model", " "],
        "error: QUESTION must be a question, found an empty text\nhint: `unflip ask --help` has an example",
    );
    refused(
        &place,
        USAGE,
        &["ask", "--model", "model", "Fluid?", "-p", ""],
        "error: --paraphrase must be a question, found an empty text\nhint: `unflip ask --help` has an example",
    );
    refuses(
        &place,
        USAGE,
        "ask --model model Fluid? --template {query}",
        "error: prompt template `{query}`: expected {image}, {context} or {question}, found {query}\n\
         hint: a template is text with `{question}` once, and `{image}` and `{context}` where they shall stand",
    );
    refuses(
        &place,
        FAILED,
        "ask --model model Fluid? --context-file model",
        "error: cannot read model: Is a directory (os error 21)\nhint: model is a folder: give a file",
    );
}

#[test]
fn trace_requests_that_make_no_sense() {
    let place = Place::new();
    let trace = |code: i32, more: &str, message: &str| {
        refuses(&place, code, &format!("trace --model model --input groups.json --out t.safetensors {more}"), message);
    };
    trace(
        USAGE,
        "--loss paper",
        "error: --loss writes adapter gradients, and no adapter was given\nhint: add --adapter DIR",
    );
    trace(
        USAGE,
        "--loss papr --adapter lora",
        "error: unknown loss `papr`: expected one of paper, margin, symkl-binary, symkl-full, ce-binary, ce-full, combined\n\
         hint: did you mean `paper`?",
    );
    trace(
        USAGE,
        "--loss paper --adapter lora --lambda -1",
        "error: λ must be a number of at least 0, or inf, found -1\n\
         hint: 0 leaves one part alone, inf the other; 1 is the paper's weight",
    );
    trace(
        USAGE,
        "--layers 9",
        "error: layers 0..9 were asked for, the model has 7\nhint: `unflip inspect MODEL` lists the layers",
    );
    trace(USAGE, "--pixels file", "error: --pixels was given, and no group has an image\nhint: leave --pixels out");
    assert!(!place.exists("t.safetensors"));
}

#[test]
fn places_that_cannot_be_written() {
    let place = Place::new();
    let trace = "trace --model model --input groups.json --out";
    refuses(
        &place,
        FAILED,
        &format!("{trace} no/such/t.safetensors"),
        "error: cannot write no/such/t.safetensors: No such file or directory (os error 2)\n\
         hint: check the spelling of no/such/t.safetensors; its folder must exist",
    );
    refuses(
        &place,
        FAILED,
        &format!("{trace} file/t.safetensors"),
        "error: cannot write file/t.safetensors: not a directory\n\
         hint: a part of file/t.safetensors is a file: choose a path through folders alone",
    );
    refuses(
        &place,
        FAILED,
        &format!("{trace} model"),
        "error: cannot write model: is a directory\nhint: model is a folder: give a file",
    );
    refuses(
        &place,
        FAILED,
        "merge --model model --adapter lora --out model",
        "error: model exists already\nhint: choose another folder, or remove this one",
    );
    refuses(
        &place,
        FAILED,
        "merge --model model --adapter lora --out file/merged",
        "error: cannot create file: File exists (os error 17)\n\
         hint: file is a file: choose another path for the folder",
    );
    refuses(
        &place,
        FAILED,
        "eval --model model --data data.jsonl --out file",
        "error: cannot create file: File exists (os error 17)\n\
         hint: file is a file: choose another path for the folder",
    );
    refuses(
        &place,
        FAILED,
        &train("file/run", ""),
        "error: cannot create file/run: Not a directory (os error 20)\n\
         hint: a part of file/run is a file: choose a path through folders alone",
    );
}

#[test]
fn run_directories_that_are_taken() {
    let place = Place::new();
    std::fs::create_dir(place.path("foreign")).expect("folder is made");
    place.write("foreign/notes.txt", "mine");
    refuses(
        &place,
        FAILED,
        &train("foreign", ""),
        "error: foreign is not empty and not a run directory: it holds `notes.txt`\n\
         hint: choose a new or an empty directory",
    );
    assert_eq!(place.read("foreign/notes.txt"), "mine");

    place.unflip(&train("run", "--rank 2 --steps 1")).ok();
    refuses(
        &place,
        FAILED,
        &train("run", "--rank 2 --steps 1"),
        "error: run already holds a run\nhint: resume it with --resume, or choose another directory",
    );
    refuses(
        &place,
        FAILED,
        &train("run", "--rank 2 --steps 1 --lr 1e-3 --resume"),
        "error: cannot resume run: `optimizer.lr` was 0.0002 when the run began, found 0.001\n\
         hint: resume with the stored value, or start a run in another directory",
    );
    place.data("other.jsonl", &[group(0), group(1), group(2), group(5)]);
    let other =
        place.unflip("train --model model --data other.jsonl --out run --batch-groups 2 --rank 2 --steps 1 --resume");
    assert_eq!(other.code, Some(FAILED));
    assert!(other.err.starts_with("error: cannot resume run: `identity.train_data` was `"), "{}", other.err);

    let held = std::fs::File::open(place.path("run/run.lock")).expect("a run has a lock");
    held.lock().expect("nobody holds it");
    std::fs::write(place.path("run/run.lock"), "4711\n").expect("its holder's number");
    refuses(
        &place,
        FAILED,
        &train("run", "--rank 2 --steps 1 --resume"),
        "error: run is in use by another process (4711)\nhint: wait for the other process, or choose another directory",
    );
}

#[test]
fn evaluations_that_cannot_be_continued_or_compared() {
    let place = Place::new();
    place.data("other.jsonl", &[group(0), group(1), group(2), group(5)]);
    let eval = |data: &str, out: &str, more: &str| {
        place.unflip(&format!("eval --model model --data {data} --out {out} --resamples 10 {more}"))
    };
    eval("data.jsonl", "first", "").ok();
    eval("data.jsonl", "short", "--limit 2").ok();
    eval("other.jsonl", "other", "").ok();

    let begun = eval("other.jsonl", "first", "");
    let pattern = ["error: first/samples.jsonl was begun with another data hash: it has ", ", this evaluation "];
    assert_eq!(begun.code, Some(FAILED));
    assert!(pattern.iter().all(|part| begun.err.contains(part)), "{}", begun.err);
    assert!(begun.err.ends_with("\nhint: choose another output folder\n"), "{}", begun.err);

    let compared = place.unflip("compare first other");
    assert_eq!(compared.code, Some(FAILED));
    let pattern =
        "error: first/results.json and other/results.json cannot be compared: they are of different data (SHA-256 ";
    assert!(compared.err.starts_with(pattern), "{}", compared.err);
    assert!(compared.err.ends_with("\nhint: evaluate both models on the same file with the same --limit\n"));
    refuses(
        &place,
        FAILED,
        "compare first short",
        "error: first/results.json and short/results.json cannot be compared: they have 4 and 2 questions\n\
         hint: evaluate both models on the same file with the same --limit",
    );
    refuses(
        &place,
        FAILED,
        "compare first first --cluster image",
        "error: first/results.json: question `q0` does not say its image\n\
         hint: give it in `meta` of the data file and evaluate again into another folder, or use --cluster auto or question",
    );
    let one = place.unflip("compare first");
    assert!(one.code == Some(USAGE) && one.err.contains("2 values required"), "{}", one.err);
    for (flag, message) in [
        ("--margin 101", "expected percentage points from 0 to 100"),
        ("--margin -1", "expected percentage points from 0 to 100"),
        ("--permutations 0", "expected a whole number, at least 1"),
        ("--cluster study", "possible values: auto, patient, image, report, question"),
    ] {
        let run = place.unflip(&format!("compare first first {flag}"));
        assert!(run.code == Some(USAGE) && run.err.contains(message), "{flag}: {}", run.err);
        assert!(run.err.ends_with("\nhint: `unflip compare --help` says what it takes\n"), "{}", run.err);
    }
    let begun = eval("data.jsonl", "first", "--pool max");
    assert!(begun.err.contains("was begun with another pool: it has single, this evaluation max"), "{}", begun.err);
    refuses(
        &place,
        FAILED,
        "compare first data.jsonl",
        "error: data.jsonl is not a result file: expected one JSON object: trailing characters at line 2 column 1\n\
         hint: give the folder that `unflip eval --out` wrote",
    );
    let samples = place.read("first/samples.jsonl");
    let torn: Vec<&str> = samples.lines().enumerate().map(|(k, line)| if k == 2 { "{}" } else { line }).collect();
    place.write("first/samples.jsonl", &(torn.join("\n") + "\n"));
    refuses(
        &place,
        FAILED,
        "compare first other",
        "error: first/samples.jsonl:3: expected a sample: missing field `id` at line 1 column 2\n\
         hint: remove the file to evaluate again",
    );
}

#[test]
fn pools_that_are_none_or_change() {
    let place = Place::new();
    let unknown = "error: unknown pool `sum`: expected one of single, max, logsumexp\nhint: did you mean `logsumexp`?";
    for verb in ["ask --model model Fluid?", "eval --model model --data data.jsonl --out out"] {
        refuses(&place, USAGE, &format!("{verb} --pool sum"), unknown);
    }
    let trace = "trace --model model --input groups.json --out t.safetensors --pool";
    refuses(&place, USAGE, &format!("{trace} sum"), unknown);
    refuses(
        &place,
        USAGE,
        &format!("{trace} max"),
        "error: --pool max was given, and groups.json has no `answer_spellings`\n\
         hint: add `\"answer_spellings\": {\"Yes\": […], \"No\": […]}` with token ids to it",
    );
    let setting = place.unflip(&train("run", "--pool sum"));
    assert_eq!(setting.code, Some(USAGE));
    assert!(
        setting
            .err
            .starts_with("error: `objective.pool` in --pool must be single, max or logsumexp, found \"sum\"\nhint: "),
        "{}",
        setting.err
    );
    place.unflip(&train("run", "--steps 1 --pool max")).ok();
    let resumed = place.unflip(&train("run", "--steps 1 --resume"));
    assert_eq!(resumed.code, Some(FAILED));
    assert!(resumed.err.contains("objective.pool") && resumed.err.contains("hint: "), "{}", resumed.err);
}

#[test]
fn adapters_that_do_nothing() {
    let place = Place::new();
    // At a rate that rounds away, B stays 0.
    place.unflip(&train("run", "--steps 1 --lr 1e-300")).ok();
    refuses(
        &place,
        FAILED,
        "inspect model --adapter run/final",
        "error: the adapter changes none of 512 logits\n\
         hint: it was never trained if its B are 0 (`unflip inspect --adapter ADAPTER` shows their norms); train it, or choose another checkpoint",
    );
    place.unflip("inspect --adapter run/final").ok();
    let both = place.unflip("inspect model --model model");
    assert!(both.code == Some(USAGE) && both.err.contains("cannot be used with"), "{}", both.err);
    let none = place.unflip("inspect");
    assert_eq!(none.code, Some(USAGE), "{}", none.err);
    assert!(none.err.contains("hint: "), "{}", none.err);
}

#[test]
fn settings_that_no_run_can_have() {
    let place = Place::new();
    let refuses = |more: &str, message: &str| {
        refuses(&place, USAGE, &train("run", more), message);
        assert!(!place.exists("run"), "{more}: nothing is left behind");
    };
    let help = "hint: `unflip train --help` says what every setting does";
    for (more, problem) in [
        ("--lr 0", "`optimizer.lr` in --lr must be a number above 0, found \"0\""),
        ("--lr -1", "`optimizer.lr` in --lr must be a number above 0, found \"-1\""),
        ("--rank 0", "`adapter.rank` in --rank must be a whole number, at least 1, found \"0\""),
        ("--lambda -1", "`objective.lambda` in --lambda must be a number at least 0, or inf, found \"-1\""),
        ("--dropout 1", "`adapter.dropout` in --dropout must be a number at least 0 and below 1, found \"1\""),
        (
            "--layers 3-1",
            "`adapter.layers` in --layers must be all, paper, a range as 8-11 or a list as 2,3,7, found \"3-1\"",
        ),
        ("--layers 5-9", "`adapter.layers` in settings must be layers 0 to 6 (the model has 7), found layer 7"),
        ("--threads 0", "`run.threads` in --threads must be a whole number, at least 1, found \"0\""),
        ("--limit 0", "`data.limit` in --limit must be a whole number, at least 1, found \"0\""),
        (
            "--modules q,x",
            "`adapter.modules` in --modules must be one or more of q, k, v, o, gate, up, down, found \"q,x\"",
        ),
    ] {
        refuses(more, &format!("error: {problem}\n{help}"));
    }
    refuses(
        "--loss papr",
        "error: `objective.loss` in --loss must be paper, margin, symkl-binary, symkl-full, ce-binary, ce-full or combined, \
         found \"papr\"\nhint: did you mean `paper`?",
    );
    refuses(
        "--schedule cosin",
        "error: `schedule.decay` in --schedule must be constant, linear or cosine, found \"cosin\"\nhint: did you mean `cosine`?",
    );
    refuses(
        "--epochs 1 --steps 2",
        "error: schedule.epochs and schedule.steps: only one of them can say how long the run is\nhint: leave one of them out",
    );
    refuses(
        "--groups-per-batch 3",
        "error: schedule.batch_groups and schedule.groups_per_batch: 2 groups a step cannot be split into launches of 3\n\
         hint: let groups_per_batch divide batch_groups",
    );
    refuses(
        "--paraphrases none",
        "error: objective.loss and data.paraphrases: the loss compares phrasings, but only the original would take part\n\
         hint: train on paraphrases too, or choose `ce-binary` or `ce-full`",
    );
    refuses(
        "--loss paper --accuracy ce-full",
        "error: objective.loss and its parts: give a whole loss or its parts, not both\n\
         hint: leave `loss` out to build one of parts",
    );
    refuses(
        "--template Fluid?",
        "error: prompt template `Fluid?`: {question} is missing\n\
         hint: a template is text with `{question}` once, and `{image}` and `{context}` where they shall stand",
    );
}

#[test]
fn config_files_with_mistakes() {
    let place = Place::new();
    let refuses = |text: &str, message: &str| {
        place.write("run.toml", text);
        refuses(&place, USAGE, "train --config run.toml --model model --data data.jsonl --out run", message);
    };
    let keys = "hint: `unflip train --print-config` shows every key with its default";
    for (text, problem) in [
        (
            "[optimizer]\n\nwieght_decay = 1",
            "`optimizer.wieght_decay` in run.toml:3: did you mean `optimizer.weight_decay`?",
        ),
        ("[adapter]\nlr = 1", "`adapter.lr` in run.toml:2: did you mean `optimizer.lr`?"),
        ("lr = 1", "`lr` in run.toml:1: did you mean `optimizer.lr`?"),
        ("[xyzzy]\nfoo = 1", "`xyzzy.foo` in run.toml:2"),
    ] {
        refuses(text, &format!("error: unknown setting {problem}\n{keys}"));
    }
    refuses(
        "[run]\nseed = = 1",
        "error: run.toml:2: extra `=`, expected nothing\n\
         hint: the file is TOML, `[section]` and `key = value`: `unflip train --print-config` writes one",
    );
    refuses(
        "[objective]\nloss = \"symkl_full\"",
        "error: `objective.loss` in run.toml:2 must be paper, margin, symkl-binary, symkl-full, ce-binary, ce-full or combined, \
         found \"symkl_full\"\nhint: did you mean `symkl-full`?",
    );
    refuses(
        "[schedule]\nepochs = 1\nsteps = 3",
        "error: schedule.epochs and schedule.steps: only one of them can say how long the run is\nhint: leave one of them out",
    );
    place.remove("run.toml");
    crate::refuses(
        &place,
        FAILED,
        "train --config run.toml --out run",
        "error: cannot read run.toml: No such file or directory (os error 2)\n\
         hint: check the spelling of run.toml; its folder must exist",
    );
    crate::refuses(
        &place,
        USAGE,
        "train --model model --out run",
        "error: training needs --data (or `data.train` in the config file)\nhint: `unflip train --help` has an example",
    );
}

#[test]
fn devices_that_are_not_there() {
    let place = Place::new();
    for verb in ["eval --model model --data data.jsonl --out run", "train --model model --data data.jsonl --out run"] {
        let run = place.unflip(&format!("{verb} --device cuda"));
        assert_eq!(run.code, Some(USAGE));
        let (message, hint) = run.err.trim_end().split_once("\nhint: ").expect("a hint");
        assert!(hint.ends_with("use --device cpu"), "{hint}");
        if verb.starts_with("train") {
            assert_eq!(message, "error: --device cuda computes no gradients: it has the forward pass alone");
        } else {
            // What is missing depends on the machine: all of it is named.
            let libraries = ["libcuda.so.1", "libnvrtc.so", "cuda_bf16.h"].iter().any(|what| message.contains(what));
            assert!(message.starts_with("error: --device cuda is not available: "), "{message}");
            assert!(libraries, "{message}");
        }
        let run = place.unflip(&format!("{verb} --device cuda --precision f32"));
        assert_eq!(run.code, Some(USAGE));
        assert!(verb.starts_with("train") || run.err.contains("computes in bf16 alone"), "{}", run.err);
        for isa in ["avx512bf16", "amx"] {
            let run = place.unflip(&format!("{verb} --isa {isa}"));
            assert_eq!(run.code, Some(USAGE));
            let expected = format!(
                "error: `{isa}` computes in bf16, expected an instruction set of f32 kernels\n\
                 hint: add --precision bf16, or use --isa "
            );
            assert!(run.err.starts_with(&expected), "{}", run.err);
        }
        assert_eq!(place.unflip(&format!("{verb} --precision bf16 --isa sse9")).code, Some(USAGE));
        let run = place.unflip(&format!("{verb} --isa sse9"));
        assert_eq!(run.code, Some(USAGE));
        assert!(
            run.err.starts_with("error: instruction set `sse9` is not available: this CPU has portable"),
            "{}",
            run.err
        );
        assert!(
            run.err.ends_with("\nhint: leave --isa out, or run `unflip doctor` to see what serves\n"),
            "{}",
            run.err
        );
        assert!(!place.exists("run"));
    }
}

#[test]
fn arguments_that_the_parser_refuses() {
    let place = Place::new();
    for (flag, value) in [("--threads", "0"), ("--limit", "0"), ("--groups-per-batch", "x"), ("--resamples", "0")] {
        refuses(
            &place,
            USAGE,
            &format!("eval --model model --data data.jsonl --out run {flag} {value}"),
            &format!(
                "error: invalid value '{value}' for '{flag} <N>': expected a whole number, at least 1\n\
                 hint: `unflip eval --help` says what it takes"
            ),
        );
    }
    refuses(
        &place,
        USAGE,
        "eval --modle model",
        "error: unexpected argument '--modle' found\n\n  tip: a similar argument exists: '--model'\n\n\
         Usage: unflip eval --model <DIR> --data <FILE> --out <DIR>\nhint: `unflip eval --help` says what it takes",
    );
    refuses(
        &place,
        USAGE,
        "evla",
        "error: unrecognized subcommand 'evla'\n\n  tip: a similar subcommand exists: 'eval'\n\n\
         Usage: unflip <COMMAND>\nhint: `unflip --help` says what it takes",
    );
    let nothing = place.run(&[]);
    assert_eq!((nothing.code, nothing.out.as_str()), (Some(USAGE), ""));
    assert!(nothing.err.contains("Usage: unflip <COMMAND>"), "{}", nothing.err);
}
