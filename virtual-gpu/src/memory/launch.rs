//! Device memory as the CTAs of one launch see it: every access checked, races between CTAs found whatever their order in time.
//!
//! A launch orders nothing between its CTAs. So a byte that one CTA writes and another reads or writes is a race, whichever comes
//! first and even if both write the same value, unless both accesses are atomic. Synchronisation between CTAs of a launch (a flag
//! spun on, a last block that sums up) is not modelled and comes out as a race: kernels here end their launch instead. Of the threads
//! of one CTA only those of one instruction are held against each other: two lanes of a store that touch the same byte.

use std::sync::{Arc, MutexGuard, PoisonError, RwLock};

use crate::counters::Counters;
use crate::fault::FaultKind;

use super::global::{Allocation, Table, page_part};
use super::page::{Collision, Page, Visitor};
use super::warp_access::{Lanes, Run, Runs, Sectors, aligned, overlap};
use super::{Access, Data, LANES, LaneFault, WIDEST};

/// Slots of the way from an address to its allocation.
const RECENT: usize = 8;
/// Allocations lie at least 1 << this apart, end to start.
const RECENT_SHIFT: u32 = 20;

/// Device memory during one launch; CTAs may run on several threads.
pub struct GlobalLaunch {
    /// For reports.
    table: Arc<RwLock<Table>>,
    /// By address.
    allocations: Vec<Arc<Allocation>>,
    launch: u32,
    ctas: u32,
}

impl GlobalLaunch {
    pub(super) fn new(table: Arc<RwLock<Table>>, allocations: Vec<Arc<Allocation>>, launch: u32, ctas: u32) -> Self {
        Self { table, allocations, launch, ctas }
    }

    /// The view of CTA `cta` (flat in the grid, below the launch's count).
    pub fn cta(&self, cta: u32) -> CtaGlobal<'_> {
        debug_assert!(cta < self.ctas, "CTA {cta} of {}", self.ctas);
        CtaGlobal { launch: self, cta, recent: [usize::MAX; RECENT] }
    }
}

/// The page in use. One at a time: whoever holds one and waits for another could wait forever.
struct Held<'a> {
    allocation: &'a Allocation,
    index: usize,
    page: MutexGuard<'a, Option<Box<Page>>>,
}

/// A page, kept locked from one run of an instruction to the next if it is the same.
#[inline(always)]
fn hold<'a, 'h>(held: &'h mut Option<Held<'a>>, allocation: &'a Allocation, index: usize) -> &'h mut Option<Box<Page>> {
    let same = held.as_ref().is_some_and(|held| held.index == index && std::ptr::eq(held.allocation, allocation));
    if !same {
        *held = None;
    }
    &mut held.get_or_insert_with(|| Held { allocation, index, page: allocation.page(index) }).page
}

/// Device memory for one CTA.
pub struct CtaGlobal<'a> {
    launch: &'a GlobalLaunch,
    cta: u32,
    /// Index of the allocation last found for addresses that end up in a slot.
    recent: [usize; RECENT],
}

impl<'a> CtaGlobal<'a> {
    /// Loads; other bytes of `data` stay. Counts `sectors_read`.
    pub fn load(&mut self, access: &Access, data: &mut Data, counters: &mut Counters) -> Result<(), LaneFault> {
        const WHAT: &str = "global read";
        aligned(access, WHAT)?;
        let mut sectors = Sectors::new();
        let mut held = None;
        for run in Runs::new(access) {
            let length = run.length(access.bytes);
            self.read_run(access, &run, length, data, &mut held)?;
            sectors.add(run.address, length);
        }
        counters.sectors_read += sectors.total(access);
        Ok(())
    }

    /// The source side of cp.async: lane l reads the first `source[l]` of `access.bytes` bytes, and the rest of its `data` is zero.
    /// A lane with 0 source bytes touches nothing. Counts `sectors_read`.
    pub fn load_partial(
        &mut self,
        access: &Access,
        source: &[u32; LANES],
        data: &mut Data,
        counters: &mut Counters,
    ) -> Result<(), LaneFault> {
        let mut full = 0;
        let mut part = 0;
        for lane in Lanes(access.mask) {
            if source[lane] >= access.bytes {
                full |= 1 << lane;
            } else {
                data[lane][..access.bytes as usize].fill(0);
                part |= u32::from(source[lane] > 0) << lane;
            }
        }
        let whole = Access { mask: full, ..*access };
        if part == 0 {
            return self.load(&whole, data, counters);
        }
        let touched = Access { mask: full | part, ..*access };
        aligned(&touched, "global read")?;
        let mut sectors = Sectors::new();
        let mut held = None;
        for lane in Lanes(touched.mask) {
            let length = u64::from(source[lane].min(access.bytes));
            let run = Run { lane, lanes: 1, address: access.addresses[lane], step: length };
            self.read_run(access, &run, length, data, &mut held)?;
            sectors.add(run.address, length);
        }
        counters.sectors_read += sectors.total(&touched);
        Ok(())
    }

    /// Stores. Counts `sectors_written`.
    pub fn store(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        const WHAT: &str = "global write";
        aligned(access, WHAT)?;
        if let Some((later, _)) = overlap(access) {
            return Err(self.overlapping(access, later));
        }
        let mut sectors = Sectors::new();
        let visitor = self.visitor(access);
        let mut held = None;
        for run in Runs::new(access) {
            let length = run.length(access.bytes);
            let allocation = self.allocation(WHAT, access, &run, length)?;
            let base = allocation.info.address;
            let (mut offset, end) = (run.address - base, run.address - base + length);
            let mut lane = run.lane;
            while offset < end {
                let (index, start, stop) = page_part(offset, end);
                let page = hold(&mut held, allocation, index).get_or_insert_with(Page::new);
                page.record_write(visitor, start, stop)
                    .map_err(|collision| raced("write", access, &run, allocation, index, collision))?;
                gather(access.bytes, &data[lane..run.lane + run.lanes], page.overwrite(start, stop));
                lane += (stop - start) / access.bytes as usize;
                offset += (stop - start) as u64;
            }
            sectors.add(run.address, length);
        }
        counters.sectors_written += sectors.total(access);
        Ok(())
    }

    /// Read-modify-write, lane after lane: `operation(lane, old)` gives the new bytes, both little-endian from byte 0. Counts
    /// `sectors_written`.
    pub fn atomic(
        &mut self,
        access: &Access,
        counters: &mut Counters,
        mut operation: impl FnMut(usize, [u8; WIDEST]) -> [u8; WIDEST],
    ) -> Result<(), LaneFault> {
        const WHAT: &str = "global atomic";
        aligned(access, WHAT)?;
        let mut sectors = Sectors::new();
        let visitor = self.visitor(access);
        let length = u64::from(access.bytes);
        for lane in Lanes(access.mask) {
            let run = Run { lane, lanes: 1, address: access.addresses[lane], step: length };
            let allocation = self.allocation(WHAT, access, &run, length)?;
            let offset = run.address - allocation.info.address;
            // Aligned, so in one page.
            let (index, start, stop) = page_part(offset, offset + length);
            let mut guard = allocation.page(index);
            let page = guard.as_mut().ok_or_else(|| unwritten(WHAT, access, &run, allocation, offset))?;
            if page.unwritten(start, stop).is_some() {
                return Err(unwritten(WHAT, access, &run, allocation, offset));
            }
            page.record_atomic(visitor, start, stop)
                .map_err(|collision| raced("atomic", access, &run, allocation, index, collision))?;
            let mut old = [0; WIDEST];
            old[..stop - start].copy_from_slice(page.bytes(start, stop));
            let new = operation(lane, old);
            page.overwrite(start, stop).copy_from_slice(&new[..stop - start]);
            sectors.add(run.address, length);
        }
        counters.sectors_written += sectors.total(access);
        Ok(())
    }

    /// Reads a run of lanes, `length` bytes in all.
    #[inline(always)]
    fn read_run(
        &mut self,
        access: &Access,
        run: &Run,
        length: u64,
        data: &mut Data,
        held: &mut Option<Held<'a>>,
    ) -> Result<(), LaneFault> {
        const WHAT: &str = "global read";
        let visitor = self.visitor(access);
        let allocation = self.allocation(WHAT, access, run, length)?;
        let base = allocation.info.address;
        let (mut offset, end) = (run.address - base, run.address - base + length);
        let mut lane = run.lane;
        while offset < end {
            let (index, start, stop) = page_part(offset, end);
            let Some(page) = hold(held, allocation, index) else {
                return Err(unwritten(WHAT, access, run, allocation, offset));
            };
            if let Some(byte) = page.unwritten(start, stop) {
                return Err(unwritten(WHAT, access, run, allocation, offset + (byte - start) as u64));
            }
            page.record_read(visitor, start, stop)
                .map_err(|collision| raced("read", access, run, allocation, index, collision))?;
            let bytes = page.bytes(start, stop);
            if run.step == 0 {
                data[lane..lane + run.lanes].iter_mut().for_each(|into| into[..bytes.len()].copy_from_slice(bytes));
            } else if run.lanes == 1 {
                data[lane][..bytes.len()].copy_from_slice(bytes);
            } else {
                scatter(access.bytes, bytes, &mut data[lane..run.lane + run.lanes]);
            }
            lane += (stop - start) / access.bytes as usize;
            offset += (stop - start) as u64;
        }
        Ok(())
    }

    #[inline(always)]
    fn visitor(&self, access: &Access) -> Visitor {
        Visitor { launch: self.launch.launch, cta: self.cta, line: access.line }
    }

    /// The allocation that holds a run of `length` bytes.
    #[inline(always)]
    fn allocation(
        &mut self,
        what: &'static str,
        access: &Access,
        run: &Run,
        length: u64,
    ) -> Result<&'a Allocation, LaneFault> {
        let slot = (run.address >> RECENT_SHIFT) as usize % RECENT;
        let allocations = &self.launch.allocations;
        if let Some(allocation) = allocations.get(self.recent[slot])
            && allocation.holds(run.address, length)
        {
            return Ok(allocation);
        }
        let behind = allocations.partition_point(|allocation| allocation.info.address <= run.address);
        let found = behind.checked_sub(1).and_then(|index| Some((index, allocations.get(index)?)));
        match found {
            Some((index, allocation)) if allocation.holds(run.address, length) => {
                self.recent[slot] = index;
                Ok(allocation)
            }
            _ => Err(self.out_of_bounds(what, access, run, length)),
        }
    }

    /// The first lane of a run that is in no allocation.
    #[cold]
    fn out_of_bounds(&self, what: &'static str, access: &Access, run: &Run, length: u64) -> LaneFault {
        let bytes = if run.lanes == 1 { length } else { u64::from(access.bytes) };
        let outside = |&lane: &usize| {
            !self.launch.allocations.iter().any(|allocation| allocation.holds(access.addresses[lane], bytes))
        };
        let lane = (run.lane..run.lane + run.lanes).find(outside).unwrap_or(run.lane);
        let address = access.addresses[lane];
        let nearest = self.launch.table.read().unwrap_or_else(PoisonError::into_inner).nearest(address, bytes);
        LaneFault { lane: lane as u32, kind: FaultKind::OutOfBounds { what, bytes: bytes as u32, address, nearest } }
    }

    #[cold]
    fn overlapping(&self, access: &Access, lane: usize) -> LaneFault {
        let address = access.addresses[lane];
        let holder = self.launch.allocations.iter().find(|allocation| allocation.holds(address, 1));
        let place = match holder {
            Some(allocation) => allocation.place(address - allocation.info.address),
            None => "in no allocation".to_owned(),
        };
        let (what, other, cta, line) = ("write", "write of the same instruction", self.cta, access.line);
        LaneFault { lane: lane as u32, kind: FaultKind::GlobalRace { address, place, what, other, cta, line } }
    }
}

/// The lane of a run that touches the byte at `address`.
fn lane_at(access: &Access, run: &Run, address: u64) -> u32 {
    let lane = if run.step == 0 || run.lanes == 1 { 0 } else { (address - run.address) / u64::from(access.bytes) };
    (run.lane + lane as usize) as u32
}

#[cold]
fn unwritten(what: &'static str, access: &Access, run: &Run, allocation: &Allocation, offset: u64) -> LaneFault {
    let address = allocation.info.address + offset;
    let kind = FaultKind::Uninitialised { what, bytes: access.bytes, address, place: allocation.place(offset) };
    LaneFault { lane: lane_at(access, run, address), kind }
}

#[cold]
fn raced(
    what: &'static str,
    access: &Access,
    run: &Run,
    allocation: &Allocation,
    page: usize,
    collision: Collision,
) -> LaneFault {
    let Collision { offset, other, cta, line } = collision;
    let offset = (page * super::page::PAGE + offset) as u64;
    let address = (allocation.info.address + offset).max(run.address);
    let place = allocation.place(address - allocation.info.address);
    LaneFault {
        lane: lane_at(access, run, address),
        kind: FaultKind::GlobalRace { address, place, what, other, cta, line },
    }
}

/// Gives lanes their bytes out of a run.
#[inline(always)]
fn scatter(bytes: u32, from: &[u8], into: &mut [[u8; WIDEST]]) {
    #[inline(always)]
    fn each<const BYTES: usize>(from: &[u8], into: &mut [[u8; WIDEST]]) {
        for (lane, bytes) in into.iter_mut().zip(from.as_chunks::<BYTES>().0) {
            lane[..BYTES].copy_from_slice(bytes);
        }
    }
    match bytes {
        1 => each::<1>(from, into),
        2 => each::<2>(from, into),
        4 => each::<4>(from, into),
        8 => each::<8>(from, into),
        _ => each::<16>(from, into),
    }
}

/// Takes lanes' bytes into a run.
#[inline(always)]
fn gather(bytes: u32, from: &[[u8; WIDEST]], into: &mut [u8]) {
    #[inline(always)]
    fn each<const BYTES: usize>(from: &[[u8; WIDEST]], into: &mut [u8]) {
        for (lane, bytes) in from.iter().zip(into.as_chunks_mut::<BYTES>().0) {
            bytes.copy_from_slice(&lane[..BYTES]);
        }
    }
    match bytes {
        1 => each::<1>(from, into),
        2 => each::<2>(from, into),
        4 => each::<4>(from, into),
        8 => each::<8>(from, into),
        _ => each::<16>(from, into),
    }
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
