//! What the tests on recorded Hugging Face results share: opening goldens, running every back end, comparing.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::{Path, PathBuf};
use unflip::batch::TokenGroup;
use unflip::cpu::{Cpu, Isa};
use unflip::data::{TraceGroup, TraceInput};
use unflip::model::{Adapter, EmbedScale, Engine};
use unflip::objective::{Objective, Pairs};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{Device, TrainDevice};
use unflip::train::EngineGroup;
use unflip::weights::{AdapterFile, Checkpoint, SafetensorsFile};

/// Largest error of logits and hidden states, relative to the tensor's maximum.
pub const LOGITS: f64 = 2e-5;
/// Largest error of a loss, relative.
pub const LOSS: f64 = 1e-5;
/// Largest error of a gradient, relative to the tensor's maximum.
pub const GRADIENT: f64 = 5e-5;

/// A folder of recorded results.
pub struct Golden {
    pub folder: PathBuf,
    pub checkpoint: Checkpoint,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let checkpoint = Checkpoint::open(folder.join("model")).expect("golden model opens");
        Self { folder, checkpoint }
    }

    pub fn file(&self, name: &str) -> SafetensorsFile {
        SafetensorsFile::open(self.folder.join(name)).expect("golden file opens")
    }

    pub fn adapter(&self, name: &str) -> AdapterFile {
        AdapterFile::open(self.folder.join(name)).expect("golden adapter opens")
    }

    pub fn groups(&self) -> TraceInput {
        TraceInput::read(self.folder.join("groups.json")).expect("golden groups open")
    }

    pub fn json(&self, name: &str) -> serde_json::Value {
        let text = std::fs::read_to_string(self.folder.join(name)).expect("golden JSON opens");
        serde_json::from_str(&text).expect("golden JSON parses")
    }

    /// Goldens were computed in float32, hence with the exact embedding scale.
    pub fn engine<D: Device>(&self, device: D, adapter: Option<&AdapterFile>) -> Engine<D> {
        let mut engine = Engine::open(device, &self.checkpoint, EmbedScale::Exact, None).expect("model loads");
        if let Some(file) = adapter {
            engine.adapter =
                Some(Adapter::from_file(&engine.device, &engine.model.config, file).expect("adapter fits"));
        }
        engine
    }
}

/// A whole sequence as the one phrasing of a group.
pub fn single(ids: Vec<u32>) -> TraceGroup {
    TraceGroup {
        tokens: TokenGroup { prefix: Vec::new(), suffixes: vec![ids] },
        yes: 111,
        no: 222,
        answer_yes: true,
        image: None,
    }
}

/// Ids stored as I64.
pub fn ids(file: &SafetensorsFile, name: &str) -> Vec<u32> {
    file.tensor(name).expect("ids").to_f32().into_iter().map(|id| id as u32).collect()
}

/// A test body to be run on one back end after the other.
pub trait OnEach {
    fn run<D: TrainDevice>(&mut self, device: D, name: &str);
}

/// Runs the body on the reference and on every instruction set of this CPU, and says which are skipped.
pub fn on_each_device(body: &mut impl OnEach) {
    body.run(Reference::new(Precision::F32), "reference");
    for isa in isas() {
        body.run(Cpu::new(isa, Some(2)).expect("cpu device"), &isa.to_string());
    }
}

/// Every instruction set of this CPU.
pub fn isas() -> Vec<Isa> {
    let available = Isa::available();
    for isa in [Isa::Avx2, Isa::Avx512] {
        if !available.contains(&isa) {
            eprintln!("skipped: {isa} (this CPU lacks it)");
        }
    }
    available
}

/// Asserts |found − expected| ≤ tolerance · max|expected|.
#[track_caller]
pub fn assert_close(what: &str, found: &[f64], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    let mut worst = 0.0f64;
    for (&f, &e) in found.iter().zip(expected) {
        assert!(f.is_finite(), "{what}: not finite");
        worst = worst.max((f - f64::from(e)).abs());
    }
    assert!(worst <= tolerance * scale, "{what}: error {worst:.3e} of a maximum {scale:.3e}, allowed {tolerance:.1e}");
}

pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// `count` different groups of four phrasings each made of the golden ones, with alternating truths.
pub fn engine_groups(golden: &Golden, count: usize) -> Vec<EngineGroup> {
    let input = golden.groups();
    let group = |index: usize| {
        let base = &input.groups[index % input.groups.len()];
        // Ids stay in the vocabulary and clear of the special tokens; the first one is <bos>.
        let moved = |ids: &[u32]| ids.iter().map(|&id| (id + 37 * index as u32) % 500 + 8).collect::<Vec<u32>>();
        let mut prefix = moved(&base.tokens.prefix[..base.tokens.prefix.len() - index % 5]);
        prefix[0] = 2;
        let mut suffixes: Vec<Vec<u32>> = base.tokens.suffixes.iter().map(|suffix| moved(suffix)).collect();
        suffixes.push(suffixes[1].iter().rev().chain(&suffixes[0]).copied().collect());
        EngineGroup {
            id: format!("group-{index}"),
            tokens: TokenGroup { prefix, suffixes },
            yes: base.yes,
            no: base.no,
            answer_yes: index.is_multiple_of(2),
        }
    };
    (0..count).map(group).collect()
}

/// A loss by name.
pub fn loss(name: &str, pairs: Pairs, lambda: Option<f64>) -> Objective {
    Objective::new(name, pairs, lambda).expect("a known loss")
}
