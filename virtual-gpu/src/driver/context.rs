//! Initialisation, the device and its primary context, and names of errors.

use super::{Code, Failure, attempt, call, code, give, report};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// The primary context's handle.
const CONTEXT: usize = 0x10;
/// The version of the interface: that of CUDA 12.0.
const VERSION: c_int = 12_000;

/// Starts the driver. Flags must be 0.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Code {
    attempt("cuInit", |driver| {
        if flags != 0 {
            return Err(Failure::new(code::INVALID_VALUE, format!("flags must be 0, found {flags}")));
        }
        driver.initialised = true;
        Ok(())
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    // SAFETY: the caller's promise.
    attempt("cuDriverGetVersion", |_| unsafe { give(version, VERSION) })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    // SAFETY: the caller's promise.
    call("cuDeviceGetCount", |_| unsafe { give(count, 1) })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    // SAFETY: the caller's promise.
    call("cuDeviceGet", |_| one_device(ordinal).and_then(|()| unsafe { give(device, 0) }))
}

fn one_device(device: c_int) -> super::Result {
    if device == 0 {
        Ok(())
    } else {
        Err(Failure::new(code::INVALID_DEVICE, format!("there is one device, 0; found {device}")))
    }
}

/// # Safety
/// `name` is valid for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> Code {
    call("cuDeviceGetName", |driver| {
        one_device(device)?;
        let room = usize::try_from(length).unwrap_or(0);
        if name.is_null() || room == 0 {
            return Err(Failure::new(code::INVALID_VALUE, "no room for the name"));
        }
        let text = driver.model.name.as_bytes();
        let count = text.len().min(room - 1);
        // SAFETY: `name` holds `length` bytes, of which count + 1 are written.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, count);
            name.add(count).write(0);
        }
        Ok(())
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) -> Code {
    // SAFETY: the caller's promise.
    call("cuDeviceGetUuid", |_| one_device(device).and_then(|()| unsafe { give(uuid, *b"virtual-gpu-0000") }))
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> Code {
    // SAFETY: the caller's promise.
    unsafe { cuDeviceGetUuid(uuid, device) }
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> Code {
    call("cuDeviceTotalMem", |driver| {
        one_device(device)?;
        // SAFETY: the caller's promise.
        unsafe { give(bytes, driver.model.memory as usize) }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> Code {
    call("cuDeviceGetAttribute", |driver| {
        one_device(device)?;
        let found = driver.model.attribute(attribute);
        let found = found.ok_or_else(|| Failure::new(code::INVALID_VALUE, format!("unknown attribute {attribute}")))?;
        // SAFETY: the caller's promise.
        unsafe { give(value, found) }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> Code {
    call("cuDevicePrimaryCtxRetain", |driver| {
        one_device(device)?;
        driver.retained += 1;
        // SAFETY: the caller's promise.
        unsafe { give(context, CONTEXT as *mut c_void) }
    })
}

/// Ends the context with the last release, and reports what was never freed.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    attempt("cuDevicePrimaryCtxRelease", |driver| {
        one_device(device)?;
        driver.retained = driver.retained.saturating_sub(1);
        if driver.retained == 0 {
            report::end(driver);
        }
        Ok(())
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> Code {
    attempt("cuCtxGetCurrent", |driver| {
        let current = if driver.retained > 0 { CONTEXT } else { 0 };
        // SAFETY: the caller's promise.
        unsafe { give(context, current as *mut c_void) }
    })
}

/// Makes the one context current; any other is refused.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Code {
    attempt("cuCtxSetCurrent", |_| match context as usize {
        0 | CONTEXT => Ok(()),
        other => Err(Failure::new(code::INVALID_CONTEXT, format!("no context has the handle {other:#x}"))),
    })
}

/// Returns the fault of an earlier launch, if there was one.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    call("cuCtxSynchronize", |_| Ok(()))
}

/// Accepts any flags: nothing here waits.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(_: c_uint) -> Code {
    call("cuCtxSetFlags", |_| Ok(()))
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> Code {
    // SAFETY: the caller's promise.
    call("cuCtxGetStreamPriorityRange", |_| unsafe { give(least, 0).and_then(|()| give(greatest, 0)) })
}

/// Tables of private functions: none. Compilers that look for one go on without it.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetExportTable(_: *mut *const c_void, _: *const c_void) -> Code {
    code::NOT_FOUND
}

/// Name and meaning of a code.
fn described(code: Code) -> (&'static CStr, &'static CStr) {
    match code {
        0 => (c"CUDA_SUCCESS", c"no error"),
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        3 => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        101 => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        201 => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        209 => (c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for execution on the device"),
        218 => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
        400 => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        500 => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        600 => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        700 => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
        701 => (c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"too many resources requested for launch"),
        702 => (c"CUDA_ERROR_LAUNCH_TIMEOUT", c"the launch timed out and was terminated"),
        715 => (c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"an illegal instruction was encountered"),
        716 => (c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address"),
        719 => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        801 => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        900 => (c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"operation not permitted when stream is capturing"),
        901 => (c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", c"operation failed due to a previous error during capture"),
        _ => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
    }
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: Code, text: *mut *const c_char) -> Code {
    // SAFETY: the caller's promise.
    attempt("cuGetErrorName", |_| unsafe { give(text, described(error).0.as_ptr()) })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: Code, text: *mut *const c_char) -> Code {
    // SAFETY: the caller's promise.
    attempt("cuGetErrorString", |_| unsafe { give(text, described(error).1.as_ptr()) })
}
