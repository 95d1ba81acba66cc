//! Sixteen-lane f32 arithmetic: the vocabulary that every operation's CPU body is written in, once.
//!
//! A body is a [`Kernel`] whose `run` is inlined into [`dispatch`]'s wrapper for the chosen instruction set; the compiler
//! turns `[f32; 16]` loops into that set's vectors. Lanes are independent and contraction is explicit
//! ([`f32::mul_add`]), so every instruction set gives the same bits. Nothing here calls the platform's `exp` or `tanh`.

use super::isa::Isa;

/// Lanes of a row sum: column mod 16.
pub const LANES: usize = 16;

/// One value per lane.
pub type Lanes = [f32; LANES];

/// A loop body that is compiled once per instruction set. Mark `run`, and what it calls, `#[inline(always)]`.
pub trait Kernel {
    /// What the body returns.
    type Output;
    /// The body.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` compiled for `isa`.
///
/// # Panics
/// Where this CPU lacks `isa`; [`Isa::parse`] and [`Isa::best`] never return such a value.
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    isa.require();
    match isa {
        // SAFETY: `require` checked that this CPU has AVX2 and FMA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        // SAFETY: `require` checked that this CPU has AVX-512F, AVX2 and FMA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { run_avx512(kernel) },
        _ => kernel.run(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// The sum of all lanes: i with i+8, then i+4, i+2, i+1.
#[inline(always)]
pub fn tree_sum(lanes: Lanes) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest lane; NaN lanes are ignored.
#[inline(always)]
pub fn tree_max(lanes: Lanes) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = greater(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The greater of two numbers as one instruction (`f32::max` has extra steps for NaN).
#[inline(always)]
pub fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Sixteen values from `at` on, or fewer with zeros behind them.
#[inline(always)]
pub fn load(values: &[f32], at: usize) -> Lanes {
    match values[at..].first_chunk::<LANES>() {
        Some(chunk) => *chunk,
        None => {
            let mut lanes = [0.0; LANES];
            for (lane, value) in lanes.iter_mut().zip(&values[at..]) {
                *lane = *value;
            }
            lanes
        }
    }
}

/// Stores as many lanes as `values` has places from `at` on.
#[inline(always)]
pub fn store(values: &mut [f32], at: usize, lanes: Lanes) {
    match values[at..].first_chunk_mut::<LANES>() {
        Some(chunk) => *chunk = lanes,
        None => {
            for (value, lane) in values[at..].iter_mut().zip(lanes) {
                *value = lane;
            }
        }
    }
}

/// Σ x² in sixteen lanes.
#[inline(always)]
pub fn sum_of_squares(x: &[f32]) -> f32 {
    dot(x, x)
}

/// Σ a·b in sixteen lanes; the slices are equally long.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for at in (0..a.len()).step_by(LANES) {
        let (a, b) = (load(a, at), load(b, at));
        for l in 0..LANES {
            sums[l] = a[l].mul_add(b[l], sums[l]);
        }
    }
    tree_sum(sums)
}

/// eˣ with an error below 2 units in the last place for −87 ≤ x ≤ 88.37; 0 below (so also for −∞), ∞ above, NaN for NaN.
///
/// x = n·ln 2 + r with n rounded to nearest by adding 1.5·2²³; eʳ = 1 + r + r²·P(r) with Cephes's degree-5 P
/// (`expf.c`), then n goes into the exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let value = p.mul_add(r * r, r) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let value = value * power;
    let value = if x < -87.0 { 0.0 } else { value };
    if x > 88.37 { f32::INFINITY } else { value }
}

/// 1/(1+e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for step in 0..2_000_000 {
            let x = -87.0 + step as f32 * (175.37 / 2_000_000.0);
            let exact = f64::from(x).exp();
            let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(sigmoid(f32::NEG_INFINITY), 0.0);
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert_eq!(sigmoid(0.0), 0.5);
    }

    struct Everything<'a> {
        x: &'a [f32],
        y: &'a mut [f32],
    }

    impl Kernel for Everything<'_> {
        type Output = (f32, f32);
        #[inline(always)]
        fn run(self) -> (f32, f32) {
            let mut largest = [f32::NEG_INFINITY; LANES];
            for at in (0..self.x.len()).step_by(LANES) {
                let mut lanes = load(self.x, at);
                for l in 0..LANES {
                    largest[l] = greater(largest[l], lanes[l]);
                    lanes[l] = sigmoid(lanes[l]);
                }
                store(self.y, at, lanes);
            }
            (dot(self.x, self.y), tree_max(largest))
        }
    }

    #[test]
    fn instruction_sets_give_the_same_bits_with_ragged_tails() {
        for length in [1, 15, 16, 17, 48, 50, 640] {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let results: Vec<(u32, u32, Vec<u32>)> = Isa::available()
                .into_iter()
                .map(|isa| {
                    let mut y = vec![0.0; length];
                    let (sum, largest) = dispatch(isa, Everything { x: &x, y: &mut y });
                    (sum.to_bits(), largest.to_bits(), y.iter().map(|v| v.to_bits()).collect())
                })
                .collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "length {length}");
        }
    }
}
