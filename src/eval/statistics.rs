//! Percentiles, the cluster bootstrap and the paired permutation test, with the generator of `train::random`: a result
//! depends on its data and seed alone.

use crate::train::random::Random;

/// Purposes, so that streams of one seed do not coincide with each other or with training's.
const BOOTSTRAP: u64 = 101;
const PERMUTATION: u64 = 102;

/// Percentile of ascending `sorted` with linear interpolation, as `numpy.percentile`; `share` in [0, 1]. NaN if empty.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let (a, b, t) = (sorted[below], sorted[(below + 1).min(last)], at - at.floor());
    if t < 0.5 { a + (b - a) * t } else { b - (b - a) * (1.0 - t) }
}

/// Sample standard deviation (n − 1), as `torch.std`. NaN below two values.
pub fn sample_sd(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::NAN;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// `statistic` of `resamples` draws of `clusters` clusters with replacement; it gets the drawn indices.
pub fn bootstrap<S>(clusters: usize, resamples: usize, seed: u64, mut statistic: impl FnMut(&[usize]) -> S) -> Vec<S> {
    let mut random = Random::keyed(&[seed, BOOTSTRAP]);
    let mut drawn = vec![0; clusters];
    (0..resamples)
        .map(|_| {
            drawn.iter_mut().for_each(|index| *index = random.below(clusters));
            statistic(&drawn)
        })
        .collect()
}

/// Standard error and the 2.5th and 97.5th percentile of resampled values; undefined ones (NaN) are left out.
pub fn interval(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    (sample_sd(&values), percentile(&values, 0.025), percentile(&values, 0.975))
}

/// Two-sided p value of the paired permutation test: the share of `permutations` random sign flips of the clusters'
/// differences whose absolute sum reaches the observed one, the observed one counted in: (1 + k)/(1 + permutations).
pub fn paired_permutation(differences: &[f64], permutations: usize, seed: u64) -> f64 {
    // Clusters without a difference change no sum. The margin covers sums that differ in the order of rounding only.
    let differences: Vec<f64> = differences.iter().copied().filter(|&d| d != 0.0).collect();
    let observed = differences.iter().sum::<f64>().abs();
    let scale: f64 = differences.iter().map(|d| d.abs()).sum();
    let threshold = observed - 1e-12 * scale;
    let mut random = Random::keyed(&[seed, PERMUTATION]);
    let reached = (0..permutations)
        .filter(|_| {
            let sum: f64 = differences.iter().map(|&d| if random.coin() { d } else { -d }).sum();
            sum.abs() >= threshold
        })
        .count();
    (1 + reached) as f64 / (1 + permutations) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        let sorted = [1.0, 2.0, 4.0, 8.0, 16.0];
        // numpy.percentile([1, 2, 4, 8, 16], [0, 2.5, 30, 50, 90, 97.5, 100])
        let expected = [1.0, 1.1, 2.4, 4.0, 12.8, 15.2, 16.0];
        for (share, expected) in [0.0, 0.025, 0.3, 0.5, 0.9, 0.975, 1.0].into_iter().zip(expected) {
            assert!((percentile(&sorted, share) - expected).abs() < 1e-12, "at {share}");
        }
        assert_eq!(percentile(&[3.0], 0.975), 3.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_spread_is_the_sample_standard_deviation() {
        assert_eq!(sample_sd(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]), (32.0_f64 / 7.0).sqrt());
        assert!(sample_sd(&[1.0]).is_nan());
    }

    #[test]
    fn the_bootstrap_of_a_mean_has_its_known_standard_error() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| values[i]).sum::<f64>() / 100.0;
        let (error, low, high) = interval(bootstrap(100, 4000, 5, mean));
        // √(p(1 − p)/n) = 0.05; the error of a standard deviation from 4000 draws is 0.05/√8000 = 0.00056.
        assert!((error - 0.05).abs() < 4.0 * 0.00056, "{error}");
        assert!((low - 0.40).abs() <= 0.011 && (high - 0.60).abs() <= 0.011, "{low} {high}");
        assert_eq!(bootstrap(100, 10, 5, mean), bootstrap(100, 10, 5, mean));
        assert_ne!(bootstrap(100, 10, 5, mean), bootstrap(100, 10, 6, mean));
    }

    #[test]
    fn the_permutation_test_gives_the_exact_p_of_small_cases() {
        // All five differences of one sign: 2 of 2⁵ sign patterns reach the sum; zeros change nothing.
        let p = paired_permutation(&[1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0], 10_000, 1);
        assert!((p - 2.0 / 32.0).abs() < 4.0 * (0.0625_f64 * 0.9375 / 10_000.0).sqrt(), "{p}");
        // 3 against 1: |sum| ≥ 2 in 10 of 16 patterns.
        let p = paired_permutation(&[0.1, 0.1, 0.1, -0.1], 10_000, 1);
        assert!((p - 0.625).abs() < 4.0 * (0.625_f64 * 0.375 / 10_000.0).sqrt(), "{p}");
        assert_eq!(paired_permutation(&[0.0; 9], 10_000, 1), 1.0);
        assert!(paired_permutation(&[0.5; 40], 10_000, 1) <= 2.0 / 10_001.0);
    }
}
