//! cvt: between integers and floating-point numbers.

use super::program::{Conversion, Number, Round};

/// One lane.
pub(super) fn convert(bits: u64, how: Conversion) -> u64 {
    let Conversion { from, to, round, whole, saturate } = how;
    let real = |value: f64| real(if whole { to_whole(value, round) } else { value }, to, round, saturate);
    match from {
        Number::Unsigned(width) => integer(i128::from(low(bits, width)), to, saturate),
        Number::Signed(width) => integer(i128::from(signed(bits, width)), to, saturate),
        Number::F32 => real(f64::from(f32::from_bits(bits as u32))),
        Number::F64 => real(f64::from_bits(bits)),
        Number::Bf16 => real(f64::from(super::alu::bf16(bits as u32 & 0xffff))),
        Number::F16 => real(half::f16::from_bits(bits as u16).to_f64()),
    }
}

fn low(bits: u64, width: u32) -> u64 {
    if width == 64 { bits } else { bits & ((1 << width) - 1) }
}

fn signed(bits: u64, width: u32) -> i64 {
    let spare = 64 - width;
    (bits << spare) as i64 >> spare
}

/// The least and the largest number of a type.
fn range(to: Number) -> Option<(i128, i128, u32)> {
    match to {
        Number::Unsigned(width) => Some((0, (1 << width) - 1, width)),
        Number::Signed(width) => Some((-(1 << (width - 1)), (1 << (width - 1)) - 1, width)),
        _ => None,
    }
}

fn integer(value: i128, to: Number, saturate: bool) -> u64 {
    match range(to) {
        // A narrow result is extended to its register by its own sign.
        Some((least, most, width)) => {
            let value = if saturate { value.clamp(least, most) } else { value };
            match to {
                Number::Signed(_) => signed(value as u64, width) as u64,
                _ => low(value as u64, width),
            }
        }
        None => match to {
            Number::F32 => u64::from((value as f32).to_bits()),
            Number::F64 => (value as f64).to_bits(),
            Number::Bf16 => u64::from(super::alu::bf16_of(value as f64)),
            _ => u64::from(half::f16::from_f64(value as f64).to_bits()),
        },
    }
}

fn to_whole(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
    }
}

fn real(value: f64, to: Number, round: Round, saturate: bool) -> u64 {
    if let Some((least, most, _)) = range(to) {
        let whole = to_whole(value, round);
        // NaN is 0; what is too large becomes the nearest number of the type.
        let whole = if whole.is_nan() { 0 } else { (whole as i128).clamp(least, most) };
        return integer(whole, to, false);
    }
    let value = if saturate { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
    match to {
        Number::F64 => value.to_bits(),
        Number::Bf16 if round == Round::Nearest => u64::from(super::alu::bf16_of(value)),
        Number::Bf16 => u64::from((value as f32).to_bits() >> 16),
        Number::F16 => u64::from(half::f16::from_f64(value).to_bits()),
        _ => {
            let near = value as f32;
            // Directed rounding of what f32 cannot hold; from f32 itself a whole number is asked for.
            let exact = f64::from(near);
            let rounded = match round {
                Round::Zero if exact.abs() > value.abs() => f32::from_bits(near.to_bits() - 1),
                Round::Down if exact > value => near.next_down(),
                Round::Up if exact < value => near.next_up(),
                _ => near,
            };
            u64::from(rounded.to_bits())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_round_and_extend() {
        let float = |x: f32| u64::from(x.to_bits());
        let (n, z) = (Round::Nearest, Round::Zero);
        let convert =
            |bits, from, to, round, whole| super::convert(bits, Conversion { from, to, round, whole, saturate: false });
        assert_eq!(convert(float(2.5), Number::F32, Number::F32, n, true), float(2.0));
        assert_eq!(convert(float(2.5), Number::F32, Number::Signed(32), n, false), 2);
        assert_eq!(convert(float(-2.7), Number::F32, Number::Signed(32), z, false) as u32, -2_i32 as u32);
        assert_eq!(convert(float(f32::NAN), Number::F32, Number::Signed(32), z, false), 0);
        assert_eq!(convert(float(1e20), Number::F32, Number::Unsigned(32), z, false), u64::from(u32::MAX));
        assert_eq!(convert(0xffff_fffe, Number::Signed(32), Number::Signed(64), n, false), -2_i64 as u64);
        assert_eq!(convert(0xffff_fffe, Number::Unsigned(32), Number::Unsigned(64), n, false), 0xffff_fffe);
        assert_eq!(convert(300, Number::Unsigned(32), Number::Unsigned(8), n, false), 44);
        assert_eq!(convert(u64::MAX, Number::Signed(64), Number::F32, n, false), float(-1.0));
        assert_eq!(convert(float(1.0 + 0.005), Number::F32, Number::Bf16, n, false), 0x3f81);
    }
}
