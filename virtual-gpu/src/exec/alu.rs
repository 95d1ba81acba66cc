//! Arithmetic of a warp: every function works on all 32 lanes, and whoever calls keeps those of the active ones.

/// 32 lanes of 32 bits; smaller values lie in the low bits.
pub(super) type V32 = [u32; 32];
/// 32 lanes of 64 bits.
pub(super) type V64 = [u64; 32];

#[inline(always)]
pub(super) fn map1<A: Copy, R: Copy + Default>(a: &[A; 32], f: impl Fn(A) -> R) -> [R; 32] {
    let mut out = [R::default(); 32];
    for lane in 0..32 {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
pub(super) fn map2<A: Copy, B: Copy, R: Copy + Default>(a: &[A; 32], b: &[B; 32], f: impl Fn(A, B) -> R) -> [R; 32] {
    let mut out = [R::default(); 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
pub(super) fn map3<A: Copy, B: Copy, C: Copy, R: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    c: &[C; 32],
    f: impl Fn(A, B, C) -> R,
) -> [R; 32] {
    let mut out = [R::default(); 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

/// A bit for each lane for which `f` holds.
#[inline(always)]
pub(super) fn mask2<A: Copy, B: Copy>(a: &[A; 32], b: &[B; 32], f: impl Fn(A, B) -> bool) -> u32 {
    (0..32).fold(0, |mask, lane| mask | u32::from(f(a[lane], b[lane])) << lane)
}

/// Zero with the sign of a denormal, anything else as it is.
pub(super) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

#[inline(always)]
pub(super) fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

#[inline(always)]
pub(super) fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// a·b + c, rounded once.
pub(super) fn fma(a: &V32, b: &V32, c: &V32) -> V32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has both.
        return unsafe { fma_vectors(a, b, c) };
    }
    map3(a, b, c, |a, b, c| f(a).mul_add(f(b), f(c)).to_bits())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_vectors(a: &V32, b: &V32, c: &V32) -> V32 {
    map3(a, b, c, |a, b, c| f(a).mul_add(f(b), f(c)).to_bits())
}

/// Where a sum is rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toward {
    Down,
    Up,
    Zero,
}

/// a·b + c rounded in one direction.
pub(super) fn fma_toward(a: f32, b: f32, c: f32, toward: Toward) -> f32 {
    let near = a.mul_add(b, c);
    if near.is_nan() || !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return near;
    }
    // The product is exact in f64; of the sum the lost part is.
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let of_c = sum - product;
    let lost = (product - (sum - of_c)) + (c - of_c);
    // How far the nearest value is above the exact one.
    let above = (f64::from(near) - sum) - lost;
    match toward {
        Toward::Down if above > 0.0 => near.next_down(),
        Toward::Up if above < 0.0 => near.next_up(),
        Toward::Zero if above > 0.0 && near > 0.0 => near.next_down(),
        Toward::Zero if above < 0.0 && near < 0.0 => near.next_up(),
        _ => near,
    }
}

/// The bf16 nearest to an exact sum: what f64 cannot hold decides no tie.
pub(super) fn bf16_of(x: f64) -> u32 {
    let mut near = x as f32;
    if f64::from(near) != x && !x.is_nan() {
        // Towards zero, with a last bit that says that something is missing.
        if f64::from(near).abs() > x.abs() {
            near = f32::from_bits(near.to_bits() - 1);
        }
        near = f32::from_bits(near.to_bits() | 1);
    }
    u32::from(half::bf16::from_f32(near).to_bits())
}

/// The value of a bf16.
pub(super) fn bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// Both halves of words through a function of values.
pub(super) fn halves(words: &[u32], g: impl Fn(&[f32]) -> f64) -> u32 {
    let side = |shift: u32| {
        let mut values = [0.0; 3];
        for (value, word) in values.iter_mut().zip(words) {
            *value = bf16(word >> shift & 0xffff);
        }
        bf16_of(g(&values[..words.len()]))
    };
    side(16) << 16 | side(0)
}

/// prmt in its default mode: bytes of {b, a} chosen by four nibbles; the top bit of a nibble spreads the byte's sign.
pub(super) fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let pick = |nibble: u32| {
        let byte = bytes[(nibble & 7) as usize];
        if nibble & 8 == 0 {
            byte
        } else if byte & 0x80 == 0 {
            0
        } else {
            0xff
        }
    };
    u32::from_le_bytes([0, 4, 8, 12].map(|shift| pick(selector >> shift & 15)))
}

/// Bit i of the result is bit (a·4 + b·2 + c) of the table.
pub(super) fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|index| table >> index & 1 == 1).fold(0, |found, index| {
        let side = |bit: u32, value: u32| if bit == 1 { value } else { !value };
        found | side(index >> 2 & 1, a) & side(index >> 1 & 1, b) & side(index & 1, c)
    })
}

/// Bits of `a` from `position` on, `length` of them, with or without sign.
pub(super) fn bfe(a: u32, position: u32, length: u32, signed: bool) -> u32 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let sign = if signed { a >> (position + length - 1).min(31) & 1 } else { 0 };
    (0..32).fold(0, |found, bit| {
        let from = position + bit;
        let value = if bit < length && from < 32 { a >> from & 1 } else { sign };
        found | value << bit
    })
}

/// `b` with `length` bits from `position` on replaced by those of `a`.
pub(super) fn bfi(a: u32, b: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 0xff, length & 0xff);
    let mask = (0..length).map(|bit| position + bit).filter(|&bit| bit < 32).fold(0, |mask, bit| mask | 1 << bit);
    let moved = if position < 32 { a << position } else { 0 };
    b & !mask | moved & mask
}

/// C + A·B of m16n8k16 over bf16 in f32, k ascending. Fragments as PTX lays them over the lanes.
#[allow(clippy::needless_range_loop)] // A lane indexes every fragment alike.
pub(super) fn mma(a: [&V32; 4], b: [&V32; 2], c: [&V32; 4]) -> [V32; 4] {
    let mut left = [[0.0_f32; 16]; 16];
    let mut right = [[0.0_f32; 8]; 16];
    for lane in 0..32 {
        let (row, pair) = (lane / 4, lane % 4 * 2);
        for (index, word) in a.iter().map(|word| word[lane]).enumerate() {
            let (i, k) = (row + index % 2 * 8, pair + index / 2 * 8);
            left[i][k] = bf16(word & 0xffff);
            left[i][k + 1] = f32::from_bits(word & 0xffff_0000);
        }
        for (index, word) in b.iter().map(|word| word[lane]).enumerate() {
            let k = pair + index * 8;
            right[k][row] = bf16(word & 0xffff);
            right[k + 1][row] = f32::from_bits(word & 0xffff_0000);
        }
    }
    let mut sums = [[0.0_f32; 8]; 16];
    for lane in 0..32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        for half in 0..2 {
            sums[row + 8 * half][column] = f(c[2 * half][lane]);
            sums[row + 8 * half][column + 1] = f(c[2 * half + 1][lane]);
        }
    }
    for (sums, left) in sums.iter_mut().zip(&left) {
        for (left, right) in left.iter().zip(&right) {
            for (sum, right) in sums.iter_mut().zip(right) {
                // A product of two bf16 is exact in f32.
                *sum += left * right;
            }
        }
    }
    let mut out = [[0; 32]; 4];
    for lane in 0..32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        for half in 0..2 {
            out[2 * half][lane] = sums[row + 8 * half][column].to_bits();
            out[2 * half + 1][lane] = sums[row + 8 * half][column + 1].to_bits();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_operations_are_those_of_the_manual() {
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 0x7610), 0x7766_1100);
        assert_eq!(prmt(0x80, 0, 0x8888), 0xffff_ffff);
        assert_eq!(lop3(0b1100, 0b1010, 0, 0xc0), 0b1000, "a & b");
        assert_eq!(lop3(5, 3, 9, 0x96), 5 ^ 3 ^ 9);
        assert_eq!((bfe(0xabcd, 4, 8, false), bfe(0xf0, 4, 4, true), bfe(1, 0, 0, true)), (0xbc, u32::MAX, 0));
        assert_eq!(bfi(0xf, 0, 8, 4), 0xf00);
    }

    #[test]
    fn bf16_rounds_once() {
        // 1 + 2^-8 lies between 1 and 1 + 2^-7: a tie, to even. A trifle more decides it, however small.
        assert_eq!(bf16_of(1.0 + 2.0_f64.powi(-8)), 0x3f80);
        assert_eq!(bf16_of(1.0 + 2.0_f64.powi(-8) + 2.0_f64.powi(-40)), 0x3f81);
        assert_eq!(bf16_of(-1.0 - 2.0_f64.powi(-8) - 2.0_f64.powi(-40)), 0xbf81);
    }

    #[test]
    fn a_matrix_product_is_that_of_its_definition() {
        let value = |seed: usize| half::bf16::from_f32(((seed * 37 % 23) as f32 - 11.0) / 4.0);
        let a = |i: usize, k: usize| value(i * 16 + k);
        let b = |k: usize, j: usize| value(1000 + k * 8 + j);
        let pack = |low: half::bf16, high: half::bf16| u32::from(high.to_bits()) << 16 | u32::from(low.to_bits());
        let left: [V32; 4] = std::array::from_fn(|index| {
            std::array::from_fn(|lane| {
                let (i, k) = (lane / 4 + index % 2 * 8, lane % 4 * 2 + index / 2 * 8);
                pack(a(i, k), a(i, k + 1))
            })
        });
        let right: [V32; 2] = std::array::from_fn(|index| {
            std::array::from_fn(|lane| {
                let k = lane % 4 * 2 + index * 8;
                pack(b(k, lane / 4), b(k + 1, lane / 4))
            })
        });
        let start: [V32; 4] = [[1.5_f32.to_bits(); 32]; 4];
        let found = mma(left.each_ref(), right.each_ref(), start.each_ref());
        for lane in 0..32 {
            for (index, found) in found.iter().enumerate() {
                let (i, j) = (lane / 4 + index / 2 * 8, lane % 4 * 2 + index % 2);
                let expected: f64 = (0..16).map(|k| a(i, k).to_f64() * b(k, j).to_f64()).sum::<f64>() + 1.5;
                assert!((f64::from(f(found[lane])) - expected).abs() < 1e-4, "[{i}, {j}]");
            }
        }
    }

    #[test]
    fn sums_are_rounded_to_the_side_asked_for() {
        // 1 + 2⁻³⁰ and 1 − 2⁻³⁰ lie between neighbours of 1.
        let small = 2.0_f32.powi(-15);
        let up = 1.0_f32.next_up();
        let down = 1.0_f32.next_down();
        for (a, toward, expected) in [
            (small, Toward::Down, 1.0),
            (small, Toward::Up, up),
            (small, Toward::Zero, 1.0),
            (-small, Toward::Down, down),
            (-small, Toward::Up, 1.0),
            (-small, Toward::Zero, down),
        ] {
            assert_eq!(fma_toward(a, small, 1.0, toward), expected, "{a} {toward:?}");
        }
        assert_eq!(fma_toward(-small, small, -1.0, Toward::Zero), -1.0);
        assert_eq!(fma_toward(3.0, 5.0, 1.0, Toward::Up), 16.0, "an exact sum stays");
        assert!(fma_toward(f32::MAX, 2.0, 0.0, Toward::Up).is_infinite());
        assert_eq!(fma_toward(f32::MAX, 2.0, 0.0, Toward::Down), f32::MAX);
    }
}
