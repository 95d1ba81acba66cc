//! The CUDA device: a GPU, its stream and memory, and the kernels that were loaded.
//!
//! Operations implement their traits for [`Cuda`] in `ops/*/cuda.rs`; here is what all of them share. A kernel is asked for by source
//! file, entry point and the constants that it is specialised by, and is compiled and loaded at its first use (or ahead of it, in
//! parallel: [`Cuda::prepare`]).

use super::buffer::{Buf, Element, Form, Words, stride};
use super::compile::{Compiler, Program};
use super::error::{Error, or_raise, raise};
use super::launch::{Arg, Kernel, Module};
use super::memory::{Counts, Pool, Queue};
use super::probe;
use super::weight::{Tensor, Weight};
use crate::ops::{self, Backend};
use crate::weights::TensorView;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, result};
use half::bf16;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The oldest GPU that the kernels run on.
const OLDEST: (i32, i32) = (8, 0);
/// Threads of a block in the kernels of `buffers.cu`.
const THREADS: u32 = 256;
/// Elements that a thread of them moves.
const EACH: usize = 4;

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which of the GPUs that the driver shows.
    pub ordinal: usize,
    /// Whether dropped buffers are lent again; without, every buffer is an allocation of its own and of exactly its size.
    pub recycles: bool,
    /// Folder of compiled kernels; `None` keeps none.
    pub cache: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { ordinal: 0, recycles: true, cache: crate::machine::cache_folder().map(|folder| folder.join("ptx")) }
    }
}

/// What a kernel may have of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Compute capability.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Most dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

/// The CUDA back end.
pub struct Cuda {
    // Dropped in this order: kernels, then memory, then the context.
    kernels: Mutex<HashMap<(Program, &'static str), Arc<Kernel>>>,
    modules: Mutex<HashMap<Program, Arc<Module>>>,
    weights: Mutex<HashMap<(usize, usize), Weak<Tensor>>>,
    pool: Arc<Pool>,
    queue: Arc<Queue>,
    compiler: Compiler,
    name: String,
    architecture: Architecture,
}

impl Cuda {
    /// The first GPU.
    ///
    /// # Errors
    /// [`Error::Missing`] with everything that is not here; [`Error::Architecture`] for a GPU that is too old.
    pub fn open() -> Result<Self, Error> {
        Self::with(Options::default())
    }

    /// A GPU, opened as `options` say.
    ///
    /// # Errors
    /// As [`Cuda::open`]; [`Error::Driver`] for an ordinal beyond the last GPU.
    pub fn with(options: Options) -> Result<Self, Error> {
        let toolchain = probe::everything()?;
        let told = |code| Error::driver(format!("opening GPU {}", options.ordinal), code);
        let context = CudaContext::new(options.ordinal).map_err(told)?;
        let name = context.name().map_err(told)?;
        let (major, minor) = context.compute_capability().map_err(told)?;
        if (major, minor) < OLDEST {
            return Err(Error::Architecture { device: name, major, minor });
        }
        let attribute = |which| context.attribute(which).map(|value| value.max(0) as u32).map_err(told);
        let architecture = Architecture {
            capability: (major, minor),
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        // SAFETY: nothing was allocated yet. Events between streams are not needed where there is one.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(told)?;
        let queue = Arc::new(Queue { context, stream });
        Ok(Self {
            kernels: Mutex::default(),
            modules: Mutex::default(),
            weights: Mutex::default(),
            pool: Pool::new(Arc::clone(&queue), options.recycles),
            queue,
            compiler: Compiler::new(toolchain, options.cache),
            name,
            architecture,
        })
    }

    /// What a kernel may have of this GPU.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The driver's name for this GPU.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much memory is held.
    pub fn memory(&self) -> Counts {
        self.pool.counts()
    }

    /// Compiles and loads programs ahead of their first use, in parallel.
    ///
    /// # Errors
    /// As [`Compiler::ptx`]; [`Error::Driver`] for PTX that the driver refuses.
    pub fn prepare(&self, programs: &[Program]) -> Result<(), Error> {
        programs.par_iter().try_for_each(|program| self.module(program).map(drop))
    }

    /// A kernel of `kernels/FILE`, specialised by constants.
    ///
    /// Unwinds with [`Error::Compile`] or [`Error::NoEntry`] (see [`caught`](super::caught)).
    pub fn kernel(&self, file: &'static str, entry: &'static str, constants: &[(&'static str, i64)]) -> Arc<Kernel> {
        let key = (Program::new(file, constants), entry);
        if let Some(kernel) = lock(&self.kernels).get(&key) {
            return Arc::clone(kernel);
        }
        let found = self.module(&key.0).and_then(|module| Kernel::find(&module, entry));
        let kernel = Arc::new(or_raise(found));
        lock(&self.kernels).insert(key, Arc::clone(&kernel));
        kernel
    }

    fn module(&self, program: &Program) -> Result<Arc<Module>, Error> {
        if let Some(module) = lock(&self.modules).get(program) {
            return Ok(Arc::clone(module));
        }
        let ptx = self.compiler.ptx(program)?;
        let module = Module::load(&self.queue, program.file, ptx)?;
        Ok(Arc::clone(lock(&self.modules).entry(program.clone()).or_insert(module)))
    }

    /// Queues a kernel on `grid` blocks of `block` threads with `shared` bytes of dynamic shared memory. Nothing is queued where the
    /// grid is empty. Arguments are held to the parameters that the kernel declares.
    ///
    /// Unwinds with [`Error::Arguments`] or [`Error::Driver`].
    pub fn launch(&self, kernel: &Kernel, grid: [u32; 3], block: [u32; 3], shared: u32, args: &[Arg]) {
        or_raise(kernel.launch(&self.queue, grid, block, shared, args));
    }

    /// Waits for everything that was queued.
    ///
    /// Unwinds with [`Error::Driver`] for what failed on the GPU.
    pub fn finish(&self) {
        or_raise(self.queue.finish("running kernels"));
    }

    /// A buffer with stale contents: the kernel that gets it writes all of it, padding included.
    pub fn buffer(&self, rows: usize, cols: usize, element: Element) -> Buf {
        Buf::stale(&self.pool, rows, cols, element)
    }

    /// Words from the host.
    pub fn words(&self, values: &[u32]) -> Words {
        let words = Words::stale(&self.pool, values.len());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        or_raise(self.write(words.address(), &bytes));
        words
    }

    /// The buffer in bf16: itself, or a rounded copy.
    pub fn in_bf16<'a>(&self, buf: &'a Buf) -> Form<'a> {
        self.form(buf, Element::Bf16)
    }

    /// The buffer in f32: itself, or a widened copy.
    pub fn in_f32<'a>(&self, buf: &'a Buf) -> Form<'a> {
        self.form(buf, Element::F32)
    }

    fn form<'a>(&self, buf: &'a Buf, element: Element) -> Form<'a> {
        if buf.element() == element {
            return Form::Own(buf);
        }
        let made = self.buffer(buf.rows(), buf.cols(), element);
        let entry = if element == Element::Bf16 { "to_bf16" } else { "to_f32" };
        self.each(entry, buf.elements(), &[(&made).into(), buf.into()]);
        Form::Made(made)
    }

    /// bf16 copy, rows padded, of a row-major matrix `[rows, cols]` that begins at `offset` of a flat f32 parameter vector; made once, until
    /// the vector changes.
    pub fn factor(&self, params: &Buf, offset: usize, rows: usize, cols: usize) -> Arc<Buf> {
        params.copy_of(offset, rows, cols, || {
            let made = self.buffer(rows, cols, Element::Bf16);
            let params = self.in_f32(params);
            let numbers = [offset, rows, cols, made.stride()].map(|number| Arg::from(number as u32));
            let args = [vec![(&made).into(), (&*params).into()], numbers.to_vec()].concat();
            self.each("factor", made.elements(), &args);
            made
        })
    }

    /// Runs an elementwise kernel of `buffers.cu` over `elements`, a multiple of [`EACH`]; their number is its last parameter.
    fn each(&self, entry: &'static str, elements: usize, args: &[Arg]) {
        let threads = elements / EACH;
        let kernel = self.kernel("buffers.cu", entry, &[]);
        let args = [args, &[Arg::from(threads as u32)]].concat();
        self.launch(&kernel, [(threads as u32).div_ceil(THREADS), 1, 1], [THREADS, 1, 1], 0, &args);
    }

    /// Copies bytes to the device, in stream order; the host's are read before this returns.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.queue.bind()?;
        // SAFETY: callers pass the address of a block of at least as many bytes; memory that is not pinned is staged by the driver.
        unsafe { result::memcpy_htod_async(address, bytes, self.queue.stream.cu_stream()) }
            .map_err(|code| Error::driver("copying to the GPU", code))
    }

    /// Copies bytes from the device, after everything that was queued.
    fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let mut host = vec![0; bytes];
        if bytes > 0 {
            self.queue.bind()?;
            // SAFETY: callers pass the address of a block of at least as many bytes; the host's buffer lives past the wait.
            unsafe { result::memcpy_dtoh_async(&mut host, address, self.queue.stream.cu_stream()) }
                .map_err(|code| Error::driver("copying from the GPU", code))?;
        }
        self.queue.finish("running kernels")?;
        Ok(host)
    }

    /// All elements of a buffer as stored, padding included, widened to f32.
    pub fn padded(&self, buf: &Buf) -> Vec<f32> {
        let bytes = or_raise(self.read(buf.address(), buf.bytes()));
        match buf.element() {
            Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Element::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_ne_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Cuda {
    type Buf = Buf;
    type Weight = Weight;

    fn weight(&self, view: &TensorView) -> Result<Weight, ops::Error> {
        let key = (view.bytes().as_ptr() as usize, view.bytes().len());
        // The view that a live tensor holds keeps its map, so an address stands for one tensor.
        if let Some(tensor) = lock(&self.weights).get(&key).and_then(Weak::upgrade) {
            return Ok(Weight::shared(tensor));
        }
        let weight = Weight::upload(self, view)?;
        let mut weights = lock(&self.weights);
        weights.retain(|_, tensor| tensor.strong_count() > 0);
        weights.insert(key, Arc::downgrade(weight.tensor()));
        Ok(weight)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Buf {
        let buf = self.buffer(rows, cols, Element::F32);
        if buf.bytes() > 0 {
            or_raise(self.queue.bind());
            // SAFETY: the buffer has so many bytes.
            let set = unsafe { result::memset_d8_async(buf.address(), 0, buf.bytes(), self.queue.stream.cu_stream()) };
            or_raise(set.map_err(|code| Error::driver("clearing memory", code)));
        }
        buf
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Buf {
        assert_eq!(values.len(), rows * cols, "an upload of [{rows}, {cols}]");
        let buf = self.buffer(rows, cols, Element::F32);
        let mut bytes = Vec::with_capacity(buf.bytes());
        for row in values.chunks_exact(cols.max(1)) {
            let end = bytes.len() + stride(cols) * 4;
            bytes.extend(row.iter().flat_map(|value| value.to_ne_bytes()));
            bytes.resize(end, 0);
        }
        or_raise(self.write(buf.address(), &bytes));
        buf
    }

    fn download(&self, buf: &Buf) -> Vec<f64> {
        let padded = self.padded(buf);
        let rows = padded.chunks_exact(buf.stride().max(1));
        rows.flat_map(|row| row[..buf.cols()].iter().map(|&value| f64::from(value))).collect()
    }

    fn shape(&self, buf: &Buf) -> (usize, usize) {
        (buf.rows(), buf.cols())
    }

    fn duplicate(&self, buf: &Buf) -> Buf {
        let copy = self.buffer(buf.rows(), buf.cols(), buf.element());
        if buf.bytes() > 0 {
            or_raise(self.queue.bind());
            // SAFETY: both buffers have so many bytes.
            let copied = unsafe {
                result::memcpy_dtod_async(copy.address(), buf.address(), buf.bytes(), self.queue.stream.cu_stream())
            };
            or_raise(copied.map_err(|code| Error::driver("copying on the GPU", code)));
        }
        copy
    }

    fn add_assign(&self, target: &mut Buf, source: &Buf) {
        assert_eq!(self.shape(target), self.shape(source), "shapes of a sum");
        target.forget_copies();
        let entry = match (target.element(), source.element()) {
            (Element::F32, Element::F32) => "add_f32_f32",
            (Element::F32, Element::Bf16) => "add_f32_bf16",
            (Element::Bf16, Element::F32) => "add_bf16_f32",
            (Element::Bf16, Element::Bf16) => "add_bf16_bf16",
        };
        self.each(entry, target.elements(), &[(&*target).into(), source.into()]);
    }

    fn gather_rows(&self, source: &Buf, rows: &[u32]) -> Buf {
        let out = self.buffer(rows.len(), source.cols(), source.element());
        let entry = if source.element() == Element::F32 { "gather_f32" } else { "gather_bf16" };
        let words = self.row_numbers(source, rows);
        let stride = Arg::from(out.stride() as u32);
        self.each(entry, out.elements(), &[(&out).into(), source.into(), (&words).into(), stride]);
        out
    }

    fn scatter_add_rows(&self, target: &mut Buf, source: &Buf, rows: &[u32]) {
        assert_eq!((rows.len(), target.cols()), self.shape(source), "rows to add");
        target.forget_copies();
        let entry = match (target.element(), source.element()) {
            (Element::F32, Element::F32) => "scatter_f32_f32",
            (Element::F32, Element::Bf16) => "scatter_f32_bf16",
            (Element::Bf16, Element::F32) => "scatter_bf16_f32",
            (Element::Bf16, Element::Bf16) => "scatter_bf16_bf16",
        };
        let words = self.row_numbers(target, rows);
        let stride = Arg::from(source.stride() as u32);
        self.each(entry, source.elements(), &[(&*target).into(), source.into(), (&words).into(), stride]);
    }

    fn describe(&self) -> String {
        format!("cuda bf16 {}", self.name)
    }

    /// Sums run in the same order on every GPU of an architecture; between architectures the tensor cores' own order may differ.
    fn unit(&self) -> String {
        let (major, minor) = self.architecture.capability;
        format!("cuda bf16 sm_{major}{minor}")
    }
}

impl Cuda {
    /// Row numbers on the device, held to the buffer's extent as a slice's index would be.
    fn row_numbers(&self, buf: &Buf, rows: &[u32]) -> Words {
        let end = rows.iter().max().map_or(0, |&row| row as usize + 1);
        assert!(end <= buf.rows(), "row {} of {}", end.saturating_sub(1), buf.rows());
        self.words(rows)
    }

    /// Unwinds with an error of this operation's own.
    pub fn fail(&self, error: Error) -> ! {
        raise(error)
    }
}
