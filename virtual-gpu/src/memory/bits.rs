//! Ranges of a bitmap: one bit for each byte of memory.

/// The bits of word `word` that lie in `start..end`.
fn within(word: usize, start: usize, end: usize) -> u64 {
    let from = start.max(word * 64) - word * 64;
    let to = end.min(word * 64 + 64) - word * 64;
    (u64::MAX >> (64 - (to - from))) << from
}

/// Whether every bit in `start..end` is set. An empty range has all.
pub(super) fn all(bits: &[u64], start: usize, end: usize) -> bool {
    start == end
        || (start / 64..=(end - 1) / 64).all(|word| {
            let wanted = within(word, start, end);
            bits[word] & wanted == wanted
        })
}

/// The first bit in `start..end` that is not set.
pub(super) fn first_unset(bits: &[u64], start: usize, end: usize) -> Option<usize> {
    (start..end).find(|&bit| bits[bit / 64] >> (bit % 64) & 1 == 0)
}

/// Sets every bit in `start..end`.
pub(super) fn set(bits: &mut [u64], start: usize, end: usize) {
    if start < end {
        let first = start / 64;
        for (index, bits) in bits[first..=(end - 1) / 64].iter_mut().enumerate() {
            *bits |= within(first + index, start, end);
        }
    }
}

/// Clears every bit in `start..end`.
pub(super) fn clear(bits: &mut [u64], start: usize, end: usize) {
    if start < end {
        let first = start / 64;
        for (index, bits) in bits[first..=(end - 1) / 64].iter_mut().enumerate() {
            *bits &= !within(first + index, start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_equal_a_bit_at_a_time() {
        for start in 0..150 {
            for end in start..=150 {
                let mut bits = [0u64; 3];
                set(&mut bits, start, end);
                for bit in 0..192 {
                    assert_eq!(
                        bits[bit / 64] >> (bit % 64) & 1 == 1,
                        (start..end).contains(&bit),
                        "{start}..{end}: {bit}"
                    );
                }
                assert!(all(&bits, start, end));
                assert_eq!(first_unset(&bits, start, 151), Some(end));
                if start > 0 {
                    assert!(!all(&bits, start - 1, end));
                }
                let mut full = [u64::MAX; 3];
                clear(&mut full, start, end);
                assert!((0..3).all(|word| full[word] == !bits[word]), "{start}..{end}");
            }
        }
    }
}
