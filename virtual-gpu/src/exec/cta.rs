//! A CTA: its warps by turns until all have ended, with barriers in between.

use super::Launch;
use super::program::{Program, Start};
use super::warp::{Standing, Warp};
use crate::counters::Counters;
use crate::fault::FaultKind;
use crate::memory::{CtaGlobal, SharedMemory};

/// What the warps of a CTA share.
pub(super) struct Cta<'a> {
    pub shared: &'a mut SharedMemory,
    pub global: CtaGlobal<'a>,
    pub counters: Counters,
    /// The kernel's parameters, as a computed address finds them.
    pub parameters: &'a [u8],
}

/// A finding, with its place in the CTA.
pub(super) struct Stop {
    pub warp: u32,
    pub lane: u32,
    pub line: u32,
    pub kind: FaultKind,
}

/// SplitMix64: the order in which warps take turns.
pub(super) struct Order(u64);

impl Order {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}

/// Instructions of a turn where no seed says otherwise.
const TURN: u32 = 256;

/// Runs one CTA.
pub(super) fn run(
    launch: &Launch<'_>,
    program: &Program,
    block: [u32; 3],
    cta: &mut Cta<'_>,
    mut order: Option<Order>,
) -> Result<(), Stop> {
    let [x, y, z] = launch.block;
    let threads = x * y * z;
    let mut warps: Vec<Warp> = (0..threads.div_ceil(32))
        .map(|index| {
            let left = threads - 32 * index;
            let members = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
            Warp::new(index, program, members, |start, lane| {
                let thread = 32 * index + lane;
                match start {
                    Start::Value(value) => value,
                    Start::Thread(0) => u64::from(thread % x),
                    Start::Thread(1) => u64::from(thread / x % y),
                    Start::Thread(_) => u64::from(thread / (x * y)),
                    Start::BlockSize(axis) => u64::from(launch.block[usize::from(axis)]),
                    Start::Block(axis) => u64::from(block[usize::from(axis)]),
                    Start::Grid(axis) => u64::from(launch.grid[usize::from(axis)]),
                    Start::Lane => u64::from(lane),
                    Start::Warp => u64::from(index),
                    Start::LaneMask(which) => {
                        let one = 1_u64 << lane;
                        let below = one - 1;
                        let all = u64::from(u32::MAX);
                        match which {
                            0 => one,
                            1 => below,
                            2 => below | one,
                            3 => all & !(below | one),
                            _ => all & !below,
                        }
                    }
                    Start::Parameter { offset, bytes } => {
                        let mut word = [0; 8];
                        let from = &launch.parameters[offset as usize..][..usize::from(bytes)];
                        word[..from.len()].copy_from_slice(from);
                        u64::from_le_bytes(word)
                    }
                    Start::DynamicShared => program.dynamic as u64,
                    Start::DynamicSharedSize => u64::from(launch.dynamic_shared),
                    Start::Variable(which) => launch.globals.get(which as usize).copied().unwrap_or(0),
                    Start::Clock => 0,
                }
            })
        })
        .collect();
    let limit = launch.instruction_limit.unwrap_or(u64::MAX);
    let mut turn = 0;
    loop {
        let running: Vec<usize> = (0..warps.len()).filter(|&index| warps[index].standing == Standing::Runs).collect();
        if running.is_empty() {
            if warps.iter().all(|warp| warp.standing == Standing::Ended) {
                return Ok(());
            }
            pass(&mut warps, cta)?;
            continue;
        }
        let (index, count) = match &mut order {
            Some(order) => (running[order.below(running.len())], 1 + order.below(96) as u32),
            None => (running[turn % running.len()], TURN),
        };
        turn += 1;
        warps[index].run(program, cta, count)?;
        if cta.counters.instructions > limit {
            return Err(Stop { warp: index as u32, lane: 0, line: 0, kind: FaultKind::Endless(limit) });
        }
    }
}

/// All that still run stand at a barrier: on they go, if nobody is missing.
fn pass(warps: &mut [Warp], cta: &mut Cta<'_>) -> Result<(), Stop> {
    let missing = warps.iter().find(|warp| warp.standing == Standing::Ended || warp.has_ended_lanes());
    if let Some(missing) = missing {
        let waiting = warps.iter().filter(|warp| warp.standing == Standing::Waits).count();
        let why = format!("{waiting} warps wait, and threads of warp {} have ended", missing.index);
        return Err(Stop { warp: missing.index, lane: 0, line: 0, kind: FaultKind::Barrier(why) });
    }
    cta.shared.barrier();
    warps.iter_mut().for_each(|warp| warp.standing = Standing::Runs);
    Ok(())
}
