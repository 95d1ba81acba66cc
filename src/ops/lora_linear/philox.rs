//! Philox4x32-10 (Salmon et al., SC 2011) and the dropout mask made of it: a pure function of its key, so the mask is never
//! stored and any back end, packing or thread count draws the same one.

use super::Dropout;

/// Ten rounds over a 128-bit counter with a 64-bit key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (low0, high0) = widening(0xD251_1F53, c0);
        let (low1, high1) = widening(0xCD9E_8D57, c2);
        (c0, c1, c2, c3) = (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// (low, high) halves of a 64-bit product.
fn widening(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    (product as u32, (product >> 32) as u32)
}

impl Dropout<'_> {
    /// 1/(1−p).
    pub fn factor(&self) -> f64 {
        1.0 / (1.0 - f64::from(self.p))
    }

    /// Calls `keep(column, kept)` for every column of packed row `row` (an index into [`Dropout::rows`]).
    pub fn each(&self, row: usize, columns: usize, mut keep: impl FnMut(usize, bool)) {
        let threshold = f64::from(self.p) * 4_294_967_296.0;
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let (ordinal, within) = self.rows[row];
        let place = (ordinal << 16).wrapping_add(self.layer * 16 + self.module);
        for block in 0..columns.div_ceil(4) {
            let words = philox4x32([block as u32, within, place, self.step], key);
            for (word, column) in words.into_iter().zip(4 * block..columns) {
                keep(column, f64::from(word) >= threshold);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of the Random123 distribution, philox4x32 with 10 rounds.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    fn mask(dropout: &Dropout<'_>, row: usize, columns: usize) -> Vec<bool> {
        let mut kept = vec![false; columns];
        dropout.each(row, columns, |column, keep| kept[column] = keep);
        kept
    }

    #[test]
    fn the_mask_depends_on_its_key_alone_and_keeps_the_asked_share() {
        let rows = [(0, 0), (0, 1), (3, 7), (0, 1)];
        let dropout = Dropout { p: 0.25, seed: 0x0123_4567_89ab_cdef, step: 5, layer: 2, module: 6, rows: &rows };
        let kept = (0..3).flat_map(|row| mask(&dropout, row, 10_000)).filter(|&keep| keep).count();
        assert!((kept as f64 / 30_000.0 - 0.75).abs() < 0.01, "{kept}");
        assert_eq!(mask(&dropout, 1, 50), mask(&dropout, 3, 50), "same key, same mask");
        assert_eq!(mask(&dropout, 1, 50)[..13], mask(&dropout, 1, 13), "a prefix of the columns");
        for other in [
            Dropout { step: 6, ..dropout },
            Dropout { layer: 3, ..dropout },
            Dropout { module: 5, ..dropout },
            Dropout { seed: 1, ..dropout },
        ] {
            assert_ne!(mask(&dropout, 0, 200), mask(&other, 0, 200));
        }
        assert_ne!(mask(&dropout, 0, 200), mask(&dropout, 1, 200));
        assert_ne!(mask(&dropout, 0, 200), mask(&dropout, 2, 200));
        assert!(mask(&Dropout { p: 0.0, ..dropout }, 0, 100).into_iter().all(|keep| keep));
        let words = philox4x32([1, 7, (3 << 16) + 2 * 16 + 6, 5], [0x89ab_cdef, 0x0123_4567]);
        let expected: Vec<bool> = words.iter().map(|&word| word >= 1 << 30).collect();
        assert_eq!(mask(&dropout, 2, 8)[4..], expected, "counter and word as the contract states them");
    }
}
