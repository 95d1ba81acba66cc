//! Device memory: a pool of blocks that go to a free list of their size class when dropped, so that passes of like sizes allocate
//! nothing after the first.
//!
//! All work runs in the order of one stream, so a block may be lent again while the kernel that read it last is still running. Classes
//! are four per octave; where none fits, a free block of up to twice the size serves. When the device has no memory left, idle blocks
//! are given back to it before giving up.
//!
//! A pool that does not recycle gives every block exactly its size and back to the driver at once: then a tool that checks memory
//! (compute-sanitizer, the virtual GPU) sees each buffer's end, and that a fresh one was never written.

use super::error::{Error, or_raise};
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of the smallest class.
const SMALLEST: usize = 512;

/// Context and stream of a GPU.
pub(super) struct Queue {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
}

impl Queue {
    /// Makes the context current on this thread.
    pub fn bind(&self) -> Result<(), Error> {
        self.context.bind_to_thread().map_err(|code| Error::driver("using the GPU", code))
    }

    /// Waits for everything that was queued.
    pub fn finish(&self, action: &str) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.stream.cu_stream()) }.map_err(|code| Error::driver(action, code))
    }
}

/// Free lists.
pub(super) struct Pool {
    queue: Arc<Queue>,
    recycles: bool,
    store: Mutex<Store>,
}

#[derive(Default)]
struct Store {
    /// Addresses of idle blocks by size.
    free: BTreeMap<usize, Vec<sys::CUdeviceptr>>,
    counts: Counts,
}

/// How much memory a device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes in buffers.
    pub lent: usize,
    /// Bytes in free lists.
    pub idle: usize,
    /// Allocations by the driver since the start.
    pub allocations: usize,
}

/// Device memory on loan; dropping it gives it back.
pub(super) struct Block {
    address: sys::CUdeviceptr,
    /// Bytes; 0 for an empty block, which has no address.
    size: usize,
    home: Arc<Pool>,
}

impl Pool {
    pub fn new(queue: Arc<Queue>, recycles: bool) -> Arc<Self> {
        Arc::new(Self { queue, recycles, store: Mutex::default() })
    }

    /// A block of at least `bytes`, contents stale.
    pub fn block(self: &Arc<Self>, bytes: usize) -> Block {
        or_raise(self.try_block(bytes))
    }

    fn try_block(self: &Arc<Self>, bytes: usize) -> Result<Block, Error> {
        if bytes == 0 {
            return Ok(Block { address: 0, size: 0, home: Arc::clone(self) });
        }
        let mut store = self.lock();
        let size = if self.recycles { class(bytes) } else { bytes };
        let found = if self.recycles { store.take(size) } else { None };
        let (address, size) = match found {
            Some(found) => found,
            None => (self.allocate(&mut store, size)?, size),
        };
        store.counts.lent += size;
        Ok(Block { address, size, home: Arc::clone(self) })
    }

    fn allocate(&self, store: &mut Store, size: usize) -> Result<sys::CUdeviceptr, Error> {
        self.queue.bind()?;
        // SAFETY: the address is used only through blocks, which know their size.
        let ask = || unsafe { result::malloc_sync(size) };
        let out_of_memory = |code: &result::DriverError| code.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let address = match ask() {
            Err(code) if out_of_memory(&code) && store.counts.idle > 0 => {
                self.queue.finish("waiting for the GPU")?;
                store.release();
                ask()
            }
            result => result,
        };
        let address = address.map_err(|code| {
            if !out_of_memory(&code) {
                return Error::driver("allocating device memory", code);
            }
            let (free, total) = result::mem_get_info().unwrap_or_default();
            Error::Memory { asked: size, free, total }
        })?;
        store.counts.allocations += 1;
        Ok(address)
    }

    /// How much is held.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// The smallest idle block of a size from `size` to twice that.
    fn take(&mut self, size: usize) -> Option<(sys::CUdeviceptr, usize)> {
        let (&found, list) = self.free.range_mut(size..=2 * size).find(|(_, list)| !list.is_empty())?;
        let address = list.pop()?;
        self.counts.idle -= found;
        Some((address, found))
    }

    /// Gives idle blocks back to the driver.
    fn release(&mut self) {
        for address in std::mem::take(&mut self.free).into_values().flatten() {
            // SAFETY: the block is idle: no kernel that was queued uses it after those before it have ended, which freeing waits for.
            // A failure leaves the memory with the driver, which takes it back with the context.
            let _ = unsafe { result::free_sync(address) };
        }
        self.counts.idle = 0;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.queue.bind().is_ok() {
            self.store.get_mut().unwrap_or_else(PoisonError::into_inner).release();
        }
    }
}

impl Block {
    /// Address on the device; 0 for an empty block.
    pub fn address(&self) -> sys::CUdeviceptr {
        self.address
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.size == 0 {
            return;
        }
        let mut store = self.home.lock();
        store.counts.lent -= self.size;
        if self.home.recycles {
            store.counts.idle += self.size;
            store.free.entry(self.size).or_default().push(self.address);
        } else if self.home.queue.bind().is_ok() {
            // SAFETY: the block is dropped, and freeing waits for the kernels that use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// `bytes`, rounded up to a quarter of its octave.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST);
    let step = 1 << (bytes.ilog2() - 2);
    bytes.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_what_was_asked_and_a_quarter_more_at_most() {
        for bytes in [1, 511, 512, 513, 640, 641, 1 << 20, (1 << 20) + 1, 3_000_000] {
            let class = class(bytes);
            assert!(class >= bytes && class.is_multiple_of(128), "{bytes} in {class}");
            assert!(class <= (bytes * 5 / 4).max(SMALLEST), "{bytes} in {class}");
            assert_eq!(super::class(class), class);
        }
    }
}
