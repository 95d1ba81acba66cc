//! Modules of PTX, their kernels, and launches.

use super::graphs::{Operation, submit};
use super::{Code, Driver, Failure, Result, attempt, call, code, give, quiet};
use crate::device::{SHARED_DEFAULT, THREADS_PER_BLOCK};
use crate::exec::{self, Launch};
use crate::ptx::{Kernel, Module};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

/// A loaded module.
pub(crate) struct Loaded {
    pub module: Arc<Module>,
    /// Addresses of its variables, in the module's order.
    pub variables: Arc<Vec<u64>>,
}

/// A kernel of a loaded module.
pub(crate) struct Function {
    owner: usize,
    name: String,
    /// Bytes of dynamic shared memory that a launch may ask for.
    most_dynamic: i32,
}

/// A launch: everything that it needs, so that a recording may outlive the call.
#[derive(Clone)]
pub(crate) struct Call {
    module: Arc<Module>,
    variables: Arc<Vec<u64>>,
    name: String,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    parameters: Vec<u8>,
}

impl Function {
    fn kernel<'a>(&self, module: &'a Module) -> Result<&'a Kernel> {
        module.kernel(&self.name).ok_or_else(|| Failure::new(code::INVALID_HANDLE, "the kernel's module was unloaded"))
    }
}

/// Loads a module from PTX text.
///
/// # Safety
/// `image` is a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> Code {
    call("cuModuleLoadData", |driver| {
        if image.is_null() {
            return Err(Failure::new(code::INVALID_VALUE, "no image"));
        }
        // SAFETY: not null; the caller's promise. Images of machine code begin with four bytes that are not zero.
        let head = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), 4) };
        if head == b"\x7fELF" || head == [0x50, 0xed, 0x55, 0xba] {
            return Err(Failure::new(code::NO_BINARY_FOR_GPU, "machine code; this device runs PTX alone"));
        }
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(image.cast()) }.to_str();
        let text = text.map_err(|_| Failure::new(code::INVALID_PTX, "the image is no text"))?;
        let parsed = Module::parse(text).map_err(|error| Failure::new(code::INVALID_PTX, error.to_string()))?;
        let mut variables = Vec::new();
        for variable in &parsed.variables {
            let address = driver.memory.allocate_named((variable.bytes as u64).max(1), &variable.name)?;
            driver.memory.write(address, &variable.initial)?;
            variables.push(address);
        }
        let handle = driver.handle();
        driver.modules.insert(handle, Loaded { module: Arc::new(parsed), variables: Arc::new(variables) });
        // SAFETY: the caller's promise.
        unsafe { give(module, handle as *mut c_void) }
    })
}

/// Loads a module; options are taken and mean nothing here.
///
/// # Safety
/// As [`cuModuleLoadData`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut c_void,
    image: *const c_void,
    _: c_uint,
    _: *mut c_int,
    _: *mut *mut c_void,
) -> Code {
    // SAFETY: the caller's promise.
    unsafe { cuModuleLoadData(module, image) }
}

/// Ends a module: its kernels and variables are gone.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: *mut c_void) -> Code {
    attempt("cuModuleUnload", |driver| {
        let loaded = driver.modules.remove(&(module as usize)).ok_or_else(|| no_module(module))?;
        driver.functions.retain(|_, function| function.owner != module as usize);
        loaded.variables.iter().try_for_each(|&address| Ok(driver.memory.free(address)?))
    })
}

fn no_module(module: *mut c_void) -> Failure {
    Failure::new(code::INVALID_HANDLE, format!("no module has the handle {module:p}"))
}

/// The text that a name is.
///
/// # Safety
/// `name` is null or a text that ends with a zero.
unsafe fn text<'a>(name: *const c_char) -> Result<&'a str> {
    if name.is_null() {
        return Err(Failure::new(code::INVALID_VALUE, "a name that is null"));
    }
    // SAFETY: not null; the caller's promise.
    unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Failure::new(code::INVALID_VALUE, "a name that is no text"))
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> Code {
    call("cuModuleGetFunction", |driver| {
        // SAFETY: the caller's promise.
        let name = unsafe { text(name) }?;
        let loaded = driver.modules.get(&(module as usize)).ok_or_else(|| no_module(module))?;
        let kernel = loaded.module.kernel(name);
        let kernel =
            kernel.ok_or_else(|| Failure::new(code::NOT_FOUND, format!("the module has no kernel `{name}`")))?;
        let most_dynamic = SHARED_DEFAULT - (kernel.static_shared as i32).min(SHARED_DEFAULT);
        let handle = driver.handle();
        driver.functions.insert(handle, Function { owner: module as usize, name: name.to_owned(), most_dynamic });
        // SAFETY: the caller's promise.
        unsafe { give(function, handle as *mut c_void) }
    })
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: *mut c_void,
    name: *const c_char,
) -> Code {
    call("cuModuleGetGlobal", |driver| {
        // SAFETY: the caller's promise.
        let name = unsafe { text(name) }?;
        let loaded = driver.modules.get(&(module as usize)).ok_or_else(|| no_module(module))?;
        let mut variables = loaded.module.variables.iter().zip(loaded.variables.iter());
        let found = variables.find(|(variable, _)| variable.name == name);
        let (variable, &place) =
            found.ok_or_else(|| Failure::new(code::NOT_FOUND, format!("the module has no variable `{name}`")))?;
        // Either may be null: not asked for.
        // SAFETY: the caller's promise.
        unsafe {
            if !address.is_null() {
                give(address, place)?;
            }
            if bytes.is_null() { Ok(()) } else { give(bytes, variable.bytes) }
        }
    })
}

fn function(driver: &Driver, handle: *mut c_void) -> Result<(&Function, &Loaded)> {
    let found = driver.functions.get(&(handle as usize));
    let function =
        found.ok_or_else(|| Failure::new(code::INVALID_HANDLE, format!("no kernel has the handle {handle:p}")))?;
    let loaded = driver.modules.get(&function.owner);
    loaded.map(|loaded| (function, loaded)).ok_or_else(|| no_module(function.owner as *mut c_void))
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, handle: *mut c_void) -> Code {
    call("cuFuncGetAttribute", |driver| {
        let (function, loaded) = function(driver, handle)?;
        let kernel = function.kernel(&loaded.module)?;
        let (major, minor) = driver.model.capability;
        let found = match attribute {
            0 => kernel.max_threads.map_or(THREADS_PER_BLOCK, |most| most as c_int),
            1 => kernel.static_shared as c_int,
            2 => 0,
            3 => kernel.local_bytes as c_int,
            // What ptxas would give cannot be known: no kernel is short of registers here.
            4 => 0,
            5 => 80,
            6 => 10 * major + minor,
            7 | 9 => 0,
            8 => function.most_dynamic,
            other => return Err(Failure::new(code::INVALID_VALUE, format!("unknown attribute {other} of a kernel"))),
        };
        // SAFETY: the caller's promise.
        unsafe { give(value, found) }
    })
}

/// Sets the most dynamic shared memory that launches may ask for; other attributes are taken and mean nothing here.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(handle: *mut c_void, attribute: c_int, value: c_int) -> Code {
    call("cuFuncSetAttribute", |driver| {
        let (function, loaded) = function(driver, handle)?;
        if attribute != 8 {
            return Ok(());
        }
        let fixed = function.kernel(&loaded.module)?.static_shared as c_int;
        let most = driver.model.shared_opt_in - fixed;
        if value < 0 || value > most {
            return Err(Failure::new(
                code::INVALID_VALUE,
                format!("{value} bytes of dynamic shared memory: at most {most} beside the kernel's own {fixed}"),
            ));
        }
        if let Some(function) = driver.functions.get_mut(&(handle as usize)) {
            function.most_dynamic = value;
        }
        Ok(())
    })
}

/// Caches have no configuration here.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetCacheConfig(handle: *mut c_void, _: c_int) -> Code {
    call("cuFuncSetCacheConfig", |driver| function(driver, handle).map(drop))
}

/// # Safety
/// As the driver's interface asks of every pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    handle: *mut c_void,
    threads: c_int,
    dynamic: usize,
) -> Code {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", |driver| {
        let (function, loaded) = function(driver, handle)?;
        let fixed = function.kernel(&loaded.module)?.static_shared;
        let shared = c_int::try_from(fixed.saturating_add(dynamic)).unwrap_or(c_int::MAX);
        // SAFETY: the caller's promise.
        unsafe { give(blocks, driver.model.blocks_at_once(threads, shared)) }
    })
}

/// Launches a kernel.
///
/// # Safety
/// `parameters` points to as many addresses as the kernel has parameters, each of a value of that parameter's size.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn cuLaunchKernel(
    handle: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    stream: *mut c_void,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    call("cuLaunchKernel", |driver| {
        let (function, loaded) = function(driver, handle)?;
        let kernel = function.kernel(&loaded.module)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        check(driver, function, kernel, grid, block, dynamic_shared)?;
        if !extra.is_null() {
            return Err(Failure::new(code::NOT_SUPPORTED, "parameters through `extra` are not offered"));
        }
        let mut packed = vec![0_u8; kernel.parameter_bytes];
        for (index, parameter) in kernel.parameters.iter().enumerate() {
            let missing =
                || Failure::new(code::INVALID_VALUE, format!("parameter {index} of `{}` is null", kernel.name));
            if parameters.is_null() {
                return Err(missing());
            }
            // SAFETY: the caller's promise: there is an address for each parameter.
            let value = unsafe { *parameters.add(index) };
            if value.is_null() {
                return Err(missing());
            }
            let place = packed.get_mut(parameter.offset..parameter.offset + parameter.size).ok_or_else(missing)?;
            // SAFETY: the caller's promise: a value of the parameter's size lies there.
            unsafe { std::ptr::copy_nonoverlapping(value.cast::<u8>(), place.as_mut_ptr(), parameter.size) };
        }
        let call = Call {
            module: Arc::clone(&loaded.module),
            variables: Arc::clone(&loaded.variables),
            name: kernel.name.clone(),
            grid,
            block,
            dynamic_shared,
            parameters: packed,
        };
        submit(driver, stream, Operation::Launch(call))
    })
}

/// The device's limits.
fn check(
    driver: &Driver,
    function: &Function,
    kernel: &Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic: u32,
) -> Result {
    let invalid = |why: String| Err(Failure::new(code::INVALID_VALUE, format!("`{}`: {why}", kernel.name)));
    let threads: u64 = block.iter().map(|&extent| u64::from(extent)).product();
    if grid.contains(&0) || block.contains(&0) {
        return invalid(format!("a grid {grid:?} of blocks {block:?} has an extent of 0"));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > 65_535 || grid[2] > 65_535 {
        return invalid(format!("the grid {grid:?} is larger than 2147483647 × 65535 × 65535"));
    }
    let most = kernel.max_threads.map_or(THREADS_PER_BLOCK as u64, u64::from).min(THREADS_PER_BLOCK as u64);
    if threads > most || block[2] > 64 {
        return invalid(format!("a block {block:?} of {threads} threads: at most {most}, 64 in z"));
    }
    if i64::from(dynamic) > i64::from(function.most_dynamic) {
        return invalid(format!(
            "{dynamic} bytes of dynamic shared memory, {} are allowed (cuFuncSetAttribute raises it to at most {})",
            function.most_dynamic, driver.model.shared_opt_in
        ));
    }
    Ok(())
}

/// Interprets a launch; a finding becomes the context's fault.
pub(crate) fn launch(driver: &mut Driver, call: &Call) -> Result {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.trim().parse::<u64>().ok());
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = call.module.kernel(&call.name).ok_or_else(|| Failure::new(code::INVALID_HANDLE, "no such kernel"))?;
    let launch = Launch {
        module: &call.module,
        kernel,
        grid: call.grid,
        block: call.block,
        dynamic_shared: call.dynamic_shared,
        parameters: &call.parameters,
        globals: &call.variables,
        order_seed: driver.counts.seed.or_else(|| number("VIRTUAL_GPU_SEED")),
        threads: number("VIRTUAL_GPU_THREADS").map_or_else(cores, |threads| threads.max(1) as usize),
        instruction_limit: number("VIRTUAL_GPU_LIMIT"),
    };
    match exec::launch(&driver.memory, &launch) {
        Ok(counted) => {
            driver.counts.add(&call.name, &counted);
            Ok(())
        }
        Err(fault) => {
            let failure = Failure::new(fault.kind.code(), fault.to_string());
            if !quiet() {
                eprintln!("virtual GPU: {}", failure.why);
            }
            driver.last.clone_from(&failure.why);
            driver.fault = Some(failure.clone());
            Err(failure)
        }
    }
}
