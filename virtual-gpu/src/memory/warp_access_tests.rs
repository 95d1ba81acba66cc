use std::collections::{HashMap, HashSet};

use super::super::testing::{Random, access, addresses};
use super::*;

/// Accesses of many shapes: contiguous, strided, shuffled, repeated, random; some lanes off.
fn random_access(random: &mut Random, into: &mut [u64; LANES]) -> (u32, u32) {
    let bytes = 1u64 << random.below(5);
    let base = random.below(64) * bytes;
    let shape = random.below(6);
    let stride = bytes * (1 + random.below(40));
    let spread = 1 + random.below(64);
    *into = addresses(|lane| match shape {
        0 => base + lane * bytes,
        1 => base + lane * stride,
        2 => base + (lane ^ 5) * bytes,
        3 => base,
        4 => base + lane / 4 * stride + lane % 4 * bytes,
        _ => random.below(spread) * bytes,
    });
    let mask = match random.below(3) {
        0 => random.mask(),
        1 => u32::MAX << random.below(32),
        _ => u32::MAX,
    };
    (bytes as u32, mask)
}

#[test]
fn runs_cover_every_active_lane_once() {
    let mut random = Random(1);
    let mut into = [0; LANES];
    for _ in 0..20_000 {
        let (bytes, mask) = random_access(&mut random, &mut into);
        let access = Access { mask, ..access(&into, bytes) };
        let mut seen = 0u32;
        for run in Runs::new(&access) {
            for (lane, address) in into.iter().enumerate().skip(run.lane).take(run.lanes) {
                assert_eq!(seen >> lane & 1, 0);
                seen |= 1 << lane;
                assert_eq!(*address, run.address + run.step * (lane - run.lane) as u64);
            }
            assert!(run.step == 0 || run.step == u64::from(bytes));
        }
        assert_eq!(seen, mask);
    }
    let contiguous = addresses(|lane| 4096 + 16 * lane);
    assert_eq!(Runs::new(&access(&contiguous, 16)).count(), 1);
    assert_eq!(Runs::new(&access(&[64; LANES], 4)).count(), 1);
}

#[test]
fn sectors_equal_a_set_of_them() {
    let mut random = Random(2);
    let mut into = [0; LANES];
    for _ in 0..20_000 {
        let (bytes, mask) = random_access(&mut random, &mut into);
        let access = Access { mask, ..access(&into, bytes) };
        let mut sectors = Sectors::new();
        Runs::new(&access).for_each(|run| sectors.add(run.address, run.length(bytes)));
        let set: HashSet<u64> =
            Lanes(mask).flat_map(|lane| (into[lane]..into[lane] + u64::from(bytes)).map(|byte| byte / 32)).collect();
        assert_eq!(sectors.total(&access), set.len() as u64, "{access:?}");
    }
}

#[test]
fn overlaps_are_found_exactly() {
    let mut random = Random(3);
    let mut into = [0; LANES];
    for _ in 0..20_000 {
        let (bytes, mask) = random_access(&mut random, &mut into);
        let access = Access { mask, ..access(&into, bytes) };
        let set: HashSet<u64> = Lanes(mask).map(|lane| into[lane]).collect();
        let found = overlap(&access);
        assert_eq!(found.is_some(), set.len() < mask.count_ones() as usize);
        if let Some((later, earlier)) = found {
            assert!(later > earlier && into[later] == into[earlier] && mask >> later & mask >> earlier & 1 == 1);
        }
    }
}

/// Serves each group's words a pass at a time: a pass gives each bank one word, to every lane that wants it.
fn passes_by_serving(access: &Access) -> (u64, u64) {
    let lanes_together = match access.bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let (mut made, mut least) = (0, 0);
    for group in 0..LANES / lanes_together {
        let lanes = || Lanes(access.mask).filter(move |lane| lane / lanes_together == group);
        // Every 4-byte word that some lane wants.
        let mut wanted: HashSet<u64> = lanes()
            .flat_map(|lane| (0..u64::from(access.bytes)).map(move |byte| (access.addresses[lane] + byte) / 4))
            .collect();
        least += u64::from(!wanted.is_empty());
        while !wanted.is_empty() {
            made += 1;
            let mut banks = HashMap::new();
            for &word in &wanted {
                banks.entry(word % 32).or_insert(word);
            }
            banks.values().for_each(|word| assert!(wanted.remove(word)));
        }
    }
    (made, least)
}

#[test]
fn passes_equal_serving_bank_by_bank() {
    let mut random = Random(4);
    let mut into = [0; LANES];
    let mut conflicts = 0;
    for _ in 0..20_000 {
        let (bytes, mask) = random_access(&mut random, &mut into);
        let access = Access { mask, ..access(&into, bytes) };
        let (made, least) = passes(&access);
        assert_eq!((made, least), passes_by_serving(&access), "{access:?}");
        conflicts += u64::from(made > least);
    }
    assert!(conflicts > 1000, "the patterns hardly conflict");
}

#[test]
fn passes_of_patterns_known_from_hardware() {
    let count = |bytes, of: &dyn Fn(u64) -> u64| passes(&access(&addresses(of), bytes));
    assert_eq!(count(4, &|lane| 4 * lane), (1, 1));
    assert_eq!(count(4, &|_| 64), (1, 1), "a broadcast");
    assert_eq!(count(4, &|lane| 8 * lane), (2, 1));
    assert_eq!(count(4, &|lane| 128 * lane), (32, 1));
    assert_eq!(count(4, &|lane| 132 * lane), (1, 1), "a padded column");
    assert_eq!(count(2, &|lane| 2 * lane), (1, 1), "two lanes share a word");
    assert_eq!(count(8, &|lane| 8 * lane), (2, 2));
    assert_eq!(count(16, &|lane| 16 * lane), (4, 4));
    // Rows of 128 bytes read by ldmatrix: all in the same 4 banks, unless swizzled.
    assert_eq!(count(16, &|lane| 128 * lane), (32, 4));
    assert_eq!(count(16, &|lane| 128 * lane + 16 * (lane % 8)), (4, 4));
}

#[test]
fn the_misaligned_lane_is_named() {
    let mut into = addresses(|lane| 16 * lane);
    into[9] += 8;
    let found = aligned(&access(&into, 16), "global read").unwrap_err();
    assert_eq!(found.lane, 9);
    assert_eq!(found.kind.to_string(), "global read of 16 bytes at 0x98 is misaligned: it needs a multiple of 16");
    assert!(aligned(&Access { mask: !(1 << 9), ..access(&into, 16) }, "global read").is_ok());
}
