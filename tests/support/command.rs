//! What the tests of the command line share: a temporary folder with a tiny model that has a tokenizer, and running the
//! real binary in it. Paths are relative to that folder, so messages are the same on every machine.
#![allow(dead_code)] // Each test binary uses a part of it.

use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tokenizer's special tokens, ids 0 to 5.
const SPECIALS: [&str; 6] = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];
/// Merges that make `Yes` and `No` one token each; everything else is spelled letter by letter.
pub const MERGES: [(&str, &str); 3] = [("Y", "e"), ("Ye", "s"), ("N", "o")];

/// What a command left behind.
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    /// Standard output of a command that must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
    }

    /// Standard output as JSON of a command that must have succeeded.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("valid JSON on standard output")
    }
}

/// A temporary folder with `model` (the golden text model and a tokenizer), `vlm`, `groups.json`, `lora`, `vlm_lora` and
/// `data.jsonl`; `file` is a file where a folder would be needed.
pub struct Place {
    folder: tempfile::TempDir,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder is made");
    for entry in fs::read_dir(from).expect("folder is read") {
        let path = entry.expect("entry is read").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("file is copied");
    }
}

/// A group of a data file.
pub fn group(id: usize) -> Value {
    json!({
        "id": format!("q{id}"),
        "context": if id.is_multiple_of(2) { "Fluid." } else { "Clear." },
        "question": "Is fluid seen?",
        "paraphrases": ["Any fluid?", "Is there fluid?"],
        "answer": if id.is_multiple_of(2) { "yes" } else { "no" },
    })
}

impl Place {
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().expect("temporary folder") };
        place.model("model");
        copy_folder(&goldens().join("text/lora_all"), &place.path("lora"));
        copy_folder(&goldens().join("vlm/lora_all"), &place.path("vlm_lora"));
        fs::copy(goldens().join("text/groups.json"), place.path("groups.json")).expect("groups are copied");
        place.data("data.jsonl", &[group(0), group(1), group(2), group(3)]);
        place.write("file", "");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("file is written");
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("file is removed");
    }

    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).expect("file is renamed");
    }

    pub fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The golden text model with a tokenizer, as `name`.
    pub fn model(&self, name: &str) {
        copy_folder(&goldens().join("text/model"), &self.path(name));
        self.tokenizer(name, &MERGES);
    }

    /// The golden vision-language model with a tokenizer, as `name`.
    pub fn vision_model(&self, name: &str) {
        copy_folder(&goldens().join("vlm/model"), &self.path(name));
        self.tokenizer(name, &MERGES);
    }

    /// A copy of the adapter of the golden text model.
    pub fn adapter(&self, name: &str) {
        copy_folder(&self.path("lora"), &self.path(name));
    }

    /// Writes a tokenizer of all ASCII letters and `merges` into a model folder.
    pub fn tokenizer(&self, model: &str, merges: &[(&str, &str)]) {
        let letters = (33u8..127).map(|letter| char::from(letter).to_string());
        let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
        let mut vocabulary = Map::new();
        for token in
            SPECIALS.map(String::from).into_iter().chain(["\n".into(), "▁".into()]).chain(letters).chain(merged)
        {
            let next = vocabulary.len();
            vocabulary.entry(token).or_insert(next.into());
        }
        let special = |(id, content): (usize, &&str)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": SPECIALS.iter().enumerate().map(special).collect::<Vec<_>>(),
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": merges.iter().map(|(left, right)| [left, right]).collect::<Vec<_>>()},
        });
        self.write(&format!("{model}/tokenizer.json"), &tokenizer.to_string());
    }

    /// Writes a data file, one value a line.
    pub fn data(&self, name: &str, groups: &[Value]) {
        let lines: Vec<String> = groups.iter().map(Value::to_string).collect();
        self.write(name, &(lines.join("\n") + "\n"));
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_str(&self.read(name)).expect("JSON is read");
        change(&mut value);
        self.write(name, &value.to_string());
    }

    /// Changes the header of a safetensors file and leaves its data.
    pub fn edit_header(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let bytes = fs::read(self.path(name)).expect("weights are read");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + length]).expect("header is JSON");
        change(&mut header);
        let mut text = serde_json::to_string(&header).expect("header is written");
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let whole = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &bytes[8 + length..]].concat();
        fs::write(self.path(name), whole).expect("weights are written");
    }

    /// The binary, to run in this folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unflip"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("HF_HUB_CACHE", "cache")
            .env("UNFLIP_CACHE", "own-cache")
            .env_remove("UNFLIP_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary in this folder.
    pub fn run(&self, arguments: &[&str]) -> Run {
        let output = self.command(arguments).output().expect("the binary runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8 output");
        Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs the binary with arguments separated by white space.
    pub fn unflip(&self, arguments: &str) -> Run {
        self.run(&arguments.split_whitespace().collect::<Vec<_>>())
    }
}

/// Exit code of a command that failed.
pub const FAILED: i32 = 1;
/// Exit code of a request that was wrong.
pub const USAGE: i32 = 2;

/// Checks one message to the letter.
#[track_caller]
pub fn refused(place: &Place, code: i32, arguments: &[&str], message: &str) {
    let run = place.run(arguments);
    assert_eq!(run.err, format!("{message}\n"), "unflip {}", arguments.join(" "));
    assert_eq!((run.code, run.out.as_str()), (Some(code), ""), "unflip {}", arguments.join(" "));
    assert!(message.starts_with("error: ") && message.contains("\nhint: "), "a message has an error and a hint");
}

/// As [`refused`], with arguments separated by white space.
#[track_caller]
pub fn refuses(place: &Place, code: i32, arguments: &str, message: &str) {
    refused(place, code, &arguments.split_whitespace().collect::<Vec<_>>(), message);
}
