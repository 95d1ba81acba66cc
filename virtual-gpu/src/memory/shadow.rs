//! Who touched which bytes: a record beside memory, one cell for 16 bytes where accesses are that wide, for 4 or 1 where they are not.
//!
//! Cells start coarse. The first access of a block of 256 bytes that covers a cell in part splits the block's cells, so that the
//! record is exact to the byte and still small for the wide accesses that kernels mostly make.

/// Bytes that are split together.
const BLOCK: usize = 256;
/// Log2 of the bytes of the coarsest cell.
const COARSE: u32 = 4;

/// What one cell remembers; what a mark means is the memory's affair, 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// Who wrote last.
    pub writer: u64,
    /// Somebody who read.
    pub first: u64,
    /// Somebody else who read.
    pub second: u64,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// Its first cell.
    at: u32,
    /// Log2 of the bytes of its cells.
    shift: u32,
}

/// The record of some memory.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    blocks: Vec<Block>,
    cells: Vec<Cell>,
}

impl Shadow {
    /// For `bytes` bytes that nobody touched.
    pub fn new(bytes: usize) -> Self {
        let mut shadow = Self::default();
        shadow.reset(bytes);
        shadow
    }

    /// As new.
    pub fn reset(&mut self, bytes: usize) {
        let blocks = bytes.div_ceil(BLOCK);
        let each = BLOCK >> COARSE;
        self.blocks.clear();
        self.blocks.extend((0..blocks).map(|block| Block { at: (block * each) as u32, shift: COARSE }));
        self.cells.clear();
        self.cells.resize(blocks * each, Cell::default());
    }

    /// Splits a block's cells to 1 << `shift` bytes each.
    #[cold]
    fn split(&mut self, block: usize, shift: u32) {
        let Block { at, shift: old } = self.blocks[block];
        let start = self.cells.len();
        let copies = 1 << (old - shift);
        for cell in at as usize..at as usize + (BLOCK >> old) {
            let cell = self.cells[cell];
            self.cells.extend(std::iter::repeat_n(cell, copies));
        }
        self.blocks[block] = Block { at: start as u32, shift };
    }

    /// The cells of bytes `start..end`, which lie in one block, and log2 of the bytes of each.
    #[inline(always)]
    pub fn cells(&mut self, start: usize, end: usize) -> (&mut [Cell], u32) {
        let index = start / BLOCK;
        let mut block = self.blocks[index];
        let ends = start | end;
        if ends & ((1 << block.shift) - 1) != 0 {
            self.split(index, if ends & 3 == 0 { 2 } else { 0 });
            block = self.blocks[index];
        }
        let first = block.at as usize + ((start % BLOCK) >> block.shift);
        (&mut self.cells[first..first + ((end - start) >> block.shift)], block.shift)
    }

    /// Calls `visit` with every cell of bytes `start..end` and the byte where it starts, until one call fails.
    #[inline(always)]
    pub fn visit<E>(
        &mut self,
        start: usize,
        end: usize,
        mut visit: impl FnMut(&mut Cell) -> Result<(), E>,
    ) -> Result<(), (usize, E)> {
        let mut from = start;
        while from < end {
            let to = end.min((from / BLOCK + 1) * BLOCK);
            let (cells, shift) = self.cells(from, to);
            for (index, cell) in cells.iter_mut().enumerate() {
                visit(cell).map_err(|error| (from + (index << shift), error))?;
            }
            from = to;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_cells_keep_what_was_recorded_to_the_byte() {
        let mut random = 7u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % below
        };
        let mut shadow = Shadow::new(1024);
        let mut bytes = [0u64; 1024];
        for mark in 1..2000u64 {
            let width = [1, 2, 4, 8, 16, 64, 512][next(7)];
            let start = next((1024 - width) / width.min(16) + 1) * width.min(16);
            let expected = bytes[start..start + width].to_vec();
            let mut found = Vec::new();
            let done: Result<(), (usize, ())> = shadow.visit(start, start + width, |cell| {
                found.push(cell.writer);
                cell.writer = mark;
                Ok(())
            });
            done.unwrap();
            found.dedup();
            let mut runs = expected.clone();
            runs.dedup();
            assert_eq!(found, runs, "bytes {start}..{}", start + width);
            bytes[start..start + width].fill(mark);
        }
    }

    #[test]
    fn a_failed_visit_names_the_byte() {
        let mut shadow = Shadow::new(1024);
        shadow
            .visit::<()>(300, 301, |cell| {
                cell.writer = 1;
                Ok(())
            })
            .unwrap();
        let failed = shadow.visit(256, 512, |cell| if cell.writer == 1 { Err("here") } else { Ok(()) });
        assert_eq!(failed, Err((300, "here")));
    }
}
