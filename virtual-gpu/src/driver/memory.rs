//! Memory: allocations, page-locked host memory, copies and fills. "Async" work is done at once, or recorded by a capture.

use super::graphs::{Operation, submit};
use super::{Code, Driver, Failure, Result, call, code, give};
use std::alloc::Layout;
use std::ffi::{c_uchar, c_uint, c_void};

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    // SAFETY: the caller's promise.
    call("cuMemAlloc", |driver| unsafe { allocate(driver, address, bytes) })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, _: *mut c_void) -> Code {
    // SAFETY: the caller's promise.
    call("cuMemAllocAsync", |driver| unsafe { allocate(driver, address, bytes) })
}

/// # Safety
/// `address` is null or valid for a write.
unsafe fn allocate(driver: &mut Driver, address: *mut u64, bytes: usize) -> Result {
    not_capturing(driver, "an allocation")?;
    let given = driver.memory.allocate(bytes as u64)?;
    // SAFETY: the caller's promise.
    unsafe { give(address, given) }
}

fn not_capturing(driver: &Driver, what: &str) -> Result {
    match driver.streams.values().any(Option::is_some) {
        true => Err(Failure::new(code::STREAM_CAPTURE_UNSUPPORTED, format!("{what} while a stream is captured"))),
        false => Ok(()),
    }
}

/// Frees an allocation; 0 is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    call("cuMemFree", |driver| free(driver, address))
}

/// Frees an allocation; 0 is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, _: *mut c_void) -> Code {
    call("cuMemFreeAsync", |driver| free(driver, address))
}

fn free(driver: &mut Driver, address: u64) -> Result {
    if address == 0 {
        return Ok(());
    }
    not_capturing(driver, "a free")?;
    Ok(driver.memory.free(address)?)
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    call("cuMemGetInfo", |driver| {
        let (capacity, used) = (driver.memory.capacity(), driver.memory.used());
        // SAFETY: the caller's promise.
        unsafe { give(free, (capacity - used) as usize).and_then(|()| give(total, capacity as usize)) }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(place: *mut *mut c_void, bytes: usize, _: c_uint) -> Code {
    call("cuMemHostAlloc", |driver| {
        let layout = Layout::from_size_align(bytes.max(1), 4096)
            .map_err(|_| Failure::new(code::OUT_OF_MEMORY, format!("no host memory of {bytes} bytes")))?;
        // SAFETY: the layout has a size.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(Failure::new(code::OUT_OF_MEMORY, format!("no host memory of {bytes} bytes")));
        }
        driver.pinned.insert(pointer as usize, layout);
        // SAFETY: the caller's promise.
        unsafe { give(place, pointer.cast()) }
    })
}

/// Frees page-locked host memory.
///
/// # Safety
/// Nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> Code {
    call("cuMemFreeHost", |driver| {
        let layout = driver.pinned.remove(&(pointer as usize));
        let layout = layout.ok_or_else(|| Failure::new(code::INVALID_VALUE, "no page-locked memory begins there"))?;
        // SAFETY: allocated by `cuMemHostAlloc` with this layout, and freed once.
        unsafe { std::alloc::dealloc(pointer.cast(), layout) };
        Ok(())
    })
}

macro_rules! copies {
    ($($(#[$doc:meta])* $now:ident, $later:ident, ($($name:ident: $type:ty),*) => $operation:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// Host memory is valid for the bytes, until the work is done.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $now($($name: $type),*) -> Code {
            call(stringify!($now), |driver| submit(driver, std::ptr::null_mut(), $operation))
        }

        $(#[$doc])*
        ///
        /// # Safety
        /// Host memory is valid for the bytes, until the work is done.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $later($($name: $type,)* stream: *mut c_void) -> Code {
            call(stringify!($later), |driver| submit(driver, stream, $operation))
        }
    )*};
}

copies! {
    /// Host to device.
    cuMemcpyHtoD_v2, cuMemcpyHtoDAsync_v2, (to: u64, from: *const c_void, bytes: usize) =>
        Operation::Upload { to, from: from as usize, bytes };
    /// Device to host.
    cuMemcpyDtoH_v2, cuMemcpyDtoHAsync_v2, (to: *mut c_void, from: u64, bytes: usize) =>
        Operation::Download { to: to as usize, from, bytes };
    /// Device to device.
    cuMemcpyDtoD_v2, cuMemcpyDtoDAsync_v2, (to: u64, from: u64, bytes: usize) =>
        Operation::Copy { to, from, bytes };
    /// Fills bytes.
    cuMemsetD8_v2, cuMemsetD8Async, (to: u64, value: c_uchar, count: usize) =>
        Operation::Fill { to, element: vec![value], count };
    /// Fills words of two bytes.
    cuMemsetD16_v2, cuMemsetD16Async, (to: u64, value: u16, count: usize) =>
        Operation::Fill { to, element: value.to_le_bytes().to_vec(), count };
    /// Fills words of four bytes.
    cuMemsetD32_v2, cuMemsetD32Async, (to: u64, value: c_uint, count: usize) =>
        Operation::Fill { to, element: value.to_le_bytes().to_vec(), count };
}
