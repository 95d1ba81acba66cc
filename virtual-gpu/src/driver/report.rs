//! What a program's kernels did, for tests: counts by kernel, the last fault, the order's seed, and what was never freed.

use super::{Code, Driver, attempt, code, driver, quiet};
use crate::counters::Counters;
use std::collections::BTreeMap;
use std::ffi::c_char;
use std::fmt::Write as _;
use std::sync::PoisonError;

/// Counts by kernel, and the seed of the order in which warps and CTAs run.
#[derive(Default)]
pub(crate) struct Counts {
    by_kernel: BTreeMap<String, Counters>,
    pub seed: Option<u64>,
}

impl Counts {
    /// Adds a launch.
    pub fn add(&mut self, kernel: &str, counted: &Counters) {
        *self.by_kernel.entry(kernel.to_owned()).or_default() += *counted;
    }

    /// `{"kernel": {"launches": 1, …}, …}`
    fn json(&self) -> String {
        let mut text = String::from("{");
        for (index, (kernel, counters)) in self.by_kernel.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            // Names of kernels are identifiers: nothing in them needs an escape. Writing to a string cannot fail.
            let _ = write!(text, "{separator}\"{kernel}\": {{");
            for (index, (name, value)) in Counters::NAMES.iter().zip(counters.values()).enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                let _ = write!(text, "{separator}\"{name}\": {value}");
            }
            text.push('}');
        }
        text.push('}');
        text
    }
}

/// The context is over: reports leaks, and writes counts where they were asked for.
pub(crate) fn end(driver: &mut Driver) {
    let variables: Vec<u64> = driver.modules.values().flat_map(|loaded| loaded.variables.iter().copied()).collect();
    let left = driver.memory.allocations();
    let left: Vec<_> = left.iter().filter(|allocation| !variables.contains(&allocation.address)).collect();
    if !left.is_empty() {
        let bytes: u64 = left.iter().map(|allocation| allocation.bytes).sum();
        driver.last = format!("{} allocations of {bytes} bytes were never freed", left.len());
        if !quiet() {
            eprintln!(
                "virtual GPU: {}; the first is of {} bytes at {:#x}",
                driver.last, left[0].bytes, left[0].address
            );
        }
    }
    if let Some(path) = std::env::var_os("VIRTUAL_GPU_COUNTERS").filter(|path| !path.is_empty())
        && let Err(error) = std::fs::write(&path, driver.counts.json())
    {
        eprintln!("virtual GPU: cannot write {}: {error}", path.display());
    }
}

/// Copies a text to `buffer` of `room` bytes, ended by a zero, and returns the length it needs.
///
/// # Safety
/// `buffer` is null or valid for `room` bytes.
unsafe fn copy_out(text: &str, buffer: *mut c_char, room: usize) -> usize {
    if !buffer.is_null() && room > 0 {
        let count = text.len().min(room - 1);
        // SAFETY: `buffer` holds `room` bytes, of which count + 1 are written.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, count);
            buffer.add(count).write(0);
        }
    }
    text.len() + 1
}

/// Text of the last failure; returns the bytes it needs.
///
/// # Safety
/// `buffer` is null or valid for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtualGpuLastFault(buffer: *mut c_char, room: usize) -> usize {
    let text = driver().lock().unwrap_or_else(PoisonError::into_inner).last.clone();
    // SAFETY: the caller's promise.
    unsafe { copy_out(&text, buffer, room) }
}

/// Counts of every kernel since the last reset as JSON; returns the bytes it needs.
///
/// # Safety
/// `buffer` is null or valid for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtualGpuCounters(buffer: *mut c_char, room: usize) -> usize {
    let text = driver().lock().unwrap_or_else(PoisonError::into_inner).counts.json();
    // SAFETY: the caller's promise.
    unsafe { copy_out(&text, buffer, room) }
}

/// Starts counting anew.
#[unsafe(no_mangle)]
pub extern "C" fn virtualGpuResetCounters() -> Code {
    attempt("virtualGpuResetCounters", |driver| {
        driver.counts.by_kernel.clear();
        Ok(())
    })
}

/// Sets the seed of the order in which warps and CTAs run from now on.
#[unsafe(no_mangle)]
pub extern "C" fn virtualGpuSetSeed(seed: u64) -> Code {
    attempt("virtualGpuSetSeed", |driver| {
        driver.counts.seed = Some(seed);
        Ok(())
    })
}

/// Forgets a fault, so that a test can go on in the same process. Hardware needs a new process.
#[unsafe(no_mangle)]
pub extern "C" fn virtualGpuClearFault() -> Code {
    let mut driver = driver().lock().unwrap_or_else(PoisonError::into_inner);
    driver.fault = None;
    driver.last.clear();
    code::SUCCESS
}

/// Allocations that are not freed.
#[unsafe(no_mangle)]
pub extern "C" fn virtualGpuAllocations() -> usize {
    driver().lock().unwrap_or_else(PoisonError::into_inner).memory.allocations().len()
}
