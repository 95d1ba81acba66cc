//! What the machine could do at most, measured: multiply-adds that stay in registers, and reading memory that no cache
//! holds. Profiles, benchmarks and estimates are held against these, whatever the data sheet says.
//!
//! Everything runs on all threads of the current rayon pool at once, for that is how kernels run; the best of a few rounds
//! counts, for another process can only take away.

use super::isa::Isa;
use super::lanes::{Kernel, LANES, dispatch};
use super::unit::Unit;
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;

/// Rounds, of which the best counts.
const ROUNDS: usize = 3;

/// Independent chains of multiply-adds: enough to hide their latency, few enough for sixteen registers.
const CHAINS: usize = 12;

/// Bytes that each thread reads at least: more than its share of any cache.
const LEAST_BYTES: usize = 64 << 20;

/// Peaks of one unit on all threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peaks {
    /// Multiply-adds counted as two, FLOP/s.
    pub flops: f64,
    /// Memory read, bytes/s.
    pub bandwidth: f64,
}

impl Peaks {
    /// Measures both in about a fifth of a second.
    ///
    /// # Panics
    /// Where this CPU lacks `unit` or `isa`.
    pub fn measure(unit: Unit, isa: Isa) -> Self {
        Self { flops: flops(unit, isa, 0.03), bandwidth: bandwidth() }
    }
}

/// FLOP/s of multiply-adds in registers, from rounds of about `seconds` each. A unit that rounds operands for the f32 kernels has
/// their peak.
///
/// # Panics
/// Where this CPU lacks `unit` or `isa`.
pub fn flops(unit: Unit, isa: Isa, seconds: f64) -> f64 {
    isa.require();
    assert!(unit.is_available(), "this CPU lacks the unit `{unit}`");
    let mut rounds = 10_000;
    let (mut best, mut measured) = (0.0_f64, 0);
    while measured < ROUNDS {
        let start = Instant::now();
        let operations: f64 = rayon::broadcast(|_| burn(unit, isa, rounds)).into_iter().sum();
        let elapsed = start.elapsed().as_secs_f64();
        if elapsed < seconds / 2.0 && rounds < 1 << 30 {
            rounds *= 2;
            continue;
        }
        best = best.max(operations / elapsed);
        measured += 1;
    }
    best
}

/// Bytes/s of reading memory in order, every thread its own.
pub fn bandwidth() -> f64 {
    let elements = LEAST_BYTES / size_of::<f32>();
    let memory: Vec<Vec<f32>> = rayon::broadcast(|_| vec![1.0_f32; elements]);
    let bytes = (memory.len() * LEAST_BYTES) as f64;
    let isa = Isa::best();
    let round = || {
        let start = Instant::now();
        rayon::broadcast(|context| black_box(dispatch(isa, Read(&memory[context.index()]))));
        bytes / start.elapsed().as_secs_f64()
    };
    (0..=ROUNDS).map(|_| round()).fold(0.0, f64::max)
}

/// Σ in lanes: as fast as memory comes.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut sums = [[0.0_f32; LANES]; 2];
        for pair in self.0.as_chunks::<{ 2 * LANES }>().0 {
            for (sum, values) in sums.iter_mut().zip(pair.as_chunks::<LANES>().0) {
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        sums.iter().flatten().sum()
    }
}

/// Runs `rounds` rounds of independent multiply-adds and returns the number of operations.
fn burn(unit: Unit, isa: Isa, rounds: u32) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if matches!(unit, Unit::Avx512Bf16 | Unit::Amx) {
        return super::gemm::bf16::burn(unit, rounds);
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `flops` has checked that this CPU has it.
        Isa::Avx2 => unsafe { x86::burn_avx2(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::burn_avx512(rounds) },
        _ => burn_portable(rounds / 16),
    }
}

fn burn_portable(rounds: u32) -> f64 {
    let (factor, term) = (black_box(0.5_f32), black_box(1.0_f32));
    let mut sums = [term; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.mul_add(factor, term);
        }
    }
    black_box(sums);
    f64::from(rounds) * (CHAINS * 2) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::CHAINS;
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    use std::hint::black_box;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn burn_avx2(rounds: u32) -> f64 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
        let mut sums = [term; CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        f64::from(rounds) * (CHAINS * 16) as f64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn burn_avx512(rounds: u32) -> f64 {
        let (factor, term) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
        let mut sums = [term; CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        f64::from(rounds) * (CHAINS * 32) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::threads;

    #[test]
    fn every_unit_at_hand_has_a_peak() {
        let pool = threads::pool(2).unwrap();
        for (unit, isa) in Isa::available()
            .into_iter()
            .map(|isa| (Unit::F32, isa))
            .chain(Unit::available().into_iter().map(|unit| (unit, Isa::best())))
        {
            let flops = pool.install(|| flops(unit, isa, 0.001));
            assert!(flops.is_finite() && flops > 1e6, "{unit} {isa}: {flops}");
        }
        for unit in Unit::ALL.into_iter().filter(|unit| !unit.is_available()) {
            eprintln!("skipped: the peak of {unit}, which this CPU lacks");
        }
    }

    #[test]
    fn reading_sums_every_element() {
        let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, Read(&values)), 2016.0);
        }
    }
}
