use super::super::LANES;
use super::super::testing::{NOTHING, Random, access, addresses, pattern, written};
use super::*;

/// One thread's access of `bytes` bytes at `address`, at line 10 + thread.
fn single(
    thread: u32,
    address: u64,
    bytes: u32,
    act: impl FnOnce(&Access) -> Result<(), LaneFault>,
) -> Result<(), FaultKind> {
    let (warp, lane, line) = (thread / 32, thread % 32, 10 + thread);
    act(&Access { addresses: &[address; LANES], mask: 1 << lane, bytes, line, warp }).map_err(|found| {
        assert_eq!(found.lane, lane);
        found.kind
    })
}

fn get(memory: &mut SharedMemory, thread: u32, address: u64, bytes: u32) -> Result<[u8; WIDEST], FaultKind> {
    let mut data = NOTHING;
    single(thread, address, bytes, |access| memory.load(access, &mut data, &mut Counters::default()))?;
    Ok(data[thread as usize % 32])
}

fn put(memory: &mut SharedMemory, thread: u32, address: u64, bytes: u32) -> Result<(), FaultKind> {
    single(thread, address, bytes, |access| memory.store(access, &[[7; WIDEST]; LANES], &mut Counters::default()))
}

fn add(memory: &mut SharedMemory, thread: u32, address: u64, bytes: u32) -> Result<(), FaultKind> {
    single(thread, address, bytes, |access| memory.atomic(access, &mut Counters::default(), |_, old| old))
}

fn copy(memory: &mut SharedMemory, thread: u32, address: u64, bytes: u32) -> Result<(), FaultKind> {
    single(thread, address, bytes, |access| memory.async_copy(access, &[[9; WIDEST]; LANES], &mut Counters::default()))
}

fn rows(memory: &mut SharedMemory, warp: u32, line: u32, of: impl FnMut(u64) -> u64) -> Result<Data, LaneFault> {
    let mut data = NOTHING;
    let into = addresses(of);
    memory.load_rows(&Access { warp, line, ..access(&into, 16) }, &mut data, &mut Counters::default())?;
    Ok(data)
}

#[test]
fn loads_and_stores_equal_an_array() {
    let mut memory = written(4096);
    let mut array = vec![7u8; 4096];
    let mut random = Random(11);
    for step in 0..4000 {
        let bytes = 1u64 << random.below(5);
        let places = 4096 / bytes;
        let (start, stride) = (random.below(places), 1 + 2 * random.below(5));
        let into = addresses(|lane| (start + stride * lane) % places * bytes);
        let access = Access { mask: random.mask(), ..access(&into, bytes as u32) };
        let mut data = pattern(step as u8);
        let counters = &mut Counters::default();
        memory.barrier();
        if random.below(2) == 0 {
            memory.store(&access, &data, counters).unwrap();
            for lane in Lanes(access.mask) {
                let at = into[lane] as usize;
                array[at..at + bytes as usize].copy_from_slice(&data[lane][..bytes as usize]);
            }
        } else {
            let before = data;
            memory.load(&access, &mut data, counters).unwrap();
            for lane in 0..LANES {
                let mut expected = before[lane];
                if access.mask >> lane & 1 == 1 {
                    let at = into[lane] as usize;
                    expected[..bytes as usize].copy_from_slice(&array[at..at + bytes as usize]);
                }
                assert_eq!(data[lane], expected);
            }
        }
    }
}

#[test]
fn an_access_one_byte_past_the_end_is_found() {
    let mut memory = written(127);
    assert!(get(&mut memory, 0, 126, 1).is_ok());
    let text = get(&mut memory, 40, 127, 1).unwrap_err().to_string();
    assert_eq!(
        text,
        "shared read of 1 bytes at 0x7f is out of bounds: it ends 1 bytes past the end of the CTA's 127 bytes"
    );
    let text = put(&mut memory, 0, 112, 16).unwrap_err().to_string();
    assert_eq!(
        text,
        "shared write of 16 bytes at 0x70 is out of bounds: it ends 1 bytes past the end of the CTA's 127 bytes"
    );
    assert!(add(&mut memory, 0, 124, 4).unwrap_err().to_string().starts_with("shared atomic of 4 bytes"));
    assert!(copy(&mut memory, 0, 112, 16).unwrap_err().to_string().starts_with("shared write by cp.async of 16 bytes"));
    assert!(rows(&mut memory, 0, 1, |lane| 16 * (lane % 8)).is_err());
    assert!(matches!(get(&mut memory, 0, u64::MAX, 1), Err(FaultKind::OutOfBounds { .. })));
    assert!(matches!(get(&mut SharedMemory::new(0), 0, 0, 1), Err(FaultKind::OutOfBounds { .. })));
}

#[test]
fn a_misaligned_access_is_found() {
    let mut memory = written(256);
    let text = get(&mut memory, 3, 24, 16).unwrap_err().to_string();
    assert_eq!(text, "shared read of 16 bytes at 0x18 is misaligned: it needs a multiple of 16");
    assert!(get(&mut memory, 3, 24, 8).is_ok());
    assert!(matches!(put(&mut memory, 3, 2, 4), Err(FaultKind::Misaligned { .. })));
    assert!(matches!(copy(&mut memory, 3, 8, 16), Err(FaultKind::Misaligned { .. })));
    assert!(rows(&mut memory, 0, 1, |lane| 16 * (lane % 8) + 8 * (lane / 31)).unwrap_err().lane == 31);
}

#[test]
fn an_uninitialised_byte_is_found() {
    let mut memory = SharedMemory::new(64);
    put(&mut memory, 0, 0, 4).unwrap();
    put(&mut memory, 0, 5, 1).unwrap();
    memory.barrier();
    let text = get(&mut memory, 1, 0, 8).unwrap_err().to_string();
    assert_eq!(text, "shared read of 8 bytes at 0x4 reads a byte that nobody wrote (byte 4 of the CTA's 64)");
    assert!(get(&mut memory, 1, 4, 1).is_err());
    assert!(add(&mut memory, 1, 4, 4).is_err());
    assert!(get(&mut memory, 1, 0, 4).is_ok() && get(&mut memory, 1, 5, 1).is_ok());
    memory.reset(64);
    assert!(matches!(get(&mut memory, 0, 0, 4), Err(FaultKind::Uninitialised { .. })), "another CTA's bytes");
}

#[test]
fn accesses_of_two_threads_with_no_barrier_race_unless_both_read_or_both_are_atomic() {
    type Act = fn(&mut SharedMemory, u32, u64, u32) -> Result<(), FaultKind>;
    let read: Act = |memory, thread, address, bytes| get(memory, thread, address, bytes).map(|_| ());
    let acts = [("read", read), ("write", put), ("atomic", add), ("cp.async", copy)];
    for (first_name, first) in &acts[..3] {
        for (second_name, second) in &acts {
            // Another warp, and another lane of the same one.
            for thread in [33, 2] {
                let harmless = first_name == second_name && *first_name != "write";
                let mut memory = written(64);
                first(&mut memory, 1, 16, 16).unwrap();
                let found = second(&mut memory, thread, 16, 16);
                assert_eq!(found.is_ok(), harmless, "{first_name}, {second_name}, {thread}");
                if let Err(kind) = found {
                    assert_eq!(
                        kind.to_string(),
                        format!(
                            "shared memory race at byte 0x10: {second_name} here, {first_name} by thread 1 at line 11 with no \
                             barrier between"
                        )
                    );
                }
                let mut memory = written(64);
                first(&mut memory, 1, 16, 16).unwrap();
                memory.barrier();
                assert_eq!(second(&mut memory, thread, 16, 16), Ok(()), "after a barrier");
                let mut memory = written(64);
                first(&mut memory, 1, 16, 16).unwrap();
                assert_eq!(second(&mut memory, thread, 32, 16), Ok(()), "other bytes");
                assert_eq!(second(&mut memory, 1, 16, 16), Ok(()), "the same thread");
                let mut memory = written(64);
                first(&mut memory, 1, 16, 16).unwrap();
                memory.warp_barrier(0);
                let ordered = thread < 32;
                assert_eq!(second(&mut memory, thread, 16, 16).is_ok(), ordered || harmless, "after a warp's barrier");
                let mut memory = written(64);
                first(&mut memory, 1, 16, 16).unwrap();
                memory.warp_barrier(1);
                assert_eq!(second(&mut memory, thread, 16, 16).is_ok(), harmless, "after another warp's barrier");
            }
        }
    }
}

#[test]
fn races_are_exact_to_the_byte() {
    let mut memory = written(64);
    for thread in 0..64 {
        put(&mut memory, thread, u64::from(thread), 1).unwrap();
    }
    let FaultKind::SharedRace { address, thread, .. } = get(&mut memory, 5, 4, 2).unwrap_err() else { panic!() };
    assert_eq!((address, thread), (4, 4));
    assert!(get(&mut memory, 5, 5, 1).is_ok());
}

#[test]
fn two_lanes_of_a_store_may_not_touch_the_same_bytes() {
    let mut memory = written(256);
    let mut into = addresses(|lane| 4 * lane);
    into[9] = into[4];
    let found = memory.store(&Access { line: 5, ..access(&into, 4) }, &NOTHING, &mut Counters::default()).unwrap_err();
    assert_eq!(found.lane, 9);
    assert_eq!(
        found.kind.to_string(),
        "shared memory race at byte 0x10: write here, write by thread 4 at line 5 with no barrier between"
    );
    let mut memory = written(256);
    assert!(memory.load(&access(&into, 4), &mut NOTHING.clone(), &mut Counters::default()).is_ok());
}

#[test]
fn ldmatrix_reads_for_the_whole_warp() {
    let mut memory = written(1024);
    put(&mut memory, 3, 48, 16).unwrap();
    let text = rows(&mut memory, 0, 8, |lane| 16 * lane).unwrap_err().kind.to_string();
    assert_eq!(
        text,
        "shared memory race at byte 0x30: read here, write by thread 3 at line 13 with no barrier between"
    );
    memory.warp_barrier(0);
    let found = rows(&mut memory, 0, 8, |lane| 16 * lane).unwrap();
    assert!(found.iter().all(|row| *row == [7; 16]));
    assert!(rows(&mut memory, 1, 8, |lane| 16 * lane).is_err(), "the other warp saw no barrier");
    // The thread whose address it was may not overwrite the row either: others read it.
    let text = put(&mut memory, 3, 48, 4).unwrap_err().to_string();
    assert_eq!(text, "shared memory race at byte 0x30: write here, read by thread 3 at line 8 with no barrier between");
    memory.warp_barrier(0);
    assert!(put(&mut memory, 3, 48, 4).is_ok());
    assert!(put(&mut memory, 40, 64, 4).is_err(), "warp 1 passes no barrier");
    memory.barrier();
    assert!(put(&mut memory, 40, 64, 4).is_ok());
}

#[test]
fn a_copy_lands_when_its_thread_waits_for_its_group() {
    let mut memory = written(64);
    copy(&mut memory, 1, 16, 16).unwrap();
    memory.commit(0, u32::MAX);
    let text = get(&mut memory, 1, 28, 4).unwrap_err().to_string();
    assert_eq!(text, "shared memory at byte 0x1c is touched before the cp.async of line 11 was waited for");
    assert!(matches!(put(&mut memory, 1, 16, 1), Err(FaultKind::AsyncCopy { .. })));
    assert!(matches!(copy(&mut memory, 1, 16, 4), Err(FaultKind::AsyncCopy { .. })));
    assert!(matches!(add(&mut memory, 1, 16, 4), Err(FaultKind::AsyncCopy { .. })));
    assert!(rows(&mut memory, 0, 1, |lane| 16 * (lane % 4)).is_err());
    assert!(get(&mut memory, 1, 32, 16).is_ok());
    assert_eq!(memory.bytes[16..32], [7; 16], "the old bytes");
    memory.barrier();
    assert!(matches!(get(&mut memory, 2, 16, 4), Err(FaultKind::AsyncCopy { .. })), "a barrier waits for no copy");
    memory.wait(0, u32::MAX, 0);
    assert_eq!(get(&mut memory, 1, 16, 16), Ok([9; 16]));
    let text = get(&mut memory, 2, 16, 4).unwrap_err().to_string();
    assert_eq!(
        text,
        "shared memory race at byte 0x10: read here, cp.async by thread 1 at line 11 with no barrier between"
    );
    memory.barrier();
    assert_eq!(get(&mut memory, 2, 16, 16), Ok([9; 16]));
}

#[test]
fn a_wait_that_keeps_too_many_groups_is_found() {
    for (keep, ready) in [(0, 3), (1, 2), (2, 1), (3, 0), (100, 0)] {
        let mut memory = written(64);
        for group in 0..3 {
            copy(&mut memory, 0, 16 * group, 16).unwrap();
            memory.commit(0, 1);
        }
        memory.wait(0, 1, keep);
        for group in 0..3 {
            assert_eq!(get(&mut memory, 0, 16 * group, 4).is_ok(), group < ready, "keep {keep}, group {group}");
        }
    }
}

#[test]
fn empty_groups_count() {
    let mut memory = written(64);
    copy(&mut memory, 0, 0, 16).unwrap();
    memory.commit(0, 1);
    memory.commit(0, 1);
    memory.wait(0, 1, 1);
    assert!(get(&mut memory, 0, 0, 16).is_ok());
}

#[test]
fn a_copy_without_commit_lands_at_wait_all_only() {
    let mut memory = written(64);
    copy(&mut memory, 0, 0, 16).unwrap();
    memory.wait(0, 1, 0);
    assert!(matches!(get(&mut memory, 0, 0, 16), Err(FaultKind::AsyncCopy { .. })), "a missing commit");
    memory.wait_all(0, 1);
    assert_eq!(get(&mut memory, 0, 0, 16), Ok([9; 16]));
}

#[test]
fn a_wait_is_its_own_threads_only() {
    let mut memory = written(64);
    for thread in [0, 1, 32] {
        copy(&mut memory, thread, 16 * u64::from(thread % 30), 16).unwrap();
    }
    memory.commit(0, 3);
    memory.commit(1, 1);
    memory.wait(0, 1, 0);
    memory.barrier();
    assert!(get(&mut memory, 5, 0, 16).is_ok());
    for address in [16, 32] {
        assert!(matches!(get(&mut memory, 5, address, 1), Err(FaultKind::AsyncCopy { .. })));
    }
    memory.wait(0, 2, 0);
    memory.wait(1, 1, 0);
    memory.barrier();
    assert!(get(&mut memory, 5, 16, 16).is_ok());
}

#[test]
fn a_copy_over_what_others_still_read_is_a_race() {
    let mut memory = written(64);
    get(&mut memory, 7, 4, 4).unwrap();
    let text = copy(&mut memory, 1, 0, 16).unwrap_err().to_string();
    assert_eq!(
        text,
        "shared memory race at byte 0x4: cp.async here, read by thread 7 at line 17 with no barrier between"
    );
    let mut memory = written(64);
    get(&mut memory, 7, 4, 4).unwrap();
    memory.barrier();
    assert!(copy(&mut memory, 1, 0, 16).is_ok());
}

#[test]
fn a_copy_does_not_outlive_its_cta() {
    let mut memory = written(64);
    copy(&mut memory, 0, 0, 16).unwrap();
    memory.commit(0, 1);
    memory.reset(64);
    put(&mut memory, 0, 0, 16).unwrap();
    memory.wait_all(0, 1);
    assert_eq!(get(&mut memory, 0, 0, 16), Ok([7; 16]));
}

#[test]
fn a_reader_of_another_warp_is_not_forgotten_for_two_of_one() {
    // Readers 0 and 1 are ordered before thread 2 by their warp's barrier, reader 32 is not.
    for order in [[0, 1, 32], [0, 32, 1], [32, 0, 1]] {
        let mut memory = written(64);
        for thread in order {
            get(&mut memory, thread, 0, 4).unwrap();
        }
        memory.warp_barrier(0);
        let FaultKind::SharedRace { thread, .. } = put(&mut memory, 2, 0, 4).unwrap_err() else { panic!() };
        assert_eq!(thread, 32, "{order:?}");
    }
    for rows_first in [false, true] {
        let mut memory = written(64);
        let mut read = |rows_now| match rows_now {
            true => assert!(rows(&mut memory, 0, 1, |_| 0).is_ok()),
            false => [0, 1].into_iter().for_each(|thread| assert!(get(&mut memory, thread, 0, 4).is_ok())),
        };
        read(rows_first);
        read(!rows_first);
        get(&mut memory, 32, 0, 4).unwrap();
        memory.warp_barrier(0);
        assert!(put(&mut memory, 2, 0, 4).is_err(), "{rows_first}");
    }
}

/// A two-stage pipeline as kernels have it, with each of its waits and barriers left out in turn.
#[test]
fn a_pipeline_is_clean_only_with_every_wait_and_barrier() {
    let run = |keep: u32, barrier_before: bool, barrier_after: bool| -> Result<(), FaultKind> {
        let mut memory = SharedMemory::new(2 * 1024);
        let fill = |memory: &mut SharedMemory, stage: u64| {
            for warp in 0..2u32 {
                let into = addresses(|lane| stage * 1024 + 512 * u64::from(warp) + 16 * lane);
                memory
                    .async_copy(&Access { warp, ..access(&into, 16) }, &NOTHING, &mut Counters::default())
                    .map_err(|found| found.kind)?;
                memory.commit(warp, u32::MAX);
            }
            Ok(())
        };
        fill(&mut memory, 0)?;
        for step in 0..6u64 {
            fill(&mut memory, (step + 1) % 2)?;
            (0..2).for_each(|warp| memory.wait(warp, u32::MAX, keep));
            if barrier_before {
                memory.barrier();
            }
            for warp in 0..2 {
                rows(&mut memory, warp, 1, |lane| step % 2 * 1024 + 32 * lane).map_err(|found| found.kind)?;
            }
            if barrier_after {
                memory.barrier();
            }
        }
        Ok(())
    };
    assert_eq!(run(1, true, true), Ok(()));
    assert_eq!(run(0, true, true), Ok(()));
    assert!(matches!(run(2, true, true), Err(FaultKind::AsyncCopy { .. })));
    assert!(matches!(run(1, false, true), Err(FaultKind::SharedRace { what: "read", other: "cp.async", .. })));
    assert!(matches!(run(1, true, false), Err(FaultKind::SharedRace { what: "cp.async", other: "read", .. })));
}

#[test]
fn a_barrier_among_some_warps_orders_those() {
    let mut memory = written(64);
    put(&mut memory, 0, 0, 4).unwrap();
    memory.barrier_among(0b011);
    assert!(get(&mut memory, 32, 0, 4).is_ok());
    assert!(get(&mut memory, 64, 0, 4).is_err());
    memory.barrier_among(0b110);
    assert!(get(&mut memory, 64, 0, 4).is_ok(), "warp 1 passes on what it knew");
    assert!(put(&mut memory, 0, 0, 4).is_err(), "warp 0 knows nothing of the readers");
}

#[test]
fn passes_and_conflicts_are_counted() {
    let mut memory = written(8192);
    let mut counters = Counters::default();
    let into = addresses(|lane| 128 * lane);
    memory.load(&access(&into, 4), &mut NOTHING.clone(), &mut counters).unwrap();
    assert_eq!((counters.shared_passes, counters.bank_conflicts), (32, 31));
    memory.barrier();
    let into = addresses(|lane| 16 * lane);
    memory.store(&access(&into, 16), &NOTHING, &mut counters).unwrap();
    memory.warp_barrier(0);
    memory.load_rows(&Access { mask: 0xFF, ..access(&into, 16) }, &mut NOTHING.clone(), &mut counters).unwrap();
    memory.warp_barrier(0);
    memory.async_copy(&access(&into, 16), &NOTHING, &mut counters).unwrap();
    assert_eq!((counters.shared_passes, counters.bank_conflicts), (32 + 4 + 1 + 4, 31));
}
