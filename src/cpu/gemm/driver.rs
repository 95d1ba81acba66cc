//! The loops around the micro-kernels: k, then columns, then rows, with packing where each begins.
//!
//! For every block of k the rows of Left are copied once and every column of Right is packed once; inside, a panel of
//! Right stays in the first-level cache while the tiles of a block of rows pass by. A block of k may span segments, so
//! a short last one (LoRA) costs no pass over C of its own.

use super::blocking::Blocking;
use super::{Segment, pack, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::isa::Isa;
use std::cell::RefCell;
use std::ops::Range;

/// C: element (i, j) is `data[i·stride + j]`.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub data: *mut f32,
    pub stride: usize,
}

// SAFETY: a bare address with its stride. Tasks that share it write disjoint blocks (see `gemm`), and the slice it was
// made from outlives them.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// Left of one stretch of k, as a micro-kernel reads it: element (i, p) is `data[i·row_stride + p·k_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub data: *const f32,
    pub row_stride: usize,
    pub k_stride: usize,
    pub k: usize,
}

/// One tile of C and what goes into it.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Left, one strip per stretch of k.
    pub strips: &'a [Strip],
    /// First row of the tile within the strips.
    pub row: usize,
    /// Packed panels of Right, each `[k][WIDTH]`.
    pub panels: *const f32,
    /// Distance between panels.
    pub panel_stride: usize,
    /// The tile's first element.
    pub c: Output,
    /// Whether the chains start from what C holds, else from 0.
    pub load: bool,
}

/// A micro-kernel: tiles of up to `ROWS` rows and whole panels of `WIDTH` columns.
pub(super) trait Kernel {
    /// Most rows of a tile.
    const ROWS: usize;
    /// Columns of a panel.
    const WIDTH: usize;

    /// How many panels a tile of so many rows spans: tiles of few rows need more columns to keep enough independent
    /// chains in flight.
    fn panels(rows: usize) -> usize;

    /// Continues the chains of a tile of `rows` rows by `panels` panels.
    ///
    /// # Safety
    /// The CPU has the instruction set. The strips hold `rows` rows from `tile.row` on; `panels` panels of as many k as
    /// the strips have together are readable; C is writable over `rows` rows of `panels · WIDTH` columns.
    /// `1 <= rows <= ROWS`, and `panels` is 1 or `Self::panels(rows)`.
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile<'_>);
}

/// Most columns of a tile, over all kernels.
const WIDEST: usize = 128;
/// Most rows of a tile, over all kernels.
const TALLEST: usize = 16;

/// Rows and columns of an instruction set's tile.
pub(super) fn tile_shape(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Portable => (portable::Kernel::ROWS, portable::Kernel::WIDTH),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (avx2::Kernel::ROWS, avx2::Kernel::WIDTH),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (avx512::Kernel::ROWS, avx512::Kernel::WIDTH),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("`Isa::require` let an x86-64 instruction set pass"),
    }
}

/// Computes the block `rows` × `columns` of C.
///
/// # Safety
/// The CPU has `isa`; every segment covers the rows and columns; C is valid for reads and writes over the block and
/// nobody else uses the block meanwhile.
pub(super) unsafe fn block(
    isa: Isa,
    rows: Range<usize>,
    columns: Range<usize>,
    segments: &[Segment<'_>],
    c: Output,
    accumulate: bool,
) {
    // SAFETY: the caller's promise, handed on.
    unsafe {
        match isa {
            Isa::Portable => run::<portable::Kernel>(rows, columns, segments, c, accumulate),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => run::<avx2::Kernel>(rows, columns, segments, c, accumulate),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => run::<avx512::Kernel>(rows, columns, segments, c, accumulate),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("`Isa::require` let an x86-64 instruction set pass"),
        }
    }
}

/// Packing space of a thread, kept from call to call.
#[derive(Default)]
struct Buffers {
    left: Buffer,
    right: Buffer,
    strips: Vec<Strip>,
}

/// f32 space aligned to a cache line; grows and is never given back before the thread ends.
#[derive(Default)]
struct Buffer(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Buffer {
    /// Space for `length` values, with whatever they held.
    fn get(&mut self, length: usize) -> *mut f32 {
        let lines = length.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        self.0.as_mut_ptr().cast()
    }
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Rows whose Left is packed at a time: bounds the packing space.
const MOST_ROWS: usize = 2048;

/// Below so many columns a copy of Left costs more than reading it where it lies.
const COPY_FROM: usize = 48;

/// # Safety
/// As [`block`].
unsafe fn run<K: Kernel>(
    rows: Range<usize>,
    columns: Range<usize>,
    segments: &[Segment<'_>],
    c: Output,
    accumulate: bool,
) {
    let total: usize = segments.iter().map(|segment| segment.k).sum();
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    if total == 0 {
        if !accumulate {
            for i in rows {
                // SAFETY: the block is valid for writes.
                unsafe { std::ptr::write_bytes(c.data.add(i * c.stride + columns.start), 0, columns.len()) }
            }
        }
        return;
    }
    BUFFERS.with_borrow_mut(|Buffers { left, right, strips }| {
        let blocking = Blocking::new(rows.len().min(MOST_ROWS), total, K::ROWS, K::WIDTH);
        for first_row in rows.clone().step_by(MOST_ROWS) {
            let chunk = first_row..(first_row + MOST_ROWS).min(rows.end);
            for first_k in (0..total).step_by(blocking.k) {
                let k = blocking.k.min(total - first_k);
                let load = accumulate || first_k > 0;
                left_strips(segments, first_k, k, chunk.clone(), columns.len(), left, strips);
                for first_column in columns.clone().step_by(blocking.columns) {
                    let width = blocking.columns.min(columns.end - first_column);
                    let panels = right.get(width.next_multiple_of(K::WIDTH) * k);
                    pack_right(segments, first_k, k, first_column..first_column + width, K::WIDTH, panels);
                    for block_row in (0..chunk.len()).step_by(blocking.rows) {
                        let height = blocking.rows.min(chunk.len() - block_row);
                        // SAFETY: the strips cover the chunk's rows and k, `panels` holds `width` columns of k values
                        // padded to whole panels, and the block of C is the caller's.
                        unsafe {
                            let c = Output {
                                data: c.data.add((chunk.start + block_row) * c.stride + first_column),
                                stride: c.stride,
                            };
                            tiles::<K>(strips, k, block_row, height, panels, width, c, load);
                        }
                    }
                }
            }
        }
    });
}

/// The stretches of a block of k: segment, its first k, its number of k, and where the stretch starts in the block.
fn stretches<'a, 'b>(
    segments: &'b [Segment<'a>],
    first: usize,
    k: usize,
) -> impl Iterator<Item = (&'b Segment<'a>, usize, usize, usize)> {
    let mut start = 0;
    segments.iter().filter_map(move |segment| {
        let begin = start;
        start += segment.k;
        let (from, to) = (first.max(begin), (first + k).min(start));
        (from < to).then(|| (segment, from - begin, to - from, from - first))
    })
}

/// Left of a block of k: where it lies if that serves, else copied to consecutive rows.
fn left_strips(
    segments: &[Segment<'_>],
    first: usize,
    k: usize,
    rows: Range<usize>,
    columns: usize,
    buffer: &mut Buffer,
    strips: &mut Vec<Strip>,
) {
    strips.clear();
    let in_place = columns < COPY_FROM && stretches(segments, first, k).all(|(segment, ..)| segment.left.k_stride == 1);
    if in_place {
        strips.extend(stretches(segments, first, k).map(|(segment, from, k, _)| {
            let left = &segment.left;
            let data = left.data[rows.start * left.row_stride + from..].as_ptr();
            Strip { data, row_stride: left.row_stride, k_stride: 1, k }
        }));
        return;
    }
    let copy = buffer.get(rows.len() * k);
    for (segment, from, length, at) in stretches(segments, first, k) {
        // SAFETY: `copy` holds `rows.len()` rows of k values, of which this stretch is `length` from `at` on.
        unsafe { pack::left(&segment.left, rows.clone(), from..from + length, copy.add(at), k) }
    }
    strips.push(Strip { data: copy, row_stride: k, k_stride: 1, k });
}

/// Packs `columns` of a block of k into panels `[k][width]`, columns beyond the last zero.
fn pack_right(segments: &[Segment<'_>], first: usize, k: usize, columns: Range<usize>, width: usize, panels: *mut f32) {
    for (segment, from, length, at) in stretches(segments, first, k) {
        // SAFETY: `panels` holds whole panels of k rows of `width` values for these columns; the stretch is rows `at`
        // to `at + length` of each.
        unsafe {
            let target = pack::Panels { data: panels.add(at * width), width, stride: k * width };
            pack::right(&segment.right, from..from + length, columns.clone(), target);
        }
    }
}

/// All tiles of a block of rows by the packed columns.
///
/// # Safety
/// The strips hold rows `row` to `row + height`, the panels `width` columns padded to whole panels of k rows; C is the
/// block's first element, valid over `height` rows of `width` columns; the CPU has the instruction set.
#[allow(clippy::too_many_arguments)]
unsafe fn tiles<K: Kernel>(
    strips: &[Strip],
    k: usize,
    row: usize,
    height: usize,
    panels: *const f32,
    width: usize,
    c: Output,
    load: bool,
) {
    // Equal tiles, so that a few rows beyond the last whole tile do not run alone.
    let count = height.div_ceil(K::ROWS);
    let (base, taller) = (height / count, height % count);
    let span = K::panels(base);
    let panel_count = width.div_ceil(K::WIDTH);
    let mut panel = 0;
    while panel < panel_count {
        let together = if panel + span <= panel_count { span } else { 1 };
        let (column, covered) = (panel * K::WIDTH, together * K::WIDTH);
        let inside = covered.min(width - column);
        let mut at = 0;
        for index in 0..count {
            let rows = base + usize::from(index < taller);
            // A taller tile may span fewer panels than its neighbours: it takes them one by one.
            let step = if together == K::panels(rows) { together } else { 1 };
            for part in (0..together).step_by(step) {
                let part_column = part * K::WIDTH;
                let part_inside = (step * K::WIDTH).min(inside - part_column);
                // SAFETY: the tile lies in the block; a ragged one goes through a buffer of its full size.
                unsafe {
                    let tile = Tile {
                        strips,
                        row: row + at,
                        panels: panels.add((panel + part) * K::WIDTH * k),
                        panel_stride: K::WIDTH * k,
                        c: Output { data: c.data.add(at * c.stride + column + part_column), stride: c.stride },
                        load,
                    };
                    if part_inside == step * K::WIDTH {
                        K::tile(rows, step, &tile);
                    } else {
                        ragged::<K>(rows, step, part_inside, &tile);
                    }
                }
            }
            at += rows;
        }
        panel += together;
    }
}

/// A tile of which only the first `inside` columns belong to C.
///
/// # Safety
/// As [`Kernel::tile`], with C valid over `inside` columns.
unsafe fn ragged<K: Kernel>(rows: usize, panels: usize, inside: usize, tile: &Tile<'_>) {
    let stride = panels * K::WIDTH;
    let mut whole = [0.0_f32; TALLEST * WIDEST];
    debug_assert!(rows <= TALLEST && stride <= WIDEST);
    let buffer = whole.as_mut_ptr();
    // SAFETY: rows and columns that belong to C are copied in and out; the kernel works on the buffer, which holds
    // `rows` rows of whole panels.
    unsafe {
        if tile.load {
            for i in 0..rows {
                std::ptr::copy_nonoverlapping(tile.c.data.add(i * tile.c.stride), buffer.add(i * stride), inside);
            }
        }
        K::tile(rows, panels, &Tile { c: Output { data: buffer, stride }, ..*tile });
        for i in 0..rows {
            std::ptr::copy_nonoverlapping(buffer.add(i * stride), tile.c.data.add(i * tile.c.stride), inside);
        }
    }
}
