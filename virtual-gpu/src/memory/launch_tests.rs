use std::sync::atomic::{AtomicU32, Ordering};

use super::super::GlobalMemory;
use super::super::testing::{NOTHING, Random, access, addresses, pattern};
use super::*;

/// Memory with one allocation, all of it written.
fn written(bytes: u64) -> (GlobalMemory, u64) {
    let memory = GlobalMemory::new(1 << 30);
    let address = memory.allocate(bytes).unwrap();
    memory.fill(address, &[1], bytes).unwrap();
    (memory, address)
}

/// Every size and shape of access against a plain array.
#[test]
fn loads_and_stores_equal_an_array() {
    let (memory, base) = written(12_000);
    let mut array = vec![1u8; 12_000];
    let mut random = Random(5);
    let launch = memory.launch(1);
    let mut cta = launch.cta(0);
    let mut counters = Counters::default();
    for step in 0..4000 {
        let bytes = 1u64 << random.below(5);
        let places = 12_000 / bytes;
        let (start, shape) = (random.below(places - 64), random.below(4));
        let mut into = addresses(|lane| match shape {
            0 | 1 => start + lane,
            2 => (start + 17 * lane) % places,
            _ => start + 2 * (lane ^ 3),
        });
        into = into.map(|place| base + place * bytes);
        let mask = if random.below(2) == 0 { u32::MAX } else { random.mask() };
        let access = Access { mask, ..access(&into, bytes as u32) };
        let mut data = pattern(step as u8);
        if random.below(2) == 0 {
            cta.store(&access, &data, &mut counters).unwrap();
            for lane in Lanes(mask) {
                let at = (into[lane] - base) as usize;
                array[at..at + bytes as usize].copy_from_slice(&data[lane][..bytes as usize]);
            }
        } else {
            let before = data;
            cta.load(&access, &mut data, &mut counters).unwrap();
            for lane in 0..LANES {
                let mut expected = before[lane];
                if mask >> lane & 1 == 1 {
                    let at = (into[lane] - base) as usize;
                    expected[..bytes as usize].copy_from_slice(&array[at..at + bytes as usize]);
                }
                assert_eq!(data[lane], expected, "lane {lane} of {access:?}");
            }
        }
    }
    let mut found = vec![0; 12_000];
    memory.read(base, &mut found).unwrap();
    assert_eq!(found, array);
}

#[test]
fn a_broadcast_gives_every_lane_the_bytes_and_costs_one_sector() {
    let (memory, base) = written(64);
    memory.write(base + 4, &[1, 2, 3, 4]).unwrap();
    let mut data = NOTHING;
    let mut counters = Counters::default();
    memory.launch(1).cta(0).load(&access(&[base + 4; LANES], 4), &mut data, &mut counters).unwrap();
    assert!(data.iter().all(|lane| lane[..5] == [1, 2, 3, 4, 0]));
    assert_eq!(counters.sectors_read, 1);
}

#[test]
fn sectors_are_counted_once_an_instruction() {
    let (memory, base) = written(1 << 16);
    let launch = memory.launch(1);
    let mut cta = launch.cta(0);
    let mut count = |bytes: u32, of: &dyn Fn(u64) -> u64| {
        let mut counters = Counters::default();
        let into = addresses(|lane| base + of(lane));
        cta.load(&access(&into, bytes), &mut NOTHING.clone(), &mut counters).unwrap();
        cta.store(&access(&into, bytes), &NOTHING, &mut counters).unwrap();
        assert_eq!(counters.sectors_read, counters.sectors_written);
        counters.sectors_read
    };
    assert_eq!(count(4, &|lane| 4 * lane), 4);
    assert_eq!(count(16, &|lane| 16 * lane), 16);
    assert_eq!(count(4, &|lane| 4 + 4 * lane), 5, "off by a word");
    assert_eq!(count(4, &|lane| 128 * lane), 32, "strided");
    assert_eq!(count(2, &|lane| 2 * (31 - lane)), 2, "backwards");
}

#[test]
fn an_access_one_byte_past_the_end_is_found() {
    let (memory, base) = written(127);
    let launch = memory.launch(1);
    let mut cta = launch.cta(0);
    let mut counters = Counters::default();
    let mut data = NOTHING;
    let into = addresses(|lane| base + lane);
    let inside = Access { mask: 0x7FFF_FFFF, ..access(&into, 1) };
    let into = addresses(|lane| base + 96 + lane);
    assert!(cta.load(&Access { addresses: &into, ..inside }, &mut data, &mut counters).is_ok());
    let found = cta.load(&access(&into, 1), &mut data, &mut counters).unwrap_err();
    assert_eq!(found.lane, 31);
    assert_eq!(
        found.kind.to_string(),
        format!(
            "global read of 1 bytes at {:#x} is out of bounds: it starts 0 bytes past the end of allocation 1 (127 bytes at {base:#x})",
            base + 127
        )
    );
    let into = addresses(|lane| base + 4 * lane);
    let found = cta.store(&access(&into, 4), &data, &mut counters).unwrap_err();
    assert_eq!(found.lane, 31);
    assert!(found.kind.to_string().contains("global write of 4 bytes"), "{}", found.kind);
    assert!(found.kind.to_string().contains("it ends 1 bytes past the end of allocation 1"), "{}", found.kind);
    let into = addresses(|lane| base - 4 + 4 * lane);
    let found = cta.load(&access(&into, 4), &mut data, &mut counters).unwrap_err();
    assert_eq!(found.lane, 0);
    assert!(found.kind.to_string().contains("it starts 4 bytes before allocation 1"), "{}", found.kind);
    let found = cta.atomic(&access(&into, 4), &mut counters, |_, old| old).unwrap_err();
    assert!(found.kind.to_string().contains("global atomic of 4 bytes"), "{}", found.kind);
}

#[test]
fn a_null_pointer_is_out_of_bounds() {
    let (memory, _) = written(64);
    let found = memory.launch(1).cta(0).load(&access(&[0; LANES], 16), &mut NOTHING.clone(), &mut Counters::default());
    assert!(matches!(found.unwrap_err().kind, FaultKind::OutOfBounds { address: 0, .. }));
}

#[test]
fn a_misaligned_vector_is_found() {
    let (memory, base) = written(1024);
    let into = addresses(|lane| base + 8 + 16 * lane);
    let launch = memory.launch(1);
    let found = launch.cta(0).load(&access(&into, 16), &mut NOTHING.clone(), &mut Counters::default()).unwrap_err();
    assert_eq!((found.lane, found.kind.code()), (0, 716));
    assert_eq!(
        found.kind.to_string(),
        format!("global read of 16 bytes at {:#x} is misaligned: it needs a multiple of 16", base + 8)
    );
    assert!(launch.cta(0).load(&access(&into, 8), &mut NOTHING.clone(), &mut Counters::default()).is_ok());
}

#[test]
fn use_after_free_is_found() {
    let (memory, base) = written(1024);
    memory.free(base).unwrap();
    let other = memory.allocate(1024).unwrap();
    memory.fill(other, &[1], 1024).unwrap();
    let into = addresses(|lane| base + 4 * lane);
    let found = memory.launch(1).cta(0).load(&access(&into, 4), &mut NOTHING.clone(), &mut Counters::default());
    let text = found.unwrap_err().kind.to_string();
    assert!(text.ends_with(&format!("allocation 1 (1024 bytes at {base:#x}) was freed")), "{text}");
}

#[test]
fn an_uninitialised_byte_is_found_and_named() {
    let memory = GlobalMemory::new(1 << 20);
    let base = memory.allocate(1024).unwrap();
    let launch = memory.launch(1);
    let mut cta = launch.cta(0);
    let mut counters = Counters::default();
    let mut data = NOTHING;
    let into = addresses(|lane| base + 4 * lane);
    let found = cta.load(&access(&into, 4), &mut data, &mut counters).unwrap_err();
    assert!(matches!(found.kind, FaultKind::Uninitialised { .. }), "a page that nobody wrote");
    memory.fill(base, &[1], 70).unwrap();
    memory.fill(base + 71, &[1], 57).unwrap();
    let found = cta.load(&access(&into, 4), &mut data, &mut counters).unwrap_err();
    assert_eq!(found.lane, 17);
    assert_eq!(
        found.kind.to_string(),
        format!(
            "global read of 4 bytes at {:#x} reads a byte that nobody wrote (allocation 1 (1024 bytes at {base:#x}), offset 70)",
            base + 70
        )
    );
    assert!(cta.atomic(&access(&into, 4), &mut counters, |_, old| old).is_err());
    cta.store(&Access { mask: 1 << 17, ..access(&into, 4) }, &data, &mut counters).unwrap();
    cta.load(&access(&into, 4), &mut data, &mut counters).unwrap();
}

/// What two CTAs do to bytes `0..4` and `from..from + 4`, by one lane each or (`wide`) by warps to 128 bytes from there; in the
/// second launch that uses the memory.
fn two(first: &str, second: &str, from: u64, swapped: bool, wide: bool) -> Result<(), FaultKind> {
    let (memory, base) = written(512);
    let launch = memory.launch(3);
    let into = addresses(|lane| base + 16 * lane);
    launch.cta(2).store(&access(&into, 16), &NOTHING, &mut Counters::default()).unwrap();
    let launch = memory.launch(2);
    let mut acts = [(0, first, 0, 10), (1, second, from, 20)];
    if swapped {
        acts.reverse();
    }
    for (cta, act, from, line) in acts {
        let into = addresses(|lane| base + from + if wide { 4 * lane } else { 0 });
        let mask = if wide { u32::MAX } else { 1 << 3 };
        let access = Access { mask, line, ..access(&into, if from % 4 == 0 { 4 } else { 1 }) };
        let mut cta = launch.cta(cta);
        let counters = &mut Counters::default();
        match act {
            "read" => cta.load(&access, &mut NOTHING.clone(), counters),
            "write" => cta.store(&access, &NOTHING, counters),
            _ => cta.atomic(&access, counters, |_, old| old),
        }
        .map_err(|found| {
            assert_eq!(found.lane, if wide { 0 } else { 3 });
            found.kind
        })?;
    }
    Ok(())
}

#[test]
fn every_pair_of_accesses_by_two_ctas_races_unless_both_read_or_both_are_atomic() {
    for first in ["read", "write", "atomic"] {
        for second in ["read", "write", "atomic"] {
            for swapped in [false, true] {
                for (from, wide) in [(0, false), (1, false), (2, false), (3, false), (0, true)] {
                    let found = two(first, second, from, swapped, wide);
                    let harmless = first == second && first != "write";
                    assert_eq!(found.is_ok(), harmless, "{first}, {second}, {from}, {swapped}");
                    if let Err(kind) = found {
                        let FaultKind::GlobalRace { what, other, cta, line, .. } = kind else { panic!("{kind}") };
                        let (now, then) = if swapped { (first, second) } else { (second, first) };
                        assert_eq!((what, other), (now, then));
                        assert_eq!((cta, line), if swapped { (1, 20) } else { (0, 10) });
                    }
                }
                for (from, wide) in [(4, false), (5, false), (128, false), (255, false), (128, true)] {
                    assert_eq!(two(first, second, from, swapped, wide), Ok(()), "other bytes");
                }
            }
        }
    }
}

#[test]
fn a_race_is_told_with_allocation_other_cta_and_line() {
    let text = two("write", "read", 0, false, false).unwrap_err().to_string();
    assert!(
        text.starts_with(
            "global memory race at 0x7f0000000000 (allocation 1 (512 bytes at 0x7f0000000000), offset 0): "
        ),
        "{text}"
    );
    assert!(text.ends_with("read here, write by CTA 0 at line 10 in the same launch"), "{text}");
}

#[test]
fn one_cta_and_two_launches_do_not_race() {
    let (memory, base) = written(1024);
    let into = addresses(|lane| base + 4 * lane);
    let mut counters = Counters::default();
    for cta in 0..3 {
        let launch = memory.launch(3);
        let mut cta = launch.cta(cta);
        cta.store(&access(&into, 4), &NOTHING, &mut counters).unwrap();
        cta.load(&access(&into, 4), &mut NOTHING.clone(), &mut counters).unwrap();
        cta.atomic(&access(&into, 4), &mut counters, |_, old| old).unwrap();
        cta.store(&access(&into, 4), &NOTHING, &mut counters).unwrap();
    }
}

#[test]
fn two_lanes_of_a_store_may_not_touch_the_same_bytes() {
    let (memory, base) = written(1024);
    let launch = memory.launch(4);
    let mut into = addresses(|lane| base + 4 * lane);
    into[20] = into[5];
    let mut counters = Counters::default();
    let found = launch.cta(3).store(&Access { line: 77, ..access(&into, 4) }, &NOTHING, &mut counters).unwrap_err();
    assert_eq!(found.lane, 20);
    let text = found.kind.to_string();
    assert!(
        text.ends_with("write here, write of the same instruction by CTA 3 at line 77 in the same launch"),
        "{text}"
    );
    assert!(launch.cta(3).store(&Access { mask: !(1 << 5), ..access(&into, 4) }, &NOTHING, &mut counters).is_ok());
}

#[test]
fn atomics_apply_lane_after_lane() {
    let (memory, base) = written(64);
    memory.fill(base, &[0], 64).unwrap();
    let launch = memory.launch(2);
    let mut counters = Counters::default();
    let mut olds = Vec::new();
    for cta in 0..2 {
        launch
            .cta(cta)
            .atomic(&access(&[base + 8; LANES], 4), &mut counters, |lane, mut old| {
                olds.push(u32::from_le_bytes([old[0], old[1], old[2], old[3]]));
                let new = olds.last().unwrap() + lane as u32;
                old[..4].copy_from_slice(&new.to_le_bytes());
                old
            })
            .unwrap();
    }
    assert_eq!(olds[..4], [0, 0, 1, 3]);
    let mut sum = [0; 12];
    memory.read(base + 4, &mut sum).unwrap();
    assert_eq!(sum, [0, 0, 0, 0, (2 * 496u32).to_le_bytes()[0], (2 * 496u32).to_le_bytes()[1], 0, 0, 0, 0, 0, 0]);
    assert_eq!(counters.sectors_written, 2);
}

#[test]
fn the_source_of_a_copy_is_read_as_far_as_it_says() {
    let memory = GlobalMemory::new(1 << 20);
    let base = memory.allocate(10).unwrap();
    memory.write(base, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).unwrap();
    let launch = memory.launch(1);
    let mut cta = launch.cta(0);
    let mut counters = Counters::default();
    let mut into = [base; LANES];
    // Lane 1 has no source bytes: its address is nobody's.
    into[1] = 3;
    let mut source = [10; LANES];
    source[1] = 0;
    let access = Access { mask: 3, ..access(&into, 16) };
    let mut data = [[0xFF; WIDEST]; LANES];
    cta.load_partial(&access, &source, &mut data, &mut counters).unwrap();
    assert_eq!(data[0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 0, 0, 0, 0]);
    assert_eq!(data[1], [0; 16]);
    assert_eq!(data[2], [0xFF; 16], "an inactive lane's bytes stay");
    assert_eq!(counters.sectors_read, 1);
    source[0] = 11;
    let found = cta.load_partial(&access, &source, &mut data, &mut counters).unwrap_err();
    assert!(found.kind.to_string().contains("global read of 11 bytes"), "{}", found.kind);
    assert!(found.kind.to_string().contains("it ends 1 bytes past the end"), "{}", found.kind);
}

/// Random accesses of some CTAs: the first race found in one order of the accesses exists in every other order too.
#[test]
fn races_equal_a_set_for_every_byte() {
    #[derive(Clone, Copy, PartialEq)]
    enum Act {
        Read,
        Write,
        Atomic,
    }
    let mut random = Random(6);
    let (mut clean, mut raced) = (0, 0);
    for round in 0..3000 {
        let (memory, base) = written(1024);
        let launch = memory.launch(4);
        let calm = round % 2 == 0;
        let mut history: Vec<Vec<(u32, Act)>> = vec![Vec::new(); 1024];
        for _ in 0..30 {
            let number = random.below(4) as u32;
            let bytes = 1u64 << random.below(5);
            let lanes = 1 << random.below(6);
            let act = match random.below(6) {
                0 | 1 => Act::Write,
                2 => Act::Atomic,
                _ => Act::Read,
            };
            // A calm round keeps CTAs to their own quarters, mostly.
            let home = calm && random.below(60) > 0;
            let lanes = if home { lanes.min(64 / bytes) } else { lanes };
            let (low, span) = if home { (u64::from(number) * 256, 192) } else { (0, 1024) };
            let place = low + random.below(span / bytes) * bytes;
            let into = addresses(|lane| base + (place + lane * bytes) % 1024);
            let access = Access { mask: u32::MAX >> (32 - lanes), ..access(&into, bytes as u32) };
            let counters = &mut Counters::default();
            let mut cta = launch.cta(number);
            let found = match act {
                Act::Read => cta.load(&access, &mut NOTHING.clone(), counters),
                Act::Write => cta.store(&access, &NOTHING, counters),
                Act::Atomic => cta.atomic(&access, counters, |_, old| old),
            };
            let touched = || {
                Lanes(access.mask)
                    .flat_map(|lane| into[lane] - base..into[lane] - base + bytes)
                    .map(|byte| byte as usize)
            };
            let conflicts = |other: Act| other != act || act == Act::Write;
            let expected =
                touched().any(|byte| history[byte].iter().any(|&(cta, other)| cta != number && conflicts(other)));
            assert_eq!(found.is_err(), expected, "round {round}");
            if expected {
                raced += 1;
                break;
            }
            touched().for_each(|byte| history[byte].push((number, act)));
        }
        clean += 1;
    }
    assert!(raced > 500 && clean - raced > 100, "{raced} of {clean} raced");
}

/// CTAs on several threads: a race is found in every run, a clean kernel never has one.
#[test]
fn parallel_ctas_find_a_race_every_time() {
    for planted in [false, true] {
        for round in 0..200 {
            let (memory, base) = written(64 * 1024);
            let output = memory.allocate(64 * 1024).unwrap();
            let launch = memory.launch(32);
            let next = AtomicU32::new(0);
            let found = std::thread::scope(|scope| {
                let work = || {
                    let mut faults = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= 32 {
                            return faults;
                        }
                        let mut cta = launch.cta(number);
                        let counters = &mut Counters::default();
                        for step in 0..8u64 {
                            let mut data = NOTHING;
                            // All read the same input; each writes its own rows, whose ends share pages with its neighbours'.
                            let into = addresses(|lane| base + step * 512 + lane * 16);
                            faults.extend(cta.load(&access(&into, 16), &mut data, counters).err());
                            let row = u64::from(number) * 1000 + step * 64;
                            let wrong = planted && number == 17 && step == 7;
                            let into = addresses(|lane| output + row + lane * 2 + if wrong { 504 } else { 0 });
                            faults.extend(cta.store(&access(&into, 2), &data, counters).err());
                        }
                    }
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(found.is_empty(), !planted, "round {round}: {found:?}");
            assert!(found.iter().all(|fault| matches!(fault.kind, FaultKind::GlobalRace { .. })));
        }
    }
}

/// Atomics of CTAs on several threads lose nothing.
#[test]
fn parallel_atomics_add_up() {
    let (memory, base) = written(8);
    memory.fill(base, &[0], 8).unwrap();
    let launch = memory.launch(8);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let launch = &launch;
            scope.spawn(move || {
                let counters = &mut Counters::default();
                for _ in 0..100 {
                    let add = |_, old: [u8; WIDEST]| (u128::from_le_bytes(old) + 1).to_le_bytes();
                    launch.cta(number).atomic(&access(&[base; LANES], 8), counters, add).unwrap();
                }
            });
        }
    });
    let mut sum = [0; 8];
    memory.read(base, &mut sum).unwrap();
    assert_eq!(u64::from_le_bytes(sum), 8 * 100 * 32);
}
