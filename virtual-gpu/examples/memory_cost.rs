//! What one checked memory instruction of a warp costs on this machine, by kind and pattern.
//!
//! `cargo run --release -p virtual-gpu --example memory_cost [WORD]`: only those whose name has the word.

use std::hint::black_box;
use std::time::{Duration, Instant};

use virtual_gpu::counters::Counters;
use virtual_gpu::memory::{Access, CtaGlobal, Data, GlobalMemory, LANES, SharedMemory, WIDEST};

/// Bytes of the global buffer that patterns walk over.
const GLOBAL: u64 = 1 << 20;
/// Bytes of shared memory.
const SHARED: u64 = 64 << 10;

/// A lane's offset.
type Pattern = fn(u64) -> u64;

fn addresses(of: impl Fn(u64) -> u64) -> [u64; LANES] {
    std::array::from_fn(|lane| of(lane as u64))
}

/// The addresses of `count` accesses, made before any clock runs.
fn table(count: u64, of: impl Fn(u64, u64) -> u64) -> Vec<[u64; LANES]> {
    (0..count).map(|index| addresses(|lane| of(index, lane))).collect()
}

/// Nanoseconds of one call of `act`, which is given a count that goes up.
fn time(name: &str, mut act: impl FnMut(u64)) {
    if std::env::args().nth(1).is_some_and(|word| !name.contains(&word)) {
        return;
    }
    let mut count = 0;
    let mut best = f64::MAX;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        let start = Instant::now();
        for _ in 0..2000 {
            act(count);
            count += 1;
        }
        best = best.min(start.elapsed().as_secs_f64() / 2000.0);
    }
    println!("{name:48} {:8.1} ns", best * 1e9);
}

fn access(addresses: &[u64; LANES], bytes: u32, warp: u32) -> Access<'_> {
    Access { addresses, mask: u32::MAX, bytes, line: 1, warp }
}

fn global(counters: &mut Counters) {
    let memory = GlobalMemory::new(1 << 30);
    let base = memory.allocate(GLOBAL).expect("capacity");
    let output = memory.allocate(GLOBAL).expect("capacity");
    memory.fill(base, &[1], GLOBAL).expect("in bounds");
    let patterns: [(&str, u32, Pattern); 6] = [
        ("16 bytes, contiguous", 16, |lane| 16 * lane),
        ("16 bytes, 4 rows of 128", 16, |lane| lane / 8 * 1280 + lane % 8 * 16),
        ("4 bytes, contiguous", 4, |lane| 4 * lane),
        ("4 bytes, 8 rows of 16", 4, |lane| lane / 4 * 2560 + lane % 4 * 4),
        ("2 bytes, contiguous", 2, |lane| 2 * lane),
        ("4 bytes, all the same", 4, |_| 0),
    ];
    for (name, bytes, of) in patterns {
        let mut data: Data = [[0; WIDEST]; LANES];
        let steps = GLOBAL / 512;
        let loads = table(steps, |count, lane| base + (count * 512 + of(lane)) % GLOBAL);
        let stores = table(steps, |count, lane| output + (count * 512 + of(lane)) % GLOBAL);
        for ctas in [1, 3] {
            let launch = memory.launch(4);
            let mut views: Vec<CtaGlobal> = (0..4).map(|cta| launch.cta(cta)).collect();
            for cta in views.iter_mut().take(ctas) {
                for into in &loads {
                    cta.load(&access(into, bytes, 0), &mut data, counters).expect("a clean read");
                }
            }
            time(&format!("global load, {name}, CTAs before: {ctas}"), |count| {
                let into = &loads[(count % steps) as usize];
                views[ctas - 1].load(&access(into, bytes, 0), black_box(&mut data), counters).expect("a clean read");
            });
        }
        if of(0) != of(1) {
            let launch = memory.launch(1);
            let mut cta = launch.cta(0);
            time(&format!("global store, {name}"), |count| {
                let into = &stores[(count % steps) as usize];
                cta.store(&access(into, bytes, 0), black_box(&data), counters).expect("a clean write");
            });
        }
    }
}

/// Two warps read everything, a walk over the memory each; then comes a barrier.
fn warp_of(memory: &mut SharedMemory, count: u64, steps: u64) -> u32 {
    if count.is_multiple_of(2 * steps) {
        memory.barrier();
    }
    (count / steps) as u32 % 2
}

fn shared(counters: &mut Counters) {
    let mut memory = SharedMemory::new(SHARED as u32);
    let mut data: Data = [[0; WIDEST]; LANES];
    for bytes in [16u32, 4, 2] {
        memory.reset(SHARED as u32);
        let size = u64::from(bytes);
        let steps = SHARED / (32 * size);
        let places = table(steps, |count, lane| count * 32 * size + lane * size);
        time(&format!("shared store, {bytes} bytes, contiguous"), |count| {
            if count % steps == 0 {
                memory.barrier();
            }
            memory
                .store(&access(&places[(count % steps) as usize], bytes, 0), black_box(&data), counters)
                .expect("a clean write");
        });
        memory = SharedMemory::new(SHARED as u32);
        for into in &places {
            memory.store(&access(into, bytes, 0), &data, counters).expect("a clean write");
        }
        memory.barrier();
        time(&format!("shared load, {bytes} bytes, contiguous"), |count| {
            let warp = count as u32 % 8;
            memory
                .load(&access(&places[(count % steps) as usize], bytes, warp), black_box(&mut data), counters)
                .expect("a clean read");
        });
    }
    memory.reset(SHARED as u32);
    let swizzled = table(128, |count, lane| count % 16 * 4096 + lane * 128 + (lane ^ (count / 16)) % 8 * 16);
    for count in 0..SHARED / 512 {
        let into = addresses(|lane| count * 512 + lane * 16);
        memory.store(&access(&into, 16, 0), &data, counters).expect("a clean write");
    }
    memory.barrier();
    time("ldmatrix, 4 matrices, swizzled", |count| {
        let into = &swizzled[(count % 128) as usize];
        let warp = warp_of(&mut memory, count, 128);
        memory.load_rows(&access(into, 16, warp), black_box(&mut data), counters).expect("a clean read");
    });
    memory.reset(SHARED as u32);
    let stages = table(128, |count, lane| count * 512 + lane * 16);
    time("cp.async with its share of commit and wait", |count| {
        if count % 8 == 0 {
            memory.commit(0, u32::MAX);
            memory.wait(0, u32::MAX, 2);
            memory.barrier();
        }
        let into = &stages[(count % 128) as usize];
        memory.async_copy(&access(into, 16, 0), black_box(&data), counters).expect("a clean copy");
    });
    time("barrier", |_| memory.barrier());
    time("reset to 64 KiB", |_| memory.reset(SHARED as u32));
}

fn main() {
    let mut counters = Counters::default();
    global(&mut counters);
    shared(&mut counters);
    black_box(counters);
}
