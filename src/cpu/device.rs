//! The CPU device: an instruction set, a thread pool, recycled buffers, and frozen weights as views into the map.
//!
//! Operations implement their traits for [`Cpu`] in `ops/*/cpu.rs`; here is what all of them share. Each enters the pool by
//! itself ([`Cpu::install`]); a caller that runs many operations installs once around them.

use super::buffers::{Block, Buffers};
use super::gemm::bf16::Multiplier;
use super::gemm::{Right, Segment, bf16};
use super::isa::Isa;
use super::rounding::{round_bf16, widen};
use super::threads;
use super::unit::Unit;
use crate::ops::{Backend, Error};
use crate::weights::{Dtype, TensorView};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements below which a loop is not worth splitting: 16 KiB of f32.
pub const GRAIN: usize = 4096;

/// The CPU back end.
pub struct Cpu {
    by: Multiplier,
    pool: rayon::ThreadPool,
    buffers: Buffers,
}

/// A matrix `[rows, cols]`, row-major, of recycled memory.
pub struct CpuBuf {
    rows: usize,
    cols: usize,
    data: Block,
}

/// A frozen tensor: the mapped view itself; vectors (norm weights) also widened to f32.
pub struct CpuWeight {
    view: TensorView,
    vector: Arc<[f32]>,
    /// Whether f32 values count as rounded to bf16.
    rounds: bool,
}

impl Cpu {
    /// A device of `threads` workers (`None`: the environment's number, else the cores there are), in f32.
    ///
    /// # Errors
    /// [`Error::Isa`] where the CPU lacks `isa`; [`Error::Unavailable`] for a number of threads that is none, and
    /// where the system refuses the threads.
    pub fn new(isa: Isa, threads: Option<usize>) -> Result<Self, Error> {
        Self::with_unit(Unit::F32, isa, threads)
    }

    /// A device whose products are computed by `unit`, and everything else by `isa`.
    ///
    /// # Errors
    /// As [`Cpu::new`]; [`Error::Isa`] also where the CPU lacks `unit`.
    pub fn with_unit(unit: Unit, isa: Isa, threads: Option<usize>) -> Result<Self, Error> {
        if !unit.is_available() {
            let names: Vec<&str> = Unit::available().into_iter().map(Unit::name).collect();
            return Err(Error::Isa { asked: unit.to_string(), available: names.join(", ") });
        }
        Self::start(Multiplier { unit, isa, emulated: false }, threads)
    }

    /// A device that emulates the instruction of `unit`, for tests on CPUs that lack it. Slow.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    #[doc(hidden)]
    pub fn emulating(unit: Unit, threads: Option<usize>) -> Result<Self, Error> {
        Self::start(Multiplier { unit, isa: Isa::best(), emulated: true }, threads)
    }

    fn start(by: Multiplier, threads: Option<usize>) -> Result<Self, Error> {
        if !by.isa.is_available() {
            let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            return Err(Error::Isa { asked: by.isa.to_string(), available: names.join(", ") });
        }
        let count = threads::thread_count(threads)?;
        let pool = threads::pool(count).map_err(|source| Error::Unavailable {
            message: format!("cannot start {count} threads: {source}"),
            hint: "ask for fewer with --threads".into(),
        })?;
        Ok(Self { by, pool, buffers: Buffers::default() })
    }

    /// The instruction set that serves.
    pub fn isa(&self) -> Isa {
        self.by.isa
    }

    /// Whether values are rounded to bf16 where they enter products.
    pub fn rounds(&self) -> bool {
        self.by.unit.rounds()
    }

    /// What multiplies.
    pub(crate) fn multiplier(&self) -> Multiplier {
        self.by
    }

    /// A product over the current pool, in this device's unit: see [`gemm`](super::gemm::gemm) for operands and panics.
    /// f32 operands are rounded by it where the unit is a bf16 one.
    pub fn product(&self, m: usize, n: usize, segments: &[Segment<'_>], c: &mut [f32], ldc: usize) {
        bf16::gemm(self.by, m, n, segments, c, ldc, false);
    }

    /// [`Cpu::product`] on the calling thread alone; with `accumulate` it is added to what `c` holds.
    pub fn product_serial(
        &self,
        m: usize,
        n: usize,
        segments: &[Segment<'_>],
        c: &mut [f32],
        ldc: usize,
        accumulate: bool,
    ) {
        bf16::gemm_serial(self.by, m, n, segments, c, ldc, accumulate);
    }

    /// Workers of the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` in the pool. Cheap where the caller is in it already.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Recycled memory, for scratch of operations.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// A buffer with stale contents: the caller writes every element.
    pub fn stale(&self, rows: usize, cols: usize) -> CpuBuf {
        CpuBuf { rows, cols, data: self.buffers.stale(rows * cols) }
    }

    /// Fills every row of a `[rows, cols]` buffer by `row(index, out)`, in parallel.
    pub fn rows(&self, rows: usize, cols: usize, row: impl Fn(usize, &mut [f32]) + Send + Sync) -> CpuBuf {
        let mut out = self.stale(rows, cols);
        self.each_row(&mut out, row);
        out
    }

    /// Calls `row(index, values)` for every row, in parallel; a task takes at least [`GRAIN`] elements.
    pub fn each_row(&self, buf: &mut CpuBuf, row: impl Fn(usize, &mut [f32]) + Send + Sync) {
        let cols = buf.cols;
        if cols == 0 {
            return;
        }
        let grain = GRAIN.div_ceil(cols);
        self.install(|| {
            buf.data.par_chunks_mut(cols).enumerate().with_min_len(grain).for_each(|(i, values)| row(i, values));
        });
    }
}

impl CpuBuf {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.data
    }

    /// All values, row-major.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }
}

impl CpuWeight {
    /// Rows of the matrix; 1 for a vector.
    pub fn rows(&self) -> usize {
        if self.view.shape.len() < 2 { 1 } else { self.view.shape[0] }
    }

    /// Columns of the matrix; the length of a vector.
    pub fn cols(&self) -> usize {
        self.view.elements() / self.rows().max(1)
    }

    /// The values of a vector, widened.
    pub fn vector(&self) -> &[f32] {
        &self.vector
    }

    /// The matrix W `[out, in]` as the right operand of x·Wᵀ: k runs along a row.
    pub fn transposed(&self) -> Right<'_> {
        self.transposed_from(0)
    }

    /// The matrix W `[out, in]` as the right operand of dy·W: k runs down a column.
    pub fn plain(&self) -> Right<'_> {
        self.plain_from(0)
    }

    /// [`CpuWeight::transposed`] of the rows from `row` on.
    pub fn transposed_from(&self, row: usize) -> Right<'_> {
        self.right(row, 1, self.cols())
    }

    /// [`CpuWeight::plain`] of the rows from `row` on.
    pub fn plain_from(&self, row: usize) -> Right<'_> {
        self.right(row, self.cols(), 1)
    }

    fn right(&self, row: usize, k_stride: usize, col_stride: usize) -> Right<'_> {
        let bytes = &self.view.bytes()[row * self.cols() * self.view.dtype.size()..];
        match self.view.dtype {
            Dtype::Bf16 => Right::Bf16 { bytes, k_stride, col_stride },
            _ => Right::F32Bytes { bytes, k_stride, col_stride },
        }
    }

    /// Widens one row into `out` (`cols` long), each value times `scale`; in bf16 the value is rounded first.
    pub fn scaled_row(&self, row: usize, scale: f32, out: &mut [f32]) {
        self.stored_row(row, out);
        for value in out {
            *value = if self.rounds { round_bf16(*value) } else { *value } * scale;
        }
    }

    /// Widens one row as stored into `out` (`cols` long).
    pub fn stored_row(&self, row: usize, out: &mut [f32]) {
        let size = self.view.dtype.size();
        let bytes = &self.view.bytes()[row * self.cols() * size..(row + 1) * self.cols() * size];
        match self.view.dtype {
            Dtype::Bf16 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = widen(u16::from_le_bytes([b[0], b[1]]));
                }
            }
            _ => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
    }
}

impl Backend for Cpu {
    type Buf = CpuBuf;
    type Weight = CpuWeight;

    fn weight(&self, view: &TensorView) -> Result<CpuWeight, Error> {
        match view.dtype {
            Dtype::Bf16 | Dtype::F32 => {
                let mut vector = if view.shape.len() < 2 { view.to_f32() } else { Vec::new() };
                if self.rounds() {
                    vector.iter_mut().for_each(|value| *value = round_bf16(*value));
                }
                Ok(CpuWeight { view: view.clone(), vector: vector.into(), rounds: self.rounds() })
            }
            other => Err(Error::Dtype { tensor: view.name.to_string(), found: format!("{other:?}").to_uppercase() }),
        }
    }

    fn zeros(&self, rows: usize, cols: usize) -> CpuBuf {
        CpuBuf { rows, cols, data: self.buffers.zeros(rows * cols) }
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> CpuBuf {
        assert_eq!(values.len(), rows * cols, "an upload of [{rows}, {cols}]");
        let mut buf = self.stale(rows, cols);
        buf.data.copy_from_slice(values);
        buf
    }

    fn download(&self, buf: &CpuBuf) -> Vec<f64> {
        buf.data.iter().map(|&value| f64::from(value)).collect()
    }

    fn shape(&self, buf: &CpuBuf) -> (usize, usize) {
        (buf.rows, buf.cols)
    }

    fn duplicate(&self, buf: &CpuBuf) -> CpuBuf {
        self.upload(buf.rows, buf.cols, &buf.data)
    }

    fn add_assign(&self, target: &mut CpuBuf, source: &CpuBuf) {
        assert_eq!(self.shape(target), self.shape(source), "shapes of a sum");
        let pieces = target.data.par_chunks_mut(GRAIN).zip(source.data.par_chunks(GRAIN));
        self.install(|| {
            pieces.for_each(|(values, added)| {
                for (value, added) in values.iter_mut().zip(added) {
                    *value += added;
                }
            });
        });
    }

    fn gather_rows(&self, source: &CpuBuf, rows: &[u32]) -> CpuBuf {
        self.rows(rows.len(), source.cols, |i, out| out.copy_from_slice(source.row(rows[i] as usize)))
    }

    fn scatter_add_rows(&self, target: &mut CpuBuf, source: &CpuBuf, rows: &[u32]) {
        assert_eq!((rows.len(), target.cols), self.shape(source), "rows to add");
        let cols = target.cols;
        // In the pool although serial: its workers flush denormals.
        self.install(|| {
            for (i, &row) in rows.iter().enumerate() {
                let values = &mut target.data[row as usize * cols..][..cols];
                for (value, added) in values.iter_mut().zip(source.row(i)) {
                    *value += added;
                }
            }
        });
    }

    fn unit(&self) -> String {
        match self.by.unit {
            unit @ (Unit::F32 | Unit::Bf16) => format!("cpu {unit}"),
            unit => format!("cpu bf16 {unit}"),
        }
    }

    fn describe(&self) -> String {
        let emulated = if self.by.emulated { " emulated" } else { "" };
        match self.by.unit {
            unit @ (Unit::F32 | Unit::Bf16) => format!("cpu {unit} {}{emulated}", self.by.isa),
            unit => format!("cpu bf16 {unit}{emulated}"),
        }
    }
}
