//! Results as a table, as JSON (`unflip/cold/time/median` and alike, in seconds, FLOPs and bytes), and against an earlier run.

use super::DeviceBlock;
use super::kernels::State;
use super::select::usage;
use crate::ops::reference::Precision;
use crate::report::{Cell, Table};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// An earlier run's cold times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Baseline {
    /// Median and noise by arguments.
    times: BTreeMap<String, (f64, f64)>,
    /// The CPU that it ran on.
    pub cpu: Option<String>,
}

/// How a time compares with an earlier one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The difference is within the noise.
    Same,
    /// Less time, by this factor.
    Faster(f64),
    /// More time, by this factor.
    Slower(f64),
}

impl Verdict {
    /// Compares medians; a difference counts only beyond the larger noise of both.
    pub fn of((now, noise_now): (f64, f64), (before, noise_before): (f64, f64)) -> Self {
        let noise = noise_now.max(noise_before);
        match now / before {
            ratio if ratio > 1.0 + noise => Self::Slower(ratio),
            ratio if ratio < 1.0 - noise => Self::Faster(1.0 / ratio),
            _ => Self::Same,
        }
    }

    fn show(self) -> String {
        match self {
            Self::Same => "same".into(),
            Self::Faster(factor) => format!("{factor:.2}× faster"),
            Self::Slower(factor) => format!("{factor:.2}× slower"),
        }
    }
}

impl Baseline {
    /// Reads what `bench --json` printed.
    ///
    /// # Errors
    /// A file that cannot be read or is something else.
    pub fn read(path: &Path) -> crate::Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| crate::Error::io("read", path, source))?;
        let wrong = |what: &str| {
            let hint = Some("give a file that `unflip bench --json` printed".into());
            usage(format!("{} is no benchmark result: {what}", path.display()), hint)
        };
        let value: Value = serde_json::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
        let results = value["results"].as_array().ok_or_else(|| wrong("`results` is missing"))?;
        let times = results.iter().filter_map(|result| {
            let time = result["unflip/cold/time/median"].as_f64()?;
            Some((result["arguments"].as_str()?.to_owned(), (time, result["unflip/cold/time/noise"].as_f64()?)))
        });
        Ok(Self { times: times.collect(), cpu: value["device"]["cpu"].as_str().map(str::to_owned) })
    }

    /// The verdict on a state, if it was timed then and now.
    pub fn verdict(&self, state: &State) -> Option<Verdict> {
        let cold = &state.times.as_ref()?.cold;
        let before = *self.times.get(&state.arguments())?;
        Some(Verdict::of((cold.median(), cold.noise()), before))
    }
}

/// The results, with `tags` as leading columns and verdicts if there is something to compare with.
pub fn table(states: &[State], block: &DeviceBlock, baseline: Option<&Baseline>, tags: &[(String, String)]) -> Table {
    let mut columns: Vec<&str> = tags.iter().map(|(name, _)| name.as_str()).collect();
    columns.extend([
        "#",
        "operation",
        "shape",
        "pass",
        "provider",
        "precision",
        "verified",
        "samples",
        "cold µs",
        "hot µs",
        "noise",
        "MFLOP",
        "MB",
        "GFLOP/s",
        "GB/s",
        "of peak",
        "of roofline",
    ]);
    if baseline.is_some() {
        columns.push("against baseline");
    }
    let mut table = Table::new(&columns);
    for (index, state) in states.iter().enumerate() {
        let mut cells: Vec<Cell> = tags.iter().map(|(_, value)| Cell::text(value)).collect();
        cells.extend([
            Cell::Integer(index as i64 + 1),
            Cell::text(state.benchmark),
            Cell::text(state.shape()),
            Cell::text(state.pass.name()),
            Cell::text(state.provider.name()),
            Cell::text(precision(state)),
            Cell::text(match &state.verification {
                Ok(share) => format!("{share:.2} of bound"),
                Err(_) => "FAILED".into(),
            }),
        ]);
        match &state.times {
            None => cells.extend(vec![Cell::Missing; 10]),
            Some(times) => {
                let (cold, peaks) = (times.cold.median(), block.peaks(state.provider));
                let flops = |value: f64, cell: Cell| if value > 0.0 { cell } else { Cell::Missing };
                let known = |cell: fn(f64, usize) -> Cell, value: f64| {
                    if value.is_finite() && value > 0.0 { cell(value, 1) } else { Cell::Missing }
                };
                cells.extend([
                    Cell::Integer(times.cold.len() as i64),
                    Cell::Number(1e6 * cold, 1),
                    Cell::Number(1e6 * times.hot.median(), 1),
                    Cell::Percent(times.cold.noise(), 1),
                    flops(state.cost.flops, Cell::Number(state.cost.flops / 1e6, 2)),
                    Cell::Number(state.cost.bytes / 1e6, 2),
                    flops(state.cost.flops, Cell::Number(state.cost.flops / cold / 1e9, 2)),
                    Cell::Number(state.cost.bytes / cold / 1e9, 2),
                    known(Cell::Percent, state.cost.flops / cold / peaks.flops),
                    known(Cell::Percent, state.cost.seconds(peaks.flops, peaks.bandwidth) / cold),
                ]);
            }
        }
        if let Some(baseline) = baseline {
            cells.push(baseline.verdict(state).map_or(Cell::Missing, |verdict| Cell::text(verdict.show())));
        }
        table.row(cells);
    }
    table
}

fn precision(state: &State) -> &'static str {
    match state.provider.precision() {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// Everything, for programs and as a later run's baseline.
pub fn json(
    states: &[State],
    block: &DeviceBlock,
    baseline: Option<&Baseline>,
    tags: &[(String, String)],
    command: &str,
) -> Value {
    let results = states.iter().map(|state| {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| _ = object.insert(key.into(), value);
        for (name, value) in tags {
            put(name, json!(value));
        }
        put("operation", json!(state.benchmark));
        put("axes", state.axes.iter().map(|(axis, size)| ((*axis).to_owned(), json!(size))).collect());
        put("pass", json!(state.pass));
        put("provider", json!(state.provider.name()));
        put("precision", json!(precision(state)));
        put("arguments", json!(state.arguments()));
        match &state.verification {
            Ok(share) => put("unflip/verification/share_of_bound", json!(share)),
            Err(problem) => put("unflip/verification/failed", json!(problem)),
        }
        put("unflip/flops", json!(state.cost.flops));
        put("unflip/bytes", json!(state.cost.bytes));
        let peaks = block.peaks(state.provider);
        if let Some(times) = &state.times {
            for (name, samples) in [("cold", &times.cold), ("hot", &times.hot)] {
                let median = samples.median();
                put(&format!("unflip/{name}/samples"), json!(samples.len()));
                put(&format!("unflip/{name}/time/median"), json!(median));
                put(&format!("unflip/{name}/time/least"), json!(samples.least()));
                put(&format!("unflip/{name}/time/noise"), json!(samples.noise()));
                put(&format!("unflip/{name}/flops_per_second"), json!(state.cost.flops / median));
                put(&format!("unflip/{name}/bytes_per_second"), json!(state.cost.bytes / median));
                put(&format!("unflip/{name}/share_of_peak"), json!(state.cost.flops / median / peaks.flops));
                let least = state.cost.seconds(peaks.flops, peaks.bandwidth);
                put(&format!("unflip/{name}/share_of_roofline"), json!(least / median));
            }
        }
        if let Some(verdict) = baseline.and_then(|baseline| baseline.verdict(state)) {
            put("unflip/baseline/verdict", json!(verdict.show()));
        }
        Value::Object(object)
    });
    json!({"command": command, "device": block, "results": results.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::super::measure::Times;
    use super::*;
    use crate::bench::Provider;
    use crate::ops::{Cost, Pass};

    fn state(seconds: &[f64]) -> State {
        State {
            benchmark: "norm",
            axes: vec![("rows", 2), ("n", 16)],
            pass: Pass::Forward,
            provider: Provider::Reference,
            verification: Ok(0.25),
            times: Some(Times { cold: seconds.iter().copied().collect(), hot: seconds.iter().copied().collect() }),
            cost: Cost::new(2_000_000, 1_000_000),
        }
    }

    #[test]
    fn a_verdict_needs_a_difference_beyond_the_noise_of_both() {
        assert_eq!(Verdict::of((1.04, 0.05), (1.0, 0.01)), Verdict::Same);
        assert_eq!(Verdict::of((1.04, 0.01), (1.0, 0.05)), Verdict::Same);
        assert_eq!(Verdict::of((1.5, 0.05), (1.0, 0.05)), Verdict::Slower(1.5));
        assert_eq!(Verdict::of((0.5, 0.05), (1.0, 0.05)), Verdict::Faster(2.0));
    }

    #[test]
    fn what_is_printed_as_json_serves_as_a_baseline() {
        let block = DeviceBlock::unmeasured(2);
        let tags = [("machine".to_owned(), "a".to_owned())];
        let before = json(&[state(&[1.0, 1.01, 0.99])], &block, None, &tags, "unflip bench");
        assert_eq!(before["results"][0]["unflip/cold/time/median"], 1.0);
        assert_eq!(before["results"][0]["machine"], "a");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("before.json");
        std::fs::write(&path, before.to_string()).unwrap();
        let baseline = Baseline::read(&path).unwrap();
        assert_eq!(baseline.cpu, block.cpu);
        assert_eq!(baseline.verdict(&state(&[2.0, 2.0, 2.0])), Some(Verdict::Slower(2.0)));
        assert_eq!(baseline.verdict(&State { axes: vec![("rows", 3)], ..state(&[1.0]) }), None);
        let text = table(&[state(&[2.0])], &block, Some(&baseline), &tags).plain();
        assert!(text.contains("2.00× slower") && text.contains("0.25 of bound"), "{text}");
        std::fs::write(&path, "{}").unwrap();
        assert!(Baseline::read(&path).unwrap_err().is_usage());
    }

    #[test]
    fn what_failed_verification_has_no_times() {
        let failed = State { verification: Err("y[0] is 1".into()), times: None, ..state(&[]) };
        let text = table(std::slice::from_ref(&failed), &DeviceBlock::unmeasured(1), None, &[]).plain();
        assert!(text.contains("FAILED") && text.contains('–'), "{text}");
        let json = json(&[failed], &DeviceBlock::unmeasured(1), None, &[], "");
        assert_eq!(json["results"][0]["unflip/verification/failed"], "y[0] is 1");
        assert!(json["results"][0].get("unflip/cold/time/median").is_none());
    }
}
