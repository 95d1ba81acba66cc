//! Rounding f32 to bf16: to nearest, ties to even, once, as every conversion instruction does it. Integer arithmetic, so
//! that all instruction sets give the same bits and the compiler turns loops over it into vectors.

use super::lanes::{Kernel, LANES, dispatch, load, store};
use super::{Cpu, CpuBuf};
use std::ops::Deref;

/// The bf16 next to `value`, as its sixteen bits. Too large a value becomes infinite, a NaN stays one.
#[inline(always)]
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let even = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7FFF + even) >> 16;
    // The carry of a NaN's payload could leave an infinity or a zero behind.
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// A bf16 as f32, exactly.
#[inline(always)]
pub fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `value` rounded to bf16.
#[inline(always)]
pub fn round_bf16(value: f32) -> f32 {
    widen(bf16_bits(value))
}

/// Rounds every value in place. Inlined into the kernel that calls it.
#[inline(always)]
pub fn round_all(values: &mut [f32]) {
    for at in (0..values.len()).step_by(LANES) {
        let mut lanes = load(values, at);
        for lane in &mut lanes {
            *lane = round_bf16(*lane);
        }
        store(values, at, lanes);
    }
}

/// [`round_all`] as a kernel of its own.
struct RoundAll<'a>(&'a mut [f32]);

impl Kernel for RoundAll<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        round_all(self.0);
    }
}

/// A matrix as it enters a product: itself in f32, a rounded copy in bf16.
pub enum Entering<'a> {
    /// Not rounded.
    AsIs(&'a CpuBuf),
    /// Rounded to bf16.
    Rounded(CpuBuf),
}

impl Deref for Entering<'_> {
    type Target = CpuBuf;

    fn deref(&self) -> &CpuBuf {
        match self {
            Self::AsIs(buf) => buf,
            Self::Rounded(buf) => buf,
        }
    }
}

impl Cpu {
    /// Rounds every value of `buf` if this device computes in bf16.
    pub fn round(&self, buf: &mut CpuBuf) {
        if self.rounds() {
            self.each_row(buf, |_, row| dispatch(self.isa(), RoundAll(row)));
        }
    }

    /// `buf` as it enters a product, for what is not a product itself but must see the same values.
    pub fn entering<'a>(&self, buf: &'a CpuBuf) -> Entering<'a> {
        if !self.rounds() {
            return Entering::AsIs(buf);
        }
        Entering::Rounded(self.rows(buf.rows(), buf.cols(), |i, out| {
            out.copy_from_slice(buf.row(i));
            dispatch(self.isa(), RoundAll(out));
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn every_kind_of_value_rounds_as_half_does() {
        let mut patterns: Vec<u32> = (0..1 << 16).map(|high: u32| high << 16).collect();
        patterns.extend((0..1_u32 << 20).map(|i| i.wrapping_mul(0x9E37_79B9)));
        for tail in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
            let values: Vec<f32> = patterns.iter().map(|&bits| f32::from_bits(bits ^ tail)).collect();
            for isa in Isa::available() {
                let mut rounded = values.clone();
                dispatch(isa, RoundAll(&mut rounded));
                for (value, rounded) in values.iter().zip(&rounded) {
                    let expected = half::bf16::from_f32(*value);
                    let same = if value.is_nan() {
                        rounded.is_nan()
                    } else {
                        rounded.to_bits() == expected.to_f32().to_bits()
                    };
                    assert!(same, "{isa}: {:#010x} → {:#010x}", value.to_bits(), rounded.to_bits());
                }
            }
        }
    }
}
