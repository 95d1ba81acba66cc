//! What orders the accesses of a CTA's threads to shared memory, and which pairs of accesses nothing orders.
//!
//! PTX's memory model, as far as it concerns shared memory inside a CTA: accesses of one thread are ordered as the program has them.
//! Accesses of two threads are ordered only through synchronisation between them: a barrier that both pass (`bar.sync`,
//! `barrier.cta`, `bar.red`) or `bar.warp.sync` for lanes of one warp. Two accesses of two threads to one byte, one of them a write
//! and not both atomic, with nothing that orders them are a race. That lanes of a warp execute an instruction together orders nothing
//! (since Volta they need not), nor do `shfl.sync`, `vote.sync`, `match.sync`, `ldmatrix` and `mma.sync`: their `.sync` makes the
//! lanes meet and says nothing about memory. Fences with flags (a release, then an acquire that observes it) order as well, but are
//! not modelled: kernels that hand data over by flags inside a CTA come out as races.
//!
//! Time is a count of barriers. Each warp knows up to which time every warp's accesses lie behind it: a vector clock for each warp. It
//! is exact for CTA-wide and warp barriers with full masks; a warp barrier with part of the lanes counts as one of all.

use super::LANES;
use super::shadow::Cell;

/// Most warps of a CTA.
pub(super) const WARPS: usize = 32;

const THREAD_BITS: u32 = 10;
const WHOLE_WARP: u64 = 1 << THREAD_BITS;
const ASYNC: u64 = 1 << (THREAD_BITS + 1);
const LINE_SHIFT: u32 = THREAD_BITS + 2;
const MOST_LINES: u32 = (1 << (32 - LINE_SHIFT)) - 1;

/// The writer of bytes that nobody wrote. Its time is past every other's, so that one comparison finds it.
pub(super) const UNWRITTEN: u64 = u64::MAX - 1;
/// The writer of bytes that a cp.async under way will fill; likewise.
pub(super) const PENDING: u64 = u64::MAX - 2;

/// An access's mark: its time (32 bits), line (20), whether cp.async made it, whether the whole warp did, thread (10). Zero is none,
/// for time starts at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(pub u64);

impl Mark {
    #[inline(always)]
    pub fn thread(self) -> u32 {
        self.0 as u32 & ((1 << THREAD_BITS) - 1)
    }

    #[inline(always)]
    fn warp(self) -> usize {
        self.thread() as usize / LANES
    }

    #[inline(always)]
    fn time(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Made by cp.async.
    pub fn is_async(self) -> bool {
        self.0 & ASYNC != 0
    }

    /// PTX line; those past a million are given as a million.
    pub fn line(self) -> u32 {
        self.0 as u32 >> LINE_SHIFT
    }

    /// The same access with every thread of its warp taking part.
    #[inline(always)]
    pub fn of_whole_warp(self) -> Self {
        Self(self.0 | WHOLE_WARP)
    }

    /// The same access made by cp.async.
    #[inline(always)]
    pub fn of_async_copy(self) -> Self {
        Self(self.0 | ASYNC)
    }

    /// Whether one thread made both and no other took part.
    #[inline(always)]
    fn same_thread(self, other: Self) -> bool {
        (self.0 ^ other.0) & ((1 << THREAD_BITS) - 1) == 0 && (self.0 | other.0) & WHOLE_WARP == 0
    }
}

/// Time, and what each warp knows of the others'.
pub(super) struct Order {
    now: u32,
    /// Of the latest barrier of all warps: every access before it is ordered before whatever anyone does next.
    floor: u32,
    /// `known[w][v]`: accesses of warp v before this time are ordered before whatever warp w does next, as are those before `floor`.
    known: Box<[[u32; WARPS]; WARPS]>,
}

impl Order {
    pub fn new() -> Self {
        Self { now: 1, floor: 1, known: Box::new([[1; WARPS]; WARPS]) }
    }

    /// All warps meet.
    pub fn barrier(&mut self) {
        self.now += 1;
        self.floor = self.now;
    }

    /// The warps in `warps` meet: each knows what any of them knew.
    pub fn barrier_among(&mut self, warps: u32) {
        self.now += 1;
        let members = |warp: &usize| warps >> warp & 1 == 1;
        let mut joined = [0; WARPS];
        for warp in (0..WARPS).filter(members) {
            for (into, &time) in joined.iter_mut().zip(&self.known[warp]) {
                *into = time.max(*into);
            }
        }
        (0..WARPS).filter(members).for_each(|warp| joined[warp] = self.now);
        (0..WARPS).filter(members).for_each(|warp| self.known[warp] = joined);
    }

    /// The lanes of `warp` meet.
    pub fn warp_barrier(&mut self, warp: u32) {
        self.now += 1;
        self.known[warp as usize % WARPS][warp as usize % WARPS] = self.now;
    }

    /// What threads of `warp` do now at `line`.
    #[inline(always)]
    pub fn view(&self, warp: u32, line: u32) -> View<'_> {
        let warp = warp as usize % WARPS;
        let first = (warp * LANES) as u64;
        let line = u64::from(line.min(MOST_LINES));
        View {
            known: &self.known[warp],
            floor: self.floor,
            base: u64::from(self.now) << 32 | line << LINE_SHIFT | first,
        }
    }
}

/// Why an access may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody wrote the bytes.
    Unwritten,
    /// A cp.async under way will.
    Pending,
    /// Nothing orders an earlier access before this one.
    Race(Mark, &'static str),
}

/// One warp's present.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    known: &'a [u32; WARPS],
    floor: u32,
    base: u64,
}

impl View<'_> {
    /// The mark of an access by `lane`.
    #[inline(always)]
    pub fn mark(&self, lane: usize) -> Mark {
        Mark(self.base | lane as u64)
    }

    /// Whether the earlier access `mark` is ordered before the warp's present.
    #[inline(always)]
    fn ordered(&self, mark: Mark) -> bool {
        mark.time() < self.floor || mark.time() < self.known[mark.warp()]
    }

    /// Whether nothing orders the earlier access `mark` before `mine`.
    #[inline(always)]
    fn unordered(&self, mark: u64, mine: Mark) -> bool {
        !self.ordered(Mark(mark)) && !Mark(mark).same_thread(mine)
    }

    /// Whether everything that a mark stands for lies before the latest barrier of all warps. Not so for bytes that are unwritten or
    /// under way.
    #[inline(always)]
    fn past(&self, mark: u64) -> bool {
        ((mark >> 32) as u32) < self.floor
    }

    /// Records a read.
    #[inline(always)]
    pub fn read(&self, cell: &mut Cell, mine: Mark) -> Result<(), Trouble> {
        if self.past(cell.writer) && self.past(cell.first) {
            // So is the second reader, if any.
            cell.first = mine.0;
            return Ok(());
        }
        if !self.past(cell.writer) {
            self.written(cell.writer, mine)?;
        }
        self.remember(cell, mine);
        Ok(())
    }

    /// Records a write, `writer` being what the cell shall hold from now.
    #[inline(always)]
    pub fn write(&self, cell: &mut Cell, mine: Mark, writer: u64) -> Result<(), Trouble> {
        if !(self.past(cell.writer) && self.past(cell.first)) {
            self.untouched(cell, mine)?;
        }
        cell.writer = writer;
        Ok(())
    }

    /// That an atomic access may be, as far as plain ones go.
    pub fn check_atomic(&self, cell: &Cell, mine: Mark) -> Result<(), Trouble> {
        self.written(cell.writer, mine)?;
        self.untouched(cell, mine)
    }

    /// That no atomic access is unordered with `mine`.
    pub fn check_against_atomic(&self, atomic: &Cell, mine: Mark) -> Result<(), Trouble> {
        match [atomic.first, atomic.second].into_iter().find(|&mark| self.unordered(mark, mine)) {
            Some(mark) => Err(Trouble::Race(Mark(mark), "atomic")),
            None => Ok(()),
        }
    }

    /// That a cell was written, before `mine`.
    #[inline(always)]
    fn written(&self, writer: u64, mine: Mark) -> Result<(), Trouble> {
        match writer {
            UNWRITTEN => Err(Trouble::Unwritten),
            PENDING => Err(Trouble::Pending),
            _ if self.unordered(writer, mine) => Err(Trouble::Race(Mark(writer), "write")),
            _ => Ok(()),
        }
    }

    /// That a cell may be written.
    fn untouched(&self, cell: &Cell, mine: Mark) -> Result<(), Trouble> {
        if cell.writer != UNWRITTEN {
            self.written(cell.writer, mine)?;
        }
        match [cell.first, cell.second].into_iter().find(|&mark| self.unordered(mark, mine)) {
            Some(mark) => Err(Trouble::Race(Mark(mark), "read")),
            None => Ok(()),
        }
    }

    /// Remembers a reader in a cell that keeps two, so that a later writer that is unordered with any reader finds one that it is
    /// unordered with.
    ///
    /// A reader ordered before this one can go: what is ordered after this one is ordered after that one too. Two readers that
    /// nothing orders suffice if they are in two warps (a writer is in one of them at most), or if all readers are in one warp (a
    /// writer is one of the two at most). So a third one is dropped unless both are in one warp and it is in another.
    #[inline(always)]
    pub fn remember(&self, cell: &mut Cell, mine: Mark) {
        let (first, second) = (Mark(cell.first), Mark(cell.second));
        // Marks of 0 are ordered before everything. A second reader is there only beside a first one that is not past.
        if self.past(first.0) {
            *cell = Cell { first: mine.0, second: 0, ..*cell };
        } else if second.0 != 0 && second.same_thread(mine) {
            cell.second = mine.0;
        } else if self.ordered(first) || first.same_thread(mine) {
            cell.first = mine.0;
        } else if self.ordered(second) || first.warp() == second.warp() && second.warp() != mine.warp() {
            cell.second = mine.0;
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
