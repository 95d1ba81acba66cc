//! One warp's access taken apart: alignment, runs of neighbouring lanes, sectors of global memory, passes of shared memory.

use crate::fault::FaultKind;

use super::{Access, LANES, LaneFault};

/// Bytes of a sector of global memory.
const SECTOR: u64 = 32;
/// Bytes that shared memory's banks give in one pass.
const PASS: u64 = 128;

/// The active lanes of a mask, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes(pub u32);

impl Iterator for Lanes {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lane = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(lane)
    }
}

/// That every address is a multiple of the access's size.
#[inline(always)]
pub(super) fn aligned(access: &Access, what: &'static str) -> Result<(), LaneFault> {
    debug_assert!(matches!(access.bytes, 1 | 2 | 4 | 8 | 16), "an access of {} bytes", access.bytes);
    let low = u64::from(access.bytes) - 1;
    let any = if access.mask == u32::MAX {
        access.addresses.iter().fold(0, |any, address| any | address)
    } else {
        Lanes(access.mask).fold(0, |any, lane| any | access.addresses[lane])
    };
    if any & low == 0 { Ok(()) } else { Err(misaligned(access, what)) }
}

#[cold]
fn misaligned(access: &Access, what: &'static str) -> LaneFault {
    let bytes = access.bytes;
    let lane =
        Lanes(access.mask).find(|&lane| !access.addresses[lane].is_multiple_of(u64::from(bytes))).unwrap_or_default();
    LaneFault { lane: lane as u32, kind: FaultKind::Misaligned { what, bytes, address: access.addresses[lane] } }
}

/// Neighbouring lanes that touch neighbouring bytes, or the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first lane.
    pub lane: usize,
    /// How many.
    pub lanes: usize,
    /// Of the first lane.
    pub address: u64,
    /// From one lane's address to the next: the access's size, or 0.
    pub step: u64,
}

impl Run {
    /// From the first byte to behind the last.
    #[inline(always)]
    pub fn length(&self, bytes: u32) -> u64 {
        u64::from(bytes) + self.step * (self.lanes as u64 - 1)
    }
}

/// The runs of an access, by lane.
pub(super) struct Runs<'a> {
    addresses: &'a [u64; LANES],
    bytes: u64,
    left: u32,
}

impl<'a> Runs<'a> {
    #[inline(always)]
    pub fn new(access: &Access<'a>) -> Self {
        Self { addresses: access.addresses, bytes: u64::from(access.bytes), left: access.mask }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        if self.left == 0 {
            return None;
        }
        let lane = self.left.trailing_zeros() as usize;
        let address = self.addresses[lane];
        let follows = |lane: usize| lane < LANES && self.left >> lane & 1 == 1;
        let mut lanes = 1;
        let mut step = self.bytes;
        if follows(lane + 1) {
            if self.addresses[lane + 1] == address {
                step = 0;
            }
            let mut expected = address.wrapping_add(step);
            while follows(lane + lanes) && self.addresses[lane + lanes] == expected {
                lanes += 1;
                expected = expected.wrapping_add(step);
            }
        }
        self.left &= !((u32::MAX >> (LANES - lanes)) << lane);
        Some(Run { lane, lanes, address, step })
    }
}

/// Counts sectors over the runs of one warp instruction, each sector once.
pub(super) struct Sectors {
    count: u64,
    /// The highest sector so far, plus 1.
    next: u64,
    /// Whether runs came in ascending order, so that `count` is right.
    ascending: bool,
}

impl Sectors {
    pub fn new() -> Self {
        Self { count: 0, next: 0, ascending: true }
    }

    /// Adds the sectors of a run.
    #[inline(always)]
    pub fn add(&mut self, address: u64, length: u64) {
        let first = address / SECTOR;
        let behind = (address + length - 1) / SECTOR + 1;
        self.ascending &= first + 1 >= self.next;
        self.count += behind.saturating_sub(first.max(self.next));
        self.next = behind.max(self.next);
    }

    /// How many; `access` is what the runs came from.
    #[inline(always)]
    pub fn total(self, access: &Access) -> u64 {
        if self.ascending { self.count } else { distinct_sectors(access) }
    }
}

/// The sectors of an access whose lanes are in any order. An aligned lane lies in one.
#[cold]
fn distinct_sectors(access: &Access) -> u64 {
    let mut sectors = [0; LANES];
    let mut count = 0;
    for lane in Lanes(access.mask) {
        sectors[count] = access.addresses[lane] / SECTOR;
        count += 1;
    }
    sectors[..count].sort_unstable();
    let steps = sectors[..count].windows(2).filter(|pair| pair[0] != pair[1]).count();
    (steps + usize::from(count > 0)) as u64
}

/// Two lanes of one instruction that touch the same bytes (the later one first), if any.
#[inline(always)]
pub(super) fn overlap(access: &Access) -> Option<(usize, usize)> {
    let ascending = if access.mask == u32::MAX {
        access.addresses.windows(2).fold(true, |ascending, pair| ascending & (pair[0] < pair[1]))
    } else {
        let mut last = None;
        Lanes(access.mask).all(|lane| last.replace(access.addresses[lane]) < Some(access.addresses[lane]))
    };
    if ascending { None } else { sorted_overlap(access) }
}

/// [`overlap`] for lanes in any order.
#[cold]
fn sorted_overlap(access: &Access) -> Option<(usize, usize)> {
    let mut lanes = [(0, 0); LANES];
    let mut count = 0;
    for lane in Lanes(access.mask) {
        lanes[count] = (access.addresses[lane], lane);
        count += 1;
    }
    lanes[..count].sort_unstable();
    lanes[..count].windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| (pair[1].1, pair[0].1))
}

/// Passes that shared memory makes for an access, and the least that its bytes need.
///
/// There are 32 banks of 4 bytes. Accesses of up to 4 bytes are served for the whole warp together, of 8 bytes for each half warp, of
/// 16 bytes for each quarter; lanes that touch the same word share it. Each group takes as many passes as its busiest bank has words.
#[inline(always)]
pub(super) fn passes(access: &Access) -> (u64, u64) {
    match access.bytes {
        16 => grouped_passes::<16, 8>(access),
        8 => grouped_passes::<8, 16>(access),
        _ => grouped_passes::<4, 32>(access),
    }
}

/// [`passes`] for words of `WORD` bytes in groups of `GROUP` lanes (`WORD * GROUP` is one pass).
#[inline(always)]
fn grouped_passes<const WORD: u64, const GROUP: usize>(access: &Access) -> (u64, u64) {
    const { assert!(WORD * GROUP as u64 == PASS) };
    let mut total = 0;
    let mut least = 0;
    for group in 0..LANES / GROUP {
        let first = group * GROUP;
        let mask = access.mask & ((u32::MAX >> (LANES - GROUP)) << first);
        if mask == 0 {
            continue;
        }
        least += 1;
        // Every lane in a bank of its own, mostly.
        let mut taken = 0u32;
        for lane in 0..GROUP {
            let active = mask >> (first + lane) & 1;
            taken |= active << (access.addresses[first + lane] / WORD % GROUP as u64);
        }
        total += if taken.count_ones() == mask.count_ones() { 1 } else { busiest_bank::<WORD, GROUP>(access, mask) };
    }
    (total, least)
}

/// Words of the bank that has most.
#[cold]
fn busiest_bank<const WORD: u64, const GROUP: usize>(access: &Access, mask: u32) -> u64 {
    let mut words = [0; GROUP];
    let mut count = 0;
    for lane in Lanes(mask) {
        words[count] = access.addresses[lane] / WORD;
        count += 1;
    }
    let words = &mut words[..count];
    words.sort_unstable();
    let mut banks = [0u64; GROUP];
    for (index, &word) in words.iter().enumerate() {
        if index == 0 || words[index - 1] != word {
            banks[word as usize % GROUP] += 1;
        }
    }
    banks.into_iter().max().unwrap_or_default()
}

#[cfg(test)]
#[path = "warp_access_tests.rs"]
mod tests;
