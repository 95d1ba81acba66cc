//! Memories that check every access: bounds, alignment, initialisation, races.
//!
//! `global` is what the host sees (allocations, copies), `launch` what the CTAs of one launch see of it, `shared` one CTA's shared
//! memory with its barriers and asynchronous copies. They count sectors, passes and conflicts; instructions by class are counted by
//! whoever executes them.

use crate::fault::FaultKind;

mod async_copies;
mod bits;
mod global;
mod launch;
mod order;
mod page;
mod shadow;
mod shared;
mod warp_access;

#[cfg(test)]
mod testing;

pub use global::{AllocationInfo, GlobalMemory, MemoryError};
pub use launch::{CtaGlobal, GlobalLaunch};
pub use shared::SharedMemory;

/// Lanes of a warp.
pub const LANES: usize = 32;
/// Bytes that one lane moves at most.
pub const WIDEST: usize = 16;

/// One memory instruction of one warp. Lane l of those in `mask` touches `bytes` bytes at `addresses[l]`.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Byte addresses; only those of active lanes are read.
    pub addresses: &'a [u64; LANES],
    /// Active lanes.
    pub mask: u32,
    /// 1, 2, 4, 8 or 16.
    pub bytes: u32,
    /// PTX line, for reports about a later access that collides with this one.
    pub line: u32,
    /// Warp in its CTA.
    pub warp: u32,
}

/// What the lanes of a warp load or store: lane l's bytes start at `l`, little-endian.
pub type Data = [[u8; WIDEST]; LANES];

/// A finding and the lane that it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneFault {
    /// Lane in the warp.
    pub lane: u32,
    /// What.
    pub kind: FaultKind,
}
