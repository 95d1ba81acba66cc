//! A profile as tables, held against the peaks of the machine, and as a Chrome trace (chrome://tracing, Perfetto).

use super::{Profile, Total};
use crate::cpu::peak::Peaks;
use crate::ops::{Cost, Pass};
use crate::report::{Cell, Table};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// One line of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The operation.
    pub operation: &'static str,
    /// Its direction.
    pub pass: Pass,
    /// Its shape; empty where all shapes are summed.
    pub shape: String,
    /// Calls, time and cost.
    pub total: Total,
}

/// Where the time went.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Sums over shapes, the longest first.
    pub operations: Vec<Row>,
    /// By shape, the longest first.
    pub shapes: Vec<Row>,
    /// From the first call to the end of the last one.
    pub wall: Duration,
}

impl Report {
    /// Time in operations.
    pub fn inside(&self) -> Duration {
        self.operations.iter().map(|row| row.total.time).sum()
    }

    /// All costs together.
    pub fn cost(&self) -> Cost {
        self.operations.iter().map(|row| row.total.cost).sum()
    }

    /// Two tables: by operation, with what lies between operations and the sum; and by shape, where shapes differ.
    pub fn tables(&self, peaks: &Peaks) -> [Table; 2] {
        const COLUMNS: [&str; 10] =
            ["operation", "pass", "calls", "ms", "time", "GFLOP", "GB", "GFLOP/s", "of peak", "of roofline"];
        let mut operations = Table::new(&COLUMNS);
        let line = |row: &Row| {
            let mut cells = vec![Cell::text(row.operation), Cell::text(row.pass.name())];
            cells.extend(self.numbers(&row.total, peaks));
            cells
        };
        for row in &self.operations {
            operations.row(line(row));
        }
        let outside = Total { calls: 0, time: self.wall.saturating_sub(self.inside()), cost: Cost::ZERO };
        let mut cells = vec![Cell::text("between operations"), Cell::text(""), Cell::Missing];
        cells.extend(self.numbers(&outside, peaks).into_iter().skip(1).take(2));
        operations.row(cells);
        let calls = self.operations.iter().map(|row| row.total.calls).sum();
        let all = Total { calls, time: self.wall, cost: self.cost() };
        let mut cells = vec![Cell::text("all"), Cell::text("")];
        cells.extend(self.numbers(&all, peaks));
        operations.row(cells);

        let mut shapes = Table::new(&[&["shape"][..], &COLUMNS].concat());
        for row in self.shapes.iter().filter(|row| !row.shape.is_empty()) {
            let mut cells = vec![Cell::text(&row.shape)];
            cells.extend(line(row));
            shapes.row(cells);
        }
        [operations, shapes]
    }

    /// Calls, time, share, work, traffic, rate and its shares of the peaks.
    fn numbers(&self, total: &Total, peaks: &Peaks) -> Vec<Cell> {
        let seconds = total.time.as_secs_f64();
        let Cost { flops, bytes, .. } = total.cost;
        let share = |part: f64, whole: f64, cell: fn(f64) -> Cell| {
            if part > 0.0 && whole > 0.0 { cell(part / whole) } else { Cell::Missing }
        };
        vec![
            Cell::Integer(total.calls as i64),
            Cell::Number(1e3 * seconds, 2),
            share(seconds, self.wall.as_secs_f64(), |share| Cell::Percent(share, 1)),
            Cell::Number(flops / 1e9, 3),
            Cell::Number(bytes / 1e9, 3),
            share(flops / 1e9, seconds, |rate| Cell::Number(rate, 2)),
            share(flops, seconds * peaks.flops, |share| Cell::Percent(share, 1)),
            share(total.cost.seconds(peaks.flops, peaks.bandwidth), seconds, |share| Cell::Percent(share, 1)),
        ]
    }

    /// Everything, for programs. Seconds, FLOPs and bytes.
    pub fn json(&self, peaks: &Peaks) -> Value {
        let row = |row: &Row| {
            let seconds = row.total.time.as_secs_f64();
            json!({
                "operation": row.operation,
                "pass": row.pass,
                "shape": row.shape,
                "calls": row.total.calls,
                "seconds": seconds,
                "flops": row.total.cost.flops,
                "bytes": row.total.cost.bytes,
                "share_of_peak": row.total.cost.flops / (seconds * peaks.flops),
                "share_of_roofline": row.total.cost.seconds(peaks.flops, peaks.bandwidth) / seconds,
            })
        };
        json!({
            "peaks": peaks,
            "seconds": self.wall.as_secs_f64(),
            "seconds_in_operations": self.inside().as_secs_f64(),
            "operations": self.operations.iter().map(row).collect::<Vec<_>>(),
            "shapes": self.shapes.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

impl Profile {
    /// The sums, the longest first.
    pub fn report(&self) -> Report {
        let state = self.lock();
        let mut sums: BTreeMap<(&'static str, Pass), Total> = BTreeMap::new();
        let mut shapes = Vec::new();
        for (key, total) in &state.totals {
            let sum = sums.entry((key.operation, key.pass)).or_default();
            sum.calls += total.calls;
            sum.time += total.time;
            sum.cost += total.cost;
            shapes.push(Row { operation: key.operation, pass: key.pass, shape: key.shape.clone(), total: *total });
        }
        let mut operations: Vec<Row> = sums
            .into_iter()
            .map(|((operation, pass), total)| Row { operation, pass, shape: String::new(), total })
            .collect();
        operations.sort_by_key(|row| std::cmp::Reverse(row.total.time));
        shapes.sort_by_key(|row| std::cmp::Reverse(row.total.time));
        Report { operations, shapes, wall: state.last.saturating_sub(state.first.unwrap_or_default()) }
    }

    /// The calls as Chrome's trace events, with the report's sums beside them. Empty unless calls are kept.
    pub fn trace(&self, peaks: &Peaks) -> Value {
        let report = self.report().json(peaks);
        let state = self.lock();
        let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
        let calls = state.events.iter().flatten().map(|event| {
            let seconds = event.time.as_secs_f64();
            json!({
                "name": event.key.operation,
                "cat": event.key.pass,
                "ph": "X",
                "ts": microseconds(event.start),
                "dur": microseconds(event.time),
                "pid": 1,
                "tid": 1,
                "args": {
                    "pass": event.key.pass,
                    "shape": event.key.shape,
                    "flops": event.cost.flops,
                    "bytes": event.cost.bytes,
                    "gflops_per_second": event.cost.flops / 1e9 / seconds,
                    "share_of_peak": event.cost.flops / (seconds * peaks.flops),
                },
            })
        });
        let marks = state
            .marks
            .iter()
            .map(|(name, at)| json!({"name": name, "ph": "i", "s": "p", "ts": microseconds(*at), "pid": 1, "tid": 1}));
        json!({
            "traceEvents": calls.chain(marks).collect::<Vec<_>>(),
            "displayTimeUnit": "ms",
            "unflip": report,
            "calls_left_out": state.dropped,
        })
    }
}
