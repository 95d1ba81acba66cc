//! The interpreter: decoded kernels, warps as vectors of 32 lanes, CTAs over host threads. Every access goes through the checked
//! memories; what they and the warps find ends the launch with its place.

mod alu;
mod arithmetic;
mod convert;
mod cta;
mod decode;
mod program;
mod warp;

pub(crate) use decode::decode;
pub(crate) use program::Program;

use crate::counters::Counters;
use crate::fault::Fault;
use crate::memory::{GlobalMemory, SharedMemory};
use crate::ptx::{Kernel, Module};
use cta::{Cta, Order};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's module.
    pub module: &'a Module,
    /// What runs.
    pub kernel: &'a Kernel,
    /// CTAs by axis.
    pub grid: [u32; 3],
    /// Threads of a CTA by axis.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Packed by the kernel's parameter list.
    pub parameters: &'a [u8],
    /// Addresses of the module's variables, in its order.
    pub globals: &'a [u64],
    /// Seeds the order in which CTAs run and warps take turns; `None`: in order.
    pub order_seed: Option<u64>,
    /// Host threads.
    pub threads: usize,
    /// Warp instructions that a CTA may run.
    pub instruction_limit: Option<u64>,
}

/// Warp instructions that a CTA may run unless told otherwise: what takes minutes here.
const LIMIT: u64 = 1 << 31;

/// Runs a launch to its end, or to its first finding (of the lowest CTA among those that were running).
///
/// # Errors
/// What a check found, with kernel, CTA, thread and line.
pub fn launch(memory: &GlobalMemory, launch: &Launch<'_>) -> Result<Counters, Fault> {
    let program = &launch.kernel.program;
    let count = launch.grid.iter().map(|&extent| extent as usize).product::<usize>();
    let mut ctas: Vec<u32> = (0..count as u32).collect();
    if let Some(seed) = launch.order_seed {
        let mut order = Order::new(seed);
        for last in (1..ctas.len()).rev() {
            ctas.swap(last, order.below(last + 1));
        }
    }
    let shared_bytes =
        if launch.dynamic_shared > 0 { program.dynamic as u32 + launch.dynamic_shared } else { program.shared as u32 };
    let launch = Launch { instruction_limit: launch.instruction_limit.or(Some(LIMIT)), ..*launch };
    let global = memory.launch(count as u32);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let found: Mutex<Option<(u32, Fault)>> = Mutex::new(None);
    let total = Mutex::new(Counters { launches: 1, ..Counters::default() });
    let work = || {
        let mut shared = SharedMemory::new(shared_bytes);
        let mut counters = Counters::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&flat) = ctas.get(index).filter(|_| !failed.load(Ordering::Relaxed)) else { break };
            let [x, y, _] = launch.grid;
            let block = [flat % x, flat / x % y, flat / (x * y)];
            shared.reset(shared_bytes);
            let mut cta = Cta {
                shared: &mut shared,
                global: global.cta(flat),
                counters: Counters::default(),
                parameters: launch.parameters,
            };
            let order = launch.order_seed.map(|seed| Order::new(seed ^ u64::from(flat) << 32));
            let ended = cta::run(&launch, program, block, &mut cta, order);
            counters += cta.counters;
            if let Err(stop) = ended {
                failed.store(true, Ordering::Relaxed);
                let thread = 32 * stop.warp + stop.lane;
                let [x, y, _] = launch.block;
                let fault = Fault {
                    kind: stop.kind,
                    kernel: launch.kernel.name.clone(),
                    cta: block,
                    thread: [thread % x, thread / x % y, thread / (x * y)],
                    line: stop.line,
                };
                let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if found.as_ref().is_none_or(|(other, _)| flat < *other) {
                    *found = Some((flat, fault));
                }
                break;
            }
        }
        *total.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += counters;
    };
    let threads = launch.threads.clamp(1, count.max(1));
    if threads == 1 {
        work();
    } else {
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| drop(scope.spawn(work)));
        });
    }
    match found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some((_, fault)) => Err(fault),
        None => Ok(total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)),
    }
}
