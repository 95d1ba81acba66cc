//! What computes: CPU, memory and instruction sets, for `doctor`, run logs and result files.

#![forbid(unsafe_code)]

use crate::cpu::{Isa, Unit};
use serde::Serialize;
use std::{fmt, fs};

/// SHA-256 over the embedded CUDA sources.
pub const KERNELS_SHA256: &str = env!("UNFLIP_KERNELS_SHA256");

/// Embedded CUDA sources, name and text.
pub const KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));

/// A description of the machine. Unknown values are `None`, never guessed.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Version of this program.
    pub unflip: &'static str,
    /// CPU name as the system states it.
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Bytes of memory in all.
    pub memory: Option<u64>,
    /// Bytes of memory that are free or can be freed.
    pub memory_available: Option<u64>,
    /// Instruction sets that the CPU back end can use here, narrowest first.
    pub instruction_sets: Vec<String>,
    /// Units (f32, and those that multiply in bf16) that the CPU back end can use here, slowest first.
    pub units: Vec<String>,
    /// The back end, precision and instruction set that serve by default.
    pub serves: String,
    /// CUDA sources embedded in this binary.
    pub kernels: usize,
    /// Hash of them.
    pub kernels_sha256: &'static str,
}

impl Machine {
    /// Looks at the machine.
    pub fn detect() -> Self {
        let best = Isa::best();
        Self {
            unflip: env!("CARGO_PKG_VERSION"),
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo("MemTotal:"),
            memory_available: meminfo("MemAvailable:"),
            instruction_sets: Isa::available().iter().map(ToString::to_string).collect(),
            units: Unit::available().iter().map(ToString::to_string).collect(),
            serves: format!("cpu f32 {best}"),
            kernels: KERNELS.len(),
            kernels_sha256: KERNELS_SHA256,
        }
    }
}

/// One level of cache as the first core sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// Level, from 1.
    pub level: u32,
    /// Data, Instruction or Unified.
    pub kind: String,
    /// Size.
    pub bytes: u64,
    /// Cores that share it.
    pub shared_by: usize,
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == "Data" { "d" } else { "" };
        write!(f, "L{}{kind} {} KiB", self.level, self.bytes >> 10)?;
        if self.shared_by > 1 { write!(f, " shared by {}", self.shared_by) } else { Ok(()) }
    }
}

/// Caches that hold data, the nearest first; empty where the system does not tell.
pub fn caches() -> Vec<Cache> {
    let one = |index: u32| {
        let read = |file: &str| {
            let text = fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}")).ok()?;
            Some(text.trim().to_owned())
        };
        let size = read("size")?;
        let kibibytes: u64 = size.strip_suffix('K')?.parse().ok()?;
        let shared_by = read("shared_cpu_list").map_or(1, |list| {
            let width = |range: &str| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                Some(last.parse::<usize>().ok()?.saturating_sub(first.parse().ok()?) + 1)
            };
            list.split(',').filter_map(width).sum()
        });
        Some(Cache { level: read("level")?.parse().ok()?, kind: read("type")?, bytes: kibibytes << 10, shared_by })
    };
    (0..8).map_while(one).filter(|cache| cache.kind != "Instruction").collect()
}

/// CPU name as the system states it.
pub fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn meminfo(key: &str) -> Option<u64> {
    kibibytes("/proc/meminfo", key)
}

/// The bytes on a line like `key   123 kB`.
fn kibibytes(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Most bytes of this process that were in memory at once, mapped files included.
pub fn peak_resident() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}
