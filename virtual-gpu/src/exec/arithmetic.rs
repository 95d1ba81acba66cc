//! Which function an arithmetic opcode is. `None`: no such instruction here.
//!
//! Approximations (ex2, rsqrt, tanh, …) are rounded results of the exact function: their last bits are hardware's own.

use super::alu::*;

type Unary32 = fn(&V32) -> V32;
type Binary32 = fn(&V32, &V32) -> V32;
type Ternary32 = fn(&V32, &V32, &V32) -> V32;
type Unary64 = fn(&V64) -> V64;
type Binary64 = fn(&V64, &V64) -> V64;
type Ternary64 = fn(&V64, &V64, &V64) -> V64;

/// Words without modifiers that change nothing here, and whether results and operands are flushed.
fn plain<'a>(words: &[&'a str]) -> (Vec<&'a str>, bool) {
    let ftz = words.contains(&"ftz");
    (words.iter().copied().filter(|word| *word != "ftz").collect(), ftz)
}

/// A function of f32, flushing or not.
macro_rules! real1 {
    ($ftz:expr, $x:ident => $e:expr) => {
        Some(if $ftz {
            |a| {
                map1(a, |x| {
                    let $x = flush(f(x));
                    flush($e).to_bits()
                })
            }
        } else {
            |a| {
                map1(a, |x| {
                    let $x = f(x);
                    let y: f32 = $e;
                    y.to_bits()
                })
            }
        })
    };
}

macro_rules! real2 {
    ($ftz:expr, $x:ident, $y:ident => $e:expr) => {
        Some(if $ftz {
            |a, b| {
                map2(a, b, |x, y| {
                    let ($x, $y) = (flush(f(x)), flush(f(y)));
                    flush($e).to_bits()
                })
            }
        } else {
            |a, b| {
                map2(a, b, |x, y| {
                    let ($x, $y) = (f(x), f(y));
                    let z: f32 = $e;
                    z.to_bits()
                })
            }
        })
    };
}

/// max or min as PTX has them: a NaN gives way.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b || a == b && a.is_sign_positive() {
        a
    } else {
        b
    }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || a == b && a.is_sign_negative() {
        a
    } else {
        b
    }
}

pub(super) fn unary32(words: &[&str]) -> Option<Unary32> {
    let (words, ftz) = plain(words);
    match &words[..] {
        ["neg", "s32"] => Some(|a| map1(a, u32::wrapping_neg)),
        ["neg", "s16"] => Some(|a| map1(a, |a| a.wrapping_neg() & 0xffff)),
        ["abs", "s32"] => Some(|a| map1(a, |a| (a as i32).wrapping_abs() as u32)),
        ["not", "b32"] => Some(|a| map1(a, |a| !a)),
        ["not", "b16"] => Some(|a| map1(a, |a| !a & 0xffff)),
        ["popc", "b32"] => Some(|a| map1(a, u32::count_ones)),
        ["clz", "b32"] => Some(|a| map1(a, u32::leading_zeros)),
        ["brev", "b32"] => Some(|a| map1(a, u32::reverse_bits)),
        ["bfind", "u32"] => Some(|a| map1(a, |a| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() })),
        ["neg", "f32"] => real1!(ftz, x => -x),
        ["abs", "f32"] => real1!(ftz, x => x.abs()),
        ["neg", "bf16"] => Some(|a| map1(a, |a| a & 0xffff ^ 0x8000)),
        ["neg", "bf16x2"] => Some(|a| map1(a, |a| a ^ 0x8000_8000)),
        ["abs", "bf16"] => Some(|a| map1(a, |a| a & 0x7fff)),
        ["abs", "bf16x2"] => Some(|a| map1(a, |a| a & 0x7fff_7fff)),
        ["sqrt", "rn" | "approx", "f32"] => real1!(ftz, x => x.sqrt()),
        ["rsqrt", "approx", "f32"] => real1!(ftz, x => (1.0 / f64::from(x).sqrt()) as f32),
        ["rcp", "rn" | "approx", "f32"] => real1!(ftz, x => 1.0 / x),
        ["ex2", "approx", "f32"] => real1!(ftz, x => f64::from(x).exp2() as f32),
        ["lg2", "approx", "f32"] => real1!(ftz, x => f64::from(x).log2() as f32),
        ["sin", "approx", "f32"] => real1!(ftz, x => f64::from(x).sin() as f32),
        ["cos", "approx", "f32"] => real1!(ftz, x => f64::from(x).cos() as f32),
        ["tanh", "approx", "f32"] => real1!(ftz, x => f64::from(x).tanh() as f32),
        _ => None,
    }
}

pub(super) fn binary32(words: &[&str]) -> Option<Binary32> {
    let (words, ftz) = plain(words);
    match &words[..] {
        ["add", "s32" | "u32"] => Some(|a, b| map2(a, b, u32::wrapping_add)),
        ["sub", "s32" | "u32"] => Some(|a, b| map2(a, b, u32::wrapping_sub)),
        ["mul", "lo", "s32" | "u32"] => Some(|a, b| map2(a, b, u32::wrapping_mul)),
        ["mul", "hi", "u32"] => Some(|a, b| map2(a, b, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32)),
        ["mul", "hi", "s32"] => {
            Some(|a, b| map2(a, b, |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32))
        }
        ["div", "u32"] => Some(|a, b| map2(a, b, |a, b| a.checked_div(b).unwrap_or(u32::MAX))),
        ["div", "s32"] => {
            Some(|a, b| map2(a, b, |a, b| if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 }))
        }
        ["rem", "u32"] => Some(|a, b| map2(a, b, |a, b| a.checked_rem(b).unwrap_or(a))),
        ["rem", "s32"] => {
            Some(|a, b| map2(a, b, |a, b| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }))
        }
        ["min", "u32"] => Some(|a, b| map2(a, b, u32::min)),
        ["max", "u32"] => Some(|a, b| map2(a, b, u32::max)),
        ["min", "s32"] => Some(|a, b| map2(a, b, |a, b| (a as i32).min(b as i32) as u32)),
        ["max", "s32"] => Some(|a, b| map2(a, b, |a, b| (a as i32).max(b as i32) as u32)),
        ["add", "s16" | "u16"] => Some(|a, b| map2(a, b, |a, b| a.wrapping_add(b) & 0xffff)),
        ["sub", "s16" | "u16"] => Some(|a, b| map2(a, b, |a, b| a.wrapping_sub(b) & 0xffff)),
        ["mul", "lo", "s16" | "u16"] => Some(|a, b| map2(a, b, |a, b| a.wrapping_mul(b) & 0xffff)),
        ["and", "b32" | "b16"] => Some(|a, b| map2(a, b, |a, b| a & b)),
        ["or", "b32" | "b16"] => Some(|a, b| map2(a, b, |a, b| a | b)),
        ["xor", "b32" | "b16"] => Some(|a, b| map2(a, b, |a, b| a ^ b)),
        ["shl", "b32"] => Some(|a, b| map2(a, b, |a, b| a.checked_shl(b).unwrap_or(0))),
        ["shl", "b16"] => Some(|a, b| map2(a, b, |a, b| a.checked_shl(b).unwrap_or(0) & 0xffff)),
        ["shr", "b32" | "u32" | "u16" | "b16"] => Some(|a, b| map2(a, b, |a, b| a.checked_shr(b).unwrap_or(0))),
        ["shr", "s32"] => Some(|a, b| map2(a, b, |a, b| (a as i32 >> b.min(31)) as u32)),
        ["shr", "s16"] => Some(|a, b| map2(a, b, |a, b| (i32::from(a as i16) >> b.min(15)) as u32 & 0xffff)),
        ["add", "f32"] | ["add", "rn", "f32"] => real2!(ftz, x, y => x + y),
        ["sub", "f32"] | ["sub", "rn", "f32"] => real2!(ftz, x, y => x - y),
        ["mul", "f32"] | ["mul", "rn", "f32"] => real2!(ftz, x, y => x * y),
        ["div", "rn" | "full" | "approx", "f32"] => real2!(ftz, x, y => x / y),
        ["min", "f32"] => real2!(ftz, x, y => smaller(x, y)),
        ["max", "f32"] => real2!(ftz, x, y => larger(x, y)),
        ["copysign", "f32"] => Some(|a, b| map2(a, b, |a, b| b & 0x7fff_ffff | a & 0x8000_0000)),
        ["add", "bf16x2"] | ["add", "rn", "bf16x2"] => {
            Some(|a, b| map2(a, b, |a, b| halves(&[a, b], |v| f64::from(v[0]) + f64::from(v[1]))))
        }
        ["sub", "bf16x2"] | ["sub", "rn", "bf16x2"] => {
            Some(|a, b| map2(a, b, |a, b| halves(&[a, b], |v| f64::from(v[0]) - f64::from(v[1]))))
        }
        ["mul", "bf16x2"] | ["mul", "rn", "bf16x2"] => {
            Some(|a, b| map2(a, b, |a, b| halves(&[a, b], |v| f64::from(v[0]) * f64::from(v[1]))))
        }
        ["max", "bf16x2"] => Some(|a, b| map2(a, b, |a, b| halves(&[a, b], |v| f64::from(larger(v[0], v[1]))))),
        ["min", "bf16x2"] => Some(|a, b| map2(a, b, |a, b| halves(&[a, b], |v| f64::from(smaller(v[0], v[1]))))),
        ["max", "bf16"] => Some(|a, b| map2(a, b, |a, b| bf16_of(f64::from(larger(bf16(a), bf16(b)))))),
        ["min", "bf16"] => Some(|a, b| map2(a, b, |a, b| bf16_of(f64::from(smaller(bf16(a), bf16(b)))))),
        _ => None,
    }
}

pub(super) fn ternary32(words: &[&str]) -> Option<Ternary32> {
    let (words, ftz) = plain(words);
    match &words[..] {
        ["mad", "lo", "s32" | "u32"] => Some(|a, b, c| map3(a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c))),
        ["mad", "hi", "u32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)))
        }
        ["fma", "rn", "f32"] if ftz => Some(|a, b, c| {
            let small = |a: &V32| map1(a, |a| flush(f(a)).to_bits());
            small(&fma(&small(a), &small(b), &small(c)))
        }),
        ["fma", "rn", "f32"] => Some(fma),
        ["fma", "rm", "f32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| fma_toward(f(a), f(b), f(c), Toward::Down).to_bits()))
        }
        ["fma", "rp", "f32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| fma_toward(f(a), f(b), f(c), Toward::Up).to_bits()))
        }
        ["fma", "rz", "f32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| fma_toward(f(a), f(b), f(c), Toward::Zero).to_bits()))
        }
        ["fma", "rn", "bf16x2"] => Some(|a, b, c| {
            map3(a, b, c, |a, b, c| halves(&[a, b, c], |v| f64::from(v[0]) * f64::from(v[1]) + f64::from(v[2])))
        }),
        ["fma", "rn", "bf16"] => Some(|a, b, c| {
            map3(a, b, c, |a, b, c| bf16_of(f64::from(bf16(a)) * f64::from(bf16(b)) + f64::from(bf16(c))))
        }),
        ["prmt", "b32"] => Some(|a, b, c| map3(a, b, c, prmt)),
        ["bfe", "u32"] => Some(|a, b, c| map3(a, b, c, |a, b, c| bfe(a, b, c, false))),
        ["bfe", "s32"] => Some(|a, b, c| map3(a, b, c, |a, b, c| bfe(a, b, c, true))),
        // {b, a} shifted: the high half of a shift to the left, the low half of one to the right.
        ["shf", "l", "wrap", "b32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32))
        }
        ["shf", "r", "wrap", "b32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32))
        }
        ["shf", "l", "clamp", "b32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| ((u64::from(b) << 32 | u64::from(a)) << c.min(32) >> 32) as u32))
        }
        ["shf", "r", "clamp", "b32"] => {
            Some(|a, b, c| map3(a, b, c, |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32))
        }
        _ => None,
    }
}

pub(super) fn unary64(words: &[&str]) -> Option<Unary64> {
    match words {
        ["neg", "s64"] => Some(|a| map1(a, u64::wrapping_neg)),
        ["abs", "s64"] => Some(|a| map1(a, |a| (a as i64).wrapping_abs() as u64)),
        ["not", "b64"] => Some(|a| map1(a, |a| !a)),
        ["brev", "b64"] => Some(|a| map1(a, u64::reverse_bits)),
        ["neg", "f64"] => Some(|a| map1(a, |a| (-d(a)).to_bits())),
        ["abs", "f64"] => Some(|a| map1(a, |a| d(a).abs().to_bits())),
        ["sqrt", "rn", "f64"] => Some(|a| map1(a, |a| d(a).sqrt().to_bits())),
        ["rcp", "rn", "f64"] => Some(|a| map1(a, |a| (1.0 / d(a)).to_bits())),
        _ => None,
    }
}

pub(super) fn binary64(words: &[&str]) -> Option<Binary64> {
    match words {
        ["add", "s64" | "u64"] => Some(|a, b| map2(a, b, u64::wrapping_add)),
        ["sub", "s64" | "u64"] => Some(|a, b| map2(a, b, u64::wrapping_sub)),
        ["mul", "lo", "s64" | "u64"] => Some(|a, b| map2(a, b, u64::wrapping_mul)),
        ["mul", "hi", "u64"] => Some(|a, b| map2(a, b, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64)),
        ["div", "u64"] => Some(|a, b| map2(a, b, |a, b| a.checked_div(b).unwrap_or(u64::MAX))),
        ["div", "s64"] => {
            Some(|a, b| map2(a, b, |a, b| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 }))
        }
        ["rem", "u64"] => Some(|a, b| map2(a, b, |a, b| a.checked_rem(b).unwrap_or(a))),
        ["rem", "s64"] => {
            Some(|a, b| map2(a, b, |a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }))
        }
        ["min", "u64"] => Some(|a, b| map2(a, b, u64::min)),
        ["max", "u64"] => Some(|a, b| map2(a, b, u64::max)),
        ["min", "s64"] => Some(|a, b| map2(a, b, |a, b| (a as i64).min(b as i64) as u64)),
        ["max", "s64"] => Some(|a, b| map2(a, b, |a, b| (a as i64).max(b as i64) as u64)),
        ["and", "b64"] => Some(|a, b| map2(a, b, |a, b| a & b)),
        ["or", "b64"] => Some(|a, b| map2(a, b, |a, b| a | b)),
        ["xor", "b64"] => Some(|a, b| map2(a, b, |a, b| a ^ b)),
        ["add", "f64"] | ["add", "rn", "f64"] => Some(|a, b| map2(a, b, |a, b| (d(a) + d(b)).to_bits())),
        ["sub", "f64"] | ["sub", "rn", "f64"] => Some(|a, b| map2(a, b, |a, b| (d(a) - d(b)).to_bits())),
        ["mul", "f64"] | ["mul", "rn", "f64"] => Some(|a, b| map2(a, b, |a, b| (d(a) * d(b)).to_bits())),
        ["div", "rn", "f64"] => Some(|a, b| map2(a, b, |a, b| (d(a) / d(b)).to_bits())),
        ["min", "f64"] => Some(|a, b| map2(a, b, |a, b| d(a).min(d(b)).to_bits())),
        ["max", "f64"] => Some(|a, b| map2(a, b, |a, b| d(a).max(d(b)).to_bits())),
        _ => None,
    }
}

pub(super) fn ternary64(words: &[&str]) -> Option<Ternary64> {
    match words {
        ["mad", "lo", "s64" | "u64"] => Some(|a, b, c| map3(a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c))),
        ["fma", "rn", "f64"] => Some(|a, b, c| map3(a, b, c, |a, b, c| d(a).mul_add(d(b), d(c)).to_bits())),
        _ => None,
    }
}

/// The product of 32-bit factors in 64 bits, and the same with an addend. Of 16-bit factors it is another type.
#[allow(clippy::type_complexity)]
pub(super) fn wide(kind: &str) -> Option<(fn(&V32, &V32) -> V64, fn(&V32, &V32, &V64) -> V64)> {
    match kind {
        "u32" => Some((
            |a, b| map2(a, b, |a, b| u64::from(a) * u64::from(b)),
            |a, b, c| map3(a, b, c, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c)),
        )),
        "s32" => Some((
            |a, b| map2(a, b, |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64),
            |a, b, c| map3(a, b, c, |a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c)),
        )),
        _ => None,
    }
}

pub(super) fn shift64(name: &str, kind: &str) -> Option<fn(&V64, &V32) -> V64> {
    match (name, kind) {
        ("shl", "b64") => Some(|a, b| map2(a, b, |a, b| a.checked_shl(b).unwrap_or(0))),
        ("shr", "b64" | "u64") => Some(|a, b| map2(a, b, |a, b| a.checked_shr(b).unwrap_or(0))),
        ("shr", "s64") => Some(|a, b| map2(a, b, |a, b| (a as i64 >> b.min(63)) as u64)),
        _ => None,
    }
}

pub(super) fn narrow(name: &str) -> Option<fn(&V64) -> V32> {
    match name {
        "popc" => Some(|a| map1(a, u64::count_ones)),
        "clz" => Some(|a| map1(a, u64::leading_zeros)),
        _ => None,
    }
}

/// Comparisons by a macro: an ordered one is false where a NaN is, an unordered one true.
macro_rules! compare {
    ($how:expr, $a:ident, $b:ident, $of:expr) => {
        match $how {
            "eq" => Some(|$a, $b| mask2($a, $b, |a, b| $of(a) == $of(b))),
            "ne" => Some(|$a, $b| mask2($a, $b, |a, b| $of(a) != $of(b))),
            "lt" | "lo" => Some(|$a, $b| mask2($a, $b, |a, b| $of(a) < $of(b))),
            "le" | "ls" => Some(|$a, $b| mask2($a, $b, |a, b| $of(a) <= $of(b))),
            "gt" | "hi" => Some(|$a, $b| mask2($a, $b, |a, b| $of(a) > $of(b))),
            "ge" | "hs" => Some(|$a, $b| mask2($a, $b, |a, b| $of(a) >= $of(b))),
            _ => None,
        }
    };
}

fn signed16(a: u32) -> i32 {
    i32::from(a as i16)
}

fn signed32(a: u32) -> i32 {
    a as i32
}

fn same<T>(a: T) -> T {
    a
}

fn signed64(a: u64) -> i64 {
    a as i64
}

pub(super) fn compare32(how: &str, kind: &str) -> Option<fn(&V32, &V32) -> u32> {
    match kind {
        "s32" => compare!(how, a, b, signed32),
        "s16" => compare!(how, a, b, signed16),
        "u32" | "b32" | "u16" | "b16" => compare!(how, a, b, same),
        "f32" => match how {
            // `!=` of f32 holds for NaN too; PTX's `ne` does not.
            "ne" => Some(|a, b| mask2(a, b, |a, b| f(a) < f(b) || f(a) > f(b))),
            "equ" => Some(|a, b| mask2(a, b, |a, b| !(f(a) < f(b) || f(a) > f(b)))),
            "neu" => Some(|a, b| mask2(a, b, |a, b| f(a) != f(b))),
            "ltu" => Some(|a, b| mask2(a, b, |a, b| !matches!(f(a).partial_cmp(&f(b)), Some(c) if c.is_ge()))),
            "leu" => Some(|a, b| mask2(a, b, |a, b| !matches!(f(a).partial_cmp(&f(b)), Some(c) if c.is_gt()))),
            "gtu" => Some(|a, b| mask2(a, b, |a, b| !matches!(f(a).partial_cmp(&f(b)), Some(c) if c.is_le()))),
            "geu" => Some(|a, b| mask2(a, b, |a, b| !matches!(f(a).partial_cmp(&f(b)), Some(c) if c.is_lt()))),
            "num" => Some(|a, b| mask2(a, b, |a, b| !f(a).is_nan() && !f(b).is_nan())),
            "nan" => Some(|a, b| mask2(a, b, |a, b| f(a).is_nan() || f(b).is_nan())),
            how => compare!(how, a, b, f),
        },
        _ => None,
    }
}

pub(super) fn compare64(how: &str, kind: &str) -> Option<fn(&V64, &V64) -> u32> {
    match kind {
        "s64" => compare!(how, a, b, signed64),
        "u64" | "b64" => compare!(how, a, b, same),
        "f64" => match how {
            "ne" => Some(|a, b| mask2(a, b, |a, b| d(a) < d(b) || d(a) > d(b))),
            "neu" => Some(|a, b| mask2(a, b, |a, b| d(a) != d(b))),
            how => compare!(how, a, b, d),
        },
        _ => None,
    }
}
