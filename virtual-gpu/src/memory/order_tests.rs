//! Random programs on shared memory against vector clocks of every thread.

use super::super::testing::{NOTHING, Random, written};
use super::super::{Access, LANES, WIDEST};
use crate::counters::Counters;
use crate::fault::FaultKind;

/// Threads' accesses with a vector clock for each thread: which earlier accesses are ordered before which later ones.
struct Reference {
    /// `clocks[t][u]`: thread u's accesses up to this one are ordered before what thread t does next.
    clocks: Vec<Vec<u32>>,
    /// By byte: thread, its time, and 'r', 'w' or 'a'.
    history: Vec<Vec<(usize, u32, char)>>,
    bytes: Vec<u8>,
    /// By byte: under way, by whom, in which group, with which value.
    pending: Vec<Option<(usize, u32, u8)>>,
    closed: Vec<u32>,
}

const THREADS: usize = 96;
const BYTES: usize = 48;

impl Reference {
    fn new() -> Self {
        Self {
            clocks: vec![vec![0; THREADS]; THREADS],
            history: vec![Vec::new(); BYTES],
            bytes: vec![7; BYTES],
            pending: vec![None; BYTES],
            closed: vec![0; THREADS],
        }
    }

    fn meet(&mut self, members: impl Fn(usize) -> bool) {
        let mut joined = vec![0; THREADS];
        for thread in (0..THREADS).filter(|&thread| members(thread)) {
            for (into, &time) in joined.iter_mut().zip(&self.clocks[thread]) {
                *into = time.max(*into);
            }
        }
        for thread in (0..THREADS).filter(|&thread| members(thread)) {
            self.clocks[thread] = joined.clone();
        }
    }

    /// What may be said of an access: that it races, that it meets a copy under way.
    fn check(&self, thread: usize, start: usize, end: usize, act: char) -> [bool; 2] {
        let collides = |&(other, time, earlier): &(usize, u32, char)| {
            let conflict = act == 'w' || earlier == 'w' || act != earlier;
            conflict && other != thread && self.clocks[thread][other] < time
        };
        let races = self.history[start..end].iter().flatten().any(collides);
        [races, self.pending[start..end].iter().any(Option::is_some)]
    }

    fn record(&mut self, thread: usize, start: usize, end: usize, act: char) {
        self.clocks[thread][thread] += 1;
        for byte in start..end {
            self.history[byte].push((thread, self.clocks[thread][thread], act));
        }
    }

    fn wait(&mut self, thread: usize, below: u32) {
        for byte in 0..BYTES {
            if let Some((_, _, value)) = self.pending[byte].take_if(|(by, group, _)| *by == thread && *group < below) {
                self.bytes[byte] = value;
                self.record(thread, byte, byte + 1, 'w');
            }
        }
    }
}

/// Random programs of 9 threads of 3 warps against vector clocks for every thread. `named`: with barriers among some warps, where
/// not every race is found but nothing false may be. `reading`: nearly all reads and warps' barriers, for long histories.
fn compare_with_vector_clocks(seed: u64, named: bool, reading: bool) -> (u32, u32, u32) {
    let mut random = Random(seed);
    let mut ends = (0, 0, 0);
    for round in 0..4000 {
        let mut memory = written(BYTES as u32);
        let mut reference = Reference::new();
        let mut end = "";
        for _ in 0..40 {
            let warp = random.below(3) as u32;
            let lane = random.below(3) as usize;
            let thread = warp as usize * 32 + lane;
            let width = if reading { 16 } else { 1usize << random.below(5) };
            let start = random.below((BYTES / width) as u64) as usize * width;
            let value = random.below(256) as u8;
            let into = [start as u64; LANES];
            let access = Access { addresses: &into, mask: 1 << lane, bytes: width as u32, line: 1, warp };
            let data = [[value; WIDEST]; LANES];
            let counters = &mut Counters::default();
            let kind = if reading && random.below(12) > 0 {
                [0, 1, 2, 6, 6, 14][random.below(6) as usize]
            } else {
                random.below(18)
            };
            let mut expected = [false; 2];
            let found = match kind {
                0..3 => {
                    expected = reference.check(thread, start, start + width, 'r');
                    let mut data = NOTHING;
                    let found = memory.load(&access, &mut data, counters);
                    if found.is_ok() && expected == [false; 2] {
                        assert_eq!(data[lane][..width], reference.bytes[start..start + width]);
                    }
                    reference.record(thread, start, start + width, 'r');
                    found
                }
                3..5 => {
                    expected = reference.check(thread, start, start + width, 'w');
                    reference.record(thread, start, start + width, 'w');
                    reference.bytes[start..start + width].fill(value);
                    memory.store(&access, &data, counters)
                }
                5 => {
                    expected = reference.check(thread, start, start + width, 'a');
                    reference.record(thread, start, start + width, 'a');
                    reference.bytes[start..start + width].fill(value);
                    memory.atomic(&access, counters, |_, _| [value; WIDEST])
                }
                6 => {
                    // Every thread of the warp reads the row.
                    let start = start / 16 * 16;
                    let threads = warp as usize * 32..warp as usize * 32 + 32;
                    for thread in threads.clone() {
                        let [races, pending] = reference.check(thread, start, start + 16, 'r');
                        expected = [expected[0] | races, expected[1] | pending];
                    }
                    threads.for_each(|thread| reference.record(thread, start, start + 16, 'r'));
                    let into = [start as u64; LANES];
                    memory.load_rows(
                        &Access { addresses: &into, mask: 0xFF, bytes: 16, ..access },
                        &mut NOTHING.clone(),
                        counters,
                    )
                }
                7..10 if width >= 4 => {
                    expected = reference.check(thread, start, start + width, 'w');
                    let group = reference.closed[thread];
                    reference.pending[start..start + width].fill(Some((thread, group, value)));
                    memory.async_copy(&access, &data, counters)
                }
                10 | 11 => {
                    reference.closed[thread] += 1;
                    memory.commit(warp, 1 << lane);
                    Ok(())
                }
                12 => {
                    let keep = random.below(3) as u32;
                    reference.wait(thread, reference.closed[thread].saturating_sub(keep));
                    memory.wait(warp, 1 << lane, keep);
                    Ok(())
                }
                13 => {
                    reference.wait(thread, u32::MAX);
                    memory.wait_all(warp, 1 << lane);
                    Ok(())
                }
                14 | 15 => {
                    reference.meet(|thread| thread / 32 == warp as usize);
                    memory.warp_barrier(warp);
                    Ok(())
                }
                16 if named => {
                    let warps = random.below(8) as u32;
                    reference.meet(|thread| warps >> (thread / 32) & 1 == 1);
                    memory.barrier_among(warps);
                    Ok(())
                }
                _ => {
                    reference.meet(|_| true);
                    memory.barrier();
                    Ok(())
                }
            };
            let found = match found.map_err(|found| found.kind) {
                Ok(()) => "",
                Err(FaultKind::SharedRace { .. }) => "race",
                Err(FaultKind::AsyncCopy { .. }) => "pending",
                Err(other) => panic!("{other}"),
            };
            if named && found.is_empty() && expected == [true, false] {
                end = "missed";
                break;
            }
            let right = match found {
                "race" => expected[0],
                "pending" => expected[1],
                _ => expected == [false; 2],
            };
            assert!(
                right,
                "round {round}, act {kind} by thread {thread} at {start}, {width} bytes: {found}, {expected:?}"
            );
            if !found.is_empty() {
                end = found;
                break;
            }
        }
        match end {
            "race" => ends.0 += 1,
            "pending" => ends.1 += 1,
            "missed" => ends.2 += 1,
            _ => {}
        }
    }
    ends
}

#[test]
fn races_equal_vector_clocks_of_every_thread() {
    let (races, pending, missed) = compare_with_vector_clocks(21, false, false);
    assert!(races > 500 && pending > 500 && missed == 0, "{races} races, {pending} pending, {missed} missed");
}

#[test]
fn races_of_long_histories_of_readers_equal_vector_clocks_too() {
    let (races, pending, missed) = compare_with_vector_clocks(23, false, true);
    assert!(races > 500 && pending > 50 && missed == 0, "{races} races, {pending} pending, {missed} missed");
}

#[test]
fn barriers_among_warps_give_nothing_false_and_miss_little() {
    let (races, _, missed) = compare_with_vector_clocks(22, true, false);
    assert!(races > 500 && missed * 50 < races, "{races} races, {missed} missed");
}
