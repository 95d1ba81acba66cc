//! Device memory as the host sees it: allocations, copies, fills, leaks.

use thiserror::Error;

use super::launch::GlobalLaunch;

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
    /// A fill that is no multiple of its element.
    #[error("fill with elements of {element} bytes at {address:#x}, which is no multiple of {element}")]
    Misaligned {
        /// Of the fill.
        address: u64,
        /// Bytes.
        element: u64,
    },
    /// Source and destination of a copy share bytes.
    #[error("copy of {bytes} bytes from {source_address:#x} to {destination:#x} overlaps itself")]
    Overlap {
        /// First byte.
        destination: u64,
        /// First byte.
        source_address: u64,
        /// Length.
        bytes: u64,
    },
}

/// Device memory. All methods may be called from several threads.
pub struct GlobalMemory {}

impl GlobalMemory {
    /// Memory of `capacity` bytes with nothing in it.
    pub fn new(capacity: u64) -> Self {
        todo!("{capacity}")
    }

    /// Capacity in bytes.
    pub fn capacity(&self) -> u64 {
        todo!()
    }

    /// Bytes allocated.
    pub fn used(&self) -> u64 {
        todo!()
    }

    /// The address, a multiple of 256, of `bytes` fresh bytes that nobody has written. No address is ever given twice, and at least
    /// as many bytes as the allocation has (and a mebibyte) after its end belong to nobody.
    pub fn allocate(&self, bytes: u64) -> Result<u64, MemoryError> {
        todo!("{bytes}")
    }

    /// [`GlobalMemory::allocate`] for a module's variable: reports call it by its name.
    pub fn allocate_named(&self, bytes: u64, name: &str) -> Result<u64, MemoryError> {
        todo!("{bytes} {name}")
    }

    /// Frees what starts at `address`.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        todo!("{address}")
    }

    /// What is alive, by sequence: at a context's end, the leaks.
    pub fn allocations(&self) -> Vec<AllocationInfo> {
        todo!()
    }

    /// The allocation that `address` lies in.
    pub fn find(&self, address: u64) -> Option<AllocationInfo> {
        todo!("{address}")
    }

    /// Host to device.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        todo!("{address} {from:?}")
    }

    /// Device to host. On [`MemoryError::Uninitialised`] `into` is filled all the same (unwritten bytes as 0xCD), so that a driver
    /// may treat it as a warning; hardware gives whatever lies there.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        todo!("{address} {into:?}")
    }

    /// Writes `element` (1, 2 or 4 bytes, little-endian) `count` times.
    pub fn fill(&self, address: u64, element: &[u8], count: u64) -> Result<(), MemoryError> {
        todo!("{address} {element:?} {count}")
    }

    /// Device to device. Unwritten bytes stay unwritten at the destination.
    pub fn copy(&self, destination: u64, source: u64, bytes: u64) -> Result<(), MemoryError> {
        todo!("{destination} {source} {bytes}")
    }

    /// The memory as a launch of `ctas` CTAs sees it: the allocations of this moment. Launches must not overlap in time for races
    /// to be found; if they do, nothing false is reported.
    pub fn launch(&self, ctas: u32) -> GlobalLaunch {
        todo!("{ctas}")
    }
}
