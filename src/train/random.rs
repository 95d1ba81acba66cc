//! The one generator behind data order, paraphrase sampling, bootstrap and permutation tests: xoshiro256++ seeded through
//! SplitMix64 (Blackman and Vigna, <https://prng.di.unimi.it>). Kept here rather than taken from a crate, because a run
//! must give the same order on every platform and after every dependency update. Integer arithmetic only.

/// A stream of 64-bit words. Two streams of different keys are independent for every practical purpose.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// A stream that is a function of the words of `key` in order, e.g. `[seed, purpose, epoch]`.
    pub fn keyed(key: &[u64]) -> Self {
        let mut seed = key.len() as u64;
        for &word in key {
            seed = split_mix(&mut (seed ^ word));
        }
        Self { state: std::array::from_fn(|_| split_mix(&mut seed)) }
    }

    /// The next word (xoshiro256++).
    pub fn word(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A uniform index in `0..bound`, without bias (Lemire's multiplication with rejection). `bound` is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = bound.max(1) as u64;
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.word()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// A fair coin.
    pub fn coin(&mut self) -> bool {
        self.word() >> 63 == 1
    }

    /// Fisher–Yates, from the last element down.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// SplitMix64: advances `state` and returns the next word.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_gives_the_published_words() {
        // First outputs of SplitMix64 for the seed 1234567, from the reference C program.
        let mut state = 1_234_567;
        let words: Vec<u64> = (0..3).map(|_| split_mix(&mut state)).collect();
        assert_eq!(words, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn xoshiro_gives_the_published_words() {
        // First outputs of xoshiro256++ for the state 1, 2, 3, 4, from the reference C program.
        let mut random = Random { state: [1, 2, 3, 4] };
        let words: Vec<u64> = (0..4).map(|_| random.word()).collect();
        assert_eq!(words, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn bounded_indices_are_uniform() {
        let mut random = Random::keyed(&[3]);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7)] += 1;
        }
        // Six standard deviations of a binomial with p = 1/7.
        assert!(counts.iter().all(|&count| (f64::from(count) - 10_000.0).abs() < 6.0 * 92.6), "{counts:?}");
    }

    #[test]
    fn every_word_of_the_key_matters() {
        let keys: [&[u64]; 6] = [&[], &[0], &[0, 0], &[0, 1], &[1, 0], &[1]];
        let firsts: std::collections::BTreeSet<u64> = keys.iter().map(|key| Random::keyed(key).word()).collect();
        assert_eq!(firsts.len(), keys.len());
    }
}
