//! Work on streams, and graphs of it: recorded while a stream is captured, replayed in the order of the recording.

use super::kernels::{self, Call};
use super::{Code, Driver, Failure, Result, call, code, give};
use crate::memory::MemoryError;
use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

/// One piece of work. Host addresses are read and written when it is done, as on hardware.
#[derive(Clone)]
pub(crate) enum Operation {
    Upload { to: u64, from: usize, bytes: usize },
    Download { to: usize, from: u64, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
    Fill { to: u64, element: Vec<u8>, count: usize },
    Launch(Call),
}

/// A recording.
#[derive(Clone)]
pub(crate) struct Graph(pub Vec<Operation>);

/// Does the work, or has the stream's capture record it.
pub(crate) fn submit(driver: &mut Driver, stream: *mut c_void, operation: Operation) -> Result {
    let stream = stream as usize;
    // 0, 1 and 2 are the default streams.
    if stream > 2 {
        match driver.streams.get_mut(&stream) {
            None => return Err(no_stream(stream)),
            Some(Some(recorded)) => {
                recorded.push(operation);
                return Ok(());
            }
            Some(None) => {}
        }
    }
    run(driver, &operation)
}

pub(crate) fn no_stream(stream: usize) -> Failure {
    Failure::new(code::INVALID_HANDLE, format!("no stream has the handle {stream:#x}"))
}

fn run(driver: &mut Driver, operation: &Operation) -> Result {
    let host = |address: usize, bytes: usize| match address == 0 && bytes > 0 {
        true => Err(Failure::new(code::INVALID_VALUE, "a null pointer to host memory")),
        false => Ok(()),
    };
    match *operation {
        // Nothing to move: addresses need not be any.
        Operation::Upload { bytes: 0, .. }
        | Operation::Download { bytes: 0, .. }
        | Operation::Copy { bytes: 0, .. } => Ok(()),
        Operation::Fill { count: 0, .. } => Ok(()),
        Operation::Upload { to, from, bytes } => {
            host(from, bytes)?;
            // SAFETY: whoever asked for the copy has promised that host memory is valid for the bytes.
            let from = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
            Ok(driver.memory.write(to, from)?)
        }
        Operation::Download { to, from, bytes } => {
            host(to, bytes)?;
            // SAFETY: as above, and for writing.
            let to = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
            match driver.memory.read(from, to) {
                Err(error @ MemoryError::Uninitialised { .. }) => {
                    Err(Failure::new(code::ILLEGAL_ADDRESS, error.to_string()))
                }
                other => Ok(other?),
            }
        }
        Operation::Copy { to, from, bytes } => Ok(driver.memory.copy(to, from, bytes as u64)?),
        Operation::Fill { to, ref element, count } => Ok(driver.memory.fill(to, element, count as u64)?),
        Operation::Launch(ref call) => kernels::launch(driver, call),
    }
}

/// Starts recording what is asked of a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: *mut c_void, _: c_int) -> Code {
    call("cuStreamBeginCapture", |driver| match driver.streams.get_mut(&(stream as usize)) {
        None => Err(Failure::new(code::STREAM_CAPTURE_UNSUPPORTED, "only streams that were created can be captured")),
        Some(Some(_)) => Err(Failure::new(code::STREAM_CAPTURE_INVALIDATED, "the stream is being captured already")),
        Some(place) => {
            *place = Some(Vec::new());
            Ok(())
        }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: *mut c_void, status: *mut c_int) -> Code {
    call("cuStreamIsCapturing", |driver| {
        let captures = driver.streams.get(&(stream as usize)).is_some_and(Option::is_some);
        // SAFETY: the caller's promise.
        unsafe { give(status, c_int::from(captures)) }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: *mut c_void, graph: *mut *mut c_void) -> Code {
    call("cuStreamEndCapture", |driver| {
        let recorded = driver.streams.get_mut(&(stream as usize)).and_then(Option::take);
        let recorded = recorded
            .ok_or_else(|| Failure::new(code::STREAM_CAPTURE_INVALIDATED, "the stream is not being captured"))?;
        let handle = driver.handle();
        driver.graphs.insert(handle, Graph(recorded));
        // SAFETY: the caller's promise.
        unsafe { give(graph, handle as *mut c_void) }
    })
}

fn graph(driver: &Driver, handle: *mut c_void) -> Result<Graph> {
    let found = driver.graphs.get(&(handle as usize)).cloned();
    found.ok_or_else(|| Failure::new(code::INVALID_HANDLE, format!("no graph has the handle {handle:p}")))
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: *mut *mut c_void,
    recording: *mut c_void,
    _: c_ulonglong,
) -> Code {
    call("cuGraphInstantiate", |driver| {
        let copy = graph(driver, recording)?;
        let handle = driver.handle();
        driver.graphs.insert(handle, copy);
        // SAFETY: the caller's promise.
        unsafe { give(executable, handle as *mut c_void) }
    })
}

/// Nothing to do ahead of a replay.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphUpload(executable: *mut c_void, _: *mut c_void) -> Code {
    call("cuGraphUpload", |driver| graph(driver, executable).map(drop))
}

/// Replays a recording.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(executable: *mut c_void, stream: *mut c_void) -> Code {
    call("cuGraphLaunch", |driver| {
        graph(driver, executable)?.0.into_iter().try_for_each(|operation| submit(driver, stream, operation))
    })
}

/// Forgets a recording.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(handle: *mut c_void) -> Code {
    call("cuGraphDestroy", |driver| graph(driver, handle).map(|_| drop(driver.graphs.remove(&(handle as usize)))))
}

/// Forgets a recording.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(handle: *mut c_void) -> Code {
    cuGraphDestroy(handle)
}

/// Host functions on streams are not offered.
#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchHostFunc(_: *mut c_void, _: *mut c_void, _: *mut c_void) -> Code {
    call("cuLaunchHostFunc", |_| Err(Failure::new(code::NOT_SUPPORTED, "host functions on streams are not offered")))
}

/// Flags of a stream or event are accepted and mean nothing here.
pub(crate) const fn any_flags(_: c_uint) {}
