//! The machine as a benchmark found it: what stands before every table.

use super::Provider;
use crate::cpu::peak::{Peaks, bandwidth, flops};
use crate::cpu::threads;
use crate::machine::{Cache, KERNELS_SHA256, caches, cpu_name};
use crate::ops::Error;
use crate::report::{Cell, Table};
use serde::Serialize;

/// The peak multiply-add rate of an instruction set in f32, or of a bf16 unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnitPeak {
    /// Its name as a provider.
    pub provider: &'static str,
    /// FLOP/s of one thread.
    pub one_thread: f64,
    /// FLOP/s of all threads.
    pub all_threads: f64,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceBlock {
    /// Version of this program.
    pub unflip: &'static str,
    /// Hash of the embedded CUDA sources.
    pub kernels_sha256: &'static str,
    /// CPU name as the system states it.
    pub cpu: Option<String>,
    /// Its caches.
    pub caches: Vec<Cache>,
    /// Threads that compute.
    pub threads: usize,
    /// Peaks, the slowest first.
    pub peaks: Vec<UnitPeak>,
    /// Bytes/s read from memory by all threads.
    pub bandwidth: f64,
    /// Other processes' load in the last minute.
    pub load: Option<f64>,
}

impl DeviceBlock {
    /// Looks at the machine and measures its peaks.
    ///
    /// # Errors
    /// Threads that cannot be had.
    pub fn measure(asked: Option<usize>) -> Result<Self, Error> {
        let threads = threads::thread_count(asked)?;
        // Before anything here runs.
        let load = load();
        let pool = |count: usize| {
            threads::pool(count).map_err(|source| Error::Unavailable {
                message: format!("cannot start {count} threads: {source}"),
                hint: "ask for fewer with --threads".into(),
            })
        };
        let (one, all) = (pool(1)?, pool(threads)?);
        let peaks = Provider::available().into_iter().filter(|provider| matches!(provider, Provider::Cpu(..))).map(
            |provider| {
                let (unit, isa) = provider.unit();
                UnitPeak {
                    provider: provider.name(),
                    one_thread: one.install(|| flops(unit, isa, 0.03)),
                    all_threads: all.install(|| flops(unit, isa, 0.03)),
                }
            },
        );
        Ok(Self { peaks: peaks.collect(), bandwidth: all.install(bandwidth), load, ..Self::unmeasured(threads) })
    }

    /// The machine without its peaks.
    pub fn unmeasured(threads: usize) -> Self {
        Self {
            unflip: env!("CARGO_PKG_VERSION"),
            kernels_sha256: KERNELS_SHA256,
            cpu: cpu_name(),
            caches: caches(),
            threads,
            peaks: Vec::new(),
            bandwidth: f64::NAN,
            load: None,
        }
    }

    /// What a provider is held against.
    pub fn peaks(&self, provider: Provider) -> Peaks {
        let (unit, isa) = provider.unit();
        let name = Provider::Cpu(unit, isa).name();
        let flops = self.peaks.iter().find(|peak| peak.provider == name).map_or(f64::NAN, |peak| peak.all_threads);
        Peaks { flops, bandwidth: self.bandwidth }
    }

    /// As a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["device", ""]);
        let mut row = |name: &str, text: String| {
            table.row(vec![Cell::text(name), Cell::text(text)]);
        };
        row("CPU", self.cpu.clone().unwrap_or_else(|| "unknown".into()));
        let caches: Vec<String> = self.caches.iter().map(Cache::to_string).collect();
        row("caches", if caches.is_empty() { "unknown".into() } else { caches.join(", ") });
        row("threads", self.threads.to_string());
        for peak in &self.peaks {
            let (one, all) = (peak.one_thread / 1e9, peak.all_threads / 1e9);
            row(&format!("peak {}", peak.provider), format!("{all:.1} GFLOP/s ({one:.1} on one thread)"));
        }
        row("bandwidth", format!("{:.1} GB/s read", self.bandwidth / 1e9));
        if let Some(load) = self.load {
            let warning = if load > 0.5 { ": other work is running, times are not to be trusted" } else { "" };
            row("load before", format!("{load:.2}{warning}"));
        }
        row("unflip", self.unflip.to_owned());
        table
    }
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}
