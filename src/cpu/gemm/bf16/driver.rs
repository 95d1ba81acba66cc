//! The loops around the dot-product micro-kernels: columns in chunks whose panels fit in a cache, k, then row tiles by
//! column tiles. Panels are packed once per chunk and shared by all threads.
//!
//! k is counted in *padded* lengths: each segment is filled up with zeros to whole instructions, so that every segment
//! starts a new one.

use super::super::Segment;
use super::super::driver::Output;
#[cfg(target_arch = "x86_64")]
use super::super::pack::x86::transpose_f32;
use super::super::split::Grid;
use super::pack::{self, Source};
use crate::cpu::isa::Isa;
use crate::cpu::lanes::dispatch;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Columns of a panel: 16 pairs of bf16 are a vector, and a row of a tile.
pub(super) const PANEL: usize = 16;
/// Most columns of a tile.
pub(super) const WIDTH: usize = 2 * PANEL;
/// Most rows of a tile, over all kernels.
const TALLEST: usize = 32;
/// Most k of a block: a longer product costs a pass over C more, a shorter block more passes.
const MOST_K: usize = 4096;

/// One pair of k of a panel: `line[j]` holds k even in its lower and k odd in its upper half.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; PANEL]);

/// Rows of one stretch of k: row i begins `i·row_stride` bytes after `data` and holds whole instructions' k.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub data: *const u8,
    pub row_stride: usize,
    /// Instructions' worth of k.
    pub groups: usize,
}

/// One tile's operands.
pub(super) struct Tile<'a> {
    /// Rows, one strip per stretch of k.
    pub strips: &'a [Strip],
    /// The first panel, `[pairs of k]` lines over all stretches; the second follows it.
    pub panels: *const Line,
    /// Lines of a panel.
    pub pairs: usize,
    /// Sums, `[rows][WIDTH]`, continued in place.
    pub sums: &'a mut Sums,
}

/// The sums of a tile.
#[repr(C, align(64))]
pub(super) struct Sums(pub [[f32; WIDTH]; TALLEST]);

/// A micro-kernel.
pub(super) trait Kernel {
    /// Rows of a tile.
    const ROWS: usize;
    /// k of one instruction.
    const GROUP: usize;
    /// Bytes of panels that are worked on at a time.
    const CHUNK: usize;
    /// What the thread must hold while it calls [`Kernel::tile`].
    type Session;

    /// Prepares the calling thread.
    ///
    /// # Safety
    /// The CPU has the unit.
    unsafe fn begin() -> Self::Session;

    /// Continues the sums of ROWS rows by `panels` panels, 1 or 2.
    ///
    /// # Safety
    /// The CPU has the unit and a session lives. Each strip holds ROWS rows of its k; the panels hold the pairs of all
    /// strips, one strip after the other.
    unsafe fn tile(panels: usize, tile: &mut Tile<'_>);
}

/// A product and which of its sides are rows of the tiles.
pub(super) struct Product<'a> {
    segments: &'a [Segment<'a>],
    /// Rows of the tiles are columns of C.
    transposed: bool,
    rows: usize,
    columns: usize,
    c: Output,
    accumulate: bool,
}

impl<'a> Product<'a> {
    pub(super) fn new(m: usize, n: usize, segments: &'a [Segment<'a>], c: Output, accumulate: bool) -> Self {
        let transposed = segments.iter().max_by_key(|segment| segment.k).is_some_and(|longest| {
            let (left, right) = (pack::left(longest), pack::right(longest));
            right.cost_as_rows(n) + left.cost_as_panels(m) < left.cost_as_rows(m) + right.cost_as_panels(n)
        });
        let (rows, columns) = if transposed { (n, m) } else { (m, n) };
        Self { segments, transposed, rows, columns, c, accumulate }
    }

    /// The side whose elements are rows.
    fn row_source(&self, segment: &'a Segment<'a>) -> Source<'a> {
        if self.transposed { pack::right(segment) } else { pack::left(segment) }
    }

    /// The side whose elements are columns of panels.
    fn column_source(&self, segment: &'a Segment<'a>) -> Source<'a> {
        if self.transposed { pack::left(segment) } else { pack::right(segment) }
    }

    /// The stretches of a block of padded k: segment, its k, and the padded stretch within the block.
    fn stretches(
        &self,
        group: usize,
        first: usize,
        length: usize,
    ) -> impl Iterator<Item = (&'a Segment<'a>, Range<usize>, Range<usize>)> {
        let mut start = 0;
        self.segments.iter().filter_map(move |segment| {
            let begin = start;
            start += segment.k.next_multiple_of(group);
            let (from, to) = (first.max(begin), (first + length).min(start));
            (from < to).then(|| (segment, from - begin..(to - begin).min(segment.k), from - first..to - first))
        })
    }
}

/// Space that a thread keeps from call to call. It is taken out while in use: a thread that waits for others may be given
/// another product meanwhile.
#[derive(Default)]
struct Space {
    rows: Vec<Line>,
    strips: Vec<Strip>,
}

thread_local! {
    static SHARED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static OWN: Cell<Space> = const { Cell::new(Space { rows: Vec::new(), strips: Vec::new() }) };
}

/// At least `length` lines of `space`, with whatever they held.
fn lines(space: &mut Vec<Line>, length: usize) -> &mut [Line] {
    if space.len() < length {
        space.resize(length, Line([0; PANEL]));
    }
    &mut space[..length]
}

/// Computes a product, in the current pool if `parallel`.
///
/// # Safety
/// The CPU has the kernel's unit and `isa`; the operands cover their shapes; C is valid for reads and writes over its
/// shape and nobody else uses it meanwhile.
pub(super) unsafe fn run<K: Kernel>(isa: Isa, product: &Product<'_>, parallel: bool) {
    let total: usize = product.segments.iter().map(|segment| segment.k.next_multiple_of(K::GROUP)).sum();
    if product.rows == 0 || product.columns == 0 {
        return;
    }
    if total == 0 {
        if !product.accumulate {
            // SAFETY: the block is valid for writes.
            unsafe { product.clear() }
        }
        return;
    }
    let blocks = total.div_ceil(MOST_K);
    let k_block = total.div_ceil(blocks).next_multiple_of(K::GROUP);
    let chunk = (K::CHUNK / (2 * k_block) / WIDTH).max(1) * WIDTH;
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let mut space = SHARED.take();
    for first_column in (0..product.columns).step_by(chunk) {
        let columns = first_column..(first_column + chunk).min(product.columns);
        for first_k in (0..total).step_by(k_block) {
            let block = Block { product, isa, columns: columns.clone(), first_k, k: k_block.min(total - first_k) };
            let pairs = block.k / 2;
            let panels = lines(&mut space, columns.len().div_ceil(PANEL) * pairs);
            let pack = |(index, panel): (usize, &mut [Line])| block.pack_panel::<K>(index, panel);
            match parallel {
                true => panels.par_chunks_exact_mut(pairs).enumerate().for_each(pack),
                false => panels.chunks_exact_mut(pairs).enumerate().for_each(pack),
            }
            let (panels, grid) = (&*panels, Grid::new(product.rows, columns.len(), block.k, K::ROWS, WIDTH, threads));
            let task = |index: usize| {
                let (rows, columns) = grid.task(index);
                // SAFETY: the caller's promise; the blocks of a grid are disjoint, and so are their parts of C.
                unsafe { block.tiles::<K>(rows, columns, panels) }
            };
            match grid.tasks() {
                1 => task(0),
                tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
            }
        }
    }
    SHARED.set(space);
}

/// A chunk of columns and a block of k.
struct Block<'a> {
    product: &'a Product<'a>,
    isa: Isa,
    columns: Range<usize>,
    /// In padded k.
    first_k: usize,
    k: usize,
}

impl Block<'_> {
    /// Packs the panel of columns 16·`index` of the chunk.
    fn pack_panel<K: Kernel>(&self, index: usize, panel: &mut [Line]) {
        let first = self.columns.start + index * PANEL;
        let columns = first..(first + PANEL).min(self.columns.end);
        for (segment, ks, at) in self.product.stretches(K::GROUP, self.first_k, self.k) {
            let source = self.product.column_source(segment);
            let target = &mut panel[at.start / 2..at.end / 2];
            dispatch(self.isa, pack::Panel { source, columns: columns.clone(), ks, target });
        }
    }

    /// All tiles of some rows by some columns of the chunk.
    ///
    /// # Safety
    /// As [`run`], and nobody else uses this part of C.
    unsafe fn tiles<K: Kernel>(&self, rows: Range<usize>, columns: Range<usize>, panels: &[Line]) {
        let Self { product, isa, first_k, k, .. } = *self;
        let pairs = k / 2;
        let load = product.accumulate || first_k > 0;
        // Rows of a copy begin at cache lines.
        let stride = k.next_multiple_of(2 * PANEL);
        let mut space = OWN.take();
        // SAFETY: the CPU has the unit.
        let session = unsafe { K::begin() };
        let mut sums = Sums([[0.0; WIDTH]; TALLEST]);
        for row in rows.clone().step_by(K::ROWS) {
            let height = K::ROWS.min(rows.end - row);
            let copy: *mut u16 = lines(&mut space.rows, K::ROWS * stride / (2 * PANEL)).as_mut_ptr().cast();
            space.strips.clear();
            for (segment, ks, at) in product.stretches(K::GROUP, first_k, k) {
                let source = product.row_source(segment);
                let groups = at.len() / K::GROUP;
                let whole = height == K::ROWS && ks.len() == at.len();
                let in_place = if whole { source.rows_in_place(row, ks.start) } else { None };
                let strip = in_place.map(|(data, row_stride)| Strip { data, row_stride, groups });
                space.strips.push(strip.unwrap_or_else(|| {
                    // SAFETY: the lines behind `copy` hold ROWS rows of `stride` halves, and nothing else borrows them.
                    let target = unsafe { std::slice::from_raw_parts_mut(copy, K::ROWS * stride) };
                    let columns = at.clone();
                    dispatch(isa, pack::Rows { source, rows: row..row + height, ks, columns, stride, target });
                    Strip { data: copy.wrapping_add(at.start).cast(), row_stride: 2 * stride, groups }
                }));
            }
            for column in columns.clone().step_by(WIDTH) {
                let width = WIDTH.min(columns.end - column);
                // SAFETY: the tile lies in the caller's part of C; the strips hold ROWS rows, where they are direct
                // because all of them exist, else in the copy; the panels of the chunk hold every column.
                unsafe {
                    let part = Part { product, row, height, column: self.columns.start + column, width };
                    if load {
                        part.load(&mut sums);
                    } else {
                        sums.0 = [[0.0; WIDTH]; TALLEST];
                    }
                    let panels = panels[column / PANEL * pairs..].as_ptr();
                    K::tile(width.div_ceil(PANEL), &mut Tile { strips: &space.strips, panels, pairs, sums: &mut sums });
                    part.store(&sums);
                }
            }
        }
        drop(session);
        OWN.set(space);
    }
}

/// The part of C that belongs to a tile: `height` rows and `width` columns of the tile.
struct Part<'a> {
    product: &'a Product<'a>,
    row: usize,
    height: usize,
    column: usize,
    width: usize,
}

impl Part<'_> {
    /// The tile's element (0, 0) and the distances to its next row and column.
    fn place(&self) -> (*mut f32, usize, usize) {
        let Output { data, stride } = self.product.c;
        let (down, across) = if self.product.transposed { (1, stride) } else { (stride, 1) };
        (data.wrapping_add(self.row * down + self.column * across), down, across)
    }

    /// # Safety
    /// The part is readable.
    unsafe fn load(&self, sums: &mut Sums) {
        let (c, down, across) = self.place();
        for (i, sums) in sums.0.iter_mut().enumerate().take(self.height) {
            for (j, sum) in sums.iter_mut().enumerate().take(self.width) {
                // SAFETY: inside the part.
                *sum = unsafe { *c.add(i * down + j * across) };
            }
        }
    }

    /// # Safety
    /// The part is writable.
    unsafe fn store(&self, sums: &Sums) {
        let (c, down, across) = self.place();
        // SAFETY: every element written is inside the part.
        unsafe {
            if !self.product.transposed {
                for (i, sums) in sums.0.iter().enumerate().take(self.height) {
                    std::ptr::copy_nonoverlapping(sums.as_ptr(), c.add(i * down), self.width);
                }
                return;
            }
            // What is transposed by fours; the rest goes element by element.
            #[cfg(target_arch = "x86_64")]
            let (height, width) = (self.height / 4 * 4, self.width / 4 * 4);
            #[cfg(not(target_arch = "x86_64"))]
            let (height, width) = (0, 0);
            #[cfg(target_arch = "x86_64")]
            for j in (0..width).step_by(4) {
                for i in (0..height).step_by(4) {
                    transpose_f32(
                        sums.0.as_ptr().cast::<f32>().add(i * WIDTH + j).cast(),
                        WIDTH,
                        c.add(i + j * across),
                        across,
                    );
                }
            }
            for (i, sums) in sums.0.iter().enumerate().take(self.height) {
                let from = if i < height { width } else { 0 };
                for (j, sum) in sums.iter().enumerate().take(self.width).skip(from) {
                    *c.add(i + j * across) = *sum;
                }
            }
        }
    }
}

impl Product<'_> {
    /// # Safety
    /// C is writable over its shape.
    unsafe fn clear(&self) {
        let (m, n) = if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) };
        for i in 0..m {
            // SAFETY: row i of the block.
            unsafe { std::ptr::write_bytes(self.c.data.add(i * self.c.stride), 0, n) }
        }
    }
}
