//! Shared memory of one CTA: every access checked, races between barriers found, asynchronous copies landing at their wait.

use crate::counters::Counters;

use super::{Access, Data, LaneFault, WIDEST};

/// Shared memory, byte addresses from 0. One CTA at a time; [`SharedMemory::reset`] makes it another CTA's.
pub struct SharedMemory {}

impl SharedMemory {
    /// `bytes` of it, unwritten.
    pub fn new(bytes: u32) -> Self {
        todo!("{bytes}")
    }

    /// As new, keeping what was allocated on the host.
    pub fn reset(&mut self, bytes: u32) {
        todo!("{bytes}")
    }

    /// Loads; other bytes of `data` stay. Counts `shared_passes`, `bank_conflicts`.
    pub fn load(&mut self, access: &Access, data: &mut Data, counters: &mut Counters) -> Result<(), LaneFault> {
        todo!("{access:?} {data:?} {counters:?}")
    }

    /// Stores. Counts `shared_passes`, `bank_conflicts`.
    pub fn store(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        todo!("{access:?} {data:?} {counters:?}")
    }

    /// Read-modify-write, lane after lane: `operation(lane, old)` gives the new bytes. Counts `shared_passes`, `bank_conflicts`.
    pub fn atomic(
        &mut self,
        access: &Access,
        counters: &mut Counters,
        operation: impl FnMut(usize, [u8; WIDEST]) -> [u8; WIDEST],
    ) -> Result<(), LaneFault> {
        let _ = operation;
        todo!("{access:?} {counters:?}")
    }

    /// The reads of ldmatrix: `access` has 16 bytes a lane and the lanes whose addresses count (0–7, 0–15 or all); `rows[l]` becomes
    /// the row at lane l's address. Every thread of the warp counts as a reader. Counts `shared_passes`, `bank_conflicts`.
    pub fn load_rows(&mut self, access: &Access, rows: &mut Data, counters: &mut Counters) -> Result<(), LaneFault> {
        todo!("{access:?} {rows:?} {counters:?}")
    }

    /// The destination side of cp.async: `data` (zero-filled, see `CtaGlobal::load_partial`) lands when the issuing thread waits for
    /// the group that its next [`SharedMemory::commit`] closes. Counts `shared_passes`, `bank_conflicts`.
    pub fn async_copy(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        todo!("{access:?} {data:?} {counters:?}")
    }

    /// cp.async.commit_group of the lanes in `mask`.
    pub fn commit(&mut self, warp: u32, mask: u32) {
        todo!("{warp} {mask}")
    }

    /// cp.async.wait_group: all but the latest `groups` groups of each lane in `mask` land.
    pub fn wait(&mut self, warp: u32, mask: u32, groups: u32) {
        todo!("{warp} {mask} {groups}")
    }

    /// cp.async.wait_all: everything that the lanes in `mask` issued lands, committed or not.
    pub fn wait_all(&mut self, warp: u32, mask: u32) {
        todo!("{warp} {mask}")
    }

    /// A barrier that all threads of the CTA pass.
    pub fn barrier(&mut self) {
        todo!()
    }

    /// A barrier that only the warps in `warps` (bit w: warp w) pass: a named one with a thread count.
    pub fn barrier_among(&mut self, warps: u32) {
        todo!("{warps}")
    }

    /// bar.warp.sync of `warp`. (No other warp instruction orders memory.) With a partial member mask the whole warp counts as
    /// ordered.
    pub fn warp_barrier(&mut self, warp: u32) {
        todo!("{warp}")
    }
}
