//! What went wrong in a kernel, and where.

use thiserror::Error;

/// What a check found.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FaultKind {
    /// Outside every allocation, or across the end of one.
    #[error("{what} of {bytes} bytes at {address:#x} is out of bounds: {nearest}")]
    OutOfBounds {
        /// `global read`, `shared write`, …
        what: &'static str,
        /// Of the access.
        bytes: u32,
        /// Of the access.
        address: u64,
        /// The allocation that lies nearest, its size, and how far off the access is.
        nearest: String,
    },
    /// The address is no multiple of the access's size.
    #[error("{what} of {bytes} bytes at {address:#x} is misaligned: it needs a multiple of {bytes}")]
    Misaligned {
        /// `global read`, `shared write`, …
        what: &'static str,
        /// Of the access.
        bytes: u32,
        /// Of the access.
        address: u64,
    },
    /// Nobody wrote what is read.
    #[error("{what} of {bytes} bytes at {address:#x} reads a byte that nobody wrote ({place})")]
    Uninitialised {
        /// `global read`, `shared read`, `register`, …
        what: &'static str,
        /// Of the access.
        bytes: u32,
        /// Of the first unwritten byte.
        address: u64,
        /// Allocation and offset.
        place: String,
    },
    /// Two threads of a CTA touch a byte of shared memory between two barriers, one of them writing.
    #[error(
        "shared memory race at byte {address:#x}: {what} here, {other} by thread {thread} at line {line} with no barrier between"
    )]
    SharedRace {
        /// In shared memory.
        address: u64,
        /// `read` or `write`.
        what: &'static str,
        /// `read` or `write`.
        other: &'static str,
        /// The other thread, flat in the CTA.
        thread: u32,
        /// PTX line of the other access.
        line: u32,
    },
    /// Two CTAs of a launch touch a byte of global memory, one of them writing, not atomically.
    #[error(
        "global memory race at {address:#x} ({place}): {what} here, {other} by CTA {cta} at line {line} in the same launch"
    )]
    GlobalRace {
        /// Of the byte.
        address: u64,
        /// Allocation and offset.
        place: String,
        /// `read` or `write`.
        what: &'static str,
        /// `read` or `write`.
        other: &'static str,
        /// The other CTA, flat in the grid.
        cta: u32,
        /// PTX line of the other access.
        line: u32,
    },
    /// Shared memory that an asynchronous copy fills is touched before a wait for the copy's group (and a barrier, for other threads).
    #[error("shared memory at byte {address:#x} is touched before the cp.async of line {line} was waited for")]
    AsyncCopy {
        /// In shared memory.
        address: u64,
        /// PTX line of the copy.
        line: u32,
    },
    /// Not every thread of the CTA reached a barrier, or a warp came apart at one.
    #[error("barrier that not every thread reaches: {0}")]
    Barrier(String),
    /// An instruction's operands are not what it demands.
    #[error("{0}")]
    Illegal(String),
    /// A `trap`, or an assertion.
    #[error("trap")]
    Trap,
    /// More instructions than the limit: most likely a loop without end.
    #[error("still running after {0} warp instructions")]
    Endless(u64),
}

impl FaultKind {
    /// The driver's error code (CUresult) that stands for it.
    pub fn code(&self) -> i32 {
        match self {
            FaultKind::OutOfBounds { .. } | FaultKind::Uninitialised { .. } => 700,
            FaultKind::Misaligned { .. } => 716,
            FaultKind::Illegal(_) => 715,
            FaultKind::Endless(_) => 702,
            _ => 719,
        }
    }
}

/// A check's finding with its place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("kernel {kernel}, CTA {cta:?}, thread {thread:?}, PTX line {line}: {kind}")]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// Kernel's name.
    pub kernel: String,
    /// blockIdx.
    pub cta: [u32; 3],
    /// threadIdx.
    pub thread: [u32; 3],
    /// In the module's PTX, from 1.
    pub line: u32,
}
