//! Matrix products of bf16 operands: the same C\[m, n\] (+)= Σ Left·Right as in f32, whose f32 operands are rounded to bf16
//! while they are packed. Sums are f32; [`Unit`](crate::cpu::Unit) says in which order.
//!
//! **Promise.** The bits of an element depend on the unit, its row of Left and its column of Right alone: k is only ever
//! cut at multiples of an instruction's k, counted from the start of each segment, and partial sums pass exactly through C.
//!
//! **How.** The dot-product instructions take two unlike operands: *rows*, consecutive along k, and *panels* of 16 columns
//! in which the k of a pair (VNNI) lie side by side. Either side of the product may be the one or the other, with the
//! result transposed on its way to C: for x·Wᵀ rows are those of W where they lie in the map, for dy·W they are those of
//! dy and W is interleaved into panels. `driver` loops over tiles, `pack` packs, `avx512bf16` and `amx` are the
//! micro-kernels, `emulated` stands for both where the CPU lacks them, and `rounded` is the unit that every CPU has.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod driver;
mod emulated;
mod pack;
mod rounded;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::is_available as amx_is_available;

use super::driver::Output;
use super::{Segment, check};
use crate::cpu::isa::Isa;
use crate::cpu::unit::Unit;
use driver::{Product, run};
use emulated::Emulated;

/// Runs `rounds` rounds of independent products in registers by the unit's instruction and returns the number of operations: what
/// the unit can do at most.
///
/// # Panics
/// Where this CPU lacks `unit`, or it has no instruction of its own.
#[cfg(target_arch = "x86_64")]
pub(crate) fn burn(unit: Unit, rounds: u32) -> f64 {
    assert!(unit.is_available(), "this CPU lacks the unit `{unit}`");
    match unit {
        // SAFETY: the CPU has the unit.
        Unit::Avx512Bf16 => unsafe { avx512bf16::burn(rounds) },
        // SAFETY: as above; asking whether it is there has requested the system's permission.
        Unit::Amx => unsafe { amx::burn(rounds) },
        Unit::F32 | Unit::Bf16 => panic!("`{unit}` has no instruction of its own"),
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Multiplier {
    /// The unit whose bits result.
    pub unit: Unit,
    /// Instruction set of packing, and of the f32 kernels.
    pub isa: Isa,
    /// Whether the unit's instruction is emulated.
    pub emulated: bool,
}

/// The product on one thread, as [`super::gemm_serial`], in the unit of `by`.
///
/// # Panics
/// As [`super::gemm_serial`], and where this CPU lacks the unit.
pub(crate) fn gemm_serial(
    by: Multiplier,
    m: usize,
    n: usize,
    segments: &[Segment<'_>],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    match by.unit {
        Unit::F32 => super::gemm_serial(by.isa, m, n, segments, c, ldc, accumulate),
        Unit::Bf16 => rounded::gemm(by.isa, m, n, segments, c, ldc, accumulate, false),
        Unit::Avx512Bf16 | Unit::Amx => dot_products(by, m, n, segments, c, ldc, accumulate, false),
    }
}

/// The product split over the current rayon pool, as [`super::gemm`], in the unit of `by`; same bits as [`gemm_serial`].
///
/// # Panics
/// As [`gemm_serial`].
pub(crate) fn gemm(
    by: Multiplier,
    m: usize,
    n: usize,
    segments: &[Segment<'_>],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    match by.unit {
        Unit::F32 => super::gemm(by.isa, m, n, segments, c, ldc, accumulate),
        Unit::Bf16 => rounded::gemm(by.isa, m, n, segments, c, ldc, accumulate, true),
        Unit::Avx512Bf16 | Unit::Amx => dot_products(by, m, n, segments, c, ldc, accumulate, true),
    }
}

/// The product by dot-product instructions, or by their emulation.
#[allow(clippy::too_many_arguments)]
fn dot_products(
    by: Multiplier,
    m: usize,
    n: usize,
    segments: &[Segment<'_>],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
    parallel: bool,
) {
    by.isa.require();
    assert!(by.emulated || by.unit.is_available(), "this CPU lacks the unit `{}`", by.unit);
    check(m, n, segments, c, ldc);
    let c = Output { data: c.as_mut_ptr(), stride: ldc };
    let product = Product::new(m, n, segments, c, accumulate);
    // SAFETY: `check` has seen that the [m, n] block lies in `c`, which is borrowed exclusively until the last task has
    // ended, and that every operand covers its shape; the assertions that the CPU has what the kernels need.
    unsafe {
        match (by.unit, by.emulated) {
            (Unit::Amx, true) => run::<Emulated<emulated::Tiles>>(by.isa, &product, parallel),
            (_, true) => run::<Emulated<emulated::Pairs>>(by.isa, &product, parallel),
            #[cfg(target_arch = "x86_64")]
            (Unit::Amx, false) => run::<amx::Kernel>(by.isa, &product, parallel),
            #[cfg(target_arch = "x86_64")]
            (_, false) => run::<avx512bf16::Kernel>(by.isa, &product, parallel),
            #[cfg(not(target_arch = "x86_64"))]
            (_, false) => unreachable!("no such unit is available"),
        }
    }
}
