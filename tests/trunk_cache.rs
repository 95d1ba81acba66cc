//! The trunk cache changes no bit of a margin, loss or gradient, whatever it is that is found in it, and the commands use it.

#[path = "support/command.rs"]
mod command;
mod support;

use command::Place;
use support::{Golden, OnEach, engine_groups, on_each_device};
use unflip::model::{Engine, Target};
use unflip::objective::{Objective, Pairs};
use unflip::ops::TrainDevice;
use unflip::train::EngineGroup;
use unflip::trunk::{TrunkBudget, TrunkCache, TrunkCounts, TrunkIdentity};

fn cache(folder: &std::path::Path, memory: u64, disk: u64) -> TrunkCache {
    let identity = TrunkIdentity { model: "golden".into(), embed_scale: "exact".into(), unit: "unit".into() };
    TrunkCache::new(identity, &TrunkBudget { memory, disk, folder: folder.into() }).unwrap()
}

/// Margins, losses and gradient of a batch.
fn results<D: TrainDevice>(engine: &Engine<D>, groups: &[EngineGroup]) -> (Vec<Vec<f64>>, Vec<f64>, Vec<f64>) {
    let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
    let targets: Vec<Target> = groups.iter().map(Target::from).collect();
    let batch = engine.pack(&tokens, 0).unwrap();
    let objective = Objective::new("combined", Pairs::All, Some(0.1)).unwrap();
    let leaf = engine.leaf_gradient(&batch, &targets, &objective, None).unwrap();
    let losses = leaf.losses.iter().map(|loss| loss.loss).collect();
    (engine.margins(&batch, &targets).unwrap(), losses, engine.device.download(&leaf.gradient))
}

#[test]
fn results_are_the_same_bits_without_cold_warm_and_from_disk() {
    struct Body;
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let golden = Golden::open("text");
            let mut engine = golden.engine(device, Some(&golden.adapter("lora_l23")));
            let groups = engine_groups(&golden, 3);
            for share in [true, false] {
                engine.share_prefix = share;
                let folder = tempfile::tempdir().unwrap();
                engine.trunk = None;
                let plain = results(&engine, &groups);
                engine.trunk = Some(cache(folder.path(), 1 << 24, 1 << 24));
                for state in ["cold", "warm"] {
                    assert!(results(&engine, &groups) == plain, "{name}: {state}, shared {share}");
                }
                // Another batch of the same groups finds what each of them stored.
                let alone = results(&engine, &groups[1..2]);
                assert_eq!((&alone.0[0], alone.1[0]), (&plain.0[1], plain.1[1]), "{name}: alone, shared {share}");
                engine.trunk = Some(cache(folder.path(), 0, 1 << 24));
                assert!(results(&engine, &groups) == plain, "{name}: from disk, shared {share}");
                let counts = engine.trunk.as_ref().unwrap().counts();
                if name == "reference" {
                    // It computes in f64, which an f32 cache would round: nothing is stored.
                    assert_eq!((counts.memory, counts.disk), (0, 0));
                } else {
                    let trees: u64 = if share { 3 } else { groups.iter().map(|g| g.tokens.phrasings() as u64).sum() };
                    assert_eq!(counts, TrunkCounts { memory: 0, disk: 2 * trees, computed: 0 }, "{name}");
                }
            }
        }
    }
    on_each_device(&mut Body);
}

#[test]
fn an_adapter_on_the_first_layer_leaves_nothing_to_store() {
    let golden = Golden::open("text");
    let device = unflip::cpu::Cpu::new(unflip::cpu::Isa::best(), Some(2)).unwrap();
    let mut engine = golden.engine(device, Some(&golden.adapter("lora_all")));
    let folder = tempfile::tempdir().unwrap();
    engine.trunk = Some(cache(folder.path(), 1 << 24, 1 << 24));
    results(&engine, &engine_groups(&golden, 2));
    assert_eq!(engine.trunk.as_ref().unwrap().counts(), TrunkCounts::default());
}

#[test]
fn training_and_evaluation_with_the_cache_write_the_bytes_they_write_without() {
    let place = Place::new();
    let train = |out: &str, cache: &str| {
        let command = format!(
            "train --model model --data data.jsonl --layers 3-5 --epochs 2 --batch-groups 2 --rank 4 --out {out} {cache}"
        );
        place.unflip(&command).ok();
        std::fs::read(place.path(&format!("{out}/final/adapter_model.safetensors"))).unwrap()
    };
    let files = || std::fs::read_dir(place.path("trunk")).map_or(0, Iterator::count);
    let plain = train("plain", "--trunk-cache 0 --trunk-cache-disk 0");
    assert_eq!(files(), 0);
    assert!(train("memory", "--trunk-cache 100MB --trunk-cache-disk 0") == plain);
    assert_eq!(files(), 0);
    assert!(train("disk", "--trunk-cache 0 --trunk-cache-disk 100MB --trunk-cache-dir trunk") == plain);
    assert_eq!(files(), 2, "one file a group; the four are two pairs of equals");
    let evaluate = |out: &str, cache: &str| {
        place.unflip(&format!("eval --model model --adapter plain/final --data data.jsonl --out {out} {cache}")).ok();
        place.read(&format!("{out}/samples.jsonl"))
    };
    let plain = evaluate("eval-plain", "--trunk-cache 0 --trunk-cache-disk 0");
    assert_eq!(evaluate("eval-disk", "--trunk-cache-dir trunk"), plain);
    assert_eq!(files(), 2, "evaluation finds what training stored");
}
