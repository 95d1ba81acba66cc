//! Tests of counts: two proportions of independent samples as papers report them, and paired yes/no outcomes. They know
//! nothing of clusters: questions about one report or image count as if they were independent. Checked against scipy and statsmodels.

use serde::Serialize;
use statrs::distribution::{Binomial, Discrete, DiscreteCDF, Hypergeometric};
use statrs::function::erf::erfc;

/// Two proportions k/n of independent samples of one size or two. Signs are those of second − first; p-values are two-sided.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Proportions {
    /// (successes, trials) of the first.
    pub first: (u64, u64),
    /// Of the second.
    pub second: (u64, u64),
    /// z with the pooled variance.
    pub z: f64,
    /// Its p-value.
    pub p: f64,
    /// z with Yates's continuity correction: |difference| less ½(1/n₁ + 1/n₂), not below 0.
    pub z_corrected: f64,
    /// Its p-value.
    pub p_corrected: f64,
    /// Cohen's h = 2·asin√p₂ − 2·asin√p₁.
    pub cohens_h: f64,
    /// Fisher's exact test.
    pub p_fisher: f64,
}

impl Proportions {
    /// The tests of `first` against `second`, each (successes, trials). NaN where a sample is empty; z is 0 where the pooled
    /// proportion is 0 or 1.
    pub fn of(first: (u64, u64), second: (u64, u64)) -> Self {
        let (n1, n2) = (first.1 as f64, second.1 as f64);
        let (p1, p2) = (first.0 as f64 / n1, second.0 as f64 / n2);
        let pooled = (first.0 + second.0) as f64 / (n1 + n2);
        let error = (pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n2)).sqrt();
        let z = |difference: f64| if error == 0.0 { 0.0 } else { difference / error };
        let difference = p2 - p1;
        let correction = 0.5 * (1.0 / n1 + 1.0 / n2);
        let (plain, corrected) = (z(difference), z((difference.abs() - correction).max(0.0).copysign(difference)));
        Self {
            first,
            second,
            z: plain,
            p: two_sided(plain),
            z_corrected: corrected,
            p_corrected: two_sided(corrected),
            cohens_h: 2.0 * (p2.sqrt().asin() - p1.sqrt().asin()),
            p_fisher: if first.1 == 0 || second.1 == 0 { f64::NAN } else { fisher_exact(first, second) },
        }
    }
}

/// Share of the standard normal distribution beyond ±z.
pub fn two_sided(z: f64) -> f64 {
    erfc(z.abs() / std::f64::consts::SQRT_2)
}

/// Two-sided p of McNemar's exact test: of `only_first + only_second` discordant pairs each falls on either side by a fair coin.
/// 1 without discordant pairs.
pub fn mcnemar_exact(only_first: u64, only_second: u64) -> f64 {
    match Binomial::new(0.5, only_first + only_second) {
        Ok(coins) => (2.0 * coins.cdf(only_first.min(only_second))).min(1.0),
        Err(_) => f64::NAN,
    }
}

/// Two-sided p of Fisher's exact test: the probability, margins fixed, of every table that is no likelier than this one.
pub fn fisher_exact(first: (u64, u64), second: (u64, u64)) -> f64 {
    let successes = first.0 + second.0;
    let Ok(tables) = Hypergeometric::new(first.1 + second.1, successes, first.1) else { return f64::NAN };
    // Equal probabilities may differ by rounding; the share is scipy's and R's.
    let limit = tables.pmf(first.0) * (1.0 + 1e-7);
    let fewest = successes.saturating_sub(second.1);
    let all = (fewest..=successes.min(first.1)).map(|k| tables.pmf(k));
    all.filter(|&probability| probability <= limit).sum::<f64>().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(what: &str, found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-10 * expected.abs().max(1e-30), "{what}: {found} for {expected}");
    }

    #[test]
    fn mcnemar_is_scipys_binomial_test() {
        // scipy 1.17.1: binomtest(b, b + c, 0.5).pvalue; statsmodels 0.15.0: mcnemar(exact=True).
        for (b, c, expected) in [
            (0, 0, 1.0),
            (3, 1, 0.625),
            (1, 9, 0.021484375),
            (16, 0, 3.0517578125e-05),
            (5, 5, 1.0),
            (12, 30, 0.007915897334896727),
            (0, 6, 0.03125),
            (150, 100, 0.0018833009350761602),
        ] {
            close("p", mcnemar_exact(b, c), expected);
            close("p", mcnemar_exact(c, b), expected);
        }
    }

    #[test]
    fn two_proportions_are_statsmodels_and_scipys() {
        // statsmodels proportions_ztest and proportion_effectsize; scipy chi2_contingency (correction=True) and fisher_exact.
        for (first, second, z, p, corrected, p_corrected, h, fisher) in [
            (
                (23, 158),
                (7, 158),
                3.0705762046297154,
                0.0021364615909762598,
                2.878665191840358,
                0.003993620647905085,
                0.35877315092130846,
                0.0033768880783612357,
            ),
            (
                (34, 250),
                (20, 250),
                2.0171989274827857,
                0.04367475796725695,
                1.873113289805444,
                0.061052742560193524,
                0.1818830586142658,
                0.06025021373707373,
            ),
            (
                (166, 250),
                (174, 250),
                -0.7669649888473684,
                0.4431023319909103,
                -0.6710943652414492,
                0.502160416335948,
                -0.06861891290543354,
                0.5022247009553265,
            ),
            (
                (0, 30),
                (5, 40),
                -2.009592381171251,
                0.044474348283052995,
                -1.5406874922312923,
                0.12339286239726859,
                -0.7227342478134157,
                0.06614170652037582,
            ),
            (
                (3, 30),
                (0, 300),
                5.5022930999537065,
                3.748830427143539e-08,
                4.493539364962194,
                7.004906535746679e-06,
                0.6435011087932844,
                0.000684059064962023,
            ),
        ] {
            let found = Proportions::of(first, second);
            close("z", found.z, -z);
            close("p", found.p, p);
            close("corrected z", found.z_corrected, -corrected);
            close("its p", found.p_corrected, p_corrected);
            close("h", found.cohens_h, -h);
            close("Fisher", found.p_fisher, fisher);
        }
    }

    #[test]
    fn equal_and_empty_proportions_have_no_difference_to_test() {
        let equal = Proportions::of((0, 20), (0, 30));
        assert_eq!((equal.z, equal.p, equal.p_corrected, equal.cohens_h, equal.p_fisher), (0.0, 1.0, 1.0, 0.0, 1.0));
        let all = Proportions::of((20, 20), (30, 30));
        assert_eq!((all.z, all.p, all.p_fisher), (0.0, 1.0, 1.0));
        // A difference within the correction is none.
        assert_eq!(Proportions::of((5, 10), (6, 10)).p_corrected, two_sided(0.0));
        let empty = Proportions::of((0, 0), (3, 10));
        assert!(empty.z.is_nan() && empty.p_fisher.is_nan() && empty.cohens_h.is_nan());
    }

    /// Rounded as a paper prints it.
    fn printed(value: f64, decimals: usize) -> String {
        format!("{:.decimals$}", value.abs())
    }

    #[test]
    fn the_papers_flip_test_is_the_continuity_corrected_z_one_tailed() {
        // 23 of 158 questions flip before and 7 after: z = 2.87, p = 0.002 (one-tailed), h = 0.36.
        let flips = Proportions::of((23, 158), (7, 158));
        assert_eq!(printed(flips.p_corrected / 2.0, 3), "0.002");
        assert_eq!(printed(flips.cohens_h, 2), "0.36");
        // Its z is 2.8787 cut after two decimals; without the correction z is 3.07 and p 0.001.
        assert_eq!(printed(flips.z_corrected, 4), "2.8787");
        assert_eq!((printed(flips.z, 2), printed(flips.p / 2.0, 3)), ("3.07".into(), "0.001".into()));
    }

    #[test]
    fn the_papers_accuracy_test_is_reproduced_by_no_variant_within_its_rounding() {
        // 133 of 158 right before and 130 after: the paper has z = 0.44, p = 0.66 (two-tailed).
        let right = Proportions::of((133, 158), (130, 158));
        assert_eq!((printed(right.z, 2), printed(right.p, 2)), ("0.45".into(), "0.65".into()));
        assert_eq!((printed(right.z_corrected, 2), printed(right.p_corrected, 2)), ("0.30".into(), "0.76".into()));
        assert_eq!(printed(right.p_fisher, 2), "0.76");
        // Its p belongs to its z.
        assert_eq!(printed(two_sided(0.44), 2), "0.66");
    }

    #[test]
    fn the_papers_feature_control_is_fishers_exact_test() {
        // 3 of 30 pairs against 0 of 300 control features: p = 6.8e-4.
        assert_eq!(format!("{:.1e}", fisher_exact((3, 30), (0, 300))), "6.8e-4");
    }
}
