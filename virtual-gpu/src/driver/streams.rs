//! Streams and events. Work is done when it is asked for, so a stream is always done with it and waiting is never needed.

use super::graphs::{any_flags, no_stream};
use super::{Code, Failure, Result, call, code, give};
use crate::driver::Driver;
use std::ffi::{c_int, c_uint, c_void};
use std::time::Instant;

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, flags: c_uint) -> Code {
    any_flags(flags);
    call("cuStreamCreate", |driver| {
        let handle = driver.handle();
        driver.streams.insert(handle, None);
        // SAFETY: the caller's promise.
        unsafe { give(stream, handle as *mut c_void) }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut *mut c_void, flags: c_uint, _: c_int) -> Code {
    // SAFETY: the caller's promise.
    unsafe { cuStreamCreate(stream, flags) }
}

fn known(driver: &Driver, stream: *mut c_void) -> Result {
    let stream = stream as usize;
    if stream <= 2 || driver.streams.contains_key(&stream) { Ok(()) } else { Err(no_stream(stream)) }
}

/// Ends a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> Code {
    call("cuStreamDestroy", |driver| match driver.streams.remove(&(stream as usize)) {
        Some(_) => Ok(()),
        None => Err(no_stream(stream as usize)),
    })
}

/// Returns the fault of an earlier launch, if there was one.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> Code {
    call("cuStreamSynchronize", |driver| {
        known(driver, stream)?;
        match driver.streams.get(&(stream as usize)) {
            Some(Some(_)) => {
                Err(Failure::new(code::STREAM_CAPTURE_UNSUPPORTED, "a wait for a stream that is captured"))
            }
            _ => Ok(()),
        }
    })
}

/// Always done.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: *mut c_void) -> Code {
    call("cuStreamQuery", |driver| known(driver, stream))
}

/// Nothing to wait for; both must exist.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _: c_uint) -> Code {
    call("cuStreamWaitEvent", |driver| known(driver, stream).and_then(|()| recorded(driver, event).map(drop)))
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, flags: c_uint) -> Code {
    any_flags(flags);
    call("cuEventCreate", |driver| {
        let handle = driver.handle();
        driver.events.insert(handle, None);
        // SAFETY: the caller's promise.
        unsafe { give(event, handle as *mut c_void) }
    })
}

fn recorded(driver: &Driver, event: *mut c_void) -> Result<Option<Instant>> {
    let found = driver.events.get(&(event as usize)).copied();
    found.ok_or_else(|| Failure::new(code::INVALID_HANDLE, format!("no event has the handle {event:p}")))
}

/// Ends an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> Code {
    call("cuEventDestroy", |driver| {
        recorded(driver, event)?;
        driver.events.remove(&(event as usize));
        Ok(())
    })
}

/// Notes the time.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> Code {
    call("cuEventRecord", |driver| {
        known(driver, stream)?;
        recorded(driver, event)?;
        driver.events.insert(event as usize, Some(Instant::now()));
        Ok(())
    })
}

/// Always done.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: *mut c_void) -> Code {
    call("cuEventSynchronize", |driver| recorded(driver, event).map(drop))
}

/// Always done.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: *mut c_void) -> Code {
    call("cuEventQuery", |driver| recorded(driver, event).map(drop))
}

/// The interpreter's time between two events, which says nothing about a GPU's.
///
/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) -> Code {
    call("cuEventElapsedTime", |driver| {
        let times = recorded(driver, start)?.zip(recorded(driver, end)?);
        let (start, end) =
            times.ok_or_else(|| Failure::new(code::INVALID_HANDLE, "an event that was never recorded"))?;
        let elapsed = end.saturating_duration_since(start).as_secs_f32() * 1e3;
        // SAFETY: the caller's promise.
        unsafe { give(milliseconds, elapsed) }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) -> Code {
    // SAFETY: the caller's promise.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}
