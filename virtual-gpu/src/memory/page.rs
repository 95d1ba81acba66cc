//! A page of device memory: bytes, which of them were written, and which CTAs of the running launch touched them.
//!
//! A page is used under its lock only, so that accesses of CTAs on several threads have some order. Whether two of them collide does
//! not depend on that order: of any two conflicting accesses the later one finds the earlier one's mark.

use super::bits;
use super::shadow::{Cell, Shadow};

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// What the host reads where nobody wrote.
pub(super) const UNWRITTEN: u8 = 0xCD;

/// A CTA of a launch and the PTX line that it is at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitor {
    /// Which launch.
    pub launch: u32,
    /// Flat in the grid.
    pub cta: u32,
    /// In the module's PTX.
    pub line: u32,
}

impl Visitor {
    /// The mark left in cells: the line above, the CTA plus 1 below.
    #[inline(always)]
    fn mark(self) -> u64 {
        u64::from(self.line) << 32 | (u64::from(self.cta) + 1)
    }
}

/// An earlier access that another CTA's collides with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Collision {
    /// In the page.
    pub offset: usize,
    /// `read`, `write` or `atomic`.
    pub other: &'static str,
    /// The other CTA.
    pub cta: u32,
    /// Its PTX line.
    pub line: u32,
}

/// Whether a mark was left by some other CTA than the one that leaves `mine`. (A split cell's is.)
#[inline(always)]
fn foreign(mark: u64, mine: u64) -> bool {
    mark as u32 != 0 && mark as u32 != mine as u32
}

/// Remembers a reader: two different ones are enough, for whoever writes is at most one of them.
#[inline(always)]
fn remember(cell: &mut Cell, mine: u64) {
    if cell.first as u32 == 0 {
        cell.first = mine;
    } else if cell.second as u32 == 0 && cell.first as u32 != mine as u32 {
        cell.second = mine;
    }
}

/// An earlier access that collides: its mark, and what it was.
type Earlier = (u64, &'static str);

/// Fails where `mark` was left by another CTA.
#[inline(always)]
fn apart(mark: u64, mine: u64, other: &'static str) -> Result<(), Earlier> {
    if foreign(mark, mine) { Err((mark, other)) } else { Ok(()) }
}

/// Fails where another CTA read or wrote a cell.
#[inline(always)]
fn meets_no_other(cell: &Cell, mine: u64) -> Result<(), Earlier> {
    apart(cell.writer, mine, "write")?;
    apart(cell.first, mine, "read")?;
    apart(cell.second, mine, "read")
}

fn collision((offset, (mark, other)): (usize, Earlier)) -> Collision {
    Collision { offset, other, cta: (mark as u32).wrapping_sub(1), line: (mark >> 32) as u32 }
}

/// Log2 of the bytes of a cell that is not split.
const TOP: u32 = 6;

/// Who of the running launch touched the page.
struct Touched {
    /// Marks of other launches count for nothing.
    launch: u32,
    plain: Shadow<TOP>,
    /// Atomic accesses, as readers: they collide with plain ones, not among themselves.
    atomic: Option<Shadow<TOP>>,
}

/// See the head of this file.
pub(super) struct Page {
    bytes: [u8; PAGE],
    written: [u64; PAGE / 64],
    touched: Option<Touched>,
}

impl Page {
    /// With nothing written.
    pub fn new() -> Box<Self> {
        Box::new(Self { bytes: [UNWRITTEN; PAGE], written: [0; PAGE / 64], touched: None })
    }

    /// Bytes `start..end`.
    #[inline(always)]
    pub fn bytes(&self, start: usize, end: usize) -> &[u8] {
        &self.bytes[start..end]
    }

    /// Bytes `start..end` to be written, all of them.
    #[inline(always)]
    pub fn overwrite(&mut self, start: usize, end: usize) -> &mut [u8] {
        bits::set(&mut self.written, start, end);
        &mut self.bytes[start..end]
    }

    /// A copy of bytes `start..end`, each with whether it was written.
    pub fn part(&self, start: usize, end: usize) -> Vec<(u8, bool)> {
        (start..end).map(|byte| (self.bytes[byte], self.written[byte / 64] >> (byte % 64) & 1 == 1)).collect()
    }

    /// Puts a copy from [`Page::part`] at `start`.
    pub fn put(&mut self, start: usize, part: &[(u8, bool)]) {
        for (at, &(byte, written)) in (start..).zip(part) {
            self.bytes[at] = byte;
            if written {
                bits::set(&mut self.written, at, at + 1);
            } else {
                bits::clear(&mut self.written, at, at + 1);
            }
        }
    }

    /// Makes bytes `start..end` unwritten.
    pub fn forget(&mut self, start: usize, end: usize) {
        bits::clear(&mut self.written, start, end);
        self.bytes[start..end].fill(UNWRITTEN);
    }

    /// The first of bytes `start..end` that nobody wrote.
    #[inline(always)]
    pub fn unwritten(&self, start: usize, end: usize) -> Option<usize> {
        if bits::all(&self.written, start, end) { None } else { bits::first_unset(&self.written, start, end) }
    }

    /// How many of bytes `start..end` nobody wrote.
    pub fn count_unwritten(&self, start: usize, end: usize) -> u64 {
        (start..end).filter(|&byte| self.written[byte / 64] >> (byte % 64) & 1 == 0).count() as u64
    }

    /// The page's record of the visitor's launch.
    #[inline(always)]
    fn touched(&mut self, launch: u32) -> &mut Touched {
        let touched = self.touched.get_or_insert_with(|| Touched { launch, plain: Shadow::new(PAGE, 0), atomic: None });
        if touched.launch != launch {
            touched.launch = launch;
            touched.plain.reset(PAGE);
            touched.atomic = None;
        }
        touched
    }

    /// Records a read of bytes `start..end`.
    #[inline(always)]
    pub fn record_read(&mut self, visitor: Visitor, start: usize, end: usize) -> Result<(), Collision> {
        let mine = visitor.mark();
        let touched = self.touched(visitor.launch);
        let mut clean = touched.atomic.is_none() && (start | end).is_multiple_of(1 << TOP);
        if clean {
            for cell in &mut touched.plain.tops()[start >> TOP..end >> TOP] {
                if foreign(cell.writer, mine) {
                    clean = false;
                    break;
                }
                remember(cell, mine);
            }
        }
        if clean { Ok(()) } else { touched.read(mine, start, end) }
    }

    /// Records a write of bytes `start..end`.
    #[inline(always)]
    pub fn record_write(&mut self, visitor: Visitor, start: usize, end: usize) -> Result<(), Collision> {
        let mine = visitor.mark();
        let touched = self.touched(visitor.launch);
        let mut clean = touched.atomic.is_none() && (start | end).is_multiple_of(1 << TOP);
        if clean {
            for cell in &mut touched.plain.tops()[start >> TOP..end >> TOP] {
                if meets_no_other(cell, mine).is_err() {
                    clean = false;
                    break;
                }
                cell.writer = mine;
            }
        }
        if clean { Ok(()) } else { touched.write(mine, start, end) }
    }

    /// Records an atomic access to bytes `start..end`.
    pub fn record_atomic(&mut self, visitor: Visitor, start: usize, end: usize) -> Result<(), Collision> {
        let mine = visitor.mark();
        let touched = self.touched(visitor.launch);
        touched.plain.visit(start, end, |cell| meets_no_other(cell, mine)).map_err(collision)?;
        let remembered: Result<(), (usize, Earlier)> =
            touched.atomic.get_or_insert_with(|| Shadow::new(PAGE, 0)).visit(start, end, |cell| {
                remember(cell, mine);
                Ok(())
            });
        remembered.map_err(collision)
    }
}

impl Touched {
    /// [`Page::record_read`] for cells of any width.
    fn read(&mut self, mine: u64, start: usize, end: usize) -> Result<(), Collision> {
        let read = |cell: &mut Cell| {
            remember(cell, mine);
            apart(cell.writer, mine, "write")
        };
        self.plain.visit(start, end, read).map_err(collision)?;
        self.meets_no_atomic(mine, start, end)
    }

    /// [`Page::record_write`] for cells of any width.
    fn write(&mut self, mine: u64, start: usize, end: usize) -> Result<(), Collision> {
        let write = |cell: &mut Cell| {
            meets_no_other(cell, mine)?;
            cell.writer = mine;
            Ok(())
        };
        self.plain.visit(start, end, write).map_err(collision)?;
        self.meets_no_atomic(mine, start, end)
    }

    /// That no other CTA accessed bytes `start..end` atomically.
    fn meets_no_atomic(&mut self, mine: u64, start: usize, end: usize) -> Result<(), Collision> {
        let apart = |cell: &mut Cell| {
            apart(cell.first, mine, "atomic")?;
            apart(cell.second, mine, "atomic")
        };
        match &mut self.atomic {
            None => Ok(()),
            Some(atomic) => atomic.visit(start, end, apart).map_err(collision),
        }
    }
}
