//! Shared memory of one CTA: every access checked, races between barriers found, asynchronous copies landing at their wait.
//!
//! What counts as a race is said at the head of `order`. Bytes that a cp.async will fill belong to nobody from its issue until the
//! issuing thread has waited for its group: any touch is a fault, and they keep their old value so that a missing wait gives wrong
//! numbers too. Once waited for they count as written, at the time of the wait, by the issuing thread; so other threads need a barrier
//! after that.

use crate::counters::Counters;
use crate::fault::FaultKind;

use super::async_copies::AsyncCopies;
use super::order::{Mark, Order, PENDING, Trouble, UNWRITTEN, View};
use super::shadow::{Cell, Shadow};
use super::warp_access::{Lanes, aligned, passes};
use super::{Access, Data, LaneFault, WIDEST};

/// Log2 of the bytes of a cell that is not split: a row of ldmatrix.
const TOP: u32 = 4;

/// Shared memory, byte addresses from 0. One CTA at a time; [`SharedMemory::reset`] makes it another CTA's.
pub struct SharedMemory {
    bytes: Vec<u8>,
    plain: Shadow<TOP>,
    /// Atomic accesses, as readers: they collide with plain ones, not among themselves.
    atomic: Option<Shadow<TOP>>,
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

impl SharedMemory {
    /// `bytes` of it, unwritten.
    pub fn new(bytes: u32) -> Self {
        let mut memory = Self {
            bytes: Vec::new(),
            plain: Shadow::new(0, UNWRITTEN),
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
        aligned(access, READ.what)?;
        match access.bytes {
            1 => self.load_each::<1, false>(access, data),
            2 => self.load_each::<2, false>(access, data),
            4 => self.load_each::<4, false>(access, data),
            8 => self.load_each::<8, false>(access, data),
            _ => self.load_each::<16, false>(access, data),
        }?;
        count(access, counters);
        Ok(())
    }

    /// The reads of ldmatrix: `access` has 16 bytes a lane and the lanes whose addresses count (0–7, 0–15 or all); `rows[l]` becomes
    /// the row at lane l's address. Every thread of the warp counts as a reader. Counts `shared_passes`, `bank_conflicts`.
    pub fn load_rows(&mut self, access: &Access, rows: &mut Data, counters: &mut Counters) -> Result<(), LaneFault> {
        debug_assert_eq!(access.bytes, 16, "a row of ldmatrix");
        aligned(access, READ.what)?;
        self.load_each::<16, true>(access, rows)?;
        count(access, counters);
        Ok(())
    }

    /// Loads; `ROWS`: for the whole warp.
    fn load_each<const BYTES: usize, const ROWS: bool>(
        &mut self,
        access: &Access,
        data: &mut Data,
    ) -> Result<(), LaneFault> {
        let Self { bytes, plain, atomic, order, .. } = self;
        let view = order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            let Some(from) = bytes.get(start..start.wrapping_add(BYTES)) else {
                return Err(self.out_of_bounds(access, lane, READ));
            };
            let mine = if ROWS { view.mark(lane).of_whole_warp() } else { view.mark(lane) };
            for cell in plain.within(start, start + BYTES) {
                if let Err(trouble) = view.read(cell, mine) {
                    return Err(self.troubled(access, lane, READ, trouble));
                }
            }
            if let Some(atomic) = atomic
                && let Err(trouble) = meets_no_atomic(atomic, &view, mine, start, start + BYTES)
            {
                return Err(self.troubled(access, lane, READ, trouble));
            }
            data[lane][..BYTES].copy_from_slice(from);
        }
        Ok(())
    }

    /// Stores. Counts `shared_passes`, `bank_conflicts`.
    pub fn store(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        aligned(access, WRITE.what)?;
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

    fn store_each<const BYTES: usize>(&mut self, access: &Access, data: &Data) -> Result<(), LaneFault> {
        let Self { bytes, plain, atomic, order, .. } = self;
        let view = order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            let Some(into) = bytes.get_mut(start..start.wrapping_add(BYTES)) else {
                return Err(self.out_of_bounds(access, lane, WRITE));
            };
            let mine = view.mark(lane);
            for cell in plain.within(start, start + BYTES) {
                if let Err(trouble) = view.write(cell, mine, mine.0) {
                    return Err(self.troubled(access, lane, WRITE, trouble));
                }
            }
            if let Some(atomic) = atomic
                && let Err(trouble) = meets_no_atomic(atomic, &view, mine, start, start + BYTES)
            {
                return Err(self.troubled(access, lane, WRITE, trouble));
            }
            into.copy_from_slice(&data[lane][..BYTES]);
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
        aligned(access, ATOMIC.what)?;
        let Self { bytes, plain, atomic, order, .. } = self;
        let size = bytes.len();
        let view = order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            let end = start.wrapping_add(access.bytes as usize);
            let Some(place) = bytes.get_mut(start..end) else {
                return Err(self.out_of_bounds(access, lane, ATOMIC));
            };
            let mine = view.mark(lane);
            for cell in plain.within(start, end) {
                if let Err(trouble) = view.check_atomic(cell, mine) {
                    return Err(self.troubled(access, lane, ATOMIC, trouble));
                }
            }
            let atomic = atomic.get_or_insert_with(|| Shadow::new(size, 0));
            atomic.within(start, end).iter_mut().for_each(|cell| view.remember(cell, mine));
            let mut old = [0; WIDEST];
            old[..place.len()].copy_from_slice(place);
            place.copy_from_slice(&operation(lane, old)[..place.len()]);
        }
        count(access, counters);
        Ok(())
    }

    /// The destination side of cp.async: `data` (zero-filled, see `CtaGlobal::load_partial`) lands when the issuing thread waits for
    /// the group that its next [`SharedMemory::commit`] closes. 4, 8 or 16 bytes a lane. Counts `shared_passes`, `bank_conflicts`.
    pub fn async_copy(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        aligned(access, ASYNC.what)?;
        match access.bytes {
            16 => self.issue_each::<16>(access),
            8 => self.issue_each::<8>(access),
            _ => self.issue_each::<4>(access),
        }?;
        self.copies.issue(access, data);
        count(access, counters);
        Ok(())
    }

    fn issue_each<const BYTES: usize>(&mut self, access: &Access) -> Result<(), LaneFault> {
        let Self { bytes, plain, atomic, order, .. } = self;
        let view = order.view(access.warp, access.line);
        for lane in Lanes(access.mask) {
            let start = access.addresses[lane] as usize;
            let end = start.wrapping_add(BYTES);
            if bytes.get(start..end).is_none() {
                return Err(self.out_of_bounds(access, lane, ASYNC));
            }
            let mine = view.mark(lane);
            for cell in plain.within(start, end) {
                if let Err(trouble) = view.write(cell, mine, PENDING) {
                    return Err(self.troubled(access, lane, ASYNC, trouble));
                }
            }
            if let Some(atomic) = atomic
                && let Err(trouble) = meets_no_atomic(atomic, &view, mine, start, end)
            {
                return Err(self.troubled(access, lane, ASYNC, trouble));
            }
        }
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
        let Self { bytes, plain, order, copies, .. } = self;
        copies.wait(warp, mask, keep, |landing| {
            let start = landing.offset;
            let end = start + landing.length;
            let mark = order.view(warp, landing.line).mark(landing.lane).of_async_copy();
            match landing.length {
                WIDEST => bytes[start..start + WIDEST].copy_from_slice(landing.bytes),
                length => bytes[start..end].copy_from_slice(&landing.bytes[..length]),
            }
            plain.within(start, end).iter_mut().for_each(|cell| cell.writer = mark.0);
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

    #[cold]
    fn out_of_bounds(&self, access: &Access, lane: usize, kind: Kind) -> LaneFault {
        let (address, bytes) = (access.addresses[lane], access.bytes);
        let past = address.saturating_add(u64::from(bytes)) - self.bytes.len() as u64;
        let nearest = format!("it ends {past} bytes past the end of the CTA's {} bytes", self.bytes.len());
        LaneFault { lane: lane as u32, kind: FaultKind::OutOfBounds { what: kind.what, bytes, address, nearest } }
    }

    /// What is told of a lane whose access may not be.
    #[cold]
    fn troubled(&mut self, access: &Access, lane: usize, kind: Kind, trouble: Trouble) -> LaneFault {
        let start = access.addresses[lane] as usize;
        let end = start + access.bytes as usize;
        let mut first = |wanted: &dyn Fn(&Cell) -> bool| {
            let found = |shadow: &mut Shadow<TOP>| {
                shadow.visit(start, end, |cell| if wanted(cell) { Err(()) } else { Ok(()) }).err()
            };
            let byte = found(&mut self.plain).or_else(|| self.atomic.as_mut().and_then(found));
            byte.map_or(start, |(byte, ())| byte) as u64
        };
        let kind = match trouble {
            Trouble::Unwritten => {
                let byte = first(&|cell| cell.writer == UNWRITTEN);
                let place = format!("byte {byte} of the CTA's {}", self.bytes.len());
                FaultKind::Uninitialised { what: kind.what, bytes: access.bytes, address: byte, place }
            }
            Trouble::Pending => {
                let byte = first(&|cell| cell.writer == PENDING);
                // A copy that is not there yet is this very one.
                let line = self.copies.line(byte as usize).unwrap_or(access.line);
                FaultKind::AsyncCopy { address: byte, line }
            }
            Trouble::Race(mark, other) => FaultKind::SharedRace {
                address: first(&|cell| [cell.writer, cell.first, cell.second].contains(&mark.0)),
                what: kind.verb,
                other: if mark.is_async() { ASYNC.verb } else { other },
                thread: mark.thread(),
                line: mark.line(),
            },
        };
        LaneFault { lane: lane as u32, kind }
    }
}

/// That no thread accessed bytes atomically out of order with `mine`.
fn meets_no_atomic(atomic: &mut Shadow<TOP>, view: &View, mine: Mark, start: usize, end: usize) -> Result<(), Trouble> {
    atomic.within(start, end).iter().try_for_each(|cell| view.check_against_atomic(cell, mine))
}

#[inline(always)]
fn count(access: &Access, counters: &mut Counters) {
    let (made, least) = passes(access);
    counters.shared_passes += made;
    counters.bank_conflicts += made - least;
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
