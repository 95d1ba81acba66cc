//! Device memory as the CTAs of one launch see it: every access checked, races between CTAs found whatever their order in time.

use crate::counters::Counters;

use super::{Access, Data, LANES, LaneFault, WIDEST};

/// Device memory during one launch; CTAs may run on several threads.
pub struct GlobalLaunch {}

impl GlobalLaunch {
    /// The view of CTA `cta` (flat in the grid).
    pub fn cta(&self, cta: u32) -> CtaGlobal<'_> {
        todo!("{cta} {:p}", self)
    }
}

/// Device memory for one CTA.
pub struct CtaGlobal<'a> {
    launch: &'a GlobalLaunch,
}

impl CtaGlobal<'_> {
    /// Loads; other bytes of `data` stay. Counts `sectors_read`.
    pub fn load(&mut self, access: &Access, data: &mut Data, counters: &mut Counters) -> Result<(), LaneFault> {
        todo!("{access:?} {data:?} {counters:?} {:p}", self.launch)
    }

    /// The source side of cp.async: lane l reads the first `source[l]` of `access.bytes` bytes, and the rest of its `data` is zero.
    /// A lane with 0 source bytes touches nothing. Counts `sectors_read`.
    pub fn load_partial(
        &mut self,
        access: &Access,
        source: &[u32; LANES],
        data: &mut Data,
        counters: &mut Counters,
    ) -> Result<(), LaneFault> {
        todo!("{access:?} {source:?} {data:?} {counters:?}")
    }

    /// Stores. Counts `sectors_written`.
    pub fn store(&mut self, access: &Access, data: &Data, counters: &mut Counters) -> Result<(), LaneFault> {
        todo!("{access:?} {data:?} {counters:?}")
    }

    /// Read-modify-write, lane after lane: `operation(lane, old)` gives the new bytes. Counts `sectors_written`.
    pub fn atomic(
        &mut self,
        access: &Access,
        counters: &mut Counters,
        operation: impl FnMut(usize, [u8; WIDEST]) -> [u8; WIDEST],
    ) -> Result<(), LaneFault> {
        let _ = operation;
        todo!("{access:?} {counters:?}")
    }
}
