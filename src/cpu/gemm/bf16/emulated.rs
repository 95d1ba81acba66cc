//! What `vdpbf16ps` and `tdpbf16ps` compute, in plain Rust behind the same trait, tile shapes and layouts: a CPU without
//! the instructions tests everything around them, and gives their bits as far as documentation states them (denormals
//! aside: those follow the thread's mode). Slow; no command serves with it.

use super::driver::{Line, PANEL, Strip, Tile};
use crate::cpu::isa::Isa;
use crate::cpu::lanes::{self, dispatch};
use crate::cpu::rounding::widen;
use std::marker::PhantomData;

/// AVX512-BF16's `vdpbf16ps`: 8 rows, one pair of k.
pub(super) struct Pairs;

/// AMX's `tdpbf16ps`: 32 rows, 16 pairs of k.
pub(super) struct Tiles;

/// The micro-kernel made of an instruction.
pub(super) struct Emulated<I>(PhantomData<I>);

type Columns = [f32; PANEL];

/// The two bf16 of one line's columns, even k first.
#[inline(always)]
fn halves(line: &Line) -> [Columns; 2] {
    [line.0.map(|pair| widen(pair as u16)), line.0.map(|pair| widen((pair >> 16) as u16))]
}

/// The two bf16 of one row at a pair of k.
///
/// # Safety
/// Four bytes are readable at pair `q` of row `row`.
#[inline(always)]
unsafe fn pair(strip: &Strip, row: usize, q: usize) -> [f32; 2] {
    // SAFETY: the caller's promise.
    let pair = unsafe { strip.data.add(row * strip.row_stride + 4 * q).cast::<u32>().read_unaligned() };
    [widen(u32::from_le(pair) as u16), widen((u32::from_le(pair) >> 16) as u16)]
}

#[inline(always)]
fn multiply_add(chain: &mut Columns, value: f32, columns: &Columns) {
    for (chain, column) in chain.iter_mut().zip(columns) {
        *chain = value.mul_add(*column, *chain);
    }
}

/// One instruction's arithmetic.
trait Instruction {
    const ROWS: usize;
    /// Lines of a panel that one instruction takes.
    const LINES: usize;

    /// Continues the sums of one row by as many pairs of the strip from `q` on as the instruction takes.
    ///
    /// # Safety
    /// The strip holds the row's pairs.
    unsafe fn execute(strip: &Strip, row: usize, q: usize, lines: &[Line], sums: &mut Columns);
}

impl Instruction for Pairs {
    const ROWS: usize = 8;
    const LINES: usize = 1;

    #[inline(always)]
    unsafe fn execute(strip: &Strip, row: usize, q: usize, lines: &[Line], sums: &mut Columns) {
        // SAFETY: the caller's promise.
        let [even, odd] = unsafe { pair(strip, row, q) };
        let [even_columns, odd_columns] = halves(&lines[0]);
        multiply_add(sums, odd, &odd_columns);
        multiply_add(sums, even, &even_columns);
    }
}

impl Instruction for Tiles {
    const ROWS: usize = 32;
    const LINES: usize = 16;

    #[inline(always)]
    unsafe fn execute(strip: &Strip, row: usize, q: usize, lines: &[Line], sums: &mut Columns) {
        let (mut even_chain, mut odd_chain) = ([0.0; PANEL], [0.0; PANEL]);
        for (index, line) in lines.iter().enumerate() {
            // SAFETY: the caller's promise.
            let [even, odd] = unsafe { pair(strip, row, q + index) };
            let [even_columns, odd_columns] = halves(line);
            multiply_add(&mut even_chain, even, &even_columns);
            multiply_add(&mut odd_chain, odd, &odd_columns);
        }
        for (sum, (even, odd)) in sums.iter_mut().zip(even_chain.into_iter().zip(odd_chain)) {
            *sum += even + odd;
        }
    }
}

/// A tile by an instruction, as a kernel that is compiled per instruction set of the CPU at hand.
struct Run<'a, 't, I> {
    panels: usize,
    tile: &'a mut Tile<'t>,
    instruction: PhantomData<I>,
}

impl<I: Instruction> lanes::Kernel for Run<'_, '_, I> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Tile { strips, panels, pairs, ref mut sums } = *self.tile;
        for (row, sums) in sums.0.iter_mut().enumerate().take(I::ROWS) {
            for (panel, sums) in sums.chunks_exact_mut(PANEL).enumerate().take(self.panels) {
                let sums: &mut Columns = sums.try_into().expect("chunks of a panel's width");
                let mut line = panels.wrapping_add(panel * pairs);
                for strip in strips {
                    for group in 0..strip.groups {
                        // SAFETY: as `Kernel::tile` demands, the strip holds this row, and the panel as many lines.
                        unsafe {
                            let lines = std::slice::from_raw_parts(line, I::LINES);
                            I::execute(strip, row, group * I::LINES, lines, sums);
                        }
                        line = line.wrapping_add(I::LINES);
                    }
                }
            }
        }
    }
}

impl<I: Instruction> super::driver::Kernel for Emulated<I> {
    const ROWS: usize = I::ROWS;
    const GROUP: usize = 2 * I::LINES;
    const CHUNK: usize = 512 << 10;
    type Session = ();

    unsafe fn begin() {}

    unsafe fn tile(panels: usize, tile: &mut Tile<'_>) {
        dispatch(Isa::best(), Run { panels, tile, instruction: PhantomData::<I> });
    }
}
