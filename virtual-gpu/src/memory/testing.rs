//! What the tests of the memories share: seeded numbers, and accesses made from a rule.

use super::{Access, Data, LANES, SharedMemory, WIDEST};
use crate::counters::Counters;

/// Seeded numbers.
pub(super) struct Random(pub u64);

impl Random {
    /// One below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }

    /// 32 bits.
    pub fn mask(&mut self) -> u32 {
        (self.below(1 << 16) << 16 | self.below(1 << 16)) as u32
    }
}

/// Addresses by lane.
pub(super) fn addresses(of: impl FnMut(u64) -> u64) -> [u64; LANES] {
    let mut lane = 0..;
    let mut of = of;
    [0; LANES].map(|_: u64| of(lane.next().unwrap_or_default()))
}

/// An access by all lanes of warp 0 at line 1.
pub(super) fn access(addresses: &[u64; LANES], bytes: u32) -> Access<'_> {
    Access { addresses, mask: u32::MAX, bytes, line: 1, warp: 0 }
}

/// Bytes that differ by lane and place.
pub(super) fn pattern(seed: u8) -> Data {
    let mut data = [[0; WIDEST]; LANES];
    for (lane, bytes) in data.iter_mut().enumerate() {
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = seed.wrapping_add((lane * WIDEST + place) as u8).wrapping_mul(31);
        }
    }
    data
}

/// No bytes at all.
pub(super) const NOTHING: Data = [[0; WIDEST]; LANES];

/// Shared memory all of whose bytes thread 0 wrote as 7, with a barrier after.
pub(super) fn written(bytes: u32) -> SharedMemory {
    let mut memory = SharedMemory::new(bytes);
    for byte in 0..u64::from(bytes) {
        let into = [byte; LANES];
        let one = Access { mask: 1, ..access(&into, 1) };
        memory.store(&one, &[[7; WIDEST]; LANES], &mut Counters::default()).expect("a clean write");
    }
    memory.barrier();
    memory
}
