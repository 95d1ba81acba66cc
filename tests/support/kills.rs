//! A campaign of kills: a training run of the real binary is ended by SIGKILL at seeded random moments, resumed, and compared byte
//! by byte with the same run left alone. `tools/kill_campaign` runs a long one, `unbreakable.rs` a short one.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use unflip::train::random::Random;

/// What to kill, and how often.
pub struct Campaign {
    /// Folder in which commands run and runs are kept.
    pub folder: PathBuf,
    /// Arguments of `unflip train` but for `--out`.
    pub arguments: Vec<String>,
    /// Kills.
    pub kills: usize,
    /// Seed of the moments.
    pub seed: u64,
}

/// Files that have to be equal, by a name for reports.
fn compared(steps: u64) -> [(&'static str, String); 5] {
    [
        ("final adapter", "final/adapter_model.safetensors".into()),
        ("optimiser state", format!("checkpoints/step-{steps}/trainer_state.safetensors")),
        ("metrics.jsonl", "metrics.jsonl".into()),
        ("best adapter", "best/adapter_model.safetensors".into()),
        ("best.json", "best/best.json".into()),
    ]
}

/// Names in a folder, sorted; none if it does not exist.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// Steps that `metrics.jsonl` tells of.
pub fn steps_told(run: &Path) -> u64 {
    let text = fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter(|line| line.contains("\"grad_norm\"")).count() as u64
}

/// Waits until `done`, at most a minute.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        sleep(Duration::from_millis(1));
    }
}

impl Campaign {
    fn start(&self, out: &str, more: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_unflip"))
            .arg("train")
            .args(&self.arguments)
            .args(["--out", out])
            .args(more)
            .current_dir(&self.folder)
            .env("UNFLIP_CACHE", self.folder.join("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts")
    }

    fn finish(child: Child) {
        let output = child.wait_with_output().expect("the process ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs it; the record says for every kill where it struck and what was equal. Panics if anything was not.
    pub fn run(&self) -> Value {
        // The first run warms the disk's cache, the second one is timed.
        Self::finish(self.start("warm", &[]));
        let whole = self.folder.join("whole");
        let began = Instant::now();
        let child = self.start("whole", &[]);
        let first_checkpoint = {
            let checkpoints = whole.join("checkpoints");
            wait_until("a checkpoint", || names(&checkpoints).iter().any(|name| name.starts_with("step-")));
            began.elapsed().as_secs_f64()
        };
        Self::finish(child);
        let whole_seconds = began.elapsed().as_secs_f64();
        let steps = steps_told(&whole);
        let files = compared(steps);
        for (what, file) in &files {
            let other = fs::read(self.folder.join("warm").join(file)).expect(what);
            assert!(fs::read(whole.join(file)).expect(what) == other, "two runs left alone differ in {what}");
        }

        let wanted_late = (3 * self.kills).div_ceil(4);
        let (mut records, mut late, mut attempt): (Vec<Value>, usize, u64) = (Vec::new(), 0, 0);
        while records.len() < self.kills || late < wanted_late {
            attempt += 1;
            assert!(attempt <= 20 + 5 * self.kills as u64, "{} kills in {attempt} attempts", records.len());
            let mut random = Random::keyed(&[self.seed, attempt]);
            let place = random.below(1_000_000) as f64 / 1e6;
            // One in seven before the first checkpoint, the others after it.
            let moment = match attempt % 7 {
                0 => place * first_checkpoint,
                _ => first_checkpoint + place * (whole_seconds - first_checkpoint),
            };
            let out = format!("kill-{attempt}");
            let run = self.folder.join(&out);
            let mut child = self.start(&out, &[]);
            sleep(Duration::from_secs_f64(moment));
            if child.try_wait().expect("the process is asked").is_some() {
                Self::finish(child);
                let _ = fs::remove_dir_all(&run);
                continue;
            }
            child.kill().expect("the process is killed");
            child.wait().expect("the process is gone");
            let told = steps_told(&run);
            let found = names(&run.join("checkpoints"));
            let (whole_ones, partial): (Vec<&String>, Vec<&String>) =
                found.iter().partition(|name| name.starts_with("step-"));
            let newest = whole_ones.iter().filter_map(|name| name[5..].parse::<u64>().ok()).max();
            late += usize::from(newest.is_some());

            Self::finish(self.start(&out, &["--resume"]));
            let mut equal = serde_json::Map::new();
            for (what, file) in &files {
                let same = fs::read(run.join(file)).ok() == fs::read(whole.join(file)).ok();
                equal.insert((*what).into(), same.into());
            }
            let leftovers: Vec<String> = [names(&run), names(&run.join("checkpoints"))]
                .concat()
                .into_iter()
                .filter(|name| name.starts_with('.'))
                .collect();
            records.push(json!({
                "moment_seconds": moment,
                "steps_in_metrics": told,
                "newest_checkpoint": newest,
                "half_written": partial,
                "equal_after_resume": equal,
                "leftovers_after_resume": leftovers,
            }));
            let record = records.last().expect("just pushed");
            assert!(equal_all(record), "killed after {moment} s: {record:#}");
            assert!(leftovers.is_empty(), "killed after {moment} s: {leftovers:?}");
            let _ = fs::remove_dir_all(&run);
        }
        json!({
            "seed": self.seed,
            // Places by their last names.
            "arguments": self.arguments.iter().map(|text| text.rsplit('/').next().unwrap_or(text)).collect::<Vec<_>>(),
            "uninterrupted": { "steps": steps, "seconds": whole_seconds, "first_checkpoint_seconds": first_checkpoint },
            "kills": records.len(),
            "kills_after_first_checkpoint": late,
            "all_equal": records.iter().all(equal_all),
            "machine": {
                "cpu": unflip::machine::cpu_name(),
                "cores": std::thread::available_parallelism().map_or(1, usize::from),
                "os": std::env::consts::OS,
                "debug_build": cfg!(debug_assertions),
            },
            "version": env!("CARGO_PKG_VERSION"),
            "records": records,
        })
    }
}

fn equal_all(record: &Value) -> bool {
    record["equal_after_resume"].as_object().is_some_and(|equal| equal.values().all(|same| same == true))
}
