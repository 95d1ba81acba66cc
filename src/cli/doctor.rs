//! `unflip doctor`.

use super::row;
use crate::machine::Machine;
use crate::report::Table;
use clap::Args;

/// Arguments of `doctor`.
#[derive(Args)]
#[command(after_help = "Example:\n  unflip doctor --json")]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Runs the verb.
    ///
    /// # Errors
    /// Only if stdout cannot be written.
    pub fn run(self) -> crate::Result<()> {
        let machine = Machine::detect();
        if self.json {
            return super::print_json(&machine);
        }
        let gib = |bytes: Option<u64>| {
            bytes.map_or_else(|| "unknown".into(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1u32 << 30)))
        };
        let mut table = Table::new(&["what", "found"]);
        row(&mut table, "unflip", machine.unflip);
        row(&mut table, "CPU", machine.cpu.as_deref().unwrap_or("unknown"));
        row(&mut table, "cores", &machine.cores.to_string());
        row(&mut table, "memory", &format!("{}, {} available", gib(machine.memory), gib(machine.memory_available)));
        row(&mut table, "instruction sets", &machine.instruction_sets.join(", "));
        row(&mut table, "units", &machine.units.join(", "));
        row(&mut table, "serves by default", &machine.serves);
        row(&mut table, "CUDA", "no CUDA kernels in this version; the CPU back end serves everything");
        row(&mut table, "kernel sources", &format!("{} (sha256 {})", machine.kernels, &machine.kernels_sha256[..16]));
        super::out(&table.plain())
    }
}
