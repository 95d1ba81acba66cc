//! Times of one thing, repeated: median, spread and what may be said of a difference.

/// Factor between the median absolute deviation and the standard deviation of a normal distribution.
const DEVIATION: f64 = 1.4826;

/// Seconds, in the order they were taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, seconds: f64) {
        self.0.push(seconds);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn seconds(&self) -> &[f64] {
        &self.0
    }

    /// Their sum.
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// The middle one, or the mean of the middle two; NaN without samples.
    pub fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// The least; infinite without samples.
    pub fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The most.
    pub fn most(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    /// Spread of single samples as a share of the median: 1.4826 times the median absolute deviation, which a few outliers do
    /// not move.
    pub fn noise(&self) -> f64 {
        let middle = self.median();
        DEVIATION * median(self.0.iter().map(|seconds| (seconds - middle).abs()).collect()) / middle
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(seconds: I) -> Self {
        Self(seconds.into_iter().collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_its_noise_ignore_an_outlier() {
        let samples: Samples = [1.0, 1.1, 0.9, 1.05, 50.0].into_iter().collect();
        assert_eq!(samples.median(), 1.05);
        assert!((samples.noise() - DEVIATION * 0.05 / 1.05).abs() < 0.05, "{}", samples.noise());
        assert_eq!((samples.least(), samples.most(), samples.len()), (0.9, 50.0, 5));
        let even: Samples = [4.0, 1.0, 2.0, 3.0].into_iter().collect();
        assert_eq!((even.median(), even.total()), (2.5, 10.0));
        assert!(Samples::default().median().is_nan() && Samples::default().is_empty());
    }
}
