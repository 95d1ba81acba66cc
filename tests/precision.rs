//! `--precision bf16` through the command line: another precision of the same run, named in everything it leaves, and never mixed
//! with f32.

#[path = "support/command.rs"]
mod command;

use command::Place;
use serde_json::Value;

fn lines(place: &Place, path: &str) -> Vec<Value> {
    place.read(path).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn margins(place: &Place, folder: &str) -> Vec<f64> {
    lines(place, &format!("{folder}/samples.jsonl")).iter().filter_map(|line| line["margin"].as_f64()).collect()
}

#[test]
fn evaluation_in_bf16_is_near_f32_and_says_what_computed() {
    let place = Place::new();
    for precision in ["f32", "bf16"] {
        let command =
            format!("eval --model model --adapter lora --data data.jsonl --precision {precision} --out {precision}");
        let run = place.unflip(&command);
        assert!(run.err.contains(&format!("computed by cpu {precision}")), "{}", run.err);
        run.ok();
        let results: Value = serde_json::from_str(&place.read(&format!("{precision}/results.json"))).expect("JSON");
        assert_eq!(results["precision"], precision, "{results}");
        assert_eq!(results["unit"], format!("cpu {precision}").as_str());
        assert_eq!(lines(&place, &format!("{precision}/samples.jsonl"))[0]["header"]["precision"], precision);
    }
    let (exact, rounded) = (margins(&place, "f32"), margins(&place, "bf16"));
    assert_eq!((exact.len(), rounded.len()), (12, 12), "four questions of three phrasings");
    let largest = exact.iter().fold(0.0_f64, |most, margin| most.max(margin.abs()));
    let worst = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst > 0.0, "nothing was rounded");
    assert!(worst < 0.05 * largest, "{worst} of {largest}");
}

#[test]
fn training_in_bf16_keeps_f32_masters_and_resumes_in_its_own_precision_alone() {
    let place = Place::new();
    let train = |precision: &str, out: &str| {
        let command = format!(
            "train --model model --data data.jsonl --layers 3-5 --rank 4 --epochs 2 --batch-groups 2 --checkpoint-every 1 --precision {precision} --out {out}"
        );
        place.unflip(&command)
    };
    let run = train("bf16", "half");
    assert!(run.err.contains("computed by cpu bf16"), "{}", run.err);
    run.ok();
    train("f32", "full").ok();
    let file =
        |out: &str| std::fs::read(place.path(&format!("{out}/final/adapter_model.safetensors"))).expect("an adapter");
    assert_ne!(file("half"), file("full"), "the same bits: nothing was rounded");
    let adapter = unflip::weights::AdapterFile::open(place.path("half/final")).expect("a PEFT folder");
    let values: Vec<f32> = adapter.tensors.iter().flat_map(|pair| pair.a.clone()).collect();
    let rounded = |value: &f32| value.to_bits() & 0xffff == 0;
    assert!(values.iter().filter(|value| !rounded(value)).count() > values.len() / 2, "masters were rounded to bf16");

    // Both losses go the same way.
    let losses = |out: &str| -> Vec<f64> {
        lines(&place, &format!("{out}/metrics.jsonl")).iter().filter_map(|line| line["loss"].as_f64()).collect()
    };
    let (half, full) = (losses("half"), losses("full"));
    assert_eq!(half.len(), full.len());
    for (half, full) in half.iter().zip(&full) {
        assert!((half - full).abs() < 0.1 * full.abs().max(0.1), "{half} for {full}");
    }

    let other = place.unflip("train --model model --data data.jsonl --layers 3-5 --rank 4 --epochs 2 --batch-groups 2 --checkpoint-every 1 --precision f32 --out half --resume");
    assert_ne!(other.code, Some(0));
    assert!(other.err.contains("precision"), "{}", other.err);
}
