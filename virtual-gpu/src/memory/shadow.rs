//! Who touched which bytes: a record beside memory, one cell for as many bytes as accesses mostly cover, for fewer where they do not.
//!
//! Cells start wide: 1 << TOP bytes. The first access that covers a cell in part splits it into parts of 16, 4 or 1 bytes, so that
//! the record is exact to the byte and still small and quick for the wide accesses that kernels mostly make.

/// The writer of a cell that was split; `first` says where its parts begin, `second` is log2 of the bytes of each.
pub(super) const SPLIT: u64 = u64::MAX;

/// What one cell remembers. What marks mean is the memory's affair, except [`SPLIT`]; a reader of 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// Who wrote last.
    pub writer: u64,
    /// Somebody who read.
    pub first: u64,
    /// Somebody else who read.
    pub second: u64,
}

/// The record of some memory.
#[derive(Debug)]
pub(super) struct Shadow<const TOP: u32> {
    cells: Vec<Cell>,
    parts: Vec<Cell>,
    blank: Cell,
}

impl<const TOP: u32> Shadow<TOP> {
    /// For `bytes` bytes that nobody touched, all with the same `writer`.
    pub fn new(bytes: usize, writer: u64) -> Self {
        let blank = Cell { writer, first: 0, second: 0 };
        let mut shadow = Self { cells: Vec::new(), parts: Vec::new(), blank };
        shadow.reset(bytes);
        shadow
    }

    /// As new.
    pub fn reset(&mut self, bytes: usize) {
        self.parts.clear();
        self.cells.clear();
        self.cells.resize(bytes.div_ceil(1 << TOP), self.blank);
    }

    /// The widest cells; their index is the byte address over 1 << TOP.
    #[inline(always)]
    pub fn tops(&mut self) -> &mut [Cell] {
        &mut self.cells
    }

    /// The cells of bytes `start..end`, which lie in one of the widest cells.
    #[inline(always)]
    pub fn within(&mut self, start: usize, end: usize) -> &mut [Cell] {
        let index = start >> TOP;
        let Cell { writer, mut first, mut second } = self.cells[index];
        if writer != SPLIT && end - start == 1 << TOP {
            return std::slice::from_mut(&mut self.cells[index]);
        }
        if writer != SPLIT || (start | end) & ((1 << second) - 1) != 0 {
            (first, second) = self.split(index, start | end);
        }
        let from = first as usize + ((start & ((1 << TOP) - 1)) >> second);
        &mut self.parts[from..from + ((end - start) >> second)]
    }

    /// Splits a cell so that parts begin and end wherever `ends` has bits; gives where they begin and log2 of their bytes.
    #[cold]
    fn split(&mut self, index: usize, ends: usize) -> (u64, u64) {
        let shift: u32 = match ends {
            _ if TOP > 4 && ends & 15 == 0 => 4,
            _ if ends & 3 == 0 => 2,
            _ => 0,
        };
        let begin = self.parts.len();
        let old = self.cells[index];
        if old.writer == SPLIT {
            let copies = 1 << (old.second as u32 - shift);
            let parts = old.first as usize..old.first as usize + (1 << (TOP - old.second as u32));
            for part in parts {
                let part = self.parts[part];
                self.parts.extend(std::iter::repeat_n(part, copies));
            }
        } else {
            self.parts.extend(std::iter::repeat_n(old, 1 << (TOP - shift)));
        }
        self.cells[index] = Cell { writer: SPLIT, first: begin as u64, second: u64::from(shift) };
        (begin as u64, u64::from(shift))
    }

    /// Calls `visit` with every cell of bytes `start..end`, until one call fails: then the error says where that cell starts.
    pub fn visit<E>(
        &mut self,
        start: usize,
        end: usize,
        mut visit: impl FnMut(&mut Cell) -> Result<(), E>,
    ) -> Result<(), (usize, E)> {
        let mut from = start;
        while from < end {
            let to = end.min(((from >> TOP) + 1) << TOP);
            let cells = self.within(from, to);
            let count = cells.len();
            for (index, cell) in cells.iter_mut().enumerate() {
                visit(cell).map_err(|error| (from + (to - from) / count * index, error))?;
            }
            from = to;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    fn keeps_what_was_recorded<const TOP: u32>() {
        let mut random = Random(7);
        let mut shadow = Shadow::<TOP>::new(1024, 0);
        let mut bytes = [0u64; 1024];
        for mark in 1..4000u64 {
            let width = [1, 2, 4, 8, 16, 64, 512][random.below(7) as usize];
            let unit = width.min(16);
            let start = random.below(((1024 - width) / unit + 1) as u64) as usize * unit;
            let mut found = Vec::new();
            let done: Result<(), (usize, ())> = shadow.visit(start, start + width, |cell| {
                found.push(cell.writer);
                cell.writer = mark;
                Ok(())
            });
            done.unwrap();
            found.dedup();
            let mut expected = bytes[start..start + width].to_vec();
            expected.dedup();
            assert_eq!(found, expected, "bytes {start}..{}", start + width);
            bytes[start..start + width].fill(mark);
        }
    }

    #[test]
    fn split_cells_keep_what_was_recorded_to_the_byte() {
        keeps_what_was_recorded::<4>();
        keeps_what_was_recorded::<6>();
    }

    #[test]
    fn a_failed_visit_names_the_byte() {
        let mut shadow = Shadow::<6>::new(1024, 0);
        let mark = |cell: &mut Cell| {
            cell.writer = 1;
            Ok::<(), (usize, ())>(()).map_err(|_| ())
        };
        shadow.visit(300, 301, mark).unwrap();
        let failed = shadow.visit(256, 512, |cell| if cell.writer == 1 { Err("here") } else { Ok(()) });
        assert_eq!(failed, Err((300, "here")));
    }
}
