//! The CUDA driver's C interface: what programs that load `libcuda.so.1` call.
//!
//! Work is done when it is asked for, in the order of the calls, which is one of the orders that streams allow; a stream under capture
//! records instead. Handles are numbers that are looked up, never followed, so that a wrong one is an error and no crash. After a
//! fault in a kernel every call returns that fault's code, as on hardware, and what the check found is printed once on standard error.
//!
//! Environment: `VIRTUAL_GPU_DEVICE` (a100, rtx4090, h100), `VIRTUAL_GPU_SEED` (order of warps and CTAs), `VIRTUAL_GPU_THREADS`,
//! `VIRTUAL_GPU_COUNTERS` (a file that receives the counts of every kernel as JSON), `VIRTUAL_GPU_QUIET` (nothing on standard error).

mod context;
mod graphs;
mod kernels;
mod memory;
mod report;
mod streams;

use crate::device::Model;
use crate::memory::{GlobalMemory, MemoryError};
pub use context::*;
use graphs::{Graph, Operation};
pub use graphs::{
    cuGraphDestroy, cuGraphExecDestroy, cuGraphInstantiateWithFlags, cuGraphLaunch, cuGraphUpload, cuLaunchHostFunc,
    cuStreamBeginCapture_v2, cuStreamEndCapture, cuStreamIsCapturing,
};
use kernels::{Function, Loaded};
pub use kernels::{
    cuFuncGetAttribute, cuFuncSetAttribute, cuFuncSetCacheConfig, cuLaunchKernel, cuModuleGetFunction,
    cuModuleGetGlobal_v2, cuModuleLoadData, cuModuleLoadDataEx, cuModuleUnload,
    cuOccupancyMaxActiveBlocksPerMultiprocessor,
};
pub use memory::*;
pub use report::{
    virtualGpuAllocations, virtualGpuClearFault, virtualGpuCounters, virtualGpuLastFault, virtualGpuResetCounters,
    virtualGpuSetSeed,
};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
pub use streams::*;

/// The driver's error code, CUresult.
pub type Code = c_int;

/// Codes that calls return; names as the driver's header has them.
#[allow(missing_docs)]
pub mod code {
    use super::Code;
    pub const SUCCESS: Code = 0;
    pub const INVALID_VALUE: Code = 1;
    pub const OUT_OF_MEMORY: Code = 2;
    pub const NOT_INITIALIZED: Code = 3;
    pub const INVALID_DEVICE: Code = 101;
    pub const INVALID_CONTEXT: Code = 201;
    pub const NO_BINARY_FOR_GPU: Code = 209;
    pub const INVALID_PTX: Code = 218;
    pub const INVALID_HANDLE: Code = 400;
    pub const NOT_FOUND: Code = 500;
    pub const NOT_READY: Code = 600;
    pub const ILLEGAL_ADDRESS: Code = 700;
    pub const LAUNCH_OUT_OF_RESOURCES: Code = 701;
    pub const LAUNCH_FAILED: Code = 719;
    pub const NOT_SUPPORTED: Code = 801;
    pub const STREAM_CAPTURE_UNSUPPORTED: Code = 900;
    pub const STREAM_CAPTURE_INVALIDATED: Code = 901;
    pub const UNKNOWN: Code = 999;
}

/// A call's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the call returns.
    pub code: Code,
    /// Why, for standard error and `virtualGpuLastFault`.
    pub why: String,
}

impl Failure {
    pub(crate) fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        let code = match error {
            MemoryError::Full { .. } => code::OUT_OF_MEMORY,
            _ => code::INVALID_VALUE,
        };
        Self::new(code, error.to_string())
    }
}

pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

/// Everything behind the interface.
pub(crate) struct Driver {
    pub model: Model,
    pub memory: GlobalMemory,
    pub initialised: bool,
    /// Retains of the primary context.
    pub retained: u32,
    pub modules: BTreeMap<usize, Loaded>,
    pub functions: BTreeMap<usize, Function>,
    /// Streams; the operations of those that are being captured.
    pub streams: BTreeMap<usize, Option<Vec<Operation>>>,
    pub events: BTreeMap<usize, Option<std::time::Instant>>,
    pub graphs: BTreeMap<usize, Graph>,
    /// Page-locked host memory: address and layout.
    pub pinned: BTreeMap<usize, std::alloc::Layout>,
    pub counts: report::Counts,
    /// What a kernel did wrong: every later call returns its code.
    pub fault: Option<Failure>,
    /// Text of the last failure.
    pub last: String,
    next: usize,
}

impl Driver {
    fn new() -> Self {
        let asked = std::env::var("VIRTUAL_GPU_DEVICE").unwrap_or_default();
        let model = Model::named(&asked).unwrap_or_else(|| {
            if !asked.trim().is_empty() {
                let known = crate::device::MODELS.map(|model| model.key).join(", ");
                eprintln!("virtual GPU: VIRTUAL_GPU_DEVICE is `{asked}`: expected one of {known}; an a100 serves");
            }
            crate::device::MODELS[0]
        });
        Self {
            model,
            memory: GlobalMemory::new(model.memory),
            initialised: false,
            retained: 0,
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            graphs: BTreeMap::new(),
            pinned: BTreeMap::new(),
            counts: report::Counts::default(),
            fault: None,
            last: String::new(),
            next: 0x1000,
        }
    }

    /// A number that no handle had before.
    pub fn handle(&mut self) -> usize {
        self.next += 16;
        self.next
    }
}

/// The one device.
pub(crate) fn driver() -> &'static Mutex<Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(|| Mutex::new(Driver::new()))
}

pub(crate) fn quiet() -> bool {
    std::env::var_os("VIRTUAL_GPU_QUIET").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Runs a call that needs an initialised driver without a fault. Nothing panics across the interface.
pub(crate) fn call(name: &str, work: impl FnOnce(&mut Driver) -> Result) -> Code {
    attempt(name, |driver| {
        if !driver.initialised {
            return Err(Failure::new(code::NOT_INITIALIZED, "cuInit was not called"));
        }
        if let Some(fault) = &driver.fault {
            return Err(fault.clone());
        }
        work(driver)
    })
}

/// Runs a call whatever the state.
pub(crate) fn attempt(name: &str, work: impl FnOnce(&mut Driver) -> Result) -> Code {
    let run = || {
        let mut driver = driver().lock().unwrap_or_else(PoisonError::into_inner);
        match work(&mut driver) {
            Ok(()) => code::SUCCESS,
            Err(failure) => {
                let known = driver.fault.as_ref() == Some(&failure) && driver.last == failure.why;
                if !known && !quiet() && failure.code != code::NOT_READY {
                    eprintln!("virtual GPU: {name}: {}", failure.why);
                }
                driver.last = failure.why;
                failure.code
            }
        }
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(code::UNKNOWN)
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `place` is null or valid for a write of a `T`.
pub(crate) unsafe fn give<T>(place: *mut T, value: T) -> Result {
    if place.is_null() {
        return Err(Failure::new(code::INVALID_VALUE, "a null pointer where a result was to go"));
    }
    // SAFETY: not null, so valid by the caller's promise.
    unsafe { place.write(value) };
    Ok(())
}
