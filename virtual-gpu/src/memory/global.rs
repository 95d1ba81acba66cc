//! Device memory as the host sees it: allocations, copies, fills, leaks.
//!
//! An allocation is a row of pages, each made at its first write and used under its own lock. Addresses are never given twice, so
//! that a freed one stays nobody's, and what lies behind an allocation is nobody's for at least the allocation's size.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use thiserror::Error;

use super::launch::GlobalLaunch;
use super::page::{PAGE, Page, UNWRITTEN};

/// Where addresses begin.
const FIRST_ADDRESS: u64 = 0x7f00_0000_0000;
/// What every allocation's address is a multiple of.
const ALIGNMENT: u64 = 256;
/// Least bytes between two allocations.
const GAP: u64 = 1 << 20;
/// Freed allocations that reports still know.
const REMEMBERED: usize = 4096;

/// An allocation that is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationInfo {
    /// First byte.
    pub address: u64,
    /// Size.
    pub bytes: u64,
    /// 1 for the first allocation of this memory, counting on.
    pub sequence: u64,
    /// A module's variable has one.
    pub name: Option<String>,
}

impl AllocationInfo {
    /// As reports call it.
    fn label(&self) -> String {
        let Self { address, bytes, sequence, name } = self;
        match name {
            Some(name) => format!("variable {name} ({bytes} bytes at {address:#x})"),
            None => format!("allocation {sequence} ({bytes} bytes at {address:#x})"),
        }
    }

    /// The byte behind the last.
    fn end(&self) -> u64 {
        self.address + self.bytes
    }
}

/// Why the host cannot have what it asks for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// No capacity left.
    #[error("device memory is full: {asked} bytes asked for, {free} of {capacity} are free")]
    Full {
        /// Bytes.
        asked: u64,
        /// Bytes.
        free: u64,
        /// Bytes.
        capacity: u64,
    },
    /// No allocation of 0 bytes.
    #[error("an allocation of 0 bytes")]
    Empty,
    /// Outside every allocation, or across the end of one.
    #[error("{what} of {bytes} bytes at {address:#x} is out of bounds: {nearest}")]
    OutOfBounds {
        /// `host write`, …
        what: &'static str,
        /// Of the access.
        bytes: u64,
        /// Of the access.
        address: u64,
        /// The allocation that lies nearest.
        nearest: String,
    },
    /// Nothing starts there that could be freed.
    #[error("free of {address:#x}, where no allocation starts: {nearest}")]
    NotAllocated {
        /// As given.
        address: u64,
        /// The allocation that lies nearest, or was there once.
        nearest: String,
    },
    /// The host reads what nobody wrote.
    #[error(
        "host read of {bytes} bytes at {address:#x} meets {unwritten} bytes that nobody wrote, the first at {place}"
    )]
    Uninitialised {
        /// Of the read.
        bytes: u64,
        /// Of the read.
        address: u64,
        /// How many.
        unwritten: u64,
        /// Allocation and offset of the first.
        place: String,
    },
    /// A fill whose element is not 1, 2 or 4 bytes.
    #[error("fill with elements of {0} bytes: 1, 2 and 4 are possible")]
    Element(usize),
    /// A fill that starts between two elements.
    #[error("fill with elements of {element} bytes at {address:#x}, which is no multiple of {element}")]
    Misaligned {
        /// Of the fill.
        address: u64,
        /// Bytes.
        element: u64,
    },
    /// Source and destination of a copy share bytes.
    #[error("copy of {bytes} bytes from {from:#x} to {to:#x} overlaps itself")]
    Overlap {
        /// Length.
        bytes: u64,
        /// First byte of the source.
        from: u64,
        /// First byte of the destination.
        to: u64,
    },
}

/// An allocation's pages; those that nobody wrote are not there.
pub(super) struct Allocation {
    pub info: AllocationInfo,
    pages: Box<[Mutex<Option<Box<Page>>>]>,
}

impl Allocation {
    fn new(info: AllocationInfo) -> Self {
        let pages = info.bytes.div_ceil(PAGE as u64);
        Self { info, pages: (0..pages).map(|_| Mutex::new(None)).collect() }
    }

    /// Whether `bytes` bytes at `address` lie in here.
    #[inline(always)]
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.info.address
            && address - self.info.address <= self.info.bytes
            && bytes <= self.info.bytes - (address - self.info.address)
    }

    /// A page, locked.
    #[inline(always)]
    pub fn page(&self, index: usize) -> MutexGuard<'_, Option<Box<Page>>> {
        self.pages[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a report says of the byte at `offset`.
    pub fn place(&self, offset: u64) -> String {
        format!("{}, offset {offset}", self.info.label())
    }
}

/// The part of bytes `offset..end` of an allocation that lies in one page: the page, its bytes from and to.
#[inline(always)]
pub(super) fn page_part(offset: u64, end: u64) -> (usize, usize, usize) {
    let from = offset as usize % PAGE;
    (offset as usize / PAGE, from, PAGE.min(from + (end - offset) as usize))
}

/// What is allocated.
#[derive(Default)]
pub(super) struct Table {
    alive: BTreeMap<u64, Arc<Allocation>>,
    freed: VecDeque<AllocationInfo>,
    next: u64,
    sequence: u64,
    used: u64,
}

impl Table {
    /// What lies at or next to the bytes that an access wanted.
    pub fn nearest(&self, address: u64, bytes: u64) -> String {
        let end = address.saturating_add(bytes);
        if let Some(freed) = self.freed.iter().rev().find(|freed| address < freed.end() && end > freed.address) {
            return format!("{} was freed", freed.label());
        }
        let before = self.alive.range(..=address).next_back().map(|(_, allocation)| &allocation.info);
        let after = self.alive.range(address.saturating_add(1)..).next().map(|(_, allocation)| &allocation.info);
        let past = before.map(|info| (end.saturating_sub(info.end()), info));
        let short = after.map(|info| (info.address - address, info));
        match (past, short) {
            (Some((past, info)), short) if short.is_none_or(|(short, _)| past <= short) => {
                let starts = address.saturating_sub(info.end());
                if address < info.end() {
                    format!("it ends {past} bytes past the end of {}", info.label())
                } else {
                    format!("it starts {starts} bytes past the end of {}", info.label())
                }
            }
            (_, Some((short, info))) => format!("it starts {short} bytes before {}", info.label()),
            _ => "nothing is allocated".to_owned(),
        }
    }
}

/// Device memory. All methods may be called from several threads.
pub struct GlobalMemory {
    capacity: u64,
    table: Arc<RwLock<Table>>,
    launches: AtomicU32,
}

impl GlobalMemory {
    /// Memory of `capacity` bytes with nothing in it.
    pub fn new(capacity: u64) -> Self {
        let table = Table { next: FIRST_ADDRESS, ..Table::default() };
        Self { capacity, table: Arc::new(RwLock::new(table)), launches: AtomicU32::new(0) }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Capacity in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes allocated.
    pub fn used(&self) -> u64 {
        self.table().used
    }

    /// The address, a multiple of 256, of `bytes` fresh bytes that nobody has written. No address is ever given twice, and at least
    /// as many bytes as the allocation has (and a mebibyte) after its end belong to nobody.
    pub fn allocate(&self, bytes: u64) -> Result<u64, MemoryError> {
        self.add(bytes, None)
    }

    /// [`GlobalMemory::allocate`] for a module's variable: reports call it by its name.
    pub fn allocate_named(&self, bytes: u64, name: &str) -> Result<u64, MemoryError> {
        self.add(bytes, Some(name.to_owned()))
    }

    fn add(&self, bytes: u64, name: Option<String>) -> Result<u64, MemoryError> {
        let mut table = self.table_mut();
        let free = self.capacity - table.used;
        if bytes == 0 {
            return Err(MemoryError::Empty);
        }
        let next = table.next.checked_add(bytes).and_then(|end| end.checked_add(bytes.max(GAP) + ALIGNMENT));
        let Some(next) = next.filter(|_| bytes <= free) else {
            return Err(MemoryError::Full { asked: bytes, free, capacity: self.capacity });
        };
        let address = table.next;
        table.next = next / ALIGNMENT * ALIGNMENT;
        table.sequence += 1;
        table.used += bytes;
        let info = AllocationInfo { address, bytes, sequence: table.sequence, name };
        table.alive.insert(address, Arc::new(Allocation::new(info)));
        Ok(address)
    }

    /// Frees what starts at `address`.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut table = self.table_mut();
        let Some(allocation) = table.alive.remove(&address) else {
            return Err(MemoryError::NotAllocated { address, nearest: table.nearest(address, 1) });
        };
        table.used -= allocation.info.bytes;
        if table.freed.len() == REMEMBERED {
            table.freed.pop_front();
        }
        table.freed.push_back(allocation.info.clone());
        Ok(())
    }

    /// What is alive, by sequence: at a context's end, the leaks.
    pub fn allocations(&self) -> Vec<AllocationInfo> {
        // Addresses ascend with the sequence.
        self.table().alive.values().map(|allocation| allocation.info.clone()).collect()
    }

    /// The allocation that `address` lies in.
    pub fn find(&self, address: u64) -> Option<AllocationInfo> {
        let table = self.table();
        let (_, allocation) = table.alive.range(..=address).next_back()?;
        allocation.holds(address, 1).then(|| allocation.info.clone())
    }

    /// The allocation that the host's access lies in, and the offset there.
    fn locate(&self, what: &'static str, address: u64, bytes: u64) -> Result<(Arc<Allocation>, u64), MemoryError> {
        let table = self.table();
        match table.alive.range(..=address).next_back() {
            Some((_, allocation)) if allocation.holds(address, bytes) => {
                Ok((allocation.clone(), address - allocation.info.address))
            }
            _ => Err(MemoryError::OutOfBounds { what, bytes, address, nearest: table.nearest(address, bytes) }),
        }
    }

    /// Host to device.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let (allocation, mut offset) = self.locate("host write", address, from.len() as u64)?;
        let end = offset + from.len() as u64;
        let mut left = from;
        while offset < end {
            let (page, start, stop) = page_part(offset, end);
            let (piece, rest) = left.split_at(stop - start);
            allocation.page(page).get_or_insert_with(Page::new).overwrite(start, stop).copy_from_slice(piece);
            left = rest;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Device to host. On [`MemoryError::Uninitialised`] `into` is filled all the same (unwritten bytes as 0xCD), so that a driver
    /// may treat it as a warning; hardware gives whatever lies there.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = into.len() as u64;
        let (allocation, mut offset) = self.locate("host read", address, bytes)?;
        let end = offset + bytes;
        let mut left = into;
        let mut unwritten = 0;
        let mut first = None;
        while offset < end {
            let (page, start, stop) = page_part(offset, end);
            let (piece, rest) = left.split_at_mut(stop - start);
            let missing = match allocation.page(page).as_ref() {
                Some(page) => {
                    piece.copy_from_slice(page.bytes(start, stop));
                    let missing = page.unwritten(start, stop);
                    unwritten += missing.map_or(0, |byte| page.count_unwritten(byte, stop));
                    missing
                }
                None => {
                    piece.fill(UNWRITTEN);
                    unwritten += (stop - start) as u64;
                    Some(start)
                }
            };
            first = first.or(missing.map(|byte| offset + (byte - start) as u64));
            left = rest;
            offset += (stop - start) as u64;
        }
        match first {
            None => Ok(()),
            Some(first) => {
                Err(MemoryError::Uninitialised { bytes, address, unwritten, place: allocation.place(first) })
            }
        }
    }

    /// Writes `element` (1, 2 or 4 bytes, little-endian) `count` times.
    pub fn fill(&self, address: u64, element: &[u8], count: u64) -> Result<(), MemoryError> {
        if !matches!(element.len(), 1 | 2 | 4) {
            return Err(MemoryError::Element(element.len()));
        }
        let size = element.len() as u64;
        if !address.is_multiple_of(size) {
            return Err(MemoryError::Misaligned { address, element: size });
        }
        let bytes = count.saturating_mul(size);
        let (allocation, mut offset) = self.locate("fill", address, bytes)?;
        let end = offset + bytes;
        while offset < end {
            // Pages are a multiple of an element, so that none straddles two.
            let (page, start, stop) = page_part(offset, end);
            let mut page = allocation.page(page);
            let piece = page.get_or_insert_with(Page::new).overwrite(start, stop);
            piece.chunks_exact_mut(element.len()).for_each(|place| place.copy_from_slice(element));
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Device to device. Unwritten bytes stay unwritten at the destination.
    pub fn copy(&self, destination: u64, source: u64, bytes: u64) -> Result<(), MemoryError> {
        let (from, from_start) = self.locate("copy's source", source, bytes)?;
        let (to, to_start) = self.locate("copy's destination", destination, bytes)?;
        if bytes > 0 && source.abs_diff(destination) < bytes {
            return Err(MemoryError::Overlap { bytes, from: source, to: destination });
        }
        let mut done = 0;
        while done < bytes {
            let (index, start, stop) = page_part(from_start + done, from_start + bytes);
            let (target, begin, limit) = page_part(to_start + done, to_start + bytes);
            let length = (stop - start).min(limit - begin);
            // One lock at a time: two copies in opposite directions must not wait for each other.
            let taken = from.page(index).as_ref().map(|page| page.part(start, start + length));
            let mut page = to.page(target);
            match taken {
                Some(part) => page.get_or_insert_with(Page::new).put(begin, &part),
                None => {
                    if let Some(page) = page.as_mut() {
                        page.forget(begin, begin + length);
                    }
                }
            }
            done += length as u64;
        }
        Ok(())
    }

    /// The memory as a launch of `ctas` CTAs sees it: the allocations of this moment. Launches must not overlap in time for races
    /// to be found; if they do, nothing false is reported.
    pub fn launch(&self, ctas: u32) -> GlobalLaunch {
        let launch = self.launches.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        GlobalLaunch::new(self.table.clone(), self.table().alive.values().cloned().collect(), launch, ctas)
    }
}

#[cfg(test)]
#[path = "global_tests.rs"]
mod tests;
