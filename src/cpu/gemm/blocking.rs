//! Block sizes of the packed product, from the caches of the CPU at hand.
//!
//! They change speed, never bits, so nothing is lost where detection fails and common sizes are taken instead.

use std::sync::OnceLock;

/// Bytes of the data caches that one core sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caches {
    /// First level, data.
    pub l1: usize,
    /// Second level.
    pub l2: usize,
}

/// How many k, rows and columns are packed at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocking {
    /// k of a block: a panel of Right stays in the first-level cache.
    pub k: usize,
    /// Rows of a block: its Left stays in the second-level cache.
    pub rows: usize,
    /// Columns packed at a time.
    pub columns: usize,
}

impl Blocking {
    /// Sizes for a product of `rows` rows and total length `k`, packed into panels of `panel` columns.
    pub(super) fn new(rows: usize, k: usize, tile_rows: usize, panel: usize) -> Self {
        let caches = caches();
        // With one or two tiles of rows a panel is hardly used again, so it need not stay in the first level: long runs
        // of k keep C from passing through memory and read weights stored [n, k] in longer stretches.
        let longest = if rows <= 2 * tile_rows {
            caches.l2 / 8 / (4 * panel)
        } else {
            (caches.l1 / 2 / (4 * panel)).clamp(128, 512)
        };
        let k_block = even(k, longest, 8);
        let most_rows = (caches.l2 / 2 / (4 * k_block.max(1))).max(tile_rows);
        Self { k: k_block, rows: even(rows, most_rows, tile_rows), columns: COLUMNS.next_multiple_of(panel) }
    }
}

/// Columns of Right packed at a time: enough to read rows of weights stored [k, n] in whole stretches, few enough for
/// the packed block to be still in the second-level cache when it is used.
const COLUMNS: usize = 128;

/// The length of equal parts of `total`, each at most `longest` and a multiple of `step`.
fn even(total: usize, longest: usize, step: usize) -> usize {
    let longest = (longest / step * step).max(step);
    total.div_ceil(total.div_ceil(longest).max(1)).next_multiple_of(step)
}

/// The caches, read once.
fn caches() -> Caches {
    static CACHES: OnceLock<Caches> = OnceLock::new();
    *CACHES.get_or_init(|| {
        let mut caches = Caches { l1: 32 << 10, l2: 512 << 10 };
        for index in 0..8 {
            let read = |file: &str| {
                std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}")).ok()
            };
            let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else { break };
            let Some(bytes) = parse_size(size.trim()) else { continue };
            match (level.trim(), kind.trim()) {
                ("1", "Data" | "Unified") => caches.l1 = bytes.clamp(16 << 10, 1 << 20),
                ("2", "Data" | "Unified") => caches.l2 = bytes.clamp(128 << 10, 16 << 20),
                _ => {}
            }
        }
        caches
    })
}

/// `512K` as sysfs writes it, in bytes.
fn parse_size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'M']) {
        Some(digits) => (digits, if text.ends_with('K') { 1 << 10 } else { 1 << 20 }),
        None => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_cover_the_whole() {
        for total in 0..700 {
            for longest in [1, 8, 100, 256] {
                let part = even(total, longest, 8);
                assert!(part <= longest.max(8) && part % 8 == 0, "{total} in parts of {part}, at most {longest}");
                assert!(total == 0 || part > 0);
            }
        }
        assert_eq!(even(656, 256, 8), 224);
        assert_eq!(even(640, 256, 8), 216);
    }

    #[test]
    fn sizes_as_the_system_writes_them() {
        assert_eq!(parse_size("32K"), Some(32 << 10));
        assert_eq!(parse_size("8M"), Some(8 << 20));
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("x"), None);
        let found = caches();
        assert!(found.l1 >= 16 << 10 && found.l2 >= found.l1);
    }
}
