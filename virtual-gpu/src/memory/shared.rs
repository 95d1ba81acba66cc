//! Shared memory of one CTA: every access checked, races between barriers found, asynchronous copies landing at their wait.
//!
//! What counts as a race is said at the head of `order`. Bytes that a cp.async will fill belong to nobody from its issue until the
//! issuing thread has waited for its group: any touch is a fault, and they keep their old value so that a missing wait gives wrong
//! numbers too. Once waited for they count as written, at the time of the wait, by the issuing thread; so other threads need a barrier
//! after that.

use crate::counters::Counters;
use crate::fault::FaultKind;

use super::async_copies::AsyncCopies;
use super::order::{Mark, Order, View};
use super::shadow::{Cell, Shadow};
use super::warp_access::{Lanes, aligned, passes};
use super::{Access, Data, LaneFault, WIDEST, bits};

/// Shared memory, byte addresses from 0. One CTA at a time; [`SharedMemory::reset`] makes it another CTA's.
pub struct SharedMemory {
    bytes: Vec<u8>,
    /// Written, and no copy under way there.
    ready: Vec<u64>,
    /// A copy under way there.
    pending: Vec<u64>,
    plain: Shadow,
    /// Atomic accesses, as readers: they collide with plain ones, not among themselves.
    atomic: Option<Shadow>,
    order: Order,
    copies: AsyncCopies,
}

/// How an access is reported.
#[derive(Clone, Copy)]
struct Kind {
    /// For bounds, alignment, initialisation.
    what: &'static str,
    /// For races.
    verb: &'static str,
}

const READ: Kind = Kind { what: "shared read", verb: "read" };
const WRITE: Kind = Kind { what: "shared write", verb: "write" };
const ATOMIC: Kind = Kind { what: "shared atomic", verb: "atomic" };
const ASYNC: Kind = Kind { what: "shared write by cp.async", verb: "cp.async" };

/// An earlier access that collides, and how it is reported.
type Earlier = (Mark, &'static str);

impl SharedMemory {
    /// `bytes` of it, unwritten.
    pub fn new(bytes: u32) -> Self {
        let mut memory = Self {
            bytes: Vec::new(),
            ready: Vec::new(),
            pending: Vec::new(),
            plain: Shadow::default(),
            atomic: None,
            order: Order::new(),
            copies: AsyncCopies::new(),
        };
        memory.reset(bytes);
        memory
    }

    /// As new, keeping what was allocated on the host.
    pub fn reset(&mut self, bytes: u32) {
        let bytes = bytes as usize;
        self.bytes.clear();
        self.bytes.resize(bytes, super::page::UNWRITTEN);
        for bits in [&mut self.ready, &mut self.pending] {
            bits.clear();
            bits.resize(bytes.div_ceil(64), 0);
        }
        self.plain.reset(bytes);
        self.atomic = None;
        self.order = Order::new();
        self.copies.reset();
    }

    /// Size in bytes.
    pub fn size(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Loads; other bytes of `data` stay. Counts `shared_passes`, `bank_conflicts`.
    pub fn load(&mut self, access: &Access, data: &mut Data, counters: &mut Counters) -> Result<(), LaneFault> {
        self.check_range(access, READ)?;
        match access.bytes {
            1 => self.load_each::<1>(access, false, data),
            2 => self.load_each::<2>(access, false, data),
            4 => self.load_each::<4>(access, false, data),
            8 => self.load_each::<8>(access, false, data),
            _ => self.load_each::<16>(access, false, data),
        }?;
        count(access, counters);
        Ok(())
    }

    /// The reads of ldmatrix: `access` has 16 bytes a lane and the lanes whose addresses count (0–7, 0–15 or all); `rows[l]` becomes
    /// the row at lane l's address. Every thread of the warp counts as a reader. Counts `shared_passes`, `bank_conflicts`.
    pub fn load_rows(&mut self, access: &Access, rows: &mut Data, counters: &mut Counters) -> Result<(), LaneFault> {
        debug_assert_eq!(access.bytes, 16, "a row of ldmatrix");
        self.check_range(access, READ)?;
        self.load_each::<16>(access, true, rows)?;
        count(access, counters);
        Ok(())
    }

    #[inline(always)]
    fn load_each<const BYTES: usize>(
        &mut self,
        access: &Access,
        whole_warp: bool,
        data: &mut Data,
    ) -> Result<(), LaneFault> {
        let view = self.order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            if !has_all::<BYTES>(&self.ready, start) {
                return Err(self.not_ready(access, lane, READ));
            }
            let mut mine = view.mark(lane);
            if whole_warp {
                mine = mine.of_whole_warp();
            }
            let collision = self.plain.visit(start, start + BYTES, |cell| {
                if view.unordered(cell.writer, mine) {
                    return Err((Mark(cell.writer), "write"));
                }
                view.remember(cell, mine);
                Ok(())
            });
            collision
                .and_then(|()| meets_no_atomic(&mut self.atomic, &view, mine, start, BYTES))
                .map_err(|found| raced(lane, READ, found))?;
            data[lane][..BYTES].copy_from_slice(&self.bytes[start..start + BYTES]);
        }
        Ok(())
    }

    /// Stores. Counts `shared_passes`, `bank_conflicts`.
    pub fn store(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        self.check_range(access, WRITE)?;
        match access.bytes {
            1 => self.store_each::<1>(access, data),
            2 => self.store_each::<2>(access, data),
            4 => self.store_each::<4>(access, data),
            8 => self.store_each::<8>(access, data),
            _ => self.store_each::<16>(access, data),
        }?;
        count(access, counters);
        Ok(())
    }

    #[inline(always)]
    fn store_each<const BYTES: usize>(&mut self, access: &Access, data: &Data) -> Result<(), LaneFault> {
        let view = self.order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            if has_any::<BYTES>(&self.pending, start) {
                return Err(self.not_ready(access, lane, WRITE));
            }
            let mine = view.mark(lane);
            let collision = self.plain.visit(start, start + BYTES, |cell| {
                meets_no_other(cell, &view, mine)?;
                cell.writer = mine.0;
                Ok(())
            });
            collision
                .and_then(|()| meets_no_atomic(&mut self.atomic, &view, mine, start, BYTES))
                .map_err(|found| raced(lane, WRITE, found))?;
            self.ready[start / 64] |= range_bits::<BYTES>(start);
            self.bytes[start..start + BYTES].copy_from_slice(&data[lane][..BYTES]);
        }
        Ok(())
    }

    /// Read-modify-write, lane after lane: `operation(lane, old)` gives the new bytes, both little-endian from byte 0. Counts
    /// `shared_passes`, `bank_conflicts`.
    pub fn atomic(
        &mut self,
        access: &Access,
        counters: &mut Counters,
        mut operation: impl FnMut(usize, [u8; WIDEST]) -> [u8; WIDEST],
    ) -> Result<(), LaneFault> {
        self.check_range(access, ATOMIC)?;
        let size = self.bytes.len();
        let view = self.order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            let end = start + access.bytes as usize;
            if !bits::all(&self.ready, start, end) {
                return Err(self.not_ready(access, lane, ATOMIC));
            }
            let mine = view.mark(lane);
            self.plain
                .visit(start, end, |cell| meets_no_other(cell, &view, mine))
                .map_err(|found| raced(lane, ATOMIC, found))?;
            let atomic = self.atomic.get_or_insert_with(|| Shadow::new(size));
            atomic
                .visit(start, end, |cell| {
                    view.remember(cell, mine);
                    Ok(())
                })
                .map_err(|found| raced(lane, ATOMIC, found))?;
            let mut old = [0; WIDEST];
            old[..end - start].copy_from_slice(&self.bytes[start..end]);
            self.bytes[start..end].copy_from_slice(&operation(lane, old)[..end - start]);
        }
        count(access, counters);
        Ok(())
    }

    /// The destination side of cp.async: `data` (zero-filled, see `CtaGlobal::load_partial`) lands when the issuing thread waits for
    /// the group that its next [`SharedMemory::commit`] closes. Counts `shared_passes`, `bank_conflicts`.
    pub fn async_copy(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        self.check_range(access, ASYNC)?;
        let view = self.order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            let end = start + access.bytes as usize;
            if bits::first_set(&self.pending, start, end).is_some() {
                return Err(self.not_ready(access, lane, ASYNC));
            }
            let mine = view.mark(lane);
            let collision = self.plain.visit(start, end, |cell| meets_no_other(cell, &view, mine));
            collision
                .and_then(|()| meets_no_atomic(&mut self.atomic, &view, mine, start, end - start))
                .map_err(|found| raced(lane, ASYNC, found))?;
            bits::set(&mut self.pending, start, end);
            bits::clear(&mut self.ready, start, end);
        }
        self.copies.issue(access, data);
        count(access, counters);
        Ok(())
    }

    /// cp.async.commit_group of the lanes in `mask`.
    pub fn commit(&mut self, warp: u32, mask: u32) {
        self.copies.commit(warp, mask);
    }

    /// cp.async.wait_group: all but the latest `groups` groups of each lane in `mask` land.
    pub fn wait(&mut self, warp: u32, mask: u32, groups: u32) {
        self.land(warp, mask, Some(groups));
    }

    /// cp.async.wait_all: everything that the lanes in `mask` issued lands, committed or not.
    pub fn wait_all(&mut self, warp: u32, mask: u32) {
        self.land(warp, mask, None);
    }

    fn land(&mut self, warp: u32, mask: u32, keep: Option<u32>) {
        let Self { bytes, ready, pending, plain, order, copies, .. } = self;
        copies.wait(warp, mask, keep, |landing| {
            let start = landing.offset;
            let end = start + landing.bytes.len();
            let mark = order.view(warp, landing.line).mark(landing.lane).of_async_copy();
            bytes[start..end].copy_from_slice(landing.bytes);
            bits::clear(pending, start, end);
            bits::set(ready, start, end);
            let Ok(()) = plain.visit::<std::convert::Infallible>(start, end, |cell| {
                cell.writer = mark.0;
                Ok(())
            });
        });
    }

    /// A barrier that all threads of the CTA pass.
    pub fn barrier(&mut self) {
        self.order.barrier();
    }

    /// A barrier that only the warps in `warps` (bit w: warp w) pass: a named one with a thread count.
    pub fn barrier_among(&mut self, warps: u32) {
        self.order.barrier_among(warps);
    }

    /// bar.warp.sync of `warp`. (No other warp instruction orders memory.) With a partial member mask the whole warp counts as
    /// ordered.
    pub fn warp_barrier(&mut self, warp: u32) {
        self.order.warp_barrier(warp);
    }

    /// That every lane's bytes are aligned and lie in here.
    #[inline(always)]
    fn check_range(&self, access: &Access, kind: Kind) -> Result<(), LaneFault> {
        aligned(access, kind.what)?;
        let most = (self.bytes.len() as u64).wrapping_sub(u64::from(access.bytes));
        let inside = |lane| self.bytes.len() as u64 >= u64::from(access.bytes) && access.addresses[lane] <= most;
        match Lanes(access.mask).find(|&lane| !inside(lane)) {
            None => Ok(()),
            Some(lane) => Err(self.out_of_bounds(access, lane, kind)),
        }
    }

    #[cold]
    fn out_of_bounds(&self, access: &Access, lane: usize, kind: Kind) -> LaneFault {
        let (address, bytes) = (access.addresses[lane], access.bytes);
        let past = address.saturating_add(u64::from(bytes)) - self.bytes.len() as u64;
        let nearest = format!("it ends {past} bytes past the end of the CTA's {} bytes", self.bytes.len());
        LaneFault { lane: lane as u32, kind: FaultKind::OutOfBounds { what: kind.what, bytes, address, nearest } }
    }

    /// Why a lane's bytes cannot be touched.
    #[cold]
    fn not_ready(&self, access: &Access, lane: usize, kind: Kind) -> LaneFault {
        let start = access.addresses[lane] as usize;
        let end = start + access.bytes as usize;
        let kind = match bits::first_set(&self.pending, start, end) {
            Some(byte) => FaultKind::AsyncCopy { address: byte as u64, line: self.copies.line(byte) },
            None => {
                let byte = bits::first_unset(&self.ready, start, end).unwrap_or(start);
                let place = format!("byte {byte} of the CTA's {}", self.bytes.len());
                FaultKind::Uninitialised { what: kind.what, bytes: access.bytes, address: byte as u64, place }
            }
        };
        LaneFault { lane: lane as u32, kind }
    }
}

/// That no thread wrote or read a cell out of order with `mine`.
#[inline(always)]
fn meets_no_other(cell: &mut Cell, view: &View, mine: Mark) -> Result<(), Earlier> {
    for (mark, other) in [(cell.writer, "write"), (cell.first, "read"), (cell.second, "read")] {
        if view.unordered(mark, mine) {
            return Err((Mark(mark), other));
        }
    }
    Ok(())
}

/// That no thread accessed bytes atomically out of order with `mine`.
#[inline(always)]
fn meets_no_atomic(
    atomic: &mut Option<Shadow>,
    view: &View,
    mine: Mark,
    start: usize,
    bytes: usize,
) -> Result<(), (usize, Earlier)> {
    match atomic {
        None => Ok(()),
        Some(atomic) => atomic.visit(start, start + bytes, |cell| {
            for mark in [cell.first, cell.second] {
                if view.unordered(mark, mine) {
                    return Err((Mark(mark), "atomic"));
                }
            }
            Ok(())
        }),
    }
}

#[cold]
fn raced(lane: usize, kind: Kind, (byte, (mark, other)): (usize, Earlier)) -> LaneFault {
    let other = if mark.is_async() { ASYNC.verb } else { other };
    let kind = FaultKind::SharedRace {
        address: byte as u64,
        what: kind.verb,
        other,
        thread: mark.thread(),
        line: mark.line(),
    };
    LaneFault { lane: lane as u32, kind }
}

fn count(access: &Access, counters: &mut Counters) {
    let (made, least) = passes(access);
    counters.shared_passes += made;
    counters.bank_conflicts += made - least;
}

/// The bits of `BYTES` aligned bytes in their word of a bitmap.
#[inline(always)]
fn range_bits<const BYTES: usize>(start: usize) -> u64 {
    ((1 << BYTES) - 1) << (start % 64)
}

#[inline(always)]
fn has_all<const BYTES: usize>(bitmap: &[u64], start: usize) -> bool {
    bitmap[start / 64] & range_bits::<BYTES>(start) == range_bits::<BYTES>(start)
}

#[inline(always)]
fn has_any<const BYTES: usize>(bitmap: &[u64], start: usize) -> bool {
    bitmap[start / 64] & range_bits::<BYTES>(start) != 0
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
