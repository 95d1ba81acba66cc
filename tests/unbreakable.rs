//! Promises of runs under attack, kept by the real binary: killed at any moment, interrupted, out of disk, shared by mistake. What is
//! left can always be gone on with, to the same bytes.

#[path = "support/command.rs"]
mod command;
#[path = "support/kills.rs"]
mod kills;

use command::{FAILED, Place, group};
use kills::{Campaign, names, steps_told, wait_until};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run that uses all that could depend on more than the step: dropout, warm-up, decay, a sample of paraphrases, validation.
const EVENTFUL: &str = "--model model --data data.jsonl --validation validation.jsonl --loss combined --rank 4 --dropout 0.1 --paraphrases \
    sample:1 --warmup 3 --schedule cosine --lr 2e-3 --batch-groups 2 --epochs 10 --checkpoint-every 3 --keep-checkpoints 3 --threads 1";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A place with 8 training and 3 validation groups, all different.
fn place() -> Place {
    let place = Place::new();
    let of = |id: usize| {
        let mut group = group(id);
        group["context"] = format!("Report {id}.").into();
        group
    };
    place.data("data.jsonl", &(0..8).map(of).collect::<Vec<_>>());
    place.data("validation.jsonl", &(8..11).map(of).collect::<Vec<_>>());
    place
}

fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Also what `tools/kill_campaign` runs, with more kills and, if asked for, another model.
#[test]
fn killed_at_random_moments_and_resumed_equals_never_killed() {
    let place = place();
    let number = |name, otherwise| from_environment(name).map_or(otherwise, |text| text.parse().expect(name));
    let arguments = from_environment("UNFLIP_KILL_ARGUMENTS").unwrap_or_else(|| EVENTFUL.to_owned());
    let campaign = Campaign {
        folder: place.path("."),
        arguments: words(&arguments),
        kills: number("UNFLIP_KILLS", 4) as usize,
        seed: number("UNFLIP_KILL_SEED", 1),
    };
    let record = campaign.run();
    assert_eq!(record["all_equal"], true);
    if let Some(path) = from_environment("UNFLIP_KILL_RECORD") {
        fs::write(&path, format!("{record:#}\n")).expect("the record is written");
        println!("{} kills, all equal: {path}", record["kills"]);
    }
}

/// Arguments of a run of many steps of about as long as it takes to send a signal twice, one group a step.
const LONG: &str = "train --model model --data data.jsonl --loss combined --rank 4 --batch-groups 1 --steps 200 --checkpoint-every 1000 \
    --threads 1 --out";

fn start(place: &Place, arguments: &str) -> Child {
    let mut command = place.command(&arguments.split_whitespace().collect::<Vec<_>>());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_first_signal_stops_after_the_step_with_a_checkpoint_to_go_on_from() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let place = place();
        let child = start(&place, &format!("{LONG} run"));
        wait_until("the third step", || steps_told(&place.path("run")) >= 3);
        signal(&child, name);
        let Output { status, stderr, .. } = child.wait_with_output().expect("it ends");
        let (told, steps) = (text(&stderr), steps_told(&place.path("run")));
        assert_eq!(status.code(), Some(code), "{told}");
        assert!((3..200).contains(&steps), "{steps}");
        assert_eq!(names(&place.path("run/checkpoints")), [format!("step-{steps}")]);
        let message = format!(
            "error: stopped by SIG{name} after step {steps} of 200; its checkpoint is run/checkpoints/step-{steps}\n\
             hint: run the same command with --resume to go on, to the same bits\n"
        );
        assert!(told.contains("stopping after this step, with a checkpoint; once more stops at once\n"), "{told}");
        assert!(told.ends_with(&message), "{told}");
        assert!(!place.exists("run/final"));
        if name == "INT" {
            // A stop counts for nothing: what it leaves is what a run left alone leaves.
            place.unflip(&format!("{LONG} run --resume")).ok();
            place.unflip(&format!("{LONG} whole")).ok();
            for file in
                ["metrics.jsonl", "final/adapter_model.safetensors", "checkpoints/step-200/trainer_state.safetensors"]
            {
                let read = |run: &str| fs::read(place.path(&format!("{run}/{file}"))).expect(file);
                assert!(read("run") == read("whole"), "{file}");
            }
        }
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    let place = place();
    // Steps of the reference back end take long enough for a second signal within one.
    let child =
        start(&place, "train --model model --data data.jsonl --device reference --batch-groups 8 --epochs 9 --out run");
    wait_until("the first step", || steps_told(&place.path("run")) >= 1);
    let before = Instant::now();
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(20));
    signal(&child, "INT");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let told = text(&output.stderr);
    let finished_its_step = told.contains("error: stopped by SIGINT");
    if finished_its_step {
        eprintln!("skipped: the step ended within {:?}, before the second signal", before.elapsed());
    } else {
        assert_eq!(names(&place.path("run/checkpoints")), Vec::<String>::new());
    }
}

#[test]
fn a_second_process_is_refused_while_the_first_lives_and_no_longer() {
    let place = place();
    let endless = LONG.replace("--steps 200", "--steps 100000");
    let mut child = start(&place, &format!("{endless} run"));
    wait_until("the first step", || steps_told(&place.path("run")) >= 1);
    for second in [String::new(), " --resume".into()] {
        let run = place.unflip(&format!("{endless} run{second}"));
        let message = format!(
            "error: run is in use by another process ({})\nhint: wait for the other process, or choose another directory\n",
            child.id()
        );
        assert_eq!((run.code, run.err), (Some(FAILED), message));
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    let mut next = start(&place, &format!("{endless} run --resume"));
    wait_until("the next owner", || place.read("run/run.lock").trim() == next.id().to_string());
    next.kill().expect("killed");
    next.wait().expect("gone");
}

/// A run of 12 steps with a checkpoint after each.
const STEPS: &str = "train --model model --data data.jsonl --validation validation.jsonl --loss combined --rank 4 --batch-groups 2 --steps 12 \
    --checkpoint-every 1 --threads 1 --out";

/// Nothing in the run has a temporary name, and what is called a checkpoint is whole.
fn assert_no_half_files(run: &Path) {
    for folder in [run.to_path_buf(), run.join("checkpoints"), run.join("best")] {
        assert!(names(&folder).iter().all(|name| !name.starts_with('.')), "{:?}", names(&folder));
    }
    for name in names(&run.join("checkpoints")) {
        assert!(run.join("checkpoints").join(&name).join("manifest.json").is_file(), "{name}");
    }
    let metrics = fs::read(run.join("metrics.jsonl")).expect("metrics");
    assert!(metrics.is_empty() || metrics.ends_with(b"\n"), "no torn line");
}

#[track_caller]
fn assert_same_outcome(found: &Path, expected: &Path) {
    for file in [
        "metrics.jsonl",
        "final/adapter_model.safetensors",
        "checkpoints/step-12/trainer_state.safetensors",
        "best/best.json",
        "best/adapter_model.safetensors",
    ] {
        assert!(fs::read(found.join(file)).expect(file) == fs::read(expected.join(file)).expect(file), "{file}");
    }
}

/// A small file system in memory, gone with this value. Only root can make one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path, options: &str) -> Option<Self> {
        fs::create_dir_all(path).expect("folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(path))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0).status().expect("mount runs").success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_stops_the_run_keeps_the_last_checkpoint_and_is_gone_on_from() {
    let place = place();
    let path = place.path("disk");
    let Some(disk) = SmallDisk::mount(&path, "size=1200k") else {
        eprintln!("skipped: a full disk (no file system can be mounted here)");
        return;
    };
    let run = place.unflip(&format!("{STEPS} disk/run"));
    assert_eq!(run.code, Some(FAILED), "{}", run.err);
    let checkpoints = names(&path.join("run/checkpoints"));
    let newest = checkpoints
        .iter()
        .filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok())
        .max()
        .expect("a checkpoint");
    let (message, hint) = run.err.split_once("\nhint: ").expect("a hint");
    assert!(message.starts_with(&format!("error: step {}: cannot write disk/run/", newest + 1)), "{message}");
    assert!(message.ends_with(&format!("; the checkpoint of step {newest} is whole")), "{message}");
    // The system's words, or the library's where a file could not even be made.
    let full = ["No space left on device (os error 28)", "no storage space"];
    assert!(full.iter().any(|reason| message.contains(reason)), "{message}");
    assert!(!message.contains(".tmp"), "{message}");
    assert_eq!(
        hint,
        "make room on the disk (--keep-checkpoints 1 removes older checkpoints), then run the same command with --resume: it goes \
         on from that checkpoint\n"
    );
    assert_no_half_files(&path.join("run"));
    assert_eq!(place.unflip(&format!("{STEPS} disk/run --resume")).code, Some(FAILED), "still full");
    assert_no_half_files(&path.join("run"));

    disk.resize("64m");
    place.unflip(&format!("{STEPS} disk/run --resume")).ok();
    place.unflip(&format!("{STEPS} whole")).ok();
    assert_same_outcome(&path.join("run"), &place.path("whole"));
}

#[test]
fn a_disk_full_from_the_start_says_that_there_is_no_checkpoint() {
    let place = place();
    let path = place.path("disk");
    let Some(_disk) = SmallDisk::mount(&path, "size=40k") else {
        eprintln!("skipped: a full disk (no file system can be mounted here)");
        return;
    };
    let run = place.unflip(&format!("{STEPS} disk/run"));
    assert_eq!(run.code, Some(FAILED), "{}", run.err);
    assert!(run.err.contains("; there is no checkpoint yet\n"), "{}", run.err);
    assert!(run.err.ends_with("then run the same command with --resume: it starts over\n"), "{}", run.err);
    assert_no_half_files(&path.join("run"));
}

#[test]
fn a_refused_write_stops_the_run_keeps_the_last_checkpoint_and_is_gone_on_from() {
    let place = place();
    place.unflip(&format!("{STEPS} whole")).ok();
    let largest = |folder: &str| {
        let sizes = names(&place.path(folder))
            .into_iter()
            .map(|name| fs::metadata(place.path(folder).join(name)).expect("size").len());
        sizes.max().expect("files")
    };
    let metrics = fs::metadata(place.path("whole/metrics.jsonl")).expect("size").len();
    assert!(largest("whole/checkpoints/step-12") > metrics, "the state is the largest file");
    // Half the state's size: the first checkpoint cannot be written.
    let limit = largest("whole/checkpoints/step-12") / 2 / 1024;
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
    let limited = |arguments: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_unflip")]).args(arguments.split_whitespace());
        let output = shell.current_dir(place.path(".")).stdin(Stdio::null()).output().expect("bash runs");
        (output.status.code(), text(&output.stderr))
    };
    let (code, told) = limited(&format!("{STEPS} run"));
    assert_eq!(code, Some(FAILED), "{told}");
    assert!(told.starts_with("error: step 1: cannot write run/checkpoints/step-1/"), "{told}");
    assert!(told.contains("File too large (os error 27); there is no checkpoint yet\nhint: "), "{told}");
    assert_no_half_files(&place.path("run"));

    // With whole checkpoints there already.
    let child = start(&place, &format!("{STEPS} run --resume"));
    wait_until("two checkpoints", || {
        names(&place.path("run/checkpoints")).iter().filter(|name| name.starts_with("step-")).count() >= 2
    });
    signal(&child, "INT");
    let output = child.wait_with_output().expect("it ends");
    if output.status.code() == Some(130) {
        let (code, told) = limited(&format!("{STEPS} run --resume"));
        assert_eq!(code, Some(FAILED), "{told}");
        let newest = names(&place.path("run/checkpoints"))
            .iter()
            .filter_map(|name| name[5..].parse::<u64>().ok())
            .max()
            .expect("some");
        assert!(told.contains(&format!("; the checkpoint of step {newest} is whole\nhint: ")), "{told}");
        assert_no_half_files(&place.path("run"));
    }
    place.unflip(&format!("{STEPS} run --resume")).ok();
    assert_same_outcome(&place.path("run"), &place.path("whole"));
}

#[test]
fn older_checkpoints_go_but_never_the_newest_nor_the_best() {
    let place = place();
    place.unflip(&format!("{STEPS} all --validate-every 1")).ok();
    assert_eq!(names(&place.path("all/checkpoints")).len(), 12);
    let best: serde_json::Value = serde_json::from_str(&place.read("all/best/best.json")).expect("JSON");
    let best = best["step"].as_u64().expect("a step");
    place.unflip(&format!("{STEPS} few --validate-every 1 --keep-checkpoints 2")).ok();
    let mut expected = vec!["step-11".to_owned(), "step-12".to_owned()];
    if best < 11 {
        expected.push(format!("step-{best}"));
        expected.sort();
    }
    assert_eq!(names(&place.path("few/checkpoints")), expected);
    assert_same_outcome(&place.path("few"), &place.path("all"));
    // Also on resuming, where it may change.
    place.unflip(&format!("{STEPS} all --validate-every 1 --keep-checkpoints 1 --resume")).ok();
    assert_eq!(names(&place.path("all/checkpoints")).len(), 12, "a finished run is left as it is");
}
