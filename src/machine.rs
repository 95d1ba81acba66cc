//! What computes: CPU, memory and instruction sets, for `doctor`, run logs and result files.

#![forbid(unsafe_code)]

use crate::cpu::{Isa, Unit};
use serde::Serialize;
use std::path::{Path, PathBuf};
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

/// Memory that this process can still get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes, those that the system can free included.
    pub available: u64,
    /// What sets them.
    pub limit: &'static str,
}

/// The least of what the system and the limits of this process's control groups leave; `None` where neither can be read.
pub fn memory() -> Option<Memory> {
    let system = meminfo("MemAvailable:").map(|available| Memory { available, limit: "free on this machine" });
    let cgroup =
        cgroup_available(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
    let cgroup = cgroup.map(|available| Memory { available, limit: "by the limit of its control group" });
    system.into_iter().chain(cgroup).min_by_key(|memory| memory.available)
}

/// What is left below the tightest limit on the way from this process's control group to the root, in either version of the file
/// system, whose mount is `root`. `own` is the text of /proc/self/cgroup.
fn cgroup_available(root: &Path, own: &str) -> Option<u64> {
    // (hierarchy, limit, usage, what of the usage can be dropped)
    let versions = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        match controllers {
            "" => Some((root.to_path_buf(), path, ["memory.max", "memory.current", "inactive_file"])),
            "memory" => Some((
                root.join("memory"),
                path,
                ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
            )),
            _ => None,
        }
    });
    let mut least = None;
    for (hierarchy, path, [limit, usage, droppable]) in versions {
        for folder in Path::new(path).ancestors().map(|folder| hierarchy.join(folder)) {
            let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
            // `max`, a number beyond any memory or no file: no limit here.
            let Some(limit) = number(limit).filter(|&limit| limit < 1 << 60) else { continue };
            let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let dropped = stat.lines().find_map(|line| line.strip_prefix(droppable)?.trim().parse::<u64>().ok());
            let left = limit.saturating_sub(number(usage).unwrap_or(0).saturating_sub(dropped.unwrap_or(0)));
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
    }
    least
}

/// Where files that can be made again are kept: `UNFLIP_CACHE`, or `unflip/` of the user's cache folder; `None` where no home
/// folder is known.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("UNFLIP_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("unflip")))
        .or_else(|| Some(variable("HOME")?.join(".cache/unflip")))
}

/// Most bytes of this process that were in memory at once, mapped files included.
pub fn peak_resident() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_control_group_counts_in_either_version() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let own = "0::/a/b\n";
        write("a/b/memory.max", "max\n");
        assert_eq!(cgroup_available(root.path(), own), None);
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 500\nfile 200\ninactive_file 150\n");
        assert_eq!(cgroup_available(root.path(), own), Some(1000 - 700 + 150));
        write("a/b/memory.max", "200\n");
        assert_eq!(cgroup_available(root.path(), own), Some(200));
        let own = "4:memory:/x\n1:cpu:/\n0::/\n";
        write("memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(cgroup_available(root.path(), own), None);
        write("memory/x/memory.limit_in_bytes", "4096\n");
        write("memory/x/memory.usage_in_bytes", "5000\n");
        assert_eq!(cgroup_available(root.path(), own), Some(0));
        assert_eq!(cgroup_available(root.path(), ""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory_and_caches_have_levels() {
        assert!(memory().is_some_and(|memory| memory.available > 0));
        assert!(peak_resident().is_some_and(|bytes| bytes > 1 << 20));
        let caches = caches();
        assert!(caches.is_sorted_by_key(|cache| cache.level), "{caches:?}");
    }
}
