//! Errors of the CUDA back end, and how one leaves an operation.
//!
//! Operations return buffers, not results: like memory on the CPU, a launch is expected to succeed. Where one fails all the same (no
//! memory left on the device, a driver that gives up), the error unwinds to the nearest [`caught`], which every command has around its
//! work; nothing runs on with values that were never computed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A library, header or device that `--device cuda` needs and that is not here.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Missing {
    /// What it is, e.g. `the NVIDIA driver's library libcuda.so.1`.
    pub what: String,
    /// Why it cannot be used, or where it was looked for.
    pub reason: String,
    /// How to get it.
    pub remedy: String,
}

/// A GPU that cannot be used, or something that failed on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Libraries, headers or devices that are not here.
    #[error("--device cuda is not available: {}", list(.0))]
    Missing(Vec<Missing>),
    /// A GPU older than the kernels.
    #[error("{device} has compute capability {major}.{minor}; the kernels need 8.0 or newer (Ampere)")]
    Architecture {
        /// The GPU's name.
        device: String,
        /// Its compute capability.
        major: i32,
        /// Minor part.
        minor: i32,
    },
    /// A kernel that NVRTC refuses.
    #[error("NVRTC cannot compile kernels/{file} {options}: {log}")]
    Compile {
        /// Source file.
        file: String,
        /// Options.
        options: String,
        /// What NVRTC says.
        log: String,
    },
    /// Kernels that are not embedded in this program.
    #[error("kernels/{file} has no entry point `{entry}`")]
    NoEntry {
        /// Source file.
        file: String,
        /// Name asked for.
        entry: String,
    },
    /// Arguments that do not fit a kernel's parameters.
    #[error("kernel `{kernel}` takes parameters of {expected:?} bytes and was given {found:?}")]
    Arguments {
        /// The kernel.
        kernel: String,
        /// Sizes of its parameters.
        expected: Vec<usize>,
        /// Sizes of the arguments.
        found: Vec<usize>,
    },
    /// A PTX file in the cache that cannot be written or read.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `create`, `write`.
        action: &'static str,
        /// The path.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No memory left on the device.
    #[error("the GPU has no {asked} bytes left: {free} of its {total} bytes are free")]
    Memory {
        /// Bytes asked for.
        asked: usize,
        /// Free on the device.
        free: usize,
        /// In all.
        total: usize,
    },
    /// Anything else that the driver refuses.
    #[error("{action} failed: {code}")]
    Driver {
        /// What was tried, e.g. `launching norm`.
        action: String,
        /// The driver's name and words for it.
        code: String,
    },
}

fn list(missing: &[Missing]) -> String {
    let lines: Vec<String> = missing.iter().map(|one| format!("{} ({})", one.what, one.reason)).collect();
    lines.join("; ")
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(missing) => {
                let mut remedies: Vec<&str> = missing.iter().map(|one| one.remedy.as_str()).collect();
                remedies.dedup();
                Some(format!("{}; or use --device cpu", remedies.join("; ")))
            }
            Self::Architecture { .. } => Some("use --device cpu".into()),
            Self::Memory { .. } => {
                Some("ask for fewer groups in one launch (--groups-per-batch), or end what else uses the GPU".into())
            }
            Self::Compile { .. } => {
                Some("run `unflip doctor` to see which NVRTC serves; version 12.0 or newer is needed".into())
            }
            Self::Io { path, source, .. } => Some(crate::error::io_hint(path, source)),
            Self::Driver { code, .. } if code.contains("UNSUPPORTED_PTX_VERSION") => {
                Some("NVRTC is newer than the driver: update the driver, or use the NVRTC of the CUDA version that `nvidia-smi` names".into())
            }
            _ => None,
        }
    }

    pub(super) fn driver(action: impl Into<String>, code: cudarc::driver::DriverError) -> Self {
        Self::Driver { action: action.into(), code: format!("{code:?}") }
    }
}

thread_local! {
    static CATCHING: Cell<usize> = const { Cell::new(0) };
}

/// Runs `work`; an error that unwinds out of an operation comes back as `Err`.
///
/// # Errors
/// What `raise` was called with on this thread.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    CATCHING.with(|depth| depth.set(depth.get() + 1));
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.with(|depth| depth.set(depth.get() - 1));
    result.or_else(|payload| match payload.downcast::<Error>() {
        Ok(error) => Err(*error),
        Err(other) => resume_unwind(other),
    })
}

/// Unwinds to the nearest [`caught`] of this thread.
///
/// # Panics
/// With the error's words where there is none.
pub(crate) fn raise(error: Error) -> ! {
    if CATCHING.with(Cell::get) == 0 {
        panic!("{error}");
    }
    resume_unwind(Box::new(error))
}

/// The value, or unwinding with the error.
pub(crate) fn or_raise<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| raise(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_an_operation_comes_back_and_a_panic_goes_on() {
        let memory = || Error::Memory { asked: 1, free: 0, total: 1 };
        let error = caught(|| raise(memory())).map(|(): ()| ()).expect_err("it was raised");
        assert!(matches!(error, Error::Memory { .. }));
        assert_eq!(caught(|| 3).expect("nothing was raised"), 3);
        let panic = catch_unwind(|| caught(|| panic!("other"))).expect_err("not ours");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"other"));
        let told = catch_unwind(|| raise(memory())).map(|(): ()| ()).expect_err("nobody catches");
        assert!(told.downcast_ref::<String>().is_some_and(|text| text.contains("0 of its 1 bytes")));
    }

    #[test]
    fn everything_missing_is_named_with_its_remedy() {
        let one = |what: &str| Missing { what: what.into(), reason: "not found".into(), remedy: format!("get {what}") };
        let mut header = one("header");
        header.remedy = one("NVRTC").remedy;
        let error = Error::Missing(vec![one("driver"), one("NVRTC"), header]);
        let told = "--device cuda is not available: driver (not found); NVRTC (not found); header (not found)";
        assert_eq!(error.to_string(), told);
        assert_eq!(error.hint().as_deref(), Some("get driver; get NVRTC; or use --device cpu"));
    }
}
