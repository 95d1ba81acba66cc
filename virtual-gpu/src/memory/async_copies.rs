//! Asynchronous copies of a CTA's threads that have been issued and not yet waited for.
//!
//! Groups are each thread's own: a commit closes the thread's group, a wait for all but n lets everything up to the group before the
//! last n closed ones land. A copy that was issued and not committed lands at the wait after its commit.

use super::order::WARPS;
use super::warp_access::Lanes;
use super::{Access, Data, LANES, WIDEST};

/// One warp instruction's copies.
struct Copy {
    /// Lanes whose bytes have not landed.
    mask: u32,
    bytes: u32,
    line: u32,
    /// In shared memory.
    offsets: [u32; LANES],
    /// Of each lane's groups, from 0.
    groups: [u32; LANES],
    data: Data,
}

/// A warp's copies, in the order of issue.
#[derive(Default)]
struct Warp {
    /// Groups that each lane has closed.
    closed: [u32; LANES],
    copies: Vec<Box<Copy>>,
}

/// See the head of this file.
pub(super) struct AsyncCopies {
    warps: Vec<Warp>,
    /// To be used again.
    spare: Vec<Box<Copy>>,
}

/// A lane's bytes that land.
pub(super) struct Landing<'a> {
    pub lane: usize,
    /// First byte in shared memory.
    pub offset: usize,
    pub bytes: &'a [u8],
    /// PTX line of the copy.
    pub line: u32,
}

impl AsyncCopies {
    pub fn new() -> Self {
        Self { warps: (0..WARPS).map(|_| Warp::default()).collect(), spare: Vec::new() }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        for warp in &mut self.warps {
            warp.closed = [0; LANES];
            self.spare.append(&mut warp.copies);
        }
    }

    /// Keeps an instruction's bytes until its lanes wait.
    pub fn issue(&mut self, access: &Access, data: &Data) {
        let warp = &mut self.warps[access.warp as usize % WARPS];
        let mut copy = self.spare.pop().unwrap_or_else(|| {
            let data = [[0; WIDEST]; LANES];
            Box::new(Copy { mask: 0, bytes: 0, line: 0, offsets: [0; LANES], groups: [0; LANES], data })
        });
        copy.mask = access.mask;
        copy.bytes = access.bytes;
        copy.line = access.line;
        copy.offsets = access.addresses.map(|address| address as u32);
        copy.groups = warp.closed;
        copy.data = *data;
        warp.copies.push(copy);
    }

    /// Closes the group of each lane in `mask`.
    pub fn commit(&mut self, warp: u32, mask: u32) {
        let closed = &mut self.warps[warp as usize % WARPS].closed;
        Lanes(mask).for_each(|lane| closed[lane] += 1);
    }

    /// Hands over what lands when the lanes in `mask` wait for all but their latest `keep` closed groups; `None`: for everything.
    pub fn wait(&mut self, warp: u32, mask: u32, keep: Option<u32>, mut land: impl FnMut(Landing)) {
        let Warp { closed, copies } = &mut self.warps[warp as usize % WARPS];
        let spare = &mut self.spare;
        // Groups below this one land.
        let below = closed.map(|closed| match keep {
            Some(keep) => closed.saturating_sub(keep),
            None => u32::MAX,
        });
        let mut kept = 0;
        for index in 0..copies.len() {
            let copy = &mut copies[index];
            for lane in Lanes(copy.mask & mask) {
                if copy.groups[lane] < below[lane] {
                    copy.mask &= !(1 << lane);
                    let bytes = &copy.data[lane][..copy.bytes as usize];
                    land(Landing { lane, offset: copy.offsets[lane] as usize, bytes, line: copy.line });
                }
            }
            if copies[index].mask != 0 {
                copies.swap(kept, index);
                kept += 1;
            }
        }
        spare.extend(copies.drain(kept..));
    }

    /// The PTX line of the copy that will fill the byte at `offset`.
    pub fn line(&self, offset: usize) -> u32 {
        let copies = self.warps.iter().flat_map(|warp| &warp.copies);
        let fills = |copy: &&Box<Copy>| {
            Lanes(copy.mask).any(|lane| {
                let start = copy.offsets[lane] as usize;
                (start..start + copy.bytes as usize).contains(&offset)
            })
        };
        copies.filter(fills).map(|copy| copy.line).next().unwrap_or_default()
    }
}
