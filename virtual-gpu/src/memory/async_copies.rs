//! Asynchronous copies of a CTA's threads that have been issued and not yet waited for.
//!
//! Groups are each thread's own: a commit closes the thread's group, a wait for all but n lets everything up to the group before the
//! last n closed ones land. A copy that was issued and not committed lands at the wait after its commit.

use std::collections::VecDeque;

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

/// A warp's copies, in the order of issue: a lane's groups never descend.
#[derive(Default)]
struct Warp {
    /// Groups that each lane has closed.
    closed: [u32; LANES],
    copies: VecDeque<Copy>,
}

/// See the head of this file.
pub(super) struct AsyncCopies {
    warps: Vec<Warp>,
}

/// A lane's bytes that land.
pub(super) struct Landing<'a> {
    pub lane: usize,
    /// First byte in shared memory.
    pub offset: usize,
    /// How many bytes.
    pub length: usize,
    /// They come first in here.
    pub bytes: &'a [u8; WIDEST],
    /// PTX line of the copy.
    pub line: u32,
}

impl AsyncCopies {
    pub fn new() -> Self {
        Self { warps: (0..WARPS).map(|_| Warp::default()).collect() }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        for warp in &mut self.warps {
            warp.closed = [0; LANES];
            warp.copies.clear();
        }
    }

    /// Keeps an instruction's bytes until its lanes wait.
    pub fn issue(&mut self, access: &Access, data: &Data) {
        let warp = &mut self.warps[access.warp as usize % WARPS];
        warp.copies.push_back(Copy {
            mask: access.mask,
            bytes: access.bytes,
            line: access.line,
            offsets: access.addresses.map(|address| address as u32),
            groups: warp.closed,
            data: *data,
        });
    }

    /// Closes the group of each lane in `mask`.
    pub fn commit(&mut self, warp: u32, mask: u32) {
        let closed = &mut self.warps[warp as usize % WARPS].closed;
        Lanes(mask).for_each(|lane| closed[lane] += 1);
    }

    /// Hands over what lands when the lanes in `mask` wait for all but their latest `keep` closed groups; `None`: for everything.
    #[inline(always)]
    pub fn wait(&mut self, warp: u32, mask: u32, keep: Option<u32>, mut land: impl FnMut(Landing)) {
        let Warp { closed, copies } = &mut self.warps[warp as usize % WARPS];
        // Groups below this one land.
        let below = closed.map(|closed| match keep {
            Some(keep) => closed.saturating_sub(keep),
            None => u32::MAX,
        });
        for copy in copies.iter_mut() {
            let mut landing = 0;
            for (lane, (group, below)) in copy.groups.iter().zip(&below).enumerate() {
                landing |= u32::from(group < below) << lane;
            }
            if landing == 0 {
                // Nor does any later copy.
                break;
            }
            landing &= copy.mask & mask;
            copy.mask &= !landing;
            for lane in Lanes(landing) {
                land(Landing {
                    lane,
                    offset: copy.offsets[lane] as usize,
                    length: copy.bytes as usize,
                    bytes: &copy.data[lane],
                    line: copy.line,
                });
            }
        }
        while copies.front().is_some_and(|copy| copy.mask == 0) {
            copies.pop_front();
        }
    }

    /// The PTX line of the copy that will fill the byte at `offset`, if one was issued.
    pub fn line(&self, offset: usize) -> Option<u32> {
        let copies = self.warps.iter().flat_map(|warp| &warp.copies);
        let fills = |copy: &&Copy| {
            Lanes(copy.mask).any(|lane| {
                let start = copy.offsets[lane] as usize;
                (start..start + copy.bytes as usize).contains(&offset)
            })
        };
        copies.filter(fills).map(|copy| copy.line).next()
    }
}
