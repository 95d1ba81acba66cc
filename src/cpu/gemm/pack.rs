//! Packing: operands at any strides become what micro-kernels read at full speed.
//!
//! Left becomes consecutive rows. Right becomes panels `[k][width]` of f32: bf16 is widened, weights stored `[n, k]`
//! are transposed by vectors of four or eight on the way, columns beyond the last are zero. SSE2 belongs to every
//! x86-64, so the vector paths need no dispatch; other targets and odd strides take the plain loops.

use super::{Left, Right};
use std::ops::Range;

/// Packed panels: element (p, j) is `data[j / width · stride + p · width + j % width]`.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub data: *mut f32,
    pub width: usize,
    pub stride: usize,
}

/// Copies `rows` × `ks` of Left to `target`, consecutive along k, rows `stride` apart.
///
/// # Safety
/// `target` is writable over that; Left covers the rows and ks.
pub(super) unsafe fn left(source: &Left<'_>, rows: Range<usize>, ks: Range<usize>, target: *mut f32, stride: usize) {
    let Left { data, row_stride, k_stride } = *source;
    let at = |i: usize, p: usize| data.as_ptr().wrapping_add((rows.start + i) * row_stride + (ks.start + p) * k_stride);
    // SAFETY: `at` stays inside Left for i < rows.len() and p < ks.len(), the targets inside what the caller gave.
    unsafe {
        if k_stride == 1 {
            for i in 0..rows.len() {
                std::ptr::copy_nonoverlapping(at(i, 0), target.add(i * stride), ks.len());
            }
            return;
        }
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if row_stride == 1 {
            // Sixteen rows at a time: the values of one k that share a cache line.
            done = rows.len() / 4 * 4;
            let whole = ks.len() / 4 * 4;
            for first in (0..done).step_by(16) {
                let fours = (first..done.min(first + 16)).step_by(4);
                for p in (0..whole).step_by(4) {
                    for i in fours.clone() {
                        x86::transpose_f32(at(i, p).cast(), k_stride, target.add(i * stride + p), stride);
                    }
                }
                for p in whole..ks.len() {
                    (first..done.min(first + 16)).for_each(|i| *target.add(i * stride + p) = *at(i, p));
                }
            }
        }
        for i in done..rows.len() {
            for p in 0..ks.len() {
                *target.add(i * stride + p) = *at(i, p);
            }
        }
    }
}

/// Packs `ks` × `columns` of Right into panels; columns up to the next whole panel are zero.
///
/// # Safety
/// The panels are writable over that, `width` is a multiple of 16; Right covers the ks and columns.
pub(super) unsafe fn right(source: &Right<'_>, ks: Range<usize>, columns: Range<usize>, panels: Panels) {
    // SAFETY: the caller's promise, handed on. f32 values are read as the bytes they are.
    unsafe {
        match *source {
            Right::F32 { data, k_stride, col_stride } => {
                let source = Source { bytes: data.as_ptr().cast(), k_stride, col_stride };
                source.at::<F32>(ks.start, columns.start).pack::<F32>(ks.len(), columns.len(), panels);
            }
            Right::F32Bytes { bytes, k_stride, col_stride } => {
                let source = Source { bytes: bytes.as_ptr(), k_stride, col_stride };
                source.at::<F32>(ks.start, columns.start).pack::<F32>(ks.len(), columns.len(), panels);
            }
            Right::Bf16 { bytes, k_stride, col_stride } => {
                let source = Source { bytes: bytes.as_ptr(), k_stride, col_stride };
                source.at::<Bf16>(ks.start, columns.start).pack::<Bf16>(ks.len(), columns.len(), panels);
            }
        }
    }
}

/// An element type as it lies in memory, unaligned.
trait Element {
    /// Bytes.
    const SIZE: usize;
    /// Columns and k of the blocks that [`Element::transpose`] takes.
    const BLOCK: usize;

    /// Reads one element.
    ///
    /// # Safety
    /// `SIZE` bytes are readable.
    unsafe fn read(from: *const u8) -> f32;

    /// Widens 16 consecutive elements.
    ///
    /// # Safety
    /// 16 elements are readable, 16 values writable.
    unsafe fn widen(from: *const u8, to: *mut f32);

    /// Transposes BLOCK columns (`stride` elements apart, consecutive along k) of BLOCK k: `to` gets BLOCK rows of
    /// BLOCK values, `width` apart.
    ///
    /// # Safety
    /// That is readable and writable.
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut f32, width: usize);
}

struct F32;
struct Bf16;

impl Element for F32 {
    const SIZE: usize = 4;
    const BLOCK: usize = 4;

    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        // SAFETY: four readable bytes, any alignment.
        unsafe { from.cast::<f32>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn widen(from: *const u8, to: *mut f32) {
        // SAFETY: 64 bytes of source and target, which do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, to.cast(), 64) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut f32, width: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            x86::transpose_f32(from, stride, to, width);
            #[cfg(not(target_arch = "x86_64"))]
            transpose_plain::<Self>(from, stride, to, width);
        }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;
    const BLOCK: usize = 8;

    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        // SAFETY: two readable bytes, any alignment.
        f32::from_bits(u32::from(unsafe { from.cast::<u16>().read_unaligned() }) << 16)
    }

    #[inline(always)]
    unsafe fn widen(from: *const u8, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            x86::widen_bf16(from, to);
            #[cfg(not(target_arch = "x86_64"))]
            for j in 0..16 {
                *to.add(j) = Self::read(from.add(2 * j));
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut f32, width: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            x86::transpose_bf16(from, stride, to, width);
            #[cfg(not(target_arch = "x86_64"))]
            transpose_plain::<Self>(from, stride, to, width);
        }
    }
}

/// # Safety
/// As [`Element::transpose`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn transpose_plain<E: Element>(from: *const u8, stride: usize, to: *mut f32, width: usize) {
    for p in 0..E::BLOCK {
        for j in 0..E::BLOCK {
            // SAFETY: inside the block.
            unsafe { *to.add(p * width + j) = E::read(from.add(E::SIZE * (j * stride + p))) }
        }
    }
}

/// Right as bytes from one element on.
#[derive(Clone, Copy)]
struct Source {
    bytes: *const u8,
    k_stride: usize,
    col_stride: usize,
}

impl Source {
    /// The same from element (p, j) on.
    fn at<E: Element>(self, p: usize, j: usize) -> Self {
        Self { bytes: self.bytes.wrapping_add(E::SIZE * (p * self.k_stride + j * self.col_stride)), ..self }
    }

    /// Packs k × columns into panels.
    ///
    /// # Safety
    /// As [`right`].
    unsafe fn pack<E: Element>(self, k: usize, columns: usize, panels: Panels) {
        let Panels { data, width, stride } = panels;
        let target = |p: usize, j: usize| data.wrapping_add(j / width * stride + p * width + j % width);
        let mut done = 0;
        // SAFETY: `at` stays inside Right for p < k and j < columns, `target` inside the panels for j up to the next
        // whole panel. 16 divides the width, so 16 columns from a multiple of 16 on lie in one panel.
        unsafe {
            if self.col_stride == 1 {
                done = columns / 16 * 16;
                for p in 0..k {
                    let row = self.at::<E>(p, 0).bytes;
                    for j in (0..done).step_by(16) {
                        E::widen(row.add(E::SIZE * j), target(p, j));
                    }
                }
            } else if self.k_stride == 1 {
                done = columns / E::BLOCK * E::BLOCK;
                let whole = k / E::BLOCK * E::BLOCK;
                for j in (0..done).step_by(E::BLOCK) {
                    let (from, to) = (self.at::<E>(0, j).bytes, target(0, j));
                    for p in (0..whole).step_by(E::BLOCK) {
                        E::transpose(from.add(E::SIZE * p), self.col_stride, to.add(p * width), width);
                    }
                    for p in whole..k {
                        for r in 0..E::BLOCK {
                            *to.add(p * width + r) = E::read(from.add(E::SIZE * (r * self.col_stride + p)));
                        }
                    }
                }
            }
            for j in done..columns {
                for p in 0..k {
                    *target(p, j) = E::read(self.at::<E>(p, j).bytes);
                }
            }
            for j in columns..columns.next_multiple_of(width) {
                for p in 0..k {
                    *target(p, j) = 0.0;
                }
            }
        }
    }
}

/// The vector paths. 128 bits at a time: transposing is bound by shuffles, which wider vectors do not speed up.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_castsi128_ps, _mm_loadu_ps, _mm_loadu_si128, _mm_movehl_ps, _mm_movelh_ps, _mm_setzero_si128,
        _mm_storeu_ps, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpackhi_ps, _mm_unpacklo_epi16,
        _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm_unpacklo_ps,
    };

    /// Four columns of four f32, to four rows.
    ///
    /// # Safety
    /// As [`super::Element::transpose`].
    #[inline(always)]
    pub(in super::super) unsafe fn transpose_f32(from: *const u8, stride: usize, to: *mut f32, width: usize) {
        // SAFETY: four unaligned loads and stores of four values inside what the caller gave.
        unsafe {
            let column = |j: usize| _mm_loadu_ps(from.add(4 * j * stride).cast());
            let (a, b, c, d) = (column(0), column(1), column(2), column(3));
            let (ab_low, cd_low) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            _mm_storeu_ps(to, _mm_movelh_ps(ab_low, cd_low));
            _mm_storeu_ps(to.add(width), _mm_movehl_ps(cd_low, ab_low));
            _mm_storeu_ps(to.add(2 * width), _mm_movelh_ps(ab_high, cd_high));
            _mm_storeu_ps(to.add(3 * width), _mm_movehl_ps(cd_high, ab_high));
        }
    }

    /// Sixteen consecutive bf16 to f32: a zero half word goes below each.
    ///
    /// # Safety
    /// As [`super::Element::widen`].
    #[inline(always)]
    pub(super) unsafe fn widen_bf16(from: *const u8, to: *mut f32) {
        // SAFETY: 32 readable bytes, 16 writable values.
        unsafe {
            store_widened(_mm_loadu_si128(from.cast()), to);
            store_widened(_mm_loadu_si128(from.add(16).cast()), to.add(8));
        }
    }

    /// # Safety
    /// Eight values are writable.
    #[inline(always)]
    unsafe fn store_widened(eight: __m128i, to: *mut f32) {
        // SAFETY: eight writable values.
        unsafe {
            let zero = _mm_setzero_si128();
            _mm_storeu_ps(to, _mm_castsi128_ps(_mm_unpacklo_epi16(zero, eight)));
            _mm_storeu_ps(to.add(4), _mm_castsi128_ps(_mm_unpackhi_epi16(zero, eight)));
        }
    }

    /// Eight columns of eight bf16, to eight rows of f32.
    ///
    /// # Safety
    /// As [`super::Element::transpose`].
    #[inline(always)]
    pub(super) unsafe fn transpose_bf16(from: *const u8, stride: usize, to: *mut f32, width: usize) {
        // SAFETY: eight unaligned loads of eight elements, and eight stores of eight values, inside what the caller gave.
        unsafe {
            let column = |j: usize| -> __m128i { _mm_loadu_si128(from.add(2 * j * stride).cast()) };
            let (c0, c1, c2, c3) = (column(0), column(1), column(2), column(3));
            let (c4, c5, c6, c7) = (column(4), column(5), column(6), column(7));
            // Pairs of columns, then fours, then eights; `low` holds the first half of k, `high` the second.
            let (low01, high01) = (_mm_unpacklo_epi16(c0, c1), _mm_unpackhi_epi16(c0, c1));
            let (low23, high23) = (_mm_unpacklo_epi16(c2, c3), _mm_unpackhi_epi16(c2, c3));
            let (low45, high45) = (_mm_unpacklo_epi16(c4, c5), _mm_unpackhi_epi16(c4, c5));
            let (low67, high67) = (_mm_unpacklo_epi16(c6, c7), _mm_unpackhi_epi16(c6, c7));
            let quarters = [
                (_mm_unpacklo_epi32(low01, low23), _mm_unpacklo_epi32(low45, low67)),
                (_mm_unpackhi_epi32(low01, low23), _mm_unpackhi_epi32(low45, low67)),
                (_mm_unpacklo_epi32(high01, high23), _mm_unpacklo_epi32(high45, high67)),
                (_mm_unpackhi_epi32(high01, high23), _mm_unpackhi_epi32(high45, high67)),
            ];
            for (quarter, (left, right)) in quarters.into_iter().enumerate() {
                store_widened(_mm_unpacklo_epi64(left, right), to.add(2 * quarter * width));
                store_widened(_mm_unpackhi_epi64(left, right), to.add((2 * quarter + 1) * width));
            }
        }
    }
}
