//! Kernels that are ready to run, and their arguments.
//!
//! A launch is checked where it can be: the number and sizes of the arguments against the parameters that the PTX declares, an empty
//! grid (nothing is launched), shared memory beyond the default (asked of the driver once per kernel).

use super::error::Error;
use super::memory::Queue;
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Dynamic shared memory that needs no asking.
const DEFAULT_SHARED: u32 = 48 << 10;

/// PTX that the driver has taken.
pub(super) struct Module {
    handle: sys::CUmodule,
    queue: Arc<Queue>,
    ptx: String,
    file: &'static str,
}

// SAFETY: a module's handle may be used from any thread whose current context is its own, which `Queue::bind` sees to.
unsafe impl Send for Module {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Module {}

impl Module {
    /// Gives PTX to the driver.
    ///
    /// # Errors
    /// [`Error::Driver`] if it refuses.
    pub fn load(queue: &Arc<Queue>, file: &'static str, ptx: String) -> Result<Arc<Self>, Error> {
        queue.bind()?;
        let text = CString::new(ptx.as_str()).map_err(|_| Error::Compile {
            file: file.into(),
            options: String::new(),
            log: "the PTX has a zero byte".into(),
        })?;
        // SAFETY: the image is a text that ends with a zero byte, which the driver copies.
        let handle = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let handle = handle.map_err(|code| Error::driver(format!("loading kernels/{file}"), code))?;
        Ok(Arc::new(Self { handle, queue: Arc::clone(queue), ptx, file }))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.queue.bind().is_ok() {
            // SAFETY: kernels keep their module alive, so none of it is launched any more. A failure leaves it to the context's end.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

/// An entry point of a module.
pub struct Kernel {
    function: sys::CUfunction,
    module: Arc<Module>,
    name: String,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    /// Dynamic shared memory that the driver was asked for.
    shared: AtomicU32,
}

// SAFETY: as `Module`.
unsafe impl Send for Kernel {}
// SAFETY: as `Module`.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// The entry point of this name.
    ///
    /// # Errors
    /// [`Error::NoEntry`].
    pub(super) fn find(module: &Arc<Module>, name: &str) -> Result<Self, Error> {
        let absent = || Error::NoEntry { file: module.file.into(), entry: name.into() };
        let parameters = parameters(&module.ptx, name).ok_or_else(absent)?;
        module.queue.bind()?;
        let text = CString::new(name).map_err(|_| absent())?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(module.handle, text) }
            .map_err(|code| Error::driver(format!("finding {name} in kernels/{}", module.file), code))?;
        Ok(Self {
            function,
            module: Arc::clone(module),
            name: name.into(),
            parameters,
            shared: AtomicU32::new(DEFAULT_SHARED),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The PTX that it is in.
    pub fn ptx(&self) -> &str {
        &self.module.ptx
    }

    /// Queues it.
    ///
    /// # Errors
    /// [`Error::Arguments`] where they do not fit; [`Error::Driver`] where the driver refuses.
    pub(super) fn launch(
        &self,
        queue: &Queue,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[Arg],
    ) -> Result<(), Error> {
        if grid.contains(&0) {
            return Ok(());
        }
        let found: Vec<usize> = args.iter().map(Arg::size).collect();
        if found != self.parameters {
            let kernel = self.name.clone();
            return Err(Error::Arguments { kernel, expected: self.parameters.clone(), found });
        }
        queue.bind()?;
        let refused = |code| Error::driver(format!("launching {} on a grid of {grid:?}", self.name), code);
        if shared > self.shared.load(Ordering::Relaxed) {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded.
            unsafe { result::function::set_function_attribute(self.function, most, shared as i32) }.map_err(refused)?;
            self.shared.store(shared, Ordering::Relaxed);
        }
        let mut addresses: Vec<*mut c_void> = args.iter().map(Arg::place).collect();
        // SAFETY: number and sizes of the arguments are those that the PTX declares, and the driver copies them before it returns.
        // Addresses are those of blocks that outlive the launch in stream order; that a kernel keeps within them is what its tests
        // under a memory checker are for.
        let launched = unsafe {
            result::launch_kernel(
                self.function,
                grid.into(),
                block.into(),
                shared,
                queue.stream.cu_stream(),
                &mut addresses,
            )
        };
        launched.map_err(refused)
    }
}

/// One argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// Four bytes: `int`, `unsigned`, `float`.
    Four([u8; 4]),
    /// Eight bytes: a pointer.
    Eight([u8; 8]),
    /// A structure by value.
    Struct(Struct),
}

impl Arg {
    /// A device address.
    pub fn address(address: u64) -> Self {
        Self::Eight(address.to_ne_bytes())
    }

    /// A null pointer: something optional that is not given.
    pub fn null() -> Self {
        Self::address(0)
    }

    fn size(&self) -> usize {
        match self {
            Self::Four(_) => 4,
            Self::Eight(_) => 8,
            Self::Struct(of) => of.bytes.len(),
        }
    }

    fn place(&self) -> *mut c_void {
        match self {
            Self::Four(bytes) => bytes.as_ptr().cast_mut().cast(),
            Self::Eight(bytes) => bytes.as_ptr().cast_mut().cast(),
            Self::Struct(of) => of.bytes.as_ptr().cast_mut().cast(),
        }
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Four(value.to_ne_bytes())
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::Four(value.to_ne_bytes())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::Four(value.to_ne_bytes())
    }
}

/// A structure as C lays it out: every member at a multiple of its alignment, the whole a multiple of the largest.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Struct {
    bytes: Vec<u8>,
    alignment: usize,
}

impl Struct {
    /// Of these members: numbers, pointers and structures.
    pub fn new(members: &[Arg]) -> Self {
        let (mut bytes, mut alignment) = (Vec::<u8>::new(), 1);
        for member in members {
            let (member, own): (&[u8], usize) = match member {
                Arg::Four(bytes) => (bytes, 4),
                Arg::Eight(bytes) => (bytes, 8),
                Arg::Struct(of) => (&of.bytes, of.alignment),
            };
            bytes.resize(bytes.len().next_multiple_of(own), 0);
            bytes.extend_from_slice(member);
            alignment = alignment.max(own);
        }
        bytes.resize(bytes.len().next_multiple_of(alignment), 0);
        Self { bytes, alignment }
    }
}

impl From<Struct> for Arg {
    fn from(value: Struct) -> Self {
        Self::Struct(value)
    }
}

/// Bytes of each parameter that the PTX declares for an entry point.
fn parameters(ptx: &str, name: &str) -> Option<Vec<usize>> {
    let start = ptx.match_indices(".entry ").find_map(|(at, word)| {
        let rest = ptx[at + word.len()..].trim_start().strip_prefix(name)?;
        rest.trim_start().strip_prefix('(')
    });
    let Some(list) = start else {
        // An entry point without parameters may have no list.
        let bare = ptx
            .match_indices(".entry ")
            .any(|(at, word)| ptx[at + word.len()..].split_whitespace().next() == Some(name));
        return bare.then(Vec::new);
    };
    let list = &list[..list.find(')')?];
    list.split(',').map(str::trim).filter(|one| !one.is_empty()).map(parameter).collect()
}

/// Bytes of one declaration, e.g. `.param .u64 .ptr .align 1 x` or `.param .align 8 .b8 x[48]`.
fn parameter(declaration: &str) -> Option<usize> {
    let bits = declaration.split_whitespace().find_map(|word| {
        let digits = word.strip_prefix('.')?.trim_start_matches(['u', 's', 'b', 'f']);
        digits.parse::<usize>().ok().filter(|bits| [8, 16, 32, 64].contains(bits))
    })?;
    let count = match declaration.split_once('[') {
        Some((_, rest)) => rest.split(']').next()?.trim().parse().ok()?,
        None => 1,
    };
    Some(bits / 8 * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_ptx() {
        let ptx = ".version 8.0\n.visible .entry norm_add(\n\t.param .u64 .ptr .align 1 norm_add_param_0,\n\t.param .u32 norm_add_param_1\n)\n\
            .maxntid 128, 1, 1\n{\n.visible .entry norm(\n\t.param .align 8 .b8 norm_param_0[48],\n\t.param .f32 norm_param_1\n)\n{ }\n.visible .entry none()\n{}";
        assert_eq!(parameters(ptx, "norm"), Some(vec![48, 4]));
        assert_eq!(parameters(ptx, "norm_add"), Some(vec![8, 4]));
        assert_eq!(parameters(ptx, "none"), Some(vec![]));
        assert_eq!(parameters(ptx, "add"), None);
    }

    #[test]
    fn structures_are_laid_out_as_in_c() {
        let inner = Struct::new(&[Arg::address(1), 7_u32.into()]);
        let outer = Struct::new(&[3_u32.into(), inner.into(), 2.5_f32.into()]);
        let mut expected = Vec::new();
        expected.extend(3_u32.to_ne_bytes());
        expected.extend([0; 4]);
        expected.extend(1_u64.to_ne_bytes());
        expected.extend(7_u32.to_ne_bytes());
        expected.extend([0; 4]);
        expected.extend(2.5_f32.to_ne_bytes());
        expected.extend([0; 4]);
        assert_eq!(outer.bytes, expected);
    }
}
