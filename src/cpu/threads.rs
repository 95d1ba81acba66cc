//! Threads: the pool that every parallel kernel runs in, and the floating-point mode of its workers.
//!
//! Workers flush denormals to zero (inputs and results): denormal activations would slow kernels a hundredfold and carry
//! no information. The mode belongs to a thread, so a thread that computes outside the pool sets it too.

use crate::ops::Error;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use std::ffi::OsStr;

/// The environment variable that sets the number of threads where `--threads` does not.
pub const THREADS_VARIABLE: &str = "UNFLIP_THREADS";

/// The number of threads: `asked`, else [`THREADS_VARIABLE`] (empty is as unset), else the cores available to this process.
///
/// # Errors
/// [`Error::Unavailable`] where the one that counts is not a whole number, at least 1.
pub fn thread_count(asked: Option<usize>) -> Result<usize, Error> {
    count_of(asked, std::env::var_os(THREADS_VARIABLE).as_deref())
}

fn count_of(asked: Option<usize>, variable: Option<&OsStr>) -> Result<usize, Error> {
    let wrong = |what: &str, found: &str, hint: &str| Error::Unavailable {
        message: format!("{what} must be a whole number, at least 1, found `{found}`"),
        hint: hint.to_owned(),
    };
    if let Some(count) = asked {
        let hint = "leave it out to use every core";
        return if count > 0 { Ok(count) } else { Err(wrong("the number of threads", "0", hint)) };
    }
    let text = variable.map(OsStr::to_string_lossy).unwrap_or_default();
    match text.trim() {
        "" => Ok(std::thread::available_parallelism().map_or(1, |count| count.get())),
        text => text
            .parse()
            .ok()
            .filter(|&count| count > 0)
            .ok_or_else(|| wrong(THREADS_VARIABLE, text, "unset it to use every core, or give --threads")),
    }
}

/// A pool of `threads` workers, each with denormals flushed to zero. Run everything in it with [`ThreadPool::install`].
///
/// # Errors
/// The system refuses to start the threads.
pub fn pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("unflip-{index}"))
        .start_handler(|_| set_flush_to_zero())
        .build()
}

/// Sets flush-to-zero and denormals-are-zero on the calling thread, until it ends. Does nothing on other targets than
/// x86-64.
pub fn set_flush_to_zero() {
    #[cfg(target_arch = "x86_64")]
    write_mxcsr(read_mxcsr() | FLUSH);
}

/// Flush-to-zero on the calling thread for as long as the guard lives; the former mode is restored when it drops.
#[derive(Debug)]
pub struct FlushToZero {
    former: u32,
    /// The mode belongs to the thread: a guard must drop where it was made.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl FlushToZero {
    /// Sets the mode.
    pub fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        let former = read_mxcsr();
        #[cfg(not(target_arch = "x86_64"))]
        let former = 0;
        set_flush_to_zero();
        Self { former, _not_send: std::marker::PhantomData }
    }
}

impl Default for FlushToZero {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FlushToZero {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        write_mxcsr((read_mxcsr() & !FLUSH) | (self.former & FLUSH));
    }
}

/// Bits 15 (flush to zero) and 6 (denormals are zero) of MXCSR.
#[cfg(target_arch = "x86_64")]
const FLUSH: u32 = 1 << 15 | 1 << 6;

#[cfg(target_arch = "x86_64")]
fn read_mxcsr() -> u32 {
    let mut value = 0_u32;
    // SAFETY: `stmxcsr` stores four bytes at an aligned, writable u32; SSE is part of x86-64.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags));
    }
    value
}

#[cfg(target_arch = "x86_64")]
fn write_mxcsr(value: u32) {
    // SAFETY: `value` is what `stmxcsr` gave with only defined bits changed, so `ldmxcsr` does not fault. The compiler
    // assumes the default mode when it folds constants; flushing changes denormals alone, whose values no code here
    // relies on, and no exception is unmasked.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    /// Half the smallest normal number: 0 where denormals are flushed.
    fn half_of_smallest() -> f32 {
        black_box(f32::MIN_POSITIVE) * black_box(0.5)
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn workers_flush_denormals_and_the_guard_restores() {
        let flushed = pool(3).unwrap().broadcast(|_| half_of_smallest());
        assert_eq!(flushed, vec![0.0; 3]);
        std::thread::spawn(|| {
            assert!(half_of_smallest() > 0.0);
            {
                let _outer = FlushToZero::new();
                assert_eq!(half_of_smallest(), 0.0);
                drop(FlushToZero::new());
                assert_eq!(half_of_smallest(), 0.0, "an inner guard restores the outer mode");
            }
            assert!(half_of_smallest() > 0.0);
            set_flush_to_zero();
            assert_eq!(half_of_smallest(), 0.0);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_asked_number_of_threads_wins() {
        let variable = OsStr::new(" 7 ");
        assert_eq!(count_of(Some(5), Some(variable)).unwrap(), 5);
        assert_eq!(count_of(None, Some(variable)).unwrap(), 7);
        assert!(count_of(None, None).unwrap() >= 1);
        assert_eq!(count_of(None, Some(OsStr::new(" "))).unwrap(), count_of(None, None).unwrap());
        assert_eq!(pool(2).unwrap().current_num_threads(), 2);
    }

    #[test]
    fn a_number_of_threads_that_is_none_is_refused() {
        for text in ["0", "-1", "2.5", "four", "99999999999999999999999"] {
            let error = count_of(None, Some(OsStr::new(text))).unwrap_err();
            let expected = format!("UNFLIP_THREADS must be a whole number, at least 1, found `{text}`");
            assert_eq!(error.to_string(), expected);
            assert!(error.hint().is_some());
        }
        assert!(count_of(Some(0), Some(OsStr::new("4"))).is_err());
    }
}
